"""PPO's mathematics, as pure functions. Shapes: T steps, E worlds; other leading axes as they come."""

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2.0 * math.pi)


def gaussian_log_prob(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(action; mean, std^2), summed over the last axis."""
    z = (action - mean) * torch.exp(-log_std)
    return -0.5 * (z.square() + LOG_2PI).sum(dim=-1) - log_std.sum(dim=-1)


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Entropy of a diagonal Gaussian."""
    return (log_std + 0.5 * (1.0 + LOG_2PI)).sum(dim=-1)


def gaussian_kl(mean0: Tensor, log_std0: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N0 || N), summed over the last axis."""
    var_ratio = torch.exp(2.0 * (log_std0 - log_std))
    distance = ((mean0 - mean) * torch.exp(-log_std)).square()
    return (log_std - log_std0 + 0.5 * (var_ratio + distance - 1.0)).sum(dim=-1)


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """Advantages [T, E] (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    next_value[t] is V of the observation that step t led to: the true final one where the episode ended.
    """
    delta = reward + gamma * next_value * ~terminated - value
    advantage, carry = torch.empty_like(reward), torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        advantage[t] = carry = delta[t] + gamma * lam * carry * ~done[t]
    return advantage


def policy_loss(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The clipped surrogate objective, negated (eq. 7)."""
    return -torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage).mean()


def value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float | None) -> Tensor:
    """Mean squared error; with clip, the larger of it and that of the clipped value."""
    error = (value - target).square()
    if clip is not None:
        clipped = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - target).square())
    return error.mean()
