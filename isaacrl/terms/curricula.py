"""Curricula: functions (s, mask, *, parameters) that make a task harder or easier, called in the worlds of mask [E]
when their episodes end, before they are reset."""

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.state import State


def terrain_levels(s: State, mask: Tensor, *, command: str = "velocity", share: float = 0.5) -> None:
    """A robot that has left its patch goes on to the next level; one that came less than `share` of the way that its
    last command asked for goes back. Who has passed the hardest level starts again on any.

    Source: Rudin et al. 2022, arXiv:2109.11978, section 3.2.
    """
    ground = s.ground
    if ground is None:
        raise UserError("the ground is an endless plane; task.terrain.kinds names none")
    way = torch.linalg.vector_norm(s.base_pos_w[:, :2] - ground.origin[:, :2], dim=1)
    asked = torch.linalg.vector_norm(s.command(command)[:, :2], dim=1) * s.episode_time
    up = way > ground.size / 2.0
    down = ~up & (way < share * asked)
    any_level = (s.uniform(1)[:, 0] * ground.levels).long().clamp(max=ground.levels - 1)
    level = (ground.level + up.long() - down.long()).clamp(min=0)
    level = torch.where(level >= ground.levels, any_level, level)
    ground.level.copy_(torch.where(mask, level, ground.level))
