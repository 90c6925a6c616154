"""Files that are whole or absent, whatever happens while they are written."""

import hashlib
import json
import math
import os
import threading
from pathlib import Path
from typing import Any


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Replace a file at once: readers, and a crash at any moment, see the old content or the new, never a part.

    Raises: OSError, with the old file untouched.
    """
    path = Path(path)
    tmp = temporary(path)
    try:
        with open(tmp, "wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: str | Path, obj: Any) -> None:
    """Write an object as strict JSON, atomically; non-finite numbers become null."""
    write_atomic(path, json.dumps(finite(obj), indent=2, allow_nan=False) + "\n")


def finite(obj: Any) -> Any:
    """The same data in JSON's types: NaN and infinities are None, tensors and arrays numbers, paths strings."""
    if obj is None or isinstance(obj, (str, bool, int)):
        return obj
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, dict):
        return {str(k): finite(v) for k, v in obj.items()}
    if isinstance(obj, (list, tuple, set)):
        return [finite(v) for v in obj]
    if hasattr(obj, "tolist"):
        return finite(obj.tolist())
    return str(obj)


def sha256(path: Path) -> str:
    """The hash of a file's content."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def temporary(path: Path) -> Path:
    """The name under which a file is written before it takes its place: of this process and thread alone."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed process left half-written. Only for the holder of the run's lock."""
    for tmp in folder.glob(".*.tmp"):
        tmp.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass  # some network file systems cannot sync a folder
    finally:
        os.close(fd)
