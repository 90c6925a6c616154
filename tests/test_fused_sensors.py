"""Sensors of the fused kernel against C MuJoCo: in float64 to rounding, in float32 through the engine (CPU)."""

from typing import cast

import mujoco
import numpy as np
import pytest
import torch
import warp as wp
from robot_states import GPU, control, random_states

import isaacrl
from isaacrl import sim
from isaacrl.env import Env
from isaacrl.schema import SimConfig
from isaacrl.sim.engine import Actuation
from isaacrl.sim.fused import kernel, sensors, tables
from isaacrl.sim.fused.coverage import uncovered

WORLDS = 40
_STAGE, _KIND = mujoco.mjtStage, mujoco.mjtSensor

# A free trunk with a leg of a ball joint and two hinges, a wheel on a slide, a loose ball, and a fixed arm: every part
# and kind of joint that a sensor may belong to. Wheel and loose ball touch each other and all touch the floor.
PARTS = ("body", "xbody", "geom", "site")
WHERE = ("trunk", "thigh", "foot", "loose", "arm", "stand")
MODEL = """
<mujoco>
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.004" tolerance="0" ls_tolerance="1e-12" cone="{cone}" gravity=".4 -.3 -9.6"/>
  <default>
    <joint damping=".1" armature=".01"/>
    <geom friction=".7 .02 .01" condim="{condim}" contype="0" conaffinity="1"/>
  </default>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 1" contype="1" euler=".1 -.05 0"/>
    <body name="stand" pos="1 .3 .5" euler=".3 .2 .1">
      <geom name="stand" size=".05" pos=".01 0 .02" conaffinity="0"/><site name="stand" pos=".1 .2 .3" euler="1 2 3"/>
      <body name="arm" pos=".1 0 .1" euler="0 .4 .2">
        <joint name="arm" axis=".2 1 .1" ref=".2"/>
        <geom name="arm" type="capsule" size=".03" fromto="0 0 0 .3 0 .1" conaffinity="0"/>
        <site name="arm" pos=".3 .02 .1" euler=".5 .1 .7"/>
      </body>
    </body>
    <body name="trunk" pos="0 0 .3">
      <freejoint name="root"/>
      <geom name="trunk" type="box" size=".15 .1 .05" pos=".02 .01 0" euler=".3 .1 0"/>
      <site name="trunk" pos=".12 .05 .06" euler=".4 -.7 1.2"/>
      <body name="thigh" pos=".1 .1 -.05">
        <joint name="ball" type="ball" pos=".01 0 .02"/>
        <geom name="thigh" type="capsule" size=".03" fromto="0 0 0 .02 0 -.2"/>
        <site name="thigh" pos="0 0 -.1" euler="0 1 .3"/>
        <body name="foot" pos=".02 0 -.2">
          <joint name="ankle" axis="0 1 .1" pos="0 .01 0" range="-1 1" actuatorfrcrange="-1.5 1.5"/>
          <joint name="toe" axis="1 .2 0"/>
          <geom name="foot" size=".05" pos=".03 0 -.02"/>
          <site name="foot" pos=".02 .01 -.03" euler=".2 .3 .4"/>
          {zones}
        </body>
      </body>
      <body name="wheel" pos="-.1 0 -.06">
        <joint name="spring" type="slide" axis="0 .1 1" stiffness="300"/>
        <geom name="wheel" size=".08" contype="2" conaffinity="3"/>
        <site name="zwheel" size=".06" pos=".03 .01 -.05"/>
      </body>
    </body>
    <body name="loose" pos="-.15 .1 .1">
      <freejoint/><geom name="loose" size=".07" contype="2" conaffinity="3" pos=".01 0 0"/>
      <site name="loose" pos=".02 .03 .01" euler="1 .3 0"/><site name="zloose" size=".05" pos=".03 0 .03"/>
    </body>
  </worldbody>
  <actuator>
    <motor name="toe" joint="toe" gear="2.5"/>
    <position name="ankle" joint="ankle" kp="8" kv=".2" gear=".7" forcerange="-4 4"/>
    <motor name="spring" joint="spring" gear="-3"/>
    <motor name="again" joint="ankle" gear="1.3"/>
  </actuator>
  <sensor>{sensors}</sensor>
</mujoco>
"""
ZONES = (
    '<site name="z{}" type="sphere" size=".03" pos=".05 .01 -.06"/>',
    '<site name="z{}" type="capsule" size=".02 .08" pos=".02 .03 -.06" euler="1.4 .3 .2"/>',
    '<site name="z{}" type="ellipsoid" size=".04 .03 .02" pos=".03 .02 -.07" euler=".4 .3 .2"/>',
    '<site name="z{}" type="cylinder" size=".03 .03" pos=".02 -.02 -.06" euler="1 .8 .2"/>',
    '<site name="z{}" type="box" size=".02 .04 .02" pos=".05 .02 -.05" euler=".5 .8 .2"/>',
)
ZONE_SITES = "".join(zone.format(k) for k, zone in enumerate(ZONES))


def frames():
    """Every quantity of every part of every body."""
    kinds = ("framepos", "framequat", "framexaxis", "frameyaxis", "framezaxis", "framelinvel", "frameangvel")
    out = [f'<{k} objtype="{p}" objname="{n}"/>' for k in kinds for p in PARTS for n in WHERE]
    # An axis seen from another part, the world's included.
    pairs = [(p, q, n, r) for p in PARTS for q in PARTS for n, r in (("trunk", "foot"), ("arm", "loose"))]
    axes = ("framexaxis", "frameyaxis", "framezaxis")
    out += [
        f'<{axes[i % 3]} objtype="{p}" objname="{n}" reftype="{q}" refname="{r}"/>'
        for i, (p, q, n, r) in enumerate(pairs)
    ]
    out.append('<framezaxis objtype="body" objname="world" reftype="site" refname="foot"/>')
    out += [f'<{k} site="{n}"/>' for k in ("gyro", "velocimeter") for n in WHERE]
    return "".join(out)


def others():
    """Coordinates, drives, centres of mass, time, accelerations and touch."""
    out = [f'<{k} joint="{j}"/>' for k in ("jointpos", "jointvel", "jointactuatorfrc") for j in ("arm", "ankle", "toe")]
    out += ['<ballquat joint="ball"/><ballangvel joint="ball"/><clock/>']
    drives = ("toe", "ankle", "spring", "again")
    out += [f'<{k} actuator="{a}"/>' for k in ("actuatorpos", "actuatorvel", "actuatorfrc") for a in drives]
    out += [f'<subtreecom body="{b}"/>' for b in ("trunk", "thigh", "foot", "stand", "loose")]
    out += [f'<accelerometer site="{n}"/>' for n in WHERE]
    out += [f'<touch site="z{k}"/>' for k in (*range(len(ZONES)), "wheel", "loose")]
    return "".join(out)


def contacts():
    """Bodies, geoms and subtrees, against everything, the world, a subtree, and themselves; 2 words of matches."""
    net, strongest = ('data="found force" reduce="netforce"', 'data="found force" reduce="maxforce"')
    out = [f'<contact body1="{b}" {net}/>' for b in ("trunk", "foot", "wheel", "loose", "world")]
    out += [f'<contact geom1="{g}" {net}/>' for g in ("foot", "thigh", "wheel", "floor")]
    out += [f'<contact body1="{b}" body2="world" {net}/>' for b in ("trunk", "loose", "wheel")]
    out += [f'<contact body1="{b}" subtree2="{t}" {net}/>' for b, t in (("wheel", "loose"), ("loose", "trunk"))]
    out += [f'<contact geom1="loose" subtree2="world" {net}/>', f'<contact geom1="arm" {net}/>']
    out += [f'<contact subtree1="{t}" {strongest}/>' for t in ("trunk", "loose", "world", "thigh")]
    out += [f'<contact subtree1="{t}" body2="world" {strongest}/>' for t in ("trunk", "loose")]
    out += [
        f'<contact subtree1="{t}" subtree2="{u}" {strongest}/>' for t, u in (("trunk", "loose"), ("loose", "trunk"))
    ]
    return "".join(out)


def model(sensors, cone="elliptic", condim=4):
    return mujoco.MjModel.from_xml_string(
        MODEL.format(cone=cone, condim=condim, sensors=sensors, zones=ZONE_SITES if "touch" in sensors else "")
    )


def states(m, n=WORLDS, seed=0):
    """(qpos, qvel, target) of n worlds: near the floor and anyhow, the first parallel to its axes."""
    rng, data = np.random.default_rng(seed), mujoco.MjData(m)
    qpos, qvel = np.tile(m.qpos0, (n, 1)), rng.normal(size=(n, m.nv))
    for i, q in enumerate(qpos[1:]):
        mujoco.mj_integratePos(m, q, rng.normal(size=m.nv) * (0.3, 1.5)[i % 2], 1.0)
    for q in qpos:
        for j in np.flatnonzero(m.jnt_type == int(mujoco.mjtJoint.mjJNT_FREE)):
            adr = m.jnt_qposadr[j]
            data.qpos = q
            mujoco.mj_forward(m, data)
            geoms = [g for g in range(m.ngeom) if m.body_rootid[m.geom_bodyid[g]] == m.jnt_bodyid[j]]
            floor = [mujoco.mj_geomDistance(m, data, 0, g, 5.0, None) for g in geoms]
            q[adr + 2] -= min(floor) + rng.uniform(-0.005, 0.03)
            if m.jnt_bodyid[j] == m.body("loose").id:  # under the wheel
                data.qpos = q
                mujoco.mj_forward(m, data)
                away = rng.normal(size=3)
                q[adr : adr + 3] = data.body("wheel").xpos + away / np.linalg.norm(away) * rng.uniform(0.13, 0.16)
    return qpos, qvel, rng.uniform(-2.0, 2.0, (n, m.nu))


def expected(m, qpos, qvel, target, n):
    """sensordata as C MuJoCo gives it after n steps: positions and velocities of the new state, forces of the last."""
    out = []
    fresh = np.concatenate(
        [np.full(m.sensor_dim[i], m.sensor_needstage[i] != _STAGE.mjSTAGE_ACC) for i in range(m.nsensor)]
    )
    for q, v, u in zip(qpos, qvel, target):
        data = mujoco.MjData(m)
        data.qpos, data.qvel, data.ctrl = q, v, u
        for _ in range(n):
            mujoco.mj_step(m, data)
        last = data.sensordata.copy()
        mujoco.mj_forward(m, data)
        out.append(np.where(fresh, data.sensordata, last))
    return np.array(out)


def run(m, qpos, qvel, target, n, **options):
    """The same of the kernel in float64; options of kernel.build."""
    t = tables.make_tables(m, Actuation.direct(m.nu), lanes=1, nconmax=40, tolerance=0.0)
    build = kernel.build(t, double=True, **options)
    worlds = len(qpos)
    live = {"qpos": qpos, "qvel": qvel, "warm": np.zeros_like(qvel), "target": target, "time": np.zeros(worlds)}
    live = {k: np.ascontiguousarray(v, float).copy() for k, v in live.items()}
    live |= {"overflow": np.zeros(worlds, np.int64)} | {k: np.zeros(worlds, np.uint8) for k in ("nonfinite", "fresh")}
    live["sensordata"] = np.full((worlds, m.nsensordata), np.nan)
    addresses = {k: v.ctypes.data for k, v in live.items()} | {
        "num_worlds": worlds,
        "any_position": 1,
        "any_velocity": 1,
    }
    reals, ints = t.blobs(np.float64)
    with wp.ScopedDevice("cpu"):
        table = np.array([addresses.get(k, 0) for k in t.arrays()], np.int64)
        inputs = [wp.array(x) for x in (reals, ints, table)]
        wp.launch(build, dim=worlds, inputs=[worlds, n, 0, *inputs], device="cpu", block_dim=1)
    assert not live["nonfinite"].any() and not live["overflow"].any()
    return live["sensordata"]


def compare(m, got, theirs, tolerance):
    """Sensor by sensor, relative to the largest reading of its kind; a quaternion's sign means nothing."""
    for i in range(m.nsensor):
        at = slice(m.sensor_adr[i], m.sensor_adr[i] + m.sensor_dim[i])
        a, b = got[:, at], theirs[:, at]
        if m.sensor_datatype[i] == mujoco.mjtDataType.mjDATATYPE_QUATERNION:
            a = a * np.sign((a * b).sum(axis=1, keepdims=True))
        name = _KIND(m.sensor_type[i]).name
        if m.sensor_type[i] == _KIND.mjSENS_CONTACT:
            assert np.array_equal(a[:, 0], b[:, 0]), f"{name} {i} found"
        scale = max(1.0, np.abs(theirs[:, at]).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=f"{name} {i}")


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("what", [frames, others])
def test_readings_of_every_kind_are_those_of_c_mujoco(what, n):
    m = model(what())
    assert not uncovered(m)
    assert len(set(m.sensor_type.tolist())) == {frames: 9, others: 12}[what]
    qpos, qvel, target = states(m)
    theirs = expected(m, qpos, qvel, target, n)
    compare(m, run(m, qpos, qvel, target, n), theirs, 1e-9)
    if what is frames:
        return
    kinds = m.sensor_type[np.repeat(np.arange(m.nsensor), m.sensor_dim)]
    touched = (theirs[:, kinds == _KIND.mjSENS_TOUCH] > 0).sum(axis=0)
    contacts = (theirs[:, kinds == _KIND.mjSENS_TOUCH] > 0).any(axis=1).sum()
    assert ((2 <= touched) & (touched <= contacts - 1)).all(), "zones of every shape are hit and missed"
    assert (np.abs(theirs[:, kinds == _KIND.mjSENS_JOINTACTFRC]) == 1.5).any(), "a joint is at the limit of its drives"


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize(("cone", "condim"), [("pyramidal", 3), ("pyramidal", 1), ("elliptic", 4)])
def test_contact_sensors_are_those_of_c_mujoco(cone, condim, n):
    m = model(contacts(), cone, condim)
    assert not uncovered(m)
    assert sensors.MATCHES_A_WORD < m.nsensor, "two words"
    qpos, qvel, target = states(m)
    theirs = expected(m, qpos, qvel, target, n)
    compare(m, run(m, qpos, qvel, target, n, backwards=n == 4), theirs, 1e-9)
    found = theirs.reshape(WORLDS, -1, 4)[:, :, 0]
    # But for the arm, which touches nothing, each counts in some worlds; some see both sides, and several contacts.
    assert (found > 0).any(axis=0).sum() == m.nsensor - 1
    assert (found.max(axis=0) >= 3).any()
    several = found.max(axis=0) > 1
    assert several[m.sensor_intprm[:, 1] == 2].any() and several[m.sensor_intprm[:, 1] == 3].any()


@pytest.mark.parametrize("seen", [0.0, 1.0])
def test_a_contact_within_the_gap_counts_without_force(seen):
    """It is found, but has no rows. Zones straight below, above and beside it: only those below are pushed."""
    m = mujoco.MjModel.from_xml_string(
        f"""<mujoco><option tolerance="0"/><worldbody><geom type="plane" size="1 1 1"/>
        <body name="a" pos="0 0 .1"><freejoint/><geom size=".1" gap="{0.02 * (1 - seen)}" margin="{0.02 * seen}"/>
        <site name="below" type="box" size=".01 .01 .01" pos="0 0 -.2"/>
        <site name="above" type="box" size=".01 .01 .01"/>
        <site name="beside" type="cylinder" size=".01 .1" pos=".03 0 0"/>
        </body></worldbody><sensor><contact body1="a" data="found force" reduce="netforce"/>
        <contact subtree1="a" data="found force" reduce="maxforce"/>
        <touch site="below"/><touch site="above"/><touch site="beside"/></sensor></mujoco>"""
    )
    state = m.qpos0[None] + [0, 0, 0.01, 0, 0, 0, 0], np.array([[0.1, 0.2, -0.5, 0, 0, 0]]), np.zeros((1, 0))
    theirs = expected(m, *state, 1)
    assert theirs[0, 0] == theirs[0, 4] == 1.0
    assert (theirs[0, 8] > 0.0) == (seen > 0.0) and not theirs[0, 9:].any()
    compare(m, run(m, *state, 1), theirs, 1e-9)


def test_cutoffs_clip_what_mujoco_clips():
    """Both ways, from above alone (touch), and not contact sensors; in both stages."""
    names = [
        *('<jointpos joint="toe" cutoff=".05"/>', '<gyro site="trunk" cutoff=".4"/>', '<touch site="z0" cutoff="5"/>'),
        *('<accelerometer site="trunk" cutoff="3"/>', '<actuatorfrc actuator="ankle" cutoff="1"/>'),
        '<contact body1="foot" data="found force" reduce="netforce" cutoff=".5"/>',
    ]
    m = model("".join(names))
    assert (m.sensor_cutoff > 0).all()
    free = m.__copy__()
    free.sensor_cutoff[:] = 0
    state = states(m)
    theirs, unclipped = expected(m, *state, 1), expected(free, *state, 1)
    clipped = [np.abs(theirs - unclipped)[:, a : a + d].any() for a, d in zip(m.sensor_adr, m.sensor_dim)]
    assert clipped == [True] * 5 + [False]
    compare(m, run(m, *state, 1), theirs, 1e-9)
    compare(free, run(free, *state, 1), unclipped, 1e-9)


def test_what_a_model_has_no_sensor_of_costs_nothing():
    """Without sensors all families are empty; with one, no other is."""
    for text, there in (("", set()), ('<gyro site="foot"/>', {"SENSE_FRAMES"}), (contacts(), {"SENSE_CONTACTS"})):
        m = model(text)
        t = tables.make_tables(m, Actuation.direct(m.nu), lanes=16, nconmax=8, tolerance=1e-6)
        assert {k for k, v in t.sizes.items() if k.startswith("SENSE_") and v} == there
        assert (t.sizes["NSENSOR_STATE"], t.sizes["NSENSOR_FORCE"]) == (
            text[:2] == "<g",
            m.nsensor * (text[:2] == "<c"),
        )


# --- through the engine ----------------------------------------------------------------------------------------------


def through_engine(m, actuation, qpos, qvel, target, n, device="cpu"):
    """sensordata of engine warp after n steps."""
    engine = sim.build(m, len(qpos), device, SimConfig(engine="warp"), actuation)
    engine.field("sensordata")
    for name, value in (("qpos", qpos), ("qvel", qvel)):
        engine.write(name, torch.as_tensor(value, dtype=torch.float32, device=device))
    engine.forward()
    engine.step(n, torch.as_tensor(target, dtype=torch.float32, device=device))
    assert not engine.overflow.any() and not engine.nonfinite.any()
    return engine.field("sensordata").cpu().numpy().astype(float)


DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("what", [frames, others, contacts])
def test_the_engine_reads_them_in_single_precision(what, device):
    m = model(what())
    single = [np.float32(x) for x in states(m)]
    for n in (1, 4):
        theirs = expected(m, *single, n)
        compare(m, through_engine(m, Actuation.direct(m.nu), *single, n, device), theirs, 1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("task", ["go2_flat", "g1_flat"])
def test_a_robots_contact_sensors_and_imu(task, device):
    """Feet against the ground, the trunk or the whole robot against itself; IMU of the base."""
    overrides = ["sim.engine=mujoco", "task.sensors.imu={}"]
    engine = cast(Env, isaacrl.make(task, num_envs=1, device="cpu", overrides=overrides)).engine
    m, actuation, n = engine.model, engine.actuation, 48
    assert not uncovered(m)
    state = random_states(m, actuation, n, seed=4)
    theirs = []
    for qpos, qvel, target in zip(*(x.double().numpy() for x in state)):
        data = mujoco.MjData(m)
        data.qpos, data.qvel = qpos, qvel
        theirs.append(expected(m, qpos[None], qvel[None], control(actuation, data, target)[None], 1)[0])
    compare(m, through_engine(m, actuation, *state, 1, device), np.array(theirs), 1e-4)
