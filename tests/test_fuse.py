"""Functions compiled to kernels (`isaacrl.fuse`) do what torch does, operation by operation."""

import itertools
import math

import pytest
import torch
from fuse_programs import E, compiled, quickly, results  # noqa: F401  a fixture

from isaacrl.fuse import expressions

FLOATS = (torch.float32, torch.float64)
WHOLE = (torch.int32, torch.int64)
DTYPES = (*FLOATS, *WHOLE, torch.bool)
SHAPES = ((E,), (E, 3), (E, 6), (E, 33), (E, 2, 5), (4, E, 3), (6, E))
SCALARS = (2.5, 3, -1, 2, 0.5, True)
EDGES = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, 1e-10, 0.5, 1.5, 2.5, -0.5, -1.5, 1e5, 1.0, -1.0]
HUGE = [3e38, -1e20]
LEFT = {"aten.pow.Tensor_Tensor", "aten.pow.Scalar", "aten.pow_.Tensor"}  # of whole numbers


def values(dtype, shape, g, edges=EDGES):
    """Random numbers, two of five of them awkward ones."""
    n = math.prod(shape)
    if dtype == torch.bool:
        return (torch.rand(n, generator=g) < 0.5).view(shape)
    if dtype.is_floating_point:
        x, odd = torch.randn(n, generator=g, dtype=dtype) * 3, torch.tensor(edges, dtype=dtype)
    else:
        top = torch.iinfo(dtype).max
        x = torch.randint(-50, 50, (n,), generator=g, dtype=dtype)
        odd = torch.tensor([0, 1, -1, 2, 3, -5, top, -top, top // 3], dtype=dtype)
    chosen = odd[torch.randint(len(odd), (n,), generator=g)]
    return torch.where(torch.rand(n, generator=g) < 0.4, chosen, x).view(shape)


def entries():
    """Every entry of the tables, and those that a rule of its own lowers element by element."""
    yield from expressions.SAME
    yield from (*expressions.LOGICAL, *expressions.PREDICATES)
    yield from (f"{word}.{kind}" for word in expressions.COMPARED for kind in ("Tensor", "Scalar"))
    yield from ("bitwise_not.default", "logical_not.default", "where.self", "masked_fill.Scalar", "clamp.Tensor")
    yield from ("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "elu.default", "copy.default")


def overloads(name):
    """The operation, and the one in place where there is one."""
    word, _, kind = name.partition(".")
    for w in (word, f"{word}_"):
        if (packet := getattr(torch.ops.aten, w, None)) is not None and kind in packet.overloads():
            yield getattr(packet, kind)


def arguments(f, name, dtype, k, g):
    """Tensors (second ones broadcast in different ways) and numbers for the operation f."""
    shape = SHAPES[k % len(SHAPES)]
    tame = ("pow", "remainder", "fmod", "lerp", "addcmul")  # where rounding makes the difference
    out = []
    for i, a in enumerate(f._schema.arguments):
        if "Tensor" in str(a.type):
            mask = name == "where.self" and i == 0 or name.startswith("masked_fill") and i == 1
            other = (shape, [1 if n != E else n for n in shape], shape[-1:], ())[k // len(SHAPES) % 4 if i else 0]
            x = values(torch.bool if mask else dtype, other, g, EDGES if name.startswith(tame) else EDGES + HUGE)
            if name.startswith(tame) and dtype.is_floating_point:
                x = torch.where(x.abs() < 1e6, x, 2.25)
            divisor = i == 1 and name.startswith(("remainder", "fmod")) and dtype != torch.bool
            out.append(torch.where(x.abs() < 0.1, 7, x).to(x.dtype) if divisor else x)
        elif "Scalar" in str(a.type) or "number" in str(a.type):
            out.append(None if a.has_default_value() else SCALARS[k % len(SCALARS)])
        else:
            out.append(None)
    while out and out[-1] is None:
        out.pop()
    return out


def possible(fn, given):
    try:
        return bool(results(fn, given))
    except (RuntimeError, ZeroDivisionError):  # not for this type
        return False


class Many:
    """Calls of operations as one function of their tensors."""

    def __init__(self):
        self.calls, self.names, self.given = [], [], {}

    def add(self, f, *args, **keys):
        """f(*args) among the results. Tensors are arguments of the whole."""
        first = 10 * len(self.calls)
        names = [f"x{first + i}" if isinstance(x, torch.Tensor) else x for i, x in enumerate(args)]
        own = {n: x for n, x in zip(names, args) if isinstance(x, torch.Tensor)}

        def call(given):
            return f(*(given[n] if isinstance(n, str) else n for n in names), **keys)

        if possible(lambda **given: call(given), own):
            self.calls.append(call)
            self.names.append(f"{f} {[tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in args]}")
            self.given |= own

    def check(self, left=frozenset()):
        assert self.calls
        whole, names = lambda **given: [call(given) for call in self.calls], self.names
        c = compiled(whole, shuffled(self.given), self.given, names=names)
        assert set(c.left) <= left, c.left
        return c


def shuffled(given):
    """Other values, of the same kind."""
    return {k: x.flip(0) for k, x in given.items()}


BITS = {n for n in entries() if "bitwise" in n or n.startswith("__")}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operations_element_by_element(dtype):
    """Of edge values too: not a number, infinities, the largest whole numbers, which wrap around."""
    g, seen, part = torch.Generator().manual_seed(0), set(), Many()
    left = set() if dtype in FLOATS else LEFT
    for n, name in enumerate(entries()):
        for f, k in itertools.product(overloads(name), (n, n + 3 + len(SHAPES), n + 5 + 2 * len(SHAPES))):
            before = len(part.calls)
            part.add(f, *arguments(f, name, dtype, k, g))
            seen |= {name} if len(part.calls) > before else set()
        if len(part.calls) > 150:
            part.check(left)
            part = Many()
    part.check(left)
    unseen = set(entries()) - seen
    assert unseen <= BITS if dtype == torch.float32 else not unseen & BITS or dtype not in WHOLE, unseen


def test_types_mixed():
    """Results, comparisons and what is written in place have the types that torch gives them."""
    g, many = torch.Generator().manual_seed(1), Many()
    tame = [-2.5, -1.0, -0.5, 0.0, 0.5, 1.5, 2.5, 3.0]
    every = (*DTYPES, torch.uint8, torch.int16)
    for k, (a, b) in enumerate(itertools.product(every, every)):
        x, y = (values(torch.float32, (E, 5), g, tame).clamp(0, 100).to(t) for t in (a, b))
        y = y[:, :1] if k % 3 == 0 else y[0, 0] if k % 3 == 1 else y
        for f in (torch.add, torch.mul, torch.div, torch.minimum, torch.lt, torch.eq, torch.maximum, torch.atan2):
            many.add(f, x, y)
        many.add(lambda x, y: x.clone().copy_(y), x, y)
        many.add(lambda x, y: torch.where(x > 1, x, y), x, y)
        many.add(lambda x, y: torch.cat((x, y.expand(E, 5)), dim=1), x, y)
        many.add(lambda x, y: x.clone().add_(y), x, y)
        many.add(lambda x, y: x.clone().mul_(y).add_(2), x, y)
        many.add(lambda x, b=b: x.to(b), x)
        many.add(lambda x, y: x.clamp(0.5, 2.5) + x.clamp(min=1), x, y)
        many.add(lambda x, y: torch.clamp(x, max=y).clamp_(min=y), x, y)
        if k % 8 == 0:
            for number in (2, 0.5, True, -3):
                many.add(lambda x, n=number: torch.stack((x + n > 1, x * n == n, n < x, (x - n).bool()), dim=1), x)
    many.add(lambda x: x == 2**31, torch.full((E, 2), 2**31))
    many.add(lambda x: x * 2**40 + (2**62 + 1), values(torch.int64, (E, 2), g))
    many.check()


def test_conversions_of_numbers_without_a_counterpart():
    """Numbers that are no truths, round-off half to even, the sign of nothing."""
    x = torch.tensor([math.nan, math.inf, -0.0, 0.5, 1.5, 2.5, -0.5, -2.5, 1e-30]).repeat(E, 1)
    many = Many()
    for t in (x, x.double()):
        many.add(lambda x: x.bool(), t)
        many.add(lambda x: ~x.bool() | torch.logical_not(x), t)
        many.add(lambda x: x.round().nan_to_num(7.0, 8.0), t)
        many.add(lambda x: 1.0 / x.abs(), t)
        many.add(lambda x: x.clamp(min=math.nan), t)
        many.add(lambda x: x.clamp(max=torch.full_like(x, math.nan)), t)
        many.add(lambda x: x.clamp(2.0, 1.0), t)
        many.add(lambda x: torch.where(x > 0, x, math.nan), t)
        many.add(lambda x: x.masked_fill(x.isnan(), 0.0).sum(dim=1), t[:, 2:])
        many.add(lambda x: x * (x == x), t)
    many.check({"aten.nan_to_num.default"})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_folds(dtype):
    """Of few numbers by every lane, of many by all lanes together, and row by row."""
    g, many = torch.Generator().manual_seed(2), Many()
    for n in (1, 2, 3, 4, 5, 8, 9, 17, 32, 33, 70):
        edges = [-1.5, 0.0, 1.0, 0.5] if n % 2 else [math.nan, 2.0, -math.inf, 1.0]
        x = values(dtype, (E, n), g, edges)
        for k, op in enumerate(("sum", "mean", "amax", "amin", "prod", "any", "all")):
            many.add(lambda x, op=op, k=k: getattr(x, op)(dim=1, keepdim=k % 2 == 0), x)
        many.add(lambda x: torch.linalg.vector_norm(x, dim=1), x.abs() if dtype in FLOATS else x)
        many.add(lambda x: (x % 100).double().mean(dim=1, keepdim=True), x)
    for *shape, dims in ((2, 3, (1, 2)), (3, 11, (1,)), (3, 11, (2,)), (2, 40, (2,)), (9, 4, (1,))):
        x = values(dtype, (E, *shape), g, [1.0, -0.5])
        for op in ("sum", "mean", "amax", "amin"):
            many.add(lambda x, op=op, dims=dims: getattr(x, op)(dim=dims), x)
            many.add(lambda x, op=op, dims=dims: getattr(x, op)(dim=dims, keepdim=True), x)
        many.add(lambda x, dims=dims: x.any(dim=dims[0]), x)
    x = values(dtype, (3, E, 5), g, [1.0, -0.5])  # worlds on the second axis
    for dims in ((0,), (2,), (0, 2)):
        many.add(lambda x, dims=dims: x.sum(dim=dims, keepdim=len(dims) > 1), x)
        many.add(lambda x, dims=dims: x.amax(dim=dims), x)
    many.add(lambda x: x.sum(dim=1), values(torch.int64, (E, 20), g))
    many.check()


def test_products_and_rotations():
    g, many = torch.Generator().manual_seed(3), Many()

    def random(*shape):
        return torch.randn(shape, generator=g)

    for n in (2, 5, 30):
        many.add(torch.mv, random(E, n), random(n))
        many.add(torch.mm, random(E, n), random(n, 3))
        many.add(torch.matmul, random(E, 1, n), random(E, n, 2))
        many.add(torch.matmul, random(E, 3, n), random(E, n, 1))
        many.add(torch.matmul, random(2, n), random(n, 3))
    many.add(lambda x, y: x @ y.mT, random(E, 2, 3), random(E, 4, 3))
    many.add(torch.linalg.cross, random(E, 3), random(E, 3))
    many.add(torch.linalg.cross, random(E, 4, 3), random(1, 1, 3))
    many.add(lambda x, y: torch.linalg.cross(x, y, dim=1), random(E, 3, 4), random(E, 3, 4))
    many.add(lambda x, y: torch.linalg.cross(x[..., :3], y[..., 2:5]), random(E, 4), random(E, 6))
    many.check()


def test_looking_up_in_a_table_that_all_worlds_share():
    """Each world at its own places, in a table larger than what a world would work out; negative ones too."""
    g, many = torch.Generator().manual_seed(6), Many()
    for dtype in (torch.float32, torch.int64, torch.bool):
        table, pairs = values(dtype, (5000,), g, [1.0, 2.0]), values(dtype, (2000, 3), g, [1.0])
        one, some = torch.randint(-2000, 2000, (E,), generator=g), torch.randint(0, 2000, (E, 4), generator=g)
        grid = torch.randint(0, 2000, (E, 2, 3), generator=g)
        for index in (one, some, grid):
            many.add(lambda x, i: x[i], table, index)
            many.add(lambda x, i: x[i], pairs, index)
        many.add(lambda x, i: x[:, 1][i], pairs, some)
    many.check()


def test_choosing_and_putting():
    """Indices of all worlds and of each, negative ones too, twice the same, few elements and many."""
    g, many = torch.Generator().manual_seed(4), Many()
    for n, dtype in itertools.product((3, 4, 7, 33), (torch.float32, torch.int64, torch.bool)):
        x = values(dtype, (E, n), g, [1.0, 2.0])
        ids, other = torch.tensor([-1, 0, 2, 0]), torch.tensor([2, 0])
        new = values(dtype, (E, 2), g, [5.0])
        own = torch.randint(0, n, (E, 5), generator=g)
        many.add(lambda x, i: x[:, i], x, ids)
        many.add(lambda x: x[:, [0, -2]], x)
        many.add(torch.index_select, x, 1, other)
        many.add(torch.gather, x, 1, own)
        many.add(lambda x, i: x.gather(1, i.sort(dim=1).values), x, own)
        many.add(torch.index_copy, x, 1, other, new)
        many.add(lambda x, i, new: x.clone().index_copy_(1, i, new), x, other, new)
        many.add(lambda x, i, new: torch.ops.aten.index_put(x, [None, i], new), x, other, new)
        many.add(lambda x, i: x.clone().index_fill_(1, i, 1), x, other)
        if dtype != torch.bool:
            many.add(lambda x, i: x.index_add(1, i, x[:, i], alpha=-1), x, ids[1:])
            many.add(lambda x, i, new: torch.ops.aten.index_put(x, [None, i], new, True), x, other, new)
        many.add(lambda x: x.clone().fill_(1).index_copy_(1, torch.tensor([1]), x[:, :1]), x)
        wide = values(dtype, (E, n, 2), g, [1.0])
        many.add(lambda x, i: x[:, i, 1:], wide, ids)
        many.add(lambda x, i: x[:, :, i], wide, other - 1)
        many.add(lambda x, i: x.permute(1, 0, 2)[i], wide, ids)
    many.check({"aten.sort.default"})


def test_new_tensors():
    """Of all worlds, and of none; of numbers from the host, which a change does not spoil for the next time."""

    def fn(x, s):
        made = [torch.zeros(E, 3), torch.ones(E, 9), torch.full((E,), 2.5), torch.zeros_like(x), x.new_zeros(E, 2)]
        made += [torch.ones_like(x).double(), x.new_ones(3) * x[:, :3], torch.zeros(4) + s[0]]
        made += [torch.full_like(x, True, dtype=torch.bool)]
        numbers = torch.tensor([1.0, 2.0, 3.0])
        before = x[:, :3] * numbers
        numbers += 1.0
        numbers[1:] *= s[0]
        filled = torch.empty(E, 6)
        filled[:, :2], filled[:, 2:4], filled[:, 4:] = x[:, :2], 0.5, x[:, 1:2]
        x[:, 5] = 0.25
        return [*made, before, x[:, :3] * numbers, filled, torch.eye(3) + 1.0, s.expand(E, 4) * 2.0]

    g = torch.Generator().manual_seed(5)
    given = [{"x": values(torch.float32, (E, 7), g), "s": values(torch.float32, (4,), g, [2.0])} for _ in range(3)]
    assert set(compiled(fn, *given).left) == {"aten.eye.default"}


def test_shapes_of_every_kind():
    """Views, joints and repeats of few elements and of many, with worlds anywhere."""
    g, many = torch.Generator().manual_seed(6), Many()
    for n, k in itertools.product((1, 3, 4, 9, 33), (1, 2)):
        x, y = values(torch.float32, (E, n), g), values(torch.float32, (E, n, k), g)
        many.add(lambda x, y: torch.cat((x, y[..., 0], x[:, :1]), dim=1) * 2.0, x, y)
        many.add(lambda x, y: torch.stack((x, y[:, :, -1]), dim=0) + 1.0, x, y)
        many.add(lambda x, y: torch.stack((x, y[:, :, -1]), dim=-1).flatten(1).abs(), x, y)
        many.add(lambda x, y: (x[:, :, None] * y).transpose(1, 2).flatten(1), x, y)
        many.add(lambda x: x[:, None].repeat(1, 5, 1).sum(dim=1), x)
        many.add(lambda x: x.T.unsqueeze(1).expand(-1, 3, -1) + 1.0, x)
        many.add(lambda x: torch.cat((x.permute(1, 0), x.T), dim=0).mT.contiguous(), x)
        many.add(lambda y: y.unflatten(2, (1, -1))[..., None] - 1.0, y)
        many.add(lambda x: torch.cat((x[:, :0], x), dim=1), x)
        many.add(lambda x: x.clone().mT.unsqueeze(0).sub_(1.0).reshape(-1, E), x)
        many.add(lambda x: x[:, ::2] + x[:, : (x.shape[1] + 1) // 2], x)
    many.add(lambda x: torch.cat((x.int(), x), dim=1), values(torch.float32, (E, 3), g, [1.5, 2.0]))
    many.check()
