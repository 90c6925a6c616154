"""Engine `mujoco`: C MuJoCo on CPU threads, through mujoco.batch. Float64; the reference for every other engine."""

import ctypes
import warnings
from collections.abc import Sequence
from pathlib import Path

import mujoco
import numpy as np
import torch
from mujoco.batch import DATA_FIELDS, MODEL_FIELDS, Batch, SimulationError
from torch import Tensor

from isaacrl.fuse import trace
from isaacrl.sim.actuators import Law
from isaacrl.sim.drives import FIELDS, Drives
from isaacrl.sim.engine import STATE_FIELDS, Actuation, check_computed
from isaacrl.suggest import did_you_mean

_W = mujoco.mjtWarning
_BAD = [_W.mjWARN_BADQPOS.value, _W.mjWARN_BADQVEL.value, _W.mjWARN_BADQACC.value, _W.mjWARN_BADCTRL.value]
_FULL = [_W.mjWARN_CONTACTFULL.value, _W.mjWARN_CNSTRFULL.value]
_VEL = mujoco.mjtStage.mjSTAGE_VEL.value
_NONE = mujoco.mjtStage.mjSTAGE_NONE.value


class MujocoEngine:
    """E persistent simulations of one model. See `isaacrl.sim.engine.Engine`."""

    name = "mujoco"
    device = "cpu"

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        actuation: Actuation,
        *,
        num_threads: int = 0,
        randomized_fields: Sequence[str] = (),
        reason: str = "",
    ):
        actuation.validate(model.nu)
        _silence()
        self.model, self.num_envs, self.actuation, self.reason = model, num_envs, actuation, reason
        # Persistent: fields are fresh after a step for free, since the next step continues from them.
        self.batch = Batch(model, nsim=num_envs, nthread=num_threads, persistent=True)
        self.drives = Drives(model, actuation, num_envs, "cpu", torch.float64, randomized_fields)
        self.law = Law(actuation, num_envs, "cpu", torch.float64, self.drives.values)
        self.overflow = torch.zeros(num_envs, dtype=torch.int64)
        self.nonfinite = torch.zeros(num_envs, dtype=torch.bool)
        self._fields: dict[str, Tensor] = {}
        self._model_fields: dict[str, Tensor] = dict(self.drives.values)
        for name in sorted({*randomized_fields, *self.drives.needs} - {*FIELDS}):
            if name not in MODEL_FIELDS:
                raise ValueError(f"'{name}' is not a model field{did_you_mean(name, [*MODEL_FIELDS, *FIELDS])}")
            self._model_fields[name] = _view(self.batch.expand(name))
        self._chosen = torch.ones(num_envs, dtype=torch.bool)
        self._target = torch.zeros(num_envs, model.nu, dtype=torch.float64)
        self._qpos, self._qvel, self._ctrl = self.field("qpos"), self.field("qvel"), self.field("ctrl")
        self.forward()

    def field(self, name: str) -> Tensor:
        if name not in self._fields:
            if name not in DATA_FIELDS:
                raise ValueError(f"'{name}' is not a simulator field{did_you_mean(name, DATA_FIELDS)}")
            check_computed(name, self.model)
            self._fields[name] = _view(self.batch.bind(name))
            if name not in STATE_FIELDS:
                self.forward()  # outputs are filled by calls that follow the request
        return self._fields[name]

    def write(self, name: str, value: Tensor, mask: Tensor | None = None) -> None:
        if name not in STATE_FIELDS:
            raise ValueError(
                f"'{name}' is not a state field{did_you_mean(name, STATE_FIELDS)}; those are {', '.join(STATE_FIELDS)}"
            )
        rows = self.field(name)
        if mask is None:
            rows.copy_(value)
        elif trace.may_ask("cpu"):
            rows[mask] = value.to(rows.dtype).expand_as(rows)[mask]
        else:
            rows.copy_(torch.where(mask.view(-1, *[1] * (rows.ndim - 1)), value.to(rows.dtype), rows))

    def reset(self, mask: Tensor | None = None) -> None:
        self._chosen.fill_(True) if mask is None else self._chosen.copy_(mask)
        trace.call(self._reset)

    def _reset(self) -> None:
        ids = np.flatnonzero(self._chosen.numpy())
        if len(ids):
            self.batch.reset(ids, stage=_NONE)
            self.law.reset(self._chosen)

    def step(self, n: int, target: Tensor) -> None:
        self._target.copy_(target)
        trace.call(lambda: self._step(n, self._target))

    def _step(self, n: int, target: Tensor) -> None:
        self.drives.write(self.model_field)
        before = self.batch.warning[:, :, 1].copy()
        failed = np.zeros(self.num_envs, bool)
        if self.law.is_direct:
            self._ctrl.copy_(target)
            failed |= self._advance(n)
        else:
            for _ in range(n):
                self._ctrl.copy_(self.law.control(target, self._qpos, self._qvel))
                failed |= self._advance(1)
        self._judge(before, failed)

    def _advance(self, n: int) -> np.ndarray:
        """n steps; where MuJoCo raised an error, [E]."""
        failed = np.zeros(self.num_envs, bool)
        try:
            self.batch.step(nstep=n, stage=_VEL)
        except SimulationError as e:
            failed[e.ids] = True
        return failed

    def _judge(self, before: np.ndarray, failed: np.ndarray) -> None:
        """Count overflows, and put worlds that failed back to the default state.

        Where a state is not finite or huge, MuJoCo itself resets the world and raises a warning's counter, but only
        when the next step begins, so the new state is looked at here.
        """
        warned = self.batch.warning[:, :, 1]
        limit = mujoco.mjMAXVAL
        largest = max(float(x.abs().amax()) for x in (self._qpos, self._qvel))  # NaN propagates
        if largest <= limit and not failed.any() and np.array_equal(warned, before):
            self.nonfinite.zero_()  # as nearly always
            return
        self.overflow += torch.from_numpy((warned[:, _FULL] > before[:, _FULL]).any(axis=1))
        bad = failed | (warned[:, _BAD] != before[:, _BAD]).any(axis=1)
        sound = (self._qpos.abs() <= limit).all(dim=1) & (self._qvel.abs() <= limit).all(dim=1)
        torch.logical_or(torch.from_numpy(bad), ~sound, out=self.nonfinite)
        if self.nonfinite.any():
            self.reset(self.nonfinite)
            self.forward(self.nonfinite)

    def forward(self, mask: Tensor | None = None) -> None:
        self._chosen.fill_(True) if mask is None else self._chosen.copy_(mask)
        trace.call(self._forward)

    def _forward(self) -> None:
        ids = np.flatnonzero(self._chosen.numpy())
        if len(ids) == 0:
            return
        ids = None if len(ids) == self.num_envs else ids
        before = self.batch.warning[:, _BAD, 1]
        try:
            self.batch.forward(ids, stage=_VEL)
        except SimulationError as e:  # as in a step: such a world starts anew
            self.nonfinite[torch.as_tensor(e.ids, dtype=torch.long)] = True
            self.batch.reset(e.ids, stage=_VEL)
            self.law.reset(self.nonfinite)
        bad = (self.batch.warning[:, _BAD, 1] != before).any(axis=1)
        if bad.any():  # what was written was not finite or huge: MuJoCo itself has put the world back
            self.nonfinite |= torch.from_numpy(bad)
            self.law.reset(torch.from_numpy(bad))

    def model_field(self, name: str) -> Tensor:
        if name not in self._model_fields:
            raise ValueError(f"model field '{name}' is shared by all worlds; name it in randomized_fields at build")
        return self._model_fields[name]

    def allow_delay(self, steps: int) -> None:
        self.law.allow_delay(steps)

    def set_const(self) -> None:
        trace.call(self.batch.set_const)
        self.forward()

    def state_dict(self) -> dict[str, Tensor]:
        out = {"state": torch.from_numpy(self.batch.state.copy()), "overflow": self.overflow.clone()}
        for name in sorted(MODEL_FIELDS):  # the randomized ones and what set_const derived from them
            if (values := self.batch.expanded(name)) is not None:
                out[f"model/{name}"] = torch.from_numpy(values.copy())
        out |= {f"drives/{k}": v.clone() for k, v in self.drives.values.items()}
        return out | {f"law/{k}": v.clone() for k, v in self.law.state().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for key, value in state.items():
            if key.startswith("model/"):
                self.batch.expand(key.removeprefix("model/"))[...] = value.numpy()
        self.batch.state[:] = state["state"].numpy()
        self.overflow.copy_(state["overflow"])
        for k, v in self.drives.values.items():
            v.copy_(state[f"drives/{k}"])
        for k, v in self.law.state().items():
            v.copy_(state[f"law/{k}"])
        self.forward()


def _view(array: np.ndarray) -> Tensor:
    """A zero-copy tensor; outputs are read-only arrays, of which torch only warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


class _LogConfig(ctypes.Structure):
    """mjLogConfig."""

    _fields_ = [
        ("logto_console", ctypes.c_bool),
        ("logto_file", ctypes.c_bool),
        ("logfile", ctypes.c_char * 1024),
        ("topics", ctypes.c_int),
    ]


def _silence() -> None:
    """Keep MuJoCo's warnings, which the counters report, from stderr and from MUJOCO_LOG.TXT in the working directory.

    Errors still become exceptions. The Python bindings do not offer these two functions of the C interface.
    """
    library = next(iter(sorted(Path(mujoco.__file__).parent.glob("libmujoco.*"))), None)
    if library is None:
        return
    mj = ctypes.CDLL(str(library))
    mj.mju_getLogConfig.restype, mj.mju_setLogConfig.argtypes = _LogConfig, [_LogConfig]
    config = mj.mju_getLogConfig()
    config.logto_console = config.logto_file = False
    mj.mju_setLogConfig(config)
