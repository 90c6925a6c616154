"""`randomize`: fields of the model, of the actuators and of the encoders, with a random value in each world.

A term of the family `events`. What it changes, in which order, and what adds up is said in docs/randomization.md.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isaacrl.errors import Absent, UserError
from isaacrl.sim.drives import gains
from isaacrl.sim.names import match
from isaacrl.state import State
from isaacrl.suggest import did_you_mean
from isaacrl.terms import ALL, Term, patterns

# Model fields that constants of the model derive from; those follow by mj_setConst.
DERIVED_FROM = set(
    "body_mass body_inertia body_ipos body_iquat body_pos body_quat dof_armature qpos0 actuator_gear geom_size".split()
)
OPERATIONS = ("set", "add", "scale")
DISTRIBUTIONS = ("uniform", "log_uniform", "gaussian")
ENCODER_BIAS, DELAY = "encoder_bias", "actuation.delay"


class Field:
    """A randomized field: its compiled values and the entries that change them, in the order of the tables.

    Every change is worked out anew from the compiled values, through all entries: nothing accumulates, whatever is
    drawn when.
    """

    def __init__(self, s: State, name: str):
        self.name = name
        self.value = s.encoder_bias if name == ENCODER_BIAS else s.engine.model_field(name)  # live, [E, ...]
        self.base = self.value[:1].clone()  # compiled: equal in all worlds
        self.entries: list[tuple[randomize, Tensor | None]] = []

    def update(self, mask: Tensor) -> None:
        """Set the worlds of mask [E] to what the entries' present draws make of the compiled values."""
        new = self.base.repeat(len(self.value), *[1] * (self.base.ndim - 1))
        for entry, index in self.entries:
            if index is None:
                new = entry.change(new[:, None])[:, 0]
            else:
                new[:, index] = entry.change(new[:, index])
        if self.name == DELAY:
            new = new.round().clamp(min=0)
        self.value.copy_(torch.where(mask.view(-1, *[1] * (new.ndim - 1)), new, self.value))


class randomize(Term):
    """Give a field a random value in each world: set, add to, or scale the value it has without this entry.

    field: a field of MjModel by MuJoCo's name (body_mass, geom_friction, dof_damping, opt.gravity, ...), actuation.kp,
    .kd, .strength or .delay of the actuators, or encoder_bias of the joints; or several that take the same draws
    (body_mass and body_inertia). names: patterns of the bodies, geoms, joints, sites, tendons or actuators that the
    field belongs to. range: low and high, or mean and standard deviation of a gaussian, in MuJoCo's units; delays are
    whole physics steps, each from low to high equally likely. components: which of a vector's components change
    (geom_friction: 0 is sliding). separate: a draw for each component, not one for all. shared: one draw for all
    objects of a world.
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
        separate: bool = False,
        shared: bool = False,
    ):
        self.fields = [field] if isinstance(field, str) else list(field)
        for what, value, known in (("operation", operation, OPERATIONS), ("distribution", distribution, DISTRIBUTIONS)):
            if value not in known:
                hint = did_you_mean(value, known)
                raise UserError(f"{what}: '{value}' is none of {', '.join(known)}{hint}")
        self.first, self.second = _checked(range, distribution)
        self.operation, self.distribution, self.range = operation, distribution, [self.first, self.second]
        self.whole = DELAY in self.fields and operation != "scale"
        index = [_objects(s, name, names) for name in self.fields]
        layers = [s.randomized[f] if f in s.randomized else Field(s, f) for f in self.fields]
        s.randomized.update(zip(self.fields, layers))
        if whole := [f for f, layer in zip(self.fields, layers) if not layer.value.is_floating_point()]:
            raise UserError(f"field: {whole[0]} holds whole numbers; only real ones can be random")
        sizes = {_size(layer.value, i) for layer, i in zip(layers, index)}
        counts = {n for n, _ in sizes}
        if len(counts) > 1 or separate and len(sizes) > 1:
            raise UserError(f"field: {', '.join(self.fields)} have different sizes; give each an entry of its own")
        self.objects, width = counts.pop(), max(k for _, k in sizes)
        self.keep: Tensor | None = None  # components that stay
        if components is not None:
            if wrong := [c for c in components if not 0 <= c < min(k for _, k in sizes)]:
                raise UserError(f"components: {wrong[0]} is none of 0 to {width - 1} (of {self.fields[0]})")
            self.keep = torch.tensor([c not in components for c in _count(width)], device=s.device)
        self.count = (1 if shared else self.objects, width if separate else 1)
        if DELAY in self.fields:
            s.engine.allow_delay(self._longest(s, operation))
        for layer, i in zip(layers, index):
            layer.entries.append((self, i))
        self.draw: Tensor
        self.share: Tensor

    def init(self, s: State) -> dict[str, Tensor]:
        """Before the first draw there is no effect. At resets nothing: a draw lasts until the next one."""
        if hasattr(self, "draw"):
            return {}
        zeros = torch.zeros(s.num_envs, *self.count, device=s.device)
        return {"draw": zeros, "share": zeros[:, :1, :1]}  # [E, n, k], and [E, 1, 1]: how much of the draw counts

    def __call__(self, s: State, mask: Tensor) -> None:
        n, k = self.count
        rows = mask[:, None, None]
        self.draw.copy_(torch.where(rows, self.sample(s).reshape(-1, n, k), self.draw))
        self.share.copy_(torch.where(rows, s.share, self.share))
        for name in self.fields:
            s.randomized[name].update(mask)
        if DERIVED_FROM.intersection(self.fields):
            s.engine.set_const()
        s.refresh()

    def sample(self, s: State) -> Tensor:
        """New draws, [E, n * k]."""
        n, low, high = math.prod(self.count), self.first, self.second
        if self.distribution == "gaussian":
            return s.normal(n, low, high)
        if self.distribution == "log_uniform":
            return torch.exp(s.uniform(n, math.log(low), math.log(high)))
        if self.whole:
            return s.uniform(n, low - 0.5, high + 0.5).round().clamp(low, high)
        return s.uniform(n, low, high)

    def change(self, old: Tensor) -> Tensor:
        """What the present draws make of values [E, n, ...]."""
        flat = old.flatten(2) if old.ndim > 2 else old[..., None]  # [E, n, components]
        draw = self.draw.to(old.dtype)
        new = {"set": draw.expand_as(flat), "add": flat + draw, "scale": flat * draw}[self.operation]
        new = torch.lerp(flat, new, self.share.to(old.dtype).expand_as(flat))
        if self.keep is not None:
            new = torch.where(self.keep, flat, new)
        return new.reshape(old.shape)

    def _longest(self, s: State, operation: str) -> int:
        """The longest delay that this entry can make of those before it [physics steps]."""
        high = self.first + 4.0 * self.second if self.distribution == "gaussian" else self.second
        before = int(s.randomized[DELAY].base.max())
        for entry, _ in s.randomized[DELAY].entries:
            before = max(before, entry.longest)
        self.longest = math.ceil(max(before, {"set": high, "add": before + high, "scale": before * high}[operation]))
        if self.longest >= 1000:
            raise UserError(f"range: delays of up to {self.longest} physics steps; at most 999")
        return self.longest


def randomized_fields(*tables: dict[str, Any]) -> list[str]:
    """The engine's fields to which some event of these tables gives a value of its own in each world."""
    fields: list[str] = []
    for node in (n for table in tables for n in table.values() if n):
        value = node.get("field", [])
        fields += [value] if isinstance(value, str) else value
    return sorted(set(fields) - {ENCODER_BIAS})


def _checked(values: list[float], distribution: str) -> tuple[float, float]:
    """The two numbers of a range. Raises: UserError."""
    want = {
        "uniform": "low <= high",
        "log_uniform": "0 < low <= high",
        "gaussian": "mean and standard deviation, the latter >= 0",
    }[distribution]
    try:
        first, second = (float(v) for v in values)
        good = math.isfinite(first) and math.isfinite(second)
        good = good and (second >= 0.0 if distribution == "gaussian" else first <= second)
        good = good and (distribution != "log_uniform" or first > 0.0)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise UserError(f"range: got {values!r}; {distribution} takes two numbers, {want}")
    return first, second


def _count(n: int) -> list[int]:
    return np.arange(n).tolist()


def _size(value: Tensor, index: Tensor | None) -> tuple[int, int]:
    """(objects, components of each) of a field [E, ...]; a field without objects counts as one."""
    shape = value.shape[1:] if index is None else value.shape[2:]
    return 1 if index is None else len(index), math.prod(shape)


def _objects(s: State, field: str, names: list[str]) -> Tensor | None:
    """Indices, along the field's first axis, of the objects whose names match; None for a field of the whole model.

    Raises: Absent where the robot has none.
    """
    model, kind = s.engine.model, field.partition("_")[0]
    counts = {"body": "nbody", "geom": "ngeom", "site": "nsite", "actuator": "nu", "jnt": "njnt", "tendon": "ntendon"}
    excluded: list[int] = []
    if field.startswith("actuation."):
        all_names = s.robot.actuator_names
        excluded = np.flatnonzero(np.isnan(gains(model, s.engine.actuation)[field])).tolist()
    elif field == ENCODER_BIAS:
        all_names = s.robot.joint_names
    elif kind == "dof":
        all_names = [model.joint(model.dof_jntid[d]).name for d in _count(model.nv)]
    elif kind in counts:
        one = getattr(model, "joint" if kind == "jnt" else kind)
        all_names = [one(i).name for i in _count(getattr(model, counts[kind]))]
    else:
        return None
    everything = tuple(names) == ALL
    if everything and kind == "body":
        excluded = [0]  # the world
    chosen = _count(len(all_names))
    if not everything:
        try:
            chosen = match(patterns(names), all_names, f"names (of {field})")
        except UserError as e:
            raise Absent(str(e)) from None
    found = [i for i in chosen if i not in excluded]
    if not found and everything:
        raise Absent(f"the robot has nothing with a field {field}")
    if not everything and (others := [all_names[i] for i in chosen if i in excluded]):
        raise Absent(f"names: '{others[0]}' has no {field} under its law")
    return torch.tensor(found, dtype=torch.long, device=s.device)
