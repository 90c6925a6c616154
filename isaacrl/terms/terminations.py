"""Terminations: functions of State that return a boolean [E]. `time_out: true` in the node makes one a truncation:
the episode ends, but its future still counts in the value estimate. The full episode length is always a truncation."""

from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.state import State
from isaacrl.terms import ALL, Joints


def joint_pos_beyond(s: State, *, joints: Joints = ALL, limit: float) -> Tensor:
    """Whether any joint is further than limit from 0 [rad or m], [E]."""
    return (s.joint_pos[:, joints].abs() > limit).any(dim=1)


def base_height_below(s: State, *, height: float) -> Tensor:
    """Whether the base frame is less than height above the ground [m], [E]."""
    return s.base_height < height


def off_terrain(s: State, *, margin: float = 1.0) -> Tensor:
    """Whether the base is nearer than margin to the edge of the terrain [m], [E]. Where it is no failure of the
    policy's, give it `time_out: true`."""
    if s.ground is None:
        raise UserError("off_terrain: the ground is an endless plane; task.terrain.kinds names none")
    return ~s.ground.inside(s.base_pos_w[:, :2], margin)


def tilted(s: State, *, cos: float) -> Tensor:
    """Whether the cosine between the base's z axis and the vertical is below cos, [E]."""
    return -s.projected_gravity_b[:, 2] < cos


def contact_above(s: State, *, sensor: str, force: float = 1.0) -> Tensor:
    """Whether any body of the contact sensor touches with more than force [N], [E]."""
    return (s.contact(sensor).force > force).any(dim=1)
