"""PPO's update on a GPU: `PPO._update` as a fixed sequence of launches that asks the device nothing.

The networks are `device_networks.py`'s, the rest is in `device_kernels.h`. Nothing depends on the host's variables or
allocates memory that outlives it, so that a CUDA graph captures the update as it is. The numbers are those of
`PPO._minibatch`, up to rounding and the order of samples. It runs on a CPU as well, which only tests do.

Shapes: T steps of a rollout, E worlds, N = T * E samples, B of them in a minibatch, A action.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from isaacrl.algos import device_kernels
from isaacrl.algos.device_networks import FusedNetworks, Networks, padded
from isaacrl.algos.networks import Adam, FlatParameters, Normalizer, matmul_precision
from isaacrl.algos.symmetry import rows as rows_of
from isaacrl.sim.streams import Launcher

METRICS = ("loss/policy", "loss/value", "entropy", "kl", "clip_fraction", "grad_norm", "skipped_updates")
METRICS += ("lr", "std", "explained_variance")
LOSS_TEAMS, REDUCE_TEAMS = 512, 1024  # blocks of these kernels at most: a single block adds up what they leave
MAX_PADDING = 256  # width to which the narrower of two observations is padded without a second thought


class DeviceUpdate:
    """The update of `PPO` on a GPU. All that it reads and writes keeps its place: a captured update can be replayed.

    optimizer: Adam on params; its state is used here. samples: N. shared: whether both networks see the same
    observations, normalized by equal statistics. streams: whether work that can overlap is put on a second stream.
    """

    def __init__(
        self,
        policy: Any,
        critic: Any,
        params: FlatParameters,
        optimizer: Adam,
        lr: Tensor,
        cfg: Any,
        symmetry: Any = None,
        *,
        seed: int,
        samples: int,
        shared: bool,
        device: str,
        streams: bool = True,
    ):
        self.policy, self.critic, self.params, self.lr, self.cfg = policy, critic, params, lr, cfg
        self.seed, self.samples, self.shared, self.device = seed, samples, shared, device
        self.symmetry, self.paired = symmetry, symmetry is not None and symmetry.paired
        self.rows = rows_of(symmetry, samples, cfg.minibatches)  # B
        # B, or half of it where the mirror images are there for the mirror loss alone.
        self.own_rows = self.rows if symmetry is None or symmetry.augments else self.rows // 2
        self.shuffles = torch.zeros((), dtype=torch.int64, device=device)  # epochs so far
        self.state = optimizer.state
        self._launcher = Launcher(device, use_graph=False)
        self._side = torch.cuda.Stream(device) if device != "cpu" and streams else None
        self._kernels: Any = None

    def prepare(self) -> None:
        """Allocate, and compile or load the kernels: before a capture; the first update does it otherwise."""
        if self._kernels is not None:
            return
        cfg, device, actions = self.cfg, self.device, len(self.policy.log_std)
        dtype = torch.bfloat16 if cfg.precision == "bf16" else torch.float32
        nets = [self.policy.net, self.critic.net]
        width, narrow = (f(padded(net[0].in_features + 1) for net in nets) for f in (max, min))
        together = list(cfg.critic_hidden or cfg.hidden) == list(cfg.hidden) and width <= max(MAX_PADDING, 2 * narrow)
        groups = [nets] if together else [[n] for n in nets]
        fused = dtype == torch.bfloat16 and all(FusedNetworks.fits(x, device) for x in groups)
        make = FusedNetworks if fused else Networks
        self.networks = [make(x, self.rows, dtype, device, self._launch_packs) for x in groups]
        sizes = list(zip(*(n.sizes() for n in self.networks)))
        kinds = dtype, torch.float32, torch.float32
        flat = [torch.zeros(sum(n), dtype=kind, device=device) for n, kind in zip(sizes, kinds)]
        self.weights, self.biases, self.parts = flat
        tables = torch.full((4, self.params.value.numel()), -1, dtype=torch.int32)
        first = 0
        for n, *own in zip(self.networks, *(x.split(size) for x, size in zip(flat, sizes))):
            n.allocate(*own, cfg.activation)
            n.tables(tables, first)
            first += len(n.layers)
        self.source, self.layer_of, self.target, self.second = tables.to(device)
        layers = [x for n in self.networks for x in n.layers]
        strides = [[x.out * x.stride for x in layers], [x.chunks for x in layers]]
        self.strides, self.counts = torch.tensor(strides, dtype=torch.int32, device=device)

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.actor, self.judge = (self.networks[0], 0), (self.networks[-1], len(self.networks[-1].nets) - 1)
        inputs = [self.actor] if self.shared else [self.actor, self.judge]
        self.inputs = [buffer(self.samples, n.layers[0].stride, dtype=dtype) for n, _ in inputs]
        self.sample = buffer(self.samples, 4 + 2 * (-(-actions // 4) * 4))
        self.order = buffer(self.samples, dtype=torch.int32)
        self.advantage, self.returns, self.log_std0 = buffer(self.samples), buffer(self.samples), buffer(actions)
        gpu = device != "cpu"
        self.loss_teams, self.reduce_teams = (
            min(most, -(-n // device_kernels.BLOCK)) if gpu else 3
            for most, n in ((LOSS_TEAMS, self.rows), (REDUCE_TEAMS, self.params.value.numel()))
        )
        self.sums, self.squares = buffer(self.loss_teams, 5 + actions), buffer(self.reduce_teams)
        self.control, self.totals, self.metrics = buffer(4), buffer(8), buffer(len(METRICS) + 1)
        if self.paired:
            columns = self.symmetry.maps["mean"]
            self.image = columns.index.int(), columns.sign
        self.pack, self.team = 16 // dtype.itemsize, device_kernels.BLOCK if gpu else 1
        self._kernels = device_kernels.build(actions, cfg.activation, dtype == torch.bfloat16)
        self._kernels.load(device)

    def restore(self, shuffles: Tensor | None) -> None:
        """Go on from that many epochs."""
        self.shuffles.zero_() if shuffles is None else self.shuffles.copy_(shuffles)

    # --- streams -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _ready(self) -> Iterator[None]:
        """Kernels on torch's current stream, products in the precision asked for."""
        self.prepare()
        precision = matmul_precision("highest" if self.cfg.precision == "float32" else "high")
        with precision, torch.no_grad(), self._launcher.stream():
            yield

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """On torch's second stream, after what the first one has so far."""
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            yield

    def _join(self) -> None:
        """What follows comes after both streams."""
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._side)

    def _launch(self, name: str, threads: int, *values: Any) -> None:
        getattr(self._kernels, name)(self.device, threads, *values)

    def _launch_packs(self, name: str, reals: int, *values: Any) -> None:
        """A thread for every 16 bytes."""
        self._launch(name, reals // self.pack, *values)

    # --- the update --------------------------------------------------------------------------------------------------

    def values(self, obs: Tensor) -> Tensor:
        """The critic's normalized values of obs [..., D], [...]."""
        flat = obs.reshape(-1, obs.shape[-1])
        value = torch.empty(len(flat), 1, device=self.device)
        self.take_parameters()
        with self._ready():
            networks, g = self.judge
            networks.evaluate(g, self.critic.normalizer, flat.contiguous(), value)
        return value.view(obs.shape[:-1])

    def act(self, obs: Tensor, out: Tensor) -> None:
        """The policy's mean actions of obs [n, D], to out [n, A]; with the parameters as they were taken last."""
        with self._ready():
            networks, g = self.actor
            networks.evaluate(g, self.policy.normalizer, obs.contiguous(), out)

    def mean(self, obs: Tensor) -> Tensor:
        """The policy's mean actions of obs [..., D], [..., A]; with the parameters as they were taken last."""
        flat = obs.reshape(-1, obs.shape[-1])
        out = torch.empty(len(flat), len(self.policy.log_std), device=self.device)
        self.act(flat, out)
        return out.view(*obs.shape[:-1], -1)

    def take_parameters(self) -> None:
        """Work with the parameters as they are now, whoever has changed them."""
        with self._ready():
            self._copy_weights()

    def __call__(
        self,
        *,
        obs: Tensor,
        critic_obs: Tensor,
        action: Tensor,
        mean: Tensor,
        reward: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        value: Tensor,
        following: Tensor,
        mean0: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """All epochs, from a rollout's contiguous tensors [T, E, ...]; metrics, and the returns [T, E].

        value, following: V of each observation and of the one that each step led to, in reward units. mean: about which
        actions were drawn; mean0: the old policy's, from which the KL divergence is, where it is another. What it
        returns is overwritten by the next update.
        """
        with self._ready():
            self._estimate(reward, value, following, terminated, truncated)
            self._pack(action, mean, value)
            if mean0 is not None:
                self.sample[:, -(-(-mean0.shape[-1] // 4) * 4) :][:, : mean0.shape[-1]] = mean0.flatten(0, 1)
            for model, x, to in zip((self.policy, self.critic), (obs, critic_obs), self.inputs):
                self._normalize(model.normalizer, x.flatten(0, 1), to)
            self._copy_weights()
            self.totals.zero_()
            for epoch in range(self.cfg.epochs):
                self.shuffle(epoch)
                for i in range(self.cfg.minibatches):
                    self.minibatch(self.order[i * self.rows : (i + 1) * self.rows])
            self.shuffles.add_(self.cfg.epochs)
            steps = self.cfg.epochs * self.cfg.minibatches
            torch.div(self.totals[:6], steps, out=self.metrics[:6])
            self.metrics[6] = self.totals[6]
            self.metrics[7] = self.lr
            self.metrics[8] = self.policy.log_std.exp().mean()
            if self.paired:
                torch.div(self.totals[7], steps, out=self.metrics[10])
        names = (*METRICS, "loss/symmetry") if self.paired else METRICS
        return dict(zip(names, self.metrics.unbind())), self.returns.view(reward.shape)

    def _estimate(self, reward: Tensor, value: Tensor, following: Tensor, *ends: Tensor) -> None:
        """Advantages and returns, not yet normalized; ends: terminated, truncated."""
        cfg, (T, E), out = self.cfg, reward.shape, (self.advantage, self.returns)
        self._launch("gae", E, reward, value, following, *ends, *out, T, E, cfg.gamma, cfg.gae_lambda)

    def _pack(self, action: Tensor, mean: Tensor, value: Tensor) -> None:
        """What the loss reads of each sample, side by side."""
        scale, (spread, centre) = self.critic.returns, torch.var_mean(self.advantage)
        self.metrics[9] = 1.0 - spread / self.returns.var().clamp(min=1e-12)
        moments = torch.stack((centre, 1.0 / (spread.sqrt() + 1e-8)))
        self.log_std0.copy_(self.policy.log_std)
        # New statistics of returns apply from the next rollout on; this update learns in the units of this one.
        units = (None, None) if scale is None else (scale.mean, scale.var)
        values = (self.advantage, self.returns, value, action, mean, moments, *units)
        self._launch("pack", self.samples, *values, self.log_std0, self.sample, self.samples)

    def _normalize(self, normalizer: Normalizer | None, obs: Tensor, out: Tensor) -> None:
        """Observations [n, D] to the first rows of a layer's input."""
        moments = (None, None, 0.0) if normalizer is None else (normalizer.mean, normalizer.var, normalizer.clip)
        (n, width), obs = obs.shape, obs.contiguous()
        self._launch_packs("normalize", n * out.shape[1], obs, *moments[:2], out, n, width, out.shape[1], moments[2])

    def _copy_weights(self) -> None:
        self._adam(None)

    def _adam(self, control: Tensor | None) -> None:
        """A step, where control says so, and new working copies of the parameters."""
        cfg, p, state = self.cfg, self.params, self.state
        tensors = p.value, p.grad, state["exp_avg"], state["exp_avg_sq"], control, self.target, self.second
        sizes = p.value.numel(), self.policy.log_std.storage_offset()
        bounds = math.log(cfg.min_std), math.log(cfg.max_std)
        self._launch("adam", sizes[0], *tensors, self.weights, self.biases, *sizes, *bounds)

    def shuffle(self, epoch: int) -> None:
        """The order of samples of this update's epoch number `epoch`; for pairs see `symmetry.order`."""
        n, pairs = self.samples, (0, 0)
        if self.paired:
            n //= 2
            pairs = n // self.cfg.num_steps, self.rows // 2
        self._launch("shuffle", n, self.order, self.shuffles, n, (n - 1).bit_length(), epoch, self.seed, *pairs)

    def minibatch(self, order: Tensor) -> None:
        """One gradient step on the samples [B] int32."""
        first, others = self.networks[0], self.networks[1:]
        sources = [self.inputs[0], self.inputs[-1]]  # the policy's and the critic's, which may be the same
        for networks in others:
            with self._beside(), self._launcher.stream():
                networks.forward(order, sources[1:])
        first.forward(order, sources[:1] if others else sources)
        if others:
            self._join()
        self._loss(order)
        for networks in others:
            with self._beside(), self._launcher.stream():
                networks.backward(contextlib.nullcontext)
        first.backward(contextlib.nullcontext if others else self._beside)
        self._join()
        self._step()

    def _loss(self, order: Tensor) -> None:
        cfg, (actor, _), (judge, g), threads = self.cfg, self.actor, self.judge, self.loss_teams * self.team
        last, other = actor.layers[-1], judge.layers[-1]
        outputs = actor.output[0], last.bias[0], judge.output[g], other.bias[g]
        grads, widths = (last.grad[0], other.grad[g], self.sums), (last.out, other.out)
        image = self.image if self.paired else (None, None)
        options = int(cfg.value_clip), self.own_rows, int(self.paired), cfg.clip, cfg.value_coef, cfg.symmetry_coef
        self._launch(
            "loss",
            threads,
            *(self.sample, order, *outputs, self.policy.log_std, *image, *grads),
            *(len(order), threads, *widths, *options),
        )

    def _step(self) -> None:
        """Adam's step from the parts of the gradient and the sums of the losses."""
        cfg, p, threads = self.cfg, self.params, self.reduce_teams * self.team
        tables = self.source, self.layer_of, self.strides, self.counts
        self._launch("reduce", threads, self.parts, *tables, p.grad, self.squares, p.value.numel(), threads)
        log_std = self.policy.log_std
        tensors = self.sums, self.squares, log_std, self.log_std0, log_std.grad, self.lr, self.state["step"]
        kl = cfg.desired_kl if cfg.schedule == "adaptive" else 0.0
        options = cfg.value_coef, cfg.entropy_coef, cfg.max_grad_norm, kl, cfg.lr_min, cfg.lr_max
        sizes = self.loss_teams, self.reduce_teams, self.own_rows
        self._launch("settle", self.team, *tensors, self.control, self.totals, *sizes, *options)
        self._adam(self.control)
