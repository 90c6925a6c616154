"""Left-right symmetry: a rollout joined by its mirror image, to learn from as well, or to compare the policy there with
its own mirror image (the mirror loss).

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
    """Doubles the worlds of a rollout. Maps of the policy's and the critic's observations and of the actions.

    augments: PPO's own losses see mirror images too. paired: there is a mirror loss, and so a minibatch is so many
    samples and then, in the same order, their mirror images.
    """

    def __init__(self, obs: Columns, critic_obs: Columns, actions: Columns, mode: str = "augment"):
        self.augments, self.paired = "augment" in mode, "loss" in mode
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
        if self.augments:
            images["mean0"] = policy(images["obs"])
        return {k: torch.cat((rollout.get(k, rollout["mean"]), x), dim=1) for k, x in images.items()}


# --- the mirror loss, and what minibatches are for it; all is as ever where symmetry is None -------------------------


def loss(symmetry: Symmetry | None, mean: Tensor) -> Tensor:
    """Mean squared difference between the policy's means of mirrored observations, the second half of mean [2 B, A],
    and the mirror images of its means of the observations themselves, the first half, which are no variables."""
    if symmetry is None or not symmetry.paired:
        return mean.new_zeros(())
    means, images = mean.chunk(2)
    return (images - symmetry.maps["mean"](means.detach())).square().mean()


def rows(symmetry: Symmetry | None, samples: int, minibatches: int) -> int:
    """Samples of a minibatch: an even number for pairs."""
    n = samples // minibatches
    return n - n % 2 if symmetry is not None and symmetry.paired else n


def order(symmetry: Symmetry | None, samples: int, worlds: int, size: int, generator: torch.Generator) -> Tensor:
    """A random order of a rollout's samples, flat [T, E] (with symmetry [T, 2 E]), for minibatches of that size.

    worlds: E.
    """
    if symmetry is None or not symmetry.paired:
        return torch.randperm(samples, generator=generator, device=generator.device)
    pairs = torch.randperm(samples // 2, generator=generator, device=generator.device)
    first = pairs + pairs // worlds * worlds
    first = first[: len(pairs) * 2 // size * (size // 2)].view(-1, size // 2)
    return torch.cat((first, first + worlds), dim=1).flatten()


def batch(symmetry: Symmetry | None, columns: list[Tensor], order: Tensor, axis: int) -> list[Tensor]:
    """A minibatch of columns, along that axis. The first is the policy's observations: where mirror images are there
    for the mirror loss alone, it has them and the others have not."""
    out = [x.index_select(axis, order) for x in columns]
    if symmetry is None or symmetry.augments:
        return out
    return [out[0], *(x[: len(order) // 2] for x in out[1:])]


def metrics(symmetry: Symmetry | None, loss: Tensor) -> dict[str, Tensor]:
    """The mirror loss as a metric, where there is one."""
    return {"loss/symmetry": loss} if symmetry is not None and symmetry.paired else {}


def build(env: Any, critic_group: str, mode: str = "augment") -> Symmetry:
    """The symmetry of an environment's task and robot. mode: `algo.symmetry`.

    Raises: UserError for what has no mirror image.
    """
    for hook in ("observations", "pre_physics_step"):
        if getattr(type(env.task), hook) is not getattr(Task, hook):
            raise UserError(f"algo.symmetry: nothing says how {hook}() of task.env looks in a mirror; use term tables")
    asset, task = container(env.cfg.asset), env.task
    parts = env.state, task.actions, env.groups, env.command_terms, asset["feet"]
    mirror = TaskMirror(asset["mirror"], *parts)
    return Symmetry(mirror.groups["policy"], mirror.groups[critic_group], mirror.actions, mode)
