"""A function of many worlds' tensors, run once and compiled to a few kernels: one lane group a world, all in one pass.

`compile(fn, ...)` runs fn while a recorder writes down its tensor operations. Those that concern each world by itself
become kernels; what is left (random numbers of torch's own, large matrix products, operations that nobody taught it)
stays as it is, between them. Carrying the result out again changes the same memory as fn would.
"""

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from isaacrl.errors import UserError
from isaacrl.fuse.emit import check_local, emit
from isaacrl.fuse.loops import Loop, NotLocal
from isaacrl.fuse.lower import lower
from isaacrl.fuse.trace import Recorder, Step, View, call

__all__ = ["Compiled", "call", "compile"]


class Compiled:
    """A recorded function. Called, it does to all memory that outlived the recording what the function did."""

    def __init__(self, parts: list[Callable[[int], None]], kernels: int, left: dict[str, int]):
        self.parts, self.kernels = parts, kernels
        self.left = left  # operations that are no part of a kernel: how often

    def __call__(self, index: int = 0) -> None:
        """Carry it out. index: which element of its first axis every `moving` tensor now has in place of the first."""
        for part in self.parts:
            part(index)


def compile(
    fn: Callable[[], Any], num_worlds: int, device: str, *, moving: Sequence[Tensor] = (), fused: bool = True
) -> tuple[Compiled, Any]:
    """(the compiled function, what fn returned). fused=False leaves all operations to torch, to compare.

    moving: tensors [T, E, ...] of which fn writes the first element only, and the compiled function any other.

    Raises: UserError where fn asks for a tensor's values, or keeps one from a call to the next in a new tensor.
    """
    recorder = Recorder(num_worlds, device)
    with recorder, torch.no_grad():
        result = fn()
    gc.collect()
    steps = {t.untyped_storage()._cdata: (len(t), t.stride(0) * t.element_size()) for t in moving}
    return _compile(recorder, num_worlds, device, fused, steps), result


def _compile(
    recorder: Recorder, num_worlds: int, device: str, fused: bool, moving: dict[int, tuple[int, int]]
) -> Compiled:
    from isaacrl.fuse.kernel import Kernel  # starts Warp

    kept = recorder.kept()
    recorder.move_numbers(device, kept)
    stores = {s.number: s for s in recorder.stores.values()}
    # What all worlds share may also be a number that was made in the step.
    replaced = {(s.size, s.dtype) for s in stores.values() if s.number in kept and not (s.external or s.world)}
    for step in recorder.steps:
        for view in step.views():
            s = view.store
            beside = s.device.type != torch.device(device).type
            gone = s.external and not (s.constant or beside) and s.number not in kept
            if gone and (s.world or (s.size, s.dtype) in replaced):
                raise UserError(
                    f"{step.term or 'environment'}: reads a tensor of the step before that is no longer kept; what "
                    "outlasts a step must be a term's memory (init and advance), or train with sim.graph=false"
                )
    segments = _segments(recorder.steps, num_worlds, device, fused)
    external = {n for n, s in stores.items() if s.external}
    parts: list[Callable[[int], None]] = []
    kernels, left = 0, {}
    written: set[int] = set()
    used = [_used(s) for s in segments]
    for k, segment in enumerate(segments):
        if isinstance(segment, Step):
            parts.append(_called(segment) if segment.name in ("call", "mark") else _replayed(segment, moving))
            if segment.name not in ("call", "mark"):
                left[segment.name] = left.get(segment.name, 0) + 1
        else:
            later = set().union(*used[k + 1 :]) if k + 1 < len(segments) else set()
            text = emit(segment, external | written, external | kept | later, num_worlds)
            if text.source.strip():
                parts.append(Kernel(text, num_worlds, device, moving))
                kernels += 1
        written |= used[k]
    return Compiled(parts, kernels, left)


def _segments(steps: list[Step], num_worlds: int, device: str, fused: bool) -> list[Step | list[Loop]]:
    """Loops of consecutive operations as one, what is left by itself."""
    out: list[Step | list[Loop]] = []
    marks: list[Step] = []
    elsewhere: set[int] = set()  # stores that something outside of the kernel under way uses
    for step in steps:
        if step.name == "mark":
            (marks if out and isinstance(out[-1], list) else out).append(step)
            continue
        loops = None
        if fused and step.name != "call":
            try:
                loops = lower(step, num_worlds, device)
                for loop in loops:
                    check_local(loop, num_worlds)
                    if not loop.out.store.world and loop.out.store.number in elsewhere:
                        raise NotLocal("every world would change what they share")
            except NotLocal:
                loops = None
        if loops is not None:
            if not out or isinstance(out[-1], Step):
                out.append([])
            out[-1].extend(loops)  # type: ignore[union-attr]
        else:
            if not _hoisted(out, step):
                elsewhere |= set() if not out or isinstance(out[-1], Step) else _used(out[-1])
                out += [*marks, step]
                marks.clear()
            elsewhere |= _used(step)
    return out + marks


def _hoisted(out: list[Step | list[Loop]], step: Step) -> bool:
    """An operation of torch's goes before the kernel under way where neither needs what the other does."""
    if not out or isinstance(out[-1], Step) or step.name == "call":
        return False
    reads = {x.store.number for loop in out[-1] for x in loop.operands()}
    writes = {loop.out.store.number for loop in out[-1]}
    mine = {v.store.number for v in step.views()}
    changed = {v.store.number for v in (*step.mutates, *step.outs)}
    if mine & writes or changed & (reads | writes):
        return False
    out.insert(len(out) - 1, step)
    return True


def _used(segment: Step | list[Loop]) -> set[int]:
    if isinstance(segment, Step):
        return {v.store.number for v in (*segment.views(), *segment.outs, *segment.mutates)}
    return {x.store.number for loop in segment for x in (*loop.operands(), loop.out)}


def _called(step: Step) -> Callable[[int], None]:
    return lambda index: step.fn()


@contextlib.contextmanager
def _named(step: Step) -> Iterator[None]:
    """An operation that a graph refuses is called by its name."""
    try:
        yield
    except RuntimeError as e:
        if not torch.cuda.is_available() or not torch.cuda.is_current_stream_capturing():
            raise
        what, why = step.name.removeprefix("aten."), str(e).splitlines()[0]
        raise UserError(
            f"{step.term or 'environment'}: {what} cannot be part of a CUDA graph ({why}); train with sim.graph=false"
        ) from e


def _replayed(step: Step, moving: dict[int, tuple[int, int]]) -> Callable[[int], None]:
    """The operation again, its results in the memory they had."""
    views = (*step.views(), *step.outs, *step.mutates)
    count = max((moving.get(v.store.memory._cdata, (1, 0))[0] for v in views), default=1)

    def at(view: View, index: int) -> Tensor:
        stride = moving.get(view.store.memory._cdata, (1, 0))[1] // (view.dtype or view.store.dtype).itemsize
        return dataclasses.replace(view, offset=view.offset + index * stride).tensor()

    each = [_once(step, partial(at, index=k)) for k in range(count)]
    return lambda index: each[min(index, count - 1)]()


def _once(step: Step, tensor: Callable[[View], Tensor]) -> Callable[[], None]:
    args, kwargs = _pytree.tree_map(
        lambda x: tensor(x) if isinstance(x, View) else x,
        (step.args, step.kwargs),
        is_leaf=lambda x: isinstance(x, View),
    )
    changed = {v.store.number for v in step.mutates}
    outs = [tensor(v) for v in step.outs]
    fresh = [v.store.number not in changed for v in step.outs]
    into = getattr(step.fn.overloadpacket, "out", None) if len(outs) == 1 and all(fresh) else None
    if into is not None and _takes(into)[:-1] == _takes(step.fn):

        def write() -> None:
            with torch.no_grad(), _named(step):
                into(*args, **kwargs, out=outs[0])

        return write

    def run() -> None:
        with torch.no_grad(), _named(step):
            result = step.fn(*args, **kwargs)
            values = [x for x in _pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
            for out, value, new in zip(outs, values, fresh):
                if new:
                    out.copy_(value)

    return run


def _takes(fn: Any) -> list[tuple[str, str, bool]]:
    """Arguments of an operation: names, types, and whether only by name."""
    return [(a.name, str(a.type), a.kwarg_only) for a in fn._schema.arguments]
