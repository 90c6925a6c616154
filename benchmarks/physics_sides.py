"""The two sides of physics.py: an engine of isaacrl behind its interface, and MuJoCo Warp as its users call it.

Both offer put, step, capture, count and read, and nothing else differs in how they are timed and checked.
"""

import time
from collections.abc import Callable
from typing import Any

import mujoco
import mujoco_warp as mjw
import numpy as np
import torch
import warp as wp
from physics_models import Case, States
from torch import Tensor

from isaacrl import sim
from isaacrl.schema import SimConfig
from isaacrl.sim.capacity import estimate
from isaacrl.sim.engine import Actuation

GRAPH = 8  # launches a graph, each with controls of its own
WARM_UP = 300.0  # [ms]: an idle GPU has slow clocks
_O = mjw.OverflowType


class EngineSide:
    """isaacrl's engine of that name. Its capacity is what it chooses for the model."""

    def __init__(self, name: str, case: Case, worlds: int, device: str):
        cfg, self.worlds = SimConfig(engine=name), worlds
        self.engine = sim.build(case.model, worlds, device, cfg, Actuation.direct(case.model.nu))
        if self.engine.name != name:
            raise RuntimeError(f"asked for engine {name}, got {self.engine.name}")
        for field in case.fields:
            self.engine.field(field)
        self._overflow = torch.zeros_like(self.engine.overflow)
        self._bad = torch.zeros_like(self.engine.nonfinite)

    def put(self, states: dict[str, Tensor]) -> None:
        """Start anew from states, [worlds, ...]."""
        self.engine.reset()
        for name, value in states.items():
            self.engine.write(name, value)

    def step(self, n: int, ctrl: Tensor) -> None:
        self.engine.step(n, ctrl)

    def capture(self, body: Callable[[], None]) -> Callable[[], Any]:
        """body as one CUDA graph, or itself where there is no GPU."""
        if self.engine.device == "cpu":
            return body
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            body()
        return graph.replay

    def count(self) -> None:
        """Note which worlds the last step found not finite: the engine puts them back to the default state."""
        self._bad |= self.engine.nonfinite

    def bad_worlds(self) -> tuple[int, int]:
        """Worlds that overflowed since the last call, and worlds that were not finite at any count()."""
        overflowed = int((self.engine.overflow > self._overflow).sum())
        self._overflow.copy_(self.engine.overflow)
        return overflowed, int((self._bad | ~_sound(self.engine.field)).sum())

    def read(self, name: str) -> np.ndarray:
        return self.engine.field(name).cpu().numpy().astype(float)

    def counts(self, states: dict[str, Tensor], ctrl: Tensor) -> dict[str, np.ndarray | None]:
        """Contacts and constraint rows of each world in a step from states; None where the engine does not say.

        Engine `mujoco` says those of the state after the step, not before it.
        """
        known: dict[str, Tensor | None] = {}
        for name in ("ncon", "nefc"):
            try:
                known[name] = self.engine.field(name)
            except ValueError:
                known[name] = None
        self.put(states)
        self.step(1, ctrl)
        return {k: None if v is None else v.cpu().numpy().reshape(self.worlds) for k, v in known.items()}

    def profile(self, states: dict[str, Tensor], ctrl: Tensor) -> dict[str, float] | None:
        """Clock cycles of each stage of a step from states, where the engine counts them."""
        measure: Any = getattr(self.engine, "profile", None)
        if measure is None:
            return None
        self.put(states)
        return measure(1, ctrl)


class LibrarySide:
    """MuJoCo Warp: mjw.step, with nconmax contacts and njmax rows of room a world."""

    def __init__(self, case: Case, worlds: int, device: str, nconmax: int, njmax: int):
        self.worlds, self.device, self._kept = worlds, device, []
        with wp.ScopedDevice(device):
            self.m = mjw.put_model(case.model)
            self.d = mjw.make_data(case.model, nworld=worlds, nconmax=nconmax, njmax=njmax)
        self.m.opt.warn_overflow = 0  # counted instead
        self.view = {f: wp.to_torch(getattr(self.d, f)) for f in _LIBRARY_FIELDS}
        self.peak_rows = torch.zeros_like(self.view["nefc"])  # [worlds], the most that count() saw
        self.peak_pool = torch.zeros_like(self.view["nacon"])  # contacts or candidates of all worlds together

    def put(self, states: dict[str, Tensor]) -> None:
        for name in ("qpos", "qvel", "qacc_warmstart"):
            self.view[name].copy_(states[name])

    def step(self, n: int, ctrl: Tensor) -> None:
        self.view["ctrl"].copy_(ctrl)
        with wp.ScopedDevice(self.device):
            for _ in range(n):
                mjw.step(self.m, self.d)

    def capture(self, body: Callable[[], None]) -> Callable[[], Any]:
        if self.device == "cpu":
            return body
        stream = wp.get_stream(self.device)
        with wp.ScopedCapture(device=self.device, stream=stream) as capture:
            body()
        return lambda: wp.capture_launch(capture.graph, stream=stream)

    def count(self) -> None:
        """Note how much room the last step needed."""
        torch.maximum(self.peak_rows, self.view["nefc"], out=self.peak_rows)
        for name in ("nacon", "ncollision"):
            torch.maximum(self.peak_pool, self.view[name], out=self.peak_pool)

    def bad_worlds(self) -> tuple[int, int]:
        full = int(_O.NEFC | _O.NJMAX_NNZ | _O.BROADPHASE | _O.NARROWPHASE | _O.CCD)
        overflowed = int(((self.view["overflow"] & full) != 0).sum())
        self.view["overflow"].zero_()
        return overflowed, int((~_sound(self.view.__getitem__)).sum())

    def read(self, name: str) -> np.ndarray:
        return self.view[name].cpu().numpy().astype(float)

    def counts(self, states: dict[str, Tensor], ctrl: Tensor) -> dict[str, np.ndarray | None]:
        self.put(states)
        self.step(1, ctrl)
        found = int(self.view["nacon"].cpu()[0])
        world = self.d.contact.worldid.numpy()[:found]
        return {"ncon": np.bincount(world, minlength=self.worlds), "nefc": self.view["nefc"].cpu().numpy()}

    def profile(self, states: dict[str, Tensor], ctrl: Tensor) -> None:
        """It has no counters of its own."""


_LIBRARY_FIELDS = ("qpos", "qvel", "qacc", "qacc_warmstart", "ctrl", "overflow", "nefc", "nacon", "ncollision")
Side = EngineSide | LibrarySide


def _sound(field: Callable[[str], Tensor]) -> Tensor:
    """Where the state is finite and of a size that MuJoCo accepts, [worlds]."""
    sound = [(field(f).abs() <= mujoco.mjMAXVAL).all(dim=1) for f in ("qpos", "qvel")]  # a NaN compares as false
    return sound[0] & sound[1]


# --- the room that MuJoCo Warp needs ---------------------------------------------------------------------------------


def needed_room(
    case: Case, sizes: list[int], device: str, states: States, ring: Tensor, steps: int, ns: list[int]
) -> dict[int, tuple[int, int]]:
    """The least room for the timed run, in eights: number of worlds -> (nconmax, njmax).

    All of the timed run's steps are made once, untimed, with more room than needed, in the largest number of worlds;
    smaller numbers are its first worlds. Contacts, and the pairs that may be some, share one room among worlds.
    """
    most = max(sizes)
    nconmax, njmax = (x or 256 for x in estimate(case.model))
    while True:
        side = LibrarySide(case, most, device, nconmax, njmax)
        for n in ns:
            counted(side, tiled(states, most, device), n, ring, steps)
        if not side.bad_worlds()[0]:
            break
        nconmax, njmax = 2 * nconmax, 2 * njmax
    pool = int(side.peak_pool.max()) / most
    return {w: (max(1, _eights(pool)), max(8, _eights(int(side.peak_rows[:w].max())))) for w in sizes}


def more_room(side: LibrarySide, room: tuple[int, int]) -> tuple[int, int] | None:
    """Eight more of what has overflowed since the last bad_worlds(); None where nothing has."""
    bits = int(np.bitwise_or.reduce(side.view["overflow"].cpu().numpy()))
    contacts, rows = bits & int(_O.BROADPHASE | _O.NARROWPHASE | _O.CCD), bits & int(_O.NEFC | _O.NJMAX_NNZ)
    more = (room[0] + 8 * bool(contacts), room[1] + 8 * bool(rows))
    return more if more != room else None


def _eights(x: float) -> int:
    return 8 * int(np.ceil(x / 8))


# --- runs ------------------------------------------------------------------------------------------------------------


def tiled(states: States, worlds: int, device: str) -> dict[str, Tensor]:
    """States over and over, in as many worlds."""
    index = np.arange(worlds) % len(states["qpos"])
    return {k: torch.as_tensor(v[index], device=device) for k, v in states.items()}


def counted(side: Side, states: dict[str, Tensor], n: int, ring: Tensor, steps: int) -> None:
    """The steps of a timed run, with count() after each launch."""
    ctrl = ring[0, : side.worlds].clone()
    side.step(n, ctrl)  # loads every kernel: a capture cannot
    launch = side.capture(lambda: side.step(n, ctrl))
    side.put(states)
    for k in range(steps // n):
        ctrl.copy_(ring[k % GRAPH, : side.worlds])
        launch()
        side.count()


def timed(
    side: Side, states: dict[str, Tensor], n: int, ring: Tensor, steps: int, repeats: int, device: str
) -> list[float]:
    """Milliseconds of each repeat: `steps` physics steps of all worlds, n a launch, always from the same states."""

    def launches() -> None:
        for k in range(GRAPH):
            side.step(n, ring[k, : side.worlds])

    side.step(n, ring[0, : side.worlds])  # loads every kernel: a capture cannot
    replay = side.capture(launches)

    def once() -> float:
        side.put(states)
        clock = _Clock(device)
        for _ in range(steps // (GRAPH * n)):
            replay()
        return clock.ms()

    warm = once()
    while device != "cpu" and warm < WARM_UP:
        warm += once()
    return [once() for _ in range(repeats)]


class _Clock:
    """Milliseconds since it was made: by CUDA events, or by the host's clock where there is no GPU."""

    def __init__(self, device: str):
        self.cuda = device != "cpu"
        if self.cuda:
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self.events[0].record()
        self.began = time.perf_counter()

    def ms(self) -> float:
        if not self.cuda:
            return 1e3 * (time.perf_counter() - self.began)
        self.events[1].record()
        self.events[1].synchronize()
        return self.events[0].elapsed_time(self.events[1])
