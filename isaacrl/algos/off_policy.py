"""What SAC and TD3 share: collecting into a replay buffer, updates, CUDA graphs and checkpoints.

Shapes: E worlds, B samples of an update, D observation, A action. Actions here are scaled to -1 to 1; the environment
gets them times `bounds`.
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from isaacrl.algos import off_policy_ops as ops
from isaacrl.algos.critics import Critics, RewardScale
from isaacrl.algos.networks import Adam, FlatParameters, Normalizer, matmul_precision, mlp
from isaacrl.algos.replay import Replay, capacity
from isaacrl.fuse import trace
from isaacrl.timer import Timer


class Deployed(nn.Module):
    """A policy: observation [N, D] -> the environment's action [N, A]."""

    bounds: Tensor

    def __init__(self, num_obs: int, outputs: int, bounds: Tensor, cfg: Any):
        super().__init__()
        self.normalizer = Normalizer(num_obs) if cfg.normalize_obs else None
        self.net = mlp([num_obs, *cfg.hidden, outputs], cfg.activation, 0.01, cfg.layer_norm)
        self.register_buffer("bounds", bounds.clone())

    def forward(self, obs: Tensor) -> Tensor:
        out = self.net(self.normalizer(obs) if self.normalizer else obs)
        return torch.tanh(out[..., : len(self.bounds)]) * self.bounds


class OffPolicy:
    """An agent that learns from a replay buffer. A subclass says how it acts and how it updates.

    policy_outputs: columns of the policy's network. METRICS: what updates return, to be averaged.
    """

    METRICS = ("loss/critic", "loss/policy", "q", "td_error", "grad_norm", "skipped_updates")

    def explore(self, obs: Tensor) -> Tensor:
        """Actions [E, A] of normalized observations, with what makes them vary."""
        raise NotImplementedError

    def update_critics(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Whether the step was finite and taken, and metrics."""
        raise NotImplementedError

    def update_policy(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError

    def __init__(self, env: Any, cfg: DictConfig, seed: int, policy_outputs: int):
        self.env, self.device = env, env.device
        self.cfg: Any = SimpleNamespace(**cfg)  # a DictConfig is slow to read
        cfg_ = self.cfg
        self.critic_group = "critic" if "critic" in env.obs else "policy"
        self.widths = {g: env.obs[g].shape[1] for g in dict.fromkeys(("policy", self.critic_group))}
        self.num_actions = env.task.num_actions
        self.generator = torch.Generator(self.device).manual_seed(seed)
        bounds = env.task.action_bounds(env.state)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = Deployed(self.widths["policy"], policy_outputs, bounds.cpu(), cfg_).to(self.device)
            self.critics = Critics(self.widths[self.critic_group], self.num_actions, cfg_).to(self.device)
        self.deployed = copy.deepcopy(self.actor) if cfg_.average else self.actor  # what acts outside of training
        self.deployed.normalizer = self.actor.normalizer
        self.normalizers: dict[str, Normalizer | None] = {"policy": self.actor.normalizer}
        if self.critic_group != "policy":
            own = Normalizer(self.widths[self.critic_group]).to(self.device) if cfg_.normalize_obs else None
            self.normalizers["critic"] = own
        for g, normalizer in self.normalizers.items():
            if normalizer is not None:
                normalizer.update(env.obs[g])
        self.rewards = (
            RewardScale(env.num_envs, cfg_.gamma, cfg_.v_max).to(self.device) if cfg_.normalize_reward else None
        )
        self.lr = torch.tensor(float(cfg_.lr), device=self.device)
        self.batch_size = cfg_.batch_size or max(4 * env.num_envs, 256)
        self.per_step = cfg_.updates if cfg_.utd is None else cfg_.utd * env.num_envs  # updates a step of all worlds
        self.steps = 0  # of all worlds since the buffer was empty
        self.updates = 0  # so far
        self.buffer: Any = None  # made when the first step is taken, as are the graphs
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._program: Any = None
        self.capture_seconds = 0.0

    def _finish(self, policy: nn.Module) -> None:
        """Once a subclass has its policy with all that is learnt beside it: flat parameters, targets and optimizers."""
        self.policy_params, self.critic_params = FlatParameters(policy), FlatParameters(self.critics)
        self.target_critics = copy.deepcopy(self.critics)
        self.target_params = FlatParameters(self.target_critics)
        self.target_params.value.requires_grad_(False)
        self.target_critics.requires_grad_(False)
        self.deployed_params = FlatParameters(self.deployed.net) if self.cfg.average else None
        self.policy_adam, self.critic_adam = (Adam(p.value, self.lr) for p in (self.policy_params, self.critic_params))

    @property
    def updates_per_iteration(self) -> int:
        return max(1, math.floor(self.cfg.num_steps * self.per_step))

    def _allocate(self) -> None:
        if self.buffer is not None:
            return
        env = self.env
        columns = {f"obs/{g}": n for g, n in self.widths.items()} | {"action": self.num_actions}
        observed = [k for k in columns if k != "action"]
        room = capacity(columns, observed, env.num_envs, self.device, self.cfg)
        self.buffer = Replay(columns, observed, room, env.num_envs, self.device)
        self.before = {g: torch.zeros_like(env.obs[g]) for g in self.widths}  # what the step under way began with
        self.action = torch.zeros(env.num_envs, self.num_actions, device=self.device)
        self.totals = torch.zeros(len(self.METRICS), device=self.device)
        self.nothing, self.none = torch.zeros((), device=self.device), torch.zeros_like(self.totals)
        self.skipped = torch.tensor([float(n == "skipped_updates") for n in self.METRICS], device=self.device)

    # --- one iteration -----------------------------------------------------------------------------------------------

    def iterate(self, timer: Timer) -> dict[str, Tensor]:
        """Steps of all worlds with the updates that follow them; metrics as device scalars."""
        self._allocate()
        if self.env.fused:
            self.prepare(timer)
        self.totals.zero_()
        self._schedule()
        learned, before = self.steps - self.cfg.warmup, self.updates
        for t in range(learned, learned + self.cfg.num_steps):
            # Fractions add up over the run, not over an iteration alone, which may be shorter than one update.
            count = math.floor((t + 1) * self.per_step) - math.floor(t * self.per_step) if learned >= 0 else 0
            self._step(count, timer)
        self.steps += self.cfg.num_steps
        return self._metrics(self.updates - before)

    def _schedule(self) -> None:
        """Where there is a last learning rate, half a cosine leads to it over the run's updates."""
        if self.cfg.lr_end is not None:
            share = min(1.0, self.updates / (self.cfg.iterations * self.cfg.num_steps * self.per_step))
            weight = 0.5 + 0.5 * math.cos(math.pi * share)
            self.lr.fill_(self.cfg.lr_end + (self.cfg.lr - self.cfg.lr_end) * weight)

    def _step(self, count: int, timer: Timer) -> None:
        """A step of all worlds and so many updates."""
        phase = self.updates % self.cfg.policy_delay if count else 0
        self.updates += count
        if not self.env.fused or self.device == "cpu":
            self._body(count, phase, timer)
            return
        if (count, phase) not in self._graphs:
            self._graphs[count, phase] = self._capture(count, phase, timer)
        self._graphs[count, phase].replay()
        self.env.state.refresh()

    def _body(self, count: int, phase: int, timer: Timer) -> None:
        if self._program is None:
            self._collect()
        else:
            self._program()
            self.env.state.refresh()
        with timer("update"):
            for i in range(count):
                self._update((phase + i + 1) % self.cfg.policy_delay == 0)

    def prepare(self, timer: Timer) -> None:
        """On a GPU: compile a step. Nothing is simulated or learned. Each kind of step is captured when it is due."""
        if self._program is not None or not self.env.fused:
            return
        self._allocate()
        began, compiled = time.perf_counter(), self.env.compile_seconds
        state = self.env.state_dict(), self.state_dict()
        enabled, timer.enabled = timer.enabled, False
        self._program, _ = self.env.compiled(self._collect)
        self._update(True)  # what a capture must not do for the first time
        timer.enabled = enabled
        self.env.load_state_dict(state[0])
        self.load_state_dict(state[1])
        self.capture_seconds = time.perf_counter() - began - (self.env.compile_seconds - compiled)

    def _capture(self, count: int, phase: int, timer: Timer) -> torch.cuda.CUDAGraph:
        """A step with so many updates as a CUDA graph. The first one with updates carries the timer's marks for all."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
        graph.register_generator_state(self.generator)
        enabled, marked = timer.enabled, any(n for n, _ in self._graphs)
        timer.enabled, timer.weight = enabled and count > 0 and not marked, float(self.cfg.num_steps)
        with timer.captured(), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._body(count, phase, timer)
        timer.enabled, timer.weight = enabled, 1.0
        return graph

    @torch.no_grad()
    def _collect(self) -> None:
        """One step of all worlds into the buffer."""
        env = self.env
        env.timer.enter("policy")
        for g, x in self.before.items():
            x.copy_(env.obs[g])
        trace.call(self._choose)
        _, reward, terminated, truncated, info = env.step_plainly(self.action * self.actor.bounds)
        # A world that failed may have left observations that are not finite; nothing is read from them but by products.
        following = {g: torch.nan_to_num(info["final_obs"][g]) for g in self.before}
        trace.call(lambda: self._remember(following, reward, terminated, truncated))
        env.timer.enter("")

    def _choose(self) -> None:
        obs, normalizer = self.before["policy"], self.normalizers["policy"]
        self.action.copy_(self.explore(obs if normalizer is None else normalizer(obs)))

    def _remember(self, following: dict[str, Tensor], reward: Tensor, terminated: Tensor, truncated: Tensor) -> None:
        columns = {f"obs/{g}": x for g, x in self.before.items()} | {"action": self.action}
        after = {f"obs/{g}": x for g, x in following.items()}
        self.buffer.write(columns, after, reward, terminated, truncated)
        for g, normalizer in self.normalizers.items():
            if normalizer is not None:
                normalizer.update(self.before[g])
        if self.rewards is not None:
            self.rewards.update(reward, terminated | truncated)

    def network(self, obs: Tensor) -> Tensor:
        """The policy's outputs [B, n] for normalized observations."""
        return ops.run(self.actor.net, obs) if ops.use(obs) else self.actor.net(obs)

    # --- updates -----------------------------------------------------------------------------------------------------

    def _update(self, policy_too: bool) -> None:
        """One update of the critics, and of the policy if it is its turn."""
        tf32 = contextlib.nullcontext() if self.device == "cpu" else matmul_precision("high")
        with tf32, torch.enable_grad():
            with torch.no_grad():
                batch = self._sample()
            self._count(*self.update_critics(batch), self.skipped)
            if policy_too:
                self._count(*self.update_policy(batch), self.none)
                self._average()
        with torch.no_grad():
            self.target_params.value.lerp_(self.critic_params.value, self.cfg.tau)

    @torch.no_grad()
    def _average(self) -> None:
        if self.deployed_params is not None:
            mean = self.deployed_params.value
            mean.lerp_(self.policy_params.value[-len(mean) :], 1.0 - self.cfg.average)  # the network comes last

    @torch.no_grad()
    def _count(self, finite: Tensor, metrics: dict[str, Tensor], instead: Tensor) -> None:
        """Add an update's metrics to the iteration's; something else where its step was not taken."""
        values = torch.stack([metrics.get(name, self.nothing) for name in self.METRICS])
        self.totals += torch.where(finite, values, instead)

    def _sample(self) -> Any:
        """Normalized: obs and critic_obs, next_obs and next_critic_obs [B, D], action, reward, discount."""
        sample = self.buffer.sample(self.batch_size, self.cfg.n_step, self.cfg.gamma, self.generator)
        obs, next_obs = self.buffer.observed("obs/policy", sample, self.normalizers["policy"])
        critic, next_critic = obs, next_obs
        if self.critic_group != "policy":
            critic, next_critic = self.buffer.observed("obs/critic", sample, self.normalizers["critic"])
        return SimpleNamespace(
            obs=obs,
            next_obs=next_obs,
            critic_obs=critic,
            next_critic_obs=next_critic,
            action=self.buffer.column("action", sample),
            reward=sample.reward if self.rewards is None else self.rewards(sample.reward),
            discount=sample.discount,
        )

    def critic_step(
        self, batch: Any, following: Tensor, bonus: Tensor | float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Move both critics towards reward + discount * (value of `following`, the targets' outputs, - bonus)."""
        out = self.critics(batch.critic_obs, batch.action)
        loss, value, error = self.critics.bellman(out, following, batch.reward, batch.discount, bonus)
        norm, finite = self.descend(loss, self.critic_params, self.critic_adam)
        return finite, {"loss/critic": loss, "q": value, "td_error": error, "grad_norm": norm}

    def judged(self, obs: Tensor, action: Tensor) -> Tensor:
        """The critics' one value [B] of what a policy does, with a gradient by the actions alone."""
        self.critics.requires_grad_(False)
        value = self.critics.value(self.critics(obs, action))
        self.critics.requires_grad_(True)
        return value

    def descend(self, loss: Tensor, params: FlatParameters, adam: Adam) -> tuple[Tensor, Tensor]:
        """A step of Adam down the loss, unless it is not finite; (gradient's norm, whether there was a step)."""
        with torch.autograd.set_multithreading_enabled(False):  # in this thread, which may capture
            grads = torch.autograd.grad(loss, params.parts)
        torch.cat([g.reshape(-1) for g in grads], out=params.grad)
        norm = torch.linalg.vector_norm(params.grad)
        finite = norm + loss.detach().abs() < math.inf
        if self.cfg.max_grad_norm is not None:
            params.grad.mul_((self.cfg.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        adam.step(finite)
        return norm, finite

    def _metrics(self, updates: int) -> dict[str, Tensor]:
        """Means over the iteration's updates."""
        policy = max(1, updates // self.cfg.policy_delay)
        out = {}
        for name, total in zip(self.METRICS, self.totals.clone().unbind()):
            share = 1 if name == "skipped_updates" else policy if name in self.of_policy else max(1, updates)
            if updates or name == "skipped_updates":
                out[name] = total / share
        out["buffer"] = self.buffer.filled / self.buffer.capacity
        out["lr"] = self.lr.clone()
        return out

    of_policy: tuple[str, ...] = ("loss/policy",)  # metrics of updates of the policy

    # --- use and checkpoints -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """The deterministic action [N, A] of the policy group's observation."""
        return self.deployed(obs)

    def controller(self, env: Any) -> Callable[[Tensor], Tensor]:
        """Observation [E, D] -> deterministic action [E, A], in every step of an environment from its reset on."""
        return self.act

    def _modules(self) -> dict[str, nn.Module]:
        """All that has a state, by name."""
        out: dict[str, nn.Module] = {"deployed": self.deployed, "critics": self.critics, "target": self.target_critics}
        if self.cfg.average:
            out["actor"] = self.actor
        if self.normalizers.get("critic") is not None:
            out["critic_normalizer"] = self.normalizers["critic"]  # pyright: ignore[reportArgumentType]
        if self.rewards is not None:
            out["rewards"] = self.rewards
        return out

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimizers, normalizers, random numbers' state: copies. The buffer if it is to be saved."""
        buffer = self.buffer.state_dict() if self.buffer is not None and self.cfg.save_buffer else None
        return {k: copy.deepcopy(m.state_dict()) for k, m in self._modules().items()} | {
            "policy_adam": self.policy_adam.state_dict(),
            "critic_adam": self.critic_adam.state_dict(),
            "lr": self.lr.clone(),
            "generator": self.generator.get_state(),
            "updates": self.updates,
            "steps": self.steps if buffer else 0,
            "buffer": buffer,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore state_dict(). Without a stored buffer a new one is filled, for as long as algo.warmup says."""
        for name, module in self._modules().items():
            if name == "rewards" and name not in state:  # they were not scaled before: their scale begins here
                continue
            stored = state.get(name, state["deployed"] if name == "actor" else {})  # without an average both are one
            if name == "rewards" and stored["running"].shape != self.rewards.running.shape:  # pyright: ignore[reportOptionalMemberAccess]
                stored = stored | {"running": self.rewards.running}  # pyright: ignore[reportOptionalMemberAccess]
            module.load_state_dict(stored)
        self.policy_adam.load_state_dict(state["policy_adam"])
        self.critic_adam.load_state_dict(state["critic_adam"])
        self.lr.copy_(state["lr"])
        stored = state["buffer"] is not None and self.cfg.save_buffer
        self.updates, self.steps = state["updates"], state["steps"] if stored else 0
        if stored:
            self._allocate()
            self.buffer.load_state_dict(state["buffer"])
        elif self.buffer is not None:
            self.buffer.at.zero_()
            self.buffer.filled.zero_()
        generator = state["generator"].cpu()
        if generator.numel() == self.generator.get_state().numel():  # one of a GPU means nothing on a CPU
            self.generator.set_state(generator)
