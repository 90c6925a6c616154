"""Learned actuators: a network from recent position errors and velocities of a joint to the torque of its drive.

Sources: Hwangbo et al. 2019, "Learning agile and dynamic motor skills for legged robots", arXiv:1901.08652; the inputs,
scales and clips are those of Isaac Lab's ActuatorNetMLP and ActuatorNetLSTM. The engines `mujoco` and `mjwarp` evaluate
networks by `Evaluator`, between physics steps; `warp` inside its kernel (fused/stages/network.h).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Names as in the kernel, in the order of its enumeration.
KINDS = ("linear", "lstm", "tanh", "relu", "elu", "softsign", "sigmoid", "silu", "softplus", "leaky_relu")


@dataclass(eq=False)
class Layer:
    """linear: y = weight x + bias. lstm: gates i, f, g, o = weight x + hidden_weight h + bias. Else an activation."""

    kind: str
    weight: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # [out or 4 H, in]
    bias: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # [out or 4 H]
    hidden_weight: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # [4 H, H]
    slope: float = 1.0  # elu: of the exponential; leaky_relu: below 0

    @property
    def hidden(self) -> int:
        """Units of an LSTM, 0 of other layers."""
        return self.hidden_weight.shape[1]


@dataclass(eq=False)
class ActuatorNet:
    """A network with what it reads. Position error: target - q [rad or m]; velocity: qd [rad/s or m/s].

    Its memory, M reals an actuator: errors of the last `depth` physics steps, newest first, velocities of these, and
    (h, c) of every LSTM; all 0 after a reset.
    """

    layers: list[Layer]
    lags: tuple[int, ...]  # ages of the inputs [physics steps]
    velocity_first: bool
    scales: tuple[float, float, float]  # of position errors, of velocities, of the torque
    file: str = ""

    @property
    def depth(self) -> int:
        return max(self.lags) + 1

    @property
    def memory(self) -> int:
        """M."""
        return 2 * self.depth + 2 * sum(x.hidden for x in self.layers)

    @property
    def width(self) -> int:
        """Of the widest layer."""
        return max([2 * len(self.lags), *(x.hidden or x.weight.shape[0] for x in self.layers)])


class Evaluator:
    """A network on a device. `units`: the actuators that it drives, in its tensors' order."""

    def __init__(self, net: ActuatorNet, device: str, dtype: torch.dtype):
        def tensor(x: np.ndarray) -> Tensor:
            return torch.as_tensor(x, dtype=dtype, device=device)

        self.net = net
        self.layers = [(x, tensor(x.weight), tensor(x.bias), tensor(x.hidden_weight)) for x in net.layers]
        lags = torch.tensor(net.lags, device=device)
        order = (lags + net.depth, lags) if net.velocity_first else (lags, lags + net.depth)
        self.inputs = torch.cat(order)
        scales = [net.scales[:2][:: -1 if net.velocity_first else 1][k // len(lags)] for k in range(2 * len(lags))]
        self.scale = torch.tensor(scales, dtype=dtype, device=device)

    def __call__(self, memory: Tensor, error: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """(torque [E, n], memory after this step [E, n, M]) from errors and velocities [E, n] of this physics step."""
        depth = self.net.depth
        past = (error[..., None], memory[..., : depth - 1], velocity[..., None], memory[..., depth : 2 * depth - 1])
        history = torch.cat(past, dim=2)
        x, after = self.run(history.index_select(2, self.inputs) * self.scale, memory[..., 2 * depth :])
        out = torch.cat((history, *after), dim=2)
        rest = memory[..., out.shape[2] :]  # where other networks have larger memories
        return x[..., 0] * self.net.scales[2], torch.cat((out, rest), dim=2)

    def run(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Outputs [E, n, 1] of scaled inputs [E, n, D], and (h, c) of every LSTM; hidden: those of the step before."""
        after, at = [], 0
        for layer, weight, bias, hidden_weight in self.layers:
            if layer.kind == "lstm":
                n = layer.hidden
                h, c = hidden[..., at : at + n], hidden[..., at + n : at + 2 * n]
                i, f, g, o = (F.linear(x, weight, bias) + F.linear(h, hidden_weight)).chunk(4, dim=2)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                x = torch.sigmoid(o) * torch.tanh(c)
                after += [x, c]
                at += 2 * n
            elif layer.kind == "linear":
                x = F.linear(x, weight, bias)
            else:
                x = activate(layer, x)
        return x, after


def activate(layer: Layer, x: Tensor) -> Tensor:
    match layer.kind:
        case "elu":
            return F.elu(x, layer.slope)
        case "leaky_relu":
            return F.leaky_relu(x, layer.slope)
        case "tanh" | "sigmoid":
            return getattr(torch, layer.kind)(x)
        case kind:
            return getattr(F, kind)(x)


def tables(nets: tuple[ActuatorNet, ...]) -> tuple[dict[str, int], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(sizes, reals, ints) as the kernel reads them, see fused/stages/network.h; sizes NETS is 0 without any."""
    if not nets:
        return {"NETS": 0}, {}, {}
    heads, ops, lags, weights, scales = [], [], [], [np.zeros(0)], []
    for net in nets:
        heads.append([len(ops), len(net.layers), net.depth, len(lags), len(net.lags), int(net.velocity_first), 0, 0])
        lags += net.lags
        scales.append([*net.scales, 0.0])
        for x in net.layers:
            at = sum(map(np.size, weights))
            if x.kind in ("linear", "lstm"):
                ops.append([KINDS.index(x.kind), x.weight.shape[1], x.hidden or x.weight.shape[0], at])
                weights += [x.weight.ravel(), x.hidden_weight.ravel(), x.bias]
            else:
                ops.append([KINDS.index(x.kind), 0, 0, at])
                weights.append(np.array([x.slope]))
    sizes = {"NETS": len(nets), "NET_WIDTH": max(n.width for n in nets), "NET_MEMORY": max(n.memory for n in nets)}
    reals = {"net_weight": np.concatenate(weights).astype(float), "net_scale": np.array(scales)}
    ints = {"net_head": np.array(heads), "net_op": np.array(ops), "net_lag": np.array(lags)}
    return sizes, reals, ints
