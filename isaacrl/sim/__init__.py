"""The batched simulator: a scene, and engines that step many copies of it behind one interface."""

from collections.abc import Sequence
from typing import Any

import mujoco
import torch

from isaacrl.errors import UserError
from isaacrl.sim.engine import Actuation, Engine
from isaacrl.sim.scene import Scene, make_scene

__all__ = ["Actuation", "Engine", "Scene", "build", "checked_device", "make_scene"]


def build(
    spec: mujoco.MjModel | mujoco.MjSpec,
    num_envs: int,
    device: str,
    cfg: Any,
    actuation: Actuation,
    randomized_fields: Sequence[str] = (),
) -> Engine:
    """The engine that cfg.engine names; with `auto`, the fastest that covers the model on this device.

    device: cpu, cuda or cuda:N. cfg: schema.SimConfig. engine.reason says in one line why this one.
    Raises: UserError where engine, device and model do not go together.
    """
    model = spec.compile() if isinstance(spec, mujoco.MjSpec) else spec
    device = checked_device(device)
    chosen, reason = cfg.engine, f"chosen by sim.engine={cfg.engine}"
    if chosen == "auto":
        chosen, reason = _fastest(model, device, randomized_fields, cfg.nconmax)
    if chosen == "mujoco":
        from isaacrl.sim.mujoco_engine import MujocoEngine

        if device != "cpu":
            raise UserError(
                f"sim.engine: mujoco runs on the CPU, but device={device}; use device=cpu or sim.engine=auto"
            )
        return MujocoEngine(
            model, num_envs, actuation, num_threads=cfg.num_threads, randomized_fields=randomized_fields, reason=reason
        )
    if chosen == "warp":
        from isaacrl.sim.warp_engine import WarpEngine

        return WarpEngine(model, num_envs, device, actuation, cfg, randomized_fields=randomized_fields, reason=reason)
    from isaacrl.sim.mjwarp_engine import MjwarpEngine

    return MjwarpEngine(model, num_envs, device, actuation, cfg, randomized_fields=randomized_fields, reason=reason)


def _fastest(
    model: mujoco.MjModel, device: str, randomized_fields: Sequence[str], nconmax: int | None = None
) -> tuple[str, str]:
    """(engine, reason): the fastest that covers the model on this device."""
    if device == "cpu":
        return "mujoco", "the fastest on a CPU"
    from isaacrl.sim.fused.coverage import explain
    from isaacrl.sim.warp_engine import uncovered

    if reasons := uncovered(model, randomized_fields, nconmax):
        return "mjwarp", f"{explain(reasons)}; using mjwarp"
    return "warp", "the fastest on a GPU"


def checked_device(device: str) -> str:
    """The device with its number, of auto the first GPU or else the CPU; UserError where there is none of that name."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if device == "cpu":
        return device
    if kind != "cuda" or number and not number.isdecimal():
        raise UserError(f"device: '{device}' is no device; use cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise UserError(f"device: '{device}', but there is no usable GPU; use device=cpu (`isaacrl doctor` says more)")
    if int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"device: '{device}', but this machine has {torch.cuda.device_count()} GPU(s), numbered from 0")
    return f"cuda:{number or 0}"
