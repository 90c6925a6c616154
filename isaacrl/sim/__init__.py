"""The batched simulator: a scene, and engines that step many copies of it behind one interface."""

from collections.abc import Sequence
from typing import Any

import mujoco

from isaacrl.errors import UserError
from isaacrl.sim.engine import Actuation, Engine
from isaacrl.sim.scene import Scene, make_scene

__all__ = ["Actuation", "Engine", "Scene", "build", "make_scene"]


def build(model: mujoco.MjModel, num_envs: int, device: str, cfg: Any, actuation: Actuation,
          randomized_fields: Sequence[str] = ()) -> Engine:
    """The engine that cfg.engine names; with `auto`, the fastest that covers the model on this device.

    cfg: schema.SimConfig. engine.reason says in one line why this one.
    """
    chosen, reason = cfg.engine, "chosen by sim.engine"
    if chosen == "auto":
        chosen = "mujoco" if device == "cpu" else "mjwarp"
        reason = "the fastest on a CPU" if device == "cpu" else "the fastest on a GPU"
    if chosen == "mujoco":
        from isaacrl.sim.mujoco_engine import MujocoEngine

        if device != "cpu":
            raise UserError(f"sim.engine=mujoco runs on the CPU, but device={device}; use device=cpu or sim.engine=mjwarp")
        return MujocoEngine(model, num_envs, actuation, num_threads=cfg.num_threads,
                            randomized_fields=randomized_fields, reason=reason)
    from isaacrl.sim.mjwarp_engine import MjwarpEngine

    return MjwarpEngine(model, num_envs, device, actuation, cfg, randomized_fields=randomized_fields, reason=reason)
