"""Learning algorithms, each on an environment: prepare, iterate, controller, state_dict and load_state_dict."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from isaacrl import runs
from isaacrl.algos.ppo import PPO
from isaacrl.algos.sac import SAC
from isaacrl.algos.td3 import TD3
from isaacrl.errors import UserError
from isaacrl.terms.curriculum import hold

ALGORITHMS = {"ppo": PPO, "sac": SAC, "td3": TD3}
SMALL = 64  # networks up to this width run on one CPU thread
THREADS = torch.get_num_threads()  # as torch (or OMP_NUM_THREADS) chose


def build(env: Any, cfg: DictConfig) -> Any:
    """The algorithm that cfg.algo names, untrained, for this environment."""
    if env.device == "cpu":
        # Small networks gain nothing from a second thread, and threads that wait for each other lose much where
        # cores are shared with other programs.
        memory = [cfg.algo.rnn_hidden] if cfg.algo.get("recurrent", "none") != "none" else []
        small = max([*cfg.algo.hidden, *(cfg.algo.critic_hidden or []), *memory], default=0) <= SMALL
        torch.set_num_threads(1 if small else THREADS)
    return ALGORITHMS[cfg.algo.name](env, cfg.algo, cfg.seed)


def signature(env: Any) -> dict[str, Any]:
    """What a policy's inputs and outputs mean: stored with a checkpoint, compared when it is loaded."""
    groups = {g.name: [[t.name, n, h] for t, n, h in zip(g.terms, g.sizes, g.lengths)] for g in env.groups}
    return {
        "observations": groups,
        "num_obs": env.obs["policy"].shape[1],
        "num_actions": env.task.num_actions,
        "joints": list(env.state.robot.joint_names),
        "actuators": list(env.state.robot.actuator_names),
    }


def check_signature(stored: dict[str, Any], env: Any) -> None:
    """Raises UserError where a checkpoint's policy does not fit the environment."""
    mine = signature(env)
    for key, value in mine.items():
        if stored.get(key) != value:
            raise UserError(
                f"checkpoint: its {key} are {stored.get(key)}, this configuration's are {value}; "
                "use the run's own configuration"
            )


def load(env: Any, cfg: DictConfig, run: Path, which: str) -> tuple[Any, dict[str, Any]]:
    """The trained algorithm of a run, and the index entry of its checkpoint ('best', 'latest' or a path).

    The environment's curricula stand from now on where they stood in that checkpoint.
    """
    state, entry = runs.load_checkpoint(run, which)
    check_signature(state["signature"], env)
    algo = build(env, cfg)
    take_policy(algo, state)
    hold(env, state["env"]["env"])
    return algo, entry


def take_policy(algo: Any, state: dict[str, Any]) -> None:
    """Restore a checkpoint in order to act: without what only learning needs and takes room for."""
    restore(algo, state["algo"] | {"buffer": None})


def restore(algo: Any, state: dict[str, Any]) -> None:
    """Take over a checkpoint's state of the algorithm. Raises: UserError where its networks are others."""
    try:
        algo.load_state_dict(state)
    except RuntimeError as e:
        if "loading state_dict" not in str(e):
            raise
        raise UserError(
            "checkpoint: its networks are not those of this configuration; leave algo.hidden, algo.critic_hidden, "
            "algo.recurrent, algo.rnn_hidden, algo.tune_alpha and the other settings of networks as the run has them"
        ) from e
