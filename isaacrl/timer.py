"""Where an iteration's time goes, measured without making the device wait."""

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from isaacrl.fuse import trace


class Timer:
    """Seconds spent in named sections since the last `read`. A section's time excludes that of sections inside it.

    On a GPU sections are bracketed by events on the current stream and added up only when read. Those recorded while a
    CUDA graph is captured belong to it: `read` gives the times of its last replay.
    """

    def __init__(self, device: str):
        self.device, self.cuda = device, device.startswith("cuda")
        self.enabled = False  # who reads it turns it on: marks that nobody reads would pile up
        self.weight = 1.0  # what is measured now counts so many times: one step may stand for a rollout
        self._marks: list[tuple[str, Any, float]] = []
        self._graphs: list[list[tuple[str, Any, float]]] = []
        self._open: list[str] = []

    def _mark(self, section: str) -> None:
        trace.mark(lambda: self._record(section))

    def _record(self, section: str) -> None:
        if not self.enabled:
            return
        if not self.cuda:
            self._marks.append((section, time.perf_counter(), self.weight))
            return
        with torch.cuda.device(self.device):
            event = torch.cuda.Event(enable_timing=True, external=torch.cuda.is_current_stream_capturing())
            event.record()
        self._marks.append((section, event, self.weight))

    def enter(self, section: str) -> None:
        """The section under way ends here, this one begins."""
        self._mark(section)

    def lap(self, section: str) -> None:
        """`enter`, but not in a recorded function: it would break a kernel in two."""
        if trace.current() is None:
            self._mark(section)

    @contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        self._open.append(section)
        self._mark(section)
        try:
            yield
        finally:
            self._open.pop()
            self._mark(self._open[-1] if self._open else "")

    @contextmanager
    def captured(self) -> Iterator[None]:
        """What is marked here is part of a graph that is captured: it lasts."""
        outer, self._marks = self._marks, []
        try:
            yield
        finally:
            self._graphs.append(self._marks)
            self._marks = outer

    def read(self) -> dict[str, float]:
        """Seconds by section; starts anew."""
        seconds: dict[str, float] = defaultdict(float)
        for marks in (self._marks, *self._graphs):
            if self.cuda and marks:
                marks[-1][1].synchronize()
            for (section, a, weight), (_, b, _) in itertools.pairwise(marks):
                if section:
                    seconds[section] += weight * (a.elapsed_time(b) / 1e3 if self.cuda else b - a)
        self._marks.clear()
        return dict(seconds)
