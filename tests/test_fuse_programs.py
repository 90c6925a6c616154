"""Whole functions compiled to kernels (`isaacrl.fuse`): memory, order, what is left to torch, lanes of a GPU."""

import sys

import fuse_lanes
import numpy as np
import pytest
import torch
import warp as wp
from fuse_programs import E, compiled, quickly  # noqa: F401  a fixture
from fuse_random import RandomProgram, inputs
from fused_kernel import optimization

from isaacrl.errors import UserError
from isaacrl.fuse import kernel, program, trace

G = torch.Generator()


def random(*shape):
    return torch.randn(shape, generator=G)


def given(**shapes):
    """Arguments of these shapes, three times, with other numbers in each."""
    return [{k: random(*shape) for k, shape in shapes.items()} for _ in range(3)]


@pytest.fixture(autouse=True)
def _same_numbers():
    G.manual_seed(0)


@pytest.mark.parametrize("seed", range(6))
def test_random_programs(seed):
    """80 operations on views of each other, some of them none that a kernel holds; exact."""
    with optimization(None if seed == 0 else 0):
        c = compiled(RandomProgram(seed, 80), inputs(seed), inputs(100 + seed), inputs(200 + seed))
    assert c.kernels


def test_memory_changes_as_torch_changes_it():
    """Rings of few elements and of many, views that see what others write, sums that feed what follows."""

    def fn(x, small, large, last):
        small.copy_(torch.cat((x[:, None, :2], small[:, :-1]), dim=1))
        large[:, 1:] = large[:, :-1].clone()
        large[:, 0] = x
        view = large[:, :, ::2]
        view *= 0.5
        view[:, -1].add_(1.0)
        norm = torch.linalg.vector_norm(large.flatten(1), dim=1, keepdim=True)
        change = (x - last) / norm
        last.copy_(x)
        x[:, 2:4] = x[:, :2]
        return change, change.square().sum(dim=1), norm[:, 0] + small.amax(dim=(1, 2)), large[:, 1, 3]

    c = compiled(fn, *given(x=(E, 8), small=(E, 2, 2), large=(E, 6, 8), last=(E, 8)))
    assert c.kernels == 1 and not c.left


def test_an_order_of_elements_that_matters_is_left_to_torch():
    def fn(x):
        x[:, 1:4] = x[:, :3]
        x[:, :20] += x[:, 4:5]
        return x * 2.0

    assert set(compiled(fn, *given(x=(E, 30))).left) == {"aten.copy_.default", "aten.add_.Tensor"}


def test_values_cross_kernels_and_calls():
    def fn(x, y, counter):
        before = torch.stack((x.sum(dim=1), y[:, 0], counter), dim=1)
        shared = torch.arange(3.0) * 2.0
        program.call(lambda: x.mul_(2.0))  # as physics does
        wide = torch.cat((before, x), dim=1)
        shared += 1.0  # once, not once a world
        program.call(lambda: counter.add_(1.0))
        y.copy_(wide[:, :4] * counter[:, None])
        return wide * counter[:, None], before + shared, shared

    c = compiled(fn, *given(x=(E, 9), y=(E, 4), counter=(E,)))
    assert c.kernels == 3 and set(c.left) <= {"aten.arange.default", "aten.add_.Tensor"}


def test_what_nobody_lowers_stays_between_kernels():
    def fn(x, weights, noise):
        spectrum = torch.fft.rfft(x).abs()  # through complex numbers
        real = torch.view_as_real(torch.fft.rfft(x * 2.0))[..., 1]
        bits = x.view(torch.int32) & 0x7FFFFFFF
        hidden = torch.tanh(x @ weights)
        noise.normal_()
        drawn = torch.rand(E, 2) + torch.randn(E, 1) + noise
        ranks = x.sort(dim=1).values[:, -1] - x.median(dim=1).values
        return spectrum + 1.0, real * 2.0, bits + 1, hidden.sum(dim=1), drawn * x[:, :1], ranks, (x - x.mean()).relu()

    c = compiled(fn, *given(x=(E, 40), weights=(40, 64), noise=(E, 2)))
    assert {"aten.mm.default", "aten.rand.default", "aten.normal_.default", "aten._fft_r2c.default"} <= set(c.left)


def test_what_belongs_to_a_call_is_carried_out_once():
    def fn(x, y):
        def outer():
            program.call(lambda: x.mul_(2.0))
            trace.mark(lambda: None)
            y.add_(x[:, 0])

        program.call(outer)
        return x + y[:, None]

    c = compiled(fn, *given(x=(E, 3), y=(E,)))
    assert c.kernels == 1 and not c.left


def test_variants_that_no_rule_covers():
    def fn(x, y, out):
        torch.add(x, y, out=out)
        powers = torch.linalg.vector_norm(x, ord=1, dim=1) + torch.linalg.vector_norm(x, ord=torch.inf, dim=1)
        others = torch.addcmul(x, y, y, value=0.5) + torch.nn.functional.elu(x, alpha=0.5) + x.round(decimals=1)
        rows = x[torch.arange(E), torch.zeros(E, dtype=torch.int64)] + x.max(dim=1).values + x.T.mm(y).sum()
        picked = x[:, torch.tensor([[0, 1], [2, 0]])].sum(dim=2) + x[:, [0, 1]] * x[:, None].flip(2)[:, 0, :2]
        whole = x.long().sub(y.long(), alpha=3) // 2 + x.long().bitwise_left_shift(y.long().clamp(0, 3))
        return (
            x.add(y, alpha=2.0),
            torch.ops.aten.add.Scalar(x, 1.0, 2.0),
            x.div(y, rounding_mode="floor"),
            powers,
            others,
            rows,
            picked,
            whole,
            out * 2.0,
        )

    c = compiled(fn, *given(x=(E, 3), y=(E, 3), out=(E, 3)))
    assert {"aten.add.Tensor", "aten.add.out", "aten.div.Tensor_mode", "aten.floor_divide.default"} <= set(c.left)


def test_numbers_of_the_host_beside_another_device():
    """They are part of a kernel's text, or come to the device once; what the host computes it computes again."""
    x, ids, half = torch.empty(E, 4, device="meta"), torch.tensor([0, 2]), torch.tensor(0.5)

    def fn():
        x[:, 1] = 0.25
        count = torch.tensor([1, 3])
        count += 1
        return x * torch.tensor(2.0), x[:, torch.tensor([3, 0])], x[:, ids], x + half, torch.where(x > 0, 0.0, x), count

    with trace.Recorder(E, "meta") as recorder:
        out = fn()
    recorder.move_numbers("meta", recorder.kept())
    on_host, left = set(), set()
    for part in program._segments(recorder.steps, E, "meta", True):
        if isinstance(part, trace.Step):
            (on_host if part.outs[0].store.device.type == "cpu" else left).add(part.name)
    assert on_host == {"aten.clone.default", "aten.add_.Tensor"} and len(out) == 6
    assert left == {"aten.index.Tensor"}  # of the indices that somebody keeps and may change


def test_moving_tensors():
    """[T, E, ...]: kernels, and what is left to torch, work on the element of the index that they are called with."""
    T, x, total = 5, random(E, 3), torch.zeros(E)
    seen, flags, ranks = torch.zeros(T, E, 3), torch.zeros(T, E, dtype=torch.bool), torch.zeros(T, E, 3)
    noise, square = random(T, E, 3), torch.zeros(E, E, 2)
    moving = [seen, flags, ranks, noise, square]

    def fn(t):
        seen[t].copy_(x + noise[t])
        flags[t].copy_(seen[t, :, 0] > 0.5)
        ranks[t].copy_(seen[t].sort(dim=1).values)
        square[t, :, 0].copy_(x[:, 0])  # as many elements as worlds
        total.add_(seen[t].sum(dim=1))

    c, _ = program.compile(lambda: fn(0), E, "cpu", moving=moving)
    assert "aten.sort.default" in c.left
    for t in range(1, T):
        x.copy_(random(E, 3))
        c(t)
        after = [m.clone() for m in moving] + [total.clone()]
        fn(t)
        total.copy_(after[-1])
        for m, a in zip(moving, after):
            assert torch.equal(m, a)
    assert total.abs().max() > 0 and all(m[:T].any() for m in moving)


def texts(monkeypatch):
    """The texts of the kernels that are compiled from now on; they do nothing."""
    found = []

    class Nothing:
        def __init__(self, text, *args):
            found.append(text)

        def __call__(self, index=0): ...

    monkeypatch.setattr(kernel, "Kernel", Nothing)
    return found


def test_only_what_is_kept_is_computed_and_saved(monkeypatch):
    found, x, kept = texts(monkeypatch), random(E, 3), []

    def fn():
        _ = torch.sin(x) * 2.0  # nobody reads it
        inner = x + 1.0
        kept.append(torch.cos(inner))
        return inner.sum(dim=1)

    c, out = program.compile(fn, E, "cpu")
    (text,) = found
    assert "sin(" not in text.source and "cos(" in text.source and not c.left
    assert {s.memory.data_ptr() for s in text.stores} == {t.untyped_storage().data_ptr() for t in (x, out, kept[0])}


@pytest.mark.parametrize("num_worlds", [1, 3, 7])
def test_as_many_worlds_as_other_things(num_worlds):
    """Axes that only look like that of the worlds."""
    n = num_worlds

    def fn(x, square, deep, scale, ring):
        y = torch.cat((x * scale, square.T + 1.0, square[:, :1] - square[0]), dim=1)
        ring.copy_(torch.cat((y[None, :, :3], ring[:-1])))
        square += deep.sum(dim=1)
        return y, deep[:, 1] * 2.0, deep[-1] + 1.0, torch.arange(3.0 * n).view(n, 3) + x, x[[0]] + x, y.T.flip(0)

    shapes = {"x": (n, 3), "square": (n, n), "deep": (n, 3, n), "scale": (3,), "ring": (n, n, 3)}
    compiled(fn, *given(**shapes), num_worlds=n)


def test_memory_that_several_storages_share():
    """Each look at an array of Warp's or NumPy's makes a storage of its own."""
    array = np.zeros((E, 6), np.float32)
    one, other, x = torch.from_numpy(array), torch.from_numpy(array), random(E, 6)

    def fn():
        one.copy_(x * 2.0)
        y = other + 1.0
        other[:, 0] = 5.0
        return y, one.sum(dim=1)

    c, out = program.compile(fn, E, "cpu")
    x.copy_(random(E, 6))
    one.zero_()
    c()
    again = [t.clone() for t in out]
    for mine, theirs in zip(again, fn()):
        torch.testing.assert_close(mine, theirs)
    assert c.kernels == 1 and not c.left


def test_large_tensors():
    """More than scratch memory holds, of one tensor and of many together."""

    def fn(x, y):
        x, y = x.double(), y.double()
        wide = x[:, :, None] * y[:, None]  # 2,500 elements a world
        parts = [torch.sin(x[:, None] * (k + 1.0) + y[:, :20, None]) for k in range(6)]  # 6,000
        total = parts[0]
        for a, b in zip(parts, parts[1:] + parts[:1]):
            total = total + a * b.flip(2)[:, :, : a.shape[2]]
        return wide.sum(dim=2), wide.mT.amax(dim=1), total.mean(dim=(1, 2)), torch.stack(parts, dim=1).amax(dim=1)

    assert compiled(fn, *given(x=(E, 50), y=(E, 50))).kernels


def test_large_tensors_of_one_kernel(monkeypatch):
    found = texts(monkeypatch)
    x = random(E, 1000)

    def fn():
        parts = [torch.sin(x * k) for k in range(8)]
        return torch.stack([a.sum(dim=1) + b[:, ::2].sum(dim=1) for a, b in zip(parts, reversed(parts))])

    program.compile(fn, E, "cpu")
    assert len(found) == 1 and found[0].scratch <= 12 * 1024


def test_marks_come_in_order_with_what_surrounds_them():
    seen, x = [], random(E, 3)

    def fn():
        trace.mark(lambda: seen.append("first"))
        y = x + 1.0
        trace.mark(lambda: seen.append("second"))
        z = y * 2.0
        program.call(lambda: seen.append("call"))
        trace.mark(lambda: seen.append("third"))
        return z

    c, _ = program.compile(fn, E, "cpu")
    seen.clear()
    c()
    assert seen == ["first", "second", "call", "third"] and c.kernels == 1


def asks_for_one(x):
    return x * x[0, 0].item()


def asks_for_a_choice(x):
    return x if x.sum() > 0 else -x


def asks_for_rows(x):
    return x[x[:, 0] > 0]


def sets_rows(x):
    y = x.clone()
    y[x[:, 0] > 0] = 0.0
    return y


def asks_where(x):
    return torch.nonzero(x[:, 0])


@pytest.mark.parametrize("fn", [asks_for_one, asks_for_a_choice, asks_for_rows, sets_rows, asks_where])
def test_questions_to_the_device_are_refused(fn):
    x = random(E, 2)
    with pytest.raises(UserError, match="^environment: asks .* of .*test_fuse_programs.py.* sim.graph=false"):
        program.compile(lambda: fn(x), E, "cpu")
    assert trace.current() is None


def test_a_tensor_that_is_replaced_in_every_step_is_refused():
    for shape in ((E, 2), ()):
        state = {"last": torch.zeros(shape), "x": random(*shape)}

        def fn(state=state):
            state["last"] = state["last"] * 0.5 + state["x"]
            return state["last"]

        with pytest.raises(UserError, match="no longer kept.*sim.graph=false"):
            program.compile(fn, E, "cpu")


# --- lanes of a GPU --------------------------------------------------------------------------------------------------


def folds(x, few, picked):
    """What lanes do together, one after the other, and each by itself."""
    scaled = x / x.square().sum(dim=1, keepdim=True).sqrt()
    most = torch.stack((scaled.amax(dim=1), few.sum(dim=1), scaled.mean(dim=1)), dim=1)
    shifted = torch.cat((scaled[:, 3:], most, scaled[:, :3]), dim=1)
    rows = shifted[:, :36].unflatten(1, (9, 4)).sum(dim=2)
    few += rows[:, :3].amin(dim=1, keepdim=True)
    picked.index_add_(1, torch.tensor([2, 0, 2]), shifted[:, 4:7])
    return rows @ torch.full((9,), 0.5), (x > 0).any(dim=1), picked * few[:, :1], shifted[:, torch.tensor([3, 30])]


def turned(x, y):
    """Few numbers, which all lanes read and each then writes some of."""
    x /= torch.linalg.vector_norm(x, dim=1, keepdim=True)
    y[:, :2] = y[:, 2:] + x[:, :1]
    return x * 2.0


def arguments_of_folds(seed):
    G.manual_seed(seed)
    return {"x": random(E, 39), "few": random(E, 3), "picked": random(E, 6)}


@fuse_lanes.NEEDED
@pytest.mark.parametrize("lanes", [8, 32])
def test_lanes_in_any_order_do_what_torch_does(lanes, monkeypatch, tmp_path):
    fuse_lanes.use(monkeypatch, tmp_path, lanes)
    compiled(folds, arguments_of_folds(0), arguments_of_folds(1))
    compiled(turned, *given(x=(E, 3), y=(E, 4)))
    compiled(RandomProgram(lanes, 80, calls=False), inputs(lanes), inputs(100 + lanes))


@fuse_lanes.NEEDED
def test_lanes_that_do_not_wait_for_each_other_are_found(monkeypatch, tmp_path):
    """Without any one of the barriers; a few only keep apart what by chance is the same."""
    places = []

    def count(source):
        places.extend(range(source.count("sync();")))
        return source

    def without(k):
        def edit(source):
            parts = source.split("sync();")
            return "sync();".join([*parts[:k], parts[k] + parts[k + 1], *parts[k + 2 :]])

        return edit

    fuse_lanes.use(monkeypatch, tmp_path, 8, count)
    compiled(folds, arguments_of_folds(0), arguments_of_folds(1))
    wrong = 0
    for k in places:
        fuse_lanes.use(monkeypatch, tmp_path, 8, without(k))
        try:
            compiled(folds, arguments_of_folds(0), arguments_of_folds(1))
        except AssertionError:
            wrong += 1
    assert len(places) >= 3 and wrong >= len(places) // 2, (wrong, len(places))


@pytest.mark.skipif(sys.platform != "linux", reason="Warp compiles for GPUs on Linux and Windows")
def test_kernels_compile_for_a_gpu(monkeypatch, tmp_path):
    found = texts(monkeypatch)
    program.compile(lambda: folds(**arguments_of_folds(0)), E, "cpu")
    p = RandomProgram(3, 80, calls=False)
    program.compile(lambda: p(**inputs(3)), E, "cpu")
    x = random(E, 40)
    every = [x.to(t) for t in (torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.uint8)]
    every.append(x > 0)

    def folded(x):
        return [x.sum(dim=1), x.prod(dim=1), x.amax(dim=1), x.amin(dim=1), x.any(dim=1), x.all(dim=1), x < 1, x * x]

    def functions():
        real = [
            (torch.log1p(x), torch.expm1(x), x.sigmoid(), x.remainder(2.0), torch.lerp(x, -x, 0.3)) for x in every[:2]
        ]
        return real, [(x % 3, x >> 1, x << 2, x.abs(), x.sign(), ~x) for x in every[2:4]], [folded(x) for x in every]

    program.compile(functions, E, "cpu")
    for k, text in enumerate(found):
        wp.compile_aot_module(kernel.build(text).module, arch=90, module_dir=tmp_path / str(k), use_ptx=False)
        assert list((tmp_path / str(k)).glob("*.cubin"))
