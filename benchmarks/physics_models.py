"""The models of physics.py: their start states and controls, and C MuJoCo's answer to both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco.batch import Batch
from omegaconf import OmegaConf

from isaacrl import sim
from isaacrl.library import make
from isaacrl.sim.assets import lowest_point
from isaacrl.sim.engine import check_computed
from isaacrl.state import Robot

ROOT = Path(__file__).parent.parent
MODELS = ("humanoid-classic", "ant", "go2", "g1", "cartpole")
STEPS = (100, 300)  # physics steps that lead to a start state
SERVO_REACH = 0.5  # how far targets of servos are from the default pose at most [rad]
TORQUE_SHARE = 0.3  # of the strongest torque, for motors that a controller drives: legs that flail less
TOLERANCE = 1e-6  # MuJoCo Warp's least in float32; every engine gets it
REFERENCE_TOLERANCE = 1e-10

States = dict[str, np.ndarray]  # qpos [n, nq], qvel [n, nv], qacc_warmstart [n, nv], all float32


@dataclass
class Case:
    """One model and what is asked of it."""

    name: str
    model: mujoco.MjModel  # as the engines step it
    default_qpos: np.ndarray  # [nq]
    low: np.ndarray  # [nu], smallest and largest control
    high: np.ndarray
    fields: list[str]  # outputs that an engine computes at every step: those that training go2_flat reads


def load(name: str) -> Case:
    """The model of that name. Controls go straight to the actuators, so that every engine gets the same."""
    env = make("go2_flat", num_envs=2, device="cpu", overrides=["sim.engine=mujoco"])
    env.step(torch.zeros_like(env.state.action))
    engine: Any = env.engine
    fields = sorted({*engine._fields, "qacc"})
    if name == "go2":
        model, default = engine.model, env.state.robot.default_qpos.numpy()
    elif name == "humanoid-classic":
        model = mujoco.MjModel.from_xml_path(str(ROOT / "benchmarks" / "models" / "humanoid.xml"))
        default = model.qpos0
    else:
        asset: Any = OmegaConf.load(ROOT / "conf" / "asset" / f"{name}.yaml")
        model = sim.make_scene(asset, OmegaConf.create({"physics_dt": 0.005})).model
        default = Robot(model, asset.base, dict(asset.get("default_pose") or {}), "cpu").default_qpos.numpy()
    model.opt.tolerance = max(model.opt.tolerance, TOLERANCE)
    default = default.astype(float)
    return Case(name, model, default, *_control_range(model, default), [f for f in fields if _has(model, f)])


def describe(case: Case, states: States, answer: States) -> dict[str, Any]:
    """What a reader must know of the model and its start states."""
    m = case.model
    sizes = {k: int(getattr(m, k)) for k in ("nq", "nv", "nu", "nbody", "ngeom", "nsensor")}
    option = {"timestep": m.opt.timestep, "iterations": m.opt.iterations, "tolerance": m.opt.tolerance}
    option["integrator"] = mujoco.mjtIntegrator(m.opt.integrator).name.removeprefix("mjINT_").lower()
    counts = {k: {"mean": round(float(answer[k].mean()), 2), "max": int(answer[k].max())} for k in ("ncon", "nefc")}
    return {**sizes, **option, "start_states": {"distinct": len(states["qpos"]), **counts}}


def start_states(case: Case, n: int, seed: int = 0) -> States:
    """n states on the ground, float32: half from random poses, half from the default pose, each then moved by C MuJoCo
    for 100 to 300 steps under random controls, the share of the range they use being each state's own.
    """
    rng, model = np.random.default_rng(seed), case.model
    batch = Batch(model, nsim=n, nthread=0)
    data = mujoco.MjData(model)
    poses = [_random_pose(model, data, rng) if i % 2 else case.default_qpos for i in range(n)]
    batch.bind("qpos")[:], batch.bind("qvel")[:] = np.array(poses), rng.normal(size=(n, model.nv)) * 0.3
    ctrl, center, half = batch.bind("ctrl"), (case.high + case.low) / 2, (case.high - case.low) / 2
    share = rng.uniform(0.2, 1.0, (n, 1))
    steps = np.sort(rng.integers(STEPS[0], STEPS[1] + 1, n))[rng.permutation(n)]
    for t in range(STEPS[1]):
        ctrl[:] = center + share * half * rng.uniform(-1.0, 1.0, (n, model.nu))
        batch.step(np.flatnonzero(steps > t))
    return {f: batch.bind(f).astype(np.float32) for f in ("qpos", "qvel", "qacc_warmstart")}


def controls(case: Case, count: int, n: int, seed: int = 1) -> np.ndarray:
    """[count, n, nu], float32."""
    rng = np.random.default_rng(seed)
    return rng.uniform(case.low, case.high, (count, n, case.model.nu)).astype(np.float32)


def reference(case: Case, states: States, ctrl: np.ndarray) -> States:
    """C MuJoCo's step, float64, with a solver that goes on for longer: qacc [n, nv]; ncon and nefc [n]."""
    tolerance, case.model.opt.tolerance = case.model.opt.tolerance, REFERENCE_TOLERANCE
    batch = Batch(case.model, nsim=len(ctrl), nthread=0)
    case.model.opt.tolerance = tolerance
    for name, value in {**states, "ctrl": ctrl}.items():
        batch.bind(name)[:] = value
    out = {name: batch.bind(name) for name in ("qacc", "ncon", "nefc")}
    batch.step()
    return {name: value if name == "qacc" else value.reshape(len(ctrl)) for name, value in out.items()}


def error(qacc: np.ndarray, answer: States) -> dict[str, float]:
    """Relative error of accelerations [n, nv], the largest of the dofs; over the worlds."""
    right = answer["qacc"]
    worst = np.abs(qacc - right).max(axis=1) / np.maximum(1.0, np.abs(right).max(axis=1))
    worst = np.where(np.isnan(worst), np.inf, worst)
    quantiles = {"median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {k: float(f"{np.quantile(worst, q, method='lower'):.3g}") for k, q in quantiles.items()}


def _has(model: mujoco.MjModel, field: str) -> bool:
    try:
        check_computed(field, model)
    except ValueError:
        return False
    return field != "sensordata" or model.nsensor > 0


def _control_range(model: mujoco.MjModel, default: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest control of each actuator: near the default pose for servos, all of the range for motors."""
    low, high = np.full(model.nu, -1.0), np.full(model.nu, 1.0)
    for u in range(model.nu):
        joint = model.actuator_trnid[u, 0]
        if model.actuator_biastype[u] == int(mujoco.mjtBias.mjBIAS_AFFINE):
            goal = default[model.jnt_qposadr[joint]]
            low[u], high[u] = np.clip([goal - SERVO_REACH, goal + SERVO_REACH], *model.jnt_range[joint])
        elif model.actuator_ctrllimited[u]:
            low[u], high[u] = model.actuator_ctrlrange[u]
        elif model.actuator_forcelimited[u]:
            low[u], high[u] = TORQUE_SHARE * model.actuator_forcerange[u]
    return low, high


def _random_pose(model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> np.ndarray:
    """qpos [nq]: joints anywhere in their ranges; a free robot anyhow, up to 10 cm above the ground."""
    qpos = model.qpos0.copy()
    joints = np.flatnonzero(np.isin(model.jnt_type, (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)))
    low, high = np.where(model.jnt_limited[joints, None] == 1, model.jnt_range[joints], [-1.0, 1.0]).T
    qpos[model.jnt_qposadr[joints]] = rng.uniform(low, high)
    if model.jnt_type[0] == int(mujoco.mjtJoint.mjJNT_FREE):
        quat = rng.normal(size=4)
        qpos[3:7] = quat / np.linalg.norm(quat)
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        qpos[2] += rng.uniform(0.0, 0.1) - lowest_point(model, data)
    return qpos
