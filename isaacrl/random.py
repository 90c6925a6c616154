"""Counter-based random numbers: each is a pure function of (seed, world, step, stream, index).

The same world draws the same numbers whatever the number of worlds beside it, of processes, or of resumes, and
nothing but the step counter has to be saved. Source: pcg4d of Jarzynski and Olano, "Hash Functions for GPU
Rendering", JCGT 9(3), 2020; 32-bit integer arithmetic only, so every device gives the same bits.
"""

import math
import zlib

import torch
from torch import Tensor

from isaacrl.fuse import trace


def _int32(x: int) -> int:
    """The 32-bit two's complement of x, as torch.int32 holds it."""
    x &= 0xFFFFFFFF
    return x - (1 << 32) if x >= 1 << 31 else x


def pcg4d(*counters: Tensor) -> Tensor:
    """Four well-mixed 32-bit words [4, ...] from four counters: int32 that broadcast, arithmetic modulo 2^32."""
    v = torch.stack(torch.broadcast_tensors(*counters)) * 1664525 + 1013904223
    _mix(v)
    v ^= (v >> 16) & 0xFFFF  # a logical shift
    _mix(v)
    return v


def _mix(v: Tensor) -> None:
    """Each word takes in the product of two others, one after the other, in place."""
    x, y, z, w = v.unbind(0)
    x.addcmul_(y, w)
    y.addcmul_(z, x)
    z.addcmul_(x, y)
    w.addcmul_(y, z)


def _words(x: Tensor, y: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """`pcg4d` as plain arithmetic on four tensors [E, n]."""
    x, y, z, w = (v * 1664525 + 1013904223 for v in (x, y, z, w))
    for last in (False, True):
        x = x + y * w
        y = y + z * x
        z = z + x * y
        w = w + y * z
        if not last:
            x, y, z, w = (v ^ ((v >> 16) & 0xFFFF) for v in (x, y, z, w))
    return tuple(torch.broadcast_tensors(x, y, z, w))


class Random:
    """Random numbers of E worlds at the current step.

    seed: of the run. world: global indices of these worlds, [E]. `step` is a device scalar that the environment
    advances once a step.
    """

    def __init__(self, seed: int, world: Tensor):
        self.seed = seed
        self.world = world.to(torch.int32)[:, None]
        self.step = torch.zeros((), dtype=torch.int32, device=world.device)
        self._index: dict[int, Tensor] = {}  # small constants, made once: no host-to-device copy inside a step

    def bits(self, stream: str, n: int) -> Tensor:
        """[E, n] int32, uniform over all values; independent between streams."""
        blocks = -(-n // 4)
        if blocks not in self._index:
            self._index[blocks] = torch.arange(blocks, dtype=torch.int32, device=self.world.device)
        key = _int32(zlib.crc32(stream.encode(), self.seed & 0xFFFFFFFF) ^ (self.seed * 0x9E3779B9))
        counter = torch.full_like(self._index[blocks], key)
        counters = (self.world, self.step, self._index[blocks], counter)
        if trace.current() is not None:  # one word after the other: the kernel then has them in registers
            return torch.stack(_words(*counters), dim=2).flatten(1)[:, :n]
        return pcg4d(*counters).permute(1, 2, 0).flatten(1)[:, :n]  # of [4, E, blocks]

    def uniform(self, stream: str, n: int) -> Tensor:
        """[E, n] in [0, 1)."""
        return ((self.bits(stream, n) >> 8) & 0xFFFFFF).float() * 2.0**-24

    def normal(self, stream: str, n: int) -> Tensor:
        """[E, n], standard normal, by Box and Muller (1958)."""
        half = -(-n // 2)
        u = self.uniform(stream, 2 * half)
        radius = torch.sqrt(-2.0 * torch.log1p(-u[:, :half]))
        angle = 2.0 * math.pi * u[:, half:]
        return torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)[:, :n]
