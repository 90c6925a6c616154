"""What an update of SAC or TD3 computes between matrix products, each in one launch on a GPU, for autograd.

Each function computes what plain torch does elsewhere: networks (`run`, Twins), replay.Replay.gather,
critics.Critics.bellman and value, sac.squashed. They also run on a CPU, which only tests ask for.

Shapes: G networks beside each other, B samples, K atoms, A actions.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

WIDEST = 1024  # columns of a layer that a warp can hold
TEAM = 256  # threads of a block
PRODUCT_BLOCKS, MIN_CHUNK = 128, 256  # blocks of a product that fill a GPU; rows of a chunk of one

ACTIVATIONS = {nn.ELU: "ELU", nn.ReLU: "RELU", nn.SiLU: "SILU", nn.Tanh: "TANH"}


def use(x: Tensor) -> bool:
    """Whether these functions are to be taken for x."""
    return x.is_cuda


@functools.cache
def _layers(width: int, norm: bool, activation: str, device: str) -> Any:
    return _build("layers.h", {"WIDTH": width, "NORM": int(norm), "ACTIVATION": activation}, device)


@functools.cache
def _kernels(atoms: int, device: str) -> Any:
    return _build("off_policy_kernels.h", {"ACTIVATION": "RELU", "ATOMS": atoms}, device)


def _build(header: str, macros: dict[str, Any], device: str) -> Any:
    from isaacrl.algos import device_kernels  # imports Warp

    kernels = device_kernels.Kernels(header, {"BFLOAT16": 0} | macros)
    kernels.load(device)
    return kernels


@functools.cache
def _launcher(device: str) -> Any:
    from isaacrl.sim.streams import Launcher

    return Launcher(device, use_graph=False)


def _device(x: Tensor) -> str:
    return str(x.device)


def _rows(x: Tensor, n: int) -> int:
    """Threads of a launch that gives each of n rows a warp."""
    return 32 * n if x.is_cuda else n


# --- layers ----------------------------------------------------------------------------------------------------------


class _Product(torch.autograd.Function):
    """x @ w, [G, B, n] and [G, n, m].

    The gradient by w has fewer tiles than a GPU has room for: it is summed in chunks of rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return torch.bmm(x, w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, w = ctx.saved_tensors
        grad, (G, B, n), m = grads[0].contiguous(), x.shape, w.shape[2]
        by_x = torch.bmm(grad, w.transpose(1, 2)) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return by_x, None
        tiles = G * -(-n // 128) * -(-m // 128)
        chunks = 1
        while 2 * chunks * tiles <= PRODUCT_BLOCKS and B % (2 * chunks) == 0 and B // (2 * chunks) >= MIN_CHUNK:
            chunks *= 2
        parts = torch.bmm(x.reshape(G * chunks, -1, n).transpose(1, 2), grad.view(G * chunks, -1, m))
        return by_x, parts if chunks == 1 else parts.view(G, chunks, n, m).sum(dim=1)


class _NormAct(torch.autograd.Function):
    """activation(layer norm(x + bias) * gain + shift), [G, B, width]; without a gain activation(x + bias)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, gain: Tensor | None, shift: Tensor | None, name: str) -> Tensor:
        G, B, width = x.shape
        y, stats = torch.empty_like(x), x.new_empty(G * B, 2)
        ctx.kernels = _layers(width, gain is not None, name, _device(x))
        bias, gain, shift = (p if p is None else p.contiguous() for p in (bias, gain, shift))
        with _launcher(_device(x)).stream():
            ctx.kernels.norm_act(_device(x), _rows(x, G * B), x, bias, gain, shift, y, stats, G * B, B)
        ctx.save_for_backward(x, bias, gain, shift, stats)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, bias, gain, shift, stats = ctx.saved_tensors
        (G, B, width), grad, out = x.shape, grads[0].contiguous(), torch.empty_like(x)
        blocks = max(1, min(128, B // 32)) if x.is_cuda else min(3, B)
        parts = x.new_empty(blocks, 3, G, width)
        threads = blocks * G * (TEAM if x.is_cuda else 1)
        with _launcher(_device(x)).stream():
            values = x, bias, gain, shift, stats, grad, out, parts, B, blocks, G
            ctx.kernels.norm_act_grad(_device(x), threads, *values)
        if not ctx.needs_input_grad[1]:
            return out, None, None, None, None
        by = [s.view_as(bias) for s in (parts if gain is not None else parts[:, :1]).sum(dim=0)]
        return (out, *by, None) if gain is not None else (out, *by, None, None, None)


def layer(x: Tensor, w: Tensor, bias: Tensor, gain: Tensor | None, shift: Tensor | None, activation: nn.Module | None):
    """A layer of G networks: x [G, B, n], w [G, n, m]; bias, gain, shift [G, 1, m] -> [G, B, m]."""
    y = _Product.apply(x, w)
    if activation is None:
        return y + bias
    if y.shape[-1] <= WIDEST:
        return _NormAct.apply(y, bias, gain, shift, ACTIVATIONS[type(activation)])
    y = y + bias
    if gain is not None and shift is not None:
        y = torch.addcmul(shift, nn.functional.layer_norm(y, y.shape[-1:]), gain)
    return activation(y)


def run(net: nn.Sequential, x: Tensor) -> Tensor:
    """net(x), [B, n] -> [B, m], for what networks.mlp makes."""
    modules, y = list(net), x[None]
    while modules:
        linear: Any = modules.pop(0)
        norm: Any = modules.pop(0) if modules and isinstance(modules[0], nn.LayerNorm) else None
        activation = modules.pop(0) if modules else None
        gain, shift = (None, None) if norm is None else (norm.weight[None, None], norm.bias[None, None])
        y = layer(y, linear.weight.t()[None], linear.bias[None, None], gain, shift, activation)
    return y[0]


# --- samples ---------------------------------------------------------------------------------------------------------


def transitions(buffer: Any, draws: Tensor, steps: int, gamma: float) -> tuple[Tensor, ...]:
    """First and last step of each sum of rewards, the sum, and the discount of the value after it, [B].

    draws [2, B], 0 to 1: how old the first step is, and the world.
    """
    rows, x = draws.shape[1], buffer.reward
    first, last = (torch.empty(rows, dtype=torch.int64, device=x.device) for _ in range(2))
    total, discount = (torch.empty(rows, device=x.device) for _ in range(2))
    stored = buffer.at, buffer.filled, buffer.reward, buffer.terminated, buffer.truncated
    sizes = rows, buffer.capacity, buffer.num_envs, steps, gamma
    with _launcher(_device(x)).stream():
        kernel = _kernels(2, _device(x)).transitions
        kernel(_device(x), rows, draws, *stored, first, last, total, discount, *sizes)
    return first, last, total, discount


def take(source: Tensor, index: Tensor, normalizer: Any) -> Tensor:
    """Rows of source [., n], normalized: [B, n], with rows that start at multiples of 16 bytes."""
    n, rows = source.shape[1], len(index)
    out = torch.empty(rows, -(-n // 4) * 4, device=source.device)
    mean, var, clip = (None, None, 0.0) if normalizer is None else (normalizer.mean, normalizer.var, normalizer.clip)
    with _launcher(_device(index)).stream():
        values = source, index, mean, var, out, rows, n, out.shape[1], clip
        _kernels(2, _device(index)).take(_device(index), out.numel(), *values)
    return out[:, :n]


# --- critics ---------------------------------------------------------------------------------------------------------


class _Bellman(torch.autograd.Function):
    """critics.Critics.bellman of categorical critics: (loss, value, error), of which the first has a gradient."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, following: Tensor, reward: Tensor, discount: Tensor, bonus: Tensor | None, lower: bool,
        v_max: float,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        out, following, rows = out.contiguous(), following.contiguous(), len(reward)
        grad, terms = torch.empty_like(out), out.new_empty(3, rows)
        with _launcher(_device(out)).stream():
            values = out, following, reward, discount, bonus, grad, terms, rows, int(lower), v_max
            _kernels(out.shape[-1], _device(out)).categorical_loss(_device(out), _rows(out, rows), *values)
        ctx.save_for_backward(grad)
        loss, value, error = terms.mean(dim=1).unbind()
        ctx.mark_non_differentiable(value, error)
        ctx.set_materialize_grads(False)
        return loss, value, error

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.saved_tensors[0] * grads[0], None, None, None, None, None, None


def bellman(
    out: Tensor, following: Tensor, reward: Tensor, discount: Tensor, bonus: Tensor | None, lower: bool, v_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, mean value and mean distance from the target of both critics' logits out [2, B, K]."""
    return _Bellman.apply(out, following, reward, discount, bonus, lower, v_max)  # pyright: ignore[reportReturnType]


class _Expected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, lower: bool, v_max: float) -> Tensor:
        out, rows = out.contiguous(), out.shape[1]
        value, grad = out.new_empty(rows), torch.empty_like(out)
        with _launcher(_device(out)).stream():
            kernel = _kernels(out.shape[-1], _device(out)).expected
            kernel(_device(out), _rows(out, rows), out, value, grad, rows, int(lower), v_max)
        ctx.save_for_backward(grad)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.saved_tensors[0] * grads[0][:, None], None, None


def expected(out: Tensor, lower: bool, v_max: float) -> Tensor:
    """One value [B] of both critics' logits [2, B, K]."""
    return _Expected.apply(out, lower, v_max)  # pyright: ignore[reportReturnType]


# --- actions ---------------------------------------------------------------------------------------------------------


class _Squash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, noise: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        out, (rows, n) = out.contiguous(), noise.shape
        action, log_prob = torch.empty_like(noise), noise.new_empty(rows)
        with _launcher(_device(out)).stream():
            values = out, noise, action, log_prob, rows, n, low, high
            _kernels(2, _device(out)).squash(_device(out), _rows(out, rows), *values)
        ctx.save_for_backward(out, noise)
        ctx.bounds = low, high
        return action, log_prob

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (out, noise), (by_action, by_log_prob) = ctx.saved_tensors, (g.contiguous() for g in grads)
        grad, (rows, n) = torch.empty_like(out), noise.shape
        with _launcher(_device(out)).stream():
            values = out, noise, by_action, by_log_prob, grad, rows, n, *ctx.bounds
            _kernels(2, _device(out)).squash_grad(_device(out), rows * n, *values)
        return grad, None, None, None


def squash(out: Tensor, noise: Tensor, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Actions [B, A] and the logarithms of their densities [B] of a policy's outputs [B, 2 A], mean and log_std."""
    return _Squash.apply(out, noise, *bounds)  # pyright: ignore[reportReturnType]


# --- parameters ------------------------------------------------------------------------------------------------------


def adam(value: Tensor, grad: Tensor, mean: Tensor, square: Tensor, step: Tensor, lr: Tensor, finite: Tensor) -> None:
    """networks.Adam's step number `step` [n], in place; torch's own gives each block of a GPU 65,536 parameters."""
    with _launcher(_device(value)).stream():
        kernel = _kernels(2, _device(value)).adam
        kernel(_device(value), value.numel(), value, grad, mean, square, step, lr, finite, value.numel())
