"""PPO's update on a GPU: `PPO._update` as a fixed sequence of launches that asks the device nothing.

Matrix products are cuBLAS's, the rest is in `device_kernels.h`. Nothing depends on the host's variables or allocates
memory that outlives it, so that a CUDA graph captures the update as it is. The numbers are those of `PPO._minibatch`,
up to rounding and the order of samples. It runs on a CPU as well, which only tests do.

Shapes: T steps of a rollout, E worlds, N = T * E samples, B of them in a minibatch, A action; G networks with hidden
layers of equal widths, which are computed together as batched products.

A layer's input is stored with a multiple of 8 columns: its n values, a 1, zeros. With the 1 the product that gives the
weights' gradient gives the bias's as well. B is rounded up; the rows too many are 0 or have no gradient. That product
is taken in chunks of rows whose results `reduce` adds up, since a GPU is larger than the few tiles of its result.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isaacrl.algos import device_kernels
from isaacrl.algos.networks import Adam, FlatParameters, Normalizer
from isaacrl.sim.streams import Launcher

METRICS = ("loss/policy", "loss/value", "entropy", "kl", "clip_fraction", "grad_norm", "skipped_updates")
METRICS += ("lr", "std", "explained_variance")
TILE = 128  # rows and columns that a block of a matrix product usually computes
PRODUCT_BLOCKS = 256  # blocks of a product that fill a GPU
MAX_CHUNKS, MIN_CHUNK = 64, 1024  # chunks of a product; rows of a chunk
LOSS_TEAMS, REDUCE_TEAMS = 512, 1024  # blocks of these kernels at most: a single block adds up what they leave
MAX_PADDING = 256  # width to which the narrower of two observations is padded without a second thought


def padded(n: int) -> int:
    """The next multiple of 8: what tensor cores and 16-byte accesses want."""
    return -(-n // 8) * 8


@dataclass
class Layer:
    """A linear layer of G networks."""

    modules: list[nn.Linear]
    weight: Tensor  # [G, out, in], padded working copies
    bias: Tensor  # [G, out], likewise
    input: Tensor  # [G, B, stride], the 1 included
    grad: Tensor  # [G, B, out], by what the layer puts out
    parts: Tensor  # [G * chunks, out, stride], of the gradient by weight and bias

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Columns of its output, of its weight and of its input."""
        return self.weight.shape[1], self.weight.shape[2], self.input.shape[2]


def _pieces(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: str) -> tuple[Tensor, list[Tensor]]:
    """Zeros, and views of these shapes one after the other."""
    sizes = [math.prod(shape) for shape in shapes]
    flat = torch.zeros(sum(sizes), dtype=dtype, device=device)
    return flat, [x.view(shape) for x, shape in zip(flat.split(sizes), shapes)]


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """A batched matrix product, summed in float32."""
    if a.dtype == out.dtype:
        torch.bmm(a, b, out=out)
    elif a.is_cuda:
        torch.ops.aten.bmm.dtype_out(a, b, out.dtype, out=out)
    else:
        torch.bmm(a.to(out.dtype), b.to(out.dtype), out=out)


class Networks:
    """G networks with hidden layers of equal widths: their outputs, and the gradients of their parameters."""

    def __init__(self, nets: Sequence[nn.Sequential], rows: int, dtype: torch.dtype, device: str):
        self.nets, self.dtype, self.device = nets, dtype, device
        self.linear = [list(ms) for ms in zip(*([m for m in net if isinstance(m, nn.Linear)] for net in nets))]
        self.shapes: list[tuple[int, int, int, int]] = []  # of layers: out, in, stride, chunks
        for modules in self.linear:
            n_in, n_out = (max(getattr(m, k) for m in modules) for k in ("in_features", "out_features"))
            out, stride = padded(n_out), padded(n_in + 1)
            tiles = len(nets) * -(-out // TILE) * -(-stride // TILE)
            most = max(min(PRODUCT_BLOCKS // tiles, rows // MIN_CHUNK, MAX_CHUNKS), 1)
            self.shapes.append((out, padded(n_in), stride, 1 << (most.bit_length() - 1)))
        whole = 8 * max(chunks for *_, chunks in self.shapes)
        self.rows = -(-rows // whole) * whole
        self.layers: list[Layer] = []

    def allocate(self, weights: list[Tensor], biases: list[Tensor], parts: list[Tensor], activation: str) -> None:
        """weights, biases, parts: one of each layer."""
        one = 20.0 if activation == "tanh" else 1.0  # activation(one) = 1
        for i, (modules, (out, _, stride, _)) in enumerate(zip(self.linear, self.shapes)):
            x, grad = (
                torch.zeros(len(self.nets), self.rows, n, dtype=self.dtype, device=self.device) for n in (stride, out)
            )
            if i:  # the 1: beside the columns of the product, or a value of them
                n = modules[0].in_features
                if n % 8:
                    biases[i - 1][:, n] = one
                else:
                    x[..., n] = 1.0
            self.layers.append(Layer(modules, weights[i], biases[i], x, grad, parts[i]))
        last = self.layers[-1]
        self.output = torch.zeros(last.grad.shape, device=self.device)  # the last bias not yet added

    def forward(self, launch: Callable[..., None]) -> None:
        """The networks' outputs."""
        self._forward(launch, slice(None), self.rows)

    def forward_one(self, launch: Callable[..., None], g: int, rows: int) -> None:
        """The output of network g for its first rows."""
        self._forward(launch, slice(g, g + 1), rows)

    def _forward(self, launch: Callable[..., None], part: slice, rows: int) -> None:
        for layer, following in itertools.zip_longest(self.layers, self.layers[1:]):
            out, n_in, _ = layer.sizes
            y = (self.output if following is None else following.input)[part]
            _product(layer.input[part, :rows, :n_in], layer.weight[part].transpose(1, 2), y[:, :rows, :out])
            if following is not None:
                n = len(y) * rows
                launch("activate", n * out, y, layer.bias[part], n, out, y.shape[2], rows)

    def backward(self, launch: Callable[..., None], beside: Callable[[], Any]) -> None:
        """The parts of the parameters' gradients, from the last layer's grad. What runs in beside() may overlap."""
        for below, layer in reversed(list(zip([None, *self.layers], self.layers))):
            with beside():
                parts, (out, _, stride) = layer.parts, layer.sizes
                grad, x = layer.grad.view(len(parts), -1, out), layer.input.view(len(parts), -1, stride)
                _product(grad.transpose(1, 2), x, parts)
            if below is not None:
                _product(layer.grad, layer.weight, below.grad)
                n, width = below.grad.numel(), below.grad.shape[2]
                launch("descend", n, below.grad, layer.input, n // width, width, stride)

    def tables(self, source: Tensor, layer_of: Tensor, target: Tensor, first: int) -> None:
        """Where each parameter's gradient is in the parts, its layer's number, where its working copy is."""
        for number, layer in enumerate(self.layers, first):
            out, n_in, stride = layer.sizes
            starts = [int(x[0].storage_offset()) for x in (layer.parts, layer.weight, layer.bias)]
            for g, m in enumerate(layer.modules):
                row, column = torch.arange(m.out_features)[:, None], torch.arange(m.in_features)
                part = row * stride + (starts[0] + g * (layer.parts.numel() // len(self.nets)))
                copy = row * n_in + (starts[1] + g * out * n_in)
                bias = row + (starts[2] + g * out)
                for p, a, b in ((m.weight, part + column, copy + column), (m.bias, part + m.in_features, -2 - bias)):
                    first_of = int(p.storage_offset())
                    span = slice(first_of, first_of + p.numel())
                    source[span], target[span], layer_of[span] = a.flatten(), b.flatten(), number


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
        *,
        seed: int,
        samples: int,
        shared: bool,
        device: str,
        streams: bool = True,
    ):
        self.policy, self.critic, self.params, self.lr, self.cfg = policy, critic, params, lr, cfg
        self.seed, self.samples, self.shared, self.device = seed, samples, shared, device
        self.rows = samples // cfg.minibatches  # B
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
        self.networks = [Networks(x, self.rows, dtype, device) for x in ([nets] if together else [[n] for n in nets])]
        shapes = [(len(n.nets), *shape) for n in self.networks for shape in n.shapes]
        self.weights, weights = _pieces([(g, out, n_in) for g, out, n_in, _, _ in shapes], dtype, device)
        self.biases, biases = _pieces([(g, out) for g, out, *_ in shapes], torch.float32, device)
        parts_of = [(g * chunks, out, stride) for g, out, _, stride, chunks in shapes]
        self.parts, parts = _pieces(parts_of, torch.float32, device)
        tables = torch.full((3, self.params.value.numel()), -1, dtype=torch.int32)
        first = 0
        for n in self.networks:
            own = slice(first, first + len(n.shapes))
            n.allocate(weights[own], biases[own], parts[own], cfg.activation)
            n.tables(*tables, first)
            first = own.stop
        self.source, self.layer_of, self.target = tables.to(device)
        strides, counts = [out * stride for _, out, _, stride, _ in shapes], [chunks for *_, chunks in shapes]
        self.strides, self.counts = torch.tensor([strides, counts], dtype=torch.int32, device=device)

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.actor, self.judge = (self.networks[0], 0), (self.networks[-1], len(self.networks[-1].nets) - 1)
        inputs = nets[:1] if self.shared else nets
        self.inputs = [buffer(self.samples, padded(n[0].in_features + 1), dtype=dtype) for n in inputs]
        self.sample = buffer(self.samples, 4 + 2 * (-(-actions // 4) * 4))
        self.order = buffer(self.samples, dtype=torch.int32)
        self.advantage, self.returns, self.log_std0 = buffer(self.samples), buffer(self.samples), buffer(actions)
        gpu = device != "cpu"
        self.loss_teams, self.reduce_teams = (
            min(most, -(-n // device_kernels.BLOCK)) if gpu else 3
            for most, n in ((LOSS_TEAMS, self.rows), (REDUCE_TEAMS, self.params.value.numel()))
        )
        self.sums, self.squares = buffer(self.loss_teams, 4 + actions), buffer(self.reduce_teams)
        self.control, self.totals, self.metrics = buffer(4), buffer(7), buffer(len(METRICS))
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
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest" if self.cfg.precision == "float32" else "high")
        try:
            with torch.no_grad(), self._launcher.stream():
                yield
        finally:
            torch.set_float32_matmul_precision(before)

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
            self._evaluate(self.critic.normalizer, self.judge, flat, value)
        return value.view(obs.shape[:-1])

    def act(self, obs: Tensor, out: Tensor) -> None:
        """The policy's mean actions of obs [n, D], to out [n, A]; with the parameters as they were taken last."""
        with self._ready():
            self._evaluate(self.policy.normalizer, self.actor, obs, out)

    def take_parameters(self) -> None:
        """Work with the parameters as they are now, whoever has changed them."""
        with self._ready():
            self._copy_weights()

    def _evaluate(self, normalizer: Normalizer | None, which: tuple[Networks, int], obs: Tensor, out: Tensor) -> None:
        networks, g = which
        layer, bias = networks.layers[0], networks.layers[-1].bias[g, : out.shape[1]]
        for x, y in zip(obs.split(self.rows), out.split(self.rows)):
            self._normalize(normalizer, x, layer.input[g])
            networks.forward_one(self._launch_packs, g, len(x))
            torch.add(networks.output[g, : len(y), : out.shape[1]], bias, out=y)

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
    ) -> tuple[dict[str, Tensor], Tensor]:
        """All epochs, from a rollout's contiguous tensors [T, E, ...]; metrics, and the returns [T, E].

        value, following: V of each observation and of the one that each step led to, in reward units. What it returns
        is overwritten by the next update.
        """
        with self._ready():
            self._estimate(reward, value, following, terminated, truncated)
            self._pack(action, mean, value)
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
        return dict(zip(METRICS, self.metrics.unbind())), self.returns.view(reward.shape)

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
        tensors = p.value, p.grad, state["exp_avg"], state["exp_avg_sq"], control, self.target
        sizes = p.value.numel(), self.policy.log_std.storage_offset()
        bounds = math.log(cfg.min_std), math.log(cfg.max_std)
        self._launch("adam", sizes[0], *tensors, self.weights, self.biases, *sizes, *bounds)

    def shuffle(self, epoch: int) -> None:
        """The order of samples of this update's epoch number `epoch`."""
        n = self.samples
        self._launch("shuffle", n, self.order, self.shuffles, n, (n - 1).bit_length(), epoch, self.seed)

    def minibatch(self, order: Tensor) -> None:
        """One gradient step on the samples [B] int32."""
        self._gather(order)
        first, others = self.networks[0], self.networks[1:]
        for networks in others:
            with self._beside(), self._launcher.stream():
                networks.forward(self._launch_packs)
        first.forward(self._launch_packs)
        if others:
            self._join()
        self._loss(order)
        for networks in others:
            with self._beside(), self._launcher.stream():
                networks.backward(self._launch_packs, contextlib.nullcontext)
        first.backward(self._launch_packs, contextlib.nullcontext if others else self._beside)
        self._join()
        self._step()

    def _gather(self, order: Tensor) -> None:
        (actor, _), (judge, g) = self.actor, self.judge
        to = actor.layers[0].input[0], judge.layers[0].input[g]
        pairs = [(self.inputs[0], *to)] if self.shared else [(x, y, None) for x, y in zip(self.inputs, to)]
        for source, target, other in pairs:
            width, rows = source.shape[1], len(order)
            self._launch_packs("gather", rows * width, source, target, other, order, rows, width, target.shape[1])

    def _loss(self, order: Tensor) -> None:
        cfg, (actor, _), (judge, g), threads = self.cfg, self.actor, self.judge, self.loss_teams * self.team
        last, other = actor.layers[-1], judge.layers[-1]
        outputs = actor.output[0], last.bias[0], judge.output[g], other.bias[g]
        grads, widths = (last.grad[0], other.grad[g], self.sums), (last.sizes[0], other.sizes[0])
        options = int(cfg.value_clip), cfg.clip, cfg.value_coef
        self._launch(
            "loss",
            threads,
            *(self.sample, order, *outputs, self.policy.log_std, *grads),
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
        sizes = self.loss_teams, self.reduce_teams, self.rows
        self._launch("settle", self.team, *tensors, self.control, self.totals, *sizes, *options)
        self._adam(self.control)
