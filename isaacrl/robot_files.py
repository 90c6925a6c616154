"""The files that a robot is made of, kept with each run: what is played, evaluated or exported later is the robot that
the policy was trained on, or the user hears of it.

run.json's `robot` names them with their sha256: `files` of the model, itself the first, by their places relative to it;
`networks` of actuators by their names in the configuration. Copies lie in the run's folder `robot`, in the same places
relative to each other: of all that are not isaacrl's own, unless these are larger than MOST in all.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isaacrl.errors import UserError
from isaacrl.files import sha256, write_atomic

MOST = 8_000_000  # bytes of all copies of a run
BUNDLED = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class RobotFiles:
    """Where a robot's files lie."""

    model: Sequence[Path]  # the model itself, then what it includes and refers to
    networks: Mapping[str, Path] = field(default_factory=dict)  # of actuators, by their names in the configuration


def find_file(name: str) -> Path | None:
    """A robot's file: absolute, relative to the working directory, or bundled with isaacrl."""
    file = next((p for p in (Path(name).expanduser(), BUNDLED / name) if p.is_file()), None)
    return file and Path(os.path.abspath(file))


def record(path: str, files: RobotFiles, run: Path) -> dict[str, Any]:
    """What run.json says of a robot; copies its files. path: as asset.path has it."""
    own = [f for f in (*files.model, *files.networks.values()) if not f.is_relative_to(BUNDLED)]
    copied = sum(f.stat().st_size for f in own) <= MOST
    folder = Path(os.path.commonpath([f.parent for f in own])) if own and copied else None

    def entry(name: str, file: Path) -> dict[str, Any]:
        copy = Path("robot") / file.relative_to(folder) if folder and file in own else None
        if copy:
            (run / copy).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(run / copy, file.read_bytes())
        return {"name": name, "sha256": sha256(file), "copy": copy and str(copy)}

    return {
        "path": path,
        "files": [entry(os.path.relpath(f, files.model[0].parent), f) for f in files.model],
        "networks": [entry(name, f) for name, f in files.networks.items()],
    }


def compare(run: Path, robot: dict[str, Any] | None, asset: Mapping[str, Any]) -> str | None:
    """A warning where files of the robot are not those of the run any more. robot: what run.json has of it.

    A file that `asset` names otherwise than the run did is another one on purpose. Of a run of before nothing is known.
    Raises: UserError where a file is gone but the run has a copy.
    """
    changed, copies = [], []
    for key, name, entries in _still_named(robot, asset) if robot else ():
        copy, there = entries[0]["copy"], find_file(name)
        ours = f"{key}={run / copy}" if copy else ""
        if there is None:
            if ours:
                raise UserError(f"{key}: no file '{name}' in {Path.cwd()} any more; the run has a copy: {ours}")
            continue  # whoever reads it says so
        paths = [there, *(there.parent / e["name"] for e in entries[1:])]
        if other := [e["name"] for p, e in zip(paths, entries) if not _same(p, e["sha256"])]:
            changed.append(f"{key}: {', '.join(other)}")
            copies.append(ours)
    if not changed:
        return None
    fix = f"; to take the run's own copies: {' '.join(copies)}" if all(copies) else ""
    return f"{'; '.join(changed)}: changed since this run was trained, and used as it is now{fix}"


def _still_named(robot: dict[str, Any], asset: Mapping[str, Any]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Of the run's files those that `asset` names too: (configuration key, its value, entries of run.json)."""
    out = [("asset.path", robot["path"], robot["files"])] if asset["path"] == robot["path"] else []
    networks = {e["name"]: e for e in robot.get("networks", ())}
    for group, actuator in (asset["actuators"] or {}).items():
        if (name := (actuator or {}).get("file")) in networks:
            out.append((f"asset.actuators.{group}.file", name, [networks[name]]))
    return out


def _same(file: Path, digest: str) -> bool:
    return file.is_file() and sha256(file) == digest
