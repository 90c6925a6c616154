"""Checkpoints: written so that a crash never costs the last good one, read so that they run no code.

`checkpoints/NNNNNN.pt` is entered in `checkpoints/index.json` with its sha256 only when it lies complete on the disk.
A reader believes the index: what is not in it does not exist, what does not match it is damaged.
"""

import errno
import hashlib
import io
import json
import logging
import math
import os
import re
import time
import zipfile
from pathlib import Path
from typing import Any

from isaacrl.errors import UserError
from isaacrl.files import remove_temporaries, sha256, sync_folder, temporary, write_json

SCHEMA = 1
_NUMBERED = re.compile(r"\d{6,}(_\d+)?\.pt")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class CheckpointError(OSError):
    """A checkpoint could not be written (full disk, quota, permissions). Those written before are intact."""


def save_checkpoint(
    run_path: str | Path, state: dict, iteration: int, score: float | None, keep: int, *, curriculum: float = 0.0
) -> Path:
    """Write a checkpoint and enter it in the index; the last `keep` and the best one stay.

    state: nested dicts and lists of tensors, numbers, strings and None. score: higher is better; None or NaN: unknown.
    curriculum: how far curricula were, 0 to 1; further is better, whatever the scores.

    Raises: CheckpointError where the disk refuses; TypeError where the state holds anything else, which could not be
    loaded again.
    """
    folder = Path(run_path) / "checkpoints"
    _check_plain(state, "state")
    score = float(score) if score is not None and math.isfinite(score) else None
    try:
        folder.mkdir(exist_ok=True)
        index = _read_index(folder)
        old = index["entries"]
        # A file that the index names is never overwritten: until the index is replaced, it is the one that counts.
        path, n = folder / f"{iteration:06d}.pt", 2
        while any(e["file"] == path.name for e in old):
            path, n = folder / f"{iteration:06d}_{n}.pt", n + 1
        payload = {"iteration": iteration, "score": score, "curriculum": curriculum, "state": state}
        entry = {
            "file": path.name,
            "iteration": iteration,
            "sha256": _write_verified(path, {"isaacrl_checkpoint": SCHEMA} | payload),
            "score": score,
            "curriculum": curriculum,
            "time": time.time(),
        }
        entries = [e for e in old if e["iteration"] != iteration] + [entry]
        best = _best(entries)
        entries = [e for e in entries if e in entries[-max(keep, 1) :] or e is best]
        write_json(folder / "index.json", {"entries": entries, "latest": entry["file"], "best": best["file"]})
        _link(folder / "latest.pt", entry["file"])
        _link(folder / "best.pt", best["file"])
        kept = {e["file"] for e in entries}
        for file in folder.iterdir():
            if _NUMBERED.fullmatch(file.name) and file.name not in kept:
                file.unlink(missing_ok=True)
    except CheckpointError:
        raise
    except OSError as e:
        raise CheckpointError(e.errno, e.strerror or str(e), str(folder)) from e
    return path


def load_checkpoint(run_path: str | Path, which: str | Path = "latest") -> tuple[dict, dict]:
    """The state of a checkpoint, on the CPU, and its entry in the index.

    which: 'latest', 'best' (highest score where curricula had come furthest), or a file: a path, or a name in the run's
    checkpoints folder. Where the latest or best is damaged the next in line is loaded; this is logged as a warning and
    told in entry["warnings"].

    Raises: UserError where nothing loads, the named file is damaged or none of ours, or a newer isaacrl wrote it.
    """
    folder = Path(run_path) / "checkpoints"
    entries = _read_index(folder)["entries"]
    if which not in ("latest", "best"):
        entry = _named(folder, entries, which)
        payload = _read(folder / entry["file"], entry["sha256"])
        return payload["state"], entry | {"iteration": payload["iteration"], "warnings": []}
    if not entries:
        raise UserError(
            f"run={run_path}: this run has no checkpoint; start another from its configuration: "
            f"isaacrl train run={run_path}"
        )
    candidates = entries[::-1]
    if which == "best":
        best = _best(entries)
        candidates = [best] + sorted(
            (e for e in candidates if e is not best),
            reverse=True,
            key=_rank,
        )
    failures: list[str] = []
    for entry in candidates:
        try:
            state = _read(folder / entry["file"], entry["sha256"])["state"]
        except _Newer:
            raise
        except UserError as e:
            failures.append(str(e))
            continue
        notes = [f"{failure}; loaded {entry['file']} instead" for failure in failures]
        for note in notes:
            logging.getLogger("isaacrl").warning("warning: %s", note)
        return state, entry | {"warnings": notes}
    raise UserError(
        f"run={run_path}: no checkpoint can be loaded ({'; '.join(failures)}); start another from its "
        f"configuration: isaacrl train run={run_path}"
    )


class _Newer(UserError):
    """Written by a newer version: no reason to fall back to an older checkpoint."""


class _HashingWriter(io.RawIOBase):
    """Passes bytes on to a file and hashes them; remembers the error that torch would hide behind its own."""

    def __init__(self, file: Any):
        self.file, self.hash, self.error = file, hashlib.sha256(), None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        try:
            return self.file.write(data)
        except OSError as e:
            self.error = e
            raise


def _write_verified(path: Path, payload: dict) -> str:
    """Write a file under a temporary name, read it back, and only then give it its name; its sha256."""
    import torch

    remove_temporaries(path.parent)
    tmp = temporary(path)
    writer = None
    try:
        with open(tmp, "wb") as f:
            writer = _HashingWriter(f)
            torch.save(payload, writer)
            f.flush()
            os.fsync(f.fileno())
        digest = writer.hash.hexdigest()
        if sha256(tmp) != digest:
            raise OSError(errno.EIO, "what was read back is not what was written")
        os.replace(tmp, path)
    except BaseException as e:
        tmp.unlink(missing_ok=True)
        if writer is not None and writer.error is not None and not isinstance(e, OSError):
            raise writer.error from e  # torch turns a full disk into a RuntimeError
        raise
    sync_folder(path.parent)
    return digest


def _read(path: Path, digest: str | None) -> dict:
    """The content of a file: iteration, score and state. Raises UserError with a short reason."""
    import torch

    name = f"{path.parent.name}/{path.name}" if path.parent.name == "checkpoints" else str(path)
    try:
        if digest is not None and sha256(path) != digest:
            raise UserError(f"{name} is damaged (its sha256 is not the one in index.json)")
        if not zipfile.is_zipfile(path):
            raise UserError(f"{name} is not an isaacrl checkpoint, or is cut off")
        if digest is None:
            with zipfile.ZipFile(path) as z:  # torch itself does not look at these checksums
                if z.testzip() is not None:
                    raise UserError(f"{name} is damaged (wrong checksum inside)")
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{name} is missing") from None
    except OSError as e:
        raise UserError(f"{name} cannot be read ({e.strerror or e})") from e
    except UserError:
        raise
    except Exception as e:  # an unpickler fails in any way that a file can be wrong
        raise UserError(f"{name} is not an isaacrl checkpoint (it holds more than tensors, numbers and strings)") from e
    if not isinstance(payload, dict) or not isinstance(payload.get("isaacrl_checkpoint"), int):
        raise UserError(f"{name} is not an isaacrl checkpoint")
    if payload["isaacrl_checkpoint"] > SCHEMA:
        raise _Newer(
            f"{name} was made by a newer isaacrl (schema {payload['isaacrl_checkpoint']}, this one reads up "
            f"to {SCHEMA}); upgrade isaacrl"
        )
    if not isinstance(payload.get("state"), dict):
        raise UserError(f"{name} is not an isaacrl checkpoint (it has no state)")
    return payload


def _named(folder: Path, entries: list[dict], which: str | Path) -> dict:
    """The entry of the checkpoint that the user names; one without sha256 for a file outside the index."""
    path = next((p for p in (Path(which), folder / which, folder / f"{which}.pt") if p.is_file()), None)
    if path is None:
        files = ", ".join(e["file"] for e in entries) or "none"
        raise UserError(f"checkpoint={which}: no such file; use latest, best, or one of {folder}: {files}")
    path = path.resolve()
    for entry in entries:
        if path == (folder / entry["file"]).resolve():
            return entry
    number = re.match(r"\d+", path.name)
    return {
        "file": str(path),
        "iteration": int(number[0]) if number else None,
        "sha256": None,
        "score": None,
        "time": None,
    }


def _read_index(folder: Path) -> dict[str, Any]:
    """The index; where it is lost or damaged, one made anew from the files that are whole."""
    try:
        index = json.loads((folder / "index.json").read_text())
        if all(
            isinstance(e["file"], str)
            and e["file"] == Path(e["file"]).name
            and isinstance(e["iteration"], int)
            and isinstance(e["sha256"], str)
            and isinstance(e["score"], (int, float, type(None)))
            for e in index["entries"]
        ):
            return index
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    entries = []
    for path in sorted(folder.glob("*.pt")):
        if not _NUMBERED.fullmatch(path.name):
            continue
        try:
            payload = _read(path, None)
        except UserError:
            continue
        entries.append(
            {
                "file": path.name,
                "iteration": payload["iteration"],
                "sha256": sha256(path),
                "score": payload["score"],
                "curriculum": payload.get("curriculum", 0.0),
                "time": path.stat().st_mtime,
            }
        )
    return {"entries": entries}


def _best(entries: list[dict]) -> dict:
    """The entry with the highest score where curricula had come furthest, the newest of equals; the newest where none
    has a score."""
    scored = [e for e in entries if e["score"] is not None]
    return max(reversed(scored), key=_rank) if scored else entries[-1]


def _rank(entry: dict) -> tuple[float, float]:
    return (-math.inf, 0.0) if entry["score"] is None else (entry.get("curriculum", 0.0), entry["score"])


def _link(link: Path, target: str) -> None:
    """Point a symbolic link at a file, atomically. Conveniences for people: file systems without links go without."""
    tmp = temporary(link)
    try:
        os.symlink(target, tmp)
        os.replace(tmp, link)
    except OSError as e:
        tmp.unlink(missing_ok=True)
        if e.errno not in _NO_LINKS:
            raise


def _check_plain(value: Any, where: str) -> None:
    """Raise TypeError for what `weights_only` would refuse to load, while it is still there to be mended."""
    import torch

    if isinstance(value, torch.Tensor) or value is None or type(value) in (bool, int, float, str):
        return
    if isinstance(value, dict):
        for k, v in value.items():
            if type(k) not in (str, int):
                raise TypeError(f"{where}: key {k!r} is a {type(k).__name__}; checkpoint keys are strings or integers")
            _check_plain(v, f"{where}[{k!r}]")
    elif type(value) in (list, tuple):
        for i, v in enumerate(value):
            _check_plain(v, f"{where}[{i}]")
    else:
        raise TypeError(
            f"{where} is a {type(value).__module__}.{type(value).__name__}; checkpoints hold tensors, "
            "numbers, strings, None, and dicts and lists of them"
        )
