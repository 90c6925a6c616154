"""Rays as an observation: a LiDAR or a few range finders."""

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.sim.names import match
from isaacrl.state import State, rotate


def fan(azimuth: Sequence[float], azimuths: int, elevation: Sequence[float], elevations: int) -> np.ndarray:
    """Unit vectors [elevations * azimuths, 3], elevation by elevation: equal angles between the ends [deg], both
    included, of a full turn only one."""

    def angles(ends: Sequence[float], n: int) -> np.ndarray:
        low, high = (float(x) for x in ends)
        if n == 1:
            return np.radians([(low + high) / 2.0])
        return np.radians(np.linspace(low, high, n, endpoint=abs(high - low - 360.0) > 1e-6))

    up, turn = np.meshgrid(angles(elevation, elevations), angles(azimuth, azimuths), indexing="ij")
    return np.stack((np.cos(up) * np.cos(turn), np.cos(up) * np.sin(turn), np.sin(up)), axis=2).reshape(-1, 3)


class rays:
    """How far the surroundings are along rays from a body or site, at most `far` [m], [E, R].

    site, body: from which (null: the base); pos: the point in its frame [m]. azimuth: from its x axis towards y,
    elevation: upwards, each [low, high] [deg], `azimuths` times `elevations` of them, elevation by elevation; in place
    of them `directions`, a list of vectors in the frame. yaw_only: rays turn with the frame's heading alone.
    Rays see what belongs to the world itself: the terrain, planes, boxes, spheres, ellipsoids, capsules and cylinders.
    They see no robot and no other body, no mesh, nothing transparent, and no randomized place or size of a geom.
    """

    def __init__(
        self,
        s: State,
        *,
        site: str | None = None,
        body: str | None = None,
        pos: tuple[float, float, float] = (0.0, 0.0, 0.0),
        azimuth: tuple[float, float] = (-180.0, 180.0),
        azimuths: int = 36,
        elevation: tuple[float, float] = (0.0, 0.0),
        elevations: int = 1,
        directions: list[tuple[float, float, float]] | None = None,
        far: float = 5.0,
        yaw_only: bool = False,
    ):
        from isaacrl.sim.rays import RayCaster  # starts Warp

        if site is not None and body is not None:
            raise UserError("site and body are both given; rays have one origin")
        if not far > 0.0:
            raise UserError(f"far: got {far}; must be above 0 m")
        if directions is None:
            if min(azimuths, elevations) < 1:
                raise UserError(f"azimuths {azimuths}, elevations {elevations}: both must be at least 1")
            if not azimuth[0] <= azimuth[1] <= azimuth[0] + 360.0:
                raise UserError(f"azimuth: got {list(azimuth)}; give [low, high] in degrees, at most a full turn apart")
            if not -90.0 <= elevation[0] <= elevation[1] <= 90.0:
                raise UserError(f"elevation: got {list(elevation)}; give [low, high] in degrees, within -90 to 90")
            along = fan(azimuth, azimuths, elevation, elevations)
        else:
            along = np.array(directions, dtype=np.float64).reshape(-1, 3)
            if not len(along) or not (np.linalg.norm(along, axis=1) > 1e-6).all():
                raise UserError("directions: give at least one vector [x, y, z], none of length 0")
        robot = s.robot
        self.site = body is None and site is not None
        self.name = site or body or robot.body_names[robot.base]
        names = robot.site_names if self.site else robot.body_names
        self.index = match([re.escape(self.name)], names, "site" if self.site else "body")[0]
        self.directions, self.pos, self.yaw_only = along, tuple(float(x) for x in pos), yaw_only
        self.offset = torch.tensor(self.pos, device=s.device)
        self.caster = RayCaster(s.engine.model, along, float(far), s.num_envs, s.device)

    def __call__(self, s: State) -> Tensor:
        frame = s.site(re.escape(self.name)) if self.site else s.body(re.escape(self.name))
        pos, quat = frame.pos_w[:, 0], frame.quat_w[:, 0]
        pos = pos + rotate(quat, self.offset.expand_as(pos))
        if self.yaw_only:
            w, x, y, z = quat.unbind(1)
            half = 0.5 * torch.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))
            zero = torch.zeros_like(half)
            quat = torch.stack((torch.cos(half), zero, zero, torch.sin(half)), dim=1)
        return self.caster(pos, quat)


def mirror_map(directions: np.ndarray, flip: Sequence[float]) -> list[int]:
    """Which ray is the mirror image of each; flip: what happens to vectors. Raises: UserError where one has none."""
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    apart = np.linalg.norm((unit * np.asarray(flip))[:, None] - unit[None], axis=2)
    nearest = apart.argmin(axis=1)
    for i, j in enumerate(nearest):
        if apart[i, j] > math.radians(0.01) or nearest[j] != i:
            shown = ", ".join(f"{x:.3g}" for x in unit[i])
            raise UserError(f"the ray along [{shown}] is there without its mirror image; make azimuth symmetric")
    return nearest.tolist()
