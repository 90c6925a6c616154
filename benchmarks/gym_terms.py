"""gymnasium's Ant-v5 and HalfCheetah-v5 as terms: what versus_sb3.py and versus_sb3_sac.py train on.

Source: gymnasium/envs/mujoco/ant_v5.py and half_cheetah_v5.py.
"""

import torch
from torch import Tensor

from isaacrl.state import State
from isaacrl.terms import Term


def qpos_qvel(s: State, *, skip: int) -> Tensor:
    """qpos without its first numbers, the places on the plane, then qvel, [E, n]."""
    return torch.cat((s.read("qpos")[:, skip:], s.read("qvel")), dim=1)


class forward(Term):
    """Speed of the torso along x [m/s], [E]: the difference of its positions after this step and the last.

    In float64: far from the origin a float32 position has too few digits left for a speed.
    """

    def __init__(self, s: State):
        self.now: Tensor
        self.before: Tensor
        self.qpos = s.engine.field("qpos")

    def init(self, s: State) -> dict[str, Tensor]:
        return {"before": self.qpos[:, 0].clone(), "now": self.qpos[:, 0].clone()}

    def advance(self, s: State) -> dict[str, Tensor]:
        return {"before": self.now, "now": self.qpos[:, 0]}

    def __call__(self, s: State) -> Tensor:
        return ((self.now - self.before) / s.step_dt).float()


def unhealthy(s: State, *, z: list[float]) -> Tensor:
    """Whether the torso's height is outside z [m], [E]."""
    height = s.engine.field("qpos")[:, 2]
    return (height < z[0]) | (height > z[1])


def healthy(s: State, *, z: list[float]) -> Tensor:
    """1 while it is inside, [E]."""
    return (~unhealthy(s, z=z)).float()


def control_cost(s: State) -> Tensor:
    """Sum of squared controls, which are the actions clipped to [-1, 1], [E]."""
    return s.action.clamp(-1.0, 1.0).square().sum(dim=1)


def reset_noise(s: State, mask: Tensor, *, scale: float) -> None:
    """Uniform +-scale on all of qpos, the quaternion too, and scale times a normal number on qvel."""
    qpos, qvel = s.read("qpos"), s.read("qvel")
    s.write("qpos", qpos + s.uniform(qpos.shape[1], -scale, scale), mask)
    s.write("qvel", s.normal(qvel.shape[1], 0.0, scale), mask)
