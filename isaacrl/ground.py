"""The terrain as terms see it: heights anywhere, and where each world's robot starts."""

from typing import Any

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.sim.terrain import Terrain


class Ground:
    """A terrain's tensors, and the patch of each world. Shapes: E worlds, L levels, C patches along y.

    s: the worlds' State. start_level: worlds start on random levels up to this one.
    level, column: of the worlds' patches, int64 [E]. The column stays; curricula change levels.

    Raises: UserError for a robot that cannot be placed.
    """

    def __init__(self, terrain: Terrain, s: Any, start_level: int):
        num_envs, device, self._free = s.num_envs, s.device, s.robot.free_qpos
        if not s.robot.floating:
            raise UserError("task.terrain: the robot's base is fixed; only a floating base can stand on a terrain")
        self.heights = torch.as_tensor(terrain.heights, device=device)  # [rows, columns], rows along y [m]
        self.origins = torch.as_tensor(terrain.origins, device=device)  # [L, C, 3] [m]
        self.resolution, self.corner, self.size, self.kinds = (
            terrain.resolution,
            terrain.corner,
            terrain.size,
            terrain.kinds,
        )
        self.levels = len(self.origins)
        self.column = torch.arange(num_envs, device=device) * len(terrain.kinds) // num_envs
        s.use_stream("terrain")
        most = min(start_level, self.levels - 1)
        self.level = (s.uniform(1)[:, 0] * (most + 1)).long().clamp(max=most)

    @property
    def origin(self) -> Tensor:
        """Where the robots stand at the start of an episode, world frame [m], [E, 3]."""
        return self.origins.flatten(0, 1)[self.level * len(self.kinds) + self.column]

    def placed(self, qpos: Tensor) -> Tensor:
        """qpos [E, nq] with the base moved to the worlds' patches."""
        qpos = qpos.clone()
        qpos[:, self._free : self._free + 3] += self.origin
        return qpos

    def height(self, xy: Tensor) -> Tensor:
        """Height of the ground below points [..., 2], world frame [m], [...]; beyond the field that of its edge.

        Between four heights it is two triangles, as MuJoCo has them: the diagonal goes from the least x and y to the
        largest.
        """
        rows, columns = self.heights.shape
        u = ((xy[..., 0] - self.corner[0]) / self.resolution).clamp(0.0, columns - 1.0)
        v = ((xy[..., 1] - self.corner[1]) / self.resolution).clamp(0.0, rows - 1.0)
        c, r = u.floor().clamp(max=columns - 2.0), v.floor().clamp(max=rows - 2.0)
        u, v = u - c, v - r
        place = r * columns + c  # exact: fewer than 2^24 heights
        first = torch.where(place == place, place, 0.0).long()  # a world that failed reads any
        flat = self.heights.flatten()
        here, across = flat[first], flat[first + columns + 1]
        corner = torch.where(u >= v, flat[first + 1], flat[first + columns])
        more, less = torch.maximum(u, v), torch.minimum(u, v)
        return here + more * (corner - here) + less * (across - corner)

    def inside(self, xy: Tensor, margin: float) -> Tensor:
        """Whether points [..., 2] are on the field, further than margin [m] from its edge, boolean [...]."""
        return (xy[..., 0].abs() < -self.corner[0] - margin) & (xy[..., 1].abs() < -self.corner[1] - margin)
