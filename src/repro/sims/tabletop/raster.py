"""Which face is seen at each pixel: convex solids through a pinhole camera into an inverse-depth buffer.

1/depth of a plane is affine in pixel coordinates, so a face costs two vectors and one filled polygon, and occlusion is right at
every pixel whatever the order of drawing. Numpy and OpenCV only.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from .geometry import Solids

NEAR = 0.012  # metres; what is nearer to the camera is cut off
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


class World(NamedTuple):
    corner: np.ndarray  # (V, 3) metres
    normal: np.ndarray  # (F, 3)
    offset: np.ndarray  # (F,) normal @ any of the face's corners


class Fill(NamedTuple):
    """Result of the depth test. code (H, W) uint8: 0 for what was there before, k for face[k - 1]."""

    code: np.ndarray
    inverse_depth: np.ndarray
    face: np.ndarray  # (n,) indices of the drawn faces, at most 255
    roi: np.ndarray  # (n, 4) x0, x1, y0, y1 of each
    plane: np.ndarray  # (n, 3) 1/depth = plane @ (u, v, 1) at pixel centre (u, v)


def rasterise(solids: Solids, span: tuple[int, int, int, int], world: World, camera: Camera, behind: np.ndarray | None) -> Fill:
    """Fill the faces that look at the camera into an inverse-depth buffer (H, W), or into a copy of the one they stand before.

    span: v0, v1, f0, f1, the vertices and faces to draw; faces of one solid stand together.
    """
    size, (v0, v1, f0, f1) = camera.size, span
    gap = world.offset[f0:f1] - world.normal[f0:f1] @ camera.eye  # negative where the face looks at the camera
    face = f0 + np.flatnonzero(gap < -1e-6)
    uv, depth = camera.project(world.corner[v0:v1])
    corner = solids.corner[:, face] - v0  # (corners, faces): reductions over the first axis are quick
    depth = depth[corner]
    ahead = np.flatnonzero(depth.max(0) > NEAR)
    face, points = face[ahead], uv[corner[:, ahead]] - 0.5  # fillConvexPoly counts from pixel centres
    for k in np.flatnonzero(depth[:, ahead].min(0) <= NEAR):
        cut = _clip(camera, world.corner[solids.corner[: solids.corners[face[k]], face[k]]])
        points[:, k], points[: len(cut), k] = cut[0], cut
    points = np.round(points * (1 << SUBPIXEL)).astype(np.int32)
    roi = np.empty((len(face), 4), np.int32)
    roi[:, ::2], roi[:, 1::2] = points.min(0) >> SUBPIXEL, (points.max(0) >> SUBPIXEL) + 2
    roi = roi.clip(0, size)
    seen = np.flatnonzero((roi[:, 0] < roi[:, 1]) & (roi[:, 2] < roi[:, 3]))
    face, roi, points = face[seen], roi[seen], np.ascontiguousarray(points[:, seen].transpose(1, 0, 2))
    inverse_depth = np.zeros((size, size), np.float32) if behind is None else behind.copy()
    code, mask = np.zeros((2, size, size), np.uint8)
    if not len(face):
        return Fill(code, inverse_depth, face, roi, np.zeros((0, 3)))
    if len(face) > 255:
        raise ValueError(f"{len(face)} faces seen at once; a picture has codes for 255")
    plane = (world.normal[face] @ camera.axes.T) / gap[face - f0, None]  # 1 / depth = plane @ (x, y, 1) in units of the focal length
    plane[:, :2] /= camera.focal
    plane[:, 2] += plane[:, :2].sum(1) * (0.5 - size / 2)
    pixel = np.arange(size, dtype=np.float32)
    a, b, c = plane.astype(np.float32).T[:, :, None, None]
    row, column = a * pixel + c, b * pixel[:, None]

    # A convex solid is as near as the farthest of the planes that face the camera: one depth test a solid, not one a face.
    solid = solids.solid[face]
    first = np.concatenate([[0], np.flatnonzero(solid[1:] != solid[:-1]) + 1])
    last = [*first[1:].tolist(), len(face)]
    low, high = np.minimum.reduceat(roi, first, 0)[:, ::2].tolist(), np.maximum.reduceat(roi, first, 0)[:, 1::2].tolist()
    for start, stop, (x0, y0), (x1, y1) in zip(first.tolist(), last, low, high, strict=True):
        for k in range(start, stop):
            cv2.fillConvexPoly(mask, points[k], k + 1, 8, SUBPIXEL)
        here = row[start, :, x0:x1] + column[start, y0:y1]
        if stop - start == 2:
            np.minimum(here, row[start + 1, :, x0:x1] + column[start + 1, y0:y1], out=here)
        elif stop - start > 2:
            here = np.minimum.reduce(row[start:stop, :, x0:x1] + column[start:stop, y0:y1])
        before, drawn = inverse_depth[y0:y1, x0:x1], mask[y0:y1, x0:x1]
        wins = here > before
        wins &= drawn > start
        wins = wins.view(np.uint8)
        cv2.copyTo(here, wins, before)
        cv2.copyTo(drawn, wins, code[y0:y1, x0:x1])
    return Fill(code, inverse_depth, face, roi, plane)


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
