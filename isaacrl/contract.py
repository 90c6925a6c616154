"""The contract of an exported policy: everything that code on a robot must know to run it. See docs/export.md."""

from typing import Any

import numpy as np
from omegaconf import DictConfig

from isaacrl import __version__
from isaacrl.env import Env
from isaacrl.sim.engine import DIRECT, NETWORK

EXTRA_INPUTS = {
    "joint_pos": {
        "name": "joint_pos",
        "dtype": "float32",
        "feed": "measured joint positions [rad or m] of output.joints, in their order",
        "start": "the same",
    },
    "last_target": {
        "name": "last_target",
        "dtype": "float32",
        "feed": "joint_target of the step before",
        "start": "by joint, as output.joints[].start says: its measured position, or 0",
    },
}
RECURRENT = {
    "input": "h_in",
    "output": "h_out",
    "dtype": "float32",
    "start": 0.0,
    "feed": "h_out of the step before",
    "reset": "zeros in the first step, and whenever an episode begins: the robot is started anew or set upright again",
}
ACTUATION = {
    "law": "force = clip(gain * target - kp * gear * q - kd * gear * qd, +-effort_limit), every physics_dt or faster; "
    "torque at the joint = gear * force; q and qd are the joint's measured position and velocity",
    "torque_speed": "where saturation_effort is given, force also lies between saturation_effort * (-1 - qd / "
    "velocity_limit), at most 0, and saturation_effort * (1 - qd / velocity_limit), at least 0",
    "network": "the file of a learned drive, which takes the place of gain, kp and kd; null: none",
    "delay_s": "how late targets arrived in training; do not add it on a robot, which has its own",
}


def describe(env: Env, cfg: DictConfig, module: Any, checkpoint: dict[str, Any] | None) -> dict[str, Any]:
    """Everything that code on a robot must know to use the policy. JSON: no infinities; None means unbounded.

    module: isaacrl.export.Deployed.
    """
    model, s = env.engine.model, env.state
    group = next((g for g in env.groups if g.name == "policy"), None)
    joints = [_joint(env, module, i) for i in range(len(module.terms))]
    width = env.obs["policy"].shape[1]
    terms = (
        group.contract(s)
        if group
        else [
            {
                "name": "policy",
                "size": width,
                "history": 1,
                "offset": 0,
                "components": [],
                "scale": [1.0] * width,
                "clip": [None, None],
            }
        ]
    )
    return {
        "schema": 1,
        "isaacrl": __version__,
        "task": cfg.task.name,
        "robot": cfg.asset.name,
        "algo": cfg.algo.name,
        "checkpoint": checkpoint,
        "policy_hz": 1.0 / env.step_dt,
        "physics_dt": cfg.task.physics_dt,
        "decimation": cfg.task.decimation,
        "input": {
            "name": "obs",
            "dtype": "float32",
            "shape": [None, width],
            "terms": terms,
            "note": "raw SI values as they are measured now; clip, then scale and normalization are inside; history is "
            "oldest first, at the start the first value in all places; do not add what terms list as training_only",
        },
        "output": {"name": "joint_target", "dtype": "float32", "shape": [None, len(joints)], "joints": joints},
        "held": {
            name: float(env.task.rest[a])
            for a, name in enumerate(s.robot.actuator_names)
            if a not in module.columns.tolist()
        },
        "extra_inputs": [EXTRA_INPUTS[name] | {"shape": [None, len(joints)]} for name in module.extra_inputs],
        "recurrent": RECURRENT | {"shape": [None, module.hidden]} if module.hidden else None,
        "actuation": ACTUATION
        | {
            "gravity_compensation": {
                model.body(b).name: float(model.body_gravcomp[b]) for b in np.flatnonzero(model.body_gravcomp)
            }
        },
        "action_output": {
            "name": "action",
            "shape": [None, env.task.num_actions],
            "note": "the network's own output: what the observation `last_action` must be given",
        },
        "joint_order": list(s.robot.joint_names),
        "default_pose": dict(zip(s.robot.joint_names, s.robot.default_joint_pos.tolist())),
    }


def _joint(env: Env, module: Any, i: int) -> dict[str, Any]:
    """The i-th joint target: its meaning, its map from the action, and the drive that training assumed."""
    model, s, actuation = env.engine.model, env.state, env.engine.actuation
    a, term = int(module.columns[i]), module.terms[i]
    j = s.robot.driven_joints[a]
    length, dof = s.robot.joint_units[j], s.robot.qvel_adr[j]
    explicit, bias = actuation.law[a] != DIRECT, model.actuator_biasprm[a]
    limit = model.actuator_forcerange[a, 1] if model.actuator_forcelimited[a] else np.inf
    return {
        "joint": s.robot.joint_names[j],
        "target": term.kind,
        "unit": {"effort": "N" if length == "m" else "N m", "velocity": f"{length}/s"}.get(term.kind, length),
        "relative": term.relative,
        "scale": float(module.scale[i]),
        "offset": float(module.offset[i]),
        "action_clip": _bound(module.action_clip[i]),
        "limits": [_bound(module.low[i]), _bound(module.high[i])],
        "low_pass_hz": term.low_pass_hz,
        "start": "joint_pos" if term.kind == "position" else 0.0,
        "gain": float(actuation.kp[a] if explicit else model.actuator_gainprm[a, 0]),
        "kp": float(actuation.kp[a] if explicit else -bias[1]),
        "kd": float(actuation.kd[a] if explicit else -bias[2]),
        "network": actuation.nets[actuation.net[a]].file if actuation.law[a] == NETWORK else None,
        "gear": float(model.actuator_gear[a, 0]),
        "effort_limit": _bound(actuation.effort_limit[a] if explicit else limit),
        "saturation_effort": _bound(actuation.saturation_effort[a]),
        "velocity_limit": _bound(actuation.velocity_limit[a]),
        "delay_s": float(actuation.delay[a]) * model.opt.timestep,
        "armature": float(model.dof_armature[dof]),
        "damping": float(model.dof_damping[dof]),
        "frictionloss": float(model.dof_frictionloss[dof]),
    }


def _bound(x: Any) -> float | None:
    return float(x) if abs(float(x)) < 1e30 else None
