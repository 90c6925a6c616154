"""How soon the command line answers: whole processes, 10 each.

python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time

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


if __name__ == "__main__":
    write("startup", {name: seconds(args) for name, args in CASES.items()})
