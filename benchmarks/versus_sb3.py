"""PPO end to end beside Stable-Baselines3, on gymnasium's own Ant, on the CPU.

    pip install stable-baselines3 "gymnasium[mujoco]"
    python benchmarks/versus_sb3.py [--quick] [--seeds 5] [--steps 120000] [--out versus_sb3]

One run of about 25 minutes on two cores, three parts; results/versus_sb3.json.

1. Equality: the same states and actions give the same observations, rewards and terminations (1e-6) in both.
2. Speed: whole iterations (rollout and update) of both alternate; steps/s are of the median iteration.
   SB3 runs on DummyVecEnv and, with 16 environments, on SubprocVecEnv; the ratio is to the faster. Torch has one thread
   on both sides: minibatches are small, and SB3 is no faster with two.
3. Learning: the mean return of the episodes that end in the last fifth of the samples, for each seed.

Same on both sides: the XML file, RK4, frame skip 5, 1000 steps an episode, observation (27 numbers), reward,
termination, reset noise, bootstrapping at time-outs, 64-64 tanh networks and their initialization, and all settings of
PPO; nothing is normalized. Left different: SB3 normalizes advantages in each minibatch, isaacrl in each rollout; Adam's
eps is 1e-5 and 1e-8. Ant-v5 runs without contact forces, which is what Ant-v4 does by default. Its forward reward is of
the torso's `xpos`, which MuJoCo leaves one integrator stage behind the state that is observed; `Ant` below reads it up
to date. That skips one of gymnasium's calls and adds a cheaper one, so SB3 does not lose by it.

What bounds the ratio: both step the same C code. SB3 spends 0.22 ms a step in one environment on one core, of which
physics 0.17; two cores leave isaacrl's physics 0.09. So rollouts alone are about 2.5 times faster, and the more of
SB3's time goes to gradient steps (1.5 ms each against 0.2), the larger the ratio.
"""

import argparse
import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line does, before torch is imported

import mujoco
import numpy as np
import torch
from common import compared, write

from isaacrl import algos
from isaacrl.config import compose
from isaacrl.env import Env
from isaacrl.timer import Timer

try:
    import gymnasium
    from gymnasium.envs.mujoco.ant_v5 import AntEnv
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
except ModuleNotFoundError as e:
    sys.exit(f'{e}; pip install stable-baselines3 "gymnasium[mujoco]"')

HERE = Path(__file__).parent
XML = Path(gymnasium.__file__).parent / "envs/mujoco/assets/ant.xml"
VEC_ENVS = {"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": SubprocVecEnv}
# num_envs, num_steps, rows of a minibatch, epochs. Part 3 trains the first. Epochs and rows of the first two are those
# of rl-zoo's Walker2d, of the next two SB3's defaults; all four take SB3's default of 2048 samples.
SETTINGS = {
    "many updates, 64 worlds": (64, 32, 32, 20),
    "many updates, 16 worlds": (16, 128, 32, 20),
    "SB3's defaults, 64 worlds": (64, 32, 64, 10),
    "SB3's defaults, 16 worlds": (16, 128, 64, 10),
    "large minibatches, 64 worlds": (64, 128, 1024, 10),
    "large minibatches, 256 worlds": (256, 32, 1024, 10),
}


class Ant(AntEnv):
    """Ant-v5 whose forward reward is of the position that is observed. See above."""

    def _step_mujoco_simulation(self, ctrl: np.ndarray, n_frames: int) -> None:
        self.data.ctrl[:] = ctrl
        mujoco.mj_step(self.model, self.data, nstep=n_frames)
        mujoco.mj_kinematics(self.model, self.data)


ANT = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0}
gymnasium.register("FreshAnt-v5", entry_point=Ant, max_episode_steps=1000, kwargs=ANT)


def make_env(num_envs: int, seed: int = 0, *overrides: str) -> tuple[Env, Any]:
    """Our environment on gymnasium's file, and its configuration."""
    given = ["task=gym_ant", f"asset.path={XML}", "device=cpu", "sim=mujoco", f"num_envs={num_envs}", f"seed={seed}"]
    cfg = compose([*given, *overrides], config_dir=str(HERE / "conf"))
    return Env(cfg), cfg


class Ours:
    """isaacrl's PPO."""

    def __init__(self, num_envs: int, num_steps: int, batch: int, epochs: int, seed: int = 0):
        n = num_envs * num_steps
        sizes = {"num_steps": num_steps, "epochs": epochs, "minibatches": n // batch}
        self.env, cfg = make_env(num_envs, seed, *(f"algo.{k}={v}" for k, v in sizes.items()))
        self.algo, self.samples = algos.build(self.env, cfg), n
        self.timer = Timer("cpu")

    def iterate(self) -> list[float]:
        """One rollout and its updates; returns of the episodes that ended (their mean, once for each)."""
        self.algo.iterate(self.timer)
        metrics = self.env.read_metrics()
        return [metrics["return"]] * round(metrics["episodes"]) if "episodes" in metrics else []

    def close(self) -> None:
        pass


class Theirs:
    """Stable-Baselines3's PPO with the settings of task/gym_ant.yaml."""

    def __init__(self, num_envs: int, num_steps: int, batch: int, epochs: int, seed: int = 0, vec: str = "DummyVecEnv"):
        how = {"start_method": "fork"} if vec == "SubprocVecEnv" else {}
        self.env = make_vec_env(
            "FreshAnt-v5", n_envs=num_envs, seed=seed, vec_env_cls=VEC_ENVS[vec], vec_env_kwargs=how
        )
        cfg = compose(["task=gym_ant", f"asset.path={XML}"], config_dir=str(HERE / "conf")).algo
        self.algo = PPO(
            "MlpPolicy",
            self.env,
            learning_rate=cfg.lr,
            n_steps=num_steps,
            batch_size=batch,
            n_epochs=epochs,
            gamma=cfg.gamma,
            gae_lambda=cfg.gae_lambda,
            clip_range=cfg.clip,
            ent_coef=cfg.entropy_coef,
            vf_coef=cfg.value_coef,
            max_grad_norm=cfg.max_grad_norm,
            policy_kwargs={"net_arch": list(cfg.hidden), "log_std_init": math.log(cfg.init_std)},  # tanh by default
            seed=seed,
            device="cpu",
        )
        self.samples, self.log = num_envs * num_steps, EpisodeReturns()

    def iterate(self) -> list[float]:
        """One rollout and its updates; returns of the episodes that ended."""
        self.log.returns = []
        self.algo.learn(self.samples, callback=self.log, reset_num_timesteps=False)
        return self.log.returns

    def close(self) -> None:
        self.env.close()


class EpisodeReturns(BaseCallback):
    """Collects the returns that SB3's Monitor reports."""

    returns: list[float]

    def _on_step(self) -> bool:
        self.returns += [i["episode"]["r"] for i in self.locals["infos"] if "episode" in i]
        return True


def equality(num_envs: int = 8, steps: int = 100) -> dict[str, Any]:
    """The largest differences between both environments from the same states under the same actions.

    Raises: SystemExit where one exceeds 1e-6, absolute or relative.
    """
    env, _ = make_env(num_envs)
    theirs: list[Any] = [gymnasium.make("FreshAnt-v5") for _ in range(num_envs)]
    rng = np.random.default_rng(0)
    order = env.task.actions[0].fn.actuators  # ours are in the order of joints, theirs of actuators
    worst, ends = {"observation": 0.0, "reward": 0.0}, 0
    qpos, qvel = env.engine.field("qpos"), env.engine.field("qvel")
    fresh = range(num_envs)
    for _ in range(steps):
        for i in fresh:
            theirs[i].reset()
            theirs[i].unwrapped.set_state(qpos[i].numpy(), qvel[i].numpy())
        action = rng.uniform(-1.0, 1.0, (num_envs, 8)).astype(np.float32)
        _, reward, terminated, _, info = env.step(torch.from_numpy(action[:, order]))
        fresh = torch.nonzero(terminated)[:, 0].tolist()
        for i, other in enumerate(theirs):
            obs, r, ended, _, _ = other.step(action[i])
            if ended != bool(terminated[i]):
                sys.exit(f"world {i}: terminated is {bool(terminated[i])} here, {ended} in gymnasium")
            error = np.abs(info["final_obs"]["policy"][i].numpy() - obs) / np.maximum(np.abs(obs), 1.0)
            worst["observation"] = max(worst["observation"], float(error.max()))
            worst["reward"] = max(worst["reward"], abs(float(reward[i]) - float(r)) / max(abs(r), 1.0))
            ends += ended
    limit = gymnasium.spec("FreshAnt-v5").max_episode_steps
    if max(worst.values()) > 1e-6 or env.max_episode_steps != limit:
        sys.exit(f"the environments differ: {worst}, steps an episode {env.max_episode_steps} and {limit}")
    return {"steps": steps, "worlds": num_envs, "terminations": ends, "largest_difference": worst}


def speed(setting: tuple[int, int, int, int], seconds: float) -> dict[str, Any]:
    """Steps/s of both, from iterations that alternate for about `seconds`."""
    # SubprocVecEnv is one process an environment: only where there are few.
    theirs = [v for v in VEC_ENVS if v == "DummyVecEnv" or setting[0] <= 16]
    runs: dict[str, Any] = {"isaacrl": Ours(*setting)} | {v: Theirs(*setting, vec=v) for v in theirs}
    took: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    while len(took["isaacrl"]) < 4 or time.perf_counter() - began < seconds:
        for name, run in runs.items():
            start = time.perf_counter()
            run.iterate()
            took[name].append(time.perf_counter() - start)
    for run in runs.values():
        run.close()
    rates = {k: runs[k].samples / statistics.median(v[1:]) for k, v in took.items()}
    ratio = rates["isaacrl"] / max(rates[v] for v in theirs)
    names = ("num_envs", "num_steps", "minibatch_rows", "epochs")
    return dict(zip(names, setting)) | {
        "steps_per_s": {k: round(v) for k, v in rates.items()},
        "ratio": round(ratio, 2),
    }


def learn(run: Any, steps: int) -> dict[str, Any]:
    """Train; the return over the last fifth, the seconds, and the curve of (samples, mean return)."""
    curve: list[tuple[int, list[float]]] = []
    began = time.perf_counter()
    while (done := len(curve) * run.samples) < steps:
        curve.append((done + run.samples, run.iterate()))
    seconds = time.perf_counter() - began
    run.close()
    late = [r for n, returns in curve if n > 0.8 * steps for r in returns]
    bins = [[r for n, returns in curve if k * steps < 20 * n <= (k + 1) * steps for r in returns] for k in range(20)]
    return {
        "return": round(statistics.fmean(late), 2) if late else None,
        "seconds": round(seconds, 1),
        "curve": [[(k + 1) * steps // 20, round(statistics.fmean(b), 2)] for k, b in enumerate(bins) if b],
    }


def learning(setting: tuple[int, int, int, int], seeds: int, steps: int) -> dict[str, Any]:
    """Both from every seed; means and standard errors of the late return, and whether they differ (Welch's t)."""
    runs: dict[str, list[dict[str, Any]]] = {"isaacrl": [], "sb3": []}
    for seed in range(seeds):
        runs["isaacrl"].append(learn(Ours(*setting, seed=seed), steps))
        runs["sb3"].append(learn(Theirs(*setting, seed=seed), steps))
        print(f"seed {seed}: " + ", ".join(f"{k} {v[-1]['return']} in {v[-1]['seconds']} s" for k, v in runs.items()))
    out: dict[str, Any] = {"samples": steps, "runs": runs}
    values = {k: [r["return"] for r in v if r["return"] is not None] for k, v in runs.items()}
    if min(len(v) for v in values.values()) > 1:
        out |= compared(values)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a minute: fewer settings, one short seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120_000, help="samples of each training")
    parser.add_argument("--out", default="versus_sb3", help="name of the file under results/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"equality": equality()}
    print(result["equality"])
    chosen = dict(list(SETTINGS.items())[:1]) if args.quick else SETTINGS
    result["speed"] = {}
    for name, setting in chosen.items():
        result["speed"][name] = speed(setting, 8.0 if args.quick else 40.0)
        print(name, result["speed"][name])
    first = next(iter(SETTINGS))
    seeds, steps = (1, 20_480) if args.quick else (args.seeds, args.steps)
    result["learning"] = learning(SETTINGS[first], seeds, steps)
    write(args.out + ("_quick" if args.quick else ""), result)
