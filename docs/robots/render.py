"""Remake the pictures of docs/robots.md: `python docs/robots/render.py [ROBOT ...]`, from the repository's root."""

import sys
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from isaacrl.media import write_png
from isaacrl.render import render_frames
from isaacrl.schema import AssetConfig
from isaacrl.sim import make_scene
from isaacrl.state import Robot

HERE = Path(__file__).parent
ASSETS = HERE.parent.parent / "conf" / "asset"
CAMERAS = {
    "cartpole": {"lookat": [0, 0, 0.9], "distance": 5.0, "azimuth": 100, "elevation": -9},
    "ant": {"lookat": [0.05, 0, 0.42], "distance": 2.5, "azimuth": 140, "elevation": -16},
    "humanoid": {"lookat": [0.05, 0, 0.74], "distance": 2.35, "azimuth": 140, "elevation": -10},
    "go2": {"lookat": [0, 0, 0.2], "distance": 1.25, "azimuth": 140, "elevation": -18},
    "g1": {"lookat": [0.05, 0, 0.64], "distance": 1.95, "azimuth": 140, "elevation": -10},
    "anymal_c": {"lookat": [0, 0, 0.34], "distance": 2.05, "azimuth": 140, "elevation": -18},
    "h1": {"lookat": [0.05, 0, 0.87], "distance": 2.6, "azimuth": 140, "elevation": -10},
    "franka": {"lookat": [0.2, 0, 0.38], "distance": 1.6, "azimuth": 130, "elevation": -12},
}


def draw(name: str) -> np.ndarray:
    """The robot in its default pose on its ground, uint8 [600, 800, 3]."""
    asset = OmegaConf.merge(OmegaConf.structured(AssetConfig), OmegaConf.load(ASSETS / f"{name}.yaml"))
    model = make_scene(asset, OmegaConf.create({"physics_dt": 0.005})).visual_model
    robot = Robot(model, asset.base, dict(asset.default_pose), "cpu")
    qpos = robot.default_qpos.numpy()[None, None]
    return next(iter(render_frames(model, qpos, camera=CAMERAS[name], width=800, height=600)))


if __name__ == "__main__":
    for name in sys.argv[1:] or CAMERAS:
        write_png(draw(name), HERE / f"{name}.png")
        print(HERE / f"{name}.png")
