"""`isaacrl eval`: fixed-seed episodes of a trained policy, with confidence intervals and a verdict."""

import math
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from isaacrl import algos, evaluate_terrain, runs
from isaacrl.console import shown
from isaacrl.env import Env
from isaacrl.errors import UserError


def evaluate(options: Any, cfg: DictConfig, run_path: Path) -> dict[str, Any]:
    """Run `options.episodes` episodes, print and write eval.json; its content."""
    rounds = math.ceil(options.episodes / options.num_envs)
    cfg = OmegaConf.merge(cfg, {"num_envs": math.ceil(options.episodes / rounds), "seed": options.seed})
    env = Env(cfg)
    algo, entry = algos.load(env, cfg, run_path, options.checkpoint)
    print(
        f"evaluating {cfg.task.name}, checkpoint of iteration {entry['iteration']}: {options.episodes} episodes, "
        f"engine {env.engine.name}"
    )
    episodes = run_episodes(env, algo.controller(env), options.episodes, "episodes")
    result = {
        "run": str(run_path),
        "checkpoint": entry,
        "task": cfg.task.name,
        "episodes": options.episodes,
        "seed": options.seed,
        "engine": env.engine.name,
        "deterministic_policy": True,
        "nonfinite": int(episodes.pop("nonfinite").sum()),
        "overflow": int(env.engine.overflow.sum()),
        "metrics": {name: statistics(values) for name, values in episodes.items()},
    }
    if env.state.ground is not None:
        result["terrain"] = evaluate_terrain.by_patch(
            env, lambda: run_episodes(env, algo.controller(env), env.num_envs, "kinds and levels of terrain")
        )
    result["solved"] = verdict(cfg.task.solved, result["metrics"], "solved")
    result["milestone"] = verdict(cfg.task.milestone, result["metrics"], "milestone")
    try:
        runs.write_json(run_path / "eval.json", result)
        written = f"written: {run_path / 'eval.json'}"
    except OSError as e:
        written = f"not written: {run_path / 'eval.json'} ({e.strerror or e})"
    _show(result, written)
    return result


@torch.no_grad()
def run_episodes(env: Env, act: Any, episodes: int, what: str = "") -> dict[str, Tensor]:
    """Per-episode figures, [episodes]: return, episode_length (share of the longest possible), terminated (1 where the
    episode ended before its time), and each metric.

    Every world contributes the same number of episodes, its first ones: counting whichever end first would favour
    short ones. what: of a bar on the terminal.
    """
    each = math.ceil(episodes / env.num_envs)
    names = [t.name for t in env.task.metric_terms]
    count = torch.zeros(env.num_envs, dtype=torch.long, device=env.device)
    done_rows = torch.full((each, env.num_envs, 4 + len(names)), math.nan, device=env.device)
    total, length = torch.zeros(env.num_envs, device=env.device), torch.zeros(env.num_envs, device=env.device)
    worlds = torch.arange(env.num_envs, device=env.device)
    obs = env.reset()
    steps = range(each * env.max_episode_steps)
    for _ in shown(steps, len(steps), what) if what else steps:
        obs, reward, terminated, truncated, info = env.step(act(obs["policy"]))
        total += reward
        length += 1
        done = terminated | truncated
        figures = [total, length / env.max_episode_steps, terminated.float(), info["nonfinite"].float()]
        row = torch.cat((torch.stack(figures, dim=1), env.last_episode_metrics), dim=1)
        slot = count.clamp(max=each - 1)
        write = (done & (count < each))[:, None]
        done_rows[slot, worlds] = torch.where(write, row, done_rows[slot, worlds])
        count += done
        total, length = torch.where(done, 0.0, total), torch.where(done, 0.0, length)
        if env.device == "cpu" and bool((count >= each).all()):
            break
    values = done_rows.flatten(0, 1)[:episodes].cpu()
    return dict(zip(["return", "episode_length", "terminated", "nonfinite", *names], values.unbind(1)))


def statistics(values: Tensor) -> dict[str, Any]:
    """Mean with its 95% confidence interval (normal approximation), spread and extremes of per-episode values; one
    value has neither interval nor spread (None)."""
    n, mean = len(values), values.mean().item()
    if n == 1:
        return {"mean": mean, "ci95_low": None, "ci95_high": None, "std": None, "min": mean, "max": mean}
    std = values.std().item()
    half = 1.96 * std / math.sqrt(n)
    return {
        "mean": mean,
        "ci95_low": mean - half,
        "ci95_high": mean + half,
        "std": std,
        "min": values.min().item(),
        "max": values.max().item(),
    }


def verdict(rules: DictConfig, metrics: dict[str, dict[str, float]], section: str) -> dict[str, Any] | None:
    """Whether the means fulfil all of the task's own criteria; None where it states none."""
    if not rules:
        return None
    criteria = []
    for metric, rule in rules.items():
        if metric not in metrics:
            raise UserError(f"task.{section}.{metric}: not measured; there are {sorted(metrics)}")
        side, threshold = next(iter(rule.items()))
        mean = metrics[str(metric)]["mean"]
        reached = mean >= threshold if side == "above" else mean <= threshold
        criteria.append({"metric": metric, side: threshold, "value": mean, "reached": reached})
    return {"criteria": criteria, section: all(c["reached"] for c in criteria)}


def _show(result: dict[str, Any], written: str) -> None:
    console = Console()
    table = Table(
        title=f"{result['task']}: {result['episodes']} episodes, seed {result['seed']}, engine {result['engine']}"
    )
    for column in ("metric", "mean", "95% interval", "min", "max"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, s in result["metrics"].items():
        table.add_row(
            name,
            f"{s['mean']:.4g}",
            f"{s['ci95_low']:.4g} .. {s['ci95_high']:.4g}" if s["ci95_low"] is not None else "-",
            f"{s['min']:.4g}",
            f"{s['max']:.4g}",
        )
    console.print(table)
    if "terrain" in result:
        evaluate_terrain.show(console, result["terrain"])
    print(written)
    for section in ("milestone", "solved"):
        found = result[section]
        if found is None:
            if section == "solved":
                print("solved: not defined (the task has no `solved` criterion)")
            continue
        for c in found["criteria"]:
            sign, threshold = (">=", c["above"]) if "above" in c else ("<=", c["below"])
            print(f"{section} needs {c['metric']} {sign} {threshold:g}: {c['value']:.4g}")
        print(f"{section}: {'yes' if found[section] else 'no'}")
