"""Metrics: functions of State that return [E], averaged over each episode; `isaacrl eval` reports them."""

import torch
from torch import Tensor

from isaacrl.state import State
from isaacrl.terms import ALL, Joints


def joint_pos_within(s: State, *, joints: Joints = ALL, limit: float) -> Tensor:
    """1 while every joint is within limit of 0, angles taken modulo a turn [rad], [E]."""
    angle = torch.remainder(s.joint_pos[:, joints] + torch.pi, 2 * torch.pi) - torch.pi
    return (angle.abs() <= limit).all(dim=1).float()
