"""PPO's pieces against definitions and closed forms."""

import copy
import math
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch.distributions import Independent, Normal, kl_divergence

import isaacrl
from isaacrl.algos import ppo
from isaacrl.algos.networks import FlatParameters, Normalizer, mlp
from isaacrl.schema import PPOConfig
from isaacrl.timer import Timer


def gaussians(n=64, a=3):
    g = torch.Generator().manual_seed(0)
    mean0, mean = torch.randn(n, a, generator=g), torch.randn(n, a, generator=g)
    return mean0, torch.tensor([-1.0, 0.1, 0.5]), mean, torch.tensor([-0.7, 0.0, 0.2]), torch.randn(n, a, generator=g)


def test_a_gpus_random_generator_does_not_keep_a_cpu_from_loading():
    """A generator's state is 16 bytes on a GPU and 5056 on a CPU."""
    cfg, obs = OmegaConf.structured(PPOConfig), {"policy": torch.zeros(4, 3)}
    env = SimpleNamespace(device="cpu", num_envs=4, obs=obs, task=SimpleNamespace(num_actions=2))
    one, other = ppo.PPO(env, cfg, seed=0), ppo.PPO(env, cfg, seed=1)
    own = other.generator.get_state()
    other.load_state_dict(one.state_dict() | {"generator": torch.zeros(16, dtype=torch.uint8)})
    assert torch.equal(other.generator.get_state(), own)
    assert torch.equal(other.params.value, one.params.value)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.generator.get_state(), one.generator.get_state())


def test_gaussian_formulas_equal_torch_distributions():
    mean0, log_std0, mean, log_std, x = gaussians()
    p, q = Independent(Normal(mean0, log_std0.exp()), 1), Independent(Normal(mean, log_std.exp()), 1)
    torch.testing.assert_close(ppo.gaussian_log_prob(x, mean, log_std), q.log_prob(x))
    torch.testing.assert_close(ppo.gaussian_entropy(log_std), q.entropy()[0])
    torch.testing.assert_close(ppo.gaussian_kl(mean0, log_std0, mean, log_std), kl_divergence(p, q))


def test_gae_is_the_discounted_sum_of_td_errors():
    """The backward recursion equals the definition, world by world, cut at every end of an episode."""
    T, E, gamma, lam = 12, 5, 0.97, 0.9
    g = torch.Generator().manual_seed(1)
    reward, value, following = (torch.randn(T, E, generator=g, dtype=torch.float64) for _ in range(3))
    done = torch.rand(T, E, generator=g) < 0.25
    terminated = done & (torch.rand(T, E, generator=g) < 0.5)
    assert terminated.any() and (done & ~terminated).any()
    ours = ppo.gae(reward, value, following, terminated, done, gamma=gamma, lam=lam)
    for t, e in product(range(T), range(E)):
        expected, weight = 0.0, 1.0
        for k in range(t, T):
            bootstrap = 0.0 if terminated[k, e] else following[k, e].item()
            expected += weight * (reward[k, e] + gamma * bootstrap - value[k, e]).item()
            weight *= gamma * lam
            if done[k, e]:
                break
        assert ours[t, e].item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),  # inside the clip range: the plain gradient
        (1.5, 2.0, -2.4, 0.0),  # already improved enough
        (0.5, 2.0, -1.0, -2.0),  # a good action made less likely: pull it back
        (0.5, -2.0, 1.6, 0.0),  # a bad action already less likely
        (1.5, -2.0, 3.0, 2.0),  # a bad action made more likely: push it back
    ],
)
def test_clipped_objective(ratio, advantage, loss, slope):
    r = torch.tensor([ratio], requires_grad=True)
    out = ppo.policy_loss(r, torch.tensor([advantage]), 0.2)
    out.backward()
    assert out.item() == pytest.approx(loss)
    assert r.grad.item() == pytest.approx(slope)


def test_value_loss_takes_the_worse_of_clipped_and_plain():
    value, old, target = torch.tensor([1.0, 0.1]), torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])
    # 1: clipped to 0.2, error 0.64 instead of 0; 2: inside the range, error 0.81
    assert ppo.value_loss(value, old, target, 0.2).item() == pytest.approx((0.64 + 0.81) / 2)
    assert ppo.value_loss(value, old, target, None).item() == pytest.approx((0.0 + 0.81) / 2)


def test_normalizer_equals_the_moments_of_all_data():
    g = torch.Generator().manual_seed(0)
    data = torch.randn(1000, 3, generator=g) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([0.0, -4.0, 100.0])
    norm = Normalizer(3)
    for part in data.split([1, 99, 400, 500]):
        norm.update(part.view(-1, 1, 3))
    torch.testing.assert_close(norm.mean, data.mean(0))
    torch.testing.assert_close(norm.var, data.var(0, correction=0), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(norm.restore(norm(data)), data, rtol=1e-4, atol=1e-4)


def test_flat_parameters_share_memory_with_modules_and_gradients():
    net = mlp([3, 4, 2], "tanh", 1.0)
    flat = FlatParameters(net)
    before = [p.clone() for p in net.parameters()]
    net(torch.ones(5, 3)).sum().backward()
    assert flat.grad.abs().sum() > 0
    torch.testing.assert_close(flat.grad, torch.cat([p.grad.flatten() for p in net.parameters()]))
    with torch.no_grad():
        flat.value += 1.0
    for p, old in zip(net.parameters(), before):
        torch.testing.assert_close(p, old + 1.0)


class Chain:
    """A two-world environment with known values: reward 1 a step, time-out after `length`, observation = the step."""

    num_envs, device, fused = 2, "cpu", False

    class task:
        num_actions = 1

    def __init__(self, length=3):
        self.t, self.length, self.timer = 0, length, Timer("cpu")
        self.obs = {"policy": torch.zeros(2, 1)}

    def one_time_out(self, steps):
        return steps <= self.length

    def step_plainly(self, action):
        self.t += 1
        end = self.t == self.length
        final = torch.full((2, 1), float(self.t))
        self.t = 0 if end else self.t
        self.obs = {"policy": torch.full((2, 1), float(self.t))}
        done = torch.full((2,), end)
        return self.obs, torch.ones(2), torch.zeros(2, dtype=torch.bool), done, {"final_obs": {"policy": final}}


def agent(env, **changes):
    return ppo.PPO(env, OmegaConf.merge(OmegaConf.structured(PPOConfig()), changes), seed=0)


def rolled_out(length=3, **changes):
    algo = agent(Chain(length), **({"num_steps": 4, "minibatches": 1, "normalize_obs": False} | changes))
    algo._allocate()
    algo._rollout(Timer("cpu"))
    return algo


@pytest.mark.parametrize("length", [3, 4])  # there is room for one final observation of each step, or of each world
def test_time_outs_bootstrap_from_the_true_final_observation(length):
    algo = rolled_out(length)
    assert algo.final_obs.ndim == (3 if length == 3 else 2)
    with torch.no_grad():
        _, following = algo._values()
        seen = torch.tensor([1.0, 2.0, 3.0, 1.0 if length == 3 else 4.0])  # not the 0 of the new episode
        expected = algo.critic.restore(algo.critic(seen[:, None, None].expand(4, 2, 1)))
    torch.testing.assert_close(following, expected)


def test_rescaling_the_returns_leaves_values_unchanged():
    algo = rolled_out()
    x = torch.linspace(-2, 2, 9)[:, None]
    with torch.no_grad():
        before = algo.critic.restore(algo.critic(x))
        algo._update_returns(torch.randn(50, 2) * 30 + 100)
        torch.testing.assert_close(algo.critic.restore(algo.critic(x)), before, rtol=1e-3, atol=1e-3)


def test_a_non_finite_update_is_skipped_and_counted():
    algo = rolled_out()
    before = algo.params.value.detach().clone()
    lr = algo.lr.clone()
    algo.reward[0, 0] = math.nan
    metrics = algo._update()
    assert metrics["skipped_updates"].item() == algo.cfg.epochs
    assert torch.equal(algo.params.value, before) and torch.equal(algo.lr, lr)


def test_learning_rate_follows_the_kl():
    algo = agent(Chain(), lr=1e-3, desired_kl=0.01)
    for kl, expected in ((0.03, 1e-3 / 1.5), (0.01, 1e-3), (0.001, 1.5e-3)):
        algo.lr.fill_(1e-3)
        algo._optimizer_step(torch.tensor(True), torch.tensor(kl))
        assert algo.lr.item() == pytest.approx(expected)
    algo.cfg.schedule = "fixed"
    algo.lr.fill_(1e-3)
    algo._optimizer_step(torch.tensor(True), torch.tensor(1.0))
    assert algo.lr.item() == pytest.approx(1e-3)


def test_one_step_of_the_optimizer_is_adam_on_the_clipped_gradient():
    algo = rolled_out(epochs=1, schedule="fixed", max_grad_norm=0.05)
    before = algo.params.value.detach().clone()
    metrics = algo._update()
    assert metrics["grad_norm"].item() > 0.05
    gradient = algo.params.grad  # as clipped
    assert torch.linalg.vector_norm(gradient).item() == pytest.approx(0.05, rel=1e-3)
    step = algo.lr * gradient / (gradient.abs() + 1e-8)  # Adam's first step
    expected = before - step
    last = algo.critic.net[-1]
    n = sum(p.numel() for p in last.parameters())  # the critic's last layer is then rescaled with the returns
    torch.testing.assert_close(algo.params.value[:-n], expected[:-n], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
@pytest.mark.parametrize("value_clip", [False, True])
def test_the_gradient_by_hand_is_that_of_autograd(activation, value_clip):
    algo = agent(
        Chain(), hidden=[32, 24], activation=activation, value_clip=value_clip, entropy_coef=0.02, max_grad_norm=1e9
    )
    g = torch.Generator().manual_seed(0)
    obs, action, advantage, shift = (torch.randn(256, n, generator=g) for n in (1, 1, 1, 2))
    with torch.no_grad():
        algo.policy.net[-1].weight.mul_(50.0)
        algo.policy.log_std.fill_(-0.3)
        mean, log_std0 = algo.policy.net(obs) + 0.2 * shift[:, :1], torch.tensor([-0.2])
        log_prob0 = ppo.gaussian_log_prob(action, mean, log_std0)
        old_value = algo.critic.net(obs)[:, 0] + 0.3 * shift[:, 1]  # some beyond the clip range
    columns = [obs, obs, action, mean, advantage[:, 0], old_value + shift[:, 0], old_value, log_prob0]
    algo._optimizer_step = lambda finite, kl: None
    expected = algo._minibatch(log_std0, *columns)
    grad = algo.params.grad.clone()
    algo.params.grad.fill_(torch.nan)
    row = algo.gradient(log_std0.numpy(), *(x.numpy() for x in columns))
    assert 0.1 < row[4] < 0.9  # both branches of the objective
    assert row[5] == expected[7] == 0.0  # no mirror loss
    torch.testing.assert_close(torch.tensor(row[:5]), expected[:5], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(algo.params.grad, grad, rtol=1e-4, atol=1e-6)


def test_updates_by_hand_follow_those_of_torch():
    """Twenty gradient steps of both from the same rollout: parameters, learning rate, Adam's state and metrics."""
    by_hand, by_torch = (rolled_out(num_steps=16, minibatches=4, lr_max=3e-3, max_grad_norm=0.3) for _ in range(2))
    assert by_hand.gradient is not None
    by_torch.gradient = None
    results = [algo._update() for algo in (by_hand, by_torch)]
    assert by_hand.lr != pytest.approx(1e-3)  # it has followed the KL divergence
    for (name, a), b in zip(results[0].items(), results[1].values()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(by_hand.params.value, by_torch.params.value, rtol=1e-3, atol=2e-5)
    states = [algo.optimizer.state for algo in (by_hand, by_torch)]
    for key, value in states[1].items():
        torch.testing.assert_close(states[0][key], value, rtol=1e-3, atol=1e-5)


def test_standard_deviation_stays_within_its_bounds():
    algo = agent(Chain(), min_std=0.5, max_std=0.9)
    for value, expected in ((5.0, 0.9), (-5.0, 0.5)):
        algo.policy.log_std.data.fill_(value)
        algo._optimizer_step(torch.tensor(True), torch.tensor(0.01))
        assert algo.policy.log_std.exp().item() == pytest.approx(expected)


def test_a_stored_state_does_not_change_with_what_is_learned():
    env = isaacrl.make("cartpole", num_envs=4, device="cpu")
    algo = agent(env, num_steps=4, minibatches=1, average=0.5)
    state, at_start = algo.state_dict(), copy.deepcopy(algo.state_dict())
    algo.iterate(env.timer)
    now = algo.state_dict()
    for name in ("policy", "deployed", "critic"):
        assert any(not torch.equal(now[name][k], v) for k, v in at_start[name].items()), name
        assert all(torch.equal(state[name][k], v) for k, v in at_start[name].items()), name
    assert torch.equal(state["optimizer"][0]["step"], at_start["optimizer"][0]["step"])
