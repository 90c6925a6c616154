"""Every bundled robot, engine by engine, against plain C MuJoCo: one physics step from 200 random states.

Engine `mujoco` equals mj_step bit for bit. `mjwarp` works in float32 and, with the friction cone that the robots have,
differs in one more way: a pyramid stands on the two tangents of the contact's frame, and for a capsule on a plane
mujoco-warp lays the first along the capsule where C MuJoCo leaves it where it happens to be. Neither is more right. So
it is compared twice: with C MuJoCo given mujoco-warp's frames, where float32 is all that is left, and with C MuJoCo as
it is, where worlds in which a capsule slides on the ground differ by what the pyramid is off the round cone.
"""

from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import isaacrl
from isaacrl import sim
from isaacrl.schema import SimConfig
from isaacrl.sim.assets import lowest_point
from isaacrl.sim.engine import PD

ROOT = Path(isaacrl.__file__).parent.parent
ASSETS = sorted(p.stem for p in (ROOT / "conf" / "asset").glob("*.yaml"))
WORLDS = 200
FIELDS = ("qpos", "qvel", "qacc")
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
LIMIT = int(mujoco.mjtConstraint.mjCNSTR_LIMIT_JOINT)  # rows of limits and contacts have this type or a higher one

# A world's error is the largest difference relative to the field's largest value in that world, at least 1; median
# and 99th percentile over the worlds. Float32 resolves 6e-8; solving for contact forces amplifies that by the condition
# of the problem, most for the humanoid, whose light arms hang on a heavy trunk. Measured: six tenths of these or less.
SAME_FRAMES = {"qpos": (3e-7, 3e-6), "qvel": (1e-5, 1e-4), "qacc": (1e-5, 1e-4)}
# In the median world no capsule slides. Measured at the 99th percentile: up to 5e-3, 0.24 and 0.4 (ant, humanoid), half
# of that or less for the others.
OWN_FRAMES = {"qpos": (3e-7, 1e-2), "qvel": (1e-5, 0.4), "qacc": (1e-5, 0.5)}


def scene(name, edit=None):
    asset = OmegaConf.load(ROOT / "conf" / "asset" / f"{name}.yaml")
    return sim.make_scene(asset, OmegaConf.create({"physics_dt": 0.005}), edit)


def build(s, n, engine, device="cpu", randomized=()):
    return sim.build(s.model, n, device, SimConfig(engine=engine, num_threads=1), s.actuation, randomized)


# --- random states ---------------------------------------------------------------------------------------------------


def random_states(model, actuation, n, seed=0):
    """(qpos, qvel, target), float32. Of the joints, two in five are up to 2% of their range beyond a limit, or
    nine in ten up to 4% where the robot is bolted down.

    Free robots lie anyhow in half of the worlds, stand nearly upright in the others, and have their lowest point up to
    5 cm below the ground (above it in every eighth world). Of robots bolted down, each world has that of 16 poses which
    is nearest to touching the ground: no deeper than a box is high, since C MuJoCo keeps four of the corners of a box
    in a plane and mujoco-warp eight.
    """
    rng, data = np.random.default_rng(seed), mujoco.MjData(model)
    free = model.jnt_type[0] == int(mujoco.mjtJoint.mjJNT_FREE)
    joints = np.arange(1 if free else 0, model.njnt)
    low, high = model.jnt_range[joints].T
    # Robots bolted down have few rows besides their limits, and servos that pull them back.
    share, depth = (0.2, 0.02) if free else (0.45, 0.04)

    def low_point(qpos):
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        return lowest_point(model, data)

    def pose():
        qpos, where = model.qpos0.copy(), rng.random(len(joints))
        past = rng.uniform(0.0, depth, len(joints)) * (high - low)
        inside = rng.uniform(low, high)
        limited = model.jnt_limited[joints] == 1
        angle = np.where(where < share, low - past, np.where(where > 1.0 - share, high + past, inside))
        qpos[model.jnt_qposadr[joints]] = np.where(limited, angle, rng.uniform(-1.0, 1.0, len(joints)))
        return qpos

    states = []
    for i in range(n):
        if free:
            qpos = pose()
            quat = rng.normal(size=4) * (1.0 if i % 2 else 0.1) + [0.0 if i % 2 else 1.0, 0.0, 0.0, 0.0]
            qpos[3:7] = quat / np.linalg.norm(quat)
            qpos[2] += (rng.uniform(0.0, 0.3) if i % 8 == 0 else rng.uniform(-0.05, 0.0)) - low_point(qpos)
        else:
            qpos = min((pose() for _ in range(16)), key=lambda q: abs(low_point(q) + 0.002))
        states.append(qpos)
    goal = np.where((model.actuator_biastype == int(mujoco.mjtBias.mjBIAS_AFFINE)) | (actuation.law == PD), 1.0, 0.0)
    reach = np.where(goal[:, None] > 0, model.jnt_range[model.actuator_trnid[:, 0]], model.actuator_forcerange)
    target = rng.uniform(reach[:, 0], reach[:, 1], (n, model.nu))
    qvel = rng.normal(size=(n, model.nv)) * (1.0 if free else 0.3)
    return [torch.tensor(x, dtype=torch.float32) for x in (np.array(states), qvel, target)]


def put(engine, qpos, qvel):
    engine.write("qpos", qpos.to(engine.device))
    engine.write("qvel", qvel.to(engine.device))
    engine.forward()


# --- plain MuJoCo ----------------------------------------------------------------------------------------------------


def control(a, data, target, kp=None):
    """The actuation law of one world in numpy; kp replaces the actuation's."""
    pd, kp = a.law == PD, a.kp if kp is None else kp
    speed = data.qvel[a.qvel_adr]
    torque = kp * (target - data.qpos[a.qpos_adr]) - a.kd * speed
    most, least = a.effort_limit.copy(), -a.effort_limit
    for u in np.flatnonzero(np.isfinite(a.velocity_limit)):
        droop = a.saturation_effort[u] / a.velocity_limit[u] * speed[u]
        most[u] = min(most[u], max(a.saturation_effort[u] - droop, 0.0))
        least[u] = max(least[u], min(-a.saturation_effort[u] - droop, 0.0))
    return np.where(pd, np.minimum(np.maximum(torque, least), most), target)


def step_by_parts(model, data, frames=None):
    """mj_step in its parts; the contacts may take other frames: [k, 2] geoms, [k, 3] positions, [k, 3, 3] frames."""
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
    mujoco.mj_tendon(model, data)
    mujoco.mj_makeM(model, data)
    mujoco.mj_factorM(model, data)
    mujoco.mj_collision(model, data)
    for contact in data.contact[: data.ncon] if frames else ():
        geoms, positions, matrices = frames
        same = np.flatnonzero((geoms == contact.geom).all(axis=1))
        nearest = same[np.argmin(np.linalg.norm(positions[same] - contact.pos, axis=1))]
        np.testing.assert_allclose(matrices[nearest][0], contact.frame[:3], atol=1e-3, err_msg="normal")
        contact.frame[:] = matrices[nearest].ravel()
    mujoco.mj_makeConstraint(model, data)
    mujoco.mj_island(model, data)
    mujoco.mj_transmission(model, data)
    mujoco.mj_projectConstraint(model, data)
    mujoco.mj_sensorPos(model, data)
    mujoco.mj_fwdVelocity(model, data)
    mujoco.mj_sensorVel(model, data)
    mujoco.mj_fwdActuation(model, data)
    mujoco.mj_fwdAcceleration(model, data)
    mujoco.mj_fwdConstraint(model, data)
    mujoco.mj_sensorAcc(model, data)
    implicit = model.opt.integrator == int(mujoco.mjtIntegrator.mjINT_IMPLICITFAST)
    (mujoco.mj_implicit if implicit else mujoco.mj_Euler)(model, data)


def reference(models, actuation, qpos, qvel, target, frames=None, kp=None, by_parts=False):
    """The data of each world after one physics step of its model."""
    out = []
    for i, model in enumerate(models):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = qpos[i], qvel[i]
        data.ctrl[:] = control(actuation, data, target[i].double().numpy(), None if kp is None else kp[i])
        if frames or by_parts:
            step_by_parts(model, data, frames[i] if frames else None)
        else:
            mujoco.mj_step(model, data)
        out.append(data)
    return out


def stacked(datas, name):
    return np.stack([np.array(getattr(d, name)) for d in datas])


def frames_of(engine):
    """Geoms, positions and frames of the contacts of each world of mjwarp's last step."""
    contact, n = engine.d.contact, int(engine.d.nacon.numpy()[0])
    world = contact.worldid.numpy()[:n]
    arrays = [getattr(contact, name).numpy()[:n] for name in ("geom", "pos", "frame")]
    return [tuple(a[world == i] for a in arrays) for i in range(engine.num_envs)]


def histogram(name, datas):
    """How many worlds have so many active rows of contacts and limits, as a line of text; and the rows, [E]."""
    rows = np.array([np.sum((d.efc_state[: d.nefc] != 0) & (d.efc_type[: d.nefc] >= LIMIT)) for d in datas])
    edges = [0, 1, 4, 8, 16, 32, 1000]
    counts = np.histogram(rows, edges)[0]
    labels = ["0", "1-3", "4-7", "8-15", "16-31", "32+"]
    return f"{name}: worlds by active rows: " + ", ".join(f"{k}: {c}" for k, c in zip(labels, counts)), rows


def compare(engine, datas, tolerance):
    """(a line, what exceeds the tolerance) of the relative errors of each field."""
    lines, bad = [], []
    for f in FIELDS:
        theirs = stacked(datas, f)
        scale = np.maximum(np.abs(theirs).max(axis=1), 1.0)
        error = np.abs(engine.field(f).cpu().numpy() - theirs).max(axis=1) / scale
        found = (np.median(error), np.quantile(error, 0.99))
        lines.append(f"{f} {found[0]:.0e} {found[1]:.0e}")
        bad += [f"{f} {x:.1e} > {most:.0e}" for x, most in zip(found, tolerance[f]) if not x <= most]
    return "; ".join(lines), bad


# --- one step of each engine -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASSETS)
def test_mujoco_engine_equals_mj_step_exactly(name):
    s = scene(name)
    states = random_states(s.model, s.actuation, WORLDS)
    engine = build(s, WORLDS, "mujoco")
    engine.field("qacc")
    put(engine, *states[:2])
    engine.step(1, states[2])
    expected = reference([s.model] * WORLDS, s.actuation, *states)
    text, rows = histogram(name, expected)
    print(text)
    most = 1 if name == "cartpole" else 4  # one limit is all that cartpole has
    assert (rows >= most).mean() >= 0.5, text
    for f in FIELDS:
        np.testing.assert_array_equal(engine.field(f).numpy(), stacked(expected, f), err_msg=f)
    parts = reference([s.model] * WORLDS, s.actuation, *states, by_parts=True)
    assert all(np.array_equal(stacked(parts, f), stacked(expected, f)) for f in FIELDS), "step_by_parts is not mj_step"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ASSETS)
def test_mjwarp_engine_agrees_with_mj_step(name, device):
    s = scene(name)
    states = random_states(s.model, s.actuation, WORLDS)
    engine = build(s, WORLDS, "mjwarp", device)
    count = engine.field("ncon").clone()
    put(engine, *states[:2])
    engine.step(1, states[2].to(engine.device))
    count = engine.field("ncon").tolist()
    as_it_is = reference([s.model] * WORLDS, s.actuation, *states)
    same_frames = reference([s.model] * WORLDS, s.actuation, *states, frames=frames_of(engine))
    text, _ = histogram(name, as_it_is)
    for label, datas, tolerance in (
        ("same frames", same_frames, SAME_FRAMES),
        ("own frames", as_it_is, OWN_FRAMES),
    ):
        line, bad = compare(engine, datas, tolerance)
        text += f"\n  {label}, median and 99%: {line}"
        assert not bad, f"{text}\n{bad}"
    print(text)
    assert count == [d.ncon for d in as_it_is], text
    assert engine._view("nefc").tolist() == [d.nefc for d in as_it_is], text
    assert not engine.nonfinite.any() and not engine.overflow.any(), text
