"""Laws of mechanics, in closed form, for every engine.

Where C MuJoCo itself departs from continuous mechanics, the law tested is that of its discretization: Euler's method
with new velocities and implicit damping (an error of the order of the time step), and soft constraints (creep and depth
follow from solref and solimp). Tolerances add that error to the rounding of the engine's numbers.
"""

import functools

import mujoco
import numpy as np
import pytest
import torch
from engines import ENGINES, host, make, put, roundoff

G = 9.81
DT = 0.002
# Soft constraints: impedance D whatever the depth, time constant TC, critical damping. A row of inverse inertia w has
# R = w (1 - D) / D, the reference acceleration -b v - k D r with b and k as follows, and at rest the force
# (b v + k D r) / R.
D, TC = 0.9, 0.02
SOLIMP = f"{D} {D} 0.001"
B, K = 2 / (D * TC), 1 / (D * TC) ** 2
every_engine = pytest.mark.parametrize("which", ENGINES)


def record(engine, steps, every, fields=("qpos", "qvel"), target=None):
    """time [T] and fields [T, E, ...], the start included, one sample in `every` steps."""
    target = engine.field("qpos").new_zeros(engine.num_envs, engine.model.nu) if target is None else target
    out = {f: [host(engine.field(f))] for f in fields}
    for _ in range(steps // every):
        engine.step(every, target)
        for f in fields:
            out[f].append(host(engine.field(f)))
    assert not engine.nonfinite.any() and not engine.overflow.any()
    return {"time": np.arange(steps // every + 1) * every * engine.model.opt.timestep} | {
        f: np.array(v) for f, v in out.items()
    }


# --- joints ----------------------------------------------------------------------------------------------------------


def double_pendulum(length):
    """Two equal rods, the mass of each (1 kg) at its end, with inertia 0.1 m l^2 about it."""
    inertial = f'<inertial pos="0 0 -{length}" mass="1" diaginertia="{3 * (f"{0.1 * length**2} ")}"/>'
    return f"""<body><joint name="upper{length}" axis="0 1 0"/>{inertial}
        <body pos="0 0 -{length}"><joint name="lower{length}" axis="0 1 0"/>{inertial}</body></body>"""


SHORT, LONG = 0.25, 1.0
ARM, INERTIA = 0.5, 0.03  # pendulum: distance of the centre of mass [m], inertia about it [kg m^2]; 2 kg
MASS, STIFFNESS, DAMPING = 1.5, 60.0, 2.0  # oscillator
LOSS, SLED = 3.0, 2.0  # friction loss [N] and mass [kg]
JOINTS = f"""<mujoco><option timestep="{DT}" integrator="Euler"/><worldbody>
<body><joint name="pendulum" axis="0 1 0"/><inertial pos="0 0 -{ARM}" mass="2" diaginertia=".02 {INERTIA} .04"/></body>
{double_pendulum(SHORT)}{double_pendulum(LONG)}
<body><joint name="oscillator" type="slide" axis="1 0 0" stiffness="{STIFFNESS}" damping="{DAMPING}"/>
  <inertial pos="0 0 0" mass="{MASS}" diaginertia=".1 .1 .1"/></body>
<body><joint name="sled" type="slide" axis="1 0 0" frictionloss="{LOSS}" solimpfriction="{SOLIMP}"/>
  <inertial pos="0 0 0" mass="{SLED}" diaginertia=".1 .1 .1"/></body>
<body><joint name="weight" type="slide" axis="0 0 1" limited="true" range="0 1" solimplimit="{SOLIMP}"/>
  <inertial pos="0 0 0" mass="4" diaginertia=".1 .1 .1"/></body>
</worldbody></mujoco>"""
AMPLITUDE = [0.02, 2.5]  # of the pendulum, one a world
PUSH = [0.5 * LOSS, 2.0 * LOSS]  # on the sled, one a world
EVERY = 5


@functools.cache
def joints(which):
    """Positions and velocities by joint, [T, 2], over two seconds; two worlds."""
    engine = make(JOINTS, 2, which)
    model, start, push = engine.model, np.zeros((2, engine.model.nq)), np.zeros((2, engine.model.nv))
    address = {model.joint(j).name: j for j in range(model.njnt)}  # of joints of one coordinate each
    start[:, address["pendulum"]], start[:, address["oscillator"]], push[:, address["sled"]] = AMPLITUDE, 0.1, PUSH
    for length in (SHORT, LONG):
        start[:, address[f"upper{length}"]], start[:, address[f"lower{length}"]] = 2.0, 1.0
    put(engine, qpos=start, qfrc_applied=push)
    out = record(engine, 1000, EVERY)
    return out["time"], {name: (out["qpos"][..., a], out["qvel"][..., a]) for name, a in address.items()}


@every_engine
def test_period_of_a_pendulum_is_the_elliptic_integral(which):
    """T = 2 pi / (w agm(1, cos(amplitude / 2))). Euler's method is the leapfrog here: relative error (w dt)^2 / 24."""
    time, series = joints(which)
    w = np.sqrt(2 * G * ARM / (INERTIA + 2 * ARM**2))
    for world, amplitude in enumerate(AMPLITUDE):
        angle = series["pendulum"][0][:, world]
        before = np.flatnonzero(angle[:-1] * angle[1:] < 0)[:2]
        crossing = [np.polyval(np.polyfit(angle[i - 1 : i + 3], time[i - 1 : i + 3], 3), 0.0) for i in before]
        a, b = 1.0, np.cos(amplitude / 2)
        for _ in range(6):
            a, b = (a + b) / 2, np.sqrt(a * b)
        error = 2 * (crossing[1] - crossing[0]) / (2 * np.pi / (w * a)) - 1
        assert abs(error) < (w * DT) ** 2 / 8 + 200 * roundoff(which)


def energies(length, series):
    """Kinetic and potential, of a double pendulum, [T], in units of m g l."""
    (q1, v1), (q2, v2) = series[f"upper{length}"], series[f"lower{length}"]
    q1, v1, q2, v2 = q1[:, 0], v1[:, 0], q1[:, 0] + q2[:, 0], v1[:, 0] + v2[:, 0]
    kinetic = (1.1 + 1) * v1**2 / 2 + 1.1 * v2**2 / 2 + v1 * v2 * np.cos(q1 - q2)
    return kinetic * length / G, -2 * np.cos(q1) - np.cos(q2)


@every_engine
def test_energy_of_a_double_pendulum_drifts_with_the_step_alone(which):
    """The drift is below the step, as an angle of the faster rod, times the greatest kinetic energy. A rod four times
    as long moves in the same way at half the speed: its step is half as large, and so is the drift, to first order."""
    time, series = joints(which)
    drift = []
    for length, until in ((SHORT, time <= time[-1] / 2), (LONG, time >= 0)):
        kinetic, potential = (e[until] for e in energies(length, series))
        fastest = np.abs(series[f"upper{length}"][1] + series[f"lower{length}"][1])[until].max()
        drift.append(np.abs(kinetic + potential - kinetic[0] - potential[0]).max())
        assert drift[-1] < DT * fastest * kinetic.max()
    assert drift[0] / drift[1] == pytest.approx(2, rel=0.05)


@every_engine
def test_spring_and_damper_decay(which):
    """The continuous solution up to the step; the discrete one, v' = (m v - h k x) / (m + h c), up to rounding."""
    time, series = joints(which)
    x, v = series["oscillator"]
    decay, w0 = DAMPING / (2 * MASS), np.sqrt(STIFFNESS / MASS)
    w = np.sqrt(w0**2 - decay**2)
    exact = 0.1 * np.exp(-decay * time) * (np.cos(w * time) + decay / w * np.sin(w * time))
    assert np.abs(x[:, 0] - exact).max() < 0.1 * w0 * DT
    faster = np.array([-DT * STIFFNESS, MASS]) / (MASS + DT * DAMPING)  # of (x, v)
    step = np.array([[1 + DT * faster[0], DT * faster[1]], faster])
    start = np.array([0.1, 0.0])
    discrete = np.array([np.linalg.matrix_power(step, EVERY * i) @ start for i in range(len(time))])
    assert np.abs(np.stack([x[:, 0], v[:, 0]], 1) - discrete).max() < 100 * roundoff(which)


@every_engine
def test_friction_loss_holds_below_its_limit_and_slips_above(which):
    """Below: creeps at F R / b. Above: the force left over accelerates."""
    time, series = joints(which)
    v = series["sled"][1][-1]
    creep = PUSH[0] / SLED * (1 - D) / D / B
    assert v[0] == pytest.approx(creep, rel=1e-4)
    assert v[1] == pytest.approx((PUSH[1] - LOSS) / SLED * time[-1], rel=1e-4)


@every_engine
def test_a_joint_limit_holds_a_weight(which):
    """At rest g = k D r D / (1 - D) at depth r."""
    _, series = joints(which)
    q, v = (x[-1] for x in series["weight"])
    depth = G * (1 - D) / (K * D**2)
    np.testing.assert_allclose(-q, depth, rtol=1e-4)
    np.testing.assert_allclose(v, 0, atol=1e-5)


# --- free bodies -----------------------------------------------------------------------------------------------------

BALL = '<geom type="sphere" size=".1" mass="{mass}" contype="1" conaffinity="1"/>'
FLIGHT = f"""<mujoco><option timestep="{DT}" gravity="0 0 0"/>
<default><geom contype="0" conaffinity="0"/></default><worldbody>
<body pos="0 0 0"><freejoint/>
  <inertial pos=".05 -.02 .1" mass="1.3" diaginertia=".02 .05 .06" euler="20 30 40"/></body>
<body pos="0 3 0"><freejoint/><geom type="box" size=".1 .2 .3" mass="2"/>
  <body pos="0 0 .3"><joint axis="0 1 0"/>
    <geom type="capsule" size=".05" fromto="0 0 0 0 0 .6" mass=".7"/></body></body>
<body pos="3 0 0"><freejoint/>{BALL.format(mass=1)}</body>
<body pos="3.5 .06 .03"><freejoint/>{BALL.format(mass=2)}</body>
</worldbody></mujoco>"""
TUMBLE = [0.4, 0.1, -0.2, 2.0, 3.0, -1.0, -0.3, 0.2, 0.1, 1.5, -2.0, 1.0, 4.0]
COLLIDE = [1.0, 0, 0, 3.0, 0, -5.0, -0.5, 0, 0, 0, 2.0, 1.0]


def momenta(model, qpos, qvel, bodies):
    """Linear and angular momentum about the origin of the trees that start with bodies, [T, 6]; C MuJoCo measures."""
    data, out = mujoco.MjData(model), []
    for q, v in zip(qpos, qvel):
        data.qpos, data.qvel = q, v
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_comVel(model, data)
        mujoco.mj_subtreeVel(model, data)
        p = model.body_subtreemass[bodies, None] * data.subtree_linvel[bodies]
        spin = data.subtree_angmom[bodies] + np.cross(data.subtree_com[bodies], p)
        out.append(np.concatenate([p.sum(0), spin.sum(0)]))
    return np.array(out)


@functools.cache
def flight(which):
    """Two seconds; the second world starts with half the velocities of the first."""
    engine = make(FLIGHT, 2, which)
    start = np.array(TUMBLE + COLLIDE)
    put(engine, qvel=np.stack([start, start / 2]))
    out = record(engine, 1000, 10)
    return engine.model, out["qpos"], out["qvel"]


@every_engine
@pytest.mark.parametrize("body", [1, 2])
def test_a_tumbling_body_keeps_its_momenta_but_for_the_step(which, body):
    """Half the velocity is the same motion in half as large a step: half the relative error."""
    model, qpos, qvel = flight(which)
    halfway = len(qpos) // 2 + 1
    error = []
    for world, until in ((0, halfway), (1, len(qpos))):
        p = momenta(model, qpos[:until, world], qvel[:until, world], [body])
        scale = np.repeat([np.linalg.norm(p[0, :3]), np.linalg.norm(p[0, 3:])], 3)
        error.append(np.abs((p - p[0]) / scale).max())
    assert error[0] < 0.05 and error[0] / error[1] == pytest.approx(2, rel=0.1)


@every_engine
def test_two_balls_that_collide_keep_their_momenta_to_rounding(which):
    """Off centre, spinning, with friction: forces are opposite and act in one point, before the positions move."""
    model, qpos, qvel = flight(which)
    for world in range(2):
        p = momenta(model, qpos[:, world], qvel[:, world], [4, 5])
        each = momenta(model, qpos[:, world], qvel[:, world], [4])
        assert np.abs(each - each[0]).max(axis=0).max() > 0.5  # the collision was one
        assert np.abs(p - p[0]).max() < 1000 * roundoff(which)


# --- contacts --------------------------------------------------------------------------------------------------------

R, HALF = 0.1, 0.03  # radius of the balls, half the height of the box [m]
MARGIN, GAP = 0.02, 0.005  # of the upper ball of the two
SIN, COS = 1 / np.sqrt(5), 2 / np.sqrt(5)  # of the slope
DOWN = np.array([COS, 0, -SIN])
MU = [1.2, 0.3]  # friction by world: holds and slips on the slope, whose tangent is 0.5
TORSION, ROLL, ROLL_DOWN = [0.02, 0.01], [0.2, 0.002], [0.2, 1e-5]  # friction by world [m]; ROLL_DOWN: on the slope
SPIN, SPEED = 30.0, 1.0
GROUND = f"""<mujoco><option timestep="{DT}" cone="{{cone}}" impratio="{{impratio}}"/>
<default><geom solimp="{SOLIMP}" condim="1" friction=".01 1e-6 1e-6" contype="2" conaffinity="2" mass="1"/></default>
<worldbody>
<geom type="plane" size="0 0 1"/>
<frame zaxis="1 0 2"><geom type="plane" size="0 0 1" contype="9" conaffinity="9"/>
  <body name="box" pos="0 0 {HALF}"><freejoint/>
    <geom name="box" type="box" size=".1 .1 {HALF}" condim="3" contype="8" conaffinity="8"/></body>
  <body name="slick" pos="0 1 {R}"><freejoint/><geom size="{R}" friction="1" contype="1" conaffinity="1"/></body>
  <body name="roller" pos="0 2 {R}"><freejoint/>
    <geom name="roller" size="{R}" condim="6" contype="1" conaffinity="1"/></body></frame>
<body name="spinner" pos="0 -1 {R}"><freejoint/><geom name="spinner" size="{R}" condim="4"/></body>
<body name="ball" pos="0 -2 {R}"><freejoint/><geom name="ball" size="{R}" condim="6"/></body>
<body name="capsule" pos="0 -3 {R}"><freejoint/>
  <geom name="capsule" type="capsule" size="{R} .1" condim="6" euler="90 0 0"/></body>
<geom size="{R}" pos="0 4 1" contype="4" conaffinity="4"/>
<body name="upper" pos="0 4 {1 + 2 * R + MARGIN}"><freejoint/>
  <geom size="{R}" margin="{MARGIN}" gap="{GAP}" condim="3" friction="1" contype="4" conaffinity="4"/></body>
</worldbody></mujoco>"""
CONES = [("elliptic", 1), ("elliptic", 10), ("pyramidal", 1), ("pyramidal", 10)]
every_cone = pytest.mark.parametrize("cone", CONES, ids=lambda c: f"{c[0]}{c[1]}")


@functools.cache
def ground(which, cone):
    """(time, positions and velocities by body, [T, 2, 7] and [T, 2, 6]) over half a second; two worlds."""
    engine = make(GROUND.format(cone=cone[0], impratio=cone[1]), 2, which, ["geom_friction"])
    model, friction = engine.model, engine.model_field("geom_friction")
    for name in ("box", "roller", "spinner", "ball", "capsule"):
        values = np.array([MU, TORSION, ROLL_DOWN if name == "roller" else ROLL]).T
        friction[:, model.geom(name).id] = torch.tensor(values).to(friction)
    engine.set_const()
    qvel = np.zeros((2, model.nv))
    at = {b: model.body(b).jntadr[0] for b in ("box", "slick", "roller", "spinner", "ball", "capsule", "upper")}
    qvel[:, 6 * at["spinner"] + 5] = SPIN
    for name in ("ball", "capsule"):
        qvel[:, 6 * at[name]], qvel[:, 6 * at[name] + 4] = SPEED, SPEED / R
    put(engine, qvel=qvel)
    out = record(engine, 250, 5)
    q, v = out["qpos"], out["qvel"]
    return out["time"], {b: (q[..., 7 * j : 7 * j + 7], v[..., 6 * j : 6 * j + 6]) for b, j in at.items()}


UP = np.array([SIN, 0, COS])  # the slope's normal
CREEP = G * SIN * (1 - D) / D / B  # of a contact that bears a body of mass 1 on the slope [m/s]


def gains(time, velocity, down, up, since=0):
    """Mean acceleration along down and mean normal force, of a body of mass 1 in world 1: momentum over time.

    A body that slides bounces a little on its soft contact, but friction is mu times the normal force at all times.
    """
    mean = (velocity[-1, 1] - velocity[since, 1]) / (time[-1] - time[since])
    return mean[:3] @ down, mean[:3] @ up + G * up[2]


@every_engine
@every_cone
def test_a_box_on_a_slope_holds_or_slides(which, cone):
    """Below the friction angle it creeps at g sin R / b: four corners share R / impratio, which the pyramid's rows
    make larger by 1 + mu^2. Above, it accelerates by g sin - mu N."""
    time, bodies = ground(which, cone)
    v = bodies["box"][1]
    creep = CREEP / cone[1] / 4 * (1 if cone[0] == "elliptic" else 1 + MU[0] ** 2)
    assert v[-1, 0, :3] @ DOWN == pytest.approx(creep, rel=1e-6 + 1e5 * roundoff(which))  # small against g t
    a, force = gains(time, v, DOWN, UP)
    assert a == pytest.approx(G * SIN - MU[1] * force, rel=1e-9 + 1000 * roundoff(which))
    assert force == pytest.approx(G * COS, rel=0.02)


@every_engine
@every_cone
def test_a_frictionless_ball_slides_down_without_turning(which, cone):
    time, bodies = ground(which, cone)
    v = bodies["slick"][1]
    assert gains(time, v, DOWN, UP)[0] == pytest.approx(G * SIN, rel=1e-9 + 100 * roundoff(which))
    assert np.abs(v[..., 3:]).max() < 100 * roundoff(which)


@every_engine
@every_cone
def test_a_ball_on_a_slope_rolls_or_is_held(which, cone):
    """With next to no rolling friction it rolls at 5/7 g sin, but for creep. With more it is held: it creeps, in the
    elliptic cone by g sin R / b and, turning, by (radius mu / mu_roll)^2 times that."""
    time, bodies = ground(which, cone)
    v = bodies["roller"][1]
    speed = v[..., :3] @ DOWN
    assert gains(time, v, DOWN, UP)[0] == pytest.approx(G * SIN / 1.4, rel=0.005)
    assert abs(speed[-1, 1] - v[-1, 1, 4] * R) < 0.01 * speed[-1, 1]
    if cone[0] == "elliptic":
        creep = CREEP / cone[1] * (1 + (R * MU[0] / ROLL_DOWN[0]) ** 2)
        assert speed[-1, 0] == pytest.approx(creep, rel=0.002)
    else:
        assert 0 < speed[-1, 0] < 0.02 * G * SIN * time[-1]


@every_engine
@every_cone
@pytest.mark.parametrize("name, inertia", [("ball", 0.4 * R**2), ("capsule", 0.46 * R**2)])
def test_rolling_friction_slows_a_ball_and_a_capsule(which, cone, name, inertia):
    """Friction f slows, and the torque R f - t = -inertia a / R turns: f = a. Both are on the boundary of the cone,
    |(f / mu, t / mu_roll)| = N, in the 2-norm (elliptic) or the 1-norm (pyramidal: no more than nearly, since rows
    that f does not need carry some of N). Strong rolling friction stops them."""
    time, bodies = ground(which, cone)
    v = bodies[name][1]
    a, force = gains(time, v, np.array([1, 0, 0]), np.array([0, 0, 1]), since=len(time) // 2)
    slide, roll = 1 / MU[1], (R + inertia / R) / ROLL[1]
    norm = np.hypot(slide, roll) if cone[0] == "elliptic" else slide + roll
    assert -a == pytest.approx(force / norm, rel=0.003 if cone[0] == "elliptic" else 0.03)
    assert np.abs(v[-1, 0]).max() < 5e-4


@every_engine
@every_cone
def test_torsional_friction_slows_a_spinning_ball(which, cone):
    """By mu_torsion N / I."""
    time, bodies = ground(which, cone)
    v = bodies["spinner"][1]
    _, force = gains(time, v, np.array([1, 0, 0]), np.array([0, 0, 1]))
    slowed = SPIN - v[-1, 1, 5]
    assert slowed == pytest.approx(TORSION[1] * force / (0.4 * R**2) * time[-1], rel=1e-9 + 200 * roundoff(which))


@every_engine
@every_cone
def test_a_ball_rests_on_a_ball_within_the_margin(which, cone):
    """Where both surfaces are `margin` apart, less the depth at which the contact carries the weight; the gap only
    finds contacts earlier. The pyramid of four edges has impratio times the stiffness at mu = 1."""
    _, bodies = ground(which, cone)
    q, v = bodies["upper"]
    depth = G * (1 - D) / (K * D**2) / (1 if cone[0] == "elliptic" else cone[1])
    assert q[-1, :, 2] == pytest.approx(1 + 2 * R + MARGIN - depth, abs=1e-9 + 20 * roundoff(which))
    np.testing.assert_allclose(v[-1], 0, atol=1e-4)
