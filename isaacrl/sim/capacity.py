"""How many contacts and constraint rows a world may have: mjwarp and warp make room once, before the first step."""

import math

import mujoco
import numpy as np

from isaacrl.sim.assets import FREE, HINGE, SLIDE, lowest_of_geom, lowest_point

POSES = 256
SHALLOW = 0.01  # and in a height field, where a geom deeper down meets more of it [m]
DEPTH = 0.05  # how far a robot's lowest point is in the ground at most [m]
RESERVE = 1.5
ON_FIELDS = 30  # contacts: with more, fewer worlds of a quadruped would be on a GPU at once
LEAST = (48, 64)  # mujoco-warp's own guess for whatever stands on flat ground; contacts share one room among worlds


def estimate(model: mujoco.MjModel) -> tuple[int | None, int | None]:
    """(contacts, constraint rows) to make room for: the most in random poses on the ground, and half as much again.

    In these poses a free robot is pressed into the ground, z = 0, flat or anyhow, and two in five joints are just
    beyond a limit: more than training meets, where a robot that lies is usually reset. They are always the same poses.
    mujoco-warp's own guess knows neither the robot's geoms nor its joints; it is the least, and for height fields and
    soft bodies the only one (None).
    """
    if model.nhfield or model.nflex or (model.geom_type == int(mujoco.mjtGeom.mjGEOM_SDF)).any():
        return None, None
    contacts, rows = _most(model)
    return max(LEAST[0], _roomy(contacts)), max(LEAST[1], _roomy(rows))


def contacts_of(model: mujoco.MjModel) -> int:
    """Contacts a world to make room for in engine warp.

    Twice the most in the poses of `estimate`, while that is little; where it is much, a tenth more: scratch memory
    decides how many worlds a GPU steps at once. On height fields, where a geom has a contact with each triangle near
    it, twice the most again, but no more than ON_FIELDS: robots that flail about on a terrain need more in one or two
    of a thousand steps.
    """
    most = _most(model)[0]
    if (model.geom_type == _HFIELD).any():
        return min(4 * math.ceil(max(4, 2 * most) / 4), ON_FIELDS)
    return 4 * math.ceil(max(4, min(2 * most, max(1.1 * most, 16))) / 4)


def _most(model: mujoco.MjModel) -> tuple[int, int]:
    """The most (contacts, constraint rows) in the random poses."""
    rng, data = np.random.default_rng(0), mujoco.MjData(model)
    joints = np.flatnonzero(np.isin(model.jnt_type, (SLIDE, HINGE)))
    free = [int(model.jnt_qposadr[j]) for j in range(model.njnt) if model.jnt_type[j] == FREE][:1]
    limited = model.jnt_limited[joints] == 1
    span = np.where(limited[:, None], model.jnt_range[joints], [-math.pi, math.pi])
    low, high = span[:, 0], span[:, 1]
    field = next(iter(np.flatnonzero(model.geom_type == _HFIELD)), None)
    contacts = rows = 0
    for k in range(POSES):
        where, beyond = rng.random(len(joints)), 0.01 * (high - low)
        inside = rng.uniform(low, high)
        data.qpos[:] = model.qpos0
        data.qpos[model.jnt_qposadr[joints]] = np.where(
            where < 0.2, low - beyond, np.where(where > 0.8, high + beyond, inside)
        )
        for a in free:
            quat = rng.normal(size=4) * (1.0 if k % 2 else 0.1) + (0.0 if k % 2 else model.qpos0[a + 3 : a + 7])
            data.qpos[a + 3 : a + 7] = quat / np.linalg.norm(quat)
        mujoco.mj_kinematics(model, data)
        lowest = lowest_point(model, data)
        for a in free:
            if field is None:
                data.qpos[a + 2] -= lowest + rng.uniform(0.0, DEPTH)
            else:
                _put_on_field(model, data, a, field, rng)
        if not free and lowest < -DEPTH:
            continue  # an arm that reaches through its table
        mujoco.mj_fwdPosition(model, data)
        more, more_rows = _corners(model, data)
        contacts, rows = max(contacts, data.ncon + more), max(rows, data.nefc + more_rows)
    return contacts, rows


def _put_on_field(model: mujoco.MjModel, data: mujoco.MjData, a: int, field: int, rng: np.random.Generator) -> None:
    """Move the robot whose place in qpos is a somewhere on a height field, down until it is a little in the ground."""
    k, turn = int(model.geom_dataid[field]), data.geom_xmat[field].reshape(3, 3)
    rows, columns = int(model.hfield_nrow[k]), int(model.hfield_ncol[k])
    half, top = model.hfield_size[k, :2], model.hfield_size[k, 2]
    data.qpos[a : a + 3] = data.geom_xpos[field] + turn[:, :2] @ (rng.uniform(-0.9, 0.9, 2) * half)
    mujoco.mj_kinematics(model, data)
    solid = np.flatnonzero((model.geom_contype | model.geom_conaffinity) * (model.geom_bodyid > 0))
    local = (data.geom_xpos[solid] - data.geom_xpos[field]) @ turn
    last = np.array([columns, rows]) - 2
    i, j = np.clip((local[:, :2] / half + 1.0) / 2.0 * (last + 1), 0, last).astype(int).T
    ground = model.hfield_data[model.hfield_adr[k] + j * columns + i] * top
    below = [data.geom_xpos[g, 2] - lowest_of_geom(model, data, g) for g in solid]
    data.qpos[a : a + 3] -= turn[:, 2] * ((local[:, 2] - below - ground).min() + rng.uniform(0.0, SHALLOW))


def _corners(model: mujoco.MjModel, data: mujoco.MjData) -> tuple[int, int]:
    """Contacts, and their rows, that mujoco-warp adds: it keeps eight corners of a box in a plane, C MuJoCo four."""
    pairs = np.asarray(data.contact.geom[: data.ncon]).reshape(-1, 2)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    box = [
        (g, h)
        for (g, h), n in zip(found.tolist(), counts)
        if n == 4 and {int(model.geom_type[g]), int(model.geom_type[h])} == _PLANE_AND_BOX
    ]
    return 4 * len(box), sum(8 * (int(max(model.geom_condim[[g, h]])) - 1) for g, h in box)


_HFIELD = int(mujoco.mjtGeom.mjGEOM_HFIELD)
_PLANE_AND_BOX = {int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_BOX)}


def _roomy(count: int) -> int:
    """With the reserve, in sixteens: mujoco-warp works in tiles."""
    return 16 * math.ceil(RESERVE * count / 16)
