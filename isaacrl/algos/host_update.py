"""PPO's gradient steps on a CPU by hand, in NumPy: the numbers of `PPO._minibatch`, without autograd.

With small networks and minibatches a call into torch costs more than its arithmetic, and autograd makes hundreds of
them: 64 rows through two 64-64 networks take 0.13 ms here and 0.7 ms there. Arrays are views of the modules' own
parameters and gradients. Shapes: N rows, D observation, A action.
"""

import math
from typing import Any

import numpy as np
from omegaconf import DictConfig
from torch import Tensor, nn

# Multiplications of a matrix product up to which OpenBLAS, which NumPy ships, stays on one thread (interface/gemm.c).
# Beyond, its threads spin against torch's and other programs' (measured: 20 times slower), and calls weigh less anyway.
MAX_PRODUCT = 64**3
LOG_2PI = math.log(2.0 * math.pi)
Array = np.ndarray[Any, np.dtype[np.float32]]


def is_small(rows: int, *modules: nn.Module) -> bool:
    """Whether minibatches of so many rows are to be computed here."""
    layers = [m for module in modules for m in module.modules() if isinstance(m, nn.Linear)]
    return rows * max(m.weight.numel() for m in layers) <= MAX_PRODUCT


class Network:
    """An `mlp` of `networks.py`: values, and the gradients of its parameters."""

    def __init__(self, net: nn.Sequential, activation: str):
        self.activation = activation
        self.layers = [
            tuple(_array(x) for x in (m.weight, m.bias, m.weight.grad, m.bias.grad))
            for m in net
            if isinstance(m, nn.Linear)
        ]

    def forward(self, x: Array) -> list[Array]:
        """The input [N, D], the output of each hidden layer, and the network's output."""
        values = [x]
        for i, (weight, bias, _, _) in enumerate(self.layers):
            x = x @ weight.T
            x += bias
            if i < len(self.layers) - 1:
                _activate(x, self.activation)
            values.append(x)
        return values

    def backward(self, values: list[Array], grad: Array) -> None:
        """Write the parameters' gradients, given that of the output; values: what forward returned."""
        for i in reversed(range(len(self.layers))):
            weight, _, weight_grad, bias_grad = self.layers[i]
            np.matmul(grad.T, values[i], out=weight_grad)
            np.add.reduce(grad, axis=0, out=bias_grad)
            if i:
                grad = grad @ weight
                grad *= _slope(values[i], self.activation)


class Gradient:
    """The gradient of PPO's loss, written to the parameters' own; one call a minibatch."""

    def __init__(self, policy: nn.Module, critic: nn.Module, cfg: DictConfig, symmetry: Any = None):
        self.policy, self.critic = Network(policy.net, cfg.activation), Network(critic.net, cfg.activation)  # type: ignore[arg-type]
        self.log_std, self.log_std_grad = _array(policy.log_std), _array(policy.log_std.grad)  # type: ignore[arg-type]
        self.clip, self.value_clip = float(cfg.clip), bool(cfg.value_clip)
        self.value_coef, self.entropy_coef = float(cfg.value_coef), float(cfg.entropy_coef)
        self.symmetry, self.symmetry_coef = symmetry, float(cfg.symmetry_coef)

    @np.errstate(all="ignore")  # the caller looks for what is not finite
    def __call__(
        self,
        log_std0: Array,
        obs: Array,
        critic_obs: Array,
        action: Array,
        mean0: Array,
        advantage: Array,
        target: Array,
        old_value: Array,
        log_prob0: Array,
    ) -> tuple[float, ...]:
        """(policy loss, value loss, entropy, KL, clip fraction, mirror loss), from a minibatch's columns as arrays."""
        if self.symmetry is not None and not self.symmetry.augments:  # as in symmetry.batch
            half = len(obs) // 2
            critic_obs, action, mean0, advantage, target, old_value, log_prob0 = (
                x[:half] for x in (critic_obs, action, mean0, advantage, target, old_value, log_prob0)
            )
        n, log_std, clip = np.float32(len(action)), self.log_std, np.float32(self.clip)
        policy, critic = self.policy.forward(obs), self.critic.forward(critic_obs)
        mean, value = policy[-1][: len(action)], critic[-1][:, 0]

        # The policy: d loss / d log prob is -ratio * advantage / N where the clipped surrogate is not the lower one.
        inv_std = np.exp(-log_std)
        z = (action - mean) * inv_std
        z2 = z * z
        constant = np.float32(log_std.sum() + 0.5 * len(log_std) * LOG_2PI)
        ratio = np.exp(np.float32(-0.5) * np.add.reduce(z2, axis=1) - constant - log_prob0)
        plain, clipped = ratio * advantage, np.minimum(np.maximum(ratio, 1 - clip), 1 + clip) * advantage
        grad = (np.where(plain <= clipped, plain, np.float32(0.0)) / -n)[:, None]
        mean_grad, asymmetry = self._with_mirror_loss(grad * z * inv_std, policy[-1])
        self.policy.backward(policy, mean_grad)
        np.add.reduce(grad * (z2 - np.float32(1.0)), axis=0, out=self.log_std_grad)
        self.log_std_grad -= np.float32(self.entropy_coef)

        error = value - target
        squared = error * error
        if self.value_clip:
            moved = value - old_value
            inside = np.minimum(np.maximum(moved, -clip), clip)
            error2 = old_value + inside - target
            squared2 = error2 * error2
            # Where the clipped value is the worse one its error counts, which is constant outside the clip range.
            error = np.where(squared2 > squared, np.where(inside == moved, error2, np.float32(0.0)), error)
            squared = np.maximum(squared, squared2)
        self.critic.backward(critic, (error * np.float32(2.0 * self.value_coef / n))[:, None])

        change = log_std - log_std0
        var_ratio = np.exp(np.float32(-2.0) * change).sum()
        distance = (mean0 - mean) * inv_std
        kl = change.sum() + 0.5 * (var_ratio - len(log_std)) + 0.5 * np.vdot(distance, distance) / n
        fraction = np.count_nonzero(np.abs(ratio - np.float32(1.0)) > clip) / n
        entropy = log_std.sum() + 0.5 * len(log_std) * (1.0 + LOG_2PI)
        losses = -np.minimum(plain, clipped).sum() / n, squared.sum() / n
        return tuple(float(x) for x in (*losses, entropy, kl, fraction, asymmetry))

    def _with_mirror_loss(self, grad: Array, mean: Array) -> tuple[Array, Any]:
        """The gradient by all rows of mean, of which grad is the first ones', and the mirror loss (`symmetry.loss`)."""
        if self.symmetry is None or not self.symmetry.paired:
            return grad, 0.0
        columns, half = self.symmetry.maps["mean"], len(mean) // 2
        apart = mean[half:] - mean[:half, columns.index.numpy()] * columns.sign.numpy()
        out = np.zeros_like(mean)
        out[: len(grad)] = grad
        out[half:] += np.float32(2.0 * self.symmetry_coef / apart.size) * apart
        return out, np.vdot(apart, apart) / apart.size


def adam_step(value: Array, grad: Array, mean: Array, mean_sq: Array, step: int, lr: float) -> None:
    """Adam's step number `step`, from 1, in place; mean, mean_sq: its moments (Kingma and Ba 2015, algorithm 1)."""
    beta1, beta2 = 0.9, 0.999
    mean += np.float32(1.0 - beta1) * (grad - mean)
    mean_sq += np.float32(1.0 - beta2) * (grad * grad - mean_sq)
    scale = np.sqrt(mean_sq)
    scale *= np.float32(1.0 / math.sqrt(1.0 - beta2**step))
    scale += np.float32(1e-8)
    np.divide(mean, scale, out=scale)
    scale *= np.float32(lr / (1.0 - beta1**step))
    value -= scale


def clip_norm(grad: Array, limit: float) -> float:
    """Scale the gradient to a norm of at most limit, in place; the norm it had."""
    norm = math.sqrt(float(np.vdot(grad, grad)))
    if norm > limit:
        grad *= np.float32(limit / (norm + 1e-6))
    return norm


def _array(x: Tensor) -> Array:
    """The same memory, as NumPy sees it."""
    return x.detach().numpy()


def _activate(x: Array, name: str) -> None:
    """The activation, in place."""
    if name == "tanh":
        np.tanh(x, out=x)
    elif name == "relu":
        np.maximum(x, 0.0, out=x)
    else:  # elu
        np.maximum(x, np.expm1(np.minimum(x, 0.0)), out=x)


def _slope(y: Array, name: str) -> Array:
    """The activation's derivative, from its output."""
    if name == "tanh":
        return np.float32(1.0) - y * y
    if name == "relu":
        return (y > 0.0).astype(np.float32)
    return np.minimum(y, 0.0) + np.float32(1.0)
