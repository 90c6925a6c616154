"""Actions: how slices of the policy's output become targets of the actuators.

Each term is an affine map target = clip(offset + scale * clip(action, +-limit)), held as tensors, so that an exported
policy contains exactly what training applied.
"""

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.state import State
from isaacrl.terms import ALL, Joints


class Affine:
    """target [E, n] of n actuated joints: offset + scale * clip(action), then clipped to the actuator's range.

    scale: one number, in the target's unit a unit of action. clip: bound of the action itself, None for none.
    """

    def __init__(self, s: State, joints: Joints, scale: float, offset: Tensor, clip: float | None):
        model, driven = s.engine.model, s.robot.driven_joints
        ids = torch.arange(len(s.robot.joint_names))[joints].tolist()
        missing = [s.robot.joint_names[i] for i in ids if i not in driven]
        if missing:
            names = [s.robot.joint_names[i] for i in driven]
            raise UserError(f"task.actions: joint '{missing[0]}' has no actuator; actuated: {', '.join(names)}")
        self.actuators = [driven.index(i) for i in ids]  # columns of the target
        self.offset = offset.expand(len(ids)).clone()  # [n]
        self.scale = torch.full_like(self.offset, float(scale))  # [n]
        bound = torch.inf if clip is None else float(clip)
        self.action_clip = torch.full_like(self.offset, bound)  # [n]
        ctrlrange = torch.tensor(model.actuator_ctrlrange[self.actuators], dtype=torch.float32, device=s.device)
        limited = torch.tensor(model.actuator_ctrllimited[self.actuators], dtype=torch.bool, device=s.device)
        self.low = torch.where(limited, ctrlrange[:, 0], -torch.inf)  # [n]
        self.high = torch.where(limited, ctrlrange[:, 1], torch.inf)  # [n]

    def __call__(self, s: State, action: Tensor) -> Tensor:
        bounded = torch.minimum(torch.maximum(action, -self.action_clip), self.action_clip)
        return torch.minimum(torch.maximum(self.offset + self.scale * bounded, self.low), self.high)


class effort(Affine):
    """Torques or forces: scale [N m or N] times the action, which is clipped to +-clip."""

    def __init__(self, s: State, *, joints: Joints = ALL, scale: float = 1.0, clip: float | None = 1.0):
        super().__init__(s, joints, scale, torch.zeros(1, device=s.device), clip)


class position(Affine):
    """Position targets about the default pose: default + scale [rad or m] times the action."""

    def __init__(self, s: State, *, joints: Joints = ALL, scale: float = 0.5, clip: float | None = None):
        super().__init__(s, joints, scale, s.robot.default_joint_pos[joints], clip)


class velocity(Affine):
    """Velocity targets: scale [rad/s or m/s] times the action."""

    def __init__(self, s: State, *, joints: Joints = ALL, scale: float = 1.0, clip: float | None = 1.0):
        super().__init__(s, joints, scale, torch.zeros(1, device=s.device), clip)
