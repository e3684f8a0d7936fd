"""The play table as a simulator: kinematic, deterministic, and moved by contact only.

A step moves the hand in small pieces. After each piece overlaps are relaxed: a jointed part gives way along its axis where
it is hit along that axis, a block is pushed aside over the surface it stands on, anything else stops the hand; a piece that
can't be relaxed is undone. A block is held once both pads have closed on it, until they open; without support it falls.
"""

import math

import numpy as np

from ...machine import UserError
from . import scenes, tasks
from .scenes import BLOCKS, JOINTS, item_boxes
from .solids import TOUCH, Solid, apply, euler, penetration, rotation, undo, upright, wrap

POSITION_STEP, ROTATION_STEP, WIDTH_STEP = 0.02, 0.05, 0.02  # metres, rad and metres of opening per step at full command
PIECE = 0.006  # longest movement between two contact checks: under half of the thinnest part
FALL_STEP, BUTTON_STEP = 0.04, 0.007  # metres per step that an unsupported block falls, and a released button rises
YAW = scenes.REST_POSE[5]
SIDE, NEAR = scenes.BLOCK_SIDE / 2, 0.002  # half a block's height here; a gap up to NEAR still counts as resting
SURFACES = {"top": "table", "cabinet_floor": "cabinet", "drawer.floor": "drawer"}  # other parts keep their own name
FRICTION = 0.8  # cosine: pushed within this cone about the face's normal, a block goes where the hand goes
ARM_BASE, UPPER, FORE, FLANGE = (-0.34, -0.46, 0.24 + 0.333), 0.326, 0.392, 0.21  # arm of the joint angles in robot_obs


class PlayTable:
    """One play table. `reset` and `step` follow the simulator contract; nothing is random but `reset()` without a state."""

    def __init__(self, scene: str = "D", seed: int = 0):
        self.scene = scenes.scene(scene)
        self.rng = np.random.default_rng(seed)
        self.half = [(self.scene.block_length[b] / 2, SIDE, SIDE) for b in BLOCKS]
        self.reach = 0.12  # how far what is held stands out of the hand, at most
        self.fixed = {name: Solid.of(box) for name, box in scenes.fixed(self.scene).items()}
        self.boxes_of = {joint: scenes.moving(self.scene, joint) for joint in JOINTS}
        self.travel = {joint: scenes.travel(self.scene, joint) for joint in JOINTS}
        self.reset(render=False)

    # --- the simulator contract -------------------------------------------------------------------------------------

    def reset(self, state: dict | None = None, render: bool = True) -> dict | None:
        """Start from `state` (of `state()`, `tasks.initial_state` or, symbolic, of `tasks.chains`; None: a random one)."""
        if state is None:
            state = {**tasks.random_symbolic(self.rng), "seed": int(self.rng.integers(2**32))}
        if "robot_obs" not in state:
            state = tasks.initial_state(self.scene.name, state, state["seed"])
        robot, scene = (np.asarray(state[k], np.float64) for k in ("robot_obs", "scene_obs"))
        for name, value, shape in (("robot_obs", robot, (15,)), ("scene_obs", scene, (24,))):
            if value.shape != shape or not np.isfinite(value).all():
                raise UserError(f"bad {name} in a play table state", expected=f"{shape[0]} finite numbers", found=value.tolist())
        robot, scene = robot.tolist(), scene.tolist()
        roll, yaw = robot[3] + 2 * math.pi * (robot[3] < 0), wrap(robot[5] - YAW) + YAW if abs(robot[5] - YAW) > math.pi else robot[5]
        self.pose = (*robot[:3], roll, robot[4], yaw, robot[6])  # tcp xyz, Euler angles, width
        self.command = 1.0 if robot[14] >= 0 else -1.0
        slider, drawer, button, switch = scene[:4]
        self.joint = {"slider": slider, "drawer": drawer, "button": button, "switch": switch}
        self.led = scene[5] > 0.5
        self.parts = {}
        for joint in JOINTS:
            self._place_parts(joint)
        self.blocks = [()] * len(self.half)  # x, y, z, yaw of a block that is not held
        for i, name in enumerate(self.scene.block_order):
            x, y, z, _, _, yaw = scene[6 + 6 * i : 12 + 6 * i]
            self.blocks[BLOCKS.index(name)] = (x, y, z, yaw)
        self.held = None if state.get("held") is None else int(state["held"])
        grip = state.get("grip")
        self.grip = None if grip is None else (tuple(map(float, grip[:3])), tuple(tuple(map(float, grip[i : i + 3])) for i in (3, 6, 9)))
        self.pressed = bool(state.get("pressed", False))
        self.support = list(state.get("support", (None, None, None)))  # name of a part, index of a block, "floor", or None: falling
        self.touched = set(state.get("touched", ()))  # blocks the hand pushed or squeezed in the last step
        self.solid = [Solid((x, y, z), upright(yaw), h) for (x, y, z, yaw), h in zip(self.blocks, self.half, strict=True)]
        self._set_pose(self.pose)
        for i in range(len(self.half)):
            if self.support[i] is None and i != self.held:
                self._settle(i, 0.0)
        self.start_task()
        return self.observe() if render else None

    def step(self, action, render: bool = True) -> dict | None:
        """Do one relative action (7,): xyz per 0.02 m, Euler angles per 0.05 rad, gripper -1 close / +1 open; clipped."""
        a = [float(v) for v in action]
        if len(a) != 7 or not all(map(math.isfinite, a)):
            raise UserError("bad play table action", expected="7 finite numbers", found=a)
        a = [min(1.0, max(-1.0, v)) for v in a]
        self.touched = set()
        self.command = 1.0 if a[6] > 0 else -1.0
        if self.command > 0 and self.held is not None:
            self._release()
        self._move(self._target(a))
        self._spring_button()
        for _ in range(2):  # twice: a block may have rested on one that now falls
            for i in range(len(self.half)):
                if (self.support[i] is None or isinstance(self.support[i], int)) and i != self.held:
                    self._settle(i, FALL_STEP / 2)
        return self.observe() if render else None

    def start_task(self) -> None:
        """From here on `done` compares with the present state."""
        self.start_info = self.info()

    def done(self, task: str) -> bool:
        """Whether `task` has been achieved since `start_task` (or `reset`)."""
        return tasks.achieved(task, self.start_info, self.info())

    def info(self) -> dict:
        """What the task checks read: joints, lights (bulb, led), and per block position, Euler angles and contacts."""
        blocks = {}
        for i, name in enumerate(BLOCKS):
            solid = self.solid[i]
            angles = euler(solid.axes) if i == self.held else (0.0, 0.0, self.blocks[i][3])
            blocks[name] = {"xyz": solid.c, "euler": angles, "contacts": self._contacts(i),
                            "stands_on_block": isinstance(self.support[i], int)}  # fmt: skip
        return {"joints": dict(self.joint), "lights": {"lightbulb": self.bulb, "led": self.led}, "blocks": blocks}

    def state(self) -> dict:
        """Everything: `reset(state())` goes on bit for bit."""
        grip = None if self.grip is None else [*self.grip[0], *(v for axis in self.grip[1] for v in axis)]
        return {"robot_obs": self.robot_obs(), "scene_obs": self.scene_obs(), "held": self.held, "grip": grip, "pressed": self.pressed,
                "support": list(self.support), "touched": sorted(self.touched)}  # fmt: skip

    def robot_obs(self) -> np.ndarray:
        """float64 (15,): tcp xyz, Euler angles, gripper width, 7 arm joints, gripper command."""
        return np.array([*self.pose, *self._arm(), self.command])

    def scene_obs(self) -> np.ndarray:
        """float64 (24,) in CALVIN's raw layout: blocks in the scene's own order."""
        out = [self.joint["slider"], self.joint["drawer"], self.joint["button"], self.joint["switch"], float(self.bulb), float(self.led)]
        for name in self.scene.block_order:
            i = BLOCKS.index(name)
            out += [*self.solid[i].c, *(euler(self.solid[i].axes) if i == self.held else (0.0, 0.0, self.blocks[i][3]))]
        return np.array(out)

    def observe(self) -> dict:
        """Both camera images and the two state vectors (blocks of environment_state in canonical order)."""
        from .render import render  # a table that is never looked at needs no OpenCV

        robot, scene = self.robot_obs(), self.scene_obs()
        image = render(self.scene, robot, scene)
        order = [self.scene.block_order.index(b) for b in BLOCKS]
        environment = np.concatenate([scene[:6], scene[6:].reshape(3, 6)[order].ravel()])
        return {
            "observation.images.static": image["static"],
            "observation.images.wrist": image["wrist"],
            "observation.state": robot.astype(np.float32),
            "observation.environment_state": environment.astype(np.float32),
        }

    def boxes(self) -> dict[str, list[int]]:
        """{item: [x0, y0, x1, y1]} of the visible pixels in the static image, x1 and y1 exclusive."""
        from .render import render

        return item_boxes(render(self.scene, self.robot_obs(), self.scene_obs(), cameras=("static",))["static_ids"])

    def expert(self, task: str, rng: np.random.Generator):
        """The scripted expert, which looks into the table."""
        from .expert import Expert

        return Expert(self, task, rng)

    def sample(self, symbolic: dict, rng: np.random.Generator) -> dict:
        """A start state for a demonstration, see `tasks.initial_state`."""
        return tasks.initial_state(self.scene.name, symbolic, rng, vary_robot=True)

    def frame(self) -> dict[str, np.ndarray]:
        """Both pictures and the item seen at each pixel, see `render.render`."""
        from .render import render

        return render(self.scene, self.robot_obs(), self.scene_obs())

    @property
    def block_order(self) -> tuple[str, str, str]:
        """In which `scene_obs` lists the blocks."""
        return self.scene.block_order

    def about(self) -> dict:
        """What a record must say of this simulator."""
        return {"simulator": "tabletop", "scene": self.scene.name, "renderer": "play table (OpenCV)", "assets": "drawn by the library"}

    @property
    def bulb(self) -> bool:
        return self.joint["switch"] > scenes.SWITCH_TRAVEL / 2

    # --- the hand ---------------------------------------------------------------------------------------------------

    def _target(self, a: list) -> tuple:
        """Where the action wants hand and fingers, inside the workspace."""
        x, y, z, roll, pitch, yaw, width = self.pose
        xyz = [min(hi, max(lo, p + POSITION_STEP * d)) for p, d, (lo, hi) in zip((x, y, z), a, scenes.WORKSPACE, strict=False)]
        tilt = max(-scenes.MAX_TILT, min(scenes.MAX_TILT, roll + ROTATION_STEP * a[3] - math.pi))
        pitch = max(-scenes.MAX_TILT, min(scenes.MAX_TILT, pitch + ROTATION_STEP * a[4]))
        if self.held is None:
            width = min(scenes.MAX_WIDTH, max(0.0, width + WIDTH_STEP * self.command))
        yaw = max(YAW - scenes.MAX_TURN, min(YAW + scenes.MAX_TURN, yaw + ROTATION_STEP * a[5]))
        return (*xyz, math.pi + tilt, pitch, yaw, width)

    def _hand_boxes(self, pose: tuple, axes: tuple) -> list[Solid]:
        """Fingers and palm."""
        x, y, z = pose[:3]
        low, high = scenes.FINGER_Z
        (x0, x1, y0, y1, z0, z1), thick = scenes.PALM_BOX, scenes.FINGER_THICK
        out = []
        for side in (1, -1):
            dx, dy, dz = apply(axes, (0.0, side * (pose[6] + thick) / 2, (low + high) / 2))
            out.append(Solid((x + dx, y + dy, z + dz), axes, (scenes.FINGER_WIDTH / 2, thick / 2, (high - low) / 2)))
        dx, dy, dz = apply(axes, ((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2))
        out.append(Solid((x + dx, y + dy, z + dz), axes, ((x1 - x0) / 2, (y1 - y0) / 2, (z1 - z0) / 2)))
        return out

    def _set_pose(self, pose: tuple) -> None:
        """Put the hand, the held block and what stands on it at `pose`."""
        self.pose, self.axes = pose, rotation(*pose[3:6])
        self.hand = self._hand_boxes(pose, self.axes)
        if self.held is None:
            return
        i, (p, relative) = self.held, self.grip
        dx, dy, dz = apply(self.axes, p)
        before, axes = self.solid[i].c, tuple(apply(self.axes, u) for u in relative)
        c = (pose[0] + dx, pose[1] + dy, pose[2] + dz)
        self.solid[i] = Solid(c, axes, self.half[i])
        self.blocks[i] = (*c, euler(axes)[2])
        self.hand.append(self.solid[i])
        if c != before:
            self._carry(i, c[0] - before[0], c[1] - before[1], c[2] - before[2])

    def _move(self, target: tuple) -> None:
        """Go to `target` in pieces, each with honest contact."""
        start = self.pose
        turn = [t - s for t, s in zip(target[3:6], start[3:6], strict=True)]
        shift = [t - s for t, s in zip(target[:3], start[:3], strict=True)]
        squeeze = target[6] - start[6]
        flat = math.hypot(*shift[:2])
        self.heading = (shift[0] / flat, shift[1] / flat) if flat > 1e-4 else (0.0, 0.0)
        if not self._anything_near(target):
            self._set_pose(target)
            return
        length = max(math.hypot(*shift), 0.2 * max(map(abs, turn)), abs(squeeze) / 2)
        n = max(1, math.ceil(length / PIECE))
        for _ in range(n):
            saved = self._save()
            pose, width = self.pose, self.pose[6]
            angles = [p + d / n for p, d in zip(pose[3:6], turn, strict=True)]
            if self.held is None:
                width = max(0.0, min(scenes.MAX_WIDTH, width + squeeze / n))
            self._set_pose((*(p + d / n for p, d in zip(pose[:3], shift, strict=True)), *angles, pose[6]))
            if not self._relax():
                self._restore(saved)
            if width != self.pose[6]:
                saved = self._save()
                if width < self.pose[6] and self._squeeze(width):
                    continue
                self._set_pose((*self.pose[:6], width))
                self.heading = (0.0, 0.0)
                if not self._relax(pinned=True):
                    self._restore(saved)

    def _anything_near(self, target: tuple) -> bool:
        """Whether the hand could touch something on its way: the bound of both end poses against everything."""
        now, then = self.hand, self._hand_boxes(target, rotation(*target[3:6]))
        m = 0.03 if self.held is None else self.reach
        lo = [min(min(s.lo[k] for s in now), min(s.lo[k] for s in then)) - m for k in range(3)]
        hi = [max(max(s.hi[k] for s in now), max(s.hi[k] for s in then)) + m for k in range(3)]
        self.near = []
        for joint, parts in (("", self.fixed), *self.parts.items()):
            for name, s in parts.items():
                if s.lo[2] < hi[2] and s.hi[2] > lo[2] and s.lo[1] < hi[1] and s.hi[1] > lo[1] and s.lo[0] < hi[0] and s.hi[0] > lo[0]:
                    self.near.append((joint, name))
        blocks = [s for i, s in enumerate(self.solid) if i != self.held]
        return bool(self.near) or any(all(s.lo[k] < hi[k] and s.hi[k] > lo[k] for k in range(3)) for s in blocks)

    # --- contact ----------------------------------------------------------------------------------------------------

    def _save(self) -> tuple:
        return self.pose, dict(self.joint), list(self.blocks), list(self.solid), list(self.support), dict(self.parts)

    def _restore(self, saved: tuple) -> None:
        pose, self.joint, self.blocks, self.solid, self.support, self.parts = saved
        self._set_pose(pose)

    def _relax(self, pinned: bool = False) -> bool:
        """Resolve every overlap of the hand; False if five rounds are not enough, or if the hand is `pinned` and would have to move."""
        for _ in range(5):
            clear = True
            for k in range(len(self.hand)):
                for joint, name in self.near:
                    part = self.parts[joint][name] if joint else self.fixed[name]
                    hit = penetration(self.hand[k], part)
                    if hit:
                        clear = False
                        if not self._yield_part(joint, *hit, pinned):
                            return False
                for i in range(len(self.half)):
                    hit = None if i == self.held else penetration(self.hand[k], self.solid[i])
                    if hit:
                        clear = False
                        if not self._yield_block(i, *hit, pinned):
                            return False
            if clear:
                return True
        return False

    def _push_hand(self, n: tuple, depth: float, pinned: bool) -> bool:
        if pinned:
            return False
        x, y, z, *rest = self.pose
        self._set_pose((x + n[0] * depth, y + n[1] * depth, z + n[2] * depth, *rest))
        return True

    def _yield_part(self, joint: str, depth: float, n: tuple, pinned: bool) -> bool:
        """The hand, `depth` deep in a part with normal `n` towards the hand, moves the joint; what the joint can't take stops the hand."""
        if joint:
            along = sum(p * q for p, q in zip(scenes.AXES[joint], n, strict=True))
            if abs(along) > 0.35:  # nearer to the axis than about 70 degrees
                before = self.joint[joint]
                self._move_joint(joint, before - depth / along)
                depth -= (before - self.joint[joint]) * along
        return depth <= TOUCH or self._push_hand(n, depth, pinned)

    def _yield_block(self, i: int, depth: float, n: tuple, pinned: bool) -> bool:
        """The hand, `depth` deep in a block, pushes it over the surface; from above, or against a wall, the block stops the hand."""
        flat = math.hypot(n[0], n[1])
        self.touched.add(i)
        if flat > 0.7:
            x, y = -n[0] / flat, -n[1] / flat
            along = x * self.heading[0] + y * self.heading[1]
            if along > FRICTION:
                (x, y), flat = self.heading, flat * along
            if self._push_block(i, x * depth / flat, y * depth / flat):
                return True
        return self._push_hand(n, depth, pinned)

    def _push_block(self, i: int, dx: float, dy: float, chain: int = 2) -> bool:
        """Slide a block, with what stands on it, unless furniture or a row of more than `chain` blocks is in the way."""
        saved = list(self.blocks), list(self.solid), list(self.support)
        self._shift(i, dx, dy, 0.0)
        for parts in (self.fixed, *self.parts.values()):
            for part in parts.values():
                hit = penetration(self.solid[i], part, flat=True)
                if hit:  # slide along the wall: the hand's own check decides whether that was enough
                    self._shift(i, hit[1][0] * hit[0], hit[1][1] * hit[0], 0.0)
        for j in range(len(self.half)):
            hit = None if j == i or self.support[j] == i else penetration(self.solid[j], self.solid[i], flat=True)
            if hit and (j == self.held or chain == 0 or not self._push_block(j, hit[1][0] * hit[0], hit[1][1] * hit[0], chain - 1)):
                self.blocks, self.solid, self.support = saved
                return False
        return True

    def _shift(self, i: int, dx: float, dy: float, dz: float) -> None:
        """Move a free block and whatever stands on it; its support has to be found anew."""
        x, y, z, yaw = self.blocks[i]
        self.blocks[i] = (x + dx, y + dy, z + dz, yaw)
        self.solid[i] = Solid((x + dx, y + dy, z + dz), upright(yaw), self.half[i])
        self.support[i] = None
        self._carry(i, dx, dy, dz)

    def _carry(self, support, dx: float, dy: float, dz: float) -> None:
        for j in range(len(self.half)):
            if self.support[j] == support and j != self.held:
                self._shift(j, dx, dy, dz)
                self.support[j] = support

    def _place_parts(self, joint: str) -> None:
        """Put the parts of a joint where its value says."""
        shift = tuple(self.joint[joint] * d for d in scenes.AXES[joint])
        self.parts[joint] = {name: Solid.of(box, shift) for name, box in self.boxes_of[joint].items()}

    def _move_joint(self, joint: str, value: float) -> None:
        """Bring a joint to `value`, as far as its limits go; blocks ride along or are pushed, and one that can't be stops the joint."""
        saved = self._save()
        before, now = self.joint[joint], min(self.travel[joint], max(0.0, value))
        self.joint[joint] = now
        self._place_parts(joint)
        shift = [(now - before) * d for d in scenes.AXES[joint]]
        for name in self.parts[joint]:
            self._carry(f"{joint}.{name}", *shift)
        for i in range(len(self.half)):
            if i == self.held:
                continue
            rides = self.support[i] is not None and str(self.support[i]).startswith(joint)
            for part in (self.fixed if rides else self.parts[joint]).values():
                hit = penetration(self.solid[i], part, flat=True)
                if hit and (rides or not self._push_block(i, hit[1][0] * hit[0], hit[1][1] * hit[0])):
                    _, self.joint, self.blocks, self.solid, self.support, self.parts = saved
                    return

    # --- grasping and falling ---------------------------------------------------------------------------------------

    def _squeeze(self, width: float) -> bool:
        """Close the pads to `width` on a block between them: centre it, turn it parallel, and hold it once it fits.

        True if a block took up the closing (the fingers then stand where it lets them), False if nothing is between both pads.
        """
        for i in range(len(self.half)):
            cx, cy, cz = undo(self.axes, tuple(p - q for p, q in zip(self.solid[i].c, self.pose[:3], strict=True)))
            turn = self.blocks[i][3] - math.atan2(self.axes[0][1], self.axes[0][0])
            quarter = round(turn / (math.pi / 2))
            off = turn - quarter * math.pi / 2  # of the block's faces from the pads'; the hand's z points down
            along, across = self.half[i][:2] if quarter % 2 == 0 else self.half[i][1::-1]
            grip_x, grip_z, high = scenes.FINGER_WIDTH / 2, scenes.PAD_Z, self.half[i][2]
            if along + grip_x - abs(cx) < 0.008 or min(cz + high, grip_z[1]) - max(cz - high, grip_z[0]) < 0.008:
                continue
            lean = math.tan(off)
            middle, reach = cy + lean * cx, across / math.cos(off) + grip_x * abs(lean)
            if reach - abs(middle) <= width / 2:
                continue  # at most one pad touches it: that pushes, it does not grip
            if abs(middle) + reach > scenes.MAX_WIDTH / 2 + 0.002:
                continue  # wider than the opening, so not between the pads
            self.touched.add(i)
            if abs(off) > 0.6 or self.axes[2][2] > -0.94:
                return True  # jammed on an edge
            new = math.copysign(max(0.0, abs(off) - 0.15), off)
            self._turn_block(i, new - off)
            v = self.axes[1]
            shift = -middle if new else -cy
            if not self._push_block(i, v[0] * shift, v[1] * shift):
                return True
            room = 2 * (across / math.cos(new) + grip_x * abs(math.tan(new)))
            self._set_pose((*self.pose[:6], min(self.pose[6], max(width, room))))
            if new == 0.0 and width <= room:
                self.support[i] = None
                self.grip = undo(self.axes, tuple(p - q for p, q in zip(self.solid[i].c, self.pose[:3], strict=True))), tuple(
                    undo(self.axes, u) for u in self.solid[i].axes)  # fmt: skip
                self.held = i
                self._set_pose(self.pose)
            return True
        return False

    def _turn_block(self, i: int, angle: float) -> None:
        x, y, z, yaw = self.blocks[i]
        self.blocks[i] = (x, y, z, wrap(yaw + angle))
        self.solid[i] = Solid((x, y, z), upright(self.blocks[i][3]), self.half[i])

    def _release(self) -> None:
        i, self.held, self.grip = self.held, None, None
        self.solid[i] = Solid(self.solid[i].c, upright(self.blocks[i][3]), self.half[i])
        self.support[i] = None
        self.hand = self.hand[:3]

    def _under(self, i: int) -> tuple:
        """(name, top) of the highest surface under the middle of block i; thin walls carry nothing."""
        x, y, z = self.solid[i].c
        bottom = self.solid[i].lo[2] if i == self.held else z - self.half[i][2]
        best, top = "floor", scenes.FLOOR_Z
        for joint, parts in (("", self.fixed), *self.parts.items()):
            for name, s in parts.items():
                if top < s.hi[2] <= bottom + NEAR and min(s.half[:2]) > 0.012 and s.carries(x, y):
                    best, top = f"{joint}.{name}" if joint else name, s.hi[2]
        for j in range(len(self.half)):
            if j != i and top < self.solid[j].hi[2] <= bottom + NEAR and self.solid[j].carries(x, y):
                best, top = j, self.solid[j].hi[2]
        return best, top

    def _settle(self, i: int, fall: float) -> None:
        """Rest on the surface below or fall towards it, sliding off edges that do not carry the block's middle."""
        name, top = self._under(i)
        x, y, z, _ = self.blocks[i]
        gap = z - self.half[i][2] - top
        if gap > NEAR:
            saved = list(self.blocks), list(self.solid), list(self.support)
            self._shift(i, 0.0, 0.0, -min(gap, fall))
            others = [s for j, s in enumerate(self.solid) if j != i and self.support[j] != i]
            for part in [*self.fixed.values(), *(s for parts in self.parts.values() for s in parts.values()), *others]:
                hit = penetration(self.solid[i], part, flat=True)
                if hit:
                    self._shift(i, hit[1][0] * hit[0], hit[1][1] * hit[0], 0.0)
            if any(penetration(self.solid[i], s) for s in self.hand):  # it lies on the hand
                self.blocks, self.solid, self.support = saved
                self.touched.add(i)
            return
        if abs(gap) > 0:
            self._shift(i, 0.0, 0.0, top - (z - self.half[i][2]))
        self.support[i] = name

    def _contacts(self, i: int) -> set:
        """Names of what block i touches: "robot", a surface, other blocks."""
        out = {"robot"} if i == self.held or i in self.touched else set()
        below = self.support[i]
        if i == self.held:
            name, top = self._under(i)
            below = name if self.solid[i].lo[2] - top <= NEAR else None
        if below is not None:
            out.add(BLOCKS[below] if isinstance(below, int) else SURFACES.get(below, below))
        out.update(BLOCKS[j] for j in range(len(self.half)) if j != i and self.support[j] == i)
        return out

    def _spring_button(self) -> None:
        """The button comes up again under nothing; pressing it past the middle of its way toggles the led, once a press."""
        depth = self.joint["button"]
        if depth > scenes.BUTTON_TRAVEL / 2 and not self.pressed:
            self.pressed, self.led = True, not self.led
        if depth == 0.0:
            return
        self._move_joint("button", depth - BUTTON_STEP)
        if any(penetration(s, self.parts["button"]["button"]) for s in self.hand):
            self._move_joint("button", depth)
        if self.joint["button"] < 0.2 * scenes.BUTTON_TRAVEL:
            self.pressed = False

    def _arm(self) -> list[float]:
        """Seven joint angles of a plain two-link arm that reaches this tcp: a stand-in, nothing but robot_obs[7:14] reads it."""
        x, y, z = (p - b for p, b in zip(self.pose[:3], ARM_BASE, strict=True))
        reach, height = math.hypot(x, y), z + FLANGE
        d = min(UPPER + FORE - 1e-6, max(FORE - UPPER + 1e-6, math.hypot(reach, height)))
        elbow = math.acos((UPPER**2 + FORE**2 - d * d) / (2 * UPPER * FORE)) - math.pi
        shoulder = math.pi / 2 - math.atan2(height, reach) - math.acos((UPPER**2 + d * d - FORE**2) / (2 * UPPER * d))
        turn, tilt, pitch = math.atan2(y, x), wrap(self.pose[3] - math.pi), self.pose[4]
        return [turn, shoulder, 0.0, elbow, pitch, shoulder - elbow + tilt, wrap(turn - self.pose[5])]
