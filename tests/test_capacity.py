"""Room for contacts and constraint rows, and what physics leaves out of a model."""

import mujoco
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from robot_states import ASSETS, build, on_devices, put, random_states, reference, scene, stacked

from isaacrl import sim
from isaacrl.sim.capacity import contacts_of, estimate

FIELDS = ("qpos", "qvel", "qacc", "xpos", "xquat", "site_xpos", "qfrc_constraint")


def fall(s, engine, rows):
    """64 robots that fall, lie and flail for 200 steps under targets that jump every 10: the most rows in a world."""
    qpos, qvel, target = random_states(s.model, s.actuation, 64, seed=3)
    put(engine, qpos, 3.0 * qvel)
    low, high, most = target.amin(dim=0), target.amax(dim=0), 0
    jumps = torch.rand(20, *target.shape, generator=torch.Generator().manual_seed(0))
    for jump in jumps.to(engine.device) * (high - low).to(engine.device) + low.to(engine.device):
        for _ in range(10):
            engine.step(1, jump)
            most = max(most, int(rows.max()))
    return most


@pytest.mark.parametrize("name", ASSETS)
def test_there_is_room_for_the_rows_of_a_robot_that_flails(name):
    s = scene(name)
    engine = build(s, 64, "mujoco")
    rows = fall(s, engine, engine.field("nefc"))
    assert 0 < rows <= estimate(s.model)[1], rows


CPU = ["franka_torque", "go2"]  # these have more than the 64 rows of mujoco-warp's own guess


@pytest.mark.parametrize("name, device", on_devices(CPU))
def test_nothing_overflows(name, device):
    s = scene(name)
    engine = build(s, 64, "mjwarp", device)
    rows = fall(s, engine, engine._view("nefc"))
    assert not engine.overflow.any() and rows <= engine.d.njmax, (rows, engine.d.njmax)


@pytest.mark.parametrize("name, device", on_devices(ASSETS))
def test_nothing_overflows_in_engine_warp(name, device):
    """With the room that it chooses: room for the contacts of each world by itself."""
    s = scene(name)
    engine = build(s, 64, "warp", device)
    most = fall(s, engine, engine.field("ncon"))
    print(name, most, "of", engine.nconmax)
    assert engine.nconmax == contacts_of(s.model) and most <= engine.nconmax
    assert most > 0 or name == "cartpole"  # which touches nothing
    assert not engine.overflow.any() and not engine.nonfinite.any()


def test_room_for_contacts_follows_the_model():
    """Twice what its poses show, in fours; a tenth more where that is much; never none."""

    def room(balls):
        geoms = "".join(f'<geom size=".1" pos="0 {y} 0"/>' for y in range(balls))
        body = f'<body pos="0 0 .09"><joint type="slide" axis="1 0 0"/>{geoms}</body>'
        plane = '<geom type="plane" size="9 9 1"/>'
        return contacts_of(mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{plane}{body}</worldbody></mujoco>"))

    assert (room(5), room(10), room(25)) == (12, 16, 28)
    assert room(1) == 4


def test_on_terrain_there_is_room_for_30_contacts_at_most():
    """Of a chain of balls, of which each may touch several triangles; a ball alone has less."""

    def room(links):
        ball = '<geom size=".06"/>'
        body = (
            f'<body pos="0 0 1"><freejoint/>{ball}' + f'<body pos=".1 0 0"><joint/>{ball}' * links + "</body>" * links
        )
        field = '<asset><hfield name="f" nrow="50" ncol="50" size="2.45 2.45 .1 .1"/></asset>'
        world = f'<worldbody><geom type="hfield" hfield="f" euler="20 10 0"/>{body}</body></worldbody>'
        model = mujoco.MjModel.from_xml_string(f"<mujoco>{field}{world}</mujoco>")
        model.hfield_data[:] = np.random.default_rng(0).random(2500)
        return contacts_of(model)

    assert 8 <= room(0) <= 20 and room(10) == 30


@pytest.mark.parametrize("name", ASSETS)
def test_physics_moves_as_the_model_that_pictures_show(name):
    """Bit for bit, with less: in all but the names that someone may ask for."""
    s = scene(name)
    full, states = s.visual_model, random_states(s.model, s.actuation, 32)
    assert s.model.ngeom < full.ngeom
    models = ([s.model] * 32, [full] * 32)
    ours, theirs = (reference(m, s.actuation, *states) for m in models)
    for f in FIELDS:
        np.testing.assert_array_equal(stacked(ours, f), stacked(theirs, f), err_msg=f)
    names = [{m.geom(g).name for g in range(m.ngeom)} - {""} for m in (s.model, full)]
    assert names[0] == names[1]


HEAVY = """<mujoco><option density="{density}"/><worldbody><geom name="floor" type="plane" size="1 1 1"/>
<body name="a" pos="0 0 .5" euler="10 20 30"><freejoint/><geom size=".1" pos=".1 .2 0"/>
<geom type="box" size=".1 .2 .3" euler="30 20 0" contype="0" conaffinity="0"/>
<geom name="badge" type="box" size=".1 .1 .1" contype="0" conaffinity="0"/>
<body pos="1 0 0"><joint name="j" axis="1 2 3" range="-1 1"/><geom size=".1" contype="0" conaffinity="0"/></body></body>
</worldbody><actuator><motor joint="j" ctrllimited="true" ctrlrange="-1 1"/></actuator></mujoco>"""


def test_a_geom_that_only_weighs_leaves_its_weight(tmp_path):
    """Inertia comes from the geoms here; in water these stay."""
    path = tmp_path / "heavy.xml"
    made = []
    for density in (0, 1000):
        path.write_text(HEAVY.format(density=density))
        asset = OmegaConf.create({"path": str(path), "actuators": {}})
        made.append(sim.make_scene(asset, OmegaConf.create({"physics_dt": 0.005})))
    air, water = made
    assert (air.visual_model.ngeom, air.model.ngeom, water.model.ngeom) == (5, 3, 5)
    assert air.model.geom("badge").id > 0
    for f in ("body_mass", "body_inertia", "body_ipos", "body_iquat", "dof_invweight0"):
        np.testing.assert_array_equal(getattr(air.model, f), getattr(air.visual_model, f), err_msg=f)
