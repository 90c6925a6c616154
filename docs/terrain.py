"""Makes docs/images/terrain.png, a Go2 on the hardest patches of some kinds: python docs/terrain.py"""

from pathlib import Path

import numpy as np
import torch

from isaacrl.config import compose
from isaacrl.env import Env
from isaacrl.media import write_png
from isaacrl.render import render_frames

KINDS = ("stairs_up", "slope_down", "obstacles", "stones", "gap", "waves")
WIDTH, HEIGHT = 420, 300


def main() -> None:
    fields = ["task.terrain.levels=5", "task.terrain.columns=6", "task.terrain.start_level=4"]
    unwanted = ["~task.terrain.kinds.stairs_down", "~task.terrain.kinds.slope_up", "~task.terrain.kinds.rough"]
    shares = [
        f"+task.terrain.kinds.{k}=1" if k in ("stones", "gap", "waves") else f"task.terrain.kinds.{k}=1" for k in KINDS
    ]
    env = Env(compose(["task=go2_rough", "num_envs=60", "device=cpu", *fields, *unwanted, *shares]))
    for _ in range(30):
        env.step(torch.zeros(60, env.task.num_actions))
    ground, model = env.state.ground, env.visual_model
    assert ground is not None
    camera, pictures = {"lookat": [0.0, 0.0, 0.3], "distance": 4.0, "azimuth": 130.0, "elevation": -22.0}, []
    for kind in KINDS:
        world = max(
            (w for w in range(60) if ground.kinds[ground.column[w]] == kind), key=lambda w: ground.level[w].item()
        )
        qpos = env.engine.field("qpos")[world].numpy()[None, None]
        pictures.append(next(render_frames(model, qpos, camera=camera, width=WIDTH, height=HEIGHT)))
    rows = [np.concatenate(pictures[i : i + 3], axis=1) for i in (0, 3)]
    write_png(np.concatenate(rows), Path(__file__).parent / "images/terrain.png")


if __name__ == "__main__":
    main()
