"""Engine `warp` over many steps, beside plain C MuJoCo from the same states under the same controls.

Controls are drawn anew in every step, over their whole range; robots fall, lie and flail. Contact dynamics is chaotic:
float32 and float64 part company after a hundred steps (humanoid) to some hundreds (go2). So the first steps are
compared state by state. Later it is what the two still have in common: means over the worlds of the height of the base,
the kinetic energy and the number of contacts, each averaged over the last three quarters of the rollout.

Sampling error: worlds are independent of each other, and both sides have the same ones, so two means differ by the mean
of E paired differences, whose standard error is their standard deviation / sqrt(E).
"""

import os

import mujoco
import numpy as np
import pytest
import torch
from robot_states import GPU, build, control, put, random_states, scene

FULL = bool(os.environ.get("ISAACRL_FULL_TESTS"))
LONG = (64, 1000)  # worlds, steps: then a standard error is 0.2% to 0.9% of its mean
SIZES = [pytest.param("cpu", LONG if FULL else (8, 60), id="cpu"), pytest.param("cuda", LONG, id="cuda", marks=GPU)]

# Relative errors of the first steps as in test_agreement.py: median and upper quartile over the worlds, growing with
# the steps as (1 + k / 3). The humanoid's light arms hang on a heavy trunk. Measured on a CPU: half of these or less.
FIRST = 10
AT_FIRST = {"qpos": (2e-7, 4e-7), "qvel": (1.5e-6, 3e-6)}
AMPLIFIED = {"ant": 1.0, "go2": 1.0, "humanoid": 5.0}

# Of 2.5e6 sound comparisons of two means one is as far off; SAME is what float32 may add while the states are the same.
STANDARD_ERRORS, SAME = 5.0, 1e-3


def controls(last, steps):
    """Controls [T, E, nu], uniform over the range that `random_states` has drawn the controls last [E, nu] from."""
    low, high = last.amin(dim=0), last.amax(dim=0)
    return low + (high - low) * torch.rand(steps, *last.shape, generator=torch.Generator().manual_seed(0))


def by_mujoco(s, qpos, qvel, targets):
    """qpos [T, E, nq] and qvel [T, E, nv] after each mj_step, and ncon [T, E], contacts of the state before it."""
    (steps, worlds), m = targets.shape[:2], s.model
    out = {"qpos": np.zeros((steps, worlds, m.nq)), "qvel": np.zeros((steps, worlds, m.nv))}
    out["ncon"] = np.zeros((steps, worlds))
    for i in range(worlds):
        data = mujoco.MjData(m)
        data.qpos[:], data.qvel[:] = qpos[i], qvel[i]
        for k, target in enumerate(targets[:, i].double().numpy()):
            data.ctrl[:] = control(s.actuation, data, target)
            mujoco.mj_step(m, data)
            for name, rows in out.items():
                rows[k, i] = getattr(data, name)
        assert not any(w.number for w in data.warning)
    return out


def by_warp(s, qpos, qvel, targets, device):
    """The same of engine warp. No world may fail, or have more contacts than there is room for."""
    engine = build(s, targets.shape[1], "warp", device)
    fields = {name: engine.field(name) for name in ("qpos", "qvel", "ncon")}
    put(engine, qpos, qvel)
    steps, failed = [], torch.zeros_like(engine.nonfinite)
    for target in targets.to(engine.device):
        engine.step(1, target)
        failed |= engine.nonfinite
        steps.append({name: field.clone() for name, field in fields.items()})
    assert not failed.any() and not engine.overflow.any()
    return {name: torch.stack([x[name] for x in steps]).double().cpu().numpy() for name in fields}


def disagreement(name, ours, theirs):
    """What exceeds the tolerance in the first steps, and the largest share of it."""
    bad, most = [], 0.0
    for f, tolerance in AT_FIRST.items():
        scale = np.maximum(np.abs(theirs[f]).max(axis=2), 1.0)
        error = np.abs(ours[f] - theirs[f]).max(axis=2) / scale  # [T, E]
        for k in range(FIRST):
            for quantile, x in zip((0.5, 0.75), tolerance):
                found, allowed = np.quantile(error[k], quantile), x * (1 + (k + 1) / 3) * AMPLIFIED[name]
                most = max(most, found / allowed)
                if not found <= allowed:
                    bad.append(f"{f} in step {k + 1}: {found:.0e} > {allowed:.0e}")
    return bad, most


def averages(model, rollout):
    """Of each world [E] over the last three quarters: height of the base [m], kinetic energy [J], contacts."""
    data, momentum = mujoco.MjData(model), np.zeros(model.nv)
    steps, worlds = rollout["ncon"].shape
    first = steps // 4
    sampled = range(first, steps, 10)
    energy = np.zeros((len(sampled), worlds))
    for a, k in enumerate(sampled):
        for i in range(worlds):
            data.qpos[:], data.qvel[:] = rollout["qpos"][k, i], rollout["qvel"][k, i]
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_makeM(model, data)
            mujoco.mj_mulM(model, data, momentum, data.qvel)
            energy[a, i] = 0.5 * momentum @ data.qvel
    means = {
        "base height": rollout["qpos"][first:, :, 2],
        "kinetic energy": energy,
        "contacts": rollout["ncon"][first:],
    }
    return {name: x.mean(axis=0) for name, x in means.items()}


def apart(ours, theirs):
    """(a line, what is farther apart than sampling error explains) of the averages."""
    lines, bad = [], []
    for name, a in theirs.items():
        difference = ours[name] - a
        mean, error = difference.mean(), difference.std(ddof=1) / np.sqrt(len(a))
        lines.append(f"{name} {a.mean():.4g} and {a.mean() + mean:.4g}, standard error {error:.1g}")
        if not abs(mean) <= STANDARD_ERRORS * error + SAME * abs(a.mean()):
            bad.append(name)
    return "; ".join(lines), bad


@pytest.mark.parametrize("device, size", SIZES)
@pytest.mark.parametrize("name", AMPLIFIED)
def test_rollouts_are_those_of_mujoco(name, device, size):
    s, (worlds, steps) = scene(name), size
    qpos, qvel, last = random_states(s.model, s.actuation, worlds, seed=5)
    targets = controls(last, steps)
    theirs = by_mujoco(s, qpos, qvel, targets)
    ours = by_warp(s, qpos, qvel, targets, device)
    bad, most = disagreement(name, ours, theirs)
    print(f"{name}: first {FIRST} steps: {most:.0%} of the tolerance")
    assert not bad, bad
    line, bad = apart(averages(s.model, ours), averages(s.model, theirs))
    print(f"{name}: {line}")
    assert not bad, line


def test_other_physics_would_be_found():
    """C MuJoCo against itself: the first steps tell a tenth less friction, which averages in the long run do not.

    These tell gross errors only: a tenth less gravity changes the number of contacts by 8 standard errors (ant), 8
    (humanoid) and 21 (go2); with half the friction no average of the ant's differs by 5.
    """
    s, worlds = scene("ant"), 64 if FULL else 16
    qpos, qvel, last = random_states(s.model, s.actuation, worlds, seed=5)
    targets = controls(last, 1000 if FULL else FIRST)
    theirs = by_mujoco(s, qpos, qvel, targets)
    friction = s.model.geom_friction.copy()
    s.model.geom_friction[:] *= 0.9
    assert disagreement("ant", by_mujoco(s, qpos, qvel, targets), theirs)[0]
    s.model.geom_friction[:] = friction
    if FULL:
        expected = averages(s.model, theirs)
        s.model.opt.gravity[:] *= 0.9
        assert apart(averages(s.model, by_mujoco(s, qpos, qvel, targets)), expected)[1] == ["contacts"]
