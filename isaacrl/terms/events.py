"""Events: functions (s, mask, *, parameters) that change the simulation in the worlds of mask [E].

`when: reset` (the default) runs at every reset, `when: startup` once, `when: interval` with `interval_s: [low, high]`
at random times. In a reset event joint and base coordinates are those of the new episode's default pose, while what
derives from them (body poses, sensors) is still the old episode's. Groups under conf/randomization hold events too.
"""

import math

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.sim.names import match
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


# Model fields that constants of the model derive from; those follow by mj_setConst.
DERIVED_FROM = set(
    "body_mass body_inertia body_ipos body_iquat body_pos body_quat dof_armature qpos0 actuator_gear geom_size".split()
)
OPERATIONS = ("set", "add", "scale")
DISTRIBUTIONS = ("uniform", "log_uniform", "gaussian")


class randomize:
    """Give a field of the model a random value in each world: set, add to, or scale the compiled model's value.

    field: a field of MjModel by MuJoCo's name (body_mass, geom_friction, dof_damping, opt.gravity, ...), or several
    that take the same draws (body_mass and body_inertia). names: patterns of the bodies, geoms, joints, sites or
    actuators that the field belongs to. range: low and high, or mean and standard deviation of a gaussian. components:
    which of a vector's components change (geom_friction: 0 is sliding). shared: one draw for all objects of a world.
    The compiled value is the base every time, so nothing accumulates over resets.
    """

    def __init__(
        self,
        s: State,
        *,
        field: str | list[str],
        range: list[float],
        names: list[str] = ALL,
        operation: str = "scale",
        distribution: str = "uniform",
        components: list[int] | None = None,
        shared: bool = False,
    ):
        self.fields = [field] if isinstance(field, str) else list(field)
        if operation not in OPERATIONS:
            raise UserError(f"operation: '{operation}' is none of {', '.join(OPERATIONS)}")
        if distribution not in DISTRIBUTIONS:
            raise UserError(f"distribution: '{distribution}' is none of {', '.join(DISTRIBUTIONS)}")
        if len(range) != 2 or (distribution == "log_uniform" and min(range) <= 0.0):
            raise UserError(f"range: got {list(range)}; two numbers, above 0 for log_uniform")
        self.operation, self.distribution = operation, distribution
        self.first, self.second = float(range[0]), float(range[1])
        self.shared, self.components = shared, components
        self.index = [_objects(s, name, names) for name in self.fields]
        self.base = [s.engine.model_field(name).clone() for name in self.fields]
        counts = {i.shape[0] if isinstance(i, Tensor) else -1 for i in self.index}
        if len(counts) > 1:
            raise UserError(f"field: {self.fields} belong to different numbers of objects; give each its own term")
        self.count = 1 if shared or counts == {-1} else counts.pop()

    def __call__(self, s: State, mask: Tensor) -> None:
        draw = self._draw(s)
        for name, base, index in zip(self.fields, self.base, self.index):
            value = s.engine.model_field(name)
            old, start = (value, base) if index is None else (value[:, index], base[:, index])
            d = draw.to(value.dtype)
            if index is None:
                d = d.expand(-1, value.shape[1]) if value.ndim > 1 else d[:, 0]
            d = d.view(*d.shape, *[1] * (start.ndim - d.ndim))
            new = {"set": d + 0 * start, "add": start + d, "scale": start * d}[self.operation]
            if self.components is not None:
                keep = torch.ones(start.shape[-1], dtype=torch.bool, device=start.device)
                keep[self.components] = False
                new = torch.where(keep, start, new)
            new = torch.where(mask.view(-1, *[1] * (new.ndim - 1)), new, old)
            if index is None:
                value.copy_(new)
            else:
                value[:, index] = new
        if DERIVED_FROM.intersection(self.fields):
            s.engine.set_const()
        s.refresh()

    def _draw(self, s: State) -> Tensor:
        """[E, count]"""
        if self.distribution == "gaussian":
            return s.normal(self.count, self.first, self.second)
        if self.distribution == "log_uniform":
            return torch.exp(s.uniform(self.count, math.log(self.first), math.log(self.second)))
        return s.uniform(self.count, self.first, self.second)


def _objects(s: State, field: str, names: list[str]) -> Tensor | None:
    """Indices, along the field's first axis, of the objects whose names match; None for a field of the whole model."""
    model, kind = s.engine.model, field.partition("_")[0]
    if kind == "dof":
        all_names = [model.joint(model.dof_jntid[d]).name for d in range(model.nv)]
    elif kind in ("body", "geom", "site", "actuator", "jnt"):
        one = getattr(model, "joint" if kind == "jnt" else kind)
        all_names = [
            one(i).name for i in range(getattr(model, {"jnt": "njnt", "actuator": "nu"}.get(kind, f"n{kind}")))
        ]
    else:
        return None
    found = match([names] if isinstance(names, str) else list(names), all_names, f"names (of {field})")
    return torch.tensor(found, dtype=torch.long, device=s.device)
