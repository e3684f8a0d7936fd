"""What a person says to the robot: wordings of the 34 CALVIN tasks, written for this kit.

    TRAIN[task] -> eight or more sentences;  VALIDATION[task] -> one sentence that no training episode has

Task names and their meaning are CALVIN's (reference: `new_playtable_tasks.yaml`), the sentences are our own. A validation sentence
combines words that training sentences use, so that a small model without a pretrained vocabulary can know every word of it.
Left and right are the static camera's; clockwise is seen from above.
"""

COLOURS = ("red", "blue", "pink")
_SPIN = {"right": "clockwise", "left": "counterclockwise"}

_ROTATE = (
    "spin the {colour} block {spin}",
    "give the {colour} cube a twist to the {side}",
    "twist the {colour} brick {spin}, toward the {side}",
    "pick the {colour} cube up and turn it {spin}",
    "hold the {colour} block and swivel it to the {side}",
    "make the {colour} brick face further {side} by turning it",
    "grip the {colour} block and give it a quarter turn {side}",
    "rotate the {colour} cube {spin} with the gripper",
    "let the {colour} brick spin round to the {side}",
)
_PUSH = (
    "shove the {colour} block over to the {side}",
    "push the {colour} brick {side}ward across the table",
    "slide the {colour} cube along the tabletop to the {side}",
    "without lifting it, move the {colour} block {side}",
    "scoot the {colour} brick a bit to the {side}",
    "give the {colour} cube a nudge to the {side}",
    "shift the {colour} block {side} by pushing against its flank",
    "bump the {colour} cube along until it is further {side}",
    "drag the {colour} brick over the table top, {side}ward",
)
_LIFT_TABLE = (
    "raise the {colour} block off the table top",
    "lift the {colour} cube up from the table",
    "take the {colour} brick that lies on the table and hold it up",
    "grab the {colour} cube from the tabletop",
    "pick the {colour} block up off the table",
    "close your fingers on the {colour} brick on the table and bring it up",
    "fetch the {colour} block, it is on the table top",
    "get the {colour} cube into the air, away from the tabletop",
)
_LIFT_SLIDER = (
    "take the {colour} block out of the cabinet",
    "reach into the cabinet and lift the {colour} cube",
    "fetch the {colour} brick from behind the sliding door",
    "grab the {colour} cube that lies in the sliding cabinet",
    "raise the {colour} block off the cabinet shelf",
    "pick the {colour} brick up from inside the cabinet",
    "the {colour} block is in the cabinet, lift it up",
    "bring the {colour} cube up from the shelf of the slider",
)
_LIFT_DRAWER = (
    "take the {colour} block out of the drawer",
    "reach into the drawer and lift the {colour} cube",
    "fetch the {colour} brick from inside the open drawer",
    "grab the {colour} cube that lies in the drawer",
    "raise the {colour} block off the bottom of the drawer",
    "pick the {colour} brick up out of the drawer",
    "the {colour} block is in the drawer, lift it up",
    "bring the {colour} cube up from the open drawer",
)

TRAIN: dict[str, tuple[str, ...]] = {
    "move_slider_left": (
        "shift the sliding door to the left",
        "bring the cabinet door all the way over to the left",
        "take the slider by its handle and pull it left",
        "drag the door of the cabinet leftward",
        "slide the cabinet door left along its rail",
        "push the slider handle to the left side",
        "uncover the right half of the cabinet by moving the door left",
        "let the sliding panel travel to its left end",
    ),
    "move_slider_right": (
        "shift the sliding door to the right",
        "bring the cabinet door all the way over to the right",
        "take the slider by its handle and pull it right",
        "drag the door of the cabinet rightward",
        "slide the cabinet door right along its rail",
        "push the slider handle to the right side",
        "uncover the left half of the cabinet by moving the door right",
        "let the sliding panel travel to its right end",
    ),
    "open_drawer": (
        "pull the drawer out by its handle",
        "get the drawer open",
        "draw the drawer out toward the front",
        "hook the handle and haul the drawer open",
        "slide the drawer outward until it is open",
        "the drawer is shut, please open it",
        "make the drawer come out of the table",
        "tug at the drawer handle so that it opens",
    ),
    "close_drawer": (
        "push the drawer shut",
        "get the drawer closed",
        "shove the drawer back into the table",
        "slide the drawer in until it is shut",
        "the drawer is open, please close it",
        "press against the drawer handle so that it closes",
        "make the drawer go back in all the way",
        "send the open drawer home",
    ),
    "place_in_slider": (
        "put the block you hold into the cabinet",
        "drop what you are holding on the cabinet shelf",
        "set the block in your hand down inside the sliding cabinet",
        "leave the cube you carry behind the sliding door",
        "place the held block in the cabinet",
        "store the brick from your gripper in the cabinet",
        "bring the block in your gripper to the cabinet and let go of it there",
        "lower the cube in your hand into the slider and release it",
    ),
    "place_in_drawer": (
        "put the block you hold into the drawer",
        "drop what you are holding in the open drawer",
        "set the block in your hand down inside the drawer",
        "leave the cube you carry at the bottom of the drawer",
        "place the held block in the drawer",
        "store the brick from your gripper in the drawer",
        "bring the block in your gripper to the drawer and let go of it there",
        "lower the cube in your hand into the drawer and release it",
    ),
    "push_into_drawer": (
        "shove the block over the edge so that it falls into the drawer",
        "push the brick off the table and into the drawer",
        "knock the cube from the table into the open drawer",
        "nudge the block along until it drops into the drawer",
        "slide the cube across the table top into the drawer",
        "without lifting it, get the block to tumble into the drawer",
        "sweep the brick down into the open drawer",
        "scoot the block over the rim, into the drawer",
    ),
    "stack_block": (
        "put the block you hold on top of another one",
        "build a tower with the cube in your hand",
        "set the held block down on another block",
        "place what you are holding on top of a second block",
        "make a stack: put your brick on another brick",
        "lower the cube in your gripper onto another cube",
        "stack the block in your hand on one that lies on the table",
        "leave the brick you carry on the top of a different block",
    ),
    "unstack_block": (
        "take the upper block off the lower one",
        "undo the stack of blocks",
        "take the tower of cubes apart",
        "lift the top brick off the stack",
        "remove the cube that stands on another cube",
        "grab the highest block of the tower and take it away",
        "get the block on top down from the other one",
        "pull the stacked bricks apart",
    ),
    "turn_on_lightbulb": (
        "flip the lever up so that the lamp lights",
        "raise the switch to light the bulb",
        "make the yellow lamp shine",
        "get the lightbulb to glow with the lever",
        "it is dark, put the yellow light on with the switch",
        "move the lever up and light the yellow lamp",
        "let there be light: switch the bulb on",
        "toggle the switch until the lightbulb is lit",
    ),
    "turn_off_lightbulb": (
        "flip the lever down so that the lamp goes dark",
        "lower the switch to put out the bulb",
        "make the yellow lamp stop shining",
        "get the lightbulb to go out with the lever",
        "it is bright, put the yellow light off with the switch",
        "move the lever down and darken the yellow lamp",
        "no more light: switch the bulb off",
        "toggle the switch until the lightbulb is dark",
    ),
    "turn_on_led": (
        "press the button so that the green light comes on",
        "tap the button until the led is lit",
        "light the green indicator",
        "make the led glow by pressing the button",
        "put the green lamp on with the button",
        "push the round button down and light the led",
        "the indicator is dark, press its button to light it",
        "switch the green led on",
    ),
    "turn_off_led": (
        "press the button so that the green light goes out",
        "tap the button until the led is dark",
        "put out the green indicator",
        "make the led stop glowing by pressing the button",
        "put the green lamp off with the button",
        "push the round button down and darken the led",
        "the indicator is lit, press its button to darken it",
        "switch the green led off",
    ),
}
VALIDATION: dict[str, str] = {
    "move_slider_left": "pull the cabinet door over to the left side",
    "move_slider_right": "pull the cabinet door over to the right side",
    "open_drawer": "take the handle and slide the drawer out",
    "close_drawer": "move the drawer back in until it is closed",
    "place_in_slider": "release the block you carry inside the cabinet",
    "place_in_drawer": "release the block you carry inside the drawer",
    "push_into_drawer": "bump the cube along the table until it falls into the drawer",
    "stack_block": "drop the block you carry on top of another cube",
    "unstack_block": "pick the top block up off the tower",
    "turn_on_lightbulb": "push the lever up to make the bulb glow",
    "turn_off_lightbulb": "push the lever down to make the bulb go dark",
    "turn_on_led": "get the green light to glow with the button",
    "turn_off_led": "get the green light to go dark with the button",
}
for _colour in COLOURS:
    for _side, _spin in _SPIN.items():
        _words = {"colour": _colour, "side": _side, "spin": _spin}
        for _family, _patterns, _unseen in (
            ("rotate", _ROTATE, "swivel the {colour} cube round, {spin}"),
            ("push", _PUSH, "nudge the {colour} block over the tabletop toward the {side}"),
        ):
            _task = f"{_family}_{_colour}_block_{_side}"
            TRAIN[_task] = tuple(p.format(**_words) for p in _patterns)
            VALIDATION[_task] = _unseen.format(**_words)
    for _place, _patterns, _unseen in (
        ("table", _LIFT_TABLE, "grip the {colour} block that lies on the table top and lift it"),
        ("slider", _LIFT_SLIDER, "get the {colour} block up off the shelf inside the cabinet"),
        ("drawer", _LIFT_DRAWER, "get the {colour} block up off the bottom of the open drawer"),
    ):
        _task = f"lift_{_colour}_block_{_place}"
        TRAIN[_task] = tuple(p.format(colour=_colour) for p in _patterns)
        VALIDATION[_task] = _unseen.format(colour=_colour)
