"""Where a kernel keeps the elements of each store while it works on a world.

registers: a few elements, the same in all lanes. scratch: a world's part of shared memory, loaded at the start if
something reads it before it is written, stored at the end if somebody outside reads it. direct: the store's own memory.
"""

from dataclasses import dataclass, field

from isaacrl.fuse.loops import TYPES, Loop, NotLocal, Operand, coalesced
from isaacrl.fuse.trace import Store

IN_REGISTERS = 4  # elements at most
IN_SCRATCH = 1024
SCRATCH = 12 * 1024  # bytes a world

Pattern = tuple[int, tuple[int, ...], tuple[int, ...]]


@dataclass(eq=False)
class Place:
    """Where a store is. first, count: the elements of one world that the kernel touches."""

    store: Store
    name: int
    kind: str
    first: int = 0
    count: int = 0
    load: bool = False
    save: bool = False
    base: int = -1  # bytes into scratch memory
    last: int = -1  # the last group that uses it

    @property
    def type(self) -> str:
        return TYPES[self.store.dtype]


def localized(x: Operand, size: tuple[int, ...], num_worlds: int) -> Operand:
    """The operand in terms of one world's own elements, which lie without gaps. Raises: NotLocal."""
    step = x.store.world
    if not step:
        if x.world:
            raise NotLocal("one world's part of what all share")
        return x
    span = step * num_worlds
    if x.world != step:
        raise NotLocal("another step from world to world")
    strides, reach = [], x.offset % step
    for n, s in zip(size, x.stride):
        outer = s and s % span == 0
        strides.append(s // span * step if outer else s)
        reach += 0 if outer else (n - 1) * s
    if reach >= step or x.offset % span >= step:
        raise NotLocal("not of one world")
    return Operand(x.store, x.offset // span * step + x.offset % step, tuple(strides), 0, x.chosen)


def reach(x: Operand, size: tuple[int, ...]) -> tuple[int, int]:
    """First element of those that an index stands for, and the one after the last."""
    last = x.offset + sum((n - 1) * s for n, s in zip(size, x.stride)) + sum((n - 1) * s for _, s, n in x.chosen)
    return x.offset, last + 1


def elements(x: Operand, size: tuple[int, ...]) -> set[int]:
    """The elements that all indices stand for."""
    out = {x.offset}
    for n, s in zip(size, x.stride):
        out = {first + i * s for first in out for i in range(n)}
    return out


def pattern(x: Operand, size: tuple[int, ...]) -> Pattern | None:
    """Which element an index stands for, in a form that can be compared; None where that depends on values."""
    if x.chosen:
        return None
    merged, (strides,) = coalesced(size, [x.stride])
    return (x.offset, merged, strides)


def lane_of(p: Pattern | None, lanes: int) -> int | None:
    """Where lane k has elements k + c, k + c + lanes, ...: c modulo lanes; else None."""
    if p is None or len(p[1]) > 1 or (p[1] and p[2] != (1,)):
        return None
    return p[0] % lanes


@dataclass
class Arena:
    """Scratch memory: blocks that are free, and whether a lane may still be using what they held before."""

    size: int = 0
    free: list[tuple[int, int, bool]] = field(default_factory=list)  # (first byte, bytes, in doubt)

    def take(self, count: int) -> tuple[int, bool]:
        """(first byte, in doubt) of a block of so many bytes."""
        count = -(-count // 8) * 8
        fitting = sorted(b for b in self.free if b[1] >= count)
        if fitting:
            best = min(fitting, key=lambda b: (b[2], b[1]))
            self.free.remove(best)
            if best[1] > count:
                self.free.append((best[0] + count, best[1] - count, best[2]))
            return best[0], best[2]
        first, self.size = self.size, self.size + count
        return first, False

    def give(self, first: int, count: int) -> None:
        self.free.append((first, -(-count // 8) * 8, True))

    def settle(self) -> None:
        """All lanes have met: nothing is in doubt, and neighbours are one block."""
        merged: list[tuple[int, int, bool]] = []
        for first, count, _ in sorted(self.free):
            if merged and merged[-1][0] + merged[-1][1] == first:
                merged[-1] = (merged[-1][0], merged[-1][1] + count, False)
            else:
                merged.append((first, count, False))
        self.free = merged


def places(loops: list[Loop], before: set[int], after: set[int], num_worlds: int, most: int) -> dict[int, Place]:
    """A place for every store of a kernel's loops. before, after: stores that exist before it, or are read after it.

    most: elements of a store in scratch memory.
    """
    found: dict[int, Place] = {}
    complete: set[int] = set()
    read: set[int] = set()
    written: set[int] = set()
    for loop in loops:
        for x in (*loop.operands(), loop.out):
            first, last = reach(x, loop.size)
            place = found.get(x.store.number)
            if place is None:
                found[x.store.number] = Place(x.store, len(found), "", first, last - first)
            else:
                last = max(last, place.first + place.count)
                place.first = min(first, place.first)
                place.count = last - place.first
    for loop in loops:
        for x in loop.operands():
            read.add(x.store.number)
            found[x.store.number].load |= x.store.number not in complete
        n = loop.out.store.number
        written.add(n)
        if loop.out_count == found[n].count and not loop.out.chosen:
            complete.add(n)
        found[n].load |= n not in complete  # what a part leaves as it is must be there
    for n, place in found.items():
        place.load &= n in before
        place.save = n in written and n in after
        rows = place.store.world and place.store.size % num_worlds
        large = place.count > (most if place.store.world else IN_SCRATCH)
        if large or rows or (n in before and not place.store.world):
            place.kind = "direct"
        elif place.count <= IN_REGISTERS:
            place.kind = "registers"
        else:
            place.kind = "direct" if place.save and n not in read and not place.load else "scratch"
    return found
