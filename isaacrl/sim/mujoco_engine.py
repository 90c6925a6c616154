"""Engine `mujoco`: C MuJoCo on CPU threads, through mujoco.batch. Float64; the reference for every other engine."""

import warnings
from collections.abc import Sequence

import mujoco
import numpy as np
import torch
from mujoco.batch import Batch, SimulationError
from torch import Tensor

from isaacrl.sim.actuators import Law
from isaacrl.sim.engine import STATE_FIELDS, Actuation

_W = mujoco.mjtWarning
_BAD = [_W.mjWARN_BADQPOS.value, _W.mjWARN_BADQVEL.value, _W.mjWARN_BADQACC.value, _W.mjWARN_BADCTRL.value]
_FULL = [_W.mjWARN_CONTACTFULL.value, _W.mjWARN_CNSTRFULL.value]
_VEL = mujoco.mjtStage.mjSTAGE_VEL.value


class MujocoEngine:
    """E persistent simulations of one model. See `isaacrl.sim.engine.Engine`."""

    name = "mujoco"
    device = "cpu"

    def __init__(self, model: mujoco.MjModel, num_envs: int, actuation: Actuation, *, num_threads: int = 0,
                 randomized_fields: Sequence[str] = (), reason: str = ""):
        self.model, self.num_envs, self.actuation, self.reason = model, num_envs, actuation, reason
        self.batch = Batch(model, nsim=num_envs, nthread=num_threads, persistent=True)
        self.law = Law(actuation, num_envs, "cpu", torch.float64)
        self.overflow = torch.zeros(num_envs, dtype=torch.int64)
        self.nonfinite = torch.zeros(num_envs, dtype=torch.bool)
        self._tensors: dict[str, Tensor] = {}
        self._model_tensors = {name: _view(self.batch.expand(name)) for name in randomized_fields}
        self.batch.forward(stage=_VEL)

    def field(self, name: str) -> Tensor:
        if name not in self._tensors:
            try:
                self._tensors[name] = _view(self.batch.bind(name))
            except AttributeError as e:
                raise ValueError(f"no simulator field '{name}': {e}") from None
            if name not in STATE_FIELDS:
                self.batch.forward(stage=_VEL)  # outputs are filled by the next call on
        return self._tensors[name]

    def write(self, name: str, value: Tensor, mask: Tensor | None = None) -> None:
        if name not in STATE_FIELDS:
            raise ValueError(f"'{name}' is not a state field; those are {', '.join(STATE_FIELDS)}")
        rows = self.batch.bind(name)
        if mask is None:
            rows[:] = value.numpy()
        else:
            chosen = mask.numpy()
            rows[chosen] = value.to(torch.float64).numpy()[chosen]

    def reset(self, mask: Tensor | None = None) -> None:
        chosen = np.ones(self.num_envs, bool) if mask is None else mask.numpy()
        ids = np.flatnonzero(chosen)
        if len(ids):
            self.batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
            self.law.reset(torch.from_numpy(chosen))

    def step(self, n: int, target: Tensor) -> None:
        target = target.to(torch.float64)
        ctrl, qpos, qvel = self.field("ctrl"), self.field("qpos"), self.field("qvel")
        before = self.batch.warning[:, :, 1].copy()
        failed: set[int] = set()
        if self.law.is_direct:
            ctrl.copy_(target)
            failed |= self._advance(n)
        else:
            for _ in range(n):
                ctrl.copy_(self.law.control(target, qpos, qvel))
                failed |= self._advance(1)
        self._judge(self.batch.warning[:, :, 1] - before, failed)

    def _advance(self, n: int) -> set[int]:
        """n steps; the simulations in which MuJoCo raised an error."""
        try:
            self.batch.step(nstep=n, stage=_VEL)
            return set()
        except SimulationError as e:
            return {int(i) for i in e.ids}

    def _judge(self, warned: np.ndarray, failed: set[int]) -> None:
        """Count overflows; put worlds that failed or were not finite (MuJoCo has reset them on its way) back to default."""
        self.overflow += torch.from_numpy((warned[:, _FULL] > 0).any(axis=1))
        bad = (warned[:, _BAD] > 0).any(axis=1) | ~np.isfinite(self.batch.bind("qvel")).all(axis=1)
        bad[list(failed)] = True
        self.nonfinite.copy_(torch.from_numpy(bad))
        if bad.any():
            self.reset(self.nonfinite)
            self.forward(self.nonfinite)

    def forward(self, mask: Tensor | None = None) -> None:
        ids = None if mask is None else np.flatnonzero(mask.numpy())
        if ids is None or len(ids):
            self.batch.forward(ids, stage=_VEL)

    def model_field(self, name: str) -> Tensor:
        if name not in self._model_tensors:
            raise ValueError(f"model field '{name}' is shared by all worlds; name it in randomized_fields at build")
        return self._model_tensors[name]

    def set_const(self) -> None:
        self.batch.set_const()
        self.batch.forward(stage=_VEL)

    def state_dict(self) -> dict[str, Tensor]:
        out = {"state": torch.from_numpy(self.batch.state.copy()), "overflow": self.overflow.clone(),
               "fresh": self.law.fresh.clone()}
        if self.law.line is not None:
            out["line"] = self.law.line.clone()
        return out | {f"model/{k}": v.clone() for k, v in self._model_tensors.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self._model_tensors.items():
            tensor.copy_(state[f"model/{name}"])
        if self._model_tensors:
            self.batch.set_const()
        self.batch.state[:] = state["state"].numpy()
        self.overflow.copy_(state["overflow"])
        self.law.fresh.copy_(state["fresh"])
        if self.law.line is not None:
            self.law.line.copy_(state["line"])
        self.batch.forward(stage=_VEL)


def _view(array: np.ndarray) -> Tensor:
    """A zero-copy tensor; outputs are read-only arrays, which torch only warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)
