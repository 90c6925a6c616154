"""Actions and late observations: every action space by hand, the low-pass, delays, and both on a robot."""

import json
import math
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import isaacrl
from isaacrl import algos, cli
from isaacrl.config import compose
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.export import export_policy
from isaacrl.sim.actuators import Law

ROOT = Path(__file__).resolve().parent.parent
# A cart-pole with a drive on both joints, that starts at its default pose. SERVO: targets are positions.
STILL = ["~task.events.reset_joints", "~task.terminations.fallen", "~task.terminations.off_rail"]
SERVO = [
    "~asset.actuators.cart",
    "asset.actuators.all={joints: ['.*'], law: pd, kp: 30.0, kd: 2.0, effort_limit: 8.0, saturation_effort: 12.0, "
    "velocity_limit: 6.0, armature: 0.05}",
    "+asset.default_pose.slider=0.2",
    "+asset.default_pose.hinge=-0.1",
    "~task.actions.effort",
    *STILL,
]


def make(*overrides, n=3, **keys):
    return isaacrl.make("cartpole", num_envs=n, device="cpu", overrides=overrides, **keys)


def target_of(env, action):
    """Targets [E, 2] or [E, 1] for an action, of no consequence to the environment."""
    return env.task.pre_physics_step(env.state, torch.tensor(action).expand(env.num_envs, -1))


def test_position_targets_are_about_the_default_pose_with_a_scale_by_joint():
    env = make(*SERVO, "task.actions.position={scale: {slid.*: 0.5, .*: 2.0}}")
    torch.testing.assert_close(target_of(env, [0.4, 3.0])[0], torch.tensor([0.2 + 0.5 * 0.4, -0.1 + 2.0 * 3.0]))
    env = make(*SERVO, "task.actions.position={scale: {.*: 2.0, slider: 0.5}, clip: 1.0}")  # the first match counts
    torch.testing.assert_close(target_of(env, [0.4, 3.0])[0], torch.tensor([0.2 + 2.0 * 0.4, -0.1 + 2.0]))


def test_actions_of_minus_one_to_one_span_the_joint_limits():
    env = make(*SERVO, "task.actions.position={joints: [slider], use_limits: true}")  # the rail: +-1.8 m
    for action, expected in ((-1.0, -1.8), (0.0, 0.0), (0.5, 0.9), (1.0, 1.8), (7.0, 1.8)):
        assert target_of(env, [action])[0, 0].item() == pytest.approx(expected)


def test_relative_targets_start_from_what_the_encoders_read():
    """Encoder coordinates: measured + scale * action; the joint goes where the encoder then reads that."""
    env = make(*SERVO, "task.actions.relative_position={scale: 0.1}")
    env.state.encoder_bias[1] = torch.tensor([0.03, -0.02])
    at_joint, term = target_of(env, [2.0, -1.0]), env.task.actions[0].fn
    torch.testing.assert_close(term.target[0], torch.tensor([0.4, -0.2]))
    torch.testing.assert_close(term.target[1], torch.tensor([0.43, -0.22]))
    torch.testing.assert_close(at_joint[1], torch.tensor([0.4, -0.2]))
    env = make(*SERVO, "task.actions.position={scale: 0.5}")
    env.state.encoder_bias[1] = torch.tensor([0.03, -0.02])
    torch.testing.assert_close(target_of(env, [0.0, 0.0])[1], torch.tensor([0.2 - 0.03, -0.1 + 0.02]))


def test_torque_and_velocity_targets():
    env = make("task.actions.effort={scale: {slider: 4.0}, clip: 2.0}")
    assert [target_of(env, [a])[0, 0].item() for a in (0.5, -9.0)] == [2.0, -8.0]
    env = make("task.actions.effort={scale: 8.0, clip: 2.0}")
    assert target_of(env, [-9.0])[0, 0].item() == -10.0  # the motor's limit
    speed = ["~asset.actuators.cart", "asset.actuators.all={law: velocity, kd: 5.0}", "~task.actions.effort"]
    env = make(*speed, "task.actions.velocity={joints: [hinge], scale: 3.0}")
    torch.testing.assert_close(target_of(env, [0.5])[0], torch.tensor([0.0, 1.5]))


def test_actions_count_as_saturated_where_no_target_changes_any_more():
    """By the clip, by the motor's limit, by the farther limit of a joint; never where nothing bounds them."""
    env = make("task.actions.effort={scale: 8.0, clip: 2.0}", n=4)  # the motor: +-10 N
    assert env.task.action_reach(env.state).tolist() == [1.25] and env.task.action_bounds(env.state).tolist() == [2.0]
    env.step(torch.tensor([[1.3], [-1.24], [1.2], [torch.nan]]))
    assert env.read_metrics()["saturated"] == pytest.approx(2 / 4)
    env.step(torch.zeros(4, 1))
    assert env.read_metrics()["saturated"] == 0.0
    env = make("task.actions.effort={scale: 1.0, clip: 2.0}")
    assert env.task.action_reach(env.state).tolist() == [2.0]
    env = make(*SERVO, "task.actions.position={scale: 0.5}")  # the slider from 0.2 to -1.8 m; the hinge turns freely
    assert env.task.action_reach(env.state).tolist() == pytest.approx([4.0, math.inf])
    assert env.task.action_bounds(env.state).tolist() == pytest.approx([4.0, 1.0])
    env.step(torch.tensor([-4.0, 100.0]).expand(3, 2))
    assert env.read_metrics()["saturated"] == 0.5
    env = make(*SERVO, "task.actions.relative_position={scale: 0.1}")
    assert torch.isinf(env.task.action_reach(env.state)).all()


def test_low_pass_follows_the_step_response_of_a_first_order_filter():
    """target_k = goal + (start - goal) exp(-2 pi f k dt), whatever else is computed in between."""
    env = make(*SERVO, "task.actions.position={scale: 0.5, low_pass_hz: 1.5}")
    start, goal = torch.tensor([0.2, -0.1]), torch.tensor([0.2 + 0.5, -0.1 - 0.25])
    for k in range(1, 30):
        target_of(env, [5.0, 5.0])  # a look at a target moves nothing
        _, _, _, _, info = env.step(torch.tensor([1.0, -0.5]).expand(3, 2))
        rest = math.exp(-2.0 * math.pi * 1.5 * k * env.step_dt)
        torch.testing.assert_close(info["target"][0], goal + (start - goal) * rest, atol=1e-6, rtol=0)


def test_low_pass_starts_anew_in_the_worlds_that_reset():
    fall = "task.terminations.high={fn: joint_pos_beyond, joints: [slider], limit: 0.4}"
    env = make(*SERVO, fall, "task.actions.position={scale: 1.0, low_pass_hz: 2.0}", n=2)
    term, ended = env.task.actions[0].fn, 0
    for _ in range(40):
        action = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        _, _, terminated, _, info = env.step(action)
        assert not terminated[0] and torch.equal(term.last_target[0], info["target"][0])
        ended += int(terminated[1])
        if terminated[1]:
            torch.testing.assert_close(term.last_target[1], torch.tensor([0.2, -0.1]))
        else:
            assert torch.equal(term.last_target[1], info["target"][1])
    assert ended > 0


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("task.actions.effort={scale: {slidr: 1.0}}", "slider"),
        ("task.actions.effort={joints: [slider], low_pass_hz: -1.0}", "low_pass_hz"),
        ("task.actions.effort={fn: position, joints: [slider], use_limits: true, scale: 1.0}", "exclude"),
        ("task.actions.effort={scale: {slider: fast}}", "numbers by name pattern"),
        ("task.actions.effort={fn: position, joints: [slider]}", "takes effort targets, not position; use fn: effort"),
        ("asset.actuators.cart={joints: [slider], law: velocity, kd: 1.0}", "use fn: velocity"),
        ("task.observations.policy.joint_pos.delay=[3,1]", "policy steps"),
        ("task.observations.policy.joint_pos.delay=0.5", "policy steps"),
    ],
)
def test_mistakes_say_what_and_where(override, says):
    with pytest.raises(UserError) as e:
        make(override)
    assert says in str(e.value)
    assert override.startswith("asset.") or override.split("=")[0].rsplit(".", 1)[0] in str(e.value)
    assert "\n" not in str(e.value)


def test_a_scale_must_cover_every_joint_and_limits_must_exist():
    with pytest.raises(UserError, match="no pattern matches joint 'hinge'"):
        make(*SERVO, "task.actions.position={scale: {slider: 1.0}}")
    with pytest.raises(UserError, match="'hinge' has no position limits"):
        make(*SERVO, "task.actions.position={use_limits: true}")


LATE = ["task.observations.policy.joint_pos.delay=[0,3]", "task.observations.policy.joint_vel.delay=2"]


def test_late_observations_are_those_of_the_steps_before_in_every_world():
    """Each world's own lag, drawn anew at its reset; before the first step there is only the first reading."""
    env = make(*LATE, n=64, seed=3)
    delay, past, lags = env.groups[0].delay, [], []
    pos, vel = env.state.joint_pos.clone(), env.state.joint_vel.clone()
    past = [[(pos[w], vel[w])] for w in range(64)]  # readings of each world's episode, oldest first
    for t in range(60):
        before = delay.lag.clone()
        obs, _, terminated, truncated, info = env.step(torch.sin(torch.arange(64.0) + 0.1 * t)[:, None])
        done = terminated | truncated
        pos, vel = env.state.joint_pos.clone(), env.state.joint_vel.clone()
        for w in range(64):
            lag, now = int(delay.lag[w, 0]), (pos[w], vel[w])
            past[w] = [now] if done[w] else [*past[w], now]
            expected = torch.cat((past[w][max(0, len(past[w]) - 1 - lag)][0], past[w][max(0, len(past[w]) - 3)][1]))
            assert torch.equal(obs["policy"][w], expected)
        assert torch.equal(delay.lag[~done], before[~done]) and (delay.lag[:, 2:] == 2).all()
        assert torch.equal(info["final_obs"]["policy"][~done], obs["policy"][~done])
        lags += delay.lag[done, 0].tolist()
    assert torch.equal(delay.lag[:, 0], delay.lag[:, 1]) and set(lags) == {0, 1, 2, 3} and len(lags) > 20


def test_noise_and_history_act_on_the_delayed_value():
    env = make(
        *STILL,
        "task.observations.policy.joint_pos={delay: 2, history: 3, noise: 0.01}",
        "task.observations.policy.joint_vel={delay: 1, history: 2}",
    )
    group, readings, noise = env.groups[0], [], []
    for _ in range(8):
        env.step(torch.full((3, 1), 0.3))
        readings.append((env.state.joint_pos.clone(), env.state.joint_vel.clone()))
        noise.append(group.noise[:, :2].clone())
    pos = torch.cat([readings[k - 2][0] + noise[k] for k in (5, 6, 7)], dim=1)
    torch.testing.assert_close(group.raw, torch.cat((pos, readings[5][1], readings[6][1]), dim=1))
    assert noise[7].abs().max() > 0 and not torch.equal(noise[6], noise[7])


def test_lags_do_not_depend_on_the_number_of_worlds_nor_cost_anything_without_a_delay():
    few, many = make(*LATE, n=3, seed=5), make(*LATE, n=40, seed=5)
    for t in range(50):
        action = torch.full((40, 1), math.sin(t / 3))
        a, b = few.step(action[:3]), many.step(action)
        assert torch.equal(a[0]["policy"], b[0]["policy"][:3])
    assert make().groups[0].delay is None and make("task.observations.policy.joint_pos.delay=0").groups[0].delay is None


SMOOTH = [*LATE, "task.actions.effort.low_pass_hz=4.0", "task.terminations.fallen.limit=0.2"]


def test_state_dict_continues_bit_for_bit_with_low_pass_and_delay():
    env, other = make(*SMOOTH, n=16), make(*SMOOTH, n=16)
    act = lambda t: torch.sin(torch.arange(16.0) + t)[:, None]  # noqa: E731
    for t in range(30):
        env.step(act(t))
    other.load_state_dict(env.state_dict())
    ended = 0
    for t in range(30, 70):
        a, b = env.step(act(t)), other.step(act(t))
        assert torch.equal(a[0]["policy"], b[0]["policy"]) and torch.equal(a[4]["target"], b[4]["target"])
        ended += int(a[2].sum())
    assert ended > 0


def exported(path, *overrides):
    """An untrained policy of the servo-driven cart-pole, exported: (environment of one world, algorithm, contract)."""
    cfg = compose(["task=cartpole", "num_envs=8", "device=cpu", "algo.hidden=[16]", *SERVO, *overrides])
    torch.manual_seed(1)
    env = Env(cfg)
    algo = algos.build(env, cfg)
    contract = export_policy(env, algo, path, cfg, steps=40)
    return Env(compose(["task=cartpole", "num_envs=1", "device=cpu", *SERVO, *overrides])), algo, contract


def snippet():
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.S)
    scope = {}
    exec("\n".join(code), scope)
    return scope


MEMORY = ("recurrent=gru", "rnn_hidden=8", "minibatches=1")
SPACES = {
    "position": ["task.actions.position={scale: 8.0}"],
    "relative and smoothed": ["task.actions.relative_position={scale: 6.0, low_pass_hz: 6.0}"],
    "recurrent": ["task.actions.position={scale: 8.0}", *(f"algo.{k}" for k in MEMORY)],
    "mixed": [
        "task.actions.relative_position={joints: [hinge], scale: 6.0}",
        "task.actions.position={joints: [slider], use_limits: true, low_pass_hz: 3.0}",
    ],
}


@pytest.mark.parametrize("space", SPACES)
def test_the_documented_code_moves_plain_mujoco_as_the_environment_moved(tmp_path, space):
    """Fifty steps of the policy from docs/export.md on the robot's own model file, against the environment."""
    history = "task.observations.policy.joint_vel.history=2"
    env, algo, contract = exported(tmp_path, *SPACES[space], history, "+task.observations.policy.last_action={}")
    extra = {i["name"] for i in contract["extra_inputs"]}
    assert extra == {
        "position": set(),
        "recurrent": set(),
        "relative and smoothed": {"joint_pos", "last_target"},
        "mixed": {"joint_pos", "last_target"},
    }.get(space)
    theirs = snippet()["simulate"](str(tmp_path), str(ROOT / "isaacrl" / "assets" / "cartpole.xml"), 50)
    ours, act = [], algo.controller(env)
    for _ in range(50):
        _, _, terminated, *_ = env.step(act(env.obs["policy"]))
        assert not terminated.any()
        ours.append(env.state.joint_pos[0].tolist())
    assert np.ptp(theirs, axis=0).min() > 0.05  # it moved
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_the_contract_names_what_drives_hold_that_the_policy_leaves_alone(tmp_path):
    """A position servo its joint's default position."""
    _, _, contract = exported(tmp_path, "task.actions.position={joints: [slider]}")
    assert [j["joint"] for j in contract["output"]["joints"]] == ["slider"]
    assert contract["held"] == {"hinge": pytest.approx(-0.1)}


def test_the_documented_torque_is_the_law_of_the_engines(tmp_path):
    """Gains, effort limit and torque-speed line, at errors and speeds that reach each of them."""
    env, _, contract = exported(tmp_path, *SPACES["position"])
    target, q, qd = (x * (torch.rand(200, 2, dtype=torch.float64) - 0.5) for x in (2.0, 2.0, 40.0))
    ours = Law(env.engine.actuation, 200, "cpu", torch.float64).control(target, q, qd).numpy()
    joints, torque = contract["output"]["joints"], snippet()["torque"]
    theirs = [torque(joints, *(x[i].numpy() for x in (target, q, qd))) for i in range(200)]
    np.testing.assert_allclose(theirs, ours, atol=1e-12)
    assert (np.abs(ours) == 8.0).any() and (ours == 0.0).any()  # both limits were reached


def test_an_export_of_relative_smoothed_actions_holds_for_biased_encoders_and_resets(tmp_path):
    """onnxruntime, fed as the contract says, gives the targets; delays and noise stay out of what a robot does."""
    delay = "task.observations.policy.joint_pos={delay: [0, 2], noise: 0.01}"
    env, algo, contract = exported(tmp_path, *SPACES["mixed"], delay)
    assert contract["parity"]["max_abs_error"] < 1e-5 and contract["parity"]["resets"] > 0
    term = contract["input"]["terms"][0]
    assert term["training_only"] == {"delay_steps": [0, 2], "noise": 0.01}
    slider, hinge = contract["output"]["joints"]
    assert (slider["target"], slider["relative"], slider["low_pass_hz"]) == ("position", False, 3.0)
    assert (hinge["target"], hinge["relative"], hinge["low_pass_hz"]) == ("position", True, None)
    assert (slider["saturation_effort"], slider["velocity_limit"], slider["armature"]) == (12.0, 6.0, 0.05)
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    env.state.encoder_bias[:] = bias = torch.tensor([[0.02, -0.03]])
    last = (env.state.joint_pos + bias).numpy()
    env.task.actions[1].fn.last_target[:] = torch.tensor(last[:, :1])
    for _ in range(20):
        feed = {
            "obs": env.groups[0].raw.numpy(),
            "joint_pos": (env.state.joint_pos + bias).numpy(),
            "last_target": last,
        }
        last = session.run(["joint_target"], feed)[0]
        info = env.step(algo.act(env.obs["policy"]))[4]
        np.testing.assert_allclose(last - bias.numpy(), info["target"].numpy(), atol=1e-5)


def test_a_simple_policy_has_one_input(tmp_path):
    exported(tmp_path, *SPACES["position"])
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    assert [i.name for i in session.get_inputs()] == ["obs"]
    assert json.loads((tmp_path / "policy.json").read_text())["extra_inputs"] == []


def test_a_resumed_run_with_low_pass_and_delay_equals_one_without_a_break(tmp_path):
    tiny = ["num_envs=16", "algo.num_steps=8", "algo.minibatches=2", "algo.hidden=[16]", "device=cpu", *SMOOTH]
    keys = ["logger.console=none", "algo.iterations=4"]
    assert cli.main(["train", *tiny, f"outputs={tmp_path / 'whole'}", *keys]) == 0
    assert cli.main(["train", *tiny, f"outputs={tmp_path / 'parts'}", keys[0], "algo.iterations=2"]) == 0
    run = next((tmp_path / "parts" / "cartpole").iterdir())
    assert cli.main(["train", f"run={run}", "resume=true", *keys]) == 0
    rows = []
    for folder in ("whole", "parts"):
        text = next((tmp_path / folder).rglob("metrics.jsonl")).read_text().splitlines()
        rows.append([{k: v for k, v in json.loads(x).items() if k.startswith(("reward", "loss", "kl"))} for x in text])
    assert rows[0] == rows[1] and len(rows[0]) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_actions_and_delays_on_a_gpu_never_wait_for_it():
    overrides = [*SERVO, *SPACES["mixed"], *LATE]
    env = isaacrl.make("cartpole", num_envs=256, device="cuda", overrides=overrides)
    action = torch.randn(256, 2, device="cuda")
    for _ in range(20):
        env.step(action)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            env.step(action)
    finally:
        torch.cuda.set_sync_debug_mode("default")
