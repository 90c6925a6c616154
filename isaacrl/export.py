"""`isaacrl export`: a policy as ONNX, from the raw observation to the joint command, with a JSON contract.

Normalizer, scales, offsets and clips are inside the network file. Nothing is written unless onnxruntime gives the same
joint targets as the environment did, over a recorded rollout with resets in it.
"""

import copy
import hashlib
import io
import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from isaacrl import __version__, algos
from isaacrl.env import Env, Task
from isaacrl.errors import UserError
from isaacrl.runs import write_atomic

TOLERANCE = 1e-5  # largest allowed error of a joint target, in its unit; divided by its scale where that is above 1:
# float32 itself rounds a force of 100 N to 8e-6 N
MAX_WORLDS = 64  # worlds of a recorded rollout


def export(options: Any, cfg: DictConfig, run_path: Path) -> dict[str, Any]:
    """Export a checkpoint of a run; the contract."""
    cfg = OmegaConf.merge(cfg, {"num_envs": min(cfg.num_envs, MAX_WORLDS), "seed": options.seed})
    env = Env(cfg)
    algo, entry = algos.load(env, cfg, run_path, options.checkpoint)
    contract = export_policy(env, algo, run_path, cfg, steps=options.steps, checkpoint=entry)
    print(f"policy:   {run_path / 'policy.onnx'}")
    print(f"contract: {run_path / 'policy.json'}")
    parity = contract["parity"]
    print(
        f"parity:   {parity['samples']} observations under onnxruntime, max error {parity['max_abs_error']:.1e} "
        f"(allowed {TOLERANCE:.0e})"
    )
    return contract


class Deployed(nn.Module):
    """Raw observation [N, D] -> (joint targets [N, nu], action [N, A])."""

    def __init__(self, env: Env, policy: nn.Module):
        super().__init__()
        self.policy = policy
        group = next((g for g in env.groups if g.name == "policy"), None)
        width = env.obs["policy"].shape[1]
        table = {
            "obs_low": group.low if group else torch.full((width,), -torch.inf),
            "obs_high": group.high if group else torch.full((width,), torch.inf),
            "obs_scale": group.scale if group else torch.ones(width),
        }
        maps = [t.fn for t in env.task.actions]
        columns = torch.tensor([a for m in maps for a in m.actuators])
        order = torch.argsort(columns)  # the policy's columns in the order of the actuators
        for name in ("action_clip", "scale", "offset", "low", "high"):
            table[name] = torch.cat([getattr(m, name).cpu() for m in maps])[order]
        self.order, self.columns = order, columns[order]
        self.clip_obs = bool(torch.isfinite(table["obs_low"]).any() or torch.isfinite(table["obs_high"]).any())
        for name, value in table.items():
            # Infinite bounds become the largest float: not every runtime takes infinities as constants.
            self.register_buffer(name, torch.nan_to_num(value.detach().cpu().clone()))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        if self.clip_obs:
            obs = torch.minimum(torch.maximum(obs, self.obs_low), self.obs_high)
        action = self.policy(obs * self.obs_scale)
        ordered = action.index_select(1, self.order)
        bounded = torch.minimum(torch.maximum(ordered, -self.action_clip), self.action_clip)
        target = torch.minimum(torch.maximum(self.offset + self.scale * bounded, self.low), self.high)
        return target, action


def export_policy(
    env: Env, algo: Any, run_path: Path, cfg: DictConfig, *, steps: int = 128, checkpoint: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write policy.onnx and policy.json for the algorithm's policy; the contract.

    The environment is stepped to record the rollout.

    Raises: UserError where the task computes its targets in code, or where onnxruntime disagrees with the environment.
    """
    if type(env.task).pre_physics_step is not Task.pre_physics_step or not env.task.actions:
        raise UserError(
            "export: this task computes its targets in code (pre_physics_step); "
            "only tasks with an `actions` table can be exported"
        )
    module = Deployed(env, copy.deepcopy(algo.policy).cpu()).eval()
    raw, target, resets = _record(env, algo, steps)
    model = _to_onnx(module, raw[:2])
    contract = _contract(env, cfg, module, checkpoint)
    absolute, error = _parity(model, raw, target[:, module.columns], module.scale)
    contract["parity"] = {
        "max_abs_error": absolute,
        "max_error": error,
        "tolerance": TOLERANCE,
        "rule": "max_error: absolute, in the target's unit; divided by the joint's scale where that is above 1",
        "samples": len(raw),
        "resets": resets,
        "onnxruntime": version("onnxruntime"),
    }
    if not error < TOLERANCE:
        raise UserError(
            f"export: onnxruntime differs from the environment by {error:.2e} (allowed {TOLERANCE:.0e}); "
            "nothing was written"
        )
    model = _with_metadata(model, contract)
    contract["sha256"] = hashlib.sha256(model).hexdigest()
    try:
        write_atomic(run_path / "policy.onnx", model)
        write_atomic(run_path / "policy.json", json.dumps(contract, indent=2) + "\n")
    except OSError as e:
        raise UserError(f"{run_path}: cannot write policy.onnx ({e.strerror or e})") from None
    return contract


@torch.no_grad()
def _record(env: Env, algo: Any, steps: int) -> tuple[Tensor, Tensor, int]:
    """(raw observations [n, D], targets given to the actuators [n, nu], resets) of a rollout with resets in it."""
    worlds = min(env.num_envs, MAX_WORLDS)
    group = next((g for g in env.groups if g.name == "policy"), None)
    env.reset()
    raws, targets, resets = [], [], 0
    for t in range(steps):
        if t == steps // 2:  # a good policy may not fail by itself
            env.reset()
            resets += worlds
        raw = group.raw if group else env.obs["policy"]
        raws.append(raw[:worlds].cpu().clone())
        _, _, terminated, truncated, info = env.step(algo.act(env.obs["policy"]))
        targets.append(info["target"][:worlds].cpu().clone())
        resets += int((terminated | truncated)[:worlds].sum())
    return torch.cat(raws), torch.cat(targets), resets


def _to_onnx(module: nn.Module, example: Tensor) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter is deprecated; the new one takes 70 times as long
        torch.onnx.export(
            module,
            (example,),
            file,
            dynamo=False,
            opset_version=17,
            input_names=["obs"],
            output_names=["joint_target", "action"],
            dynamic_axes={"obs": {0: "batch"}, "joint_target": {0: "batch"}, "action": {0: "batch"}},
        )
    return file.getvalue()


def _with_metadata(model: bytes, contract: dict[str, Any]) -> bytes:
    """The contract travels inside the file as well."""
    import onnx

    proto = onnx.load_from_string(model)
    onnx.checker.check_model(proto)
    proto.metadata_props.add(key="isaacrl", value=json.dumps(contract))
    return proto.SerializeToString()


def _parity(model: bytes, raw: Tensor, target: Tensor, scale: Tensor) -> tuple[float, float]:
    """Largest error of onnxruntime's joint targets against the recorded ones: absolute, and by TOLERANCE's rule."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    ours = session.run(["joint_target"], {"obs": raw.numpy().astype(np.float32)})[0]
    error = np.abs(ours - target.numpy())
    return float(error.max()), float((error / np.maximum(1.0, np.abs(scale.numpy()))).max())


def _contract(env: Env, cfg: DictConfig, module: Deployed, checkpoint: dict[str, Any] | None) -> dict[str, Any]:
    """Everything that code on a robot must know to use the policy. JSON: no infinities; None means unbounded."""
    model, s = env.engine.model, env.state
    group = next((g for g in env.groups if g.name == "policy"), None)
    actuation = env.engine.actuation
    kinds = {a: t.settings.get("fn", t.name) for t in env.task.actions for a in t.fn.actuators}
    unit = dict(zip(s.robot.joint_names, s.robot.joint_units))

    def bound(x: float) -> float | None:
        return float(x) if abs(float(x)) < 1e30 else None

    joints = []
    for i, a in enumerate(module.columns.tolist()):
        name = s.robot.joint_names[s.robot.driven_joints[a]]
        length = unit[name]
        kind = kinds[a]
        units = {"effort": "N" if length == "m" else "N m", "velocity": f"{length}/s"}.get(kind, length)
        gain, bias = model.actuator_gainprm[a], model.actuator_biasprm[a]
        explicit = actuation.law[a] == 1
        joints.append(
            {
                "joint": name,
                "target": kind,
                "unit": units,
                "scale": float(module.scale[i]),
                "offset": float(module.offset[i]),
                "action_clip": bound(module.action_clip[i]),
                "limits": [bound(module.low[i]), bound(module.high[i])],
                "kp": float(actuation.kp[a]) if explicit else float(-bias[1]),
                "kd": float(actuation.kd[a]) if explicit else float(-bias[2]),
                "gain": float(gain[0]),
                "effort_limit": bound(actuation.effort_limit[a])
                if explicit
                else (float(model.actuator_forcerange[a, 1]) if model.actuator_forcelimited[a] else None),
                "delay_s": float(actuation.delay[a]) * cfg.task.physics_dt,
            }
        )
    width = env.obs["policy"].shape[1]
    terms = (
        group.contract(s)
        if group
        else [
            {
                "name": "policy",
                "size": width,
                "history": 1,
                "offset": 0,
                "components": [],
                "scale": [1.0] * width,
                "clip": [None, None],
            }
        ]
    )
    return {
        "schema": 1,
        "isaacrl": __version__,
        "task": cfg.task.name,
        "robot": cfg.asset.name,
        "algo": cfg.algo.name,
        "checkpoint": checkpoint,
        "policy_hz": 1.0 / env.step_dt,
        "physics_dt": cfg.task.physics_dt,
        "decimation": cfg.task.decimation,
        "input": {
            "name": "obs",
            "dtype": "float32",
            "shape": [None, width],
            "terms": terms,
            "note": "raw SI values; clip, then scale and normalization are inside; history is oldest first",
        },
        "output": {"name": "joint_target", "dtype": "float32", "shape": [None, len(joints)], "joints": joints},
        "action_output": {
            "name": "action",
            "shape": [None, env.task.num_actions],
            "note": "the network's own output: what the observation `last_action` must be given",
        },
        "joint_order": list(s.robot.joint_names),
        "default_pose": dict(zip(s.robot.joint_names, s.robot.default_joint_pos.tolist())),
    }
