"""Checks of the term tables against the signatures in the terms' source: names, parameters, settings."""

from typing import Any

from isaacrl import signatures
from isaacrl.errors import KeyedError
from isaacrl.schema import TERM_FAMILIES
from isaacrl.signatures import Signature
from isaacrl.suggest import did_you_mean, listing, one_line

SINGULAR = {
    "actions": "action",
    "observations": "observation",
    "rewards": "reward",
    "terminations": "termination",
    "sensors": "sensor",
    "commands": "command",
    "events": "event",
    "curricula": "curriculum",
    "metrics": "metric",
}
WHEN = ("reset", "startup", "interval")


def _number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _numbers(x: Any) -> bool:
    return isinstance(x, list) and all(_number(v) for v in x)


def _vector(x: Any) -> bool:
    return _numbers(x) and len(x) == 3


def _ranges(x: Any) -> bool:
    return isinstance(x, list) and all(_numbers(r) and len(r) == 2 for r in x)


def _noise(x: Any) -> bool:
    return (
        isinstance(x, dict) and set(x) <= {"uniform", "gaussian"} and all(_number(v) or _numbers(v) for v in x.values())
    )


def _delay(x: Any) -> bool:
    steps = x if isinstance(x, list) and len(x) == 2 else [x, x]
    return all(isinstance(n, int) and not isinstance(n, bool) for n in steps) and 0 <= steps[0] <= steps[1] <= 1000


def _patterns(x: Any) -> bool:
    return isinstance(x, str) or isinstance(x, list) and len(x) > 0 and all(isinstance(v, str) for v in x)


def _schedule(x: Any) -> bool:
    if not isinstance(x, dict) or set(x) != {"start", "end"}:
        return False
    steps = (x["start"], x["end"])
    return all(isinstance(n, int) and not isinstance(n, bool) for n in steps) and 0 <= steps[0] < steps[1] < 2**31


def _curriculum(x: Any) -> bool:
    if not isinstance(x, dict):
        return isinstance(x, str) and x != ""
    shares = [x[k] for k in ("from", "to") if k in x]
    stage = x.get("stage", 0)
    return (
        isinstance(x.get("name"), str)
        and set(x) <= {"name", "from", "to", "stage"}
        and all(map(_number, shares))
        and isinstance(stage, int)
        and not isinstance(stage, bool)
        and stage >= 0
    )


# What the environment's own settings of a term look like.
SETTINGS = {
    "fn": (lambda x: isinstance(x, str) and x != "", "the name of a term, or my_pkg.my_module:my_function"),
    "weight": (_number, "a number (per second)"),
    "reduce": (lambda x: x in ("mean", "last"), "mean or last (over an episode)"),
    "time_out": (lambda x: isinstance(x, bool), "true or false"),
    "when": (lambda x: x in WHEN, "one of " + ", ".join(WHEN)),
    "interval_s": (
        lambda x: _numbers(x) and len(x) == 2 and 0 < x[0] <= x[1],
        "[low, high] in seconds, 0 < low <= high",
    ),
    "schedule": (_schedule, "{start: step, end: step} in policy steps, whole numbers with 0 <= start < end"),
    "curriculum": (_curriculum, "a name of task.curricula, or {name: NAME, from: 0.0, to: 1.0, stage: 1}"),
    "optional": (lambda x: isinstance(x, bool), "true or false"),
    "scale": (lambda x: _number(x) or _numbers(x), "a number, or one for each component"),
    "clip": (lambda x: _number(x) or _numbers(x) and len(x) == 2 and x[0] <= x[1], "a bound or [low, high]"),
    "noise": (
        lambda x: _number(x) or _noise(x),
        "an amplitude, {uniform: a} or {gaussian: std}",
    ),
    "history": (lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 1, "an integer >= 1"),
    "delay": (_delay, "policy steps: an integer, or [low, high] with 0 <= low <= high <= 1000"),
}
OPTIONAL = frozenset(
    {"scale", "clip", "noise", "history", "delay", "interval_s", "schedule", "curriculum"}
)  # null means: not set

# Annotations that plain YAML values can be checked against; others are the term's own business.
KINDS = {
    "float": (_number, "a number"),
    "int": (lambda x: isinstance(x, int) and not isinstance(x, bool), "an integer"),
    "bool": (lambda x: isinstance(x, bool), "true or false"),
    "str": (lambda x: isinstance(x, str), "a text"),
    "None": (lambda x: x is None, "null"),
    "list[float]": (_numbers, "a list of numbers"),
    "list[int]": (lambda x: _numbers(x) and all(isinstance(v, int) for v in x), "a list of integers"),
    "list[str]": (_patterns, "a text or a list of them"),
    "list[list[float]]": (_ranges, "a list of ranges [low, high]"),
    "dict[str, float]": (
        lambda x: isinstance(x, dict) and len(x) > 0 and all(isinstance(k, str) and _number(v) for k, v in x.items()),
        "numbers by name pattern",
    ),
    "tuple[float, float]": (lambda x: _numbers(x) and len(x) == 2, "two numbers"),
    "tuple[float, float, float]": (_vector, "three numbers"),
    "list[tuple[float, float, float]]": (
        lambda x: isinstance(x, list) and all(map(_vector, x)),
        "a list of vectors [x, y, z]",
    ),
    "Joints": (_patterns, "a joint name or pattern, or a list of them"),
    "Bodies": (_patterns, "a body name or pattern, or a list of them"),
    "Sites": (_patterns, "a site name or pattern, or a list of them"),
}


def check_terms(data: Any) -> None:
    """Raise UserError for the first mistake in a term table of a configuration."""
    task = data["task"]
    if task["env"] is not None:
        _check_env(task["env"])
    for family in TERM_FAMILIES:
        for name, node in task[family].items():
            if family == "observations":
                if not isinstance(node, dict):
                    raise KeyedError(
                        f"task.observations.{name}",
                        f"must be a group of terms, such as {{joint_pos: {{}}}}, not {one_line(node, 60)}",
                    )
                for term, inner in node.items():
                    _check_term(family, str(term), inner, f"task.observations.{name}.{term}")
            else:
                _check_term(family, str(name), node, f"task.{family}.{name}")
    for name, node in data["randomization"].items():
        _check_term("events", str(name), node, f"randomization.{name}")
    if task["env"] is None:
        groups = task["observations"]
        if not groups.get("policy"):
            raise KeyedError(
                "task.observations.policy",
                f"missing; it is what the policy sees. Groups: {listing(groups)}{did_you_mean('policy', groups)}",
            )
        if not task["actions"]:
            raise KeyedError(
                "task.actions", f"empty; give at least one of: {listing(signatures.builtin_terms('actions'))}"
            )


def _check_env(target: Any) -> None:
    if ":" not in target:
        raise KeyedError("task.env", f"'{one_line(target, 60)}' does not name a class; write my_pkg.my_task:MyTask")
    found = signatures.user_term(target, "task.env")
    if found is not None and not found.is_class:
        raise KeyedError(
            "task.env", f"'{one_line(target, 60)}' is a function; it must be a class derived from isaacrl.Task"
        )


def _check_term(family: str, name: str, node: Any, key: str) -> None:
    key = one_line(key)
    if node is None:
        node = {}
    if not isinstance(node, dict):
        raise KeyedError(
            key, f"must hold the term's parameters, such as {{}} or {{weight: 1.0}}, not {one_line(node, 60)}"
        )
    settings = TERM_FAMILIES[family]
    for setting in settings & node.keys():
        valid, words = SETTINGS[setting]
        if not valid(node[setting]) and not (node[setting] is None and setting in OPTIONAL):
            raise KeyedError(f"{key}.{setting}", f"{one_line(node[setting], 60)!r} is not {words}")
    if family == "rewards" and "weight" not in node:
        raise KeyedError(f"{key}.weight", f"missing; a reward needs {SETTINGS['weight'][1]}, e.g. weight: 1.0")
    if node.get("when") == "interval" and node.get("interval_s") is None:
        raise KeyedError(f"{key}.interval_s", f"missing; when: interval needs {SETTINGS['interval_s'][1]}")
    for setting in ("schedule", "curriculum"):
        if node.get("when") == "startup" and node.get(setting) is not None:
            raise KeyedError(f"{key}.{setting}", "an entry of when: startup is drawn once; use when: reset or interval")
    signature = _find(family, str(node.get("fn", name)), key, "fn" in node)
    if signature is not None:
        _check_parameters(signature, {str(k): v for k, v in node.items() if k not in settings}, settings, key)


def _find(family: str, name: str, key: str, has_fn: bool) -> Signature | None:
    if ":" in name:
        return signatures.user_term(name, f"{key}.fn")
    known = signatures.builtin_terms(family)
    if name not in known:
        where = f"{key}.fn" if has_fn else key
        raise KeyedError(
            where,
            f"no {SINGULAR[family]} term '{one_line(name, 60)}'; built-in: {listing(known)}; "
            f"your own: fn: my_pkg.my_module:my_function{did_you_mean(name, known, 2)}",
        )
    return known[name]


def _check_parameters(signature: Signature, given: dict[str, Any], settings: frozenset[str], key: str) -> None:
    known = {p.name: p for p in signature.parameters}
    takes = f"{signature.name}() takes {listing(known)}" if known else f"{signature.name}() takes no parameters"
    for name, value in given.items():
        if name not in known:
            if signature.any_keyword:
                continue
            if name in signature.positional[1:]:
                raise KeyedError(
                    f"{key}.{name}", f"{signature.name}() must take it by keyword: put it after a `*` in its definition"
                )
            hint = did_you_mean(name, [*known, *settings])
            raise KeyedError(
                f"{key}.{one_line(name, 60)}", f"unknown parameter; {takes} (besides {listing(sorted(settings))}){hint}"
            )
        kinds = [k.strip() for k in known[name].annotation.split("|")]
        if all(k in KINDS for k in kinds) and not any(KINDS[k][0](value) for k in kinds):
            words = " or ".join(KINDS[k][1] for k in kinds if k != "str" or "list[str]" not in kinds)
            shown = "null" if value is None else repr(value)
            hint = (
                "; where it is ${asset.feet}, the robot names none: asset.feet=[BODY, ...]"
                if name == "bodies" and not value
                else ""
            )
            what = f"{one_line(shown, 60)} is not {words}, which {signature.name}() needs{hint}"
            raise KeyedError(f"{key}.{name}", what)
    missing = [p.name for p in signature.parameters if p.required and p.name not in given]
    if missing:
        raise KeyedError(f"{key}.{missing[0]}", f"missing; {signature.name}() requires {listing(missing)}")
