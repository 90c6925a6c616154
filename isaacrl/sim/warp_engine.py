"""Engine `warp`: our own physics step, all of it in one kernel launch. Float32, on NVIDIA GPUs and, to test it, a CPU.

The kernel is in `isaacrl/sim/fused`. Every array that it reads or writes is a torch tensor; it finds them through a
table of addresses on the device, so an output that somebody asks for later is written from the next launch on.
"""

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
import torch
import warp as wp
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.fuse import trace
from isaacrl.sim.actuators import Law
from isaacrl.sim.capacity import contacts_of
from isaacrl.sim.drives import FIELDS, Drives
from isaacrl.sim.engine import STATE_FIELDS, Actuation, check_computed
from isaacrl.sim.fused import constants, coverage, kernel, layout, tables
from isaacrl.sim.streams import Launcher  # starts Warp
from isaacrl.suggest import did_you_mean

_OWN_NAMES = {"qacc_warmstart": "warm", "xfrc_applied": "xfrc", "solver_niter": "niter"}
_VELOCITIES = ("cvel", "subtree_com", "actuator_velocity")
_FIELDS = (*STATE_FIELDS, "solver_niter", *(f for f in (*tables.STATE_OUTPUTS, *tables.FORCE_OUTPUTS) if f != "niter"))
_COUNTS = ("ncon", "nefc", "niter")
_SMALL = tuple(f for f in tables.FORCE_OUTPUTS if f != "sensordata")
FAST_CONTACTS = 8  # of a world at most, whose rows are in scratch memory; measured
LEAST_TOLERANCE = 1e-6  # of the solver: below, float32 has nothing left to gain (mujoco-warp has the same bound)


class WarpEngine:
    """E worlds of one model on one device. See `isaacrl.sim.engine.Engine`."""

    name = "warp"

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        device: str,
        actuation: Actuation,
        cfg: Any,
        *,
        randomized_fields: Sequence[str] = (),
        reason: str = "",
    ):
        actuation.validate(model.nu)
        for name in randomized_fields:
            if name not in coverage.FIELDS and not hasattr(*_owner(model, name)):
                hint = did_you_mean(name, coverage.FIELDS)
                raise ValueError(f"'{name}' is no model field with one value a world{hint}")
        self.nconmax = cfg.nconmax or contacts_of(model)
        if reasons := uncovered(model, randomized_fields, self.nconmax):
            other = "mujoco" if device == "cpu" else "mjwarp"
            raise UserError(f"sim.engine: {coverage.explain(reasons)}; use sim.engine={other}")
        self.model, self.num_envs, self.device = model, num_envs, device
        self.actuation, self.reason = actuation, reason
        self._launcher = Launcher(device, use_graph=False)  # one launch: a graph of it would gain nothing
        self._randomized = set(randomized_fields)
        self.drives = Drives(model, actuation, num_envs, device, torch.float32, randomized_fields)
        self.law = Law(actuation, num_envs, device, torch.float32, self.drives.values)
        self._own = (self._randomized | set(self.drives.needs)) - {"actuation.strength"}
        self._derive = None
        if varied := self._own & {*constants.FIELDS}:
            self._derive = constants.Constants(model, device, varied)
            self._own |= {"body_invweight0", "dof_invweight0"}
        self._own -= {n for n in ("actuation.kp", "actuation.kd") if not self.law.any_pd}
        self._everywhere = torch.ones(num_envs, dtype=torch.bool, device=device)
        self.overflow = self._new(dtype=torch.int64)
        self.nonfinite = self._new(dtype=torch.bool)
        self._arrays: dict[str, Tensor] = {
            "qpos": self._new(model.nq),
            "qvel": self._new(model.nv),
            "warm": self._new(model.nv),
            "target": self._new(model.nu),
            "time": self._new(),
            "overflow": self.overflow,
            "nonfinite": self.nonfinite,
            "fresh": self.law.fresh,
            "mask": self._new(dtype=torch.bool),
        }
        self._model_fields = {f: self._model_tensor(f) for f in sorted(self._own - {*FIELDS})} | self.drives.values
        self._template = mujoco.MjData(model)
        # Where a reset starts, [E, ...] or [1, ...]; of mocap bodies the rows `_mocap` of what holds for all bodies.
        start = {"qpos": "qpos0", "mocap_pos": "body_pos", "mocap_quat": "body_quat"}
        self._default = {
            name: self._model_fields[f] if f in self._model_fields else self._model_tensor(f)[:1]
            for name, f in start.items()
        }
        mocap = np.argsort(model.body_mocapid)[model.nbody - model.nmocap :]
        self._mocap = torch.as_tensor(mocap, device=device)
        for name in ("mocap_pos", "mocap_quat"):
            if model.nmocap:
                self._arrays[name] = self._new(model.nmocap, 3 if name == "mocap_pos" else 4)
        # Outputs of a physics step cannot be had later, when somebody asks for them; the small ones are always kept.
        of_forces = (model.sensor_needstage == int(mujoco.mjtStage.mjSTAGE_ACC)).any()
        for name in ("ctrl", *_SMALL, *(("sensordata",) if of_forces else ())):
            self._arrays[name] = self._blank(name)
        self._progress = torch.zeros(num_envs + 1, dtype=torch.int32, device=device)  # of launches in rounds
        self._sensing = False  # whether somebody asked for the other sensors, which derive from the state
        self._compile()
        self.reset()
        self.forward()

    def _new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(self.num_envs, *shape, dtype=dtype, device=self.device)

    def _blank(self, name: str) -> Tensor:
        """A new array of MuJoCo's shape for the field of that name."""
        count = _OWN_NAMES.get(name, name) in _COUNTS
        shape = () if count else np.shape(getattr(self._template, name))
        return self._new(*shape, dtype=torch.int32 if count else torch.float32)

    # --- the kernel --------------------------------------------------------------------------------------------------

    def _compile(self, profile: bool = False) -> None:
        line = self.law.line
        self._tables = tables.make_tables(
            self.model,
            self.actuation,
            lanes=lanes_of(self.model),
            nconmax=self.nconmax,
            fast_contacts=FAST_CONTACTS,
            tolerance=max(self.model.opt.tolerance, LEAST_TOLERANCE),
            delays=0 if line is None else len(line),
            randomized=frozenset(self._own),
        )
        sizes = self._tables.sizes
        sizes["PROFILE"] = int(profile)
        processors = wp.get_device(self.device).sm_count if self._on_gpu else 1
        plan = layout.plan(sizes, lanes_of(self.model), warps_of(self.model), self.num_envs, processors)
        assert plan, "see uncovered"
        sizes["LANES"], sizes["NFAST"], self._block = plan.lanes, plan.fast, plan.block
        self._in_rounds = self._on_gpu and plan.in_rounds and not profile  # clocks count whole launches
        self._rows = self._new(self._tables.row_columns)
        self._heights = torch.as_tensor(self._tables.heights, dtype=torch.float32, device=self.device)
        self._kernel = kernel.build(self._tables, block=plan.block, resident=plan.resident, scratch=plan.scratch)
        self._names = self._tables.arrays()
        reals, ints = self._tables.blobs(np.float32)
        with self._launcher.stream():
            self._inputs = [wp.array(x, device=self.device) for x in (reals, ints)]
            self._addresses = torch.zeros(len(self._names), dtype=torch.int64, device=self.device)
            self._inputs.append(wp.from_torch(self._addresses))
            wp.load_module(self._kernel.module, device=self.device, block_dim=self._block if self._on_gpu else 1)
        self._connect()

    @property
    def _on_gpu(self) -> bool:
        return self.device != "cpu"

    def _connect(self) -> None:
        """Tell the kernel where the arrays are."""
        live = self._arrays | {"rows": self._rows, "heights": self._heights, "progress": self._progress}
        if self.law.line is not None:
            live["line"] = self.law.line
        if self.law.net is not None:
            live["net"] = self.law.net
        for accessor, name in self._tables.own.items():
            live[f"own_{accessor}"] = self._model_fields[name]
        addresses = {k: v.data_ptr() for k, v in live.items() if v.numel()}
        addresses["num_worlds"] = self.num_envs
        position = any(name in live for name in tables.STATE_OUTPUTS) or self._sensing
        addresses["any_position"] = int(position)
        addresses["any_velocity"] = int(any(name in live for name in _VELOCITIES) or self._sensing)
        self._addresses.copy_(torch.tensor([addresses.get(name, 0) for name in self._names], dtype=torch.int64))

    def _launch(self, substeps: int) -> None:
        trace.call(lambda: self._run(substeps))

    def _run(self, substeps: int) -> None:
        threads = self.num_envs
        block = self._block if self._on_gpu else 1
        if self._on_gpu:
            threads = -(-self.num_envs * int(self._tables.sizes["LANES"]) // block) * block
        around = threads if self._in_rounds and substeps > 1 else 0
        threads *= substeps if around else 1
        with self._launcher.stream():
            inputs = [self.num_envs, substeps, around, *self._inputs]
            wp.launch(self._kernel, dim=threads, inputs=inputs, device=self.device, block_dim=block)

    # --- fields ------------------------------------------------------------------------------------------------------

    def field(self, name: str) -> Tensor:
        own = _OWN_NAMES.get(name, name)
        if own not in self._arrays or name not in _FIELDS or own == "sensordata" and not self._sensing:
            check_computed(name, self.model)
            if name not in _FIELDS:
                raise ValueError(f"'{name}' is not a field that warp computes{did_you_mean(name, _FIELDS)}")
            if own not in self._arrays:
                self._arrays[own] = self._blank(name)
            self._sensing |= own == "sensordata"
            self._connect()
            self.forward()
        return self._arrays[own]

    def write(self, name: str, value: Tensor, mask: Tensor | None = None) -> None:
        if name not in STATE_FIELDS:
            raise ValueError(
                f"'{name}' is not a state field{did_you_mean(name, STATE_FIELDS)}; those are {', '.join(STATE_FIELDS)}"
            )
        field = self.field(name)
        value = value.to(field.dtype)
        field.copy_(value if mask is None else torch.where(_rows(mask, field), value, field))

    def reset(self, mask: Tensor | None = None) -> None:
        mask = self._everywhere if mask is None else mask
        for name, field in self._arrays.items():
            if name in self._default:
                value = self._default[name] if name == "qpos" else self._default[name][:, self._mocap]
                field.copy_(torch.where(_rows(mask, field), value, field))
            elif name in _RESET and field.numel():
                field.masked_fill_(_rows(mask, field), 0)
        self.law.reset(mask)

    # --- physics -----------------------------------------------------------------------------------------------------

    def step(self, n: int, target: Tensor) -> None:
        self._arrays["target"].copy_(target)
        self.drives.write(self._model_fields.__getitem__)
        self._launch(n)

    def profile(self, n: int, target: Tensor) -> dict[str, float]:
        """What step(n, target) spends on its stages: clock cycles from start to end, the mean of all worlds.

        On a GPU only. Compiles a kernel of its own, which is slower than the usual one: it waits at each mark.
        """
        ticks = self._arrays["profile"] = self._new(16, dtype=torch.int32)
        self._compile(profile=True)
        self.step(n, target)
        del self._arrays["profile"]
        self._compile()
        return dict(zip(tables.SECTIONS, ticks.float().mean(dim=0).tolist()))

    def forward(self, mask: Tensor | None = None) -> None:
        self._arrays["mask"].copy_(self._everywhere if mask is None else mask)
        self._launch(0)

    # --- per-world model fields --------------------------------------------------------------------------------------

    def _model_tensor(self, name: str) -> Tensor:
        value = np.array(getattr(*_owner(self.model, name)))
        value = torch.as_tensor(value, dtype=torch.float32, device=self.device)
        return value.expand(self.num_envs, *value.shape).clone()

    def model_field(self, name: str) -> Tensor:
        if name not in self._randomized:
            raise ValueError(f"model field '{name}' is shared by all worlds; name it in randomized_fields at build")
        return self._model_fields[name]

    def allow_delay(self, steps: int) -> None:
        before = self.law.line
        self.law.allow_delay(steps)
        if self.law.line is not before:
            self._compile()

    def set_const(self) -> None:
        if self._derive:
            self._derive(self._model_fields)
        self.forward()

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        derived = {*tables.STATE_OUTPUTS, "target", "nonfinite", "mask", "fresh"}  # the last is the law's
        state = {k: v for k, v in self._arrays.items() if k not in derived}
        groups = {"state": state, "model": self._model_fields, "law": self.law.state()}
        return {f"{group}/{k}": v for group, of in groups.items() for k, v in of.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in self._tensors().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        public = {own: name for name, own in _OWN_NAMES.items()}
        for k in state:
            own = k.removeprefix("state/")
            if own != k and own not in self._arrays:  # asked for there, not here
                self.field(public.get(own, own))
        for k, v in self._tensors().items():
            if k.startswith("state/") and k not in state:  # asked for here, not there
                v.zero_()
            else:
                v.copy_(state[k])
        self.forward()


# State but positions, which have a default, and outputs of the last physics step, which a reset world has not made yet.
_RESET = ("qvel", "warm", "time", *tables.OPTIONAL[:3], *tables.FORCE_OUTPUTS[:5], "sensordata")


def uncovered(model: mujoco.MjModel, randomized_fields: Sequence[str] = (), nconmax: int | None = None) -> list[str]:
    """What the engine does not cover: `coverage.uncovered`, and whether a world fits a GPU's memory."""
    reasons = coverage.uncovered(model, randomized_fields)
    return reasons or layout.uncovered(model, nconmax or contacts_of(model), FAST_CONTACTS)


def lanes_of(model: mujoco.MjModel) -> int:
    """Lanes a world: about one for each degree of freedom; measured (benchmarks/physics.py)."""
    for lanes, most in ((4, 4), (8, 8), (16, 16)):
        if model.nv <= most:
            return lanes
    return 32


def warps_of(model: mujoco.MjModel) -> int:
    """Warps that a multiprocessor shall have room for: more hide more latency, until registers spill; measured."""
    for warps, most in ((32, 4), (16 if model.nhfield else 20, 20), (16, 32)):
        if model.nv <= most:
            return warps
    return 12


def _owner(model: mujoco.MjModel, name: str) -> tuple[Any, str]:
    """Where a model field is, and its name there."""
    return (model.opt, name.removeprefix("opt.")) if name.startswith("opt.") else (model, name)


def _rows(mask: Tensor, field: Tensor) -> Tensor:
    """mask [E] shaped to select the worlds of field [E, ...]."""
    return mask.view(-1, *[1] * (field.dim() - 1))
