"""From loops to the text of a kernel: what is where, and where lanes meet."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from isaacrl.errors import UserError
from isaacrl.fuse.expressions import combined, literal, start, type_of, unravel
from isaacrl.fuse.loops import Loop, NotLocal, Operand, coalesced, indices
from isaacrl.fuse.memory import (
    IN_SCRATCH,
    SCRATCH,
    Arena,
    Pattern,
    Place,
    elements,
    lane_of,
    localized,
    pattern,
    places,
)
from isaacrl.fuse.schedule import Group, Schedule
from isaacrl.fuse.trace import Store

_REGISTERS = -1  # in place of a place's number: those that all lanes load at the start


@dataclass
class Text:
    """A kernel's text and what it needs: stores by the number of their array, bytes of scratch memory a world."""

    source: str
    stores: list[Store]
    scratch: int
    lanes: int


def emit(loops: list[Loop], before: set[int], after: set[int], num_worlds: int, lanes: int | None = None) -> Text:
    """The text of one kernel. before, after: numbers of stores that exist before it, and that are read after it.

    lanes: threads that share a world; by default as many as waste least.
    """
    loops = _needed(loops, after)
    for most in (IN_SCRATCH, 256, 64, 16, 0):  # what does not fit into scratch memory stays where it is
        own = [_local(loop, num_worlds) for loop in loops]
        text = _Emitter(own, before, after, num_worlds, lanes, most).text()
        if text.scratch <= SCRATCH:
            return text
    raise UserError("environment: a step works with too many large tensors; train with sim.graph=false")


def check_local(loop: Loop, num_worlds: int) -> None:
    """Raises: NotLocal where a loop reads or writes what is not its own world's, or reads other elements than it writes
    of the same store, so that their order matters.
    """
    own = _local(loop, num_worlds)
    for x in own.inputs:
        if not isinstance(x, Operand) or x.store is not own.out.store or own.serial:
            continue
        mine, theirs = pattern(x, own.size), pattern(own.out, own.size)
        if mine is None or theirs is None or mine != theirs and elements(x, own.size) & elements(own.out, own.size):
            raise NotLocal("order of elements")


def _local(loop: Loop, num_worlds: int) -> Loop:
    def own(x: Any, size: tuple[int, ...]) -> Any:
        if not isinstance(x, Operand):
            return x
        if x.store.external and x.store.world and x.world != x.store.world:
            raise NotLocal("another step from world to world")
        chosen = tuple((own(i, size), s, n) for i, s, n in x.chosen)
        moved = localized(Operand(x.store, x.offset, x.stride, x.world, chosen), size, num_worlds)
        if chosen and x.store.world and any((n - 1) * s >= x.store.world for _, s, n in chosen):
            raise NotLocal("index")
        return moved

    inputs = [own(x, loop.size) for x in loop.inputs]
    return Loop(
        loop.size,
        own(loop.out, loop.size),
        inputs,
        *(loop.code, loop.kind, loop.fold, loop.folded, loop.finish, loop.serial, loop.fresh),
    )


def _needed(loops: list[Loop], after: set[int]) -> list[Loop]:
    """Without loops whose results nobody reads."""
    wanted, kept = set(after), []
    for loop in reversed(loops):
        if loop.out.store.number in wanted:
            kept.append(loop)
            wanted.update(x.store.number for x in loop.operands())
    return kept[::-1]


class _Emitter:
    def __init__(
        self, loops: list[Loop], before: set[int], after: set[int], num_worlds: int, lanes: int | None, most: int
    ):
        self.loops, self.num_worlds = loops, num_worlds
        self.places = places(loops, before, after, num_worlds, most)
        self.arena, self.lines, self.declared = Arena(), [], []
        self.pending: dict[int, list[tuple[bool, int | None]]] = defaultdict(list)
        self.names = 0
        self.schedule = Schedule(loops, self.places)
        self.groups = self.schedule.groups
        self.lane_count = lanes or self.schedule.lanes()

    # --- the text ----------------------------------------------------------------------------------------------------

    def text(self) -> Text:
        groups = self.groups
        for g, group in enumerate(groups):
            for loop in group.loops:
                for x in (*loop.operands(), loop.out):
                    self.places[x.store.number].last = g
        every = sorted(self.places.values(), key=lambda p: p.name)
        self.load([p for p in every if p.load])
        for g, group in enumerate(groups):
            self.group(group)
            for p in every:
                if p.last == g and p.kind == "scratch" and p.base >= 0 and not p.save:
                    self.arena.give(p.base, p.count * p.store.dtype.itemsize)
        self.save([p for p in every if p.save])
        arrays = [p for p in every if p.kind == "direct" or p.load or p.save]
        head = [f"{p.type}* g{p.name} = ({p.type}*)arrays[{k}];" for k, p in enumerate(arrays)]
        body = "\n".join(f"  {line}" for line in (*head, *self.declared, *self.lines))
        return Text(body + "\n", [p.store for p in arrays], self.arena.size, self.lane_count)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def sync(self) -> None:
        self.line("sync();")
        self.pending.clear()
        self.arena.settle()

    def uses(self, accesses: list[tuple[Place, bool, int | None]]) -> None:
        """Lanes meet first where one may need what another has, or destroy what another still needs."""
        for place, writes, lane in accesses:
            if place.kind == "scratch" and place.base < 0:
                place.base, doubt = self.arena.take(place.count * place.store.dtype.itemsize)
                if doubt:
                    self.sync()
            for wrote, other in self.pending[place.name]:
                if (writes or wrote) and (lane is None or lane != other):
                    self.sync()
                    break
        for place, writes, lane in accesses:
            if place.kind != "registers":
                self.pending[place.name].append((writes, lane))

    def address(self, x: Operand, index: list[str | int]) -> str | int:
        """Of an element, from the store's first or the world's first."""
        place = self.places[x.store.number]
        fixed, terms = x.offset - (0 if place.kind == "direct" else place.first), []
        for s, i in zip(x.stride, index):
            if isinstance(i, int):
                fixed += s * i
            elif s:
                terms.append(i if s == 1 else f"{s} * {i}")
        for i, s, n in x.chosen:
            terms.append(f"{s} * wrapped({self.read(i, index)}, {n})")
        if not terms:
            return fixed
        return " + ".join(([str(fixed)] if fixed else []) + [str(t) for t in terms])

    def element(self, place: Place, address: str | int) -> str:
        """An element in memory."""
        if place.kind == "scratch":
            return f"AT({place.type}, {place.base})[{address}]"
        step = place.store.world
        return f"g{place.name}[{self.outside(place, address)}]" if step else f"g{place.name}[{address}]"

    def outside(self, place: Place, address: str | int) -> str:
        """Where a world's own element is in the store itself."""
        step = place.store.world or 0
        if place.kind != "direct" and place.first:
            address = address + place.first if isinstance(address, int) else f"{place.first} + {address}"
        if not step:
            return str(address)
        if place.first + place.count <= step or step * self.num_worlds == place.store.size:
            return f"WORLD * {step} + {address}"
        # Axes before that of the worlds: blocks of `step` elements, one a world and outer index.
        return f"(size_t)(({address}) / {step}) * {step} * worlds + WORLD * {step} + ({address}) % {step}"

    def read(self, x: Any, index: list[str | int]) -> str:
        if isinstance(x, bool):
            return "true" if x else "false"
        if isinstance(x, int):
            return f"{x}LL" if abs(x) >= 2**31 else str(x)
        if isinstance(x, float):
            return literal(x)
        place = self.places[x.store.number]
        address = self.address(x, index)
        return self.register(place, address) if place.kind == "registers" else self.element(place, address)

    def register(self, place: Place, address: str | int) -> str:
        if isinstance(address, int):
            return f"r{place.name}_{address}"
        if place.count == 1:
            return f"r{place.name}_0"
        names = [f"r{place.name}_{k}" for k in range(place.count)]
        return f"pick({address}, {', '.join(names)})"

    def expression(self, loop: Loop, values: list[str]) -> str:
        cast = [f"({loop.kind})({v})" for v in values]
        return loop.code.format(*cast)

    def declare(self, place: Place) -> None:
        if place.load:
            return
        for k in range(place.count):
            line = f"{place.type} r{place.name}_{k} = 0;"
            if line not in self.declared:
                self.declared.append(line)

    def load(self, found: list[Place]) -> None:
        by_count: dict[int, list[Place]] = defaultdict(list)
        for p in found:
            if p.kind == "registers":
                for k in range(p.count):
                    self.declared.append(f"{p.type} r{p.name}_{k} = g{p.name}[{self.outside(p, k)}];")
                self.pending[_REGISTERS].append((False, None))
            elif p.kind == "scratch":
                by_count[p.count].append(p)
        for count, several in sorted(by_count.items()):
            self.uses([(p, True, p.first % self.lane_count) for p in several])
            copies = [f"{self.element(p, 'i')} = g{p.name}[{self.outside(p, 'i')}];" for p in several]
            self.line(f"EACH(i, {count}) {{ {' '.join(copies)} }}")

    def save(self, found: list[Place]) -> None:
        by_count: dict[int, list[Place]] = defaultdict(list)
        for p in found:
            if p.kind != "direct":
                by_count[p.count].append(p)
        if self.pending[_REGISTERS] and any(p.kind == "registers" and p.load for p in found):
            self.sync()  # all lanes have read what each now writes a part of
        for count, several in sorted(by_count.items()):
            self.uses([(p, False, p.first % self.lane_count) for p in several])
            copies = []
            for p in several:
                value = self.register(p, "i") if p.kind == "registers" else self.element(p, "i")
                where = "" if p.store.world else "if (world == 0) "  # the same in all of them
                copies.append(f"{where}g{p.name}[{self.outside(p, 'i')}] = {value};")
            self.line(f"EACH(i, {count}) {{ {' '.join(copies)} }}")

    # --- groups ------------------------------------------------------------------------------------------------------

    def accesses(self, group: Group, loop: Loop) -> list[tuple[Place, bool, int | None]]:
        """What a loop reads and writes, and with which lanes."""
        alone = group.kind != "lanes"
        out = []
        for x in loop.operands():
            plain = not loop.folded or loop.folded == len(loop.size)
            lane = None if alone or not plain else lane_of(pattern(x, loop.size), self.lane_count)
            out.append((self.places[x.store.number], False, lane))
        lane = None if alone or loop.folded or loop.serial else lane_of(pattern(loop.out, loop.size), self.lane_count)
        place = self.places[loop.out.store.number]
        if place.kind != "registers":
            if loop.folded and not loop.serial:
                kept = loop.size[: len(loop.size) - loop.folded]
                target = Operand(loop.out.store, loop.out.offset, loop.out.stride[: len(kept)], 0, loop.out.chosen)
                lane = None if alone else lane_of(pattern(target, kept), self.lane_count)
            out.append((place, True, lane))
        return out

    def group(self, group: Group) -> None:
        if group.kind == "uniform":
            for loop in group.loops:
                self.uses(self.accesses(group, loop))
                self.uniform_loop(loop)
        elif group.kind == "serial":
            loop = group.loops[0]
            self.uses(self.accesses(group, loop))
            self.serial_loop(loop)
        else:
            self.lanes(group)

    def uniform_loop(self, loop: Loop) -> None:
        """Every lane works out all elements."""
        place = self.places[loop.out.store.number]
        self.declare(place)
        kept = len(loop.size) - loop.folded
        results = []
        for index in indices(loop.size[:kept]):
            whole = [*index, *[0] * loop.folded]
            if loop.folded:
                terms = [
                    self.expression(loop, [self.read(x, [*index, *inner]) for x in loop.inputs])
                    for inner in indices(loop.size[kept:])
                ]
                value = loop.finish.replace("{0}", combined(loop.fold, terms))
            else:
                value = self.expression(loop, [self.read(x, list(index)) for x in loop.inputs])
            results.append((self.address(loop.out, whole), value))
        own = any(isinstance(x, Operand) and x.store is loop.out.store for x in loop.operands())
        if own and len(results) > 1 and not loop.serial:  # all of the old before any of the new
            named = []
            for address, value in results:
                self.names += 1
                self.line(f"{place.type} t{self.names} = {value};")
                named.append((address, f"t{self.names}"))
            results = named
        for address, value in results:
            if isinstance(address, int):
                self.line(f"r{place.name}_{address} = {value};")
            else:
                self.names += 1
                self.line(f"int t{self.names} = {address};")
                for k in range(place.count):
                    self.line(f"if (t{self.names} == {k}) r{place.name}_{k} = {value};")

    def serial_loop(self, loop: Loop) -> None:
        """One lane, in order."""
        place = self.places[loop.out.store.number]
        self.line(f"if (FIRST) for (int i = 0; i < {loop.count}; i++) {{")
        index = unravel("i", loop.size)
        value = self.expression(loop, [self.read(x, index) for x in loop.inputs])
        self.line(f"  {self.element(place, self.address(loop.out, index))} = {value};")
        self.line("}")

    def lanes(self, group: Group) -> None:
        """One pass: a lane has every `lane_count`th index, in all loops of the group."""
        written: dict[tuple[int, Pattern | None], str] = {}
        read_later = self.read_after(group)
        accesses = []
        for loop in group.loops:
            for place, writes, lane in self.accesses(group, loop):
                forwarded = not writes and any(n == place.store.number for n, _ in written)
                if not forwarded and (not writes or place.store.number in read_later or place.kind == "direct"):
                    accesses.append((place, writes, lane))
            written[loop.out.store.number, self.schedule.written(loop)] = ""
        self.uses_at_once(accesses)
        written.clear()
        before: list[str] = []
        after: list[str] = []
        body: list[str] = []
        for loop in group.loops:
            place = self.places[loop.out.store.number]
            if place.kind == "registers":
                self.fold_over_lanes(loop, place, written, before, body, after)
                continue
            kept = len(loop.size) - loop.folded
            self.names += 1
            name = f"v{self.names}"
            if loop.folded:
                index = unravel("i", loop.size[:kept])
                inner = unravel("k", loop.size[kept:])
                value = self.expression(loop, [self.read(x, [*index, *inner]) for x in loop.inputs])
                count = loop.count // loop.out_count
                body.append(f"{type_of(loop)} a{self.names} = {start(loop)};")
                both = combined(loop.fold, [f"a{self.names}", value])
                body.append(f"for (int k = 0; k < {count}; k++) a{self.names} = {both};")
                value = loop.finish.replace("{0}", f"a{self.names}")
                whole: list[str | int] = [*index, *[0] * loop.folded]
            else:
                values, whole = self.values(loop, written)
                value = self.expression(loop, values)
            body.append(f"{place.type} {name} = {value};")
            if place.kind == "direct" or loop.out.store.number in read_later:
                body.append(f"{self.element(place, self.address(loop.out, whole))} = {name};")
            for key in [k for k in written if k[0] == loop.out.store.number and not loop.fresh]:
                del written[key]
            if not loop.folded and (mine := self.schedule.written(loop)) is not None:
                written[loop.out.store.number, mine] = name
        for text in before:
            self.line(text)
        self.line(f"EACH(i, {group.count}) {{")
        for text in body:
            self.line(f"  {text}")
        self.line("}")
        for text in after:
            self.line(text)

    def read_after(self, group: Group) -> set[int]:
        """Stores whose elements are read outside this pass, or in it as indices."""
        found = {p.store.number for p in self.places.values() if p.save}
        inside = {id(loop) for loop in group.loops}
        for loop in group.loops:
            found.update(i.store.number for x in loop.operands() for i, _, _ in x.chosen)
            found.update(i.store.number for i, _, _ in loop.out.chosen)
        for loop in self.loops:
            if id(loop) not in inside:
                found.update(x.store.number for x in loop.operands())
        return found

    def uses_at_once(self, accesses: list[tuple[Place, bool, int | None]]) -> None:
        """`uses` of a whole pass: what its loops do to each other needs no meeting."""
        kept = {k: list(v) for k, v in self.pending.items()}
        fresh: list[tuple[Place, bool, int | None]] = []
        for place, writes, lane in accesses:
            if place.kind == "scratch" and place.base < 0:
                place.base, doubt = self.arena.take(place.count * place.store.dtype.itemsize)
                if doubt:
                    self.sync()
                    kept = {}
            for wrote, other in kept.get(place.name, []):
                if (writes or wrote) and (lane is None or lane != other):
                    self.sync()
                    kept = {}
                    break
            if place.kind != "registers":
                fresh.append((place, writes, lane))
        for place, writes, lane in fresh:
            self.pending[place.name].append((writes, lane))

    def values(self, loop: Loop, written: dict) -> tuple[list[str], list[str | int]]:
        """The inputs at index i, from this pass's own variables where it has them; and the index itself."""
        every = [x for x in loop.inputs if isinstance(x, Operand)]
        chosen = [i for x in (*every, loop.out) for i, _, _ in x.chosen]
        involved = [*every, *chosen, loop.out]
        size, strides = coalesced(loop.size, [x.stride for x in involved])
        index = unravel("i", size)
        moved = {id(x): Operand(x.store, x.offset, s, x.world) for x, s in zip(involved, strides)}
        for x in (*every, loop.out):
            moved[id(x)].chosen = tuple((moved[id(i)], s, n) for i, s, n in x.chosen)
        out = []
        for x in loop.inputs:
            if not isinstance(x, Operand):
                out.append(self.read(x, index))
                continue
            mine = pattern(x, loop.size)
            own = written.get((x.store.number, mine)) if mine is not None else None
            out.append(own or self.read(moved[id(x)], index))
        loop.out, loop.size = moved[id(loop.out)], size
        loop.inputs = [moved[id(x)] if isinstance(x, Operand) else x for x in loop.inputs]
        return out, index

    def fold_over_lanes(self, loop: Loop, place: Place, written: dict, before: list, body: list, after: list) -> None:
        """Each lane combines its share; then the lanes do."""
        self.declare(place)
        kept = len(loop.size) - loop.folded
        inner = unravel("i", loop.size[kept:])
        for index in indices(loop.size[:kept]):
            self.names += 1
            name = f"a{self.names}"
            kind = type_of(loop)
            values = []
            for x in loop.inputs:
                own = None
                if isinstance(x, Operand) and kept == 0 and (mine := pattern(x, loop.size)) is not None:
                    own = written.get((x.store.number, mine))
                values.append(own or self.read(x, [*index, *inner]))
            before.append(f"{kind} {name} = {start(loop)};")
            body.append(f"{name} = {combined(loop.fold, [name, self.expression(loop, values)])};")
            after.append(f"{name} = across_{loop.fold}({name});")
            address = self.address(loop.out, [*index, *[0] * loop.folded])
            after.append(f"r{place.name}_{address} = {loop.finish.replace('{0}', name)};")
