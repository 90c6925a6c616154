"""The kernel compiles for a GPU, on machines without one too: Warp brings the compiler."""

import sys

import pytest
import robot_states
import warp as wp

import isaacrl.sim.streams  # noqa: F401  starts Warp quietly
from isaacrl.sim.capacity import contacts_of
from isaacrl.sim.fused import kernel, layout, tables
from isaacrl.sim.warp_engine import FAST_CONTACTS, lanes_of, warps_of


@pytest.mark.skipif(sys.platform != "linux", reason="Warp compiles for GPUs on Linux and Windows")
@pytest.mark.parametrize("name", ["cartpole", "franka", "go2"])
def test_the_kernel_compiles_for_a_gpu(name, tmp_path):
    scene = robot_states.scene(name)
    t = tables.make_tables(
        scene.model,
        scene.actuation,
        lanes=lanes_of(scene.model),
        nconmax=contacts_of(scene.model),
        tolerance=1e-6,
        fast_contacts=FAST_CONTACTS,
    )
    plan = layout.plan(t.sizes, lanes_of(scene.model), warps_of(scene.model))
    assert plan
    t.sizes["LANES"], t.sizes["NFAST"] = plan.lanes, plan.fast
    k = kernel.build(t, block=plan.block, resident=plan.resident, scratch=plan.scratch)
    wp.compile_aot_module(k.module, arch=90, module_dir=tmp_path, use_ptx=False)
    assert list(tmp_path.glob("*.cubin"))
