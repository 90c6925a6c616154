"""Actuators: from a robot's configuration to MuJoCo's actuators, and the law that runs at every physics step."""

from collections.abc import Iterator, Mapping
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.sim.actuator_files import read_net
from isaacrl.sim.actuator_net import ActuatorNet, Evaluator
from isaacrl.sim.engine import DIRECT, NETWORK, PD, Actuation
from isaacrl.sim.names import match
from isaacrl.suggest import did_you_mean

_J = mujoco.mjtJoint

# Keys that each law takes besides `joints` and `law`; `delay` is in physics steps.
COMMON = {"effort_limit", "armature", "delay"}
NETWORK_KEYS = ("file", "lags", "input_order", "pos_scale", "vel_scale", "torque_scale")
LAWS = {
    "effort": COMMON,
    "position": COMMON | {"kp", "kd"},
    "velocity": COMMON | {"kd"},
    "pd": COMMON | {"kp", "kd", "saturation_effort", "velocity_limit"},
    "network": COMMON | {"saturation_effort", "velocity_limit", *NETWORK_KEYS},
}


def add_actuators(spec: mujoco.MjSpec, groups: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add one actuator a joint, in the model's joint order, named as the joint; the settings by joint name.

    effort: a motor. position: MuJoCo's position servo, kp (target - q) - kd qd, implicit in the integrator. velocity:
    kd (target - qd), implicit too. pd and network: a motor whose torque `Law` computes at every physics step.
    Any group at all replaces the actuators that the model brings.

    Raises: UserError for unknown laws, keys, joints, or a joint in two groups.
    """
    joints = [j for j in _joints(spec.worldbody) if j.name and j.type in (_J.mjJNT_HINGE, _J.mjJNT_SLIDE)]
    names = [j.name for j in joints]
    chosen: dict[str, dict[str, Any]] = {}
    for group, node in groups.items():
        key = f"asset.actuators.{group}"
        settings = _checked(key, node)
        patterns = node.get("joints", [".*"])
        for i in match([patterns] if isinstance(patterns, str) else patterns, names, f"{key}.joints"):
            if names[i] in chosen:
                other = chosen[names[i]]["group"]
                raise UserError(
                    f"{key}.joints: joint '{names[i]}' is already in asset.actuators.{other}; "
                    "give each joint to one group"
                )
            chosen[names[i]] = {"group": group} | settings
    if chosen:
        for own in list(spec.actuators):
            spec.delete(own)
        for keyframe in spec.keys:
            keyframe.ctrl = []  # its length was that of the model's own actuators
    for joint in joints:
        if joint.name in chosen:
            _add(spec, joint, chosen[joint.name])
    return chosen


def _joints(body: mujoco.MjsBody) -> Iterator[mujoco.MjsJoint]:
    """Joints in the order of the compiled model: depth first."""
    yield from body.joints
    for child in body.bodies:
        yield from _joints(child)


def _checked(key: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """A group's law and its numbers. Raises: UserError."""
    if not isinstance(node, Mapping):
        raise UserError(f'{key}: must be a group such as {{joints: [".*"], law: effort}}, not {node!r}')
    if not isinstance(joints := node.get("joints", []), str) and not (
        isinstance(joints, list) and all(isinstance(j, str) for j in joints)
    ):
        raise UserError(f"{key}.joints: {joints!r} is not a joint name or pattern, or a list of them")
    law = node.get("law", "effort")
    if law not in LAWS:
        raise UserError(f"{key}.law: unknown law '{law}'{did_you_mean(str(law), LAWS)}; one of {', '.join(LAWS)}")
    for k in node:
        if k not in LAWS[law] | {"joints", "law"}:
            raise UserError(
                f"{key}.{k}: law '{law}' does not take it{did_you_mean(k, LAWS[law])}; "
                f"it takes {', '.join(sorted(LAWS[law]))}"
            )
    needed = {"position": {"kp"}, "pd": {"kp"}, "velocity": {"kd"}, "network": {"file"}}.get(law, set())
    if "saturation_effort" in node or "velocity_limit" in node:
        needed = needed | {"saturation_effort", "velocity_limit"}  # one line through both
    if missing := sorted(needed - set(node)):
        raise UserError(f"{key}.{missing[0]}: law '{law}' needs it")
    settings: dict[str, Any] = {"law": law}
    if law == "network":
        settings["net"] = read_net(key, node)
    for k in sorted(set(node) - {"joints", "law", *NETWORK_KEYS}):
        try:
            settings[k] = float(node[k])
        except (TypeError, ValueError):
            settings[k] = float("nan")
        good, want = settings[k] >= 0.0, "a number >= 0"
        if k == "delay":
            good, want = good and settings[k] in range(1000), "a whole number of physics steps, 0 to 999"
        elif k == "velocity_limit":
            good, want = settings[k] > 0.0, "a number > 0"
        if not good:
            raise UserError(f"{key}.{k}: got {node[k]!r}; must be {want}")
    return settings


def _add(spec: mujoco.MjSpec, joint: mujoco.MjsJoint, node: dict[str, Any]) -> None:
    a = spec.add_actuator(name=joint.name, target=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    # The defaults of the model's own actuator classes are not meant for these.
    a.gear, a.ctrllimited, a.forcelimited, a.actlimited = [1, 0, 0, 0, 0, 0], 0, 0, 0
    limit, law = node.get("effort_limit", np.inf), node["law"]
    kp, kd = node.get("kp", 0.0), node.get("kd", 0.0)
    if law == "position":
        a.set_to_position(kp=kp, kv=kd)
    elif law == "velocity":
        a.set_to_velocity(kv=kd)
    else:
        a.set_to_motor()
    if np.isfinite(limit):
        a.forcelimited, a.forcerange = 1, [-limit, limit]
        if law == "effort":  # a target is a torque here alone
            a.ctrllimited, a.ctrlrange = 1, [-limit, limit]
    if "armature" in node:
        joint.armature = node["armature"]


def actuation_of(model: mujoco.MjModel, chosen: Mapping[str, Mapping[str, Any]]) -> Actuation:
    """The law of each of the compiled model's actuators; those that chosen does not name are direct."""
    law = Actuation.direct(model.nu)
    for i in range(model.nu):
        node = chosen.get(model.actuator(i).name)
        if node is None:
            continue
        law.delay[i] = int(node.get("delay", 0))
        law.effort_limit[i] = node.get("effort_limit", np.inf)
        if node["law"] in ("pd", "network"):
            joint = model.actuator_trnid[i, 0]
            law.law[i], law.kp[i], law.kd[i] = PD, node.get("kp", 0.0), node.get("kd", 0.0)
            if node["law"] == "network":
                net: ActuatorNet = node["net"]
                law.nets += () if net in law.nets else (net,)
                law.law[i], law.net[i] = NETWORK, law.nets.index(net)
            law.saturation_effort[i] = node.get("saturation_effort", np.inf)
            law.velocity_limit[i] = node.get("velocity_limit", np.inf)
            law.qpos_adr[i], law.qvel_adr[i] = model.jnt_qposadr[joint], model.jnt_dofadr[joint]
    law.validate(model.nu)
    return law


class Law:
    """The actuation law on a device: `control` once a physics step. E worlds, nu actuators.

    `line` [depth, E, nu] holds the targets of the last physics steps, newest first, where any actuator has a delay;
    `net` [E, nu, M] the memories of networks (`ActuatorNet`), where any actuator has one.
    values: live fields [E, nu] of `isaacrl.sim.drives`, which take the place of the actuation's own numbers.
    """

    def __init__(
        self,
        actuation: Actuation,
        num_envs: int,
        device: str,
        dtype: torch.dtype,
        values: Mapping[str, Tensor] | None = None,
    ):
        def tensor(x: np.ndarray, kind: torch.dtype = dtype) -> Tensor:
            return torch.as_tensor(x, dtype=kind, device=device)

        a, values = actuation, values or {}
        self.kp, self.kd = values.get("actuation.kp", tensor(a.kp)), values.get("actuation.kd", tensor(a.kd))
        self.effort_limit = tensor(a.effort_limit)
        self.stall = tensor(a.saturation_effort)
        # The line tau = stall (+-1 - qd / no-load speed); no line where either is unlimited.
        lined = np.isfinite(a.saturation_effort) & np.isfinite(a.velocity_limit)
        self.slope = tensor(np.where(lined, a.saturation_effort / np.where(lined, a.velocity_limit, 1.0), 0.0))
        self.explicit = tensor(a.law != DIRECT, torch.bool)
        self.any_pd, self.any_line = bool((a.law == PD).any()), bool(lined.any())
        of_net = [np.flatnonzero((a.law == NETWORK) & (a.net == k)) for k in range(len(a.nets))]
        self.nets = [(tensor(u, torch.long), Evaluator(n, device, dtype)) for u, n in zip(of_net, a.nets)]
        self.net: Tensor | None = None
        if a.nets:
            size = max(n.memory for n in a.nets)
            self.net = torch.zeros(num_envs, len(a.law), size, dtype=dtype, device=device)
        self.qpos_adr, self.qvel_adr = tensor(a.qpos_adr, torch.long), tensor(a.qvel_adr, torch.long)
        self.delay = values.get("actuation.delay", tensor(a.delay, torch.long))  # [E, nu] or [nu]
        self.fresh = torch.ones(num_envs, dtype=torch.bool, device=device)  # no target since the reset
        self.line: Tensor | None = None
        self.is_direct = actuation.is_direct
        self.allow_delay(int(a.delay.max(initial=0)))

    def allow_delay(self, steps: int) -> None:
        """Make room for delays of up to that many physics steps; longer ones are cut to it."""
        depth = 1 if self.line is None else len(self.line)
        if steps + 1 > depth:
            shape = (steps + 1, len(self.fresh), len(self.explicit))
            self.line = torch.zeros(shape, dtype=self.stall.dtype, device=self.fresh.device)
            self.fresh.fill_(True)
            self.is_direct = False

    def reset(self, mask: Tensor) -> None:
        """The first target after a reset fills the delay line; networks remember nothing."""
        self.fresh |= mask
        if self.net is not None:
            self.net.masked_fill_(mask[:, None, None], 0.0)

    def state(self) -> dict[str, Tensor]:
        """The live tensors that outlast a step."""
        lines = {"line": self.line, "net": self.net}
        return {"fresh": self.fresh} | {k: v for k, v in lines.items() if v is not None}

    def control(self, target: Tensor, qpos: Tensor, qvel: Tensor) -> Tensor:
        """Controls [E, nu] of this physics step from targets [E, nu] and the state at its start."""
        if self.line is not None:
            self.line.copy_(torch.cat((target[None], self.line[:-1])))
            self.line.copy_(torch.where(self.fresh[None, :, None], target[None], self.line))
            self.fresh.zero_()
            age = self.delay.round().clamp(0, len(self.line) - 1).long() if self.delay.ndim == 2 else self.delay
            target = self.line.gather(0, age.expand_as(target)[None])[0]
        if not self.any_pd and self.net is None:
            return target
        error, qd = target - qpos[:, self.qpos_adr], qvel[:, self.qvel_adr]
        torque = self.kp * error - self.kd * qd
        for units, evaluate in self.nets:
            made, memory = evaluate(self.net[:, units], error[:, units], qd[:, units])  # type: ignore[index]
            torque = torque.index_copy(1, units, made)
            self.net.index_copy_(1, units, memory)  # type: ignore[union-attr]
        low, high = -self.effort_limit, self.effort_limit
        if self.any_line:
            droop = self.slope * qd
            # Braking torque is bounded by the stall torque as well.
            low = torch.maximum(low, torch.minimum(-self.stall - droop, torch.zeros_like(qd)))
            high = torch.minimum(high, torch.maximum(self.stall - droop, torch.zeros_like(qd)))
        torque = torch.minimum(torch.maximum(torque, low), high)
        return torch.where(self.explicit, torque, target)
