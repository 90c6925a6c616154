"""Events: functions (s, mask, *, parameters) that change the simulation in the worlds of mask [E].

`when: reset` (the default) runs at every reset, `when: startup` once, `when: interval` with `interval_s: [low, high]`
at random times. In a reset event joint and base coordinates are those of the new episode's default pose, while what
derives from them (body poses, sensors) is still the old episode's. Groups under conf/randomization hold events too.
"""

import math
from typing import Any

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.sim.names import match
from isaacrl.state import State, multiply
from isaacrl.terms import ALL, Joints

ZERO_RANGES = ((0.0, 0.0),) * 3


def reset_joints(
    s: State,
    mask: Tensor,
    *,
    joints: Joints = ALL,
    position: tuple[float, float] = (0.0, 0.0),
    velocity: tuple[float, float] = (0.0, 0.0),
    center: float | None = None,
) -> None:
    """Joint positions uniform about the default pose (or about center), velocities uniform; clipped to the limits.

    position: range of the offset [rad or m]; velocity: range [rad/s or m/s].
    """
    robot = s.robot
    pos, vel = s.joint_pos.clone(), s.joint_vel.clone()
    n = pos[:, joints].shape[1]
    middle = robot.default_joint_pos[joints] if center is None else center
    limits = robot.joint_pos_limits[joints]
    pos[:, joints] = torch.clamp(middle + s.uniform(n, *position), limits[:, 0], limits[:, 1])
    vel[:, joints] = s.uniform(n, *velocity)
    s.write_joints(pos, vel, mask)


class reset_base:
    """A floating base at its default pose, displaced and turned about the vertical, with a random velocity.

    position: ranges of x, y, z offsets [m]; yaw: range [rad]; velocity: ranges of the world velocity x, y, z [m/s] and,
    if six are given, of the angular velocity in base axes [rad/s].
    """

    def __init__(
        self,
        s: State,
        *,
        position: list[Any] = ZERO_RANGES,
        yaw: tuple[float, float] = (0.0, 0.0),
        velocity: list[Any] = ZERO_RANGES,
    ):
        if not s.robot.floating:
            raise UserError("the robot's base is fixed; only a floating base can be placed")
        if len(position) != 3 or len(velocity) not in (3, 6) or any(len(r) != 2 for r in (*position, *velocity)):
            raise UserError("position takes three ranges [low, high], velocity three or six")
        self.yaw = (float(yaw[0]), float(yaw[1]))
        self.position = torch.tensor(position, dtype=torch.float32, device=s.device)  # [3, 2]
        self.velocity = torch.tensor(velocity, dtype=torch.float32, device=s.device)  # [3 or 6, 2]

    def __call__(self, s: State, mask: Tensor) -> None:
        q, v = s.robot.free_qpos, s.robot.free_qvel
        qpos, qvel = s.read("qpos").clone(), s.read("qvel").clone()
        qpos[:, q : q + 3] += s.uniform(3, *self.position.unbind(1))
        half = s.uniform(1, *self.yaw)[:, 0] / 2.0
        zero = torch.zeros_like(half)
        turn = torch.stack((half.cos(), zero, zero, half.sin()), dim=1)
        qpos[:, q + 3 : q + 7] = multiply(turn, qpos[:, q + 3 : q + 7])
        n = len(self.velocity)
        qvel[:, v : v + n] = s.uniform(n, *self.velocity.unbind(1))
        s.write("qpos", qpos, mask)
        s.write("qvel", qvel, mask)


class push:
    """Add a random velocity to a floating base: uniform in +-velocity, (x, y, z) [m/s] and, if six are given, (roll,
    pitch, yaw) [rad/s] in base axes."""

    def __init__(self, s: State, *, velocity: list[float]):
        if not s.robot.floating:
            raise UserError("the robot's base is fixed; only a floating base can be pushed")
        if len(velocity) not in (3, 6):
            raise UserError(f"velocity takes 3 or 6 numbers, got {len(velocity)}")
        self.limit = torch.tensor([float(v) for v in velocity], device=s.device)
        self.span = slice(s.robot.free_qvel, s.robot.free_qvel + len(velocity))

    def __call__(self, s: State, mask: Tensor) -> None:
        qvel = s.read("qvel").clone()
        qvel[:, self.span] += s.uniform(len(self.limit), -self.limit, self.limit)
        s.write("qvel", qvel, mask)
