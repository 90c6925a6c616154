"""SAC beside Stable-Baselines3's, on gymnasium's own HalfCheetah, on the CPU.

    pip install stable-baselines3 "gymnasium[mujoco]"
    python benchmarks/versus_sb3_sac.py [--quick] [--seeds 5] [--steps 20000]

About 40 minutes on two cores; results/versus_sb3_sac.json.

1. Equality: the same states and actions give the same observations and rewards (1e-6) in both.
2. The classic algorithm, an update of 256 transitions for each one collected, on both sides: environment steps/s (SB3
   with 1 and with 16 environments, whichever is faster), and the return after the same number of samples.
3. isaacrl as it is by default, with 16 worlds: seconds until its return is what SB3's is at the end of its samples.

The return is that of 32 episodes without exploration in isaacrl's environment, the same ones for both sides; evaluation
is no part of any time. Same on both sides in part 2: the XML file, frame skip 5, 1000 steps an episode, observation,
reward, reset noise, 256-256 networks with ReLU, learning rate, discount, target's rate, entropy target and start,
lower of two critics, nothing normalized. Left different: SB3 acts at random for its first 100 steps; isaacrl steps 16
environments at once, so that its updates come in packs of 16; its networks start from orthogonal weights.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line does, before torch is imported

import numpy as np
import torch
from common import RESULTS, compared, machine, text_of

from isaacrl import algos
from isaacrl.config import compose
from isaacrl.env import Env
from isaacrl.timer import Timer

try:
    import gymnasium
    from stable_baselines3 import SAC
    from stable_baselines3.common.env_util import make_vec_env
except ModuleNotFoundError as e:
    sys.exit(f'{e}; pip install stable-baselines3 "gymnasium[mujoco]"')

HERE = Path(__file__).parent
XML = Path(gymnasium.__file__).parent / "envs/mujoco/assets/half_cheetah.xml"
CLASSIC = {
    "utd": 1.0,
    "batch_size": 256,
    "critic": "mean",
    "twin": "min",
    "layer_norm": False,
    "normalize_obs": False,
    "normalize_reward": False,
    "tau": 0.005,
    "alpha": 1.0,
    "lr": 3e-4,
    "n_step": 1,
    "gamma": 0.99,
    "hidden": "[256,256]",
    "warmup": 8,
    "num_steps": 8,
}
SETTINGS = {"num_envs": 16}  # and what isaacrl takes without being asked
EVERY = 2500  # samples between evaluations
WORLDS = 32


def make_env(num_envs: int, seed: int = 0, *overrides: str) -> tuple[Env, Any]:
    """Our environment on gymnasium's file, and its configuration."""
    given = [
        "task=gym_cheetah",
        f"asset.path={XML}",
        "device=cpu",
        "sim=mujoco",
        f"num_envs={num_envs}",
        f"seed={seed}",
    ]
    cfg = compose([*given, "algo=sac", *overrides], config_dir=str(HERE / "conf"))
    return Env(cfg), cfg


class Judge:
    """Returns of episodes without exploration."""

    def __init__(self) -> None:
        self.env, _ = make_env(WORLDS, 1000)
        self.start = self.env.state_dict()

    @torch.no_grad()
    def __call__(self, act: Any) -> float:
        env = self.env
        env.load_state_dict(self.start)
        total = torch.zeros(WORLDS)
        for _ in range(env.max_episode_steps):
            _, reward, *_ = env.step(act(env.obs["policy"]))
            total += reward
        return total.mean().item()


class Ours:
    """isaacrl's SAC."""

    def __init__(self, seed: int, num_envs: int, settings: dict[str, Any]):
        self.env, cfg = make_env(num_envs, seed, *(f"algo.{k}={v}" for k, v in settings.items()))
        self.algo, self.samples = algos.build(self.env, cfg), cfg.algo.num_steps * num_envs
        self.env.stagger()
        self.timer = Timer("cpu")

    def iterate(self) -> None:
        metrics = self.algo.iterate(self.timer)
        torch.stack([x.float() for x in metrics.values()]).tolist()
        self.env.read_metrics()

    def act(self, obs: torch.Tensor) -> torch.Tensor:
        return self.algo.act(obs)


class Theirs:
    """Stable-Baselines3's SAC at its defaults."""

    def __init__(self, seed: int, num_envs: int = 1):
        self.env = make_vec_env("HalfCheetah-v5", n_envs=num_envs, seed=seed)
        self.algo = SAC("MlpPolicy", self.env, gradient_steps=-1, seed=seed, device="cpu")
        self.samples = 128

    def iterate(self) -> None:
        self.algo.learn(self.samples, reset_num_timesteps=False)

    def act(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.algo.predict(obs.numpy(), deterministic=True)[0])


def save(name: str, result: dict[str, Any]) -> None:
    (RESULTS / f"{name}.json").write_text(text_of({"machine": machine(), **result}))


def equality(num_envs: int = 8, steps: int = 100) -> dict[str, Any]:
    """The largest differences between both environments from the same states under the same actions.

    Raises: SystemExit where one exceeds 1e-6, absolute or relative.
    """
    env, _ = make_env(num_envs)
    theirs: list[Any] = [gymnasium.make("HalfCheetah-v5") for _ in range(num_envs)]
    rng = np.random.default_rng(0)
    order = env.task.actions[0].fn.actuators
    worst = {"observation": 0.0, "reward": 0.0}
    qpos, qvel = env.engine.field("qpos"), env.engine.field("qvel")
    for i, other in enumerate(theirs):
        other.reset()
        other.unwrapped.set_state(qpos[i].numpy(), qvel[i].numpy())
    for _ in range(steps):
        action = rng.uniform(-1.0, 1.0, (num_envs, 6)).astype(np.float32)
        _, reward, _, _, info = env.step(torch.from_numpy(action[:, order]))
        for i, other in enumerate(theirs):
            obs, r, *_ = other.step(action[i])
            error = np.abs(info["final_obs"]["policy"][i].numpy() - obs) / np.maximum(np.abs(obs), 1.0)
            worst["observation"] = max(worst["observation"], float(error.max()))
            worst["reward"] = max(worst["reward"], abs(float(reward[i]) - float(r)) / max(abs(r), 1.0))
    limit = gymnasium.spec("HalfCheetah-v5").max_episode_steps
    if max(worst.values()) > 1e-6 or env.max_episode_steps != limit:
        sys.exit(f"the environments differ: {worst}, steps an episode {env.max_episode_steps} and {limit}")
    return {"steps": steps, "worlds": num_envs, "largest_difference": {k: float(v) for k, v in worst.items()}}


def speed(seconds: float) -> dict[str, Any]:
    """Steps/s of both, from iterations that alternate for about `seconds` after the buffers have a batch."""
    runs: dict[str, Any] = {
        "isaacrl, 16 worlds": Ours(0, 16, CLASSIC),
        "sb3, 1 environment": Theirs(0),
        "sb3, 16 environments": Theirs(0, 16),
    }
    for run in runs.values():
        for _ in range(4):
            run.iterate()
    took: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for name, run in runs.items():
            start = time.perf_counter()
            run.iterate()
            took[name].append(time.perf_counter() - start)
    rates = {k: runs[k].samples / statistics.median(v) for k, v in took.items()}
    ours, *theirs = rates.values()
    return {"steps_per_s": {k: round(v, 1) for k, v in rates.items()}, "ratio": round(ours / max(theirs), 2)}


def learn(run: Any, judge: Judge, steps: int, until: float | None = None) -> list[list[float]]:
    """Train for so many samples, or until a return is reached: (samples, seconds of training, return)."""
    curve, done, spent = [], 0, 0.0
    while done < steps:
        began = time.perf_counter()
        run.iterate()
        spent, done = spent + time.perf_counter() - began, done + run.samples
        if done // EVERY > (done - run.samples) // EVERY or done >= steps:
            curve.append([done, round(spent, 2), round(judge(run.act), 1)])
            if until is not None and curve[-1][2] >= until:
                break
    return curve


def learning(seeds: int, steps: int, save: Any) -> None:
    """Part 2's and part 3's trainings; save(result) after each."""
    judge = Judge()
    runs: dict[str, list[Any]] = {"isaacrl_classic": [], "sb3": [], "isaacrl": []}
    out: dict[str, Any] = {"samples": steps, "curves": runs}
    for seed in range(seeds):
        runs["sb3"].append(learn(Theirs(seed), judge, steps))
        runs["isaacrl_classic"].append(learn(Ours(seed, 16, CLASSIC), judge, steps))
        print(f"seed {seed}: " + ", ".join(f"{k} {v[-1][-1]}" for k, v in runs.items() if v), flush=True)
        save(out)
    if seeds > 1:
        out["classic"] = compared({k: [c[-1][2] for c in runs[k]] for k in ("isaacrl_classic", "sb3")})
    goal = statistics.fmean(c[-1][2] for c in runs["sb3"])
    theirs = statistics.fmean(c[-1][1] for c in runs["sb3"])
    out |= {"goal": round(goal, 1), "sb3_seconds": round(theirs, 1), "isaacrl_seconds": []}
    settings = {k: v for k, v in SETTINGS.items() if k != "num_envs"}
    for seed in range(seeds):
        curve = learn(Ours(seed, SETTINGS["num_envs"], settings), judge, 4 * steps, until=goal)
        runs["isaacrl"].append(curve)
        print(f"seed {seed}, by default: {curve[-1]}", flush=True)
        out["isaacrl_seconds"].append(curve[-1][1] if curve[-1][2] >= goal else None)
        save(out)
    if None not in out["isaacrl_seconds"]:
        out["sooner"] = round(theirs / statistics.fmean(out["isaacrl_seconds"]), 2)
    save(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="two minutes: one short seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20_000, help="samples of a training")
    args = parser.parse_args()
    name = "versus_sb3_sac" + ("_quick" if args.quick else "")
    result: dict[str, Any] = {"equality": equality()}
    result["speed"] = speed(10.0 if args.quick else 90.0)
    print(result["equality"], result["speed"], flush=True)
    seeds, steps = (1, 3_000) if args.quick else (args.seeds, args.steps)
    learning(seeds, steps, lambda found: save(name, result | {"learning": found}))
