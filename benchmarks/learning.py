"""Does it learn, how fast, on every seed? Runs the command line as a user does.

    python benchmarks/learning.py [--tasks cartpole cartpole_swingup] [--seeds 5]

For each task and seed: `isaacrl train`, then `isaacrl eval` of the best checkpoint (512 episodes). Writes the training
seconds, the wall-clock of the whole command, and the learning curves to results/learning_cpu.json.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write


def run(task: str, seed: int, outputs: str) -> dict:
    cli = [sys.executable, "-m", "isaacrl"]
    began = time.perf_counter()
    subprocess.run(
        [*cli, "train", f"task={task}", f"seed={seed}", f"outputs={outputs}", "device=cpu"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    process_s = time.perf_counter() - began
    folder = max(Path(outputs, task).iterdir(), key=lambda p: p.stat().st_mtime)
    said = subprocess.run(
        [*cli, "eval", f"run={folder}", "episodes=512"], check=True, capture_output=True, text=True
    ).stdout
    verdict = re.search(r"^solved: (\w+)", said, re.M)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary, result = (json.loads((folder / f).read_text()) for f in ("summary.json", "eval.json"))
    curve = [[round(r["wall_s"], 2), round(r["return"], 4)] for r in rows if r.get("return") is not None]
    return {
        "seed": seed,
        "solved": verdict is not None and verdict[1] == "yes",
        "criteria": result["solved"]["criteria"],
        "training_s": summary["wall_s"],
        "process_s": round(process_s, 2),
        "env_steps": summary["env_steps"],
        "steps_per_s": summary["steps_per_s"],
        "curve": curve[:: max(1, len(curve) // 25)],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", nargs="+", default=["cartpole", "cartpole_swingup"])
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as outputs:
        for task in args.tasks:
            runs = [run(task, seed, outputs) for seed in range(args.seeds)]
            results[task] = {
                "all_solved": all(r["solved"] for r in runs),
                "max_training_s": max(r["training_s"] for r in runs),
                "runs": runs,
            }
    write("learning_cpu", results)
