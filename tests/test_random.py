"""Counter-based random numbers: independent of the company a world keeps, uniform, normal, uncorrelated."""

import torch

from isaacrl.random import Random, pcg4d


def pcg4d_python(*v):
    """The reference in arbitrary-precision integers."""
    m = 0xFFFFFFFF
    x, y, z, w = (((a & m) * 1664525 + 1013904223) & m for a in v)
    x = (x + y * w) & m
    y = (y + z * x) & m
    z = (z + x * y) & m
    w = (w + y * z) & m
    x, y, z, w = (a ^ (a >> 16) for a in (x, y, z, w))
    x = (x + y * w) & m
    y = (y + z * x) & m
    z = (z + x * y) & m
    w = (w + y * z) & m
    return x, y, z, w


def test_int32_arithmetic_equals_the_integers():
    counters = [(0, 0, 0, 0), (1, 2, 3, 4), (2**31 - 1, -1, 12345, -(2**31)), (7, 99999, -5, 2**30)]
    for v in counters:
        ours = [int(t) & 0xFFFFFFFF for t in pcg4d(*(torch.tensor(a, dtype=torch.int32) for a in v))]
        assert ours == list(pcg4d_python(*v))


def test_a_world_draws_the_same_whatever_the_number_of_worlds():
    few, many = Random(3, torch.arange(10, 14)), Random(3, torch.arange(100))
    few.step += 17
    many.step += 17
    assert torch.equal(few.uniform("a", 7), many.uniform("a", 7)[10:14])
    assert torch.equal(few.normal("a", 7), many.normal("a", 7)[10:14])


def test_seed_step_stream_and_world_all_matter():
    r = Random(0, torch.arange(50))
    base = r.uniform("a", 8)
    other_seed, other_stream = Random(1, torch.arange(50)).uniform("a", 8), r.uniform("b", 8)
    r.step += 1
    assert len({tuple(x.flatten().tolist()) for x in (base, other_seed, other_stream, r.uniform("a", 8))}) == 4
    assert len(set(base.flatten().tolist())) > 390  # 400 draws of 24 bits hardly ever collide


def test_moments_and_correlations():
    """Bounds are 5 standard errors of the estimate."""
    r = Random(42, torch.arange(2000))
    draws = []
    for _ in range(25):
        draws.append(r.uniform("u", 4))
        r.step += 1
    u = torch.stack(draws)  # [25, 2000, 4]
    n = u.numel()
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    assert abs(u.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    assert 0.0 <= u.min() and u.max() < 1.0
    histogram = torch.histc(u, 64, 0, 1)
    chi2 = ((histogram - n / 64) ** 2 / (n / 64)).sum()
    assert chi2 < 63 + 5 * (2 * 63) ** 0.5
    for a, b in ((u[1:], u[:-1]), (u[:, 1:], u[:, :-1]), (u[..., 1:], u[..., :-1])):
        c = ((a - 0.5) * (b - 0.5)).mean() * 12
        assert abs(c) < 5 / a.numel() ** 0.5
    z = r.normal("z", 101)
    assert abs(z.mean()) < 5 / z.numel() ** 0.5
    assert abs(z.var() - 1) < 5 * (2 / z.numel()) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / z.numel()) ** 0.5
