"""How a run is doing: histories, counts, pace, and numbers as people read them."""

import itertools
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SPARK, SPARK_ASCII = "▁▂▃▄▅▆▇█", "_.-=+*#@"
SPLIT = (("sim", "cyan"), ("env", "green"), ("policy", "magenta"), ("update", "yellow"), ("log", "bright_black"))


class Series:
    """A history of bounded size: when it is full, neighbours are averaged and each point stands for twice as much."""

    def __init__(self, size: int = 512):
        self.points: list[float] = []
        self.first: float | None = None
        self.last: float | None = None
        self.best: tuple[float, int] | None = None  # value, iteration
        self._size, self._stride, self._pending = size, 1, []

    def add(self, value: float | None, iteration: int) -> None:
        """value: None or NaN where there is none, as before the first episode has ended."""
        if value is None or value - value != 0:  # also true of infinities
            return
        self.first = value if self.first is None else self.first
        self.last = value
        if self.best is None or value > self.best[0]:
            self.best = value, iteration
        self._pending.append(value)
        if len(self._pending) == self._stride:
            self.points.append(sum(self._pending) / self._stride)
            self._pending = []
        if len(self.points) == self._size:
            self.points = [(a + b) / 2 for a, b in zip(self.points[::2], self.points[1::2])]
            self._stride *= 2

    def spark(self, width: int, ascii_only: bool = False) -> str:
        """The whole history in at most `width` characters."""
        points, levels = self.points, SPARK_ASCII if ascii_only else SPARK
        if len(points) > width > 0:
            cuts = [i * len(points) // width for i in range(width + 1)]
            points = [sum(points[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
        if not points or width <= 0:
            return ""
        low, high = min(points), max(points)
        scale = (len(levels) - 1) / (high - low) if high > low else 0.0
        return "".join(levels[round((p - low) * scale)] for p in points)


@dataclass
class Status:
    """All that a view shows. The training thread replaces what it changes, so a drawing thread may read at any time."""

    title: str
    run_path: Path
    iterations: int
    start: int = 0
    reward_terms: Sequence[str] = ()
    iteration: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    returns: Series = field(default_factory=Series)
    lengths: Series = field(default_factory=Series)
    phases: dict[str, float] = field(default_factory=dict)
    warnings: dict[str, tuple[str, int]] = field(default_factory=dict)  # key -> newest text, count
    nonfinite: int = 0
    skipped: int = 0
    began: float = field(default_factory=time.monotonic)
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=50))  # time, iteration

    def add(self, metrics: dict[str, float], iteration: int) -> None:
        """Take in one iteration."""
        self.iteration, self.metrics = iteration, metrics
        self.returns.add(metrics.get("return"), iteration)
        self.lengths.add(metrics.get("episode_length"), iteration)
        self.nonfinite += int(value_or(metrics.get("nonfinite"), 0))
        self.skipped += int(value_or(metrics.get("skipped_updates"), 0))
        self.recent.append((time.monotonic(), iteration))

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    @property
    def eta(self) -> float | None:
        """Seconds to go at the pace of the last iterations; None before there is a pace."""
        if len(self.recent) < 2:
            return None
        (t0, i0), (t1, i1) = self.recent[0], self.recent[-1]
        return max(0.0, (t1 - t0) / max(i1 - i0, 1) * (self.iterations - i1) - (time.monotonic() - t1))

    @property
    def split(self) -> list[tuple[str, str, float]]:
        """Section, colour and share of the time of an iteration."""
        found = [(n, c, value_or(self.metrics.get(f"time/{n}"), 0.0)) for n, c in SPLIT]
        total = sum(s for *_, s in found)
        return [(n, c, s / total) for n, c, s in found] if total > 0 else []


def bar(share: float, width: int, ascii_only: bool = False) -> str:
    """A bar in eighths of a character; anything above zero shows."""
    if ascii_only:
        return "#" * max(round(share * width), share > 0)
    eighths = max(round(share * width * 8), share > 0)
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]


def number(x: float | None) -> str:
    """Four significant digits in at most 9 characters."""
    if x is None:
        return "-"
    size = abs(x)
    if size - size != 0:
        return str(x)
    if size and (size < 1e-3 or size >= 1e5):
        return f"{x:.1e}"
    return (
        f"{x:.0f}"
        if size >= 1000
        else f"{x:.1f}"
        if size >= 100
        else f"{x:.2f}"
        if size >= 10
        else f"{x:.3f}"
        if (size >= 1 or not size)
        else f"{x:.4f}"
    )


def clip(text: str, width: int) -> str:
    """A text of exactly this width, padded or cut."""
    return text.ljust(width) if len(text) <= width else text[: width - 2] + ".."


def signed(x: float) -> str:
    return ("+" if x > 0 else "") + number(x)


def quantity(x: float | None) -> str:
    """185000 -> 185k."""
    if x is None or x - x != 0:
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(x) >= size:
            return f"{x / size:.3g}{unit}" if abs(x) < 999.5 * size else f"{x / size:.0f}{unit}"
    return f"{x:.0f}"


def duration(seconds: float) -> str:
    """41 -> 0:41, 3723 -> 1:02:03."""
    total = int(seconds + 0.5)
    hours, minutes, rest = total // 3600, total // 60 % 60, total % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def shown_path(path: Path) -> str:
    """A path relative to the working directory where that is shorter."""
    full, relative = str(path.absolute()), os.path.relpath(path)
    return relative if len(relative) < len(full) else full


def value_or(x: float | None, default: float) -> float:
    """A number for arithmetic: the default where there is none, or no finite one."""
    return default if x is None or x - x != 0 else x
