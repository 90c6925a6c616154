"""Rewards and the quantities below them by hand, on a robot that is turned, tilted and moving.

Expected numbers come from plain numpy formulas and from MuJoCo's own data structures, never through State.
"""

import math

import mujoco
import numpy as np
import pytest
import torch
from tumbler import BASE, COMMAND, DEFAULT, POSE, QPOS, VEL, make, matrix, mj_data, put, quaternion, value

from isaacrl.errors import UserError
from isaacrl.state import from_euler, inverse, multiply, rotate, rotate_inverse, rotation_vector
from isaacrl.terms import Bound


class Feet:
    """What a contact sensor of two feet might read."""

    in_contact = torch.tensor([[True, False], [True, True]])
    first_contact = torch.tensor([[True, False], [False, True]])
    last_air_time = torch.tensor([[0.7, 0.9], [0.4, 3.0]])  # [s]
    force_w = torch.tensor([[[30.0, 40.0, 12.0], [0.0, 0.0, 0.0]], [[3.0, 0.0, -1.0], [2.0, 0.0, 100.0]]])  # [N]
    force = torch.linalg.vector_norm(force_w, dim=2)  # 51.4, 0, 3.16, 100.02


@pytest.fixture(scope="module")
def world():
    """The two worlds at POSE and VEL, with COMMAND and Feet."""
    env = make()
    env.state.commands["velocity"] = torch.tensor(COMMAND, dtype=torch.float32)
    env.state.sensors["feet"] = Feet()
    env.state.sensors["feet"].parts = env.state.body(r"foot\.l", "footal")
    put(env)
    return env


@pytest.fixture
def data(world):
    """MuJoCo's own data at the same states."""
    return [mj_data(world.engine.model, q, v) for q, v in zip(QPOS, VEL)]


def velocity_of(data, name):
    """(linear, angular) velocity of a body's frame in world axes, by MuJoCo's own function."""
    out = np.zeros(6)
    mujoco.mj_objectVelocity(data.model, data, mujoco.mjtObj.mjOBJ_XBODY, data.body(name).id, out, 0)
    return out[3:], out[:3]


def tilt_of(data, *names):
    """Mean squared sine of the angle between bodies' z axes and the vertical."""
    return np.mean([1.0 - data.body(name).xmat[8] ** 2 for name in names])


# --- quaternions and views -------------------------------------------------------------------------------------------


def test_quaternions_are_mujocos():
    rng = np.random.default_rng(0)
    p, q = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 50, 4)))
    v, angles = rng.normal(size=(50, 3)), rng.uniform(-3, 3, size=(50, 3))
    tp, tq, tv = (torch.as_tensor(x) for x in (p, q, v))
    for i in range(50):
        out = np.zeros(4)
        mujoco.mju_mulQuat(out, p[i], q[i])
        np.testing.assert_allclose(multiply(tp, tq)[i], out, atol=1e-12)
        np.testing.assert_allclose(rotate(tq, tv)[i], matrix(q[i]) @ v[i], atol=1e-12)
        np.testing.assert_allclose(rotate_inverse(tq, tv)[i], matrix(q[i]).T @ v[i], atol=1e-12)
        np.testing.assert_allclose(matrix(inverse(tq)[i].numpy()), matrix(q[i]).T, atol=1e-12)
        turns = matrix(from_euler(torch.as_tensor(angles))[i].numpy())
        x, y, z = (matrix(quaternion(*a)) for a in np.diag(angles[i]))
        np.testing.assert_allclose(turns, z @ y @ x, atol=1e-12)
        mujoco.mju_quat2Vel(out[:3], q[i], 1.0)
        np.testing.assert_allclose(rotation_vector(tq)[i], out[:3], atol=1e-9)
    assert torch.equal(rotation_vector(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])), torch.zeros(2, 3))


def test_views_are_those_of_the_named_parts_and_move_as_finite_differences_say(world, data):
    """Also of geoms, whose centres are off their bodies' frames, and of several trees' bodies at once."""
    s, h = world.state, 1e-6
    bodies, geoms = s.body(r"foot\.l", "hip"), s.geom("toe", "heel")
    for w, (d, v) in enumerate(zip(data, VEL)):
        later = mj_data(d.model, d.qpos, v)
        mujoco.mj_integratePos(d.model, later.qpos, v, h)
        mujoco.mj_forward(d.model, later)
        for i, name in enumerate(("hip", "foot.l")):  # in the model's order
            np.testing.assert_allclose(bodies.pos_w[w, i], d.body(name).xpos, atol=1e-6)
            np.testing.assert_allclose(matrix(bodies.quat_w[w, i]), d.body(name).xmat.reshape(3, 3), atol=1e-6)
            moved = (later.body(name).xpos - d.body(name).xpos) / h
            np.testing.assert_allclose(bodies.lin_vel_w[w, i], moved, atol=1e-4)
            np.testing.assert_allclose(bodies.ang_vel_w[w, i], velocity_of(d, name)[1], atol=1e-5)
        for i, name in enumerate(("toe", "heel")):
            np.testing.assert_allclose(geoms.pos_w[w, i], d.geom(name).xpos, atol=1e-6)
            moved = (later.geom(name).xpos - d.geom(name).xpos) / h
            np.testing.assert_allclose(geoms.lin_vel_w[w, i], moved, atol=1e-4)
        site = s.site("tip")
        np.testing.assert_allclose(site.pos_w[w, 0], d.site("tip").xpos, atol=1e-6)
        np.testing.assert_allclose(site.mat_w[w, 0], d.site("tip").xmat, atol=1e-6)
        np.testing.assert_allclose(matrix(site.quat_w[w, 0]), d.site("tip").xmat.reshape(3, 3), atol=1e-6)


def test_the_base_in_its_own_axes(world):
    s = world.state
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6)  # noqa: E731
    for w in range(2):
        close(s.base_lin_vel_b[w], BASE[w].T @ VEL[w, :3])
        close(s.base_ang_vel_b[w], VEL[w, 3:6])
        close(s.base_ang_vel_w[w], BASE[w] @ VEL[w, 3:6])
        close(s.projected_gravity_b[w], -BASE[w, 2])
        close(s.heading_w[w], math.atan2(BASE[w, 1, 0], BASE[w, 0, 0]))


# --- rewards ---------------------------------------------------------------------------------------------------------


def test_rewards_of_the_base_by_hand(world, data):
    local = np.einsum("wji,wj->wi", BASE, VEL[:, :3])  # base axes
    sine2 = 1.0 - BASE[:, 2, 2] ** 2  # of the tilt
    forward = BASE[:, :2, 0]
    cosine = forward @ np.array([3.0, -4.0]) / 5.0
    expected = {
        "track_lin_vel": ({"std": 0.5}, np.exp(-((COMMAND[:, :2] - local[:, :2]) ** 2).sum(1) / 0.25)),
        "track_ang_vel": ({"std": 0.7}, np.exp(-((COMMAND[:, 2] - VEL[:, 5]) ** 2) / 0.49)),
        "upright": ({"std": 0.6}, np.exp(-sine2 / 0.36)),
        "upright_above": ({"cos": 0.7}, BASE[:, 2, 2] > 0.7),
        "tilt_l2": ({}, sine2),
        "body_tilt_l2": ({"body": ["hip", r"foot\.l"]}, [tilt_of(d, "hip", "foot.l") for d in data]),
        "base_height_l2": ({"height": 1.0}, [0.01, 0.04]),
        "lin_vel_z_l2": ({}, local[:, 2] ** 2),
        "ang_vel_xy_l2": ({}, [0.4**2 + 0.6**2, 1.1**2 + 0.3**2]),
        "heading": ({"direction": [3.0, -4.0], "enough": 0.2}, np.where(cosine > 0.2, 1.0, cosine / 0.2)),
    }
    for name, (params, numbers) in expected.items():
        np.testing.assert_allclose(value(world, name, **params), numbers, rtol=1e-4, atol=1e-6, err_msg=name)
    assert len(set(value(world, "upright_above", cos=0.7))) == 2  # the test tells both cases
    np.testing.assert_allclose(
        value(world, "heading", direction=[-1.0, 0.0], enough=2.0), -forward[:, 0] / 2.0, rtol=1e-4
    )


def test_rewards_of_joints_by_hand(world):
    away = POSE[:, 6:] - DEFAULT
    two = {"joints": ["knee", "wheel"]}
    expected = [
        ("stand_still_l1", {}, [0.0, np.abs(away[1]).sum()]),
        ("joint_deviation_l2", two, (away[:, [1, 3]] ** 2).sum(1)),
        ("joint_deviation_l1", two, np.abs(away[:, [1, 3]]).sum(1)),
        ("joint_speed_l1", two, [3.5, 3.1]),
        ("joint_speed_l2", two, [4.0 + 2.25, 0.36 + 6.25]),
        ("joint_speed_limits_l1", two | {"limit": 1.0}, [1.0 + 0.5, 1.5]),  # speeds 2, 1.5 and 0.6, 2.5
        ("joint_speed_limits_l1", two | {"limit": 1.0, "most": 0.75}, [0.75 + 0.5, 0.75]),
        # Ranges [-1, 1], [-0.5, 1.5], [-0.1, 0.1] and none: 0.97 is 0.07 beyond 0.9, 1.4 = 0.5 + 0.9 just at it.
        ("joint_limits_l1", {"soft": 0.9}, [0.07 + 0.0 + 0.008, 0.0]),
        ("at_joint_limits", {"beyond": 0.96}, [0.25 + 0.0 + 0.5, 0.0]),
        # |q - default| = (1.17, 1.1, 0.098, 4) and (0.2, 0.2, 0.05, 9); of two patterns the first counts.
        ("pose", {"std": 2.0}, np.exp(-(away**2).mean(1) / 4.0)),
        (
            "pose",
            {"std": {"hip": 0.5, "kn.*": 1.0, ".*": 10.0}},
            [
                np.exp(-((1.17 / 0.5) ** 2 + 1.1**2 + 0.0098**2 + 0.4**2) / 4),
                np.exp(-(0.4**2 + 0.2**2 + 0.005**2 + 0.9**2) / 4),
            ],
        ),
        (
            "pose",
            {"std": 1.0, "std_standing": {"hip": 0.1, "knee": 0.4}, "command": "velocity", "joints": ["hip", "knee"]},
            [np.exp(-(1.17**2 + 1.1**2) / 2), np.exp(-(2.0**2 + 0.5**2) / 2)],
        ),
    ]
    for name, params, numbers in expected:
        np.testing.assert_allclose(value(world, name, **params), numbers, rtol=1e-4, atol=1e-6, err_msg=name)


def test_rewards_of_feet_by_hand(world, data):
    dt = world.step_dt  # 0.02 s
    planar = np.array([[velocity_of(d, b)[0][:2] for b in ("foot.l", "footal")] for d in data])
    speed, z = (
        np.linalg.norm(planar, axis=2),
        np.array([[d.body(b).xpos[2] for b in ("foot.l", "footal")] for d in data]),
    )
    touch = Feet.in_contact.numpy()
    clearance = (np.abs(z - 0.6) * speed).sum(1)
    expected = [
        # World 0: one foot lands after 0.7 s. World 1: one, after 3 s, which counts as 1 s; told to stand.
        ("feet_air_time", {"threshold": 0.5}, [0.2 / dt, 0.0]),
        ("feet_air_time", {"threshold": 0.8, "command": None}, [-0.1 / dt, 0.2 / dt]),
        ("feet_slip", {}, (speed**2 * touch).sum(1)),
        ("feet_clearance", {"height": 0.6}, [clearance[0], 0.0]),
        ("feet_clearance", {"height": 0.6, "command": None}, clearance),
        ("soft_landing", {}, [math.sqrt(50**2 + 12**2), math.hypot(2, 100)]),
        ("stumble", {"ratio": 4.0}, [1.0, 0.0]),  # 50 > 48, but neither 3 > 4 nor 2 > 400
        ("stumble", {"ratio": 2.5}, [1.0, 1.0]),
        ("contact_count", {"sensor": "feet", "threshold": 4.0}, [1.0, 1.0]),
        (
            "contact_excess",
            {"threshold": 3.0},
            [math.sqrt(50**2 + 12**2) - 3, math.hypot(3, 1) + math.hypot(2, 100) - 6],
        ),
    ]
    for name, params, numbers in expected:
        np.testing.assert_allclose(value(world, name, **params), numbers, rtol=1e-4, atol=1e-6, err_msg=name)


def test_airborne_while_no_foot_touches(world, monkeypatch):
    assert value(world, "airborne").tolist() == [0.0, 0.0]
    monkeypatch.setattr(Feet, "in_contact", torch.tensor([[False, False], [False, True]]))
    assert value(world, "airborne").tolist() == [1.0, 0.0]


def test_progress_counts_up_to_its_bound():
    """One step of the tumbling robot: how far its base moved along -y, over the step's duration, at most 0.2 m/s."""
    rewards = {
        "progress": {"direction": [0.0, -2.0], "weight": 1.0},
        "bounded": {"fn": "progress", "direction": [0.0, -2.0], "most": 0.2, "weight": 1.0},
    }
    env = make(task={"rewards": rewards})
    put(env)
    for term in env.memory_terms:
        term.reset(env.state, env.everywhere)
    before = env.state.base_pos_w.clone()
    env.step(torch.zeros(env.num_envs, env.task.num_actions))
    moved = -(env.state.base_pos_w - before)[:, 1] / env.step_dt
    plain, bounded = env.task.rewards(env.state).unbind(1)
    torch.testing.assert_close(plain, moved, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bounded, moved.clamp(max=0.2), rtol=1e-4, atol=1e-5)
    assert (moved > 0.2).any()


def test_gait_by_hand(world):
    """Period 0.4 s: after 0.1 s the phases are 0.25 and 0.75, after 0.34 s 0.85 and 0.35."""
    s = world.state
    s.episode_step[:] = torch.tensor([5, 17])  # of 0.02 s
    clock = {"period": 0.4, "offsets": [0.0, 0.5]}
    # World 0 plans (touch, fly) and touches so; world 1 plans (fly, touch), but is told to stand: both touch.
    np.testing.assert_allclose(value(world, "gait", **clock), [1.0, 1.0])
    np.testing.assert_allclose(value(world, "gait", **clock, command=None), [1.0, 0.5])
    np.testing.assert_allclose(value(world, "gait", **clock, duty=0.2, command=None), [0.5, 0.0])
    turns = 2 * np.pi * np.array([[0.25, 0.75], [0.85, 1.35]])
    observed = value(world, "gait_clock", "observations", **clock)
    np.testing.assert_allclose(observed, np.concatenate((np.sin(turns), np.cos(turns)), 1), atol=1e-5)
    s.episode_step.zero_()
    with pytest.raises(UserError, match=r"task.rewards.gait: offsets: 3 given for 2 feet"):
        value(world, "gait", period=0.4, offsets=[0.0, 0.1, 0.2])


def test_swing_height_by_hand(world):
    """The highest point since the last contact counts, once, when the foot lands."""
    s, feet = world.state, world.state.sensors["feet"]
    term = Bound("rewards", "swing_height", {"height": 0.8, "command": None}, s, "task.rewards.swing")
    rows = []
    for rise, touch in (
        (0.0, False),
        (0.3, False),
        (0.1, False),
        (0.05, True),
        (0.02, True),
        (0.2, False),
        (0.0, True),
    ):
        qpos = QPOS.copy()
        qpos[:, 2] += rise
        put(world, qpos)
        landed = touch and not (rows and rows[-1][2])
        feet.in_contact, feet.first_contact = torch.full((2, 2), touch), torch.full((2, 2), landed)
        term.advance(s)
        rows.append((feet.parts.pos_w[..., 2].double().numpy(), landed, touch, term(s).double().numpy()))
    del feet.in_contact, feet.first_contact
    put(world)
    z = np.array([r[0] for r in rows])
    paid = np.array([r[3] for r in rows])
    for step, first in ((3, 0), (6, 5)):  # landed in this step, flew since that one
        peak = z[first : step + 1].max(axis=0)
        np.testing.assert_allclose(paid[step], ((peak / 0.8 - 1) ** 2).sum(1) / world.step_dt, rtol=1e-4)
    assert not paid[[0, 1, 2, 4, 5]].any()


def test_rewards_of_actions_torques_and_episodes_by_hand():
    """Torque is 2 N m a unit of action; the step's last torques meet the velocities after it."""
    env = make(
        task={
            "rewards": {"alive": {"weight": 1.0}, "terminated": {"weight": -3.0}},
            "terminations": {"tilted": {"cos": 0.7}},
        }
    )
    s, first = env.state, torch.tensor([[0.1, -0.4, 0.5, 0.0], [0.3, 0.0, -0.2, 1.0]])
    put(env)
    before = VEL[:, 6:]
    acc = Bound("rewards", "joint_acc_l2", {"joints": ["hip", "wheel"]}, s, "task.rewards.acc")
    env.step(first * 0.5)  # world 1 is tilted: it ends and starts anew
    start = s.joint_vel.double().numpy()
    acc.advance(s)
    assert not acc(s).any()  # nothing to compare with in the first step
    second = torch.tensor([[0.6, -0.1, 0.5, -0.2], [0.0, 0.2, 0.2, 0.5]])
    _, reward, terminated, _, _ = env.step(second)
    torque, vel = 2.0 * second.double().numpy(), s.joint_vel.double().numpy()
    assert terminated.tolist() == [False, False] and np.abs(start[0] - before[0]).max() > 0.01
    np.testing.assert_allclose(reward, env.step_dt)
    acc.advance(s)
    change = (vel - start)[0, [0, 3]] / env.step_dt
    np.testing.assert_allclose(acc(s), [(change**2).sum(), 0.0], rtol=1e-3)  # world 1: the first step of an episode
    change = second - torch.tensor([[0.05, -0.2, 0.25, 0.0], [0.0] * 4])  # after a reset, from 0
    expected = {
        "action_l2": (second.numpy() ** 2).sum(1),
        "action_rate_l2": (change.numpy() ** 2).sum(1),
        "joint_torque_l2": (torque**2).sum(1),
        "energy": np.abs(torque * vel).sum(1),
    }
    for name, numbers in expected.items():
        np.testing.assert_allclose(value(env, name), numbers, rtol=1e-4, err_msg=name)
    observed = [value(env, name, "observations") for name in ("joint_torque", "last_action")]
    np.testing.assert_allclose(observed, [torque, second.numpy()], atol=1e-6)
    put(env)
    _, reward, terminated, _, _ = env.step(second)
    assert terminated.tolist() == [False, True]
    np.testing.assert_allclose(reward, [env.step_dt, -3.0], rtol=1e-5)  # the weight is the event's reward


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_terms_on_a_gpu_never_wait_for_it():
    """Those that hold numbers of their own, such as offsets, patterns and ranges; joints that lie apart."""
    apart = {"joints": ["hip", "wheel"]}
    velocity = {"lin_vel_x": [-1, 1], "ang_vel_z": [-1, 1], "heading": 0.5, "minimum": 0.1, "standing": 0.1}
    clock = {"period": 0.4, "offsets": [0.0, 0.5]}
    pose = {"x": [0.3, 0.6], "y": [-0.2, 0.2], "z": [0.1, 0.5], "yaw": [-1, 1], "resample_s": [0.1, 0.2]}
    rewards = {
        "pose": {"std": {"hip": 0.5, ".*": 1.0}, "std_standing": 0.1, "command": "velocity", **apart},
        "gait": clock,
        "swing_height": {"height": 0.1},
        "feet_air_time": {},
        "feet_slip": {},
        "stumble": {},
        "progress": {},
        "heading": {},
        "at_joint_limits": apart,
        "joint_acc_l2": apart,
        "orientation_error": {"site": "tip"},
    }
    env = make(
        64,
        {
            "sensors": {"feet": {"fn": "contact", "bodies": [r"foot\.l", "footal"], "history": 2}, "imu": {}},
            "commands": {"velocity": velocity, "pose": pose},
            "observations": {
                "policy": {"gait_clock": clock, "target_axes": {}, "site_axes": {"site": "tip"}, "imu_lin_acc": {}}
            },
            "rewards": {name: node | {"weight": 1.0} for name, node in rewards.items()},
            "metrics": {"reached": {"site": "tip", "distance": 0.02, "angle": 0.2, "hold_s": 0.1, "reduce": "last"}},
            "events": {"reset_base": {"yaw": [-3, 3], "velocity": [[-1, 1]] * 6}},
        },
        device="cuda",
    )
    action = torch.randn(64, 4, device="cuda")
    for _ in range(20):
        env.step(action)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            env.step(action)
    finally:
        torch.cuda.set_sync_debug_mode("default")
