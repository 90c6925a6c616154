"""Functions of many worlds' tensors, compiled by `isaacrl.fuse` and carried out by torch, side by side."""

import pytest
import torch
from fused_kernel import optimization
from torch.utils import _pytree

from isaacrl.fuse import program

E = 37  # worlds


@pytest.fixture(autouse=True, scope="module")
def quickly():
    """Modules that import this compile with less care."""
    with optimization(0):
        yield


def results(fn, inputs):
    """What fn leaves when torch carries it out: (its results, its inputs afterwards). The inputs stay as they are."""
    own = {k: moved(v) for k, v in inputs.items()}
    torch.manual_seed(0)
    with torch.no_grad():
        out = fn(**own)
    return [x.clone() for x in _pytree.tree_leaves(out)], own


def moved(x):
    """A copy with the same strides."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)


def compiled(fn, first, *others, num_worlds=E, names=None, **keys):
    """The compiled function. fn: takes tensors by name and returns a tree of tensors. first, others: values of its
    arguments; it is compiled with the first ones and must do with all of them what torch does. names: of the results.
    """
    live = {k: moved(v) for k, v in first.items()}
    expected = results(fn, first)
    device = next(iter(first.values())).device.type
    torch.manual_seed(0)
    c, out = program.compile(lambda: fn(**live), num_worlds, device, **keys)
    out = _pytree.tree_leaves(out)
    agree(out, live, expected, names)
    for given in others:
        expected = results(fn, given)
        own = {live[k].untyped_storage().data_ptr() for k in live}
        for x in out:
            if x.untyped_storage().data_ptr() not in own:
                garble(x)
        for k, v in given.items():
            live[k].copy_(v)
        torch.manual_seed(0)
        c()
        agree(out, live, expected, names)
    return c


def garble(x):
    x.fill_(True if x.dtype == torch.bool else 77)


def agree(out, live, expected, names=None):
    values, after = expected
    assert len(out) == len(values)
    for k, (mine, theirs) in enumerate(zip(out, values)):
        same(mine, theirs, f"result {names[k] if names else k}")
    for k, theirs in after.items():
        same(live[k], theirs, f"argument {k}")


def same(mine, theirs, what):
    assert mine.shape == theirs.shape and mine.dtype == theirs.dtype, what
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-12}.get(mine.dtype, 0.0)
    torch.testing.assert_close(
        mine, theirs, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )
