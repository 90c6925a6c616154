"""The text of a new conf/asset/NAME.yaml: what the model says, and guesses for what it does not, marked as such."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import mujoco
import numpy as np

from isaacrl.errors import UserError
from isaacrl.options import NewOptions
from isaacrl.sim.assets import FREE, HINGE, SLIDE, Asset, joint_names, lowest_point

FASTEST = 100.0  # rad/s: gains are kept below this natural frequency, for time steps of a few ms


def asset_yaml(name: str, asset: Asset, model: mujoco.MjModel, options: NewOptions) -> str:
    """conf/asset/NAME.yaml for a model that was loaded with options."""
    joint_names(asset)  # there must be some
    joints = [j for j in range(model.njnt) if model.jnt_type[j] in (SLIDE, HINGE) and model.joint(j).name]
    if not joints:
        raise UserError(f"asset.path: the joints of '{asset.file}' have no names; give each one: <joint name=...>")
    data = _default_pose(model, joints)
    free = [int(model.jnt_bodyid[j]) for j in range(model.njnt) if model.jnt_type[j] == FREE]
    base = model.body(free[0] if free else min(1, model.nbody - 1)).name
    cwd = Path.cwd()
    path = asset.file.relative_to(cwd) if asset.file.is_relative_to(cwd) else asset.file
    lines = [
        f"# {name}: a starting point from {asset.file.name}. Guesses are marked; the robot's data sheet knows better.",
        f"name: {name}",
        f"description: {len(joints)} joints, {model.body_mass.sum():.3g} kg, {'floating' if free else 'fixed'} base",
        f"path: {json.dumps(str(path))}   # relative to where you run isaacrl, or absolute",
    ]
    if options.trust:
        lines.append("trust: true   # the model reads files outside its own folder")
    if asset.is_urdf or options.floating is not None:
        why = "a URDF does not say; false holds the base in place" if free else "true lets the base move freely"
        lines.append(f"floating: {str(bool(free)).lower()}   # guess: {why}")
    if base:
        lines.append(f"base: {pattern(base)}   # the body whose pose and velocity a task reads")
    if feet := _feet(model, data) if free else []:
        lines.append(f"feet: {patterns(feet)}   # guess: the lowest links that end a chain")
    lines += [
        "",
        "# Where the joints start and what position actions are relative to [rad, or m for slide joints].",
        "default_pose:",
    ]
    lines += [f"  {pattern(model.joint(j).name)}: {number(data.qpos[model.jnt_qposadr[j]])}" for j in joints]
    return (
        "\n".join([*lines, "", *_joint_table(asset, model, joints), *_actuator_groups(asset, model, data, joints)])
        + "\n"
    )


def _default_pose(model: mujoco.MjModel, joints: Sequence[int]) -> mujoco.MjData:
    """The model's first keyframe, or its zero pose; joints that this puts outside their limits are in the middle."""
    data = mujoco.MjData(model)
    if model.nkey:
        mujoco.mj_resetDataKeyframe(model, data, 0)
    for j in joints:
        low, high = model.jnt_range[j]
        if model.jnt_limited[j] and not low <= data.qpos[model.jnt_qposadr[j]] <= high:
            data.qpos[model.jnt_qposadr[j]] = (low + high) / 2.0
    mujoco.mj_forward(model, data)
    return data


def _feet(model: mujoco.MjModel, data: mujoco.MjData) -> list[str]:
    """Names of bodies with collision geometry and none below them that reach down to the lowest one of all."""
    colliding = [g for g in range(model.ngeom) if model.geom_contype[g] or model.geom_conaffinity[g]]
    solid = {int(model.geom_bodyid[g]) for g in colliding}
    carries = {above for b in solid for above in _above(model, b)}
    low = {b: lowest_point(model, data, b) for b in solid - carries - {0}}
    if not low:
        return []
    height = float(data.xpos[1:, 2].max() - min(low.values()))
    return [
        model.body(b).name for b in sorted(low) if low[b] < min(low.values()) + 0.08 * height and model.body(b).name
    ]


def _above(model: mujoco.MjModel, body: int) -> set[int]:
    """The bodies that carry a body."""
    found: set[int] = set()
    while body:
        body = int(model.body_parentid[body])
        found.add(body)
    return found


def _joint_table(asset: Asset, model: mujoco.MjModel, joints: Sequence[int]) -> list[str]:
    rows = [("joint", "unit", "lower", "upper", "effort", "speed")]
    for j in joints:
        limits = [f"{x:.4g}" for x in model.jnt_range[j]] if model.jnt_limited[j] else ["-", "-"]
        unit, effort = "m" if model.jnt_type[j] == SLIDE else "rad", _effort_limit(asset, model, j)
        speed = asset.velocity_limits.get(model.joint(j).name)
        rows.append((model.joint(j).name, unit, *limits, *(f"{x:.4g}" if x else "-" for x in (effort, speed))))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    return [
        "# Limits in the model; effort [N m or N] is applied; speed [rad/s or m/s] only by law pd, as velocity_limit.",
        *("#   " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows),
    ]


def _effort_limit(asset: Asset, model: mujoco.MjModel, j: int) -> float | None:
    """The model's limit of a joint's torque or force: the URDF's, the joint's own, or its actuator's."""
    if (limit := asset.effort_limits.get(model.joint(j).name)) is not None:
        return limit
    found = [model.jnt_actfrcrange[j][1]] if model.jnt_actfrclimited[j] else []
    for a in range(model.nu):
        if model.actuator_trntype[a] == 0 and model.actuator_trnid[a, 0] == j:
            gear = abs(float(model.actuator_gear[a, 0]))
            if model.actuator_forcelimited[a]:
                found.append(gear * model.actuator_forcerange[a, 1])
            elif model.actuator_ctrllimited[a] and not model.actuator_biastype[a]:  # a motor
                found.append(gear * model.actuator_gainprm[a, 0] * model.actuator_ctrlrange[a, 1])
    positive = [float(x) for x in found if x > 0.0]
    return min(positive) if positive else None


def _actuator_groups(asset: Asset, model: mujoco.MjModel, data: mujoco.MjData, joints: Sequence[int]) -> list[str]:
    """Position servos, joints that need the same in one group."""
    floating = bool((model.jnt_type == FREE).any())
    inertia = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, inertia)
    angle = 1.0 if floating else 0.2
    feet = [model.body(name).id for name in (_feet(model, data) if floating else [])]
    legs = {b for foot in feet for b in {foot, *_above(model, foot)}}
    groups: dict[tuple, list[int]] = {}
    for j in joints:
        limit, slides = _effort_limit(asset, model, j), bool(model.jnt_type[j] == SLIDE)
        carries = floating and (not feet or int(model.jnt_bodyid[j]) in legs)
        effort = rounded(limit, 4) if limit else rounded(_needed_effort(model, data, j, carries), 1)
        mass = max(float(inertia[model.jnt_dofadr[j], model.jnt_dofadr[j]]), 1e-6)
        kp = min(effort / (0.1 if slides else angle), mass * FASTEST**2)
        groups.setdefault((effort, limit is None, slides, rounded(kp, 1)), []).append(j)
    lines = [
        "# Laws: effort, position (kp, kd), velocity (kd; for wheels), pd (position; a DC motor).",
        f"# The gains are guesses: kp gives the effort limit at {angle} rad (0.1 m), less for light links; kd damps.",
    ]
    if model.nu:
        lines.append(f"# The model brings {model.nu} actuators of its own; without this section those are used.")
    lines.append("actuators:")
    for i, ((effort, guess, slides, _), members) in enumerate(groups.items()):
        mass = [max(float(inertia[d, d]), 1e-6) for d in model.jnt_dofadr[members]]
        kp = min(effort / (0.1 if slides else angle), min(mass) * FASTEST**2)
        kd = min(max(1.4 * math.sqrt(kp * float(np.median(mass))), kp / 40.0), min(mass) * FASTEST)
        names = (
            '[".*"]'
            if len(groups) == 1 and len(joints) == count(model)
            else patterns([model.joint(j).name for j in members])
        )
        name = "all" if len(groups) == 1 else f"group_{i + 1}"
        lines += [
            f"  {name}:",
            f"    joints: {names}",
            "    law: position",
            f"    kp: {number(rounded(kp, 2))}",
            f"    kd: {number(rounded(kd, 2))}",
            f"    effort_limit: {number(effort)}" + ("   # guess: the model gives none" if guess else ""),
        ]
    return lines


def _needed_effort(model: mujoco.MjModel, data: mujoco.MjData, j: int, is_leg: bool) -> float:
    """Torque [N m] or force [N] to hold what a joint carries, twice over; a leg carries the robot."""
    body, total = int(model.jnt_bodyid[j]), float(model.body_mass.sum()) * 9.81
    weight = float(model.body_subtreemass[body]) * 9.81
    if model.jnt_type[j] == SLIDE:
        return max(2.0 * (total if is_leg else weight), 1e-2)
    lever = float(np.linalg.norm(data.subtree_com[body] - data.xanchor[j]))
    stands = total * float(np.ptp(data.xpos[1:, 2])) / 4.0 if is_leg else 0.0
    return max(2.0 * weight * lever, stands, 1e-2)


# --- text, for new_task.py too ---------------------------------------------------------------------------------------


def pattern(name: str) -> str:
    """A name as a pattern that matches it, quoted where YAML needs it."""
    text = name if matches(name, name) else re.escape(name)
    return text if re.fullmatch(r"[A-Za-z_][\w]*", text) and text.lower() not in YAML_WORDS else json.dumps(text)


YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def patterns(names: Sequence[str]) -> str:
    return "[" + ", ".join(pattern(n) for n in names) + "]"


def rounded(x: float, digits: int) -> float:
    return float(f"{x:.{digits}g}")


def number(x: float) -> str:
    """A number as YAML writes it, without noise in the last digits."""
    text = repr(float(f"{float(x):.5g}") + 0.0)
    return re.sub(r"^(-?\d+)e", r"\1.0e", text)


def matches(patterns: str | list[str], name: str) -> bool:
    return any(re.fullmatch(p, name) for p in ([patterns] if isinstance(patterns, str) else patterns))


def count(model: mujoco.MjModel) -> int:
    return int(np.isin(model.jnt_type, (SLIDE, HINGE)).sum())
