"""What the algorithms share: networks on one flat parameter buffer, Adam, and running normalizers."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from isaacrl.algos import off_policy_ops as ops

ACTIVATIONS = {
    "elu": partial(nn.ELU, inplace=True),
    "relu": partial(nn.ReLU, inplace=True),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def mlp(sizes: Sequence[int], activation: str, last_gain: float, layer_norm: bool = False) -> nn.Sequential:
    """A multilayer perceptron, orthogonal weights (gain sqrt 2; last_gain in the last layer) and zero biases.

    layer_norm: before each activation (Ba et al. 2016).

    Source: the initialization of Andrychowicz et al. 2021, arXiv:2006.05990, C56-C57.
    """
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(n_in, n_out)
        last = i == len(sizes) - 2
        nn.init.orthogonal_(linear.weight, last_gain if last else math.sqrt(2.0))
        nn.init.zeros_(linear.bias)
        norm = [nn.LayerNorm(n_out)] if layer_norm else []
        layers += [linear] if last else [linear, *norm, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Products of float32 matrices on a GPU in this precision: "highest", or "high" for TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class FlatParameters:
    """All parameters of some modules as views of one buffer, and their gradients as views of another.

    So clipping, the optimizer step and (with several processes) the all-reduce are one operation each.
    """

    def __init__(self, *modules: nn.Module):
        self.parts = params = [p for m in modules for p in m.parameters()]
        self.value = nn.Parameter(torch.cat([p.detach().flatten() for p in params]))
        self.grad = torch.zeros_like(self.value)
        self.value.grad = self.grad
        first = 0
        for p in params:
            span = slice(first, first + p.numel())
            p.data = self.value.data[span].view_as(p)
            p.grad = self.grad[span].view_as(p)
            first += p.numel()


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) on one flat parameter, by torch's fused kernel; lr is a tensor.

    That of torch.optim imports torch's compiler, which takes 1.5 s or more of every start.
    """

    def __init__(self, param: nn.Parameter, lr: Tensor):
        self.param, self.lr = param, lr
        self.state = {"step": torch.zeros((), device=param.device)}  # and the moments' running means, [n]
        self.state |= {k: torch.zeros_like(param.detach()) for k in ("exp_avg", "exp_avg_sq")}

    @torch.no_grad()
    def step(self, finite: Tensor) -> None:
        """One step along the gradient; nothing changes where `finite`, a boolean scalar, is false."""
        grad, (step, mean, mean_sq) = self.param.grad, self.state.values()
        assert grad is not None
        step += finite
        if ops.use(grad):
            ops.adam(self.param, grad, mean, mean_sq, step, self.lr, finite)
            return
        torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]
            *([self.param], [grad], [mean], [mean_sq], [], [step]),
            lr=self.lr,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            found_inf=(~finite).float(),
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        """The state as torch.optim stores it: by the number of the parameter."""
        return {0: {k: v.clone() for k, v in self.state.items()}}

    def load_state_dict(self, stored: dict[int, dict[str, Tensor]]) -> None:
        """Take over state_dict(), in place; an empty one is that of a start. Raises: RuntimeError for another size."""
        if stored and stored[0]["exp_avg"].shape != self.param.shape:
            raise RuntimeError("loading state_dict: the optimizer's is of other networks")
        for k, v in self.state.items():
            v.copy_(stored[0][k]) if stored else v.zero_()


class Normalizer(nn.Module):
    """Running mean and variance of vectors [n]; normalizes to (x - mean) / std, clipped to +-clip.

    `update` merges a batch's moments (Chan et al. 1979). Statistics stay frozen within an iteration, so that all
    probability ratios compare the same function.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, n: int, clip: float = 10.0):
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("var", torch.ones(n))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Merge the moments of x [..., n]. A batch that is not finite changes nothing."""
        x = x.reshape(-1, x.shape[-1])
        var, mean = torch.var_mean(x, dim=0, correction=0)
        finite = torch.isfinite(mean).all() & torch.isfinite(var).all()
        rows = torch.where(finite, float(len(x)), 0.0)
        total = self.count + rows
        mean, var = torch.where(finite, mean, self.mean), torch.where(finite, var, self.var)
        delta = mean - self.mean
        ratio = rows / total.clamp(min=1.0)
        self.var.copy_((1 - ratio) * self.var + ratio * var + ratio * (1 - ratio) * delta.square())
        self.mean.add_(delta * ratio)
        self.count.copy_(total)

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) * torch.rsqrt(self.var + 1e-8)).clamp(-self.clip, self.clip)

    def restore(self, y: Tensor) -> Tensor:
        """The inverse, without the clip."""
        return y * torch.sqrt(self.var + 1e-8) + self.mean


class Policy(nn.Module):
    """Observation [N, D] -> mean action [N, A]: normalizer and network. log_std is a free parameter."""

    def __init__(self, num_obs: int, num_actions: int, cfg: DictConfig):
        super().__init__()
        self.normalizer = Normalizer(num_obs) if cfg.normalize_obs else None
        self.net = mlp([num_obs, *cfg.hidden, num_actions], cfg.activation, last_gain=0.01)
        self.log_std = nn.Parameter(torch.full((num_actions,), math.log(cfg.init_std)))

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(self.normalizer(obs) if self.normalizer else obs)


class Critic(nn.Module):
    """Observation [N, D] -> value [N], in reward units after `restore`."""

    def __init__(self, num_obs: int, cfg: DictConfig):
        super().__init__()
        self.normalizer = Normalizer(num_obs) if cfg.normalize_obs else None
        self.net = mlp([num_obs, *(cfg.critic_hidden or cfg.hidden), 1], cfg.activation, last_gain=1.0)
        self.returns = Normalizer(1, clip=torch.inf) if cfg.normalize_value else None

    def forward(self, obs: Tensor) -> Tensor:
        """The value in normalized units, [N]."""
        return self.net(self.normalizer(obs) if self.normalizer else obs)[..., 0]

    def restore(self, value: Tensor) -> Tensor:
        return self.returns.restore(value) if self.returns else value
