"""Arithmetic on one world's elements, as loops over affine indices."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch

from isaacrl.fuse.trace import Store

TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "long long",
    torch.int32: "int",
    torch.bool: "bool",
    torch.uint8: "unsigned char",
    torch.int16: "short",
    torch.int8: "signed char",
}


class NotLocal(Exception):
    """An operation that is not one of each world by itself."""


@dataclass(eq=False)
class Operand:
    """Elements of a store: offset + sum of stride times index [+ stride times (value of an index operand)]."""

    store: Store
    offset: int
    stride: tuple[int, ...]
    world: int | None  # elements from one world to the next; None: no axis of worlds
    chosen: tuple[tuple["Operand", int, int], ...] = ()  # (index, stride, length of the axis)


@dataclass(eq=False)
class Loop:
    """out[index] = expression for all indices of `size`; with `fold`, combined over the last `folded` axes.

    code: an expression of {0}, {1}, ..., the inputs in type `kind`. An input is an Operand or a literal.
    """

    size: tuple[int, ...]
    out: Operand
    inputs: list[Any]
    code: str
    kind: str
    fold: str = ""
    folded: int = 0
    finish: str = "{0}"
    serial: bool = False  # in order, by one lane: elements may be written twice
    fresh: bool = False  # one of several that together write all of a new store

    @property
    def count(self) -> int:
        return math.prod(self.size)

    @property
    def out_count(self) -> int:
        return math.prod(self.size[: len(self.size) - self.folded])

    def operands(self) -> list[Operand]:
        """All that is read."""
        reads = [x for x in self.inputs if isinstance(x, Operand)]
        every = [*reads, self.out]
        reads += [i for x in every for i, _, _ in x.chosen]
        return reads


def coalesced(size: tuple[int, ...], strides: list[tuple[int, ...]]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The same index space with as few axes as all these strides allow."""
    axes = [(n, tuple(s[d] for s in strides)) for d, n in enumerate(size) if n != 1]
    merged: list[tuple[int, tuple[int, ...]]] = []
    for n, step in axes:
        if merged and all(a == b * n for a, b in zip(merged[-1][1], step)):
            merged[-1] = (merged[-1][0] * n, step)
        else:
            merged.append((n, step))
    return tuple(n for n, _ in merged), [tuple(s[k] for _, s in merged) for k in range(len(strides))]


def indices(size: tuple[int, ...]) -> Any:
    """All indices of a space, in order."""
    return itertools.product(*(range(n) for n in size))
