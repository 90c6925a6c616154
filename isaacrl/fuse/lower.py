"""From recorded tensor operations to arithmetic on one world's elements.

A `Loop` says for every index of its space what one element of the output is, as an expression of its inputs' elements,
each at an affine function of the index. What a world reads and writes is its own or shared by all; an operation that
cannot be put so (a sum over worlds, a large matrix product, one not listed here) is left to torch.
"""

import math
from typing import Any

import torch

from isaacrl.fuse.expressions import COMPARED, EMPTY, FOLDS, LOGICAL, PREDICATES, ROUNDED, SAME, WRAPPING
from isaacrl.fuse.loops import TYPES, Loop, NotLocal, Operand
from isaacrl.fuse.trace import Step, View

MAX_PRODUCT = 1024  # multiplications of a small matrix product
MAX_SHARED = 1024  # elements of memory without worlds that each world works out for itself


def lower(step: Step, num_worlds: int, device: str) -> list[Loop]:
    """The loops of one recorded operation, for a kernel on that device. Raises: NotLocal."""
    name = step.name.removeprefix("aten.")
    try:
        return [loop for loop in _Lowering(step, num_worlds, torch.device(device).type).loops(name) if loop.count]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:  # arguments that no rule here expects
        raise NotLocal(str(e)) from None


class _Lowering:
    def __init__(self, step: Step, num_worlds: int, device: str):
        self.step, self.num_worlds, self.device = step, num_worlds, device
        if any(v.store.device.type != device for v in (*step.outs, *step.mutates)):
            raise NotLocal("on another device")
        views = [*step.views(), *step.outs, *step.mutates]
        if any(v.axis == -1 or v.store.dtype not in TYPES for v in views):
            raise NotLocal("dtype, or worlds among other axes")
        if step.mutates and any(v.axis is None and v.store.external for v in step.mutates):
            raise NotLocal("changes what all worlds share")
        table = step.args[0] if step.name == "aten.index.Tensor" else None  # is read here and there alone
        for v in views:
            if v.axis is None and math.prod(v.size) > MAX_SHARED and v is not table:
                raise NotLocal("large memory without worlds")
            if v.store.world is not None and v.axis is None:
                raise NotLocal("one world's part of what belongs to all")

    def loops(self, name: str) -> list[Loop]:
        step = self.step
        args = list(step.args)
        if name in EMPTY:
            return []
        inplace = name.partition(".")[0].endswith("_") and not name.startswith("__")
        base = name.replace("_.", ".", 1) if inplace else name
        out = step.mutates[0] if inplace else step.outs[0]
        if "out" in step.kwargs:
            raise NotLocal("writes to out=")
        word = base.partition(".")[0]
        if base in SAME:
            dtype = self.promoted(args) if inplace else out.store.dtype
            wraps = word in ("add", "sub", "rsub", "mul", "neg", "addcmul", "square")
            kind = WRAPPING[dtype] if wraps and dtype in WRAPPING else TYPES[dtype]
            code = SAME[base] if dtype.is_floating_point or word not in ROUNDED else "{0}"
            return [self.elementwise(out, self.scaled(base, args), code, kind=kind)]
        if base in LOGICAL:
            return [self.elementwise(out, args, LOGICAL[base], kind="bool")]
        if base in PREDICATES:
            return [self.elementwise(out, args, PREDICATES[base], kind=TYPES[self.promoted(args)])]
        if word in COMPARED:
            return [self.elementwise(out, args, f"{{0}} {COMPARED[word]} {{1}}", kind=TYPES[self.promoted(args)])]
        if base in ("bitwise_not.default", "logical_not.default"):
            logical = word == "logical_not" or out.store.dtype == torch.bool
            return [self.elementwise(out, args, "!{0}" if logical else "~{0}", kind=TYPES[self.promoted(args)])]
        if base == "where.self":
            return [self.elementwise(out, args, "{0} ? {1} : {2}", conditions=1)]
        if base in ("masked_fill.Scalar", "masked_fill.Tensor"):
            return [self.elementwise(out, [args[1], args[2], args[0]], "{0} ? {1} : {2}", conditions=1)]
        if base in ("clamp.default", "clamp.Tensor"):
            return [self.clamp(out, args)]
        if base.startswith("pow."):
            return [self.power(out, args)]
        if base in ("copy.default", "_to_copy.default"):
            return [self.elementwise(out, [args[1] if base == "copy.default" else args[0]], "{0}")]
        if base in ("repeat.default", "expand_copy.default"):
            return [self.repeat(out, args)]
        if base in ("fill.Scalar", "full.default", "full_like.default", "fill.Tensor", "scalar_tensor.default"):
            return [self.elementwise(out, [args[0 if base == "scalar_tensor.default" else 1]], "{0}")]
        if word in ("zero", "zeros", "zeros_like", "new_zeros"):
            return [self.elementwise(out, [0], "{0}")]
        if word in ("ones", "ones_like", "new_ones"):
            return [self.elementwise(out, [1], "{0}")]
        if word in ("cat", "stack"):
            return self.join(out, args, stacked=word == "stack")
        if base == "elu.default" and all(x == 1 for x in (*args[1:], *self.step.kwargs.values())):
            return [self.elementwise(out, args, "{0} > 0 ? {0} : exp_m1({0})")]
        if word in FOLDS:
            return [self.fold(out, args, word)]
        if base in ("mv.default", "mm.default", "bmm.default", "dot.default"):
            return [self.product(out, args)]
        if base == "linalg_cross.default":
            return self.cross(out, args)
        if base == "index.Tensor":
            return [self.choose(out, args[0], list(args[1]))]
        if base == "index_select.default":
            return [self.choose(out, args[0], [None] * (args[1] % len(args[0].size)) + [args[2]])]
        if base == "gather.default":
            return [self.gather(out, *args[:3])]
        if base in ("index_put.default", "index_copy.default", "index_add.default", "index_fill.int_Scalar"):
            return self.put(out, args, base.partition(".")[0], inplace)
        raise NotLocal(base)

    # --- operands ----------------------------------------------------------------------------------------------------

    def operand(self, view: View, size: tuple[int, ...], axis: int | None) -> Operand:
        """A view broadcast to a shape, whose axis of worlds is left out."""
        lead = len(size) - len(view.size)
        if lead < 0:
            raise NotLocal("shape")
        if view.store.device.type != self.device:
            raise NotLocal("memory of the host")
        strides = []
        for d, n in enumerate(size):
            k = d - lead
            here = k >= 0 and view.axis == k
            if d == axis:
                if k >= 0 and not here and view.size[k] != 1:
                    raise NotLocal("worlds along another axis")
                continue
            if here:
                raise NotLocal("worlds along another axis")
            strides.append(0 if k < 0 or (view.size[k] == 1 and n != 1) else view.stride[k])
        world = None if view.axis is None else view.stride[view.axis]
        return Operand(view.store, view.offset, tuple(strides), world)

    def own(self, view: View) -> tuple[tuple[int, ...], Operand]:
        """The shape of a view without its axis of worlds, and the operand."""
        size = tuple(n for d, n in enumerate(view.size) if d != view.axis)
        return size, self.operand(view, view.size, view.axis)

    def value(self, x: Any, out: View) -> Any:
        if isinstance(x, View):
            if x.store.device.type != self.device and math.prod(x.size) == 1 and not x.store.writers:
                return x.tensor().item()  # a number of the host
            return self.operand(x, out.size, out.axis)
        if isinstance(x, (bool, int, float)):
            return x
        raise NotLocal(f"argument {type(x).__name__}")

    def promoted(self, args: list[Any]) -> torch.dtype:
        """The type in which torch works on the first two of these."""
        first, *other = [x.tensor() if isinstance(x, View) else x for x in args if isinstance(x, (View, int, float))]
        return torch.result_type(first, other[0] if other else first)

    # --- rules -------------------------------------------------------------------------------------------------------

    def elementwise(
        self, out: View, args: list[Any], code: str, *, kind: str | None = None, conditions: int = 0
    ) -> Loop:
        """conditions: how many of the first arguments are boolean, whatever the type of the others."""
        size, target = self.own(out)
        count = 1 + max(int(k[0]) for k in code.split("{")[1:])
        inputs = [self.value(x, out) for x in args[:count]]
        if conditions:
            code = code.replace("{0}", "({0} != 0)")
        return Loop(size, target, inputs, code, kind or TYPES[out.store.dtype])

    def scaled(self, base: str, args: list[Any]) -> list[Any]:
        """add, sub, addcmul with their factors multiplied in."""
        word = base.partition(".")[0]
        factor = self.step.kwargs.get("value" if word == "addcmul" else "alpha", 1)
        factor = args[2] if word in ("add", "sub", "rsub") and len(args) > 2 else factor
        if word == "div" and self.step.kwargs.get("rounding_mode") is not None:
            raise NotLocal("rounding_mode")
        if word == "round" and self.step.kwargs.get("decimals"):
            raise NotLocal("decimals")
        if factor != 1:
            raise NotLocal("alpha")
        return args

    def clamp(self, out: View, args: list[Any]) -> Loop:
        low, high = (args[1] if len(args) > 1 else None), (args[2] if len(args) > 2 else None)
        low, high = self.step.kwargs.get("min", low), self.step.kwargs.get("max", high)
        code, values = "{0}", [args[0]]
        if low is not None:
            values.append(low)
            code = f"most({code}, {{{len(values) - 1}}})"
        if high is not None:
            values.append(high)
            code = f"least({code}, {{{len(values) - 1}}})"
        return self.elementwise(out, values, code)

    def power(self, out: View, args: list[Any]) -> Loop:
        base, exponent = args[:2]
        whole = {2: "{0} * {0}", 3: "{0} * {0} * {0}", 1: "{0}", 0.5: "sqrt({0})", -1: "1 / {0}", -2: "1 / ({0} * {0})"}
        if isinstance(exponent, (int, float)) and exponent in whole:
            return self.elementwise(out, [base], whole[exponent], kind=WRAPPING.get(out.store.dtype))
        if not out.store.dtype.is_floating_point:
            raise NotLocal("power of whole numbers")
        return self.elementwise(out, [base, exponent], "pow({0}, {1})")

    def repeat(self, out: View, args: list[Any]) -> Loop:
        source = args[0]
        lead = len(out.size) - len(source.size)
        if any(n != 1 and out.size[lead + d] != n for d, n in enumerate(source.size)):
            raise NotLocal("repeats of more than one element")
        return self.elementwise(out, [source], "{0}")

    def join(self, out: View, args: list[Any], stacked: bool) -> list[Loop]:
        parts = args[0]
        dim = (args[1] if len(args) > 1 else self.step.kwargs.get("dim", 0)) % len(out.size)
        if dim == out.axis:
            raise NotLocal("worlds in a row")
        loops, first = [], 0
        for part in parts:
            if not stacked and part.size == (0,):
                continue
            n = 1 if stacked else part.size[dim]
            size = (*out.size[:dim], n, *out.size[dim + 1 :])
            window = View(out.store, out.offset + first * out.stride[dim], size, out.stride, out.axis)
            if stacked:
                shifted = None if part.axis is None else part.axis + (part.axis >= dim)
                part = View(
                    part.store,
                    part.offset,
                    (*part.size[:dim], 1, *part.size[dim:]),
                    (*part.stride[:dim], 0, *part.stride[dim:]),
                    shifted,
                )
            if n and math.prod(size):
                loops.append(self.elementwise(window, [part], "{0}"))
                loops[-1].fresh = True
            first += n
        return loops

    def fold(self, out: View, args: list[Any], word: str) -> Loop:
        source = args[0]
        rank = len(source.size)
        dims: Any = args[1] if len(args) > 1 else self.step.kwargs.get("dim")
        if word == "linalg_vector_norm":
            if (args[1] if len(args) > 1 else self.step.kwargs.get("ord", 2)) != 2:
                raise NotLocal("norm")
            dims = args[2] if len(args) > 2 else self.step.kwargs.get("dim")
        if dims is None or dims == []:
            dims = list(range(rank))
        dims = sorted(d % max(rank, 1) for d in ([dims] if isinstance(dims, int) else dims))
        if source.axis in dims:
            raise NotLocal("over all worlds")
        kept = [d for d in range(rank) if d not in dims and d != source.axis]
        strides = tuple(source.stride[d] for d in (*kept, *dims))
        size = tuple(source.size[d] for d in (*kept, *dims))
        world = None if source.axis is None else source.stride[source.axis]
        whole, target = self.own(out)
        if len(whole) == rank - (source.axis is not None):  # keepdim
            places = [d for d in range(len(out.size)) if d != out.axis]
            target.stride = tuple(s for s, d in zip(target.stride, places) if d not in dims)
        target.stride = (*target.stride, *[0] * len(dims))
        fold, code, finish = FOLDS[word]
        count = math.prod(source.size[d] for d in dims)
        kind = TYPES[source.store.dtype] if word in ("any", "all") else TYPES[out.store.dtype]
        if word in ("sum", "prod"):
            kind = WRAPPING.get(out.store.dtype, kind)
        if not count:
            raise NotLocal("empty")
        read = Operand(source.store, source.offset, strides, world)
        finish = finish.replace("{count}", str(count))
        return Loop(size, target, [read], code, kind, fold=fold, folded=len(dims), finish=finish)

    def product(self, out: View, args: list[Any]) -> Loop:
        """Small matrix products: [.., k] times [.., k, n]."""
        a, b = args[:2]
        rank = len(a.size)
        if self.step.name.startswith("aten.dot") or len(b.size) > 3:
            raise NotLocal("dot")
        k = a.size[-1]
        if a.axis == rank - 1 or a.store.dtype != b.store.dtype or not a.store.dtype.is_floating_point:
            raise NotLocal("worlds along the sum")
        wide = len(b.size) > 1
        if len(b.size) == 3:
            if a.axis != 0 or b.axis != 0:
                raise NotLocal("batch")
            rows, columns = [a.size[1]], [b.size[2]]
            left, right = ((a.stride[1], 0, a.stride[2]), (0, b.stride[2], b.stride[1]))
        else:
            if b.axis is not None or a.axis not in (None, 0) or rank != 2:
                raise NotLocal("matrix of worlds")
            rows, columns = ([] if a.axis == 0 else [a.size[0]]), ([b.size[1]] if wide else [])
            left = (*([] if a.axis == 0 else [a.stride[0]]), *([0] if wide else []), a.stride[1])
            right = (*([0] * len(rows)), *([b.stride[1]] if wide else []), b.stride[0])
        size = (*rows, *columns, k)
        if math.prod(size) > MAX_PRODUCT:
            raise NotLocal("large product")
        _, target = self.own(out)
        target.stride = (*target.stride, 0)
        world = [None if x.axis is None else x.stride[x.axis] for x in (a, b)]
        reads = [Operand(a.store, a.offset, left, world[0]), Operand(b.store, b.offset, right, world[1])]
        return Loop(size, target, reads, "{0} * {1}", TYPES[out.store.dtype], fold="add", folded=1)

    def cross(self, out: View, args: list[Any]) -> list[Loop]:
        dim = self.step.kwargs.get("dim", args[2] if len(args) > 2 else -1) % len(out.size)
        loops = []

        def at(v: View, i: int) -> View:
            d = dim - (len(out.size) - len(v.size))
            if d < 0 or v.size[d] != 3:
                raise NotLocal("cross of less than vectors")
            size = (*v.size[:d], 1, *v.size[d + 1 :])
            return View(v.store, v.offset + i * v.stride[d], size, v.stride, v.axis)

        a, b = args[:2]
        for i in range(3):
            j, k = (i + 1) % 3, (i + 2) % 3
            inputs = [at(a, j), at(b, k), at(a, k), at(b, j)]
            loops.append(self.elementwise(at(out, i), inputs, "{0} * {1} - {2} * {3}"))
            loops[-1].fresh = True
        return loops

    def choose(self, out: View, source: View, indices: list[Any]) -> Loop:
        """source[.., i, ..] with one tensor of indices of one axis."""
        dims = [d for d, i in enumerate(indices) if i is not None]
        if dims == [0] and source.axis is None and indices[0].axis is not None:
            return self.look_up(out, source, indices[0])
        if len(dims) != 1 or len(indices[dims[0]].size) != 1:
            raise NotLocal("several index tensors")
        dim, index = dims[0], indices[dims[0]]
        if dim == source.axis or index.axis is not None:
            raise NotLocal("a choice of worlds")
        size, target = self.own(out)
        window = View(
            source.store,
            source.offset,
            (*source.size[:dim], index.size[0], *source.size[dim + 1 :]),
            (*source.stride[:dim], 0, *source.stride[dim + 1 :]),
            source.axis,
        )
        read = self.operand(window, out.size, out.axis)
        place = View(index.store, index.offset, index.size, index.stride, None)
        lead = [1] * (len(out.size) - dim - 1)
        place = View(place.store, place.offset, (*place.size, *lead), (*place.stride, *[0] * len(lead)), None)
        read.chosen = ((self.operand(place, out.size, out.axis), source.stride[dim], source.size[dim]),)
        return Loop(size, target, [read], "{0}", TYPES[out.store.dtype])

    def look_up(self, out: View, source: View, index: View) -> Loop:
        """source[i], what all worlds share at each world's own indices."""
        size, target = self.own(out)
        shape = tuple(1 if d == index.axis else n for d, n in enumerate(index.size))
        rest = len(source.size) - 1
        window = View(
            source.store, source.offset, (*shape, *source.size[1:]), (*[0] * len(shape), *source.stride[1:]), None
        )
        place = View(index.store, index.offset, (*index.size, *[1] * rest), (*index.stride, *[0] * rest), index.axis)
        read = self.operand(window, out.size, out.axis)
        read.chosen = ((self.operand(place, out.size, out.axis), source.stride[0], source.size[0]),)
        return Loop(size, target, [read], "{0}", TYPES[out.store.dtype])

    def gather(self, out: View, source: View, dim: int, index: View) -> Loop:
        dim %= len(source.size)
        if dim == source.axis:
            raise NotLocal("a choice of worlds")
        size, target = self.own(out)
        shape = tuple(out.size)
        stride = tuple(0 if d == dim else s for d, s in enumerate(source.stride))
        read = self.operand(View(source.store, source.offset, shape, stride, source.axis), out.size, out.axis)
        read.chosen = ((self.operand(index, out.size, out.axis), source.stride[dim], source.size[dim]),)
        return Loop(size, target, [read], "{0}", TYPES[out.store.dtype])

    def put(self, out: View, args: list[Any], word: str, inplace: bool) -> list[Loop]:
        """Copies, unless in place; then values at the indices of one axis."""
        if word == "index_put":
            dims = [d for d, i in enumerate(args[1]) if i is not None]
            if len(dims) != 1:
                raise NotLocal("several index tensors")
            dim, index, value = dims[0], args[1][dims[0]], args[2]
            adds = bool(args[3] if len(args) > 3 else self.step.kwargs.get("accumulate", False))
        else:
            dim, index, value = args[1] % len(out.size), args[2], args[3]
            adds = word == "index_add"
        if dim == out.axis or len(index.size) != 1 or index.axis is not None:
            raise NotLocal("a choice of worlds")
        if adds and out.store.dtype == torch.bool:
            raise NotLocal("sums of truths")
        alpha = self.step.kwargs.get("alpha", 1)
        shape = (*out.size[:dim], index.size[0], *out.size[dim + 1 :])
        window = View(out.store, out.offset, shape, (*out.stride[:dim], 0, *out.stride[dim + 1 :]), out.axis)
        size, target = self.own(window)
        lead = [1] * (len(shape) - dim - 1)
        place = View(index.store, index.offset, (*index.size, *lead), (*index.stride, *[0] * len(lead)), None)
        target.chosen = ((self.operand(place, shape, out.axis), out.stride[dim], out.size[dim]),)
        inputs, code = [self.value(value, window)], "{0}"
        if adds:
            before = Operand(target.store, target.offset, target.stride, target.world, target.chosen)
            inputs, code = [*inputs, before], f"{{1}} + {{0}} * {alpha}"
        kind = TYPES[out.store.dtype]
        loops = [] if inplace else [self.elementwise(out, [args[0]], "{0}")]
        return [*loops, Loop(size, target, inputs, code, kind, serial=True)]
