"""Engine `warp` given impossible numbers, in every array that it reads: each world ends finite or is counted as failed,
the others never notice, and the kernel always ends. In a process of its own, which a hang cannot keep from being ended.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import host, make, put

from isaacrl.sim.engine import PD, Actuation

OPTIONS = {"pyramidal": "", "elliptic": 'cone="elliptic" impratio="10" integrator="implicitfast"'}
PATIENCE = 120  # seconds; 10 are enough
# Nearly massless between massive bodies; shapes of every kind; a mocap body within reach.
MODEL = """<mujoco><option timestep="0.004" {}/>
<asset><hfield name="f" nrow="9" ncol="7" size=".6 .8 .1 .1" elevation="RANDOM"/></asset>
<worldbody><geom type="plane" size="0 0 1"/>
<geom type="hfield" hfield="f" pos="0 0 -.05" contype="2" conaffinity="0"/>
<geom type="box" size=".1 .1 .06" pos=".2 .1 0" contype="2" conaffinity="3"/>
<body mocap="true" pos=".3 0 .3"><geom size=".05" contype="2" conaffinity="3"/></body>
<body pos="0 0 .35"><freejoint/>
  <geom type="capsule" size=".08 .1" euler="0 90 0" mass="2" contype="2" conaffinity="3" condim="4"/>
  <geom type="cylinder" size=".05 .05" pos="0 0 .1" contype="0" conaffinity="1"/>
  <geom type="ellipsoid" size=".05 .06 .07" pos="0 .1 .1" contype="0" conaffinity="1"/>
  <body pos=".15 0 0"><joint name="a" axis="0 1 0" range="-40 40" limited="true" frictionloss=".1"/>
    <inertial pos="0 0 0" mass="1e-9" diaginertia="1e-13 1e-13 1e-13"/>
    <body pos="0 0 -.1"><joint name="b" axis="0 1 0"/>
      <geom type="capsule" size=".04" fromto="0 0 0 0 .02 -.15" mass=".3" contype="2" conaffinity="3"/></body></body>
  <body pos="-.15 0 0"><joint name="c" axis="0 1 0" damping=".2" stiffness="1" armature=".001"/>
    <geom type="box" size=".04 .05 .06" pos="0 0 -.2" mass=".3" condim="3" contype="0" conaffinity="1"/>
    <body pos="0 0 -.2"><joint type="ball" range="0 30" limited="true"/>
      <geom type="capsule" size=".02" fromto="0 0 0 .1 0 -.02" contype="2" conaffinity="3"/></body></body></body>
</worldbody>
<actuator><motor joint="a" ctrlrange="-5 5"/><motor joint="b"/><position joint="c" kp="5" gear="2"/></actuator></mujoco>
""".replace("RANDOM", " ".join(f"{h:.2f}" for h in np.random.default_rng(0).random(63)))
# Elements of one world's array.
ELEMENTS = {
    "qpos": [0, 2, 3, 5, 7, 8, 9, 10],
    "qvel": [0, 4, 6, 7, 8, 9],
    "target": [0, 1, 2],
    "qfrc_applied": [0, 6],
    "xfrc_applied": [12, 16, 31],
    "mocap_pos": [0],
    "mocap_quat": [1],
}
NOT_NUMBERS = (np.nan, np.inf, -np.inf)
VALUES = (*NOT_NUMBERS, 3e38, 1e20, -1e20, 1e10, 1e7, -1e6, -1e4)
QUATS = {"qpos": (slice(3, 7), slice(10, 14)), "mocap_quat": (slice(0, 4),)}  # and all of one 0
MODEL_FIELDS = [
    *("body_mass", "body_inertia", "body_ipos", "body_pos", "body_quat", "qpos0", "jnt_range", "jnt_stiffness"),
    *("dof_damping", "dof_armature", "dof_frictionloss", "geom_friction", "opt.gravity"),
    *("actuator_gainprm", "actuator_biasprm", "actuator_forcerange"),
]
MODEL_VALUES = (*NOT_NUMBERS[:2], 0.0, -1.0, 1e20, -1e20, 1e38)
STATES = [(f, k, x) for f, places in ELEMENTS.items() for k in places for x in VALUES]
STATES += [(f, k, 0.0) for f, places in QUATS.items() for k in places]
MODELS = [(f, x) for f in MODEL_FIELDS for x in MODEL_VALUES]
N = 2 * (len(STATES) + len(MODELS))  # every other world is a good one
OUTPUTS = ("qpos", "qvel", "qacc_warmstart", "qacc", "ncon", "nefc", "solver_niter", "xpos", "xquat", "cvel")


def law():
    """One joint by the explicit PD law and late; a motor; a servo of MuJoCo's."""
    out = Actuation.direct(3)
    out.law[0], out.kp[0], out.kd[0], out.effort_limit[0], out.delay[0] = PD, 20.0, 0.5, 4.0, 2
    out.qpos_adr[:], out.qvel_adr[:] = [7, 8, 9], [6, 7, 8]
    return out


def run(option, bad):
    """(fields, ever failed, failed at last) after a few steps, and a few more with good targets."""
    engine, rng = make(MODEL.format(OPTIONS[option]), N, ("warp", "cpu"), MODEL_FIELDS, law()), np.random.default_rng(0)
    for name in OUTPUTS:
        engine.field(name)
    state = {name: host(engine.field(name)) for name in ELEMENTS if name != "target"}
    state["qpos"][:, :10] += rng.uniform(-0.1, 0.1, (N, 10)) - 0.1 * (np.arange(10) == 2)
    state["qvel"] += rng.normal(size=state["qvel"].shape)
    good = rng.uniform(-1.0, 1.0, (N, 3))
    state["target"] = good.copy()
    if bad:
        for i, (name, place, value) in enumerate(STATES):
            state[name][2 * i].reshape(-1)[place] = value
        for i, (name, value) in enumerate(MODELS):
            engine.model_field(name)[2 * (len(STATES) + i)] = value
    target = torch.as_tensor(state.pop("target"), dtype=torch.float32)
    put(engine, False, **state)
    failed = np.zeros(N, bool)
    for steps in (1, 2, 4):
        engine.step(steps, target)
        failed |= host(engine.nonfinite) > 0
    engine.step(2, torch.as_tensor(good, dtype=torch.float32))
    engine.step(2, torch.as_tensor(good, dtype=torch.float32))
    return {name: host(engine.field(name)) for name in OUTPUTS}, failed, host(engine.nonfinite) > 0


def check(option):
    expected, failed, _ = run(option, False)
    assert not failed.any()
    found, failed, last = run(option, True)
    assert (found["solver_niter"] <= 100).all()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name][1::2], values[1::2], err_msg=name)
    assert not failed[1::2].any()
    for i, case in enumerate(STATES):
        world, mocap = 2 * i, case[0].startswith("mocap")
        assert not (failed[world] and last[world]), f"{case}: a world that failed goes on from the default state"
        if not np.isfinite(case[2]):
            assert failed[world] or mocap, f"{case} is not counted"
        for name, values in found.items():  # a mocap body is where it was put
            assert np.isfinite(values[world]).all() or (mocap and name in ("xpos", "xquat", "cvel")), (case, name)
    for i, case in enumerate(MODELS, len(STATES)):
        if case[0] != "qpos0":  # where it starts anew
            assert np.isfinite(found["qpos"][2 * i]).all() and np.isfinite(found["qvel"][2 * i]).all(), case
    print(f"{option}: of {len(STATES) + len(MODELS)} bad worlds {failed.sum()} were counted")


@pytest.mark.parametrize("option", OPTIONS)
def test_impossible_numbers_are_counted_or_harmless_and_the_kernel_ends(option):
    command = [sys.executable, __file__, option]
    out = subprocess.run(command, timeout=PATIENCE, capture_output=True, text=True, cwd=Path(__file__).parent)
    print(out.stdout)
    assert out.returncode == 0, out.stderr[-2000:]


if __name__ == "__main__":
    check(sys.argv[1])
