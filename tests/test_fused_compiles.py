"""The kernel compiles for a GPU, on machines without one too: Warp brings the compiler."""

import sys

import pytest
import robot_states
import warp as wp
from fused_models import SMALL, small

import isaacrl.sim.streams  # noqa: F401  starts Warp quietly
from isaacrl.sim.capacity import contacts_of
from isaacrl.sim.fused import kernel, layout, tables
from isaacrl.sim.warp_engine import FAST_CONTACTS, lanes_of, warps_of


@pytest.mark.skipif(sys.platform != "linux", reason="Warp compiles for GPUs on Linux and Windows")
@pytest.mark.parametrize("name", ["cartpole", "franka", "go2", "terrain, pyramidal", "boxes, pyramidal"])
def test_the_kernel_compiles_for_a_gpu(name, tmp_path):
    if name in SMALL:
        model, law = small(name)
    else:
        scene = robot_states.scene(name)
        model, law = scene.model, scene.actuation
    t = tables.make_tables(
        model,
        law,
        lanes=lanes_of(model),
        nconmax=contacts_of(model),
        tolerance=1e-6,
        fast_contacts=FAST_CONTACTS,
    )
    plan = layout.plan(t.sizes, lanes_of(model), warps_of(model))
    assert plan
    t.sizes["LANES"], t.sizes["NFAST"] = plan.lanes, plan.fast
    k = kernel.build(t, block=plan.block, resident=plan.resident, scratch=plan.scratch)
    wp.compile_aot_module(k.module, arch=90, module_dir=tmp_path, use_ptx=False)
    assert list(tmp_path.glob("*.cubin"))
