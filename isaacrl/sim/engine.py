"""The interface of every physics engine: one meaning, several implementations.

An engine steps E copies ("worlds") of one compiled MuJoCo model. See "The engine interface" in docs/design.md.
"""

from dataclasses import dataclass, fields
from typing import Protocol

import mujoco
import numpy as np
from torch import Tensor

from isaacrl.sim.actuator_net import ActuatorNet

STATE_FIELDS = (
    "time",
    "qpos",
    "qvel",
    "act",
    "qacc_warmstart",
    "ctrl",
    "qfrc_applied",
    "xfrc_applied",
    "mocap_pos",
    "mocap_quat",
)
DIRECT, PD, NETWORK = 0, 1, 2

# Outputs that MuJoCo computes only for the sensors that need them, and those sensors.
_SENSORS = mujoco.mjtSensor
_SUBTREE = (_SENSORS.mjSENS_SUBTREELINVEL, _SENSORS.mjSENS_SUBTREEANGMOM)
_RNE = (
    _SENSORS.mjSENS_ACCELEROMETER,
    _SENSORS.mjSENS_FORCE,
    _SENSORS.mjSENS_TORQUE,
    _SENSORS.mjSENS_FRAMELINACC,
    _SENSORS.mjSENS_FRAMEANGACC,
)
ONLY_FOR_SENSORS = {
    "subtree_linvel": _SUBTREE,
    "subtree_angmom": _SUBTREE,
    "cacc": _RNE,
    "cfrc_int": _RNE,
    "cfrc_ext": _RNE,
}


@dataclass
class Actuation:
    """How targets become controls, applied at every physics step. One entry an actuator, arrays [nu] on the host.

    law DIRECT: ctrl = target (a motor's torque, or the target of MuJoCo's own position or velocity actuator).
    law PD: ctrl = clip(kp (target - q) - kd qd), the motor's torque; clipped to the effort limit and, where
    saturation_effort is finite, to the torque-speed line of a DC motor:
    saturation_effort (+-1 - qd / velocity_limit).
    law NETWORK: ctrl is the torque that a network makes of recent errors target - q and velocities, clipped likewise.
    """

    law: np.ndarray  # int: DIRECT, PD or NETWORK
    kp: np.ndarray  # [N m / rad or N / m]
    kd: np.ndarray  # [N m s / rad or N s / m]
    effort_limit: np.ndarray  # [N m or N], inf: none
    saturation_effort: np.ndarray  # stall torque [N m], inf: no torque-speed line
    velocity_limit: np.ndarray  # no-load speed [rad/s], inf: none
    delay: np.ndarray  # int, age of the target that is applied [physics steps]
    qpos_adr: np.ndarray  # int, the actuated joint's address in qpos (not DIRECT)
    qvel_adr: np.ndarray  # int, the actuated joint's address in qvel (not DIRECT)
    net: np.ndarray  # int, which of `nets` drives it (NETWORK)
    nets: tuple[ActuatorNet, ...] = ()

    @staticmethod
    def direct(nu: int) -> "Actuation":
        """Every target goes to ctrl as it is."""

        def every(value: float, dtype: type = float) -> np.ndarray:
            return np.full(nu, value, dtype)

        return Actuation(
            law=every(DIRECT, int),
            kp=every(0.0),
            kd=every(0.0),
            effort_limit=every(np.inf),
            saturation_effort=every(np.inf),
            velocity_limit=every(np.inf),
            delay=every(0, int),
            qpos_adr=every(0, int),
            qvel_adr=every(0, int),
            net=every(0, int),
        )

    @property
    def is_direct(self) -> bool:
        """Whether the law needs no work between physics steps."""
        return bool((self.law == DIRECT).all() and (self.delay == 0).all())

    def validate(self, nu: int) -> None:
        for f in fields(self):
            if f.name != "nets" and (n := len(getattr(self, f.name))) != nu:
                raise ValueError(f"actuation.{f.name} has {n} entries, the model {nu} actuators")


def check_computed(name: str, model: mujoco.MjModel) -> None:
    """Refuse an output that nothing computes in this model, which would silently stay zero.

    Raises: ValueError.
    """
    needed = ONLY_FOR_SENSORS.get(name)
    if needed and not np.isin(model.sensor_type, [int(s) for s in needed]).any():
        names = ", ".join(s.name.removeprefix("mjSENS_").lower() for s in needed)
        raise ValueError(f"field '{name}' is computed only for models with a sensor of type {names}; add one")


class Engine(Protocol):
    """What every engine offers. E worlds; tensors live on `device`."""

    name: str
    reason: str  # one line: why this engine
    model: mujoco.MjModel
    actuation: Actuation
    num_envs: int
    device: str
    overflow: Tensor  # [E] int64, steps so far in which contacts or constraint rows exceeded capacity
    nonfinite: Tensor  # [E] bool, worlds that failed in the last step; they are back at the default state

    def field(self, name: str) -> Tensor:
        """Live tensor of an MjData field, [E, ...]; computed from the first request on.

        `ncon` [E] is the number of contacts. Raises: ValueError for an unknown name.
        """
        ...

    def write(self, name: str, value: Tensor, mask: Tensor | None = None) -> None:
        """Set a state field in the worlds of mask [E] (None: all). Derived fields are stale until forward."""
        ...

    def reset(self, mask: Tensor | None = None) -> None:
        """Back to the model's default state in the worlds of mask."""
        ...

    def step(self, n: int, target: Tensor) -> None:
        """n physics steps under the actuation law; target [E, nu]."""
        ...

    def forward(self, mask: Tensor | None = None) -> None:
        """Make positions, velocities and what derives from them current after writes."""
        ...

    def model_field(self, name: str) -> Tensor:
        """Live, writable model field with one value a world, [E, ...]; mjOption's are `opt.gravity` and so on, and
        `actuation.kp`, `.kd`, `.strength`, `.delay` [E, nu] those of the actuators (`isaacrl.sim.drives`).

        Raises: ValueError unless the field was named in randomized_fields at build.
        """
        ...

    def allow_delay(self, steps: int) -> None:
        """Make room for values of `actuation.delay` up to that many physics steps; call it before the first step."""
        ...

    def set_const(self) -> None:
        """Recompute the model constants that derive from written model fields."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything the next step depends on, per-world model fields and delay buffers included."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore state_dict(); the next step is bit-identical on the same engine and machine."""
        ...
