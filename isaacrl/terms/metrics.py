"""Metrics: functions of State that return [E], averaged over each episode, or with `reduce: last`
the value of its last step; `isaacrl eval` reports them."""

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.state import State
from isaacrl.terms import ALL, Joints, Sites, Term
from isaacrl.terms.measures import commanded_lin_vel_w, reach_angle, reach_distance
from isaacrl.terms.rewards import progress


def joint_pos_within(s: State, *, joints: Joints = ALL, limit: float) -> Tensor:
    """1 while every joint is within limit of 0, angles taken modulo a turn [rad], [E]."""
    angle = torch.remainder(s.joint_pos[:, joints] + torch.pi, 2 * torch.pi) - torch.pi
    return (angle.abs() <= limit).all(dim=1).float()


class forward_speed(progress):
    """Speed along a horizontal direction of the world, by where the base moved [m/s], [E]."""

    def __init__(self, s: State, *, direction: tuple[float, float] = (1.0, 0.0)):
        super().__init__(s, direction=direction)


def lin_vel_error(s: State, *, command: str = "velocity") -> Tensor:
    """Distance of the planar velocity from the commanded one, base axes [m/s], [E]."""
    return torch.linalg.vector_norm(s.command(command)[:, :2] - s.base_lin_vel_b[:, :2], dim=1)


def ang_vel_error(s: State, *, command: str = "velocity") -> Tensor:
    """Distance of the yaw rate from the commanded one [rad/s], [E]."""
    return (s.command(command)[:, 2] - s.base_ang_vel_b[:, 2]).abs()


class way(Term):
    """How far the base has come, as a share of where the commands would have led, 1 at most, [E]; use `reduce: last`.

    least: who was led less far has come all the way [m], unless the episode ends in a fall.
    """

    def __init__(self, s: State, *, command: str = "velocity", least: float = 1.0):
        self.command, self.least = command, least
        self.start: Tensor  # where the episode began, world frame [m], [E, 2]
        self.asked: Tensor  # where its commands would have led from there [m], [E, 2]

    def init(self, s: State) -> dict[str, Tensor]:
        return {"start": s.base_pos_w[:, :2], "asked": torch.zeros(s.num_envs, 2, device=s.device)}

    def advance(self, s: State) -> dict[str, Tensor]:
        return {"asked": self.asked + s.step_dt * commanded_lin_vel_w(s, self.command)}

    def __call__(self, s: State) -> Tensor:
        come, asked = (torch.linalg.vector_norm(x, dim=1) for x in (s.base_pos_w[:, :2] - self.start, self.asked))
        share = (come / asked.clamp(min=self.least)).clamp(max=1.0)
        return torch.where((asked < self.least) & ~s.terminated, 1.0, share)


def tracks_velocity(s: State, *, std: float = 0.5, command: str = "velocity") -> Tensor:
    """How well planar velocity and yaw rate are those commanded: exp(-(squared error / std^2)) of all three, [E]."""
    error = lin_vel_error(s, command=command).square() + ang_vel_error(s, command=command).square()
    return torch.exp(-error / std**2)


def lived(s: State) -> Tensor:
    """Share of a full episode that has passed, [E]; with `reduce: last` how much of it the robot lived."""
    return s.episode_step / s.max_episode_steps


def terrain_level(s: State) -> Tensor:
    """Level of the world's patch, 0 for the easiest, 1 for the hardest, [E]."""
    if s.ground is None:
        raise UserError("the ground is an endless plane; task.terrain.kinds names none")
    return s.ground.level / max(1, s.ground.levels - 1)


def curriculum(s: State, *, name: str) -> Tensor:
    """How far a curriculum has come, 0 to 1, [E]."""
    return s.curriculum(name).progress.expand(s.num_envs)


def contact_share(s: State, *, sensor: str = "feet") -> Tensor:
    """Share of the sensor's bodies that touch, [E]."""
    return s.contact(sensor).in_contact.float().mean(dim=1)


def position_error(s: State, *, site: Sites, command: str = "pose") -> Tensor:
    """Distance of a site from the commanded position [m], [E]."""
    return reach_distance(s, site, command)


def orientation_error(s: State, *, site: Sites, command: str = "pose") -> Tensor:
    """Angle between a site and the commanded orientation [rad], [E]."""
    return reach_angle(s, site, command)


class reached(Term):
    """Share of an episode's targets at which a site has stayed within tolerance long enough, [E]; use `reduce: last`.

    distance [m], angle [rad]: the tolerances; hold_s: for how long without a break [s]. A target counts once it has
    stood for hold_s: nobody can hold one that an episode ends on sooner.
    """

    def __init__(self, s: State, *, site: Sites, distance: float, angle: float, hold_s: float, command: str = "pose"):
        self.site, self.command, self.distance, self.angle = site, command, distance, angle
        self.needed = max(1, round(hold_s / s.step_dt))
        self.target: Tensor  # of the step before, [E, 7]
        self.age: Tensor  # steps since the present target was commanded, [E]
        self.held: Tensor  # steps within tolerance without a break, [E]
        self.done: Tensor  # whether the present target was reached, [E]
        self.successes: Tensor  # targets before the present one that were, [E]
        self.targets: Tensor  # targets before the present one that count, [E]

    def init(self, s: State) -> dict[str, Tensor]:
        # An episode's first target is drawn after this: until then the one of the last step stands, unseen.
        zero = torch.zeros(s.num_envs, device=s.device)
        target = torch.full_like(s.command(self.command), torch.nan)
        return {"target": target} | dict.fromkeys(("age", "held", "done", "successes", "targets"), zero)

    def advance(self, s: State) -> dict[str, Tensor]:
        target = s.command(self.command)
        begun = torch.isfinite(self.target[:, 0])
        changed = begun & (target != self.target).any(dim=1)
        near = (reach_distance(s, self.site, self.command) < self.distance) & (
            reach_angle(s, self.site, self.command) < self.angle
        )
        held = torch.where(near, torch.where(changed, 0.0, self.held) + 1.0, 0.0)
        done = torch.maximum(torch.where(changed, 0.0, self.done), (held >= self.needed).float())
        return {
            "target": target,
            "age": torch.where(changed, 0.0, self.age) + 1.0,
            "held": held,
            "done": done,
            "successes": self.successes + changed * self.done,
            "targets": self.targets + (changed & (self.age >= self.needed)),
        }

    def __call__(self, s: State) -> Tensor:
        return (self.successes + self.done) / (self.targets + (self.age >= self.needed)).clamp(min=1.0)
