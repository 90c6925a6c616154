"""Observations, terminations, metrics, commands, resets and reaching by hand, on the robot of test_terms."""

import mujoco
import numpy as np
import pytest
import torch
from tumbler import BASE, DEFAULT, POSE, QPOS, VEL, make, matrix, mj_data, put, quaternion, value

from isaacrl.errors import UserError
from isaacrl.terms import Bound

# A pose command of each world: position and turns in the base's frame.
TARGET = np.array([[0.4, 0.2, -0.1, *quaternion(0.3, -0.2, 1.0)], [-0.1, 0.3, 0.5, *quaternion(3.0, 0.2, -2.0)]])


@pytest.fixture(scope="module")
def world():
    """The two worlds at POSE and VEL, with TARGET as the command `pose`."""
    env = make(task={"sensors": {"imu": {"site": "tip"}, "feet": {"fn": "contact", "bodies": ["hip"]}}})
    env.state.commands["pose"] = torch.tensor(TARGET, dtype=torch.float32)
    put(env)
    return env


def observed(world, name, **params):
    return value(world, name, "observations", **params)


def tip(world):
    """Position and axes of the site in the frame of the base, from MuJoCo's data, [2, 3] and [2, 3, 3]."""
    data = [mj_data(world.engine.model, q, v) for q, v in zip(QPOS, VEL)]
    where = [b.T @ (d.site("tip").xpos - q[:3]) for b, d, q in zip(BASE, data, QPOS)]
    axes = [b.T @ d.site("tip").xmat.reshape(3, 3) for b, d in zip(BASE, data)]
    return np.array(where), np.array(axes)


def axis_angle(turn):
    """Axis times angle of a rotation matrix, from its trace and skew part."""
    angle = np.arccos((np.trace(turn) - 1) / 2)
    return (
        angle
        / (2 * np.sin(angle))
        * np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    )


def test_observations_of_a_turned_robot(world):
    s = world.state
    s.encoder_bias[:] = torch.tensor([0.01, -0.02, 0.03, 0.04])
    joints, bias, angle = POSE[:, 6:], s.encoder_bias.double().numpy(), np.arctan2(BASE[:, 1, 0], BASE[:, 0, 0])
    away = angle - np.arctan2(-2.0, 1.0)
    expected = [
        ("joint_pos", {}, joints + bias - DEFAULT),
        ("joint_pos", {"joints": ["wheel", "knee"], "biased": False}, (joints - DEFAULT)[:, [1, 3]]),
        ("joint_pos_cos", {}, np.cos(joints + bias)),
        ("joint_pos_sin", {"biased": False}, np.sin(joints)),
        ("joint_vel", {"joints": "slide"}, [[0.3], [-0.1]]),
        ("base_height", {}, [[0.9], [1.2]]),
        ("base_lin_vel", {}, np.einsum("wji,wj->wi", BASE, VEL[:, :3])),
        ("base_ang_vel", {}, VEL[:, 3:6]),
        ("projected_gravity", {}, -BASE[:, 2]),
        ("heading", {"direction": [1.0, -2.0]}, np.stack((np.cos(away), np.sin(away)), 1)),
    ]
    for name, params, numbers in expected:
        np.testing.assert_allclose(observed(world, name, **params), numbers, atol=2e-6, err_msg=name)
    s.encoder_bias.zero_()


def test_sites_and_targets_in_the_frame_of_a_turned_base(world):
    where, axes = tip(world)
    wanted = np.array([matrix(t[3:]) for t in TARGET])
    turn = np.array([axis_angle(w @ a.T) for w, a in zip(wanted, axes)])
    distance, angle = np.linalg.norm(TARGET[:, :3] - where, axis=1), np.linalg.norm(turn, axis=1)
    site = {"site": "tip"}
    columns = lambda m: np.concatenate((m[:, :, 0], m[:, :, 1]), axis=1)  # noqa: E731
    expected = [
        ("observations", "site_pos", site, where),
        ("observations", "site_axes", site, columns(axes)),
        ("observations", "target_pos", {}, TARGET[:, :3]),
        ("observations", "target_axes", {}, columns(wanted)),
        ("observations", "target_offset", site, TARGET[:, :3] - where),
        ("observations", "target_rotation", site, turn),
        ("rewards", "position_error", site, distance),
        ("rewards", "position_reached", site | {"std": 0.4}, 1 - np.tanh(distance / 0.4)),
        ("rewards", "orientation_error", site, angle),
        ("rewards", "orientation_reached", site | {"std": 2.0}, 1 - np.tanh(angle / 2.0)),
        ("metrics", "position_error", site, distance),
        ("metrics", "orientation_error", site, angle),
    ]
    for family, name, params, numbers in expected:
        np.testing.assert_allclose(value(world, name, family, **params), numbers, atol=5e-6, err_msg=name)
    assert angle.min() > 0.5 and angle.max() < np.pi  # neither trivial nor at the edge


def test_terminations_by_hand(world):
    ends = lambda name, **params: value(world, name, "terminations", **params).astype(bool).tolist()  # noqa: E731
    assert ends("joint_pos_beyond", joints=["hip", "knee"], limit=0.6) == [True, False]
    assert ends("joint_pos_beyond", limit=8.9) == [False, True]  # either sign
    assert ends("base_height_below", height=1.0) == [True, False]
    assert [round(float(c), 2) for c in BASE[:, 2, 2]] == [0.81, 0.59]  # cosines of the tilt
    assert ends("tilted", cos=0.7) == [False, True]


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_of_velocity_by_hand(world):
    world.state.commands["velocity"] = torch.tensor([[0.4, -0.2, 0.5], [0.0, 0.0, -0.3]])
    local = np.einsum("wji,wj->wi", BASE, VEL[:, :3])[:, :2]
    error = np.linalg.norm(np.array([[0.4, -0.2], [0.0, 0.0]]) - local, axis=1)
    np.testing.assert_allclose(value(world, "lin_vel_error", "metrics"), error, rtol=1e-5)
    np.testing.assert_allclose(value(world, "ang_vel_error", "metrics"), [0.3, 0.8], rtol=1e-5)
    wheel = {"joints": "wheel", "limit": 0.5}  # 4.0 and -9.0 are -2.28 and -2.72 but for whole turns
    assert value(world, "joint_pos_within", "metrics", **wheel).tolist() == [0.0, 0.0]
    assert value(world, "joint_pos_within", "metrics", **wheel | {"limit": 2.5}).tolist() == [1.0, 0.0]


def test_forward_speed_is_displacement_over_time_and_last_values_are_not_averaged():
    """An episode of ten steps: the mean of the speeds is the whole way over the whole time; the clock reads its end."""
    clock = {"fn": f"{__name__}:clock"}
    table = {"forward_speed": {"direction": [3.0, 4.0]}, "mean": clock, "last": clock | {"reduce": "last"}}
    env = make(task={"metrics": table, "rewards": {"progress": {"weight": 2.0}}, "episode_length_s": 0.2})
    action = torch.tensor([[0.5, -0.2, 0.1, 0.3], [0.1, 0.3, -0.2, 0.4]])
    for _ in range(2):  # the second episode starts where the robot was put, not where it had been
        put_start = env.state.base_pos_w.double().numpy().copy()
        total = 0.0
        for step in range(10):
            if step == 9:
                env.max_episode_steps = 99  # to see where the last step ends
            before = env.state.base_pos_w.double().numpy().copy()
            _, reward, _, truncated, _ = env.step(action)
            moved = env.state.base_pos_w.double().numpy() - before
            np.testing.assert_allclose(reward, 2.0 * moved[:, 0], atol=1e-6)
            total = total + moved
            assert not truncated.any()
        way = env.state.base_pos_w.double().numpy() - put_start
        np.testing.assert_allclose(total, way, atol=1e-6)
        np.testing.assert_allclose(env.last_episode_metrics[:, 0], way[:, :2] @ [0.6, 0.8] / 0.2, atol=1e-5)
        np.testing.assert_allclose(env.last_episode_metrics[:, 1:], [[0.11, 0.2]] * 2, rtol=1e-5)
        env.max_episode_steps = 10
        env.reset()


def clock(s):
    """A metric: time since the reset."""
    return s.episode_time


def test_reached_needs_a_hold_without_a_break_and_counts_every_target_that_could_be_held(world):
    """Within 2 cm and 0.2 rad for three steps. A new target is another one, however close, once it stood so long."""
    s, base = world.state, [matrix(q[3:7]) for q in QPOS]
    near, quats = [], np.zeros((2, 4))
    for w, (q, v) in enumerate(zip(QPOS, VEL)):
        site = mj_data(world.engine.model, q, v).site("toe")
        near.append(base[w].T @ (site.xpos - q[:3]))
        mujoco.mju_mat2Quat(quats[w], (base[w].T @ site.xmat.reshape(3, 3)).flatten())
    goals = {}
    for name, rise, turn in (("a", 0.0, 0.0), ("close", 0.01, 0.0), ("turned", 0.0, 0.25), ("less", 0.0, 0.15)):
        spun = np.zeros((2, 4))
        for w in range(2):
            mujoco.mju_mulQuat(spun[w], quaternion(0.0, turn, 0.0), quats[w])
        goals[name] = torch.tensor(np.concatenate((near + np.array([0.0, 0.0, rise]), spun), axis=1)).float()
    away = QPOS.copy()
    away[0, 7] += 0.3  # the hip of the first world
    s.commands["goal"] = goals["a"]
    node = {"site": "toe", "distance": 0.02, "angle": 0.2, "hold_s": 3 * s.step_dt, "command": "goal"}
    term = Bound("metrics", "reached", node, s, "task.metrics.reached")
    steps = [
        *(("a", QPOS, [0, 0]), ("a", QPOS, [0, 0]), ("a", away, [0, 1])),  # a break, in the first world
        *(("a", QPOS, [0, 1]), ("a", QPOS, [0, 1]), ("a", QPOS, [1, 1])),
        ("a", away, [1, 1]),  # reached is reached
        *(("close", away, [1, 1]), ("close", QPOS, [1, 1])),
        *(("a", QPOS, [1, 1]), ("a", QPOS, [1, 1])),  # the one before went too soon: it does not count
        *(("turned", QPOS, [1, 1]), ("turned", QPOS, [1, 1]), ("turned", QPOS, [1 / 2, 1 / 2])),
        *(("less", QPOS, [1 / 2, 1 / 2]), ("less", QPOS, [1 / 2, 1 / 2]), ("less", QPOS, [2 / 3, 2 / 3])),
    ]
    for i, (goal, qpos, share) in enumerate(steps):
        put(world, qpos)
        s.commands["goal"] = goals[goal]
        term.advance(s)
        np.testing.assert_allclose(term(s), share, atol=1e-6, err_msg=f"step {i}")
    term.reset(s, torch.tensor([True, False]))
    np.testing.assert_allclose(term(s), [0.0, 2 / 3], atol=1e-6)
    s.commands["goal"] = goals["close"]  # drawn after the reset: not a second target
    for share in (2 / 3, 2 / 3, 3 / 4):
        term.advance(s)
        np.testing.assert_allclose(term(s)[1], share, atol=1e-6)
    put(world)


# --- commands --------------------------------------------------------------------------------------------------------


def drawn(env, name, node, steps, moves=None):
    """Values of a command term over time, [steps + 1, E, n]."""
    s = env.state
    term = Bound("commands", name, node, s, f"task.commands.{name}")
    out = [term(s).clone()]
    for i in range(steps):
        s.random.step += 1
        if moves:
            moves(i)
        term.advance(s)
        out.append(term(s).clone())
    s.random.step.zero_()
    return torch.stack(out).double().numpy()


@pytest.fixture(scope="module")
def crowd():
    return make(512)


RANGES = {"lin_vel_x": [-0.5, 1.0], "lin_vel_y": [0.2, 0.6], "ang_vel_z": [-0.8, 0.4]}


def test_velocity_commands_fill_their_ranges_and_stand_as_often_as_told(crowd):
    node = RANGES | {"resample_s": [0.1, 0.2], "standing": 0.25}  # 5 to 10 steps
    seen = drawn(crowd, "velocity", node, 60)
    stands = (seen == 0.0).all(axis=2)
    for i, (low, high) in enumerate(RANGES.values()):
        moving = seen[..., i][~stands]
        assert low <= moving.min() < low + 0.01 and high - 0.01 < moving.max() <= high
        assert abs(moving.mean() - (low + high) / 2) < 0.02 * (high - low)
    fresh = np.concatenate((np.ones((1, 512), bool), (seen[1:] != seen[:-1]).any(axis=2)))
    assert abs(stands.mean() - 0.25) < 0.03
    ages = [np.diff(np.flatnonzero(fresh[:, w])) for w in range(512) if not stands[:, w].any()]
    ages = np.concatenate(ages)
    assert set(ages) == {5, 6, 7, 8, 9, 10}  # [steps]; every one of the period's range


def test_slow_velocity_commands_become_zero_but_still_turn(crowd):
    seen = drawn(crowd, "velocity", RANGES | {"minimum": 0.4}, 0)[0]
    free = drawn(crowd, "velocity", RANGES, 0)[0]
    slow = np.linalg.norm(free[:, :2], axis=1) < 0.4
    assert 0.1 < slow.mean() < 0.9
    np.testing.assert_array_equal(seen, np.where(slow[:, None], free * [0, 0, 1], free))


def test_heading_commands_turn_the_short_way_within_bounds_and_hold_their_heading(crowd):
    """The yaw rate is gain * (goal - heading), angles modulo a turn; it follows the robot from step to step."""
    node = {"lin_vel_x": [0.3, 0.3], "ang_vel_z": [-0.8, 0.4], "heading": 0.5, "standing": 0.2, "heading_gain": 0.9}
    qpos = np.tile(QPOS[0], (512, 1))
    yaws = np.array([3.0, 3.1, -3.1, 0.2, -1.0])

    def moves(i):
        qpos[:, 3:7] = quaternion(0.0, 0.0, yaws[i])
        put(crowd, qpos, np.zeros((512, 10)))

    seen = drawn(crowd, "velocity", node, 5, moves)[1:, :, [0, 2]]
    stands = (seen == 0.0).all(axis=(0, 2))
    steers = np.ptp(seen[..., 1], axis=0) > 0.0
    assert not (stands & steers).any() and abs(stands.mean() - 0.2) < 0.06 and abs(steers[~stands].mean() - 0.5) < 0.08
    found = 0
    for rate in seen[:, steers, 1].T:
        # Bounds of the goal from steps in which the rate is within its bounds: all must agree.
        inside = (rate > -0.8 + 1e-6) & (rate < 0.4 - 1e-6)
        goals = np.exp(1j * (yaws[inside] + rate[inside] / 0.9))
        assert np.allclose(goals, goals[:1], atol=1e-5)
        if inside.any():
            found += 1
            error = np.angle(goals[0] * np.exp(-1j * yaws))
            np.testing.assert_allclose(rate, np.clip(0.9 * error, -0.8, 0.4), atol=1e-5)
    assert found > 50


def test_pose_commands_are_unit_quaternions_within_their_ranges(crowd):
    node = {
        "x": [0.3, 0.6],
        "y": [-0.2, 0.2],
        "z": [0.1, 0.5],
        "roll": [2.8, 3.4],
        "pitch": [-0.3, 0.3],
        "yaw": [-1, 1],
    }
    seen = drawn(crowd, "pose", node | {"resample_s": [0.04, 0.06]}, 6)
    assert {len(np.unique(seen[:, w, 0])) for w in range(512)} == {3, 4}  # steps 0, 2 or 3, ...
    values = seen.reshape(-1, 7)
    np.testing.assert_allclose(np.linalg.norm(values[:, 3:], axis=1), 1.0, atol=1e-6)
    turns = np.array([matrix(q) for q in values[:, 3:]])  # Rz(yaw) Ry(pitch) Rx(roll)
    angles = {
        "roll": np.arctan2(turns[:, 2, 1], turns[:, 2, 2]) % (2 * np.pi),
        "pitch": -np.arcsin(turns[:, 2, 0]),
        "yaw": np.arctan2(turns[:, 1, 0], turns[:, 0, 0]),
    }
    for name, numbers in {"x": values[:, 0], "y": values[:, 1], "z": values[:, 2], **angles}.items():
        low, high = node[name]
        assert low - 1e-5 <= numbers.min() < low + 0.01 * (high - low), name
        assert high - 0.01 * (high - low) < numbers.max() <= high + 1e-5, name


def test_commands_of_a_world_do_not_depend_on_the_number_of_worlds(world, crowd):
    pose = {"x": [0.3, 0.6], "y": [-0.2, 0.2], "z": [0.1, 0.5], "resample_s": [0.1, 0.3]}
    for name, node in (("velocity", RANGES | {"resample_s": [0.1, 0.3]}), ("pose", pose)):
        np.testing.assert_array_equal(drawn(world, name, node, 20), drawn(crowd, name, node, 20)[:, :2])


def test_every_episode_has_its_share_of_commands_whole():
    """Three commands of two steps in an episode of six, the episodes after the first included."""
    table = {"goal": {"fn": "uniform", "low": [0], "high": [1], "resample_s": 0.04}}
    table["velocity"] = {"lin_vel_x": [0, 1], "resample_s": [0.04, 0.04]}
    table["pose"] = {"x": [0, 1], "y": [0, 0], "z": [0, 0], "resample_s": [0.04, 0.04]}
    env = make(task={"commands": table, "episode_length_s": 0.12})
    seen = []
    for _ in range(18):
        seen.append(torch.stack([env.state.command(name)[0, 0].clone() for name in table]))  # in force in this step
        env.step(torch.zeros(2, 4))
    seen = torch.stack(seen).reshape(9, 2, 3)
    assert torch.equal(seen[:, 0], seen[:, 1]) and (seen[1:, 0] != seen[:-1, 0]).all()


# --- resets ----------------------------------------------------------------------------------------------------------


def test_reset_base_by_hand():
    """A yaw of 90 degrees about the vertical on top of the default pose; offsets and velocities in world axes."""
    node = {"position": [[0.1, 0.3], [-0.2, -0.2], [0.05, 0.05]], "yaw": [np.pi / 2, np.pi / 2]}
    node["velocity"] = [[0.5, 0.5], [-1.0, 1.0], [0, 0], [0.1, 0.1], [0.2, 0.2], [-0.3, -0.3]]
    env = make(64, {"events": {"reset_base": node}})
    qpos, qvel = env.engine.field("qpos").clone(), env.engine.field("qvel").clone()
    start = torch.tensor([0.0, 0.0, 1.0])
    offset = qpos[:, :3] - start
    assert 0.1 <= offset[:, 0].min() < 0.12 and 0.28 < offset[:, 0].max() <= 0.3
    np.testing.assert_allclose(offset[:, 1:], [[-0.2, 0.05]] * 64, atol=1e-6)
    np.testing.assert_allclose(qpos[:, 3:7], [[0.5**0.5, 0.0, 0.0, 0.5**0.5]] * 64, atol=1e-6)
    np.testing.assert_allclose(qpos[:, 7:], [DEFAULT] * 64, atol=1e-6)
    assert -1.0 <= qvel[:, 1].min() < -0.9 and 0.9 < qvel[:, 1].max() <= 1.0
    np.testing.assert_allclose(qvel[:, [0, 2, 3, 4, 5]], [[0.5, 0.0, 0.1, 0.2, -0.3]] * 64, atol=1e-6)
    np.testing.assert_allclose(env.state.heading_w, [np.pi / 2] * 64, atol=1e-6)
    mask = torch.arange(64) % 2 == 0
    env.state.random.step += 1
    env._reset(mask)
    changed = (env.engine.field("qpos") != qpos).any(dim=1)
    assert torch.equal(changed, mask)


def test_a_turn_about_the_vertical_keeps_the_tilt():
    tilted = quaternion(0.4, -0.3, 0.7)
    env = make(2, {"events": {"reset_base": {"yaw": [1.0, 1.0]}}})
    env.state.robot.default_qpos[3:7] = torch.tensor(tilted)
    env.reset()
    turn, before = matrix(quaternion(0, 0, 1.0)), matrix(tilted)
    np.testing.assert_allclose(matrix(env.engine.field("qpos")[1, 3:7].numpy()), turn @ before, atol=1e-6)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "node", "says"),
    [
        ("rewards", {"fn": "feet_slip", "sensor": "fet"}, "no contact sensor 'fet'; did you mean feet?"),
        ("rewards", {"fn": "swing_height", "height": 0.1, "sensor": "fet"}, "no contact sensor 'fet'"),
        ("rewards", {"fn": "feet_slip", "sensor": "imu"}, "no contact sensor 'imu'; task.sensors has: feet"),
        ("rewards", {"fn": "track_lin_vel", "std": 0.5, "command": "velcity"}, "no command 'velcity'"),
        ("rewards", {"fn": "pose", "std": {"hip": 1.0}}, "std: no pattern matches joint 'knee'"),
        ("rewards", {"fn": "pose", "std": 1.0, "std_standing": 0.1}, "std_standing needs `command`"),
        ("rewards", {"fn": "position_error", "site": "tap"}, "'tap' matches nothing; did you mean tip?"),
        ("terminations", {"fn": "contact_above", "sensor": "fet"}, "no contact sensor 'fet'"),
        ("metrics", {"fn": "reached", "site": "tip", "distance": 0.1, "angle": 0.1, "hold_s": 1}, "no command 'pose'"),
        ("observations", {"fn": "imu_lin_acc", "sensor": "feet"}, "no IMU 'feet'"),
        ("observations", {"fn": "command", "name": "velcity"}, "no command 'velcity'"),
        ("commands", {"fn": "velocity", "lin_vel_x": [1.0, -1.0]}, "lin_vel_x: [1, -1] is in reverse"),
        ("rewards", {"fn": "progress", "direction": [0.0, 0.0]}, "direction: (0, 0) is none"),
    ],
)
def test_a_mistake_is_one_line_with_the_terms_key(family, node, says):
    table = {"it": node} if family != "observations" else {"policy": {"it": node}}
    task = {"sensors": {"imu": {}, "feet": {"fn": "contact", "bodies": ["hip"]}}, family: table}
    with pytest.raises(UserError) as e:
        make(1, task)
    key = f"task.{family}.{'policy.' * (family == 'observations')}it"
    assert says in str(e.value) and key in str(e.value) and "\n" not in str(e.value)
