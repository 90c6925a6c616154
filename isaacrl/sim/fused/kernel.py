"""The fused kernel: its stages joined to one source, compiled by Warp for a GPU or, to test it, for a CPU."""

import importlib.resources
from typing import Any

import warp as wp

from isaacrl.sim.fused.tables import Tables

BLOCK = 128  # threads of a block, as a rule: few enough that they seldom wait long for each other

STAGES = (
    *("lanes", "math", "model", "kinematics", "dynamics", "network", "actuation"),
    *("narrow", "boxes", "hfield", "collision", "constraint"),
    *("factor", "solver", "integrate", "sensors", "outputs", "step"),
)

# Warp pastes a snippet into the body of a function. This one leaves that body for file scope, where the stages go, and
# ends inside another function; a Warp that pastes differently fails to compile it. Warp has a macro int(x) for casts,
# which would break `operator int`.
_SNIPPET = """
  CUDA_CALLABLE void isaacrl_step(int, int, int, int, const {real}*, const int*, const unsigned long long*);
  isaacrl_step(thread, worlds, substeps, around, params.data, tables.data, (const unsigned long long*)arrays.data);
}}
#undef int
#define REAL {real}
#define BACKWARDS {backwards}
namespace isaacrl {{
{source}
}}
CUDA_CALLABLE void isaacrl_step(int thread, int worlds, int substeps, int around, const {real}* params,
                                const int* tables, const unsigned long long* arrays) {{
  using namespace isaacrl;
  int round = ALL_ROUNDS;
#if GPU
  // The tables' first use would else be one wait after the other.
  for (int i = 32 * threadIdx.x; i < PARAMS; i += 32 * WP_TILE_BLOCK_DIM) prefetch(params + i);
  for (int i = 32 * threadIdx.x; i < TABLES; i += 32 * WP_TILE_BLOCK_DIM) prefetch(tables + i);
  for (int i = 16 * threadIdx.x; i < ARRAYS; i += 16 * WP_TILE_BLOCK_DIM) prefetch(arrays + i);
  if (around) thread = ticket((int*)arrays[A_PROGRESS] + worlds, substeps * around);
#endif
  if (around) round = thread / around, thread -= round * around;
#if GPU
  int id = thread / LANES;
  extern __shared__ ALIGNED char isaacrl_scratch[];  // as much as the kernel's tile
  static_assert(sizeof(Scratch) * (WP_TILE_BLOCK_DIM / LANES) == {scratch}, "layout.scratch_bytes");
  Scratch& S = ((Scratch*)isaacrl_scratch)[threadIdx.x / LANES];
#else
  int id = thread;
  Scratch S;
#endif
  if (id < worlds) step_world(World{{id, params, tables, arrays}}, S, substeps, round);
}}
#define int(x) cast_int(x)
inline CUDA_CALLABLE void isaacrl_end() {{
"""


def source(tables: Tables, edit: tuple[str, str] | None = None) -> str:
    """The stages with the tables' macros and accessors; edit replaces one text in them (to test the tests)."""
    folder = importlib.resources.files("isaacrl.sim.fused") / "stages"
    parts = {name: (folder / f"{name}.h").read_text().replace("#pragma once\n", "") for name in STAGES}
    for name, needs in (("boxes", "HAS_BOXES"), ("hfield", "NHFIELD")):
        if not tables.sizes.get(needs):
            del parts[name]
    parts["lanes"] = tables.header() + parts["lanes"]
    parts["model"] = parts["model"].replace("//@tables\n", tables.accessors())
    text = "\n".join(parts.values())
    if edit:
        if edit[0] not in text:
            raise ValueError(f"no stage has {edit[0]!r}")
        text = text.replace(*edit, 1)
    return text


def build(
    tables: Tables,
    *,
    double: bool = False,
    block: int = BLOCK,
    resident: int = 1,
    backwards: bool = False,
    scratch: int = 0,
    edit: tuple[str, str] | None = None,
) -> Any:
    """A Warp kernel (worlds, substeps, around, params, tables, arrays); on a GPU it takes lanes threads a world.

    around: threads of all worlds, in whole blocks, of which it then takes substeps times as many, each for one physics
    step; 0: all steps in the same thread.

    double: in float64, for validation on a CPU. block: threads of a block; resident: how many of them a multiprocessor
    shall have room for, which bounds the registers. scratch: bytes of shared memory a block (on a GPU). backwards:
    items in reverse order (on a CPU).
    """
    real: Any = wp.float64 if double else wp.float32
    snippet = _SNIPPET.format(
        real="double" if double else "float", backwards=int(backwards), scratch=scratch, source=source(tables, edit)
    )

    @wp.func_native(snippet)
    def step_world(
        thread: int,
        worlds: int,
        substeps: int,
        around: int,
        params: wp.array[real],  # pyright: ignore[reportInvalidTypeForm]
        tables: wp.array[wp.int32],
        arrays: wp.array[wp.int64],
    ): ...

    words = wp.constant(max(scratch // 4, 1))
    options = {"fast_math": not double, "block_dim": block, "max_unroll": 0}

    @wp.kernel(
        enable_backward=False,
        module="unique",
        module_options=options,
        grid_stride=False,
        launch_bounds=(block, resident),
    )
    def step(
        worlds: int,
        substeps: int,
        around: int,
        params: wp.array[real],  # pyright: ignore[reportInvalidTypeForm]
        tables: wp.array[wp.int32],
        arrays: wp.array[wp.int64],
    ):
        memory = wp.tile_empty(shape=words, dtype=wp.float32, storage="shared")  # noqa: F841  the worlds' Scratch
        step_world(wp.tid(), worlds, substeps, around, params, tables, arrays)

    return step
