"""A robot to try terms on: made, put into a state that is turned, tilted and moving, and asked for a term's value."""

from pathlib import Path

import mujoco
import numpy as np
import torch

from isaacrl.config import compose
from isaacrl.env import Env
from isaacrl.terms import Bound

MODEL = Path(__file__).parent / "models" / "tumbler.xml"
JOINTS = ("hip", "knee", "slide", "wheel")
DEFAULT = np.array([0.2, 0.3, 0.0, 0.0])
# Two worlds: base position, roll, pitch, yaw, joints; then velocities as MuJoCo has them.
POSE = np.array(
    [[0.3, -0.2, 0.9, 0.5, -0.4, 2.2, -0.97, 1.4, 0.098, 4.0], [-0.5, 0.7, 1.2, -0.3, 0.9, -1.3, 0.4, 0.5, -0.05, -9.0]]
)
VEL = np.array(
    [[0.5, -0.3, 0.2, 0.4, -0.6, 0.8, 1.0, -2.0, 0.3, 1.5], [-0.2, 0.9, -0.7, -1.1, 0.3, 0.5, -0.4, 0.6, -0.1, 2.5]]
)
COMMAND = np.array([[0.4, -0.2, 0.5], [0.03, 0.02, -0.05]])  # the second asks to stand


def make(n=2, task=None, device="cpu"):
    """An environment of the tumbler; task: tables and other keys of the task."""
    cfg = compose(["task=cartpole", f"num_envs={n}", f"device={device}"])
    cfg.asset.path, cfg.asset.base, cfg.asset.default_pose = str(MODEL), None, {"hip": 0.2, "knee": 0.3}
    cfg.asset.actuators = {"all": {"joints": [".*"], "law": "effort"}}
    cfg.task.actions = {"effort": {"joints": [".*"], "scale": 2.0}}
    cfg.task.observations = {"policy": {"joint_pos": {}}}
    for table in ("rewards", "terminations", "events"):
        cfg.task[table] = {}
    for key, value in (task or {}).items():
        cfg.task[key] = value
    return Env(cfg)


def quaternion(roll, pitch, yaw):
    """MuJoCo's own: turns about the fixed axes x, y, z."""
    out = np.zeros(4)
    mujoco.mju_euler2Quat(out, [roll, pitch, yaw], "XYZ")
    return out


def matrix(quat):
    out = np.zeros(9)
    mujoco.mju_quat2Mat(out, np.asarray(quat, dtype=float))
    return out.reshape(3, 3)


QPOS = np.array([[*p[:3], *quaternion(*p[3:6]), *p[6:]] for p in POSE])
BASE = np.array([matrix(q[3:7]) for q in QPOS])  # base axes to world axes


def put(env, qpos=QPOS, qvel=VEL):
    """Every world at the given state, quantities fresh."""
    env.engine.write("qpos", torch.as_tensor(np.asarray(qpos)))
    env.engine.write("qvel", torch.as_tensor(np.asarray(qvel)))
    env.engine.forward()
    env.state.refresh()


def mj_data(model, qpos, qvel):
    data = mujoco.MjData(model)
    data.qpos, data.qvel = qpos, qvel
    mujoco.mj_forward(model, data)
    return data


def value(env, name, family="rewards", **params):
    """A term as a node of the table makes it."""
    return Bound(family, name, params, env.state, f"task.{family}.{name}")(env.state).double().numpy()
