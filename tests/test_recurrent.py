"""PPO's recurrent policy against torch's GRU and computations step by step; export, resume, compiled rollouts."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from omegaconf import OmegaConf

import isaacrl
from isaacrl import algos, cli, runs
from isaacrl.algos import ppo
from isaacrl.algos.recurrent import GRU
from isaacrl.config import compose, load_stored
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.fuse.trace import Recorder
from isaacrl.schema import PPOConfig
from isaacrl.timer import Timer
from isaacrl.train import resume, train

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
SMALL = {"recurrent": "gru", "rnn_hidden": 12, "hidden": [16], "num_steps": 10, "minibatches": 2, "epochs": 2}
TINY = [*(f"algo.{k}={v}" for k, v in SMALL.items()), "device=cpu", "logger.console=none", "num_envs=16"]


def agent(env, **changes):
    return ppo.PPO(env, OmegaConf.merge(OmegaConf.structured(PPOConfig()), SMALL | changes), seed=0)


class Noise:
    """Random observations and ends of episodes, no time-out twice within `once` steps. Two groups, of 3 and 2."""

    num_envs, device, fused = 6, "cpu", False

    class task:
        num_actions = 2

    def __init__(self, once=0):
        self.g, self.timer, self.once = torch.Generator().manual_seed(0), Timer("cpu"), once
        self.wait = torch.zeros(self.num_envs)
        self.obs = self.draw()

    def draw(self):
        return {"policy": self.normal(3), "critic": self.normal(2)}

    def normal(self, *shape):
        return torch.randn(self.num_envs, *shape, generator=self.g)

    def one_time_out(self, steps):
        return steps <= self.once

    def step_plainly(self, action):
        final, self.obs = self.draw(), self.draw()
        terminated = self.normal() > 1.2
        truncated = (self.normal() > 0.8) & ~terminated & (self.wait <= 0)
        self.wait = torch.where(truncated, float(self.once), self.wait - 1.0)
        return self.obs, self.normal(), terminated, truncated, {"final_obs": final}


def rolled_out(env, rollouts=2, **changes):
    """An agent after rollouts without learning: the last one begins with hidden states of the one before."""
    algo = agent(env, **changes)
    algo._allocate()
    for _ in range(rollouts):
        with torch.no_grad():
            if algo.reward.any():
                algo._values()
                algo.memory.end()
        algo._rollout(Timer("cpu"))
    assert algo.memory.policy_start.any(dim=1).sum() > 2  # some worlds are in the middle of an episode
    return algo


def test_a_sequence_and_its_gradients_are_those_of_torchs_gru_split_at_the_ends_of_episodes():
    T, B, D, H = 9, 5, 3, 4
    g = torch.Generator().manual_seed(0)
    ours, theirs = GRU(D, H).double(), torch.nn.GRU(D, H).double()
    for name, p in theirs.named_parameters():
        p.data.copy_(getattr(ours, name.removesuffix("_l0")))
    x, hidden, weight = (torch.randn(*n, generator=g, dtype=torch.float64) for n in ((T, B, D), (B, H), (T, B, H)))
    done = torch.rand(T, B, generator=g) < 0.3
    assert done[-1].any() and done[0].any()
    pair = [(x.clone().requires_grad_(), hidden.clone().requires_grad_()) for _ in range(2)]
    out, last = ours.over(pair[0][0], done, pair[0][1])
    expected, expected_last = torch.empty(T, B, H, dtype=torch.float64), torch.zeros(B, H, dtype=torch.float64)
    for b in range(B):
        first, h = 0, pair[1][1][b]
        for t in range(T):
            if done[t, b] or t == T - 1:
                span, h = theirs(pair[1][0][first : t + 1, b], h[None])
                expected[first : t + 1, b], h = span, h[0]
                expected_last[b] = 0.0 if done[t, b] else h
                first, h = t + 1, torch.zeros(H, dtype=torch.float64)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(last, expected_last)
    mine = torch.autograd.grad((out * weight).sum() + last.square().sum(), [*ours.parameters(), *pair[0]])
    reference = torch.autograd.grad(
        (expected * weight).sum() + expected_last.square().sum(), [*theirs.parameters(), *pair[1]]
    )
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a, b)


def test_the_first_update_begins_at_a_ratio_of_one():
    """What an update computes of whole sequences is what acted, step by step, from the stored hidden states on."""
    algo = rolled_out(Noise(), epochs=1, minibatches=1)
    done = algo.terminated | algo.truncated
    assert done.any() and not done.all(dim=0).any()
    with torch.no_grad():
        obs = algo.policy.normalizer(algo.obs)
        torch.testing.assert_close(algo.policy.over(obs, done, algo.memory.policy_start), algo.mean, rtol=0, atol=1e-6)
        for wrong in ((torch.zeros_like(done), algo.memory.policy_start), (done, 0.0 * algo.memory.policy_start)):
            assert (algo.policy.over(obs, *wrong) - algo.mean).abs().max() > 1e-4
    rows = []
    real = algo._minibatch
    algo._minibatch = lambda *a: rows.append(real(*a)) or rows[0]
    algo._update()
    loss, _, _, kl, clipped, norm, *_ = rows[0]
    assert abs(kl) < 1e-9 and clipped == 0.0 and abs(loss) < 1e-5 and norm > 0.0  # advantages have a mean of 0


@pytest.mark.parametrize("once", [0, 10])  # there is room for one final observation of each step, or of each world
def test_time_outs_bootstrap_with_the_memory_of_the_episode_that_ends(once):
    algo = rolled_out(Noise(once), rollouts=3)
    assert algo.final_obs.ndim == (2 if once else 3)
    assert algo.truncated[:-1].any() and algo.terminated[:-1].any()
    cell, critic = torch.nn.GRUCell(2, SMALL["rnn_hidden"]), algo.critic
    cell.load_state_dict(critic.rnn.state_dict())

    def value(obs, h):
        h = cell(critic.normalizer(obs), h)
        return critic.restore(critic.net(h)).item(), h

    critic.returns.update(torch.randn(50, 1) * 3 + 2)
    start = algo.memory.critic_start.clone()
    assert start.any()
    with torch.no_grad():
        values, following = algo._values()
        for e in range(6):
            h = start[e]
            for t in range(10):
                v, after = value(algo.critic_obs[t, e], h)
                assert values[t, e].item() == pytest.approx(v, abs=1e-5)
                if algo.truncated[t, e]:
                    final = algo.final_obs[e] if once else algo.final_obs[t, e]
                    assert following[t, e].item() == pytest.approx(value(final, after)[0], abs=1e-5)
                h = torch.zeros_like(h) if algo.truncated[t, e] or algo.terminated[t, e] else after
                if not (algo.truncated[t, e] or algo.terminated[t, e]):
                    last = algo.env.obs["critic"][e] if t == 9 else algo.critic_obs[t + 1, e]
                    assert following[t, e].item() == pytest.approx(value(last, h)[0], abs=1e-5)
            torch.testing.assert_close(algo.memory.critic_end[e], h, atol=1e-5, rtol=0)


def test_an_iteration_asks_the_host_for_nothing():
    """As a CUDA graph needs it: the recorder refuses every question."""
    algo = rolled_out(Noise())
    with torch.no_grad(), Recorder(6, "cpu"):
        algo._rollout(Timer("cpu"))
    with Recorder(6, "cpu"):
        algo._update()
    assert torch.equal(algo.memory.critic_start, algo.memory.critic_end)


def test_a_compiled_rollout_is_that_without_compiling():
    """The recorded step, then the replayed ones, with ends of episodes in them."""
    agents = []
    for fused in (False, True):
        env = isaacrl.make("cartpole", num_envs=67, device="cpu", seed=3)
        env.stagger()
        env.state.episode_step[::3] = env.max_episode_steps - 4
        env.fused = fused
        algo = agent(env)
        algo._allocate()
        for _ in range(2):
            algo._rollout(env.timer)
        agents.append(algo)
    plain, fused = agents
    assert fused._program.kernels and (plain.truncated | plain.terminated).sum() > 3
    for name in ("obs", "mean", "actions", "reward", "final_obs"):
        torch.testing.assert_close(getattr(fused, name), getattr(plain, name), rtol=1e-4, atol=1e-4)
    assert torch.equal(fused.truncated, plain.truncated) and torch.equal(fused.terminated, plain.terminated)
    for a, b in zip(vars(fused.memory).values(), vars(plain.memory).values()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class Recall:
    """Say the number that was shown in the first step of the episode, in each of its 6 steps; reward: -error^2."""

    num_envs, device, fused, length = 64, "cpu", False, 6

    class task:
        num_actions = 1

    def __init__(self):
        self.g, self.timer = torch.Generator().manual_seed(0), Timer("cpu")
        self.t = torch.arange(self.num_envs) % self.length
        self.number = self.draw()
        self.obs = self.show()

    def draw(self):
        return torch.randint(0, 2, (self.num_envs, 1), generator=self.g) * 2.0 - 1.0

    def show(self):
        return {"policy": torch.where(self.t[:, None] == 0, self.number, 0.0)}

    def one_time_out(self, steps):
        return False

    def step_plainly(self, action):
        reward = -(action - self.number)[:, 0].square()
        self.t += 1
        done, final = self.t == self.length, self.show()
        self.t = torch.where(done, 0, self.t)
        self.number = torch.where(done[:, None], self.draw(), self.number)
        self.obs = self.show()
        return self.obs, reward, done, torch.zeros_like(done), {"final_obs": final}


def test_a_gru_remembers_what_no_other_policy_can():
    """Episodes lie across rollouts. Without memory the error is 1 in 5 of 6 steps at best: 0.83."""
    errors = {}
    for recurrent in ("gru", "none"):
        algo = agent(Recall(), recurrent=recurrent, num_steps=8, lr=3e-3, gamma=0.5, init_std=0.5, epochs=4)
        for _ in range(40):
            algo.iterate(algo.env.timer)
        algo._rollout(algo.env.timer)
        began = algo.obs[:, :, 0] != 0.0  # the number of a step, where the rollout has seen its episode begin
        number, seen = torch.zeros(64), []
        for t in range(8):
            number = torch.where(began[t], algo.obs[t, :, 0], number)
            seen.append((algo.mean[t, :, 0] - number).square()[number != 0.0])
        errors[recurrent] = torch.cat(seen).mean().item()
    assert errors["gru"] < 0.1 and errors["none"] > 0.7, errors


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(Configuration, run folder) of a few iterations on the cart-pole, of which episodes end soon."""
    overrides = ["task=cartpole", *TINY, "algo.average=0.5", "task.terminations.fallen.limit=0.2", "algo.iterations=4"]
    cfg = compose([*overrides, f"outputs={tmp_path_factory.mktemp('gru')}"])
    return cfg, Path(train(cfg)["run"])


def test_n_resume_m_equals_n_plus_m_bit_for_bit(trained, tmp_path):
    cfg, whole = trained
    part = Path(train(OmegaConf.merge(cfg, {"outputs": str(tmp_path), "algo": {"iterations": 2}}))["run"])
    resume(part, load_stored(part / "config.yaml", ["algo.iterations=4"]))
    a, b = (runs.load_checkpoint(p, "latest")[0] for p in (whole, part))
    assert a["algo"]["memory"]["policy"].any() and a["algo"]["memory"]["critic"].any()
    for key in ("algo", "env"):
        assert same(a[key], b[key]), key


def test_a_run_goes_on_with_its_own_networks_only(trained):
    _, run = trained
    for change in ("algo.recurrent=none", "algo.rnn_hidden=13"):
        with pytest.raises(UserError, match="^checkpoint: its networks .*algo.recurrent, algo.rnn_hidden"):
            resume(run, load_stored(run / "config.yaml", ["algo.iterations=5", change]))


def test_the_exported_policy_acts_as_the_environment_did(trained):
    """With hidden states fed back and zeros where episodes begin, as the contract says."""
    cfg, run = trained
    contract = json.loads((run / "policy.json").read_text())
    memory = contract["recurrent"]
    assert (memory["input"], memory["output"], memory["shape"], memory["start"]) == ("h_in", "h_out", [None, 12], 0.0)
    assert contract["parity"]["resets"] > 16 and contract["parity"]["max_abs_error"] < 1e-5
    session = onnxruntime.InferenceSession(run / "policy.onnx", providers=["CPUExecutionProvider"])
    env = Env(cfg)
    algo, _ = algos.load(env, cfg, run, "best")
    act, h, ended = algo.controller(env), np.zeros((16, 12), np.float32), 0
    env.reset()
    for _ in range(40):
        target, action, h = session.run(None, {"obs": env.groups[0].raw.numpy().copy(), "h_in": h})
        ours = act(env.obs["policy"])
        np.testing.assert_allclose(action, ours.numpy(), atol=1e-5)
        _, _, terminated, truncated, info = env.step(ours)
        np.testing.assert_allclose(target, info["target"].numpy(), atol=1e-5)
        h[(terminated | truncated).numpy()] = 0.0
        ended += int((terminated | truncated).sum())
    assert ended > 5


def test_eval_and_play_through_the_command_line(trained, capsys):
    _, run = trained
    assert cli.main(["eval", f"run={run}", "episodes=20", "device=cpu"]) == 0
    play = ["play", f"run={run}", "seconds=0.2", "num_envs=2", "width=96", "height=64", "video=false", "device=cpu"]
    assert cli.main(play) == 0
    assert "picture:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["algo.recurrent=gru", "algo.symmetry=augment"], "^algo.symmetry: .* algo.recurrent=none"),
        (["algo.recurrent=gru", "algo.minibatches=4", "num_envs=18"], "^algo.minibatches: 4 does not .*: 3 and 6"),
        (["algo.recurrent=lstm"], "^algo.recurrent: 'lstm' is not one of none, gru"),
        (["algo=sac", "algo.recurrent=gru"], "^algo.recurrent: .*algo=ppo"),
    ],
)
def test_errors(overrides, why):
    with pytest.raises(UserError, match=why) as e:
        compose(["task=cartpole", *overrides])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_graphs_learn_the_same_on_a_gpu(device):
    """Rollout and update as CUDA graphs, beside the same operation by operation."""
    rows = []
    for graph in (True, True, False):
        overrides = [f"sim.graph={graph}", *(f"algo.{k}={v}" for k, v in SMALL.items()), "algo.precision=float32"]
        env = isaacrl.make("cartpole", num_envs=512, device=device, seed=5, overrides=overrides)
        algo = ppo.PPO(env, env.cfg.algo, seed=5)
        env.stagger()
        algo.prepare(env.timer)
        rows.append([{k: float(v) for k, v in algo.iterate(env.timer).items()} for _ in range(3)])
    assert rows[0] == rows[1]
    for row, other in zip(rows[0], rows[2]):
        for name in ("loss/value", "entropy", "std"):
            assert row[name] == pytest.approx(other[name], rel=0.02), name
