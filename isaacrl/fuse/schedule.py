"""In which order a kernel's loops run, and which of them share a pass over their index."""

from collections import defaultdict
from dataclasses import dataclass, field

from isaacrl.fuse.loops import Loop
from isaacrl.fuse.memory import Pattern, Place, pattern

LANES = (32, 16, 8)  # threads that may share a world; measured: fewer are slower
UNROLLED = 8  # elements at most that every lane combines by itself


@dataclass(eq=False)
class Group:
    """Loops that share a pass, or one alone."""

    kind: str  # lanes, uniform, serial
    count: int
    loops: list[Loop] = field(default_factory=list)


class Schedule:
    """Groups of loops in the order of a kernel's text. places: where each store is."""

    def __init__(self, loops: list[Loop], places: dict[int, Place]):
        self.loops, self.places = loops, places
        self.groups = self._order()

    def lanes(self) -> int:
        """Threads that share a world, so that least is wasted."""
        return min(LANES, key=self._cost)

    def _cost(self, lanes: int) -> float:
        """Instructions of a warp a world, roughly: what all lanes do is done by all of them."""
        each = sum(len(g.loops) * -(-g.count // lanes) for g in self.groups if g.kind == "lanes")
        every = sum(loop.count for g in self.groups if g.kind != "lanes" for loop in g.loops)
        return lanes * (each + every)

    def _kind(self, loop: Loop) -> tuple[str, int]:
        """How a loop runs: (uniform | serial | lanes, passes)."""
        place = self.places[loop.out.store.number]
        if loop.serial and place.kind != "registers":
            return "serial", 0
        if place.kind == "registers":
            inner = loop.count // loop.out_count
            small = inner <= UNROLLED or loop.count <= 2 * UNROLLED
            return ("uniform", 0) if small or not loop.folded else ("fold", inner)
        return "lanes", loop.out_count

    def _dependencies(self) -> list[dict[int, bool]]:
        """For every loop the earlier ones it must follow; True where it may be in the same pass."""
        writers: dict[int, list[int]] = defaultdict(list)
        readers: dict[int, list[int]] = defaultdict(list)
        out: list[dict[int, bool]] = []
        for i, loop in enumerate(self.loops):
            need: dict[int, bool] = {}

            def follow(k: int, same: bool, need: dict[int, bool] = need) -> None:
                need[k] = need.get(k, True) and same

            plain = not loop.folded or loop.folded == len(loop.size)  # an element at a time
            for x in loop.operands():
                mine = pattern(x, loop.size) if plain else None
                for k in writers[x.store.number]:
                    follow(k, mine is not None and mine == self.written(self.loops[k]))
            n, mine = loop.out.store.number, self.written(loop)
            for k in readers[n]:
                theirs = [pattern(x, self.loops[k].size) for x in self.loops[k].operands() if x.store.number == n]
                if k != i:
                    follow(k, mine is not None and all(t == mine for t in theirs))
            for k in writers[n]:
                if not (loop.fresh and self.loops[k].fresh):
                    follow(k, mine is not None and mine == self.written(self.loops[k]))
            out.append(need)
            for x in loop.operands():
                readers[x.store.number].append(i)
            writers[n].append(i)
        return out

    def written(self, loop: Loop) -> Pattern | None:
        """The pattern of what a loop writes, where it is a plain one."""
        return None if loop.folded or loop.serial else pattern(loop.out, loop.size)

    def _order(self) -> list[Group]:
        """Groups in the order of their text."""
        needs = self._dependencies()
        kinds = [self._kind(loop) for loop in self.loops]
        left, done, groups = set(range(len(self.loops))), set(), []
        while left:
            uniform = self._uniform(left, done, needs, kinds)
            if uniform:
                groups.append(Group("uniform", 0, [self.loops[i] for i in uniform]))
                continue
            ready = [i for i in sorted(left) if done.issuperset(needs[i])]
            serial = [i for i in ready if kinds[i][0] == "serial"]
            if serial:
                groups.append(Group("serial", 0, [self.loops[serial[0]]]))
                left.remove(serial[0])
                done.add(serial[0])
                continue
            counts: dict[int, int] = defaultdict(int)
            for i in ready:
                counts[kinds[i][1]] += 1
            count = max(counts, key=lambda n: (counts[n], n))
            inside: set[int] = set()
            ordered: list[int] = []
            while True:
                more = [
                    i
                    for i in sorted(left - inside)
                    if kinds[i][0] in ("lanes", "fold")
                    and kinds[i][1] == count
                    and all(k in done or (k in inside and same) for k, same in needs[i].items())
                ]
                for i in more:
                    inside.add(i)
                    ordered.append(i)
                early = self._uniform(left - inside, done, needs, kinds)
                if early:
                    groups.append(Group("uniform", 0, [self.loops[i] for i in early]))
                    left.difference_update(early)
                if not more and not early:
                    break
            groups.append(Group("lanes", count, [self.loops[i] for i in ordered]))
            left -= inside
            done |= inside
        return groups

    def _uniform(self, left: set[int], done: set[int], needs: list[dict[int, bool]], kinds: list) -> list[int]:
        """Uniform loops that can run now, one after the other; they are done then."""
        found: list[int] = []
        for i in sorted(left):
            if kinds[i][0] == "uniform" and done.issuperset(needs[i]):
                found.append(i)
                done.add(i)
        left.difference_update(found)
        return found
