"""From an instruction to what must be looked at: rules over words, no model.

    parse("grab the blue cube and drop it into the drawer")
    -> Phrase(target="blue block", item="blue_block", destination="drawer", destination_item="drawer", relation="into")
    parse("put the mug behind the laptop on the left plate")
    -> Phrase("mug", None, "plate", None, "onto", place="behind", references=("laptop",), destination_side="left")

The target is what the hand moves or touches first, the destination what the action is for: the light that a button switches, the
drawer to place in, the block to stack on. `item` and `destination_item` are names of the play table's items
(`sims.tabletop.scenes.ITEMS`), or None where the words alone cannot name one ("the block you are holding"); `target` is then
still a phrase that an open-vocabulary detector can be given. `resolve` fills such gaps from an episode's recorded states.

Any instruction is read by `gaze.nouns`. One that speaks of nothing but a play table's things is read once more by rules that know that
table (a lamp is reached through its switch). A sentence without a noun gives a Phrase that is not `named`, or an error with `strict`.
"""

import re
from dataclasses import dataclass, replace

import numpy as np

from repro.gaze.nouns import Step, read
from repro.machine import UserError
from repro.sims.tabletop.scenes import BLOCKS


@dataclass(frozen=True)
class Phrase:
    """What an instruction is about; nouns are without article and without the words of their side."""

    target: str
    item: str | None
    destination: str | None = None
    destination_item: str | None = None
    relation: str | None = None  # target -> destination: into, onto, to, switches, next to, left of, behind ...; None without one
    place: str | None = None  # how the target is told from others of its kind: in, on, from, of, next to, between, behind ...
    references: tuple[str, ...] = ()  # the nouns of that place
    side: str | None = None  # left, right, front, back, middle, top, bottom, nearest, farthest: "the left plate", "the plate on the left"
    destination_place: str | None = None  # the same of the destination; "between the soap and the comb" has the comb here, as "and"
    destination_references: tuple[str, ...] = ()
    destination_side: str | None = None
    then: "Phrase | None" = None  # what is handled after that: "turn on the stove and put the pan on it", "put A and B in the basket"

    @property
    def named(self) -> bool:
        """False where the instruction names nothing to look at ("go left"): annotation flags its frames as fallbacks."""
        return bool(self.target)


# Targets that the words leave open.
HELD, TOP, BLOCK = "block in the gripper", "top block", "block"

_COLOUR = {"red": "red", "blue": "blue", "pink": "pink", "purple": "pink", "magenta": "pink", "violet": "pink"}
_NOUN = r"(?:blocks?|cubes?|bricks?|objects?|pieces?|things?|items?|toys?)"
_SIZE = r"(?:(?:little|small|big|large|long|short|wooden|plastic|toy) )*"
# In this order: at one place in the sentence the first pattern that fits names the thing.
_THINGS = (
    ("coloured", rf"(?:{'|'.join(_COLOUR)})(?: {_SIZE}(?:{_NOUN}|one)\b|(?= (?:on|onto|to|into|in|up|left|right|from|out|off|and)\b)|$)"),
    ("block", rf"{_NOUN}\b|(?<=another )one\b|(?<=other )one\b|(?<=on )one\b|(?<=onto )one\b"),
    ("drawer", r"drawers?\b|compartment\b"),
    ("slider", r"slid(?:ing|er) (?:doors?|panel|cabinet|cupboard|handle)\b|(?:slider|doors?|panel|shelf|closet)\b|"
               r"(?:cabinet|cupboard)(?: (?:s )?(?:sliding )?(?:doors?|panel|shelf))?\b"),
    ("table", r"(?:table ?tops?|table|desk|surface)\b"),
)
# Every word of a noun that the play table can be meant by.
_PLAY = set("""block cube brick object piece thing item toy one drawer compartment slider door panel cabinet cupboard shelf closet handle
    table tabletop desk surface led diode indicator light lamp bulb lightbulb button lever switch toggle tower stack pile edge
    rim rail bottom top red blue pink purple magenta violet green yellow little small big large long short wooden plastic round
    sliding open held upper stacked different second half end flank of""".split())
_LED = r"\b(?:led|diode|indicator|green (?:round |little |small )?(?:light|lamp|bulb))\b"
_BULB = r"\b(?:light ?bulb|bulb|yellow (?:light|lamp))\b"
_HELD = (r"\b(?:you (?:hold|carry|grasp)|held|carried|grasped|you (?:a?re|have) (?:hold|carry|grasp|gripp?)(?:ing|ed)|"
         r"(?:in|from) (?:your|the) (?:hand|gripper|fingers))\b")
_PUT = r"\b(?:put|place|drop|set|store|leave|lower|release|stack|build|lay|deposit|insert|stow|let go)\b"
_PLACING = rf"(?:{_PUT}|\b(?:make|push|shove|sweep|move)\b)"
_BROUGHT = rf"{_PUT}(?: it| them)?(?: down)? (?:in|into|inside|on|onto|behind)\b|\b(?:push|shove|sweep)(?: it| them)? into\b"
_FROM = (r"\b(?:from|off|out of|reach(?:ing)? (?:in|into)|inside of|(?:lie|lies|lying|sit|sits|sitting|stands|standing|is|are|s|resting) "
         r"(?:currently )?(?:in|inside|on|behind)|away)\b")
_PULLED_APART = r"\b(?:unstack|undo|apart|remove|collapse|topple|dismantle|disassemble)\b"
_PILE = r"\b(?:stack|stacked|tower|pile|top|upper|uppermost|highest|topmost)\b"


def parse(instruction: str, strict: bool = False) -> Phrase:
    """Target and destination of an instruction; a UserError if it holds no word, and with `strict` also if it names nothing to look at.

    On the play table a light named only "light" or "lamp" is taken for the bulb, and "handle" without more for the drawer's unless it
    goes sideways.
    """
    text = " ".join(re.findall(r"[^\W_]+", instruction.lower()))
    if not text:
        raise UserError("The instruction is empty.", expected="a sentence such as 'open the drawer'", found=repr(instruction))
    steps, spoken, refused = read(instruction)
    at_table = set(" ".join(spoken + refused).split()) <= _PLAY
    told = None
    for step in reversed(steps):
        told = replace(_phrase(step, at_table), then=told)
    at_table &= not any(re.search(rf"\b(?:green|yellow) {_SIZE}{_NOUN}$", noun) for noun in spoken)  # the table's blocks have other colours
    known = _at_table(text) if at_table and not refused else None
    if known and told and (told.item == known.item is not None or told.target == known.target):
        known = replace(told, **{name: getattr(known, name) for name in ("target", "destination", "destination_item", "relation")})
    found = known or told or Phrase("", None)
    if strict and not found.named:
        raise UserError("The instruction names nothing to look at.", expected="a noun, as in 'open the drawer'", found=repr(instruction),
                        next_step="say what to look at, or pass the target's noun yourself: Phrase('red mug', None)")  # fmt: skip
    return found


def look(phrase: Phrase, held: bool) -> tuple[str, str | None]:
    """(noun, item) to look at in a frame: the target, and once the gripper holds it the place where it goes.

    What a button switches is never looked at instead of the button. "The block in your hand" is held whatever `held` says.
    """
    if moved_on(phrase, held):
        return phrase.destination, phrase.destination_item
    return phrase.target, phrase.item


def moved_on(phrase: Phrase, held: bool) -> bool:
    """Whether the gaze is on the destination."""
    placing = phrase.destination is not None and phrase.relation != "switches"
    return placing and (held or phrase.target == HELD)


def nouns(phrase: Phrase, held: bool = False) -> tuple[str, ...]:
    """What to ask an open-vocabulary detector for: the thing to look at first, then what its place refers to; () if nothing is named."""
    first = look(phrase, held)[0]
    references = phrase.destination_references if moved_on(phrase, held) else phrase.references
    return tuple(dict.fromkeys(noun for noun in (first, *references) if noun))


def gaze_item(phrase: Phrase) -> str | None:
    """The item to look at: the target, or where it goes when the target is the unnamed block already in the hand."""
    return phrase.item or phrase.destination_item


def resolve(phrase: Phrase, scene_obs: np.ndarray) -> Phrase:
    """Fill the item that the words left open, from the blocks' motion over the whole episode.

    scene_obs: (T, 24) with blocks in the canonical order red, blue, pink. The block that moved furthest is the moved one; for
    "onto another block" the destination is the block nearest to it, in the plane, at the end. Nothing is filled when no block
    moved by 2 cm. This looks ahead in time: it serves annotation of recorded episodes, never a policy.
    """
    if phrase.target not in (BLOCK, TOP, HELD):
        return phrase
    blocks = np.asarray(scene_obs, dtype=np.float64)[:, 6:24].reshape(-1, 3, 6)[:, :, :3]
    travel = np.linalg.norm(blocks - blocks[:1], axis=2).max(axis=0)
    moved = int(travel.argmax())
    if travel[moved] < 0.02:
        return phrase
    if phrase.target != HELD:
        return replace(phrase, item=BLOCKS[moved])
    if phrase.relation != "onto" or phrase.destination_item is not None:
        return phrase
    others = [block for block in range(3) if block != moved]
    distance = [np.linalg.norm(blocks[-1, block, :2] - blocks[-1, moved, :2]) for block in others]
    return replace(phrase, destination_item=BLOCKS[others[int(np.argmin(distance))]])


def _phrase(step: Step, at_table: bool) -> Phrase:
    """A step with the names of the play table's items, as far as single nouns tell them."""
    noun, item = _named(step.target.noun or HELD, at_table)
    goal, goal_item = _named(step.destination.noun, at_table) if step.destination else (None, None)
    about = (step.destination.place, step.destination.references, step.destination.side) if step.destination else (None, (), None)
    return Phrase(noun, item, goal, goal_item, step.relation, step.target.place, step.target.references, step.target.side, *about)


def _named(noun: str, at_table: bool) -> tuple[str, str | None]:
    """(noun, item): a coloured cube is called a block; lights, buttons and doors are the play table's only `at_table`."""
    found = _at_table(noun) if set(noun.split()) <= _PLAY else None
    if found is None or (found.item not in (*BLOCKS, "drawer") and not at_table):
        return ("block", None) if noun in ("cube", "brick") else (noun, None)
    return (found.target if found.item in BLOCKS or noun in ("cube", "brick") else noun), found.item


def _at_table(text: str) -> Phrase | None:
    """A sentence about the play table's things; None where it names none of them."""
    things = _things(text)
    blocks = [thing for thing in things if thing[0] in ("coloured", "block")]
    containers = [thing for thing in things if thing[0] in ("drawer", "slider")]
    held = re.search(_HELD, text) is not None
    if blocks or held or (containers and re.search(_BROUGHT, text)) or re.search(r"\b(?:the|a) (?:tower|pile|stack)\b", text):
        return _about_block(text, things, blocks, held)
    light = _about_light(text)
    if light:
        return light
    if containers:
        return Phrase("drawer", "drawer") if containers[0][0] == "drawer" else Phrase("sliding door", "slider")
    if re.search(r"\bhandle\b", text):
        sideways = re.search(r"\b(?:left|right|sideways|leftwards?|rightwards?)\b", text)
        return Phrase("sliding door", "slider") if sideways else Phrase("drawer", "drawer")
    return None


def _things(text: str) -> list[tuple[str, str, int, int]]:
    """(kind, words, start, end) of everything the sentence names, in order of appearance, without overlaps."""
    found = []
    for kind, pattern in _THINGS:
        for match in re.finditer(rf"\b(?:{pattern})", text):
            if all(match.end() <= start or match.start() >= end for _, _, start, end in found):
                found.append((kind, match.group(0), match.start(), match.end()))
    return sorted(found, key=lambda thing: thing[2])


def _about_block(text: str, things: list, blocks: list, held: bool) -> Phrase:
    """A sentence about a block: which one, and where it goes if it is to go anywhere."""
    first = next((block for block in blocks if block[0] == "coloured"), blocks[0] if blocks else None)
    if first and first != blocks[0] and re.search(r"\b(?:on|onto|off|from)\b", text[blocks[0][3]:first[2]]):
        first = blocks[0]  # "the block off the red one": the colour is the other block's
    destination, destination_item, relation = _destination(text, things, first)
    if first and first[0] == "coloured":
        colour = _COLOUR[first[1].split()[0]]
        return Phrase(f"{colour} block", f"{colour}_block", destination, destination_item, relation)
    if destination is None and (re.search(rf"{_PILE}|{_PULLED_APART}", text) or len(blocks) > 1):
        taken = re.search(rf"{_PULLED_APART}|\b(?:off|from|away)\b", text) or not re.search(_PLACING, text)
        return Phrase(TOP, None) if taken and not held else Phrase(HELD, None, "another block", None, "onto")
    put = destination and re.search(_PUT, text) and not re.search(r"\b(?:lift|pick|grab|take|fetch)(?:ing)?\b", text)
    return Phrase(HELD if held or put else BLOCK, None, destination, destination_item, relation)


def _destination(text: str, things: list, first: tuple | None) -> tuple[str | None, str | None, str | None]:
    """(words, item, relation) of the last thing the block is brought to; things it is taken from do not count."""
    best = (None, None, None)
    for kind, words, start, _ in things:
        if first is not None and (start == first[2] or (kind in ("coloured", "block") and start < first[2])):
            continue
        before = [end for _, _, _, end in things if end <= start]
        lead = text[max(before, default=0):start]  # the words between the thing named before and this one
        arrives = re.search(r"\b(?:in|on)?to(?:wards?)? (?:\w+ ){0,4}$", lead) and not re.search(r"\breach(?:ing)? into\b", lead)
        rests = re.search(r"\b(?:in|inside|on|at|behind|onto|under|over)\b", lead) and re.search(_PLACING, text[:start])
        if not arrives and (not rests or re.search(_FROM, re.sub(r"\b(?:in|from) your (?:hand|gripper)\b", "", lead))):
            continue
        if kind == "table" and not re.search(_PUT, text[:start]):
            continue  # "slide it to the right on the table" brings it nowhere
        if kind == "coloured":
            colour = _COLOUR[words.split()[0]]
            best = (f"{colour} block", f"{colour}_block", "onto")
        elif kind == "block":
            best = ("another block", None, "onto")
        elif kind == "table":
            best = ("table", None, "onto")
        else:
            best = ("drawer", "drawer", "into") if kind == "drawer" else ("cabinet", "slider", "into")
    if best[0] is None and re.search(_PLACING, text):
        free = re.search(r"\b(in|into|on|onto|inside) (?:the|a|an) ((?:\w+ ){0,2}\w+)$", text)
        named = any(kind in ("table", "drawer", "slider") for kind, _, _, _ in things)
        if free and not named and free.group(2) not in ("air", "left", "right") and not re.search(_HELD, free.group(0)):
            return free.group(2), None, "onto" if free.group(1).startswith("on") else "into"
    return best


def _about_light(text: str) -> Phrase | None:
    """Lights are reached through what switches them: the LED through the button, the bulb through the switch."""
    led, bulb = re.search(_LED, text), re.search(_BULB, text)
    if led and bulb:
        led, bulb = (led, None) if led.start() < bulb.start() else (None, bulb)
    if led or (not bulb and re.search(r"\bbutton\b", text)):
        return Phrase("button", "button", "led", "led", "switches")
    if bulb or re.search(r"\b(?:lever|switch|toggle|lamp|lights?)\b", text):
        return Phrase("switch", "switch", "light bulb", "lightbulb", "switches")
    return None
