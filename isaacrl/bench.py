"""`isaacrl bench`: how fast training runs on this machine, where its time goes, and how many worlds pay.

Environment and algorithm are built and iterated as in training; there is no run folder and nothing is logged.
"""

import gc
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from isaacrl import runs, sim
from isaacrl.errors import UserError
from isaacrl.mishaps import out_of_memory
from isaacrl.progress import quantity
from isaacrl.startup import Phases
from isaacrl.train import iterate, start

GAIN = 0.1  # twice as many worlds are worth it where training gets faster by this share
MEMORY_SHARE = 0.6  # of a GPU's memory, that a doubling may be expected to take
FIRST, FIRST_CPU, MOST = 1024, 16, 2**20  # numbers of worlds that num_envs=auto tries
GIB = 2**30
SECTIONS = {"sim": "sim", "env": "environment", "policy": "policy", "update": "update"}  # the timer's names and ours


class NoRoom(UserError):
    """So many worlds do not fit in memory."""


def bench(options: Any, cfg: DictConfig, sized: Callable[[int], DictConfig]) -> dict[str, Any]:
    """Measure, print and write bench.json; its content.

    cfg: the configuration as given. sized(n): the same with n worlds, which options.num_envs="auto" asks for.
    """
    console = Console()
    device = _device(cfg.device)

    def tried(n: int) -> dict[str, Any]:
        with console.status(f"num_envs={n}"):
            return measure(sized(n), device, options.iterations, options.warmup)

    if options.num_envs == "auto":
        tries, result, reason = choose(tried, FIRST_CPU if device == "cpu" else FIRST)
        result["auto"] = {"chosen": result["num_envs"], "reason": reason, "tries": [_try(t) for t in tries]}
        result["startup_s"] = tries[0]["startup_s"]  # the only one in a fresh process
    else:
        tries = [result := measure(cfg, device, options.iterations, options.warmup)]
    result |= {
        "startup_num_envs": tries[0]["num_envs"],
        "device_name": device_name(device),
        "versions": {"python": platform.python_version()} | runs.versions(),
        "git": runs.git_state(Path(__file__).parent)[0],
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": sys.argv,
    }
    show(console, result)
    folder = runs.report_folder(cfg.outputs, cfg.task.name, "bench")
    try:
        runs.write_json(folder / "bench.json", result)
    except OSError as e:
        raise UserError(f"{folder / 'bench.json'}: cannot be written ({e.strerror or e})") from None
    print(f"written: {folder / 'bench.json'}")
    return result


def choose(measured: Callable[[int], dict[str, Any]], first: int) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """The most worlds that still pay, doubling from the first number: (every measurement, the chosen one, why it)."""
    tries = [measured(first)]
    while (n := tries[-1]["num_envs"]) < MOST:
        memory = tries[-1]["memory"]
        if memory is not None:
            expected = memory["device_before_bytes"] + 2 * (memory["device_bytes"] - memory["device_before_bytes"])
            if expected > MEMORY_SHARE * memory["device_total_bytes"]:
                total = memory["device_total_bytes"] / GIB
                return tries, tries[-1], f"{2 * n} worlds would take about {expected / GIB:.0f} of {total:.0f} GiB"
        try:
            tries.append(measured(2 * n))
        except UserError as e:  # no room in memory, or in a buffer of the engine
            return tries, tries[-1], str(e)
        if (gain := gain_of(*tries[-2:])) < GAIN:
            said = f"only {gain:.0%} faster" if gain >= 0 else f"{-gain:.0%} slower"
            return tries, tries[-2], f"{2 * n} worlds are {said}"
    return tries, tries[-1], "more are not tried"


def gain_of(before: dict[str, Any], after: dict[str, Any]) -> float:
    """By what share training got faster."""
    return after["env_steps_per_s"] / before["env_steps_per_s"] - 1.0


# --- one measurement -------------------------------------------------------------------------------------------------


def measure(cfg: DictConfig, device: str, iterations: int, warmup: int) -> dict[str, Any]:
    """Build, warm up and time one training; what it held is free again afterwards. Raises: NoRoom."""
    try:
        return _measure(cfg, Memory(device), iterations, warmup)
    except (MemoryError, RuntimeError) as e:  # torch's, Warp's and the host's allocators
        if not out_of_memory(e):
            raise
    finally:
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()
    # Outside of the handler: the exception's traceback holds all that was built.
    raise NoRoom(f"num_envs: {cfg.num_envs} worlds do not fit in the memory of {device_name(device)}; take fewer")


def _measure(cfg: DictConfig, memory: "Memory", iterations: int, warmup: int) -> dict[str, Any]:
    phases = Phases()
    env, algo = start(cfg, phases)
    env.timer.enabled = True
    iterate(env, algo)
    phases.done("first iteration", env, algo)
    for _ in range(warmup - 1):
        iterate(env, algo)
    total, spent, times = Counter(), Counter(), []
    for _ in range(iterations):
        metrics, sections, seconds = iterate(env, algo)
        total.update(metrics)
        spent.update(sections)
        times.append(seconds)
    steps = cfg.algo.num_steps * env.num_envs * iterations
    milliseconds = {ours: 1e3 * spent[name] / iterations for name, ours in SECTIONS.items()}
    whole = 1e3 * sum(times) / iterations
    return {
        "task": cfg.task.name,
        "algo": cfg.algo.name,
        "num_envs": env.num_envs,
        "device": env.device,
        "engine": env.engine.name,
        "engine_reason": env.engine.reason,
        "iterations": iterations,
        "warmup": warmup,
        "steps_per_iteration": steps // iterations,
        "env_steps_per_s": steps / sum(times),
        "physics_steps_per_s": steps * env.decimation / sum(times),
        "iteration_ms": {"total": whole} | milliseconds | {"other": max(0.0, whole - sum(milliseconds.values()))},
        "iteration_ms_range": [1e3 * min(times), 1e3 * max(times)],
        "memory": memory.read(),
        "startup_s": phases.seconds,
        "overflow": int(total["overflow"]),
        "nonfinite": int(total["nonfinite"]),
        "spoilt_rewards": int(total["spoilt_rewards"]),
        "skipped_updates": int(total["skipped_updates"]),
        "resets": int(total["resets"]),
    }


class Memory:
    """What is taken of a GPU's memory from here on; None on a CPU."""

    def __init__(self, device: str):
        self.device, self.cuda = device, device != "cpu"
        if self.cuda:
            self.before = self._in_use()[0]
            torch.cuda.reset_peak_memory_stats(device)

    def _in_use(self) -> tuple[int, int]:
        """(taken, total): by everybody, since engines and CUDA graphs have memory that torch does not count."""
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free, total

    def read(self) -> dict[str, int] | None:
        """Torch's peaks, and all of the device's memory that is taken now and was taken before."""
        if not self.cuda:
            return None
        taken, total = self._in_use()
        return {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(self.device),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(self.device),
            "device_bytes": taken,
            "device_before_bytes": self.before,
            "device_total_bytes": total,
        }


def _device(name: str) -> str:
    return sim.checked_device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def device_name(device: str) -> str:
    """The GPU's or the CPU's name."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# --- the report ------------------------------------------------------------------------------------------------------


def _try(t: dict[str, Any]) -> dict[str, Any]:
    """What the table of tries shows of one."""
    share = None if t["memory"] is None else t["memory"]["device_bytes"] / t["memory"]["device_total_bytes"]
    return {
        "num_envs": t["num_envs"],
        "env_steps_per_s": t["env_steps_per_s"],
        "iteration_ms": t["iteration_ms"]["total"],
        "memory_share": share,
    }


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the tables."""
    r = result
    if "auto" in r:
        _show_tries(console, r["auto"])
    title = f"{r['task']} · {r['algo']}: {r['num_envs']} worlds, {r['iterations']} iterations"
    table = Table(title=title, show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("", overflow="fold")
    table.add_row("environment steps/s", quantity(r["env_steps_per_s"]), f"{r['steps_per_iteration']} an iteration")
    table.add_row("physics steps/s", quantity(r["physics_steps_per_s"]), "", end_section=True)
    whole, (low, high) = r["iteration_ms"]["total"], r["iteration_ms_range"]
    table.add_row("an iteration", f"{whole:.4g} ms", f"{low:.4g} to {high:.4g} ms")
    for name, ms in r["iteration_ms"].items():
        if name != "total":
            table.add_row(f"  {name}", f"{ms:.4g} ms", f"{ms / whole:.0%}")
    table.add_section()
    table.add_row("start-up", f"{sum(r['startup_s'].values()):.2f} s", f"with {r['startup_num_envs']} worlds")
    for name, seconds in r["startup_s"].items():
        table.add_row(f"  {name}", f"{seconds:.2f} s", "")
    table.add_section()
    if (memory := r["memory"]) is not None:
        for name, key in (("peak allocated", "peak_allocated_bytes"), ("peak reserved", "peak_reserved_bytes")):
            table.add_row(f"memory, {name}", f"{memory[key] / GIB:.2f} GiB", "by torch")
        table.add_row(
            "memory, in use",
            f"{memory['device_bytes'] / GIB:.2f} GiB",
            f"of {memory['device_total_bytes'] / GIB:.0f} GiB, all programs together",
        )
        table.add_section()
    for name in ("overflow", "nonfinite", "spoilt_rewards", "skipped_updates", "resets"):
        table.add_row(name.replace("_", " "), f"{r[name]}", "")
    console.print(table)
    console.print(f"{r['device']}: {r['device_name']}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"engine {r['engine']}: {r['engine_reason']}", markup=False, highlight=False, soft_wrap=True)


def _show_tries(console: Console, auto: dict[str, Any]) -> None:
    table = Table(title="num_envs=auto")
    for column in ("num_envs", "steps/s", "gain", "an iteration", "memory", ""):
        table.add_column(column, justify="right")
    before = None
    for t in auto["tries"]:
        table.add_row(
            str(t["num_envs"]),
            quantity(t["env_steps_per_s"]),
            "" if before is None else f"{gain_of(before, t):+.0%}",
            f"{t['iteration_ms']:.4g} ms",
            "" if t["memory_share"] is None else f"{t['memory_share']:.0%}",
            "chosen" if t["num_envs"] == auto["chosen"] else "",
        )
        before = t
    console.print(table)
    console.print(f"num_envs={auto['chosen']}: {auto['reason']}", markup=False, highlight=False, soft_wrap=True)
