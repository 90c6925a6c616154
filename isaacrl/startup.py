"""The seconds that a start takes, from the start of the process on, phase by phase."""

import os
import time
from typing import Any

# In this order they are shown. What environment, engine and algorithm have counted themselves, as `compile_seconds` and
# `capture_seconds`, is taken out of the phase in which it happened.
PHASES = ("imports", "scene", "compile", "networks", "logging", "capture", "first iteration")

_imported = time.perf_counter()
_began: float | None = None


def process_began() -> float:
    """When this process started, on the clock of time.perf_counter; where the system does not tell: this import."""
    try:
        with open("/proc/self/stat", "rb") as f:  # the name, in parentheses, may hold anything
            ticks = int(f.read().rpartition(b")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return _imported
    return min(time.perf_counter() - age, _imported) if ticks > 0 else _imported  # some sandboxes say 0


def count_from_process_start() -> None:
    """What is started next began with the process: said by the command line, whose process is for one command."""
    global _began
    _began = process_began()


class Phases:
    """How long each phase took. The first one is `imports`, where the command line has said when it began.

    A second start in the same process, as in a sweep, has imported everything already.
    """

    def __init__(self) -> None:
        global _began
        self._spent: dict[str, float] = {}
        self._last = time.perf_counter()
        if _began is not None:
            self._spent["imports"], _began = self._last - _began, None

    def done(self, name: str, env: Any = None, algo: Any = None) -> None:
        """A phase ends here."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        for part in ("compile", "capture"):
            total = sum(getattr(x, f"{part}_seconds", 0.0) for x in (env, getattr(env, "engine", None), algo))
            if (new := min(total - self._spent.get(part, 0.0), seconds)) > 0.0:
                self._spent[part] = self._spent.get(part, 0.0) + new
                seconds -= new
        self._spent[name] = self._spent.get(name, 0.0) + seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, in the order of PHASES; their sum is all the time until the last `done`."""
        return {name: self._spent[name] for name in PHASES if name in self._spent}
