"""Rewards: functions of State that return [E]. Penalties return a value >= 0; the weight in YAML carries the sign.
The environment multiplies by the weight and by the step's duration, so weights are per second."""

from typing import Any

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.sim.names import by_pattern
from isaacrl.state import State
from isaacrl.terms import ALL, Bodies, Joints, Sites, Term
from isaacrl.terms.measures import is_moving, reach_angle, reach_distance

# --- the episode and the action --------------------------------------------------------------------------------------


def alive(s: State) -> Tensor:
    """1 in every step that does not end in a termination, [E]."""
    return (~s.terminated).float()


def terminated(s: State) -> Tensor:
    """1 in the step that ends in a termination, [E], per second: divided by the step's duration, so that the weight is
    the reward of the event itself."""
    return s.terminated.float() / s.step_dt


def action_l2(s: State) -> Tensor:
    """Sum of squared actions, [E]."""
    return s.action.square().sum(dim=1)


def action_rate_l2(s: State) -> Tensor:
    """Sum of squared changes of the action since the step before, [E]."""
    return (s.action - s.last_action).square().sum(dim=1)


# --- velocity commands -----------------------------------------------------------------------------------------------


def track_lin_vel(s: State, *, std: float, command: str = "velocity") -> Tensor:
    """exp(-|v_cmd - v|^2 / std^2) of the planar velocity, base axes, in (0, 1], [E]. std [m/s]."""
    error = s.command(command)[:, :2] - s.base_lin_vel_b[:, :2]
    return torch.exp(-error.square().sum(dim=1) / std**2)


def track_ang_vel(s: State, *, std: float, command: str = "velocity") -> Tensor:
    """exp(-(w_cmd - w)^2 / std^2) of the yaw rate, base axes, in (0, 1], [E]. std [rad/s]."""
    return torch.exp(-(s.command(command)[:, 2] - s.base_ang_vel_b[:, 2]).square() / std**2)


def stand_still_l1(s: State, *, command: str = "velocity", joints: Joints = ALL) -> Tensor:
    """Sum of distances from the default pose [rad or m] while the command is to stand, [E]."""
    away = (s.joint_pos[:, joints] - s.robot.default_joint_pos[joints]).abs().sum(dim=1)
    return away * ~is_moving(s, command)


# --- the base --------------------------------------------------------------------------------------------------------


class progress(Term):
    """Velocity along a horizontal direction of the world, from where the base was a step ago [m/s], [E].

    most: faster does not count more [m/s]; null for no bound.
    """

    def __init__(self, s: State, *, direction: tuple[float, float] = (1.0, 0.0), most: float | None = None):
        toward = torch.tensor([float(x) for x in direction], device=s.device)
        if not toward.any():
            raise UserError("direction: (0, 0) is none; give two numbers, such as [1.0, 0.0]")
        self.direction = toward / torch.linalg.vector_norm(toward)
        self.most = torch.inf if most is None else float(most)
        self.last: Tensor  # [E, 2]
        self.speed: Tensor  # [E]

    def init(self, s: State) -> dict[str, Tensor]:
        return {"last": s.base_pos_w[:, :2], "speed": torch.zeros_like(s.base_pos_w[:, 0])}

    def advance(self, s: State) -> dict[str, Tensor]:
        position = s.base_pos_w[:, :2]
        speed = (position - self.last) @ self.direction / s.step_dt
        return {"last": position, "speed": speed.clamp(max=self.most)}

    def __call__(self, s: State) -> Tensor:
        return self.speed


def heading(s: State, *, direction: tuple[float, float] = (1.0, 0.0), enough: float = 0.8) -> Tensor:
    """Cosine between the base's x axis and a horizontal direction, 1 from `enough` on and in proportion below, [E]."""
    w, x, y, z = s.base_quat_w.unbind(1)
    length = (direction[0] ** 2 + direction[1] ** 2) ** 0.5
    forward_x, forward_y = 1 - 2 * (y * y + z * z), 2 * (x * y + w * z)
    cosine = (forward_x * direction[0] + forward_y * direction[1]) / length
    return torch.where(cosine > enough, 1.0, cosine / enough)


def upright(s: State, *, std: float) -> Tensor:
    """exp(-tilt^2 / std^2), tilt the sine of the angle between the base's z axis and the vertical, in (0, 1], [E]."""
    return torch.exp(-tilt_l2(s) / std**2)


def upright_above(s: State, *, cos: float) -> Tensor:
    """1 while the cosine between the base's z axis and the vertical is above cos, [E]."""
    return (-s.projected_gravity_b[:, 2] > cos).float()


def tilt_l2(s: State) -> Tensor:
    """Squared sine of the angle between the base's z axis and the vertical, [E]."""
    return s.projected_gravity_b[:, :2].square().sum(dim=1)


def body_tilt_l2(s: State, *, body: Bodies) -> Tensor:
    """Squared sine of the angle between a body's z axis and the vertical, the mean over several bodies, [E]."""
    w, x, y, z = body.quat_w.unbind(dim=-1)
    return 4.0 * ((x * z + w * y).square() + (y * z - w * x).square()).mean(dim=1)


def base_height_l2(s: State, *, height: float) -> Tensor:
    """Squared distance of the base's height above the ground from `height` [m^2], [E]."""
    return (s.base_height - height).square()


def lin_vel_z_l2(s: State) -> Tensor:
    """Squared vertical velocity of the base, base axes [(m/s)^2], [E]."""
    return s.base_lin_vel_b[:, 2].square()


def ang_vel_xy_l2(s: State) -> Tensor:
    """Squared roll and pitch rates of the base [(rad/s)^2], [E]."""
    return s.base_ang_vel_b[:, :2].square().sum(dim=1)


# --- joints ----------------------------------------------------------------------------------------------------------


def joint_deviation_l2(s: State, *, joints: Joints = ALL) -> Tensor:
    """Sum of squared distances from the default pose [rad^2 or m^2], [E]."""
    return (s.joint_pos[:, joints] - s.robot.default_joint_pos[joints]).square().sum(dim=1)


def joint_deviation_l1(s: State, *, joints: Joints = ALL) -> Tensor:
    """Sum of distances from the default pose [rad or m], [E]."""
    return (s.joint_pos[:, joints] - s.robot.default_joint_pos[joints]).abs().sum(dim=1)


def joint_speed_l1(s: State, *, joints: Joints = ALL) -> Tensor:
    """Sum of absolute joint velocities [rad/s or m/s], [E]."""
    return s.joint_vel[:, joints].abs().sum(dim=1)


def joint_speed_l2(s: State, *, joints: Joints = ALL) -> Tensor:
    """Sum of squared joint velocities [(rad/s)^2 or (m/s)^2], [E]."""
    return s.joint_vel[:, joints].square().sum(dim=1)


def joint_torque_l2(s: State, *, joints: Joints = ALL) -> Tensor:
    """Sum of squared actuator torques [(N m)^2], [E]."""
    return s.joint_torque[:, joints].square().sum(dim=1)


def energy(s: State, *, joints: Joints = ALL) -> Tensor:
    """Sum of absolute mechanical powers |torque * velocity| of the actuators [W], [E]."""
    return (s.joint_torque[:, joints] * s.joint_vel[:, joints]).abs().sum(dim=1)


def joint_limits_l1(s: State, *, soft: float = 0.9, joints: Joints = ALL) -> Tensor:
    """Sum of how far joints are beyond the middle share `soft` of their range [rad or m], [E]."""
    limits = s.robot.joint_pos_limits[joints]
    middle, half = limits.mean(dim=1), soft * (limits[:, 1] - limits[:, 0]) / 2.0
    beyond = (s.joint_pos[:, joints] - middle).abs() - half  # NaN for a joint without limits
    return torch.where(torch.isfinite(half), beyond.clamp(min=0.0), 0.0).sum(dim=1)


def at_joint_limits(s: State, *, beyond: float = 0.98, joints: Joints = ALL) -> Tensor:
    """How many joints are at a limit: each counts, 0 at the share `beyond` of its half range, 1 at its end, [E]."""
    limits = s.robot.joint_pos_limits[joints]
    middle, half = limits.mean(dim=1), (limits[:, 1] - limits[:, 0]) / 2.0
    share = (s.joint_pos[:, joints] - middle).abs() / half
    count = ((share - beyond) / (1.0 - beyond)).clamp(0.0, 1.0)
    return torch.where(torch.isfinite(half), count, 0.0).sum(dim=1)


def joint_speed_limits_l1(s: State, *, limit: float, most: float = torch.inf, joints: Joints = ALL) -> Tensor:
    """Sum of how much faster than limit joints are, of each at most `most` [rad/s or m/s], [E]."""
    return (s.joint_vel[:, joints].abs() - limit).clamp(0.0, most).sum(dim=1)


class pose(Term):
    """exp(-mean of ((q - q_default) / std)^2), in (0, 1], [E].

    std: one number, or one by joint pattern (the first that matches), the tolerance [rad or m]; std_standing: the same
    while `command` asks to stand.
    """

    def __init__(
        self,
        s: State,
        *,
        std: Any,
        std_standing: Any = None,
        command: str | None = None,
        joints: Joints = ALL,
    ):
        self.joints, self.command = joints, command
        ids = torch.arange(len(s.robot.joint_names), device=s.device)[joints].tolist()
        names = [s.robot.joint_names[i] for i in ids]
        self.std = torch.tensor(by_pattern(std, names, "std"), device=s.device)  # [J]
        standing = std if std_standing is None else std_standing
        self.standing = torch.tensor(by_pattern(standing, names, "std_standing"), device=s.device)  # [J]
        if std_standing is not None and command is None:
            raise UserError("std_standing needs `command`, the velocity command that says when to stand")

    def __call__(self, s: State) -> Tensor:
        std = torch.where(is_moving(s, self.command)[:, None], self.std, self.standing)
        error = (s.joint_pos[:, self.joints] - s.robot.default_joint_pos[self.joints]) / std
        return torch.exp(-error.square().mean(dim=1))


class joint_acc_l2(Term):
    """Sum of squared joint accelerations over the step, by finite difference of velocities [(rad/s^2)^2], [E].

    0 in the first step of an episode.
    """

    def __init__(self, s: State, *, joints: Joints = ALL):
        self.joints = joints
        self.last_vel: Tensor
        self.acc: Tensor

    def init(self, s: State) -> dict[str, Tensor]:
        vel = s.joint_vel[:, self.joints]
        return {"last_vel": vel, "acc": torch.zeros_like(vel)}

    def advance(self, s: State) -> dict[str, Tensor]:
        vel = s.joint_vel[:, self.joints]
        acc = torch.where((s.episode_step > 1)[:, None], (vel - self.last_vel) / s.step_dt, 0.0)
        return {"last_vel": vel, "acc": acc}

    def __call__(self, s: State) -> Tensor:
        return self.acc.square().sum(dim=1)


# --- feet and other contacts: `sensor` names a contact sensor of task.sensors ----------------------------------------


def feet_air_time(
    s: State, *, sensor: str = "feet", threshold: float = 0.5, most: float = 1.0, command: str | None = "velocity"
) -> Tensor:
    """Sum over feet that land in this step of the flight's duration beyond threshold, at most `most` [s], divided by
    the step's duration: the weight is the reward a second of flight. 0 while the command is to stand, [E]."""
    feet = s.contact(sensor)
    flight = feet.last_air_time.clamp(max=most) - threshold
    return (flight * feet.first_contact).sum(dim=1) / s.step_dt * is_moving(s, command)


def airborne(s: State, *, sensor: str = "feet") -> Tensor:
    """1 while none of the sensor's bodies touches, [E]."""
    return (~s.contact(sensor).in_contact.any(dim=1)).float()


def feet_slip(s: State, *, sensor: str = "feet") -> Tensor:
    """Sum of squared horizontal velocities of feet that touch [(m/s)^2], [E]."""
    feet = s.contact(sensor)
    return (feet.parts.lin_vel_w[..., :2].square().sum(dim=2) * feet.in_contact).sum(dim=1)


def feet_clearance(s: State, *, height: float, sensor: str = "feet", command: str | None = "velocity") -> Tensor:
    """Sum over feet of |z - height| times their horizontal speed [m^2/s]: feet that move should move at that height.
    0 while the command is to stand, [E]."""
    feet = s.contact(sensor).parts
    speed = torch.linalg.vector_norm(feet.lin_vel_w[..., :2], dim=2)
    return ((s.above_ground(feet.pos_w) - height).abs() * speed).sum(dim=1) * is_moving(s, command)


class swing_height(Term):
    """Sum over feet that land of (highest point of the swing / height - 1)^2, divided by the step's duration.

    0 while the command is to stand, [E]. height: of the foot's frame [m].
    """

    def __init__(self, s: State, *, height: float, sensor: str = "feet", command: str | None = "velocity"):
        self.height, self.sensor, self.command = height, sensor, command
        self.peak: Tensor  # highest point since the last contact [m], [E, F]
        self.swing: Tensor  # that of the swing that has just ended [m], [E, F]

    def init(self, s: State) -> dict[str, Tensor]:
        z = s.above_ground(s.contact(self.sensor).parts.pos_w)
        return {"peak": z, "swing": z}

    def advance(self, s: State) -> dict[str, Tensor]:
        feet = s.contact(self.sensor)
        z = s.above_ground(feet.parts.pos_w)
        peak = torch.maximum(self.peak, z)
        return {"peak": torch.where(feet.in_contact, z, peak), "swing": peak}

    def __call__(self, s: State) -> Tensor:
        landed = s.contact(self.sensor).first_contact
        error = (self.swing / self.height - 1.0).square() * landed
        return error.sum(dim=1) / s.step_dt * is_moving(s, self.command)


def soft_landing(s: State, *, sensor: str = "feet") -> Tensor:
    """Sum of the contact forces of feet that land in this step [N], [E]."""
    feet = s.contact(sensor)
    return (feet.force * feet.first_contact).sum(dim=1)


def stumble(s: State, *, sensor: str = "feet", ratio: float = 4.0) -> Tensor:
    """How many feet are pushed more than `ratio` times harder from the side than from below, [E]."""
    force = s.contact(sensor).force_w
    sideways = torch.linalg.vector_norm(force[..., :2], dim=2)
    return (sideways > ratio * force[..., 2].abs()).float().sum(dim=1)


def contact_count(s: State, *, sensor: str, threshold: float = 1.0) -> Tensor:
    """How many of the sensor's bodies touch with more than threshold [N]: unwanted contacts, self-collision, [E]."""
    return (s.contact(sensor).force > threshold).float().sum(dim=1)


def contact_excess(s: State, *, sensor: str = "feet", threshold: float) -> Tensor:
    """Sum of contact forces beyond threshold [N], [E]."""
    return (s.contact(sensor).force - threshold).clamp(min=0.0).sum(dim=1)


def gait(
    s: State,
    *,
    period: float,
    offsets: list[float],
    duty: float = 0.5,
    sensor: str = "feet",
    command: str | None = "velocity",
) -> Tensor:
    """Share of feet that touch when, and only when, the clock says so, in [0, 1], [E].

    Foot i should touch while (time / period + offsets[i]) mod 1 < duty. period [s]; offsets in the order of the
    sensor's bodies. While the command is to stand, all feet should touch.
    """
    touches = s.contact(sensor).in_contact
    if len(offsets) != touches.shape[1]:
        raise UserError(f"offsets: {len(offsets)} given for {touches.shape[1]} feet")
    # Number by number: a tensor made here would have a GPU wait for the host.
    phase = torch.stack([torch.remainder(s.episode_time / period + offset, 1.0) for offset in offsets], dim=1)
    planned = (phase < duty) | ~is_moving(s, command)[:, None]
    return (touches == planned).float().mean(dim=1)


# --- reaching --------------------------------------------------------------------------------------------------------


def position_error(s: State, *, site: Sites, command: str = "pose") -> Tensor:
    """Distance of a site from the commanded position [m], [E]."""
    return reach_distance(s, site, command)


def position_reached(s: State, *, site: Sites, std: float, command: str = "pose") -> Tensor:
    """1 - tanh(distance / std), in (0, 1], [E]. std [m]."""
    return 1.0 - torch.tanh(reach_distance(s, site, command) / std)


def orientation_error(s: State, *, site: Sites, command: str = "pose") -> Tensor:
    """Angle between a site and the commanded orientation [rad], [E]."""
    return reach_angle(s, site, command)


def orientation_reached(s: State, *, site: Sites, std: float, command: str = "pose") -> Tensor:
    """1 - tanh(angle / std), in (0, 1], [E]. std [rad]."""
    return 1.0 - torch.tanh(reach_angle(s, site, command) / std)


# --- cart-poles ------------------------------------------------------------------------------------------------------


def cartpole_swingup(s: State, *, cart: Joints, pole: Joints) -> Tensor:
    """upright * centered * small action * small pole speed, in [0, 1], [E].

    Source: dm_control's cartpole (Tassa et al. 2018, arXiv:1801.00690) with its tolerances: cart within 2 m margin
    (gaussian), control margin 1 (quadratic, value 0 at the margin), pole speed margin 5 rad/s (gaussian).
    """
    angle, speed = s.joint_pos[:, pole][:, 0], s.joint_vel[:, pole][:, 0]
    position = s.joint_pos[:, cart][:, 0]
    is_upright = (torch.cos(angle) + 1.0) / 2.0
    is_centered = (1.0 + _gaussian(position, 2.0)) / 2.0
    small_control = (4.0 + (1.0 - s.action.clamp(-1.0, 1.0).square().mean(dim=1))) / 5.0
    small_velocity = (1.0 + _gaussian(speed, 5.0)) / 2.0
    return is_upright * is_centered * small_control * small_velocity


def _gaussian(x: Tensor, margin: float) -> Tensor:
    """A bell that is 1 at 0 and 0.1 at the margin, as dm_control's tolerance()."""
    return 0.1 ** ((x / margin).square())
