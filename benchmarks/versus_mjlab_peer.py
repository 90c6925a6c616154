"""mjlab's side of versus_mjlab.py: a process of its own, with mjlab's versions of MuJoCo and MuJoCo Warp.

    PYTHONPATH=SITE python benchmarks/versus_mjlab_peer.py --robot go1 --save-xml FOLDER
    PYTHONPATH=SITE python benchmarks/versus_mjlab_peer.py --robot go1 --num-envs 4096 --iterations 100 --out FILE

--save-xml writes ROBOT.xml, the robot of mjlab's flat velocity task as mjlab edits and compiles it, and ROBOT.json: the
compiled model's numbers and the task's settings, to which versus_mjlab.py holds isaacrl's. Otherwise it trains with
mjlab's own runner and writes what that reports, iteration by iteration.
"""

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

BEGAN = time.perf_counter()
TASKS = {"go1": "Mjlab-Velocity-Flat-Unitree-Go1", "g1": "Mjlab-Velocity-Flat-Unitree-G1"}
BASE = {"go1": "trunk", "g1": "pelvis"}
# What engine `warp` does not cover is changed in both models alike.
PATCHES = {
    "go1": "the trunk's box touches the ground alone (engine warp has no contacts between a box and the legs' spheres "
    "and capsules): trunk_collision has contype 0 and conaffinity 2, the ground contype 3",
    "g1": "",
}
PACKAGES = ("mjlab", "mujoco", "mujoco-warp", "warp-lang", "rsl-rl-lib", "tensordict", "torch")
# Imported by mjlab and rsl_rl at their start, used by viewers, videos, Weights & Biases and git logs alone.
UNUSED = ("viser", "mjviser", "trimesh", "wandb", "mediapy", "imageio_ffmpeg", "torchrunx", "git", "IPython")
_KEPT_SENSORS = ("imu_lin_vel", "imu_ang_vel")
_PPO = {  # rsl_rl's names of isaacrl's settings
    "epochs": "num_learning_epochs",
    "minibatches": "num_mini_batches",
    "lr": "learning_rate",
    "schedule": "schedule",
    "desired_kl": "desired_kl",
    "gamma": "gamma",
    "gae_lambda": "lam",
    "clip": "clip_param",
    "value_clip": "use_clipped_value_loss",
    "value_coef": "value_loss_coef",
    "entropy_coef": "entropy_coef",
    "max_grad_norm": "max_grad_norm",
}


def options() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--robot", choices=TASKS, required=True)
    p.add_argument("--save-xml", metavar="FOLDER", help="write the model and the settings, and stop")
    p.add_argument("--num-envs", type=int, default=4096)
    p.add_argument("--iterations", type=int, default=100)
    p.add_argument("--seconds", type=float, default=float("inf"), help="start no iteration after this long a training")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cuda:0")
    p.add_argument("--out", help="file of the result")
    args = p.parse_args()
    if not (args.save_xml or args.out):
        p.error("give --save-xml or --out")
    return args


# --- what both sides use ---------------------------------------------------------------------------------------------


def versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """Versions of installed packages."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def gpu_memory() -> float | None:
    """Memory of the first GPU in use, by all processes [MiB]."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    try:
        return float(subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0])
    except (OSError, ValueError):
        return None


def model_numbers(model: Any) -> dict[str, Any]:
    """What a compiled model's motion depends on, by name: of any version of MuJoCo."""
    import numpy as np

    def plain(x: Any) -> Any:
        return np.asarray(x, dtype=float).reshape(-1).tolist()

    def clean(name: str) -> str:
        return name.removeprefix("robot/")

    out: dict[str, Any] = {}
    of_body = ("body_mass", "body_inertia", "body_ipos", "body_iquat", "body_pos", "body_quat", "body_invweight0")
    root = int(model.jnt_bodyid[0])  # whose place is part of the state
    for b in range(1, model.nbody):
        if model.body_weldid[b]:  # not the ground
            here = [f for f in of_body if b != root or f not in ("body_pos", "body_quat")]
            out[f"body {clean(model.body(b).name)}"] = {f: plain(getattr(model, f)[b]) for f in here}
    of_joint = ("jnt_type", "jnt_axis", "jnt_pos", "jnt_limited", "jnt_range", "jnt_stiffness", "jnt_margin")
    of_dof = ("dof_armature", "dof_damping", "dof_frictionloss", "dof_invweight0")
    for j in range(1, model.njnt):
        numbers = {f: plain(getattr(model, f)[j]) for f in (*of_joint, "jnt_solref", "jnt_solimp")}
        numbers |= {f: plain(getattr(model, f)[model.jnt_dofadr[j]]) for f in of_dof}
        out[f"joint {clean(model.joint(j).name)}"] = numbers
    of_actuator = ("gaintype", "biastype", "gainprm", "biasprm", "gear", "ctrllimited", "forcelimited", "forcerange")
    for i in range(model.nu):
        joint = clean(model.joint(model.actuator_trnid[i, 0]).name)
        out[f"actuator of {joint}"] = {f: plain(getattr(model, f"actuator_{f}")[i]) for f in of_actuator}
    of_geom = ("type", "size", "contype", "conaffinity", "condim", "priority", "friction", "solref", "solimp", "solmix")
    for g in range(model.ngeom):
        if model.geom_contype[g] or model.geom_conaffinity[g]:
            ground = not model.body_weldid[model.geom_bodyid[g]]
            fields = (*of_geom, "margin", "gap", *(() if ground else ("pos", "quat")))
            numbers = {f: plain(getattr(model, f"geom_{f}")[g]) for f in fields}
            out["ground" if ground else f"geom {clean(model.geom(g).name)}"] = numbers
    of_options = ("timestep", "integrator", "solver", "cone", "impratio", "iterations", "ls_iterations", "tolerance")
    names = (*of_options, "ls_tolerance", "gravity", "density", "viscosity")
    out["options"] = {f: plain(getattr(model.opt, f)) for f in names}
    out["excluded pairs of bodies"] = {"number": [float(model.nexclude)]}
    return out


# --- mjlab -----------------------------------------------------------------------------------------------------------


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules in the place of packages that are not installed and that training does not use."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname.split(".")[0] in UNUSED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = _anything  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def _anything(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"__init__": lambda self, *args, **kwargs: None})


def settings(robot: str, num_envs: int = 1) -> tuple[Any, Any]:
    """mjlab's own configuration of the task and of its runner, the task's model patched."""
    sys.meta_path.append(Absent())  # after those that find what is installed
    os.environ.setdefault("MJLAB_WARP_QUIET", "1")
    import mjlab.tasks  # noqa: F401
    from mjlab.tasks.registry import load_env_cfg, load_rl_cfg

    env_cfg, agent = load_env_cfg(TASKS[robot]), load_rl_cfg(TASKS[robot])
    env_cfg.scene.num_envs = num_envs
    if robot == "go1":

        def edit(spec: Any) -> None:
            trunk, ground = spec.geom("robot/trunk_collision"), spec.geom("terrain")
            trunk.contype, trunk.conaffinity, ground.contype = 0, 2, 3

        env_cfg.scene.spec_fn = edit
    return env_cfg, agent


def save_xml(args: argparse.Namespace) -> None:
    """FOLDER/ROBOT.xml and FOLDER/ROBOT.json."""
    env_cfg, agent = settings(args.robot)
    import mujoco
    from mjlab.scene import Scene

    scene = Scene(env_cfg.scene, device="cpu")
    spec = scene.spec
    env_cfg.sim.mujoco.apply(SimpleNamespace(opt=spec.option))
    compiled = spec.compile()
    start = compiled.key("init_state").qpos
    facts = model_numbers(compiled)

    # Nothing below moves differently: the ground becomes the world's own, the base's first place that of mjlab's first
    # state, and what is there for pictures or for mjlab's own sensors goes.
    ground = spec.geom("terrain")
    own = {k: getattr(ground, k) for k in ("contype", "conaffinity", "condim", "priority", "friction", "solref")}
    own |= {k: getattr(ground, k) for k in ("solimp", "solmix", "margin", "gap", "size")}
    plane = spec.worldbody.add_geom(name="ground", type=mujoco.mjtGeom.mjGEOM_PLANE)
    for name, value in own.items():
        setattr(plane, name, value)
    spec.delete(spec.body("terrain"))
    base = spec.body(f"robot/{BASE[args.robot]}")
    base.pos, base.quat = start[:3], start[3:7]
    kept = [f"robot/{name}" for name in _KEPT_SENSORS]
    gone = [g for g in spec.geoms if not (g.contype or g.conaffinity)]
    gone += [s for s in spec.sensors if s.name not in kept]
    gone += [*spec.keys, *spec.cameras, *spec.lights]
    for element in gone:
        spec.delete(element)
    for element in [*spec.meshes, *spec.materials, *spec.textures]:
        spec.delete(element)
    spec.compile()
    folder = Path(args.save_xml)
    folder.mkdir(parents=True, exist_ok=True)
    xml = spec.to_xml()
    # The ground's class of defaults has no name; the robot's first one has that of the world's.
    for old, new in (("<default/>", ""), ("robot/main", "robot"), ("robot/", "")):
        xml = xml.replace(old, new)
    (folder / f"{args.robot}.xml").write_text(xml)

    joints = [compiled.joint(j) for j in range(1, compiled.njnt)]
    pose = {j.name.removeprefix("robot/"): float(start[j.qposadr[0]]) for j in joints}
    scale = env_cfg.actions["joint_pos"].scale
    result = {
        "model": facts,
        "default_pose": pose,
        "action_scale": {n: next(float(v) for k, v in scale.items() if re.fullmatch(k, n)) for n in pose},
        "rewards": {n: t.weight for n, t in env_cfg.rewards.items() if t.weight},
        "task": {
            "physics_dt": env_cfg.sim.mujoco.timestep,
            "decimation": env_cfg.decimation,
            "episode_length_s": env_cfg.episode_length_s,
        },
        "ppo": {ours: getattr(agent.algorithm, theirs) for ours, theirs in _PPO.items()}
        | {
            "num_steps": agent.num_steps_per_env,
            "hidden": list(agent.actor.hidden_dims),
            "critic_hidden": list(agent.critic.hidden_dims),
            "activation": agent.actor.activation,
            "init_std": agent.actor.distribution_cfg["init_std"],
            "normalize_obs": agent.actor.obs_normalization and agent.critic.obs_normalization,
        },
        "versions": versions(PACKAGES),
    }
    (folder / f"{args.robot}.json").write_text(json.dumps(result))


class Sections:
    """Seconds spent in wrapped functions, by CUDA events that are read once an iteration."""

    def __init__(self, cuda: bool):
        self.cuda, self.pairs = cuda, []

    def wrap(self, owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            first = self._mark()
            result = inner(*args, **kwargs)
            self.pairs.append((first, self._mark()))
            return result

        setattr(owner, name, timed)

    def _mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> float:
        seconds = sum(a.elapsed_time(b) / 1e3 if self.cuda else b - a for a, b in self.pairs)
        self.pairs.clear()
        return seconds


class Enough(Exception):
    """The time is over."""


class Record:
    """What an iteration took, as the runner reports it, and the means over its steps of rewards and falls.

    The means cost three small operations a step on the device, which count as mjlab's time.
    """

    def __init__(self, env: Any, runner: Any, seconds: float):
        import torch

        self.rewards, self.seconds, self.rows, self.runner = env.reward_manager, seconds, [], runner
        self.ended, self.env = env.termination_manager, env
        self.sums = torch.zeros(len(self.rewards.active_terms) + 3, device=env.device)
        self.physics = Sections(str(env.device).startswith("cuda"))
        for name in ("step", "forward", "reset"):
            self.physics.wrap(env.sim, name)
        compute = self.rewards.compute

        def computed(dt: float) -> Any:
            value = compute(dt)
            falls, ends = self.ended.terminated.sum(), self.ended.dones.sum()
            one = torch.ones_like(falls)
            self.sums += torch.cat((self.rewards._step_reward.mean(0), torch.stack((falls, ends, one)).float()))
            return value

        self.rewards.compute = computed
        runner.logger.log = self.log

    def start(self) -> None:
        self.sums.zero_()
        self.physics.pairs.clear()
        self.began = time.perf_counter()

    def log(self, *, it: int, collect_time: float, learn_time: float, **_: Any) -> None:
        """In the place of the runner's logger, which writes nowhere."""
        *terms, falls, ends, steps = self.sums.tolist()
        self.sums.zero_()
        means = {f"reward/{n}": v / steps for n, v in zip(self.rewards.active_terms, terms)}
        row = {"wall_s": time.perf_counter() - self.began, "collect_s": collect_time, "learn_s": learn_time}
        row |= {"sim_s": self.physics.read(), "reward": sum(means.values()), "falls": falls, "ends": ends} | means
        self.rows.append(row)
        print(f"mjlab {it} {row['wall_s']:.1f} s, reward {row['reward']:.3f}", file=sys.stderr, flush=True)
        if row["wall_s"] >= self.seconds:
            raise Enough


def train(args: argparse.Namespace) -> dict[str, Any]:
    """As mjlab.scripts.train does it, without files."""
    before = gpu_memory()
    env_cfg, agent = settings(args.robot, args.num_envs)
    import torch
    from mjlab.envs import ManagerBasedRlEnv
    from mjlab.rl import RslRlVecEnvWrapper
    from mjlab.tasks.registry import load_runner_cls
    from mjlab.utils.torch import configure_torch_backends

    configure_torch_backends()
    env_cfg.seed = agent.seed = args.seed
    env = ManagerBasedRlEnv(cfg=env_cfg, device=args.device)
    runner_class: Any = load_runner_cls(TASKS[args.robot])
    runner = runner_class(RslRlVecEnvWrapper(env, clip_actions=agent.clip_actions), asdict(agent), None, args.device)
    record = Record(env, runner, args.seconds)
    ready = time.perf_counter() - BEGAN
    record.start()
    try:
        runner.learn(num_learning_iterations=args.iterations, init_at_random_ep_len=True)
    except Enough:
        pass
    cuda = torch.cuda.is_available()
    groups = env.observation_manager.group_obs_dim
    after = gpu_memory()
    return {
        "start_s": ready,
        "gpu_mib": None if before is None or after is None else after - before,
        "torch_mib": torch.cuda.max_memory_reserved() / 2**20 if cuda else None,
        "observations": {"policy": groups["actor"][0], "critic": groups["critic"][0]},
        "precision": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "float32",
        "versions": versions(PACKAGES),
        "rows": record.rows,
    }


if __name__ == "__main__":
    arguments = options()
    if arguments.save_xml:
        save_xml(arguments)
    else:
        Path(arguments.out).write_text(json.dumps(train(arguments)))
