"""Checks of a composed configuration: keys, types and ranges from the schema, then what must hold between them.

Everything works on plain data and the schema's dataclasses. Errors name the full key, the value found, what is valid,
and the nearest name. Terms are checked in `isaacrl.check_terms`.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from isaacrl.check_terms import check_terms
from isaacrl.errors import KeyedError
from isaacrl.schema import ALGORITHMS, Config
from isaacrl.suggest import did_you_mean, listing, nearest, one_line

CAMERA = ("lookat", "distance", "azimuth", "elevation", "track")
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


def check(cfg: DictConfig, *, training: bool = True) -> None:
    """Raise UserError for the first mistake of a resolved configuration. training: also what only training needs."""
    data: Any = OmegaConf.to_container(cfg, resolve=True)
    check_values(data)
    algo = data["algo"].get("name") if isinstance(data.get("algo"), dict) else None
    if algo not in ALGORITHMS:
        raise KeyedError("algo.name", f"{shown(algo)} is no algorithm; there is {listing(ALGORITHMS)}")
    check_section(Config, data, "", algo)
    _check_names(data)
    _check_device(data["device"])
    for joint, value in data["asset"]["default_pose"].items():
        if not _is_a(value, float):
            raise KeyedError(f"asset.default_pose.{one_line(joint)}", f"{shown(value)} is not a number [rad or m]")
    _check_camera(data["task"]["camera"])
    check_terms(data)
    _check_solved(data["task"])
    if training:
        if data["algo"]["name"] == "ppo":
            _check_ppo(data)
        else:
            _check_off_policy(data["algo"])


# --- the schema ------------------------------------------------------------------------------------------------------


def section_class(f: dataclasses.Field, algo: str) -> type | None:
    """The dataclass of a field that holds a section, or None for a plain value."""
    if f.name == "algo":
        return ALGORITHMS.get(algo)
    return next((t for t in _alternatives(f.type) if isinstance(t, type) and dataclasses.is_dataclass(t)), None)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def is_table(f: dataclasses.Field) -> bool:
    """Whether the field is a table that takes any key."""
    return any(typing.get_origin(t) is dict for t in _alternatives(f.type))


def find_field(key: str, algo: str = "ppo") -> tuple[dataclasses.Field | None, str]:
    """The schema's field that a key names or lies in, and the rest of it; (None, ...) if there is none."""
    cls: type | None = Config
    parts = key.split(".")
    for i, part in enumerate(parts):
        f = next((f for f in dataclasses.fields(cls) if f.name == part), None)
        if f is None:
            return None, ".".join(parts[i:])
        cls = section_class(f, algo)
        if cls is None or i == len(parts) - 1:
            return f, ".".join(parts[i + 1 :])
    return None, key


def all_keys(algo: str = "ppo", cls: type = Config, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Every key of the schema with its field, sections and their keys in order."""
    for f in dataclasses.fields(cls):
        if cls is not Config and prefix == "task." and f.name in ALGORITHMS:
            continue  # taken out when composing
        yield prefix + f.name, f
        section = section_class(f, algo)
        if section is not None:
            yield from all_keys(algo, section, f"{prefix}{f.name}.")


def describe(f: dataclasses.Field) -> str:
    """What a field accepts, in words."""
    rules = f.metadata
    if rules.get("choices"):
        return "one of " + ", ".join(str(c) for c in rules["choices"])
    words = []
    for kind in _alternatives(f.type):
        if dataclasses.is_dataclass(kind):
            words.append(f"a section with {listing(g.name for g in dataclasses.fields(kind))}")
        elif typing.get_origin(kind) is dict:
            words.append("a section of names")
        elif typing.get_origin(kind) is list:
            words.append(
                {int: "a list of integers", float: "a list of numbers"}.get(typing.get_args(kind)[0], "a list")
            )
        else:
            words.append(
                {
                    int: "an integer",
                    float: "a number",
                    bool: "true or false",
                    str: "a text",
                    types.NoneType: "null",
                }.get(kind, "a value")
            )
    bounds = [
        f"{sign} {_plain(rules[k])}"
        for k, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if rules.get(k) is not None
    ]
    return " or ".join(words) + (" " + " and ".join(bounds) if bounds else "")


def _plain(x: float) -> str:
    return str(int(x)) if float(x).is_integer() else f"{x:g}"


def bad_value(key: str, value: Any, f: dataclasses.Field) -> KeyedError:
    """The error for a value that a field does not take."""
    hint = (
        did_you_mean(value, map(str, f.metadata["choices"]))
        if f.metadata.get("choices") and isinstance(value, str)
        else ""
    )
    meaning = f.metadata.get("help", "")
    return KeyedError(key, f"{shown(value)} is not {describe(f)}" + (hint or (f" ({meaning})" if meaning else "")))


def unknown_key(key: str, algo: str = "ppo", root: type = Config) -> KeyedError:
    """The error for a key that the schema does not have."""
    cls, parts, done = root, key.split("."), ""
    for part in parts:
        names = [f.name for f in dataclasses.fields(cls) if not (cls is not Config and f.name in ALGORITHMS)]
        f = next((f for f in dataclasses.fields(cls) if f.name == part), None)
        if f is None:
            break
        done = f"{done}.{part}" if done else part
        section = section_class(f, algo)
        if section is None:
            return KeyedError(one_line(key), f"unknown key; {done} is {describe(f)} and has no keys of its own")
        cls = section
    else:
        return KeyedError(
            one_line(key), f"is a section; set one of its keys: {listing(f.name for f in dataclasses.fields(cls))}"
        )
    known = [k for k, _ in all_keys(algo)] if root is Config else []
    same = [k for k in known if k.rpartition(".")[2] == parts[-1]]  # the right name in another section
    prefix = f"{done}." if done else ""
    if done == "algo" and not same:
        others = [f"algo={n}" for n, c in ALGORITHMS.items() if part in {f.name for f in dataclasses.fields(c)}]
        if others and root is Config:
            return KeyedError(
                one_line(prefix + part), f"exists with {' and '.join(others)} only; algo={algo} has: {listing(names)}"
            )
    where = f"section {done}" if done else "the configuration" if root is Config else "the command"
    near = [prefix + n for n in nearest(part, names)]
    meant = sorted(same or near, key=len)[:2]
    if not meant:
        last = {k.rpartition(".")[2]: k for k in reversed(known)}
        meant = [last[n] for n in nearest(parts[-1], last)]
    hint = f"; did you mean {' or '.join(meant)}? {where.capitalize()}" if meant else f"; {where}"
    return KeyedError(one_line(prefix + part), f"unknown key{hint} has: {listing(names)}")


def check_section(cls: type, data: Any, prefix: str, algo: str) -> None:
    """Keys, types, choices and ranges of a section, and of those inside it."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in data:
        if name not in fields:
            raise unknown_key(f"{prefix}{name}", algo)
    for name, f in fields.items():
        if name not in data:
            continue
        key, value = prefix + name, data[name]
        if value == "???":
            raise KeyedError(key, f"missing; give {describe(f)} ({f.metadata.get('help', '')})")
        section = section_class(f, algo)
        if section is not None and value is not None:
            if not isinstance(value, dict):
                raise bad_value(key, value, f)
            check_section(section, value, key + ".", algo)
        elif not (is_table(f) and isinstance(value, dict)):
            _check_value(key, value, f)


def _check_value(key: str, value: Any, f: dataclasses.Field) -> None:
    if not any(_is_a(value, kind) for kind in _alternatives(f.type)):
        raise bad_value(key, value, f)
    rules = f.metadata
    if rules.get("choices") and value not in rules["choices"]:
        raise bad_value(key, value, f)
    for x in value if isinstance(value, list) else [value]:
        if isinstance(x, bool) or not isinstance(x, int | float):
            continue
        low, above, high, below = (rules.get(k) for k in ("ge", "gt", "le", "lt"))
        inside = (low is None or x >= low) and (above is None or x > above)
        if not (inside and (high is None or x <= high) and (below is None or x < below)):
            raise bad_value(key, value, f)


def _is_a(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(v, typing.get_args(kind)[0]) for v in value)
    if typing.get_origin(kind) is dict or dataclasses.is_dataclass(kind):
        return isinstance(value, dict)
    if kind is Any:
        return True
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, kind)


# --- values anywhere -------------------------------------------------------------------------------------------------


def walk(data: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested plain data with its full key, sections before what is in them."""
    if isinstance(data, dict):
        for name, value in data.items():
            full = f"{key}.{name}" if key else str(name)
            yield full, value
            yield from walk(value, full)
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield f"{key}.{i}", value
            yield from walk(value, f"{key}.{i}")


def check_values(data: Any) -> None:
    """What is refused wherever it stands."""
    for key, value in walk(data):
        if key.rpartition(".")[2] in ("_target_", "_partial_", "_args_"):
            raise KeyedError(
                one_line(key), "is not supported: a configuration never constructs objects; name a function with fn:"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise KeyedError(one_line(key), f"{value} is not a finite number")
        if isinstance(value, str) and "${" in value:
            raise KeyedError(one_line(key), f"{shown(value)} still holds an interpolation")


def shown(value: Any) -> str:
    """A value as the user would write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{one_line(value, 60)}'" if isinstance(value, str) else one_line(value, 80)


# --- what must hold between keys -------------------------------------------------------------------------------------


def _check_names(data: Any) -> None:
    for group in ("task", "asset"):
        if not NAME.fullmatch(data[group]["name"]):
            raise KeyedError(
                f"{group}.name", f"{shown(data[group]['name'])} is no name: letters, digits, '_', '-' and '.'"
            )


def _check_device(device: str) -> None:
    if not DEVICE.fullmatch(device):
        hint = did_you_mean("cuda" if "gpu" in device.lower() else device, ("auto", "cpu", "cuda"))
        raise KeyedError("device", f"{shown(device)} is no device; use auto, cpu, cuda or cuda:N{hint}")


def _check_camera(camera: dict) -> None:
    for name, value in camera.items():
        if name not in CAMERA:
            raise KeyedError(
                f"task.camera.{name}", f"unknown key; a camera has: {listing(CAMERA)}{did_you_mean(str(name), CAMERA)}"
            )
        if name == "track":
            if value is not None and not isinstance(value, str):
                raise KeyedError(
                    "task.camera.track", f"{shown(value)} is not the name (or pattern) of a body; null stands still"
                )
            continue
        parts = value if name == "lookat" else [value]
        if (
            not isinstance(parts, list)
            or len(parts) != (3 if name == "lookat" else 1)
            or not all(_is_a(v, float) for v in parts)
        ):
            raise KeyedError(
                f"task.camera.{name}",
                f"{shown(value)} is not {'three numbers [m]' if name == 'lookat' else 'a number'}",
            )


def _check_solved(task: dict) -> None:
    known = ["return", "episode_length", "terminated", *task["metrics"]]
    for section in ("solved", "milestone"):
        for metric, rule in task[section].items():
            if metric not in known and task["env"] is None:
                raise KeyedError(
                    f"task.{section}.{metric}", f"not measured; there is: {listing(known)}{did_you_mean(metric, known)}"
                )
            if (
                not isinstance(rule, dict)
                or len(rule) != 1
                or not set(rule) <= {"above", "below"}
                or not all(_is_a(v, float) for v in rule.values())
            ):
                raise KeyedError(f"task.{section}.{metric}", f"{shown(rule)} is not {{above: x}} or {{below: x}}")


def _check_ppo(data: Any) -> None:
    algo = data["algo"]
    if algo["lr_min"] > algo["lr_max"]:
        raise KeyedError("algo.lr_min", f"{algo['lr_min']:g} is larger than algo.lr_max={algo['lr_max']:g}")
    if algo["min_std"] > algo["max_std"]:
        raise KeyedError("algo.min_std", f"{algo['min_std']:g} is larger than algo.max_std={algo['max_std']:g}")
    envs, steps, n = data["num_envs"], algo["num_steps"], algo["minibatches"]
    if algo["recurrent"] != "none":
        if algo["symmetry"] != "none":
            raise KeyedError(
                "algo.symmetry",
                "a recurrent policy has no hidden states of mirrored worlds to start from; "
                "use algo.symmetry=none or algo.recurrent=none",
            )
        if envs % n:
            valid = nearest_divisors(envs, n)
            raise KeyedError(
                "algo.minibatches",
                f"{n} does not divide num_envs = {envs}, of whose whole sequences a recurrent policy learns; "
                f"the nearest that do: {' and '.join(map(str, valid))}",
            )
    total = envs * steps
    if total % n:
        valid = nearest_divisors(total, n)
        raise KeyedError(
            "algo.minibatches",
            f"{n} does not divide num_envs * algo.num_steps = {envs} * {steps} = {total}; "
            f"the nearest that do: {' and '.join(map(str, valid))}",
        )


def _check_off_policy(algo: dict) -> None:
    if "min_noise" in algo and algo["min_noise"] > algo["max_noise"]:
        raise KeyedError("algo.min_noise", f"{algo['min_noise']:g} is larger than algo.max_noise={algo['max_noise']:g}")


def nearest_divisors(total: int, n: int) -> list[int]:
    """The largest divisor of total below n and the smallest above."""
    small = [d for d in range(1, math.isqrt(total) + 1) if total % d == 0]
    divisors = sorted({*small, *(total // d for d in small)})
    return [
        d
        for d in (max((d for d in divisors if d < n), default=None), min((d for d in divisors if d > n), default=None))
        if d is not None
    ]
