"""`isaacrl list`: tasks, robots and algorithms, from the YAML files alone."""

import sys
from pathlib import Path
from typing import Any

from isaacrl.conf_source import conf_dir, read_merged, search_dirs
from isaacrl.errors import UserError
from isaacrl.schema import ALGORITHMS, PPOConfig
from isaacrl.suggest import did_you_mean

KINDS = ("tasks", "assets", "algos")


def show(args: list[str]) -> int:
    """Print the tables."""
    for kind in args:
        if kind not in KINDS:
            raise UserError(f"list: '{kind}' cannot be listed; there is: {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    dirs = search_dirs()
    console = Console(width=None if sys.stdout.isatty() else 160)
    for kind in args or KINDS:
        columns, rows = {"tasks": tasks, "assets": assets, "algos": algos}[kind](dirs)
        table = Table(title=kind, title_justify="left", box=None, padding=(0, 3, 0, 0))
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        console.print(table, end="\n")
    return 0


def names(group: str, dirs: list[Path]) -> dict[str, Path]:
    """The options of a group with their files; those of the first folder that has one win."""
    found: dict[str, Path] = {}
    for d in dirs:
        for path in sorted((d / group).rglob("*.yaml")):
            found.setdefault(str(path.relative_to(d / group).with_suffix("")), path)
    return dict(sorted(found.items()))


def _read(group: str, name: str, path: Path, dirs: list[Path]) -> tuple[dict[str, Any], str]:
    """(a file's content, its one line of description with where it lies, if not in isaacrl)."""
    try:
        data = read_merged(f"{group}/{name}", dirs)
    except UserError as e:
        return {}, str(e)
    where = "" if conf_dir() in path.parents else f" [{path}]"
    return data, f"{data.get('description', '')}{where}"


def tasks(dirs: list[Path]) -> tuple[list[str], list[list[Any]]]:
    """Every task: name, robot, worlds, when it is solved."""
    rows = []
    for name, path in names("task", dirs).items():
        data, text = _read("task", name, path, dirs)
        rules = [
            (m, *next(iter(r.items()))) for m, r in (data.get("solved") or {}).items() if isinstance(r, dict) and r
        ]
        solved = ", ".join(f"{metric} {'>=' if side == 'above' else '<='} {x}" for metric, side, x in rules)
        worlds = str(data.get("num_envs", 1024))
        worlds += f", {n} on a GPU" if (n := data.get("gpu_num_envs")) else ""
        rows.append([name, text, data.get("overrides", {}).get("asset", "cartpole"), worlds, solved])
    return ["task", "", "robot", "envs", "solved when"], rows


def assets(dirs: list[Path]) -> tuple[list[str], list[list[Any]]]:
    """Every robot."""
    rows = []
    for name, path in names("asset", dirs).items():
        data, text = _read("asset", name, path, dirs)
        rows.append([name, text, data.get("path", "")])
    return ["asset", "", "model"], rows


def algos(dirs: list[Path]) -> tuple[list[str], list[list[Any]]]:
    """Every algorithm."""
    rows = []
    for name in names("algo", dirs):
        schema = ALGORITHMS.get(name, PPOConfig)
        rows.append([name, (schema.__doc__ or "").strip().splitlines()[0]])
    return ["algo", ""], rows
