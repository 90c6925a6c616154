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
from torch.utils import _pytree
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
    constant: bool = False  # made of the host's numbers: nobody needs to keep it
    writers: list["Step"] = field(default_factory=list)


@dataclass(frozen=True)
class View:
    """A tensor: elements of a store. axis: the one of the worlds, None without one, -1 where that is unclear."""

    store: Store
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    axis: int | None
    dtype: torch.dtype | None = None  # where it is not the store's

    def tensor(self) -> Tensor:
        out = torch.empty(0, dtype=self.dtype or self.store.dtype, device=self.store.device)
        return out.set_(self.store.memory, self.offset, self.size, self.stride)


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
        return [x for x in _pytree.tree_leaves((self.args, self.kwargs)) if isinstance(x, View)]


class Recorder(TorchDispatchMode):
    """Records what runs inside it, which is carried out as usual. num_worlds: the size of an axis of worlds.

    device: where the worlds are. Tensors of the host beside a GPU's are numbers that are the same in every step.
    """

    def __init__(self, num_worlds: int, device: str):
        super().__init__()
        self.num_worlds, self.on_host = num_worlds, torch.device(device).type == "cpu"
        self.steps: list[Step] = []
        self.stores: dict[int, Store] = {}  # by storage
        self.term = ""
        self._memories: dict[int, torch.UntypedStorage] = {}
        self._by_address: dict[tuple[str, int, int], Store] = {}
        self._numbers: dict[int, Step] = {}  # tensors of Python's numbers, by store, and what fills them anew
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
        unchanged = list(self._numbers.values())
        for step in unchanged:
            step.outs[0].store.external = step.outs[0].store.constant = True
        self.steps = [step for step in self.steps if step not in unchanged]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        name = str(func)
        tensors = _tensors((args, kwargs))
        if name in ASKS or _has_mask_index(name, args):
            if not tensors or not all(self._is_beside(t.device) for t in tensors):
                raise self._refusal(func)
        if name == "aten.lift_fresh.default" and self._of(args[0]) < 0:
            self._lift(args[0])
        before = [self.view(t) for t in tensors]
        out = func(*args, **kwargs)
        outs = _tensors(out)
        if any(self._is_beside(t.device) for t in outs) and any(not self._is_beside(v.store.device) for v in before):
            raise self._refusal(func)
        mutated = [_argument(a, i, args, kwargs) for i, a in enumerate(func._schema.arguments) if _writes(a)]
        known = {v.store.number for v in before}
        if not mutated and outs and all(self._of(t) in known for t in outs):
            return out  # a view
        if outs and not before and all(self._is_beside(t.device) for t in outs):
            return out  # a constant of the host
        changed = tuple(self.view(t) for t in _tensors(mutated))
        fresh = tuple(self.view(t, made_here=True) for t in outs)

        def seen(x: Any) -> Any:
            return self.view(x) if isinstance(x, Tensor) else x

        recorded = _pytree.tree_map(seen, (args, kwargs))
        step = Step(name, func, recorded[0], recorded[1], fresh, changed, self.term)
        for v in (*changed, *(f for f in fresh if f.store not in {c.store for c in changed})):
            v.store.writers.append(step)
        for v in changed:
            self._numbers.pop(v.store.number, None)
        self.steps.append(step)
        return out

    # Torch wraps this method to hide it from its compiler, which it imports to that end at the first call (1.5 s).
    # A function that has been wrapped before it leaves as it is.
    setattr(__torch_dispatch__, "__dynamo_disable", __torch_dispatch__)

    def _is_beside(self, device: torch.device) -> bool:
        """Whether that is the host's memory, and the worlds are on a GPU."""
        return device.type == "cpu" and not self.on_host

    def _lift(self, t: Tensor) -> None:
        """A tensor of Python's numbers: a constant, unless something changes it later; then it is filled anew."""
        source = self.view(t.clone())
        source.store.constant = True
        step = Step("aten.clone.default", torch.ops.aten.clone.default, (source,), {}, (self.view(t, made_here=True),))
        step.term = self.term
        self._numbers[step.outs[0].store.number] = step
        self.steps.append(step)

    def move_numbers(self, device: str, kept: set[int]) -> None:
        """Numbers of the host to the device, once: a copy in every step would have it wait."""
        twins: dict[View, View] = {}

        def near(x: Any) -> Any:
            if not isinstance(x, View) or not x.size or not self._is_beside(x.store.device) or x.store.writers:
                return x
            if x.store.number in kept and not x.store.constant:  # somebody may change it
                return x
            if x not in twins:
                twins[x] = self.view(x.tensor().to(device))
                twins[x].store.constant = True
            return twins[x]

        for step in self.steps:
            if not all(self._is_beside(v.store.device) for v in (*step.outs, *step.mutates)):
                step.args, step.kwargs = _pytree.tree_map(near, (step.args, step.kwargs), is_leaf=_is_view)

    def call(self, fn: Callable[[], None], name: str) -> None:
        """Run fn now, and as it is whenever the recording is carried out again."""
        if self._paused:  # part of another call
            fn()
            return
        self._paused = True
        try:
            fn()
        finally:
            self._paused = False
        self.steps.append(Step(name, fn, term=self.term))

    def _known(self, memory: torch.UntypedStorage) -> Store | None:
        """Several storages may be the same memory: each look at an array of Warp's makes one."""
        place = (str(memory.device), memory.data_ptr(), memory.nbytes())
        return self.stores.get(memory._cdata) or (self._by_address.get(place) if place[1] else None)

    def _of(self, t: Tensor) -> int:
        store = self._known(t.untyped_storage())
        return -1 if store is None else store.number

    def view(self, t: Tensor, made_here: bool = False) -> View:
        if t.is_conj() or t.is_neg():
            raise UserError(f"{self.term or 'environment'}: conjugate views cannot be recorded; use sim.graph=false")
        memory = t.untyped_storage()
        size, stride = tuple(t.shape), tuple(t.stride())
        axes = [d for d, n in enumerate(size) if n == self.num_worlds]
        axis = None if not axes else axes[0] if len(axes) == 1 else -1
        store = self._known(memory)
        if store is None:
            world = stride[axis] if axis is not None and axis >= 0 else None
            count = memory.nbytes() // t.element_size()
            store = Store(len(self._memories), memory, t.dtype, t.device, count, world, not made_here)
            self._by_address[str(memory.device), memory.data_ptr(), memory.nbytes()] = store
        elif not store.world and axis is not None and axis >= 0 and stride[axis]:
            store.world = stride[axis]  # it was seen in another shape first
        self.stores[memory._cdata], self._memories[memory._cdata] = store, memory
        if store.dtype != t.dtype:
            return View(store, t.storage_offset(), size, stride, -1, t.dtype)
        return View(store, t.storage_offset(), size, stride, axis)

    def kept(self) -> set[int]:
        """Numbers of the stores that somebody else still holds."""
        used = torch._C._storage_Use_Count
        return {self.stores[c].number for c, memory in self._memories.items() if used(memory._cdata) > 1}

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


def _is_view(x: Any) -> bool:
    return isinstance(x, View)


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in _pytree.tree_leaves(tree) if isinstance(x, Tensor)]


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
