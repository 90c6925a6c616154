"""`isaacrl randomization`: what the entries of a randomization really draw, as a table and as a picture."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from isaacrl import histograms
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.terms import Bound
from isaacrl.terms.events import push, randomize, wrench

COLORS = {"startup": "#4c78a8", "reset": "#2a9d8f", "interval": "#e07a3f"}
AXES = {"scale": "factor", "add": "offset", "set": "value"}
UNITS = {
    "body_mass": "kg",
    "body_inertia": "kg m^2",
    "body_ipos": "m",
    "body_pos": "m",
    "dof_damping": "N m s/rad",
    "dof_armature": "kg m^2",
    "dof_frictionloss": "N m",
    "geom_friction": "1",
    "opt.gravity": "m/s^2",
    "actuation.kp": "N m/rad",
    "actuation.kd": "N m s/rad",
    "actuation.strength": "1",
    "actuation.delay": "physics steps",
    "encoder_bias": "rad or m",
}


def run(options: Any, cfg: DictConfig) -> list[dict[str, Any]]:
    """Print the table, write the picture, and say where it lies."""
    cfg = OmegaConf.merge(cfg, {"num_envs": options.worlds})
    env = Env(cfg)
    path = Path(options.picture or Path(cfg.outputs) / cfg.task.name / "randomization.png")
    rows = report(env, path, resets=options.resets)
    _show(rows)
    if any("mean" in row for row in rows):
        print(f"picture: {path}")
    else:
        print("no parameter of the physics is random here; add randomization=default or randomization=hard")
    return rows


@torch.no_grad()
def report(env: Env, path: Path | str | None, *, resets: int = 20) -> list[dict[str, Any]]:
    """Draw every entry anew in all worlds, `resets` times (those of startup once), at the full range of its schedule.
    Pushes and wrenches are shown as shares of their bounds.

    One row an event of the task and the randomization: name, key, when, what, unit, axis and, where it is a built-in
    with a distribution, draws (number, min, mean, std, max) and values (field -> lowest and highest that came out).
    path: of the picture, None for none. The environment is used up: reset it, or make another.

    Raises: UserError where the picture cannot be written.
    """
    drawn: dict[str, list[Tensor]] = {e.key: [] for e in env.events}
    reached: dict[str, dict[str, tuple[float, float]]] = {e.key: {} for e in env.events}
    for k in range(resets):
        env.state.random.step += 1
        for event in env.events:
            if hasattr(event.fn, "sample") and (k == 0 or event.settings.get("when") != "startup"):
                drawn[event.key].append(_draw(env, event).flatten())
    for event in env.events:  # after all draws: an entry's values include what the others do to the same field
        if isinstance(event.fn, randomize):
            for field in event.fn.fields:
                low, high = _extremes(env, event.fn, field)
                reached[event.key][field] = (low, high)
    rows, panels = [], []
    for event in env.events:
        row = _describe(event) | {"values": reached[event.key]}
        if drawn[event.key]:
            x = torch.cat(drawn[event.key]).double().cpu().numpy()
            row |= {"draws": len(x), "min": x.min(), "mean": x.mean(), "std": x.std(), "max": x.max()}
            panels.append(_panel(event, row, x))
        rows.append(row)
    if path is not None and panels:
        try:
            worlds = f"{env.num_envs} worlds, {resets} resets; startup entries once"
            histograms.draw(panels, f"Randomization of {env.cfg.task.name}", worlds, Path(path))
        except OSError as e:
            raise UserError(f"picture: cannot write '{path}' ({e.strerror or e}); name another file") from None
    return rows


def _draw(env: Env, event: Bound) -> Tensor:
    """New draws of one entry in all worlds; those of `randomize` take effect."""
    s = env.state
    s.use_stream(event.stream)
    if isinstance(event.fn, randomize):
        s.share = 1.0
        event.fn(s, env.everywhere)
        return event.fn.draw.clone() + 0.0  # no minus zero
    if isinstance(event.fn, push | wrench):
        some = event.fn.limit > 0
        return event.fn.sample(s)[:, some] / event.fn.limit[some]
    return event.fn.sample(s)


def _extremes(env: Env, entry: randomize, field: str) -> tuple[float, float]:
    """Lowest and highest value of the objects and components that an entry changes."""
    layer = env.state.randomized[field]
    index = next(i for e, i in layer.entries if e is entry)
    value = layer.value[:, None] if index is None else layer.value[:, index]
    if entry.keep is not None:
        value = value[..., ~entry.keep]
    return float(value.min()), float(value.max())


def _describe(event: Bound) -> dict[str, Any]:
    fn, when = event.fn, str(event.settings.get("when", "reset"))
    row = {"name": event.name, "key": event.key, "when": when, "unit": getattr(fn, "unit", ""), "axis": ""}
    if isinstance(fn, randomize):
        a, b = (f"{v:.4g}" for v in fn.range)
        sizes = f"mean {a}, std {b}" if fn.distribution == "gaussian" else f"{a} to {b}"
        unit = UNITS.get(fn.fields[0], "MuJoCo's unit")
        row["unit"] = "" if fn.operation == "scale" or unit == "1" else unit
        row["what"] = f"{fn.operation} {', '.join(fn.fields)}: {fn.distribution}, {sizes}"
        row["axis"] = AXES[fn.operation] + (f" [{row['unit']}]" if row["unit"] else "")
    elif isinstance(fn, push | wrench):
        bounds = ", ".join(f"{v:.3g}" for v in fn.limit[:6].tolist())
        row["what"] = f"{type(fn).__name__}: uniform, +-({bounds}) [{row['unit']}]"
        row["axis"] = "share of its bound"
    else:
        row["what"] = f"{event.settings.get('fn', event.name)}: a function of its own"
    schedule, interval = event.settings.get("schedule"), event.settings.get("interval_s")
    if interval:
        row["when"] += f", every {interval[0]:g} to {interval[1]:g} s"
    if schedule:
        row["when"] += f", growing from step {schedule['start']} to {schedule['end']}"
    return row


def _panel(event: Bound, row: dict[str, Any], x: np.ndarray) -> histograms.Panel:
    fn, when = event.fn, str(event.settings.get("when", "reset"))
    log = getattr(fn, "distribution", "") == "log_uniform"
    whole = getattr(fn, "whole", False)
    name = row["key"].removeprefix("randomization.")
    density = None
    if isinstance(fn, push | wrench):
        density = lambda v: np.full_like(v, 0.5)  # noqa: E731
    elif isinstance(fn, randomize) and (fn.distribution == "gaussian" or fn.first < fn.second):
        density = _density(fn)
    return histograms.Panel(name, row["what"], row["axis"], when, COLORS[when], x, density, log, whole)


def _density(fn: randomize) -> Callable[[np.ndarray], np.ndarray]:
    """What the distribution promises; along the logarithm for log_uniform."""
    a, b = fn.first, fn.second
    if fn.distribution == "gaussian":
        return lambda v: np.exp(-(((v - a) / b) ** 2) / 2) / (b * math.sqrt(2 * math.pi))
    width = math.log(b / a) if fn.distribution == "log_uniform" else b - a
    return lambda v: np.full_like(v, 1.0 / width)


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 180)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("entry", "when", "what", "drawn: mean", "std", "min", "max", "values that came out"):
        table.add_column(name, justify="right" if name in ("drawn: mean", "std", "min", "max") else "left")
    for row in rows:
        figures = [f"{row[k]:.4g}" if k in row else "" for k in ("mean", "std", "min", "max")]
        values = ", ".join(
            f"{f} {a:.4g} to {b:.4g}" if a or b else f"{f}: all 0" for f, (a, b) in row["values"].items()
        )
        table.add_row(escape(row["key"]), row["when"], escape(row["what"]), *figures, escape(values))
    console.print(table)
