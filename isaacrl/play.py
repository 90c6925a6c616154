"""`isaacrl play`: watch a trained policy, as a video on any machine or live in the browser."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from isaacrl import algos, media, render
from isaacrl.console import shown
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.terms.curriculum import hold

FPS = 30  # frames a second of a video; steps are subsampled to come near it
FILM_S, FILM_FPS, FILM_WORLDS, FILM_SEED = 5.0, 15, 4, 1000  # of the videos that training makes itself: small


def play(options: Any, cfg: DictConfig, run_path: Path) -> dict[str, Any]:
    """Run the policy in `options.num_envs` worlds for `options.seconds` and render what it does."""
    cfg = OmegaConf.merge(cfg, {"num_envs": options.num_envs, "seed": options.seed})
    env = Env(cfg)
    algo, entry = algos.load(env, cfg, run_path, options.checkpoint)
    print(
        f"playing {cfg.task.name}, checkpoint of iteration {entry['iteration']}, {options.num_envs} worlds, "
        f"engine {env.engine.name}"
    )
    if options.viewer == "browser":
        from isaacrl.viewer import view

        view(env, algo.controller(env))
        return {"run": str(run_path)}
    steps = max(1, round(options.seconds / env.step_dt))
    qpos, reward = record(env, algo.controller(env), steps, "simulating")
    every = max(1, round(1.0 / (FPS * env.step_dt)))
    shots = qpos[::every]
    how: dict[str, Any] = {
        "camera": OmegaConf.to_container(cfg.task.camera),
        "width": options.width,
        "height": options.height,
    }
    folder = _videos(run_path)
    name = f"iteration_{entry['iteration']:06d}"
    renderer = render.backend()[0]
    print(f"drawing {len(shots) if options.video else 1} pictures, renderer {renderer}")
    result = {"run": str(run_path), "reward": reward, "renderer": renderer}
    middle = len(shots) // 2
    picture, video = folder / f"{name}.png", folder / f"{name}.mp4"
    media.write_png(next(iter(render.render_frames(env.visual_model, shots[middle : middle + 1], **how))), picture)
    result["png"] = str(picture)
    if options.video:
        frames = shown(render.render_frames(env.visual_model, shots, **how), len(shots), "drawing")
        media.write_video(frames, video, fps=1.0 / (every * env.step_dt))
        result["video"] = str(video)
        print(f"video:   {video}  ({options.seconds:g} s)")
    print(f"picture: {picture}")
    print(f"reward:  {reward:.3f} a world in {options.seconds:g} s")
    return result


def film(cfg: DictConfig, algo: Any, run_path: Path, iteration: int) -> Path:
    """A short video of the policy as it is now, in an environment of its own: training does not notice but the time."""
    env = Env(OmegaConf.merge(cfg, {"num_envs": FILM_WORLDS, "seed": FILM_SEED}))
    env.state.random.step.copy_(algo.env.state.random.step)  # which schedules go by
    hold(env, algo.env.state_dict()["env"])
    qpos, _ = record(env, algo.controller(env), max(1, round(FILM_S / env.step_dt)))
    every = max(1, round(1.0 / (FILM_FPS * env.step_dt)))
    camera: Any = OmegaConf.to_container(cfg.task.camera)
    frames = render.render_frames(env.visual_model, qpos[::every], camera=camera, width=480, height=360)
    path = _videos(run_path) / f"iteration_{iteration:06d}.mp4"
    media.write_video(frames, path, fps=1.0 / (every * env.step_dt))
    return path


def _videos(run_path: Path) -> Path:
    """The run's folder of videos."""
    folder = run_path / "videos"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as e:
        raise UserError(f"{folder}: cannot be made ({e.strerror or e})") from None
    return folder


@torch.no_grad()
def record(env: Env, act: Any, steps: int, what: str = "") -> tuple[np.ndarray, float]:
    """(qpos of every step [T, E, nq], mean reward sum of a world) of a deterministic rollout from a reset. what: of a
    bar on the terminal."""
    obs = env.reset()
    out = np.empty((steps, env.num_envs, env.engine.model.nq))
    total = 0.0
    for t in shown(range(steps), steps, what) if what else range(steps):
        out[t] = env.engine.field("qpos").cpu().numpy()
        obs, reward, *_ = env.step(act(obs["policy"]))
        total += reward.mean().item()
    return out, total
