"""The mirror image of a robot, left for right: which of its parts swap, and which joints turn the other way.

The plane is that of the base's x and z axes. `asset.mirror` says how names swap; all else is computed from the compiled
model in the default pose, and checked: a mirrored pose must be the mirror image of the pose.
"""

import re
from collections.abc import Mapping, Sequence

import mujoco
import numpy as np

from isaacrl.errors import UserError
from isaacrl.suggest import did_you_mean, listing

FLIP = np.array([1.0, -1.0, 1.0])  # of a vector; an axial one (angular velocity, axis of a joint) gets -FLIP
POSITIONS, MASSES = 0.02, 0.05  # how far real robots may be from symmetric: shares of the size, of a mass
FREE, BALL, SLIDE = (
    int(k) for k in (mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_BALL, mujoco.mjtJoint.mjJNT_SLIDE)
)


class Mirror:
    """The mirror map of a robot. patterns: `asset.mirror`; base: body id; qpos: MuJoCo's, in the default pose [nq].

    Raises: UserError (naming asset.mirror) where the map does not fit the model.
    """

    def __init__(self, patterns: Mapping[str, str], model: mujoco.MjModel, base: int, qpos: np.ndarray):
        if not patterns:
            raise UserError(
                r"asset.mirror: not given, so nothing says what is left and right; e.g. {'left_(.*)': 'right_\1'}"
            )
        self._model, self._base, self._data = model, base, mujoco.MjData(model)
        kinds = {
            "joint": [model.joint(j).name for j in range(model.njnt)],
            "body": [model.body(b).name for b in range(model.nbody)],
            "geom": [model.geom(g).name for g in range(model.ngeom)],
        }
        self._partners = _partners(patterns, kinds)
        for j in range(model.njnt):
            if model.jnt_type[j] == BALL or model.jnt_type[j] == FREE and model.jnt_bodyid[j] != base:
                raise UserError(
                    f"asset.mirror: joint '{kinds['joint'][j]}' is neither a hinge nor a slide of the robot"
                )
        self._joints = [j for j in range(model.njnt) if model.jnt_type[j] != FREE]
        self._bodies = [b for b in range(1, model.nbody) if model.body_rootid[b] == model.body_rootid[base]]
        self._image = [model.joint(self.partner(kinds["joint"][j])).id for j in self._joints]
        self._body_image = [model.body(self.partner(kinds["body"][b])).id for b in self._bodies]
        self._qpos = np.array(qpos, dtype=np.float64)
        if self.partner(kinds["body"][base]) != kinds["body"][base]:
            raise UserError(f"asset.mirror: the base '{kinds['body'][base]}' is its own mirror image; leave it out")
        places, axes = self._pose(self._qpos)
        self._size = max(float(np.abs(places).max()), 1e-3)  # of the robot [m]
        self._check_places(places, places, "in the default pose")
        self._check_masses()
        self.signs: dict[str, float] = {}  # joint -> 1 or -1: what its position is multiplied by in its partner
        for j, image in zip(self._joints, self._image):
            along = (FLIP if model.jnt_type[j] == SLIDE else -FLIP) * axes[j]
            cos = float(along @ axes[image])
            if abs(cos) < 0.99 or model.jnt_type[j] != model.jnt_type[image]:
                raise UserError(
                    f"asset.mirror: joint '{kinds['joint'][image]}' is no mirror image of '{kinds['joint'][j]}': "
                    "it turns about another axis"
                )
            self.signs[kinds["joint"][j]] = 1.0 if cos > 0.0 else -1.0
        self._check_poses()

    def partner(self, name: str) -> str:
        """The name of the mirror image of a joint, body or geom; its own where it is in no pair."""
        return self._partners.get(name, name)

    def swap(self, names: Sequence[str]) -> list[int]:
        """The place in names of each one's mirror image. Raises: UserError where it is not among them."""
        for name in names:
            if self.partner(name) not in names:
                raise UserError(f"'{name}' is there without its mirror image '{self.partner(name)}' (asset.mirror)")
        return [list(names).index(self.partner(name)) for name in names]

    def joints(self, names: Sequence[str]) -> tuple[list[int], list[float]]:
        """Where the mirror image of one value a joint comes from, and its sign."""
        return self.swap(names), [self.signs[name] for name in names]

    def site(self, site: int) -> list[float]:
        """What happens to a vector in the axes of a site in the middle of the robot: three signs.

        Raises: UserError where the site is elsewhere, or turned so that axes mix.
        """
        self._pose(self._qpos)
        body = self._model.site_bodyid[site]
        name = f"site '{self._model.site(site).name}'"
        return self._axes(name, body, self._data.site_xpos[site], self._data.site_xmat[site])

    def body(self, body: int) -> list[float]:
        """The same for a vector in the axes of a body."""
        self._pose(self._qpos)
        name = f"body '{self._model.body(body).name}'"
        return self._axes(name, body, self._data.xpos[body], self._data.xmat[body])

    def _axes(self, name: str, body: int, pos: np.ndarray, mat: np.ndarray) -> list[float]:
        frame, own = self._data.xmat[self._base].reshape(3, 3), self._model.body(body).name
        y = float(((pos - self._data.xpos[self._base]) @ frame)[1])
        turned = frame.T @ mat.reshape(3, 3)
        flip = turned.T @ np.diag(FLIP) @ turned
        if self.partner(own) != own or abs(y) > POSITIONS * self._size:
            raise UserError(f"{name} is not in the middle of the robot, so it has no mirror image")
        if np.abs(np.abs(np.diag(flip)) - 1.0).max() > 0.01:
            raise UserError(f"{name} is turned, so that its axes have no mirror image")
        return np.sign(np.diag(flip)).tolist()

    # --- checks ------------------------------------------------------------------------------------------------------

    def _pose(self, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """In base axes: origins and centres of mass of the robot's bodies [m], [2, bodies, 3]; joint axes [njnt, 3]."""
        data = self._data
        data.qpos[:] = qpos
        mujoco.mj_kinematics(self._model, data)
        frame = data.xmat[self._base].reshape(3, 3)
        places = np.stack((data.xpos[self._bodies], data.xipos[self._bodies])) - data.xpos[self._base]
        return places @ frame, data.xaxis @ frame

    def _check_places(self, places: np.ndarray, mirrored: np.ndarray, when: str) -> None:
        order = [self._bodies.index(b) for b in self._body_image]
        off = np.linalg.norm(places * FLIP - mirrored[:, order], axis=2).max(axis=0)
        if (worst := int(off.argmax())) >= 0 and off[worst] > POSITIONS * self._size:
            one, other = (self._model.body(b).name for b in (self._bodies[worst], self._body_image[worst]))
            raise UserError(
                f"asset.mirror: {when} body '{other}' is {off[worst]:.3f} m from the mirror image of '{one}'; the "
                "plane is that of the base's x and z axes"
            )

    def _check_masses(self) -> None:
        for b, image in zip(self._bodies, self._body_image):
            one, other = (float(self._model.body_mass[i]) for i in (b, image))
            if abs(one - other) > MASSES * max(one, other):
                names = " and ".join(f"'{self._model.body(i).name}'" for i in (b, image))
                raise UserError(f"asset.mirror: bodies {names} are no mirror images: {one:.4g} and {other:.4g} kg")

    def _check_poses(self) -> None:
        """Random poses and their mirror images."""
        model, random = self._model, np.random.default_rng(0)
        own, image = model.jnt_qposadr[self._joints], model.jnt_qposadr[self._image]
        signs = np.array([self.signs[model.joint(j).name] for j in self._joints])
        for _ in range(4):
            moved, mirrored = self._qpos.copy(), self._qpos.copy()
            moved[own] += (change := random.uniform(-0.5, 0.5, len(own)))
            mirrored[image] += signs * change
            self._check_places(self._pose(moved)[0], self._pose(mirrored)[0], "with mirrored joints")


def _partners(patterns: Mapping[str, str], kinds: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Name -> name of its mirror image, both ways, from the names of each kind of part."""
    found: dict[str, str] = {}
    every = list(dict.fromkeys(name for names in kinds.values() for name in names if name))
    for pattern, replacement in patterns.items():
        try:
            hits = {n: m.expand(replacement) for n in every if (m := re.fullmatch(pattern, n))}
        except (re.error, IndexError, TypeError) as e:
            raise UserError(
                f"asset.mirror: '{pattern}: {replacement}' is no pattern and its replacement ({e})"
            ) from None
        if not hits:
            hint = did_you_mean(pattern, every) or f"; there are: {listing(every)}"
            raise UserError(f"asset.mirror: '{pattern}' matches no joint, body or geom{hint}")
        for one, other in hits.items():
            for kind, names in kinds.items():
                if one in names and other not in names and kind != "geom":
                    raise UserError(f"asset.mirror: the mirror image '{other}' of {kind} '{one}' does not exist")
            for a, b in ((one, other), (other, one)):
                if found.setdefault(a, b) != b:
                    raise UserError(f"asset.mirror: '{a}' gets two mirror images, '{found[a]}' and '{b}'")
    return found
