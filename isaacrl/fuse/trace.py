"""What a function does to tensors, written down while it runs: the operations on them, in order.

A dispatch mode sees every tensor operation. Memory is described by storages and by views of them, so whatever only
makes a view (a slice, a transpose, an expansion) needs no operation, and every view sees what is written in place.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from isaacrl.errors import UserError

_current: "Recorder | None" = None
ASKS = {  # operations whose result the host must know before it can go on
    *("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.masked_select.default", "aten.equal.default"),
    *("aten.is_nonzero.default", "aten._unique2.default", "aten.unique_dim.default", "aten.repeat_interleave.Tensor"),
}


@dataclass(eq=False)
class Store:
    """A storage. world: elements from one world to the next, None for memory that all worlds share."""

    number: int
    memory: torch.UntypedStorage  # kept: its address must not be given to another one
    dtype: torch.dtype
    device: torch.device
    size: int  # elements
    world: int | None
    external: bool  # it was there before
    writers: list["Step"] = field(default_factory=list)

    def tensor(self, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        return torch.empty(0, dtype=self.dtype, device=self.device).set_(self.memory, offset, size, stride)


@dataclass(frozen=True)
class View:
    """A tensor: elements of a store. axis: the one of the worlds, None without one, -1 where that is unclear."""

    store: Store
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    axis: int | None

    def tensor(self) -> Tensor:
        return self.store.tensor(self.offset, self.size, self.stride)


@dataclass(eq=False)
class Step:
    """One recorded operation, or a call that is none (call, mark: `fn` takes no arguments then)."""

    name: str
    fn: Callable
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    outs: tuple[View, ...] = ()
    mutates: tuple[View, ...] = ()  # arguments that it changes
    term: str = ""  # the configuration key of the term that asked for it

    def views(self) -> list[View]:
        """Its tensor arguments."""
        return [x for x in torch.utils._pytree.tree_leaves((self.args, self.kwargs)) if isinstance(x, View)]


class Recorder(TorchDispatchMode):
    """Records what runs inside it, which is carried out as usual. num_worlds: the size of an axis of worlds."""

    def __init__(self, num_worlds: int):
        super().__init__()
        self.num_worlds = num_worlds
        self.steps: list[Step] = []
        self.stores: dict[int, Store] = {}
        self.term = ""
        self._paused = False

    def __enter__(self) -> "Recorder":
        global _current
        if _current is not None:
            raise RuntimeError("recordings do not nest")
        _current = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        global _current
        _current = None
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        name = str(func)
        if name in ASKS or _has_mask_index(name, args):
            raise self._refusal(func)
        before = [self.view(t) for t in _tensors((args, kwargs))]
        out = func(*args, **kwargs)
        outs = _tensors(out)
        if any(_is_host(t) for t in outs) and any(not v.store.device.type == "cpu" for v in before):
            raise self._refusal(func)
        mutated = [_argument(a, i, args, kwargs) for i, a in enumerate(func._schema.arguments) if _writes(a)]
        known = {v.store.number for v in before}
        if not mutated and outs and all(self._of(t) in known for t in outs):
            return out  # a view
        if outs and not before and all(_is_host(t) for t in outs):
            return out  # a constant of the host
        changed = tuple(self.view(t) for t in _tensors(mutated))
        fresh = tuple(self.view(t, made_here=True) for t in outs)

        def seen(x: Any) -> Any:
            return self.view(x) if isinstance(x, Tensor) else x

        recorded = torch.utils._pytree.tree_map(seen, (args, kwargs))
        step = Step(name, func, recorded[0], recorded[1], fresh, changed, self.term)
        for v in (*changed, *(f for f in fresh if f.store not in {c.store for c in changed})):
            v.store.writers.append(step)
        self.steps.append(step)
        return out

    def call(self, fn: Callable[[], None], name: str) -> None:
        """Run fn now, and as it is whenever the recording is carried out again."""
        self._paused = True
        try:
            fn()
        finally:
            self._paused = False
        self.steps.append(Step(name, fn, term=self.term))

    def _of(self, t: Tensor) -> int:
        store = self.stores.get(t.untyped_storage()._cdata)
        return -1 if store is None else store.number

    def view(self, t: Tensor, made_here: bool = False) -> View:
        memory = t.untyped_storage()
        size, stride = tuple(t.shape), tuple(t.stride())
        axes = [d for d, n in enumerate(size) if n == self.num_worlds]
        axis = None if not axes else axes[0] if len(axes) == 1 else -1
        store = self.stores.get(memory._cdata)
        if store is None:
            world = stride[axis] if axis is not None and axis >= 0 else None
            count = memory.nbytes() // t.element_size()
            store = Store(len(self.stores), memory, t.dtype, t.device, count, world, not made_here)
            self.stores[memory._cdata] = store
        elif not store.world and axis is not None and axis >= 0 and stride[axis]:
            store.world = stride[axis]  # it was seen in another shape first
        return View(store, t.storage_offset(), size, stride, axis if store.dtype == t.dtype else -1)

    def kept(self) -> set[int]:
        """Numbers of the stores that somebody else still holds."""
        return {s.number for s in self.stores.values() if torch._C._storage_Use_Count(s.memory._cdata) > 1}

    def _refusal(self, func: Any) -> UserError:
        where = next((f for f in reversed(traceback.extract_stack()[:-2]) if not _is_ours(f.filename)), None)
        line = f" (line {where.lineno} of {where.filename}: {where.line})" if where else ""
        what = func._schema.name.removeprefix("aten::")
        return UserError(
            f"{self.term or 'environment'}: asks the GPU for a value{line}, by {what}, which a graph cannot hold; "
            "use masks and torch.where instead, or train with sim.graph=false"
        )


def current() -> Recorder | None:
    """The recorder that is at work."""
    return _current


def call(fn: Callable[[], None]) -> None:
    """Run fn, which launches kernels that no tensor operation shows; a recording includes it."""
    if _current is None:
        fn()
    else:
        _current.call(fn, "call")


def mark(fn: Callable[[], None]) -> None:
    """Run fn, which touches no tensor and breaks no kernel in two: it may run a little later than it stands here."""
    if _current is None:
        fn()
    else:
        _current.call(fn, "mark")


def of(term: str) -> None:
    """What follows is asked for by the term of that configuration key."""
    if _current is not None:
        _current.term = term


def may_ask(device: str) -> bool:
    """Whether the host may look at a tensor's values to save work: free on a CPU, and impossible to record."""
    return device == "cpu" and _current is None


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def _is_host(t: Tensor) -> bool:
    return t.device.type == "cpu" and torch.cuda.is_available()


def _writes(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _argument(argument: Any, i: int, args: tuple, kwargs: dict[str, Any]) -> Any:
    return args[i] if i < len(args) else kwargs.get(argument.name)


def _has_mask_index(name: str, args: tuple) -> bool:
    """x[mask]: how many elements that is only the device knows."""
    if name not in ("aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default"):
        return False
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _is_ours(file: str) -> bool:
    return "/torch/" in file or "/isaacrl/fuse/" in file
