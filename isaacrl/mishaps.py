"""Exceptions that are no UserErrors where they arise but are the user's to mend: said in one line."""

import errno
import traceback
from pathlib import Path
from typing import Any

from isaacrl.suggest import one_line

PACKAGE = Path(__file__).parent
_DISK = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "it is read-only; write elsewhere: outputs=FOLDER",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
}
_MEMORY = ("bad_alloc", "can't allocate", "not allocate memory", "failed to allocate", "out of memory")


def explain(error: BaseException) -> str | None:
    """What to tell the user; None where the error is isaacrl's own."""
    if term := of_own_term(error):
        return term
    if out_of_memory(error):
        said = what(error)
        return (
            f"not enough memory ({said}); take fewer worlds (num_envs), a smaller algo.batch_size or smaller networks"
        )
    if isinstance(error, OSError) and error.errno in _DISK:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {_DISK[error.errno]}"
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused: Python's, NumPy's, torch's, Warp's or C++'s."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, (RuntimeError, ValueError)) and any(w in str(error).lower() for w in _MEMORY)


def of_own_term(error: BaseException) -> str | None:
    """The term of the user's own in which an exception arose: its key, what happened, and the line."""
    key = source = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        term: Any = frame.f_locals.get("self")
        if type(term).__name__ == "Bound" and hasattr(term, "source"):
            key, source = term.key, term.source
    if key is None or source is None or Path(source).is_relative_to(PACKAGE):
        return None
    return f"{key}: {what(error)} ({place(error, source)})"


def place(error: BaseException, source: str) -> str:
    """file:line of the innermost frame in a source file."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == source]
    return f"{source}:{lines[-1]}" if lines else source


def what(error: BaseException) -> str:
    """An exception's type and message."""
    return f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
