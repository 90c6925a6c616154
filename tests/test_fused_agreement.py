"""One step of the fused kernel of engine `warp` beside C MuJoCo's mj_step, compiled for the CPU.

In float64 the two differ by roundoff only, in every field of the state, of the forces and of what derives from them;
in float32 by what roundoff becomes in solving for the forces. Models: the bundled robots, small ones for what robots
lack (fused_models.py), and those that other packages ship. ISAACRL_FULL_TESTS=1 takes all models, 2000 states of each
and all mutations.
"""

import copy
import importlib.resources
import os

import fused_kernel as fused
import numpy as np
import pytest
import robot_states
import test_fused_sensors as sensors
from fused_models import FILES, SMALL, shipped, small
from fused_mutations import LANES, MUTATIONS, SENSORS

from isaacrl.sim.engine import Actuation
from isaacrl.sim.fused import tables
from isaacrl.sim.warp_engine import FAST_CONTACTS

FULL = bool(os.environ.get("ISAACRL_FULL_TESTS"))
WORLDS = 2000 if FULL else 60
EXACT = 1e-9  # of every field, in float64; measured: 5e-12 and, of qfrc_constraint of light limbs, 1e-11
FLOAT32 = (1e-5, 1e-3)  # of qacc: median and 99th percentile; measured: 8e-6 and 3e-4
LONG = 3e-5  # the median of robots with 64 degrees of freedom; measured: 1.5e-5
FEW = [
    "shapes, pyramidal",
    "terrain, pyramidal",
    "boxes, pyramidal",
    "scene, elliptic impratio 5",
    "joints",
    "actuators",
]
# How deep geoms are in others at most [m]. For the axis of a capsule, or the centre of a sphere, C MuJoCo finds the way
# out of a prism to 1e-6 m only: in `terrain` there are such deeper than 0.03 m.
DEPTHS = {"shapes": 0.12, "boxes": 0.04, "terrain": 0.025}
NAMES = [*robot_states.ASSETS, *(SMALL if FULL else FEW), *(FILES if FULL else ())]


def case(name, n, seed=0):
    """(model, actuation, states) of a bundled robot, a small model or a shipped one."""
    if name in robot_states.ASSETS:
        s = robot_states.scene(name)
        model, law = s.model, s.actuation
        drawn = robot_states.random_states(model, law, n, seed)
        state = {k: v.numpy() for k, v in zip(("qpos", "qvel", "target"), drawn)}
        state["qpos"][::2] = fused.states(model, n, seed)["qpos"][::2]  # with more contacts
    else:
        model, law = small(name) if name in SMALL else (shipped(name), None)
        if model is None:
            pytest.skip("not covered")
        law = law or Actuation.direct(model.nu)
        state = fused.states(model, n, seed, depth=DEPTHS.get(name.split(",")[0], 0.06))
    state = fused.with_applied_forces(model, state, seed)
    # As float32 has them, so that contacts are the same.
    return model, law, {k: v.astype(np.float32).astype(float) for k, v in state.items()}


def worst(found):
    """The largest errors, by field."""
    return ", ".join(f"{name} {e.max():.0e}" for name, e in sorted(found.items(), key=lambda x: -x[1].max())[:4])


def assert_exact(ours, theirs, text=""):
    found = fused.errors(ours, theirs)
    assert fused.miscounted(ours, theirs) == 0, text
    assert max(e.max() for e in found.values()) < EXACT, f"{text} {worst(found)}"
    # With a wrong Hessian the solver arrives as well, but late.
    assert np.quantile(ours["niter"], 0.8) <= 15, f"{text} {ours['niter']}"


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_that_of_mj_step(name):
    model, law, state = case(name, WORLDS)
    theirs = fused.reference(model, law, state)
    text = fused.histogram(name, theirs)
    assert theirs["stuck"].sum() <= WORLDS // 100, text
    ours = fused.run(model, law, state)
    print(text + "\n  float64: " + worst(fused.errors(ours, theirs)))
    assert_exact(ours, theirs, text)
    ours = fused.run(model, law, state, double=False)
    error = fused.errors(ours, theirs)["qacc"]
    median, most = np.median(error), np.quantile(error, 0.99)
    print(f"  float32: qacc {median:.0e}, 99% {most:.0e}, most {error.max():.0e}")
    assert np.quantile(ours["niter"], 0.99) <= 30, (text, np.bincount(ours["niter"]))
    assert median < (LONG if "big" in name else FLOAT32[0]) and most < FLOAT32[1], (text, median, most)
    # A distance within roundoff of 0 or of the margin is rare.
    assert fused.miscounted(ours, theirs) <= WORLDS // 1000, text
    if name in (*robot_states.ASSETS, *FEW) and name not in ("cartpole", "actuators"):
        assert fused.share(theirs) >= (0.45 if FULL else 0.35), text


LANED = ["scene, pyramidal", "scene, elliptic", "big, 33", "big, 64", "big, elliptic", "franka", "go2", "humanoid"]


@pytest.mark.parametrize("name", LANED if FULL else LANED[:1])
def test_any_number_of_lanes_gives_the_same(name):
    """The lanes decide which rows of the Hessian are in registers and which in scratch memory."""
    model, law, state = case(name, WORLDS if name == "franka" else 60)
    theirs = fused.reference(model, law, state)
    for lanes in (1, 4, 8, 16, 32) if FULL else (16,):
        assert_exact(fused.run(model, law, state, lanes=lanes), theirs, f"{lanes} lanes")
        single = fused.run(model, law, state, lanes=lanes, double=False)
        error = fused.errors(single, theirs)["qacc"]
        assert np.median(error) < LONG and np.quantile(error, 0.99) < FLOAT32[1], f"{lanes} lanes"


@pytest.mark.parametrize("contacts", [0, 1, 5, 40] if FULL else [0])
def test_rows_of_contacts_may_be_in_or_outside_scratch_memory(contacts):
    model, law, state = case("scene, pyramidal", 60)
    theirs = fused.reference(model, law, state)
    assert theirs["ncon"].max() > FAST_CONTACTS + 5
    assert_exact(fused.run(model, law, state, fast_contacts=contacts), theirs)


@pytest.mark.parametrize("name", [*SMALL, *robot_states.ASSETS] if FULL else ["joints"])
def test_the_order_of_items_does_not_matter(name):
    """Backwards, sums over items differ in roundoff only: no block reads what another item of it writes."""
    model, law, state = case(name, 100)
    there, back = (fused.run(model, law, state, backwards=x) for x in (False, True))
    assert_exact(back, there)


@pytest.mark.parametrize("name", [*SMALL, *robot_states.ASSETS] if FULL else ["scene, elliptic"])
@pytest.mark.parametrize("double", [True, False] if FULL else [False])
def test_nothing_is_read_before_it_is_written(name, double):
    """Scratch memory full of NaN at the start, padding of rows included."""
    model, law, state = case(name, 60)
    fill = "for (int k = 0; k < (int)(sizeof(S) / sizeof(int)); k++) ((int*)&S)[k] = -1;"
    edit = (_START, f"{_START}  {fill}\n")
    clean, filled = (fused.run(model, law, state, double=double, edit=x) for x in (None, edit))
    for k, v in clean.items():
        np.testing.assert_array_equal(filled[k], v, err_msg=k)


_START = "FN void load_state(const World& w, Scratch& S, int round) {\n"


# --- what differs between worlds -------------------------------------------------------------------------------------


def own_values(model, law, n, seed=0):
    """Every field that may have one value a world, each drawn about the model's own."""
    rng, out = np.random.default_rng(seed), {}
    for name in tables.PER_WORLD:
        if name == "opt.gravity":
            out[name] = model.opt.gravity + rng.normal(size=(n, 3))
            continue
        if name.startswith("actuation."):
            if model.nu and name != "actuation.delay":
                value = getattr(law, name.removeprefix("actuation."))
                out[name] = value * rng.uniform(0.7, 1.3, (n, model.nu))
            continue
        value = np.array(getattr(model, name))
        shift = rng.uniform(-0.02, 0.02, (n, *value.shape))
        if name in ("body_inertia", "body_iquat", "body_quat", "qpos0", "qpos_spring", "body_pos", "body_ipos"):
            values = value + (0 if name == "body_inertia" else shift)
            if name == "body_inertia":
                values = value * rng.uniform(0.7, 1.3, (n, model.nbody, 1))
            elif name.endswith("quat"):
                values /= np.linalg.norm(values, axis=-1, keepdims=True)
            # The world has no pose, and bodies whose inertia MuJoCo knows to be diagonal keep it so.
            fixed = model.body_simple > 0 if name in ("body_ipos", "body_iquat") else np.arange(model.nbody) == 0
            if name.startswith("body_"):
                values[:, fixed] = value[fixed]
        else:
            values = value * rng.uniform(0.7, 1.3, (n, *value.shape))
        if values.size:
            out[name] = values
    return out


@pytest.mark.parametrize("name", ["joints", "actuators", "shapes, elliptic"] if FULL else ["joints", "actuators"])
def test_worlds_with_models_of_their_own(name):
    model, law, state = case(name, 100)
    own = own_values(model, law, 100)
    assert {"qpos0", "geom_friction", "jnt_range"} < set(own)
    theirs = fused.reference(model, law, state, own)
    assert_exact(fused.run(model, law, state, own=own), theirs)


def test_every_world_may_have_its_own_qpos0_alone():
    model, law, state = case("joints", 100)
    own = {"qpos0": own_values(model, law, 100)["qpos0"]}
    assert_exact(fused.run(model, law, state, own=own), fused.reference(model, law, state, own))


# --- several steps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scene, pyramidal", "actuators"] if FULL else ["actuators"])
def test_several_steps_are_single_steps_one_after_the_other(name):
    model, law, state = case(name, 50)
    ours, one = fused.run(model, law, state, steps=3), {}
    for _ in range(3):
        one = fused.run(model, law, state)
        state |= {k: one[k] for k in ("qpos", "qvel", "warm")}
    for k in ("qpos", "qvel", "warm", "qacc", "ncon", "nefc", "xpos", "cvel"):
        np.testing.assert_array_equal(ours[k], one[k], err_msg=k)
    np.testing.assert_allclose(ours["time"], 3 * model.opt.timestep)


@pytest.mark.parametrize("fresh", [False, True])
def test_targets_of_some_steps_ago(fresh):
    """The delay line: newest first, filled by the first target."""
    model, law, state = case("actuators", 60)
    rng, depth = np.random.default_rng(0), 4
    age = rng.integers(0, depth, (60, model.nu))
    line = rng.normal(size=(depth, 60, model.nu)).astype(np.float32).astype(float)
    after = np.concatenate([state["target"][None], line[:-1]])
    if fresh:
        after[:] = state["target"]
    late = np.take_along_axis(after, age[None], axis=0)[0]
    theirs = fused.reference(model, law, state | {"target": late})
    own = {"actuation.delay": age + rng.uniform(-0.4, 0.4, age.shape)}
    given = state | {"line": line, "fresh": np.full(60, fresh)}
    ours = fused.run(model, law, given, delays=depth, own=own)
    assert_exact(ours, theirs)
    np.testing.assert_array_equal(ours["line"], after)
    assert not ours["fresh"].any()


def test_worlds_that_fail_start_anew_and_spread_nothing():
    model, law, state = case("scene, pyramidal", 20)
    theirs = fused.run(model, law, state)
    broken = copy.deepcopy(state)
    for i, (name, value) in enumerate((("qvel", np.nan), ("qpos", np.inf), ("qvel", 1e12), ("qfrc_applied", np.nan))):
        broken[name][i, -1] = value
    ours = fused.run(model, law, broken)
    assert ours["nonfinite"].tolist() == [1] * 4 + [0] * 16
    np.testing.assert_array_equal(ours["qpos"][:4], np.tile(model.qpos0, (4, 1)))
    assert not any(ours[k][:4].any() for k in ("qvel", "warm", "qacc", "qfrc_applied", "time"))
    for k in ("qpos", "qvel", "qacc", "xpos", "cvel"):
        np.testing.assert_array_equal(ours[k][4:], theirs[k][4:], err_msg=k)


def test_contacts_beyond_capacity_are_counted():
    model, law, state = case("scene, pyramidal", 40)
    most = fused.run(model, law, state)["ncon"]
    ours = fused.run(model, law, state, nconmax=6)
    np.testing.assert_array_equal(ours["ncon"], np.minimum(most, 6))
    np.testing.assert_array_equal(ours["overflow"], most > 6)
    assert 0 < ours["overflow"].sum() < 40 and not ours["nonfinite"].any()


# --- mutations -------------------------------------------------------------------------------------------------------


def test_wrong_lines_are_of_what_stands_there():
    folder = importlib.resources.files("isaacrl.sim.fused") / "stages"
    missing = [(s, old) for s, _, old, new in MUTATIONS if old not in (folder / f"{s}.h").read_text() or old == new]
    assert not missing


@pytest.mark.parametrize("k", range(len(MUTATIONS)) if FULL else range(0, len(MUTATIONS), 30))
def test_a_wrong_line_would_be_found(k):
    """Each changes one line of a stage to something plausible; the comparison above must notice."""
    stage, name, old, new = MUTATIONS[k]
    if name in SENSORS:
        model = sensors.model(getattr(sensors, name)())
        state = sensors.states(model)
        theirs = sensors.expected(model, *state, 1)
    else:
        model, law, state = case(name, 60)
        theirs = fused.reference(model, law, state)
    try:
        if name in SENSORS:
            with fused.optimization(0):
                ours = sensors.run(model, *state, 1, edit=(old, new))
            sensors.compare(model, ours, theirs, EXACT)
        else:
            assert_exact(fused.run(model, law, state, edit=(old, new), lanes=LANES.get(stage, 8)), theirs)
    except AssertionError:
        return
    except ValueError as missing:  # the stages changed
        (pytest.fail if FULL else pytest.skip)(f"{stage}: {missing}")
    pytest.fail(f"{stage}: not noticed")
