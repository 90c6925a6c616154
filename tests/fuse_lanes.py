"""Kernels of `isaacrl.fuse` lane by lane on a CPU, in the text that a GPU gets.

A lane's turn lasts to its next barrier. Lanes that read what others write without a barrier between give results that
depend on whose turn comes first; scratch memory is full of NaN at the start, and guarded on both sides.
"""

import ctypes
import importlib.resources
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from isaacrl.fuse import kernel, schedule

ORDERS = (0, 1, 2)  # forwards, backwards, and one that is random between any two barriers
GUARD, STACK = 4096, 1 << 19
_stacks = np.empty(32 * STACK, np.uint8)
NEEDED = pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
_TEXT = """
#include <math.h>
#include "fused_lanes.h"
static void __syncwarp() {{ meet(1); }}
template <class T>
static T __shfl_xor_sync(unsigned, T x, int mask) {{
  return exchange(x, lane ^ mask, 2);
}}
#define LANES {lanes}
namespace isaacrl {{
{prelude}
}}
static const unsigned long long* arrays;
static int world, worlds;
static char* S;
static void one_lane() {{
  using namespace isaacrl;
{body}
  ::meet(0);
}}
// As run_lanes, in any order.
static bool run_in_turn(int order, char* stacks) {{
  unsigned bits = order + 7 * world;
  int turn[LANES];
  lanes = LANES, first_thread = world * LANES % 32;
  for (int k = 0; k < LANES; k++) {{
    turn[k] = order == 1 ? LANES - 1 - k : k;
    getcontext(&fiber[k]);
    fiber[k].uc_stack.ss_sp = stacks + k * {stack}, fiber[k].uc_stack.ss_size = {stack}, fiber[k].uc_link = &back;
    makecontext(&fiber[k], one_lane, 0);
  }}
  do {{
    for (int k = LANES - 1; k > 0 && order > 1; k--) {{
      bits = bits * 1664525u + 1013904223u;
      std::swap(turn[k], turn[(bits >> 16) % (k + 1)]);
    }}
    for (int k : turn) {{
      lane = k, threadIdx.x = first_thread + k;
      swapcontext(&back, &fiber[k]);
    }}
    for (int k = 1; k < LANES; k++) {{
      if (barrier_of[k] != barrier_of[0]) return false;
    }}
  }} while (barrier_of[0]);
  return true;
}}
extern "C" int run(int count, const unsigned long long* addresses, int order, char* stacks) {{
  alignas(64) static char memory[{guard} + {scratch} + {guard}];
  arrays = addresses, worlds = count, S = memory + {guard};
  for (world = 0; world < count; world++) {{
    memset(memory, 0xff, sizeof(memory));
    if (!run_in_turn(order, stacks)) return 1;
    for (int k = 0; k < {guard}; k++) {{
      if (memory[k] != -1 || memory[{guard} + {scratch} + k] != -1) return 2;
    }}
  }}
  return 0;
}}
"""


class Disturbed(AssertionError):
    """What a kernel computes depends on the order of its lanes."""


class LaneKernel:
    """As `kernel.Kernel`, on a CPU: every call is carried out in every order of lanes, from the same memory."""

    folder: Path  # of libraries
    edit = staticmethod(lambda source: source)
    built = 0

    def __init__(self, text, num_worlds, device, moving):
        prelude = (importlib.resources.files("isaacrl.fuse") / "prelude.h").read_text()
        scratch, body = kernel.scratch_of(text), self.edit(text.source)
        source = _TEXT.format(lanes=text.lanes, prelude=prelude, body=body, scratch=scratch, guard=GUARD, stack=STACK)
        type(self).built += 1
        file = self.folder / f"{self.built}.cpp"
        file.write_text(source)
        options = ["-std=c++17", "-O0", "-w", "-shared", "-fPIC", f"-I{Path(__file__).parent}"]
        subprocess.run(["g++", *options, str(file), "-o", str(file.with_suffix(".so"))], check=True)
        self.library = ctypes.CDLL(str(file.with_suffix(".so")))
        self.num_worlds, self.memories = num_worlds, [s.memory for s in text.stores]
        self.moving = [moving.get(m._cdata, (1, 0))[1] for m in self.memories]

    def __call__(self, index=0):
        addresses = [m.data_ptr() + index * step for m, step in zip(self.memories, self.moving)]
        table = np.array(addresses, np.uint64)
        bytes_of = [torch.empty(0, dtype=torch.uint8).set_(m) for m in self.memories]
        before, found = [b.clone() for b in bytes_of], []
        for order in ORDERS:
            for b, old in zip(bytes_of, before):
                b.copy_(old)
            pointers = [x.ctypes.data_as(ctypes.c_void_p) for x in (table, _stacks)]
            wrong = self.library.run(self.num_worlds, pointers[0], order, pointers[1])
            assert not wrong, ("", "lanes part at a barrier", "a lane writes beyond scratch memory")[wrong]
            found.append([b.clone() for b in bytes_of])
        if not all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other)):
            raise Disturbed("the order of lanes matters")


def use(monkeypatch, folder, lanes, edit=lambda source: source):
    """From now on compiled functions run by so many lanes, their text changed by `edit`."""
    monkeypatch.setattr(kernel, "Kernel", LaneKernel)
    monkeypatch.setattr(schedule, "LANES", (lanes,))
    monkeypatch.setattr(LaneKernel, "folder", folder, raising=False)
    monkeypatch.setattr(LaneKernel, "edit", staticmethod(edit))
