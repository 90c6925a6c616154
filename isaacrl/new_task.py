"""The text of a new conf/task/NAME.yaml for a robot: one of three starting points, fitted to the model."""

import re

import mujoco
import numpy as np
from omegaconf import DictConfig

from isaacrl.new_asset import count, matches, number, pattern, patterns, rounded
from isaacrl.sim.assets import FREE, HINGE, SLIDE, lowest_point
from isaacrl.sim.scene import Scene

TOOLS = re.compile(r"grasp|tool|tcp|ee\b|_ee|eef|end_?eff|hand|grip|attach|tip|flange", re.IGNORECASE)


def task_yaml(name: str, asset_name: str, asset: DictConfig, scene: Scene) -> str:
    """A floating robot tracks velocities; others reach with a tool or, with few joints or no site, hold their pose."""
    model = scene.model
    data = mujoco.MjData(model)
    for names, value in asset.default_pose.items():
        for j in range(model.njnt):
            if model.jnt_type[j] in (SLIDE, HINGE) and matches(str(names), model.joint(j).name):
                data.qpos[model.jnt_qposadr[j]] = float(value)
    mujoco.mj_forward(model, data)
    floating = [int(model.jnt_bodyid[j]) for j in range(model.njnt) if model.jnt_type[j] == FREE]
    actions, driven = _actions(asset, model, 0.25 if FREE in model.jnt_type else 1.0)
    tool = None if floating else _tool(model)
    if floating:
        goal, body = "follows velocity commands", _walk(asset, model, data, floating[0])
    elif tool is not None and len(driven) >= 4:
        goal, body = "brings a tool to commanded positions", _reach(model, data, tool, driven)
    else:
        goal, body = "returns to its default pose from anywhere", _hold()
    head = f"""# {name}: {asset_name} {goal}. A starting point: every number is yours to change.
# A node of a table calls a function of isaacrl/terms; `isaacrl train task={name} --cfg job` shows all settings.
defaults:
  - override /asset: {asset_name}
  - override /randomization: none   # or default: every world its own masses, damping and friction

name: {name}
description: {asset_name} {goal}
num_envs: 1024
physics_dt: 0.005       # [s]
decimation: 4           # physics steps a policy step: 50 Hz
episode_length_s: {20.0 if floating else 10.0}

actions:
{actions}
"""
    tail = """
ppo:
  iterations: 500
  num_steps: 24
  hidden: [256, 128, 64]
  entropy_coef: 0.005
"""
    return head + body + tail


def _actions(asset: DictConfig, model: mujoco.MjModel, reach: float) -> tuple[str, list[str]]:
    """(the actions table, the names of the driven joints), by the law of each actuator."""
    laws: dict[str, list[str]] = {}
    limits: dict[str, float] = {}
    for a in range(model.nu):
        j = int(model.actuator_trnid[a, 0])
        if model.actuator_trntype[a] != 0 or model.jnt_type[j] not in (SLIDE, HINGE):
            continue
        joint = model.joint(j).name
        law = next(
            (g.get("law", "effort") for g in asset.actuators.values() if matches(g.get("joints", [".*"]), joint)), None
        )
        if law is None:  # the model's own: the bias tells a servo from a motor
            bias = model.actuator_biasprm[a]
            law = "position" if bias[1] else "velocity" if bias[2] else "effort"
        kind = "position" if law == "pd" else law
        laws.setdefault(kind, []).append(joint)
        limits[joint] = float(model.actuator_ctrlrange[a, 1]) if model.actuator_ctrllimited[a] else 1.0
    comments = {
        "position": "{joints}scale: {reach}}}   # target = default pose + {reach} rad (or m) * action",
        "velocity": "{joints}scale: 10.0}}   # target = 10 rad/s * action",
        "effort": "{joints}scale: {scale}}}   # torque at an action of 1, in the actuator's unit",
    }
    driven = [joint for names in laws.values() for joint in names]
    lines = []
    for kind, names in laws.items():
        joints = "" if len(driven) == len(names) == count(model) else f"joints: {patterns(names)}, "
        scale = "{" + ", ".join(f"{pattern(n)}: {number(limits[n])}" for n in names) + "}"
        lines.append(f"  {kind}: {{" + comments[kind].format(joints=joints, scale=scale, reach=reach))
    return "\n".join(lines), driven


def _walk(asset: DictConfig, model: mujoco.MjModel, data: mujoco.MjData, base: int) -> str:
    height = float(data.xpos[base, 2]) - lowest_point(model, data)
    speed = min(1.0, max(0.3, rounded(2.0 * height, 1)))
    forward, sideways = [-speed, speed], [-speed / 2, speed / 2]
    feet = bool(asset.feet)
    sensors = '\nsensors:\n  feet: {fn: contact, bodies: "${asset.feet}"}\n' if feet else ""
    foot_rewards = (
        "  air_time: {fn: feet_air_time, threshold: 0.2, most: 0.5, weight: 0.5}\n"
        "  slip: {fn: feet_slip, weight: -0.1}\n"
        if feet
        else ""
    )
    low = f"  lying: {{fn: base_height_below, height: {number(rounded(height / 2, 2))}}}\n" if height > 0.1 else ""
    return f"""{sensors}
commands:   # [m/s] and [rad/s], in the base's axes
  velocity: {{lin_vel_x: {forward}, lin_vel_y: {sideways}, ang_vel_z: [-1.0, 1.0], standing: 0.1}}

observations:
  policy:
    base_lin_vel: {{noise: 0.1}}
    base_ang_vel: {{noise: 0.2, scale: 0.25}}
    projected_gravity: {{noise: 0.05}}
    command: {{name: velocity}}
    joint_pos: {{noise: 0.01}}
    joint_vel: {{noise: 1.0, scale: 0.05}}
    last_action: {{}}

rewards:   # weights are per second
  track_lin_vel: {{std: 0.4, weight: 2.0}}
  track_ang_vel: {{std: 0.4, weight: 1.0}}
  alive: {{weight: 0.5}}
  lin_vel_z: {{fn: lin_vel_z_l2, weight: -1.0}}
  ang_vel_xy: {{fn: ang_vel_xy_l2, weight: -0.05}}
  tilt: {{fn: tilt_l2, weight: -2.0}}
  torque: {{fn: joint_torque_l2, weight: -1.0e-4}}
  joint_acc: {{fn: joint_acc_l2, weight: -2.5e-7}}
  action_rate: {{fn: action_rate_l2, weight: -0.01}}
  limits: {{fn: joint_limits_l1, weight: -1.0}}
{foot_rewards}  terminated: {{weight: -2.0}}

terminations:
  tilted: {{cos: 0.5}}   # more than 60 degrees
{low}
events:
  reset_base: {{yaw: [-3.14, 3.14]}}
  reset_joints: {{position: [-0.1, 0.1]}}
  # push: {{when: interval, interval_s: [5.0, 10.0], velocity: [0.5, 0.5, 0.0]}}

metrics:
  lin_vel_error: {{}}
  ang_vel_error: {{}}

solved: {{lin_vel_error: {{below: 0.2}}, terminated: {{below: 0.05}}}}
"""


def _tool(model: mujoco.MjModel) -> int | None:
    """The site that is most likely the tool: by its name, else the one after the most joints."""
    named = [i for i in range(model.nsite) if model.site(i).name and model.site_bodyid[i] > 0]
    return max(named, key=lambda i: (bool(TOOLS.search(model.site(i).name)), _depth(model, i)), default=None)


def _depth(model: mujoco.MjModel, site: int) -> int:
    body, count = int(model.site_bodyid[site]), 0
    while body:
        count += int(model.body_jntnum[body])
        body = int(model.body_parentid[body])
    return count


def _reach(model: mujoco.MjModel, data: mujoco.MjData, tool: int, driven: list[str]) -> str:
    """Targets in the box that holds the middle half of 500 random poses, above the ground."""
    rng = np.random.default_rng(0)
    places = []
    for _ in range(500):
        for j in range(model.njnt):
            if model.joint(j).name in driven:
                low, high = model.jnt_range[j] if model.jnt_limited[j] else (-1.0, 1.0)
                data.qpos[model.jnt_qposadr[j]] = rng.uniform(low, high)
        mujoco.mj_kinematics(model, data)
        base = data.xmat[1].reshape(3, 3)
        place = data.site_xpos[tool] - data.xpos[1]
        if data.site_xpos[tool, 2] > 0.1:
            places.append(base.T @ place)
    box = np.percentile(np.array(places or [[0, 0, 0]]), (25, 75), axis=0).round(2)
    x, y, z = ([float(low), float(high)] for low, high in box.T)
    site = pattern(model.site(tool).name)
    only = "" if len(driven) == count(model) else f"joints: {patterns(driven)}, "
    return f"""
commands:   # guess: where half of all random poses bring the tool, in the base's frame [m]; a new target every 4 s
  pose: {{x: {x}, y: {y}, z: {z}, resample_s: [4.0, 4.0]}}

observations:
  policy:
    joint_pos: {{{only}}}
    joint_vel: {{{only}scale: 0.5}}
    site_pos: {{site: {site}}}
    target_pos: {{}}
    target_offset: {{site: {site}, scale: 4.0}}
    last_action: {{}}

rewards:   # weights are per second; orientation_error and orientation_reached do the same for the orientation
  position: {{fn: position_error, site: {site}, weight: -1.0}}
  position_near: {{fn: position_reached, site: {site}, std: 0.2, weight: 1.0}}
  position_fine: {{fn: position_reached, site: {site}, std: 0.03, weight: 1.0}}
  action_rate: {{fn: action_rate_l2, weight: -0.01}}
  joint_speed: {{fn: joint_speed_l2, {only}weight: -0.005}}
  limits: {{fn: joint_limits_l1, {only}soft: 0.95, weight: -1.0}}

events:
  reset_joints: {{{only}position: [-0.3, 0.3]}}

metrics:
  position_error: {{site: {site}}}

solved: {{position_error: {{below: 0.1}}}}   # mean over the episode, the way to the targets included [m]
"""


def _hold() -> str:
    return """
observations:
  policy:
    joint_pos: {}
    joint_vel: {scale: 0.1}
    last_action: {}

rewards:   # weights are per second
  pose: {std: 0.3, weight: 2.0}
  deviation: {fn: joint_deviation_l1, weight: -0.5}
  speed: {fn: joint_speed_l2, weight: -0.005}
  action_rate: {fn: action_rate_l2, weight: -0.01}

events:
  reset_joints: {position: [-0.5, 0.5], velocity: [-0.5, 0.5]}   # all joints, those without an actuator too
"""
