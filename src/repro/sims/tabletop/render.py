"""Pictures of the play table: 200x200 static and 84x84 wrist camera, with per-pixel item ids, in numpy and OpenCV.

`render` is a pure function of (scene, robot_obs, scene_obs): the same arguments give the same bits, so that pictures can be
drawn again from recorded states. Every visible face of geometry.py is filled once into an inverse-depth buffer (1/depth of a
plane is affine in pixel coordinates), which makes occlusion right at every pixel. Colours come afterwards, from the face that
won the pixel: flat Lambert shading, wood and floor textures, soft shadows, smoothed outlines. What never moves is drawn
kept with its depth: the fixed furniture of a scene for the static camera, and drawer, door, lever and button while they rest.

Speed: about 1 ms a call on one core. OpenCV's own threads only cost time on pictures this small; a process that renders a
lot should call `cv2.setNumThreads(1)` once, which changes no bit of the result.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from . import geometry as g
from . import looks
from . import scenes as s
from .scenes import BLOCKS, ITEMS, Scene

STATIC_SIZE, WRIST_SIZE = 200, 84
NEAR = 0.012  # metres; what is nearer to the wrist camera is clipped
# CALVIN's static camera (calvin_env, static camera configuration): 10 degrees, rolled so that the table's edge lies level.
STATIC_FOV, STATIC_EYE, STATIC_TARGET = 10.0, (2.871459, -2.166602, 2.555160), (-0.026242, -0.030233, 0.392000)
STATIC_UP = (0.404140, 0.226298, 0.886262)
# CALVIN's wrist camera in the hand frame, measured from real frames: perspective-n-point on the block boxes of calvin_sim,
# median error 0.3 px. It sits in front of the hand and looks along the fingers, tilted 15 degrees towards them.
WRIST_FOV, WRIST_EYE, WRIST_TILT = 75.0, (-0.0995, 0.0, -0.1337), 0.267
LIGHT = np.array([-0.33, -0.42, 0.84])  # unit vector towards the lamp
AMBIENT, DIFFUSE = 0.52, 0.52
SUPERSAMPLE = 4  # of the background
SHADOWS = (("hand", 60), ("finger_left", 76), ("finger_right", 76), *((block, 104) for block in BLOCKS))  # who casts one, how dark of 255
SUBPIXEL = 4  # bits of sub-pixel position in filled polygons


@dataclass(frozen=True)
class Camera:
    """Square pinhole camera: size in pixels, focal length in pixels, eye (3,) in metres, rows of axes = right, down, forward."""

    size: int
    focal: float
    eye: np.ndarray
    axes: np.ndarray

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points (N, 3) -> pixel positions (N, 2), pixel i covering [i, i + 1), and depths (N,) in metres."""
        q = (points - self.eye) @ self.axes.T
        return q[:, :2] * (self.focal / np.maximum(q[:, 2:], NEAR)) + self.size / 2, q[:, 2]


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


def render(scene: Scene, robot_obs: np.ndarray, scene_obs: np.ndarray, cameras: tuple[str, ...] = ("static", "wrist")) -> dict[str, np.ndarray]:
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
            layer = _draw(model, camera, world, FREE, lights, model.furniture(world, scene_obs[:4], lights))
        else:
            camera = wrist_camera(robot_obs)
            layer = _draw(model, camera, world, NEARBY, lights)
            _glow(layer.rgba, scene, camera, lights)
        _shadows(layer, model, camera, world.corner)
        pictures[name], pictures[f"{name}_ids"] = cv2.cvtColor(layer.rgba, cv2.COLOR_RGBA2RGB), layer.tag & 15
    return pictures


def boxes(ids: np.ndarray) -> dict[str, list[int]]:
    """Visible boxes of a picture's ids (H, W): item -> [x0, y0, x1, y1] in pixels, x1 and y1 exclusive. Hidden items are absent."""
    found = {}
    for i, item in enumerate(ITEMS, 1):
        x, y, w, h = cv2.boundingRect(cv2.compare(ids, i, cv2.CMP_EQ))
        if w:
            found[item] = [x, y, x + w, y + h]
    return found


class _Layer(NamedTuple):
    """A picture with what is needed to draw in front of it."""

    rgba: np.ndarray  # (H, W, 4) uint8
    inverse_depth: np.ndarray  # (H, W) float32
    tag: np.ndarray  # (H, W) uint8: item + 16 * receiver


class _World(NamedTuple):
    corner: np.ndarray  # (V, 3) metres
    normal: np.ndarray  # (F, 3)
    offset: np.ndarray  # (F,) normal @ any of the face's corners


class _Model:
    """What does not depend on the state: solids, textures, background of the static camera; and the last furniture drawn."""

    def __init__(self, scene: Scene):
        self.scene, self.look, self.solids, self.camera = scene, looks.LOOKS[scene.name], g.solids(scene), static_camera()
        s = self.solids
        self.tag = (s.item + 16 * s.receiver).astype(np.uint8)
        self.textures, self._shaded, self._backgrounds, self._furniture = looks.textures(scene.name), {}, {}, (None, None)
        # Texture coordinates: the two axes across a face's normal; boards of wood start at different places.
        self.axes = np.array([(1, 2), (0, 2), (0, 1)])[np.abs(s.normal).argmax(1)]
        self.start = np.where(np.isin(s.texture, (looks.WOOD, looks.WOOD2)), 0.131 * s.solid, 0.0)[:, None] * (1, 2)
        self.texel = 1 / np.array([looks.TEXEL.get(texture, 1.0) for texture in s.texture])
        first = {name: np.searchsorted(s.vertex_body, g.BODY[name]) for name, _ in SHADOWS}
        part = {"hand": range(8, 16), "finger_left": (0, 1, 2, 3, 20, 21, 22, 23), "finger_right": (0, 1, 2, 3, 20, 21, 22, 23)}
        self.casters = np.array([[first[name] + i for i in part.get(name, range(8))] for name, _ in SHADOWS])
        self.table = s.vertex[s.corner[s.receiver == 2][0, :4]]

    def world(self, pose) -> _World:
        """All corners and face planes for body poses (B, 3, 4)."""
        s, v, f = self.solids, *_first(self.solids, JOINED)
        corner, normal = s.vertex.copy(), s.normal.copy()
        at = pose[s.vertex_body[v:]]
        corner[v:] = np.einsum("vij,vj->vi", at[:, :, :3], s.vertex[v:]) + at[:, :, 3]
        normal[f:] = np.einsum("fij,fj->fi", pose[s.body[f:], :, :3], s.normal[f:])
        return _World(corner, normal, np.einsum("fi,fi->f", normal, corner[s.corner[:, 0]]))

    def shaded(self, texture, light):
        """Texture (512, 512, 4) uint8 under a light level; faces with textures keep their orientation, so there are few levels."""
        key = (texture, round(float(light), 3))
        if key not in self._shaded:
            rgba = np.full((looks.SIDE, looks.SIDE, 4), 255, np.uint8)
            rgba[:, :, :3] = np.clip(self.textures[texture] * key[1], 0, 255)
            self._shaded[key] = rgba
        return self._shaded[key]

    def background(self, lights) -> _Layer:
        """The fixed furniture as the static camera sees it, supersampled; once for each state of the lights."""
        if lights not in self._backgrounds:
            world = self.world(np.tile(np.eye(3, 4), (len(g.BODIES), 1, 1)))
            large = _draw(self, static_camera(STATIC_SIZE * SUPERSAMPLE), world, FIXED, lights)
            layer = _draw(self, self.camera, world, FIXED, lights)
            rgba = cv2.resize(large.rgba, (STATIC_SIZE, STATIC_SIZE), interpolation=cv2.INTER_AREA)
            _glow(rgba, self.scene, self.camera, lights)
            self._backgrounds[lights] = layer._replace(rgba=rgba)
        return self._backgrounds[lights]

    def furniture(self, world, joints, lights) -> _Layer:
        """The background with drawer, door, lever and button; the last one is kept, for they rest most of the time."""
        key = (joints.tobytes(), lights)
        kept, layer = self._furniture
        if kept != key:
            layer = _draw(self, self.camera, world, JOINED, lights, self.background(lights))
            self._furniture = (key, layer)
        return layer


_MODELS: dict[str, _Model] = {}


def _model(scene: Scene) -> _Model:
    model = _MODELS.get(scene.name)
    if model is None or (model.scene is not scene and model.scene != scene):
        model = _MODELS[scene.name] = _Model(scene)
    return model


# Ranges of bodies that are drawn together; solids stand in the order of BODIES.
FIXED, JOINED = ("world", "world"), (s.JOINTS[0], s.JOINTS[-1])
FREE, NEARBY = (s.BLOCKS[0], g.BODIES[-1]), ("world", "finger_right")  # the wrist camera never sees palm and arm, which are behind it


def _first(solids, bodies):
    """Index of the first vertex and the first face of a range of bodies."""
    return np.searchsorted(solids.vertex_body, g.BODY[bodies[0]]), np.searchsorted(solids.body, g.BODY[bodies[0]])


def _draw(model, camera, world, bodies, lights, back=None) -> _Layer:
    """The bodies of a range in front of a layer, or of nothing."""
    fill = _rasterise(model.solids, camera, world, bodies, back)
    rgba = _colours(model, camera, fill, world, lights, back)
    tag = cv2.LUT(fill.code, np.concatenate([[0], model.tag[fill.face], np.zeros(255 - len(fill.face))]).astype(np.uint8))
    if back is not None:
        cv2.copyTo(back.tag, cv2.compare(fill.code, 0, cv2.CMP_EQ), tag)
    edges = cv2.morphologyEx(fill.code, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    cv2.copyTo(cv2.GaussianBlur(rgba, (3, 3), 0.6), edges, rgba)
    return _Layer(rgba, fill.inverse_depth, tag)


class _Fill(NamedTuple):
    """Result of the depth test. code (H, W) uint8: 0 for what was there before, k for face[k - 1]."""

    code: np.ndarray
    inverse_depth: np.ndarray
    face: np.ndarray  # (n,) indices of the drawn faces, at most 255
    roi: np.ndarray  # (n, 4) x0, x1, y0, y1 of each
    plane: np.ndarray  # (n, 3) 1/depth = plane @ (u, v, 1) at pixel centre (u, v)


def _rasterise(solids, camera, world, bodies, back) -> _Fill:
    """Fill the faces that look at the camera into an inverse-depth buffer."""
    size, (low, high) = camera.size, (g.BODY[name] for name in bodies)
    v0, v1 = np.searchsorted(solids.vertex_body, (low, high + 1))
    f0, f1 = np.searchsorted(solids.body, (low, high + 1))
    gap = world.offset[f0:f1] - world.normal[f0:f1] @ camera.eye  # negative where the face looks at the camera
    face = f0 + np.flatnonzero(gap < -1e-6)
    uv, depth = camera.project(world.corner[v0:v1])
    corner = solids.corner[face] - v0
    depth = depth[corner]
    farthest = depth.max(1)
    ahead = np.flatnonzero(farthest > NEAR)
    face, depth, farthest, points = face[ahead], depth[ahead], farthest[ahead], uv[corner[ahead]] - 0.5  # filled from pixel centres
    nearest = depth.min(1)
    for k in np.flatnonzero(nearest <= NEAR):
        cut = _clip(camera, world.corner[solids.corner[face[k], : solids.corners[face[k]]]])
        points[k], points[k, : len(cut)] = cut[0], cut
    roi = np.empty((len(face), 4), int)
    roi[:, ::2], roi[:, 1::2] = np.floor(points.min(1)), np.ceil(points.max(1)) + 1
    roi = roi.clip(0, size)
    seen = np.flatnonzero((roi[:, 0] < roi[:, 1]) & (roi[:, 2] < roi[:, 3]))
    face, roi, points, nearest, farthest = face[seen], roi[seen], points[seen], nearest[seen], farthest[seen]
    if len(face) > 255:
        raise ValueError(f"{len(face)} faces seen at once; a picture has codes for 255")
    gap = gap[face - f0]
    plane = (world.normal[face] @ camera.axes.T) / gap[:, None]  # 1 / depth = plane @ (x, y, 1) in units of the focal length
    plane[:, :2] /= camera.focal
    plane[:, 2] += plane[:, :2].sum(1) * (0.5 - size / 2)
    grazing = (gap > -0.15 * farthest).tolist()  # the outline of a steep face reaches beyond its corners: limit its depth to theirs
    limits = (1 / np.stack([farthest, np.maximum(nearest, NEAR)], 1)).astype(np.float32)
    pixel = np.arange(size, dtype=np.float32)
    row = (plane[:, :1] * pixel + plane[:, 2:]).astype(np.float32)
    column = (plane[:, 1:2] * pixel).astype(np.float32)[:, :, None]
    points = np.round(points * (1 << SUBPIXEL)).astype(np.int32)

    inverse_depth = np.zeros((size, size), np.float32) if back is None else back.inverse_depth.copy()
    code, mask = np.zeros((2, size, size), np.uint8)
    for k, (x0, x1, y0, y1) in enumerate(roi.tolist()):
        cv2.fillConvexPoly(mask, points[k], k + 1, 8, SUBPIXEL)
        here = row[k, x0:x1] + column[k, y0:y1]
        if grazing[k]:
            np.clip(here, *limits[k], out=here)
        before, drawn = inverse_depth[y0:y1, x0:x1], mask[y0:y1, x0:x1]
        wins = here > before
        wins &= drawn == k + 1
        wins = wins.view(np.uint8)
        cv2.copyTo(here, wins, before)
        cv2.copyTo(drawn, wins, code[y0:y1, x0:x1])
    return _Fill(code, inverse_depth, face, roi, plane)


def _clip(camera, points):
    """Pixel-centre positions (n, 2) of a polygon (m, 3) cut at the near plane."""
    q, out, centre = ((points - camera.eye) @ camera.axes.T).tolist(), [], camera.size / 2 - 0.5
    for (ax, ay, az), (bx, by, bz) in zip(q, q[1:] + q[:1], strict=True):
        if az >= NEAR:
            out.append((ax / az, ay / az))
        if (az >= NEAR) != (bz >= NEAR):
            t = (NEAR - az) / (bz - az)
            out.append(((ax + t * (bx - ax)) / NEAR, (ay + t * (by - ay)) / NEAR))
    return np.array(out) * camera.focal + centre


def _colours(model, camera, fill, world, lights, back):
    """(H, W, 4) uint8: every pixel gets the colour of the face that won it."""
    s, face = model.solids, fill.face
    light = s.dim[face] * (AMBIENT + DIFFUSE * np.maximum(world.normal[face] @ LIGHT, 0))
    palette = np.full((len(face) + 1, 4), 255, np.uint8)
    palette[0, :3] = model.look.wall
    palette[1:, :3] = np.minimum(s.colour[face] * light[:, None], 255)
    for item, lit, (_, on) in (("lightbulb", lights[0], looks.BULB), ("led", lights[1], looks.LED)):
        if lit:
            palette[1:, :3][s.item[face] == g.ITEM_ID[item]] = on
    rgba = palette.view(np.uint32)[:, 0].take(fill.code).view(np.uint8).reshape(*fill.code.shape, 4)
    if back is not None:
        cv2.copyTo(back.rgba, cv2.compare(fill.code, 0, cv2.CMP_EQ), rgba)
    textured = np.flatnonzero(s.texture[face] != looks.FLAT)
    if len(textured):
        shown = np.bincount(fill.code.ravel(), minlength=len(face) + 1)[textured + 1] > 0
        _paint(rgba, model, camera, fill, world.corner, textured[shown], light)
    return rgba


def _paint(rgba, model, camera, fill, corner, chosen, light):
    """Lay wood and floor textures over the chosen faces, in place: from pixels to texels of a face is a homography."""
    face, roi, plane = fill.face[chosen], fill.roi[chosen], fill.plane[chosen]
    axes, first = model.axes[face], model.solids.corner[face, 0]
    shift = np.take_along_axis(corner[first] - model.solids.vertex[first], axes, 1)  # a moved board takes its grain along
    ray = camera.axes.T[axes] / np.array([camera.focal, camera.focal, 1])  # (n, 2, 3)
    ray[:, :, 2] += (0.5 - camera.size / 2) * ray[:, :, :2].sum(2)
    rows = model.texel[face, None, None] * (ray + (camera.eye[axes] - shift + model.start[face])[:, :, None] * plane[:, None])
    matrix = np.concatenate([rows, plane[:, None]], 1)
    matrix[:, :, 2] += matrix[:, :, 0] * roi[:, None, 0] + matrix[:, :, 1] * roi[:, None, 2]
    for i, (x0, x1, y0, y1) in enumerate(roi.tolist()):
        texture = model.shaded(model.solids.texture[face[i]], light[chosen[i]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        patch = cv2.warpPerspective(texture, matrix[i], (x1 - x0, y1 - y0), flags=flags, borderMode=cv2.BORDER_WRAP)
        cv2.copyTo(patch, cv2.compare(fill.code[y0:y1, x0:x1], int(chosen[i]) + 1, cv2.CMP_EQ), rgba[y0:y1, x0:x1])


def _shadows(layer, model, camera, corner):
    """Darken, in place, the horizontal faces under blocks and hand; the lamp stands far away along LIGHT."""
    points = corner[model.casters]  # (casters, 8, 3)
    heights = np.array(g.RECEIVERS[1:])[:, None, None]
    rise = np.maximum(points[:, :, 2] - heights, 0)  # (receivers, casters, 8)
    on_plane = np.empty((*rise.shape, 3))
    on_plane[..., :2] = points[:, :, :2] - rise[..., None] * (LIGHT[:2] / LIGHT[2])
    on_plane[..., 2] = heights
    uv, depth = camera.project(on_plane.reshape(-1, 3))
    casts = (depth.reshape(rise.shape).min(2) > NEAR) & (rise.max(2) > 0.005)
    uv = np.round((uv.reshape(*rise.shape, 2) - 0.5) * (1 << SUBPIXEL)).astype(np.int32)
    for i in range(len(heights)):
        outlines = [(cv2.convexHull(uv[i, k]), SHADOWS[k][1]) for k in np.flatnonzero(casts[i])]
        if outlines:
            _darken(layer, i + 2, outlines)


def _darken(layer, receiver, outlines):
    """Darken the pixels of a receiver inside convex outlines [((n, 1, 2) sub-pixels, strength)], with soft borders."""
    every = np.concatenate([outline[:, 0] for outline, _ in outlines]) >> SUBPIXEL
    (x0, y0), (x1, y1) = np.clip(every.min(0) - 3, 0, None).tolist(), (every.max(0) + 4).tolist()
    mine = cv2.compare(np.ascontiguousarray(layer.tag[y0:y1, x0:x1]) >> 4, receiver, cv2.CMP_EQ) if y1 > 0 and x1 > 0 else None
    if mine is None or not mine.any():
        return
    mask = np.zeros_like(mine)
    for outline, strength in outlines:
        cv2.fillConvexPoly(mask, outline - np.int32([x0 << SUBPIXEL, y0 << SUBPIXEL]), strength, 8, SUBPIXEL)
    keep = 255 - cv2.bitwise_and(cv2.blur(mask, (5, 5)), mine)
    patch = layer.rgba[y0:y1, x0:x1]
    cv2.multiply(patch, cv2.cvtColor(keep, cv2.COLOR_GRAY2RGBA), patch, 1 / 255)


def _glow(rgba, scene, camera, lights):
    """Add, in place, the light of the burning lamps to the picture around them."""
    bulb, led = (lights[0], looks.BULB[1], scene.lightbulb_xyz, s.LIGHTBULB_RADIUS), (lights[1], looks.LED[1], scene.led_xyz, s.LED_RADIUS)
    for lit, colour, centre, radius in (bulb, led):
        (uv,), (depth,) = camera.project(np.array([centre], float))
        if not lit or depth < 2 * radius:
            continue
        spread = 1.6 * camera.focal * radius / depth
        (x0, y0), (x1, y1) = np.clip(np.stack([uv - 3 * spread, uv + 3 * spread + 1]), 0, camera.size).astype(int).tolist()
        if x0 < x1 and y0 < y1:
            x, y = (np.exp(-0.5 * ((np.arange(a, b) + 0.5 - c) / spread) ** 2) for a, b, c in ((x0, x1, uv[0]), (y0, y1, uv[1])))
            light = (0.45 * y[:, None] * x)[:, :, None] * np.array([*colour, 0])
            rgba[y0:y1, x0:x1] = cv2.add(rgba[y0:y1, x0:x1], light.astype(np.uint8))
