"""Observations: functions of State that return [E, n] in SI units. Scale, clip, noise and history are settings of the
node, applied by the environment."""

import math
from typing import Any

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.state import State, rotate_inverse
from isaacrl.terms import ALL, Joints, Sites
from isaacrl.terms.measures import reach_rotation
from isaacrl.terms.rays import rays  # noqa: F401  a term of this family


def joint_pos(s: State, *, joints: Joints = ALL, biased: bool = True) -> Tensor:
    """Joint positions relative to the default pose [rad or m], [E, J]; biased: as the encoders read them."""
    pos = s.encoder_pos if biased else s.joint_pos
    return pos[:, joints] - s.robot.default_joint_pos[joints]


def joint_pos_cos(s: State, *, joints: Joints = ALL, biased: bool = True) -> Tensor:
    """Cosine of joint angles, [E, J]: continuous for joints that turn around."""
    return torch.cos((s.encoder_pos if biased else s.joint_pos)[:, joints])


def joint_pos_sin(s: State, *, joints: Joints = ALL, biased: bool = True) -> Tensor:
    """Sine of joint angles, [E, J]."""
    return torch.sin((s.encoder_pos if biased else s.joint_pos)[:, joints])


def joint_vel(s: State, *, joints: Joints = ALL) -> Tensor:
    """Joint velocities [rad/s or m/s], [E, J]."""
    return s.joint_vel[:, joints]


def base_height(s: State) -> Tensor:
    """Height of the base frame above the ground [m], [E, 1]."""
    return s.base_height[:, None]


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


def heading(s: State, *, direction: tuple[float, float] = (1.0, 0.0)) -> Tensor:
    """Cosine and sine of the angle from a horizontal direction of the world to the base's x axis, [E, 2]."""
    angle = s.heading_w - math.atan2(direction[1], direction[0])
    return torch.stack((torch.cos(angle), torch.sin(angle)), dim=1)


def joint_torque(s: State, *, joints: Joints = ALL) -> Tensor:
    """Actuator torques at the joints [N m or N], [E, J]."""
    return s.joint_torque[:, joints]


def in_contact(s: State, *, sensor: str = "feet") -> Tensor:
    """1 for each body of a contact sensor that touches, [E, B]."""
    return s.contact(sensor).in_contact.float()


def contact_force(s: State, *, sensor: str = "feet") -> Tensor:
    """Contact forces on the sensor's bodies, world axes [N], [E, 3 B]."""
    return s.contact(sensor).force_w.flatten(1)


def air_time(s: State, *, sensor: str = "feet") -> Tensor:
    """Time since each body of a contact sensor last touched [s], [E, B]."""
    return s.contact(sensor).air_time


def foot_height(s: State, *, sensor: str = "feet") -> Tensor:
    """Height of the bodies of a contact sensor above the ground [m], [E, B]."""
    return s.above_ground(s.contact(sensor).parts.pos_w)


class height_scan:
    """How far the ground is below the base at points around it, less offset [m], [E, n]; points turn with the heading.

    size: of the grid along the base's x and y axes [m]; resolution: between its points [m]. Row by row from behind on
    the right, x first. most: above and below the offset no more than this is seen [m].
    """

    def __init__(
        self,
        s: State,
        *,
        size: tuple[float, float] = (1.6, 1.0),
        resolution: float = 0.1,
        offset: float = 0.0,
        most: float = 1.0,
    ):
        if not resolution > 0.0 or min(size) < 0.0:
            raise UserError(f"size {list(size)}, resolution {resolution}: both must be positive")
        n = [round(float(x) / resolution) + 1 for x in size]
        x, y = (torch.arange(k, device=s.device) - (k - 1) / 2.0 for k in n)
        self.x, self.y = x.repeat(n[1]) * resolution, y.repeat_interleave(n[0]) * resolution  # [n]
        self.offset, self.most = offset, most
        self.scanner: Any = None  # none is needed above a plane
        if (ground := s.ground) is not None:
            from isaacrl.sim.scan import Scanner  # starts Warp

            self.scanner = Scanner(self.x, self.y, ground.heights, ground.corner, ground.resolution, s.num_envs)

    def __call__(self, s: State) -> Tensor:
        if self.scanner is None:
            below = s.base_pos_w[:, 2:].expand(-1, len(self.x))
        else:
            below = self.scanner(s.base_pos_w, s.heading_w)
        return (below - self.offset).clamp(-self.most, self.most)


def imu_ang_vel(s: State, *, sensor: str = "imu") -> Tensor:
    """Gyroscope reading, IMU axes [rad/s], [E, 3]."""
    return s.imu(sensor).ang_vel_b


def imu_lin_acc(s: State, *, sensor: str = "imu") -> Tensor:
    """Accelerometer reading, IMU axes [m/s^2], [E, 3]."""
    return s.imu(sensor).lin_acc_b


def imu_projected_gravity(s: State, *, sensor: str = "imu") -> Tensor:
    """Direction of gravity, IMU axes, [E, 3]."""
    return s.imu(sensor).projected_gravity_b


def gait_clock(s: State, *, period: float, offsets: list[float]) -> Tensor:
    """Sine and cosine of each foot's phase, time / period + offset turns, [E, 2 F].

    period: of a gait [s].
    """
    turns = s.episode_time / period
    phase = 2 * math.pi * torch.stack([turns + offset for offset in offsets], dim=1)
    return torch.cat((torch.sin(phase), torch.cos(phase)), dim=1)


def site_pos(s: State, *, site: Sites) -> Tensor:
    """Position of a site in the frame of the base [m], [E, 3]."""
    return rotate_inverse(s.base_quat_w, site.pos_w[:, 0] - s.base_pos_w)


def site_axes(s: State, *, site: Sites) -> Tensor:
    """The x and y axes of a site in base axes, [E, 6]: its orientation without a jump anywhere."""
    axes = site.mat_w[:, 0].unflatten(1, (3, 3))
    return torch.cat([rotate_inverse(s.base_quat_w, axes[:, :, i]) for i in (0, 1)], dim=1)


def target_pos(s: State, *, command: str = "pose") -> Tensor:
    """Position that a pose command asks for, in the frame of the base [m], [E, 3]."""
    return s.command(command)[:, :3]


def target_axes(s: State, *, command: str = "pose") -> Tensor:
    """The x and y axes of the pose that a command asks for, in base axes, [E, 6]."""
    w, x, y, z = s.command(command)[:, 3:].unbind(1)
    x_axis = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
    y_axis = (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x))
    return torch.stack((*x_axis, *y_axis), dim=1)


def target_offset(s: State, *, site: Sites, command: str = "pose") -> Tensor:
    """Way from a site to the commanded position, base axes [m], [E, 3]."""
    return s.command(command)[:, :3] - rotate_inverse(s.base_quat_w, site.pos_w[:, 0] - s.base_pos_w)


def target_rotation(s: State, *, site: Sites, command: str = "pose") -> Tensor:
    """Turn from a site to the commanded orientation, axis times angle, base axes [rad], [E, 3]."""
    return reach_rotation(s, site, command)
