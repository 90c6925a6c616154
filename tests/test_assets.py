"""The bundled robots have the dynamics that they claim."""

from pathlib import Path

import mujoco
import numpy as np
import pytest

import isaacrl

ASSETS = Path(isaacrl.__file__).parent / "assets"

# The DeepMind Control Suite's cart-pole, its inertia from its own shapes.
CARTPOLE = """
<mujoco>
  <worldbody>
    <body name="cart" pos="0 0 1">
      <joint type="slide" axis="1 0 0" limited="true" range="-1.8 1.8" solreflimit=".08 1" damping="5e-4"/>
      <geom type="box" size=".2 .15 .1" mass="1" contype="0" conaffinity="0"/>
      <body name="pole">
        <joint type="hinge" axis="0 1 0" damping="2e-6"/>
        <geom type="capsule" fromto="0 0 0 0 0 1" size=".045" mass=".1" contype="0" conaffinity="0"/>
      </body>
    </body>
  </worldbody>
</mujoco>"""


def test_cartpole_moves_like_the_control_suites():
    """Two seconds from random states, ends of the rail included."""
    models = mujoco.MjModel.from_xml_path(str(ASSETS / "cartpole.xml")), mujoco.MjModel.from_xml_string(CARTPOLE)
    rng = np.random.default_rng(0)
    for _ in range(20):
        qpos, qvel = rng.uniform([-1.8, -3.2], [1.8, 3.2]), rng.uniform(-5, 5, 2)
        paths = []
        for model in models:
            model.opt.timestep = 0.01
            data = mujoco.MjData(model)
            data.qpos[:], data.qvel[:] = qpos, qvel
            paths.append([])
            for _ in range(200):
                mujoco.mj_step(model, data)
                paths[-1].append(data.qpos.copy())
        assert np.ptp(paths[0], axis=0).max() > 0.5  # it did move
        np.testing.assert_allclose(paths[0], paths[1], atol=1e-6)


def test_cartpole_leaves_actuation_and_contact_to_the_configuration():
    model = mujoco.MjModel.from_xml_path(str(ASSETS / "cartpole.xml"))
    assert model.nu == 0 and not model.geom_contype.any() and not model.geom_conaffinity.any()
    assert [model.joint(i).name for i in range(model.njnt)] == ["slider", "hinge"]
    assert model.body("cart").mass == pytest.approx(1.0) and model.body("pole").mass == pytest.approx(0.1)
