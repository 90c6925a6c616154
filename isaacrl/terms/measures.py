"""Quantities that rewards, terminations and metrics share; tasks name the terms that use them."""

import torch
from torch import Tensor

from isaacrl.state import SiteView, State, inverse, multiply, rotate, rotation_vector

STANDING = 0.1  # a velocity command below this, [m/s] and [rad/s] together, asks to stand


def is_moving(s: State, command: str | None) -> Tensor:
    """Whether the velocity command asks for motion, boolean [E]; True everywhere without one."""
    if command is None:
        return torch.ones_like(s.terminated)
    return torch.linalg.vector_norm(s.command(command)[:, :3], dim=1) > STANDING


def commanded_lin_vel_w(s: State, command: str) -> Tensor:
    """The planar velocity that is commanded, along the world's x and y axes [m/s], [E, 2]."""
    x, y = s.command(command)[:, :2].unbind(1)
    cos, sin = torch.cos(s.heading_w), torch.sin(s.heading_w)
    return torch.stack((cos * x - sin * y, sin * x + cos * y), dim=1)


def reach_distance(s: State, site: SiteView, command: str) -> Tensor:
    """Distance of the first of the sites from the pose command [m], [E]."""
    target = s.base_pos_w + rotate(s.base_quat_w, s.command(command)[:, :3])
    return torch.linalg.vector_norm(target - site.pos_w[:, 0], dim=1)


def reach_rotation(s: State, site: SiteView, command: str) -> Tensor:
    """Turn from the first of the sites to the pose command, as axis times angle [rad] in base axes, [E, 3]."""
    now = multiply(inverse(s.base_quat_w), site.quat_w[:, 0])
    return rotation_vector(multiply(s.command(command)[:, 3:], inverse(now)))


def reach_angle(s: State, site: SiteView, command: str) -> Tensor:
    """Angle between the first of the sites and the pose command [rad], in [0, pi], [E]."""
    return torch.linalg.vector_norm(reach_rotation(s, site, command), dim=1)
