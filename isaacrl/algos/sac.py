"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905) for many worlds at once.

Beside the classic algorithm, after FastTD3 and FastSAC (Seo et al. 2025, arXiv:2505.22642 and 2512.01996): large
batches and few updates for each step of all worlds, normalized observations and rewards, layer normalization,
categorical critics whose mean is taken instead of the lower one, actions bounded by the joints' limits, and values of
true last observations where time ran out. `algo.utd=1 algo.critic=mean algo.twin=min` with few worlds is the classic.
"""

import math
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from isaacrl.algos import off_policy_ops as ops
from isaacrl.algos.off_policy import OffPolicy

LOG_STD = (-5.0, 2.0)  # bounds of the logarithm of the standard deviation
LOG_2 = math.log(2.0)
LOG_2PI = math.log(2.0 * math.pi)


def squashed(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """tanh of mean + std * noise, and the logarithm of its density, [..., A] and [...] (appendix C, eq. 21).

    log(1 - tanh(x)^2) is taken as 2 (log 2 - x - softplus(-2 x)), which does not cancel.
    """
    x = mean + log_std.exp() * noise
    normal = -0.5 * (noise.square() + LOG_2PI) - log_std
    slope = 2.0 * (LOG_2 - x - nn.functional.softplus(-2.0 * x))
    return torch.tanh(x), (normal - slope).sum(dim=-1)


def alpha_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Its gradient raises alpha where the entropy, -log_prob, is below the target (eq. 18)."""
    return -log_alpha.exp() * (log_prob.detach().mean() + target_entropy)


class SAC(OffPolicy):
    """Collects into a replay buffer and learns from it."""

    METRICS = (*OffPolicy.METRICS, "entropy", "alpha", "std")
    of_policy = ("loss/policy", "entropy", "alpha", "std")

    def __init__(self, env: Any, cfg: DictConfig, seed: int):
        actions = env.task.num_actions
        super().__init__(env, cfg, seed, 2 * actions)
        self.target_entropy = self.cfg.target_entropy * actions
        self.log_alpha = nn.Parameter(torch.tensor(math.log(self.cfg.alpha), device=self.device))
        self.learnt = nn.Module()  # what the policy's optimizer changes
        self.learnt.net = self.actor.net
        if self.cfg.tune_alpha:
            self.learnt.log_alpha = self.log_alpha
        self._finish(self.learnt)

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Actions [B, A] of normalized observations, the logarithms of their densities, and log_std before the tanh."""
        out = self.network(obs)
        mean, log_std = out.chunk(2, dim=-1)
        noise = torch.empty_like(mean).normal_(generator=self.generator)
        log_std = log_std.clamp(*LOG_STD)
        action, log_prob = ops.squash(out, noise, LOG_STD) if ops.use(out) else squashed(mean, log_std, noise)
        return action, log_prob, log_std

    def explore(self, obs: Tensor) -> Tensor:
        return self.sample(obs)[0]

    def update_critics(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            action, log_prob, _ = self.sample(batch.next_obs)
            following = self.target_critics(batch.next_critic_obs, action)
        return self.critic_step(batch, following, self.log_alpha.detach().exp() * log_prob)

    def update_policy(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        action, log_prob, log_std = self.sample(batch.obs)
        value = self.judged(batch.critic_obs, action)
        loss = (self.log_alpha.detach().exp() * log_prob - value).mean()
        total = loss + alpha_loss(self.log_alpha, log_prob, self.target_entropy) if self.cfg.tune_alpha else loss
        _, finite = self.descend(total, self.policy_params, self.policy_adam)
        with torch.no_grad():
            means = {"entropy": -log_prob.mean(), "alpha": self.log_alpha.exp(), "std": log_std.exp().mean()}
        return finite, {"loss/policy": loss} | means

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"log_alpha": self.log_alpha.detach().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.log_alpha.data.copy_(state["log_alpha"])
