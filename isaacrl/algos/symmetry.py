"""Left-right symmetry: a rollout joined by its mirror image, for twice the samples of the same simulation.

Source: Mittal et al. 2024, "Symmetry considerations for learning task symmetric robot policies", arXiv:2403.04359.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.task import Task, container
from isaacrl.terms.mirror import Columns, TaskMirror


class Symmetry:
    """Doubles the worlds of a rollout. Maps of the policy's and the critic's observations and of the actions."""

    def __init__(self, obs: Columns, critic_obs: Columns, actions: Columns):
        self.maps = {"obs": obs, "critic_obs": critic_obs, "action": actions, "mean": actions}

    def observations(self, obs: Tensor, critic_obs: Tensor) -> tuple[Tensor, Tensor]:
        """Both groups' observations [..., E, D] with their mirror images, [..., 2 E, D]."""
        maps = self.maps["obs"], self.maps["critic_obs"]
        return torch.cat((obs, maps[0](obs)), dim=-2), torch.cat((critic_obs, maps[1](critic_obs)), dim=-2)

    def doubled(self, rollout: dict[str, Tensor], policy: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """A rollout's tensors [T, E, ...] with the mirror images of all worlds, [T, 2 E, ...].

        A mirror image has the rewards, ends and values of its original, hence its advantages and returns. The critic's
        values of mirrored observations would cost a pass, and would give an action and its mirror image different
        advantages for no other reason than that the critic is not symmetric yet. The old mean is the mirror image of
        the old mean, about which the action was drawn, and not the policy's mean of the mirrored observation. Standard
        deviations are not swapped: they begin equal, and what they learn from is the same on both sides.

        The latter is `mean0`, from which KL divergences are measured: how far the policy has moved. From the mirrored
        means they would begin at its asymmetry, and an adaptive learning rate would stay low for it.
        """
        images = {k: self.maps[k](x) if k in self.maps else x for k, x in rollout.items()}
        images["mean0"] = policy(images["obs"])
        return {k: torch.cat((rollout.get(k, rollout["mean"]), x), dim=1) for k, x in images.items()}


def build(env: Any, critic_group: str) -> Symmetry:
    """The symmetry of an environment's task and robot. Raises: UserError for what has no mirror image."""
    for hook in ("observations", "pre_physics_step"):
        if getattr(type(env.task), hook) is not getattr(Task, hook):
            raise UserError(f"algo.symmetry: nothing says how {hook}() of task.env looks in a mirror; use term tables")
    asset, task = container(env.cfg.asset), env.task
    parts = env.state, task.actions, env.groups, env.command_terms, asset["feet"]
    mirror = TaskMirror(asset["mirror"], *parts)
    return Symmetry(mirror.groups["policy"], mirror.groups[critic_group], mirror.actions)
