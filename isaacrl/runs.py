"""Run folders: made at once, held by one process, found again. Checkpoints and the signals that end a run."""

import errno
import fcntl
import json
import os
import platform
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from isaacrl import robot_files
from isaacrl.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from isaacrl.errors import UserError
from isaacrl.files import remove_temporaries, sha256, write_atomic, write_json
from isaacrl.suggest import did_you_mean

__all__ = [
    "CheckpointError",
    "Run",
    "StopSignals",
    "changed_robot",
    "create",
    "find",
    "git_state",
    "load_checkpoint",
    "open_run",
    "report_folder",
    "save_checkpoint",
    "versions",
    "write_atomic",
    "write_json",
]

SCHEMA = 1
_PACKAGES = ("isaacrl", "torch", "mujoco", "mujoco-warp", "warp-lang", "hydra-core", "numpy")
_MAX_DIFF = 5_000_000  # bytes of git.diff; more is data, not code


class Run:
    """A run folder held by this process. Closing it, or the end of the process, lets go of it."""

    def __init__(self, path: Path):
        """Raises: UserError where another process holds the run."""
        self.path = path
        self._lock: int | None = _acquire(path)

    def update(self, **values: Any) -> None:
        """Set values of run.json, such as status. Raises: UserError where the disk refuses."""
        self.write_json("run.json", _read_run(self.path) | values)

    def write_json(self, name: str, obj: Any) -> None:
        """Write a JSON file of the run, atomically. Raises: UserError where the disk refuses."""
        try:
            write_json(self.path / name, obj)
        except OSError as e:
            raise UserError(
                f"{self.path / name}: cannot be written ({e.strerror or e}); make room or check permissions"
            ) from e

    def close(self) -> None:
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def create(
    outputs: str | Path,
    task: str,
    algo: str,
    config_yaml: str,
    *,
    command: Sequence[str],
    term_files: Sequence[Path] = (),
    robot: tuple[str, robot_files.RobotFiles] | None = None,
) -> Run:
    """Make outputs/<task>/<date>_<time>_<algo>[_n]/ and hold it. run.json comes last: without it, a folder is no run.

    term_files: the user's own, of which the run keeps copies. robot: asset.path and its files.
    Raises: UserError where the folder cannot be made.
    """
    try:
        sources = [(Path(file), Path(file).read_bytes()) for file in term_files]
    except OSError as e:
        raise UserError(
            f"{e.filename}: this file of your terms cannot be read to keep it with the run ({e.strerror}); "
            "check that it exists and may be read"
        ) from e
    now = time.time()
    stamp = datetime.fromtimestamp(now).strftime("%Y-%m-%d_%H-%M-%S")
    path = None
    try:
        path = _make_folder(Path(outputs) / task, f"{stamp}_{algo}")
        run = Run(path)
        write_atomic(path / "config.yaml", config_yaml)
        terms = [_copy_source(file, content, path / "terms") for file, content in sources]
        kept = robot and robot_files.record(*robot, path)
        git, diff = git_state(Path.cwd())
        if diff:
            write_atomic(path / "git.diff", diff)
        write_json(
            path / "run.json",
            {
                "schema": SCHEMA,
                "id": os.urandom(4).hex(),
                "task": task,
                "algo": algo,
                "status": "created",
                "started": now,
                "started_at": datetime.fromtimestamp(now).astimezone().isoformat(timespec="seconds"),
                "command": shlex.join(command),
                "directory": str(Path.cwd()),
                "host": socket.gethostname(),
                "platform": platform.platform(),
                "versions": {"python": platform.python_version()} | versions(),
                "git": git,
                "terms": terms,
                "robot": kept,
            },
        )
    except OSError as e:
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)
        raise UserError(
            f"outputs={outputs}: no run folder can be made there ({e.strerror or e}: {e.filename}); "
            "set outputs=<folder> to one with room that you may write to"
        ) from e
    return run


def open_run(path: str | Path) -> Run:
    """Hold an existing run, to continue it.

    Raises: UserError where it is no run folder, another process holds it, or a newer isaacrl made it.
    """
    path = Path(path)
    schema = _read_run(path).get("schema", 0)
    if schema > SCHEMA:
        raise UserError(
            f"run={path}: made by a newer isaacrl (schema {schema}, this one reads up to {SCHEMA}); upgrade isaacrl"
        )
    try:
        run = Run(path)
        remove_temporaries(path)
    except OSError as e:
        raise UserError(f"run={path}: cannot be written to ({e.strerror or e}); copy it to where you may write") from e
    return run


def changed_robot(run: Path, asset: Mapping[str, Any], files_of: Callable[[Path], list[Path]]) -> str | None:
    """A warning where the robot of the configuration is not as it was when the run was made, see robot_files.py."""
    return robot_files.compare(run, _read_run(run).get("robot"), asset, files_of)


def find(run: str | Path, outputs: str | Path = "outputs") -> Path:
    """The folder of a run: 'latest' (the newest of all), a path, a folder's name, or a task's name (its newest run).

    Raises: UserError that lists the newest runs.
    """
    name = str(run)
    if (Path(name) / "run.json").is_file():
        return Path(name)
    known = _all_runs(Path(outputs))
    if name == "latest" and known:
        return known[0]
    tests = (
        lambda p: name in (p.name, f"{p.parent.name}/{p.name}"),
        lambda p: p.parent.name == name,
        lambda p: p.parent.name.startswith(name),
        lambda p: p.name.startswith(name),
    )
    for test in tests if name else ():
        if match := next((p for p in known if test(p)), None):
            return match
    if not known:
        raise UserError(f"run={name}: no run found under {outputs}/; train one first: isaacrl train")
    if Path(name).is_dir():
        raise UserError(f"run={name}: not a run folder (it has no run.json); the newest run is {known[0]}")
    names = {p.parent.name for p in known} | {p.name for p in known[:100]}
    raise UserError(
        f"run={name}: no such run under {outputs}/{did_you_mean(name, names)}; "
        f"the newest: {', '.join(str(p) for p in known[:3])}"
    )


class StopSignals:
    """Inside it the first SIGINT, SIGTERM or SIGUSR1 only sets `received`, so that training can save and leave.

    A second SIGINT raises KeyboardInterrupt at once. Outside the main thread it does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._interrupts = 0
        self._old: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that ended by this signal: 130 for SIGINT, 143 for SIGTERM; else 0."""
        return 128 + signal.Signals[self.received] if self.received else 0

    def _handle(self, number: int, _frame: Any) -> None:
        self.received = self.received or signal.Signals(number).name
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._old.clear()


def _make_folder(parent: Path, name: str) -> Path:
    """A folder that did not exist: mkdir is what two processes in one second cannot both succeed at."""
    parent.mkdir(parents=True, exist_ok=True)
    n = 1
    while True:
        path = parent / (name if n == 1 else f"{name}_{n}")
        try:
            os.mkdir(path)
            return path
        except FileExistsError:
            n += 1


def report_folder(outputs: str | Path, task: str, verb: str) -> Path:
    """Make outputs/<task>/<verb>_<date>_<time>[_n]/, which is no run. Raises: UserError where it cannot be made."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    try:
        return _make_folder(Path(outputs) / task, f"{verb}_{stamp}")
    except OSError as e:
        raise UserError(
            f"outputs: {e.filename} cannot be made ({e.strerror or e}); choose another with outputs="
        ) from None


def _acquire(path: Path) -> int:
    """Lock a run's folder; the open file that holds the lock."""
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return fd  # a file system without locks: better a run without one than none
        holder = os.pread(fd, 200, 0).decode(errors="replace").split()
        os.close(fd)
        who = f"process {holder[0]} on {holder[1]}" if len(holder) == 2 else "another process"
        raise UserError(
            f"run={path}: in use by {who}; wait until it ends or stop it"
            + (f" (kill {holder[0]})" if len(holder) == 2 else "")
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    return fd


def _read_run(path: Path) -> dict[str, Any]:
    try:
        content = json.loads((path / "run.json").read_text())
        if isinstance(content, dict):
            return content
        reason = "it holds no table"
    except FileNotFoundError:
        raise UserError(f"run={path}: not a run folder (it has no run.json)") from None
    except OSError as e:
        reason = e.strerror or str(e)
    except ValueError as e:
        reason = f"no JSON: {e}"
    raise UserError(
        f"run={path}: its run.json cannot be read ({reason}); mend it, or load its policy into another run of this "
        f"task: checkpoint={path}/checkpoints/latest.pt"
    )


def _all_runs(outputs: Path) -> list[Path]:
    """Complete runs, newest first. Not by folder names: they have whole seconds, and clocks change twice a year."""
    found = []
    for file in outputs.glob("*/*/run.json"):
        try:
            found.append((float(_read_run(file.parent)["started"]), file.parent.name, file.parent))
        except (UserError, KeyError, TypeError, ValueError):
            continue
    return [path for *_, path in sorted(found, reverse=True)]


def _copy_source(file: Path, content: bytes, folder: Path) -> dict[str, str]:
    """Copy a user's own source file into the run; where it lies, where it came from, its hash."""
    folder.mkdir(exist_ok=True)
    path, n = folder / file.name, 2
    while path.exists():
        path, n = folder / f"{file.stem}_{n}{file.suffix}", n + 1
    write_atomic(path, content)
    return {"file": f"{folder.name}/{path.name}", "source": str(file.resolve()), "sha256": sha256(path)}


def versions() -> dict[str, str | None]:
    """Versions of what a result depends on, without importing any of it."""
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_state(folder: Path) -> tuple[dict[str, Any] | None, bytes]:
    """Commit and state of the working directory's repository, and its uncommitted changes; None where there is none."""

    def git(*args: str) -> bytes:
        return subprocess.run(
            ["git", "--no-optional-locks", *args],
            cwd=folder,
            check=True,
            timeout=10,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        ).stdout

    try:
        commit = git("rev-parse", "HEAD").decode().strip()
        diff = git("diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color")
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit yet
        return None, b""
    return {"commit": commit, "dirty": bool(diff), "diff_cut": len(diff) > _MAX_DIFF}, diff[:_MAX_DIFF]
