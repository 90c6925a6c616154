"""The kernel's GPU code, lane by lane, on a CPU: what it computes may not depend on which lane goes first.

A lane's turn lasts to its next barrier. Lanes that read what others write without a barrier between, or that write
different values to one place, give results that depend on the order; scratch memory is full of NaN at the start.
"""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import fused_kernel as fused
import numpy as np
import pytest
import robot_states
from fused_models import SMALL, small

from isaacrl.sim.fused import kernel, tables
from isaacrl.sim.warp_engine import FAST_CONTACTS, lanes_of

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="no g++")

ORDERS = (0, 1, 2, 3)  # see run_lanes
_FOLDER = Path(__file__).parent
_START = """
#include "fused_lanes.h"
#define REAL double
namespace isaacrl {
"""
_END = """
static World world;
static Scratch* scratch;
static int substeps, round;
static void one_lane() {
  step_world(world, *scratch, substeps, round);
  ::meet(0);
}
extern "C" int run(int worlds, int steps, const real* params, const int* tables, const unsigned long long* arrays,
                   int order, int in_rounds) {
  const int guard = 4096;
  alignas(64) static char memory[guard + sizeof(Scratch) + guard];
  scratch = (Scratch*)(memory + guard), substeps = steps;
  for (int turn = 0; turn < (in_rounds ? steps : 1) * worlds; turn++) {
    int id = turn % worlds;
    round = in_rounds ? turn / worlds : ALL_ROUNDS;
    memset(memory, 0xff, sizeof(memory));
    world = World{id, params, tables, arrays};
    if (!run_lanes(one_lane, LANES, id * LANES % 32, order < 2 ? order : order + 2 * id)) return 1;
    for (int k = 0; k < guard; k++) {
      if (memory[k] != -1 || memory[guard + sizeof(Scratch) + k] != -1) return 2;
    }
  }
  return 0;
}
}
"""


def run(folder, model, actuation, state, lanes, order, steps=2, edit=None, in_rounds=False):
    """As `fused_kernel.run` in float64, by `lanes` lanes a world."""
    t = tables.make_tables(
        fused.tight(model),
        actuation,
        lanes=lanes,
        nconmax=40,
        tolerance=fused.LEAST_TOLERANCE[True],
        fast_contacts=FAST_CONTACTS,
    )
    text = re.sub(
        r"FN real inverse\(real x\) \{  //.*?\n\}",
        "FN real inverse(real x) { return 1 / x; }",
        kernel.source(t, edit),
        flags=re.S,
    )
    text = re.sub(r"asm volatile\(.ld.global.*", "unused = *(volatile const unsigned*)p;", text)
    text = re.sub(r"\b(sqrt|rint|fabs|fmin|fmax)f\(", r"std::\1(", text)
    library = folder / f"{lanes}.so"
    if not library.exists():
        (folder / "kernel.cpp").write_text(_START + text + _END)
        options = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{_FOLDER}"]
        subprocess.run(["g++", *options, str(folder / "kernel.cpp"), "-o", str(library)], check=True)
    worlds = len(state["qpos"])
    live = {k: np.array(v, float) for k, v in state.items()}
    live |= {"warm": np.zeros((worlds, model.nv)), "qacc": np.zeros((worlds, model.nv)), "time": np.zeros((worlds, 1))}
    live |= {k: np.zeros((worlds, model.nbody, n)) for k, n in (("xpos", 3), ("cvel", 6), ("subtree_com", 3))}
    live |= {k: np.zeros(worlds, np.int32) for k in ("ncon", "nefc")}
    live |= {k: np.zeros(worlds, dtype) for k, dtype in fused.FLAGS.items()}
    live |= {"rows": np.full((worlds, t.row_columns), np.nan), "heights": t.heights.astype(float)}
    live["progress"] = np.zeros(worlds + 1, np.int32)
    addresses = {k: v.ctypes.data for k, v in live.items() if v.size}
    addresses |= {"num_worlds": worlds, "any_position": 1, "any_velocity": 1}
    table = np.array([addresses.get(k, 0) for k in t.arrays()], np.uint64)
    pointers = [x.ctypes.data_as(ctypes.c_void_p) for x in (*t.blobs(np.float64), table)]
    wrong = ctypes.CDLL(str(library)).run(worlds, steps, *pointers, order, int(in_rounds))
    assert not wrong, ("", "lanes part at a barrier", "somebody writes beyond scratch memory")[wrong]
    assert not live["progress"].any()
    return live


def cases():
    for name in (
        "joints",
        "actuators",
        "scene, elliptic",
        "shapes, implicitfast",
        "terrain, pyramidal",
        "boxes, pyramidal",
        "big, 33",
        "big, 64",
    ):
        yield name, (4, 8, 32)[len(name) % 3] if "big" not in name else 32
    yield from ((name, 0) for name in ("go2", "g1", "ant"))


@pytest.mark.parametrize(("name", "lanes"), list(cases()))
def test_lanes_in_any_order_do_what_loops_do(name, lanes, tmp_path):
    scene = None if name in SMALL else robot_states.scene(name)
    model, law = (scene.model, scene.actuation) if scene else small(name)
    state = fused.with_applied_forces(model, fused.states(model, 8))
    theirs = fused.run(model, law, state, steps=2, nconmax=40)
    assert theirs["ncon"].max() > 2 or name == "actuators"
    for order in ORDERS:
        ours = run(tmp_path, model, law, state, lanes or lanes_of(model), order, in_rounds=order % 2 == 1)
        for k in (
            "qpos",
            "qvel",
            "warm",
            "qacc",
            "xpos",
            "cvel",
            "subtree_com",
            "ncon",
            "nefc",
            "nonfinite",
            "overflow",
        ):
            np.testing.assert_allclose(ours[k], theirs[k], rtol=1e-6, atol=1e-6, err_msg=f"{k}, order {order}")


def test_worlds_that_are_no_numbers_end_in_all_lanes(tmp_path):
    model, law = small("joints")
    state = fused.states(model, 8)
    for i, (name, value) in enumerate([("qpos", np.nan), ("qpos", np.inf), ("qvel", np.nan), ("qvel", 1e200)]):
        state[name][i, -1 - i] = value
    for lanes in (8, 32):
        ours = run(tmp_path, model, law, state, lanes, 0, in_rounds=lanes == 8)
        np.testing.assert_array_equal(ours["nonfinite"], [1] * 4 + [0] * 4)
        assert all(np.isfinite(ours[k]).all() for k in ("qpos", "qvel", "xpos"))


_VELOCITIES = "    {}(i, NV) store_spatial(S.chain[i], S.qvel[i] * axis_of(S, i));"
_VECTOR = "      {}(i, NV) S.vector[i] = x[i];"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (_VECTOR.format("EACH"), _VECTOR.format("MAP")),
        (_VELOCITIES.format("MAP"), _VELOCITIES.format("EACH")),
        ("column[b * MATRIX] = x[b];\n  }\n  sync();", "column[b * MATRIX] = x[b];\n  }"),
    ],
)
def test_lanes_that_disturb_each_other_would_be_found(old, new, tmp_path):
    model, law = small("joints")
    state = fused.with_applied_forces(model, fused.states(model, 8))
    found = [run(tmp_path, model, law, state, 32, order, edit=(old, new))["qpos"] for order in ORDERS]
    assert not all(np.array_equal(found[0], x) for x in found)
