"""Terms: what a task observes, rewards, ends on, commands, and randomizes.

A term is a plain function of State, `term(s, *, parameters) -> Tensor`; a node of a term table in YAML is a call of it.
A term with memory is a class (see `Term`). Parameters annotated `Joints`, `Bodies` or `Sites` are written as name
patterns in YAML and arrive resolved.
"""

import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NewType

import mujoco
import torch
from torch import Tensor

from isaacrl import mishaps
from isaacrl.errors import Absent, UserError
from isaacrl.fuse import trace
from isaacrl.schema import TERM_FAMILIES
from isaacrl.signatures import find_module
from isaacrl.sim.names import match
from isaacrl.state import BodyView, SiteView, State, as_index

Joints = NewType("Joints", object)  # index of the robot's joints, for the J axis of State's tensors
Bodies = NewType("Bodies", BodyView)
Sites = NewType("Sites", SiteView)
ALL: Any = (".*",)  # default of a pattern parameter: everything


class Term:
    """A term with memory.

    `init(s)` gives its named tensors [E, ...] as they are at the start of an episode, `advance(s)` as they are after a
    step, `__call__(s)` reads them as attributes. The environment calls `init` for the worlds that reset, `advance`
    exactly once a step, and saves the tensors in checkpoints. `advance` and `init` must not change tensors in place.
    """

    def __init__(self, s: State):
        """Subclasses take their parameters here, keyword-only."""

    def init(self, s: State) -> dict[str, Tensor]:
        return {}

    def advance(self, s: State) -> dict[str, Tensor]:
        return {}

    def __call__(self, s: State) -> Tensor:
        raise NotImplementedError


class Bound:
    """A term of one task: the function with its parameters, its settings and its memory."""

    def __init__(self, family: str, name: str, node: Mapping[str, Any] | None, s: State, key: str):
        node = dict(node or {})
        self.name, self.key, self.stream = name, key, f"{family}.{name}"
        self.settings = {k: node.pop(k) for k in list(node) if k in TERM_FAMILIES[family]}
        fn = find(family, self.settings.get("fn", name), key)
        self.source = inspect.getsourcefile(fn)
        is_class = inspect.isclass(fn)
        self.joints: list[str] | None = None  # what a parameter `joints` names
        self.joint_units: list[str] | None = None  # rad or m, of each
        self.parameters: dict[str, Any] = {}  # as the configuration has them, with defaults
        params = self._resolve(fn.__init__ if is_class else fn, node, s)
        try:
            self.fn: Any = fn(s, **params) if is_class else fn
        except UserError as e:
            raise self._at_key(e) from None
        self.params = {} if is_class else params
        self.memory: dict[str, Tensor] = {}
        self.has_memory = is_class and hasattr(fn, "advance")
        if hasattr(fn, "named"):  # a sensor
            self.fn.named(name)
        if self.has_memory:
            s.use_stream(self.stream + ".init")
            try:
                first = self.fn.init(s)
            except UserError as e:
                raise self._at_key(e) from None
            for k, v in first.items():
                self.memory[k] = v.clone()
                setattr(self.fn, k, self.memory[k])

    def _resolve(self, fn: Callable, given: dict[str, Any], s: State) -> dict[str, Any]:
        """The keyword-only parameters with name patterns turned into indices or views."""
        hints = typing.get_type_hints(fn)
        params = {}
        for p in inspect.signature(fn).parameters.values():
            if p.kind is not p.KEYWORD_ONLY:
                continue
            if p.name not in given and p.default is p.empty:
                raise UserError(f"{self.key}: missing parameter '{p.name}'")
            value = given.pop(p.name, p.default)
            self.parameters[p.name] = value
            kind = hints.get(p.name)
            if kind is Joints:
                ids = match(patterns(value), s.robot.joint_names, f"{self.key}.{p.name}")
                self.joints = [s.robot.joint_names[i] for i in ids]
                self.joint_units = [s.robot.joint_units[i] for i in ids]
                value = as_index(ids, s.device)
            elif kind in (Bodies, Sites):
                names = s.robot.body_names if kind is Bodies else s.robot.site_names
                match(patterns(value), names, f"{self.key}.{p.name}")  # a mistake is one of this key
                value = s.body(*patterns(value)) if kind is Bodies else s.site(*patterns(value))
            params[p.name] = value
        if given:
            known = [p.name for p in inspect.signature(fn).parameters.values() if p.kind is p.KEYWORD_ONLY]
            raise UserError(f"{self.key}: unknown parameter {sorted(given)}; it takes {known}")
        return params

    def __call__(self, s: State, *args: Any) -> Any:
        s.use_stream(self.stream)
        trace.of(self.key)
        try:
            s.share = self.share(s)
            return self.fn(s, *args, **self.params)
        except UserError as e:  # an unknown command, sensor or curriculum
            raise self._at_key(e) from None
        finally:
            trace.of("")

    def share(self, s: State) -> float | Tensor:
        """How far its schedule {start, end} [policy steps of the run] and its curriculum have come; 1 without any."""
        share: float | Tensor = 1.0
        if (schedule := self.settings.get("schedule")) is not None:
            start, end = schedule["start"], schedule["end"]
            share = ((s.random.step - start) / float(end - start)).clamp(0.0, 1.0)
        if (node := self.settings.get("curriculum")) is not None:
            node = {"name": node} if isinstance(node, str) else node
            found, first = s.curriculum(node["name"]), float(node.get("from", 1.0 if "to" in node else 0.0))
            progress = found.progress
            if "stage" in node:
                if found.stage is None:
                    raise UserError(f"curriculum: '{node['name']}' has no stages; leave stage out")
                progress = (found.stage >= node["stage"]).float()
            share = share * (first + (float(node.get("to", 1.0)) - first) * progress)
        return share

    def _at_key(self, e: UserError) -> UserError:
        """The error with the term's place in the configuration, which a term need not know."""
        kind = Absent if isinstance(e, Absent) else UserError
        return kind(str(e) if self.key in str(e) else f"{self.key}: {e}")

    def advance(self, s: State) -> None:
        """One step of the term's memory."""
        if self.has_memory:
            s.use_stream(self.stream + ".advance")
            trace.of(self.key)
            s.share = self.share(s)
            self._store(self.fn.advance(s), None)
            trace.of("")

    def reset(self, s: State, mask: Tensor) -> None:
        """The memory of the worlds of mask [E] starts anew."""
        if self.has_memory:
            s.use_stream(self.stream + ".init")
            trace.of(self.key)
            s.share = self.share(s)
            self._store(self.fn.init(s), mask)
            trace.of("")

    def _store(self, values: dict[str, Tensor], mask: Tensor | None) -> None:
        for k, v in values.items():
            memory = self.memory[k]
            keep = None if mask is None else mask.view(-1, *[1] * (memory.ndim - 1))
            memory.copy_(v if keep is None else torch.where(keep, v, memory))


def check_value(term: Bound, value: Any, s: State, ndim: int = 1) -> None:
    """Raise UserError unless a term gave what it must: a tensor [E], or [E, n] of an observation, on the device."""
    wanted = f"must return a tensor [num_envs{', n' if ndim == 2 else ''}]"
    if not isinstance(value, Tensor):
        raise UserError(f"{term.key}: {wanted}, got {type(value).__name__} {_where(term)}".rstrip())
    if value.ndim != ndim or value.shape[0] != s.num_envs:
        raise UserError(f"{term.key}: {wanted}, got {list(value.shape)}")
    if value.device.type != torch.device(s.device).type:
        raise UserError(f"{term.key}: {wanted} on {s.device}, got one on {value.device}")


def _where(term: Bound) -> str:
    code = getattr(term.fn, "__code__", None)
    return f"({term.source}:{code.co_firstlineno})" if code else f"({term.source})"


def patterns(value: Any) -> list[str]:
    """A pattern or a list of them, as a list."""
    return [value] if isinstance(value, str) else list(value)


def find(family: str, name: str, key: str) -> Any:
    """The function or class that a node names: a built-in of the family, or `module:name` of a user."""
    module_name, _, attr = name.rpartition(":")
    if not module_name:
        module_name, attr = f"isaacrl.terms.{family}", name
    elif os.getcwd() not in sys.path:  # a user's own module beside their configs
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        raise UserError(
            f"{key}.fn: cannot import '{module_name}' ({e}); install its package or run beside it"
        ) from None
    except (Exception, SystemExit) as e:
        if module_name.startswith("isaacrl."):
            raise
        where = mishaps.place(e, str(find_module(module_name) or module_name))
        raise UserError(f"{key}.fn: {mishaps.what(e)} ({where})") from e
    if not hasattr(module, attr):
        raise UserError(f"{key}.fn: '{module_name}' has no '{attr}'")
    return getattr(module, attr)


def bind(family: str, table: Mapping[str, Any], s: State, key: str) -> list[Bound]:
    """All terms of a table, in its order; without the optional ones that the robot has nothing for."""
    terms = []
    for name, node in table.items():
        try:
            terms.append(Bound(family, name, node, s, f"{key}.{name}"))
        except Absent as e:
            if not (node or {}).get("optional"):
                raise
            s.left_out[f"{key}.{name}"] = str(e).removeprefix(f"{key}.{name}: ")
    return terms


def add_sensors(spec: mujoco.MjSpec, table: Mapping[str, Any], base: str | None) -> None:
    """Add the MuJoCo sensors of a `task.sensors` table to a scene that is not compiled yet."""
    bodies = [b.name for b in spec.bodies if b.name != "world"]
    free = [b.name for b in spec.bodies if any(j.type == mujoco.mjtJoint.mjJNT_FREE for j in b.joints)]
    root = bodies[match([base], bodies, "asset.base")[0]] if base else [*free, *bodies, "world"][0]
    for name, node in table.items():
        node = dict(node or {})
        kind = find("sensors", node.pop("fn", name), f"task.sensors.{name}")
        kind.add_to(spec, name, root, **node)


def bind_sensors(table: Mapping[str, Any], s: State) -> list[Bound]:
    """The terms of a `task.sensors` table; State gives them by name."""
    terms = []
    for name, node in table.items():
        s.use_stream(f"sensors.{name}")
        term = Bound("sensors", name, node, s, f"task.sensors.{name}")
        s.sensors[name] = term.fn
        terms.append(term)
    return terms


def bind_curricula(table: Mapping[str, Any], s: State) -> list[Bound]:
    """The terms of a `task.curricula` table; State gives them by name."""
    terms = bind("curricula", table, s, "task.curricula")
    s.curricula |= {t.name: t.fn for t in terms}
    return terms


def stack(values: Sequence[Tensor], s: State) -> Tensor:
    """[E, n] of per-world values [E], n >= 0."""
    return torch.stack(tuple(values), dim=1) if values else torch.zeros(s.num_envs, 0, device=s.device)
