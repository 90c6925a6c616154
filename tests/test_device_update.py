"""The update for GPUs against the one that autograd computes; here on a CPU, where its kernels are loops."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
import warp as wp
from omegaconf import OmegaConf

from isaacrl.algos import device_kernels, device_networks, ppo
from isaacrl.algos.device_networks import FusedNetworks
from isaacrl.schema import PPOConfig

SMALL = {"num_steps": 6, "hidden": [24, 16], "minibatches": 2, "epochs": 2, "precision": "float32"}
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def rolled_out(num_envs=9, obs=7, critic_obs=None, actions=3, device="cpu", **changes):
    """An agent with a made-up rollout in its buffers, one of whose normalizers has statistics."""
    groups = {"policy": obs} | ({"critic": critic_obs} if critic_obs else {})
    start = {k: torch.zeros(num_envs, n, device=device) for k, n in groups.items()}
    task = SimpleNamespace(num_actions=actions)
    env = SimpleNamespace(device=device, num_envs=num_envs, obs=start, task=task, one_time_out=lambda steps: False)
    cfg = OmegaConf.merge(OmegaConf.structured(PPOConfig), SMALL | changes)
    algo = ppo.PPO(env, cfg, seed=0)
    algo.gradient = None  # the reference is autograd
    algo._allocate()
    g = torch.Generator().manual_seed(1)

    def draw(x, scale=1.0):
        x.copy_(torch.randn(x.shape, generator=g) * scale)

    for x in (*env.obs.values(), algo.obs, algo.critic_obs, algo.final_obs, algo.reward):
        draw(x)
    if not critic_obs:
        algo.critic_obs.copy_(algo.obs)
    ends = torch.rand(algo.reward.shape, generator=g)
    algo.terminated.copy_(ends < 0.15)
    algo.truncated.copy_(ends > 0.9)
    with torch.no_grad():
        for net in (algo.policy.net, algo.critic.net):
            for p in net.parameters():  # biases that are not 0 and actions that matter
                p.add_(torch.randn(p.shape, generator=g).to(device) * 0.1)
        algo._update_normalizers(algo.obs * 1.5 + 0.3, algo.critic_obs * 1.5 + 0.3)
        algo.policy.log_std.copy_(torch.linspace(-1.0, 0.2, actions))
        algo.mean.copy_(algo.policy(algo.obs))
        draw(algo.actions)
        algo.actions.mul_(algo.policy.log_std.exp()).add_(algo.mean)
    return algo


def pair(**changes):
    """The same agent twice: with autograd, and with the update for GPUs."""
    one, other = rolled_out(**changes), rolled_out(**changes)
    other._use_device_update()
    return one, other


def same_orders(one, other):
    """Let both take the samples in the orders that the first one's generator gives."""
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(len(one.reward.flatten()), generator=generator) for _ in range(one.cfg.epochs)]
    one.generator.manual_seed(5)
    other.on_device.shuffle = lambda epoch: other.on_device.order.copy_(orders[epoch])


def close(a, b, tolerance):
    """Equal up to a part of the largest entry."""
    assert (a - b).abs().max() <= tolerance * b.abs().max(), f"{(a - b).abs().max()} of {b.abs().max()}"


VARIANTS = [
    {},
    {"activation": "relu", "value_clip": False},
    {"activation": "tanh", "normalize_value": False, "schedule": "fixed"},
    {"normalize_obs": False, "entropy_coef": 0.05},
    {"critic_obs": 12, "critic_hidden": [40], "minibatches": 4},  # 13 of 54 samples; two streams on a GPU
    {"critic_obs": 12, "actions": 9, "hidden": [17], "num_envs": 1, "minibatches": 1},
    {"critic_obs": 300, "obs": 2, "hidden": []},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: "-".join(c) or "defaults")
def test_the_whole_update_is_that_of_autograd(changes):
    one, other = pair(**changes)
    same_orders(one, other)
    expected, metrics = one._update(), other._update()
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert other.on_device.state["step"] == one.cfg.epochs * one.cfg.minibatches
    before = rolled_out(**changes).params.value
    close(other.params.value - before, one.params.value - before, 2e-3)
    for name, value in one.critic.state_dict().items():
        torch.testing.assert_close(other.critic.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    assert "relu" in changes.values() or metrics["kl"] > 0


def gradients(**changes):
    """Two agents with the gradients of networks that have moved since the rollout, and autograd's row of metrics."""
    one, other = pair(**({"num_envs": 40, "epochs": 1, "minibatches": 1, "max_grad_norm": 1e9} | changes))
    other.on_device.shuffle = lambda epoch: other.on_device.order.copy_(torch.arange(other.on_device.samples))
    taken, step, minibatch = [], one._minibatch, other.on_device.minibatch
    one._minibatch = lambda *columns: taken.append(columns) or torch.zeros(8)
    other.on_device.minibatch = taken.append  # neither has stepped yet, nor do returns' statistics change
    for algo in (one, other):
        algo._update_normalizers = algo._update_returns = lambda *x: None
        algo._update()
        g = torch.Generator().manual_seed(2)
        with torch.no_grad():
            algo.params.value.add_(torch.randn(algo.params.value.shape, generator=g) * 0.05)
    one._optimizer_step = lambda finite, kl: None
    row = step(*taken[0])
    with other.on_device._ready():
        other.on_device._copy_weights()
        minibatch(taken[1])
    return one, other, row


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: "-".join(c) or "defaults")
def test_the_gradient_is_that_of_autograd(changes):
    one, other, row = gradients(**changes | {"minibatches": 1})
    close(other.params.grad, one.params.grad, 1e-5)
    for a, b in zip(other.policy.parameters(), one.policy.parameters()):
        close(a.grad, b.grad, 3e-5)
    torch.testing.assert_close(other.on_device.totals, row, rtol=2e-5, atol=1e-6)
    assert 0.02 < row[4] < 0.98  # both branches of the objective


@pytest.mark.parametrize("activation", ["elu", "relu", "tanh"])
def test_the_gradient_in_bfloat16_is_that_of_autograd_to_rounding(activation):
    one, other, row = gradients(activation=activation, precision="bf16", num_envs=400)
    assert all(x.dtype == torch.bfloat16 for x in (other.on_device.weights, other.on_device.inputs[0]))
    for mine, reference in ((other.policy, one.policy), (other.critic, one.critic)):
        for a, b in zip(mine.parameters(), reference.parameters()):
            # A rectifier whose input is near 0 may open or not.
            assert (a.grad - b.grad).norm() < (0.08 if activation == "relu" else 0.02) * b.grad.norm()
    torch.testing.assert_close(other.on_device.totals, row, rtol=0.03, atol=1e-3)


def test_products_are_taken_in_chunks_and_rows_are_padded():
    """With more rows than a chunk's the parts are several; 2,103 rows are no multiple of anything."""
    one, other, row = gradients(num_envs=701, num_steps=3)
    networks = other.on_device.networks[0]
    assert networks.layers[0].chunks == 2 and networks.rows == 2112
    close(other.params.grad, one.params.grad, 2e-5)
    torch.testing.assert_close(other.on_device.totals, row, rtol=5e-5, atol=1e-6)


def test_advantages_are_those_of_gae():
    algo = rolled_out()
    algo._use_device_update()
    with torch.no_grad():
        value, following = algo._values()
        done = algo.terminated | algo.truncated
        expected = ppo.gae(algo.reward, value, following, algo.terminated, done, gamma=0.99, lam=0.95)
    same = {k: getattr(algo, k) for k in ("obs", "critic_obs", "mean", "reward", "terminated", "truncated")}
    _, returns = algo.on_device(**same, action=algo.actions, value=value, following=following)
    torch.testing.assert_close(algo.on_device.advantage, expected.flatten())
    torch.testing.assert_close(returns, expected + value)


def test_values_are_the_critics():
    for changes in ({}, {"critic_obs": 12, "critic_hidden": [40]}, {"normalize_obs": False, "minibatches": 5}):
        algo = rolled_out(**changes)
        algo._use_device_update()
        with torch.no_grad():
            torch.testing.assert_close(algo.on_device.values(algo.critic_obs), algo.critic(algo.critic_obs))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 17, 54, 1000, 4096])
def test_an_order_is_a_permutation(n):
    algo = rolled_out(num_envs=n, num_steps=1, minibatches=1)
    algo._use_device_update()
    update = algo.on_device
    update.prepare()
    orders = []
    for epoch in range(20):
        update.shuffle(epoch)
        assert torch.equal(update.order.sort().values, torch.arange(n, dtype=torch.int32))
        orders.append(update.order.clone())
    if n > 7:
        assert len({tuple(x.tolist()) for x in orders}) == len(orders)
    update.shuffles.add_(3)  # the order is a function of the number of epochs so far
    update.shuffle(4)
    assert torch.equal(update.order, orders[7])
    update.seed += 1
    update.shuffle(4)
    assert n < 8 or not torch.equal(update.order, orders[7])


def test_orders_are_uniform():
    """Where a sample lands, and which sample follows it, by chi-squared over 4,000 orders of 20."""
    kernels, n, draws = device_kernels.build(3, "elu", False), 20, 4000
    counter, order = torch.zeros((), dtype=torch.int64), torch.zeros(n, dtype=torch.int32)
    place, follow = torch.zeros(n, n), torch.zeros(n, n)
    for epoch in range(draws):
        kernels.shuffle("cpu", n, order, counter, n, 5, epoch, 123, 0, 0)
        place[torch.arange(n), order.long()] += 1
        follow[order[:-1].long(), order[1:].long()] += 1
    chi = ((place - draws / n).square() / (draws / n)).sum().item()
    assert abs(chi - (n - 1) ** 2) < 5 * math.sqrt(2.0 * (n - 1) ** 2)
    expected = draws / n  # (n - 1) pairs over n (n - 1) cells
    off = ~torch.eye(n, dtype=torch.bool)
    chi = ((follow[off] - expected).square() / expected).sum().item()
    assert abs(chi - off.sum().item()) < 6 * math.sqrt(2.0 * off.sum().item())


@pytest.mark.parametrize("activation", ["elu", "relu", "tanh"])
@pytest.mark.parametrize("where", ["reward", "actions", "obs"])
def test_a_non_finite_update_is_skipped_and_counted(where, activation):
    algo = rolled_out(activation=activation)
    algo._use_device_update()
    before, state = algo.params.value.clone(), {k: v.clone() for k, v in algo.on_device.state.items()}
    getattr(algo, where)[0, 0] = math.nan
    if where == "obs":
        algo.critic_obs.copy_(algo.obs)
    algo.cfg.normalize_value = False
    algo.critic.returns = None  # it would rescale the last layer
    metrics = algo._update()
    bad = 2 if where == "actions" else 4  # the minibatches with the sample, or the advantages of all
    assert metrics["skipped_updates"] == bad
    if bad == 4:
        assert torch.equal(algo.params.value, before) and algo.lr == pytest.approx(1e-3)
        assert all(torch.equal(algo.on_device.state[k], v) for k, v in state.items())
    assert algo.params.value.isfinite().all() and algo.on_device.state["step"] == 4 - bad


@pytest.mark.parametrize(("kl", "factor"), [(0.03, 1 / 1.5), (0.01, 1.0), (0.001, 1.5), (0.0, 1.5)])
def test_learning_rate_follows_the_kl(kl, factor):
    algo = rolled_out(epochs=1, minibatches=1, desired_kl=0.01)
    algo._use_device_update()
    algo.mean.sub_(math.sqrt(2.0 * kl / 3) * algo.policy.log_std.exp().detach())  # all three means have moved
    metrics = algo._update()
    assert metrics["kl"] == pytest.approx(kl, abs=1e-6)
    assert metrics["lr"] == algo.lr == pytest.approx(1e-3 * factor)


def test_learning_rate_stays_within_its_bounds():
    algo = rolled_out(epochs=1, minibatches=1, lr_max=1.2e-3)
    algo._use_device_update()
    assert algo._update()["lr"] == pytest.approx(1.2e-3)


def test_standard_deviation_stays_within_its_bounds():
    algo = rolled_out(epochs=1, minibatches=1, min_std=0.3, max_std=1.3)
    algo._use_device_update()
    algo.policy.log_std.data.copy_(torch.tensor([-2.0, 0.0, 1.0]))
    algo._update()
    std = algo.policy.log_std.detach().exp()
    assert std[0] == pytest.approx(0.3) and 0.3 < std[1] < 1.3 and std[2] == pytest.approx(1.3)


def test_checkpoints_go_from_one_update_to_the_other():
    """An update from a checkpoint of the other kind, and of the same, is the update that would have followed."""
    one, other = pair()
    same_orders(one, other)
    for algo in (one, other):
        algo._update()
    for source in (one, other):
        state = source.state_dict()
        copies = pair()
        for copy in copies:
            held = [x.data_ptr() for x in copy.on_device.state.values()] if copy.on_device else []
            copy.load_state_dict(state)
            assert not held or held == [x.data_ptr() for x in copy.optimizer.state.values()]
            assert torch.equal(copy.params.value, source.params.value) and copy.lr == source.lr
            for name, x in source.optimizer.state.items():
                assert torch.equal(copy.optimizer.state[name], x)
        same_orders(*copies)
        results = [copy._update() for copy in copies]
        for a, b in zip(*(r.values() for r in results)):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert other.state_dict()["shuffles"] == 2
    fresh = pair()[1]
    fresh.load_state_dict(other.state_dict())
    assert fresh.on_device.shuffles == 2
    fresh.load_state_dict({k: v for k, v in rolled_out().state_dict().items() if k != "shuffles"})  # an older one
    assert fresh.on_device.shuffles == 0 and fresh.on_device.state["step"] == 0


def test_an_update_repeats_bit_for_bit_and_keeps_its_places():
    algos = [pair()[1] for _ in range(2)]
    results = [[{k: v.clone() for k, v in algo._update().items()} for _ in range(2)] for algo in algos]
    assert results[0] == results[1]
    metrics = algos[0]._update()
    first = [x.data_ptr() for x in metrics.values()]
    assert first == [x.data_ptr() for x in algos[0]._update().values()]


@pytest.mark.skipif(sys.platform != "linux", reason="Warp compiles for GPUs on Linux and Windows")
@pytest.mark.parametrize(
    ("actions", "activation", "bfloat16"), [(21, "elu", True), (3, "tanh", True), (1, "relu", False)]
)
def test_the_kernels_compile_for_a_gpu(actions, activation, bfloat16, tmp_path):
    kernels = device_kernels.build(actions, activation, bfloat16)
    wp.compile_aot_module(kernels.module, arch=90, module_dir=tmp_path, use_ptx=False)
    assert list(tmp_path.glob("*.cubin"))


@pytest.mark.skipif(sys.platform != "linux", reason="Warp compiles for GPUs on Linux and Windows")
@pytest.mark.parametrize("block", device_networks.BLOCKS, ids=lambda b: str(b.rows))
def test_fused_networks_compile_for_a_gpu(block, tmp_path):
    """Shared memory is as much as the header needs: it asserts that."""
    kernels = device_networks._build("elu", 2, ((80, 400, 200), (88, 408, 208), (400, 200, 24)), block)
    wp.compile_aot_module(kernels.module, arch=90, module_dir=tmp_path, use_ptx=False)
    assert list(tmp_path.glob("*.cubin"))


def test_a_packed_weight_is_where_a_lane_of_a_tensor_core_wants_it():
    """Fragment B of mma.m16n8k16 (PTX ISA, "Matrix Fragments"): lane, register and half of an entry, no place twice."""
    k, n = torch.arange(48)[:, None], torch.arange(40)
    place = device_networks.packed(k, n, 40)
    assert torch.equal(place.flatten().sort().values, torch.arange(48 * 40))
    fragment, lane, register, half = place // 128, place // 4 % 32, place // 2 % 2, place % 2
    assert (fragment == k // 16 * 5 + n // 8).all() and (lane // 4 == n % 8).all()
    assert (lane % 4 * 2 + 8 * register + half == k % 16).all()


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: "-".join(c) or "defaults")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_a_captured_update_is_the_update(changes, precision):
    """Two updates as they come, and two replays of a graph: the same bits."""
    changes = {"num_envs": 300, "device": "cuda", "precision": precision} | changes
    eager, captured = (rolled_out(**changes) for _ in range(2))
    start = {k: v.clone() for k, v in eager.critic.state_dict().items()}
    for algo in (eager, captured):
        algo._update()  # also loads what a capture cannot
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        metrics = captured._update()
    for _ in range(2):
        expected = eager._update()
        graph.replay()
        assert all(torch.equal(metrics[k], v) for k, v in expected.items())
    assert torch.equal(captured.params.value, eager.params.value)
    assert all(torch.equal(captured.critic.state_dict()[k], v) for k, v in eager.critic.state_dict().items())
    assert captured.on_device.shuffles == eager.on_device.shuffles == 3 * eager.cfg.epochs
    assert not torch.equal(start["net.0.bias"], captured.critic.state_dict()["net.0.bias"])


FUSED = [
    {"obs": 78, "actions": 21, "hidden": [400, 200, 100]},
    {"obs": 98, "critic_obs": 110, "actions": 29, "hidden": [512, 256, 128], "num_envs": 1500},
    {"obs": 7, "critic_obs": 12, "hidden": [24, 17], "critic_hidden": [40], "activation": "tanh"},
    {"obs": 16, "hidden": [64], "activation": "relu", "num_envs": 33},
    {"hidden": []},
]


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("changes", FUSED, ids=lambda c: "-".join(map(str, c["hidden"])) or "linear")
def test_fused_networks_are_those_of_matrix_products(changes, monkeypatch):
    """Every layer's output and gradient, the parameters' gradients, and outputs of any number of observations."""
    changes = {"num_envs": 301, "device": "cuda", "precision": "bf16", "epochs": 1, "minibatches": 1} | changes
    fused = rolled_out(**changes)
    fused.on_device.prepare()
    monkeypatch.setattr(FusedNetworks, "fits", lambda nets, device: False)
    plain = rolled_out(**changes)
    for algo in (fused, plain):
        algo.on_device.shuffle = lambda epoch, x=algo.on_device: x.order.copy_(torch.arange(x.samples).flip(0))
        algo._update_normalizers = algo._update_returns = lambda *x: None
        algo.on_device._step = lambda: None
        with torch.no_grad():
            algo.params.value.mul_(1.3)  # the ratio is not 1
        algo._update()
        del algo.on_device._step
        algo.on_device._step()
    # The tanh is an approximation, and saturated in places.
    rounding, closeness = (0.05, 0.02) if changes.get("activation") == "tanh" else (0.02, 0.01)
    for ours, theirs in zip(fused.on_device.networks, plain.on_device.networks):
        assert isinstance(ours, FusedNetworks) and not isinstance(theirs, FusedNetworks)
        close(ours.output, theirs.output, closeness)
        for a, b in zip(ours.layers, theirs.layers):
            close(a.input.float(), b.input.float(), closeness)
            assert (a.grad.float() - b.grad.float()).norm() <= rounding * b.grad.float().norm()
    for model in ("policy", "critic"):
        for a, b in zip(getattr(fused, model).parameters(), getattr(plain, model).parameters()):
            assert (a.grad - b.grad).norm() <= rounding * b.grad.norm()
    for n in (1, 63, 300, 5000):
        obs, out = torch.randn(n, changes.get("obs", 7), device="cuda"), torch.zeros(2, n, fused.mean.shape[-1]).cuda()
        for algo, x in zip((fused, plain), out):
            algo.on_device.take_parameters()
            algo.on_device.act(obs, x)
        close(*out, closeness)


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_a_gpu_computes_what_a_cpu_does(precision):
    """An update of the same samples in the same orders: by kernels on a GPU and by autograd on a CPU."""
    shape = {"num_envs": 300, "hidden": [100, 60], "num_steps": 12}
    one, other = rolled_out(**shape), rolled_out(**shape, device="cuda", precision=precision)
    same_orders(one, other)
    expected, metrics = one._update(), other._update()
    tolerance = {"float32": 1e-3, "tf32": 0.03, "bf16": 0.1}[precision]
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name].cpu(), value, rtol=tolerance, atol=tolerance / 10, msg=name)


@pytest.mark.gpu
@NO_GPU
def test_nothing_waits_for_the_device():
    algo = rolled_out(device="cuda")
    algo._update()
    torch.cuda.set_sync_debug_mode("error")
    try:
        algo._update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
