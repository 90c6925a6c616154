"""Curricula: how they move, what follows them, and that they are logged and stored."""

import pytest
import torch

from isaacrl.config import compose
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.terms.curriculum import hold


def env(*overrides, task="cartpole", num_envs=8):
    return Env(compose([f"task={task}", f"num_envs={num_envs}", "device=cpu", *overrides]))


def ended(e, metric, values, mask=None, steps=100):
    """As if whole episodes with these values of the metric ended in the worlds of mask."""
    s = e.state
    s.episode_step.fill_(steps)
    s.whole.fill_(True)
    s.episode_metrics[metric] = torch.as_tensor(values, dtype=torch.float32).expand(e.num_envs)
    for term in e.curricula:
        term(s, e.everywhere if mask is None else mask)


GROWS = "+task.curricula.grows={fn: performance, metric: upright, above: 0.5, episodes: 4}"
METRIC = "+task.metrics.upright={fn: joint_pos_within, joints: hinge, limit: 0.2}"


def progress(e, name="grows"):
    return e.state.curriculum(name).progress.item()


def test_steps_of_the_run():
    e = env("+task.curricula.late={fn: steps, start: 10, end: 30}")
    for step, expected in ((0, 0.0), (10, 0.0), (15, 0.25), (30, 1.0), (99, 1.0)):
        e.state.random.step.fill_(step)
        ended(e, "x", 0.0)
        assert progress(e, "late") == pytest.approx(expected)


def test_performance_goes_forward_and_back_within_its_bounds():
    e = env(METRIC, GROWS)
    assert progress(e) == 0.0
    ended(e, "upright", 0.4)
    assert progress(e) == 0.0
    ended(e, "upright", 0.6)
    assert progress(e) == pytest.approx(1 / 4)
    ended(e, "upright", [0.6, 0.6, 0.6, 0.0] * 2)
    assert progress(e) == pytest.approx(1 / 4 + (6 - 2) / 32)
    ended(e, "upright", 0.9, mask=torch.arange(8) == 3)  # one episode
    assert progress(e) == pytest.approx(1 / 4 + 5 / 32)
    for _ in range(9):
        ended(e, "upright", 1.0)
    assert progress(e) == 1.0


def test_first_resets_and_staggered_episodes_count_nothing():
    e = env(METRIC, GROWS)
    e.state.episode_metrics["upright"] = torch.ones(8)
    e.state.episode_step.zero_()
    e.curricula[0](e.state, e.everywhere)
    e.stagger()
    e.state.episode_step.fill_(5)
    e.curricula[0](e.state, e.everywhere)
    assert progress(e) == 0.0


def test_stages_follow_one_another_and_stay():
    conditions = "[{metric: upright, above: 0.5}, {metric: upright, above: 0.8}]"
    e = env(METRIC, f"+task.curricula.stage={{fn: stages, conditions: {conditions}, share: 0.75}}")
    found = e.state.curriculum("stage")
    ended(e, "upright", [0.6] * 5 + [0.1] * 3)
    assert found.stage == 0
    for _ in range(3):
        ended(e, "upright", 0.6)
    assert found.stage == 1 and found.progress == 0.5
    for _ in range(5):
        ended(e, "upright", 0.6)
    assert found.stage == 1
    for _ in range(3):
        ended(e, "upright", 0.9)
    assert found.stage == 2 and found.progress == 1.0
    for _ in range(5):
        ended(e, "upright", 0.0)
    assert found.stage == 2


def test_rewards_events_and_commands_follow():
    e = env(
        "+task.curricula.way={fn: steps, end: 100}",
        "task.rewards.alive.weight=2.0",
        "+task.rewards.alive.curriculum={name: way, from: 0.5}",
        "+task.rewards.pole_speed.curriculum={name: way, to: 0.0}",
        "task.events.reset_joints.position=[0.1, 0.1]",
        "+task.events.reset_joints.curriculum=way",
        "+task.commands.wish={fn: uniform, low: [3.0], high: [3.0], curriculum: way}",
    )
    s, names = e.state, e.task.reward_names
    found = s.curriculum("way")
    for p in (0.0, 0.25, 1.0):
        found.progress.fill_(p)
        s.random.step.fill_(round(100 * p))
        e.reset()
        reward = e.task.rewards(s)[:, names.index("alive")]
        assert reward == pytest.approx(2.0 * (0.5 + 0.5 * p))
        assert s.command("wish") == pytest.approx(3.0 * p)
        assert s.joint_pos[:, 0] == pytest.approx(0.1 * p, abs=1e-6)
        share = e.task.reward_terms[names.index("pole_speed")].share(s)
        assert float(share) == pytest.approx(1.0 - p)


def test_bad_episodes_lead_back_as_far_as_told_and_cut_off_ones_count_nothing():
    e = env(METRIC, GROWS.replace("episodes: 4", "episodes: 4, back: 0.5"))
    ended(e, "upright", 1.0)
    ended(e, "upright", [0.0] * 4 + [1.0] * 4)
    assert progress(e) == pytest.approx(1 / 4 + (4 - 0.5 * 4) / 32)
    e.state.episode_metrics["upright"] = torch.ones(8)
    e.state.episode_step.fill_(50)
    e.reset()
    assert progress(e) == pytest.approx(10 / 32) and e.state.whole.all()


def test_a_commands_ranges_follow():
    e = env(
        "task.commands.velocity.curriculum=way",
        "+task.curricula.way={fn: steps, end: 100}",
        task="go2_flat",
        num_envs=64,
    )
    speeds = []
    for step in (30, 100):
        e.state.random.step.fill_(step)
        e.reset()
        speeds.append(e.state.command("velocity")[:, 0].abs().max().item())
    assert 0.25 < speeds[0] < 0.31 and 0.9 < speeds[1] < 1.01, speeds


def test_a_stage_switches_on():
    e = env(
        METRIC,
        "+task.curricula.stage={fn: stages, conditions: [{metric: upright, above: 0.5}]}",
        "+task.rewards.alive.curriculum={name: stage, stage: 1}",
    )
    alive = e.task.reward_names.index("alive")
    assert (e.task.rewards(e.state)[:, alive] == 0.0).all()
    for _ in range(3):
        ended(e, "upright", 1.0)
    assert (e.task.rewards(e.state)[:, alive] > 0.0).all()


def test_commands_have_the_ranges_of_their_stage():
    e = env(task="humanoid_curriculum", num_envs=200)
    s, stage, push = e.state, e.state.curriculum("stage").stage, next(t for t in e.events if t.name == "push")
    for k, (low, high, turn, pushed) in enumerate(
        [(0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), (0.5, 1.0, 0.0, 1.0), (-0.3, 1.5, 0.8, 1.0), (-0.3, 1.5, 0.8, 1.0)]
    ):
        stage.fill_(k)
        s.random.step += 1
        e.reset()
        value = s.command("velocity")
        assert (value[:, 0] >= low).all() and (value[:, 0] <= high).all() and (value[:, 1] == 0.0).all()
        assert value[:, 2].abs().max() <= turn and float(push.share(s)) == pushed
        if high > low:
            assert value[:, 0].max() - value[:, 0].min() > 0.9 * (high - low)


def test_progress_is_logged_and_stored():
    one, other = env(METRIC, GROWS), env(METRIC, GROWS)
    ended(one, "upright", 1.0)
    assert one.read_metrics()["curriculum/grows"] == pytest.approx(0.25)
    other.load_state_dict(one.state_dict())
    assert progress(other) == pytest.approx(0.25)


def test_what_is_no_training_stands_where_the_checkpoint_does():
    """Progress as it was, levels as often as there were, and neither moves."""
    small = ["task.terrain.levels=4", "task.terrain.columns=6", "task.terrain.border=3"]
    grows = "+task.curricula.grows={fn: performance, metric: lin_vel_error, below: 9.0, episodes: 4}"
    one, other = (env(*small, grows, task="go2_rough", num_envs=n) for n in (40, 20))
    one.state.ground.level.copy_(torch.tensor([0, 1, 1, 3] * 10))
    one.state.curriculum("grows").progress.fill_(0.5)
    hold(other, one.state_dict()["env"])
    ground = other.state.ground
    assert torch.bincount(ground.level, minlength=4).tolist() == [5, 10, 0, 5]
    for column in range(6):  # levels are spread over the kinds
        assert len(set(ground.level[ground.column == column].tolist())) > 1 or column > 4
    assert ((other.state.base_pos_w - ground.origin)[:, :2].abs() < 0.05).all()
    before = ground.level.clone()
    other.state.episode_step.fill_(other.max_episode_steps - 1)
    other.step(torch.zeros(20, other.task.num_actions))
    assert progress(other) == 0.5 and torch.equal(ground.level, before)


def test_a_compiled_step_moves_it_as_a_plain_one_does():
    results = []
    for fused in (False, True):
        e = env(METRIC, GROWS, "task.episode_length_s=0.1", num_envs=67)
        e.fused = fused
        for _ in range(12):
            e.step(torch.zeros(67, 1))
        results.append(progress(e))
    assert results[0] == pytest.approx(results[1]) and results[0] > 0.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([GROWS], "task.curricula.grows: no metric 'upright'; task.metrics has:"),
        (["+task.curricula.x={fn: steps, start: 5, end: 5}"], "task.curricula.x: start: 5, end: 5; must be"),
        (["+task.rewards.alive.curriculum=grows"], "task.rewards.alive: no curriculum 'grows'"),
        (["+task.rewards.alive.curriculum={nam: x}"], "task.rewards.alive.curriculum"),
        (["+task.curricula.x={fn: steps, end: 5}", "+task.rewards.alive.curriculum={name: x, stage: 1}"], "no stages"),
        ([METRIC, "+task.curricula.x={fn: performance, metric: upright}"], "give one of above and below"),
        (["+task.curricula.x={fn: stages, conditions: []}"], "conditions: give a list"),
        (
            [METRIC, "+task.curricula.x={fn: stages, conditions: [{metric: upright, above: 0.5}], episodes: 0}"],
            "episodes: got 0; must be above 0",
        ),
        (["+task.commands.v={fn: velocity_in_stages, stage: x, lin_vel_x: [[0, 1]]}"], "no curriculum 'x'"),
        (["+task.commands.v={fn: velocity_in_stages, stage: x, lin_vel_x: []}"], "task.commands.v: lin_vel_x: give a"),
    ],
)
def test_mistakes_are_told(overrides, message):
    with pytest.raises(UserError) as found:
        env(*overrides)
    assert message in str(found.value)
