"""The files that a robot is made of, kept with each run: what is played, evaluated or exported later is the robot that
the policy was trained on, or the user hears of it.

run.json's `robot` names them, the model first, with their sha256. Copies lie in the run's folder `robot`, in the same
places relative to each other, unless they are isaacrl's own or larger than MOST in all.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isaacrl.errors import UserError
from isaacrl.files import sha256, write_atomic

MOST = 8_000_000  # bytes of all copies of a run
BUNDLED = Path(__file__).parent / "assets"


def find_file(name: str) -> Path | None:
    """A robot's file: absolute, relative to the working directory, or bundled with isaacrl."""
    file = next((p for p in (Path(name).expanduser(), BUNDLED / name) if p.is_file()), None)
    return file and Path(os.path.abspath(file))


def record(path: str, files: Sequence[Path], run: Path) -> dict[str, Any]:
    """What run.json says of a robot; copies its files. path: as asset.path has it. files: the model's comes first."""
    copied = not files[0].is_relative_to(BUNDLED) and sum(f.stat().st_size for f in files) <= MOST
    folder, entries = Path(os.path.commonpath([f.parent for f in files])), []
    for file in files:
        entry: dict[str, Any] = {"name": os.path.relpath(file, files[0].parent), "sha256": sha256(file), "copy": None}
        if copied:
            copy = Path("robot") / file.relative_to(folder)
            (run / copy).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(run / copy, file.read_bytes())
            entry["copy"] = str(copy)
        entries.append(entry)
    return {"path": path, "files": entries}


def compare(run: Path, robot: dict[str, Any] | None, path: str) -> str | None:
    """A warning where the robot at `path` is not the one of the run any more. robot: what run.json has of it.

    Raises: UserError where its model is gone but the run has a copy.
    """
    if not robot or robot["path"] != path:
        return None  # a run of before, or another robot on purpose
    copy = robot["files"][0]["copy"]
    ours = f"asset.path={run / copy}" if copy else ""
    there = find_file(path)
    if there is None:
        if ours:
            raise UserError(f"asset.path: no file '{path}' in {Path.cwd()} any more; the run has a copy: {ours}")
        return None
    changed = [e["name"] for e in robot["files"] if not _same(there.parent / e["name"], e["sha256"])]
    if not changed:
        return None
    fix = f"; to take the run's own copies: {ours}" if ours else ""
    return f"asset.path: changed since this run was trained, and used as it is now: {', '.join(changed)}{fix}"


def _same(file: Path, digest: str) -> bool:
    return file.is_file() and sha256(file) == digest
