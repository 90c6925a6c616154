"""Commands: terms with memory whose value [E, n] a task asks the robot to follow. Read with s.command(name).

`curriculum: NAME` multiplies what `uniform` and `velocity` draw by a curriculum's progress (isaacrl.terms.curricula).
"""

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.state import State, from_euler
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
        return s.share * s.uniform(len(self.low), self.low, self.high)

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


def _ranges(s: State, **given: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """(low [n], high [n]) of n named ranges. Raises: UserError for one in reverse."""
    for name, (low, high) in given.items():
        if low > high:
            raise UserError(f"{name}: [{low:g}, {high:g}] is in reverse; give [low, high]")
    ranges = torch.tensor(list(given.values()), dtype=torch.float32, device=s.device)
    return ranges[:, 0], ranges[:, 1]


class velocity(Term):
    """Base velocity to follow, (forward, left) [m/s] and yaw rate [rad/s] in base axes, [E, 3].

    lin_vel_x, lin_vel_y, ang_vel_z: ranges. resample_s: seconds between draws, a range. standing: share of draws that
    are zero. heading: share of draws in which the yaw rate steers towards a random heading instead:
    heading_gain [1/s] times the error, within ang_vel_z. minimum: slower planar commands become zero [m/s].
    """

    def __init__(
        self,
        s: State,
        *,
        lin_vel_x: tuple[float, float],
        lin_vel_y: tuple[float, float] = (0.0, 0.0),
        ang_vel_z: tuple[float, float] = (0.0, 0.0),
        resample_s: tuple[float, float] = (10.0, 10.0),
        standing: float = 0.0,
        heading: float = 0.0,
        heading_gain: float = 0.5,
        minimum: float = 0.0,
    ):
        self._low, self._high = _ranges(s, lin_vel_x=lin_vel_x, lin_vel_y=lin_vel_y, ang_vel_z=ang_vel_z)
        self.period = tuple(max(1.0, float(t) / s.step_dt) for t in resample_s)
        self.standing, self.heading, self.gain, self.minimum = standing, heading, heading_gain, minimum
        self.value: Tensor  # [E, 3]
        self.target: Tensor  # heading to steer to [rad], [E]
        self.steers: Tensor  # whether the heading counts, boolean [E]
        self.steps_left: Tensor  # until the next draw, [E]

    def ranges(self, s: State) -> tuple[Tensor, Tensor]:
        """Least and largest values now, [3] each."""
        return s.share * self._low, s.share * self._high

    def _draw(self, s: State) -> dict[str, Tensor]:
        value = s.uniform(3, *self.ranges(s))
        chance = s.uniform(2)
        stands = chance[:, 0] < self.standing
        if self.minimum > 0.0:
            slow = torch.linalg.vector_norm(value[:, :2], dim=1) < self.minimum
            value[:, :2] *= ~slow[:, None]
        value *= ~stands[:, None]
        return {
            "value": value,
            "target": s.uniform(1, -torch.pi, torch.pi)[:, 0],
            "steers": (chance[:, 1] < self.heading) & ~stands,
            "steps_left": s.uniform(1, *self.period)[:, 0].round().long(),
        }

    def _steered(self, s: State, new: dict[str, Tensor]) -> dict[str, Tensor]:
        error = torch.remainder(new["target"] - s.heading_w + torch.pi, 2 * torch.pi) - torch.pi
        low, high = self.ranges(s)
        turn = torch.clamp(self.gain * error, low[2], high[2])
        yaw = torch.where(new["steers"], turn, new["value"][:, 2])
        return new | {"value": torch.cat((new["value"][:, :2], yaw[:, None]), dim=1)}

    def init(self, s: State) -> dict[str, Tensor]:
        return self._steered(s, self._draw(s))

    def advance(self, s: State) -> dict[str, Tensor]:
        old = {"value": self.value, "target": self.target, "steers": self.steers, "steps_left": self.steps_left - 1}
        due, drawn = old["steps_left"] <= 0, self._draw(s)
        mixed = {k: torch.where(due[:, None] if v.ndim > 1 else due, drawn[k], v) for k, v in old.items()}
        return self._steered(s, mixed)

    def __call__(self, s: State) -> Tensor:
        return self.value


class velocity_in_stages(velocity):
    """`velocity` whose ranges are those of a curriculum's stage (`isaacrl.terms.curricula.stages`).

    lin_vel_x, lin_vel_y, ang_vel_z: a range for each stage, from stage 0 on; the last one lasts. stage: the curriculum.
    """

    def __init__(
        self,
        s: State,
        *,
        stage: str,
        lin_vel_x: list[list[float]],
        lin_vel_y: list[list[float]] = ((0.0, 0.0),),  # type: ignore[assignment]
        ang_vel_z: list[list[float]] = ((0.0, 0.0),),  # type: ignore[assignment]
        resample_s: tuple[float, float] = (10.0, 10.0),
        standing: float = 0.0,
        heading: float = 0.0,
        heading_gain: float = 0.5,
        minimum: float = 0.0,
    ):
        given = {"lin_vel_x": lin_vel_x, "lin_vel_y": lin_vel_y, "ang_vel_z": ang_vel_z}
        for name, ranges in given.items():
            if not ranges or any(len(r) != 2 for r in ranges):
                raise UserError(f"{name}: give a range [low, high] for each stage")
        count = max(len(ranges) for ranges in given.values())
        of_stage = [{k: tuple(r[min(i, len(r) - 1)]) for k, r in given.items()} for i in range(count)]
        rest = {"resample_s": resample_s, "standing": standing, "heading": heading, "minimum": minimum}
        super().__init__(s, **of_stage[0], **rest, heading_gain=heading_gain)  # type: ignore[arg-type]
        self.name = stage
        self.lows, self.highs = (torch.stack(x) for x in zip(*(_ranges(s, **r) for r in of_stage)))
        if s.curriculum(stage).stage is None:
            raise UserError(f"stage: curriculum '{stage}' has no stages")

    def ranges(self, s: State) -> tuple[Tensor, Tensor]:
        now = s.curriculum(self.name).stage.clamp(max=len(self.lows) - 1)[None]
        low, high = (x.index_select(0, now)[0] for x in (self.lows, self.highs))
        return s.share * low, s.share * high


class pose(Term):
    """A pose to reach, in the frame of the robot's base: position [m] and quaternion, [E, 7].

    x, y, z: ranges [m]. roll, pitch, yaw: ranges [rad], turned about the fixed x, y and z axes in this order.
    resample_s: seconds between draws, a range.
    """

    def __init__(
        self,
        s: State,
        *,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        roll: tuple[float, float] = (0.0, 0.0),
        pitch: tuple[float, float] = (0.0, 0.0),
        yaw: tuple[float, float] = (0.0, 0.0),
        resample_s: tuple[float, float] = (4.0, 4.0),
    ):
        self.low, self.high = _ranges(s, x=x, y=y, z=z, roll=roll, pitch=pitch, yaw=yaw)
        self.period = tuple(max(1.0, float(t) / s.step_dt) for t in resample_s)
        self.value: Tensor  # [E, 7]
        self.steps_left: Tensor  # until the next draw, [E]

    def _draw(self, s: State) -> dict[str, Tensor]:
        drawn = s.uniform(6, self.low, self.high)
        quat = from_euler(drawn[:, 3:])
        steps = s.uniform(1, *self.period)[:, 0].round().long()
        return {"value": torch.cat((drawn[:, :3], quat), dim=1), "steps_left": steps}

    def init(self, s: State) -> dict[str, Tensor]:
        return self._draw(s)

    def advance(self, s: State) -> dict[str, Tensor]:
        left, drawn = self.steps_left - 1, self._draw(s)
        due = left <= 0
        value = torch.where(due[:, None], drawn["value"], self.value)
        return {"value": value, "steps_left": torch.where(due, drawn["steps_left"], left)}

    def __call__(self, s: State) -> Tensor:
        return self.value
