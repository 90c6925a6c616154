"""Commands: terms with memory whose value [E, n] a task asks the robot to follow. Read with s.command(name)."""

import torch
from torch import Tensor

from isaacrl.state import State
from isaacrl.terms import Term


class uniform(Term):
    """n values, each uniform in its own range, drawn at the reset and again every resample_s seconds.

    low, high: lists of n numbers, in the unit of what is commanded.
    """

    def __init__(self, s: State, *, low: list[float], high: list[float], resample_s: float = 10.0):
        self.low = torch.tensor([float(x) for x in low], device=s.device)
        self.high = torch.tensor([float(x) for x in high], device=s.device)
        self.period = max(1, round(resample_s / s.step_dt))
        self.value: Tensor
        self.steps_left: Tensor

    def _draw(self, s: State) -> Tensor:
        return s.uniform(len(self.low), self.low, self.high)

    def init(self, s: State) -> dict[str, Tensor]:
        steps = torch.full((s.num_envs,), self.period, dtype=torch.int64, device=s.device)
        return {"value": self._draw(s), "steps_left": steps}

    def advance(self, s: State) -> dict[str, Tensor]:
        left = self.steps_left - 1
        due = left <= 0
        value = torch.where(due[:, None], self._draw(s), self.value)
        return {"value": value, "steps_left": torch.where(due, self.period, left)}

    def __call__(self, s: State) -> Tensor:
        return self.value
