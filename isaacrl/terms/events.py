"""Events: functions (s, mask, *, parameters) that change the simulation in the worlds of mask [E].

`when: reset` (the default) runs at every reset, `when: startup` once, `when: interval` with `interval_s: [low, high]`
at random times. In a reset event joint and base coordinates are those of the new episode's default pose, while what
derives from them (body poses, sensors) is still the old episode's. Groups under conf/randomization hold events too.

`schedule: {start, end}` lets an event grow from no effect to all of it between these policy steps of the run: `s.share`
says how far it has come, and each event multiplies what it draws by it. `optional: true` leaves an entry out where the
robot has nothing of the kind.
"""

import torch
from torch import Tensor

from isaacrl.errors import Absent, UserError
from isaacrl.fuse.trace import may_ask
from isaacrl.sim.names import match
from isaacrl.state import State, multiply
from isaacrl.terms import ALL, Joints, Term, patterns
from isaacrl.terms.randomization import randomize

__all__ = ["push", "randomize", "reset_base", "reset_joints", "wrench"]

ZERO = (0.0, 0.0, 0.0)
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
    pos[:, joints] = torch.clamp(middle + s.share * s.uniform(n, *position), limits[:, 0], limits[:, 1])
    vel[:, joints] = s.share * s.uniform(n, *velocity)
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
        position: list[list[float]] = ZERO_RANGES,  # type: ignore[assignment]
        yaw: tuple[float, float] = (0.0, 0.0),
        velocity: list[list[float]] = ZERO_RANGES,  # type: ignore[assignment]
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
        qpos[:, q : q + 3] += s.share * s.uniform(3, *self.position.unbind(1))
        half = s.share * s.uniform(1, *self.yaw)[:, 0] / 2.0
        zero = torch.zeros_like(half)
        turn = torch.stack((half.cos(), zero, zero, half.sin()), dim=1)
        qpos[:, q + 3 : q + 7] = multiply(turn, qpos[:, q + 3 : q + 7])
        n = len(self.velocity)
        qvel[:, v : v + n] = s.share * s.uniform(n, *self.velocity.unbind(1))
        s.write("qpos", qpos, mask)
        s.write("qvel", qvel, mask)


class push:
    """Add a random velocity to a floating base: uniform in +-velocity, (x, y, z) [m/s] and, if six are given, (roll,
    pitch, yaw) [rad/s] in base axes."""

    unit = "m/s, rad/s"

    def __init__(self, s: State, *, velocity: list[float]):
        if not s.robot.floating:
            raise Absent("the robot's base is fixed; only a floating base can be pushed")
        if len(velocity) not in (3, 6):
            raise UserError(f"velocity takes 3 or 6 numbers, got {len(velocity)}")
        self.limit = torch.tensor([float(v) for v in velocity], device=s.device)
        self.span = slice(s.robot.free_qvel, s.robot.free_qvel + len(velocity))

    def sample(self, s: State) -> Tensor:
        """New changes of velocity, [E, 3 or 6]."""
        return s.uniform(len(self.limit), -self.limit, self.limit)

    def __call__(self, s: State, mask: Tensor) -> None:
        qvel = s.read("qvel").clone()
        qvel[:, self.span] += s.share * self.sample(s)
        s.write("qvel", qvel, mask)


class wrench(Term):
    """A random force and torque on bodies for a while, at their centres of mass, in world axes; `when: interval` alone.

    force, torque: each component is uniform in +-this, (x, y, z) [N], [N m]. of_weight: both are multiples of the
    robot's weight [N] instead. duration_s: range of how long it acts [s]; it ends with the episode. bodies: patterns;
    by default a floating base.
    """

    unit = "N, N m"
    interval_only = True  # a reset ends it

    def __init__(
        self,
        s: State,
        *,
        force: list[float],
        torque: list[float] = ZERO,
        duration_s: tuple[float, float],
        bodies: list[str] | None = None,
        of_weight: bool = False,
    ):
        if bodies is None and not s.robot.floating:
            raise Absent("the robot's base is fixed; name bodies that can move")
        names = s.robot.body_names
        try:
            ids = [s.robot.base] if bodies is None else match(patterns(bodies), names, "bodies")
        except UserError as e:
            raise Absent(str(e)) from None
        if len(force) != 3 or len(torque) != 3:
            raise UserError("force and torque take three numbers each")
        if len(duration_s) != 2 or not 0 < duration_s[0] <= duration_s[1]:
            raise UserError(f"duration_s: got {list(duration_s)}; give [low, high] in seconds, 0 < low <= high")
        for i in ids:
            if f"xfrc_applied of {names[i]}" in s.randomized:
                raise UserError(f"bodies: another wrench acts on '{names[i]}'; give each body to one")
            s.randomized[f"xfrc_applied of {names[i]}"] = self
        model = s.engine.model
        weight = float(model.body_mass.sum()) * max(float(abs(model.opt.gravity).max()), 1e-9)
        bound = torch.tensor([float(v) for v in (*force, *torque)], device=s.device) * (weight if of_weight else 1.0)
        self.limit = bound.repeat(len(ids))  # [6 B]
        self.duration = (float(duration_s[0]), float(duration_s[1]))
        self.ids = torch.tensor(ids, dtype=torch.long, device=s.device)
        self.steps_left: Tensor

    def init(self, s: State) -> dict[str, Tensor]:
        return {"steps_left": torch.zeros(s.num_envs, dtype=torch.int64, device=s.device)}

    def sample(self, s: State) -> Tensor:
        """New forces and torques, [E, 6 B]."""
        return s.uniform(len(self.limit), -self.limit, self.limit)

    def __call__(self, s: State, mask: Tensor) -> None:
        value = (s.share * self.sample(s)).reshape(s.num_envs, -1, 6)
        steps = (s.uniform(1, *self.duration)[:, 0] / s.step_dt).round().long().clamp(min=1)
        self.steps_left.copy_(torch.where(mask, steps, self.steps_left))
        self._apply(s, value, mask)

    def advance(self, s: State) -> dict[str, Tensor]:
        ended = self.steps_left == 1
        if not may_ask(s.device) or bool(ended.any()):
            self._apply(s, torch.zeros(s.num_envs, len(self.ids), 6, device=s.device), ended)
        return {"steps_left": (self.steps_left - 1).clamp(min=0)}

    def _apply(self, s: State, value: Tensor, mask: Tensor) -> None:
        """Set the wrenches [E, B, 6] of the bodies in the worlds of mask."""
        applied = s.read("xfrc_applied").clone()
        applied[:, self.ids] = value
        s.write("xfrc_applied", applied, mask)
