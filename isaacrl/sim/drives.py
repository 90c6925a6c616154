"""Drives: gains, strength and delay of every actuator, with one value a world where they are randomized.

The fields `actuation.kp`, `actuation.kd`, `actuation.strength` and `actuation.delay`, each [E, nu], mean the same under
every law. Strength scales the torque that an actuator delivers, its limit included, so it lies in MuJoCo's actuator:
`gainprm`, `biasprm` and `forcerange`. The gains of MuJoCo's own servos lie there as well; those of the explicit law are
`Law`'s, and so is the delay.
"""

from collections.abc import Callable, Sequence

import mujoco
import numpy as np
import torch
from torch import Tensor

from isaacrl.sim.engine import DIRECT, PD, Actuation
from isaacrl.suggest import did_you_mean

FIELDS = ("actuation.kp", "actuation.kd", "actuation.strength", "actuation.delay")
MODEL_FIELDS = ("actuator_gainprm", "actuator_biasprm", "actuator_forcerange")
_FIXED, _AFFINE = int(mujoco.mjtGain.mjGAIN_FIXED), int(mujoco.mjtBias.mjBIAS_AFFINE)


def servos(model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """(position servos, velocity servos) among MuJoCo's actuators, boolean [nu]: gain kp and bias -kp q - kd qd, or
    gain kd and bias -kd qd."""
    gain, bias = model.actuator_gainprm, model.actuator_biasprm
    linear = (model.actuator_gaintype == _FIXED) & (model.actuator_biastype == _AFFINE) & (gain[:, 0] != 0.0)
    position = linear & (gain[:, 0] == -bias[:, 1])
    return position, linear & (bias[:, 1] == 0.0) & (gain[:, 0] == -bias[:, 2])


def target_kinds(model: mujoco.MjModel, actuation: Actuation) -> list[str | None]:
    """What each actuator takes as its target: effort, position or velocity; None where that is not plain to see."""
    position, velocity = servos(model)
    motor = (model.actuator_gaintype == _FIXED) & (model.actuator_biastype == int(mujoco.mjtBias.mjBIAS_NONE))
    position, motor = position | (actuation.law != DIRECT), motor & (actuation.law == DIRECT)
    plain = model.actuator_dyntype == int(mujoco.mjtDyn.mjDYN_NONE)
    kinds = np.select([plain & position, plain & velocity, plain & motor], ["position", "velocity", "effort"], "")
    return [str(kind) or None for kind in kinds]


def gains(model: mujoco.MjModel, actuation: Actuation) -> dict[str, np.ndarray]:
    """Compiled values of the four fields, [nu]; NaN where an actuator has no such gain."""
    position, velocity = servos(model)
    pd, gain, bias = actuation.law == PD, model.actuator_gainprm, model.actuator_biasprm
    return {
        "actuation.kp": np.where(pd, actuation.kp, np.where(position, gain[:, 0], np.nan)),
        "actuation.kd": np.where(pd, actuation.kd, np.where(position | velocity, -bias[:, 2], np.nan)),
        "actuation.strength": np.ones(model.nu),
        "actuation.delay": actuation.delay.astype(float),
    }


class Drives:
    """The randomized fields of an engine's actuators, and how they reach MuJoCo.

    values: field -> live tensor [E, nu]. needs: model fields that must have one value a world, derived by `write`.
    Raises: ValueError for an unknown field, or where needs are randomized themselves.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        actuation: Actuation,
        num_envs: int,
        device: str,
        dtype: torch.dtype,
        randomized: Sequence[str],
    ):
        names = [n for n in randomized if n.startswith("actuation.")]
        for name in names:
            if name not in FIELDS:
                raise ValueError(
                    f"'{name}' is no field of the actuators{did_you_mean(name, FIELDS)}; {', '.join(FIELDS)}"
                )

        def tensor(x: np.ndarray, kind: torch.dtype = dtype) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(x), dtype=kind, device=device)

        start = gains(model, actuation)
        self.values = {n: tensor(np.nan_to_num(start[n])).expand(num_envs, -1).clone() for n in names}
        position, velocity = servos(model)
        pd = actuation.law == PD
        in_model = {"actuation.strength": True, "actuation.kp": (position & ~pd).any()}
        in_model["actuation.kd"] = ((position | velocity) & ~pd).any()
        self.needs = MODEL_FIELDS if any(in_model.get(n, False) for n in names) else ()
        if clash := sorted(set(self.needs) & set(randomized)):
            raise ValueError(f"'{clash[0]}' and '{names[0]}' both set what an actuator delivers; randomize one of them")
        if "actuation.strength" in names:
            known = (_FIXED, int(mujoco.mjtGain.mjGAIN_AFFINE))
            for i in np.flatnonzero(~np.isin(model.actuator_gaintype, known)):
                name = model.actuator(i).name
                raise ValueError(f"'actuation.strength': actuator '{name}' is a muscle or has a gain of its own kind")
        self.position, self.velocity = tensor(position & ~pd, torch.bool), tensor(velocity & ~pd, torch.bool)
        self.gain, self.bias = tensor(model.actuator_gainprm[:, :3]), tensor(model.actuator_biasprm[:, :3])
        self.force = tensor(model.actuator_forcerange)

    def write(self, field: Callable[[str], Tensor]) -> None:
        """Set the model fields of `needs`, which field(name) gives, from the values. Nothing asks the device."""
        if not self.needs:
            return
        values, servo = self.values, self.position | self.velocity
        kp, kd = values.get("actuation.kp", self.gain[:, 0]), values.get("actuation.kd", -self.bias[:, 2])
        gain, bias = field("actuator_gainprm"), field("actuator_biasprm")
        gain[..., :3], bias[..., :3] = self.gain, self.bias
        gain[..., 0] = torch.where(self.position, kp, torch.where(self.velocity, kd, gain[..., 0]))
        bias[..., 1] = torch.where(self.position, -kp, bias[..., 1])
        bias[..., 2] = torch.where(servo, -kd, bias[..., 2])
        if "actuation.strength" in values:
            strength = values["actuation.strength"][..., None]
            gain[..., :3] *= strength
            bias[..., :3] *= strength
            field("actuator_forcerange").copy_(self.force * strength)
