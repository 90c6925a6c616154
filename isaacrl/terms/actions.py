"""Actions: how slices of the policy's output become targets of the actuators.

Each term is an affine map, target = clip(offset + scale * clip(action, +-limit)), optionally smoothed, held as tensors,
so that an exported policy contains exactly what training applied.

Position targets are in the encoders' coordinates, as on a robot: where an encoder reads `State.encoder_bias` too much,
its servo holds the joint that much too low.
"""

import math
from typing import Any

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.sim.drives import target_kinds
from isaacrl.sim.names import by_pattern
from isaacrl.state import State
from isaacrl.terms import ALL, Joints, Term


class Affine(Term):
    """Targets [E, n] of n actuated joints: offset + scale * clip(action), clipped to the actuator's range.

    scale: one number, or one by joint pattern (the first that matches), in the target's unit a unit of action.
    clip: bound of the action itself, None for none. low_pass_hz: cut-off of a first-order low-pass of the targets, None
    for none; it starts at the measured positions (position targets) or at zero.
    """

    kind = "effort"  # of the targets: effort, position or velocity
    relative = False  # whether the offset is the measured joint position

    def __init__(
        self,
        s: State,
        joints: Any,
        scale: float | dict[str, float],
        clip: float | None,
        low_pass_hz: float | None,
        offset: Tensor | None = None,
    ):
        model, driven = s.engine.model, s.robot.driven_joints
        self.joints = joints
        ids = torch.arange(len(s.robot.joint_names), device=s.device)[joints].tolist()
        self.names = [s.robot.joint_names[i] for i in ids]
        missing = [s.robot.joint_names[i] for i in ids if i not in driven]
        if missing:
            names = [s.robot.joint_names[i] for i in driven if i >= 0]
            raise UserError(f"joint '{missing[0]}' has no actuator; actuated: {', '.join(names)}")
        self.actuators = [driven.index(i) for i in ids]  # columns of the target
        kinds = target_kinds(model, s.engine.actuation)
        for name, kind in zip(self.names, [kinds[a] for a in self.actuators]):
            if kind not in (None, self.kind):
                terms = "position or relative_position" if kind == "position" else kind
                raise UserError(
                    f"the actuator of joint '{name}' takes {kind} targets, not {self.kind}; use fn: {terms}, "
                    "or another law in asset.actuators"
                )
        self.scale = torch.tensor(by_pattern(scale, self.names, "scale"), device=s.device)  # [n]
        self.offset = torch.zeros_like(self.scale) if offset is None else offset.expand(len(ids)).clone()  # [n]
        bound = torch.inf if clip is None else float(clip)
        self.action_clip = torch.full_like(self.offset, bound)  # [n]
        ctrlrange = torch.tensor(model.actuator_ctrlrange[self.actuators], dtype=torch.float32, device=s.device)
        limited = torch.tensor(model.actuator_ctrllimited[self.actuators], dtype=torch.bool, device=s.device)
        self.low = torch.where(limited, ctrlrange[:, 0], -torch.inf)  # [n]
        self.high = torch.where(limited, ctrlrange[:, 1], torch.inf)  # [n]
        if low_pass_hz is not None and not low_pass_hz > 0:
            raise UserError(f"low_pass_hz: got {low_pass_hz}; give a cut-off frequency > 0 [Hz], or null for none")
        self.low_pass_hz = low_pass_hz
        # Share of the new target in a step; None without a filter.
        self.blend = None if low_pass_hz is None else 1.0 - math.exp(-2.0 * math.pi * float(low_pass_hz) * s.step_dt)
        self.target: Tensor | None = None  # what __call__ computed last, encoders' coordinates, [E, n]
        self.last_target: Tensor  # memory of the low-pass, [E, n]

    def start(self, s: State) -> Tensor:
        """What the low-pass starts from, [E, n]: where the joints are, or no torque or speed."""
        return (
            self.measured(s) if self.kind == "position" else torch.zeros(s.num_envs, len(self.names), device=s.device)
        )

    def init(self, s: State) -> dict[str, Tensor]:
        return {} if self.blend is None else {"last_target": self.start(s)}

    def advance(self, s: State) -> dict[str, Tensor]:
        return {} if self.blend is None or self.target is None else {"last_target": self.target}

    def __call__(self, s: State, action: Tensor) -> Tensor:
        bounded = torch.minimum(torch.maximum(action, -self.action_clip), self.action_clip)
        offset = self.measured(s) if self.relative else self.offset
        target = torch.minimum(torch.maximum(offset + self.scale * bounded, self.low), self.high)
        if self.blend is not None:
            target = self.blend * target + (1.0 - self.blend) * self.last_target
        self.target = target
        return target - s.encoder_bias[:, self.joints] if self.kind == "position" else target

    def bounds(self, s: State) -> Tensor:
        """The largest action that still changes a target, [n], for policies that need bounds; 1 where nothing says.

        The clip; else what reaches the farther one of the joint's or the actuator's limits.
        """
        reach = torch.where(torch.isfinite(self.action_clip), self.action_clip, self.reach(s))
        return torch.where(torch.isfinite(reach), reach, 1.0)

    def reach(self, s: State) -> Tensor:
        """The size from which an action changes no target any more, by clip or limits, [n]; infinite if there is none.

        It reaches the farther one of the joint's or the actuator's limits.
        """
        low, high = self.low, self.high
        if self.kind == "position" and not self.relative:
            limits = s.robot.joint_pos_limits[self.joints]
            low, high = torch.maximum(low, limits[:, 0]), torch.minimum(high, limits[:, 1])
        offset = torch.zeros_like(self.offset) if self.relative else self.offset
        reach = torch.maximum(high - offset, offset - low) / self.scale.abs()
        reach = torch.where(torch.isfinite(reach) & (reach > 0.0), reach, torch.inf)
        return torch.minimum(reach, self.action_clip)

    def measured(self, s: State) -> Tensor:
        """Joint positions as the encoders read them [rad or m], [E, n]."""
        return s.encoder_pos[:, self.joints]


class effort(Affine):
    """Torques or forces: scale [N m or N] times the action, which is clipped to +-clip."""

    def __init__(
        self,
        s: State,
        *,
        joints: Joints = ALL,
        scale: float | dict[str, float] = 1.0,
        clip: float | None = 1.0,
        low_pass_hz: float | None = None,
    ):
        super().__init__(s, joints, scale, clip, low_pass_hz)


class position(Affine):
    """Position targets about the default pose: default + scale [rad or m] times the action.

    scale: 0.5 by default. use_limits: instead, actions of -1 to 1 span the joint's position limits.
    """

    kind = "position"

    def __init__(
        self,
        s: State,
        *,
        joints: Joints = ALL,
        scale: float | dict[str, float] | None = None,
        clip: float | None = None,
        use_limits: bool = False,
        low_pass_hz: float | None = None,
    ):
        if use_limits and scale is not None:
            raise UserError("use_limits and scale exclude each other; remove one")
        offset = s.robot.default_joint_pos[joints]
        super().__init__(s, joints, 0.5 if scale is None else scale, clip, low_pass_hz, offset)
        if not use_limits:
            return
        low, high = s.robot.joint_pos_limits[joints].unbind(1)
        free = [name for name, span in zip(self.names, (high - low).tolist()) if not math.isfinite(span)]
        if free:
            raise UserError(
                f"use_limits: joint '{free[0]}' has no position limits in the model; name others in `joints`"
            )
        self.offset, self.scale = (high + low) / 2.0, (high - low) / 2.0
        self.action_clip = self.action_clip.clamp(max=1.0)


class relative_position(Affine):
    """Position targets about the measured joint positions: measured + scale [rad or m] times the action."""

    kind, relative = "position", True

    def __init__(
        self,
        s: State,
        *,
        joints: Joints = ALL,
        scale: float | dict[str, float] = 0.1,
        clip: float | None = None,
        low_pass_hz: float | None = None,
    ):
        super().__init__(s, joints, scale, clip, low_pass_hz)


class velocity(Affine):
    """Velocity targets: scale [rad/s or m/s] times the action."""

    kind = "velocity"

    def __init__(
        self,
        s: State,
        *,
        joints: Joints = ALL,
        scale: float | dict[str, float] = 1.0,
        clip: float | None = 1.0,
        low_pass_hz: float | None = None,
    ):
        super().__init__(s, joints, scale, clip, low_pass_hz)
