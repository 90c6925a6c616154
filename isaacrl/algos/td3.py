"""Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, arXiv:1802.09477) for many worlds at once.

Beside the classic algorithm, after FastTD3 (Seo et al. 2025, arXiv:2505.22642): large batches and few updates for each
step of all worlds, categorical critics, normalized observations and rewards, layer normalization, and another size of
exploration noise in each world.
"""

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from isaacrl.algos.off_policy import OffPolicy


def smoothed(action: Tensor, noise: Tensor, clip: float) -> Tensor:
    """A target's action with clipped noise, within -1 and 1 (algorithm 1)."""
    return (action + noise.clamp(-clip, clip)).clamp(-1.0, 1.0)


class TD3(OffPolicy):
    """Collects into a replay buffer and learns from it."""

    def __init__(self, env: Any, cfg: DictConfig, seed: int):
        super().__init__(env, cfg, seed, env.task.num_actions)
        low, high = self.cfg.min_noise, self.cfg.max_noise
        self.noise = torch.rand(env.num_envs, 1, generator=self.generator, device=self.device) * (high - low) + low
        self._finish(self.actor.net)

    def policy(self, obs: Tensor) -> Tensor:
        """Actions [..., A] of normalized observations."""
        return torch.tanh(self.network(obs))

    def explore(self, obs: Tensor) -> Tensor:
        action = self.policy(obs)
        return (action + self.noise * torch.empty_like(action).normal_(generator=self.generator)).clamp(-1.0, 1.0)

    def update_critics(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            action = self.policy(batch.next_obs)
            noise = self.cfg.target_noise * torch.empty_like(action).normal_(generator=self.generator)
            action = smoothed(action, noise, self.cfg.target_noise_clip)
            following = self.target_critics(batch.next_critic_obs, action)
        return self.critic_step(batch, following)

    def update_policy(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss = -self.judged(batch.critic_obs, self.policy(batch.obs)).mean()
        _, finite = self.descend(loss, self.policy_params, self.policy_adam)
        return finite, {"loss/policy": loss}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"noise": self.noise.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if state["noise"].shape == self.noise.shape:
            self.noise.copy_(state["noise"])
