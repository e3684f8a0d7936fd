"""Boxes in space: how deep two of them overlap, and rotations in CALVIN's convention. Plain floats: faster than arrays here.

Euler angles are extrinsic xyz (pybullet's): R = Rz(yaw) Ry(pitch) Rx(roll). A rotation is three column vectors.
"""

import math

TOUCH = 1e-6  # overlaps below this (m) are contact, not penetration
UPRIGHT = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def rotation(roll: float, pitch: float, yaw: float) -> tuple:
    """The three axes (columns of R) of a frame with these Euler angles."""
    cr, sr, cp, sp, cy, sy = math.cos(roll), math.sin(roll), math.cos(pitch), math.sin(pitch), math.cos(yaw), math.sin(yaw)
    return (
        (cy * cp, sy * cp, -sp),
        (cy * sp * sr - sy * cr, sy * sp * sr + cy * cr, cp * sr),
        (cy * sp * cr + sy * sr, sy * sp * cr - cy * sr, cp * cr),
    )


def euler(axes: tuple) -> tuple[float, float, float]:
    """Euler angles of a rotation whose pitch is inside +-90 degrees."""
    x, y, z = axes
    return math.atan2(y[2], z[2]), math.asin(max(-1.0, min(1.0, -x[2]))), math.atan2(x[1], x[0])


def upright(yaw: float) -> tuple:
    c, s = math.cos(yaw), math.sin(yaw)
    return ((c, s, 0.0), (-s, c, 0.0), (0.0, 0.0, 1.0))


def apply(axes: tuple, p: tuple) -> tuple[float, float, float]:
    """R p."""
    x, y, z = axes
    a, b, c = p
    return x[0] * a + y[0] * b + z[0] * c, x[1] * a + y[1] * b + z[1] * c, x[2] * a + y[2] * b + z[2] * c


def undo(axes: tuple, p: tuple) -> tuple[float, float, float]:
    """R transposed, times p."""
    return tuple(u[0] * p[0] + u[1] * p[1] + u[2] * p[2] for u in axes)


def wrap(angle: float) -> float:
    """The same angle in (-pi, pi]; untouched when it is there already."""
    return angle if -math.pi < angle <= math.pi else math.pi - (math.pi - angle) % (2 * math.pi)


class Solid:
    """A box with centre c, axes and half sizes; lo and hi bound it along the world axes."""

    __slots__ = ("c", "axes", "half", "lo", "hi")

    def __init__(self, c: tuple, axes: tuple, half: tuple):
        self.c, self.axes, self.half = c, axes, half
        (a, b, d), (x, y, z) = half, axes
        r0 = abs(x[0]) * a + abs(y[0]) * b + abs(z[0]) * d
        r1 = abs(x[1]) * a + abs(y[1]) * b + abs(z[1]) * d
        r2 = abs(x[2]) * a + abs(y[2]) * b + abs(z[2]) * d
        self.lo, self.hi = (c[0] - r0, c[1] - r1, c[2] - r2), (c[0] + r0, c[1] + r1, c[2] + r2)

    @classmethod
    def of(cls, box: tuple, shift: tuple = (0.0, 0.0, 0.0)) -> "Solid":
        """From (x0, x1, y0, y1, z0, z1), shifted."""
        x0, x1, y0, y1, z0, z1 = box
        c = ((x0 + x1) / 2 + shift[0], (y0 + y1) / 2 + shift[1], (z0 + z1) / 2 + shift[2])
        return cls(c, UPRIGHT, ((x1 - x0) / 2, (y1 - y0) / 2, (z1 - z0) / 2))

    def carries(self, x: float, y: float) -> bool:
        """Whether the vertical line through (x, y) meets the top face."""
        dx, dy = x - self.c[0], y - self.c[1]
        u, v = self.axes[0], self.axes[1]
        return abs(dx * u[0] + dy * u[1]) <= self.half[0] and abs(dx * v[0] + dy * v[1]) <= self.half[1]


def penetration(a: Solid, b: Solid, flat: bool = False) -> tuple | None:
    """(depth, n): the least translation depth * n that takes a out of b, horizontal if `flat`; None if they are apart.

    Separating axes are the six face normals; leaving out the nine edge pairs calls some near misses of tilted boxes contacts.
    """
    al, ah, bl, bh = a.lo, a.hi, b.lo, b.hi
    if (al[0] >= bh[0] - TOUCH or bl[0] >= ah[0] - TOUCH or al[1] >= bh[1] - TOUCH
            or bl[1] >= ah[1] - TOUCH or al[2] >= bh[2] - TOUCH or bl[2] >= ah[2] - TOUCH):
        return None
    dx, dy, dz = a.c[0] - b.c[0], a.c[1] - b.c[1], a.c[2] - b.c[2]
    (a0, a1, a2), (b0, b1, b2) = a.axes, b.axes
    (ha, hb, hc), (ga, gb, gc) = a.half, b.half
    best, normal = math.inf, None
    for x, y, z in (b0, b1, a0, a1) if flat else (b0, b1, b2, a0, a1, a2):
        d = dx * x + dy * y + dz * z
        over = (ha * abs(a0[0] * x + a0[1] * y + a0[2] * z) + hb * abs(a1[0] * x + a1[1] * y + a1[2] * z)
                + hc * abs(a2[0] * x + a2[1] * y + a2[2] * z) + ga * abs(b0[0] * x + b0[1] * y + b0[2] * z)
                + gb * abs(b1[0] * x + b1[1] * y + b1[2] * z) + gc * abs(b2[0] * x + b2[1] * y + b2[2] * z) - abs(d))
        if over <= TOUCH:
            return None
        if over < best - 1e-9:
            best, normal = over, (x, y, z) if d >= 0 else (-x, -y, -z)
    return best, normal
