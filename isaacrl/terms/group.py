"""A group of observations: from terms to the vector that a network reads."""

import itertools
import re
from typing import Any

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.files import finite
from isaacrl.fuse.trace import may_ask
from isaacrl.state import State
from isaacrl.terms import bind, check_value


class Delay:
    """Late sensors: some columns of an observation vector as they were a few policy steps ago.

    `ring` [E, depth, m] holds the last values of the m delayed columns, newest first; `lag` [E, m] is the age of what
    is read. The columns of a term share it; each world draws it at its reset, uniformly over the term's range.
    """

    def __init__(self, stream: str, ranges: list[tuple[int, int]], sizes: list[int], s: State, value: Tensor):
        late = [i for i, (_, high) in enumerate(ranges) if high > 0]
        ends = [0, *itertools.accumulate(sizes)]

        def tensor(values: Any) -> Tensor:
            return torch.tensor(list(values), dtype=torch.long, device=s.device)

        self.stream = stream
        self.columns = tensor(c for i in late for c in range(ends[i], ends[i + 1]))  # [m]
        self.owner = tensor(k for k, i in enumerate(late) for _ in range(sizes[i]))  # which delayed term, [m]
        self.low, self.high = tensor(ranges[i][0] for i in late), tensor(ranges[i][1] for i in late)
        self.drawn = bool((self.low < self.high).any())
        depth = int(self.high.max()) + 1
        self.ring = value[:, None, self.columns].repeat(1, depth, 1)
        self.lag = self._draw(s)

    def _draw(self, s: State) -> Tensor:
        """A new age for every world, [E, m]."""
        if not self.drawn:
            return self.low[self.owner].repeat(s.num_envs, 1)
        s.use_stream(self.stream)
        span = self.high - self.low + 1
        lag = self.low + (s.uniform(len(span)) * span).long()
        return torch.minimum(lag, self.high)[:, self.owner]

    def __call__(self, s: State, value: Tensor, again: bool, reset: Tensor | None) -> Tensor:
        """value [E, n] with the delayed columns replaced by late ones; see ObservationGroup.observe."""
        now = value[:, None, self.columns]
        ring = torch.cat((now, self.ring[:, 1:] if again else self.ring[:, :-1]), dim=1)
        if reset is not None:
            ring = torch.where(reset[:, None, None], now, ring)
            if self.drawn and (not may_ask(s.device) or bool(reset.any())):
                self.lag.copy_(torch.where(reset[:, None], self._draw(s), self.lag))
        self.ring.copy_(ring)
        return value.index_copy(1, self.columns, ring.gather(1, self.lag[:, None])[:, 0])


class ObservationGroup:
    """Terms in a fixed order, then delay, noise, history, clip and scale.

    The raw observation [E, width] (delay, noise and history in, SI units) is what a robot measures; clip and scale
    follow, and are part of an exported policy. History is oldest first, term by term. Memory advances once a step
    although observations are read twice, before and after resets: noise is a function of the step, and the second
    reading replaces the newest entry of the history and of the delay's ring.
    """

    def __init__(self, name: str, table: dict[str, Any], s: State):
        self.name = name
        self.terms = bind("observations", table, s, f"task.observations.{name}")
        # Terms of different groups under one key draw different noise.
        for term in self.terms:
            term.stream = f"observations.{name}.{term.name}"
        if not self.terms:
            raise UserError(f"task.observations.{name}: the group is empty; give it terms or remove it")
        first = [term(s) for term in self.terms]
        for term, value in zip(self.terms, first):
            check_value(term, value, s, ndim=2)
        self.sizes = [value.shape[1] for value in first]
        ends = [0, *itertools.accumulate(self.sizes)]
        self.spans = list(itertools.pairwise(ends))
        self.lengths = [int(t.settings.get("history") or 1) for t in self.terms]
        self.width = sum(n * h for n, h in zip(self.sizes, self.lengths))

        def each(default: float, values: list[Any], repeat: bool) -> Tensor:
            cells = []
            for value, n, h, term in zip(values, self.sizes, self.lengths, self.terms):
                value = [float(v) for v in value] if isinstance(value, (list, tuple)) else [float(value)] * n
                if len(value) != n:
                    raise UserError(f"{term.key}: {len(value)} values given for {n} components")
                cells += value * (h if repeat else 1)
            return torch.tensor(cells or [default], device=s.device)[: len(cells)]

        settings = [t.settings for t in self.terms]
        noise = [_noise(t.settings.get("noise"), t.key) for t in self.terms]
        clip = [_range(t.settings.get("clip"), t.key) for t in self.terms]
        self.noise_uniform = each(0.0, [n[0] for n in noise], False)
        self.noise_std = each(0.0, [n[1] for n in noise], False)
        self.scale = each(1.0, [1.0 if x.get("scale") is None else x["scale"] for x in settings], True)  # [width]
        self.low = each(0.0, [c[0] for c in clip], True)  # [width]
        self.high = each(0.0, [c[1] for c in clip], True)  # [width]
        self.noisy_uniform, self.noisy_std = bool((self.noise_uniform > 0).any()), bool((self.noise_std > 0).any())
        self.raw = torch.zeros(s.num_envs, self.width, device=s.device)
        depth = max(self.lengths, default=1)
        delays = [_steps(t.settings.get("delay"), t.key) for t in self.terms]
        self.delay = None
        if any(high > 0 for _, high in delays):
            self.delay = Delay(f"delay.{name}", delays, self.sizes, s, torch.cat(first, dim=1))
        self.history = self._measure(s)[:, None].repeat(1, depth, 1) if depth > 1 else None  # [E, depth, sum(sizes)]

    @property
    def memory(self) -> dict[str, Tensor]:
        """The live tensors that outlast a step, [E, ...]."""
        out = {} if self.history is None else {"history": self.history}
        return out if self.delay is None else out | {"delay_ring": self.delay.ring, "delay_lag": self.delay.lag}

    def _measure(self, s: State, *, again: bool = False, reset: Tensor | None = None) -> Tensor:
        """[E, sum(sizes)]: all terms, late and noisy. again: with the noise of the last reading, this step's."""
        value = torch.cat([term(s) for term in self.terms], dim=1)
        if self.delay is not None:
            value = self.delay(s, value, again, reset)
        if not again:
            self.noise = self._noise(s, value.shape[1])
        return value if self.noise is None else value + self.noise

    def _noise(self, s: State, n: int) -> Tensor | None:
        s.use_stream(f"noise.{self.name}")
        noise = self.noise_uniform * (2.0 * s.uniform(n) - 1.0) if self.noisy_uniform else None
        if self.noisy_std:
            gaussian = self.noise_std * s.normal(n)
            noise = gaussian if noise is None else noise + gaussian
        return noise

    def observe(self, s: State, *, again: bool = False, reset: Tensor | None = None) -> Tensor:
        """[E, width] for the networks.

        again: a step's second reading; otherwise the memory advances. reset: mask [E] of worlds that start anew.
        """
        now = self._measure(s, again=again, reset=reset)
        if self.history is not None:
            kept = self.history[:, :-1] if again else self.history[:, 1:]
            history = torch.cat((kept, now[:, None]), dim=1)
            if reset is not None:
                history = torch.where(reset[:, None, None], now[:, None], history)
            self.history.copy_(history)
            depth = history.shape[1]
            parts = [history[:, depth - h :, a:b].flatten(1) for h, (a, b) in zip(self.lengths, self.spans)]
            now = torch.cat(parts, dim=1)
        self.raw.copy_(now)
        return torch.minimum(torch.maximum(now, self.low), self.high) * self.scale

    def contract(self, s: State) -> list[dict[str, Any]]:
        """What an exported policy says of its input, term by term, in order."""
        out = []
        for term, n, h in zip(self.terms, self.sizes, self.lengths):
            names = term.joints if term.joints and len(term.joints) == n else [str(i) for i in range(n)]
            first = sum(m * k for m, k in zip(self.sizes[: len(out)], self.lengths[: len(out)]))
            cells = slice(first, first + n)
            doc = (term.fn.__doc__ or "").split("\n")[0]
            out.append(
                {
                    "name": term.name,
                    "fn": term.settings.get("fn", term.name),
                    "description": doc,
                    "parameters": finite(term.parameters),
                    "size": n,
                    "history": h,
                    "offset": first,
                    "components": names,
                    "unit": _unit(doc, term.joint_units),
                    "scale": self.scale[cells].tolist(),
                    "training_only": {
                        "delay_steps": list(_steps(term.settings.get("delay"), term.key)),
                        "noise": term.settings.get("noise"),
                    },
                    "clip": [_finite(self.low[cells].tolist()), _finite(self.high[cells].tolist())],
                }
            )
        return out


def _unit(doc: str, joint_units: list[str] | None) -> str | list[str] | None:
    """The unit in a docstring's brackets; of "rad or m" the one that each joint has. None: a pure number."""
    found = re.search(r"\[(?!E)([^\]]+)\]", doc)
    if not found:
        return None
    angular, _, linear = found[1].partition(" or ")
    if linear and joint_units:
        return [linear if unit == "m" else angular for unit in joint_units]
    return found[1]


def _noise(node: Any, key: str) -> tuple[Any, Any]:
    """(uniform amplitude, gaussian std) of a noise setting: a number, {uniform: a} or {gaussian: std}."""
    if node is None:
        return 0.0, 0.0
    if isinstance(node, (int, float)):
        return node, 0.0
    if isinstance(node, dict) and set(node) <= {"uniform", "gaussian"}:
        return node.get("uniform", 0.0), node.get("gaussian", 0.0)
    raise UserError(f"{key}.noise: got {node!r}; give an amplitude, {{uniform: a}} or {{gaussian: std}}")


def _steps(node: Any, key: str) -> tuple[int, int]:
    """(low, high) of a delay setting [policy steps]: a number or [low, high]."""
    steps = [0] if node is None else node if isinstance(node, (list, tuple)) else [node]
    if len(steps) not in (1, 2) or any(type(n) is not int for n in steps) or not 0 <= steps[0] <= steps[-1]:
        raise UserError(f"{key}.delay: got {node!r}; give policy steps: an integer or [low, high], 0 <= low <= high")
    return steps[0], steps[-1]


def _range(node: Any, key: str) -> tuple[float, float]:
    """(low, high) of a clip setting: a bound or [low, high]."""
    if node is None:
        return -torch.inf, torch.inf
    if isinstance(node, (int, float)):
        return -abs(float(node)), abs(float(node))
    if isinstance(node, (list, tuple)) and len(node) == 2 and node[0] <= node[1]:
        return float(node[0]), float(node[1])
    raise UserError(f"{key}.clip: got {node!r}; give a bound or [low, high]")


def _finite(values: list[float]) -> list[float | None]:
    """JSON has no infinity."""
    return [v if abs(v) != float("inf") else None for v in values]
