"""Inverse weights that engine `warp` derives world by world, against mj_setConst."""

import copy

import mujoco
import numpy as np
import pytest
import torch
from robot_states import ASSETS, scene

from isaacrl.sim.fused.constants import FIELDS, Constants

WORLDS = 3
# Ball joints (one above another joint of its body, one at a branch), four trees, a body on a mocap body, one that
# slides alone (MuJoCo takes its mass for its weight in all directions), one that slides and hangs on a static body.
MIXED = """<mujoco><default><geom contype="0" conaffinity="0" mass="1"/></default><worldbody>
<body name="hand" mocap="true" pos="1 2 3" quat="1 2 3 4"><geom size=".1"/></body>
<body pos="0 0 1"><joint name="swing" type="ball" pos=".1 .2 .3"/><geom type="box" size=".1 .2 .3" pos=".1 0 0"/>
  <body pos=".3 0 0" euler="10 20 30"><joint type="slide" axis="1 2 0"/><joint type="ball" pos="0 .1 0"/>
    <geom type="capsule" size=".05 .2" pos="0 0 .2"/>
    <body pos="0 0 .4"><joint axis="0 1 1" pos="0 .1 0"/><geom type="box" size=".1 .05 .3"/>
      <body pos="0 .1 .3" euler="0 40 0"><geom type="box" size=".02 .05 .1"/></body></body>
    <body pos="0 .2 .1"><joint axis="1 0 0"/><joint axis="0 1 0" pos="0 0 .1"/>
      <geom type="box" size=".1 .05 .2"/></body>
  </body></body>
<body pos="4 5 6" euler="30 20 10"><freejoint/><geom type="box" size=".1 .2 .3"/>
  <body pos="0 0 .5"><joint type="ball"/><geom type="capsule" size=".1 .2"/></body></body>
<body pos="-4 0 2"><freejoint/><geom type="box" size=".3 .2 .1"/></body>
<body><joint type="slide" axis="1 0 0" armature=".3"/><joint type="slide" axis="0 0 1"/><geom size=".2"/></body>
<body pos="7 0 0" euler="0 0 50"><geom size=".1"/><body pos="0 1 0"><joint type="slide" axis="1 1 0"/><geom size=".2"/>
  <body pos="0 0 .4"><joint axis="0 1 0"/><geom size=".2" pos=".1 0 0"/></body></body></body>
</worldbody></mujoco>"""


def model_of(name):
    return mujoco.MjModel.from_xml_string(MIXED) if name == "mixed" else scene(name).model


def drawn(model, fields, rng):
    """Random values of the fields, {name: [E, ...]} in float32's numbers."""
    values = {}
    simple = model.body_simple > 0  # MuJoCo refuses to move these off their frames
    for name in fields:
        start = np.repeat(getattr(model, name)[None], WORLDS, axis=0)
        if name in ("body_pos", "body_ipos"):
            value = start + rng.uniform(-0.05, 0.05, start.shape)
        elif name in ("body_quat", "body_iquat"):
            value = start + rng.uniform(-0.2, 0.2, start.shape)
        elif name == "dof_armature":
            value = start + rng.uniform(0.0, 0.1, start.shape)
        elif name == "qpos0":
            value = start + rng.uniform(-0.5, 0.5, start.shape)
        elif name == "body_inertia":  # one factor a body: no moment may exceed the sum of the other two
            value = start * rng.uniform(0.3, 2.0, (*start.shape[:2], 1))
        else:
            value = start * rng.uniform(0.3, 2.0, start.shape)
        if name in ("body_ipos", "body_iquat"):
            value[:, simple] = start[:, simple]
        if name.endswith("quat"):
            value /= np.linalg.norm(value, axis=-1, keepdims=True)
        values[name] = torch.tensor(value, dtype=torch.float32)
    return values


def check(name, fields, worlds_at_once=None):
    """Each world's weights against those that mj_setConst derives from the same float32 values."""
    model, rng = model_of(name), np.random.default_rng(len(fields))
    values = drawn(model, fields, rng)
    out = {"body_invweight0": torch.ones(WORLDS, model.nbody, 2), "dof_invweight0": torch.ones(WORLDS, model.nv)}
    derive = Constants(model, "cpu", fields)
    derive.worlds = worlds_at_once or derive.worlds
    derive(values | out)
    differ = False
    for i in range(WORLDS):
        own = copy.copy(model)
        for f, value in values.items():
            getattr(own, f)[:] = value[i].numpy()
        mujoco.mj_setConst(own, mujoco.MjData(own))
        for f, value in out.items():
            np.testing.assert_allclose(value[i].numpy(), getattr(own, f), rtol=1e-6, atol=0, err_msg=f"{f} of {name}")
            differ |= not np.allclose(getattr(own, f), getattr(model, f), rtol=1e-2)
    assert differ == bool(fields), "nothing was randomized that matters"


@pytest.mark.parametrize("name", [*ASSETS, "mixed"])
def test_weights_equal_mj_setconst(name):
    """All that they derive from differs by world, with as many worlds at once as fit and with one after the other."""
    check(name, FIELDS)
    check(name, FIELDS, worlds_at_once=1)


@pytest.mark.parametrize("field", FIELDS)
def test_one_field_alone(field):
    """What is not randomized comes from the model."""
    check("mixed", [field])


def test_nothing_randomized_gives_the_models_own():
    check("mixed", [])


def test_a_slider_whose_mass_is_moved_is_what_the_compiler_makes_of_it():
    """MuJoCo's shortcut for bodies that slide alone ends where the mass is off the body's origin."""
    model = model_of("mixed")
    b = int(np.flatnonzero(model.body_simple == 2)[0])
    ipos = torch.tensor(model.body_ipos, dtype=torch.float32).repeat(2, 1, 1)
    ipos[1, b, 2] = 0.25
    out = {"body_invweight0": torch.zeros(2, model.nbody, 2), "dof_invweight0": torch.zeros(2, model.nv)}
    Constants(model, "cpu", ["body_ipos"])({"body_ipos": ipos} | out)
    spec = mujoco.MjSpec.from_string(MIXED)
    body = spec.bodies[b]
    body.explicitinertial, body.mass, body.inertia = True, model.body_mass[b], model.body_inertia[b]
    body.ipos = ipos[1, b].numpy()
    for i, own in enumerate((model, spec.compile())):
        assert own.body_simple[b] == (2, 0)[i]
        for f, value in out.items():
            np.testing.assert_allclose(value[i].numpy(), getattr(own, f), rtol=1e-6, err_msg=f)
