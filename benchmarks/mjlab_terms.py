"""What mjlab's flat velocity task is made of and isaacrl's own terms are not: what versus_mjlab.py trains on.

Source: mjlab 1.6, mjlab/tasks/velocity/mdp. Where isaacrl has the same term, the tasks under conf/task use that.
"""

from typing import Any

import torch
from torch import Tensor

from isaacrl.sim.names import by_pattern
from isaacrl.state import SiteView, State, rotate_inverse
from isaacrl.terms import Bodies, Sites, Term, commands

# --- commands --------------------------------------------------------------------------------------------------------


class velocity(commands.velocity):
    """isaacrl's velocity command, of whose draws the share `forward` is straight ahead, at 0.3 m/s or more."""

    def __init__(
        self,
        s: State,
        *,
        lin_vel_x: tuple[float, float],
        lin_vel_y: tuple[float, float],
        ang_vel_z: tuple[float, float],
        resample_s: tuple[float, float],
        standing: float,
        heading: float,
        heading_gain: float,
        forward: float,
    ):
        super().__init__(
            s,
            lin_vel_x=lin_vel_x,
            lin_vel_y=lin_vel_y,
            ang_vel_z=ang_vel_z,
            resample_s=resample_s,
            standing=standing,
            heading=heading,
            heading_gain=heading_gain,
        )
        self.forward = forward

    def _draw(self, s: State) -> dict[str, Tensor]:
        new = super()._draw(s)
        value = new["value"]
        straight = (s.uniform(1)[:, 0] < self.forward) & value.any(dim=1)  # not those that stand
        ahead = torch.zeros_like(value)
        ahead[:, 0] = value[:, 0].abs().clamp(min=0.3)
        return new | {"value": torch.where(straight[:, None], ahead, value)}


def _speed(s: State, command: str) -> Tensor:
    """Commanded planar speed [m/s] plus yaw rate [rad/s], [E]."""
    value = s.command(command)
    return torch.linalg.vector_norm(value[:, :2], dim=1) + value[:, 2].abs()


def _active(s: State, command: str) -> Tensor:
    """1 while the command asks for motion, [E]."""
    return (_speed(s, command) > 0.05).float()


# --- observations ----------------------------------------------------------------------------------------------------


def site_height(s: State, *, site: Sites) -> Tensor:
    """Height of sites above the flat ground [m], [E, S]."""
    return site.pos_w[..., 2]


def log_contact_force(s: State, *, sensor: str = "feet") -> Tensor:
    """sign(f) log(1 + |f|) of contact forces f [N], world axes, [E, 3 B]."""
    force = s.contact(sensor).force_w.flatten(1)
    return torch.sign(force) * torch.log1p(force.abs())


# --- rewards ---------------------------------------------------------------------------------------------------------


def track_linear_velocity(s: State, *, std: float, command: str = "velocity") -> Tensor:
    """exp(-|v_cmd - v|^2 / std^2), v_cmd without a vertical part, in (0, 1], [E]. std [m/s]."""
    v = s.base_lin_vel_b
    error = (s.command(command)[:, :2] - v[:, :2]).square().sum(dim=1) + v[:, 2].square()
    return torch.exp(-error / std**2)


def track_angular_velocity(s: State, *, std: float, command: str = "velocity") -> Tensor:
    """exp(-|w_cmd - w|^2 / std^2), w_cmd about the base's z axis, in (0, 1], [E]. std [rad/s]."""
    w = s.base_ang_vel_b
    error = (s.command(command)[:, 2] - w[:, 2]).square() + w[:, :2].square().sum(dim=1)
    return torch.exp(-error / std**2)


def upright(s: State, *, body: Bodies, std: float) -> Tensor:
    """exp(-tilt^2 / std^2), tilt the sine of the angle between a body's z axis and the vertical, in (0, 1], [E]."""
    down = torch.zeros_like(s.base_pos_w)
    down[:, 2] = -1.0
    tilt = rotate_inverse(body.quat_w[:, 0], down)[:, :2].square().sum(dim=1)
    return torch.exp(-tilt / std**2)


class posture(Term):
    """exp(-mean of ((q - q_default) / std)^2), in (0, 1], [E]; std by joint pattern and by the commanded speed."""

    def __init__(
        self,
        s: State,
        *,
        standing: dict[str, float],
        walking: dict[str, float],
        running: dict[str, float],
        command: str = "velocity",
    ):
        def tensor(std: Any) -> Tensor:
            return torch.tensor(by_pattern(std, s.robot.joint_names, "std"), device=s.device)  # [J]

        self.standing, self.walking, self.running = tensor(standing), tensor(walking), tensor(running)
        self.command = command

    def __call__(self, s: State) -> Tensor:
        speed = _speed(s, self.command)[:, None]
        std = torch.where(speed < 0.05, self.standing, torch.where(speed < 1.5, self.walking, self.running))
        return torch.exp(-((s.joint_pos - s.robot.default_joint_pos) / std).square().mean(dim=1))


def body_ang_vel(s: State, *, body: Bodies) -> Tensor:
    """Squared horizontal angular velocity of a body, world axes [(rad/s)^2], [E]."""
    return body.ang_vel_w[:, 0, :2].square().sum(dim=1)


class angular_momentum(Term):
    """Squared angular momentum of the robot about its centre of mass [(kg m^2/s)^2], [E]."""

    def __init__(self, s: State):
        model = s.engine.model
        self.mass = torch.tensor(model.body_mass, dtype=torch.float32, device=s.device)[None, :, None]  # [1, B, 1]
        self.inertia = torch.tensor(model.body_inertia, dtype=torch.float32, device=s.device)[None]  # [1, B, 3]

    def __call__(self, s: State) -> Tensor:
        # cvel: of the point of each body that is at the centre of mass of the whole robot.
        spin, moving = s.read("cvel").split(3, dim=2)  # [E, B, 3]
        turned = s.read("ximat").unflatten(2, (3, 3))  # [E, B, 3, 3]
        arm = s.read("xipos") - s.read("subtree_com")[:, s.body_root]
        in_axes = self.inertia * (turned * spin[..., None]).sum(dim=2)  # of each body's principal axes
        own = (turned * in_axes[:, :, None]).sum(dim=3)
        # The arms' masses balance, so the velocity of the centre of mass itself drops out.
        orbital = self.mass * torch.linalg.cross(arm, moving + torch.linalg.cross(spin, arm))
        return (own + orbital).sum(dim=1).square().sum(dim=1)


def self_collisions(s: State, *, sensor: str, threshold: float, substeps: int) -> Tensor:
    """In how many of a step's physics steps a contact within the robot is stronger than threshold [N], [E]: all or
    none, by the last one."""
    return substeps * (s.contact(sensor).force > threshold).any(dim=1).float()


def _site_velocity(s: State, site: SiteView) -> Tensor:
    """Velocity of sites, world axes [m/s], [E, S, 3]."""
    body = site._body
    cvel, center = s.read("cvel")[:, body], s.read("subtree_com")[:, s.body_root[body]]
    return cvel[..., 3:] + torch.linalg.cross(cvel[..., :3], site.pos_w - center)


def foot_clearance(s: State, *, site: Sites, height: float, command: str = "velocity") -> Tensor:
    """Sum over feet of |z - height| times their horizontal speed [m^2/s], 0 while the command is to stand, [E]."""
    speed = torch.linalg.vector_norm(_site_velocity(s, site)[..., :2], dim=2)
    return ((site.pos_w[..., 2] - height).abs() * speed).sum(dim=1) * _active(s, command)


class foot_swing_height(Term):
    """Sum over feet that land of (highest point of the swing / height - 1)^2, 0 while the command is to stand, [E]."""

    def __init__(self, s: State, *, site: Sites, height: float, sensor: str = "feet", command: str = "velocity"):
        self.site, self.height, self.sensor, self.command = site, height, sensor, command
        self.peak: Tensor  # highest point since the last contact [m], [E, F]
        self.swing: Tensor  # that up to this step [m], [E, F]

    def init(self, s: State) -> dict[str, Tensor]:
        zero = torch.zeros_like(self.site.pos_w[..., 2])
        return {"peak": zero, "swing": zero}

    def advance(self, s: State) -> dict[str, Tensor]:
        feet = s.contact(self.sensor)
        swing = torch.where(feet.in_contact, self.peak, torch.maximum(self.peak, self.site.pos_w[..., 2]))
        return {"peak": torch.where(feet.first_contact, 0.0, swing), "swing": swing}

    def __call__(self, s: State) -> Tensor:
        error = (self.swing / self.height - 1.0).square() * s.contact(self.sensor).first_contact
        return error.sum(dim=1) * _active(s, self.command)


def foot_slip(s: State, *, site: Sites, sensor: str = "feet", command: str = "velocity") -> Tensor:
    """Sum of squared horizontal velocities of feet that touch [(m/s)^2], 0 while the command is to stand, [E]."""
    speed = _site_velocity(s, site)[..., :2].square().sum(dim=2)
    return (speed * s.contact(sensor).in_contact).sum(dim=1) * _active(s, command)


def soft_landing(s: State, *, sensor: str = "feet", command: str = "velocity") -> Tensor:
    """Sum of contact forces of feet that land in this step [N], 0 while the command is to stand, [E]."""
    feet = s.contact(sensor)
    return (feet.force * feet.first_contact).sum(dim=1) * _active(s, command)


# --- metrics ---------------------------------------------------------------------------------------------------------


def fell(s: State) -> Tensor:
    """1 in a step that ends in a termination, [E]; use `reduce: last`."""
    return s.terminated.float()
