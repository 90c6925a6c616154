"""An environment as a library object: `isaacrl.make`."""

from collections.abc import Sequence
from typing import Any

from isaacrl.config import compose
from isaacrl.env import Env


def make(task: str = "cartpole", *, overrides: Sequence[str] = (), **keys: Any) -> Env:
    """The environment of a task as a library object.

    task: a name under conf/task. keys: configuration keys without a dot (num_envs=64, device="cpu", seed=1, ...).
    overrides: any others, as on the command line ("task.rewards.alive.weight=2").
    """
    return Env(compose([f"task={task}", *overrides, *(f"{k}={v}" for k, v in keys.items())]))
