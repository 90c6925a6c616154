"""Actuator networks: what engines apply is what torch and onnxruntime make of the same file, over resets and all."""

import sys
import warnings

import mujoco
import numpy as np
import pytest
import torch
import warp as wp
from omegaconf import OmegaConf
from torch import nn

from isaacrl import sim
from isaacrl.errors import UserError
from isaacrl.schema import SimConfig
from isaacrl.sim.actuator_files import ACTIVATIONS, read_net
from isaacrl.sim.actuator_net import Evaluator
from isaacrl.sim.actuators import actuation_of, add_actuators
from isaacrl.sim.fused import kernel, layout, tables

ENGINES = ("mujoco", "mjwarp", "warp")
ARM = """<mujoco><option timestep="0.004" integrator="implicitfast"/><default><joint damping="0.1" armature="0.05"/>
<geom contype="0" conaffinity="0"/></default><worldbody>
<body><joint name="hip" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 -0.3" size="0.03"/>
<body pos="0 0 -0.3"><joint name="knee" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 -0.3" size="0.03"/>
<body pos="0 0 -0.3"><joint name="ankle" axis="1 0 0"/><geom type="capsule" fromto="0 0 0 0.1 0 0" size="0.02"/>
<body pos="0.1 0 0"><joint name="toe" axis="0 1 0"/><geom type="sphere" size="0.02"/></body>
</body></body></body></worldbody></mujoco>"""


class Recurrent(nn.Module):
    """As legged_gym's for the ANYdrive: two LSTM layers of 8 units, then a layer down to the torque."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]):
        out, state = self.lstm(x, state)
        return self.head(out[:, -1]), state


def mlp(inputs=6, activation=nn.Softsign, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(inputs, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 1)]
    for layer in layers[::2]:
        layer.weight.data *= 3.0  # torques of a few N m
    return nn.Sequential(*layers)


def recurrent():
    torch.manual_seed(1)
    net = Recurrent()
    for p in net.parameters():
        p.data *= 3.0
    return net


def save(net, file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if file.suffix == ".onnx":
            names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
            torch.onnx.export(net, (torch.zeros(3, 6),), str(file), dynamo=False, **names)
        else:
            torch.jit.script(net).save(str(file))
    return str(file)


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Four joints: an MLP with all clips, one from ONNX with other settings, an LSTM, and law pd."""
    folder = tmp_path_factory.mktemp("nets")
    limits = {"effort_limit": 6.0, "saturation_effort": 9.0, "velocity_limit": 8.0}
    return {
        "hip": {"joints": "hip", "law": "network", "file": save(mlp(), folder / "hip.pt"), "pos_scale": 2.0,
                "vel_scale": 0.2, "torque_scale": 4.0, "delay": 2} | limits,
        "knee": {"joints": "knee", "law": "network", "file": save(mlp(6, nn.ELU, 2), folder / "knee.onnx"),
                 "lags": [0, 4, 1], "input_order": "vel_pos", "pos_scale": -1.0, "effort_limit": 4.0},
        "ankle": {"joints": "ankle", "law": "network", "file": save(recurrent(), folder / "ankle.pt"),
                  "torque_scale": 2.0},
        "toe": {"joints": "toe", "law": "pd", "kp": 3.0, "kd": 0.1},
    }  # fmt: skip


def build(groups, engine, n=5):
    spec = mujoco.MjSpec.from_string(ARM)
    chosen = add_actuators(spec, groups)
    model = spec.compile()
    return sim.build(model, n, "cpu", SimConfig(engine=engine, num_threads=1), actuation_of(model, chosen))


class Reference:
    """The torques [E, 4], by the modules themselves and histories kept here."""

    def __init__(self, n):
        self.hip, self.knee, self.ankle = mlp(), mlp(6, nn.ELU, 2), recurrent()
        self.n, self.limits = n, (9.0, 8.0, 6.0)
        self.reset(torch.ones(n, dtype=torch.bool))

    def reset(self, mask):
        if mask.all():
            self.past = [torch.zeros(self.n, 2, 4) for _ in range(5)]  # newest first: [error, velocity] by joint
            self.targets = [None] * 3
            self.state = (torch.zeros(2, self.n, 8), torch.zeros(2, self.n, 8))
        else:
            for x in self.past:
                x[mask] = 0.0
            for x in self.targets:
                x[mask] = torch.nan
            for x in self.state:
                x[:, mask] = 0.0

    @torch.no_grad()
    def __call__(self, target, qpos, qvel):
        old = [x if x is not None else torch.full_like(target, torch.nan) for x in self.targets]
        self.targets = [target.clone(), *(torch.where(x.isnan(), target, x) for x in old[:2])]
        late = torch.cat((self.targets[2][:, :1], target[:, 1:]), dim=1)
        self.past = [torch.stack((late - qpos, qvel), dim=1), *self.past[:-1]]
        error = [x[:, 0] for x in self.past]
        speed = [x[:, 1] for x in self.past]
        hip = torch.stack([2.0 * error[k][:, 0] for k in range(3)] + [0.2 * speed[k][:, 0] for k in range(3)], dim=1)
        knee = torch.stack([speed[k][:, 1] for k in (0, 4, 1)] + [-error[k][:, 1] for k in (0, 4, 1)], dim=1)
        ankle = torch.stack((error[0][:, 2], speed[0][:, 2]), dim=1)[:, None]
        torque, self.state = self.ankle(ankle, self.state)
        stall, fastest, most = self.limits
        droop = stall / fastest * qvel[:, 0]
        high, low = (stall - droop).clamp(min=0.0).clamp(max=most), (-stall - droop).clamp(max=0.0).clamp(min=-most)
        return torch.stack(
            (
                torch.minimum(torch.maximum(4.0 * self.hip(hip)[:, 0], low), high),
                self.knee(knee)[:, 0].clamp(-4.0, 4.0),
                2.0 * torque[:, 0],
                3.0 * error[0][:, 3] - 0.1 * qvel[:, 3],
            ),
            dim=1,
        )


def run(engine, steps, seed=0, check=None):
    """Random targets with resets of random worlds; the controls of every step, [steps, E, 4]."""
    random, out = torch.Generator().manual_seed(seed), []
    for t in range(steps):
        target = 1.5 * torch.randn(engine.num_envs, 4, generator=random)
        mask = torch.rand(engine.num_envs, generator=random) < 0.15
        if mask.any() and t > 2:
            engine.reset(mask)
            engine.write("qpos", torch.randn(engine.num_envs, 4, generator=random), mask)
            engine.forward(mask)
        before = engine.field("qpos").float().clone(), engine.field("qvel").float().clone()
        engine.step(1, target)
        out.append(engine.field("ctrl").float().clone())
        if check is not None:
            check(t, target, mask if t > 2 else mask & False, before, out[-1])
    return torch.stack(out)


@pytest.mark.parametrize("name", ENGINES)
def test_engines_apply_what_the_networks_say(groups, name):
    engine, reference = build(groups, name), Reference(5)
    torques: list[torch.Tensor] = []
    engine.field("ctrl")

    def check(t, target, mask, before, control):
        if mask.any():
            reference.reset(mask)
        expected = reference(target, *before)
        torch.testing.assert_close(control, expected, rtol=1e-4, atol=2e-5, msg=lambda m: f"step {t}: {m}")
        torques.append(expected)

    run(engine, 40, check=check)
    seen = torch.stack(torques)
    assert (seen.std(dim=(0, 1)) > 0.3).all()  # each of them acts
    assert (seen[..., 1].abs() == 4.0).any() and (seen[..., 0].abs() < 5.9).any()  # and is clipped now and then


@pytest.mark.parametrize("name", ENGINES)
def test_several_physics_steps_at_once_are_the_same(groups, name):
    one, four = build(groups, name), build(groups, name)
    for engine in (one, four):
        engine.field("ctrl")
    random = torch.Generator().manual_seed(0)
    for _ in range(5):
        target = torch.randn(5, 4, generator=random)
        for _ in range(4):
            one.step(1, target)
        four.step(4, target)
        for field in ("ctrl", "qpos", "qvel"):
            torch.testing.assert_close(one.field(field), four.field(field), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ENGINES)
def test_memories_are_in_checkpoints_and_end_with_a_world_that_failed(groups, name):
    first, second = build(groups, name), build(groups, name)
    run(first, 10)
    run(second, 7, seed=1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(run(first, 5, seed=2), run(second, 5, seed=2))
    second.load_state_dict(first.state_dict())
    qvel = first.field("qvel").clone()
    qvel[3, 1] = 1e20
    first.write("qvel", qvel)
    target = torch.ones(5, 4)
    first.step(1, target)
    assert first.nonfinite.tolist() == [False, False, False, True, False]
    memory = first.law.net  # type: ignore[attr-defined]
    assert (memory[3] == 0.0).all() and (memory[[0, 1, 2, 4], 0, 0] != 0.0).all()
    second.step(1, target)
    assert torch.equal(first.field("ctrl")[:3], second.field("ctrl")[:3])


def module_of(name):
    return {"SiLU": nn.SiLU, "LeakyReLU": lambda: nn.LeakyReLU(0.2)}.get(name, getattr(nn, name))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("suffix", ["pt", "onnx"])
def test_every_activation_is_read_from_both_kinds_of_files(activation, suffix, tmp_path):
    net = mlp(6, module_of(activation))
    read = read_net("asset.actuators.a", {"file": save(net, tmp_path / f"net.{suffix}")})
    x = torch.randn(20, 6)
    y, _ = Evaluator(read, "cpu", torch.float32).run(x[None], torch.zeros(1, 20, 0))
    torch.testing.assert_close(y[0], net(x).detach(), rtol=1e-5, atol=1e-5)
    assert read.lags == (0, 1, 2) and len(read.layers) == 5


def test_the_kernel_has_every_activation(tmp_path):
    """Engine `warp` has its own."""
    errors = {}
    for activation in ACTIVATIONS:
        if activation in ("Softsign", "ELU"):
            continue  # in the arm above
        net = mlp(2, module_of(activation))
        group = {"law": "network", "file": save(net, tmp_path / f"{activation}.pt"), "lags": [0]}
        engine = build({"all": group}, "warp", 40)
        qpos = engine.field("qpos").clone()
        target = 2.0 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        engine.step(1, target)
        x = torch.stack((target - qpos, torch.zeros(40, 4)), dim=2)
        expected = net(x)[..., 0].detach()
        errors[activation] = float((engine.field("ctrl") - expected).abs().max() / expected.abs().max())
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.skipif(sys.platform != "linux", reason="Warp compiles for GPUs on Linux and Windows")
def test_the_kernel_with_networks_compiles_for_a_gpu(groups, tmp_path):
    spec = mujoco.MjSpec.from_string(ARM)
    law = add_actuators(spec, groups)
    model = spec.compile()
    t = tables.make_tables(model, actuation_of(model, law), lanes=4, nconmax=1, tolerance=1e-6, delays=3)
    k = kernel.build(t, scratch=layout.scratch_bytes(t.sizes, 4) * kernel.BLOCK // 4)
    wp.compile_aot_module(k.module, arch=90, module_dir=tmp_path, use_ptx=False)
    assert list(tmp_path.glob("*.cubin"))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 1)

    def forward(self, x):
        return self.second(x + torch.tanh(self.first(x)))


@pytest.mark.parametrize(
    ("net", "node", "message"),
    [
        (None, {"file": "drives.pt"}, "a.file: no file 'drives.pt' in"),
        (None, {}, "a.file: law 'network' needs it"),
        (mlp(4), {}, "a.lags: [0, 1, 2] make 6 inputs, a position error and a velocity each, but"),
        (mlp(6), {"lags": [0, -1, 2]}, "a.lags: got [0, -1, 2]; must be a list of ages in physics steps"),
        (mlp(6), {"input_order": "pos"}, "a.input_order: got 'pos'; one of pos_vel, vel_pos"),
        (mlp(6), {"vel_scale": "big"}, "a.vel_scale: got 'big'; must be a number"),
        (mlp(6), {"kp": 3.0}, "a.kp: law 'network' does not take it"),
        (nn.Sequential(nn.Linear(6, 2)), {}, "has 2 outputs; must have one, the torque of one joint"),
        (
            nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 1)),
            {},
            "has a layer LayerNorm, which is none of those known: Lin",
        ),
        (Residual(), {}, "computes something else than its layers in their order"),
        ("state_dict", {}, "is no TorchScript ("),
        ("text.onnx", {}, "is no ONNX file that onnxruntime can run ("),
    ],
)
def test_mistakes_are_told_in_one_line(net, node, message, tmp_path):
    file = tmp_path / "net.pt"
    if net == "state_dict":
        torch.save(mlp().state_dict(), file)
    elif isinstance(net, str):
        file = tmp_path / net
        file.write_text("no network")
    elif net is not None:
        save(net, file)
    given = {"law": "network"} | ({} if net is None else {"file": str(file)}) | node
    with pytest.raises(UserError) as e:
        add_actuators(mujoco.MjSpec.from_string(ARM), {"a": given})
    assert "asset.actuators." + message.partition(":")[0] in str(e.value) or message in str(e.value)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_an_asset_with_a_network_makes_an_environment(tmp_path):
    """From the configuration down to a step of the environment and the contract of the policy."""
    from isaacrl.config import compose
    from isaacrl.env import Env

    cfg = compose(["task=anymal_flat", "num_envs=3", "device=cpu"])
    file = save(mlp(), tmp_path / "drives.pt")
    drives = {"joints": [".*"], "law": "network", "file": file, "effort_limit": 80.0}
    cfg.asset.actuators = OmegaConf.create({"drives": drives})
    env = Env(cfg)
    env.reset()
    _, reward, *_ = env.step(torch.zeros(3, env.task.num_actions))
    assert torch.isfinite(reward).all() and env.engine.actuation.nets[0].file == file
    assert (env.engine.law.net[..., :3] != 0.0).any()  # type: ignore[attr-defined]
    assert np.isfinite(env.engine.field("qpos").numpy()).all()
