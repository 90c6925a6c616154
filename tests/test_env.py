"""The environment: the order of a step, terms by hand, memory, history, randomness, users' own code."""

import copy
import math
import re
import sys
import textwrap

import pytest
import torch

import isaacrl
from isaacrl.errors import UserError
from isaacrl.state import State, quantity
from isaacrl.terms import rewards as R


def make(task="cartpole", n=8, *overrides, **keys):
    return isaacrl.make(task, num_envs=n, device="cpu", overrides=overrides, **keys)


def put(env, pos, vel):
    """Every world at the given joint positions and velocities, quantities fresh."""
    s = env.state
    n = len(s.robot.joint_names)
    s.write_joints(torch.tensor(pos).expand(env.num_envs, n), torch.tensor(vel).expand(env.num_envs, n), env.everywhere)
    env.engine.forward()
    s.refresh()


def zeros(env):
    return torch.zeros(env.num_envs, env.task.num_actions)


def test_rewards_of_cartpole_by_hand():
    """slider at 0.5 m moving at -2 m/s, pole at 0.3 rad turning at 4 rad/s."""
    env = make()
    put(env, [0.5, 0.3], [-2.0, 4.0])
    row = dict(zip(env.task.reward_names, env.task.rewards(env.state)[0].tolist()))
    assert row == pytest.approx(
        {
            "alive": 1.0,
            "terminated": 0.0,
            "upright": -0.09,
            "centered": -0.125,
            "cart_speed": -0.02,
            "pole_speed": -0.02,
        }
    )
    env.state.terminated = torch.ones(8, dtype=torch.bool)
    row = dict(zip(env.task.reward_names, env.task.rewards(env.state)[0].tolist()))
    assert row["alive"] == 0.0 and row["terminated"] * env.step_dt == pytest.approx(-2.0)


def test_rewards_of_swingup_by_hand():
    env = make("cartpole_swingup")
    put(env, [1.0, math.pi / 3], [0.0, 2.5])
    env.state.action[:] = 0.5
    g = lambda x, m: 0.1 ** ((x / m) ** 2)  # noqa: E731
    expected = 0.75 * (1 + g(1.0, 2.0)) / 2 * (4 + 0.75) / 5 * (1 + g(2.5, 5.0)) / 2
    assert env.task.rewards(env.state)[0].item() == pytest.approx(expected, rel=1e-5)


def test_observations_and_terminations_by_hand():
    env = make()
    put(env, [0.5, 0.3], [-2.0, 4.0])
    assert env.groups[0].observe(env.state)[0].tolist() == pytest.approx([0.5, 0.3, -2.0, 4.0])
    assert not env.task.dones(env.state)[0].any()
    put(env, [0.5, -0.9], [0.0, 0.0])
    assert env.task.dones(env.state)[0].all()
    put(env, [1.75, 0.0], [0.0, 0.0])
    assert env.task.dones(env.state)[0].all()
    env = make("cartpole_swingup")
    put(env, [0.5, 2.0], [-2.0, 4.0])
    expected = [0.5, math.cos(2.0), math.sin(2.0), -2.0, 4.0]
    assert env.groups[0].observe(env.state)[0].tolist() == pytest.approx(expected)


def test_every_quantity_has_the_shape_its_docstring_states():
    env = make(n=3)
    s = env.state
    sizes = {"E": 3, "J": 2, "B": 3, "S": 1}
    checked = 0
    for owner in (s, s.body(".*")):
        for name, q in vars(type(owner)).items():
            if not isinstance(q, quantity):
                continue
            dims = re.search(r"\[(E(?:, \w+)*)\]", q.__doc__).group(1).split(", ")
            expected = [sizes.get(d) or int(d) for d in dims]
            assert list(getattr(owner, name).shape) == expected, name
            assert getattr(owner, name).dtype == torch.float32
            checked += 1
    assert checked >= 15


def test_a_step_is_fresh_and_ends_worlds_in_the_same_step():
    """Rewards see the new state; final_obs is the true last one; obs is the new episode's; the counters follow."""
    env = make(n=4)
    put(env, [0.0, 0.78], [0.0, 3.0])  # falls beyond 0.7854 rad in this step
    obs, reward, terminated, truncated, info = env.step(zeros(env))
    assert terminated.all() and not truncated.any()
    final = info["final_obs"]["policy"]
    assert (final[:, 1] > 0.7854).all() and (obs["policy"][:, 1].abs() <= 0.3).all()
    dt = env.step_dt
    expected = -2.0 + dt * (
        -(final[:, 1] ** 2) - 0.5 * final[:, 0] ** 2 - 0.01 * final[:, 2].abs() - 0.005 * final[:, 3].abs()
    )
    torch.testing.assert_close(reward, expected)
    assert (env.state.episode_step == 0).all()


def test_time_out_is_a_truncation():
    env = make("cartpole_swingup", 2, "task.episode_length_s=0.25")
    for t in range(5):
        _, _, terminated, truncated, _ = env.step(zeros(env))
        assert not terminated.any() and truncated.all().item() == (t == 4)


def test_only_worlds_that_end_are_reset():
    env = make(n=6)
    put(env, [0.0, 0.0], [0.0, 0.0])
    s = env.state
    pos = s.joint_pos.clone()
    pos[2, 1] = 1.0
    s.write_joints(pos, s.joint_vel, env.everywhere)
    env.engine.forward()
    s.refresh()
    before = s.episode_step.clone()
    obs, _, terminated, _, info = env.step(zeros(env))
    assert terminated.tolist() == [False, False, True, False, False, False]
    keep = [0, 1, 3, 4, 5]
    assert torch.equal(obs["policy"][keep], info["final_obs"]["policy"][keep])
    assert torch.equal(s.episode_step[keep], before[keep] + 1) and s.episode_step[2] == 0


def test_a_world_evolves_the_same_whatever_the_number_of_worlds():
    few, many = make(n=3, seed=5), make(n=50, seed=5)
    for t in range(60):
        action = torch.full((50, 1), math.sin(t / 3))
        a, b = few.step(action[:3]), many.step(action)
        assert torch.equal(a[0]["policy"], b[0]["policy"][:3]) and torch.equal(a[1], b[1][:3])
    assert not torch.equal(few.obs["policy"], make(n=3, seed=6).obs["policy"])


def test_noise_scale_clip_and_history():
    env = make(
        "cartpole",
        5,
        "task.observations.policy.joint_pos.noise=0.1",
        "task.observations.policy.joint_vel.history=3",
        "task.observations.policy.joint_vel.scale=0.5",
        "task.observations.policy.joint_vel.clip=[-0.2,0.2]",
    )
    group = env.groups[0]
    assert env.obs["policy"].shape == (5, 2 + 2 * 3) == (5, group.width)
    speeds = []
    for _ in range(6):
        before = group.history.clone()
        _, _, terminated, truncated, info = env.step(torch.full((5, 1), 0.3))
        assert not (terminated | truncated).any()
        speeds.append(env.state.joint_vel.clone())
        assert torch.equal(group.history[:, :-1], before[:, 1:])  # advanced once though read twice
        assert torch.equal(info["final_obs"]["policy"], env.obs["policy"])  # and the same noise both times
    expected = torch.cat(speeds[-3:], dim=1)
    torch.testing.assert_close(group.raw[:, 2:], expected)
    torch.testing.assert_close(env.obs["policy"][:, 2:], expected.clamp(-0.2, 0.2) * 0.5)
    error = group.raw[:, :2] - env.state.joint_pos
    assert 0.0 < error.abs().max() <= 0.1 and error.std() > 0.01
    env.reset()
    fresh = env.state.joint_vel
    torch.testing.assert_close(group.raw[:, 2:], fresh.repeat(1, 3))  # a new episode's history is its first reading


@pytest.mark.parametrize("engine", ["mujoco", "mjwarp", "warp"])
def test_a_second_event_sees_what_the_first_one_wrote(engine):
    env = make(
        "cartpole",
        4,
        f"sim.engine={engine}",
        "~task.events.reset_joints",
        "task.events.cart={fn: reset_joints, joints: [slider], position: [0.5, 0.5]}",
        "task.events.pole={fn: reset_joints, joints: [hinge], position: [0.2, 0.2]}",
    )
    torch.testing.assert_close(env.obs["policy"], torch.tensor([[0.5, 0.2, 0.0, 0.0]]).expand(4, 4))


def test_a_push_shakes_only_floating_bases():
    with pytest.raises(UserError, match="fixed"):
        make("cartpole", 2, "task.events.push={when: interval, interval_s: [1, 2], velocity: [1, 1, 0]}")


def test_stepping_with_a_networks_output_keeps_no_graph():
    env = make(n=3)
    net = torch.nn.Linear(4, 1)
    for _ in range(3):
        obs, reward, *_ = env.step(net(env.obs["policy"]))
    assert not obs["policy"].requires_grad and not reward.requires_grad and not env.state.action.requires_grad


def test_a_world_recovers_from_an_action_that_is_not_finite():
    env = make("cartpole", 3, "task.observations.policy.last_action={}")
    env.step(torch.tensor([[0.1], [math.nan], [0.2]]))
    obs, reward, *_ = env.step(torch.full((3, 1), 0.1))
    assert torch.isfinite(obs["policy"]).all() and torch.isfinite(reward).all()


def test_a_checkpoint_of_the_other_engine_is_refused():
    with pytest.raises(UserError, match="sim.engine=mujoco"):
        make("cartpole", 2, "sim.engine=mjwarp").load_state_dict(make("cartpole", 2).state_dict())


def test_memory_resets_by_mask_and_advances_once():
    env = make("cartpole", 3, "task.rewards.acc.fn=joint_acc_l2", "task.rewards.acc.weight=-1e-6")
    term = next(t for t in env.task.reward_terms if t.name == "acc")
    last = env.state.joint_vel.clone()
    for t in range(4):
        env.step(torch.full((3, 1), 0.5))
        vel = env.state.joint_vel
        expected = torch.zeros(3) if t == 0 else ((vel - last) / env.step_dt).square().sum(1)
        torch.testing.assert_close(term(env.state), expected)
        last = vel.clone()
    mask = torch.tensor([True, False, False])
    kept = term.memory["last_vel"].clone()
    env._reset(mask)
    assert torch.equal(term.memory["last_vel"][1:], kept[1:])
    assert term(env.state)[0] == 0.0 and torch.equal(term.memory["last_vel"][0], env.state.joint_vel[0])


def test_commands_resample_by_world_and_are_observed():
    env = make(
        "cartpole",
        4,
        "task.commands.goal={fn: uniform, low: [-1], high: [1], resample_s: 0.1}",
        "task.observations.policy.command={name: goal}",
    )
    seen = [env.obs["policy"][:, 4].clone()]
    for _ in range(12):
        put(env, [0.0, 0.0], [0.0, 0.0])
        seen.append(env.step(zeros(env))[0]["policy"][:, 4].clone())
    changes = [t for t in range(1, 13) if not torch.equal(seen[t], seen[t - 1])]
    assert changes == [5, 10]  # every 0.1 s, 5 steps
    assert len(set(torch.stack(seen).flatten().tolist())) == 12  # 3 draws in each of 4 worlds


def test_interval_events_strike_within_their_interval():
    env = make(
        "cartpole",
        64,
        "task.events.kick={fn: reset_joints, when: interval, interval_s: [0.1, 0.2], position: [0.05, 0.05]}",
    )
    ages, struck = torch.zeros(64), []
    for _ in range(40):
        put(env, [0.0, 0.0], [0.0, 0.0])
        env.step(zeros(env))
        ages += 1
        hit = (env.state.joint_pos[:, 1] - 0.05).abs() < 1e-3
        struck += ages[hit].tolist()
        ages[hit] = 0
    assert min(struck) >= 5 and max(struck) <= 10 and len(set(struck)) > 3


def test_non_finite_worlds_end_and_the_others_never_notice():
    env, twin = make(n=5), make(n=5)
    for e in (env, twin):
        put(e, [0.0, 0.1], [0.0, 0.0])
    qvel = env.state.read("qvel").clone()
    qvel[3] = math.nan
    env.state.write("qvel", qvel, env.everywhere)
    a, b = env.step(zeros(env)), twin.step(zeros(twin))
    assert a[2].tolist() == [False, False, False, True, False] and a[4]["nonfinite"].sum() == 1
    keep = [0, 1, 2, 4]
    assert torch.equal(a[0]["policy"][keep], b[0]["policy"][keep]) and torch.equal(a[1][keep], b[1][keep])
    assert all(torch.isfinite(x).all() for x in (a[0]["policy"], a[1], a[4]["final_obs"]["policy"]))
    assert a[1][3] == 0.0


def test_a_reward_that_is_not_finite_counts_as_zero(lab):
    (lab / "lab_terms" / "bad.py").write_text("def root(s):\n    return s.joint_pos[:, 1].sqrt()\n")
    env = make("cartpole", 6, "task.rewards.root={fn: 'lab_terms.bad:root', weight: 1.0}")
    env.read_metrics()
    negative = 0
    for _ in range(3):
        _, reward, *_ = env.step(zeros(env))
        negative += int((env.state.joint_pos[:, 1] < 0).sum())
        assert torch.isfinite(reward).all()
    found = env.read_metrics()
    assert found["spoilt_rewards"] == negative > 0 and found["nonfinite"] == 0


@pytest.mark.parametrize("engine", ["mujoco", "warp"])
def test_an_event_that_writes_what_no_world_can_be_in_ends_the_episode(engine):
    """It does not go on from the default pose as if nothing had been."""
    kick = "task.events.kick={fn: reset_joints, when: interval, interval_s: [0.1, 0.1], velocity: [1e11, 1e11]}"
    env = make("cartpole", 3, kick, f"sim.engine={engine}")
    env.read_metrics()
    ended = torch.zeros(3)
    for _ in range(6):
        _, _, terminated, *_ = env.step(zeros(env))
        ended += terminated
    assert ended.tolist() == [1.0] * 3 and env.read_metrics()["nonfinite"] == 3


def test_state_dict_continues_bit_for_bit():
    overrides = (
        "task.observations.policy.joint_vel.history=3",
        "task.observations.policy.joint_pos.noise=0.02",
        "task.rewards.acc={fn: joint_acc_l2, weight: -1e-4}",
        "task.terminations.fallen.limit=0.15",
        "task.events.kick={fn: reset_joints, when: interval, interval_s: [0.05, 0.3], position: [-0.1, 0.1]}",
    )
    env = make("cartpole", 16, *overrides)
    act = lambda e, t: torch.sin(torch.arange(16.0) + t)[:, None]  # noqa: E731
    for t in range(40):
        env.step(act(env, t))
    saved = env.state_dict()
    first = [env.step(act(env, t)) for t in range(40, 90)]
    other = make("cartpole", 16, *overrides)
    other.load_state_dict(saved)
    ended = 0
    for t, (obs, reward, terminated, *_) in zip(range(40, 90), first):
        obs2, reward2, *_ = other.step(act(other, t))
        assert torch.equal(obs["policy"], obs2["policy"]) and torch.equal(reward, reward2)
        ended += int(terminated.sum())
    assert ended > 0


USER_MODULE = '''
"""Terms of a robot lab."""
import torch
from isaacrl.terms import Joints, Term

class smooth_speed(Term):
    """Exponentially smoothed sum of joint speeds, [E]."""
    def __init__(self, s, *, joints: Joints, keep: float = 0.5):
        self.joints, self.keep = joints, keep
    def init(self, s):
        return {"speed": torch.zeros(s.num_envs)}
    def advance(self, s):
        now = s.joint_vel[:, self.joints].abs().sum(1)
        return {"speed": self.keep * self.speed + (1 - self.keep) * now}
    def __call__(self, s):
        return self.speed
'''


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A package `lab_terms` as pip would leave it: modules beside their .dist-info."""
    (tmp_path / "lab_terms").mkdir()
    (tmp_path / "lab_terms" / "__init__.py").write_text("")
    (tmp_path / "lab_terms" / "terms.py").write_text(USER_MODULE)
    info = tmp_path / "lab_terms-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-terms\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [m for m in sys.modules if m.startswith("lab_terms")]:
        del sys.modules[name]


def test_a_term_with_memory_from_an_installed_package(lab):
    env = make("cartpole", 3, "task.rewards.calm={fn: 'lab_terms.terms:smooth_speed', joints: [hinge], weight: -1.0}")
    term = next(t for t in env.task.reward_terms if t.name == "calm")
    smooth = torch.zeros(3)
    for _ in range(5):
        env.step(torch.full((3, 1), 0.2))
        smooth = 0.5 * smooth + 0.5 * env.state.joint_vel[:, 1].abs()
        torch.testing.assert_close(term(env.state), smooth)
    assert [k for k in env.state_dict()["env"] if "calm/speed" in k]
    assert str(lab / "lab_terms" / "terms.py") in [t.source for t in env.all_terms()]


def test_a_task_as_one_class(lab, monkeypatch):
    (lab / "lab_terms" / "task.py").write_text(
        textwrap.dedent("""
        import torch
        import isaacrl

        class Balance(isaacrl.Task):
            num_actions = 1
            created = False
            def create(self, spec, cfg):
                spec.body("pole").add_site(name="tip", pos=[0, 0, 1])
            def pre_physics_step(self, s, action):
                return 5.0 * action
            def observations(self, s):
                return {"policy": torch.cat([s.joint_pos, s.joint_vel], 1)}
            @property
            def reward_names(self):
                return ["height"]
            def rewards(self, s):
                return s.site("tip").pos_w[:, 0, 2:]
            def dones(self, s):
                return s.joint_pos[:, 1].abs() > 0.5, torch.zeros(s.num_envs, dtype=torch.bool)
            def reset(self, s, mask):
                s.write_joints(s.robot.default_joint_pos.expand(s.num_envs, 2), s.joint_vel + 0.1, mask)
    """)
    )
    (lab / "conf" / "task").mkdir(parents=True)
    (lab / "conf" / "task" / "balance.yaml").write_text(
        "defaults: [{override /asset: cartpole}, _self_]\nname: balance\n"
        "env: 'lab_terms.task:Balance'\nphysics_dt: 0.01\n"
    )
    monkeypatch.chdir(lab)  # a user's ./conf is found
    env = make("balance", 4)
    torch.testing.assert_close(env.obs["policy"], torch.tensor([[0.0, 0.0, 0.1, 0.1]]).expand(4, 4))
    ended = False
    for _ in range(100):
        _, reward, terminated, *_ = env.step(torch.full((4, 1), 0.5))
        ended = ended or bool(terminated.all())
    assert ended and reward.min() > 0


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("task.actions.effort.joints=[hinge]", "no actuator"),
        ("task.rewards.upright.joints=[hinges]", "hinge"),
        ("task.events.m={fn: randomize, field: body_mas, range: [1, 2]}", "body_mass"),
        ("task.events.m={fn: randomize, field: body_mass, names: [carts], range: [1, 2]}", "cart"),
        ("task.observations.policy.joint_pos.scale=[1,2,3]", "3 values given for 2"),
    ],
)
def test_mistakes_in_a_task_say_what_and_where(override, says):
    with pytest.raises(UserError) as e:
        make("cartpole", 2, override)
    assert says in str(e.value) and re.search(r"task\.|field", str(e.value)) and "\n" not in str(e.value)


def test_penalties_are_positive_and_upright_is_one_when_upright():
    env = make(n=2)
    put(env, [0.1, 0.2], [1.0, -1.0])
    s: State = env.state
    assert R.upright(s, std=0.3).tolist() == pytest.approx([1.0, 1.0])  # the cart's base never tilts
    everything = slice(None)
    assert (R.joint_speed_l1(s, joints=everything) > 0).all() and (R.joint_deviation_l2(s, joints=everything) > 0).all()


@pytest.mark.parametrize("engine", ["mujoco", "mjwarp", "warp"])
def test_randomized_worlds_are_those_models(engine):
    """Each world moves as a model compiled with its values; draws follow the range; nothing accumulates over resets."""
    import mujoco
    import numpy as np

    env = make(
        "cartpole",
        64,
        f"sim.engine={engine}",
        "randomization.mass={fn: randomize, field: [body_mass, body_inertia], names: [cart, pole], range: [0.5, 2.0], "
        "distribution: log_uniform}",
        "randomization.gravity={fn: randomize, field: opt.gravity, operation: add, range: [0, 0.1], "
        "distribution: gaussian, components: [2]}",
        "randomization.damping={fn: randomize, when: startup, field: dof_damping, operation: set, range: [0.1, 0.2], "
        "names: [hinge]}",
    )
    for _ in range(5):
        env.reset()
    model = env.engine.model
    mass = env.engine.model_field("body_mass").double().numpy()
    ratio = mass[:, 1:] / model.body_mass[1:]
    assert 0.5 <= ratio.min() < 0.6 and 1.7 < ratio.max() <= 2.0 and abs(np.log(ratio).mean()) < 0.15
    inertia = env.engine.model_field("body_inertia").double().numpy()
    np.testing.assert_allclose(inertia[:, 1:] / model.body_inertia[1:], ratio[..., None].repeat(3, 2), rtol=1e-5)
    gravity = env.engine.model_field("opt.gravity").double().numpy()
    assert (gravity[:, :2] == 0).all() and abs(gravity[:, 2] + 9.81).mean() == pytest.approx(0.08, abs=0.04)
    put(env, [0.1, 0.3], [0.2, -0.5])
    env.engine.step(3, torch.full((64, 1), 4.0))
    for i in (0, 17, 63):
        data = mujoco.MjData(model)
        own = copy.copy(model)
        own.body_mass[:], own.body_inertia[:], own.opt.gravity[:] = mass[i], inertia[i], gravity[i]
        own.dof_damping[:] = env.engine.model_field("dof_damping").double().numpy()[i]
        mujoco.mj_setConst(own, data)
        mujoco.mj_resetData(own, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = [0.1, 0.3], [0.2, -0.5], 4.0
        data.qpos[:] = np.float32(data.qpos)
        data.qvel[:] = np.float32(data.qvel)
        for _ in range(3):
            mujoco.mj_step(own, data)
        tolerance = 1e-12 if engine == "mujoco" else 1e-5
        np.testing.assert_allclose(env.engine.field("qpos")[i].double().numpy(), data.qpos, atol=tolerance)
        np.testing.assert_allclose(env.engine.field("qvel")[i].double().numpy(), data.qvel, atol=10 * tolerance)


def test_the_default_randomization_composes_and_differs_by_world():
    env = make("cartpole", 16, "randomization=default")
    mass = env.engine.model_field("body_mass")[:, 1]
    assert mass.unique().numel() == 16 and 0.8 <= mass.min() and mass.max() <= 1.2
    env.step(zeros(env))
    other = make("cartpole", 16, "randomization=default")
    torch.testing.assert_close(other.engine.model_field("body_mass")[:, 1], mass)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_step_on_a_gpu_never_waits_for_it():
    overrides = (
        "task.events.kick={fn: reset_joints, when: interval, interval_s: [0.1, 0.5], position: [-0.1, 0.1]}",
        "task.observations.policy.joint_vel.history=3",
        "task.observations.policy.joint_pos.noise=0.02",
        "task.commands.goal={fn: uniform, low: [-1], high: [1]}",
        "task.rewards.acc={fn: joint_acc_l2, weight: -1e-5}",
    )
    env = isaacrl.make("cartpole", num_envs=256, device="cuda", overrides=overrides)
    action = torch.randn(256, 1, device="cuda")
    for _ in range(20):
        env.step(action)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            env.step(action)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_same_worlds_on_cpu_and_gpu():
    """Equal random numbers, so equal episodes up to float32 physics."""
    cpu, gpu = make(n=64), isaacrl.make("cartpole", num_envs=64, device="cuda")
    assert torch.equal(cpu.obs["policy"], gpu.obs["policy"].cpu())
    for t in range(25):
        action = torch.sin(torch.arange(64.0) + t)[:, None] * 0.2
        a, b = cpu.step(action), gpu.step(action.cuda())
    torch.testing.assert_close(a[0]["policy"], b[0]["policy"].cpu(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a[1], b[1].cpu(), atol=1e-5, rtol=1e-5)


def test_what_no_action_drives_holds_the_default_pose():
    """The Panda's fingers stay open at 0.04 m while the policy moves the arm; undriven motors get no torque."""
    env = make("franka_reach", 4)
    *_, info = env.step(zeros(env))
    assert info["target"][:, -2:].tolist() == [[pytest.approx(0.04)] * 2] * 4
    env.state.encoder_bias[:, -1] = 0.01  # a servo works in its encoder's coordinates
    *_, info = env.step(zeros(env))
    assert info["target"][0, -2:].tolist() == pytest.approx([0.04, 0.03])
    env = make(
        "franka_reach", 4, "asset=franka_torque", "task.actions={arm: {fn: effort, joints: [joint1], scale: 1.0}}"
    )
    *_, info = env.step(torch.ones(4, 1))
    assert info["target"][0].tolist() == pytest.approx([1.0] + [0.0] * 6 + [0.04] * 2)
