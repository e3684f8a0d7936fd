"""Pictures of the play table: 200x200 static and 84x84 wrist camera, with per-pixel item ids, in numpy and OpenCV.

`render` is a pure function of (scene, robot_obs, scene_obs): the same arguments give the same bits, so that pictures can be
drawn again from recorded states. raster.py finds the face of geometry.py that is seen at each pixel; here that face gets its
colour: Lambert shading, wood and floor textures, soft shadows, smoothed outlines, the glow of burning lamps. What rests is kept
with its depth: the fixed furniture of a scene for the static camera, and the last places of door, lever, button and drawer.

Speed (benchmarks/render.py): both cameras in about 2.2 ms on one core, 0.7 ms more while the drawer moves. OpenCV's own threads
only cost time on pictures this small: a process that renders a lot should call `cv2.setNumThreads(1)` once, which changes no bit.
"""

from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np

from . import geometry as g
from . import looks
from . import scenes as s
from .raster import NEAR, SUBPIXEL, Camera, World, rasterise
from .scenes import BLOCKS, Scene

STATIC_SIZE, WRIST_SIZE = 200, 84
# CALVIN's static camera (calvin_env, static camera configuration): 10 degrees, rolled so that the table's edge lies level.
STATIC_FOV, STATIC_EYE, STATIC_TARGET = 10.0, (2.871459, -2.166602, 2.555160), (-0.026242, -0.030233, 0.392000)
STATIC_UP = (0.404140, 0.226298, 0.886262)
# CALVIN's wrist camera in the hand frame, measured from real frames: perspective-n-point on the block boxes of calvin_sim,
# median error 0.3 px. It sits in front of the hand and looks along the fingers, tilted 15 degrees towards them.
WRIST_FOV, WRIST_EYE, WRIST_TILT = 75.0, (-0.0995, 0.0, -0.1337), 0.267
LIGHT = np.array([-0.33, -0.42, 0.84])  # unit vector towards the lamp
AMBIENT, DIFFUSE = 0.57, 0.51
SUPERSAMPLE = 4  # of the background
# Who casts a shadow, and how dark of 255; later ones lie over earlier ones.
SHADOWS = (("hand", 60), ("finger_left", 76), ("finger_right", 76), *((block, 104) for block in BLOCKS))
SQUARE = np.ones((3, 3), np.uint8)
# Ranges of bodies that are drawn together; solids stand in the order of BODIES.
FIXED, CABINET, DRAWER = ("room", "world"), ("slider", "button"), ("drawer", "drawer")
# The wrist camera never sees palm and arm, which are behind it; the room behind the table is plain to it, as its background is.
FREE, NEARBY = (BLOCKS[0], g.BODIES[-1]), ("world", "finger_right")


def static_camera(size: int = STATIC_SIZE) -> Camera:
    eye, forward = np.array(STATIC_EYE), np.subtract(STATIC_TARGET, STATIC_EYE)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, STATIC_UP)
    right /= np.linalg.norm(right)
    return Camera(size, size / 2 / np.tan(np.radians(STATIC_FOV / 2)), eye, np.array([right, np.cross(forward, right), forward]))


def wrist_camera(robot_obs: np.ndarray, size: int = WRIST_SIZE) -> Camera:
    """The camera on the hand whose tcp pose is robot_obs[:6]."""
    hand, c, t = g.rotation(robot_obs[3:6]), np.cos(WRIST_TILT), np.sin(WRIST_TILT)
    axes = np.array([[0, 1, 0], [-c, 0, t], [t, 0, c]]) @ hand.T
    return Camera(size, size / 2 / np.tan(np.radians(WRIST_FOV / 2)), robot_obs[:3] + hand @ WRIST_EYE, axes)


def render(scene: Scene, robot_obs: np.ndarray, scene_obs: np.ndarray, cameras=("static", "wrist")) -> dict[str, np.ndarray]:
    """Pictures of one state: robot_obs (15,) and scene_obs (24,), blocks in the order of `scene.block_order`.

    Per camera: "static" uint8 (200, 200, 3) RGB or "wrist" uint8 (84, 84, 3), and "<camera>_ids" uint8 (H, W), the item seen at
    each pixel (index into scenes.ITEMS + 1, 0 for everything else).
    """
    model = _model(scene)
    robot_obs, scene_obs = np.asarray(robot_obs, float), np.asarray(scene_obs, float)
    lights = (bool(scene_obs[4] > 0.5), bool(scene_obs[5] > 0.5))  # bulb, led
    world = model.world(g.poses(scene, robot_obs, scene_obs))
    pictures = {}
    for name in cameras:
        if name == "static":
            camera = model.camera
            layer = draw(model, camera, world, FREE, lights, model.furniture(world, scene_obs, lights))
        else:
            camera = wrist_camera(robot_obs)
            layer = draw(model, camera, world, NEARBY, lights)
            _glow(layer.rgba, scene, camera, lights)
        cast_shadows(layer, model, camera, world.corner)
        pictures[name], pictures[f"{name}_ids"] = cv2.cvtColor(layer.rgba, cv2.COLOR_RGBA2RGB), layer.tag & 15
    return pictures


class Layer(NamedTuple):
    """A picture with what is needed to draw in front of it."""

    rgba: np.ndarray  # (H, W, 4) uint8
    inverse_depth: np.ndarray  # (H, W) float32
    tag: np.ndarray  # (H, W) uint8: item + 16 * receiver


class Model:
    """What does not depend on the state: solids, textures, background of the static camera; and the last furniture drawn.

    body: number of each body; ranges: bodies drawn together, each (first, last); shadows: who casts one, as SHADOWS; receivers: heights;
    light: unit vector (3,).
    """

    def __init__(self, scene, solids, camera, body=g.BODY, ranges=(FIXED, CABINET, DRAWER, FREE, NEARBY), shadows=SHADOWS,
                 receivers=g.RECEIVERS, light=LIGHT):
        self.scene, self.look, self.solids, self.camera = scene, looks.look(scene.name), solids, camera
        self.body, self.shadows, self.receivers, self.light = body, shadows, receivers, light
        s = self.solids
        self.tag = (s.item + 16 * s.receiver).astype(np.uint8)
        self.textures, self._shaded, self._backgrounds, self._furniture = looks.textures(scene.name), {}, {}, [(None, None)] * 2
        # Texture coordinates: the two axes across a face's normal; boards of wood start at different places.
        self.axes = np.array([(1, 2), (0, 2), (0, 1)])[np.abs(s.normal).argmax(1)]
        self.start = np.where(np.isin(s.texture, (looks.WOOD, looks.WOOD2)), 0.131 * s.solid, 0.0)[:, None] * (1, 2)
        self.texel = 1 / np.array([looks.TEXEL.get(texture, 1.0) for texture in s.texture])
        self.span = {}  # vertices v0:v1 and faces f0:f1 of every range of bodies
        for bodies in ranges:
            low, high = body[bodies[0]], body[bodies[1]] + 1
            self.span[bodies] = (*np.searchsorted(s.vertex_body, (low, high)), *np.searchsorted(s.body, (low, high)))
        first = {name: np.searchsorted(s.vertex_body, body[name]) for name, _ in shadows}
        part = {"hand": range(8, 16), "finger_left": (0, 1, 2, 3, 12, 13, 14, 15), "finger_right": (0, 1, 2, 3, 12, 13, 14, 15)}
        self.casters = np.array([[first[name] + i for i in part.get(name, range(8))] for name, _ in shadows])

    def world(self, pose) -> World:
        """All corners and face planes for body poses (B, 3, 4)."""
        s = self.solids
        v, f = (np.searchsorted(body, self.body["world"] + 1) for body in (s.vertex_body, s.body))  # what can move
        corner, normal = s.vertex.copy(), s.normal.copy()
        at = pose[s.vertex_body[v:]]
        corner[v:] = np.einsum("vij,vj->vi", at[:, :, :3], s.vertex[v:]) + at[:, :, 3]
        normal[f:] = np.einsum("fij,fj->fi", pose[s.body[f:], :, :3], s.normal[f:])
        return World(corner, normal, np.einsum("fi,fi->f", normal, corner[s.corner[0]]))

    def shaded(self, texture, light):
        """Texture (512, 512, 4) uint8 under a light level; faces with textures keep their orientation, so there are few levels."""
        key = (texture, round(light, 3))
        if key not in self._shaded:
            rgba = np.full((looks.SIDE, looks.SIDE, 4), 255, np.uint8)
            rgba[:, :, :3] = np.clip(self.textures[texture] * key[1], 0, 255)
            self._shaded[key] = rgba
        return self._shaded[key]

    def background(self, lights) -> Layer:
        """The fixed furniture as the static camera sees it, supersampled; once for each state of the lights."""
        if lights not in self._backgrounds:
            world, camera = self.world(np.tile(np.eye(3, 4), (len(self.body), 1, 1))), self.camera
            large = replace(camera, size=camera.size * SUPERSAMPLE, focal=camera.focal * SUPERSAMPLE)
            large = draw(self, large, world, FIXED, lights)
            layer = draw(self, self.camera, world, FIXED, lights)
            rgba = cv2.resize(large.rgba, (camera.size, camera.size), interpolation=cv2.INTER_AREA)
            if any(lights):
                _glow(rgba, self.scene, self.camera, lights)
            self._backgrounds[lights] = layer._replace(rgba=rgba)
        return self._backgrounds[lights]

    def furniture(self, world, scene_obs, lights) -> Layer:
        """The background with door, lever, button and then drawer; the last of each are kept, for they rest most of the time."""
        layer = self.background(lights)
        key = (lights,)
        for stage, (bodies, joints) in enumerate(((CABINET, scene_obs[[0, 2, 3]]), (DRAWER, scene_obs[1:2]))):
            key = (*key, joints.tobytes())
            kept, above = self._furniture[stage]
            if kept != key:
                above = draw(self, self.camera, world, bodies, lights, layer)
                self._furniture[stage] = (key, above)
            layer = above
        return layer


KEPT = 12
_MODELS: dict[str, Model] = {}


def _model(scene: Scene) -> Model:
    model = _MODELS.get(scene.name)
    if model is None or (model.scene is not scene and model.scene != scene):
        if len(_MODELS) >= KEPT:  # each one's textures are megabytes
            _MODELS.pop(next(iter(_MODELS)))
        model = _MODELS[scene.name] = Model(scene, g.solids(scene), static_camera())
    return model


def draw(model, camera, world, bodies, lights, back=None) -> Layer:
    """The bodies of a range in front of a layer, or of nothing."""
    fill = rasterise(model.solids, model.span[bodies], world, camera, None if back is None else back.inverse_depth)
    if back is None:
        rgba, tag = np.full((*fill.code.shape, 4), (*model.look.wall, 255), np.uint8), np.zeros_like(fill.code)
    else:
        rgba, tag = back.rgba.copy(), back.tag.copy()
    if len(fill.face):
        (x0, y0), (x1, y1) = fill.roi[:, ::2].min(0).tolist(), fill.roi[:, 1::2].max(0).tolist()
        code, part = fill.code[y0:y1, x0:x1], rgba[y0:y1, x0:x1]
        _colour(part, code, model, fill.face, world, lights)
        _paint(rgba, model, camera, fill, world)
        tags = np.zeros(256, np.uint8)
        tags[1 : len(fill.face) + 1] = model.tag[fill.face]
        cv2.copyTo(cv2.LUT(code, tags), code, tag[y0:y1, x0:x1])
        edges = cv2.morphologyEx(code, cv2.MORPH_GRADIENT, SQUARE)  # smooth the outlines
        cv2.copyTo(cv2.GaussianBlur(part, (3, 3), 0.6), edges, part)
    return Layer(rgba, fill.inverse_depth, tag)


def _light(model, face, world):
    """Brightness (n,) of faces."""
    return model.solids.dim[face] * (AMBIENT + DIFFUSE * np.maximum(world.normal[face] @ model.light, 0))


def _colour(rgba, code, model, face, world, lights):
    """Give, in place, every pixel the plain colour of the face that won it."""
    palette = np.full((len(face) + 1, 4), 255, np.uint8)
    palette[1:, :3] = np.minimum(model.solids.colour[face] * _light(model, face, world)[:, None], 255)
    for item, lit, (_, on) in (("lightbulb", lights[0], looks.BULB), ("led", lights[1], looks.LED)):
        if lit:
            palette[1:, :3][model.solids.item[face] == g.ITEM_ID[item]] = on
    cv2.copyTo(palette.view(np.uint32)[:, 0].take(code).view(np.uint8).reshape(rgba.shape), code, rgba)


def _paint(rgba, model, camera, fill, world):
    """Lay, in place, wood and floor textures over the faces that have them: from pixels to texels of a face is a homography."""
    s = model.solids
    chosen = np.flatnonzero(s.texture[fill.face] != looks.FLAT)
    if not len(chosen):
        return
    face, roi, plane = fill.face[chosen], fill.roi[chosen], fill.plane[chosen]
    axes, first = model.axes[face], s.corner[0, face]
    shift = np.take_along_axis(world.corner[first] - s.vertex[first], axes, 1)  # a moved board takes its grain along
    ray = camera.axes.T[axes] / np.array([camera.focal, camera.focal, 1])  # (n, 2, 3)
    ray[:, :, 2] += (0.5 - camera.size / 2) * ray[:, :, :2].sum(2)
    rows = model.texel[face, None, None] * (ray + (camera.eye[axes] - shift + model.start[face])[:, :, None] * plane[:, None])
    matrix = np.concatenate([rows, plane[:, None]], 1)
    matrix[:, :, 2] += matrix[:, :, 0] * roi[:, None, 0] + matrix[:, :, 1] * roi[:, None, 2]
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    texture, light = s.texture[face].tolist(), _light(model, face, world).tolist()
    for i, ((x0, x1, y0, y1), k) in enumerate(zip(roi.tolist(), chosen.tolist(), strict=True)):
        mine = cv2.inRange(fill.code[y0:y1, x0:x1], k + 1, k + 1)
        if cv2.hasNonZero(mine):
            board = model.shaded(texture[i], light[i])
            patch = cv2.warpPerspective(board, matrix[i], mine.shape[::-1], flags=flags, borderMode=cv2.BORDER_WRAP)
            cv2.copyTo(patch, mine, rgba[y0:y1, x0:x1])


def cast_shadows(layer, model, camera, corner):
    """Darken, in place, the horizontal faces under blocks and hand; the lamp stands far away along LIGHT."""
    points = corner[model.casters]  # (casters, 8, 3)
    heights = np.array(model.receivers[1:])[:, None, None]
    rise = np.maximum(points[:, :, 2] - heights, 0)  # (receivers, casters, 8)
    on_plane = np.empty((*rise.shape, 3))
    on_plane[..., :2] = points[:, :, :2] - rise[..., None] * (model.light[:2] / model.light[2])
    on_plane[..., 2] = heights
    uv, depth = camera.project(on_plane.reshape(-1, 3))
    casts = (depth.reshape(rise.shape).min(2) > NEAR) & (rise.max(2) > 0.005)
    uv = np.round((uv.reshape(*rise.shape, 2) - 0.5) * (1 << SUBPIXEL)).astype(np.int32)
    for i in range(len(heights)):
        who = np.flatnonzero(casts[i])
        if len(who):
            _darken(layer, i + 2, uv[i, who], [model.shadows[k][1] for k in who])


def _darken(layer, receiver, points, strengths):
    """Darken the pixels of a receiver inside the hulls of points (n, 8, 2) in sub-pixels, with soft borders."""
    (x0, y0), (x1, y1) = ((points.min((0, 1)) >> SUBPIXEL) - 3).clip(0).tolist(), ((points.max((0, 1)) >> SUBPIXEL) + 4).clip(0).tolist()
    tag = layer.tag[y0:y1, x0:x1]
    if not tag.size:
        return
    mine = cv2.inRange(tag, receiver << 4, (receiver << 4) + 15)
    if not cv2.hasNonZero(mine):
        return
    mask = np.zeros_like(mine)
    points = points - np.int32([x0 << SUBPIXEL, y0 << SUBPIXEL])
    for outline, strength in zip(points, strengths, strict=True):
        cv2.fillConvexPoly(mask, cv2.convexHull(outline), strength, 8, SUBPIXEL)
    keep = cv2.bitwise_not(cv2.bitwise_and(cv2.blur(mask, (5, 5)), mine))
    patch = layer.rgba[y0:y1, x0:x1]
    cv2.multiply(patch, cv2.cvtColor(keep, cv2.COLOR_GRAY2RGBA), patch, 1 / 255)


def _glow(rgba, scene, camera, lights):
    """Add, in place, the light of the burning lamps to the picture around them."""
    bulb, led = (looks.BULB[1], scene.lightbulb_xyz, s.LIGHTBULB_RADIUS), (looks.LED[1], scene.led_xyz, s.LED_RADIUS)
    for lit, (colour, centre, radius) in zip(lights, (bulb, led), strict=True):
        (uv,), (depth,) = camera.project(np.array([centre], float))
        if not lit or depth < 2 * radius:
            continue
        spread = 1.6 * camera.focal * radius / depth
        (x0, y0), (x1, y1) = np.clip(np.stack([uv - 3 * spread, uv + 3 * spread + 1]), 0, camera.size).astype(int).tolist()
        if x0 < x1 and y0 < y1:
            x, y = (np.exp(-0.5 * ((np.arange(a, b) + 0.5 - c) / spread) ** 2) for a, b, c in ((x0, x1, uv[0]), (y0, y1, uv[1])))
            light = (0.45 * y[:, None] * x)[:, :, None] * np.array([*colour, 0])
            rgba[y0:y1, x0:x1] = cv2.add(rgba[y0:y1, x0:x1], light.astype(np.uint8))
