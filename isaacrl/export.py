"""`isaacrl export`: a policy as ONNX, from the raw observation to the joint command, with a JSON contract.

Normalizer, scales, offsets, clips and the targets' low-pass are inside the network file; docs/export.md runs one.
Nothing is written unless onnxruntime gives the same joint targets as the environment did, over a recorded rollout with
resets in it.
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

from isaacrl import algos
from isaacrl.algos.recurrent import Recurrent
from isaacrl.contract import describe
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.runs import write_atomic
from isaacrl.task import Task
from isaacrl.terms.actions import Affine

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
        f"(allowed {TOLERANCE:.0e}, times a joint's scale where that is above 1)"
    )
    return contract


class Deployed(nn.Module):
    """Raw observation [N, D] -> (joint targets [N, n], action [N, A]), of n joints in the order of their actuators.

    `extra_inputs` names what else it takes, [N, n] each: joint_pos where a target is relative to the measured position,
    last_target (its own last output) where targets are smoothed. A recurrent policy takes h_in [N, H] last, zeros where
    an episode begins, else what it returned last in the step before, h_out.
    """

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
        terms = [m for m in maps for _ in m.actuators]
        self.terms = [terms[i] for i in order.tolist()]  # the action term of each joint target
        self.extra_inputs = ["joint_pos"] if any(m.relative for m in maps) else []
        self.extra_inputs += ["last_target"] if any(m.low_pass_hz for m in maps) else []
        self.hidden = policy.rnn.hidden_size if isinstance(policy, Recurrent) else 0  # H
        self.inputs = ["obs", *self.extra_inputs, *(["h_in"] if self.hidden else [])]
        self.outputs = ["joint_target", "action", *(["h_out"] if self.hidden else [])]
        blend = [1.0 if m.blend is None else m.blend for m in self.terms]
        table |= {"blend": torch.tensor(blend), "keep": torch.tensor([1.0 - b for b in blend])}
        self.register_buffer("relative", torch.tensor([m.relative for m in self.terms]))
        self.clip_obs = bool(torch.isfinite(table["obs_low"]).any() or torch.isfinite(table["obs_high"]).any())
        for name, value in table.items():
            # Infinite bounds become the largest float: not every runtime takes infinities as constants.
            self.register_buffer(name, torch.nan_to_num(value.detach().cpu().clone()))

    def forward(self, obs: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        extra = dict(zip(self.inputs[1:], more))
        if self.clip_obs:
            obs = torch.minimum(torch.maximum(obs, self.obs_low), self.obs_high)
        obs, h_out = obs * self.obs_scale, ()
        if self.hidden:
            action, *h_out = self.policy(obs, extra["h_in"])
        else:
            action = self.policy(obs)
        ordered = action.index_select(1, self.order)
        bounded = torch.minimum(torch.maximum(ordered, -self.action_clip), self.action_clip)
        offset = torch.where(self.relative, extra["joint_pos"], self.offset) if "joint_pos" in extra else self.offset
        target = torch.minimum(torch.maximum(offset + self.scale * bounded, self.low), self.high)
        if "last_target" in extra:
            target = self.blend * target + self.keep * extra["last_target"]
        return target, action, *h_out


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
    for term in env.task.actions:
        if not isinstance(term.fn, Affine):
            raise UserError(f"export: {term.key} is not one of isaacrl's action terms; only those can be exported")
    module = Deployed(env, copy.deepcopy(algo.deployed).cpu()).eval()
    fed, begins, target = _record(env, algo, steps, module)
    model = _to_onnx(module, fed)
    contract = describe(env, cfg, module, checkpoint)
    absolute, error = _parity(model, fed, begins, target, module)
    contract["parity"] = {
        "max_abs_error": absolute,
        "max_error": error,
        "tolerance": TOLERANCE,
        "rule": "max_error: absolute, in the target's unit; divided by the joint's scale where that is above 1",
        "samples": target.shape[0] * target.shape[1],
        "resets": int(begins[1:].sum()),
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
def _record(env: Env, algo: Any, steps: int, module: Deployed) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A rollout with resets in it: (what a robot would feed each input with [T, N, ...], which steps are the first of
    their episode [T, N], joint targets [T, N, n])."""
    worlds, s, act = min(env.num_envs, MAX_WORLDS), env.state, algo.controller(env)
    group = next((g for g in env.groups if g.name == "policy"), None)

    def joints(values: list[Tensor]) -> Tensor:
        return torch.cat(values, dim=1)[:worlds].cpu()[:, module.order]

    def start() -> Tensor:
        return joints([t.fn.start(s) for t in env.task.actions])

    rows: dict[str, list[Tensor]] = {"obs": [], "joint_pos": [], "last_target": []}
    targets, begins = [], [torch.ones(worlds, dtype=torch.bool)]
    env.reset()
    last = start()
    for t in range(steps):
        if t == steps // 2:  # a good policy may not fail by itself
            env.reset()
            last = start()
            begins[-1] = torch.ones_like(begins[0])
        raw = group.raw if group else env.obs["policy"]
        rows["obs"].append(raw[:worlds].cpu().clone())
        rows["joint_pos"].append(joints([t.fn.measured(s) for t in env.task.actions]))
        rows["last_target"].append(last)
        _, _, terminated, truncated, _ = env.step(act(env.obs["policy"]))
        targets.append(joints([t.fn.target for t in env.task.actions]))
        done = (terminated | truncated)[:worlds].cpu()
        last = torch.where(done[:, None], start(), targets[-1])
        begins.append(done)
    fed = {name: torch.stack(rows[name]) for name in ["obs", *module.extra_inputs]}
    return fed, torch.stack(begins[:-1]), torch.stack(targets)


def _to_onnx(module: Deployed, fed: dict[str, Tensor]) -> bytes:
    file = io.BytesIO()
    example = [value[0, :2] for value in fed.values()]
    example += [torch.zeros(len(example[0]), module.hidden)] if module.hidden else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter is deprecated; the new one takes 70 times as long
        torch.onnx.export(
            module,
            tuple(example),
            file,
            dynamo=False,
            opset_version=17,
            input_names=module.inputs,
            output_names=module.outputs,
            dynamic_axes={name: {0: "batch"} for name in module.inputs + module.outputs},
        )
    return file.getvalue()


def _with_metadata(model: bytes, contract: dict[str, Any]) -> bytes:
    """The contract travels inside the file as well."""
    import onnx

    proto = onnx.load_from_string(model)
    onnx.checker.check_model(proto)
    proto.metadata_props.add(key="isaacrl", value=json.dumps(contract))
    return proto.SerializeToString()


def _parity(
    model: bytes, fed: dict[str, Tensor], begins: Tensor, target: Tensor, module: Deployed
) -> tuple[float, float]:
    """Largest error of onnxruntime's joint targets against the recorded ones: absolute, and by TOLERANCE's rule.

    Step by step, so that a recurrent policy feeds on its own hidden states.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    arrays, ours = {k: v.numpy().astype(np.float32) for k, v in fed.items()}, []
    hidden = np.zeros((target.shape[1], module.hidden), np.float32)
    for t, begin in enumerate(begins.numpy()):
        feed = {k: v[t] for k, v in arrays.items()}
        if module.hidden:
            feed["h_in"] = np.where(begin[:, None], np.float32(0.0), hidden)
        joint_target, _, *more = session.run(module.outputs, feed)
        hidden = more[0] if more else hidden
        ours.append(joint_target)
    error = np.abs(np.stack(ours) - target.numpy())
    return float(error.max()), float((error / np.maximum(1.0, np.abs(module.scale.numpy()))).max())
