"""`isaacrl check`: what a task looks like before it is trained: zero actions, random actions, and a picture.

The environment is stepped as in training, in a few worlds and for a few seconds; what its terms return on the way is
recorded: `precheck_probe.py` records, `precheck_report.py` judges and shows the figures.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from isaacrl import media, render, runs
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.files import finite
from isaacrl.precheck_probe import Probe, both
from isaacrl.precheck_report import judge, show
from isaacrl.task import Task

WORLDS, WORLDS_MJWARP_CPU = 64, 16  # mjwarp on a CPU is for checking: slow
TILES = 9  # worlds of the picture


def precheck(options: Any, cfg: DictConfig) -> dict[str, Any]:
    """Step the task under zero and random actions; print and write what was seen; the content of check.json."""
    began = time.perf_counter()
    slow = cfg.sim.engine == "mjwarp" and not (cfg.device.startswith("cuda") or torch.cuda.is_available())
    cfg = OmegaConf.merge(cfg, {"num_envs": min(cfg.num_envs, WORLDS_MJWARP_CPU if slow else WORLDS)})
    env = Env(cfg)
    folder = runs.report_folder(cfg.outputs, cfg.task.name, "check")
    env.reset()
    result: dict[str, Any] = {
        "task": cfg.task.name,
        "engine": env.engine.name,
        "device": env.device,
        "num_envs": env.num_envs,
        "robot": robot(env, cfg),
        "start": start(env),
    }
    result["picture"], result["picture_missing"] = picture(env, cfg, folder)
    generator = torch.Generator().manual_seed(cfg.seed)
    shape, std = (env.num_envs, env.task.num_actions), float(cfg.algo.get("init_std", 1.0))
    policies = {
        "zero": lambda: torch.zeros(shape, device=env.device),
        "random": lambda: std * torch.randn(shape, generator=generator).to(env.device),
    }
    probes = {}
    for name, act in policies.items():
        probes[name] = probe = Probe(env)
        probe.run(act, options.seconds * (0.35 if name == "zero" else 0.65))
    zero, random = probes["zero"], probes["random"]
    result |= {
        "random_std": std,
        "episodes": {name: p.episodes() for name, p in probes.items()},
        "rewards": rewards(env, zero, random),
        "observations": observations(env, zero, random),
        "actions": random.actions(),
        "commands": {k: both(v, random.commands[k]).summary() for k, v in zero.commands.items()},
        "constraints": constraints(env, probes),
        "nonfinite_worlds": sum(p.nonfinite for p in probes.values()),
        "normalized": bool(cfg.algo.get("normalize_obs", False)),
    }
    result |= judge(result)
    result["seconds"] = round(time.perf_counter() - began, 1)
    path = folder / "check.json"
    path.write_text(json.dumps(finite(result), indent=1) + "\n")
    show(result)
    print(f"written: {path}")
    return result


# --- the parts of the report -----------------------------------------------------------------------------------------


def robot(env: Env, cfg: DictConfig) -> dict[str, Any]:
    """Constants of the robot and of its simulation."""
    m, r = env.visual_model, env.state.robot
    data = mujoco.MjData(m)
    data.qpos[:] = r.default_qpos.cpu().numpy()
    mujoco.mj_kinematics(m, data)
    own = np.flatnonzero(m.body_rootid[m.geom_bodyid] == m.body_rootid[r.base])
    rotation = np.abs(data.geom_xmat[own].reshape(-1, 3, 3))
    middle = data.geom_xpos[own] + np.einsum("gij,gj->gi", data.geom_xmat[own].reshape(-1, 3, 3), m.geom_aabb[own, :3])
    half = np.einsum("gij,gj->gi", rotation, m.geom_aabb[own, 3:])
    return {
        "asset": cfg.asset.name,
        "base": r.body_names[r.base],
        "floating": r.floating,
        "mass": float(m.body_subtreemass[m.body_rootid[r.base]]),
        "height": float((middle + half)[:, 2].max() - (middle - half)[:, 2].min()) if len(own) else 0.0,
        "lowest_point": float((middle - half)[:, 2].min()) if len(own) else 0.0,
        "joints": len(r.joint_names),
        "actuators": len(r.actuator_names),
        "num_actions": env.task.num_actions,
        "physics_dt": float(cfg.task.physics_dt),
        "policy_hz": 1.0 / env.step_dt,
        "episode_s": env.max_episode_steps * env.step_dt,
        "episode_steps": env.max_episode_steps,
    }


def start(env: Env) -> dict[str, Any]:
    """How episodes start: height, overlapping geoms, joints at their limits."""
    m, s = env.engine.model, env.state
    data = mujoco.MjData(m)
    depth, pair, contacts = 0.0, None, 0
    for qpos in env.engine.field("qpos").cpu().numpy():
        data.qpos[:] = qpos
        mujoco.mj_fwdPosition(m, data)
        contacts = max(contacts, data.ncon)
        if data.ncon and -data.contact.dist.min() > depth:
            i = int(data.contact.dist.argmin())
            depth = float(-data.contact.dist[i])
            pair = [_geom_name(m, int(g)) for g in data.contact.geom[i]]
    low, high = s.robot.joint_pos_limits.unbind(1)
    slack = 0.01 * torch.where(torch.isfinite(high - low), high - low, 0.0)
    at_limit = ((s.joint_pos <= low + slack) | (s.joint_pos >= high - slack)).any(0).tolist()
    z = s.base_pos_w[:, 2]
    return {
        "penetration": depth,
        "between": pair,
        "contacts": contacts,
        "base_height": [z.min().item(), z.max().item()],
        "joints_at_limits": [name for name, hit in zip(s.robot.joint_names, at_limit) if hit],
    }


def _geom_name(m: mujoco.MjModel, g: int) -> str:
    if g < 0:
        return "flex"
    return m.geom(g).name or f"a geom of {m.body(m.geom_bodyid[g]).name}"


def picture(env: Env, cfg: DictConfig, folder: Path) -> tuple[str | None, str | None]:
    """(path of a picture of some worlds as they start, why there is none)."""
    n, model = min(env.num_envs, TILES), env.visual_model
    mocap = None
    if model.nmocap:
        mocap = tuple(env.engine.field(f)[None, :n].cpu().numpy() for f in ("mocap_pos", "mocap_quat"))
    qpos = env.engine.field("qpos")[None, :n].cpu().numpy()
    camera: Any = OmegaConf.to_container(cfg.task.camera)
    try:
        frame = next(iter(render.render_frames(model, qpos, camera=camera, width=1200, height=900, mocap=mocap)))
    except UserError as e:
        return None, str(e)
    path = folder / "start.png"
    media.write_png(frame, path)
    return str(path), None


def rewards(env: Env, zero: Probe, random: Probe) -> dict[str, Any]:
    """By term, weighted, per second: mean under each policy, spread, extremes, share of the sum of sizes."""
    names = list(env.task.reward_names)
    tables = type(env.task).rewards is Task.rewards
    weights = env.task.weights.tolist() if tables else [None] * len(names)
    joint = both(zero.rewards, random.rewards)
    columns = [slice(i, i + 1) for i in range(len(names))]
    rows = [joint.summary(c) for c in columns]
    total, spread = sum(r["abs"] for r in rows), math.hypot(*(r["std"] for r in rows))
    return {
        name: row
        | {
            "weight": weight,
            "zero": zero.rewards.summary(c)["mean"],
            "random": random.rewards.summary(c)["mean"],
            "share": row["abs"] / total if total else 0.0,
            "share_of_spread": row["std"] / spread if spread else 0.0,
        }
        for name, row, weight, c in zip(names, rows, weights, columns)
    }


def observations(env: Env, zero: Probe, random: Probe) -> dict[str, Any]:
    """By group and term, as the networks see them (clip and scale in); a task with its own hook has groups alone."""
    out: dict[str, Any] = {}
    tables = env.task.observations(env.state) is None
    for name, seen in random.observed.items():
        spread = both(zero.observed[name], seen)
        group = next((g for g in env.groups if g.name == name), None) if tables else None
        if group is None:
            out[name] = {"all": spread.summary() | {"clipped": 0.0}}
            continue
        out[name] = {}
        first = 0
        clipped = random.clipped[name] / max(random.steps, 1)
        for term, size, length in zip(group.terms, group.sizes, group.lengths):
            columns = slice(first, first + size * length)
            first = columns.stop
            out[name][term.name] = spread.summary(columns) | {"clipped": clipped[columns].mean().item()}
    return out


def constraints(env: Env, probes: dict[str, Probe]) -> dict[str, Any]:
    """Peaks of contacts and constraint rows in one world, what there is room for, and what to ask for."""
    ncon, nefc = (max(p.peaks[i] for p in probes.values()) for i in range(2))
    engine: Any = env.engine  # only mjwarp and warp have bounds, and warp none for rows; mujoco makes room as it goes
    data = getattr(engine, "d", None)
    nconmax = int(data.naconmax) // env.num_envs if data is not None else getattr(engine, "nconmax", None)
    return {
        "ncon": ncon,
        "nefc": nefc,
        "nconmax": nconmax,
        "njmax": int(data.njmax) if data is not None else None,
        "overflow": sum(p.overflow for p in probes.values()),
        "suggested_nconmax": _with_reserve(ncon),
        "suggested_njmax": _with_reserve(nefc),
    }


def _with_reserve(peak: int) -> int:
    """Half as much again, in eights: training goes where two short rollouts did not."""
    return max(8, math.ceil(1.5 * peak / 8) * 8)
