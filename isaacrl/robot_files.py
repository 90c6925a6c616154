"""The files that a robot is made of, kept with each run: what is played, evaluated or exported later is the robot that
the policy was trained on, or the user hears of it.

run.json's `robot` names them with their sha256: `files` of the model, itself the first, by their places relative to it;
`networks` of actuators by their names in the configuration. Copies lie in the run's folder `robot`, in the same places
relative to each other: of all that are not isaacrl's own, unless these are larger than MOST in all. With them come the
files that make a folder a ROS package, so that package:// finds the copies.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isaacrl.errors import UserError
from isaacrl.files import sha256, write_atomic

MOST = 8_000_000  # bytes of all copies of a run
PACKAGE = ("package.xml", "manifest.xml")
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


def is_package(folder: Path) -> bool:
    """Whether a folder is a ROS package."""
    return any((folder / name).is_file() for name in PACKAGE)


def record(path: str, files: RobotFiles, run: Path) -> dict[str, Any]:
    """What run.json says of a robot; copies its files. path: as asset.path has it."""
    own = [f for f in (*files.model, *files.networks.values()) if not f.is_relative_to(BUNDLED)]
    copied = sum(f.stat().st_size for f in own) <= MOST
    packages = {p for f in own if (p := _package_of(f))}
    folder = Path(os.path.commonpath([*(f.parent for f in own), *packages])) if own and copied else Path()

    def keep(file: Path) -> Path:
        copy = Path("robot") / folder.name / file.relative_to(folder)
        (run / copy).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(run / copy, file.read_bytes())
        return copy

    def entry(name: str, file: Path) -> dict[str, Any]:
        return {"name": name, "sha256": sha256(file), "copy": str(keep(file)) if copied and file in own else None}

    for package in packages if copied else ():
        for name in PACKAGE:
            if (package / name).is_file():
                keep(package / name)

    return {
        "path": path,
        "files": [entry(os.path.relpath(f, files.model[0].parent), f) for f in files.model],
        "networks": [entry(name, f) for name, f in files.networks.items()],
    }


def compare(
    run: Path, robot: dict[str, Any] | None, asset: Mapping[str, Any], files_of: Callable[[Path], list[Path]]
) -> str | None:
    """A warning where files of the robot are not those of the run any more. robot: what run.json has of it.

    A file that `asset` names otherwise than the run did is another one on purpose. Of a run of before nothing is known.
    files_of: which files a model is made of, none if it cannot be read: one that names files by absolute paths does
    not stand alone as a copy.
    Raises: UserError where a file is gone but the run has a copy.
    """
    changed, copies = [], []
    for key, name, entries in _still_named(robot, asset) if robot else ():
        there = find_file(name)
        paths = [there, *(there.parent / e["name"] for e in entries[1:])] if there else []
        other = [e["name"] for p, e in zip(paths, entries) if not _same(p, e["sha256"])]
        if there and not other:
            continue
        ours, copy = "", entries[0]["copy"]
        if copy:
            ours, folder = f"{key}={run / copy}", Path(os.path.abspath(run / "robot"))
            if key == "asset.path" and not _within(folder, files_of(run / copy)):
                ours = f"{run / 'robot'} (not to be loaded from there: the model has absolute paths)"
        if not there and ours:
            raise UserError(f"{key}: no file '{name}' in {Path.cwd()} any more; the run has a copy: {ours}")
        if there:  # else whoever reads it says so
            changed.append(f"{key}: {', '.join(other)}")
            copies.append(ours)
    if not changed:
        return None
    fix = f"; the run's own copies: {' '.join(copies)}" if all(copies) else ""
    return f"{'; '.join(changed)}: changed since this run was trained, and used as it is now{fix}"


def _still_named(robot: dict[str, Any], asset: Mapping[str, Any]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Of the run's files those that `asset` names too: (configuration key, its value, entries of run.json)."""
    out = [("asset.path", robot["path"], robot["files"])] if asset["path"] == robot["path"] else []
    networks = {e["name"]: e for e in robot["networks"]}
    for group, actuator in (asset["actuators"] or {}).items():
        if (name := (actuator or {}).get("file")) in networks:
            out.append((f"asset.actuators.{group}.file", name, [networks[name]]))
    return out


def _package_of(file: Path) -> Path | None:
    """The ROS package that holds it."""
    return next(filter(is_package, file.parents), None)


def _within(folder: Path, files: list[Path]) -> bool:
    return bool(files) and all(f.is_relative_to(folder) for f in files)


def _same(file: Path, digest: str) -> bool:
    return file.is_file() and sha256(file) == digest
