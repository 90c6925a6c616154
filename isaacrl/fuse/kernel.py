"""A fused kernel: its text, compiled by Warp for a GPU or a CPU, and its launch on torch's stream."""

import importlib.resources
from typing import Any

import torch
import warp as wp

from isaacrl.fuse.emit import Text
from isaacrl.sim.streams import Launcher

BLOCK = 128  # threads at most
SHARED = 64 * 1024  # bytes of scratch memory of a block at most
# See isaacrl/sim/fused/kernel.py: the snippet leaves the function that Warp pastes it into.
_SNIPPET = """
  CUDA_CALLABLE void isaacrl_fused(int, int, const unsigned long long*);
  isaacrl_fused(thread, worlds, (const unsigned long long*)arrays.data);
}}
#define LANES {lanes}
namespace isaacrl {{
{prelude}
}}
CUDA_CALLABLE void isaacrl_fused(int thread, int worlds, const unsigned long long* arrays) {{
  using namespace isaacrl;
#if defined(__CUDA_ARCH__)
  int world = thread / LANES;
  extern __shared__ __align__(16) char isaacrl_scratch[];  // as much as the kernel's tile
  char* S = isaacrl_scratch + (threadIdx.x / LANES) * {scratch};
  if (world >= worlds) return;
#else
  int world = thread;
  alignas(16) char S[{scratch} + 16];
#endif
{body}
}}
inline CUDA_CALLABLE void isaacrl_end() {{
"""


class Kernel:
    """One launch over all worlds."""

    def __init__(self, text: Text, num_worlds: int, device: str, moving: dict[int, tuple[int, int]]):
        """moving: storage -> (elements of its first axis, bytes from one to the next)."""
        self.num_worlds, self.device = num_worlds, device
        self.on_gpu = device != "cpu"
        self.lanes, self.block = text.lanes, block_of(text)
        self.kernel = build(text)
        self.launcher = Launcher(device, use_graph=False)
        self.memories = [s.memory for s in text.stores]
        with self.launcher.stream():
            first = torch.tensor([m.data_ptr() for m in self.memories], dtype=torch.int64)
            step = torch.tensor([moving.get(m._cdata, (1, 0))[1] for m in self.memories], dtype=torch.int64)
            count = max(moving.get(m._cdata, (1, 0))[0] for m in self.memories)
            # Addresses of the arrays, for every index of what moves.
            self._addresses = (first + torch.arange(count)[:, None] * step).to(device)
            self.arrays = [wp.from_torch(row) for row in self._addresses]
            wp.load_module(self.kernel.module, device=device, block_dim=self.block if self.on_gpu else 1)

    def __call__(self, index: int = 0) -> None:
        block = self.block if self.on_gpu else 1
        threads = -(-self.num_worlds * self.lanes // block) * block if self.on_gpu else self.num_worlds
        with self.launcher.stream():
            inputs = [self.num_worlds, self.arrays[min(index, len(self.arrays) - 1)]]
            wp.launch(self.kernel, dim=threads, inputs=inputs, device=self.device, block_dim=block)


def scratch_of(text: Text) -> int:
    """Bytes of scratch memory a world."""
    return -(-max(text.scratch, 16) // 16) * 16


def block_of(text: Text) -> int:
    """Threads of a block: as many worlds as its scratch memory has room for."""
    block = BLOCK
    while block > 32 and scratch_of(text) * (block // text.lanes) > SHARED:
        block //= 2
    return block


def build(text: Text) -> Any:
    """The Warp kernel (worlds, arrays) of a text; on a GPU it takes `text.lanes` threads a world."""
    prelude = (importlib.resources.files("isaacrl.fuse") / "prelude.h").read_text()
    scratch, block = scratch_of(text), block_of(text)
    snippet = _SNIPPET.format(prelude=prelude, body=text.source, scratch=scratch, lanes=text.lanes)

    @wp.func_native(snippet)
    def run_world(thread: int, worlds: int, arrays: wp.array[wp.int64]): ...  # pyright: ignore[reportInvalidTypeForm]

    words = wp.constant(scratch * (block // text.lanes) // 4)
    options = {"fast_math": False, "block_dim": block, "max_unroll": 0}

    @wp.kernel(enable_backward=False, module="unique", module_options=options, grid_stride=False)
    def fused(worlds: int, arrays: wp.array[wp.int64]):  # pyright: ignore[reportInvalidTypeForm]
        memory = wp.tile_empty(shape=words, dtype=wp.float32, storage="shared")  # noqa: F841  the worlds' scratch
        run_world(wp.tid(), worlds, arrays)

    return fused
