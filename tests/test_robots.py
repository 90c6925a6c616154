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
from isaacrl.sim.fused.coverage import uncovered
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
# Ant: Gymnasium's shapes and density (a sphere; for each leg two capsules along 0.2 m by 0.2 m and one along 0.4 m by
# 0.4 m); limits and gears too.
SHORT, LONG = (math.pi * 0.08**2 * (math.hypot(a, a) + 0.08 * 4 / 3) for a in (0.2, 0.4))  # m^3
ANT = Published(
    joints=8,
    mass=5.0 * (math.pi * 0.25**3 * 4 / 3 + 4 * (2 * SHORT + LONG)),
    height=0.556,
    limits={".*_hip": (-math.radians(30), math.radians(30)), ".*_ankle": (math.radians(30), math.radians(70))},
    efforts={".*": 150.0},
    speeds={},
)
# Humanoid: mass of dm_control's; limits [deg] and gears of MuJoCo's.
HUMANOID_LIMITS = {
    "abdomen_z": (-45, 45),
    "abdomen_y": (-75, 30),
    "abdomen_x": (-35, 35),
    ".*_hip_x": (-30, 10),
    ".*_hip_z": (-60, 35),
    ".*_hip_y": (-150, 20),
    ".*_knee": (-160, 2),
    ".*_ankle_[xy]": (-50, 50),
    ".*_shoulder[12]": (-85, 60),
    ".*_elbow": (-100, 50),
}
HUMANOID = Published(
    joints=21,
    mass=40.844022,
    height=1.282,
    limits={k: (math.radians(low), math.radians(high)) for k, (low, high) in HUMANOID_LIMITS.items()},
    efforts={
        "abdomen_.*|.*_hip_[xz]|.*_elbow": 40.0,
        ".*_hip_y": 120.0,
        ".*_knee": 80.0,
        ".*_ankle_.*|.*_shoulder.": 20.0,
    },
    speeds={},
)
# G1: Unitree's g1_29dof_rev_1_0 and motor figures. Height: 0.7 m of leg with bent knees, ankle 0.053 m above the sole.
G1_LIMITS = {
    ".*_hip_pitch_joint": (-2.5307, 2.8798),
    "left_hip_roll_joint": (-0.5236, 2.9671),
    "right_hip_roll_joint": (-2.9671, 0.5236),
    ".*_hip_yaw_joint": (-2.7576, 2.7576),
    ".*_knee_joint": (-0.087267, 2.8798),
    ".*_ankle_pitch_joint": (-0.87267, 0.5236),
    ".*_ankle_roll_joint": (-0.2618, 0.2618),
    "waist_yaw_joint": (-2.618, 2.618),
    "waist_(roll|pitch)_joint": (-0.52, 0.52),
    ".*_shoulder_pitch_joint": (-3.0892, 2.6704),
    "left_shoulder_roll_joint": (-1.5882, 2.2515),
    "right_shoulder_roll_joint": (-2.2515, 1.5882),
    ".*_shoulder_yaw_joint": (-2.618, 2.618),
    ".*_elbow_joint": (-1.0472, 2.0944),
    ".*_wrist_roll_joint": (-1.97222, 1.97222),
    ".*_wrist_(pitch|yaw)_joint": (-1.61443, 1.61443),
}
G1_LEG = 1.35 + 1.52 + 1.702 + 1.932 + 0.074 + 0.608
G1_ARM = 0.718 + 0.643 + 0.734 + 0.6 + 0.085445 + 0.48405 + 0.254576
G1 = Published(
    joints=29,
    mass=3.813 + 0.214 + 0.086 + 7.818 + 2 * (G1_LEG + G1_ARM),
    height=0.757,
    limits=G1_LIMITS,
    efforts={
        ".*_hip_(pitch|yaw)_joint|waist_yaw_joint": 88.0,
        ".*_hip_roll_joint|.*_knee_joint": 139.0,
        ".*_ankle_.*|waist_(roll|pitch)_joint": 50.0,
        ".*_shoulder_.*|.*_elbow_joint|.*_wrist_roll_joint": 25.0,
        ".*_wrist_(pitch|yaw)_joint": 5.0,
    },
    speeds={},
)
# ANYmal C: the links of ANYbotics' URDF. Height: hip to knee to the foot's centre, and the foot's radius.
ANYMAL_BASE = 6.222 + 0.534 + 1.15 + 0.3262 + 0.314 + 2 * 0.73 + 5.53425 + 0.065 + 0.142 + 0.01  # to hatches and IMU
ANYMAL_SENSORS = 4 * 0.16043 + 2 * 0.287 + 0.545 + 0.695  # cameras, the lidar and its cage
ANYMAL_LEG = 3 * 0.001 + 0.74 + 1.03 + 0.33742 + 0.25  # drive outputs, hip, thigh, shank, foot
ANYMAL_C = Published(
    joints=12,
    mass=ANYMAL_BASE + ANYMAL_SENSORS + 4 * ANYMAL_LEG + 12 * 2.04,
    height=(0.285 + 0.31547) * math.cos(0.4) - 0.08795 * math.sin(0.4) + 0.03,
    limits={"L._HAA": (-0.72, 0.49), "R._HAA": (-0.49, 0.72), ".*_[HK]FE": (-9.42478, 9.42478)},
    efforts={".*": 80.0},
    speeds={".*": 7.5},
)
# H1: mujoco_menagerie's bodies; ranges and torques are Unitree's too. Height: hips, two links, heel of the sole.
H1 = Published(
    joints=19,
    mass=5.39
    + 17.789
    + 2 * (2.244 + 2.232 + 4.152 + 1.721 + 0.446)  # leg
    + 2 * (1.033 + 0.793 + 0.839 + 0.669),  # arm
    height=0.1742 + 0.4 * math.cos(0.28) + 0.4 * math.cos(0.51) + 0.056 + 0.035 * 0.01 + 0.014,
    limits={
        ".*_hip_(yaw|roll)": (-0.43, 0.43),
        ".*_hip_pitch": (-1.57, 1.57),
        ".*_knee": (-0.26, 2.05),
        ".*_ankle": (-0.87, 0.52),
        "torso": (-2.35, 2.35),
        ".*_shoulder_pitch": (-2.87, 2.87),
        "left_shoulder_roll": (-0.34, 3.11),
        "right_shoulder_roll": (-3.11, 0.34),
        "left_shoulder_yaw": (-1.3, 4.45),
        "right_shoulder_yaw": (-4.45, 1.3),
        ".*_elbow": (-1.25, 2.61),
    },
    efforts={
        ".*_hip_.*|torso": 200.0,
        ".*_knee": 300.0,
        ".*_ankle|.*_shoulder_(pitch|roll)": 40.0,
        ".*_shoulder_yaw|.*_elbow": 18.0,
    },
    speeds={},
)
ROBOTS = {
    "ant": ANT,
    "humanoid": HUMANOID,
    "g1": G1,
    "h1": H1,
    "anymal_c": ANYMAL_C,
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
    assert all(contact.dim >= 3 for contact in data.contact)  # with friction, whatever geom defaults the model has


def run(scene, robot, seconds, target):
    """Joint and base positions after that time under constant targets: qpos [nq] and the base's upright axis z."""
    stepper = sim.build(scene.model, 2, "cpu", SimConfig(engine="mujoco", num_threads=1), scene.actuation)
    stepper.write("qpos", robot.default_qpos.expand(2, -1))
    stepper.forward()
    up = stepper.field("xmat").reshape(2, -1, 9)
    stepper.step(round(seconds / 0.005), target.expand(2, -1))
    return stepper.field("qpos")[0].double().clone(), float(up[0, robot.base, 8])


@pytest.mark.parametrize("name, seconds", [("go2", 2.0), ("anymal_c", 2.0), ("h1", 0.5)])
def test_stands_for_that_long(name, seconds):
    """The quadrupeds for good; the H1's ankles do not hold it up for much longer."""
    _, scene, robot = load(name)
    qpos, upright = run(scene, robot, seconds, robot.default_joint_pos)
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


@pytest.mark.parametrize("name", ["ant", "go2", "anymal_c", "franka"])
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


# Centre of mass from the base [m] and inertia tensor about it [kg m^2], joints at 0.3 sin(i). G1: the published one's.
# H1: mujoco_menagerie's. ANYmal C: menagerie's legs, which have frames of their own, on a base of the URDF's links.
INERTIA = {
    "g1": (
        [0.0381145, -0.0018708, -0.0933755],
        [[3.6517272, 0.0418115, -0.1404221], [0.0418115, 3.2327670, 0.4130895], [-0.1404221, 0.4130895, 0.5870199]],
        1e-6,
    ),
    "h1": (
        [-0.0053307, 0.0026443, -0.0269732],
        [[6.1767737, -0.0824387, -0.5078313], [-0.0824387, 5.2551592, 0.2269315], [-0.5078313, 0.2269315, 1.4401309]],
        1e-6,
    ),
    "anymal_c": (  # menagerie's legs are rounded
        [-0.0100879, 0.0015087, -0.0703710],
        [[2.0178933, 0.2032475, 0.0483014], [0.2032475, 6.2362240, 0.0112291], [0.0483014, 0.0112291, 6.2120401]],
        1e-5,
    ),
}


@pytest.mark.parametrize("name", INERTIA)
def test_inertia_of_the_whole_robot(name):
    _, scene, robot = load(name)
    model, data = scene.model, mujoco.MjData(scene.model)
    data.qpos[robot.qpos_adr] = 0.3 * np.sin(np.arange(len(robot.joint_names)))
    mujoco.mj_kinematics(model, data)
    com = model.body_mass @ data.xipos / model.body_mass.sum()
    inertia = np.zeros((3, 3))
    for body in range(model.nbody):
        rotation, r = data.ximat[body].reshape(3, 3), data.xipos[body] - com
        inertia += rotation @ np.diag(model.body_inertia[body]) @ rotation.T
        inertia += model.body_mass[body] * (r @ r * np.eye(3) - np.outer(r, r))
    centre, tensor, tolerance = INERTIA[name]
    np.testing.assert_allclose(com - data.xpos[robot.base], centre, atol=1e-6)
    np.testing.assert_allclose(inertia, tensor, atol=tolerance)


@pytest.mark.parametrize("name", ["anymal_c", "h1"])
def test_engine_warp_covers_it(name):
    assert uncovered(load(name)[1].model) == []


def test_anymal_c_drives_give_80_nm_up_to_a_third_of_their_speed():
    """Isaac Lab's line: 120 N m at stall, none at 7.5 rad/s, cut at 80 N m."""
    _, scene, robot = load("anymal_c")
    law = Law(scene.actuation, 1, "cpu", torch.float64)
    target = robot.default_joint_pos.double()[None] + 100.0
    for speed, torque in ((0.0, 80.0), (2.5, 80.0), (5.0, 40.0), (7.5, 0.0)):
        qvel = torch.full((1, scene.model.nv), speed, dtype=torch.float64)
        np.testing.assert_allclose(law.control(target, robot.default_qpos.double()[None], qvel)[0], torque, atol=1e-9)


def test_g1_gains_follow_from_rotors_and_gears():
    """Armature of a two-stage planetary gear (Unitree's figures as in mjlab); 10 Hz and a damping ratio of 2 on it."""

    def armature(rotors, first, second):
        return np.dot(rotors, [(first * second) ** 2, second**2, 1.0])  # kg m^2

    small = armature([0.139e-4, 0.017e-4, 0.169e-4], 1 + 46 / 18, 1 + 56 / 16)
    table = {
        ".*_hip_(pitch|yaw)_joint|waist_yaw_joint": armature([0.489e-4, 0.098e-4, 0.533e-4], 4.5, 1 + 48 / 22),
        ".*_hip_roll_joint|.*_knee_joint": armature([0.489e-4, 0.109e-4, 0.738e-4], 4.5, 5.0),
        ".*_ankle_.*|waist_(roll|pitch)_joint": 2 * small,
        ".*_shoulder_.*|.*_elbow_joint|.*_wrist_roll_joint": small,
        ".*_wrist_(pitch|yaw)_joint": armature([0.068e-4, 0.0, 0.0], 5.0, 5.0),
    }
    _, scene, robot = load("g1")
    model, omega = scene.model, 2 * math.pi * 10
    expected = by_joint(table, robot.joint_names)
    np.testing.assert_allclose(model.dof_armature[robot.qvel_adr], expected, rtol=1e-6)
    np.testing.assert_allclose(model.actuator_gainprm[:, 0], expected * omega**2, rtol=1e-6)
    np.testing.assert_allclose(model.actuator_biasprm[:, 2], -4 * expected * omega, rtol=1e-6)


@pytest.mark.parametrize(
    "name, joints, bodies",
    [
        ("g1", {"left_hip_roll_joint": -0.3, "right_hip_roll_joint": 0.3}, {"left_knee_link", "right_knee_link"}),
        (
            "g1",
            {"left_hip_roll_joint": -0.15, "right_hip_roll_joint": 0.15},
            {"left_ankle_roll_link", "right_ankle_roll_link"},
        ),
        ("g1", {"left_shoulder_yaw_joint": -1.4, "left_elbow_joint": -0.3}, {"left_wrist_yaw_link", "torso_link"}),
        ("h1", {"left_hip_roll": -0.3, "right_hip_roll": 0.3}, {"left_knee_link", "right_knee_link"}),
        ("h1", {"left_hip_roll": -0.22, "right_hip_roll": 0.22}, {"left_ankle_link", "right_ankle_link"}),
        ("h1", {"left_shoulder_yaw": -1.3, "left_elbow": -0.5}, {"left_elbow_link", "torso_link"}),
    ],
)
def test_runs_into_itself(name, joints, bodies):
    """Shins pressed together, feet side by side, a hand before the chest; in the default pose nothing touches."""
    _, scene, robot = load(name)
    data = posed(scene, robot)
    data.qpos[2] = 2.0
    mujoco.mj_forward(scene.model, data)
    assert data.ncon == 0
    for joint, value in joints.items():
        data.joint(joint).qpos[0] = value
    mujoco.mj_forward(scene.model, data)
    touching = {frozenset(scene.model.body(b).name for b in scene.model.geom_bodyid[c.geom]) for c in data.contact}
    assert frozenset(bodies) in touching
