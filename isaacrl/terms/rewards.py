"""Rewards: functions of State that return [E]. Penalties return a value >= 0; the weight in YAML carries the sign.
The environment multiplies by the weight and by the step's duration, so weights are per second."""

import torch
from torch import Tensor

from isaacrl.state import State
from isaacrl.terms import ALL, Joints, Term


def alive(s: State) -> Tensor:
    """1 in every step that does not end in a termination, [E]."""
    return (~s.terminated).float()


def terminated(s: State) -> Tensor:
    """1 in the step that ends in a termination, [E], per second: divided by the step's duration, so that the weight is
    the reward of the event itself."""
    return s.terminated.float() / s.step_dt


def joint_deviation_l2(s: State, *, joints: Joints = ALL) -> Tensor:
    """Sum of squared distances from the default pose [rad^2 or m^2], [E]."""
    return (s.joint_pos[:, joints] - s.robot.default_joint_pos[joints]).square().sum(dim=1)


def joint_speed_l1(s: State, *, joints: Joints = ALL) -> Tensor:
    """Sum of absolute joint velocities [rad/s or m/s], [E]."""
    return s.joint_vel[:, joints].abs().sum(dim=1)


def joint_torque_l2(s: State, *, joints: Joints = ALL) -> Tensor:
    """Sum of squared actuator torques [(N m)^2], [E]."""
    return s.joint_torque[:, joints].square().sum(dim=1)


def action_l2(s: State) -> Tensor:
    """Sum of squared actions, [E]."""
    return s.action.square().sum(dim=1)


def action_rate_l2(s: State) -> Tensor:
    """Sum of squared changes of the action since the step before, [E]."""
    return (s.action - s.last_action).square().sum(dim=1)


def upright(s: State, *, std: float) -> Tensor:
    """exp(-tilt^2 / std^2), tilt the sine of the angle between the base's z axis and the vertical, in (0, 1], [E]."""
    return torch.exp(-s.projected_gravity_b[:, :2].square().sum(dim=1) / std**2)


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
