"""What curricula have in common (the terms are in curricula.py), and how they are held outside of training."""

from typing import Any

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.state import State


class Curriculum:
    """tensors: what all worlds share of its state, by name, changed in place. stage: of `stages`, else None."""

    progress: Tensor  # 0 to 1, []
    stage: Tensor | None = None

    def __init__(self, s: State):
        self.progress = torch.zeros((), device=s.device)
        self.tensors: dict[str, Tensor] = {"progress": self.progress}

    def __call__(self, s: State, mask: Tensor) -> None:
        raise NotImplementedError


def good(s: State, mask: Tensor, metric: str, above: float | None, below: float | None) -> tuple[Tensor, Tensor]:
    """Which whole episodes that end have a metric above or below a threshold, and which there are, float [E]."""
    if (above is None) == (below is None):
        raise UserError("give one of above and below")
    if metric not in s.episode_metrics:
        raise UserError(f"no metric '{metric}'; task.metrics has: {', '.join(s.episode_metrics) or 'none'}")
    value = s.episode_metrics[metric]
    reached = value > above if above is not None else value < below
    ended = (mask & s.whole & (s.episode_step > 0)).float()
    return torch.where(reached, ended, 0.0), ended


def hold(env: Any, stored: dict[str, Tensor]) -> None:
    """Let an environment that is not for training stand where a checkpoint's stands: curricula as they are there, and
    moved no more; levels of a terrain as often as there. stored: the training environment's tensors."""
    s, held = env.state, bool(env.curricula)
    for term in env.curricula:
        for name, value in term.fn.tensors.items():
            value.copy_(stored.get(f"curriculum/{term.name}/{name}", value))  # a new one stays at its beginning
    env.curricula = []
    if s.ground is not None and "terrain_level" in stored:
        theirs = stored["terrain_level"].sort().values.to(s.device)
        each = torch.randperm(s.num_envs, generator=torch.Generator().manual_seed(0)).to(s.device)
        s.ground.level.copy_(theirs[(each * len(theirs)) // s.num_envs])
    if held or s.ground is not None:
        env.reset()
