"""Random functions of many worlds' tensors: operations on a growing pool of tensors and of views of them.

All numbers are whole and small, so that every result is exact, whatever the order of sums.
"""

import random

import torch

from isaacrl.fuse import program

E = 37  # worlds
LARGEST = 2000
UNARY = (
    *(torch.abs, torch.neg, torch.square, torch.relu, torch.sign, torch.clone, torch.logical_not),
    *(lambda x: torch.floor(x * 0.5), lambda x: x + 1, lambda x: 1 - x, lambda x: x.clamp(-3, 2)),
    *(lambda x: x > 1, lambda x: x != 0, lambda x: x.double(), lambda x: x.long(), lambda x: x.float()),
    *(lambda x: x.remainder(7), lambda x: x**2, lambda x: x.bool(), torch.zeros_like, lambda x: x.new_ones(x.shape)),
)
BINARY = (
    *(torch.add, torch.sub, torch.mul, torch.minimum, torch.maximum, torch.lt, torch.ge, torch.eq, torch.logical_and),
    *(torch.logical_or, torch.logical_xor, torch.bitwise_and),
)
INPLACE = ("add_", "sub_", "mul_", "copy_", "clamp_min_", "clamp_max_", "logical_or_")
FOLDS = ("sum", "amax", "amin", "any", "all", "prod")
KINDS = {"unary": 4, "binary": 6, "inplace": 5, "slice": 5, "fold": 4, "join": 3, "where": 2, "mask": 1, "index": 2}
KINDS |= {"put": 2, "shape": 3, "ring": 1, "shared": 1, "odd": 1, "call": 1, "cross": 1, "product": 1}
IMPOSSIBLE = (RuntimeError, IndexError, ValueError, TypeError)


def inputs(seed):
    """Tensors by name. Worlds are on the first axis, in `e` and `t` on the second one; `s` and `z` have none."""
    g = torch.Generator().manual_seed(seed)

    def whole(*shape, low=-9, dtype=torch.float64):
        return torch.randint(low, 10, shape, generator=g).to(dtype)

    out = {"a": whole(E), "b": whole(E, 3), "c": whole(E, 12), "d": whole(E, 4, 5), "e": whole(4, E, 3)}
    out |= {"f": whole(E, 40), "t": whole(6, E).T, "i": whole(E, 7, dtype=torch.int64), "h": whole(E, 2).float()}
    return out | {"m": whole(E) > 0, "k": whole(E, 9) > 0, "s": whole(5), "z": whole(), "ring": whole(E, 6, 4)}


class RandomProgram:
    """length operations; calls: what no kernel holds may be among them."""

    def __init__(self, seed, length, calls=True):
        self.rng, self.steps = random.Random(seed), []
        pool = {k: v.clone() for k, v in inputs(seed).items()}
        self.names = list(pool)
        tensors = list(pool.values())
        kinds = [k for k, n in KINDS.items() for _ in range(n) if calls or k not in ("odd", "call")]
        with torch.no_grad():
            while len(self.steps) < length:
                n = len(tensors)
                at = [n - 1 - min(n - 1, int(self.rng.expovariate(0.15))) for _ in range(3)]
                at = [self.rng.randrange(n) if self.rng.random() < 0.4 else i for i in at]
                step = (self.rng.choice(kinds), *at, self.rng.random(), self.rng.randrange(1 << 30))
                before = [x.clone() for x in tensors]
                try:
                    self.run(tensors, step)
                    good = all(map(self.fits, tensors))
                except IMPOSSIBLE:
                    good = False
                if good:
                    self.steps.append(step)
                    continue
                del tensors[n:]
                for x, old in zip(tensors, before):
                    if 0 not in x.stride():
                        x.copy_(old)

    @staticmethod
    def fits(x):
        return 0 < x.numel() <= 250 * E and x.ndim < 5 and x.abs().max() <= LARGEST if x.dtype != torch.bool else True

    def __call__(self, **given):
        pool, r = [given[k] for k in self.names], random.Random(0)
        for step in self.steps:
            self.run(pool, step)
        out = pool[len(self.names) :]
        return [x for x in out if r.random() < 0.25] + out[-3:]

    def run(self, pool, step):
        kind, i, j, k, u, bits = step
        new = getattr(self, kind)(pool[i], pool[j], pool[k], u, random.Random(bits), pool)
        if new is not None:
            pool.append(new)

    @staticmethod
    def axis(x, r):
        """One that is not the worlds'."""
        return r.choice([d for d in range(x.ndim) if x.shape[d] != E])

    @staticmethod
    def own(x):
        """For operations in place."""
        if 0 in x.stride():
            raise ValueError
        return x

    def unary(self, x, y, z, u, r, pool):
        return r.choice(UNARY)(x)

    def binary(self, x, y, z, u, r, pool):
        return r.choice(BINARY)(x, y)

    def inplace(self, x, y, z, u, r, pool):
        op = r.choice(INPLACE)
        if y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
            y = y.clone()
        getattr(self.own(x), op)(2 if op.startswith("clamp") and u < 0.5 else y)

    def slice(self, x, y, z, u, r, pool):
        d = self.axis(x, r)
        a = r.randrange(x.shape[d])
        b = r.randrange(a + 1, x.shape[d] + 1)
        return x.select(d, a) if u < 0.3 else x.narrow(d, a, b - a) if u < 0.8 else x.unfold(d, 1, 2)[..., 0]

    def fold(self, x, y, z, u, r, pool):
        dims = [d for d in range(x.ndim) if x.shape[d] != E or u < 0.02]
        chosen, op = r.sample(dims, r.randint(1, len(dims))), r.choice(FOLDS)
        x = x.clamp(-1, 1) if op == "prod" and x.dtype != torch.bool else x
        return getattr(x, op)(dim=chosen[0] if op in ("any", "all", "prod") else chosen, keepdim=r.random() < 0.4)

    def join(self, x, y, z, u, r, pool):
        d = self.axis(x, r)
        if u < 0.5:
            return torch.cat([x, y], d)
        return torch.stack([x, y], d) if u < 0.8 else torch.cat([x, x.narrow(d, 0, 1) * 2, x], d)

    def where(self, x, y, z, u, r, pool):
        return torch.where(x if x.dtype == torch.bool else x > 0, y, z if u < 0.7 else 0.0)

    def mask(self, x, y, z, u, r, pool):
        m = (x > 0)[(..., *[None] * max(0, y.ndim - x.ndim))]
        if u < 0.5:
            return y.masked_fill(m, 2)
        self.own(y).masked_fill_(m, 1)

    def index(self, x, y, z, u, r, pool):
        d = self.axis(x, r)
        n = x.shape[d]
        if u < 0.5:
            return x[(slice(None),) * d + (torch.tensor([r.randrange(-n, n) for _ in range(r.randint(1, 6))]),)]
        if u < 0.7:
            return x.index_select(d, torch.tensor([r.randrange(n) for _ in range(r.randint(1, 6))]))
        return x.gather(d, y.clamp(0, n - 1))

    def put(self, x, y, z, u, r, pool):
        x, d = self.own(x), self.axis(x, r)
        n = x.shape[d]
        ids = torch.tensor(r.sample(range(n), r.randint(1, min(n, 4))))
        twice, where = torch.tensor([r.randrange(n) for _ in range(3)]), (slice(None),) * d
        value = 1 - x.index_select(d, ids)
        if u < 0.2:
            return x.index_copy(d, ids, value)
        if u < 0.35:
            return x.index_add(d, twice, x.index_select(d, twice), alpha=r.choice([1, -1]))
        if u < 0.5:
            x.index_copy_(d, ids, value)
        elif u < 0.65:
            x.index_add_(d, twice, x.index_select(d, twice))
        elif u < 0.8:
            x[(*where, ids)] = r.choice([1.0, 0.0])
        elif u < 0.9:
            x.index_fill_(d, ids, 1)
        else:
            x[(*where, r.randrange(n))] = 3.0

    def shape(self, x, y, z, u, r, pool):
        if u < 0.25:
            return x.transpose(r.randrange(x.ndim), r.randrange(x.ndim))
        if u < 0.5:
            return x.unsqueeze(r.randrange(x.ndim + 1))
        if u < 0.65:
            return x.flatten(1)
        if u < 0.8:
            return x.unsqueeze(-1).expand(*x.shape, 3)
        return x[:, None].repeat(1, 3, *[1] * (x.ndim - 1)) if u < 0.9 else x.reshape(E, -1)

    def ring(self, x, y, z, u, r, pool):
        ring, new = pool[self.names.index("ring")], x.reshape(E, -1)[:, :4].double()
        if u < 0.5:
            ring.copy_(torch.cat((new[:, None], ring[:, :-1]), dim=1))
        elif u < 0.8:
            ring[:, 1:] = ring[:, :-1].clone()
            ring[:, 0] = new
        else:
            ring[:, :3] = ring[:, 3:]

    def shared(self, x, y, z, u, r, pool):
        if u < 0.3:
            s = torch.arange(4.0, dtype=torch.float64)
        else:
            s = torch.tensor([5.0, -1.0, 2.0], dtype=torch.float64) if u < 0.6 else x.new_zeros(3).double()
        if u > 0.5:
            s += 1
        if u > 0.7:
            s[1:] *= 3
        return s if u < 0.3 or u > 0.5 else s * 2

    def odd(self, x, y, z, u, r, pool):
        """What no rule lowers."""
        last = x.ndim - 1
        if u < 0.2:
            return x.sort(dim=last).values
        if u < 0.4:
            return x.cumsum(last)
        if u < 0.6:
            return x.flip(last)
        if u < 0.7:
            return torch.randint(0, 5, (E, 3)).double()
        if u < 0.8:
            return x - x.amax()
        flat = x.reshape(E, -1).double()
        return flat @ torch.ones(flat.shape[1], 60, dtype=torch.float64) if u < 0.9 else x.roll(1, last)

    def call(self, x, y, z, u, r, pool):
        target = pool[self.names.index("c" if u < 0.5 else "e")]
        program.call(lambda: target.clamp_(-5, 5).add_(1))

    def cross(self, x, y, z, u, r, pool):
        return torch.linalg.cross(*(v.reshape(E, -1)[:, :3].double() for v in (x, y)))

    def product(self, x, y, z, u, r, pool):
        flat = x.reshape(E, -1).double()
        weights = torch.ones(flat.shape[1], 2, dtype=torch.float64)
        return flat @ (weights if u < 0.5 else weights[:, 0])
