"""What holds for every engine: worlds are alike, know nothing of each other, and survive bad input."""

import engines
import mujoco
import numpy as np
import pytest
import torch
from engines import ENGINES, host, make, put

from isaacrl.sim.engine import PD, Actuation

WALKER = """<mujoco><option timestep="0.004"/><worldbody><geom type="plane" size="0 0 1"/>
<body pos="0 0 .35"><freejoint/><geom type="capsule" size=".08 .1" euler="0 90 0" mass="2"/>
  <body pos=".15 0 0"><joint name="a" axis="0 1 0" range="-40 40" limited="true" frictionloss=".1" armature=".01"/>
    <geom type="capsule" size=".04" fromto="0 0 0 0 .02 -.25" mass=".3"/></body>
  <body pos="-.15 0 0"><joint name="b" axis="0 1 0" damping=".2" stiffness="1"/>
    <geom type="capsule" size=".04" fromto="0 0 0 0 -.02 -.25" mass=".3" condim="4"/></body></body>
</worldbody><actuator><motor joint="a" ctrlrange="-5 5"/><motor joint="b" gear="2"/></actuator></mujoco>"""
PILE = """<mujoco><option timestep="0.004"/><worldbody><geom type="plane" size="0 0 1"/>
<body pos="0 0 .5"><freejoint/><geom size=".1"/></body><body pos=".3 0 .5"><freejoint/><geom size=".1"/></body>
<body pos="0 .5 .5"><freejoint/><geom type="capsule" size=".1 .1" condim="6"/></body></worldbody></mujoco>"""
OUTPUTS = ("qpos", "qvel", "qacc_warmstart", "ctrl", "time", "xpos", "cvel", "qacc", "ncon")
N = 6
every_engine = pytest.mark.parametrize("which", ENGINES)


def mixed_actuation():
    """Joint a by the explicit PD law, two physics steps late; joint b's motor directly."""
    actuation = Actuation.direct(2)
    actuation.law[0], actuation.kp[0], actuation.kd[0], actuation.effort_limit[0] = PD, 20.0, 0.5, 4.0
    actuation.delay[0], actuation.qpos_adr[:], actuation.qvel_adr[:] = 2, [7, 8], [6, 7]
    return actuation


def walker(which, n=N, randomized=(), **config):
    return make(WALKER, n, which, randomized, mixed_actuation(), **config)


def states(n=N, seed=0):
    """Positions, velocities and targets of walkers, float32: near the floor, some joints beyond their limits."""
    rng = np.random.default_rng(seed)
    qpos = np.concatenate([rng.uniform(-0.1, 0.1, (n, 7)), rng.uniform(-0.9, 0.9, (n, 2))], axis=1)
    qpos[:, 2] += 0.25
    qpos[:, 3] += 1.0
    qpos[:, 3:7] /= np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True)
    return (x.astype(np.float32) for x in (qpos, rng.normal(size=(n, 8)), rng.uniform(-1, 1, (n, 2))))


def roll(engine, qpos, qvel, target, chunks=(4, 4), forward=True):
    """Everything that is to be equal, from a start, after len(chunks) calls of step."""
    for f in OUTPUTS:
        engine.field(f)
    put(engine, forward, qpos=qpos, qvel=qvel)
    target = torch.as_tensor(target, device=engine.device)
    for n in chunks:
        engine.step(n, target)
    return {f: host(engine.field(f)) for f in OUTPUTS} | {
        "overflow": host(engine.overflow),
        "nonfinite": host(engine.nonfinite),
    }


def assert_same(ours, theirs, worlds=slice(None), tolerance=0.0):
    for f in theirs:
        np.testing.assert_allclose(ours[f][worlds], theirs[f][worlds], rtol=tolerance, atol=tolerance, err_msg=f)


# --- worlds are alike, and alone -------------------------------------------------------------------------------------


@every_engine
def test_twice_is_the_same_and_so_is_any_order_of_worlds(which):
    qpos, qvel, target = states()
    first = roll(walker(which), qpos, qvel, target)
    assert (first["ncon"] > 0).sum() >= 2 and not first["nonfinite"].any()
    assert_same(roll(walker(which), qpos, qvel, target), first)
    order = np.random.default_rng(1).permutation(N)
    shuffled = roll(walker(which), qpos[order], qvel[order], target[order])
    assert_same(shuffled, {f: x[order] for f, x in first.items()})


@every_engine
def test_steps_in_one_call_equal_as_many_calls(which):
    """The law, its delay and the solver's warm start included."""
    qpos, qvel, target = states()
    together = roll(walker(which), qpos, qvel, target, (7,))
    assert_same(roll(walker(which), qpos, qvel, target, (1,) * 7), together)
    assert_same(roll(walker(which), qpos, qvel, target, (3, 4)), together)


@pytest.mark.parametrize(
    ("device", "n"), [("cpu", 300), pytest.param("cuda", 6000, marks=[pytest.mark.gpu, engines.NO_GPU])]
)
def test_a_launch_in_rounds_is_the_launch(device, n):
    """Worlds change multiprocessors after each physics step; two of them fail, and all have too little room."""
    qpos, qvel, target = states(n)
    qvel[0, 0], target[1, 0] = 1e20, np.nan
    target[n // 2 :: 7] = 1.0
    found = []
    for in_rounds in (False, True):
        e = walker(("warp", device), n, nconmax=2)
        e._in_rounds = in_rounds
        found.append(roll(e, qpos, qvel, target, (4, 1, 7, 3, 2)))
        assert not e._progress.any()
    assert_same(*found)
    assert found[0]["nonfinite"][1] and found[0]["overflow"].any() and (found[0]["ncon"] > 0).sum() >= 2


@every_engine
def test_a_world_alone_is_the_same_as_among_others(which):
    qpos, qvel, target = states()
    among = roll(walker(which), qpos, qvel, target)
    for i in (0, N - 1):
        alone = roll(walker(which, 1), qpos[i : i + 1], qvel[i : i + 1], target[i : i + 1])
        assert_same(alone, {f: x[i : i + 1] for f, x in among.items()})


MODEL_FIELDS = [
    "body_mass",
    "body_inertia",
    "body_ipos",
    "dof_damping",
    "dof_armature",
    "dof_frictionloss",
    "geom_friction",
    "actuator_gainprm",
    "opt.gravity",
]


@every_engine
@pytest.mark.parametrize("constants", [False, True])
def test_the_models_own_values_a_world_change_nothing(which, constants):
    """Written as they are, bit for bit; with the constants that derive from them computed anew (set_const), in float32
    where the compiler had float64, up to rounding."""
    qpos, qvel, target = states()
    shared = roll(walker(which), qpos, qvel, target)
    engine = walker(which, N, MODEL_FIELDS)
    for name in MODEL_FIELDS:
        owner, field = (engine.model.opt, name[4:]) if name.startswith("opt.") else (engine.model, name)
        values = engine.model_field(name)
        values.copy_(torch.as_tensor(getattr(owner, field)).to(values).expand_as(values))
    if constants:
        engine.set_const()
    assert_same(roll(engine, qpos, qvel, target), shared, tolerance=5e-3 if constants and which[0] != "mujoco" else 0.0)


# --- bad input -------------------------------------------------------------------------------------------------------

BAD = {
    "nan position": ("qpos", 1, np.nan),
    "infinite height": ("qpos", 2, np.inf),
    "nan quaternion": ("qpos", 4, np.nan),
    "nan joint": ("qpos", 8, np.nan),
    "nan velocity": ("qvel", 0, np.nan),
    "infinite spin": ("qvel", 4, -np.inf),
    "nan joint velocity": ("qvel", 6, np.nan),
    "nan target of the law": ("target", 0, np.nan),
    "nan target of a motor": ("target", 1, np.nan),
    "velocity 1e4": ("qvel", 2, -1e4),
    "velocity 1e9": ("qvel", 2, -1e9),
    "velocity 1e20": ("qvel", 0, 1e20),
    "velocity 3e38": ("qvel", 6, 3e38),
    "spin 1e6": ("qvel", 5, 1e6),
    "deep in the floor": ("qpos", 2, -1e3),
    "far away": ("qpos", 0, 1e9),
    "joint far beyond its limit": ("qpos", 7, 1e4),
}
MUST_FAIL = [k for k in BAD if k.startswith(("nan", "infinite", "velocity 1e20", "velocity 3e38"))]


@every_engine
def test_bad_worlds_are_counted_and_the_others_never_notice(which):
    """One world of each kind among good ones: it is reported and back at the default state, or its state is finite;
    worlds of good input equal, bit for bit, those of a run without the bad ones."""
    n = 2 * len(BAD)
    qpos, qvel, target = states(n)
    good = np.arange(n) % 2 == 1
    expected = roll(walker(which, n), qpos, qvel, target, (4,), forward=False)
    given = {"qpos": qpos.copy(), "qvel": qvel.copy(), "target": target.copy()}
    for i, (field, column, value) in enumerate(BAD.values()):
        given[field][2 * i, column] = value
    engine = walker(which, n)
    found = roll(engine, **given, chunks=(4,), forward=False)
    assert_same(found, expected, good)
    failed = {name: bool(found["nonfinite"][2 * i]) for i, name in enumerate(BAD)}
    missed = [name for name in MUST_FAIL if not failed[name]]
    if which[0] == "mjwarp":  # it makes a unit quaternion of anything
        missed = [name for name in missed if name != "nan quaternion"]
    assert not missed
    assert np.isfinite(found["qpos"]).all() and np.isfinite(found["qvel"]).all() and np.isfinite(found["xpos"]).all()
    back = np.flatnonzero(found["nonfinite"])
    np.testing.assert_allclose(found["qpos"][back], np.tile(engine.model.qpos0, (len(back), 1)), atol=1e-6)
    np.testing.assert_array_equal(found["qvel"][back], 0.0)


@every_engine
@pytest.mark.parametrize("name", ["nan joint", "nan velocity", "nan target of a motor", "velocity 1e20"])
def test_a_world_that_failed_goes_on_from_the_default_state(which, name):
    """As a new one does, bit for bit."""
    qpos, qvel, target = states(2)
    given = {"qpos": qpos.copy(), "qvel": qvel.copy(), "target": target.copy()}
    field, column, value = BAD[name]
    given[field][0, column] = value
    engine, new = walker(which, 2), walker(which, 2)
    assert roll(engine, **given, chunks=(1,), forward=False)["nonfinite"].tolist() == [1, 0]
    for e in (engine, new):
        for _ in range(3):
            e.step(1, torch.as_tensor(target, device=e.device))
            assert not e.nonfinite.any()
    for f in ("qpos", "qvel"):
        np.testing.assert_array_equal(host(engine.field(f))[0], host(new.field(f))[0], err_msg=f)


@every_engine
def test_quaternions_of_any_length_are_normalized(which):
    """A zero quaternion is no turn, as in C MuJoCo (mjwarp: some turn); others count by their direction."""
    qpos, qvel, target = states()
    scaled = qpos.copy()
    scaled[0, 3:7] = 0.0
    scaled[1:, 3:7] *= np.array([1e-3, 0.5, 2.0, 4.0, 1e3])[:, None]
    qpos[0, 3:7] = [1, 0, 0, 0]
    found, expected = (roll(walker(which), q, qvel, target, (2,)) for q in (scaled, qpos))
    assert not found["nonfinite"].any()
    worlds = slice(1 if which[0] == "mjwarp" else 0, N)
    assert_same(found, {f: expected[f] for f in ("qpos", "qvel", "xpos")}, worlds, tolerance=1e-4)


@every_engine
def test_bodies_all_in_one_place(which):
    """Centres that coincide leave the direction of contact open: finite or reported, in the worlds concerned alone."""
    engine = make(PILE, 4, which)
    qpos = np.tile(engine.model.qpos0, (4, 1))
    spread = qpos.copy()
    qpos[1].reshape(3, 7)[:, :3] = [0, 0, 0.5]  # all in one place
    qpos[2].reshape(3, 7)[:, :3] = [0, 0, 0.0]  # all half in the floor
    qpos[3].reshape(3, 7)[:2, :3] = [0, 0, 0.05]  # two, a little in the floor
    qvel, target = np.zeros((4, 18)), np.zeros((4, 0), np.float32)
    found = roll(engine, qpos, qvel, target, (1,) * 10)
    assert found["ncon"].shape == (4,)
    assert np.isfinite(found["qpos"]).all() and np.isfinite(found["qvel"]).all()
    expected = roll(make(PILE, 4, which), spread, qvel, target, (1,) * 10)
    assert_same(found, expected, slice(0, 1))


@every_engine
@pytest.mark.parametrize("mass", [0.0, -1.0, np.nan, 1e-30, 1e30])
def test_impossible_masses_stay_in_their_world(which, mass):
    """A body's mass and inertia in one of the worlds: finite or reported, and nothing to the others."""
    qpos, qvel, target = states()
    expected = roll(walker(which, N, ["body_mass", "body_inertia"]), qpos, qvel, target)
    engine = walker(which, N, ["body_mass", "body_inertia"])
    engine.model_field("body_mass")[2, 2] = mass
    engine.model_field("body_inertia")[2, 2] = mass
    found = roll(engine, qpos, qvel, target)
    assert_same(found, expected, np.arange(N) != 2)
    assert np.isfinite(found["qpos"]).all() and np.isfinite(found["qvel"]).all()


@every_engine
@pytest.mark.parametrize("room", [{"nconmax": 1}, {"njmax": 2}, {"nconmax": 1, "njmax": 1}])
def test_overflow_is_counted_where_it_happens(which, room):
    """More contacts or rows than there is room for: counted, the state finite. With `warp` each world has its own room,
    so that the others, in the air, equal those of a run without the crowded ones."""
    if which[0] == "mujoco" or which[0] == "warp" and "nconmax" not in room:
        pytest.skip("has no such limit")
    qpos, qvel, target = states(4)
    qpos[:, 2], qpos[:, 3:7], qpos[:, 7:], qvel[:] = 3.0, [1, 0, 0, 0], 0.0, 0.0
    apart = roll(walker(which, 4, **room), qpos, qvel, 0 * target)
    assert not apart["overflow"].any() and not apart["nonfinite"].any()
    qpos[:2, 2] = 0.05  # hull and feet in the floor
    found = roll(walker(which, 4, **room), qpos, qvel, 0 * target)
    assert np.isfinite(found["qpos"]).all() and found["overflow"].max() > 0
    if which[0] == "warp":
        assert (found["overflow"][:2] > 0).all() and not found["overflow"][2:].any()
        assert_same(found, apart, slice(2, 4))


def test_the_walker_meets_what_it_is_for():
    """Contacts, limits and friction loss occur among the states used here."""
    model, kinds = mujoco.MjModel.from_xml_string(WALKER), set()
    qpos, qvel, _ = states()
    for q, v in zip(qpos, qvel):
        data = mujoco.MjData(model)
        data.qpos, data.qvel = q, v
        mujoco.mj_forward(model, data)
        kinds |= {int(t) for t in data.efc_type[: data.nefc]}
    c = mujoco.mjtConstraint
    assert {int(c.mjCNSTR_FRICTION_DOF), int(c.mjCNSTR_LIMIT_JOINT), int(c.mjCNSTR_CONTACT_PYRAMIDAL)} <= kinds
