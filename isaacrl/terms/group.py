"""A group of observations: from terms to the vector that a network reads."""

import itertools
import re
from typing import Any

import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.state import State
from isaacrl.terms import bind


class ObservationGroup:
    """Terms in a fixed order, then noise, history, clip and scale.

    The raw observation [E, width] (noise and history in, SI units) is what a robot measures; clip and scale follow, and
    are part of an exported policy. History is oldest first, term by term. Memory advances once a step although
    observations are read twice, before and after resets: noise is a function of the step, and the second reading
    replaces the newest entry of the history.
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
            if value.ndim != 2 or value.shape[0] != s.num_envs:
                raise UserError(f"{term.key}: must return a tensor [num_envs, n], got {list(value.shape)}")
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
        self.history = self._measure(s)[:, None].repeat(1, depth, 1) if depth > 1 else None  # [E, depth, sum(sizes)]

    def _measure(self, s: State, *, again: bool = False) -> Tensor:
        """[E, sum(sizes)]: all terms with noise. again: with the noise of the last reading, which is this step's."""
        value = torch.cat([term(s) for term in self.terms], dim=1)
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
        now = self._measure(s, again=again)
        if self.history is not None:
            kept = self.history[:, :-1] if again else self.history[:, 1:]
            history = torch.cat((kept, now[:, None]), dim=1)
            if reset is not None:
                history = torch.where(reset[:, None, None], now[:, None], history)
            self.history.copy_(history)
            depth = history.shape[1]
            parts = [history[:, depth - h :, a:b].flatten(1) for h, (a, b) in zip(self.lengths, self.spans)]
            now = torch.cat(parts, dim=1)
        self.raw = now
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
                    "description": doc,
                    "size": n,
                    "history": h,
                    "offset": first,
                    "components": names,
                    "unit": _unit(doc, term.joint_units),
                    "scale": self.scale[cells].tolist(),
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
