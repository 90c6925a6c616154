"""Networks of actuators from TorchScript and ONNX files: their layers, checked against the file's own evaluation."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.robot_files import find_file
from isaacrl.sim.actuator_net import ActuatorNet, Evaluator, Layer
from isaacrl.suggest import did_you_mean, one_line

ORDERS = ("pos_vel", "vel_pos")
ACTIVATIONS = {
    "Tanh": "tanh",
    "ReLU": "relu",
    "ELU": "elu",
    "Softsign": "softsign",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
    "Softplus": "softplus",
    "LeakyReLU": "leaky_relu",
}
_OF_ONNX = {"Relu": "relu", "Elu": "elu", "LeakyRelu": "leaky_relu", "Swish": "silu"} | {
    k: v for k, v in ACTIVATIONS.items() if k in ("Tanh", "Softsign", "Sigmoid", "Softplus")
}
_EMPTY = ("Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze")
KNOWN = f"Linear, LSTM (TorchScript only), {', '.join(ACTIVATIONS)}"
SAMPLES, STEPS = 32, 3  # of the comparison with the file's own evaluation


class _Wrong(Exception):
    """What is wrong with a file, in words that follow its name."""


def read_net(key: str, node: Mapping[str, Any]) -> ActuatorNet:
    """The network of an actuator group with `law: network`. key: asset.actuators.<group>.

    Raises: UserError naming the key.
    """
    name = node["file"]
    if not isinstance(name, str) or not name:
        raise UserError(f"{key}.file: got {name!r}; must be the name of a TorchScript or ONNX file")
    file = find_file(name)
    if file is None:
        raise UserError(f"{key}.file: no file '{name}' in {Path.cwd()}; give a TorchScript (.pt) or an ONNX file")
    order = node.get("input_order", ORDERS[0])
    if order not in ORDERS:
        raise UserError(
            f"{key}.input_order: got {order!r}; one of {', '.join(ORDERS)}{did_you_mean(str(order), ORDERS)}"
        )
    scales = []
    for k in ("pos_scale", "vel_scale", "torque_scale"):
        value = node.get(k, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise UserError(f"{key}.{k}: got {value!r}; must be a number")
        scales.append(float(value))
    try:
        layers, evaluate = _of_onnx(file) if file.suffix == ".onnx" else _of_torch(file)
        width = _check_chain(layers)
    except _Wrong as e:
        raise UserError(f"{key}.file: '{name}' {e}") from None
    lags = node.get("lags", [0] if any(x.hidden for x in layers) else [0, 1, 2])
    if not isinstance(lags, list) or not lags or not all(type(n) is int and 0 <= n < 1000 for n in lags):
        raise UserError(f"{key}.lags: got {lags!r}; must be a list of ages in physics steps, such as [0, 1, 2]")
    if width != 2 * len(lags):
        raise UserError(
            f"{key}.lags: {lags} make {2 * len(lags)} inputs, a position error and a velocity each, but '{name}' takes "
            f"{width}; give as many ages as it was trained with"
        )
    net = ActuatorNet(layers, tuple(lags), order == "vel_pos", (scales[0], scales[1], scales[2]), str(name))
    try:
        _compare(net, width, evaluate)
    except _Wrong as e:
        raise UserError(f"{key}.file: '{name}' {e}") from None
    return net


def _check_chain(layers: list[Layer]) -> int:
    """The number of inputs; layers must follow each other, down to one output."""
    weighted = [x for x in layers if x.kind in ("linear", "lstm")]
    if not weighted:
        raise _Wrong(f"has no layers of its own; known are {KNOWN}")
    width = weighted[0].weight.shape[1]
    for x in weighted:
        if x.weight.shape[1] != width:
            raise _Wrong(f"has a layer of {x.weight.shape[1]} inputs after {width} outputs; layers must be a chain")
        width = x.hidden or x.weight.shape[0]
    if width != 1:
        raise _Wrong(f"has {width} outputs; must have one, the torque of one joint")
    return weighted[0].weight.shape[1]


def _compare(net: ActuatorNet, width: int, evaluate: Any) -> None:
    """The layers as read must compute what the file does: it may hold more than its layers say."""
    own, random = Evaluator(net, "cpu", torch.float32), torch.Generator().manual_seed(0)
    hidden = torch.zeros(1, SAMPLES, 2 * sum(x.hidden for x in net.layers))
    theirs: Any = None
    for _ in range(STEPS):
        x = torch.randn(SAMPLES, width, generator=random)
        y, after = own.run(x[None], hidden)
        hidden = torch.cat(after, dim=2) if after else hidden
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected, theirs = evaluate(x, theirs)
            except Exception as e:
                raise _Wrong(f"cannot be evaluated for inputs [N, {width}]: {_last_line(e)}") from None
        error = (y.flatten() - expected.flatten()).abs().max() if y.numel() == expected.numel() else torch.tensor(1e9)
        if not error <= 1e-4 * max(1.0, float(expected.abs().max())):
            raise _Wrong("computes something else than its layers in their order; it must be a chain of them")


# --- TorchScript -----------------------------------------------------------------------------------------------------


def _of_torch(file: Path) -> tuple[list[Layer], Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module: Any = torch.jit.load(str(file), map_location="cpu").eval()
        except Exception as e:
            hint = "save it with torch.jit.script(net).save(file), or export it to ONNX"
            raise _Wrong(f"is no TorchScript ({_last_line(e)}); {hint}") from None
    layers = [x for m in module.modules() if not list(m.children()) for x in _layers_of(m)]
    lstms = [x for x in layers if x.hidden]

    def evaluate(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        with torch.no_grad():
            if not lstms:
                return module(x), None
            zero = torch.zeros(len(lstms), len(x), lstms[0].hidden)
            return module(x[:, None], state or (zero, zero))

    return layers, evaluate


def _layers_of(module: Any) -> Iterator[Layer]:
    """What a module without children stands for."""
    kind = module.original_name
    values = {k: v.detach().float().numpy() for k, v in module.state_dict().items()}
    if kind == "Linear":
        weight = values["weight"]
        yield Layer("linear", weight, values.get("bias", np.zeros(len(weight), np.float32)))
    elif kind == "LSTM":
        if any("reverse" in k or "_hr_" in k for k in values):
            raise _Wrong("has an LSTM with projections or two directions; only plain ones are known")
        for k in range(sum(name.startswith("weight_ih") for name in values)):
            weight, hidden = values[f"weight_ih_l{k}"], values[f"weight_hh_l{k}"]
            none = np.zeros(len(weight), np.float32)
            bias = values.get(f"bias_ih_l{k}", none) + values.get(f"bias_hh_l{k}", none)
            yield Layer("lstm", weight, bias, hidden)
    elif kind in ACTIVATIONS:
        slope = {"ELU": getattr(module, "alpha", 1.0), "LeakyReLU": getattr(module, "negative_slope", 0.01)}
        yield Layer(ACTIVATIONS[kind], slope=float(slope.get(kind, 1.0)))
    elif kind not in _EMPTY:
        raise _Wrong(f"has a layer {kind}, which is none of those known: {KNOWN}")


# --- ONNX ------------------------------------------------------------------------------------------------------------


def _of_onnx(file: Path) -> tuple[list[Layer], Any]:
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    try:
        graph = onnx.load(str(file)).graph
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as e:
        raise _Wrong(f"is no ONNX file that onnxruntime can run ({_last_line(e)})") from None
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise _Wrong(f"takes {len(inputs)} inputs; must take one. Networks with a state are read from TorchScript")
    layers: list[Layer] = []
    x = inputs[0].name  # the chain so far
    before, denominator = "", []  # its last layer's input; |x| and 1 + |x|, of which torch makes a softsign
    for op in graph.node:
        options = {a.name: onnx.helper.get_attribute_value(a) for a in op.attribute}
        if op.op_type == "Constant":
            constants[op.output[0]] = numpy_helper.to_array(options["value"])
            continue
        if op.op_type == "Transpose" and op.input[0] in constants:
            constants[op.output[0]] = constants[op.input[0]].transpose(options.get("perm"))
            continue
        given = [constants[i] for i in op.input if i in constants]
        if op.op_type == "Abs" and x in op.input or op.op_type == "Add" and {*op.input} & {*denominator}:
            denominator.append(op.output[0])
            continue
        if op.op_type == "Div" and [*op.input] == [x, *denominator[-1:]]:
            layers.append(Layer("softsign"))
            before, x = x, op.output[0]
            continue
        if x not in op.input:
            raise _Wrong(f"has an operation {op.op_type} beside its chain of layers; known are {KNOWN}")
        layer = _layer_of(op.op_type, options, given)
        if layer is not None:
            layers.append(layer)
        elif op.op_type == "Add" and given and layers and layers[-1].kind == "linear":
            layers[-1].bias = (layers[-1].bias + given[0].ravel()).astype(np.float32)
        elif op.op_type == "Mul" and {*op.input} == {before, x} and layers[-1].kind == "sigmoid":
            layers[-1].kind = "silu"
        elif op.op_type not in _EMPTY:
            raise _Wrong(f"has an operation {op.op_type}, which is no layer of those known: {KNOWN}")
        before, x = x, op.output[0]

    def evaluate(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        rows = inputs[0].shape[0]
        parts = x.split(rows) if isinstance(rows, int) else [x]
        out = [session.run(None, {inputs[0].name: part.numpy()})[0] for part in parts]
        return torch.from_numpy(np.concatenate(out)), None

    return layers, evaluate


def _layer_of(kind: str, options: Mapping[str, Any], given: list[np.ndarray]) -> Layer | None:
    """The layer of an ONNX operation with constant inputs `given`; None where it is none by itself."""
    if kind in ("Gemm", "MatMul") and given and given[0].ndim == 2:
        weight = given[0] if options.get("transB") else given[0].T
        bias = np.zeros(len(weight)) if len(given) == 1 else given[1].ravel() * options.get("beta", 1.0)
        weight = weight * options.get("alpha", 1.0)
        return Layer("linear", np.ascontiguousarray(weight, np.float32), np.asarray(bias, np.float32))
    if kind in _OF_ONNX:
        slope = options.get("alpha", 0.01 if kind == "LeakyRelu" else 1.0)
        return Layer(_OF_ONNX[kind], slope=float(slope))
    return None


def _last_line(e: Exception) -> str:
    """The last line of an error that says something: TorchScript's begin with a trace."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return one_line(lines[-1] if lines else type(e).__name__, 120)
