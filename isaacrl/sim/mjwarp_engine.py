"""Engine `mjwarp`: MuJoCo Warp, on NVIDIA GPUs and, for checking, on Warp's CPU device. Float32.

On a GPU the physics steps run as one CUDA graph on torch's current stream, so that nothing waits for the host; when the
caller captures a graph itself, they join that one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
import torch
import warp as wp
from torch import Tensor

from isaacrl.sim.streams import Launcher  # starts Warp quietly

# isort: split
import mujoco_warp as mjw  # would start it too

from isaacrl.errors import UserError
from isaacrl.sim.actuators import Law
from isaacrl.sim.capacity import estimate
from isaacrl.sim.drives import FIELDS, Drives
from isaacrl.sim.engine import STATE_FIELDS, Actuation, check_computed
from isaacrl.suggest import did_you_mean, one_line

_O = mjw.OverflowType
_FULL = int(_O.NEFC | _O.NJMAX_NNZ | _O.BROADPHASE | _O.NARROWPHASE | _O.CCD)
_STATE = (*STATE_FIELDS, "eq_active", "plastic", "userdata")  # all that the next step depends on
# Outputs of the last physics step, which a reset world has not made yet.
_FORCES = (
    "sensordata",
    "qacc",
    "act_dot",
    "actuator_force",
    "qfrc_actuator",
    "qfrc_constraint",
    "qfrc_smooth",
    "qacc_smooth",
    "cacc",
    "cfrc_int",
    "cfrc_ext",
)
# Model fields that mjw.set_const derives from others.
_DERIVED = (
    "body_subtreemass",
    "geom_aabb",
    "geom_rbound",
    "tendon_length0",
    "eq_data",
    "cam_pos0",
    "cam_poscom0",
    "cam_mat0",
    "light_pos0",
    "light_poscom0",
    "light_dir0",
    "dof_invweight0",
    "body_invweight0",
    "tendon_invweight0",
    "actuator_acc0",
)


class MjwarpEngine:
    """E worlds of one model on one device. See `isaacrl.sim.engine.Engine`."""

    name = "mjwarp"

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
        _check_supported(model)
        self.model, self.num_envs, self.device = model, num_envs, device
        self.actuation, self.reason = actuation, reason
        self._launcher = Launcher(device, cfg.graph)
        self._at_once = Launcher(device, use_graph=False)
        self._fields: dict[str, Tensor] = {}
        self._template = mujoco.MjData(model)  # shapes
        with self._launcher.stream():
            self._build(cfg, list(randomized_fields))

    def _build(self, cfg: Any, randomized: list[str]) -> None:
        model, num_envs = self.model, self.num_envs
        self.drives = Drives(model, self.actuation, num_envs, self.device, torch.float32, randomized)
        per_world = [f for f in randomized if not f.startswith("opt.") and f not in FIELDS]
        known = _per_world_fields(mjw.Model)
        for name in per_world:
            if name not in known:
                hint = did_you_mean(name, [*known, *FIELDS])
                raise ValueError(f"'{name}' is no model field with one value a world{hint}")
        derived = [f for f in _DERIVED if f in known] if per_world else []
        own = [*per_world, *derived, *self.drives.needs]
        try:
            self.m = mjw.put_model(model, batch_sizes=dict.fromkeys(own, num_envs))
            nconmax, njmax = estimate(model) if None in (cfg.nconmax, cfg.njmax) else (None, None)
            self.d = mjw.make_data(model, nworld=num_envs, nconmax=cfg.nconmax or nconmax, njmax=cfg.njmax or njmax)
        except (NotImplementedError, ValueError) as e:
            raise UserError(f"sim.engine=mjwarp cannot step this model: {one_line(e)}; use sim.engine=mujoco") from None
        self.m.opt.warn_overflow = 0  # counted instead
        if cfg.deterministic:
            self.m.opt.deterministic = int(mjw.DeterminismType.ALL)
        options = sorted({f for f in randomized if f.startswith("opt.")})
        for name in options:
            self._expand_option(name.removeprefix("opt."))
        self._model_fields = {f: self._model_view(f) for f in [*options, *own]} | self.drives.values
        self._randomized = set(randomized)

        self.law = Law(self.actuation, num_envs, self.device, torch.float32, self.drives.values)
        self.overflow = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self.nonfinite = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self._everywhere = torch.ones(num_envs, dtype=torch.bool, device=self.device)
        self._target = torch.zeros(num_envs, model.nu, device=self.device)
        self._ncon: Tensor | None = None
        self._state = {f: self._view(f) for f in _STATE}
        self._forces = {f: self._view(f) for f in _FORCES}
        self._bits = wp.to_torch(self.d.overflow)
        # Rows of constraints are zeroed where a factor is 0, by multiplication: what is NaN there would stay.
        self._jacobian = wp.to_torch(self.d.efc.J)
        mocap = np.argsort(model.body_mocapid)[model.nbody - model.nmocap :]
        self._mocap = torch.as_tensor(mocap, device=self.device)
        view = {f: wp.to_torch(getattr(self.m, f)) for f in ("qpos0", "eq_active0", "body_pos", "body_quat")}
        self._body_pos, self._body_quat = view["body_pos"], view["body_quat"]
        self._default = {
            "qpos": view["qpos0"],
            "eq_active": view["eq_active0"][None],
            "plastic": self._state["plastic"][:1].clone(),
        }
        self._contact_world, self._contacts = wp.to_torch(self.d.contact.worldid), wp.to_torch(self.d.nacon)
        self._contact_ids = torch.arange(len(self._contact_world), device=self.device)
        self._substeps(1)  # compiles and loads every kernel now
        self.reset()
        self._refresh()
        self.overflow.zero_()
        self.nonfinite.zero_()

    # --- fields ------------------------------------------------------------------------------------------------------

    def field(self, name: str) -> Tensor:
        if name not in self._fields:
            check_computed(name, self.model)
            if name == "ncon":
                self._ncon = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)
                self._launcher.forget()  # those captured so far do not count
                self._count_contacts()
                self._fields[name] = self._ncon
            else:
                self._fields[name] = self._view(name)
        return self._fields[name]

    def _view(self, name: str) -> Tensor:
        """The Warp array of an MjData field as a tensor of MuJoCo's shape."""
        known = [
            f.name
            for f in dataclasses.fields(mjw.Data)
            if getattr(f.type, "shape", ("",))[0] == "nworld" and hasattr(self._template, f.name)
        ]
        if name not in known:
            raise ValueError(f"'{name}' is not a field that mjwarp computes{did_you_mean(name, known)}")
        array = wp.to_torch(getattr(self.d, name))
        shape = (self.num_envs, *np.shape(getattr(self._template, name)))
        return array.view(shape) if array.numel() == int(np.prod(shape)) else array

    def write(self, name: str, value: Tensor, mask: Tensor | None = None) -> None:
        if name not in STATE_FIELDS:
            raise ValueError(
                f"'{name}' is not a state field{did_you_mean(name, STATE_FIELDS)}; those are {', '.join(STATE_FIELDS)}"
            )
        field = self._state[name]
        value = value.to(field.dtype)
        field.copy_(value if mask is None else torch.where(_rows(mask, field), value, field))

    def reset(self, mask: Tensor | None = None) -> None:
        mask = self._everywhere if mask is None else mask
        default = self._default | {
            "mocap_pos": self._body_pos[:, self._mocap],
            "mocap_quat": self._body_quat[:, self._mocap],
        }
        for name, field in self._state.items():
            if not field.numel():
                continue
            rows = _rows(mask, field)
            if name in default:
                field.copy_(torch.where(rows, default[name], field))
            else:
                field.masked_fill_(rows, 0)
        for field in self._forces.values():
            field.masked_fill_(_rows(mask, field), 0)
        self.law.reset(mask)

    # --- physics -----------------------------------------------------------------------------------------------------

    def step(self, n: int, target: Tensor) -> None:
        self._target.copy_(target)
        self._launcher.run(("step", n), lambda: self._substeps(n))

    def forward(self, mask: Tensor | None = None) -> None:
        # Of all worlds: where nothing was written, the same values come out again.
        self._launcher.run("forward", self._refresh)

    def _substeps(self, n: int) -> None:
        ctrl, qpos, qvel = self._state["ctrl"], self._state["qpos"], self._state["qvel"]
        self.drives.write(self._model_fields.__getitem__)
        for _ in range(n):
            ctrl.copy_(self.law.control(self._target, qpos, qvel))
            mjw.step(self.m, self.d)
        self._judge()
        self._refresh()

    def _judge(self) -> None:
        """Count overflows, and put worlds that are not finite back to the default state."""
        self.overflow += (self._bits & _FULL) != 0
        self._bits.zero_()
        sound = self._everywhere
        for field in (self._state["qpos"], self._state["qvel"], self._forces["qacc"], self._state["ctrl"]):
            sound = sound & (field.abs() <= mujoco.mjMAXVAL).all(dim=1)  # a NaN compares as false
        torch.logical_not(sound, out=self.nonfinite)
        self.reset(self.nonfinite)
        self._jacobian.masked_fill_(_rows(self.nonfinite, self._jacobian), 0)

    def _refresh(self) -> None:
        """Positions, velocities and their sensors at the present state; sensors of forces and accelerations stay."""
        m, d = self.m, self.d
        mjw.fwd_kinematics(m, d)
        if m.nsensorcollision:
            mjw.collision(m, d)
        mjw.transmission(m, d)
        mjw.fwd_velocity(m, d)
        mjw.sensor_pos(m, d)
        mjw.sensor_vel(m, d)
        self._count_contacts()

    def _count_contacts(self) -> None:
        if self._ncon is not None:
            valid = self._contact_ids < self._contacts
            world = torch.where(valid, self._contact_world, 0).long()
            self._ncon.zero_().index_add_(0, world, valid.to(torch.int32))

    # --- per-world model fields --------------------------------------------------------------------------------------

    def model_field(self, name: str) -> Tensor:
        if name not in self._randomized:
            raise ValueError(f"model field '{name}' is shared by all worlds; name it in randomized_fields at build")
        return self._model_fields[name]

    def _expand_option(self, name: str) -> None:
        """One value a world of a field of mjOption, which put_model does not do."""
        known = _per_world_fields(type(self.m.opt))
        if name not in known:
            raise ValueError(f"'opt.{name}' is no option with one value a world{did_you_mean(name, known)}")
        shared = getattr(self.m.opt, name)
        values = np.repeat(shared.numpy(), self.num_envs, axis=0)
        setattr(self.m.opt, name, wp.array(values, dtype=shared.dtype, device=shared.device))

    def _model_view(self, name: str) -> Tensor:
        owner: Any = self.m.opt if name.startswith("opt.") else self.m
        return wp.to_torch(getattr(owner, name.removeprefix("opt.")))

    def allow_delay(self, steps: int) -> None:
        self.law.allow_delay(steps)
        self._launcher.forget()  # those captured so far hold the old line

    def set_const(self) -> None:
        self._at_once.run("set_const", lambda: mjw.set_const(self.m, self.d))
        self.forward()

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        groups = {"state": self._state, "model": self._model_fields, "law": self.law.state()}
        return {f"{group}/{k}": v for group, of in groups.items() for k, v in of.items()} | {"overflow": self.overflow}

    def state_dict(self) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in self._tensors().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for k, v in self._tensors().items():
            v.copy_(state[k])
        self.forward()


def _rows(mask: Tensor, field: Tensor) -> Tensor:
    """mask [E] shaped to select the worlds of field [E, ...]."""
    return mask.view(-1, *[1] * (field.dim() - 1))


def _per_world_fields(kind: type) -> list[str]:
    """Fields of mjw.Model or mjw.Option that may have one value a world."""
    return [f.name for f in dataclasses.fields(kind) if (getattr(f.type, "shape", None) or ("",))[0] == "*"]


def _check_supported(model: mujoco.MjModel) -> None:
    """Refuse what this engine would get wrong. Raises: UserError."""
    if model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_SLEEP:
        raise UserError("sim.engine=mjwarp does not support sleeping bodies (<flag sleep>); use sim.engine=mujoco")
    if model.nhistory:
        raise UserError(
            "sim.engine=mjwarp does not support MuJoCo's own delays of actuators and sensors; "
            "use asset.actuators.<group>.delay or sim.engine=mujoco"
        )
