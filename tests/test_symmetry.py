"""Left-right symmetry: mirror images of robots, of observations and actions, and what PPO learns from them."""

import types

import mujoco
import pytest
import torch
from omegaconf import OmegaConf

import isaacrl
from isaacrl.algos import ppo, symmetry
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.schema import PPOConfig
from isaacrl.sim.mirror import Mirror
from isaacrl.task import container
from isaacrl.terms.mirror import TaskMirror

# Terms beyond those of the tasks themselves.
MORE = [
    "task.observations.more.joint_pos_cos={joints: '.*'}",
    "task.observations.more.joint_pos_sin={}",
    "task.observations.more.joint_torque={history: 3}",
    "task.observations.more.heading={}",
    "task.observations.more.contact_force={scale: 0.01, clip: 100.0}",
    "task.observations.more.height_scan={scale: 5.0, size: [0.4, 0.3], resolution: 0.1}",
    "task.observations.more.rays={azimuths: 7, elevation: [-50, -20], elevations: 2, far: 1.5, pos: [0.1, 0.0, 0.2]}",
    "task.sensors.imu={}",
    "task.observations.more.imu_ang_vel={history: 2}",
    "task.observations.more.imu_lin_acc={scale: 0.1}",
    "task.observations.more.imu_projected_gravity={}",
]


def task_mirror(env):
    asset = container(env.cfg.asset)
    return TaskMirror(asset["mirror"], env.state, env.task.actions, env.groups, env.command_terms, asset["feet"])


def quiet(task, num_envs=2, *overrides):
    """A task without noise, pushes and random resets."""
    drop = [f"~task.events.{name}" for name in ("push", "reset_base", "reset_joints")]
    env = isaacrl.make(task, num_envs=num_envs, device="cpu", overrides=[*drop, *overrides])
    for group in env.groups:
        group.noisy_uniform = group.noisy_std = False
    env.reset()
    return env


@pytest.mark.parametrize("task", ["go2_flat", "go2_rough", "g1_flat", "h1_flat", "anymal_flat", "humanoid"])
def test_mirroring_twice_changes_nothing(task):
    env = isaacrl.make(task, num_envs=2, device="cpu")
    mirror = task_mirror(env)
    for columns, n in [(mirror.actions, env.task.num_actions)] + [(mirror.groups[g.name], g.width) for g in env.groups]:
        x = torch.randn(3, 4, n)
        assert torch.equal(columns(columns(x)), x)
        assert not torch.equal(columns(x), x)


def test_signs_follow_from_the_axes_of_joints():
    mirror = task_mirror(isaacrl.make("g1_flat", num_envs=1, device="cpu")).robot
    for joint, sign in mirror.signs.items():
        assert sign == (1.0 if "pitch" in joint or "knee" in joint or "elbow" in joint else -1.0), joint
    assert mirror.partner("right_knee_joint") == "left_knee_joint" and mirror.partner("pelvis") == "pelvis"


def mirrored_state(env, mirror, qpos, qvel):
    """The mirror image of a state of a floating robot at the x-z plane of the world, by MuJoCo's conventions."""
    out_pos, out_vel = qpos.clone(), qvel.clone()
    out_pos[:7] *= torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0], dtype=qpos.dtype)
    out_vel[:6] *= torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=qpos.dtype)
    robot, default = env.state.robot, env.state.robot.default_qpos.to(qpos.dtype)
    index, sign = mirror.robot.joints(robot.joint_names)
    sign = torch.tensor(sign, dtype=qpos.dtype)
    at, dof = robot.qpos_adr, robot.qvel_adr
    out_pos[at] = default[at] + sign * (qpos[at] - default[at])[index]
    out_vel[dof] = sign * qvel[dof][index]
    return out_pos, out_vel


def hills(env):
    """Heights that terms see below them, though nothing stands on them: mirror images in worlds 0 and 1."""
    s, side = env.state, torch.tensor([1.0, -1.0])
    scan = next(t.fn for group in env.groups for t in group.terms if t.name == "height_scan")

    def above_ground(pos_w):
        y = pos_w[..., 1] * side.view(-1, *[1] * (pos_w.ndim - 2))
        return pos_w[..., 2] - 0.05 * torch.sin(3.0 * pos_w[..., 0] + 5.0 * y)

    def scanner(pos_w, heading):
        cos, sin = heading.cos()[:, None], heading.sin()[:, None]
        x, y = cos * scan.x - sin * scan.y, sin * scan.x + cos * scan.y
        z = torch.zeros_like(x)
        return above_ground(pos_w[:, None] + torch.stack((x, y, z), dim=2))

    s.above_ground, scan.scanner = above_ground, scanner


def command(env, value):
    """The command of world 0, and its mirror image in world 1; nothing is drawn."""
    memory = env.command_terms[0].memory
    memory["value"].copy_(torch.stack((value, value * torch.tensor([1.0, -1.0, -1.0]))))
    memory["steers"].fill_(False)
    memory["steps_left"].fill_(1000)
    env._read_commands()


@pytest.mark.parametrize("task", ["go2_flat", "g1_flat"])
def test_mirrored_actions_from_a_mirrored_state_keep_it_the_mirror_image(task):
    """Worlds 0 and 1 are mirror images; so are all their observations, before and after steps on the ground.

    Robots are symmetric to about 1e-5 m (their makers' figures are), and what comes of it grows at contacts.
    """
    env = quiet(task, 2, *MORE)
    mirror, engine, s = task_mirror(env), env.engine, env.state
    g = torch.Generator().manual_seed(0)
    qpos, qvel = engine.field("qpos").clone(), engine.field("qvel").clone()
    qpos[0, :3] += torch.tensor([0.3, 0.2, 0.01])
    quat = torch.tensor([1.0, 0.06, -0.05, 0.3], dtype=qpos.dtype)
    qpos[0, 3:7] = quat / quat.norm()
    qpos[0, 7:] += 0.1 * torch.randn(qpos[0, 7:].shape, generator=g)
    qvel[0] = 0.3 * torch.randn(qvel[0].shape, generator=g)
    qpos[1], qvel[1] = mirrored_state(env, mirror, qpos[0], qvel[0])
    engine.write("qpos", qpos)
    engine.write("qvel", qvel)
    engine.forward()
    s.refresh()
    hills(env)
    command(env, torch.tensor([0.5, 0.2, -0.4]))
    worlds = torch.ones(2, dtype=torch.bool)
    largest = {}

    def check(obs, tolerances):
        for name, value in obs.items():
            tolerance = tolerances.get(name, 0.01)
            expected, message = mirror.groups[name](value[0]), lambda m, n=name: f"{n}: {m}"
            torch.testing.assert_close(value[1], expected, rtol=tolerance, atol=tolerance, msg=message)
            largest[name] = torch.maximum(largest.get(name, torch.zeros(())), value[0].abs())

    check(env._observe(reset=worlds), dict.fromkeys(mirror.groups, 1e-5))
    touched = set()
    for _ in range(8):
        action = 0.5 * torch.randn(env.task.num_actions, generator=g)
        obs, reward, terminated, truncated, _ = env.step(torch.stack((action, mirror.actions(action))))
        assert not (terminated | truncated).any()
        pos, vel = engine.field("qpos"), engine.field("qvel")
        images = mirrored_state(env, mirror, pos[0], vel[0])
        torch.testing.assert_close(pos[1], images[0], rtol=0, atol=1e-3)
        torch.testing.assert_close(vel[1], images[1], rtol=0, atol=0.03)
        torch.testing.assert_close(reward[1], reward[0], rtol=0.01, atol=1e-3)
        check(obs, {"more": 0.02})
        touched |= {tuple(row) for row in s.contact("feet").in_contact.tolist()}
    assert len(touched) > 2  # feet touched one by one, and mirrored
    for name, size in largest.items():  # a wrong sign would have been seen
        assert size[mirror.groups[name].sign < 0].min() > 0.02, name


def test_a_clocks_feet_swap():
    env = quiet("g1_flat", 1, "task.observations.more.gait_clock={period: 0.8, offsets: [0.1, 0.4]}")
    columns = task_mirror(env).groups["more"]
    assert columns.index.tolist() == [1, 0, 3, 2] and columns.sign.tolist() == [1.0] * 4


# --- PPO -------------------------------------------------------------------------------------------------------------

SMALL = {"num_steps": 6, "hidden": [24, 16], "minibatches": 2, "epochs": 2, "precision": "float32", "init_std": 0.5}


def agent(num_envs, device_update=False, by_hand=True, **changes):
    env = isaacrl.make("go2_flat", num_envs=num_envs, device="cpu")
    algo = ppo.PPO(env, OmegaConf.merge(OmegaConf.structured(PPOConfig), SMALL | changes), seed=0)
    if not by_hand:
        algo.gradient = None
    if device_update:
        algo._use_device_update()
    algo._allocate()
    return algo


@pytest.mark.parametrize("way", ["by_hand", "autograd", "device"])
def test_the_update_is_that_of_a_doubled_rollout(way):
    """As without symmetry, from twice the worlds of which half are mirror images."""
    options = {"device_update": way == "device", "by_hand": way == "by_hand"}
    one, other = agent(3, symmetry="augment", **options), agent(6, **options)
    assert (one.gradient is not None) == (way == "by_hand")
    assert one.samples == other.samples == 36
    one._rollout(one.env.timer)
    one.truncated[2, 1] = True
    other.load_state_dict(one.state_dict())
    mirror = task_mirror(one.env)
    maps = {"obs": mirror.groups["policy"], "critic_obs": mirror.groups["critic"]}
    maps |= dict.fromkeys(("actions", "mean"), mirror.actions)
    for name in ("obs", "critic_obs", "actions", "mean", "reward", "terminated", "truncated"):
        x = getattr(one, name)
        getattr(other, name).copy_(torch.cat((x, maps[name](x) if name in maps else x), dim=1))
    with torch.no_grad():
        mean0 = torch.cat((one.mean, one.policy(maps["obs"](one.obs))), dim=1)
    experience = other._experience
    other._experience = lambda: experience() | {"mean0": mean0}
    values = one._values()
    other._values = lambda: tuple(torch.cat((x, x), dim=1) for x in values)
    before = one.params.value.detach().clone()
    expected, metrics = other._update(), one._update()
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(one.params.value, other.params.value, rtol=1e-4, atol=1e-6)
    assert not torch.equal(one.params.value, before)
    assert torch.equal(one.policy.normalizer.mean, other.policy.normalizer.mean)
    image = mirror.groups["policy"](one.policy.normalizer.mean)
    torch.testing.assert_close(image, one.policy.normalizer.mean, rtol=1e-4, atol=1e-5)


def test_a_symmetric_policy_gets_a_symmetric_gradient():
    """One step on all samples of a policy without hidden layers that is symmetric: it stays so."""
    algo = agent(4, symmetry="augment", hidden=[], minibatches=1, epochs=1, max_grad_norm=1e9, normalize_value=False)
    mirror = task_mirror(algo.env)
    obs, actions = mirror.groups["policy"], mirror.actions

    def image(weight):
        return actions(obs(weight).T).T

    with torch.no_grad():
        linear = algo.policy.net[0]
        linear.weight.copy_(0.5 * (linear.weight + image(linear.weight)))
        linear.bias.zero_()
        x = torch.randn(5, len(obs.index))
        torch.testing.assert_close(algo.policy(obs(x)), actions(algo.policy(x)), rtol=1e-4, atol=1e-5)
    algo._rollout(algo.env.timer)
    algo.gradient = None
    algo._optimizer_step = lambda finite, kl: None
    algo._update()
    grad = algo.policy.net[0].weight.grad
    assert grad.abs().max() > 1e-3
    torch.testing.assert_close(image(grad), grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        actions(algo.policy.net[0].bias.grad), algo.policy.net[0].bias.grad, rtol=1e-3, atol=1e-5
    )
    spread = algo.policy.log_std.grad
    torch.testing.assert_close(spread[actions.index], spread, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("way", ["by_hand", "autograd", "device"])
def test_an_asymmetric_policy_that_does_not_move_has_no_kl_divergence(way):
    """Its ratios are not 1, though: the mirror images of its actions are not as likely as they were."""
    options = {"device_update": way == "device", "by_hand": way == "by_hand"}
    algo = agent(4, symmetry="augment", epochs=1, minibatches=1, **options)
    with torch.no_grad():
        algo.policy.net[-1].bias.copy_(torch.linspace(-1.0, 1.0, 12))
    algo._rollout(algo.env.timer)
    metrics = algo._update()
    assert metrics["kl"].abs() < 1e-5 and metrics["clip_fraction"] > 0.3


def test_a_mirror_image_has_rewards_ends_and_values_of_its_original():
    algo = agent(2, symmetry="augment")
    algo._rollout(algo.env.timer)
    doubled = algo._experience()
    plain = ("reward", "terminated", "truncated", "value", "following")
    for name in plain:
        assert doubled[name].shape == (6, 4) and torch.equal(doubled[name][:, :2], doubled[name][:, 2:])
    for name in set(doubled) - set(plain):
        assert name == "mean0" or torch.equal(
            doubled[name][:, :2], getattr(algo, {"action": "actions"}.get(name, name))
        )
        assert doubled[name].shape[:2] == (6, 4) and not torch.equal(doubled[name][:, :2], doubled[name][:, 2:])


# --- the mirror loss -------------------------------------------------------------------------------------------------

LOSS = {"num_steps": 6, "epochs": 1, "minibatches": 1, "max_grad_norm": 1e9, "normalize_value": False}
WAYS = {"by_hand": {}, "autograd": {"by_hand": False}, "device": {"device_update": True}}


def moved_on(algo):
    """The agent with other parameters than those that its experience is from."""
    experience = algo._experience()
    algo._experience = lambda: experience
    with torch.no_grad():
        noise = torch.randn(algo.params.value.shape, generator=torch.Generator().manual_seed(3))
        algo.params.value.add_(0.2 * noise)
    algo._update_normalizers = algo._update_returns = lambda *x: None
    return algo


def gradient(way, coef, mode):
    """The gradient [parameters] of an agent whose policy has moved since its rollout; with the agent and metrics."""
    algo = agent(5, symmetry=mode, symmetry_coef=coef, **LOSS, **WAYS[way])
    algo._rollout(algo.env.timer)
    metrics = moved_on(algo)._update()
    return algo.params.grad.clone(), algo, metrics


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["loss", "augment+loss"])
def test_the_gradient_of_the_mirror_loss_is_autograds(way, mode):
    """As torch says of the paper's formula, on all samples at once; beside it nothing changes."""
    with_loss, algo, metrics = gradient(way, 3.0, mode)
    without, _, rest = gradient(way, 0.0, mode)
    fresh = moved_on(agent(5, symmetry=mode, **LOSS))
    mirror, policy = task_mirror(fresh.env), fresh.policy
    images = policy(mirror.groups["policy"](algo.obs))
    loss = torch.nn.functional.mse_loss(images, mirror.actions(policy(algo.obs)).detach())
    fresh.params.grad.zero_()
    loss.backward()
    difference, expected = (with_loss - without) / 3.0, fresh.params.grad
    assert expected.abs().max() > 1e-2
    assert (difference - expected).abs().max() < 2e-4 * max(expected.abs().max(), without.abs().max())
    torch.testing.assert_close(metrics["loss/symmetry"], loss.detach(), rtol=1e-4, atol=1e-6)
    for name in ("loss/policy", "loss/value", "kl", "clip_fraction", "entropy"):
        torch.testing.assert_close(metrics[name], rest[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_without_augmentation_all_other_losses_are_of_the_rollout_itself(way):
    """With weight 0 the update is that without symmetry, from normalizers that have seen both sides."""
    mine, algo, metrics = gradient(way, 0.0, "loss")
    plain = agent(5, **LOSS, **WAYS[way])
    plain.load_state_dict(agent(5, symmetry="loss", **LOSS).state_dict())
    for name in ("obs", "critic_obs", "actions", "mean", "reward", "terminated", "truncated"):
        getattr(plain, name).copy_(getattr(algo, name))
    plain.env.obs = algo.env.obs
    expected = moved_on(plain)._update()
    for name in ("loss/policy", "loss/value", "kl", "clip_fraction", "entropy"):
        # The standard deviation of advantages is one of twice the samples.
        torch.testing.assert_close(metrics[name], expected[name], rtol=0.02, atol=1e-5)
    assert (mine - plain.params.grad).abs().max() < 0.02 * plain.params.grad.abs().max()


@pytest.mark.parametrize("way", WAYS)
def test_minibatches_are_pairs(way):
    """Whatever their size: every sample comes right as far before its mirror image as half a minibatch is long."""
    algo = agent(5, symmetry="loss", minibatches=7, **WAYS[way])  # 60 samples: 8 a minibatch, two are left over
    algo._rollout(algo.env.timer)
    seen = []
    if way == "device":
        algo.on_device.prepare()
        algo.on_device.shuffle(0)
        assert algo.on_device.rows == 8
        order = algo.on_device.order[:56].long()
    else:
        order = symmetry.order(algo.symmetry, 60, 5, symmetry.rows(algo.symmetry, 60, 7), algo.generator)
    for rows in order.view(7, 2, 4):
        step, world = rows // 10, rows % 10
        assert torch.equal(step[0], step[1]) and torch.equal(world[0] + 5, world[1]) and (world[0] < 5).all()
        seen += rows[0].tolist()
    assert len(set(seen)) == 28
    metrics = algo._update()
    assert metrics["loss/symmetry"] > 0 and metrics["skipped_updates"] == 0


@pytest.mark.parametrize("way", WAYS)
def test_the_mirror_loss_makes_a_policy_symmetric(way):
    """On one rollout whose rewards teach nothing."""
    left = {}
    for coef in (0.0, 20.0):
        options = {"epochs": 20, "minibatches": 2, "schedule": "fixed", "lr": 3e-3, "entropy_coef": 0.0}
        algo = agent(6, symmetry="loss", symmetry_coef=coef, **options, **WAYS[way])
        with torch.no_grad():
            algo.policy.net[-1].weight.mul_(20.0)
        algo._rollout(algo.env.timer)
        algo.reward.zero_()
        mirror = task_mirror(algo.env)
        for _ in range(3):
            algo._update_normalizers = lambda *x: None
            algo._update()
        with torch.no_grad():
            mean = algo.policy(algo.obs)
            apart = algo.policy(mirror.groups["policy"](algo.obs)) - mirror.actions(mean)
            left[coef] = float(apart.square().mean() / mean.square().mean())
    assert left[0.0] > 0.3 and left[20.0] < 0.03, left


@pytest.mark.parametrize("mode", ["augment", "loss", "augment+loss"])
def test_training_runs_with_symmetry(mode):
    algo = agent(4, symmetry=mode)
    metrics = algo.iterate(algo.env.timer)
    assert ("loss/symmetry" in metrics) == (mode != "augment")
    assert metrics["skipped_updates"] == 0 and torch.isfinite(algo.params.value).all()


# --- mistakes --------------------------------------------------------------------------------------------------------


def strange(s):
    """Two numbers of which nothing says how they look in a mirror, [E, 2]."""
    return s.base_lin_vel_b[:, :2]


def lateral(s):
    """Forward and lateral speed [m/s], [E, 2]."""
    return s.base_lin_vel_b[:, :2]


lateral.mirror = [1, -1]


def wrong(s):
    return s.base_lin_vel_b[:, :2]


wrong.mirror = lambda term, mirror: ([1, 1], [1, 1])


class Speed:
    """Base velocity [m/s], [E, 3], by a class."""

    mirror = "vector"

    def __call__(self, s):
        return s.base_lin_vel_b

    def __init__(self, s):
        pass


def test_a_users_term_brings_its_own_rule():
    own = [f"task.observations.more.{n}={{fn: '{__name__}:{n}'}}" for n in ("lateral", "Speed")]
    columns = task_mirror(quiet("go2_flat", 1, *own)).groups["more"]
    assert columns.sign.tolist() == [1, -1, 1, -1, 1] and columns.index.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"task.observations.policy.x={{fn: '{__name__}:strange'}}", r"policy.x: nothing says how it looks"),
        (f"task.observations.policy.x={{fn: '{__name__}:wrong'}}", r"policy.x: mirroring its 2 columns twice"),
        ("task.observations.policy.x={fn: joint_pos, joints: 'FL_.*'}", r"policy.x: 'FL_hip_joint' is there without"),
        ("task.observations.policy.heading={direction: [0.0, 1.0]}", r"policy.heading: the direction must be along"),
        ("task.observations.policy.base_lin_vel={clip: [-1.0, 2.0]}", r"policy.base_lin_vel: scale and clip"),
        ("task.observations.policy.joint_pos.scale=[1,2,3,4,5,6,7,8,9,10,11,12]", r"policy.joint_pos: scale and clip"),
        ("task.actions.position={joints: ['FL_.*', 'RL_.*']}", r"task.actions: 'FL_hip_joint' is there without"),
        (
            ["task.actions.position.joints='.L_.*'", "task.actions.right={fn: position, joints: '.R_.*', scale: 0.3}"],
            r"task.actions.position: joints 'FL_hip_joint' and 'FR_hip_joint' are mirror images, their actions are not",
        ),
        ("asset.default_pose.FL_thigh_joint=0.5", r"asset.mirror: in the default pose body 'F._foot'"),
    ],
)
def test_what_has_no_mirror_image_is_told(override, message):
    env = quiet("go2_flat", 1, *([override] if isinstance(override, str) else override))
    with pytest.raises(UserError, match=message) as e:
        symmetry.build(env, "critic")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({}, r"asset.mirror: not given"),
        ({"LF_(.*)": r"RF_\1"}, r"asset.mirror: 'LF_\(\.\*\)' matches no joint"),
        ({"FL_(.*)": r"FX_\1"}, r"asset.mirror: the mirror image 'FX_hip_joint' of joint 'FL_hip_joint'"),
        ({"FL_(.*)": r"FR_\2"}, r"asset.mirror: 'FL_\(\.\*\): FR_.2' is no pattern"),
        ({"FL_(.*": "x"}, r"is no pattern"),
        ({"FL_(.*)": r"RL_\1", "FR_(.*)": r"RR_\1"}, r"asset.mirror: in the default pose body"),  # front and rear
        ({"FL_(.*)": r"FR_\1"}, r"asset.mirror: in the default pose body 'R._thigh'"),  # one pair only
        ({"FL_(.*)": r"FR_\1", "RL_(.*)": r"FR_\1"}, r"two mirror images"),
    ],
)
def test_a_mirror_map_that_does_not_fit_the_robot_is_told(patterns, message):
    env = isaacrl.make("go2_flat", num_envs=1, device="cpu")
    robot = env.state.robot
    with pytest.raises(UserError, match=message) as e:
        Mirror(patterns, env.engine.model, robot.base, robot.default_qpos.numpy())
    assert "\n" not in str(e.value)


PAIR = """<mujoco><worldbody><body name="base"><geom size="0.1"/><freejoint/>
  <body name="l" pos="0 {y} 0"><joint name="jl" axis="{axis}"/><geom size="0.05" pos="0.1 0 0" mass="{mass}"/></body>
  <body name="r" pos="0 -0.2 0"><joint name="jr" axis="1 0 0"/><geom size="0.05" pos="0.1 0 0" mass="1"/></body>
</body></worldbody></mujoco>"""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, None),
        ({"axis": "-1 0 0"}, None),
        ({"axis": "0 1 0"}, "joint 'jr' is no mirror image of 'jl'"),
        ({"y": "0.25"}, "body 'r' is 0.050 m from the mirror image of 'l'"),
        ({"mass": "1.2"}, "bodies 'l' and 'r' are no mirror images: 1.2 and 1 kg"),
    ],
)
def test_what_a_robot_must_have_to_be_symmetric(values, message):
    text = PAIR.format(**({"y": "0.2", "axis": "1 0 0", "mass": "1"} | values))
    model = mujoco.MjModel.from_xml_string(text)
    if message is None:
        signs = Mirror({"l": "r", "jl": "jr"}, model, 1, model.qpos0).signs
        assert signs == dict.fromkeys(("jl", "jr"), 1.0 if "axis" in values else -1.0)
        return
    with pytest.raises(UserError, match=f"asset.mirror: .*{message}"):
        Mirror({"l": "r", "jl": "jr"}, model, 1, model.qpos0)


def test_a_task_in_python_that_makes_its_own_observations_is_refused():
    env = quiet("go2_flat", 1)
    own = type("Own", (type(env.task),), {"observations": lambda self, s: None})
    env = types.SimpleNamespace(task=own(), cfg=env.cfg)
    with pytest.raises(UserError, match=r"algo.symmetry: nothing says how observations\(\)"):
        symmetry.build(env, "critic")


def test_the_key_is_known_and_explained(capsys):
    from isaacrl.cli import main

    main(["help", "algo.symmetry"])
    assert "augment" in capsys.readouterr().out
    with pytest.raises(UserError, match="algo.symmetry"):
        isaacrl.make("go2_flat", num_envs=1, device="cpu", overrides=["algo.symmetry=both"])
    assert isinstance(isaacrl.make("go2_flat", num_envs=1, device="cpu"), Env)
