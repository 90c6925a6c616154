"""What kept policies do, as a picture: a row a policy, moments from left to right.

    python benchmarks/time_to_solved.py --tasks go2_rough g1_rough anymal_flat h1_flat --seeds 0 --keep kept
    python benchmarks/filmstrip.py kept/{go2_rough,g1_rough,anymal_flat,h1_flat}_ppo_0.pt

The policies act without exploration in C MuJoCo, on the CPU, one robot for each column of patches; the first robot is
drawn, on stairs that lead up where a task has them. Writes docs/images/policies.png.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, acting, kept_policy

PICTURE = RESULTS.parents[1] / "docs/images/policies.png"
SIZE = 200  # of a shot [pixels]


def row(path: Path, args: argparse.Namespace) -> np.ndarray:
    """Shots of one policy side by side."""
    from omegaconf import OmegaConf

    from isaacrl import render
    from isaacrl.play import record

    cfg, kept = kept_policy(path, device="cpu", seed=args.seed, sim={"engine": "mujoco"})
    cfg.num_envs = cfg.task.terrain.columns if cfg.task.terrain.kinds else 1
    env, act = acting(cfg, kept)
    if env.state.ground is not None:
        env.state.ground.level.fill_(min(args.level, env.state.ground.levels - 1))
    first, apart = (round(s / env.step_dt) for s in (args.start, args.every))
    qpos, _ = record(env, act, first + apart * args.shots)
    shots = qpos[first :: max(1, apart), :1][: args.shots]
    camera: Any = OmegaConf.to_container(cfg.task.camera)
    return np.concatenate(
        list(render.render_frames(env.visual_model, shots, camera=camera, width=SIZE, height=SIZE)), axis=1
    )


def main() -> None:
    from isaacrl import media

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="+", type=Path)
    parser.add_argument("--level", type=int, default=5, help="of terrain, where there is one")
    parser.add_argument("--start", type=float, default=4.0, help="of the first shot [s]")
    parser.add_argument("--every", type=float, default=0.16, help="time between shots [s]")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=PICTURE)
    args = parser.parse_args()
    media.write_png(np.ascontiguousarray(np.concatenate([row(p, args) for p in args.policies])), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
