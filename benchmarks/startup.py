"""How soon the command line answers: whole processes, 10 each; and how long `isaacrl check` takes, once for each task.

python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write

CASES = {
    "help": ["--help"],
    "typo in a key": ["train", "sede=3"],
    "typo in a task": ["train", "task=cartpol"],
    "wrong type": ["train", "seed=abc"],
    "out of range": ["train", "algo.gamma=1.3"],
    "unknown term parameter": ["train", "task.rewards.upright.sigma=1"],
}


def seconds(args: list[str]) -> dict[str, float]:
    times, code = [], None
    for _ in range(11):
        began = time.perf_counter()
        code = subprocess.run([sys.executable, "-m", "isaacrl", *args], capture_output=True).returncode
        times.append(time.perf_counter() - began)
    times = times[1:]  # the first one warms the file cache
    return {"exit_code": code, "median_s": round(statistics.median(times), 3), "max_s": round(max(times), 3)}


def check(task: str) -> dict[str, float]:
    """Seconds of one whole `isaacrl check`."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as outputs:
        args = [sys.executable, "-m", "isaacrl", "check", f"task={task}", "device=cpu", f"outputs={outputs}"]
        code = subprocess.run(args, capture_output=True).returncode
    return {"exit_code": code, "s": round(time.perf_counter() - began, 1)}


if __name__ == "__main__":
    tasks = sorted(p.stem for p in (Path(__file__).parent.parent / "conf" / "task").glob("*.yaml"))
    write(
        "startup",
        {name: seconds(args) for name, args in CASES.items()} | {f"check {task}": check(task) for task in tasks},
    )
