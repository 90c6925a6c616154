"""Sensors: what a task measures with MuJoCo's own sensors, by name: `s.contact("feet").air_time`, `s.imu().ang_vel_b`.

A sensor is a term with memory whose class also has `add_to(spec, name, base, **parameters)`, which adds MuJoCo sensors
to the scene before it is compiled. Readings are those of the last physics step.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import mujoco
import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.sim.names import match
from isaacrl.state import BodyView, GeomView, State
from isaacrl.terms import Term

_OBJECT, _KIND = mujoco.mjtObj, mujoco.mjtSensor
_FOUND, _FORCE = (
    1 << f.value for f in (mujoco.mjtConDataField.mjCONDATA_FOUND, mujoco.mjtConDataField.mjCONDATA_FORCE)
)
_STRONGEST, _NET = 2, 3  # mjtContactReduce: the strongest of all contacts, or their sum


class contact(Term):
    """Contacts of B bodies or geoms: force, and since when they touch or do not.

    bodies: names or patterns of bodies, or of geoms where no body matches. against: `ground` counts only contacts with
    the world's own geoms, `self` only those with the robot, null all. subtree: with all bodies below included; the
    force is then that of the strongest contact, and has no world axes.
    threshold: contact means a larger force than this [N]. history: for how many steps `force_history` reaches back.
    """

    def __init__(
        self,
        s: State,
        *,
        bodies: str | list[str],
        against: str | None = None,
        subtree: bool = False,
        threshold: float = 1e-3,
        history: int = 1,
    ):
        if history < 1:
            raise UserError(f"history: got {history}; must be at least 1, the present step")
        self.threshold, self.depth = threshold, history
        self.names: list[str] = []  # set by `named`, as is what follows
        self._state = s
        self.in_contact: Tensor  # whether each touches, boolean [E, B]
        self.air_time: Tensor  # time since it last touched, 0 while it does [s], [E, B]
        self.contact_time: Tensor  # time since it began to touch, 0 while it does not [s], [E, B]
        self.last_air_time: Tensor  # how long the last flight was [s], [E, B]
        self.last_contact_time: Tensor  # how long the last contact was [s], [E, B]
        self.first_contact: Tensor  # whether it touched in this step and not before, boolean [E, B]
        self.first_air: Tensor  # whether it lifted off in this step, boolean [E, B]
        self.force_history: Tensor  # force of the last steps, newest first [N], [E, history, B]

    @staticmethod
    def add_to(
        spec: mujoco.MjSpec,
        name: str,
        base: str,
        *,
        bodies: str | list[str],
        against: str | None = None,
        subtree: bool = False,
        **_: Any,
    ) -> None:
        """One MuJoCo contact sensor a body or geom: whether and with what force it touches."""
        if against not in (None, "ground", "self"):
            raise UserError(f"task.sensors.{name}.against: got '{against}'; use ground, self or null")
        kind, names = _find(spec, [bodies] if isinstance(bodies, str) else list(bodies), f"task.sensors.{name}.bodies")
        if subtree and kind != _OBJECT.mjOBJ_BODY:
            raise UserError(f"task.sensors.{name}.subtree: '{names[0]}' is a geom; name bodies, or leave subtree out")
        if subtree:
            kind = _OBJECT.mjOBJ_XBODY
        for one in names:
            sensor = spec.add_sensor(
                name=f"{name}/{one}",
                type=_KIND.mjSENS_CONTACT,
                objtype=kind,
                objname=one,
                # A sum over a whole subtree would cancel what its parts do to each other.
                intprm=[_FOUND | _FORCE, _STRONGEST if subtree else _NET, 1],
            )
            if against == "ground":
                sensor.reftype, sensor.refname = _OBJECT.mjOBJ_BODY, "world"
            elif against == "self":
                sensor.reftype, sensor.refname = _OBJECT.mjOBJ_XBODY, _top(spec, base)

    def named(self, name: str) -> None:
        """Find the MuJoCo sensors and the bodies or geoms of this name."""
        s, model = self._state, self._state.engine.model
        mine = [i for i in range(model.nsensor) if model.sensor(i).name.startswith(f"{name}/")]
        self.names = [model.sensor(i).name.partition("/")[2] for i in mine]
        self._span = slice(model.sensor_adr[mine[0]], model.sensor_adr[mine[-1]] + model.sensor_dim[mine[-1]])
        is_geom = model.sensor_objtype[mine[0]] == _OBJECT.mjOBJ_GEOM
        exact = [re.escape(one) for one in self.names]
        self.parts: BodyView | GeomView = s.geom(*exact) if is_geom else s.body(*exact)
        self._own_frame = model.sensor_intprm[mine[0], 1] == _STRONGEST

    @property
    def _reading(self) -> Tensor:
        return self._state.read("sensordata")[:, self._span].unflatten(1, (len(self.names), 4))

    @property
    def force_w(self) -> Tensor:
        """Net contact force on each, world axes [N], [E, B, 3]. Raises: UserError with subtree."""
        if self._own_frame:
            raise UserError(f"sensor of '{self.names[0]}': with subtree a force has no world axes; name its bodies")
        return -self._reading[..., 1:]  # MuJoCo gives the force on the second of the two that touch

    @property
    def force(self) -> Tensor:
        """Magnitude of that force [N], [E, B]."""
        return torch.linalg.vector_norm(self._reading[..., 1:], dim=2)

    def init(self, s: State) -> dict[str, Tensor]:
        force = torch.zeros_like(self.force)
        no = torch.zeros_like(force, dtype=torch.bool)
        times = ("air_time", "contact_time", "last_air_time", "last_contact_time")
        flags = ("in_contact", "first_contact", "first_air")
        history = force[:, None].repeat(1, self.depth, 1)
        return dict.fromkeys(times, force) | dict.fromkeys(flags, no) | {"force_history": history}

    def advance(self, s: State) -> dict[str, Tensor]:
        force, dt = self.force, s.step_dt
        touches = force > self.threshold
        landed, lifted = touches & ~self.in_contact, ~touches & self.in_contact
        # What an episode begins with is no landing: the robot was put there. Afterwards one of the times is above 0.
        landed = landed & (self.air_time + self.contact_time > 0.0)
        return {
            "in_contact": touches,
            "first_contact": landed,
            "first_air": lifted,
            "air_time": torch.where(touches, 0.0, self.air_time + dt),
            "contact_time": torch.where(touches, self.contact_time + dt, 0.0),
            "last_air_time": torch.where(landed, self.air_time, self.last_air_time),
            "last_contact_time": torch.where(lifted, self.contact_time, self.last_contact_time),
            "force_history": torch.cat((force[:, None], self.force_history[:, :-1]), dim=1),
        }


class imu(Term):
    """An inertial measurement unit: gyroscope, accelerometer and the direction of gravity in its own frame.

    site: where it sits; null: at the origin of the base, in base axes.
    """

    def __init__(self, s: State, *, site: str | None = None):
        self._state = s

    @staticmethod
    def add_to(spec: mujoco.MjSpec, name: str, base: str, *, site: str | None = None) -> None:
        """MuJoCo's gyro, accelerometer and frame-z-axis sensors at the site."""
        sites = [x.name for x in spec.sites if x.name]
        if site is None:
            site = spec.body(base).add_site(name=f"isaacrl_{name}").name
        elif site not in sites:
            raise UserError(f"task.sensors.{name}.site: no site '{site}'; there is {', '.join(sites) or 'none'}")
        for what, kind in (("gyro", _KIND.mjSENS_GYRO), ("accelerometer", _KIND.mjSENS_ACCELEROMETER)):
            spec.add_sensor(name=f"{name}/{what}", type=kind, objtype=_OBJECT.mjOBJ_SITE, objname=site)
        # The world's z axis in the IMU's frame.
        up = {"objtype": _OBJECT.mjOBJ_BODY, "objname": "world", "reftype": _OBJECT.mjOBJ_SITE, "refname": site}
        spec.add_sensor(name=f"{name}/up", type=_KIND.mjSENS_FRAMEZAXIS, **up)

    def named(self, name: str) -> None:
        """Where its MuJoCo sensors are."""
        self._name = name

    @property
    def ang_vel_b(self) -> Tensor:
        """Angular velocity, IMU axes [rad/s], [E, 3]."""
        return self._state.sensor(f"{self._name}/gyro")

    @property
    def lin_acc_b(self) -> Tensor:
        """Proper acceleration (at rest: upward, 9.81), IMU axes [m/s^2], [E, 3]."""
        return self._state.sensor(f"{self._name}/accelerometer")

    @property
    def projected_gravity_b(self) -> Tensor:
        """Unit vector along gravity, IMU axes, [E, 3]."""
        return -self._state.sensor(f"{self._name}/up")


def _top(spec: mujoco.MjSpec, name: str) -> str:
    """The body of the world's own children that a body hangs from: the whole robot."""
    body = spec.body(name)
    while body.parent is not None and body.parent.name != "world":
        body = body.parent
    return body.name


def _find(spec: mujoco.MjSpec, patterns: Sequence[str], key: str) -> tuple[Any, list[str]]:
    """Bodies whose names match, in the model's order, or else geoms; (kind, names). Raises: UserError."""
    if not patterns:
        raise UserError(f"{key}: empty; name bodies (asset.feet lists a robot's feet)")
    bodies = [b.name for b in _bodies(spec.worldbody) if b.name]
    geoms = [g.name for b in _bodies(spec.worldbody) for g in b.geoms if g.name]
    for kind, names in ((_OBJECT.mjOBJ_BODY, bodies), (_OBJECT.mjOBJ_GEOM, geoms)):
        try:
            return kind, [names[i] for i in match(patterns, names, key)]
        except UserError:
            continue
    raise UserError(f"{key}: nothing is called {', '.join(patterns)}; bodies: {', '.join(bodies)}")


def _bodies(body: mujoco.MjsBody) -> Iterator[mujoco.MjsBody]:
    """The bodies below, depth first, as in the compiled model."""
    for child in body.bodies:
        yield child
        yield from _bodies(child)
