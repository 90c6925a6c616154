"""The batched simulator: scene, actuation and engines, against plain C MuJoCo."""

import os
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from isaacrl import sim
from isaacrl.errors import UserError
from isaacrl.schema import SimConfig
from isaacrl.sim.engine import PD, Actuation
from isaacrl.sim.names import match

HOPPER = str(Path(__file__).parent / "models" / "hopper.xml")
CART = {"cart": {"joints": ["slider"], "law": "effort", "effort_limit": 10.0}}
EFFORT = {"legs": {"joints": [".*"], "law": "effort", "effort_limit": 20.0}}
SERVO = {
    "hips": {"joints": ["hip.*"], "law": "position", "kp": 60.0, "kd": 1.5, "effort_limit": 25.0},
    "knee": {"joints": ["knee1"], "law": "velocity", "kd": 2.0},
}
EXPLICIT = {
    "hips": {
        "joints": ["hip[12]"],
        "law": "pd",
        "kp": 40.0,
        "kd": 1.0,
        "effort_limit": 12.0,
        "saturation_effort": 15.0,
        "velocity_limit": 8.0,
    },
    "rest": {"joints": ["hip[34]", "knee1"], "law": "pd", "kp": 30.0, "kd": 0.5},
}
FRESH = ["xpos", "xquat", "xmat", "xipos", "cvel", "subtree_com", "site_xpos", "geom_xpos", "actuator_length"]
FORCES = ["qacc", "actuator_force", "qfrc_actuator", "sensordata"]
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def scene(path=HOPPER, actuators=EFFORT, dt=0.005, edit=None):
    asset = OmegaConf.create({"path": path, "actuators": actuators})
    return sim.make_scene(asset, OmegaConf.create({"physics_dt": dt}), edit)


def ball_feet(spec):
    """Spheres for feet, under the pyramidal cone and Euler's integrator: MuJoCo's defaults."""
    spec.option.cone, spec.option.integrator = mujoco.mjtCone.mjCONE_PYRAMIDAL, mujoco.mjtIntegrator.mjINT_EULER
    for i in range(1, 5):
        geom, site = spec.geom(f"foot{i}"), spec.site(f"foot{i}")
        geom.type, geom.size, geom.fromto, geom.pos = mujoco.mjtGeom.mjGEOM_SPHERE, [0.04, 0, 0], [np.nan] * 6, site.pos


def build(scene, n, engine, device="cpu", randomized=(), **config):
    return sim.build(scene.model, n, device, SimConfig(engine=engine, **config), scene.actuation, randomized)


@pytest.fixture(params=["mujoco", "mjwarp", "warp"])
def engine_name(request):
    return request.param


def states(model, n, seed=0):
    """Random states, rounded to float32. The lowest foot of a free robot is up to 1 cm in the floor in the first half
    of the worlds, above it in the others."""
    rng = np.random.default_rng(seed)
    qpos, qvel = np.tile(model.qpos0, (n, 1)), rng.normal(size=(n, model.nv))
    for j in range(model.njnt):
        a = model.jnt_qposadr[j]
        if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_FREE:
            quat = np.array([1.0, 0, 0, 0]) + 0.1 * rng.normal(size=(n, 4))
            qpos[:, a + 3 : a + 7] = quat / np.linalg.norm(quat, axis=1, keepdims=True)
        else:
            qpos[:, a] = rng.uniform(-0.9, 0.9, n)
    if model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE:
        height = rng.uniform(-0.01, 0.0, n) + np.where(np.arange(n) < n // 2, 0.0, 0.3)
        qpos[:, 2] += height - np.array([lowest(model, q) for q in qpos])
    target = rng.uniform(-1, 1, (n, model.nu)) * 8.0
    return tuple(torch.tensor(x.astype(np.float32)) for x in (qpos, qvel, target))


def lowest(model, qpos):
    """Height of the lowest point of the feet."""
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    feet = [model.geom(f"foot{i}").id for i in range(1, 5)]
    reach = np.abs(data.geom_xmat[:, 8]) * model.geom_size[:, 1] + model.geom_size[:, 0]  # a sphere's second size is 0
    return (data.geom_xpos[:, 2] - reach)[feet].min()


def put(engine, qpos, qvel):
    engine.write("qpos", qpos.to(engine.device))
    engine.write("qvel", qvel.to(engine.device))
    engine.forward()


def host(tensor):
    return tensor.cpu().numpy().astype(np.float64)


def reference(model, qpos, qvel, controls, steps):
    """Plain MuJoCo, world by world: mj_step in a loop, then kinematics at the new state (mj_step1 without sensors of
    acceleration). controls(i, data, k) is the control of world i at physics step k."""
    out = []
    for i in range(len(qpos)):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = qpos[i], qvel[i]
        for k in range(steps):
            data.ctrl[:] = controls(i, data, k)
            mujoco.mj_step(model, data)
        mujoco.mj_step1(model, data)
        out.append(data)
    return out


def stacked(datas, name):
    return np.stack([np.array(getattr(d, name)) for d in datas])


# --- against plain MuJoCo --------------------------------------------------------------------------------------------

SCENES = {
    "cartpole": lambda: scene("cartpole.xml", CART, dt=0.01),
    "hopper": scene,
    "servo": lambda: scene(actuators=SERVO),
    "balls": lambda: scene(edit=ball_feet),
}


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", SCENES)
def test_mujoco_engine_equals_mj_step_exactly(name, steps):
    """200 random states, half in contact; two policy steps of `steps` physics steps each; each field, bit for bit."""
    s = SCENES[name]()
    qpos, qvel, target = states(s.model, 200)
    engine = build(s, 200, "mujoco", num_threads=2)
    fields = ["time", "qpos", "qvel", "qacc_warmstart", *FRESH, *FORCES, "ncon", "qfrc_bias"]
    for f in fields:
        engine.field(f)
    put(engine, qpos, qvel)
    assert name == "cartpole" or (engine.field("ncon")[:100] > 0).all()
    for _ in range(2):
        engine.step(steps, target)
    expected = reference(s.model, qpos, qvel, lambda i, d, k: target[i], 2 * steps)
    for f in fields:
        np.testing.assert_array_equal(engine.field(f).numpy(), stacked(expected, f), err_msg=f)
    assert not engine.nonfinite.any() and not engine.overflow.any()


# Largest differences allowed after one step from the same float32 state: absolute, and relative to the field's largest
# value. Measured: a fifth of these, or less.
TOLERANCE = {
    "time": (1e-6, 0),
    "qpos": (2e-6, 1e-6),
    "qvel": (5e-4, 5e-5),
    "xpos": (2e-6, 1e-6),
    "xquat": (5e-6, 0),
    "xmat": (1e-5, 0),
    "xipos": (2e-6, 1e-6),
    "cvel": (5e-4, 5e-5),
    "subtree_com": (2e-6, 1e-6),
    "site_xpos": (2e-6, 1e-6),
    "geom_xpos": (2e-6, 1e-6),
    "actuator_length": (2e-6, 1e-6),
    "qacc": (2e-2, 2e-5),
    "actuator_force": (1e-4, 1e-5),
    "qfrc_actuator": (1e-4, 1e-5),
    "sensordata": (2e-2, 5e-5),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("engine", ["mjwarp", "warp"])
@pytest.mark.parametrize("name", SCENES)
def test_single_precision_is_close_to_mj_step(name, engine, device):
    """200 random states, half in contact, one step."""
    s = SCENES[name]()
    qpos, qvel, target = states(s.model, 200)
    engine = build(s, 200, engine, device)
    engine.field("sensordata")
    put(engine, qpos, qvel)
    engine.step(1, target.to(engine.device))
    expected = reference(s.model, qpos, qvel, lambda i, d, k: target[i], 1)
    for f, (absolute, relative) in TOLERANCE.items():
        ours, theirs = host(engine.field(f)), stacked(expected, f)
        if f == "subtree_com" and engine.name == "warp":  # it leaves out that of all bodies together
            ours, theirs = ours[:, 1:], theirs[:, 1:]
        assert ours.shape == theirs.shape, f
        if theirs.size:
            bound = absolute + relative * np.abs(theirs).max()
            assert np.abs(ours - theirs).max() <= bound, (f, np.abs(ours - theirs).max(), bound)
    assert not engine.nonfinite.any() and not engine.overflow.any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("engine", ["mjwarp", "warp"])
def test_single_precision_stays_close_over_several_steps(engine, device):
    """40 steps of the cart-pole, which is smooth: the state differs by float32's rounding alone."""
    s = SCENES["cartpole"]()
    qpos, qvel, target = states(s.model, 50)
    engine = build(s, 50, engine, device)
    put(engine, qpos, qvel)
    for _ in range(20):
        engine.step(2, target.to(engine.device))
    expected = reference(s.model, qpos, qvel, lambda i, d, k: target[i], 40)
    assert np.abs(host(engine.field("qpos")) - stacked(expected, "qpos")).max() < 1e-3
    np.testing.assert_allclose(host(engine.field("time")), 0.4, rtol=1e-5)


def test_fields_are_fresh_and_live(engine_name):
    """After a step, bodies stand where the new joint angles put them; the tensors stay the same objects."""
    s = scene()
    qpos, qvel, target = states(s.model, 6)
    engine = build(s, 6, engine_name)
    tensors = {f: engine.field(f) for f in ("qpos", "qvel", "xpos", "site_xpos")}
    pointers = {f: t.data_ptr() for f, t in tensors.items()}
    for write in (lambda: put(engine, qpos, qvel), lambda: engine.step(3, target)):
        write()
        for i in range(6):
            data = mujoco.MjData(s.model)
            data.qpos[:] = host(tensors["qpos"])[i]
            mujoco.mj_kinematics(s.model, data)
            np.testing.assert_allclose(host(tensors["xpos"])[i], data.xpos, atol=2e-6)
            np.testing.assert_allclose(host(tensors["site_xpos"])[i], data.site_xpos, atol=2e-6)
    assert all(engine.field(f) is t and t.data_ptr() == pointers[f] for f, t in tensors.items())


def test_forward_of_some_worlds_leaves_the_others(engine_name):
    s = scene()
    qpos, qvel, target = states(s.model, 5)
    engine = build(s, 5, engine_name)
    fields = [engine.field(f) for f in ("qpos", "xpos", "cvel", "sensordata", "qacc", "actuator_force")]
    put(engine, qpos, qvel)
    engine.step(2, target)
    before = [f.clone() for f in fields]
    mask = torch.tensor([True, False, False, True, False])
    engine.write("qpos", torch.tensor(s.model.qpos0).expand(5, -1), mask)
    engine.forward(mask)
    for old, new in zip(before, fields, strict=True):
        assert torch.equal(old[~mask], new[~mask])
    assert not torch.equal(before[1][mask], fields[1][mask])


def test_unknown_names_name_the_nearest(engine_name):
    engine = build(scene(), 2, engine_name)
    with pytest.raises(ValueError, match="did you mean xpos"):
        engine.field("xpso")
    with pytest.raises(ValueError, match="did you mean qvel"):
        engine.write("qvle", torch.zeros(2, 11))
    with pytest.raises(ValueError, match="subtreeangmom"):
        engine.field("subtree_angmom")  # nothing computes it
    with pytest.raises(ValueError, match="randomized_fields"):
        engine.model_field("body_mass")
    with pytest.raises(ValueError, match="did you mean body_mass"):
        build(scene(), 2, engine_name, randomized=["body_mas"])


# --- actuation -------------------------------------------------------------------------------------------------------


def pd_by_hand(actuation):
    """The PD law of one world: controls from its data and targets."""

    def law(data, target):
        a = actuation
        q, qd = data.qpos[a.qpos_adr], data.qvel[a.qvel_adr]
        ctrl = np.zeros(len(target))
        for u in range(len(target)):
            if a.law[u] != PD:
                ctrl[u] = target[u]
                continue
            torque = a.kp[u] * (target[u] - q[u]) - a.kd[u] * qd[u]
            low, high = -a.effort_limit[u], a.effort_limit[u]
            if np.isfinite(a.velocity_limit[u]):
                slope = a.saturation_effort[u] / a.velocity_limit[u]
                high = min(high, max(a.saturation_effort[u] - slope * qd[u], 0.0))
                low = max(low, min(-a.saturation_effort[u] - slope * qd[u], 0.0))
            ctrl[u] = min(max(torque, low), high)
        return ctrl

    return law


@pytest.mark.parametrize("n, engine", [(n, e) for e in ("mujoco", "mjwarp", "warp") for n in (40, 1)])
def test_explicit_pd_acts_at_every_physics_step(n, engine):
    """Four physics steps under the law equal mj_step with the law by hand; limits and torque-speed lines are met."""
    s = scene(actuators=EXPLICIT)
    assert (s.actuation.law == PD).all() and not s.actuation.is_direct
    qpos, qvel, target = states(s.model, n)
    qvel[:, 6:] *= 6.0
    target *= 0.1
    engine = build(s, n, engine)
    put(engine, qpos, qvel)
    engine.step(4, target)
    law = pd_by_hand(s.actuation)
    controls = []

    def control(i, data, k):
        controls.append(law(data, host(target)[i]))
        return controls[-1]

    expected = reference(s.model, qpos, qvel, control, 4)
    tight = engine.name == "mujoco"
    for f in ("qpos", "qvel", "ctrl"):
        np.testing.assert_allclose(
            host(engine.field(f)),
            stacked(expected, f),
            rtol=0 if tight else 1e-3,
            atol=1e-9 if tight else 5e-3,
            err_msg=f,
        )
    if n > 1:  # the limits are at work
        hip1 = np.abs(controls)[:, 0]
        assert (hip1 == 12.0).any() and ((hip1 > 0) & (hip1 < 12.0)).any() and (hip1 == 0.0).any()


def test_torque_speed_line_by_hand():
    """Stall torque 15, no-load speed 8: at 4 rad/s at most 7.5 forward, 12 (the limit) backward; beyond 8 none."""
    from isaacrl.sim.actuators import Law

    s = scene(actuators=EXPLICIT)
    names = [s.model.actuator(i).name for i in range(s.model.nu)]
    hip, law = names.index("hip1"), Law(s.actuation, 4, "cpu", torch.float64)
    qpos, qvel = torch.zeros(4, s.model.nq, dtype=torch.float64), torch.zeros(4, s.model.nv, dtype=torch.float64)
    target = torch.zeros(4, s.model.nu, dtype=torch.float64)
    target[:, hip] = torch.tensor([100.0, 100.0, -100.0, 100.0])
    qvel[:, s.actuation.qvel_adr[hip]] = torch.tensor([0.0, 4.0, 4.0, 9.0])
    assert law.control(target, qpos, qvel)[:, hip].tolist() == [12.0, 7.5, -12.0, 0.0]


def test_delay_is_counted_in_physics_steps(engine_name):
    """A target acts `delay` physics steps later; after a reset the first target fills the line."""
    groups = {"a": {"joints": ["hip[12]"], "law": "effort", "delay": 3}, "b": {"joints": ["hip3"], "law": "effort"}}
    s = scene(actuators=groups)
    engine = build(s, 2, engine_name)
    ctrl, seen = engine.field("ctrl"), []
    for t in range(6):
        engine.step(1, torch.full((2, 3), float(t + 1)))
        seen.append(host(ctrl)[0].tolist())
    assert seen == [[max(1, t - 2), max(1, t - 2), t + 1] for t in range(6)]
    engine.reset(torch.tensor([True, False]))
    engine.forward()
    engine.step(2, torch.full((2, 3), 50.0))
    assert host(ctrl)[0].tolist() == [50, 50, 50] and host(ctrl)[1].tolist() == [5, 5, 50]


def test_random_actuation_equals_mj_step():
    """Laws, gains, limits and delays drawn at random, targets that change every policy step."""
    rng = np.random.default_rng(3)
    for trial in range(4):
        s = scene(actuators=EXPLICIT)
        nu, a = s.model.nu, s.actuation
        a.law[:], a.delay[:] = rng.integers(0, 2, nu), rng.integers(0, 4, nu)
        a.kp[:], a.kd[:], a.effort_limit[:] = rng.uniform(5, 80, nu), rng.uniform(0, 2, nu), rng.uniform(3, 20, nu)
        qpos, qvel, _ = states(s.model, 5, seed=trial)
        targets = torch.tensor(rng.uniform(-1, 1, (6, 5, nu)))
        engine = build(s, 5, "mujoco")
        put(engine, qpos, qvel)
        for t in range(6):
            engine.step(3, targets[t])
        law, line = pd_by_hand(a), targets.repeat_interleave(3, dim=0).numpy()

        def controls(i, data, k, law=law, line=line, a=a, nu=nu):
            return law(data, np.array([line[max(k - a.delay[u], 0), i, u] for u in range(nu)]))

        expected = reference(s.model, qpos, qvel, controls, 18)
        np.testing.assert_allclose(engine.field("qpos").numpy(), stacked(expected, "qpos"), rtol=0, atol=1e-8)


# --- per-world models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_model_fields_differ_by_world(engine_name, device):
    """Masses, friction, gravity and servo gains per world equal single-world models that have these values."""
    if engine_name == "mujoco" and device != "cpu":
        pytest.skip("a CPU engine")
    s = scene(actuators=SERVO)
    names = ["body_mass", "body_inertia", "geom_friction", "opt.gravity", "actuator_gainprm"]
    n = 6
    qpos, qvel, target = states(s.model, n)
    target = target * 0.05
    engine = build(s, n, engine_name, device, names)
    scale = np.linspace(0.6, 1.6, n)
    values = {name: host(engine.model_field(name)).copy() for name in names}
    values["body_mass"] *= scale[:, None]
    values["body_inertia"] *= scale[:, None, None]
    values["geom_friction"] *= scale[::-1, None, None]
    values["opt.gravity"] *= scale[:, None]
    values["actuator_gainprm"][:, :, 0] *= scale[:, None]
    for name, value in values.items():
        engine.model_field(name).copy_(torch.tensor(value))
    engine.set_const()
    put(engine, qpos, qvel)
    engine.step(1, target.to(engine.device))
    for i in range(n):
        model = scene(actuators=SERVO).model
        for name, value in values.items():
            owner, field = (model.opt, name[4:]) if name.startswith("opt.") else (model, name)
            getattr(owner, field)[:] = value[i]
        mujoco.mj_setConst(model, mujoco.MjData(model))
        expected = reference(model, qpos[i : i + 1], qvel[i : i + 1], lambda i, d, k: target[0], 0)[0]
        expected.ctrl[:] = target[i]
        expected.qpos[:], expected.qvel[:] = qpos[i], qvel[i]
        mujoco.mj_step(model, expected)
        for f in ("qpos", "qvel", "qacc"):
            ours, theirs = host(engine.field(f))[i], getattr(expected, f)
            if engine_name == "mujoco":
                np.testing.assert_array_equal(ours, theirs, err_msg=f)
            else:
                np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-3 if f == "qacc" else 1e-4, err_msg=f)
    if engine_name != "mujoco":  # derived constants followed
        for f in ("body_invweight0", "dof_invweight0"):
            np.testing.assert_allclose(host(engine._model_fields[f])[-1], getattr(model, f), rtol=1e-4, err_msg=f)


# --- resets, checkpoints, faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_reset_by_mask_forgets_the_past(engine_name, device):
    """Reset worlds go on exactly as in a new engine, the others exactly as if nothing had happened."""
    if engine_name == "mujoco" and device != "cpu":
        pytest.skip("a CPU engine")
    groups = {k: v | {"delay": 2} for k, v in EXPLICIT.items()}
    s = scene(actuators=groups)
    n = 6
    qpos, qvel, target = states(s.model, n)
    target = (0.1 * target).to(device)
    mask = torch.tensor([True, False, True, False, False, True], device=device)

    def run(resets):
        engine = build(s, n, engine_name, device, deterministic=True)
        put(engine, qpos, qvel)
        engine.write("qfrc_applied", torch.full((n, s.model.nv), 0.5, device=device))
        engine.write("xfrc_applied", torch.full((n, s.model.nbody, 6), 0.1, device=device))
        for _ in range(4):
            engine.step(3, target)
        if resets:
            engine.reset(mask)
            engine.forward(mask)
        return engine

    used, untouched, fresh = run(True), run(False), build(s, n, engine_name, device, deterministic=True)
    assert torch.equal(used.field("qpos")[mask], fresh.field("qpos")[mask])
    for _ in range(3):
        for engine in (used, untouched, fresh):
            engine.step(3, target * 0.7)
    for f in ("qpos", "qvel", "time", "qacc_warmstart", "ctrl", "xpos", "sensordata", "xfrc_applied"):
        assert torch.equal(used.field(f)[mask], fresh.field(f)[mask]), f
        assert torch.equal(used.field(f)[~mask], untouched.field(f)[~mask]), f


@pytest.mark.parametrize("device", DEVICES)
def test_state_dict_continues_bit_for_bit(engine_name, device):
    """In a new engine, with delays and randomized models, through torch.save's tensors alone."""
    if engine_name == "mujoco" and device != "cpu":
        pytest.skip("a CPU engine")
    s = scene(actuators={k: v | {"delay": 2} for k, v in EXPLICIT.items()})
    qpos, qvel, target = states(s.model, 5)
    target = (0.1 * target).to(device)
    make = lambda: build(s, 5, engine_name, device, ["body_mass", "geom_friction"], deterministic=True)  # noqa: E731
    first, second = make(), make()
    put(first, qpos, qvel)
    first.model_field("body_mass").mul_(torch.linspace(0.8, 1.3, 5, device=device)[:, None])
    first.set_const()
    for _ in range(5):
        first.step(3, target)
    saved = first.state_dict()
    assert all(isinstance(v, torch.Tensor) for v in saved.values())
    second.step(7, -target)  # a past of its own
    second.load_state_dict(saved)
    for f in ("qpos", "xpos", "cvel"):
        assert torch.equal(first.field(f), second.field(f)), f
    for _ in range(5):
        first.step(3, 0.5 * target)
        second.step(3, 0.5 * target)
    for f in ("qpos", "qvel", "xpos", "qacc", "sensordata", "time"):
        assert torch.equal(first.field(f), second.field(f)), f


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("poison", ["nan", "huge"])
def test_a_world_that_fails_is_restored_and_spreads_nothing(engine_name, device, poison, tmp_path, monkeypatch, capfd):
    if engine_name == "mujoco" and device != "cpu":
        pytest.skip("a CPU engine")
    monkeypatch.chdir(tmp_path)
    s = scene()
    qpos, qvel, target = states(s.model, 6)
    target = target.to(device)
    runs = []
    for broken in (False, True):
        engine = build(s, 6, engine_name, device, deterministic=True)
        put(engine, qpos, qvel)
        engine.step(2, target)
        if broken:
            bad = host(engine.field("qvel"))
            bad[2, 7] = {"nan": np.nan, "huge": 1e18}[poison]
            engine.write("qvel", torch.tensor(bad, device=device))
        engine.step(4, target)
        runs.append(engine)
    clean, hurt = runs
    others = torch.tensor([True, True, False, True, True, True], device=device)
    assert hurt.nonfinite.tolist() == [False, False, True, False, False, False] and not clean.nonfinite.any()
    fresh = build(s, 6, engine_name, device)
    for f in ("qpos", "qvel", "time", "xpos", "ctrl", "qacc_warmstart"):
        assert torch.equal(hurt.field(f)[2], fresh.field(f)[2]), f
        assert torch.equal(hurt.field(f)[others], clean.field(f)[others]), f
    hurt.step(1, target)
    assert not hurt.nonfinite.any() and hurt.field("qpos").isfinite().all()
    assert not os.listdir(tmp_path), "a log file in the working directory"
    assert "unstable" not in capfd.readouterr().err


def test_nan_targets_are_caught(engine_name):
    engine = build(scene(), 3, engine_name)
    target = torch.zeros(3, 5)
    target[1] = torch.nan
    engine.step(2, target)
    assert engine.nonfinite.tolist() == [False, True, False] and engine.field("qvel").isfinite().all()


def stand(engine, worlds):
    """The first `worlds` worlds on four feet, half a centimetre in the floor; the others in the air."""
    qpos = torch.tensor(engine.model.qpos0).repeat(engine.num_envs, 1)
    qpos[:worlds, 2], qpos[worlds:, 2] = 0.425, 1.0
    put(engine, qpos, torch.zeros(engine.num_envs, engine.model.nv))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "engine, room", [("mjwarp", {"njmax": 2}), ("mjwarp", {"nconmax": 1}), ("warp", {"nconmax": 2})]
)
def test_overflow_is_counted(device, engine, room, capfd):
    """Four feet on the floor where there is room for less: counted once a step, without a line of output."""
    engine = build(scene(), 4, engine, device, **room)
    target = torch.zeros(4, 5, device=device)
    stand(engine, 0)
    engine.step(2, target)
    assert engine.overflow.tolist() == [0, 0, 0, 0]
    stand(engine, 4)
    for _ in range(3):
        engine.step(2, target)
    counts = engine.overflow.tolist()
    shared = engine.name == "mjwarp" and "nconmax" in room  # one room for the contacts of all worlds
    assert max(counts) == 3 and (counts == [3] * 4 or shared), counts
    assert "overflow" not in capfd.readouterr().out


def test_contacts_are_counted(engine_name):
    engine = build(scene(), 6, engine_name)
    ncon = engine.field("ncon")
    stand(engine, 2)
    engine.step(1, torch.zeros(6, 5))
    assert ncon.tolist() == [4, 4, 0, 0, 0, 0]


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("name", ["mjwarp", "warp"])
def test_a_step_joins_a_callers_graph(name):
    """A captured step, reset and forward equal the same calls made one by one."""
    s = scene(actuators=EXPLICIT)
    qpos, qvel, target = states(s.model, 16)
    target, mask = (0.1 * target).cuda(), (torch.arange(16) % 3 == 0).cuda()
    engines = [build(s, 16, name, "cuda", ["body_mass"], deterministic=True) for _ in range(2)]

    def work(engine):
        engine.model_field("body_mass").mul_(1.1)
        if name == "warp":
            engine.set_const()
        engine.step(2, target)
        engine.reset(mask)
        engine.write("qvel", torch.full_like(engine.field("qvel"), 0.1), mask)
        engine.forward(mask)

    for engine in engines:
        put(engine, qpos, qvel)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work(engines[1])
    for _ in range(3):
        work(engines[0])
        graph.replay()
    for f in ("qpos", "qvel", "xpos", "time", "sensordata"):
        assert torch.equal(engines[0].field(f), engines[1].field(f)), f


# --- scene and choice of engine --------------------------------------------------------------------------------------


def test_scene_adds_what_is_missing_only():
    hopper, cart = scene().model, scene("cartpole.xml", CART).model
    assert hopper.geom("ground").type == mujoco.mjtGeom.mjGEOM_PLANE and hopper.nlight == 1
    assert hopper.opt.timestep == 0.005
    assert sum(cart.geom_type == mujoco.mjtGeom.mjGEOM_PLANE) == 1
    assert cart.actuator("slider").ctrlrange.tolist() == [-10, 10]


def test_actuators_stand_in_joint_order_with_their_gains():
    model = scene(actuators=SERVO).model
    assert [model.actuator(i).name for i in range(model.nu)] == ["hip1", "knee1", "hip2", "hip3", "hip4"]
    assert model.actuator("hip2").gainprm[0] == 60 and model.actuator("hip2").biasprm[:3].tolist() == [0, -60, -1.5]
    assert model.actuator("hip2").forcerange.tolist() == [-25, 25] and not model.actuator_ctrllimited[0]
    assert model.actuator("knee1").gainprm[0] == 2 and model.actuator("knee1").biasprm[:3].tolist() == [0, 0, -2]
    armature = scene(actuators={"legs": {"joints": [".*"], "armature": 0.05}}).model.dof_armature
    assert armature[6:].tolist() == [0.05] * 5


OWN = """<mujoco><default><motor gear="3" ctrlrange="-2 2"/></default><worldbody><body><joint name="j" axis="0 1 0"/>
<geom name="g" size=".1"/></body></worldbody><actuator><motor name="own" joint="j"/></actuator>
<keyframe><key name="k" ctrl="0.5"/></keyframe></mujoco>"""


def test_a_models_own_actuators_stay_unless_the_asset_names_some(tmp_path):
    path = tmp_path / "own.xml"
    path.write_text(OWN)
    own = scene(str(path), {})
    assert own.model.nu == 1 and own.model.actuator("own").gear[0] == 3 and own.actuation.is_direct
    mine = scene(str(path), {"a": {"joints": ["j"], "law": "position", "kp": 5}}).model
    assert mine.nu == 1 and mine.actuator("j").gear[0] == 1 and not mine.actuator_ctrllimited[0]


def test_urdf_loads(tmp_path):
    path = tmp_path / "arm.urdf"
    inertial = '<inertial><mass value="1"/><inertia ixx=".1" iyy=".1" izz=".1" ixy="0" ixz="0" iyz="0"/></inertial>'
    path.write_text(f"""<robot name="arm"><link name="a">{inertial}</link><link name="b">{inertial}</link>
        <joint name="elbow" type="revolute"><parent link="a"/><child link="b"/><axis xyz="0 1 0"/>
        <limit lower="-1" upper="1" effort="9" velocity="9"/></joint></robot>""")
    model = scene(str(path), {"all": {"joints": ["elbow"], "law": "pd", "kp": 3}}).model
    assert model.joint("elbow").range.tolist() == [-1, 1] and model.nu == 1


BAD_ACTUATORS = {
    "asset.actuators.a.joints: 'hip7'": {"a": {"joints": ["hip7"]}},
    "hip1": {"a": {"joints": ["hip7"]}},
    "asset.actuators.b.joints: joint 'hip2' is already in asset.actuators.a": {
        "a": {"joints": ["hip.*"]},
        "b": {"joints": ["hip2"]},
    },
    "did you mean position": {"a": {"law": "positoin"}},
    "asset.actuators.a.kq: law 'pd'": {"a": {"law": "pd", "kp": 1, "kq": 2}},
    "asset.actuators.a: must be a group": {"a": 3},
    "asset.actuators.a.joints: 3 is not a joint name": {"a": {"joints": 3}},
    "asset.actuators.a.kp: law 'pd' needs it": {"a": {"law": "pd"}},
    "asset.actuators.a.kd: got -1": {"a": {"law": "pd", "kp": 1, "kd": -1}},
    "asset.actuators.a.delay: got 1.5": {"a": {"delay": 1.5}},
    "asset.actuators.a.kp: got 'stiff'": {"a": {"law": "pd", "kp": "stiff"}},
    "asset.actuators.a.velocity_limit: law 'pd' needs it": {"a": {"law": "pd", "kp": 1, "saturation_effort": 3}},
    "not a regular expression": {"a": {"joints": ["hip("]}},
}


@pytest.mark.parametrize("message", BAD_ACTUATORS)
def test_bad_actuators_are_one_line(message):
    with pytest.raises(UserError) as e:
        scene(actuators=BAD_ACTUATORS[message])
    assert message in str(e.value) and "\n" not in str(e.value)


def test_bad_models_are_one_line(tmp_path):
    broken, massless = tmp_path / "broken.xml", tmp_path / "massless.xml"
    broken.write_text("<mujoco>\n<worldbody>\n<body></mujoco>")
    massless.write_text("<mujoco><worldbody><body><freejoint/></body></worldbody></mujoco>")
    bad = {str(broken): "broken.xml", str(massless): "mass", "cartpool.xml": "did you mean cartpole.xml"}
    for path, said in bad.items():
        with pytest.raises(UserError) as e:
            scene(path, {})
        assert said in str(e.value) and "asset.path" in str(e.value) and "\n" not in str(e.value)


def test_names_match_in_full_and_in_order():
    names = ["hip1", "knee1", "hip2", "hip10"]
    assert match(["knee.", "hip."], names, "k") == [0, 1, 2]
    with pytest.raises(UserError, match=r"task.x: 'hop1' matches nothing; did you mean hip1\?; there are: hip1, "):
        match(["hop1"], names, "task.x")


def test_choice_of_engine():
    s = scene()
    auto = sim.build(s.spec, 1, "cpu", SimConfig(), s.actuation)
    assert auto.name == "mujoco" and "fastest" in auto.reason
    with pytest.raises(UserError, match="'gpu' is no device"):
        build(s, 1, "auto", "gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device=cpu"):
            build(s, 1, "mjwarp", "cuda")
    else:
        with pytest.raises(UserError, match="sim.engine"):
            build(s, 1, "mujoco", "cuda")


def test_on_a_gpu_auto_is_warp_and_says_why_not():
    """What the run prints beside the engine's name."""
    model = scene().model
    assert sim._fastest(model, "cuda:0", ["body_mass"]) == ("warp", "the fastest on a GPU")
    assert sim._fastest(model, "cpu", []) == ("mujoco", "the fastest on a CPU")
    model.opt.density = 1000.0
    said = "engine warp does not cover fluid forces and randomized field 'geom_size'; using mjwarp"
    assert sim._fastest(model, "cuda:0", ["geom_size"]) == ("mjwarp", said)
    with pytest.raises(UserError, match=r"does not cover fluid forces; use sim\.engine=mujoco$"):
        sim.build(model, 1, "cpu", SimConfig(engine="warp"), Actuation.direct(model.nu))


def test_actuation_entries_are_their_own():
    """Arrays of Actuation.direct share no memory: a delay is no law."""
    a = Actuation.direct(3)
    a.delay[0], a.effort_limit[1] = 2, 5.0
    assert a.law.tolist() == [0, 0, 0] and np.isinf(a.velocity_limit).all() and not a.is_direct
    with pytest.raises(ValueError, match="kp"):
        Actuation(**{**vars(a), "kp": np.zeros(2)}).validate(3)


def test_mjwarp_refuses_what_it_would_get_wrong():
    xml = OWN.replace("<worldbody>", "<option><flag sleep='enable'/></option><worldbody>")
    with pytest.raises(UserError, match=r"use sim\.engine=mujoco"):
        sim.build(mujoco.MjModel.from_xml_string(xml), 1, "cpu", SimConfig(engine="mjwarp"), Actuation.direct(1))
