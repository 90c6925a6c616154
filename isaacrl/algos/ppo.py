"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347), readable top to bottom.

Shapes: T steps of a rollout, E worlds, N = T * E samples, D observation, A action. Its mathematics is in `losses.py`.
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
from torch import Tensor

from isaacrl.algos import host_update, symmetry
from isaacrl.algos.losses import gae, gaussian_entropy, gaussian_kl, gaussian_log_prob, policy_loss, value_loss
from isaacrl.algos.networks import Adam, Critic, FlatParameters, Normalizer, Policy, matmul_precision
from isaacrl.algos.recurrent import Controller, Memory, RecurrentCritic, RecurrentPolicy
from isaacrl.fuse import trace
from isaacrl.timer import Timer


class PPO:
    """Collects rollouts from an environment and learns from them."""

    def __init__(self, env: Any, cfg: DictConfig, seed: int):
        self.env, self.device = env, env.device
        self.cfg: Any = SimpleNamespace(**cfg)  # a DictConfig is slow to read, and this is the innermost loop
        num_obs = env.obs["policy"].shape[1]
        self.critic_group = "critic" if "critic" in env.obs else "policy"
        self.generator = torch.Generator(self.device).manual_seed(seed)
        recurrent = cfg.recurrent == "gru"
        policy, critic = (RecurrentPolicy, RecurrentCritic) if recurrent else (Policy, Critic)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy: Any = policy(num_obs, env.task.num_actions, cfg).to(self.device)
            self.critic: Any = critic(env.obs[self.critic_group].shape[1], cfg).to(self.device)
        self.memory = Memory(env.num_envs, cfg.rnn_hidden, self.device) if recurrent else None
        self.deployed = copy.deepcopy(self.policy) if cfg.average else self.policy  # what acts outside of training
        self.deployed.normalizer = self.policy.normalizer
        self.params = FlatParameters(self.policy, self.critic)
        self.lr = torch.tensor(float(cfg.lr), device=self.device)
        self.optimizer = Adam(self.params.value, self.lr)
        self.symmetry = symmetry.build(env, self.critic_group, cfg.symmetry) if cfg.symmetry != "none" else None
        first = env.obs["policy"], env.obs[self.critic_group]
        self._update_normalizers(*(first if self.symmetry is None else self.symmetry.observations(*first)))
        self.samples = cfg.num_steps * env.num_envs * (1 if self.symmetry is None else 2)  # N
        rows = self.samples // cfg.minibatches
        by_hand = self.device == "cpu" and not recurrent and host_update.is_small(rows, self.policy, self.critic)
        self.gradient = host_update.Gradient(self.policy, self.critic, cfg, self.symmetry) if by_hand else None
        self.seed = seed
        self.on_device: Any = None
        if self.device != "cpu" and not recurrent:
            self._use_device_update()
        self.obs: Tensor | None = None  # the rollout's buffers are made when the first one starts
        self._program: Any = None  # a step of the rollout
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._metrics: dict[str, Tensor] = {}
        self.capture_seconds, self.updates_per_iteration = 0.0, cfg.epochs * cfg.minibatches

    def _allocate(self) -> None:
        """Buffers of a rollout, [T, E, ...], once."""
        if self.obs is not None:
            return
        env, cfg = self.env, self.cfg
        T, E = cfg.num_steps, env.num_envs

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(T, E, *shape, dtype=dtype, device=self.device)

        self.obs = buffer(env.obs["policy"].shape[1])
        self.critic_obs = buffer(env.obs[self.critic_group].shape[1])
        # A world whose time can run out once in a rollout needs room for one final observation.
        self.final_obs = torch.zeros_like(self.critic_obs[0] if env.one_time_out(T) else self.critic_obs)
        self.actions, self.mean = buffer(env.task.num_actions), buffer(env.task.num_actions)
        self.mean_now = torch.zeros_like(self.mean[0])  # of the step under way
        self.noise = buffer(env.task.num_actions)
        self.reward = buffer()
        self.terminated, self.truncated = buffer(dtype=torch.bool), buffer(dtype=torch.bool)

    # --- one iteration -----------------------------------------------------------------------------------------------

    def iterate(self, timer: Timer) -> dict[str, Tensor]:
        """A rollout and the updates from it; metrics as device scalars."""
        if not self.env.fused:
            self._allocate()
            with self._precision():
                self._rollout(timer)
                with timer("update"):
                    return self._update()
        self.prepare(timer)
        for graph in self._graphs:
            graph.replay()
        return self._metrics

    def prepare(self, timer: Timer) -> None:
        """On a GPU: compile what an iteration does, and capture it as CUDA graphs. Nothing is simulated or learned."""
        if self._graphs or not self.env.fused:
            return
        began, compiled = time.perf_counter(), self.env.compile_seconds
        before = self.env.state_dict(), self.state_dict()
        self._allocate()
        enabled, timer.enabled = timer.enabled, False
        with self._precision():
            self._rollout(timer)  # compiles
            self._update()
            timer.enabled = enabled
            stream = torch.cuda.Stream(self.device)
            for body in (self._rollout, self._timed_update):
                graph = torch.cuda.CUDAGraph()
                graph.register_generator_state(self.generator)
                with timer.captured(), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    body(timer)
                self._graphs.append(graph)
        self.env.load_state_dict(before[0])
        self.load_state_dict(before[1])
        self.capture_seconds = time.perf_counter() - began - (self.env.compile_seconds - compiled)

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        """Of torch's matrix products on a GPU: those of a recurrent policy (the others' are `device_update.py`'s)."""
        tf32 = self.memory is not None and self.device != "cpu" and self.cfg.precision != "float32"
        return matmul_precision("high") if tf32 else contextlib.nullcontext()

    def _timed_update(self, timer: Timer) -> None:
        with timer("update"):
            self._metrics = self._update()

    @torch.no_grad()
    def _rollout(self, timer: Timer) -> None:
        env, steps = self.env, self.cfg.num_steps
        self.noise.normal_(generator=self.generator)
        if self.on_device is not None:
            self.on_device.take_parameters()
        if self.memory is not None:
            self.memory.begin()
        if not env.fused:
            for t in range(steps):
                self._collect(t)
            return
        enabled = timer.enabled
        for t in range(steps):
            # Marks cost time themselves: one step stands for all.
            timer.enabled, timer.weight = enabled and t == steps // 2, float(steps)
            if self._program is None:
                moving = [x for x in self._buffers() if x.ndim and len(x) == steps]
                self._program, _ = env.compiled(lambda: self._collect(0), moving)
            else:
                self._program(t)
                env.state.refresh()
        timer.enabled, timer.weight = enabled, 1.0

    def _buffers(self) -> list[Tensor]:
        """What a rollout leaves, step by step."""
        buffers = [self.obs, self.critic_obs, self.actions, self.mean, self.noise, self.reward]
        final = [] if self.final_obs.ndim == 2 else [self.final_obs]
        return [*buffers, self.terminated, self.truncated, *final]

    def _collect(self, t: int) -> None:
        """Step t of the rollout."""
        env = self.env
        env.timer.enter("policy")
        obs = env.obs["policy"]
        self.obs[t].copy_(obs)
        self.critic_obs[t].copy_(env.obs[self.critic_group])
        mean, memory = self.mean_now, self.memory
        if memory is not None:
            trace.call(lambda: memory.act(self.policy, obs, mean))
        elif self.on_device is not None:
            trace.call(lambda: self.on_device.act(obs, mean))
        else:
            mean = self.policy(obs)
        self.mean[t].copy_(mean)
        action = mean + self.noise[t] * self.policy.log_std.exp()
        self.actions[t].copy_(action)
        _, reward, terminated, truncated, info = env.step_plainly(action)
        self.reward[t].copy_(reward)
        self.terminated[t].copy_(terminated)
        self.truncated[t].copy_(truncated)
        if memory is not None:
            memory.reset(terminated | truncated)
        final = info["final_obs"][self.critic_group]
        if self.final_obs.ndim == 2:
            self.final_obs.copy_(torch.where(truncated[:, None], final, self.final_obs))
        else:
            self.final_obs[t].copy_(final)
        env.timer.enter("")

    def _values(self) -> tuple[Tensor, Tensor]:
        """V of each observation and of the one that each step led to, in reward units, both [T, E]."""
        if self.memory is not None:
            seen = self.critic_obs, self.env.obs[self.critic_group], self.final_obs
            return self.memory.values(self.critic, *seen, self.truncated, self.terminated | self.truncated)
        critic = self.critic if self.on_device is None else self.on_device.values
        value = self.critic.restore(critic(self.critic_obs))
        last = self.critic.restore(critic(self.env.obs[self.critic_group]))
        following = torch.cat((value[1:], last[None]))
        # Where time ran out the next observation belongs to a new episode: take the true final one.
        if self.device == "cpu":
            t, world = self.truncated.nonzero(as_tuple=True)
            final = self.final_obs[world] if self.final_obs.ndim == 2 else self.final_obs[t, world]
            following[t, world] = self.critic.restore(critic(final))
        else:  # fixed shapes
            following = torch.where(self.truncated, self.critic.restore(critic(self.final_obs)), following)
        return value, following

    def _use_device_update(self) -> None:
        """From now on `_update` is that of `device_update.py`, on whatever device."""
        from isaacrl.algos.device_update import DeviceUpdate  # imports Warp

        parts = self.policy, self.critic, self.params, self.optimizer, self.lr, self.cfg, self.symmetry
        shared = self.critic_group == "policy"
        self.on_device = DeviceUpdate(*parts, seed=self.seed, samples=self.samples, shared=shared, device=self.device)

    @torch.no_grad()
    def _experience(self) -> dict[str, Tensor]:
        """What an update reads of the rollout, [T, E, ...], as `DeviceUpdate` calls it; doubled with `symmetry`."""
        value, following = self._values()
        rollout = {
            "obs": self.obs,
            "critic_obs": self.critic_obs,
            "action": self.actions,
            "mean": self.mean,
            "reward": self.reward,
            "terminated": self.terminated,
            "truncated": self.truncated,
            "value": value,
            "following": following,
        }
        if self.symmetry is None:
            return rollout
        return self.symmetry.doubled(rollout, self.policy if self.on_device is None else self.on_device.mean)

    def _update(self) -> dict[str, Tensor]:
        cfg, rollout = self.cfg, self._experience()
        if self.on_device is not None:
            with torch.no_grad():
                metrics, returns = self.on_device(**rollout)
                self._update_normalizers(rollout["obs"], rollout["critic_obs"])
                self._update_returns(returns)
                self._average()
            return metrics
        with torch.no_grad():
            value, following, reward = rollout["value"], rollout["following"], rollout["reward"]
            terminated, done = rollout["terminated"], rollout["terminated"] | rollout["truncated"]
            advantage = gae(reward, value, following, terminated, done, gamma=cfg.gamma, lam=cfg.gae_lambda)
            returns = advantage + value
            explained = 1.0 - advantage.var() / returns.var().clamp(min=1e-12)
            target, old_value = returns, value
            if self.critic.returns is not None:
                # New statistics apply from the next rollout on; this update learns in the units of this one.
                scale = self.critic.returns
                target, old_value = scale(returns[..., None])[..., 0], scale(value[..., None])[..., 0]
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            log_std0 = self.policy.log_std.detach().clone()
            obs = self._normalized(self.policy.normalizer, rollout["obs"])
            critic_obs = self._normalized(self.critic.normalizer, rollout["critic_obs"])
            log_prob0 = gaussian_log_prob(rollout["action"], rollout["mean"], log_std0)
            mean0 = rollout.get("mean0", rollout["mean"])
            columns = [obs, critic_obs, rollout["action"], mean0, advantage, target, old_value, log_prob0]
            if self.memory is None:  # samples by themselves, [N, ...]
                columns = [x.flatten(0, 1) for x in columns]
            else:  # whole sequences, [T, E, ...]
                columns += [done, self.memory.policy_start[None], self.memory.critic_start[None]]

        axis = 0 if self.memory is None else 1
        n = columns[0].shape[axis]
        size = symmetry.rows(self.symmetry, n, cfg.minibatches)
        totals = torch.zeros(8, device=self.device)
        for _ in range(cfg.epochs):
            order = self._order(n, size)
            if self.gradient is not None:
                totals += self._host_epoch(self.gradient, log_std0, [x.index_select(0, order) for x in columns], size)
                continue
            for i in range(cfg.minibatches):
                rows = order[i * size : (i + 1) * size]
                totals += self._minibatch(log_std0, *symmetry.batch(self.symmetry, columns, rows, axis))
        with torch.no_grad():
            if self.memory is not None:
                self.memory.end()
            self._update_normalizers(rollout["obs"], rollout["critic_obs"])
            self._update_returns(returns)
            self._average()
        means = totals / (cfg.epochs * cfg.minibatches)
        names = ("loss/policy", "loss/value", "entropy", "kl", "clip_fraction", "grad_norm")
        return dict(zip(names, means)) | {
            "skipped_updates": totals[6],
            "lr": self.lr.clone(),
            "std": self.policy.log_std.exp().mean().detach(),
            "explained_variance": explained,
            **symmetry.metrics(self.symmetry, means[7]),
        }

    def _order(self, n: int, size: int) -> Tensor:
        """A random order of n samples, or of n worlds' sequences, for minibatches of that size."""
        if self.memory is None:
            return symmetry.order(self.symmetry, n, self.env.num_envs, size, self.generator)
        return torch.rand(n, generator=self.generator, device=self.device).argsort()  # part of a CUDA graph

    def _outputs(self, obs: Tensor, critic_obs: Tensor, *memory: Tensor) -> tuple[Tensor, Tensor]:
        """Mean actions and values of a minibatch, both normalized. memory: ends of episodes, hidden states at first."""
        if not memory:
            return self.policy.net(obs), self.critic.net(critic_obs)[..., 0]
        done, policy_start, critic_start = memory
        mean = self.policy.over(obs, done, policy_start[0])
        return mean, self.critic.over(critic_obs, done, critic_start[0])[..., 0]

    def _minibatch(
        self,
        log_std0: Tensor,
        obs: Tensor,
        critic_obs: Tensor,
        action: Tensor,
        mean0: Tensor,
        advantage: Tensor,
        target: Tensor,
        old_value: Tensor,
        log_prob0: Tensor,
        *memory: Tensor,
    ) -> Tensor:
        """One gradient step; (losses, entropy, KL, clip fraction, gradient norm, skipped, mirror loss) [8]."""
        cfg, log_std = self.cfg, self.policy.log_std
        mean, value = self._outputs(obs, critic_obs, *memory)
        mean, asymmetry = mean[: len(action)], symmetry.loss(self.symmetry, mean)
        ratio = torch.exp(gaussian_log_prob(action, mean, log_std) - log_prob0)
        loss_policy = policy_loss(ratio, advantage, cfg.clip)
        loss_value = value_loss(value, old_value, target, cfg.clip if cfg.value_clip else None)
        entropy = gaussian_entropy(log_std)
        loss = loss_policy + cfg.value_coef * loss_value - cfg.entropy_coef * entropy
        loss = loss + cfg.symmetry_coef * asymmetry
        with torch.autograd.set_multithreading_enabled(False):  # in this thread, which may capture
            grads = torch.autograd.grad(loss, self.params.parts)
        with torch.no_grad():
            torch.cat([g.reshape(-1) for g in grads], out=self.params.grad)
            kl = gaussian_kl(mean0, log_std0, mean, log_std).mean()
            norm = torch.linalg.vector_norm(self.params.grad)
            finite = torch.isfinite(norm) & torch.isfinite(loss)
            self.params.grad.mul_((cfg.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
            self._optimizer_step(finite, kl)
            clipped = ((ratio - 1.0).abs() > cfg.clip).float().mean()
            row = torch.stack((loss_policy, loss_value, entropy, kl, clipped, norm, asymmetry))
            row = torch.where(finite, row, 0.0)
            return torch.cat((row[:6], (~finite).float()[None], row[6:]))

    @torch.no_grad()
    def _host_epoch(self, gradient: host_update.Gradient, log_std0: Tensor, columns: list[Tensor], size: int) -> Tensor:
        """`_minibatch` for all of an epoch's shuffled columns, on the CPU; the sums of what it returns."""
        cfg, arrays, old = self.cfg, [x.numpy() for x in columns], log_std0.numpy()
        state = self.optimizer.state
        value, grad = self.params.value.detach().numpy(), self.params.grad.numpy()
        moments = state["exp_avg"].numpy(), state["exp_avg_sq"].numpy()
        log_std, low, high = self.policy.log_std.detach().numpy(), math.log(cfg.min_std), math.log(cfg.max_std)
        lr, steps, totals = float(self.lr), int(state["step"]), [0.0] * 8
        for i in range(cfg.minibatches):
            row = gradient(old, *(x[i * size : (i + 1) * size] for x in arrays))
            norm = host_update.clip_norm(grad, cfg.max_grad_norm)
            if not math.isfinite(norm + row[0] + row[1]):
                totals[6] += 1.0
                continue
            kl, steps = row[3], steps + 1
            if cfg.schedule == "adaptive":
                factor = 1 / 1.5 if kl > 2.0 * cfg.desired_kl else 1.5 if kl < 0.5 * cfg.desired_kl else 1.0
                lr = min(max(lr * factor, cfg.lr_min), cfg.lr_max)
            host_update.adam_step(value, grad, *moments, steps, lr)
            log_std.clip(low, high, out=log_std)
            totals = [a + b for a, b in zip(totals, (*row[:5], norm, 0.0, row[5]))]
        self.lr.fill_(lr)
        state["step"].fill_(float(steps))
        return torch.tensor(totals)

    def _optimizer_step(self, finite: Tensor, kl: Tensor) -> None:
        """An Adam step, unless the gradient is not finite: then nothing changes. Adapts the learning rate to the KL."""
        cfg = self.cfg
        if cfg.schedule == "adaptive":
            factor = torch.where(kl > 2.0 * cfg.desired_kl, 1 / 1.5, torch.where(kl < 0.5 * cfg.desired_kl, 1.5, 1.0))
            self.lr.copy_(torch.where(finite, (self.lr * factor).clamp(cfg.lr_min, cfg.lr_max), self.lr))
        self.optimizer.step(finite)
        self.policy.log_std.data.clamp_(math.log(cfg.min_std), math.log(cfg.max_std))

    # --- normalizers -------------------------------------------------------------------------------------------------

    @staticmethod
    def _normalized(normalizer: Normalizer | None, obs: Tensor) -> Tensor:
        return normalizer(obs) if normalizer else obs

    def _update_normalizers(self, obs: Tensor, critic_obs: Tensor) -> None:
        for normalizer, x in ((self.policy.normalizer, obs), (self.critic.normalizer, critic_obs)):
            if normalizer is not None:
                normalizer.update(x)

    def _update_returns(self, returns: Tensor) -> None:
        """New statistics of returns; the last layer is rescaled so that values in reward units stay the same.

        Source: van Hasselt et al. 2016, "Learning values across many orders of magnitude" (Pop-Art), eq. 9.
        """
        scale, last = self.critic.returns, self.critic.net[-1]
        if scale is None:
            return
        mean0, std0 = scale.mean.clone(), torch.sqrt(scale.var + 1e-8)
        scale.update(returns[..., None])
        std = torch.sqrt(scale.var + 1e-8)
        last.weight.data.mul_((std0 / std)[:, None])
        last.bias.data.copy_((std0 * last.bias + mean0 - scale.mean) / std)

    # --- use and checkpoints -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """The deterministic action [N, A] of the policy group's observation; a recurrent policy has a `controller`."""
        return self.deployed(obs)

    def controller(self, env: Any) -> Callable[[Tensor], Tensor]:
        """Observation [E, D] -> deterministic action [E, A], in every step of an environment from its reset on."""
        return self.act if self.memory is None else Controller(self.deployed, env)

    def _average(self) -> None:
        """Let the deployed policy follow (Polyak and Juditsky 1992): one iterate may stumble."""
        if self.deployed is not self.policy:
            mean, now = list(self.deployed.parameters()), list(self.policy.parameters())
            torch._foreach_lerp_(mean, now, 1.0 - self.cfg.average)  # pyright: ignore[reportPrivateImportUsage]

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimizer, learning rate, normalizers and what random numbers depend on: copies."""
        networks = {"policy": self.policy, "deployed": self.deployed, "critic": self.critic}
        return {name: copy.deepcopy(net.state_dict()) for name, net in networks.items()} | {
            "lr": self.lr.clone(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "memory": {} if self.memory is None else self.memory.state_dict(),
            "shuffles": self.on_device.shuffles.clone() if self.on_device else torch.zeros((), dtype=torch.int64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore state_dict()."""
        self.policy.load_state_dict(state["policy"])
        if self.deployed is not self.policy:
            self.deployed.load_state_dict(state.get("deployed", state["policy"]))
        self.critic.load_state_dict(state["critic"])
        if self.memory is not None:
            self.memory.load_state_dict(state.get("memory", {}))
        self.lr.copy_(state["lr"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.on_device is not None:
            self.on_device.restore(state.get("shuffles"))
        generator = state["generator"].cpu()
        if generator.numel() == self.generator.get_state().numel():  # one of a GPU means nothing on a CPU
            self.generator.set_state(generator)
