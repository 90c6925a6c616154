"""Contact sensors and IMUs against weights, levers and MuJoCo's own contact forces, on all engines (CPU)."""

from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
import tumbler
from tumbler import matrix, quaternion

from isaacrl.config import compose
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.terms import Bound

MODEL = Path(__file__).parent / "models" / "press.xml"
ENGINES = ("mujoco", "mjwarp", "warp")
SENSORS = {
    "feet": {"fn": "contact", "bodies": ["front", "back"], "against": "ground", "history": 3},
    "all": {"fn": "contact", "bodies": ["trunk"]},
    "self": {"fn": "contact", "bodies": ["plate", "arm"], "against": "self"},
    "any": {"fn": "contact", "bodies": ["trunk"], "against": "self", "subtree": True},
    "arm": {"fn": "contact", "bodies": ["arm"], "against": "ground"},
    "imu": {},
    "head": {"fn": "imu", "site": "head"},
}
HEIGHT = 0.04  # [m] that the second world drops from


def make(engine="mujoco", n=2, sensors=SENSORS, base=None, **task):
    cfg = compose(["task=cartpole", f"num_envs={n}", "device=cpu", f"sim.engine={engine}"])
    cfg.asset.path, cfg.asset.base = str(MODEL), base
    cfg.asset.actuators = {"all": {"joints": [".*"], "law": "effort"}}
    cfg.task.actions = {"effort": {"joints": [".*"]}}
    cfg.task.physics_dt, cfg.task.decimation, cfg.task.sensors = 0.005, 2, sensors
    for table in ("rewards", "terminations", "events"):
        cfg.task[table] = {}
    for key, value in task.items():
        cfg.task[key] = value
    return Env(cfg)


def lift(env):
    """The second world starts above the ground."""
    qpos = env.engine.field("qpos").clone()
    qpos[1, 2] += HEIGHT
    env.engine.write("qpos", qpos)
    env.engine.forward()
    env.state.refresh()


def forces_on(data, geoms):
    """Net forces of the ground on geoms, world axes [N], [n, 3], from the contact list of the last forward."""
    out, ids = np.zeros((len(geoms), 3)), [data.geom(g).id for g in geoms]
    for i in range(data.ncon):
        pair, local = data.contact[i].geom.tolist(), np.zeros(6)
        mujoco.mj_contactForce(data.model, data, i, local)
        force = data.contact[i].frame.reshape(3, 3).T @ local[:3]  # on the second of the pair
        for k, g in enumerate(ids):
            other = pair[0] if pair[1] == g else pair[1]
            if g in pair and data.model.geom_bodyid[other] == 0:
                out[k] += force if pair[1] == g else -force
    return out


def timing(touch, dt):
    """What the sensor should have said after the steps of an episode in which one foot touched or not."""
    touch = [False, *touch]
    out = dict.fromkeys(("air_time", "contact_time", "last_air_time", "last_contact_time"), 0.0)
    for t in range(1, len(touch)):
        run = next((n for n in range(1, t) if touch[t - n] != touch[t]), t)  # steps in this state, this one included
        before = next((n for n in range(1, t - 1) if touch[t - 1 - n] != touch[t - 1]), t - 1)  # and the state before
        out["first_contact"] = touch[t] and not touch[t - 1] and t > 1
        out["first_air"] = not touch[t] and touch[t - 1]
        if out["first_contact"]:
            out["last_air_time"] = before * dt
        if out["first_air"]:
            out["last_contact_time"] = before * dt
        out["air_time"], out["contact_time"] = (0.0, run * dt) if touch[t] else (run * dt, 0.0)
    return out


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bouncing_robot_against_mujocos_contact_list(engine):
    """Two episodes. The first world starts on the ground, which is no landing; the second drops and bounces."""
    env = make(engine, episode_length_s=0.4)
    feet, dt, model = env.state.contact("feet"), env.step_dt, env.engine.model
    assert feet.names == ["front", "back"]
    landings = np.zeros((2, 2), int)
    for _ in range(2):
        lift(env)
        worlds = []
        for w in range(2):
            data = mujoco.MjData(model)
            data.qpos = env.engine.field("qpos")[w].numpy()
            worlds.append(data)
        touch, force = [], [np.zeros((2, 2))] * 2
        for step in range(39):
            _, _, _, truncated, _ = env.step(torch.zeros(2, 2))
            assert not truncated.any()
            for data in worlds:
                mujoco.mj_step(model, data, 2)
            net = np.array([forces_on(data, feet.names) for data in worlds])
            touch.append(np.linalg.norm(net, axis=2) > 1e-3)
            force.append(np.linalg.norm(net, axis=2))
            scale = 0.02 if engine == "mujoco" else 0.2  # [N]; single precision, after several bounces
            np.testing.assert_allclose(feet.force_w, net, atol=scale, rtol=2e-3, err_msg=f"step {step}")
            np.testing.assert_allclose(feet.force_history, np.stack(force[:-4:-1], axis=1), atol=scale, rtol=2e-3)
            assert np.array_equal(feet.in_contact, touch[-1])
            for w in range(2):
                for f in range(2):
                    for name, number in timing([t[w, f] for t in touch], dt).items():
                        got = getattr(feet, name)[w, f].item()
                        assert got == pytest.approx(number, abs=1e-5), (step, w, f, name)
            landings += feet.first_contact.numpy()
        _, _, _, truncated, _ = env.step(torch.zeros(2, 2))
        assert truncated.all()  # and all memory starts anew
        assert not any(v.any() for v in env.sensor_terms[0].memory.values())
        assert not feet.force.any()  # nothing of the old episode is left
    assert (landings[1] >= 4).all()  # it bounced in both episodes
    assert not env.engine.overflow.any()


@pytest.mark.parametrize("engine", ENGINES)
def test_forces_at_rest_are_weights_and_levers(engine):
    """Masses of 3.757 (trunk), 0.5 (plate) and 0.339 kg (the arm's tip, above the plate, 6 cm ahead of the middle)."""
    env = make(engine)
    s = env.state
    for _ in range(80):
        env.step(torch.zeros(2, 2))
    trunk, plate, tip = env.engine.model.body_mass[1:]
    assert [round(m, 3) for m in (trunk, plate, tip)] == [3.757, 0.5, 0.339]
    weight, lead = 9.81 * (trunk + plate + tip), 0.06 * (plate + tip) / (trunk + plate + tip)
    front, back = weight * (0.1 + lead) / 0.2, weight * (0.1 - lead) / 0.2
    up = np.array([0.0, 0.0, 1.0])
    expected = {
        "feet": [front * up, back * up],  # upward on the feet
        "all": [weight * up],
        "self": [-9.81 * tip * up, 9.81 * tip * up],  # the arm presses on the plate, which carries it
        "arm": [0 * up],
    }
    for name, force in expected.items():
        for w in range(2):
            np.testing.assert_allclose(
                s.contact(name).force_w[w], force, atol=0.3 if "self" != name else 0.03, err_msg=name
            )
    np.testing.assert_allclose(s.contact("any").force, [[9.81 * tip]] * 2, atol=0.03)
    assert s.contact("any").in_contact.all() and not s.contact("arm").in_contact.any()
    value = lambda x, family="rewards", **p: Bound(family, x, p, s, f"task.{family}.x")(s)  # noqa: E731
    assert value("contact_count", sensor="any").tolist() == [1.0, 1.0]
    assert value("contact_count", sensor="feet", threshold=22.0).tolist() == [1.0, 1.0]  # 25 N and 20 N
    assert value("contact_above", "terminations", sensor="arm", force=0.0).tolist() == [False, False]
    np.testing.assert_allclose(value("contact_excess", sensor="all", threshold=30.0), [weight - 30.0] * 2, atol=0.3)
    np.testing.assert_allclose(value("contact_force", "observations")[0], [0, 0, front, 0, 0, back], atol=0.3)
    np.testing.assert_allclose(value("foot_height", "observations", sensor="feet"), [[0.03, 0.03]] * 2, atol=1e-3)
    assert value("in_contact", "observations", sensor="self").tolist() == [[1.0, 1.0]] * 2
    assert value("contact_share", "metrics", sensor="arm").tolist() == [0.0, 0.0]
    np.testing.assert_allclose(value("air_time", "observations", sensor="arm"), [[0.8]] * 2, rtol=1e-4)  # all 80 steps
    turn = matrix(quaternion(0.4, 0, 0)) @ matrix(quaternion(0, -0.7, 0)) @ matrix(quaternion(0, 0, 1.2))
    for name, axes in (("imu", np.eye(3)), ("head", turn)):  # at rest an accelerometer feels the ground's push
        np.testing.assert_allclose(s.imu(name).lin_acc_b, [axes.T @ (9.81 * up)] * 2, atol=0.1)
        np.testing.assert_allclose(s.imu(name).projected_gravity_b, [-axes.T @ up] * 2, atol=0.01)
        np.testing.assert_allclose(s.imu(name).ang_vel_b, [[0.0] * 3] * 2, atol=0.01)
        for what in ("lin_acc", "projected_gravity", "ang_vel"):
            reading = value(f"imu_{what}", "observations", sensor=name)
            assert torch.equal(reading, getattr(s.imu(name), f"{what}_b"))
    assert torch.equal(value("sensor", "observations", name="head/gyro"), s.imu("head").ang_vel_b)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_imu_off_the_centre_of_a_tumbling_robot(engine):
    """Its acceleration is the derivative of its velocity, less gravity, all in its own axes; flight and spin."""
    env = make(engine, decimation=1)
    model, step = env.engine.model, 1e-6
    qpos = np.array([0.0, 0.0, 3.0, *quaternion(0.5, -0.4, 2.2), 0.01, -0.2])
    qvel = np.array([0.4, -0.2, 1.0, 3.0, -2.0, 4.0, 0.1, -1.5])
    tumbler.put(env, [qpos] * 2, [qvel] * 2)
    start = tumbler.mj_data(model, qpos, qvel)
    later = tumbler.mj_data(model, qpos, qvel + step * start.qacc)
    mujoco.mj_integratePos(model, later.qpos, qvel, step)
    mujoco.mj_forward(model, later)
    speeds, site = np.zeros((2, 6)), start.site("head")
    for data, out in zip((start, later), speeds):
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_SITE, site.id, out, 0)
    axes = site.xmat.reshape(3, 3)
    felt = axes.T @ ((speeds[1, 3:] - speeds[0, 3:]) / step + [0, 0, 9.81])
    s = env.state
    np.testing.assert_allclose(s.imu("head").ang_vel_b[0], axes.T @ speeds[0, :3], atol=1e-4)
    np.testing.assert_allclose(s.imu("imu").ang_vel_b[1], [3.0, -2.0, 4.0], atol=1e-5)
    np.testing.assert_allclose(s.imu("head").projected_gravity_b[1], axes.T @ [0, 0, -1], atol=1e-5)
    env.step(torch.zeros(2, 2))
    np.testing.assert_allclose(s.imu("head").lin_acc_b[0], felt, rtol=1e-3, atol=1e-2)
    assert np.linalg.norm(felt) > 1.0  # the spin throws it outward


@pytest.mark.parametrize("engine", ENGINES)
def test_an_imu_knows_the_start_of_an_episode(engine):
    turned = {"reset_base": {"yaw": [1.0, 1.0], "velocity": [[0, 0]] * 3 + [[0.5, 0.5], [-1, -1], [2, 2]]}}
    env = make(engine, events=turned, sensors={"imu": {}}, episode_length_s=0.03)
    for _ in range(4):  # ends in the third step
        np.testing.assert_allclose(env.state.imu().ang_vel_b, env.state.base_ang_vel_b, atol=1e-5)
        env.step(torch.zeros(2, 2))


def test_a_staggered_start_is_no_landing():
    env = make(n=8, sensors={"feet": SENSORS["feet"]})
    env.stagger()
    env.step(torch.zeros(8, 2))
    feet = env.state.contact("feet")
    assert env.state.episode_step.min() > 1 and feet.in_contact.all() and not feet.first_contact.any()


def test_names_are_names_and_self_means_the_whole_robot():
    """foot.l is no pattern that also matches footal; with a base amid the robot, self is still all of it."""
    env = tumbler.make(task={"sensors": {"feet": {"fn": "contact", "bodies": [r"foot\.l"]}}})
    tumbler.put(env)
    data = tumbler.mj_data(env.engine.model, tumbler.QPOS[1], tumbler.VEL[1])
    np.testing.assert_allclose(env.state.contact("feet").parts.pos_w[1], [data.body("foot.l").xpos], atol=1e-6)
    env = make(sensors={"self": SENSORS["self"]}, base="arm")
    for _ in range(100):
        env.step(torch.zeros(2, 2))
    np.testing.assert_allclose(env.state.contact("self").force, [[3.33, 3.33]] * 2, atol=0.1)


@pytest.mark.parametrize(
    ("sensors", "rewards", "says"),
    [
        ({"feet": {"fn": "contact", "bodies": ["frnt"]}}, {}, "task.sensors.feet.bodies: nothing is called frnt"),
        ({"feet": {"fn": "contact", "bodies": []}}, {}, "task.sensors.feet.bodies: empty"),
        ({"feet": {"fn": "contact", "bodies": ["arm"], "against": "me"}}, {}, "task.sensors.feet.against: got 'me'"),
        (
            {"feet": {"fn": "contact", "bodies": ["front"], "subtree": True}},
            {},
            "task.sensors.feet.subtree: 'front' is a",
        ),
        ({"imu": {"site": "hed"}}, {}, "task.sensors.imu.site: no site 'hed'; there is head"),
        (
            SENSORS,
            {"stumble": {"sensor": "any"}},
            "task.rewards.stumble: sensor of 'trunk': with subtree a force has no",
        ),
    ],
)
def test_mistakes_are_one_line(sensors, rewards, says):
    with pytest.raises(UserError) as e:
        make(sensors=sensors, rewards=rewards)
    assert says in str(e.value) and "\n" not in str(e.value)
