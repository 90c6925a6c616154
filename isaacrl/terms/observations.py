"""Observations: functions of State that return [E, n] in SI units. Scale, clip, noise and history are settings of the
node, applied by the environment."""

import torch
from torch import Tensor

from isaacrl.state import State
from isaacrl.terms import ALL, Joints


def joint_pos(s: State, *, joints: Joints = ALL) -> Tensor:
    """Joint positions relative to the default pose [rad or m], [E, J]."""
    return s.joint_pos[:, joints] - s.robot.default_joint_pos[joints]


def joint_pos_cos(s: State, *, joints: Joints = ALL) -> Tensor:
    """Cosine of joint angles, [E, J]: continuous for joints that turn around."""
    return torch.cos(s.joint_pos[:, joints])


def joint_pos_sin(s: State, *, joints: Joints = ALL) -> Tensor:
    """Sine of joint angles, [E, J]."""
    return torch.sin(s.joint_pos[:, joints])


def joint_vel(s: State, *, joints: Joints = ALL) -> Tensor:
    """Joint velocities [rad/s or m/s], [E, J]."""
    return s.joint_vel[:, joints]


def base_height(s: State) -> Tensor:
    """Height of the base frame [m], [E, 1]."""
    return s.base_pos_w[:, 2:3]


def base_lin_vel(s: State) -> Tensor:
    """Linear velocity of the base, base axes [m/s], [E, 3]."""
    return s.base_lin_vel_b


def base_ang_vel(s: State) -> Tensor:
    """Angular velocity of the base, base axes [rad/s], [E, 3]."""
    return s.base_ang_vel_b


def projected_gravity(s: State) -> Tensor:
    """Direction of gravity, base axes, [E, 3]."""
    return s.projected_gravity_b


def last_action(s: State) -> Tensor:
    """The policy's output of the step that has just ended, [E, num_actions]."""
    return s.action


def command(s: State, *, name: str) -> Tensor:
    """The value of a command term, [E, n]."""
    return s.command(name)


def sensor(s: State, *, name: str) -> Tensor:
    """Reading of a MuJoCo sensor, [E, dim]."""
    return s.sensor(name)
