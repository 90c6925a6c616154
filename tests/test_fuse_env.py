"""Environments whose steps are compiled (`isaacrl.fuse`) beside ones that carry out operation after operation."""

import sys
import textwrap

import fuse_lanes
import pytest
import torch
from fuse_programs import quickly  # noqa: F401  a fixture
from fused_kernel import optimization

from isaacrl.algos.ppo import PPO
from isaacrl.errors import UserError
from isaacrl.library import make

E = 101  # no number of anything else
TASKS = (
    *("anymal_flat", "ant", "cartpole", "cartpole_swingup", "franka_reach", "g1_flat", "go2_flat", "go2_rough"),
    *("h1_flat", "humanoid", "humanoid_curriculum"),
)
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def pair(task, *overrides, device="cpu", num_envs=E):
    """(plain, compiled): equal environments in which some worlds are about to end."""
    envs = []
    for fused in (False, True):
        env = make(task, num_envs=num_envs, device=device, seed=3, overrides=overrides)
        env.fused = fused
        env.stagger()
        env.state.episode_step[::3] = env.max_episode_steps - 2
        envs.append(env)
    return envs


def actions(env, steps):
    g = torch.Generator().manual_seed(0)
    shape = (steps, env.num_envs, env.task.num_actions)
    return torch.randn(shape, generator=g).to(env.device)


def left_by(env, action):
    """All that a step gives and leaves, by name."""
    obs, reward, terminated, truncated, info = env.step(action)
    out = {"reward": reward, "terminated": terminated, "truncated": truncated, "spoilt": env.spoilt}
    out |= {f"returned {k}": v for k, v in obs.items()} | {f"final {k}": v for k, v in info["final_obs"].items()}
    out |= {"target": info["target"], "nonfinite": info["nonfinite"], "overflow": env.engine.overflow}
    out |= {f"command {k}": v for k, v in env.state.commands.items()}
    return out | env.tensors() | {k: env.engine.field(k) for k in ("qpos", "qvel")}


def agree(plain, fused, *, tolerance=1e-5):
    assert plain.keys() == fused.keys()
    for name, x in plain.items():
        y = fused[name]
        if x.dtype.is_floating_point:  # relative to the largest of all worlds
            scale = max(1.0, x.nan_to_num(0.0, 0.0, 0.0).abs().max().item()) if x.numel() else 1.0
            one, other, keys = y / scale, x / scale, {"rtol": 0, "atol": tolerance, "equal_nan": True}
            torch.testing.assert_close(one, other, **keys, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert torch.equal(x, y), name


def compare(envs, steps=4):
    ends = 0
    for action in actions(envs[0], steps):
        plain, fused = (left_by(env, action) for env in envs)
        agree(plain, fused)
        ends += int((plain["terminated"] | plain["truncated"]).sum())
    assert envs[1]._program.kernels
    return ends


@pytest.mark.parametrize("task", TASKS)
def test_every_task_steps_as_without_compiling(task):
    """Resets in the steps that are compared, random numbers and memory of terms included."""
    envs = pair(task)
    assert compare(envs) >= E // 3
    left = {"aten.add_.Tensor"}  # the counter that all worlds share
    if envs[0].curricula:  # so is progress, of all worlds
        left |= set(envs[1]._program.left) & {"aten.mean.default", "aten.sum.default", "aten.copy_.default"}
    assert set(envs[1]._program.left) == left
    # From a checkpoint of the other, and from a reset.
    envs[1].load_state_dict(envs[0].state_dict())
    compare(envs, 1)
    for env in envs:
        env.reset()
    agree(*({f"obs {k}": v for k, v in env.obs.items()} for env in envs), tolerance=0)
    compare(envs, 1)
    read = [env.read_metrics() for env in envs]
    assert read[0].keys() == read[1].keys() and read[0] == pytest.approx(read[1], rel=1e-4, abs=1e-5)


def test_randomized_worlds():
    """Draws at resets and at times, delays of observations, models of their own."""
    envs = pair(
        "go2_flat",
        "randomization=hard",
        "task.events.kick={fn: push, when: interval, interval_s: [0.02, 0.04], velocity: [0.5, 0.5, 0.1]}",
        "task.observations.policy.joint_vel.history=3",
        "task.observations.policy.joint_pos.delay=[0, 2]",
    )
    assert compare(envs) >= E // 3
    for name, field in envs[0].engine._model_fields.items():
        torch.testing.assert_close(envs[1].engine.model_field(name), field, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ["mjwarp", "warp"])
def test_other_engines(lab, engine):
    """With kernels of their own, as other tests compile them."""
    mass = "{fn: randomize, field: [body_mass, body_inertia], range: [0.5, 2.0]}"
    events = [  # the second one after a reset leaves what the first one wrote
        "task.events.kick={fn: reset_joints, when: interval, interval_s: [0.02, 0.06], position: [-0.1, 0.1]}",
        "task.events.turn={fn: 'fused_lab:turn'}",
    ]
    with optimization(None):
        envs = pair("cartpole", f"sim.engine={engine}", f"randomization.mass={mass}", *events, num_envs=67)
        assert compare(envs, 5) >= 67 // 3
    for name, field in envs[0].engine._model_fields.items():
        torch.testing.assert_close(envs[1].engine._model_fields[name], field, msg=lambda m, n=name: f"{n}: {m}")


MODULE = """
import torch
import isaacrl
from isaacrl.terms import Term

class smooth(Term):
    '''A running mean, and a ring of what it was, [E].'''
    def __init__(self, s, *, share: float = 0.5):
        self.share = share
    def init(self, s):
        speed = s.joint_vel[:, 1].abs()
        return {"mean": speed, "ring": speed[:, None].repeat(1, 6)}
    def advance(self, s):
        mean = self.share * self.mean + (1 - self.share) * s.joint_vel[:, 1].abs()
        return {"mean": mean, "ring": torch.cat((mean[:, None], self.ring[:, :-1]), dim=1)}
    def __call__(self, s):
        return self.mean + self.ring.amax(dim=1) - torch.tensor([0.5, 0.25])[1] * self.ring.std(dim=1)

class wave(Term):
    '''A command that is computed, not stored, [E, 2].'''
    def init(self, s):
        return {"phase": s.uniform(1)[:, 0]}
    def advance(self, s):
        return {"phase": (self.phase + 0.1) % 1.0}
    def __call__(self, s):
        angle = 6.28 * self.phase
        return torch.stack((torch.sin(angle), torch.cos(angle)), dim=1)

def follows(s):
    return s.command("wave")[:, 0] * s.joint_pos[:, 0]

def columns(s):
    value = s.joint_pos[:, [1, 0]]
    value[:, 1] = 0.5
    return value * s.joint_vel.new_tensor([1.0, 2.0])

class Balance(isaacrl.Task):
    num_actions = 1
    def setup(self, s, cfg):
        super().setup(s, cfg)
        self.calls, self.highest = 0, torch.zeros(s.num_envs, 1, device=s.device)
    def pre_physics_step(self, s, action):
        return 5.0 * action
    def observations(self, s):
        return {"policy": torch.cat([s.joint_pos, s.joint_vel, self.highest], 1)}
    @property
    def reward_names(self):
        return ["height", "speed"]
    def rewards(self, s):
        self.highest.copy_(torch.maximum(self.highest, s.joint_pos[:, 1:]))
        return torch.stack((s.body("pole").pos_w[:, 0, 2], s.joint_vel.norm(dim=1)), dim=1)
    def dones(self, s):
        return s.joint_pos[:, 1].abs() > 0.5, torch.zeros(s.num_envs, dtype=torch.bool, device=s.device)
    def reset(self, s, mask):
        self.highest.masked_fill_(mask[:, None], 0.0)
        s.write_joints(s.robot.default_joint_pos.expand(s.num_envs, 2), s.joint_vel + 0.1, mask)

def turn(s, mask):
    qpos = s.read("qpos").clone()
    qpos[:, 1] += 0.125
    s.write("qpos", qpos, mask)

def asks(s):
    return s.joint_pos[:, 0] * s.joint_vel.abs().max().item()

def chooses(s):
    late = s.episode_step > 3
    out = s.joint_pos[:, 0].clone()
    out[late] = s.joint_vel[:, 0][late]
    return out

class keeps:
    '''Memory that is none.'''
    def __init__(self, s):
        self.before = s.joint_pos[:, 0].clone()
    def __call__(self, s):
        change, self.before = s.joint_pos[:, 0] - self.before, s.joint_pos[:, 0].clone()
        return change
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A user's package, and the configuration of a task of theirs."""
    (tmp_path / "fused_lab.py").write_text(MODULE)
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "balance.yaml").write_text(
        textwrap.dedent("""
        defaults: [{override /asset: cartpole}, _self_]
        name: balance
        env: 'fused_lab:Balance'
        physics_dt: 0.01
        episode_length_s: 1.0
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("fused_lab", None)


def test_terms_of_a_user(lab):
    """Memory in a class; a command that is computed; numbers made in the step; an operation that no kernel holds."""
    envs = pair(
        "cartpole",
        "task.rewards.calm={fn: 'fused_lab:smooth', weight: -0.5}",
        "task.commands.wave={fn: 'fused_lab:wave'}",
        "task.rewards.follows={fn: 'fused_lab:follows', weight: 1.0}",
        "task.observations.policy.columns={fn: 'fused_lab:columns'}",
    )
    assert compare(envs) >= E // 3
    assert "aten.std.correction" in envs[1]._program.left
    envs[1].load_state_dict(envs[0].state_dict())
    compare(envs, 2)


def test_a_task_as_one_class(lab):
    envs = pair("balance")
    assert compare(envs, 5) >= E // 3
    torch.testing.assert_close(envs[1].task.highest, envs[0].task.highest)


@pytest.mark.parametrize(
    ("term", "why"),
    [
        ("asks", r"asks the GPU for a value \(line \d+ of .*fused_lab.py: .*item"),
        ("chooses", r"asks the GPU for a value \(line \d+ of .*fused_lab.py: .*late"),
        ("keeps", "reads a tensor of the step before that is no longer kept; .*init and advance"),
    ],
)
def test_terms_that_no_graph_can_hold(lab, term, why):
    plain, fused = pair("cartpole", f"task.rewards.odd={{fn: 'fused_lab:{term}', weight: 1.0}}")
    plain.step(torch.zeros(E, 1))
    with pytest.raises(UserError, match=f"^task.rewards.odd: {why}.*sim.graph=false") as e:
        fused.step(torch.zeros(E, 1))
    assert "\n" not in str(e.value)


@fuse_lanes.NEEDED
@pytest.mark.parametrize("lanes", [8, 32])
def test_a_step_by_lanes_in_any_order(lanes, monkeypatch, tmp_path):
    """The text that a GPU gets, with few worlds."""
    fuse_lanes.use(monkeypatch, tmp_path, lanes)
    task, overrides = ("go2_flat", ["randomization=hard"]) if lanes == 32 else ("g1_flat", [])
    compare(pair(task, *overrides, num_envs=5), 2)


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "overrides"),
    [("humanoid", ()), ("go2_flat", ()), ("g1_flat", ("randomization=hard",)), ("cartpole", ("sim.engine=mjwarp",))],
)
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_steps_on_a_gpu_are_those_without_compiling(device, task, overrides):
    """Up to float32: what differs in the last bit grows with the physics. Every step starts from the same state."""
    envs = pair(task, *overrides, device=device, num_envs=1013)
    for k, action in enumerate(actions(envs[0], 5)):
        plain, fused = (left_by(env, 0.3 * action) for env in envs)
        if k:  # the first one was the recording
            tight = {"episode_step", "random_step", "truncated", "whole"}
            agree(*({n: x for n, x in found.items() if n in tight} for found in (plain, fused)))
        ended = plain["terminated"] | plain["truncated"] | fused["terminated"] | fused["truncated"]
        for name in ("reward", "returned policy", "action", "qpos"):
            difference = (plain[name] - fused[name])[~ended].abs().flatten()
            assert difference.quantile(0.99) < 1e-3, name
        envs[1].load_state_dict(envs[0].state_dict())


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_terms_of_a_user_on_a_gpu(device, lab):
    envs = pair(
        "cartpole",
        "task.rewards.calm={fn: 'fused_lab:smooth', weight: -0.5}",
        "task.commands.wave={fn: 'fused_lab:wave'}",
        "task.observations.policy.columns={fn: 'fused_lab:columns'}",
        device=device,
    )
    for action in actions(envs[0], 4):
        plain, fused = (left_by(env, action) for env in envs)
        agree(plain, fused, tolerance=1e-3)


def trained(graph, iterations=3):
    """Metrics of PPO, iteration by iteration."""
    overrides = [f"sim.graph={graph}", "algo.num_steps=16", "algo.minibatches=4", "algo.epochs=2"]
    env = make("cartpole", num_envs=512, device="cuda", seed=5, overrides=overrides)
    algo = PPO(env, env.cfg.algo, seed=5)
    env.stagger()
    algo.prepare(env.timer)
    rows = []
    for _ in range(iterations):
        metrics = {k: float(v) for k, v in algo.iterate(env.timer).items()}
        rows.append(metrics | {f"env {k}": v for k, v in env.read_metrics().items()})
    return rows


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_ppo_with_graphs_learns_the_same(device):
    """With graphs twice: the same numbers. Without: as far as float32 allows (episodes of a random policy: 2%)."""
    graphs, again, plain = trained(True), trained(True), trained(False)
    assert graphs == again
    for row, other in zip(graphs, plain):
        assert row.keys() == other.keys()
        for name in ("env reward", "env episode_length", "loss/value", "entropy", "std"):
            assert row.get(name) == pytest.approx(other.get(name), rel=0.02), name
