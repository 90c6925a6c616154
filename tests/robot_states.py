"""Random states of the bundled robots on the ground, and plain C MuJoCo's step from them."""

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
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def on_devices(cpu):
    """(asset, device) of mjwarp: some on the CPU, where compiling its kernels takes longest; all on a GPU."""
    return [(name, "cpu") for name in cpu] + [pytest.param(name, "cuda", marks=GPU) for name in ASSETS]


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
