"""Curricula: what makes a task harder, or easier, as a run goes on.

A term of this family has a `progress`, 0 to 1, on the device: one for all worlds. It is moved in the worlds of mask [E]
whose episodes end, before they are reset, logged as curriculum/NAME and part of checkpoints. Rewards, events and
commands follow one by `curriculum: NAME`: a reward's weight, what an event draws, a command's values are multiplied by
the progress; `curriculum: {name: NAME, from: 0.2}` goes from a share to all, `{name: NAME, to: 0.0}` away, and
`{name: NAME, stage: 2}` switches on with that stage.
"""

from typing import Any

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.state import State
from isaacrl.terms.curriculum import Curriculum, good
from isaacrl.terms.measures import commanded_lin_vel_w


class steps(Curriculum):
    """From 0 at policy step `start` of the run to 1 at `end`."""

    def __init__(self, s: State, *, end: int, start: int = 0):
        super().__init__(s)
        if not 0 <= start < end:
            raise UserError(f"start: {start}, end: {end}; must be 0 <= start < end")
        self.start, self.end = start, end

    def __call__(self, s: State, mask: Tensor) -> None:
        self.progress.copy_(((s.random.step - self.start) / float(self.end - self.start)).clamp(0.0, 1.0))


class performance(Curriculum):
    """Forward with every episode whose metric is above or below a threshold, back with every other one.

    episodes: so many good ones of each world lead from 0 to 1. back: how much a bad one counts beside a good one.
    """

    def __init__(
        self,
        s: State,
        *,
        metric: str,
        above: float | None = None,
        below: float | None = None,
        episodes: float = 10.0,
        back: float = 1.0,
    ):
        super().__init__(s)
        if not episodes > 0.0:
            raise UserError(f"episodes: got {episodes}; must be above 0")
        self.rule, self.speed, self.back = (metric, above, below), 1.0 / (episodes * s.num_envs), back
        good(s, torch.zeros_like(s.whole), *self.rule)  # tells a mistake now

    def __call__(self, s: State, mask: Tensor) -> None:
        well, ended = good(s, mask, *self.rule)
        moved = (well - self.back * (ended - well)).sum() * self.speed
        self.progress.copy_((self.progress + moved).clamp(0.0, 1.0))


class stages(Curriculum):
    """A task in stages, 0 to n: on to the next one when enough episodes meet the present one's condition.

    conditions: n of {metric: NAME, above: x} or {metric: NAME, below: x}. share: of the episodes that must meet it, a
    running mean. episodes: of each world that the mean is about. A stage that is reached stays.
    """

    def __init__(self, s: State, *, conditions: list, share: float = 0.8, episodes: float = 1.0):
        super().__init__(s)
        if not conditions or not all(isinstance(c, dict) and "metric" in c for c in conditions):
            raise UserError("conditions: give a list of {metric: NAME, above: x} or {metric: NAME, below: x}")
        self.rules: list[tuple[Any, Any, Any]] = []
        for c in conditions:
            if unknown := set(c) - {"metric", "above", "below"}:
                raise UserError(f"conditions: unknown {sorted(unknown)}; a condition has metric, and above or below")
            self.rules.append((c["metric"], c.get("above"), c.get("below")))
            good(s, torch.zeros_like(s.whole), *self.rules[-1])
        if not episodes > 0.0:
            raise UserError(f"episodes: got {episodes}; must be above 0")
        self.share, self.weight = share, min(1.0, 1.0 / (episodes * s.num_envs))
        self.stage = torch.zeros((), dtype=torch.int64, device=s.device)
        self.mean = torch.zeros((), device=s.device)  # share of the latest episodes that meet the condition
        self.tensors |= {"stage": self.stage, "mean": self.mean}

    def __call__(self, s: State, mask: Tensor) -> None:
        assert self.stage is not None
        found = [good(s, mask, *rule) for rule in self.rules]
        well = torch.stack([w.sum() for w, _ in found])
        last = len(self.rules)
        now = well.index_select(0, self.stage.clamp(max=last - 1)[None])[0]
        ended = found[0][1].sum()
        kept = (1.0 - self.weight) ** ended
        mean = kept * self.mean + (1.0 - kept) * now / ended.clamp(min=1.0)
        up = (mean >= self.share) & (self.stage < last)
        self.stage.add_(up)
        self.mean.copy_(torch.where(up, 0.0, mean))
        self.progress.copy_(self.stage / last)


class terrain_levels(Curriculum):
    """A robot that has left its patch goes on to the next level; one that came less than `share` of the way that its
    commands would have led in a whole episode goes back, and so does who falls early. Who has passed the hardest level
    starts again on any. progress: the mean level.

    Source: Rudin et al. 2022, arXiv:2109.11978, section 3.2; there the way is that of the last command alone, here that
    of all until the episode's end, as if they went on as before where it ended early.
    """

    def __init__(self, s: State, *, command: str = "velocity", share: float = 0.5):
        super().__init__(s)
        if s.ground is None:
            raise UserError("the ground is an endless plane; task.terrain.kinds names none")
        self.ground, self.command, self.share = s.ground, command, share
        self.asked: Tensor  # where the episode's commands would have led, from its start [m], [E, 2]

    def init(self, s: State) -> dict[str, Tensor]:
        return {"asked": torch.zeros(s.num_envs, 2, device=s.device)}

    def advance(self, s: State) -> dict[str, Tensor]:
        return {"asked": self.asked + s.step_dt * commanded_lin_vel_w(s, self.command)}

    def __call__(self, s: State, mask: Tensor) -> None:
        ground, mask = self.ground, mask & s.whole & (s.episode_step > 0)
        way = torch.linalg.vector_norm(s.base_pos_w[:, :2] - ground.origin[:, :2], dim=1)
        up = way > ground.size / 2.0
        whole = s.max_episode_steps / s.episode_step.clamp(min=1)
        down = ~up & (way < self.share * whole * torch.linalg.vector_norm(self.asked, dim=1))
        any_level = (s.uniform(1)[:, 0] * ground.levels).long().clamp(max=ground.levels - 1)
        level = (ground.level + up.long() - down.long()).clamp(min=0)
        level = torch.where(level >= ground.levels, any_level, level)
        ground.level.copy_(torch.where(mask, level, ground.level))
        self.progress.copy_(ground.level.float().mean() / max(1, ground.levels - 1))
