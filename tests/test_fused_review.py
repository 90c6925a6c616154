"""Limits of engine warp and corners of its outputs: what a world needs of a GPU's memory, centres of mass, failures."""

import copy
import re

import fused_kernel as fused
import mujoco
import numpy as np
import pytest
import torch
from fused_models import SMALL, small

from isaacrl import sim
from isaacrl.errors import UserError
from isaacrl.schema import SimConfig
from isaacrl.sim.engine import Actuation
from isaacrl.sim.fused import coverage, layout, tables
from isaacrl.sim.warp_engine import FAST_CONTACTS, WarpEngine, lanes_of, uncovered


def sizes_of(model, lanes, nconmax):
    law, fast = Actuation.direct(model.nu), FAST_CONTACTS
    return tables.make_tables(model, law, lanes=lanes, nconmax=nconmax, tolerance=0.0, fast_contacts=fast).sizes


def pebbles(count, still=0):
    """Spheres in a slide each, and bodies that do not move."""
    ball = '<body pos="{} 0 .05"><joint type="slide" axis="0 0 1"/><geom size=".05"/></body>'
    world = '<geom type="plane" size="1 1 1"/>' + "".join(ball.format(k) for k in range(count))
    return mujoco.MjModel.from_xml_string(
        f"<mujoco><worldbody>{world}{'<body/>' * still}</worldbody></mujoco>",
    )


# --- a world's share of a GPU ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["joints", "actuators", "shapes, pyramidal", "scene, elliptic", "terrain, pyramidal", "big, 33", "big, 64"]
)
@pytest.mark.parametrize(("nconmax", "lanes"), [(20, 32), (7, 8)])
def test_the_size_of_scratch_memory_is_known_before_it_is_compiled(name, nconmax, lanes, monkeypatch):
    model, law = small(name)
    state = fused.states(model, 1, tries=1)
    make, seen = tables.make_tables, []
    monkeypatch.setattr(tables, "make_tables", lambda *a, **k: seen.append(make(*a, **k)) or seen[-1])
    end = "  if (w.arrays[A_ANY_POSITION]) write_state_outputs(w, S);\n"
    tell = "  *live<int>(w, A_NITER, 1) = (int)sizeof(Scratch);\n"
    out = fused.run(model, law, state, double=False, lanes=lanes, nconmax=nconmax, edit=(end, tell + end))
    assert out["niter"][0] == layout.scratch_bytes(seen[-1].sizes, lanes)


@pytest.mark.parametrize("name", SMALL)
def test_every_small_model_fits_a_block_of_some_size(name):
    model, _ = small(name)
    sizes = sizes_of(model, lanes_of(model), 60)
    found = layout.fitting(sizes, lanes_of(model))
    assert found
    lanes, block = found
    assert layout.scratch_bytes(sizes, lanes) * block // lanes <= layout.SHARED


def test_fewer_worlds_share_a_block_where_they_are_large():
    model = pebbles(4)
    found = [layout.fitting(sizes_of(model, 4, n), 4) for n in (8, 30, 60, 100, 300, 3000)]
    assert found == [(4, 128), (4, 32), (8, 32), (8, 32), (32, 32), None]


def test_worlds_fill_a_gpu_evenly():
    sizes = sizes_of(pebbles(4), 16, 12)

    def blocks(worlds, **changes):
        found = layout.plan({**sizes, **changes}, 16, 24, worlds, processors=100)
        assert found and found.lanes == 16
        return found.block, found.resident, found.in_rounds

    assert blocks(8 * 100 * 60) == (128, 6, False)  # far more than the GPU has room for
    assert blocks(8 * 100 * 5) == (128, 5, False)  # 6 would leave places empty
    assert blocks(8 * 100 * 10) == (128, 6, True)  # the last 400 blocks would leave places empty
    assert blocks(8 * 100 * 10, NETS=1) == (128, 5, False)
    assert blocks(400)[0] == 64  # one for each multiprocessor
    assert blocks(10) == (128, 6, False)


def test_worlds_leave_room_for_each_other():
    model, _ = small("shapes, pyramidal")
    found = [layout.plan(sizes_of(model, 32, 12), 32, warps) for warps in (8, 10, 30)]
    assert [(p.block, p.resident, p.fast) for p in found if p] == [(64, 4, 8), (64, 5, 7), (64, 5, 7)]
    assert all(p.scratch * p.resident < layout.MULTIPROCESSOR for p in found if p)


def test_a_world_that_is_too_large_is_refused_in_one_line():
    model, cfg = pebbles(4), SimConfig(engine="warp", nconmax=3000)
    (said,) = uncovered(model, nconmax=3000)
    assert re.fullmatch(r"5 bodies with room for 3000 contacts \(36\d kB a world, at most 64\)", said)
    assert uncovered(model) == []
    with pytest.raises(UserError, match=re.escape(f"sim.engine: engine warp does not cover {said}")):
        sim.build(model, 1, "cpu", cfg, Actuation.direct(0))
    assert sim._fastest(model, "cuda:0", [], 3000) == ("mjwarp", f"engine warp does not cover {said}; using mjwarp")
    assert sim._fastest(model, "cuda:0", [])[0] == "warp"


def test_ids_of_bodies_are_bytes():
    assert coverage.uncovered(pebbles(4, still=251)) == []
    assert coverage.uncovered(pebbles(4, still=252)) == ["257 bodies (at most 256)"]


# --- free bodies under implicitfast ----------------------------------------------------------------------------------

_TUMBLING = """
<mujoco>
  <option timestep=".01" integrator="implicitfast">{flag}</option>
  <worldbody>
    <geom type="plane" size="1 1 1" contype="2"/>
    <body pos="0 0 .2">
      <joint type="free" {joint}/>
      <inertial mass="2" pos=".1 -.05 .2" quat=".8 .2 -.4 .4" diaginertia=".02 .05 .06"/>
      <body pos=".1 .2 0" euler="20 40 0"><geom type="box" size=".1 .2 .05" conaffinity="2"/></body>
    </body>
    <body pos="1 0 .5"><freejoint/><geom type="ellipsoid" size=".1 .2 .05" contype="0" conaffinity="0"/></body>
    <body pos="2 0 .5">
      <freejoint/><geom size=".1" contype="0" conaffinity="0"/>
      <body pos=".1 0 0"><joint/><geom type="box" size=".1 .2 .05" contype="0" conaffinity="0"/></body>
    </body>
  </worldbody>
</mujoco>
"""


@pytest.mark.parametrize("joint", ["", 'damping=".4" armature=".03" frictionloss=".1"'])
@pytest.mark.parametrize("flag", ["", '<flag spring="disable" damper="disable"/>', '<flag constraint="disable"/>'])
def test_gyroscopic_forces_on_free_bodies_are_implicit(joint, flag):
    """With implicitfast, MuJoCo takes their derivatives for free bodies that have no joints below them."""
    model = mujoco.MjModel.from_xml_string(_TUMBLING.format(joint=joint, flag=flag))
    assert coverage.uncovered(model) == []
    law = Actuation.direct(0)
    state = fused.with_applied_forces(model, fused.states(model, 30))
    state["qvel"] *= 5.0
    theirs = fused.reference(model, law, state)
    euler = copy.copy(model)
    euler.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER
    others = fused.reference(euler, law, state)
    differs = (np.abs(theirs["qvel"] - others["qvel"]) > 1e-4).any(axis=0)
    assert differs[[3, 4, 5, 9, 10, 11]].all() and not differs[12:].any()
    for double, most in ((True, 1e-9), (False, 3e-4)):
        ours = fused.run(model, law, state, double=double)
        assert not fused.miscounted(ours, theirs)
        assert {k: v.max() for k, v in fused.errors(ours, theirs).items() if v.size and v.max() > most} == {}


# --- outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scene, pyramidal", "actuators"])
def test_the_centre_of_mass_of_all_bodies_is_the_worlds(name):
    model, law = small(name)
    state = fused.states(model, 20)
    ours, theirs = fused.run(model, law, state), fused.reference(model, law, state)
    np.testing.assert_allclose(ours["subtree_com"], theirs["subtree_com"], rtol=0, atol=1e-9)


def test_mocap_bodies_of_a_failed_world_are_back_where_they_began():
    model, law = small("scene, pyramidal")
    state = fused.states(model, 3)
    bodies = np.argsort(model.body_mocapid)[-model.nmocap :]
    broken = copy.deepcopy(state)
    broken["qvel"][1, 0] = np.nan
    ours = fused.run(model, law, broken)
    np.testing.assert_array_equal(ours["nonfinite"], [0, 1, 0])
    for name, start in (("mocap_pos", model.body_pos), ("mocap_quat", model.body_quat)):
        np.testing.assert_array_equal(ours[name][1], start[bodies])
        np.testing.assert_array_equal(ours[name][::2], state[name][::2])
    np.testing.assert_allclose(ours["xpos"][1, bodies], model.body_pos[bodies], atol=1e-12)


_SENSING = """
<mujoco>
  <worldbody>
    <geom type="plane" size="1 1 1"/>
    <body pos="0 0 .05">
      <freejoint/><geom size=".05" mass="2"/><site name="s" size=".1"/>
    </body>
  </worldbody>
  <sensor><touch site="s"/><accelerometer site="s"/><framepos objtype="site" objname="s"/></sensor>
</mujoco>
"""


@pytest.mark.parametrize("engine", ["mujoco", "warp"])
def test_sensors_asked_for_after_a_step_are_those_of_that_step(engine):
    model = mujoco.MjModel.from_xml_string(_SENSING)
    e = sim.build(model, 2, "cpu", SimConfig(engine=engine), Actuation.direct(0))
    e.step(200, torch.zeros(2, 0))
    reading = e.field("sensordata")
    assert reading[:, 0] == pytest.approx([2 * 9.81] * 2, rel=1e-3)
    assert reading[:, 3] == pytest.approx([9.81] * 2, rel=1e-3)
    assert torch.equal(reading[:, 4:], e.field("site_xpos")[:, 0]) and (reading[:, 6] > 0.04).all()


def test_only_sensors_of_forces_are_computed_before_somebody_asks():
    model = mujoco.MjModel.from_xml_string(_SENSING)
    e = WarpEngine(model, 1, "cpu", Actuation.direct(0), SimConfig(engine="warp"))
    e.step(200, torch.zeros(1, 0))
    kept = e._arrays["sensordata"].clone()
    assert kept[0, 0] > 0 and (kept[0, 4:] == 0).all()
    assert (e.field("sensordata")[0, :4] == kept[0, :4]).all() and e.field("sensordata")[0, 6] > 0


def test_forward_touches_the_worlds_of_its_mask_alone():
    model = mujoco.MjModel.from_xml_string(_SENSING)
    e = WarpEngine(model, 3, "cpu", Actuation.direct(0), SimConfig(engine="warp"))
    before = e.field("xpos").clone()
    e.write("qpos", torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]).expand(3, 7))
    e.forward(torch.tensor([False, True, False]))
    assert torch.equal(e.field("xpos")[::2], before[::2]) and e.field("xpos")[1, 1, 2] == 1.0
    e.forward()
    assert (e.field("xpos")[:, 1, 2] == 1.0).all()


@pytest.mark.parametrize("name", ["target", "warm", "niter", "mask", "xpso"])
def test_what_is_the_engines_own_is_no_field(name):
    e = WarpEngine(mujoco.MjModel.from_xml_string(_SENSING), 1, "cpu", Actuation.direct(0), SimConfig(engine="warp"))
    with pytest.raises(ValueError, match=f"'{name}' is not a field that warp computes"):
        e.field(name)
