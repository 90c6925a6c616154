"""The kernels of SAC's and TD3's updates, compiled for this CPU, against plain torch: values and gradients."""

from types import SimpleNamespace

import pytest
import torch

from isaacrl.algos import critics, networks, sac
from isaacrl.algos import off_policy_ops as ops

GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])
DEVICES = pytest.mark.parametrize("device", ["cpu", GPU])


def both(monkeypatch, compute, inputs):
    """compute(*inputs) plainly and by kernels: outputs, and gradients of their sum weighted at random."""
    results = []
    for kernels in (False, True):
        monkeypatch.setattr(ops, "use", lambda x, kernels=kernels: kernels)
        leaves = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
        outputs = compute(*leaves)
        g = torch.Generator().manual_seed(5)
        loss = sum((x * torch.randn(x.shape, generator=g).to(x)).sum() for x in outputs if x.requires_grad)
        grads = torch.autograd.grad(loss, [x for x in leaves if x.is_floating_point()], allow_unused=True)
        results.append([x.detach() for x in outputs] + [g for g in grads if g is not None])
    return results


def agree(monkeypatch, compute, inputs, tolerance=2e-5):
    plain, kernels = both(monkeypatch, compute, inputs)
    assert len(plain) == len(kernels) > 0
    for a, b in zip(plain, kernels):
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance * max(1.0, a.abs().max().item()))


class Run(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return ops.run(self.net, x) if ops.use(x) else self.net(x)


@DEVICES
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("activation", ["elu", "relu", "silu", "tanh"])
def test_networks(activation, layer_norm, device, monkeypatch):
    """A policy's and both critics': outputs, gradients by the input and by every parameter; odd and wide layers."""
    torch.manual_seed(0)
    policy = Run(networks.mlp([7, 33, 64, 5], activation, 1.0, layer_norm))
    x = torch.randn(90, 7, device=device)
    for module in (policy.to(device), critics.Twins([7, 33, 1030, 5], activation, layer_norm).to(device)):
        names = [n for n, _ in module.named_parameters()]
        values = [torch.randn_like(p) * 0.4 for p in module.parameters()]

        def compute(x, *parameters, module=module, names=names):
            return (torch.func.functional_call(module, dict(zip(names, parameters)), (x,)),)

        agree(monkeypatch, compute, [x, *values], 1e-4)


@DEVICES
@pytest.mark.parametrize(("twin", "bonus"), [("mean", True), ("mean", False), ("min", True), ("min", False)])
def test_targets_and_losses(twin, bonus, device, monkeypatch):
    """With ends of episodes, returns beyond the last atom, and values that are not finite."""
    torch.manual_seed(1)
    changes = {"critic": "categorical", "twin": twin, "v_max": 5.0, "atoms": 41, "hidden": [8], "layer_norm": True}
    net = critics.Critics(3, 2, SimpleNamespace(critic_hidden=None, activation="relu", **changes)).to(device)
    out, following = torch.randn(2, 2, 60, 41, device=device) * 3.0
    reward, cost = torch.randn(2, 60, device=device) * 2.0
    discount = torch.where(torch.arange(60, device=device) % 3 == 0, 0.0, 0.97)
    reward[:2] = torch.tensor([50.0, -50.0])

    def compute(out):
        return net.bellman(out, following, reward, discount, cost if bonus else 0.0)

    agree(monkeypatch, compute, [out])
    agree(monkeypatch, lambda out: (net.value(out),), [out])
    for wrong in (torch.nan, torch.inf):
        reward[7] = wrong
        plain, kernels = both(monkeypatch, compute, [out])
        assert torch.isfinite(plain[0]) == torch.isfinite(kernels[0])


@DEVICES
def test_squashed_actions(device, monkeypatch):
    """Also where log_std is clipped, and far out."""
    torch.manual_seed(2)
    noise, out = torch.randn(50, 6, device=device), torch.randn(50, 12, device=device) * 3.0
    out[0, :6], out[1, 6:], out[2, 6:] = 30.0, 4.0, -9.0

    def compute(out):
        if ops.use(out):
            return ops.squash(out, noise, sac.LOG_STD)
        mean, log_std = out.chunk(2, dim=-1)
        return sac.squashed(mean, log_std.clamp(*sac.LOG_STD), noise)

    agree(monkeypatch, compute, [out], 1e-4)


@DEVICES
def test_steps_of_adam(device, monkeypatch):
    """Beside torch.optim's, with a gradient in between that is not finite."""
    reference = torch.nn.Parameter(torch.randn(1000, device=device))
    param, lr = torch.nn.Parameter(reference.detach().clone()), torch.tensor(1e-2, device=device)
    theirs, ours = torch.optim.Adam([reference], lr=1e-2), networks.Adam(param, lr)
    monkeypatch.setattr(ops, "use", lambda x: True)
    for k in range(30):
        param.grad = torch.randn(1000, device=device) * 10.0 ** (k % 5 - 3)
        if k == 7:
            ours.step(torch.tensor(False, device=device))
            continue
        reference.grad = param.grad.clone()
        theirs.step()
        ours.step(torch.tensor(True, device=device))
    torch.testing.assert_close(param, reference, rtol=1e-4, atol=1e-4)


def test_long_batches_sum_gradients_in_chunks(monkeypatch):
    x, w = torch.randn(2, 4096, 9), torch.randn(2, 9, 5)
    monkeypatch.setattr(ops, "use", lambda x: True)
    grad = torch.randn(2, 4096, 5)
    leaf = w.clone().requires_grad_()
    by = torch.autograd.grad(ops._Product.apply(x, leaf), leaf, grad)[0]
    torch.testing.assert_close(by, torch.bmm(x.transpose(1, 2), grad), rtol=1e-4, atol=1e-3)
