"""Physics steps per second of engine `warp` beside MuJoCo Warp on one GPU, both checked against C MuJoCo.

    python benchmarks/physics.py [--models go2 ant] [--worlds 4096 32768] [--engines warp mujoco_warp] [--profile]

Both sides start from the same states (half from random poses, all then moved by C MuJoCo under random controls) and get
the same controls, which change at every launch; a CUDA graph holds eight launches. A launch of `warp` makes 1 or 4
physics steps; for MuJoCo Warp 4 means that four steps share their controls. `warp` goes through isaacrl's engine
interface with the capacity it chooses itself and computes every output that training go2_flat reads; `mujoco_warp` is
mjw.step alone, with the least room for contacts and rows that does not overflow. Rates are of the median repeat.
--engines takes any engine of isaacrl too. Where there is no GPU everything runs on Warp's CPU device, as a test.

Every pair of model and side is a process of its own: one that fails takes no other along. They get ready at the same
time (states, compilation), and are then timed one after another.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import physics_models as models
from common import RESULTS, machine

LIBRARY = "mujoco_warp"
HEADLINE, DECIMATION = 1, 4  # physics steps a launch


def options() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", default=models.MODELS, choices=models.MODELS)
    p.add_argument("--worlds", nargs="+", type=int, default=[4096, 32768])
    p.add_argument("--engines", nargs="+", default=["warp", LIBRARY])
    p.add_argument("--states", type=int, default=2048, help="distinct start states")
    p.add_argument("--steps", type=int, default=64, help="physics steps a repeat, in 32s")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--out", default=str(RESULTS / "physics.json"))
    p.add_argument(
        "--jobs", type=int, default=max(1, 3 * (os.cpu_count() or 1) // 4), help="processes that get ready at once"
    )
    p.add_argument("--no-startup", action="store_true", help="leave out compilation and start-up times")
    p.add_argument("--profile", action="store_true", help="clock cycles of the stages, where an engine counts them")
    p.add_argument("--worker", choices=("run", "startup"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.steps % 32:
        p.error("--steps must be a multiple of 32")
    return args


# --- one process: one model, one side --------------------------------------------------------------------------------


def startup(args: argparse.Namespace) -> dict[str, float]:
    """Seconds from a compiled MuJoCo model to the end of the first physics step; imports are over by then."""
    import physics_sides as sides
    import torch

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    case = models.load(args.models[0])
    ctrl = torch.zeros(min(args.worlds), case.model.nu, device=device)
    began = time.perf_counter()
    side = sides.EngineSide(args.engines[0], case, min(args.worlds), device)
    side.step(HEADLINE, ctrl)
    side.read("qpos")  # waits
    return {"s": round(time.perf_counter() - began, 2)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything on one stream, which Warp and torch share."""
    import physics_sides  # noqa: F401  (starts Warp silently)
    import torch
    import warp as wp

    if not torch.cuda.is_available():
        with wp.ScopedDevice("cpu"), torch.no_grad():
            return _run(args, "cpu")
    stream = torch.cuda.Stream("cuda:0")
    wp.init()
    with torch.cuda.stream(stream), wp.ScopedStream(wp.stream_from_torch(stream)), torch.no_grad():
        return _run(args, "cuda:0")


def _run(args: argparse.Namespace, device: str) -> dict[str, Any]:
    import physics_sides as sides
    import torch

    began, seconds = time.perf_counter(), {}

    def mark(phase: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[phase], began = round(now - began, 1), now

    case, engine, sizes = models.load(args.models[0]), args.engines[0], sorted(args.worlds)
    states = models.start_states(case, min(args.states, sizes[0]))
    distinct = len(states["qpos"])
    host_ring = models.controls(case, sides.GRAPH, sizes[-1])
    answer = models.reference(case, states, host_ring[0, :distinct])
    ring = torch.as_tensor(host_ring, device=device)
    mark("states")

    room: dict[int, tuple[int, int]] = {}  # number of worlds -> (nconmax, njmax)
    if engine == LIBRARY:
        room = sides.needed_room(case, sizes, device, states, ring, args.steps, [HEADLINE, DECIMATION])
        mark("room")

    def make(worlds: int, room: tuple[int, int] | None) -> sides.Side:
        if room is not None:
            return sides.LibrarySide(case, worlds, device, *room)
        return sides.EngineSide(engine, case, worlds, device)

    for each in set(room.values()) or {None}:  # compiles: MuJoCo Warp does so anew for another number of rows
        make(sizes[0], each).step(HEADLINE, ring[0, : sizes[0]])
    if device != "cpu":
        torch.cuda.synchronize()
    mark("compile")
    print("ready", flush=True)
    if not sys.stdin.readline():  # until the GPU is ours alone
        sys.exit("left alone")
    mark("wait")

    def end_counts(end: models.States) -> dict[str, float]:
        """Contacts and rows of the mean world, by C MuJoCo, in the states to which a timed run has led."""
        counts = models.reference(case, {k: v[:distinct] for k, v in end.items()}, host_ring[0, :distinct])
        return {k: round(float(counts[k].mean()), 2) for k in ("ncon", "nefc")}

    def figures(worlds: int) -> dict[str, Any]:
        """All figures for that number of worlds."""
        out: dict[str, Any] = {}
        start = sides.tiled(states, worlds, device)
        side = make(worlds, room.get(worlds))
        if worlds == sizes[0]:
            side.put(start)
            side.step(HEADLINE, ring[0, :worlds])
            out["qacc_error"] = models.error(side.read("qacc")[:distinct], answer)
        out["steps_per_s"], overflow, nonfinite, end = {}, 0, 0, {}
        for n in (HEADLINE, DECIMATION):
            ms = sides.timed(side, start, n, ring, args.steps, args.repeats, device)
            rates = [worlds * args.steps / t * 1e3 for t in (statistics.median(ms), max(ms), min(ms))]
            out["steps_per_s"][n] = dict(zip(("median", "least", "most"), map(round, rates)))
            if n == HEADLINE:
                end = {k: side.read(k) for k in states}
            if isinstance(side, sides.EngineSide):
                # The flag of worlds that are not finite lasts for one launch: the same run again, looking at each.
                sides.counted(side, start, n, ring, args.steps)
            elif more := sides.more_room(side, room[worlds]):
                room[worlds] = more
                return figures(worlds)
            bad = side.bad_worlds()
            overflow, nonfinite = overflow + bad[0], nonfinite + bad[1]
        out |= {"overflow_worlds": overflow, "nonfinite_worlds": nonfinite, "at_end": end_counts(end)}
        if worlds == sizes[0]:
            found = side.counts(start, ring[0, :worlds])
            out["equal_counts"] = {
                k: None if v is None else round(float((v[:distinct] == answer[k]).mean()), 4) for k, v in found.items()
            }
        if args.profile:
            out["profile"] = side.profile(start, ring[0, :worlds])
        if worlds in room:
            out["nconmax"], out["njmax"] = room[worlds]
        return out

    out = {worlds: figures(worlds) for worlds in sizes}
    mark("timed")
    check = {k: out[sizes[0]].pop(k) for k in ("qacc_error", "equal_counts")}
    about = models.describe(case, states, answer)
    return {"model": about, "fields": case.fields, "seconds": seconds, "check": check, "worlds": out}


# --- all of them -----------------------------------------------------------------------------------------------------


class Worker:
    """A process for one model and one side; what it says on stderr is shown if it fails."""

    def __init__(self, args: argparse.Namespace, model: str, engine: str, kind: str, folder: Path, env: dict[str, str]):
        self.result, self.log = folder / f"{kind}.json", folder / f"{kind}.log"
        keys = ("states", "steps", "repeats")
        command = [sys.executable, __file__, "--worker", kind, "--models", model, "--engines", engine]
        command += ["--worlds", *map(str, args.worlds), "--out", str(self.result)]
        command += [x for k in keys for x in (f"--{k}", str(getattr(args, k)))] + ["--profile"] * args.profile
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **env}
            )

    def ready(self) -> None:
        """Wait until it is ready to be timed, or has failed."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == "ready":
                return

    def finish(self) -> dict[str, Any]:
        """Let it run to its end."""
        self.process.communicate("go\n" if self.process.poll() is None else None)
        if self.process.returncode == 0 and self.result.exists():
            return json.loads(self.result.read_text())
        said = self.log.read_text().strip().splitlines()
        print(*said[-20:], sep="\n", file=sys.stderr, flush=True)
        return {"error": f"exit code {self.process.returncode}: {said[-1] if said else ''}"}


def get_ready(args: argparse.Namespace, model: str, engine: str, folder: Path) -> tuple[dict[str, Any], Worker]:
    """Start-up times of an engine of ours, without and with compiled kernels; then the worker, ready to be timed."""
    folder.mkdir()
    times: dict[str, Any] = {}
    if engine != LIBRARY and not args.no_startup:
        fresh = {"WARP_CACHE_PATH": str(folder / "warp"), "CUDA_CACHE_PATH": str(folder / "cuda")}
        for which in ("cold", "warm"):
            answer = Worker(args, model, engine, "startup", folder, fresh).finish()
            times[which] = answer.get("s", answer.get("error"))
    worker = Worker(args, model, engine, "run", folder, {})
    worker.ready()
    print(f"ready: {model} {engine} {times or ''}", file=sys.stderr, flush=True)
    return times, worker


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every model and side; the results so far are in the file after each."""
    began = time.perf_counter()
    result: dict[str, Any] = {
        "machine": machine() | {"driver": _driver()},
        "settings": {k: getattr(args, k) for k in ("states", "steps", "repeats", "jobs")},
        "models": {m: {} for m in args.models},
        "seconds": {},
    }
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        pairs = [(m, e) for m in args.models for e in args.engines]
        started = [pool.submit(get_ready, args, m, e, Path(folder) / f"{m}-{e}") for m, e in pairs]
        waiting = [s.result() for s in started]
        result["seconds"]["getting_ready"] = round(time.perf_counter() - began, 1)
        for (model, engine), (times, worker) in zip(pairs, waiting):
            entry = worker.finish()
            if "model" in entry:
                result["models"][model]["model"] = entry.pop("model")
            result["models"][model][engine] = ({"startup_s": times} if times else {}) | entry
            result["seconds"]["all"] = round(time.perf_counter() - began, 1)
            print(f"done: {model} {engine} {entry.get('seconds', entry.get('error'))}", file=sys.stderr, flush=True)
            Path(args.out).write_text(json.dumps(result, indent=2) + "\n")
    return result


def _driver() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0] or None
    except OSError:
        return None


def table(result: dict[str, Any]) -> str:
    """Markdown of a result file: rates, agreement with C MuJoCo, start-up."""
    lines = [", ".join(f"{k} {v}" for k, v in result["machine"].items() if v), ""]
    lines += [
        "| model | worlds | side | M steps/s, 1 a launch | 4 a launch | room (contacts, rows) | overflow, non-finite |",
        "|---|---|---|---|---|---|---|",
    ]
    agreement = [
        "| model | side | qacc error: median | p95 | p99 | max | equal contacts | equal rows | start cold, warm [s] |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, sides in result["models"].items():
        for side, entry in sides.items():
            if side == "model":
                continue
            if "error" in entry:
                lines.append(f"| {model} | | {side} | failed: {entry['error']} | | | |")
                continue
            for worlds, f in entry["worlds"].items():
                rates = [f"{v['median'] / 1e6:.4g}" for v in f["steps_per_s"].values()]
                room = f"{f['nconmax']}, {f['njmax']}" if "njmax" in f else ""
                bad = f"{f['overflow_worlds']}, {f['nonfinite_worlds']}"
                lines.append(f"| {model} | {worlds} | {side} | {' | '.join(rates)} | {room} | {bad} |")
            equal = [f"{100 * x:.2f}%" if x is not None else "" for x in entry["check"]["equal_counts"].values()]
            start = ", ".join(str(x) for x in entry.get("startup_s", {}).values())
            errors = " | ".join(f"{x:.1e}" for x in entry["check"]["qacc_error"].values())
            agreement.append(f"| {model} | {side} | {errors} | {' | '.join(equal)} | {start} |")
    return "\n".join([*lines, "", *agreement])


if __name__ == "__main__":
    arguments = options()
    if arguments.worker:
        answer = startup(arguments) if arguments.worker == "startup" else run(arguments)
        Path(arguments.out).write_text(json.dumps(answer))
    else:
        measure(arguments)
        print(table(json.loads(Path(arguments.out).read_text())))
