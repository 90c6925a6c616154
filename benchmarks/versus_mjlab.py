"""Training beside mjlab 1.6 on one NVIDIA GPU: the same robots, task, networks and settings of PPO, in one run.

    pip install --target SITE --no-deps mjlab==1.6.0 mujoco==3.11.0 mujoco-warp==3.11.0 rsl-rl-lib==5.4.2 tensordict \
        tyro prettytable wcwidth docstring_parser typeguard pyvers orjson cloudpickle scipy glfw
    python benchmarks/versus_mjlab.py --peer SITE [--robots go1 g1] [--num-envs 4096] [--iterations 300] [--seconds 240]

mjlab wants an older MuJoCo than isaacrl, so it is a process of its own (versus_mjlab_peer.py) whose PYTHONPATH is SITE;
torch, numpy, tensorboard and Warp may be this Python's own. What mjlab imports for viewers, videos and logs alone may
be missing.

1. mjlab builds and compiles the robot of its flat velocity task and saves it as XML with its settings. isaacrl loads
   that file (`asset.path=`) into conf/task/mjlab_ROBOT.yaml, the same task in isaacrl's words. The compiled models are
   compared number by number, and so are rewards' weights, action scales, default pose, time step, settings of PPO and
   sizes of observations. What engine `warp` does not cover is changed in both models alike (PATCHES).
2. isaacrl, then mjlab, trains on the GPU alone, each for so many iterations or seconds. Rates are of all iterations
   after the first few. mjlab's times are those its runner reports, and physics within them by CUDA events; isaacrl's
   are its own metrics. Neither side writes logs or checkpoints.
3. Time to the same reward: mean over all worlds and steps of an iteration, over the last 5 iterations, of the tracking
   terms (as shares of their maximum) and of the whole reward; wall-clock from the start of the first iteration.

The result is results/versus_mjlab.json.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import versus_mjlab_peer as peer
from common import RESULTS, machine, merge

BEGAN = time.perf_counter()
HERE = Path(__file__).parent
PEER = HERE / "versus_mjlab_peer.py"
TRACKING = ("track_linear_velocity", "track_angular_velocity")
LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)  # of the tracking terms' maximum
SHARES = (0.25, 0.5, 0.75, 0.9, 0.95)  # of the lower of both sides' best whole rewards
SMOOTH = 5  # iterations of a mean
TOLERANCE = 2e-5  # relative, of numbers that have been through an XML file
CONTACTS = {"g1": ["sim.nconmax=48"]}  # isaacrl's own choice, 36, is exceeded now and then while a G1 learns to stand
TF32, TF32_ITERATIONS = "isaacrl_tf32", 100  # a side: isaacrl's rate with mjlab's precision


def options() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer", required=True, help="PYTHONPATH of mjlab's process: the folder with its packages")
    p.add_argument("--robots", nargs="+", default=list(peer.TASKS), choices=peer.TASKS)
    p.add_argument("--num-envs", type=int, default=4096)
    p.add_argument("--iterations", type=int, default=300)
    p.add_argument("--seconds", type=float, default=240.0, help="no iteration of a side starts after this long")
    p.add_argument("--warmup", type=int, default=3, help="first iterations that rates leave out")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cuda:0")
    p.add_argument("--engine", default="warp", help="isaacrl's engine")
    p.add_argument("--override", nargs="*", default=[], help="further overrides of isaacrl's configuration")
    sides = ["isaacrl", TF32, "mjlab"]
    p.add_argument("--sides", nargs="+", default=sides, choices=sides)
    p.add_argument("--out", default=str(RESULTS / "versus_mjlab.json"))
    p.add_argument("--worker", metavar="FOLDER", help=argparse.SUPPRESS)
    return p.parse_args()


# --- isaacrl's side, a process of its own too ------------------------------------------------------------------------


def train(args: argparse.Namespace) -> dict[str, Any]:
    """What mjlab's side returns, of isaacrl."""
    before = peer.gpu_memory()
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line does
    import torch

    from isaacrl import algos
    from isaacrl.config import compose
    from isaacrl.env import Env

    (robot,) = args.robots
    cfg = compose(
        [
            f"task=mjlab_{robot}",
            f"asset.path='{Path(args.worker) / robot}.xml'",
            f"num_envs={args.num_envs}",
            f"device={args.device}",
            f"sim.engine={args.engine}",
            f"seed={args.seed}",
            *CONTACTS.get(robot, []),
            *args.override,
        ],
        config_dir=str(HERE / "conf"),
    )
    facts = json.loads((Path(args.worker) / f"{robot}.json").read_text())
    env = Env(cfg)
    algo = algos.build(env, cfg)
    env.stagger()
    env.timer.enabled = True
    algo.prepare(env.timer)
    samples, step_s = cfg.algo.num_steps * cfg.num_envs, cfg.task.physics_dt * cfg.task.decimation
    rows: list[dict[str, float]] = []
    ready = time.perf_counter() - BEGAN
    began = time.perf_counter()
    for i in range(args.iterations):
        start = time.perf_counter()
        values = algo.iterate(env.timer)
        torch.stack([v.float() for v in values.values()]).tolist()
        metrics = env.read_metrics()
        spent = env.timer.read()
        now = time.perf_counter()
        row = {"wall_s": now - began, "iteration_s": now - start, "learn_s": spent.get("update", 0.0)}
        row |= {f"{name}_s": spent.get(name, 0.0) for name in ("sim", "env", "policy")}
        row |= {k: v / step_s for k, v in metrics.items() if k == "reward" or k.startswith("reward/")}
        ends = metrics.get("episodes", 0.0)  # of whole episodes
        row |= {"ends": ends, "falls": ends * metrics.get("metric/fell", 0.0)}
        row |= {"overflow": metrics["overflow"], "nonfinite": metrics["nonfinite"]}
        rows.append(row)
        print(f"isaacrl {i} {row['wall_s']:.1f} s, reward {row['reward']:.3f}", file=sys.stderr, flush=True)
        if row["wall_s"] >= args.seconds:
            break
    after = peer.gpu_memory()
    cuda = torch.cuda.is_available()
    return {
        "start_s": ready,
        "gpu_mib": None if before is None or after is None else after - before,
        "torch_mib": torch.cuda.max_memory_reserved() / 2**20 if cuda else None,
        "observations": {name: value.shape[1] for name, value in env.obs.items()},
        "precision": cfg.algo.precision,
        "engine": env.engine.name,
        "samples": samples,
        "unequal": unequal(facts, cfg, env),
        "rows": rows,
    }


def unequal(facts: dict[str, Any], cfg: Any, env: Any) -> list[str]:
    """What is not the same in isaacrl as in mjlab, in words; empty as it should be."""
    from isaacrl.sim.names import by_pattern

    robot = env.state.robot
    names = robot.joint_names
    scale = by_pattern({k: float(v) for k, v in cfg.task.actions.position.scale.items()}, names, "scale")
    mine = {
        "model": peer.model_numbers(env.engine.model),
        "default_pose": dict(zip(names, robot.default_joint_pos.tolist())),
        "action_scale": dict(zip(names, scale)),
        "rewards": {n: float(t.weight) for n, t in cfg.task.rewards.items()},
        "task": {k: cfg.task[k] for k in facts["task"]},
        "ppo": {k: cfg.algo[k] for k in facts["ppo"]},
    }
    mine["ppo"]["hidden"] = list(cfg.algo.hidden)
    mine["ppo"]["critic_hidden"] = list(cfg.algo.critic_hidden or cfg.algo.hidden)
    return [difference for section in mine for difference in _differences(facts[section], mine[section], section)]


def _differences(theirs: Any, mine: Any, key: str) -> list[str]:
    """Entries that are not equal, numbers up to TOLERANCE."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        lost = [f"{key}: only one side has {k}" for k in sorted(set(theirs) ^ set(mine))]
        return lost + [d for k in theirs if k in mine for d in _differences(theirs[k], mine[k], f"{key}, {k}")]
    if isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        return [d for a, b in zip(theirs, mine) for d in _differences(a, b, key)][:1]
    numbers = isinstance(theirs, int | float) and isinstance(mine, int | float)
    if math.isclose(theirs, mine, rel_tol=TOLERANCE, abs_tol=1e-7) if numbers else theirs == mine:
        return []
    return [f"{key}: {theirs} in mjlab, {mine} in isaacrl"]


# --- both ------------------------------------------------------------------------------------------------------------


def run(command: list[str], log: Path, **env: str) -> str | None:
    """A process to its end; what went wrong."""
    with open(log, "w") as file:
        process = subprocess.run(
            [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, text=True, env=os.environ | env
        )
    if process.returncode == 0:
        return None
    said = log.read_text(errors="replace").strip().splitlines()
    print(*said[-25:], sep="\n", file=sys.stderr, flush=True)
    return f"exit code {process.returncode}: {said[-1] if said else ''}"


def compare(args: argparse.Namespace, robot: str, folder: Path) -> Iterator[dict[str, Any]]:
    """One robot: the model, both sides one after the other, what came of it; so far after each, at last all."""
    of_peer = {"PYTHONPATH": args.peer, "MUJOCO_GL": "disable"}
    if failed := run([str(PEER), "--robot", robot, "--save-xml", str(folder)], folder / "save.log", **of_peer):
        yield {"error": f"saving the model: {failed}"}
        return
    facts = json.loads((folder / f"{robot}.json").read_text())
    sizes = {
        k: str(getattr(args, k.replace("-", "_"))) for k in ("num-envs", "iterations", "seconds", "seed", "device")
    }
    common = [x for k, v in sizes.items() for x in (f"--{k}", v)]
    result: dict[str, Any] = {"task": peer.TASKS[robot], "patches": peer.PATCHES[robot]}
    result |= {"differences": listed_differences(robot), "settings": facts["task"] | facts["ppo"], "sides": {}}
    runs: dict[str, Any] = {}
    for side in args.sides:
        out = folder / f"{robot}_{side}.json"
        if side == "mjlab":
            command, env = [str(PEER), "--robot", robot, "--out", str(out), *common], of_peer
        else:
            command = [__file__, "--peer", "", "--worker", str(folder), "--robots", robot, "--engine", args.engine]
            changes = [*args.override, *(["algo.precision=tf32"] if side == TF32 else [])]
            command += ["--out", str(out), *common, *(["--override", *changes] if changes else [])]
            command += ["--iterations", str(min(args.iterations, TF32_ITERATIONS))] if side == TF32 else []
            env = {}
        failed = run(command, folder / f"{robot}_{side}.log", **env)
        if failed:
            result["sides"][side] = {"error": failed}
            continue
        runs[side] = json.loads(out.read_text())
        samples = args.num_envs * facts["ppo"]["num_steps"]
        result["sides"][side] = summary(runs[side], side, samples, args.warmup)
        print(f"{robot} {side}: {result['sides'][side]['steps_per_s']} steps/s", file=sys.stderr, flush=True)
        yield result
    if "isaacrl" in runs:
        result["unequal"] = runs["isaacrl"]["unequal"]
        if "mjlab" in runs:
            result["unequal"] += _differences(*(runs[s]["observations"] for s in ("mjlab", "isaacrl")), "observations")
    for side, name in (("isaacrl", "ratio"), (TF32, "ratio_tf32")):
        if side in runs and "mjlab" in runs:
            rates = [result["sides"][s]["steps_per_s"] for s in (side, "mjlab")]
            result[name] = round(rates[0] / rates[1], 2)
    if "isaacrl" in runs and "mjlab" in runs:
        result["reached"] = reached(runs["isaacrl"]["rows"], runs["mjlab"]["rows"], facts["rewards"])
    yield result


def summary(run: dict[str, Any], side: str, samples: int, warmup: int) -> dict[str, Any]:
    """Rates, shares of time, memory and the learning curve of one side."""
    rows = run["rows"]
    timed = rows[min(warmup, len(rows) - 1) :]

    def mean(key: str) -> float:
        return sum(r.get(key, 0.0) for r in timed) / len(timed)

    if side == "mjlab":
        whole = mean("collect_s") + mean("learn_s")
        parts = {"physics": mean("sim_s"), "environment and policy": mean("collect_s") - mean("sim_s")}
    else:
        whole = mean("iteration_s")
        parts = {"physics": mean("sim_s"), "environment": mean("env_s"), "policy": mean("policy_s")}
    parts |= {"collection": whole - mean("learn_s"), "learning": mean("learn_s")}
    weights = {k: [round(r[f"reward/{k}"], 4) for r in rows] for k in TRACKING}
    out: dict[str, Any] = {
        "steps_per_s": round(samples / whole),
        "iteration_ms": round(1e3 * whole, 2),
        "split_ms": {k: round(1e3 * v, 2) for k, v in parts.items()},
        "collection_steps_per_s": round(samples / (whole - mean("learn_s"))),
        "iterations": len(rows),
        "start_s": round(run["start_s"], 1),
        "first_iteration_s": round(rows[0]["wall_s"], 2),
        "gpu_mib": run["gpu_mib"],
        "torch_mib": run["torch_mib"] and round(run["torch_mib"]),
        "precision": run["precision"],
    }
    out |= {k: run[k] for k in ("engine", "versions") if k in run}
    if side != "mjlab":
        out |= {k: sum(r[k] for r in rows) for k in ("overflow", "nonfinite")}
    falls, ends = (sum(r[k] for r in timed[-20:]) for k in ("falls", "ends"))
    out["share_of_falls_at_end"] = round(falls / ends, 4) if ends else None
    out["curve"] = {"wall_s": [round(r["wall_s"], 2) for r in rows], "reward": [round(r["reward"], 4) for r in rows]}
    out["curve"] |= weights
    return out


def reached(mine: list[dict[str, float]], theirs: list[dict[str, float]], weights: dict[str, float]) -> dict[str, Any]:
    """For each measure and level: seconds and iterations of both sides, null where one did not get there."""

    def smooth(rows: list[dict[str, float]], key: str, scale: float) -> list[float]:
        values = [r[key] / scale for r in rows]
        return [sum(values[i - SMOOTH + 1 : i + 1]) / SMOOTH for i in range(SMOOTH - 1, len(values))]

    out: dict[str, Any] = {}
    for measure in (*TRACKING, "reward"):
        key, scale = (measure, 1.0) if measure == "reward" else (f"reward/{measure}", weights[measure])
        curves = [smooth(rows, key, scale) for rows in (mine, theirs)]
        if not all(curves):
            continue
        best = [max(c) for c in curves]
        shares = [round(q * min(best), 3) for q in SHARES] if min(best) > 0 else []
        entry: dict[str, Any] = {"best": {"isaacrl": round(best[0], 4), "mjlab": round(best[1], 4)}, "levels": []}
        for level in shares if measure == "reward" else LEVELS:
            first = [next((i for i, v in enumerate(c) if v >= level), None) for c in curves]
            if first == [None, None]:
                break
            at = [None if i is None else i + SMOOTH - 1 for i in first]
            seconds = [None if i is None else round(rows[i]["wall_s"], 2) for i, rows in zip(at, (mine, theirs))]
            line: dict[str, Any] = {"level": level}
            line |= {f"{s}_s": x for s, x in zip(("isaacrl", "mjlab"), seconds)}
            line |= {f"{s}_iterations": i and i + 1 for s, i in zip(("isaacrl", "mjlab"), at)}
            if None not in seconds:
                line["sooner"] = round(seconds[1] / seconds[0], 2)
            entry["levels"].append(line)
        out[measure] = entry
    return out


def listed_differences(robot: str) -> list[str]:
    """What the head of the task's file says is left different."""
    lines = (HERE / f"conf/task/mjlab_{robot}.yaml").read_text().splitlines()
    lines = lines[lines.index("# Left different:") + 1 :]
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return [" ".join(x.split()) for x in "\n".join(line[2:] for line in head).removeprefix("- ").split("\n- ")]


def driver() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0] or None
    except OSError:
        return None


def table(robots: dict[str, Any]) -> str:
    """Markdown: rates and splits, then times to the same reward."""
    lines = [f"{robot}: " + ", ".join(f"{k} {v}" for k, v in x["machine"].items() if v) for robot, x in robots.items()]
    lines += ["", "| robot | side | env steps/s | iteration | physics | collection | learning | GPU MiB | start |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    more = ["| robot | measure | level | isaacrl | mjlab | sooner |", "|---|---|---|---|---|---|"]
    notes = []
    for robot, entry in robots.items():
        if "error" in entry:
            lines.append(f"| {robot} | | failed: {entry['error']} | | | | | | |")
            continue
        for side, x in entry["sides"].items():
            if "error" in x:
                lines.append(f"| {robot} | {side} | failed: {x['error']} | | | | | | |")
                continue
            split = [f"{x['split_ms'][k]:.1f} ms" for k in ("physics", "collection", "learning")]
            row = [f"{x['steps_per_s']:,}", f"{x['iteration_ms']:.1f} ms", *split, x["gpu_mib"], f"{x['start_s']} s"]
            lines.append(f"| {robot} | {side} | {' | '.join(map(str, row))} |")
        if "ratio" in entry:
            with_tf32 = f" ({entry['ratio_tf32']} with TF32)" if "ratio_tf32" in entry else ""
            lines.append(f"| {robot} | ratio | {entry['ratio']}{with_tf32} | | | | | | |")
        for measure, found in entry.get("reached", {}).items():
            best = f"best {found['best']['isaacrl']}, {found['best']['mjlab']}"
            for level in found["levels"]:
                times = [
                    "not reached" if level[f"{s}_s"] is None else f"{level[f'{s}_s']} s ({level[f'{s}_iterations']} it)"
                    for s in ("isaacrl", "mjlab")
                ]
                cells = [f"{measure} ({best})", level["level"], *times, level.get("sooner", "")]
                more.append(f"| {robot} | {' | '.join(map(str, cells))} |")
        notes += [f"{robot}: both models changed: {entry['patches']}"] * bool(entry["patches"])
        notes += [f"{robot}: UNEQUAL {x}" for x in entry.get("unequal", [])[:10]]
        bad = [entry["sides"].get("isaacrl", {}).get(k, 0) for k in ("overflow", "nonfinite")]
        notes += [f"{robot}: isaacrl: {bad[0]:g} overflows, {bad[1]:g} worlds not finite"] * any(bad)
    return "\n".join([*more, "", *notes, "", *lines])


def main() -> None:
    args = options()
    if args.worker:
        Path(args.out).write_text(json.dumps(train(args)))
        return
    keys = ("num_envs", "iterations", "seconds", "warmup", "seed", "device", "engine", "override")
    told = {"machine": machine() | {"driver": driver()}, "options": {k: getattr(args, k) for k in keys}}
    robots: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for robot in args.robots:
            for so_far in compare(args, robot, Path(folder)):
                robots[robot] = told | so_far
                merge(Path(args.out), robot, robots[robot])
    print(table(robots))


if __name__ == "__main__":
    main()
