"""Warp beside torch: quiet start-up; launches on torch's current stream, captured with it or as graphs of our own."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import warp as wp

from isaacrl.fuse import trace


def _start_warp() -> None:
    """Start Warp without its chatter: its greeting, every module it loads and, on a CPU, that there is no GPU."""
    wp.config.log_level = wp.LOG_ERROR
    if torch.cuda.is_available():
        wp.init()
        return
    stderr = os.dup(2)  # its C++ part writes there directly
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            wp.init()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


_start_warp()


class Launcher:
    """Runs functions that launch Warp kernels and torch operations on one device, in the order of torch's stream.

    Within a caller's capture they join it. Otherwise, with use_graph, each key is captured once and replayed.
    """

    def __init__(self, device: str, use_graph: bool):
        self.device, self._cuda = device, device != "cpu"
        self._use_graph = use_graph and self._cuda
        self._graphs: dict[Any, torch.cuda.CUDAGraph] = {}
        self._kept: list[Any] = []  # what captured graphs own

    def forget(self) -> None:
        """Drop the graphs captured so far: what they launch has changed."""
        self._graphs.clear()

    def run(self, key: Any, body: Callable[[], None]) -> None:
        trace.call(lambda: self._run(key, body))

    def _run(self, key: Any, body: Callable[[], None]) -> None:
        if not self._use_graph and not self.capturing():
            with self.stream():
                body()
            return
        with torch.cuda.device(self.device):
            if self.capturing():
                self._join(body)
                return
            if key not in self._graphs:
                self._graphs[key] = self._capture(body)
            self._graphs[key].replay()

    def capturing(self) -> bool:
        if not self._cuda:
            return False
        with torch.cuda.device(self.device):
            return torch.cuda.is_current_stream_capturing()

    def _capture(self, body: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(self.device), capture_error_mode="thread_local"):
            self._join(body)
        return graph

    def _join(self, body: Callable[[], None]) -> None:
        """Record body in the capture that torch has begun on its current stream; Warp must know of it."""
        with self.stream() as stream:
            wp.capture_begin(stream=stream, external=True)
            try:
                body()
            finally:
                self._kept.append(wp.capture_end(stream=stream))

    @contextlib.contextmanager
    def stream(self) -> Iterator[Any]:
        """Warp works on torch's current stream, which orders its kernels among torch's without waiting."""
        if self._cuda:
            stream = wp.stream_from_torch(torch.cuda.current_stream(self.device))
            with torch.cuda.device(self.device), wp.ScopedStream(stream, sync_enter=False):
                yield stream
        else:
            with wp.ScopedDevice("cpu"):
                yield None
