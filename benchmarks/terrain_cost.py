"""What physics costs on rough terrain, beside a plane, with the same robots and the same policy.

    python benchmarks/time_to_solved.py --tasks go2_rough --seeds 0 --keep policies
    python benchmarks/terrain_cost.py policies/go2_rough_ppo_0.pt

The policy walks 4,096 robots for some seconds on the task's own terrain, with levels as they were in training; on a
height field that is flat everywhere; on a plane. From the states at several moments the engine then makes one launch of
a policy step's physics, timed by the wall around many of them. results/terrain_cost.json gets microseconds a launch,
contacts a world, and the ratios.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, acting, kept_policy, machine, merge

SETTLE, MOMENTS, APART, LAUNCHES = 100, 10, 20, 20  # policy steps before; moments; steps between them; launches at each


def on(ground: str, path: Path, num_envs: int, device: str) -> tuple[Any, dict[str, Any]]:
    """The kept configuration and policy on another ground: rough, field or plane."""
    cfg, kept = kept_policy(path, num_envs=num_envs, device=device, seed=1000)
    if ground == "field":
        cfg.task.terrain.kinds = {"flat": 1.0}
    if ground == "plane":
        cfg.task.terrain.kinds, cfg.task.curricula = {}, {}
        for family in ("terminations", "metrics"):
            for name in ("edge", "terrain_level"):
                cfg.task[family].pop(name, None)
    return cfg, kept


def cost(cfg: Any, kept: dict[str, Any]) -> dict[str, float]:
    """Microseconds a launch and contacts a world, means over the moments."""
    env, act = acting(cfg, kept)
    obs, engine = env.reset(), env.engine
    times, contacts = [], []
    for moment in range(MOMENTS):
        for _ in range(APART if moment else SETTLE):
            obs, *_, info = env.step(act(obs["policy"]))
        contacts.append(engine.field("ncon").float().mean().item())
        before, target = env.state_dict(), info["target"].clone()
        engine.step(env.decimation, target)
        synchronize(env.device)
        began = time.perf_counter()
        for _ in range(LAUNCHES):
            engine.step(env.decimation, target)
        synchronize(env.device)
        times.append((time.perf_counter() - began) / LAUNCHES * 1e6)
        env.load_state_dict(before)
    return {
        "engine": engine.name,
        "us_a_launch": round(statistics.fmean(times), 1),
        "contacts_a_world": round(statistics.fmean(contacts), 2),
        "overflow": int(engine.overflow.sum()),
    }


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path, help="a policy kept by time_to_solved.py, of a task with a terrain")
    parser.add_argument("--num-envs", type=int, default=4096)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "terrain_cost.json")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for ground in ("rough", "field", "plane"):
        cfg, kept = on(ground, args.policy, args.num_envs, args.device)
        found[ground] = cost(cfg, kept)
        print(ground, found[ground], flush=True)
    ratios = {k: round(found["rough"]["us_a_launch"] / found[k]["us_a_launch"], 2) for k in ("field", "plane")}
    print("rough beside them:", ratios)
    settings = {"num_envs": args.num_envs, "physics_steps_a_launch": int(cfg.task.decimation)}
    merge(args.out, cfg.task.name, {"machine": machine(), **settings, "grounds": found, "rough_over": ratios})


if __name__ == "__main__":
    main()
