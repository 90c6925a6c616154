"""Where an iteration's time goes, measured without making the device wait."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Timer:
    """Seconds spent in named sections since the last `read`. A section's time excludes that of sections inside it.

    On a GPU sections are bracketed by events on the current stream and added up only when read.
    """

    def __init__(self, device: str):
        self.device, self.cuda = device, device.startswith("cuda")
        self.enabled = False  # who reads it turns it on: marks that nobody reads would pile up
        self._marks: list[tuple[str, object]] = []
        self._open: list[str] = []

    def _mark(self, section: str) -> None:
        if not self.enabled:
            return
        if self.cuda:
            with torch.cuda.device(self.device):
                event = torch.cuda.Event(enable_timing=True)
                event.record()
            self._marks.append((section, event))
        else:
            self._marks.append((section, time.perf_counter()))

    @contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        self._open.append(section)
        self._mark(section)
        try:
            yield
        finally:
            self._open.pop()
            self._mark(self._open[-1] if self._open else "")

    def read(self) -> dict[str, float]:
        """Seconds by section; starts anew."""
        seconds: dict[str, float] = defaultdict(float)
        if self.cuda and self._marks:
            self._marks[-1][1].synchronize()  # type: ignore[attr-defined]
        for (section, a), (_, b) in zip(self._marks, self._marks[1:]):
            if section:
                seconds[section] += a.elapsed_time(b) / 1e3 if self.cuda else b - a  # type: ignore[attr-defined,operator]
        self._marks.clear()
        return dict(seconds)
