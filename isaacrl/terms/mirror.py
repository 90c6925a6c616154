"""How a task's observations and actions look in a mirror: left for right, at the plane of the base's x and z axes.

Column c of a mirror image is sign[c] times column index[c]. RULES and COMMANDS say so for the terms of isaacrl; a
user's own term says it by an attribute `mirror` of the function or class:

    def my_term(s): ...
    my_term.mirror = "vector"      # or one sign a column: [1, -1, 1]; or a function (see Rule)
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.sim.mirror import FLIP, Mirror
from isaacrl.sim.names import match
from isaacrl.state import State
from isaacrl.terms import Bound
from isaacrl.terms import commands as C
from isaacrl.terms import observations as O
from isaacrl.terms.actions import Affine
from isaacrl.terms.group import ObservationGroup
from isaacrl.terms.rays import mirror_map

Map = tuple[list[int], list[float]]  # (index, sign) of a term's columns
# A kind: same (scalars), vector (in base or world axes), axial (angular velocities and the like), joints (one value for
# each of the term's `joints`); or signs; or a function of the term and the task's mirror.
Rule = str | Sequence[float] | Callable[[Bound, "TaskMirror"], Map]
VECTOR, AXIAL = FLIP.tolist(), (-FLIP).tolist()


class Columns:
    """The mirror image of tensors [..., n]: columns `index` [n] times `sign` [n]."""

    def __init__(self, index: Sequence[int], sign: Sequence[float], device: str):
        self.index = torch.tensor(list(index), dtype=torch.long, device=device)
        self.sign = torch.tensor(list(sign), dtype=torch.float32, device=device)

    def __call__(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.index) * self.sign


class TaskMirror:
    """The mirror images of a task's actions and of its observation groups, by name.

    patterns: `asset.mirror`; feet: `asset.feet`. Raises: UserError for what has none.
    """

    def __init__(
        self,
        patterns: dict[str, str],
        s: State,
        actions: list[Bound],
        groups: list[ObservationGroup],
        commands: list[Bound],
        feet: list[str],
    ):
        robot = s.robot
        self.state, self.feet = s, feet
        self.commands = {c.name: c for c in commands}
        self.robot = Mirror(patterns, s.engine.model, robot.base, robot.default_qpos.cpu().numpy())
        self.action_map = self._of_actions(actions)
        self.actions = Columns(*self.action_map, s.device)
        self.groups = {g.name: Columns(*self._of_group(g), s.device) for g in groups}

    def _of_actions(self, actions: list[Bound]) -> Map:
        """Of all terms' columns in order. Scales, offsets and clips must be those of mirror images as well."""
        names, rows, keys = [], [], []
        default = dict(zip(self.state.robot.joint_names, self.state.robot.default_joint_pos.tolist()))
        for term in actions:
            fn = term.fn
            if not isinstance(fn, Affine):
                raise UserError(
                    f"{term.key}: has no mirror image (only affine terms of isaacrl.terms.actions have one)"
                )
            about = [default[n] if fn.kind == "position" and not fn.relative else 0.0 for n in fn.names]
            offset = [x - y for x, y in zip(fn.offset.tolist(), about)]
            law = [(fn.kind, fn.relative, fn.blend)] * len(fn.names)
            rows += list(zip(fn.scale.tolist(), offset, fn.action_clip.tolist(), law))
            names += fn.names
            keys += [term.key] * len(fn.names)
        try:
            index, sign = self.robot.joints(names)
        except UserError as e:
            raise UserError(f"task.actions: {e}") from None
        for c, (i, sgn) in enumerate(zip(index, sign)):
            (scale, offset, *rest), (scale_i, offset_i, *rest_i) = rows[c], rows[i]
            if abs(scale - scale_i) > 1e-4 * abs(scale) or abs(offset - sgn * offset_i) > 1e-4 or rest != rest_i:
                raise UserError(
                    f"{keys[c]}: joints '{names[c]}' and '{names[i]}' are mirror images, their actions are not"
                )
        return index, sign

    def _of_group(self, group: ObservationGroup) -> Map:
        """Of a group's columns: term by term, each with its history. Scale and clip must allow it."""
        index: list[int] = []
        sign: list[float] = []
        low, high, scale = group.low.tolist(), group.high.tolist(), group.scale.tolist()
        for term, n, length in zip(group.terms, group.sizes, group.lengths):
            own, signs = self._of_term(term, n)
            for _ in range(length):
                first = len(index)
                index += [first + i for i in own]
                sign += signs
                for c, i, sgn in zip(range(first, first + n), index[first:], signs):
                    bounds = (low[i], high[i]) if sgn > 0 else (-high[i], -low[i])
                    if scale[c] != scale[i] or (low[c], high[c]) != bounds:
                        raise UserError(f"{term.key}: scale and clip are not the same on both sides of the mirror")
        return index, sign

    def _of_term(self, term: Bound, n: int) -> Map:
        kind = term.fn if inspect.isroutine(term.fn) else type(term.fn)
        rule: Rule | None = getattr(term.fn, "mirror", None) or RULES.get(kind)
        if rule is None:
            raise UserError(f"{term.key}: nothing says how it looks in a mirror; {HOW}")
        try:
            index, sign = self.resolve(rule, term, n)
        except UserError as e:
            raise UserError(str(e) if term.key in str(e) else f"{term.key}: {e}") from None
        twice = [index[i] if 0 <= i < len(index) else -1 for i in index]
        if len(sign) != n or twice != list(range(n)) or any(abs(x) != 1.0 or x != sign[i] for i, x in zip(index, sign)):
            raise UserError(f"{term.key}: mirroring its {n} columns twice must give them back; {HOW}")
        return index, sign

    def resolve(self, rule: Rule, term: Bound, n: int) -> Map:
        """The (index, sign) of n columns by a rule."""
        if callable(rule):
            index, sign = rule(term, self)
            return list(index), [float(x) for x in sign]
        if not isinstance(rule, str):
            return list(range(n)), [float(x) for x in rule]
        if rule == "joints":
            if term.joints is None:
                raise UserError("its mirror is 'joints', but it has no parameter `joints`")
            return self.robot.joints(term.joints)
        if rule not in KINDS:
            raise UserError(f"its mirror is '{rule}', which is none of {', '.join((*KINDS, 'joints'))}")
        return list(range(n)), list(KINDS[rule]) * (n // len(KINDS[rule]))


KINDS = {"same": [1.0], "vector": VECTOR, "axial": AXIAL}
HOW = "set its attribute `mirror` to same, vector, axial, joints, a list of signs or a function (isaacrl.terms.mirror)"

# --- rules -----------------------------------------------------------------------------------------------------------


def _angles(term: Bound, m: TaskMirror) -> Map:
    """Positions themselves, not relative to the default pose, of each joint."""
    index, sign = m.robot.joints(term.joints or [])
    names, default = m.state.robot.joint_names, m.state.robot.default_joint_pos.tolist()
    pose = [default[names.index(name)] for name in term.joints or []]
    for c, (i, sgn) in enumerate(zip(index, sign)):
        if abs(pose[c] - sgn * pose[i]) > 1e-5:
            raise UserError(f"the zero position of joint '{(term.joints or [])[c]}' is not that of its mirror image")
    return index, sign


def _cosines(term: Bound, m: TaskMirror) -> Map:
    index, _ = _angles(term, m)
    return index, [1.0] * len(index)


def _command(term: Bound, m: TaskMirror) -> Map:
    name = term.params["name"]
    bound = m.commands[name]
    rule = getattr(bound.fn, "mirror", None) or COMMANDS.get(type(bound.fn))
    if rule is None:
        raise UserError(f"nothing says how {bound.key} looks in a mirror; {HOW}")
    return m.resolve(rule, bound, m.state.command(name).shape[1])


def _heading(term: Bound, m: TaskMirror) -> Map:
    if abs(term.params["direction"][1]) > 1e-6:
        raise UserError("the direction must be along the world's x axis: that is the mirror's plane")
    return [0, 1], [1.0, -1.0]


def _bodies(term: Bound, m: TaskMirror) -> Map:
    """One value for each body of a contact sensor."""
    index = m.robot.swap(m.state.contact(term.params["sensor"]).names)
    return index, [1.0] * len(index)


def _forces(term: Bound, m: TaskMirror) -> Map:
    index, _ = _bodies(term, m)
    return [3 * i + k for i in index for k in range(3)], VECTOR * len(index)


def _grid(term: Bound, m: TaskMirror) -> Map:
    """Rows of points along x, from the right to the left."""
    n = len(term.fn.x)
    rows = len(term.fn.y.unique())
    length = n // rows
    return [(rows - 1 - c // length) * length + c % length for c in range(n)], [1.0] * n


def _rays(term: Bound, m: TaskMirror) -> Map:
    fn = term.fn
    flip = m.robot.site(fn.index) if fn.site else m.robot.body(fn.index)
    if any(sign < 0.0 and abs(x) > 1e-3 for sign, x in zip(flip, fn.pos)):
        raise UserError(f"pos {list(fn.pos)} is not in the mirror's plane")
    if fn.yaw_only and flip[0] < 0.0:
        raise UserError(f"yaw_only: the x axis of '{fn.name}' is across the mirror's plane")
    index = mirror_map(fn.directions, VECTOR if fn.yaw_only else flip)
    return index, [1.0] * len(index)


def _imu(axial: bool) -> Callable[[Bound, TaskMirror], Map]:
    def rule(term: Bound, m: TaskMirror) -> Map:
        site = int(m.state.engine.model.sensor(f"{term.params['sensor']}/gyro").objid[0])
        return [0, 1, 2], [-x if axial else x for x in m.robot.site(site)]

    return rule


def _clock(term: Bound, m: TaskMirror) -> Map:
    """Sines, then cosines, of the feet in the model's order."""
    names, n = m.state.robot.body_names, len(term.params["offsets"])
    feet = [names[i] for i in match(m.feet, names, "asset.feet")] if m.feet else []
    if len(feet) != n:
        raise UserError(f"{n} offsets, but asset.feet names {len(feet)} bodies: nothing says which foot mirrors which")
    index = m.robot.swap(feet)
    return [*index, *(n + i for i in index)], [1.0] * (2 * n)


# Rewards are taken to be the same in the mirror, so nothing here speaks of them. Without a rule: `sensor`, whose axes
# are the model's, and terms of an arm's hand, which is on no side.
RULES: dict[Any, Rule] = {
    O.joint_pos: "joints",
    O.joint_pos_cos: _cosines,
    O.joint_pos_sin: _angles,
    O.joint_vel: "joints",
    O.joint_torque: "joints",
    O.base_height: "same",
    O.base_lin_vel: "vector",
    O.base_ang_vel: "axial",
    O.projected_gravity: "vector",
    O.last_action: lambda term, m: m.action_map,
    O.command: _command,
    O.heading: _heading,
    O.in_contact: _bodies,
    O.air_time: _bodies,
    O.foot_height: _bodies,
    O.contact_force: _forces,
    O.height_scan: _grid,
    O.rays: _rays,
    O.imu_ang_vel: _imu(axial=True),
    O.imu_lin_acc: _imu(axial=False),
    O.imu_projected_gravity: _imu(axial=False),
    O.gait_clock: _clock,
}
COMMANDS: dict[Any, Rule] = dict.fromkeys((C.velocity, C.velocity_in_stages), (1.0, -1.0, -1.0))
