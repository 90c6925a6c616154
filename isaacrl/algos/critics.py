"""Two critics in one, and the scale of rewards that they learn in.

Shapes: E worlds, B samples, K atoms of a categorical critic.
"""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isaacrl.algos import off_policy_ops as ops
from isaacrl.algos.networks import ACTIVATIONS, Normalizer


class Twins(nn.Module):
    """Two multilayer perceptrons as one: [B, n] or [2, B, n] -> [2, B, m], by batched products."""

    def __init__(self, sizes: list[int], activation: str, layer_norm: bool):
        super().__init__()
        self.activation, self.layer_norm = ACTIVATIONS[activation](), layer_norm
        layers = list(itertools.pairwise(sizes))
        bounds = [1.0 / math.sqrt(n) for n, _ in layers]  # as torch.nn.Linear starts
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(2, n, m).uniform_(-b, b)) for (n, m), b in zip(layers, bounds)
        )
        self.biases = nn.ParameterList(
            nn.Parameter(torch.empty(2, 1, m).uniform_(-b, b)) for (_, m), b in zip(layers, bounds)
        )
        hidden = sizes[1:-1] if layer_norm else []
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(2, 1, m)) for m in hidden)
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(2, 1, m)) for m in hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(2, *x.shape[-2:])
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            gain, shift = (self.gains[i], self.shifts[i]) if self.layer_norm and i < last else (None, None)
            activation = self.activation if i < last else None
            if ops.use(x):
                x = ops.layer(x, weight, bias, gain, shift, activation)
                continue
            x = torch.baddbmm(bias, x, weight)
            if gain is not None and shift is not None:
                x = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), gain)
            x = x if activation is None else activation(x)
        return x


class Critics(nn.Module):
    """Two critics of observations and actions.

    Categorical: K logits over returns `atoms`, -v_max to v_max (Bellemare et al. 2017, arXiv:1707.06887); else a mean.
    """

    atoms: Tensor

    def __init__(self, num_obs: int, num_actions: int, cfg: Any):
        super().__init__()
        self.categorical, self.lower, self.v_max = cfg.critic == "categorical", cfg.twin == "min", cfg.v_max
        outputs = cfg.atoms if self.categorical else 1
        hidden = cfg.critic_hidden or cfg.hidden
        self.zeros = -(num_obs + num_actions) % 4  # columns beside them: rows of 16 bytes suit tensor cores
        self.net = Twins([num_obs + num_actions + self.zeros, *hidden, outputs], cfg.activation, cfg.layer_norm)
        self.register_buffer("atoms", torch.linspace(-cfg.v_max, cfg.v_max, cfg.atoms))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Outputs [2, B, K or 1]."""
        return self.net(torch.cat((obs, action, obs.new_zeros(len(obs), self.zeros)), dim=-1))

    def values(self, out: Tensor) -> Tensor:
        """Both values [2, B]."""
        return out.softmax(dim=-1) @ self.atoms if self.categorical else out[..., 0]

    def value(self, out: Tensor) -> Tensor:
        """One value of both, [B]."""
        if self.categorical and ops.use(out):
            return ops.expected(out, self.lower, self.v_max)
        values = self.values(out)
        return values.amin(dim=0) if self.lower else values.mean(dim=0)

    def target(self, out: Tensor, reward: Tensor, discount: Tensor, bonus: Tensor | float = 0.0) -> Tensor:
        """What both critics are to predict: reward + discount * (value - bonus), [B, K] probabilities or [B] values."""
        if not self.categorical:
            return reward + discount * (self.value(out) - bonus)
        probability = out.softmax(dim=-1)
        if self.lower:
            values = probability @ self.atoms
            probability = torch.where((values[0] <= values[1])[:, None], probability[0], probability[1])
        else:
            probability = probability.mean(dim=0)
        moved = self.atoms - (bonus[:, None] if isinstance(bonus, Tensor) else bonus)
        return project(probability, reward[:, None] + discount[:, None] * moved, self.v_max)

    def bellman(
        self, out: Tensor, following: Tensor, reward: Tensor, discount: Tensor, bonus: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of outputs with the target of `following`, outputs after a transition; mean value; mean TD error."""
        if self.categorical and ops.use(out):
            cost = bonus if isinstance(bonus, Tensor) else None
            return ops.bellman(out, following, reward, discount, cost, self.lower, self.v_max)
        target = self.target(following, reward, discount, bonus)
        with torch.no_grad():
            values = self.values(out)
            error = (values - (target @ self.atoms if self.categorical else target)).abs().mean()
        return self.loss(out, target), values.mean(), error

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Cross entropy or half the squared error: the sum of both critics', each the mean over samples."""
        if self.categorical:
            return -(target * out.log_softmax(dim=-1)).sum(dim=-1).mean(dim=1).sum()
        return 0.5 * (out[..., 0] - target).square().mean(dim=1).sum()


def project(probability: Tensor, at: Tensor, v_max: float) -> Tensor:
    """Probabilities [B, K] of returns `at` [B, K], shared out among the two nearest of K atoms from -v_max to v_max."""
    k = probability.shape[-1]
    place = (at.clamp(-v_max, v_max) + v_max) * ((k - 1) / (2.0 * v_max))  # 0 to K - 1
    low = place.floor().clamp(max=k - 2)
    upper = place - low
    low = torch.nan_to_num(low).long()  # what is not finite stays so in its share, and in the loss
    out = torch.zeros_like(probability)
    out.scatter_add_(-1, low, probability * (1.0 - upper))
    return out.scatter_add_(-1, low + 1, probability * upper)


# --- rewards ---------------------------------------------------------------------------------------------------------


class RewardScale(nn.Module):
    """What rewards are divided by, so that returns have a standard deviation of 1 at most and none is beyond v_max.

    From running returns of all worlds, as SimbaV2 does (Lee et al. 2025, arXiv:2502.15280, section 4.3).
    """

    running: Tensor
    largest: Tensor
    scale: Tensor

    def __init__(self, num_envs: int, gamma: float, v_max: float):
        super().__init__()
        self.gamma, self.v_max = gamma, v_max
        self.register_buffer("running", torch.zeros(num_envs))  # each world's discounted return so far
        self.register_buffer("largest", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.moments = Normalizer(1)

    @torch.no_grad()
    def update(self, reward: Tensor, done: Tensor) -> None:
        """After a step of all worlds, [E]."""
        self.running.mul_(self.gamma).add_(reward)
        self.moments.update(self.running[:, None])
        self.largest.copy_(torch.maximum(self.largest, self.running.abs().amax()))
        self.running.masked_fill_(done, 0.0)
        self.scale.copy_(torch.maximum(torch.sqrt(self.moments.var[0] + 1e-8), self.largest / self.v_max))

    def forward(self, reward: Tensor) -> Tensor:
        return reward / self.scale
