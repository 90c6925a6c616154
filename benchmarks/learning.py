"""Does it learn, how fast, on every seed? Runs the command line as a user does.

    python benchmarks/learning.py [--tasks cartpole cartpole_swingup] [--seeds 0 1 2 3 4] [--device cpu]
                                  [--set KEY=VALUE ...]

For each task and seed: `isaacrl train`, then `isaacrl eval` of the best checkpoint (512 episodes). Writes the verdict,
the training seconds, the wall-clock of the whole command and the learning curves to
results/learning_<task>_<device>.json, with `--set algo=sac` to learning_<task>_sac_<device>.json.
`python benchmarks/plot_learning.py` draws them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write

POINTS = 60  # of a curve that is kept


def run(task: str, seed: int, device: str, overrides: list[str], outputs: str) -> dict:
    cli = [sys.executable, "-m", "isaacrl"]
    began = time.perf_counter()
    subprocess.run(
        [*cli, "train", f"task={task}", f"seed={seed}", f"outputs={outputs}", f"device={device}", *overrides],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    process_s = time.perf_counter() - began
    folder = max(Path(outputs, task).iterdir(), key=lambda p: p.stat().st_mtime)
    subprocess.run([*cli, "eval", f"run={folder}", "episodes=512"], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary, result = (json.loads((folder / f).read_text()) for f in ("summary.json", "eval.json"))
    return {
        "seed": seed,
        "solved": result["solved"]["solved"],
        "criteria": result["solved"]["criteria"],
        "milestone": result["milestone"] and result["milestone"]["milestone"],
        "training_s": summary["wall_s"],
        "process_s": round(process_s, 2),
        "env_steps": summary["env_steps"],
        "steps_per_s": summary["steps_per_s"],
        "curve": curve(rows),
    }


def curve(rows: list[dict]) -> dict[str, list]:
    """Every nth iteration: seconds, environment steps, return, and the task's own metrics; null before any episode."""
    names = ["wall_s", "env_steps", "return", *sorted({k for r in rows for k in r if k.startswith("metric/")})]
    kept = rows[:: max(1, len(rows) // POINTS)]
    return {n: [None if r.get(n) is None else float(f"{r[n]:.5g}") for r in kept] for n in names}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", nargs="+", default=["cartpole", "cartpole_swingup"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of every training")
    args = parser.parse_args()
    algo = next((x.partition("=")[2] for x in args.set if x.startswith("algo=")), "ppo")
    suffix = "" if algo == "ppo" else f"_{algo}"
    for task in args.tasks:
        with tempfile.TemporaryDirectory() as outputs:
            runs = []
            for seed in args.seeds:
                runs.append(run(task, seed, args.device, args.set, outputs))
                result = {
                    "command": f"isaacrl train task={task} device={args.device} {' '.join(args.set)}".strip(),
                    "solved": f"{sum(r['solved'] for r in runs)} of {len(runs)} seeds",
                    "max_training_s": max(r["training_s"] for r in runs),
                    "runs": runs,
                }
                write(f"learning_{task}{suffix}_{args.device}", result)
