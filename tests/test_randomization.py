"""Randomization: what is drawn, what it does to the simulation, and that it stays what it was over resets."""

import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import isaacrl
from isaacrl import sim
from isaacrl.errors import UserError
from isaacrl.schema import SimConfig

JOINTS = ["hip1", "knee1", "hip2", "hip3", "hip4"]
LAWS = {
    "effort": {"effort_limit": 6.0},
    "position": {"kp": 60.0, "kd": 1.5, "effort_limit": 9.0},
    "velocity": {"kd": 2.0},
    "pd": {"kp": 40.0, "kd": 1.0, "effort_limit": 12.0, "saturation_effort": 15.0, "velocity_limit": 8.0},
}
FIELDS = ["actuation.kp", "actuation.kd", "actuation.strength", "actuation.delay"]


def make(task="cartpole", n=8, *overrides, **keys):
    return isaacrl.make(task, num_envs=n, device="cpu", overrides=overrides, **keys)


def entry(name, **keys):
    node = ", ".join(f"{k}: {v}" for k, v in keys.items())
    return f"randomization.{name}={{fn: randomize, {node}}}"


def hopper(actuators):
    from pathlib import Path

    path = str(Path(__file__).parent / "models" / "hopper.xml")
    asset = OmegaConf.merge(OmegaConf.structured(isaacrl.schema.AssetConfig), {"path": path, "actuators": actuators})
    return sim.make_scene(asset, OmegaConf.create({"physics_dt": 0.005}))


def engine_of(scene, n, name, fields=()):
    return sim.build(scene.model, n, "cpu", SimConfig(engine=name), scene.actuation, fields)


def start(engine, qpos, qvel):
    engine.write("qpos", qpos)
    engine.write("qvel", qvel)
    engine.forward()


# --- drives ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ["mujoco", "mjwarp", "warp"])
def test_each_world_moves_as_an_asset_with_its_gains_strength_and_delay(name, law):
    """Four worlds beside four engines of one world, whose asset has the drawn numbers in its own configuration."""
    n, rng = 4, np.random.default_rng(1)
    scene = hopper({"all": {"joints": [".*"], "law": law, **LAWS[law]}})
    engine = engine_of(scene, n, name, FIELDS)
    engine.allow_delay(7)
    drawn = {f: rng.uniform(0.5, 1.5, (n, 5)) for f in FIELDS[:3]}
    drawn["actuation.kp"] *= LAWS[law].get("kp", 0.0)
    drawn["actuation.kd"] *= LAWS[law].get("kd", 0.0)
    drawn["actuation.delay"] = rng.integers(0, 8, (n, 5)).astype(float)
    for f, value in drawn.items():
        engine.model_field(f).copy_(torch.tensor(value))
    qpos = torch.tensor(scene.model.qpos0).repeat(n, 1)
    qpos[:, 2] += 2.0
    qpos[:, 7:] = torch.tensor(rng.uniform(-0.5, 0.5, (n, 5)).astype(np.float32))
    qvel = torch.tensor(rng.normal(size=(n, scene.model.nv)).astype(np.float32))
    size = {"effort": 8.0, "velocity": 4.0}.get(law, 0.5)
    targets = torch.tensor(rng.uniform(-size, size, (4, n, 5)))
    start(engine, qpos, qvel)
    for target in targets:
        engine.step(3, target)
    for i in range(n):
        groups, kp, kd, strength, delay = {}, *(drawn[f][i] for f in FIELDS)
        for j, joint in enumerate(JOINTS):
            node = {"joints": [joint], "law": law, **LAWS[law], "delay": int(delay[j])}
            node |= {k: float(v[j] * strength[j]) for k, v in (("kp", kp), ("kd", kd)) if k in node}
            node |= {k: node[k] * strength[j].item() for k in ("effort_limit", "saturation_effort") if k in node}
            groups[joint] = node
        alone = engine_of(hopper(groups), 1, "mujoco")
        start(alone, qpos[i : i + 1], qvel[i : i + 1])
        for target in targets:
            alone.step(3, target[i : i + 1] * (torch.tensor(strength) if law == "effort" else 1.0))
        for f in ("qpos", "qvel", "qfrc_actuator"):
            ours, theirs = engine.field(f)[i].double().numpy(), alone.field(f)[0].numpy()
            size = max(1.0, np.abs(theirs).max())
            np.testing.assert_allclose(
                ours, theirs, rtol=0, atol=size * (1e-9 if name == "mujoco" else 2e-4), err_msg=f
            )
    others = engine_of(scene, 1, "mujoco")
    start(others, qpos[:1], qvel[:1])
    others.step(3, targets[0, :1])
    assert not np.allclose(others.field("qvel")[0], engine.field("qvel")[0].double(), atol=1e-2)


@pytest.mark.parametrize("name", ["mujoco", "mjwarp", "warp"])
def test_strength_scales_the_torque_and_its_limit(name):
    """10 N at most: a command of 8 N gives 4 N at half strength and 12 N at 1.5; one of 20 N gives 5 N and 15 N."""
    env = make("cartpole", 2, f"sim.engine={name}", entry("s", field="actuation.strength", range=[1, 1]))
    env.engine.model_field("actuation.strength").copy_(torch.tensor([[0.5], [1.5]]))
    for target, expected in ((8.0, [4.0, 12.0]), (20.0, [5.0, 15.0])):
        env.engine.step(1, torch.full((2, 1), target))
        assert env.engine.field("qfrc_actuator")[:, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("law", ["pd", "position"])
def test_a_drive_closes_its_loop_on_the_biased_encoder(law):
    """torque = kp (target - (q + bias)) - kd qd by hand; the policy sees q + bias, the critic q."""
    env = make(
        "cartpole",
        4,
        f"asset.actuators.cart={{joints: [slider], law: {law}, kp: 30, kd: 2, effort_limit: 1000}}",
        "~task.actions.effort",
        "task.actions.position={joints: [slider], scale: 1.0}",
        "task.observations.critic={true: {fn: joint_pos, biased: false}}",
        "task.decimation=1",
        entry("bias", field="encoder_bias", operation="add", range=[-0.1, 0.1]),
    )
    s = env.state
    bias = s.encoder_bias.clone()
    assert bias.shape == (4, 2) and bias.unique().numel() == 8 and bias.abs().max() <= 0.1
    torch.testing.assert_close(env.obs["policy"][:, :2], s.joint_pos + bias)
    torch.testing.assert_close(env.obs["critic"], s.joint_pos)
    q, qd = s.joint_pos[:, 0].clone(), s.joint_vel[:, 0].clone()
    env.step(torch.full((4, 1), 0.4))
    expected = 30 * (0.4 - (q + bias[:, 0])) - 2 * qd
    torch.testing.assert_close(s.joint_torque[:, 0], expected, atol=2e-4, rtol=1e-4)


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_nothing_accumulates_over_resets_and_entries_on_one_field_add_up():
    """50 resets: every value is what the present draws make of the compiled one, in the order of the entries."""
    env = make(
        "cartpole",
        6,
        entry("mass", when="startup", field="body_mass", range=[0.5, 2.0]),
        entry("load", field="body_mass", names="[cart]", operation="add", range=[1.0, 3.0]),
        entry("damping", field="dof_damping", operation="set", range=[0.1, 0.2], shared="true"),
        entry("com", field="body_ipos", separate="true", operation="add", range=[-0.1, 0.1], components=[0, 2]),
        entry("friction", field="geom_friction", components=[0], shared="true", range=[0.5, 1.5]),
    )
    model, fn = env.engine.model, {e.name: e.fn for e in env.events}
    factor = fn["mass"].draw.clone()[..., 0].double()
    seen = []
    for k in range(50):
        mask = torch.arange(6) % 2 == k % 2
        env.state.random.step += 1
        before = {f: env.engine.model_field(f).clone() for f in ("body_mass", "body_ipos", "geom_friction")}
        env._reset(mask)
        assert all(torch.equal(env.engine.model_field(f)[~mask], v[~mask]) for f, v in before.items())
        assert torch.equal(fn["mass"].draw[..., 0].double(), factor)
        mass = torch.tensor(model.body_mass)[1:] * factor
        cart = model.body("cart").id
        mass[:, cart - 1] += fn["load"].draw[:, 0, 0].double()
        torch.testing.assert_close(env.engine.model_field("body_mass")[:, 1:], mass)
        damping = env.engine.model_field("dof_damping")
        assert (damping[:, 0] == damping[:, 1]).all() and 0.1 <= damping.min() and damping.max() <= 0.2
        moved = env.engine.model_field("body_ipos") - torch.tensor(model.body_ipos)
        assert (moved[..., 1] == 0).all() and (moved[:, 0] == 0).all() and moved.abs().max() <= 0.1
        assert (moved[:, 1:, 0] != moved[:, 1:, 2]).all()
        ratio = env.engine.model_field("geom_friction") / torch.tensor(model.geom_friction)
        assert (ratio[..., 1:] == 1).all() and 0.5 <= ratio.min() and ratio.max() <= 1.5
        torch.testing.assert_close(ratio[..., 0], ratio[:, :1, 0].expand(-1, model.ngeom))
        seen.append(env.engine.model_field("dof_damping")[k % 2, 0].item())
    assert len(set(seen[::2])) > 20


def test_delays_are_whole_steps_on_top_of_the_assets_own():
    """Each of 1 to 4 equally often: the asset's one step and 0 to 3 more; a policy's target waits that long."""
    env = make(
        "cartpole",
        400,
        "asset.actuators.cart.delay=1",
        "task.decimation=1",
        entry("delay", when="startup", field="actuation.delay", operation="add", range=[0, 3]),
    )
    delay = env.engine.model_field("actuation.delay")[:, 0]
    assert set(delay.tolist()) == {1.0, 2.0, 3.0, 4.0}
    counts = torch.bincount(delay.long())[1:]
    assert ((counts - 100).abs() < 35).all(), counts  # four standard deviations
    env.step(torch.zeros(400, 1))
    ages = torch.zeros(400)
    for _ in range(6):
        ages += (env.state.joint_torque[:, 0] == 0.0).float()
        env.step(torch.full((400, 1), 0.1))
    assert torch.equal(ages - 1, delay.float())


def ks(values, cdf):
    """Kolmogorov and Smirnov's statistic times sqrt(n): above 1.95 in one of a thousand samples."""
    x = np.sort(np.asarray(values, float))
    n = len(x)
    p = np.array([cdf(v) for v in x])
    return max((np.arange(1, n + 1) / n - p).max(), (p - np.arange(n) / n).max()) * math.sqrt(n)


def test_draws_follow_their_distributions():
    env = make(
        "cartpole",
        3000,
        entry("u", when="startup", field="dof_damping", operation="set", range=[0.2, 0.6], names="[slider]"),
        entry("l", field="dof_armature", operation="set", range=[0.01, 1.0], distribution="log_uniform"),
        entry("g", field="encoder_bias", operation="set", range=[0.1, 0.02], distribution="gaussian"),
    )
    env.reset()
    get = env.engine.model_field
    assert ks(get("dof_damping")[:, 0], lambda v: (v - 0.2) / 0.4) < 1.95
    assert ks(get("dof_armature").flatten(), lambda v: math.log(v / 0.01) / math.log(100)) < 1.95
    bias = env.state.encoder_bias
    assert ks(bias.flatten(), lambda v: 0.5 + 0.5 * math.erf((v - 0.1) / 0.02 / math.sqrt(2))) < 1.95
    assert abs(np.corrcoef(bias[:, 0], bias[:, 1])[0, 1]) < 0.08


def test_the_same_worlds_whatever_their_number():
    few, many = make("ant", 3, "randomization=hard", seed=4), make("ant", 20, "randomization=hard", seed=4)
    for env in (few, many):
        env.reset()
    assert len(few.state.randomized) > 8
    for name, field in few.state.randomized.items():
        if hasattr(field, "value"):
            assert torch.equal(field.value, many.state.randomized[name].value[:3]), name
    for t in range(30):
        action = torch.full((20, 8), math.sin(t / 3))
        a, b = few.step(action[:3]), many.step(action)
        assert torch.equal(a[0]["policy"], b[0]["policy"][:3])


# --- when ------------------------------------------------------------------------------------------------------------


def test_a_schedule_grows_from_no_effect_to_the_whole_range():
    env = make(
        "cartpole",
        3,
        entry("scale", field="body_mass", range=[3, 3], schedule="{start: 4, end: 8}"),
        entry("set", field="dof_damping", operation="set", range=[0.5, 0.5], schedule="{start: 4, end: 8}"),
        entry("bias", field="encoder_bias", operation="add", range=[0.2, 0.2], schedule="{start: 4, end: 8}"),
    )
    model, seen = env.engine.model, []
    for _ in range(11):
        env.reset()
        share = min(max(int(env.state.random.step) - 4, 0) / 4, 1.0)
        seen.append(share)
        torch.testing.assert_close(
            env.engine.model_field("body_mass")[0], torch.tensor(model.body_mass) * (1 + 2 * share)
        )
        damping = torch.tensor(model.dof_damping)
        torch.testing.assert_close(env.engine.model_field("dof_damping")[0], damping + share * (0.5 - damping))
        torch.testing.assert_close(env.state.encoder_bias, torch.full((3, 2), 0.2 * share))
        env.step(torch.zeros(3, 1))
    assert seen[0] == seen[4] == 0.0 and seen[6] == 0.5 and seen[8] == seen[10] == 1.0


def test_pushes_follow_their_schedule_and_never_share_a_timer_with_the_tasks():
    push = "{when: interval, interval_s: [0.05, 0.05], velocity: [3, 3, 0], schedule: {start: 3, end: 6}}"
    env = make("ant", 16, f"task.events.push={push}", f"randomization.push={push}")
    assert len({e.stream for e in env.interval_events}) == 2 == len(env.timers)
    kicks = []
    for e in env.events:
        if e.name != "push":
            continue
        for step in (0, 3, 4, 6, 9):
            env.state.random.step.fill_(step)
            before = env.state.read("qvel").clone()
            e(env.state, env.everywhere)
            kicks.append((env.state.read("qvel") - before)[:, :2].abs().max().item())
    assert kicks[0] == kicks[1] == kicks[5] == 0.0 and 0 < kicks[2] <= 1.0 < 2.0 < kicks[3] <= 3.0
    assert kicks[4] != kicks[9]


def test_a_wrench_lasts_as_long_as_drawn_and_ends_with_the_episode():
    env = make(
        "ant",
        32,
        "~task.terminations.fallen",
        "randomization.wind={fn: wrench, when: interval, interval_s: [0.5, 0.5], duration_s: [0.1, 0.2], "
        "force: [0.5, 0.0, 0.0], of_weight: true, bodies: [torso]}",
    )
    s, body = env.state, env.state.robot.base
    weight = 9.81 * env.engine.model.body_mass.sum()
    length = torch.zeros(32)
    for _ in range(round(0.8 / env.step_dt)):
        env.step(torch.zeros(32, 8))
        length += env.engine.field("xfrc_applied")[:, body, 0] != 0
    seconds = length * env.step_dt
    assert 0.1 - env.step_dt <= seconds.min() and seconds.max() <= 0.2 + env.step_dt and seconds.unique().numel() > 1
    assert not env.engine.field("xfrc_applied").any()
    wind = next(e for e in env.events if e.name == "wind")
    wind(s, env.everywhere)
    applied = env.engine.field("xfrc_applied")[:, body]
    assert (applied[:, 0] != 0).all() and (applied[:, 0].abs() <= 0.5 * weight).all() and (applied[:, 1:] == 0).all()
    mask = torch.arange(32) < 16
    env._reset(mask)
    applied = env.engine.field("xfrc_applied")
    assert (applied[mask] == 0).all() and (applied[~mask][:, body, 0] != 0).all()
    env.step(torch.zeros(32, 8))
    assert (env.engine.field("xfrc_applied")[mask] == 0).all()


@pytest.mark.parametrize(
    ("task", "engine"), [("ant", "mujoco"), *(("cartpole", e) for e in ("mujoco", "mjwarp", "warp"))]
)
def test_resuming_is_exact(task, engine):
    overrides = (
        "randomization=hard",
        f"sim.engine={engine}",
        "task.episode_length_s=1.0",
        entry("load", field="body_mass", operation="add", range=[0.1, 0.3], schedule="{start: 10, end: 60}"),
    )
    env, other = make(task, 6, *overrides), make(task, 6, *overrides)
    act = lambda t: torch.sin(torch.arange(6.0)[:, None] + t).expand(6, env.task.num_actions)  # noqa: E731
    for t in range(30):
        env.step(act(t))
    for t in range(7):
        other.step(-act(t))
    other.load_state_dict(env.state_dict())
    resets = 0
    for t in range(30, 90):
        a, b = env.step(act(t)), other.step(act(t))
        assert torch.equal(a[0]["policy"], b[0]["policy"]) and torch.equal(a[1], b[1]), t
        resets += int((a[2] | a[3]).sum())
    for name, field in env.state.randomized.items():
        if hasattr(field, "value"):
            assert torch.equal(field.value, other.state.randomized[name].value), name
    assert resets > 0


def test_evaluation_looks_at_the_end_of_a_schedule(tmp_path):
    from isaacrl import config
    from isaacrl.env import Env

    cfg = config.compose(["task=cartpole", entry("m", field="body_mass", range=[2, 2], schedule="{start: 5, end: 9}")])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    node = config.load_stored(tmp_path / "config.yaml").randomization.m
    assert node.schedule == {"start": 5, "end": 9}
    cfg = config.load_stored(tmp_path / "config.yaml", ["num_envs=2", "device=cpu"], training=False)
    env = Env(cfg)
    torch.testing.assert_close(env.engine.model_field("body_mass")[0], 2 * torch.tensor(env.engine.model.body_mass))


# --- what goes together ----------------------------------------------------------------------------------------------


def test_optional_entries_are_left_out_with_one_line(capsys):
    env = make("cartpole", 4, "randomization=hard")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "randomization.push (the robot's base is fixed" in said and "wrench" in said
    names = [e.name for e in env.events]
    assert "mass" in names and "strength" in names and "push" not in names and "kp" not in names
    with pytest.raises(UserError, match=r"randomization\.p: the robot's base is fixed"):
        make("cartpole", 4, "randomization.p={fn: push, velocity: [1, 1, 0]}")


TASKS = ["ant", "humanoid", "go2_flat", "anymal_flat", "g1_flat", "h1_flat", "franka_reach", "cartpole_swingup"]


@pytest.mark.parametrize("group", ["none", "default", "hard"])
@pytest.mark.parametrize("task", TASKS)
def test_the_groups_go_with_every_robot(task, group, capsys):
    env = make(task, 4, f"randomization={group}")
    for _ in range(3):
        obs, *_ = env.step(torch.zeros(4, env.task.num_actions))
    assert torch.isfinite(obs["policy"]).all()
    if group != "none":
        assert env.engine.model_field("body_mass")[:, 1:].sum(1).unique().numel() == 4


BAD = {
    "body_mass": ("field=body_mas", "range=[1, 2]"),
    "actuation.strength": ("field=actuation.strenght", "range=[1, 2]"),
    "low <= high": ("field=body_mass", "range=[2, 1]"),
    "0 < low": ("field=body_mass", "range=[0, 1]", "distribution=log_uniform"),
    "did you mean scale": ("field=body_mass", "range=[1, 2]", "operation=scael"),
    "components: 3 is none of 0 to 2": ("field=geom_friction", "range=[1, 2]", "components=[3]"),
    "at most 999": ("field=actuation.delay", "range=[0, 5000]", "operation=add"),
    "has no actuation.kp": ("field=actuation.kp", "range=[1, 2]", "names=[slider]"),
    "nothing with a field actuation.kp": ("field=actuation.kp", "range=[1, 2]"),
    "randomize one of them": ("field=[actuation.strength, actuator_gainprm]", "range=[1, 2]"),
    "different sizes": ("field=[body_mass, geom_friction]", "range=[1, 2]"),
    "whole numbers": ("field=geom_condim", "range=[1, 2]"),
    "x.curriculum": ("field=body_mass", "range=[1, 2]", "when=startup", "curriculum=way"),
    "drawn once": ("field=body_mass", "range=[1, 2]", "when=startup", "schedule={start: 0, end: 9}"),
    "whole numbers with 0 <= start < end": ("field=body_mass", "range=[1, 2]", "schedule={start: 5, end: 2}"),
}


@pytest.mark.parametrize("says", BAD)
def test_mistakes_are_one_line(says):
    with pytest.raises(UserError) as e:
        make("cartpole", 2, entry("x", **dict(k.split("=", 1) for k in BAD[says])))
    assert says in str(e.value) and "\n" not in str(e.value) and "randomization" in str(e.value)


def test_a_wrench_at_resets_is_refused():
    with pytest.raises(UserError, match="when: interval"):
        make("ant", 2, "randomization.w={fn: wrench, duration_s: [1, 2], force: [1, 1, 1]}")


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_report_shows_every_entry(tmp_path):
    """Fresh draws at every reset, the full range of a schedule, and a picture with one panel an entry."""
    from PIL import Image

    from isaacrl.randomization import report

    env = make(
        "ant",
        64,
        "randomization=hard",
        entry("load", field="body_mass", names="[torso]", operation="add", range="[1.0, 2.0]", shared="true")[:-1]
        + ", schedule: {start: 1000, end: 2000}}",
    )
    rows = {r["key"]: r for r in report(env, tmp_path / "new" / "r.png", resets=10)}
    assert set(rows) == {e.key for e in env.events}
    load, mass = rows["randomization.load"], rows["randomization.mass"]
    assert load["draws"] == 640 and 1.0 <= load["min"] < 1.02 and 1.98 < load["max"] <= 2.0
    assert mass["draws"] == 64 * (env.engine.model.nbody - 1) and load["what"] == "add body_mass: uniform, 1 to 2"
    assert load["std"] == pytest.approx(1 / math.sqrt(12), rel=0.1)
    torso = float(env.engine.model.body("torso").mass[0])
    low, high = load["values"]["body_mass"]
    assert 0.6 * torso + 1 <= low < high <= 1.5 * torso + 2
    sampled = [r for r in rows.values() if "draws" in r]
    assert len(sampled) >= 12
    with Image.open(tmp_path / "new" / "r.png") as picture:
        assert picture.width == 3 * 422 + 22 and picture.height == -(-len(sampled) // 3) * 258 + 84
        colors = {c for _, c in picture.convert("RGB").getcolors(1 << 20)}
    assert {(0x4C, 0x78, 0xA8), (0x2A, 0x9D, 0x8F), (0xE0, 0x7A, 0x3F)} <= colors  # startup, reset, interval


def test_the_verb_prints_and_writes(tmp_path, monkeypatch, capsys):
    from isaacrl.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["randomization", "task=cartpole", "randomization=default", "device=cpu", "worlds=16", "resets=2"]) == 0
    out = capsys.readouterr().out
    assert "randomization.strength" in out and "scale body_mass, body_inertia" in out
    assert (tmp_path / "outputs" / "cartpole" / "randomization.png").is_file()
    assert main(["randomization", "task=cartpole", "worlds=0"]) == 2
    assert "worlds" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_drives_act_within_the_graph_and_nothing_waits():
    """The captured step equals the one made call by call but for rounding, and a step with resets asks the device
    nothing. Episodes are short, so that rounding does not grow."""
    overrides = ("randomization=hard", "sim.deterministic=true", "task.episode_length_s=0.06")
    envs = [
        isaacrl.make("go2_flat", num_envs=64, device="cuda", overrides=(*overrides, f"sim.graph={graph}"))
        for graph in ("true", "false")
    ]
    action = 0.3 * torch.randn(64, 12, device="cuda")
    for _ in range(25):
        a, b = (env.step(action)[0]["policy"] for env in envs)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            envs[0].step(action)
    finally:
        torch.cuda.set_sync_debug_mode("default")
