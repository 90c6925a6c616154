"""The fused kernel of engine `warp` on a CPU, in float64 or float32, beside C MuJoCo: states, a step of each, errors.

States are dicts of float64 arrays: qpos [E, nq], qvel [E, nv], target [E, nu] and, where given, warm and qfrc_applied
[E, nv], xfrc [E, nbody, 6], mocap_pos [E, nmocap, 3], mocap_quat [E, nmocap, 4], line [delays, E, nu]. Model fields
with one value a world are dicts too, {name: [E, ...]}.
"""

import copy
from contextlib import contextmanager

import mujoco
import numpy as np
import warp as wp
from robot_states import control

import isaacrl.sim.streams  # noqa: F401  starts Warp quietly
from isaacrl.sim.assets import lowest_point
from isaacrl.sim.fused import kernel, tables
from isaacrl.sim.warp_engine import FAST_CONTACTS

LIMIT = int(mujoco.mjtConstraint.mjCNSTR_LIMIT_JOINT)  # rows of limits and contacts have this type or a higher one
STUCK = 1e-5  # of the scaled gradient at which C MuJoCo's solver ends; 1e-13 as a rule
FREE, BALL, SLIDE, _ = range(4)  # mjtJoint
PLANE = int(mujoco.mjtGeom.mjGEOM_PLANE)

# What a step leaves: the state, forces and accelerations of the step, and what derives from the new state.
_STATE = ("qpos", "qvel", "warm", "time")
_COUNTS = ("ncon", "nefc")
_FORCES = ("qacc", "qfrc_constraint", "qfrc_smooth", "qfrc_actuator", "actuator_force", "ctrl")
_DERIVED = tables.STATE_OUTPUTS
FLAGS = {"overflow": np.int64, "nonfinite": np.uint8, "fresh": np.uint8}
LEAST_TOLERANCE = {True: 1e-15, False: 1e-6}  # of the solver, in float64 and in float32


# --- the kernel ------------------------------------------------------------------------------------------------------


@contextmanager
def optimization(level):
    """Compile with less care: of these kernels, most of the time is the compiler's."""
    before, wp.config.optimization_level = wp.config.optimization_level, level
    try:
        yield
    finally:
        wp.config.optimization_level = before


def run(
    model,
    actuation,
    state,
    *,
    double=True,
    lanes=8,
    steps=1,
    nconmax=120,
    backwards=False,
    edit=None,
    own=None,
    delays=0,
    outputs=True,
    level=0,
    fast_contacts=FAST_CONTACTS,
):
    """What `steps` physics steps of the kernel make of the states, {name: array [E, ...]}.

    own: model fields with one value a world. delays: places in the delay line. edit: see `kernel.source`.
    fast_contacts: see `tables.make_tables`.
    """
    m, own, worlds = model, own or {}, len(state["qpos"])
    real = np.float64 if double else np.float32
    t = tables.make_tables(
        tight(m),
        actuation,
        lanes=lanes,
        nconmax=nconmax,
        fast_contacts=fast_contacts,
        tolerance=LEAST_TOLERANCE[double],
        delays=delays,
        randomized=frozenset(own),
    )
    data = mujoco.MjData(m)
    arrays = {name: np.zeros((worlds,), dtype) for name, dtype in FLAGS.items()}
    arrays |= {name: np.zeros(np.shape(state["qpos"])[:1], np.int32) for name in (*_COUNTS, "niter")}
    arrays |= {"warm": np.zeros((worlds, m.nv), real), "time": np.zeros((worlds, 1), real)}
    for name in (*_FORCES, *(_DERIVED if outputs else ())):
        arrays[name] = np.zeros((worlds, *np.shape(getattr(data, name))), real)
    given = {k: v for k, v in state.items() if k not in ("line", "fresh")}
    arrays |= {k: np.array(v, real) for k, v in given.items()}
    arrays |= {f"own_{_accessor(t, name)}": np.array(v, real) for name, v in own.items()}
    arrays["fresh"][:] = state.get("fresh", 0)
    arrays["rows"] = np.full((worlds, t.row_columns), np.nan, real)
    arrays["heights"] = t.heights.astype(real)
    if delays:
        arrays["line"] = np.array(state["line"], real)
    # Warp's arrays may not be empty.
    live = {k: wp.array(v, device="cpu") for k, v in arrays.items() if v.size}
    names = t.arrays()
    addresses = np.array([live[n].ptr if n in live else 0 for n in names], np.int64)
    addresses[names.index("num_worlds")] = worlds
    for switch in tables.SWITCHES:
        addresses[names.index(switch)] = int(outputs)
    inputs = [wp.array(x, device="cpu") for x in (*t.blobs(real), addresses)]
    with optimization(level):
        k = kernel.build(t, double=double, backwards=backwards, edit=edit)
        wp.launch(k, dim=worlds, inputs=[worlds, steps, 0, *inputs], device="cpu")
    found = {name: live[name].numpy().copy() if name in live else v for name, v in arrays.items()}
    return {k: v for k, v in found.items() if k != "heights"}


def _accessor(t, name):
    return next(a for a, n in t.own.items() if n == name)


def tight(model):
    """A copy whose solver goes on until nothing is left to gain."""
    out = copy.copy(model)
    out.opt.solver, out.opt.iterations, out.opt.ls_iterations = mujoco.mjtSolver.mjSOL_NEWTON, 200, 100
    out.opt.tolerance, out.opt.ls_tolerance = 0.0, 1e-10  # 1e-15 leaves 1e-8 with elliptic cones
    out.opt.ccd_tolerance, out.opt.ccd_iterations = 1e-12, 500
    out.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
    return out


# --- C MuJoCo --------------------------------------------------------------------------------------------------------


def reference(model, actuation, state, own=None):
    """The same of one mj_step of each world, [E, ...]; and `rows`, the active rows of limits and contacts, and `stuck`:
    whether its solver gave up far from the minimum, which it does now and then with a hundred rows or more.
    """
    m, own = tight(model), own or {}
    data, out = mujoco.MjData(m), {}
    if own:  # frames that coincide in the model need not in a world
        m.body_sameframe[:] = m.geom_sameframe[:] = m.site_sameframe[:] = 0
    for i in range(len(state["qpos"])):
        _write(m, own, i)
        if own:  # total masses, and inertias of bodies whose inertia is diagonal
            mujoco.mj_setConst(m, data)
            m.body_invweight0[:], m.dof_invweight0[:] = model.body_invweight0, model.dof_invweight0
            _write(m, own, i)
        mujoco.mj_resetData(m, data)
        for name, theirs in _NAMES.items():
            if name in state:
                getattr(data, theirs)[:] = state[name][i]
        law = copy.copy(actuation)
        for name in ("kp", "kd"):
            setattr(law, name, own.get(f"actuation.{name}", {i: getattr(law, name)})[i])
        data.ctrl[:] = control(law, data, state["target"][i])
        mujoco.mj_step(m, data)
        found = {name: np.copy(getattr(data, _NAMES.get(name, name))) for name in (*_STATE, *_COUNTS, *_FORCES)}
        active = (data.efc_state[: data.nefc] != 0) & (data.efc_type[: data.nefc] >= LIMIT)
        found["rows"], last = np.sum(active), data.solver_niter[0] - 1
        found["stuck"] = last >= 0 and data.solver.gradient[last] > STUCK
        mujoco.mj_fwdPosition(m, data)
        mujoco.mj_fwdVelocity(m, data)
        found |= {name: np.copy(getattr(data, name)) for name in _DERIVED}
        for name, value in found.items():
            out.setdefault(name, []).append(value)
    out = {name: np.stack(values) for name, values in out.items()}
    return out | {"time": out["time"][:, None]}


def _write(model, own, i):
    """World i's own fields to the model."""
    for name, values in own.items():
        if not name.startswith("actuation."):
            owner, field = (model.opt, name[4:]) if name.startswith("opt.") else (model, name)
            getattr(owner, field)[:] = values[i]


_NAMES = {
    "qpos": "qpos",
    "qvel": "qvel",
    "warm": "qacc_warmstart",
    "qfrc_applied": "qfrc_applied",
    "xfrc": "xfrc_applied",
    "mocap_pos": "mocap_pos",
    "mocap_quat": "mocap_quat",
}


# --- comparison ------------------------------------------------------------------------------------------------------


def errors(ours, theirs):
    """{name: [E]}: the largest difference, relative to the field's largest value in that world, at least 1."""
    out = {}
    for name in (*_STATE, *_FORCES, *_DERIVED):
        a, b = (x[name].astype(float).reshape(len(x["qpos"]), -1) for x in (ours, theirs))
        if name not in ours or not a.size:
            continue
        difference = np.abs(a - b)
        if name == "xquat":  # the same rotation twice
            a, b = (x.reshape(len(x), -1, 4) for x in (a, b))
            difference = np.minimum(np.abs(a - b).max(2), np.abs(a + b).max(2))
        out[name] = difference.max(1) / np.maximum(1.0, np.abs(b).max(axis=tuple(range(1, b.ndim))))
        out[name] = np.where(np.isfinite(out[name]), out[name], np.inf)
        out[name] = out[name][~theirs["stuck"]] if "stuck" in theirs else out[name]
    return out


def miscounted(ours, theirs):
    """In how many worlds contacts or rows are not as many as they should be, or the step failed."""
    bad = (ours["nonfinite"] != 0) | (ours["overflow"] != 0)
    for name in _COUNTS:
        bad |= ours[name] != theirs[name]
    return int(bad.sum())


def histogram(name, theirs):
    """How many worlds have so many active rows of contacts and limits, as a line of text."""
    counts = np.histogram(theirs["rows"], [0, 1, 4, 8, 16, 32, 1000])[0]
    labels = ["0", "1-3", "4-7", "8-15", "16-31", "32+"]
    text = f"{name}: worlds by active rows: " + ", ".join(f"{k}: {c}" for k, c in zip(labels, counts))
    return f"{text}; {share(theirs):.0%} with 4 or more, {theirs['stuck'].sum()} stuck"


def share(theirs):
    """Of worlds with four or more active rows."""
    return np.mean(theirs["rows"] >= 4)


# --- states ----------------------------------------------------------------------------------------------------------


def states(model, n, seed=0, tries=8, depth=0.06):
    """Random states of any model. In three of four worlds the pose of several that has the most rows of constraints,
    unless something lies deeper than `depth` [m] in something else. A single robot that can rise is put on the ground
    z = 0; of several bodies every other one. Every tenth quaternion is not of unit length.
    """
    m, rng, data = model, np.random.default_rng(seed), mujoco.MjData(model)
    risers = _risers(m)

    def pose(low):
        qpos = m.qpos0.copy()
        for j in range(m.njnt):
            a, kind = m.jnt_qposadr[j], m.jnt_type[j]
            if kind == FREE:
                qpos[a : a + 3] += rng.uniform(-0.12, 0.12, 3)
                a += 3
            if kind in (FREE, BALL):
                quat = rng.normal(size=4) * rng.choice([0.1, 0.4, 1.0]) + [1.0, 0.0, 0.0, 0.0]
                if rng.random() < 0.2:
                    quat = -quat
                qpos[a : a + 4] = quat / np.linalg.norm(quat) * rng.choice([1.0, 0.7, 1.5], p=[0.9, 0.05, 0.05])
            elif m.jnt_limited[j]:
                (least, most), where = m.jnt_range[j], rng.random()
                past = rng.uniform(0.0, 0.03) * (most - least)
                inside = rng.uniform(least, most)
                qpos[a] = least - past if where < 0.25 else most + past if where > 0.75 else inside
            else:
                qpos[a] += rng.uniform(-1.0, 1.0) * (0.1 if kind == SLIDE else 1.0)
        for a, bodies in risers:
            if len(risers) == 1 or rng.random() < 0.5:
                data.qpos[:] = qpos
                mujoco.mj_kinematics(m, data)
                qpos[a] += low - min(lowest_point(m, data, b) for b in bodies)
        return qpos

    def merit(qpos):
        data.qpos[:] = qpos
        mujoco.mj_fwdPosition(m, data)
        deepest = min((c.dist for c in data.contact), default=0.0)
        return data.nefc if deepest > -depth else -1000.0 + 1000.0 * deepest

    poses = []
    for i in range(n):
        low = rng.uniform(0.0, 0.2) if i % 8 == 0 else rng.uniform(-0.05, 0.0)
        some = [pose(low) for _ in range(tries if i % 4 else 2)]
        poses.append(max(some, key=merit))
    out = {"qpos": np.array(poses), "qvel": rng.normal(size=(n, m.nv)) * rng.choice([0.3, 1.0], (n, 1))}
    reach = np.ones(m.nu)
    reach = np.where(m.actuator_forcelimited, 1.3 * np.abs(m.actuator_forcerange).max(1), reach)
    reach = np.where(m.actuator_ctrllimited, 1.3 * np.abs(m.actuator_ctrlrange).max(1), reach)
    servo = m.actuator_biasprm[:, 1] != 0
    out["target"] = rng.uniform(-1.0, 1.0, (n, m.nu)) * np.where(servo, 1.0, reach)
    if m.nmocap:
        start = np.argsort(m.body_mocapid)[-m.nmocap :]
        out["mocap_pos"] = m.body_pos[start] + rng.uniform(-0.1, 0.1, (n, m.nmocap, 3))
        out["mocap_quat"] = rng.normal(size=(n, m.nmocap, 4)) + [1.0, 0.0, 0.0, 0.0]
    return out


def _risers(m):
    """(its place in qpos, bodies with geoms) of each tree that moves freely along z, where the ground is z = 0."""
    flat = [g for g in np.flatnonzero(m.geom_type == PLANE) if np.allclose(m.geom_quat[g, 1:], 0.0)]
    if not flat or m.geom_pos[flat[0], 2]:
        return []
    out = []
    for tree in range(m.ntree):
        bodies = np.flatnonzero(m.body_treeid == tree)
        solid = [b for b in bodies if m.body_geomnum[b]]
        for j in np.flatnonzero(np.isin(m.jnt_bodyid, bodies)):
            upright = m.jnt_type[j] == SLIDE and m.jnt_axis[j, 2] == 1.0 and not m.jnt_limited[j]
            if solid and (m.jnt_type[j] == FREE or upright):
                out.append((m.jnt_qposadr[j] + (2 if m.jnt_type[j] == FREE else 0), solid))
                break
    return out


def with_applied_forces(model, state, seed=0):
    """The states with forces on joints and bodies in every fourth world, and a start of the solver far off."""
    rng, n, m = np.random.default_rng(seed), len(state["qpos"]), model
    some = (np.arange(n) % 4 == 1)[:, None]
    out = {name: np.asarray(value, float) for name, value in state.items()}
    out["qfrc_applied"] = some * rng.normal(size=(n, m.nv)) * 0.5
    push = rng.normal(size=(n, m.nbody, 6)) * [1.0, 1.0, 1.0, 0.1, 0.1, 0.1] * 3.0 * m.body_mass[:, None]
    out["xfrc"] = some[:, None] * push
    out["warm"] = (np.arange(n) % 3 == 1)[:, None] * rng.normal(size=(n, m.nv)) * 20.0
    return out
