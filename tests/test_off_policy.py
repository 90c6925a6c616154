"""SAC and TD3: closed forms, numerical integrals, the replay buffer's sums across ends, a problem with known values."""

import math
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from isaacrl import algos
from isaacrl.algos import critics as critics_of
from isaacrl.algos import off_policy_ops as ops
from isaacrl.algos import replay, sac, td3
from isaacrl.algos.networks import Adam, FlatParameters
from isaacrl.config import compose
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.schema import SACConfig, TD3Config
from isaacrl.timer import Timer

# --- densities and alpha ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.8, -1.0), (-1.5, 0.3), (0.2, -3.0)])
def test_the_density_of_a_squashed_normal_integrates_to_one_and_is_its_histogram(mean, log_std):
    x = torch.linspace(-12.0, 12.0, 200_001, dtype=torch.float64)  # before the tanh
    noise = (x - mean) / math.exp(log_std)
    action, log_prob = sac.squashed(
        torch.full_like(x, mean)[:, None], torch.full_like(x, log_std)[:, None], noise[:, None]
    )
    action = action[:, 0]
    inside = action.abs() < 1.0
    assert torch.trapezoid(log_prob.exp()[inside], action[inside]) == pytest.approx(1.0, abs=2e-3)
    normal = torch.distributions.Normal(mean, math.exp(log_std))
    reference = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1))
    some = x.abs() < 4.0
    torch.testing.assert_close(log_prob[some], reference.log_prob(torch.tanh(x[some])), rtol=1e-5, atol=1e-6)


def test_log_densities_add_up_over_actions_and_stay_finite_far_out():
    mean, log_std, noise = torch.randn(5, 3), torch.randn(5, 3), torch.randn(5, 3)
    whole = sac.squashed(mean, log_std, noise)[1]
    parts = sum(sac.squashed(mean[:, [k]], log_std[:, [k]], noise[:, [k]])[1] for k in range(3))
    torch.testing.assert_close(whole, parts)
    action, log_prob = sac.squashed(torch.tensor([[40.0]]), torch.zeros(1, 1), torch.zeros(1, 1))
    assert action == 1.0 and torch.isfinite(log_prob) and log_prob > 70.0


@pytest.mark.parametrize(("entropy", "rises"), [(-2.0, True), (1.0, False)])
def test_alpha_rises_where_the_entropy_is_too_low(entropy, rises):
    log_alpha = torch.tensor(-1.0, requires_grad=True)
    sac.alpha_loss(log_alpha, torch.full((8,), -entropy), target_entropy=-1.0).backward()
    assert (log_alpha.grad < 0.0) == rises  # a step goes against the gradient
    assert log_alpha.grad.abs() == pytest.approx(math.exp(-1.0) * abs(-1.0 - entropy))


def test_noise_of_a_target_is_clipped_and_so_is_the_action():
    action = td3.smoothed(torch.tensor([0.0, 0.0, 0.9, -0.2]), torch.tensor([2.0, -0.1, 0.4, -3.0]), clip=0.5)
    torch.testing.assert_close(action, torch.tensor([0.5, -0.1, 1.0, -0.7]))


# --- targets ---------------------------------------------------------------------------------------------------------


def critics(**changes):
    cfg = SimpleNamespace(
        **({"critic": "categorical", "twin": "mean", "v_max": 10.0, "atoms": 101, "hidden": [8]} | changes),
        critic_hidden=None,
        activation="relu",
        layer_norm=True,
    )
    return critics_of.Critics(3, 2, cfg)


def test_projection_keeps_mass_and_mean_and_clips_at_the_ends():
    g = torch.Generator().manual_seed(0)
    p = torch.randn(50, 21, generator=g, dtype=torch.float64).softmax(dim=-1)
    atoms = torch.linspace(-5.0, 5.0, 21, dtype=torch.float64)
    at = atoms * 0.7 + torch.rand(50, 1, generator=g, dtype=torch.float64)
    out = critics_of.project(p, at, 5.0)
    torch.testing.assert_close(out.sum(dim=-1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(out @ atoms, (p * at).sum(dim=-1))
    torch.testing.assert_close(critics_of.project(p, atoms.expand(50, 21), 5.0), p)  # nothing moves
    assert critics_of.project(p, at + 100.0, 5.0)[:, -1] == pytest.approx(1.0)
    assert critics_of.project(p, at - 100.0, 5.0)[:, 0] == pytest.approx(1.0)


@pytest.mark.parametrize("critic", ["categorical", "mean"])
@pytest.mark.parametrize("twin", ["mean", "min"])
def test_targets_are_those_of_bellman(critic, twin):
    """reward + discount * (value - bonus), the value being the mean or the lower one of two."""
    net = critics(critic=critic, twin=twin)
    out = net(torch.randn(64, 3), torch.randn(64, 2)) * 3.0
    if critic == "categorical":  # away from the ends, where probability is lost
        out = out - (net.atoms - torch.randn(2, 64, 1)).square()
    reward, bonus = torch.randn(64), torch.rand(64)
    discount = torch.where(torch.arange(64) % 4 == 0, 0.0, 0.97)  # every fourth one has terminated
    values = net.values(out)
    value = values.min(dim=0).values if twin == "min" else values.mean(dim=0)
    target = net.target(out, reward, discount, bonus)
    if critic == "categorical":
        target = target @ net.atoms
    torch.testing.assert_close(target, reward + discount * (value - bonus), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(target[::4], reward[::4], rtol=1e-4, atol=1e-4)


def test_twins_are_two_networks():
    net = critics_of.Twins([5, 16, 16, 3], "silu", layer_norm=True)
    for p in (*net.gains, *net.shifts):
        torch.nn.init.normal_(p)
    x = torch.randn(7, 5)
    for k, out in enumerate(net(x)):
        y = x
        for i in range(3):
            y = y @ net.weights[i][k] + net.biases[i][k]
            if i < 2:
                y = torch.nn.functional.layer_norm(y, (16,), net.gains[i][k, 0], net.shifts[i][k, 0])
                y = torch.nn.functional.silu(y)
        torch.testing.assert_close(out, y)


# --- the replay buffer -----------------------------------------------------------------------------------------------


def filled(steps, capacity=8, num_envs=3, terminated=(), truncated=()):
    """A buffer after `steps` steps in which step t of world e has observation 10 t + e and reward t + e / 10; the
    observation that it led to is 10 (t + 1) + e, or 1000 + t where the episode ended."""
    buffer = replay.Replay({"obs/policy": 1, "action": 1}, ["obs/policy"], capacity, num_envs, "cpu")
    e = torch.arange(num_envs, dtype=torch.float32)
    for t in range(steps):
        ends = [torch.tensor([(t, k) in marks for k in range(num_envs)]) for marks in (terminated, truncated)]
        following = torch.where(ends[0] | ends[1], 1000.0 + t, 10.0 * (t + 1) + e)
        columns = {"obs/policy": (10.0 * t + e)[:, None], "action": (-t - e)[:, None]}
        buffer.write(columns, {"obs/policy": following[:, None]}, t + e / 10.0, *ends)
    return buffer


def expected(t, e, steps, newest, gamma, terminated, truncated):
    """(reward, discount, following observation) by a loop over one world."""
    total, discount = 0.0, 1.0
    for k in range(steps):
        if t + k > newest:
            break
        total += discount * (t + k + e / 10.0)
        discount *= gamma
        last = t + k
        if (last, e) in terminated:
            return total, 0.0, 1000.0 + last
        if (last, e) in truncated:
            return total, discount, 1000.0 + last
    return total, discount, 10.0 * (last + 1) + e


@pytest.mark.parametrize("written", [3, 8, 21])  # not yet full, full, gone round
@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("kernels", [False, True])
def test_sums_end_with_the_episode_and_with_the_newest_step(written, steps, kernels, monkeypatch):
    monkeypatch.setattr(ops, "use", lambda x: kernels)
    terminated, truncated = {(2, 0), (17, 1), (19, 2)}, {(1, 1), (16, 0), (18, 0), (20, 1)}
    buffer = filled(written, terminated=terminated, truncated=truncated)
    rows = min(written, 8)
    assert buffer.filled == rows
    for age in range(rows):
        for e in range(3):
            if kernels:
                draws = torch.tensor([[(age + 0.5) / rows], [(e + 0.5) / 3]])
                batch = replay.Sample(*ops.transitions(buffer, draws, steps, 0.9))
            else:
                batch = buffer.transitions(torch.tensor([age]), torch.tensor([e]), steps, 0.9)
            obs, after = buffer.observed("obs/policy", batch, None)
            t = written - 1 - age
            reward, discount, following = expected(t, e, steps, written - 1, 0.9, terminated, truncated)
            assert obs == 10.0 * t + e and buffer.column("action", batch) == -t - e
            assert batch.reward.item() == pytest.approx(reward, rel=1e-6)
            assert batch.discount.item() == pytest.approx(discount, rel=1e-6)
            assert after == following


def test_samples_are_uniform_over_steps_and_worlds():
    buffer, g, counts = filled(21), torch.Generator().manual_seed(3), torch.zeros(8, 3)
    batch = buffer.sample(48_000, 1, 0.9, g)
    obs = buffer.column("obs/policy", batch)[:, 0].long()
    t, e = obs // 10, obs % 10
    assert t.min() == 13 and t.max() == 20
    counts.index_put_((t - 13, e), torch.ones(len(obs)), accumulate=True)
    chi = ((counts - 2000.0).square() / 2000.0).sum().item()
    assert chi < 23 + 5 * math.sqrt(46)


def test_a_stored_buffer_is_restored_and_only_into_one_of_its_size():
    buffer = filled(5)
    state = buffer.state_dict()
    assert state["reward"].shape == (5, 3)  # what is filled, no more
    other = replay.Replay({"obs/policy": 1, "action": 1}, ["obs/policy"], 8, 3, "cpu")
    other.load_state_dict(state)
    for a, b in zip(buffer.tensors().values(), other.tensors().values()):
        assert torch.equal(a, b)
    smaller = replay.Replay({"obs/policy": 1, "action": 1}, ["obs/policy"], 7, 3, "cpu")
    with pytest.raises(UserError, match=r"algo\.buffer_size: the stored buffer has room for 8 steps a world"):
        smaller.load_state_dict(state)


def test_a_buffer_is_as_large_as_said_or_as_its_memory():
    columns, observed = {"obs/policy": 10, "action": 3}, ["obs/policy"]
    cfg = SimpleNamespace(buffer_size=10_000, buffer_gib=None)
    assert replay.capacity(columns, observed, 100, "cpu", cfg) == 100
    cfg.buffer_gib = 98e5 / replay.GIB  # 4 * (13 + 10 + 1) + 2 = 98 bytes a transition
    cfg.buffer_size = 10**9
    assert replay.capacity(columns, observed, 100, "cpu", cfg) == 1000


# --- rewards ---------------------------------------------------------------------------------------------------------


def test_rewards_are_scaled_by_their_returns():
    scale = critics_of.RewardScale(200, 0.9, v_max=10.0)
    g = torch.Generator().manual_seed(0)
    for _ in range(300):
        scale.update(torch.randn(200, generator=g) * 4.0, torch.zeros(200, dtype=torch.bool))
    # The standard deviation of the sum of gamma^k r_k is 4 / sqrt(1 - gamma^2).
    assert 1.0 / scale(torch.tensor(1.0)) == pytest.approx(4.0 / math.sqrt(1 - 0.81), rel=0.03)
    scale.update(torch.full((200,), 1000.0), torch.ones(200, dtype=torch.bool))
    assert scale(scale.largest) == pytest.approx(10.0)  # none is beyond v_max
    assert (scale.running == 0.0).all()


# --- whole agents ----------------------------------------------------------------------------------------------------

TINY = ["num_envs=8", "device=cpu", "algo.num_steps=4", "algo.warmup=8", "algo.hidden=[16]", "algo.updates=2"]


def agent(algo, *overrides, task="cartpole_swingup"):
    cfg = compose([f"task={task}", f"algo={algo}", *TINY, *overrides])
    env = Env(cfg)
    return env, algos.build(env, cfg)


def trained(env, algo, iterations):
    timer = Timer("cpu")
    return [{k: float(v) for k, v in algo.iterate(timer).items()} for _ in range(iterations)]


@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_iterations_learn_after_the_warm_up_and_report(algo):
    env, agent_ = agent(algo)
    first, second, third = trained(env, agent_, 3)
    assert agent_.updates == 8 and not any(k.startswith("loss") for k in first | second)
    assert third["buffer"] == pytest.approx(12 / agent_.buffer.capacity) and third["skipped_updates"] == 0
    assert all(math.isfinite(v) for v in third.values()) and third["grad_norm"] > 0 and third["loss/critic"] > 0
    assert {"entropy", "alpha", "std"} <= third.keys() or algo == "td3"


@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_compiled_steps_learn_the_same(algo, monkeypatch):
    """What a GPU captures, with kernels compiled for this CPU: the same metrics and the same buffer."""
    results = []
    for fused in (False, True):
        monkeypatch.setattr(ops, "use", lambda x, fused=fused: fused)
        env, agent_ = agent(algo, "num_envs=11", task="go2_flat")
        env.fused = fused
        results.append((trained(env, agent_, 4), agent_.buffer.tensors()))
    (plain, buffer), (compiled, other) = results
    for name, x in buffer.items():
        torch.testing.assert_close(other[name], x, rtol=1e-3, atol=1e-3)
    for a, b in zip(plain, compiled):
        assert a == pytest.approx(b, rel=0.02, abs=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("overrides", [[], ["algo.utd=0.005", "algo.n_step=1"]], ids=["updates", "fraction"])
@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_graphs_on_a_gpu_learn_the_same(algo, overrides):
    """With graphs twice: the same numbers, with a resume between. Without: as far as rounding allows."""
    rows = []
    for graph in (True, True, False):
        changes = ["num_envs=512", "device=cuda", f"sim.graph={graph}", "algo.save_buffer=true", *overrides]
        env, learner = agent(algo, *changes, task="go2_flat")
        found = trained(env, learner, 4)
        state = learner.state_dict(), env.state_dict()
        env, learner = agent(algo, *changes, task="go2_flat")
        learner.load_state_dict(state[0])
        env.load_state_dict(state[1])
        rows.append(found + trained(env, learner, 2))
    assert rows[0] == rows[1]
    for a, b in zip(rows[0], rows[2]):
        assert a == pytest.approx(b, rel=0.05, abs=0.02)


def test_an_update_to_data_ratio_counts_transitions():
    env, agent_ = agent("sac", "algo.utd=0.3")  # 2.4 updates a step of 8 worlds
    trained(env, agent_, 3)
    assert agent_.updates == math.floor(4 * 2.4) == agent_.updates_per_iteration
    trained(env, agent_, 4)
    assert agent_.updates == math.floor(5 * 4 * 2.4)  # fractions add up over iterations
    env, agent_ = agent("sac", "algo.utd=0.01")  # less than one an iteration
    trained(env, agent_, 2 + 10)
    assert agent_.updates == math.floor(10 * 4 * 0.08) == 3


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([], ["algo.average=0.9"], ""),
        (["algo.normalize_reward=false"], ["algo.normalize_reward=true"], ""),
        ([], ["algo.tune_alpha=false"], "leave algo.hidden, .*algo.tune_alpha"),
        ([], ["algo.critic_hidden=[16, 16, 16]"], "leave algo.hidden"),
    ],
)
def test_what_a_resumed_agent_may_change(before, after, message):
    env, one = agent("sac", *before)
    trained(env, one, 3)
    env, other = agent("sac", *after)
    if message:
        with pytest.raises(UserError, match=message):
            algos.restore(other, one.state_dict())
        return
    algos.restore(other, one.state_dict())
    for a, b in zip(one.deployed.net.parameters(), other.actor.net.parameters()):
        assert torch.equal(a, b)
    assert all(math.isfinite(v) for v in trained(env, other, 3)[-1].values())


def test_half_a_cosine_leads_to_the_last_learning_rate():
    env, agent_ = agent("sac", "algo.iterations=5", "algo.lr=1e-3", "algo.lr_end=1e-4")
    rates = [m["lr"] for m in trained(env, agent_, 8)]
    shares = [0.0, 0.0, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0]  # of the run's updates: two iterations fill the buffer
    assert rates == pytest.approx([1e-4 + 9e-4 * (0.5 + 0.5 * math.cos(math.pi * x)) for x in shares], rel=1e-5)


@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_what_is_deployed_is_a_running_average_of_the_policy(algo):
    env, agent_ = agent(algo, "algo.average=0.8")
    trained(env, agent_, 2)
    expected_ = [p.clone() for p in agent_.deployed.net.parameters()]
    for _ in range(5):
        agent_._update(True)
        expected_ = [0.8 * a + 0.2 * p for a, p in zip(expected_, agent_.actor.net.parameters())]
    for a, p in zip(expected_, agent_.deployed.net.parameters()):
        torch.testing.assert_close(p, a)
    assert agent_.deployed.normalizer is agent_.actor.normalizer
    assert not torch.equal(agent_.deployed.net[0].weight, agent_.actor.net[0].weight)


@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_a_resumed_agent_with_its_buffer_goes_on_exactly(algo):
    env, one = agent(algo, "algo.save_buffer=true", "algo.n_step=3", "algo.average=0.9")
    trained(env, one, 4)
    state = one.state_dict(), env.state_dict()
    expected_ = trained(env, one, 2)
    env2, other = agent(algo, "algo.save_buffer=true", "algo.n_step=3", "algo.average=0.9", "seed=5")
    other.load_state_dict(state[0])
    env2.load_state_dict(state[1])
    assert trained(env2, other, 2) == expected_
    assert torch.equal(one.act(env.obs["policy"]), other.act(env2.obs["policy"]))
    env3, without = agent(algo, "algo.n_step=3", "algo.average=0.9")
    without.load_state_dict(state[0])
    env3.load_state_dict(state[1])
    metrics = trained(env3, without, 3)
    assert [("loss/critic" in m) for m in metrics] == [False, False, True]  # it fills a new one first


def test_actions_reach_the_limits_that_the_task_gives():
    env, algo = agent("sac", task="go2_flat")
    term = env.task.actions[0].fn
    limits = env.state.robot.joint_pos_limits[term.joints]
    targets = term.offset + term.scale * algo.deployed.bounds * torch.tensor([[-1.0], [1.0]])
    assert torch.minimum(targets[1] - limits[:, 1], limits[:, 0] - targets[0]).abs().max() > -1e-6
    assert (torch.maximum(targets[1] - limits[:, 1], limits[:, 0] - targets[0]) >= -1e-5).all()
    nearer = torch.maximum(
        (targets[1] - limits[:, 1]).abs().minimum((targets[0] - limits[:, 0]).abs()), limits[:, 0] * 0
    )
    assert nearer.max() < 1e-5  # no farther than the farther limit
    env, algo = agent("sac", task="cartpole_swingup")
    assert algo.deployed.bounds.tolist() == [1.0]


def test_a_loss_that_is_not_finite_changes_nothing():
    env, algo = agent("sac")
    trained(env, algo, 3)
    before = algo.critic_params.value.clone(), algo.policy_params.value.clone()
    algo.buffer.reward.fill_(math.nan)
    metrics = trained(env, algo, 1)[0]
    assert metrics["skipped_updates"] == 8
    assert torch.equal(algo.critic_params.value, before[0])
    assert algo.policy_params.value.isfinite().all()


@pytest.mark.parametrize("algo", ["sac", "td3"])
@pytest.mark.parametrize("critic", ["categorical", "mean"])
def test_values_are_those_of_a_problem_that_is_known(algo, critic):
    """Three states in a row, in each a reward of 1 - 3 (action - 0.3)^2; after the third the episode terminates.

    In half of the worlds time runs out after the second, which is no end of the world. So V = 1 + g + g^2, 1 + g and 1,
    and Q is the reward + g V of the next state.
    """
    gamma, states = 0.9, torch.eye(3)
    schema = SACConfig if algo == "sac" else TD3Config
    changes = {"hidden": [64], "critic": critic, "gamma": gamma, "lr": 3e-3, "v_max": 4.0, "tau": 0.05}
    changes |= {"normalize_obs": False, "normalize_reward": False, "layer_norm": False, "batch_size": 256, "n_step": 1}
    changes |= {"alpha": 1e-4, "tune_alpha": False} if algo == "sac" else {"target_noise": 0.0}
    cfg = OmegaConf.merge(OmegaConf.structured(schema), changes)
    task = SimpleNamespace(num_actions=1, action_bounds=lambda s: torch.ones(1))
    env = SimpleNamespace(device="cpu", num_envs=64, obs={"policy": torch.ones(64, 3)}, task=task, state=None)
    learner = algos.ALGORITHMS[algo](env, cfg, 0)
    learner._allocate()
    g = torch.Generator().manual_seed(0)
    for t in range(30):
        action = torch.rand(64, 1, generator=g) * 2.0 - 1.0
        columns = {"obs/policy": states[t % 3].expand(64, 3), "action": action}
        following = {"obs/policy": states[(t + 1) % 3].expand(64, 3)}
        ends = torch.full((64,), t % 3 == 2), (torch.arange(64) % 2 == 0) & (t % 3 == 1)
        learner.buffer.write(columns, following, 1.0 - 3.0 * (action[:, 0] - 0.3).square(), *ends)
    for k in range(1200):
        learner._update(k % cfg.policy_delay == 0)
    torch.testing.assert_close(learner.act(states), torch.full((3, 1), 0.3), rtol=0.0, atol=0.1)
    later = gamma * torch.tensor([1.0 + gamma, 1.0, 0.0])
    for a in (0.0, 0.3, 0.6):
        with torch.no_grad():
            q = learner.critics.value(learner.critics(states, torch.full((3, 1), a)))
        torch.testing.assert_close(q, 1.0 - 3.0 * (a - 0.3) ** 2 + later, rtol=0.0, atol=0.15)


def test_flat_adam_moves_only_what_it_has():
    net = torch.nn.Linear(3, 2)
    params = FlatParameters(net)
    adam = Adam(params.value, torch.tensor(0.1))
    net(torch.ones(1, 3)).sum().backward(inputs=list(net.parameters()))
    before = params.value.clone()
    adam.step(torch.tensor(True))
    torch.testing.assert_close(before - params.value, torch.full_like(before, 0.1))
