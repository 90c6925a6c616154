"""Rays against the world's own geoms: the distances that `mj_ray` measures, for many worlds at once, by a Warp kernel.

Every ray is one thread. In the grid of a height field it walks from cell to cell and looks where its height above the
surface changes sign: along a ray both triangles of a cell are straight lines that meet, so nothing falls between them.
"""

import mujoco
import numpy as np
import torch
import warp as wp
from torch import Tensor

from isaacrl.fuse import trace
from isaacrl.sim.streams import Launcher  # starts Warp

_G = mujoco.mjtGeom
PLANE, HFIELD, SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX = (
    wp.constant(int(k))
    for k in (
        *(_G.mjGEOM_PLANE, _G.mjGEOM_HFIELD, _G.mjGEOM_SPHERE, _G.mjGEOM_CAPSULE),
        *(_G.mjGEOM_ELLIPSOID, _G.mjGEOM_CYLINDER, _G.mjGEOM_BOX),
    )
)
SEEN = tuple(int(k) for k in (PLANE, HFIELD, SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX))
NOTHING = wp.constant(wp.float64(1e30))
ZERO, ONE = wp.constant(wp.float64(0.0)), wp.constant(wp.float64(1.0))


@wp.func
def _nearer(best: wp.float64, t: wp.float64, valid: bool) -> wp.float64:
    """The nearer of two hits that are ahead."""
    if valid and t >= ZERO and t < best:
        return t
    return best


@wp.func
def _roots(a: wp.float64, b: wp.float64, c: wp.float64) -> wp.vec2d:
    """Roots of a t^2 + 2 b t + c, the lesser first; behind the ray where there are none."""
    det = b * b - a * c
    if det < ZERO or a < wp.float64(1e-15):
        return wp.vec2d(-ONE, -ONE)
    det = wp.sqrt(det)
    return wp.vec2d((-b - det) / a, (-b + det) / a)


@wp.func
def _plane(o: wp.vec3d, d: wp.vec3d, size: wp.vec4d) -> wp.float64:
    """From its front only; size 0 along an axis is endless."""
    if d[2] > -wp.float64(1e-15):
        return NOTHING
    t = -o[2] / d[2]
    on_it = True
    for k in range(2):
        if size[k] > ZERO and wp.abs(o[k] + t * d[k]) > size[k]:
            on_it = False
    return _nearer(NOTHING, t, on_it)


@wp.func
def _ellipsoid(o: wp.vec3d, d: wp.vec3d, radii: wp.vec3d) -> wp.float64:
    p, q = wp.cw_div(o, radii), wp.cw_div(d, radii)
    t = _roots(wp.dot(q, q), wp.dot(p, q), wp.dot(p, p) - ONE)
    return _nearer(_nearer(NOTHING, t[0], True), t[1], True)


@wp.func
def _round(o: wp.vec3d, d: wp.vec3d, size: wp.vec4d, capsule: bool) -> wp.float64:
    """A capsule or cylinder along z: radius size[0], half its length size[1]."""
    radius, half = size[0], size[1]
    best = NOTHING
    t = _roots(d[0] * d[0] + d[1] * d[1], o[0] * d[0] + o[1] * d[1], o[0] * o[0] + o[1] * o[1] - radius * radius)
    for k in range(2):
        best = _nearer(best, t[k], wp.abs(o[2] + t[k] * d[2]) <= half)
    for end in range(2):
        z = half * wp.float64(2 * end - 1)
        if capsule:
            p = wp.vec3d(o[0], o[1], o[2] - z)
            t = _roots(wp.dot(d, d), wp.dot(p, d), wp.dot(p, p) - radius * radius)
            for k in range(2):
                best = _nearer(best, t[k], (p[2] + t[k] * d[2]) * z >= ZERO)
        elif wp.abs(d[2]) > wp.float64(1e-15):
            at = (z - o[2]) / d[2]
            x, y = o[0] + at * d[0], o[1] + at * d[1]
            best = _nearer(best, at, x * x + y * y <= radius * radius)
    return best


@wp.func
def _span(o: wp.float64, d: wp.float64, low: wp.float64, high: wp.float64, span: wp.vec2d) -> wp.vec2d:
    """The part of a span of t in which o + t d is between low and high; first > second where there is none."""
    if wp.abs(d) < wp.float64(1e-15):
        if o < low or o > high:
            return wp.vec2d(NOTHING, -NOTHING)
        return span
    a, b = (low - o) / d, (high - o) / d
    return wp.vec2d(wp.max(span[0], wp.min(a, b)), wp.min(span[1], wp.max(a, b)))


@wp.func
def _box(o: wp.vec3d, d: wp.vec3d, low: wp.vec3d, high: wp.vec3d) -> wp.float64:
    """Its nearest face ahead, from inside as well."""
    span = wp.vec2d(-NOTHING, NOTHING)
    for k in range(3):
        span = _span(o[k], d[k], low[k], high[k], span)
    if span[0] > span[1]:
        return NOTHING
    return _nearer(_nearer(NOTHING, span[0], True), span[1], True)


@wp.func
def above(
    heights: wp.array[wp.float32], first: int, columns: int, a: wp.float32, b: wp.float32, z: wp.float32
) -> wp.float32:
    """Height of z above a cell's two triangles, at shares a and b of the way along x and y."""
    a, b = wp.clamp(a, 0.0, 1.0), wp.clamp(b, 0.0, 1.0)
    here, across = heights[first], heights[first + columns + 1]
    if a >= b:
        corner = heights[first + 1]
        return z - (here + a * (corner - here) + b * (across - corner))
    corner = heights[first + columns]
    return z - (here + b * (corner - here) + a * (across - corner))


@wp.func
def _field(
    o: wp.vec3d,
    d: wp.vec3d,
    size: wp.vec4d,  # half of x and y, height above the lowest point, depth of the base below it [m]
    heights: wp.array[wp.float32],  # above the lowest point [m]
    start: int,
    rows: int,
    columns: int,
    limit: wp.float64,
) -> wp.float64:
    """A height field: its base, which is a box, its surface and its upright sides."""
    best = _box(o, d, wp.vec3d(-size[0], -size[1], -size[3]), wp.vec3d(size[0], size[1], ZERO))
    limit = wp.min(limit, best)
    # In units of cells along x and y.
    per_x, per_y = wp.float64(columns - 1) / (size[0] + size[0]), wp.float64(rows - 1) / (size[1] + size[1])
    u, v = (o[0] + size[0]) * per_x, (o[1] + size[1]) * per_y
    du, dv = d[0] * per_x, d[1] * per_y
    inside = _span(u, du, ZERO, wp.float64(columns - 1), wp.vec2d(ZERO, limit))
    inside = _span(v, dv, ZERO, wp.float64(rows - 1), inside)
    margin = wp.float64(0.01)  # so that a level field does not make the span empty
    span = _span(o[2], d[2], -margin, size[2] + margin, inside)
    if span[0] >= span[1]:
        return best
    # From here on relative to the first cell and the place where the span begins: small numbers, for float32.
    t0 = span[0]
    c0 = wp.clamp(int(wp.floor(u + t0 * du)), 0, columns - 2)
    r0 = wp.clamp(int(wp.floor(v + t0 * dv)), 0, rows - 2)
    x, y = wp.float32(u + t0 * du - wp.float64(c0)), wp.float32(v + t0 * dv - wp.float64(r0))
    z = wp.float32(o[2] + t0 * d[2])
    dx, dy, dz, end = wp.float32(du), wp.float32(dv), wp.float32(d[2]), wp.float32(span[1] - t0)
    t, c, r = wp.float32(0.0), wp.int32(0), wp.int32(0)
    f = above(heights, start + r0 * columns + c0, columns, x, y, z)
    if f < 0.0 and t0 > ZERO and t0 == inside[0] and z >= 0.0:
        return t0  # it comes in through a side
    below = f < 0.0
    most = int(wp.ceil((wp.abs(dx) + wp.abs(dy)) * end)) + 4
    for _ in range(most):
        # The way to the cell's edge, in two parts where it crosses the diagonal between the triangles.
        tx, ty, td = end, end, end
        if dx != 0.0:
            tx = (wp.where(dx > 0.0, wp.float32(c + 1), wp.float32(c)) - x) / dx
        if dy != 0.0:
            ty = (wp.where(dy > 0.0, wp.float32(r + 1), wp.float32(r)) - y) / dy
        if dx != dy:
            td = ((y - wp.float32(r)) - (x - wp.float32(c))) / (dx - dy)
        edge = wp.max(wp.min(wp.min(tx, ty), end), t)
        column, row = wp.clamp(c0 + c, 0, columns - 2), wp.clamp(r0 + r, 0, rows - 2)
        for part in range(2):
            to = edge
            if part == 0:
                to = td
            if to > t and to <= edge:
                a, b = x + to * dx - wp.float32(column - c0), y + to * dy - wp.float32(row - r0)
                g = above(heights, start + row * columns + column, columns, a, b, z + to * dz)
                if (g < 0.0) != below:
                    return t0 + wp.float64(t + (to - t) * f / (f - g))
                t, f = to, g
        if edge >= end:
            break
        if tx <= ty:
            c += wp.where(dx > 0.0, 1, -1)
        else:
            r += wp.where(dy > 0.0, 1, -1)
    if below and span[1] == inside[1] and span[1] < limit and z + end * dz >= 0.0:
        return span[1]  # from within it goes out through a side
    return best


@wp.kernel(enable_backward=False)
def _cast(
    # Rays:
    poses: wp.array2d[wp.float32],  # [E, 7]: where they start [m], orientation (w, x, y, z), world frame
    directions: wp.array[wp.vec3],  # [R] unit vectors in that frame
    far: wp.float64,  # [m]
    # Geoms:
    kinds: wp.array2d[wp.int32],  # [G, 4]: type, and of a height field start, rows, columns
    places: wp.array[wp.vec3d],  # [G] [m]
    axes: wp.array[wp.mat33d],  # [G] from the geom's frame to the world's
    sizes: wp.array[wp.vec4d],  # [G] [m]
    heights: wp.array[wp.float32],  # of all height fields [m]
    # Out:
    distance: wp.array2d[wp.float32],  # [E, R] [m]
):
    world, ray = wp.tid()  # pyright: ignore[reportGeneralTypeIssues]
    start = wp.vec3d()
    for k in range(3):
        start[k] = wp.float64(poses[world, k])
    w = wp.float64(poses[world, 3])
    q = wp.vec3d(wp.float64(poses[world, 4]), wp.float64(poses[world, 5]), wp.float64(poses[world, 6]))
    best = far
    size = wp.length_sq(start) + w * w + wp.length_sq(q)
    if size < wp.float64(1e12):  # else the world has failed; a NaN compares as false
        along = wp.vec3d(directions[ray])
        twice = wp.float64(2.0) * wp.cross(q, along)
        direction = wp.normalize(along + w * twice + wp.cross(q, twice))
        for g in range(kinds.shape[0]):  # pyright: ignore[reportAttributeAccessIssue]
            back = wp.transpose(axes[g])
            o, d, kind, t = back * (start - places[g]), back * direction, kinds[g, 0], NOTHING
            extent = sizes[g]
            if kind == PLANE:
                t = _plane(o, d, extent)
            elif kind == HFIELD:
                t = _field(o, d, extent, heights, kinds[g, 1], kinds[g, 2], kinds[g, 3], best)
            elif kind == BOX:
                corner = wp.vec3d(extent[0], extent[1], extent[2])
                t = _box(o, d, -corner, corner)
            elif kind == SPHERE:
                t = _ellipsoid(o, d, wp.vec3d(extent[0], extent[0], extent[0]))
            elif kind == ELLIPSOID:
                t = _ellipsoid(o, d, wp.vec3d(extent[0], extent[1], extent[2]))
            else:
                t = _round(o, d, extent, kind == CAPSULE)
            best = wp.min(best, t)
    distance[world, ray] = wp.float32(best)


class RayCaster:
    """R rays of every world against the world body's own planes, height fields, boxes, spheres, ellipsoids, capsules
    and cylinders, each where the model has it; what is transparent, a mesh or on a moving body is not seen.

    directions: [R, 3], in the frame from which rays are cast; far: the longest distance [m].
    """

    def __init__(self, model: mujoco.MjModel, directions: np.ndarray, far: float, num_envs: int, device: str):
        seen = [g for g in range(model.ngeom) if model.geom_bodyid[g] == 0 and _is_seen(model, g)]
        kinds, sizes, rotation = np.zeros((len(seen), 4), np.int32), np.zeros((len(seen), 4)), np.zeros((len(seen), 9))
        heights = np.zeros(1, np.float32)
        for row, g in enumerate(seen):
            kinds[row, 0], sizes[row, :3] = model.geom_type[g], model.geom_size[g]
            if kinds[row, 0] == int(HFIELD):
                field = model.geom_dataid[g]
                rows, columns, first = model.hfield_nrow[field], model.hfield_ncol[field], model.hfield_adr[field]
                values = model.hfield_data[first : first + rows * columns] * model.hfield_size[field, 2]
                kinds[row], sizes[row] = (int(HFIELD), len(heights), rows, columns), model.hfield_size[field]
                heights = np.concatenate((heights, values.astype(np.float32)))
            mujoco.mju_quat2Mat(rotation[row], model.geom_quat[g])
        unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        self.num_envs, self.device, self.far = num_envs, device, far
        self.poses = torch.zeros(num_envs, 7, device=device)
        self.distance = torch.zeros(num_envs, len(unit), device=device)  # of the last call [m], [E, R]
        self._launcher = Launcher(device, use_graph=False)
        with self._launcher.stream():
            self._inputs = [
                wp.from_torch(self.poses),
                wp.array(unit.astype(np.float32), dtype=wp.vec3, device=device),
                float(far),
                wp.array(kinds, dtype=wp.int32, device=device),
                wp.array(model.geom_pos[seen], dtype=wp.vec3d, device=device),
                wp.array(rotation.reshape(-1, 3, 3), dtype=wp.mat33d, device=device),
                wp.array(sizes, dtype=wp.vec4d, device=device),
                wp.array(heights, dtype=wp.float32, device=device),
                wp.from_torch(self.distance),
            ]
        self._run()  # compiles: nothing may be loaded in a capture

    def __call__(self, pos: Tensor, quat: Tensor) -> Tensor:
        """Distances [E, R] [m] from points pos [E, 3] in frames of orientation quat [E, 4], world frame.

        The tensor is the same one each time.
        """
        self.poses[:, :3].copy_(pos)
        self.poses[:, 3:].copy_(quat)
        trace.call(self._run)
        return self.distance

    def _run(self) -> None:
        with self._launcher.stream():
            wp.launch(_cast, dim=self.distance.shape, inputs=self._inputs, device=self.device)


def _is_seen(model: mujoco.MjModel, geom: int) -> bool:
    material = model.geom_matid[geom]
    rgba = model.geom_rgba[geom] if material < 0 else model.mat_rgba[material]
    return int(model.geom_type[geom]) in SEEN and rgba[3] > 0.0
