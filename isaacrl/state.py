"""State: everything that observations, rewards, terminations, commands and events may read.

This class is the one table of shapes, units and frames. Each quantity is computed at most once a step, on first use.
Letters: E worlds, J joints of the robot, A actuators, B bodies that a view names. Frames: `_w` world, `_b` base.
Quaternions are (w, x, y, z). Positions and velocities are those after the step; forces and accelerations are those of
its last physics step. All floats are float32, whatever the engine's precision.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.ground import Ground
from isaacrl.random import Random
from isaacrl.sim import Engine
from isaacrl.sim.names import match
from isaacrl.suggest import did_you_mean


class quantity:
    """A lazily computed, cached attribute; `refresh()` of its owner forgets it."""

    def __init__(self, fn: Callable[[Any], Tensor]):
        self.fn, self.name, self.__doc__ = fn, fn.__name__, fn.__doc__

    def __get__(self, owner: Any, _type: Any = None) -> Any:
        if owner is None:
            return self
        value = owner.__dict__[self.name] = self.fn(owner)
        return value


class _Lazy:
    """Forgets its quantities when the simulation has moved on."""

    def refresh(self) -> None:
        values = self.__dict__
        for name in [n for n in values if isinstance(getattr(type(self), n, None), quantity)]:
            del values[name]


def rotate(quat: Tensor, vec: Tensor) -> Tensor:
    """Rotate vec [..., 3] by unit quaternions quat [..., 4]."""
    w, u = quat[..., :1], quat[..., 1:]
    t = 2.0 * torch.linalg.cross(u, vec)
    return vec + w * t + torch.linalg.cross(u, t)


def rotate_inverse(quat: Tensor, vec: Tensor) -> Tensor:
    """Rotate vec [..., 3] by the inverses of unit quaternions quat [..., 4]."""
    w, u = quat[..., :1], quat[..., 1:]
    t = 2.0 * torch.linalg.cross(u, vec)
    return vec - w * t + torch.linalg.cross(u, t)


def multiply(p: Tensor, q: Tensor) -> Tensor:
    """Product of quaternions [..., 4]: first the rotation q, then p."""
    pw, pv, qw, qv = p[..., :1], p[..., 1:], q[..., :1], q[..., 1:]
    w = pw * qw - (pv * qv).sum(dim=-1, keepdim=True)
    return torch.cat((w, pw * qv + qw * pv + torch.linalg.cross(pv, qv)), dim=-1)


def inverse(quat: Tensor) -> Tensor:
    """Inverses of unit quaternions [..., 4]."""
    return torch.cat((quat[..., :1], -quat[..., 1:]), dim=-1)


def from_euler(angles: Tensor) -> Tensor:
    """Quaternion [..., 4] of turns about the fixed x, y and z axes, in this order, by angles [..., 3] [rad]."""
    c, s = torch.cos(angles / 2.0).unbind(-1), torch.sin(angles / 2.0).unbind(-1)
    zero = torch.zeros_like(c[0])
    x = torch.stack((c[0], s[0], zero, zero), dim=-1)
    y = torch.stack((c[1], zero, s[1], zero), dim=-1)
    z = torch.stack((c[2], zero, zero, s[2]), dim=-1)
    return multiply(z, multiply(y, x))


def rotation_vector(quat: Tensor) -> Tensor:
    """Axis times angle [rad] of unit quaternions [..., 4], [..., 3]; the angle is at most pi."""
    w, u = quat[..., :1], quat[..., 1:]
    norm = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    angle = 2.0 * torch.atan2(norm, w.abs())
    return torch.where(w < 0, -1.0, 1.0) * u * (angle / norm.clamp(min=1e-9))


class Robot:
    """Names, limits and the default pose of the robot: constants of a run."""

    def __init__(self, model: mujoco.MjModel, base: str | None, default_pose: dict[str, float], device: str):
        scalar = [j for j in range(model.njnt) if model.jnt_type[j] in (2, 3)]  # slide, hinge
        self.joint_names = [model.joint(j).name for j in scalar]
        self.actuator_names = [model.actuator(a).name for a in range(model.nu)]
        # The robot's joint that each actuator drives; -1 where it drives something else.
        joint = mujoco.mjtTrn.mjTRN_JOINT
        self.driven_joints = [
            scalar.index(model.actuator_trnid[a, 0])
            if model.actuator_trntype[a] == joint and model.actuator_trnid[a, 0] in scalar
            else -1
            for a in range(model.nu)
        ]
        self.body_names = [model.body(b).name for b in range(model.nbody)]
        self.geom_names = [model.geom(g).name for g in range(model.ngeom)]
        self.site_names = [model.site(i).name for i in range(model.nsite)]
        self.joint_units = ["m" if model.jnt_type[j] == 2 else "rad" for j in scalar]
        self.qpos_adr, self.qvel_adr = model.jnt_qposadr[scalar], model.jnt_dofadr[scalar]
        roots = [int(b) for b, kind in zip(model.jnt_bodyid, model.jnt_type) if kind == 0]  # of free joints
        default = roots[0] if roots else min(1, model.nbody - 1)
        base_id = match([base], self.body_names, "asset.base")[0] if base else default
        free = [j for j in range(model.njnt) if model.jnt_type[j] == 0 and model.jnt_bodyid[j] == base_id]
        self.base, self.floating = base_id, bool(free)
        self.free_qpos, self.free_qvel = (model.jnt_qposadr[free[0]], model.jnt_dofadr[free[0]]) if free else (-1, -1)

        qpos = model.qpos0.copy()
        for pattern, value in default_pose.items():
            for j in match([pattern], self.joint_names, "asset.default_pose"):
                qpos[self.qpos_adr[j]] = float(value)
        tensor: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.default_qpos = torch.tensor(qpos, **tensor)  # [nq]
        self.default_joint_pos = torch.tensor(qpos[self.qpos_adr], **tensor)  # [J]
        limits = [list(model.jnt_range[j]) if model.jnt_limited[j] else [-torch.inf, torch.inf] for j in scalar]
        self.joint_pos_limits = torch.tensor(limits, **tensor).reshape(-1, 2)  # [J, 2]


class _View(_Lazy):
    """Named parts of the model, in its order."""

    def __init__(self, state: "State", index: slice | Tensor):
        self._state, self._index = state, index


class BodyView(_View):
    """Poses and velocities of named bodies, B of them in the model's order."""

    @quantity
    def pos_w(self) -> Tensor:
        """Position of the body frames [m], [E, B, 3]."""
        return self._state.read("xpos")[:, self._index]

    @quantity
    def quat_w(self) -> Tensor:
        """Orientation of the body frames, [E, B, 4]."""
        return self._state.read("xquat")[:, self._index]

    @quantity
    def ang_vel_w(self) -> Tensor:
        """Angular velocity, world axes [rad/s], [E, B, 3]."""
        return self._state.read("cvel")[:, self._index, :3]

    @quantity
    def lin_vel_w(self) -> Tensor:
        """Velocity of the body frames' origins, world axes [m/s], [E, B, 3]."""
        # MuJoCo's cvel is taken at the centre of mass of the body's tree.
        state = self._state
        center = state.read("subtree_com")[:, state.body_root][:, self._index]
        return state.read("cvel")[:, self._index, 3:] + torch.linalg.cross(self.ang_vel_w, self.pos_w - center)


class SiteView(_View):
    """Poses of named sites, S of them in the model's order."""

    def __init__(self, state: "State", index: slice | Tensor):
        super().__init__(state, index)
        model = state.engine.model
        self._body = torch.as_tensor(model.site_bodyid, dtype=torch.long, device=state.device)[index]
        self._turned = torch.as_tensor(model.site_quat, dtype=torch.float32, device=state.device)[None, index]

    @quantity
    def pos_w(self) -> Tensor:
        """Position [m], [E, S, 3]."""
        return self._state.read("site_xpos")[:, self._index]

    @quantity
    def mat_w(self) -> Tensor:
        """Orientation as rotation matrices, row by row, [E, S, 9]."""
        return self._state.read("site_xmat")[:, self._index]

    @quantity
    def quat_w(self) -> Tensor:
        """Orientation, [E, S, 4]."""
        return multiply(self._state.read("xquat")[:, self._body], self._turned)


class GeomView(_View):
    """Places and velocities of named geoms, B of them in the model's order."""

    def __init__(self, state: "State", index: slice | Tensor):
        super().__init__(state, index)
        self._body = torch.as_tensor(state.engine.model.geom_bodyid, dtype=torch.long, device=state.device)[index]

    @quantity
    def pos_w(self) -> Tensor:
        """Position of the geoms' centres [m], [E, B, 3]."""
        return self._state.read("geom_xpos")[:, self._index]

    @quantity
    def lin_vel_w(self) -> Tensor:
        """Velocity of the geoms' centres, world axes [m/s], [E, B, 3]."""
        state = self._state
        center, cvel = state.read("subtree_com")[:, state.body_root[self._body]], state.read("cvel")[:, self._body]
        return cvel[..., 3:] + torch.linalg.cross(cvel[..., :3], self.pos_w - center)


class State(_Lazy):
    """What the simulation and the environment know, by name."""

    def __init__(
        self, engine: Engine, robot: Robot, *, seed: int, step_dt: float, max_steps: int, num_actions: int = 0
    ):
        self.engine, self.robot = engine, robot
        self.num_envs, self.device = engine.num_envs, engine.device
        self.step_dt = step_dt  # seconds a policy step
        self.max_episode_steps = max_steps  # steps of a full episode
        self.random = Random(seed, torch.arange(self.num_envs, device=self.device))
        self.body_root = torch.as_tensor(engine.model.body_rootid, dtype=torch.long, device=self.device)
        self._stream, self._draw = "", 0
        self._fields: dict[str, Tensor] = {}
        self._sensors: dict[str, slice] = {}
        self._views: dict[tuple, BodyView | SiteView | GeomView] = {}
        self._qpos_joints, self._qvel_joints = (
            as_index(robot.qpos_adr, self.device),
            as_index(robot.qvel_adr, self.device),
        )

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(self.num_envs, *shape, dtype=dtype, device=self.device)

        self.episode_step = zeros(dtype=torch.int64)  # steps since the reset, [E]
        self.action = zeros(num_actions)  # the policy's output in this step, [E, num_actions]
        self.last_action = zeros(num_actions)  # and in the step before (0 after a reset), [E, num_actions]
        self.encoder_bias = zeros(len(robot.joint_names))  # what encoders read beyond joint_pos [rad or m], [E, J]
        self.terminated = zeros(dtype=torch.bool)  # the episode ended in failure or success in this step, [E]
        self.truncated = zeros(dtype=torch.bool)  # the episode ended only because time ran out, [E]
        self.commands: dict[str, Tensor] = {}  # value of each command term, [E, n]
        self.sensors: dict[str, Any] = {}  # terms of the family `sensors`
        self.randomized: dict[str, Any] = {}  # fields with a value of their own in each world, by name
        self.left_out: dict[str, str] = {}  # optional entries that the robot has nothing for, and why
        self.ground: Ground | None = None  # the terrain; None: a plane at z = 0
        self.share: float | Tensor = 1.0  # how far the present term's schedule and curriculum have come, 0 to 1
        self.curricula: dict[str, Any] = {}  # terms of the family `curricula`
        self.whole = zeros(dtype=torch.bool)  # worlds whose episode began at its beginning, [E]
        self.episode_metrics: dict[str, Tensor] = {}  # of the episodes so far, by name, [E]

    # --- the simulator's own names -----------------------------------------------------------------------------------

    def read(self, name: str) -> Tensor:
        """Any MjData field by MuJoCo's name, float32, [E, ...]."""
        if name not in self._fields:
            self._fields[name] = self.engine.field(name).to(torch.float32)
        return self._fields[name]

    def refresh(self) -> None:
        """Forget everything computed: the simulation has moved on."""
        super().refresh()
        self._fields.clear()
        for view in self._views.values():
            view.refresh()

    def body(self, *patterns: str) -> BodyView:
        """Bodies whose names match."""
        return self._view(BodyView, patterns, self.robot.body_names, "body")

    def site(self, *patterns: str) -> SiteView:
        """Sites whose names match."""
        return self._view(SiteView, patterns, self.robot.site_names, "site")

    def geom(self, *patterns: str) -> GeomView:
        """Geoms whose names match."""
        return self._view(GeomView, patterns, self.robot.geom_names, "geom")

    def _view(self, kind: type, patterns: Sequence[str], names: list[str], key: str) -> Any:
        if (kind, patterns) not in self._views:
            self._views[kind, patterns] = kind(self, as_index(match(patterns, names, key), self.device))
        return self._views[kind, patterns]

    def sensor(self, name: str) -> Tensor:
        """Reading of the MuJoCo sensor of that name, in MuJoCo's unit and frame, [E, dim]."""
        if name not in self._sensors:
            model = self.engine.model
            i = match([re.escape(name)], [model.sensor(k).name for k in range(model.nsensor)], "sensor")[0]
            self._sensors[name] = slice(model.sensor_adr[i], model.sensor_adr[i] + model.sensor_dim[i])
        return self.read("sensordata")[:, self._sensors[name]]

    def command(self, name: str) -> Tensor:
        """Current value of the command term of that name, [E, n]."""
        return _named(self.commands, name, "command", "commands")

    def contact(self, name: str) -> Any:
        """The contact sensor of that name: `isaacrl.terms.sensors.contact`."""
        return _named(self.sensors, name, "contact sensor", "sensors", has="force_w")

    def imu(self, name: str = "imu") -> Any:
        """The inertial measurement unit of that name: `isaacrl.terms.sensors.imu`."""
        return _named(self.sensors, name, "IMU", "sensors", has="lin_acc_b")

    def curriculum(self, name: str) -> Any:
        """The curriculum of that name: `isaacrl.terms.curricula`."""
        return _named(self.curricula, name, "curriculum", "curricula")

    # --- the robot ---------------------------------------------------------------------------------------------------

    @quantity
    def joint_pos(self) -> Tensor:
        """Joint positions [rad or m], [E, J]."""
        return self.read("qpos")[:, self._qpos_joints]

    @property
    def encoder_pos(self) -> Tensor:
        """Joint positions as the encoders read them, bias included [rad or m], [E, J]."""
        return self.joint_pos + self.encoder_bias

    @quantity
    def joint_vel(self) -> Tensor:
        """Joint velocities [rad/s or m/s], [E, J]."""
        return self.read("qvel")[:, self._qvel_joints]

    @quantity
    def joint_acc(self) -> Tensor:
        """Joint accelerations [rad/s^2 or m/s^2], [E, J]."""
        return self.read("qacc")[:, self._qvel_joints]

    @quantity
    def joint_torque(self) -> Tensor:
        """Actuator torques or forces at the joints [N m or N], [E, J]."""
        return self.read("qfrc_actuator")[:, self._qvel_joints]

    @quantity
    def base_pos_w(self) -> Tensor:
        """Position of the base frame, world frame [m], [E, 3]."""
        return self.read("xpos")[:, self.robot.base]

    @quantity
    def base_height(self) -> Tensor:
        """Height of the base frame above the ground below it [m], [E]."""
        return self.above_ground(self.base_pos_w)

    def above_ground(self, pos_w: Tensor) -> Tensor:
        """Height of points [..., 3], world frame, above the ground below them [m], [...]."""
        return pos_w[..., 2] if self.ground is None else pos_w[..., 2] - self.ground.height(pos_w[..., :2])

    @quantity
    def base_quat_w(self) -> Tensor:
        """Orientation of the base frame, [E, 4]."""
        return self.read("xquat")[:, self.robot.base]

    @quantity
    def base_lin_vel_w(self) -> Tensor:
        """Linear velocity of the base frame's origin, world axes [m/s], [E, 3]."""
        if self.robot.floating:
            return self.read("qvel")[:, self.robot.free_qvel : self.robot.free_qvel + 3]
        return self._base.lin_vel_w[:, 0]

    @quantity
    def base_ang_vel_w(self) -> Tensor:
        """Angular velocity of the base, world axes [rad/s], [E, 3]."""
        return rotate(self.base_quat_w, self.base_ang_vel_b) if self.robot.floating else self._base.ang_vel_w[:, 0]

    @quantity
    def base_lin_vel_b(self) -> Tensor:
        """Linear velocity of the base, base axes [m/s], [E, 3]."""
        return rotate_inverse(self.base_quat_w, self.base_lin_vel_w)

    @quantity
    def base_ang_vel_b(self) -> Tensor:
        """Angular velocity of the base, base axes [rad/s], [E, 3]."""
        if self.robot.floating:  # MuJoCo's free joint has its angular velocity in the body's own axes
            return self.read("qvel")[:, self.robot.free_qvel + 3 : self.robot.free_qvel + 6]
        return rotate_inverse(self.base_quat_w, self.base_ang_vel_w)

    @quantity
    def projected_gravity_b(self) -> Tensor:
        """Unit vector along gravity, base axes, [E, 3]; (0, 0, -1) when upright."""
        w, x, y, z = self.base_quat_w.unbind(1)
        return -torch.stack((2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)), dim=1)

    @quantity
    def heading_w(self) -> Tensor:
        """Yaw of the base's x axis [rad], [E]."""
        w, x, y, z = self.base_quat_w.unbind(1)
        return torch.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))

    @property
    def _base(self) -> BodyView:
        return self.body(re.escape(self.robot.body_names[self.robot.base]))

    @property
    def episode_time(self) -> Tensor:
        """Time since the reset [s], [E]."""
        return self.episode_step * self.step_dt

    # --- writing: events only ----------------------------------------------------------------------------------------

    def write(self, name: str, value: Tensor, mask: Tensor) -> None:
        """Set a state field of the simulator (MuJoCo's name) in the worlds of mask [E]."""
        self.engine.write(name, value, mask)
        self.refresh()  # a second event must see what the first one wrote

    def write_joints(self, pos: Tensor, vel: Tensor, mask: Tensor) -> None:
        """Set joint positions and velocities [E, J] in the worlds of mask [E]; everything else stays."""
        qpos, qvel = self.read("qpos").clone(), self.read("qvel").clone()
        qpos[:, self._qpos_joints], qvel[:, self._qvel_joints] = pos, vel
        self.write("qpos", qpos, mask)
        self.write("qvel", qvel, mask)

    @property
    def default_qpos(self) -> Tensor:
        """MuJoCo's qpos in the default pose, on a terrain at the worlds' places, [E, nq]."""
        qpos = self.robot.default_qpos.expand(self.num_envs, -1)
        return qpos if self.ground is None else self.ground.placed(qpos)

    # --- randomness --------------------------------------------------------------------------------------------------

    def use_stream(self, name: str) -> None:
        """Random numbers drawn from here on belong to the term of that name."""
        self._stream, self._draw = name, 0

    def uniform(self, n: int, low: float | Tensor = 0.0, high: float | Tensor = 1.0) -> Tensor:
        """[E, n] uniform in [low, high), own to this term, world and step."""
        self._draw += 1
        return low + (high - low) * self.random.uniform(f"{self._stream}#{self._draw}", n)

    def normal(self, n: int, mean: float | Tensor = 0.0, std: float | Tensor = 1.0) -> Tensor:
        """[E, n] normal, own to this term, world and step."""
        self._draw += 1
        return mean + std * self.random.normal(f"{self._stream}#{self._draw}", n)


def _named(table: dict[str, Any], name: str, what: str, section: str, has: str = "") -> Any:
    """The entry of a table; UserError where there is none, or its class lacks an attribute that such an entry has."""
    if name not in table or has and not hasattr(type(table[name]), has):
        known = [n for n, entry in table.items() if not has or hasattr(type(entry), has)]
        raise UserError(
            f"no {what} '{name}'{did_you_mean(name, known)}; task.{section} has: {', '.join(known) or 'none'}"
        )
    return table[name]


def as_index(ids: Sequence[int], device: str) -> slice | Tensor:
    """Indices as a slice where they are contiguous (a view, free), else as a tensor."""
    ids = [int(i) for i in ids]
    if ids and ids == list(range(ids[0], ids[0] + len(ids))):
        return slice(ids[0], ids[0] + len(ids))
    return torch.tensor(ids, dtype=torch.long, device=device)
