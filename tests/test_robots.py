"""The bundled robots are those of the published figures, and stand or hold still in their default pose."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import isaacrl
from isaacrl import sim
from isaacrl.schema import AssetConfig, SimConfig
from isaacrl.sim.actuators import Law
from isaacrl.sim.assets import lowest_point
from isaacrl.state import Robot

ROOT = Path(isaacrl.__file__).parent.parent
ASSETS = sorted(p.stem for p in (ROOT / "conf" / "asset").glob("*.yaml"))


@dataclass
class Published:
    """Figures of a robot, by joint pattern where they differ by joint."""

    joints: int
    mass: float  # kg
    height: float  # of the base above the ground in the default pose [m]; 0: bolted down
    limits: dict[str, tuple[float, float]]  # rad or m
    efforts: dict[str, float]  # N m or N
    speeds: dict[str, float]  # no-load speed of explicit motors [rad/s]


# Masses: sums over google-deepmind/mujoco_menagerie's bodies. Efforts: its actuators; speeds and the fingers' effort:
# the makers' URDFs.
PANDA_LIMITS = {
    "joint[1357]": (-2.8973, 2.8973),
    "joint2": (-1.7628, 1.7628),
    "joint4": (-3.0718, -0.0698),
    "joint6": (-0.0175, 3.7525),
    "finger_joint[12]": (0.0, 0.04),
}
PANDA = Published(
    joints=9,
    mass=0.629769 + 4.970684 + 0.646926 + 3.228604 + 3.587895 + 1.225946 + 1.666555 + 0.735522 + 0.73 + 2 * 0.015,
    height=0.0,
    limits=PANDA_LIMITS,
    efforts={"joint[1234]": 87.0, "joint[567]": 12.0, "finger_joint.": 20.0},
    speeds={},
)
ROBOTS = {
    "go2": Published(
        joints=12,
        mass=6.921 + 4 * (0.678 + 1.152 + 0.241352),
        height=2 * 0.213 * math.cos(0.9) + 0.002 * math.sin(0.9) + 0.022,  # two links, the foot's offset and radius
        limits={
            ".._hip_joint": (-1.0472, 1.0472),
            "F._thigh_joint": (-1.5708, 3.4907),
            "R._thigh_joint": (-0.5236, 4.5379),
            ".._calf_joint": (-2.7227, -0.83776),
        },
        efforts={".._(hip|thigh)_joint": 23.7, ".._calf_joint": 45.43},
        speeds={".._(hip|thigh)_joint": 30.1, ".._calf_joint": 15.7},
    ),
    "franka": PANDA,
    "franka_torque": PANDA,
}
FLOATING = [name for name, robot in ROBOTS.items() if robot.height]


def load(name):
    """The asset's configuration, its scene, and the robot."""
    asset = OmegaConf.merge(OmegaConf.structured(AssetConfig), OmegaConf.load(ROOT / "conf" / "asset" / f"{name}.yaml"))
    scene = sim.make_scene(asset, OmegaConf.create({"physics_dt": 0.005}))
    return asset, scene, Robot(scene.model, asset.base, dict(asset.default_pose), "cpu")


def posed(scene, robot):
    """MjData in the default pose."""
    data = mujoco.MjData(scene.model)
    data.qpos[:] = robot.default_qpos.numpy()
    mujoco.mj_forward(scene.model, data)
    return data


def by_joint(table, joints):
    """The table's value for each joint; every joint is in exactly one row."""
    rows = [[value for pattern, value in table.items() if re.fullmatch(pattern, joint)] for joint in joints]
    assert all(len(row) == 1 for row in rows)
    return np.array([row[0] for row in rows])


@pytest.mark.parametrize("name", ASSETS)
def test_every_asset_compiles_and_can_be_drawn_without_opengl(name):
    asset, scene, _ = load(name)
    assert asset.name == name and asset.description and scene.model.nu > 0
    assert scene.model.ncam > 0  # mujoco-warp's renderer needs one


@pytest.mark.parametrize("name", ROBOTS)
def test_figures(name):
    published, (_, scene, robot) = ROBOTS[name], load(name)
    model = scene.model
    assert len(robot.joint_names) == published.joints and robot.actuator_names == robot.joint_names
    assert model.body_mass.sum() == pytest.approx(published.mass, abs=1e-6)
    np.testing.assert_allclose(robot.joint_pos_limits, by_joint(published.limits, robot.joint_names), atol=1e-6)
    efforts = by_joint(published.efforts, robot.joint_names)
    np.testing.assert_allclose(scene.actuation.effort_limit, efforts)
    np.testing.assert_allclose(model.actuator_forcerange, np.stack([-efforts, efforts], axis=1))
    if published.speeds:
        np.testing.assert_allclose(scene.actuation.velocity_limit, by_joint(published.speeds, robot.joint_names))
    limits = robot.joint_pos_limits
    assert ((robot.default_joint_pos >= limits[:, 0]) & (robot.default_joint_pos <= limits[:, 1])).all()


@pytest.mark.parametrize("name", FLOATING)
def test_feet_touch_the_ground_in_the_default_pose(name):
    asset, scene, robot = load(name)
    data = posed(scene, robot)
    assert data.xpos[robot.base, 2] == pytest.approx(ROBOTS[name].height, abs=2e-3)
    feet = [b for b in range(scene.model.nbody) if any(re.fullmatch(p, scene.model.body(b).name) for p in asset.feet)]
    assert lowest_point(scene.model, data) == pytest.approx(0.0, abs=1e-3)
    data.qpos[2] -= 2e-3
    mujoco.mj_forward(scene.model, data)
    touching = {int(scene.model.geom_bodyid[g]) for contact in data.contact for g in contact.geom} - {0}
    assert touching == set(feet)


def run(scene, robot, seconds, target):
    """Joint and base positions after that time under constant targets: qpos [nq] and the base's upright axis z."""
    stepper = sim.build(scene.model, 2, "cpu", SimConfig(engine="mujoco", num_threads=1), scene.actuation)
    stepper.write("qpos", robot.default_qpos.expand(2, -1))
    stepper.forward()
    up = stepper.field("xmat").reshape(2, -1, 9)
    stepper.step(round(seconds / 0.005), target.expand(2, -1))
    return stepper.field("qpos")[0].double().clone(), float(up[0, robot.base, 8])


@pytest.mark.parametrize("name", FLOATING)
def test_stands_for_two_seconds(name):
    _, scene, robot = load(name)
    qpos, upright = run(scene, robot, 2.0, robot.default_joint_pos)
    assert float(qpos[2]) == pytest.approx(ROBOTS[name].height, rel=0.15)
    assert upright > 0.98


@pytest.mark.parametrize("name", ["franka", "franka_torque"])
def test_panda_holds_its_pose(name):
    """Under position targets, and under torques of zero: gravity is compensated."""
    _, scene, robot = load(name)
    target = robot.default_joint_pos.clone()
    if name == "franka_torque":
        target[:7] = 0.0
    qpos, _ = run(scene, robot, 2.0, target)
    assert float((qpos - robot.default_qpos).abs().max()) < 0.02


@pytest.mark.parametrize("name", ["go2"])
def test_left_mirrors_right(name):
    """Masses, centres of mass, inertia tensors and joints of the legs, mirrored in the xz plane."""
    _, scene, _ = load(name)
    model = scene.model
    mirror = np.diag([1.0, -1.0, 1.0])

    def tensor(body):
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, body.iquat)
        rotation = rotation.reshape(3, 3)
        return rotation @ np.diag(body.inertia) @ rotation.T

    pairs = [(n, n.replace("L_", "R_", 1)) for n in (model.body(b).name for b in range(model.nbody)) if n[1:3] == "L_"]
    assert len(pairs) == 8
    for left, right in [(model.body(a), model.body(b)) for a, b in pairs]:
        assert left.mass == right.mass
        np.testing.assert_allclose(left.pos, mirror @ right.pos, atol=1e-9)
        np.testing.assert_allclose(left.ipos, mirror @ right.ipos, atol=1e-9)
        np.testing.assert_allclose(tensor(left), mirror @ tensor(right) @ mirror, atol=1e-8)
        if left.jntnum[0]:
            a, b = model.joint(left.jntadr[0]), model.joint(right.jntadr[0])
            np.testing.assert_array_equal(a.axis, b.axis)
            np.testing.assert_array_equal(a.range, b.range)


def test_go2_legs_are_two_links_of_213_mm_below_the_hips():
    """Feet at random joint angles, against the leg's kinematics by hand."""
    _, scene, robot = load("go2")
    data, rng = posed(scene, robot), np.random.default_rng(0)
    base = data.xpos[robot.base].copy()

    def about_y(angle, point):
        return (
            np.array([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]) @ point
        )

    link = np.array([0, 0, -0.213])
    for leg, (x, y) in {"FL": (1, 1), "FR": (1, -1), "RL": (-1, 1), "RR": (-1, -1)}.items():
        hip, thigh, calf = rng.uniform([-1, 0, -2.7], [1, 2, -0.9])
        for part, angle in (("hip", hip), ("thigh", thigh), ("calf", calf)):
            data.joint(f"{leg}_{part}_joint").qpos[0] = angle
        mujoco.mj_kinematics(scene.model, data)
        _, v, w = [0, 0.0955 * y, 0] + about_y(thigh, link + about_y(calf, link))
        u = about_y(thigh, link + about_y(calf, link))[0]
        c, s = math.cos(hip), math.sin(hip)
        expected = base + [0.1934 * x + u, 0.0465 * y + c * v - s * w, s * v + c * w]
        np.testing.assert_allclose(data.body(f"{leg}_foot").xpos, expected, atol=1e-9)


def test_panda_hand_is_where_frankas_dh_parameters_put_it():
    """Grasp point and hand at random joint angles; Denavit-Hartenberg parameters (Craig) of Franka's documentation."""
    _, scene, robot = load("franka")
    data, rng, half = mujoco.MjData(scene.model), np.random.default_rng(0), math.pi / 2
    table = [  # a [m], d [m], alpha [rad]
        (0, 0.333, 0),
        (0, 0, -half),
        (0, 0.316, half),
        (0.0825, 0, half),
        (-0.0825, 0.384, -half),
        (0, 0, half),
        (0.088, 0, half),
        (0, 0.107 + 0.1034, 0),  # flange, then the grasp point of the hand, which is turned by -45 deg
    ]
    for _ in range(10):
        q = rng.uniform(robot.joint_pos_limits[:7, 0], robot.joint_pos_limits[:7, 1])
        data.qpos[:7] = q
        mujoco.mj_kinematics(scene.model, data)
        frame = np.eye(4)
        for (a, d, alpha), theta in zip(table, [*q, -math.pi / 4]):
            ca, sa, ct, st = math.cos(alpha), math.sin(alpha), math.cos(theta), math.sin(theta)
            frame = frame @ np.array(
                [[ct, -st, 0, a], [st * ca, ct * ca, -sa, -d * sa], [st * sa, ct * sa, ca, d * ca], [0, 0, 0, 1]]
            )
        np.testing.assert_allclose(data.site("ee").xpos, frame[:3, 3], atol=1e-6)
        np.testing.assert_allclose(data.site("ee").xmat.reshape(3, 3), frame[:3, :3], atol=1e-6)


@pytest.mark.parametrize("name", ["go2", "franka"])
def test_touches_the_ground_but_not_itself(name):
    """Random poses at the height of the ground."""
    _, scene, robot = load(name)
    data, rng = posed(scene, robot), np.random.default_rng(0)
    low, high = robot.joint_pos_limits.double().numpy().T
    grounded = 0
    for _ in range(200):
        data.qpos[robot.qpos_adr] = rng.uniform(low, high)
        if robot.floating:
            data.qpos[2:7] = [0.1, *rng.normal(size=4)]
        mujoco.mj_forward(scene.model, data)
        bodies = scene.model.geom_bodyid[data.contact.geom].reshape(-1, 2)
        assert (bodies == 0).any(axis=1).all()
        grounded += len(bodies) > 0
    assert grounded > 10


def test_pd_torque_of_a_fast_joint_is_the_motors():
    """Half way to the no-load speed a motor of the go2 gives half of its stall torque."""
    _, scene, robot = load("go2")
    law = Law(scene.actuation, 1, "cpu", torch.float64)
    qvel = torch.zeros(1, scene.model.nv, dtype=torch.float64)
    thigh, calf = robot.joint_names.index("FL_thigh_joint"), robot.joint_names.index("FL_calf_joint")
    qvel[0, robot.qvel_adr[thigh]], qvel[0, robot.qvel_adr[calf]] = 15.05, 7.85
    target = robot.default_joint_pos.double()[None] + 100.0
    torque = law.control(target, robot.default_qpos.double()[None], qvel)[0]
    assert float(torque[thigh]) == pytest.approx(23.7 / 2) and float(torque[calf]) == pytest.approx(45.43 / 2)
