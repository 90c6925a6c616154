"""Every bundled robot, engine by engine, against plain C MuJoCo: one physics step from 200 random states.

Engine `mujoco` equals mj_step bit for bit. `mjwarp` works in float32 and, with the friction cone that the robots have,
differs in one more way: a pyramid stands on the two tangents of the contact's frame, and for a capsule on a plane
mujoco-warp lays the first along the capsule where C MuJoCo leaves it where it happens to be. Neither is more right. So
it is compared twice: with C MuJoCo given mujoco-warp's frames, where float32 is all that is left, and with C MuJoCo as
it is, where worlds in which a capsule slides on the ground differ by what the pyramid is off the round cone. `warp`
works in float32 too, with C MuJoCo's own frames.
"""

import mujoco
import numpy as np
import pytest
import torch
from robot_states import ASSETS, GPU, build, frames_of, on_devices, put, random_states, reference, scene, stacked

import isaacrl

WORLDS = 200
FIELDS = ("qpos", "qvel", "qacc")
# One of each kind: an arm, a sparse Jacobian, explicit motors, contacts of the robot with itself.
CPU = ["franka_torque", "g1", "go2", "humanoid"]
LIMIT = int(mujoco.mjtConstraint.mjCNSTR_LIMIT_JOINT)  # rows of limits and contacts have this type or a higher one

# A world's error is the largest difference relative to the field's largest value in that world, at least 1; median
# and 99th percentile over the worlds. Float32 resolves 6e-8; solving for contact forces amplifies that by the condition
# of the problem, most for the humanoid, whose light arms hang on a heavy trunk. Measured: six tenths of these or less.
SAME_FRAMES = {"qpos": (3e-7, 3e-6), "qvel": (1e-5, 1e-4), "qacc": (1e-5, 1e-4)}
# Along the diagonals of a pyramid friction is 1 / sqrt(2) of that along its axes, so a sliding capsule may be slowed by
# as much less. In the median world none slides. Measured at the 99th percentile: ant 1e-3, 0.3, 0.6; others up to half.
# `warp` solves the humanoid's contacts less well: measured at the 99th percentile qpos 5e-6, qvel 1e-4, qacc 1.1e-4.
WARP_HUMANOID = {f: (median, 3 * most) for f, (median, most) in SAME_FRAMES.items()}
OWN_FRAMES = {"qpos": (3e-7, 1e-2), "qvel": (1e-5, 0.5), "qacc": (1e-5, 1.0)}


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


@pytest.mark.parametrize("name, device", on_devices(CPU))
def test_mjwarp_engine_agrees_with_mj_step(name, device):
    s = scene(name)
    states = random_states(s.model, s.actuation, WORLDS)
    engine = build(s, WORLDS, "mjwarp", device)
    count = engine.field("ncon")
    put(engine, *states[:2])
    engine.step(1, states[2].to(engine.device))
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
    assert count.tolist() == [d.ncon for d in as_it_is], text
    assert engine._view("nefc").tolist() == [d.nefc for d in as_it_is], text
    assert not engine.nonfinite.any() and not engine.overflow.any(), text


@pytest.mark.parametrize("name, device", on_devices(ASSETS))
def test_warp_engine_agrees_with_mj_step(name, device):
    """Its contacts have C MuJoCo's own frames."""
    s = scene(name)
    states = random_states(s.model, s.actuation, WORLDS)
    engine = build(s, WORLDS, "warp", device)
    put(engine, *states[:2])
    engine.step(1, states[2].to(engine.device))
    expected = reference([s.model] * WORLDS, s.actuation, *states)
    line, bad = compare(engine, expected, WARP_HUMANOID if name == "humanoid" else SAME_FRAMES)
    print(name, line)
    assert not bad, (line, bad)
    for f in ("ncon", "nefc"):
        assert engine.field(f).tolist() == [getattr(d, f) for d in expected], f
    assert not engine.nonfinite.any() and not engine.overflow.any()


# --- models that differ by world -------------------------------------------------------------------------------------

RANDOMIZED = [
    "body_mass",
    "body_inertia",
    "body_ipos",
    "geom_friction",
    "dof_damping",
    "dof_armature",
    "actuation.kp",
    "actuation.strength",
]


def draw(s, engine, n):
    """Values of the randomized fields, [E, ...], written to the engine as well."""
    rng, values = np.random.default_rng(1), {}
    for name in RANDOMIZED:
        field = engine.model_field(name)
        start = field.double().cpu().numpy()
        value = start * rng.uniform(0.7, 1.3, start.shape)
        if name == "body_inertia":  # one factor a body: no moment may exceed the sum of the other two
            value = start * rng.uniform(0.7, 1.3, (n, s.model.nbody, 1))
        elif name == "body_ipos":
            value[:, 1:] = start[:, 1:] + rng.uniform(-0.02, 0.02, start[:, 1:].shape)
        values[name] = value.astype(np.float32).astype(float)
        field.copy_(torch.tensor(values[name]))
    engine.set_const()
    return values


def compiled(s, values, i):
    """The model of world i, compiled with its values."""
    spec, m = s.spec.copy(), s.model
    spec.compiler.inertiafromgeom = mujoco.mjtInertiaFromGeom.mjINERTIAFROMGEOM_AUTO
    for body, known in zip(spec.bodies, s.spec.bodies):
        if known.id > 0:
            body.explicitinertial, body.fullinertia = True, [np.nan] * 6
            body.mass, body.inertia = values["body_mass"][i, known.id], values["body_inertia"][i, known.id]
            body.ipos, body.iquat = values["body_ipos"][i, known.id], m.body_iquat[known.id]
    for geom, known in zip(spec.geoms, s.spec.geoms):
        geom.friction = values["geom_friction"][i, known.id]
    for joint, known in zip(spec.joints, s.spec.joints):
        dof = m.jnt_dofadr[known.id]
        joint.damping, joint.armature = [values["dof_damping"][i, dof], 0.0, 0.0], values["dof_armature"][i, dof]
    for actuator, known in zip(spec.actuators, s.spec.actuators):
        a, strength = known.id, values["actuation.strength"][i, known.id]
        gain, bias = m.actuator_gainprm[a].copy(), m.actuator_biasprm[a].copy()
        if bias[1]:  # a position servo
            gain[0], bias[1] = values["actuation.kp"][i, a], -values["actuation.kp"][i, a]
        actuator.gainprm, actuator.biasprm = gain * strength, bias * strength
        actuator.forcerange = m.actuator_forcerange[a] * strength
    return spec.compile()


@pytest.mark.parametrize("name", ASSETS)
def test_worlds_of_their_own_equal_models_compiled_so_exactly(name):
    own_worlds(name, "mujoco", "cpu")


@pytest.mark.parametrize("engine", ["mjwarp", "warp"])
@pytest.mark.parametrize("name, device", on_devices(CPU))
def test_worlds_of_their_own_agree_with_models_compiled_so(name, device, engine):
    own_worlds(name, engine, device)


def own_worlds(name, engine_name, device):
    """Masses, inertias, friction, damping, armature, gains and strength of each world, against models of their own."""
    s, n = scene(name), 24
    states = random_states(s.model, s.actuation, n, seed=1)
    engine = build(s, n, engine_name, device, RANDOMIZED)
    values = draw(s, engine, n)
    engine.field("qacc")
    put(engine, *states[:2])
    engine.step(1, states[2].to(engine.device))
    models = [compiled(s, values, i) for i in range(n)]
    assert not np.array_equal(models[0].dof_invweight0, models[1].dof_invweight0)
    frames = frames_of(engine) if engine_name == "mjwarp" else None
    expected = reference(models, s.actuation, *states, frames=frames, kp=values["actuation.kp"])
    if engine_name != "mujoco":
        line, bad = compare(engine, expected, SAME_FRAMES)
        print(name, line)
        assert not bad, (line, bad)
        rows = engine._view("nefc") if engine_name == "mjwarp" else engine.field("nefc")
        assert rows.tolist() == [d.nefc for d in expected]
    else:
        for f in FIELDS:
            np.testing.assert_array_equal(engine.field(f).numpy(), stacked(expected, f), err_msg=f)


# --- sensors ---------------------------------------------------------------------------------------------------------


def force_on(model, data, body):
    """Net contact force on a body, world axes [3], from the list of contacts."""
    total, force = np.zeros(3), np.zeros(6)
    for k in range(data.ncon):
        contact = data.contact[k]
        first, second = model.geom_bodyid[contact.geom]
        if body in (first, second) and first != second:
            mujoco.mj_contactForce(model, data, k, force)
            total += contact.frame.reshape(3, 3).T @ force[:3] * (1.0 if body == second else -1.0)
    return total


@pytest.mark.parametrize(
    "engine_name, device",
    [(e, "cpu") for e in ("mujoco", "mjwarp", "warp")]
    + [pytest.param(e, "cuda", marks=GPU) for e in ("mjwarp", "warp")],
)
def test_contact_sensors_and_imu_of_go2_flat(engine_name, device):
    """Contact forces against the list of contacts; the IMU against the base's velocity, acceleration and attitude."""
    n = 64
    overrides = [f"sim.engine={engine_name}", "task.sensors.imu={}"]
    env = isaacrl.make("go2_flat", num_envs=n, device=device, overrides=overrides)
    engine, s, model = env.engine, env.state, env.engine.model
    states = random_states(model, engine.actuation, n, seed=2)
    put(engine, *states[:2])
    engine.step(1, states[2].to(engine.device))
    s.refresh()
    assert not engine.overflow.any()
    frames = frames_of(engine) if engine_name == "mjwarp" else None
    expected = reference([model] * n, engine.actuation, *states, frames=frames)
    touched = 0
    for name in ("feet", "body"):
        sensor = s.contact(name)
        theirs = np.array([[force_on(model, d, model.body(b).id) for b in sensor.names] for d in expected])
        np.testing.assert_allclose(sensor.force_w.cpu(), theirs, rtol=2e-4, atol=2e-3, err_msg=name)
        found = np.linalg.norm(theirs, axis=2) > 1.0
        assert found.any(axis=0).sum() >= 4, "which sensor is which would go unnoticed"
        touched += found.sum()
    assert touched > n
    old, new = np.zeros(9), np.zeros(9)
    for i, d in enumerate(expected):
        mujoco.mju_quat2Mat(old, states[0][i, 3:7].double().numpy())
        mujoco.mju_quat2Mat(new, d.qpos[3:7])
        proper = old.reshape(3, 3).T @ (d.qacc[:3] - model.opt.gravity)  # of the step that led here
        np.testing.assert_allclose(s.imu().lin_acc_b[i].cpu(), proper, rtol=1e-4, atol=5e-3)
        np.testing.assert_allclose(s.imu().ang_vel_b[i].cpu(), d.qvel[3:6], rtol=1e-4, atol=5e-4)
        np.testing.assert_allclose(s.imu().projected_gravity_b[i].cpu(), -new.reshape(3, 3)[2], atol=1e-5)
