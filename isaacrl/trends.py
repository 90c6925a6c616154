"""How training has gone so far, on the host: recent metrics, and whether the return has risen (`troubles.py`)."""

import math
from collections import defaultdict, deque
from typing import Any

from omegaconf import DictConfig, OmegaConf

SHORT = 5  # iterations of a mean
MOVED = 0.02  # progress of curricula that makes the task another
SMOOTH = 0.2  # share of the newest return in the smoothed one: its noise is a third of a single iteration's


class History:
    """Recent metrics, and how the return went. algo: the settings of the algorithm."""

    def __init__(self, cfg: DictConfig, *, max_episode_steps: int, num_actions: int, updates: int):
        """updates: an iteration's."""
        self.algo: dict[str, Any] = OmegaConf.to_container(cfg.algo)  # type: ignore[assignment]
        self.solved_rules: dict[str, Any] = OmegaConf.to_container(cfg.task.solved)  # type: ignore[assignment]
        self.max_steps, self.num_actions, self.updates = max_episode_steps, num_actions, updates
        self.samples, self.iterations = cfg.algo.num_steps * cfg.num_envs, cfg.algo.iterations
        self.iteration = 0
        self.recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=SHORT))
        self.stand, self.moved = -math.inf, -math.inf  # the curricula's sum at its highest; iteration of that
        self.least_error = math.inf  # of TD errors, means of SHORT
        self.returns, self.lengths, self.episodes = Rise(), Rise(), 0.0
        self.largest_reward = 0.0  # mean a step, absolute
        self.rewards: dict[str, float] = {}  # mean of each term a step; empty before there are SHORT iterations

    def add(self, metrics: dict[str, float | None], iteration: int) -> None:
        self.iteration = iteration
        for name, value in metrics.items():
            if name.startswith("time/"):
                continue
            if value is None or value - value != 0:
                if name.startswith(("loss/", "kl", "q", "td_error")):
                    self.recent[name].append(math.inf)
                continue
            self.recent[name].append(float(value))
        if (error := self.mean("td_error")) is not None:
            self.least_error = min(self.least_error, error)
        means = {k[7:]: self.mean(k) for k in self.recent if k.startswith("reward/")}
        self.rewards = {k: v for k, v in means.items() if v is not None}
        self.largest_reward = max(self.largest_reward, abs(self.mean("reward") or 0.0))
        self.episodes += metrics.get("episodes") or 0.0
        self.returns.add(metrics.get("return"), iteration)
        stand = sum(v or 0.0 for k, v in metrics.items() if k.startswith("curriculum/"))
        if stand > self.stand + MOVED:
            self.stand, self.moved = stand, iteration if self.stand > -math.inf else self.moved
        if iteration - self.moved <= max(10, 0.05 * self.iterations):
            self.returns.restart(iteration)
        self.lengths.add(metrics.get("episode_length"), iteration)

    def mean(self, name: str) -> float | None:
        """Of the last SHORT iterations; None before there are as many."""
        values = self.recent.get(name, ())
        return sum(values) / SHORT if len(values) == SHORT else None

    def solved(self, slack: float = 0.0) -> bool | None:
        """Whether what is known of the task's criteria holds, up to a share `slack`; None where nothing is known."""
        held = []
        for name, rule in self.solved_rules.items():
            value = self.mean("episode_length" if name == "episode_length" else f"metric/{name}")
            if value is None:
                continue
            value = value / self.max_steps if name == "episode_length" else value
            side, threshold = next(iter(rule.items()))
            room = slack * abs(threshold)
            held.append(value >= threshold - room if side == "above" else value <= threshold + room)
        return all(held) if held else None


class Rise:
    """A smoothed series, its noise, its best and what it rose from."""

    def __init__(self):
        self.count, self.last, self._variance = 0, 0.0, 0.0
        self.smooth = self.first = self.best = self.base = self.lowest = self._mark = 0.0
        self.first_at = self.risen_at = 0  # iterations: when the first level stood; of the latest rise
        self.risen = False  # whether it has been higher than where it began by more than noise and 2%

    def add(self, value: float | None, iteration: int) -> None:
        if value is None or value - value != 0:
            return
        self.count += 1
        step = value - self.last
        if self.count > 1:  # half the mean square of differences between neighbours: noise without the trend
            self._variance += (0.5 * step * step - self._variance) / min(self.count - 1, 20)
        self.last = value
        if self.count <= SHORT:
            self.smooth += (value - self.smooth) / self.count
            self.first = self.best = self.base = self.lowest = self._mark = self.smooth
            self.first_at = self.risen_at = iteration
            return
        self.smooth += SMOOTH * (value - self.smooth)
        self.lowest = min(self.lowest, self.smooth)
        if self.smooth > self.best:
            self.best, self.base = self.smooth, self.lowest
        if self.best > self._mark + max(self.noise, 0.02 * self.range):
            self._mark, self.risen_at = self.best, iteration
        self.risen |= self.best - self.first > 5.0 * self.noise + 0.02 * abs(self.first)

    def restart(self, iteration: int) -> None:
        """What was reached before counts no more, as the task has become harder: the best is what is now."""
        self.best = self._mark = self.smooth
        self.base, self.risen_at = min(self.base, self.smooth), iteration

    @property
    def noise(self) -> float:
        """Standard deviation of the smoothed value."""
        return math.sqrt(self._variance * SMOOTH / (2.0 - SMOOTH))

    @property
    def range(self) -> float:
        """From what it rose from to its best."""
        return self.best - self.base
