"""Networks on a GPU with an explicit backward pass, for `device_update.py`.

Shapes: B samples of a minibatch; G networks with hidden layers of equal widths, which are computed together.

A layer's input is stored with a multiple of 8 columns: its n values, a 1, zeros. With the 1 the product that gives the
weights' gradient gives the bias's as well. B is rounded up; the rows too many are 0 or have no gradient. That product
is taken in chunks of rows whose results `reduce` adds up, since a GPU is larger than the few tiles of its result.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isaacrl.algos import device_kernels
from isaacrl.algos.networks import Normalizer

TILE = 128  # rows and columns that a block of a matrix product usually computes
PRODUCT_BLOCKS = 256  # blocks of a product that fill a GPU
MAX_CHUNKS, MIN_CHUNK = 64, 1024  # chunks of a product; rows of a chunk


class Block(NamedTuple):
    """How device_networks.h takes rows through all layers."""

    rows: int
    warps: int
    tiles: int  # columns of 8 of a product's result that a warp sums up at once
    resident: int  # blocks of a multiprocessor


BLOCKS = (Block(64, 8, 4, 2), Block(32, 8, 7, 2), Block(16, 8, 7, 2))
BEHIND = 256 * max(block.tiles for block in BLOCKS)  # reals behind packed weights that a warp may read
OVERHEAD = 40  # what a block costs beside its rows, in rows

Launch = Callable[[str, int, Any], None]  # a kernel of device_kernels.h, its threads, its values


def padded(n: int, to: int = 8) -> int:
    """The next multiple: of 8 is what tensor cores and 16-byte accesses want."""
    return -(-n // to) * to


def _views(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Views of these shapes, one after the other."""
    sizes = [math.prod(shape) for shape in shapes]
    return [x.view(shape) for x, shape in zip(flat.split(sizes), shapes)]


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """A batched matrix product, summed in float32."""
    if a.dtype == out.dtype:
        torch.bmm(a, b, out=out)
    elif a.is_cuda:
        torch.ops.aten.bmm.dtype_out(a, b, out.dtype, out=out)
    else:
        torch.bmm(a.to(out.dtype), b.to(out.dtype), out=out)


@dataclass
class Layer:
    """A linear layer of G networks; columns: of its output, of its weight, of its stored input."""

    modules: list[nn.Linear]
    out: int
    n_in: int
    stride: int
    chunks: int
    input: Tensor = None  # pyright: ignore[reportAssignmentType]  [G, B, stride], the 1 included
    grad: Tensor = None  # pyright: ignore[reportAssignmentType]  [G, B, out], by what the layer puts out
    parts: Tensor = None  # pyright: ignore[reportAssignmentType]  [G * chunks, out, stride], by weight and bias
    bias: Tensor = None  # pyright: ignore[reportAssignmentType]  [G, out], a padded working copy


class Networks:
    """G networks: their outputs, and the gradients of their parameters. The products are cuBLAS's.

    launch: launches a kernel of device_kernels.h with a thread for every 16 bytes.
    """

    def __init__(self, nets: Sequence[nn.Sequential], rows: int, dtype: torch.dtype, device: str, launch: Launch):
        self.nets, self.dtype, self.device, self.launch = nets, dtype, device, launch
        self.layers: list[Layer] = []
        for modules in zip(*([m for m in net if isinstance(m, nn.Linear)] for net in nets)):
            n_in, n_out = (max(getattr(m, k) for m in modules) for k in ("in_features", "out_features"))
            out, stride = padded(n_out), padded(n_in + 1)
            tiles = len(nets) * -(-out // TILE) * -(-stride // TILE)
            most = max(min(PRODUCT_BLOCKS // tiles, rows // MIN_CHUNK, MAX_CHUNKS), 1)
            chunks = 1 << (most.bit_length() - 1)
            self.layers.append(Layer(list(modules), out, padded(n_in), stride, chunks))
        self.rows = padded(rows, 8 * max(layer.chunks for layer in self.layers))

    # --- memory ------------------------------------------------------------------------------------------------------

    def sizes(self) -> tuple[int, int, int]:
        """Numbers of working copies of weights, of biases, and of parts of gradients."""
        g = len(self.nets)
        parts = sum(g * layer.chunks * layer.out * layer.stride for layer in self.layers)
        return self._weights(), sum(g * layer.out for layer in self.layers), parts

    def _weights(self) -> int:
        return len(self.nets) * sum(layer.out * layer.n_in for layer in self.layers)

    def allocate(self, weights: Tensor, biases: Tensor, parts: Tensor, activation: str) -> None:
        """weights, biases, parts: zeros, as many as sizes() says."""
        g = len(self.nets)
        self.weights, self.biases = weights, biases
        self._place(weights)

        def of_layers(flat: Tensor, shape: Callable[[Layer], tuple[int, ...]]) -> list[Tensor]:
            return _views(flat, [shape(layer) for layer in self.layers])

        def buffer(columns: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(g * self.rows * columns, dtype=dtype, device=self.device)

        self.inputs = buffer(sum(layer.stride for layer in self.layers), self.dtype)
        self.grads = buffer(sum(layer.out for layer in self.layers), self.dtype)
        self.output = buffer(self.layers[-1].out, torch.float32).view(g, self.rows, -1)  # the last bias not yet added
        for name, views in (
            ("input", of_layers(self.inputs, lambda x: (g, self.rows, x.stride))),
            ("grad", of_layers(self.grads, lambda x: (g, self.rows, x.out))),
            ("parts", of_layers(parts, lambda x: (g * x.chunks, x.out, x.stride))),
            ("bias", of_layers(biases, lambda x: (g, x.out))),
        ):
            for layer, view in zip(self.layers, views):
                setattr(layer, name, view)
        one = 20.0 if activation == "tanh" else 1.0  # activation(one) = 1
        for below, layer in zip(self.layers, self.layers[1:]):
            n = layer.modules[0].in_features  # the 1: beside the columns of the product, or a value of them
            if n % 8:
                below.bias[:, n] = one
            else:
                layer.input[..., n] = 1.0

    def _place(self, weights: Tensor) -> None:
        shapes = [(len(self.nets), layer.out, layer.n_in) for layer in self.layers]
        self.copies = _views(weights, shapes)

    def tables(self, tables: Tensor, first: int) -> None:
        """For each parameter: where its gradient is in the parts, its layer's number, where its working copies are.

        tables: [4, parameters], the two last ones of weights' copies, a bias's is at -2 minus it, -1: none.
        """
        source, number, target, second = tables
        copies, biases = int(self.weights.storage_offset()), int(self.biases.storage_offset())
        for k, layer in enumerate(self.layers):
            start = int(layer.parts.storage_offset())
            for g, m in enumerate(layer.modules):
                row, column = torch.arange(m.out_features)[:, None], torch.arange(m.in_features)
                part = start + g * (layer.parts.numel() // len(self.nets)) + row * layer.stride
                bias = biases + self._before(k, "out") + g * layer.out + torch.arange(m.out_features)
                weights, others = (
                    slice(int(p.storage_offset()), int(p.storage_offset()) + p.numel()) for p in (m.weight, m.bias)
                )
                source[weights], source[others] = (part + column).flatten(), part[:, 0] + m.in_features
                number[weights], number[others] = first + k, first + k
                one, two = self._copies(k, g, row, column)
                target[weights], target[others] = copies + one.flatten(), -2 - bias
                if two is not None:
                    second[weights] = copies + two.flatten()

    def _before(self, k: int, name: str) -> int:
        return len(self.nets) * sum(getattr(layer, name) for layer in self.layers[:k])

    def _copies(self, k: int, g: int, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor | None]:
        layer = self.layers[k]
        before = len(self.nets) * sum(x.out * x.n_in for x in self.layers[:k]) + g * layer.out * layer.n_in
        return before + row * layer.n_in + column, None

    # --- computation -------------------------------------------------------------------------------------------------

    def evaluate(self, g: int, normalizer: Normalizer | None, obs: Tensor, out: Tensor) -> None:
        """Outputs [n, width] of network g for observations [n, D] as they come."""
        first, n, width = self.layers[0], obs.shape[1], out.shape[1]
        moments = (None, None, 0.0) if normalizer is None else (normalizer.mean, normalizer.var, normalizer.clip)
        for x, y in zip(obs.split(self.rows), out.split(self.rows)):
            to = first.input[g], len(x), n, first.stride
            self.launch("normalize", len(x) * first.stride, x, *moments[:2], *to, moments[2])
            self._forward(slice(g, g + 1), len(x))
            torch.add(self.output[g, : len(y), :width], self.layers[-1].bias[g, :width], out=y)

    def forward(self, order: Tensor, sources: Sequence[Tensor]) -> None:
        """Outputs for the samples [B] of normalized observations as they are stored, one tensor of them a network."""
        rows, stride, to = len(order), self.layers[0].stride, list(self.layers[0].input)
        same = len(sources) == 2 and sources[0] is sources[1]
        for x, a, b in [(sources[0], *to)] if same else [(x, a, None) for x, a in zip(sources, to)]:
            self.launch("gather", rows * stride, x, a, b, order, rows, stride)
        self._forward(slice(None), self.rows)

    def _forward(self, part: slice, rows: int) -> None:
        for weight, layer, following in itertools.zip_longest(self.copies, self.layers, self.layers[1:]):
            y = (self.output if following is None else following.input)[part]
            x, w = layer.input[part, :rows, : layer.n_in], weight[part].transpose(1, 2)
            _product(x, w, y[:, :rows, : layer.out])
            if following is not None:
                n = len(y) * rows
                self.launch("activate", n * layer.out, y, layer.bias[part], n, layer.out, y.shape[2], rows)

    def backward(self, beside: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        """The parts of the parameters' gradients, from the last layer's grad. What runs in beside() may overlap."""
        for below, layer, weight in reversed(list(zip([None, *self.layers], self.layers, self.copies))):
            with beside():
                self._weights_gradient(layer)
            if below is not None:
                _product(layer.grad, weight, below.grad)
                n, width = below.grad.numel(), below.grad.shape[2]
                self.launch("descend", n, below.grad, layer.input, n // width, width, layer.stride)

    def _weights_gradient(self, layer: Layer) -> None:
        batches = len(layer.parts)
        grad, x = layer.grad.view(batches, -1, layer.out), layer.input.view(batches, -1, layer.stride)
        _product(grad.transpose(1, 2), x, layer.parts)


class FusedNetworks(Networks):
    """The same in bfloat16 with one launch for all layers, forward and backward: device_networks.h.

    A working copy of a weight is where a tensor core's lane wants it, once for each direction.
    """

    @staticmethod
    def fits(nets: Sequence[nn.Sequential], device: str) -> bool:
        """Whether the GPU has tensor cores for bfloat16, and shared memory for a few rows of all layers."""
        if device == "cpu" or torch.cuda.get_device_capability(device) < (8, 0):
            return False
        return bool(_possible(FusedNetworks(nets, 1, torch.bfloat16, device, _no_launch).shape(), device))

    def shape(self) -> tuple[tuple[int, ...], ...]:
        """Columns of all layers' weights, stored inputs and outputs."""
        return tuple(tuple(getattr(x, name) for x in self.layers) for name in ("n_in", "stride", "out"))

    def _kernels(self, rows: int, nets: int) -> tuple[Any, int]:
        """Kernels for so many rows of so many networks, and their number of blocks a network."""
        multiprocessors = torch.cuda.get_device_properties(self.device).multi_processor_count

        def cost(block: Block) -> int:
            waves = -(-nets * -(-rows // block.rows) // (multiprocessors * block.resident))
            return waves * block.resident * (block.rows + OVERHEAD)

        best = min(_possible(self.shape(), self.device), key=cost)
        return _build(self.activation, len(self.nets), self.shape(), best), -(-rows // best.rows)

    def _weights(self) -> int:
        return len(self.nets) * sum(sum(self._copy_sizes(k)) for k in range(len(self.layers))) + BEHIND

    def _place(self, weights: Tensor) -> None:
        pass  # not matrices

    def _copy_sizes(self, k: int) -> tuple[int, int]:
        """Of layer k, forward and backward."""
        layer = self.layers[k]
        return padded(layer.n_in, 16) * layer.out, padded(layer.out, 16) * layer.n_in if k else 0

    def _copies(self, k: int, g: int, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor | None]:
        layer, sizes = self.layers[k], [self._copy_sizes(i) for i in range(len(self.layers))]
        forward, backward = sizes[k]
        nets, all_forward = len(self.nets), sum(x for x, _ in sizes)
        one = nets * sum(x for x, _ in sizes[:k]) + g * forward + packed(column, row, layer.out)
        if not k:
            return one, None
        return one, nets * (all_forward + sum(x for _, x in sizes[:k])) + g * backward + packed(row, column, layer.n_in)

    def allocate(self, weights: Tensor, biases: Tensor, parts: Tensor, activation: str) -> None:
        self.activation = activation
        super().allocate(weights, biases, parts, activation)
        self._training = self._kernels(self.rows, len(self.nets))
        self._training[0].load(self.device)

    def evaluate(self, g: int, normalizer: Normalizer | None, obs: Tensor, out: Tensor) -> None:
        kernels, blocks = self._kernels(len(obs), 1)
        moments = (None, None, 0.0) if normalizer is None else (normalizer.mean, normalizer.var, normalizer.clip)
        values = self.weights, self.biases, obs, *moments[:2], out, g, *obs.shape, out.shape[1], moments[2]
        kernels.evaluate(self.device, blocks * kernels.threads, *values)

    def forward(self, order: Tensor, sources: Sequence[Tensor]) -> None:
        kernels, blocks = self._training
        inputs = sources[0], sources[-1], order, self.inputs, self.output
        threads = len(self.nets) * blocks * kernels.threads
        kernels.forward(self.device, threads, self.weights, self.biases, *inputs, len(order), self.rows, blocks)

    def backward(self, beside: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        kernels, blocks = self._training
        threads = len(self.nets) * blocks * kernels.threads
        kernels.backward(self.device, threads, self.weights, self.inputs, self.grads, self.rows, blocks)
        with beside():
            for layer in self.layers[1:]:
                self._weights_gradient(layer)
        self._weights_gradient(self.layers[0])


def packed(k: Any, n: Any, width: int) -> Any:
    """Where entry (k, n) of a matrix with `width` columns is, so that a lane's part of a fragment is side by side."""
    lane = n % 8 * 4 + k % 8 // 2
    return ((k // 16 * (width // 8) + n // 8) * 32 + lane) * 4 + k % 16 // 8 * 2 + k % 2


def scratch_bytes(shape: tuple[tuple[int, ...], ...], rows: int) -> int:
    """Shared memory of a block that takes so many rows through the layers: widest_input, widest_grad in the header."""
    gap = 8
    n_in, _, out = ([padded(n, 16) + gap for n in columns] for columns in shape)
    places = [sum(max(row[k::2], default=0) for k in range(2)) for row in (n_in, out if len(out) > 1 else [])]
    return 2 * rows * max(places)


def _possible(shape: tuple[tuple[int, ...], ...], device: str) -> list[Block]:
    most = torch.cuda.get_device_properties(device).shared_memory_per_block_optin - 2048  # samples' numbers and Warp's
    return [block for block in BLOCKS if scratch_bytes(shape, block.rows) <= most]


@functools.cache
def _build(activation: str, nets: int, shape: tuple[tuple[int, ...], ...], block: Block) -> device_kernels.Kernels:
    columns = [",".join(str(n) for n in x) for x in shape]
    macros = dict(zip(("INPUTS", "STRIDES", "OUTPUTS"), columns))
    macros |= {"NETS": nets, "LAYERS": len(shape[0])}
    macros |= {"BLOCK_ROWS": block.rows, "BLOCK_WARPS": block.warps, "TILES": block.tiles}
    return device_kernels.Kernels(
        "device_networks.h",
        {"BFLOAT16": 1, "ACTIVATION": activation.upper()} | macros,
        threads=32 * block.warps,
        resident=block.resident,
        scratch=scratch_bytes(shape, block.rows),
    )


def _no_launch(name: str, threads: int, *values: Any) -> None:
    raise NotImplementedError
