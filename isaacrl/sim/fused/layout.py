"""How many worlds share a block of GPU threads: their scratch memory must fit the block's shared memory.

`scratch_bytes` is sizeof(Scratch) in stages/model.h, in float32; a test compares the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import mujoco

from isaacrl.sim.engine import Actuation
from isaacrl.sim.fused import tables
from isaacrl.sim.fused.kernel import BLOCK
from isaacrl.sim.fused.tables import padded

SHARED = 64 * 1024  # bytes of shared memory that every GPU since 2018 gives a block
MULTIPROCESSOR = 228 * 1024  # bytes that a multiprocessor of an H100 or H200 has for all blocks; others hold fewer
LEAST_FAST = 4
FEW = 3  # times that worlds fill the multiprocessors: measured with go2 on rough terrain and on a plane
_RESERVED = 1024 + 4 * BLOCK + 16  # of these, a block: CUDA's own, a counter that Warp keeps for each thread, a ticket
_WARP = 32


def scratch_bytes(sizes: Mapping[str, int | float | str], lanes: int) -> int:
    """Bytes of scratch memory a world, from the macros of `tables.Tables.sizes`."""
    nq, nv, nu, bodies, joints = (int(sizes[k]) for k in ("NQ", "NV", "NU", "NB", "NJ"))
    contacts, fast, dim = (int(sizes[k]) for k in ("NCON", "NFAST", "MAXDIM"))
    row = tables.stride(nv)
    held = nv if nv <= lanes or nv > lanes + 6 else lanes  # NR
    square = padded(held)  # NROW
    rows = max(square, lanes)  # ROWS
    mass = nv if nv > held else nv + 1 if rows > nv and square == nv else square  # NMASS
    record = 20 + (4 if dim > 3 or sizes["ANISOTROPIC"] else 0) + (padded(dim) if dim > 3 else 0)
    record += padded(dim * (dim + 1) // 2)
    fields = int(sizes.get("NHFIELD", 0))
    pairs = max(1, int(sizes["NPAIR"])) + (13 * fields + 4 * int(sizes["CELLS"]) if fields else 0)
    inner = max(8 * joints, 8 * max(1, int(sizes["NG"])) + padded(pairs), 28 * bodies)
    fast += contacts > fast  # a place for those that are not kept
    solver = (max(1, fast * dim) + max(1, nv - held)) * row
    solver += max(2 * (rows + max(rows, square + 8)), padded(max(1, contacts * dim)))
    words = padded(nq) + 2 * padded(nv) + padded(max(1, nu) + max(1, 2 * nu)) + 8 * bodies + 8 * nv + mass * row
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


@dataclass(frozen=True)
class Plan:
    """How the worlds lie on a GPU."""

    lanes: int  # of a world
    block: int  # threads of a block
    resident: int  # blocks that a multiprocessor shall have room for
    fast: int  # contacts of a world whose rows are in scratch memory
    scratch: int  # bytes a block
    in_rounds: bool  # whether launches of several physics steps are made step by step: see stages/step.h


def plan(
    sizes: Mapping[str, int | float | str], lanes: int, warps: int, worlds: int = 1 << 20, processors: int = 132
) -> Plan | None:
    """The best of what fits (see `fitting`), with up to `warps` warps on each of the GPU's multiprocessors.

    Where the worlds fill the multiprocessors but a few times, most of these would wait for the last few blocks: then
    launches of several physics steps are made in rounds (stages/step.h), which costs a few percent; without networks of
    actuators, whose memory stays in one multiprocessor's cache. Where the worlds fit at once, or cannot be stepped in
    rounds, it is what fills the multiprocessors evenly. Fewer worlds than that get what many get, and with it the same
    kernel. Where scratch memory would not let as many blocks be there, it has the rows of fewer contacts, at least
    LEAST_FAST; where that does not suffice, there are fewer blocks, each with more registers.
    """
    found = fitting(sizes, lanes)
    if not found:
        return None
    lanes, block = found
    while block > _WARP and processors * _WARP <= worlds * lanes < processors * block:
        block //= 2  # a multiprocessor without a block would be idle
    blocks, most = -(-worlds * lanes // block), max(1, warps * _WARP // block)
    resident, rounds = most, not sizes["NETS"]
    if processors <= blocks < FEW * processors * most and not (rounds and blocks > processors * most):
        resident = min(range(most, 2 * most // 3, -1), key=lambda n: n * -(-blocks // (processors * n)))
    chosen = int(sizes["NFAST"])
    least = min(chosen, LEAST_FAST)
    resident, fast, used = next(  # one block fits: its scratch memory is at most SHARED
        (there, fast, used)
        for there in range(resident, 0, -1)
        for fast in range(chosen, least - 1, -1)
        if there * ((used := _used(sizes, lanes, block, fast)) + _RESERVED) <= MULTIPROCESSOR
    )
    return Plan(
        lanes,
        block,
        resident,
        fast,
        used,
        in_rounds=rounds and processors * resident < blocks < FEW * processors * resident,
    )


def _used(sizes: Mapping[str, int | float | str], lanes: int, block: int, fast: int) -> int:
    return scratch_bytes({**sizes, "NFAST": fast}, lanes) * block // lanes


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
