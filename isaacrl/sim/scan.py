"""Heights below a grid of points around every robot, by a Warp kernel: a thread a point."""

import torch
import warp as wp
from torch import Tensor

from isaacrl.fuse import trace
from isaacrl.sim.rays import above
from isaacrl.sim.streams import Launcher  # starts Warp


@wp.kernel(enable_backward=False)
def _scan(
    poses: wp.array2d[wp.float32],  # [E, 4]: position of the base [m], heading [rad], world frame
    x: wp.array[wp.float32],  # [n] of the points, along the heading [m]
    y: wp.array[wp.float32],  # [n] to the left of it [m]
    heights: wp.array[wp.float32],  # row by row, rows along y [m]
    rows: int,
    columns: int,
    corner_x: wp.float32,  # of the first height [m]
    corner_y: wp.float32,
    resolution: wp.float32,  # [m]
    # Out:
    below: wp.array2d[wp.float32],  # [E, n]: how far the ground is below the base [m]
):
    world, point = wp.tid()  # pyright: ignore[reportGeneralTypeIssues]
    cos, sin = wp.cos(poses[world, 3]), wp.sin(poses[world, 3])
    px = poses[world, 0] + cos * x[point] - sin * y[point]
    py = poses[world, 1] + sin * x[point] + cos * y[point]
    # A world that has failed reads the first height: a NaN compares as false.
    u, v = wp.float32(0.0), wp.float32(0.0)
    if wp.abs(px) < 1.0e6 and wp.abs(py) < 1.0e6:
        u = wp.clamp((px - corner_x) / resolution, wp.float32(0.0), wp.float32(columns - 1))
        v = wp.clamp((py - corner_y) / resolution, wp.float32(0.0), wp.float32(rows - 1))
    c, r = wp.min(int(u), columns - 2), wp.min(int(v), rows - 2)
    a, b = u - wp.float32(c), v - wp.float32(r)
    below[world, point] = above(heights, r * columns + c, columns, a, b, poses[world, 2])


class Scanner:
    """n points of every world above a terrain. x, y: along the heading and to the left of it [m], [n] tensors.

    heights [rows, columns] [m], corner (x and y of the first one) and resolution [m]: of the terrain, as
    `isaacrl.ground.Ground` has them; the same triangles.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        heights: Tensor,
        corner: tuple[float, float],
        resolution: float,
        num_envs: int,
    ):
        self.device = str(heights.device)
        self.poses = torch.zeros(num_envs, 4, device=heights.device)
        self.below = torch.zeros(num_envs, len(x), device=heights.device)  # of the last call [m], [E, n]
        self._launcher = Launcher(self.device, use_graph=False)
        with self._launcher.stream():
            arrays = [wp.from_torch(a.float().contiguous()) for a in (self.poses, x, y, heights.flatten())]
            place = float(corner[0]), float(corner[1]), float(resolution)
            self._inputs = [*arrays, *heights.shape, *place, wp.from_torch(self.below)]
        self._run()  # compiles: nothing may be loaded in a capture

    def __call__(self, pos: Tensor, heading: Tensor) -> Tensor:
        """How far the ground is below bases at pos [E, 3] [m] with that heading [E] [rad]: [E, n] [m].

        The tensor is the same one each time.
        """
        self.poses[:, :3].copy_(pos)
        self.poses[:, 3].copy_(heading)
        trace.call(self._run)
        return self.below

    def _run(self) -> None:
        with self._launcher.stream():
            wp.launch(_scan, dim=self.below.shape, inputs=self._inputs, device=self.device)
