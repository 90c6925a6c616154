"""Events: functions (s, mask, *, parameters) that change the simulation in the worlds of mask [E].

`when: reset` (the default) runs at every reset, `when: startup` once, `when: interval` with `interval_s: [low, high]`
at random times. In a reset event joint and base coordinates are those of the new episode's default pose, while what
derives from them (body poses, sensors) is still the old episode's. Groups under conf/randomization hold events too.
"""

import torch
from torch import Tensor

from isaacrl.state import State
from isaacrl.terms import ALL, Joints


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


def push(s: State, mask: Tensor, *, velocity: list[float]) -> None:
    """Add a random velocity to a floating base: uniform in +-velocity, (x, y, z) [m/s] and, if six are given, (roll,
    pitch, yaw) [rad/s] in base axes."""
    a = s.robot.free_qvel
    limit = torch.tensor([float(v) for v in velocity], device=s.device)
    qvel = s.read("qvel").clone()
    qvel[:, a : a + len(limit)] += s.uniform(len(limit), -limit, limit)
    s.write("qvel", qvel, mask)
