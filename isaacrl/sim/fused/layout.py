"""How many worlds share a block of GPU threads: their scratch memory must fit the block's shared memory.

`scratch_bytes` is sizeof(Scratch) in stages/model.h, in float32; a test compares the two.
"""

import math
from collections.abc import Mapping

import mujoco

from isaacrl.sim.engine import Actuation
from isaacrl.sim.fused import tables
from isaacrl.sim.fused.kernel import BLOCK

SHARED = 64 * 1024  # bytes of shared memory that every GPU since 2018 gives a block
_WARP = 32


def scratch_bytes(sizes: Mapping[str, int | float | str], lanes: int) -> int:
    """Bytes of scratch memory a world, from the macros of `tables.Tables.sizes`."""
    nq, nv, nu, bodies, joints = (int(sizes[k]) for k in ("NQ", "NV", "NU", "NB", "NJ"))
    contacts, fast, dim = (int(sizes[k]) for k in ("NCON", "NFAST", "MAXDIM"))
    row = _fours(nv)  # NH
    held = nv if nv <= lanes or nv > lanes + 6 else lanes  # NR
    square = _fours(held)  # NROW
    rows = max(square, lanes)  # ROWS
    mass = nv if nv > held else nv + 1 if rows > nv and square == nv else square  # NMASS
    record = 20 + (4 if dim > 3 or sizes["ANISOTROPIC"] else 0) + (_fours(dim) if dim > 3 else 0)
    record += _fours(dim * (dim + 1) // 2)
    inner = max(8 * joints, 8 * max(1, int(sizes["NG"])) + _fours(max(1, int(sizes["NPAIR"]))), 28 * bodies)
    fast += contacts > fast  # a place for those that are not kept
    solver = (max(1, fast * dim) + max(1, nv - held)) * row
    solver += max(2 * (rows + max(rows, square + 8)), _fours(max(1, contacts * dim)))
    words = _fours(nq) + 2 * row + _fours(max(1, nu) + max(1, 2 * nu)) + 8 * bodies + 8 * nv + mass * row
    words += max(1, contacts) * record + row + max(8 * nv + inner, solver)
    words += 20 if sizes["PROFILE"] else 4  # with the flags and clocks at the end
    return 4 * words


def fitting(sizes: Mapping[str, int | float | str], lanes: int) -> tuple[int, int] | None:
    """(lanes a world, threads a block): as wished, else with fewer worlds a block. None: not even one fits."""
    while True:
        for block in (BLOCK, BLOCK // 2, _WARP):
            if scratch_bytes(sizes, lanes) * (block // lanes) <= SHARED:
                return lanes, block
        if lanes >= _WARP:
            return None
        lanes *= 2


def resident(warps: int, lanes: int, block: int, worlds: int, processors: int) -> int:
    """Blocks that a multiprocessor shall have room for, at most `warps` warps in all.

    Where the worlds fill all multiprocessors but a few times, no more than what fills them evenly: the last blocks would
    have them to themselves.
    """
    best = most = max(1, warps * _WARP // block)
    if worlds < 3 * processors * most * block // lanes:
        def time(blocks: int) -> int:
            return blocks * math.ceil(worlds * lanes / (processors * blocks * block))
        best = min(range(most, 2 * most // 3, -1), key=time)
    return best


def uncovered(model: mujoco.MjModel, nconmax: int, fast_contacts: int) -> list[str]:
    """What `coverage.uncovered` does not know, for models that it has nothing against: that a world is too large."""
    law = Actuation.direct(model.nu)
    sizes = tables.make_tables(
        model, law, lanes=_WARP, nconmax=nconmax, tolerance=0.0, fast_contacts=fast_contacts
    ).sizes
    if fitting(sizes, _WARP):
        return []
    size, most = scratch_bytes(sizes, _WARP) / 1024, SHARED // 1024
    return [f"{model.nbody} bodies with room for {nconmax} contacts ({size:.0f} kB a world, at most {most})"]


def _fours(n: int) -> int:
    return (n + 3) // 4 * 4
