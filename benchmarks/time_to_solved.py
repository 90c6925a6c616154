"""How long until a task is solved, by its own criterion, on every seed?

    python benchmarks/time_to_solved.py [--tasks cartpole ant humanoid go2_flat g1_flat] [--seeds 0 1 2 3 4]
                                        [--budget SECONDS] [--set KEY=VALUE ...] [--in-process] [--keep FOLDER]

Each seed trains in a process of its own for the task's budget of seconds, and keeps a copy of the policy after every
iteration, on the device. Copies and metrics are part of the time, evaluation is not: it comes afterwards, as `isaacrl
eval` does it (512 fixed-seed episodes without exploration, the same ones for every copy). A task counts as solved from
the first copy on that fulfils the criterion and is followed by two others, 2% and 4% of the training later, that do
as well. It is searched for: every 16th of the training in time order, then by halves of the interval that is left.

Times are wall-clock: from the start of the process, with imports and compilation, and from the first step of the
environment, with what the first iteration captures. results/time_to_solved.json gets them task by task, with what was
evaluated and the curves of training; plot_time_to_solved.py draws them.

--in-process trains all seeds in this process one after the other, which saves start-ups: the time from the start of the
process is then the first seed's alone. --keep writes the last policy of each seed, with its configuration and where
its curricula stand, as a file for motors.py.
"""

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, machine, merge

BUDGETS = {"cartpole": 20.0, "ant": 120.0, "humanoid": 120.0, "go2_flat": 120.0, "g1_flat": 180.0}  # seconds
BUDGET = 120.0  # of other tasks, rough ones for example
POINTS = 60  # of a curve that is kept
COARSE = 16  # parts of a training that are looked at first
EVAL_SEED = 1000  # that of isaacrl eval


# --- one seed --------------------------------------------------------------------------------------------------------


def run_seed(task: str, seed: int, args: argparse.Namespace, *, fresh: bool) -> dict[str, Any]:
    """Train, then look for the moment from which the task is solved. fresh: this process is for this seed alone."""
    from isaacrl.config import compose
    from isaacrl.startup import process_began

    began = process_began() if fresh else time.perf_counter()
    cfg = compose([f"task={task}", f"seed={seed}", f"device={args.device}", *args.set])
    if not cfg.task.solved:
        sys.exit(f"error: task={task} does not say when it is solved")
    result, rows, snapshots = train(cfg, began, budget_of(task, args), args.iterations, args.every)
    if args.keep:
        keep(args.keep, cfg, snapshots[-1])
    free()
    looked = time.perf_counter()
    judge = Judge(cfg, snapshots, args.episodes)
    at = first_lasting(lambda i: judge(i)["solved"], len(snapshots))
    seen = {i: rows[(i + 1) * args.every - 1] for i in sorted(judge.seen)}
    result |= {"seed": seed, "solved": at is not None, "fresh_process": fresh}
    if at is not None:
        row = seen[at]
        result |= {
            "solved_iteration": row["iteration"],
            "solved_env_steps": row["env_steps"],
            "solved_s_from_first_step": round(row["seconds"], 3),
            "solved_s_from_process_start": round(result["startup_s"] + row["seconds"], 3) if fresh else None,
        }
    result |= {
        "evaluations": [{k: row[k] for k in ("iteration", "seconds")} | judge(i) for i, row in seen.items()],
        "evaluation_s": round(time.perf_counter() - looked, 2),
        "curve": curve(rows),
    }
    return result


def train(
    cfg: Any, began: float, budget: float, iterations: int | None, every: int
) -> tuple[dict[str, Any], list[dict[str, float]], list[dict[str, Any]]]:
    """Train for a while: (figures of the whole, a row of metrics an iteration, the policy after every nth)."""
    from isaacrl import algos
    from isaacrl.env import Env

    env = Env(cfg)
    algo = algos.build(env, cfg)
    env.stagger()
    rows, snapshots, overflow, nonfinite = [], [], 0.0, 0.0
    steps = cfg.algo.num_steps * env.num_envs
    algo.prepare(env.timer)
    first, seconds = time.perf_counter(), 0.0
    while seconds < budget and (iterations is None or len(rows) < iterations):
        algo.iterate(env.timer)
        if (len(rows) + 1) % every == 0:
            policy = {k: v.clone() for k, v in algo.deployed.state_dict().items()}
            snapshots.append({"policy": policy, "curricula": curricula(env)})
        metrics = env.read_metrics()  # waits for the device
        seconds = time.perf_counter() - first
        overflow, nonfinite = overflow + metrics["overflow"], nonfinite + metrics["nonfinite"]
        kept = {k: v for k, v in metrics.items() if k in ("return", "episode_length") or k.startswith("metric/")}
        rows.append({"iteration": len(rows) + 1, "seconds": seconds, "env_steps": (len(rows) + 1) * steps} | kept)
    result = {
        "num_envs": env.num_envs,
        "device": env.device,
        "engine": env.engine.name,
        "max_episode_steps": env.max_episode_steps,
        "startup_s": round(first - began, 3),
        "training_s": round(seconds, 3),
        "iterations": len(rows),
        "env_steps": len(rows) * steps,
        "steps_per_s": round(len(rows) * steps / seconds),
        "overflow": int(overflow),
        "nonfinite": int(nonfinite),
    }
    return result, rows, snapshots


def curricula(env: Any) -> dict[str, Any]:
    """Where an environment's curricula stand, as `hold` takes them."""
    held = ("curriculum/", "terrain_level")
    return {k: v.clone() for k, v in env.tensors().items() if k.startswith(held)} if env.curricula else {}


def keep(folder: Path, cfg: Any, snapshot: dict[str, Any]) -> None:
    """Write a policy as FOLDER/TASK_ALGORITHM_SEED.pt."""
    import torch
    from omegaconf import OmegaConf

    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: {k: v.cpu() for k, v in part.items()} for name, part in snapshot.items()}
    path = folder / f"{cfg.task.name}_{cfg.algo.name}_{cfg.seed}.pt"
    torch.save({"config": OmegaConf.to_yaml(cfg, resolve=True), **parts}, path)


class Judge:
    """Evaluates policies as `isaacrl eval` does, all in the same episodes, with the curricula of their time; remembers
    what it has seen. snapshots: each has a policy and curricula.
    """

    def __init__(self, cfg: Any, snapshots: list[dict[str, Any]], episodes: int):
        from omegaconf import OmegaConf

        from isaacrl import algos
        from isaacrl.env import Env
        from isaacrl.options import EvalOptions

        worlds = math.ceil(episodes / math.ceil(episodes / EvalOptions().num_envs))
        cfg = OmegaConf.merge(cfg, {"num_envs": worlds, "seed": EVAL_SEED})
        self.cfg, self.snapshots, self.episodes = cfg, snapshots, episodes
        self.env = Env(cfg)
        self.algo = algos.build(self.env, cfg)
        self.start, self.curricula = self.env.state_dict(), self.env.curricula
        self.seen: dict[int, dict[str, Any]] = {}

    def __call__(self, i: int) -> dict[str, Any]:
        """Whether the policy of snapshot i solves the task, and by what figures."""
        from isaacrl.evaluate import run_episodes, statistics, verdict
        from isaacrl.terms.curriculum import hold

        if i not in self.seen:
            self.env.curricula = self.curricula
            self.env.load_state_dict(self.start)
            hold(self.env, self.snapshots[i]["curricula"])
            self.algo.deployed.load_state_dict(self.snapshots[i]["policy"])
            episodes = run_episodes(self.env, self.algo.controller(self.env), self.episodes)
            found = verdict(self.cfg.task.solved, {k: statistics(v) for k, v in episodes.items()}, "solved")
            assert found is not None
            self.seen[i] = {"solved": found["solved"], "criteria": found["criteria"]}
        return self.seen[i]


def first_lasting(holds: Callable[[int], bool], n: int) -> int | None:
    """The first of n snapshots that holds together with two later ones, 2% and 4% of all after it; None without one.

    What holds between two of the first look's points but at neither of them is not found.
    """
    gap = max(1, n // 50)
    last = n - 1 - 2 * gap
    if last < 0:
        return None

    def lasting(i: int) -> bool:
        return all(holds(i + k * gap) for k in range(3))

    points = sorted({*range(0, last, max(1, n // COARSE)), last})
    found = next((k for k, i in enumerate(points) if lasting(i)), None)
    if found is None:
        return None
    low, high = (points[found - 1] if found else -1), points[found]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if lasting(middle) else (middle, high)
    return high


def curve(rows: list[dict[str, float]]) -> dict[str, list]:
    """Every nth iteration: seconds, steps and the metrics; null where no episode ended."""
    names = list(dict.fromkeys(k for r in rows for k in r))
    kept = rows[:: max(1, len(rows) // POINTS)]
    return {n: [None if r.get(n) is None else float(f"{r[n]:.5g}") for r in kept] for n in names}


def free() -> None:
    """Give memory back that the objects before had."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- all seeds -------------------------------------------------------------------------------------------------------


def budget_of(task: str, args: argparse.Namespace) -> float:
    return args.budget if args.budget is not None else BUDGETS.get(task, BUDGET)


def in_a_process(task: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """`run_seed` in a process of its own, and what machine() says there."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "seed.json")
        command = [sys.executable, __file__, "--child", str(out), "--tasks", task, "--seeds", str(seed)]
        command += ["--budget", str(budget_of(task, args)), "--every", str(args.every), "--device", args.device]
        command += ["--episodes", str(args.episodes)]
        command += ["--iterations", str(args.iterations)] if args.iterations else []
        command += ["--keep", str(args.keep)] if args.keep else []
        command += ["--set", *args.set] if args.set else []
        code = subprocess.run(command).returncode
        if code:
            sys.exit(f"{task}, seed {seed}: ended with exit code {code}; what was measured before is kept")
        return json.loads(out.read_text())


def summary(task: str, runs: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """The figures of all seeds of a task; a seed that has not solved it counts as one that takes forever: null."""
    from isaacrl.files import finite

    out: dict[str, Any] = {
        "overrides": args.set,
        "budget_s": budget_of(task, args),
        "iterations_limit": args.iterations,
        "episodes": args.episodes,
        "in_process": args.in_process,
        "solved": f"{sum(r['solved'] for r in runs)} of {len(runs)} seeds",
    }
    for key in ("solved_s_from_first_step", "solved_s_from_process_start", "solved_env_steps"):
        values = [r[key] if r["solved"] else math.inf for r in runs]
        values = [v for v in values if v is not None]  # one process for all seeds has one start only
        out[f"{key}_median"] = finite(statistics.median(values)) if values else None
        out[f"{key}_max"] = finite(max(values)) if values else None
    out["steps_per_s_median"] = statistics.median(r["steps_per_s"] for r in runs)
    return out


def line(task: str, r: dict[str, Any]) -> str:
    """What the terminal shows of a seed."""
    looked = f"{len(r['evaluations'])} evaluations in {r['evaluation_s']:.0f} s"
    speed = f"{r['steps_per_s']:,} steps/s, start-up {r['startup_s']:.1f} s; {looked}"
    if not r["solved"]:
        return f"{task}, seed {r['seed']}: not solved in {r['training_s']:.1f} s, {r['env_steps']:,} steps ({speed})"
    total = r["solved_s_from_process_start"]
    since = "" if total is None else f", {total:.2f} s from the start of the process"
    return (
        f"{task}, seed {r['seed']}: solved {r['solved_s_from_first_step']:.2f} s from the first step{since}, "
        f"after {r['solved_env_steps']:,} steps ({speed})"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(BUDGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--budget", type=float, help=f"seconds of training; default: by task, {BUDGETS}")
    parser.add_argument("--iterations", type=int, help="end of a training that comes before its budget")
    parser.add_argument("--every", type=int, default=1, help="iterations between copies of the policy")
    parser.add_argument("--episodes", type=int, default=512, help="episodes of an evaluation")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of every training")
    parser.add_argument("--in-process", action="store_true", help="all seeds in this process")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the last policy of each seed goes")
    parser.add_argument("--out", type=Path, default=RESULTS / "time_to_solved.json")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in ("every", "episodes", "iterations", "budget"):
        if (value := getattr(args, name)) is not None and value <= 0:
            parser.error(f"--{name} must be above 0")
    return args


def main() -> None:
    args = arguments()
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line does, before torch is imported
    from isaacrl.errors import UserError

    try:
        if args.child:
            result = run_seed(args.tasks[0], args.seeds[0], args, fresh=True)
            args.child.write_text(json.dumps({"machine": machine(), "run": result}))
            return
        began = False
        algo = next((x.partition("=")[2] for x in args.set if x.startswith("algo=")), "ppo")
        for task in args.tasks:
            runs, entry = [], task if algo == "ppo" else f"{task}, {algo}"
            for seed in args.seeds:
                if args.in_process:
                    found = {"run": run_seed(task, seed, args, fresh=not began), "machine": machine()}
                    began = True
                else:
                    found = in_a_process(task, seed, args)
                runs.append(found["run"])
                print(line(task, found["run"]), flush=True)
                merge(args.out, entry, {"machine": found["machine"], **summary(task, runs, args), "runs": runs})
    except UserError as e:
        sys.exit(f"error: {e}")
    try:
        from plot_time_to_solved import plot
    except ImportError as e:
        print(f"no picture: {e} (pip install 'isaacrl[bench]')")
    else:
        print(plot(args.out))
    print(args.out)


if __name__ == "__main__":
    main()
