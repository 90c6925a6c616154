"""Tensor operations as expressions of their inputs' elements {0}, {1}, ..., in the words of prelude.h."""

import torch

from isaacrl.fuse.loops import Loop

# Whole numbers overflow as torch's do.
WRAPPING = {torch.int32: "unsigned", torch.int64: "unsigned long long"}
# Expressions by operation. The type of the arithmetic is that of the output, or (compared) that of the inputs.
SAME = {
    "add.Tensor": "{0} + {1}",
    "add.Scalar": "{0} + {1}",
    "sub.Tensor": "{0} - {1}",
    "sub.Scalar": "{0} - {1}",
    "rsub.Scalar": "{1} - {0}",
    "rsub.Tensor": "{1} - {0}",
    "mul.Tensor": "{0} * {1}",
    "mul.Scalar": "{0} * {1}",
    "div.Tensor": "{0} / {1}",
    "div.Scalar": "{0} / {1}",
    "neg.default": "-{0}",
    "abs.default": "absolute({0})",
    "minimum.default": "least({0}, {1})",
    "maximum.default": "most({0}, {1})",
    "clone.default": "{0}",
    "clamp_min.default": "most({0}, {1})",
    "clamp_max.default": "least({0}, {1})",
    "square.default": "{0} * {0}",
    "clamp_min.Tensor": "most({0}, {1})",
    "clamp_max.Tensor": "least({0}, {1})",
    "alias.default": "{0}",
    "addcmul.default": "{0} + {1} * {2}",
    "lerp.Tensor": "mix({0}, {1}, {2})",
    "lerp.Scalar": "mix({0}, {1}, {2})",
    "sqrt.default": "sqrt({0})",
    "rsqrt.default": "1 / sqrt({0})",
    "reciprocal.default": "1 / {0}",
    "exp.default": "exp({0})",
    "log.default": "log({0})",
    "log1p.default": "log_1p({0})",
    "sin.default": "sin({0})",
    "cos.default": "cos({0})",
    "tan.default": "tan({0})",
    "tanh.default": "tanh({0})",
    "asin.default": "asin({0})",
    "acos.default": "acos({0})",
    "atan.default": "atan({0})",
    "atan2.default": "atan2({0}, {1})",
    "expm1.default": "exp_m1({0})",
    "sigmoid.default": "1 / (1 + exp(-{0}))",
    "round.default": "rint({0})",
    "floor.default": "floor({0})",
    "ceil.default": "ceil({0})",
    "trunc.default": "trunc({0})",
    "sign.default": "signum({0})",
    "sgn.default": "signum({0})",
    "relu.default": "{0} < 0 ? 0 : {0}",
    "remainder.Scalar": "modulo({0}, {1})",
    "remainder.Tensor": "modulo({0}, {1})",
    "fmod.Scalar": "rest({0}, {1})",
    "fmod.Tensor": "rest({0}, {1})",
    "bitwise_and.Tensor": "{0} & {1}",
    "bitwise_and.Scalar": "{0} & {1}",
    "bitwise_or.Tensor": "{0} | {1}",
    "bitwise_or.Scalar": "{0} | {1}",
    "bitwise_xor.Tensor": "{0} ^ {1}",
    "bitwise_xor.Scalar": "{0} ^ {1}",
    "__and__.Tensor": "{0} & {1}",
    "__or__.Tensor": "{0} | {1}",
    "__xor__.Tensor": "{0} ^ {1}",
    "__and__.Scalar": "{0} & {1}",
    "__or__.Scalar": "{0} | {1}",
    "__xor__.Scalar": "{0} ^ {1}",
    "__rshift__.Scalar": "shift_right({0}, {1})",
    "__lshift__.Scalar": "shift_left({0}, {1})",
    "bitwise_right_shift.Tensor_Scalar": "shift_right({0}, {1})",
    "bitwise_left_shift.Tensor_Scalar": "shift_left({0}, {1})",
}
ROUNDED = ("round", "floor", "ceil", "trunc")  # of whole numbers: nothing to do
COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
LOGICAL = {"logical_and.default": "{0} && {1}", "logical_or.default": "{0} || {1}", "logical_xor.default": "{0} != {1}"}
PREDICATES = {"isnan.default": "{0} != {0}", "isfinite.default": "finite({0})", "isinf.default": "infinite({0})"}
FOLDS = {
    "sum": ("add", "{0}", "{0}"),
    "mean": ("add", "{0}", "{0} / {count}"),
    "amax": ("most", "{0}", "{0}"),
    "amin": ("least", "{0}", "{0}"),
    "any": ("or", "{0} != 0", "{0}"),
    "all": ("and", "{0} != 0", "{0}"),
    "prod": ("multiply", "{0}", "{0}"),
    "linalg_vector_norm": ("add", "{0} * {0}", "sqrt({0})"),
}
EMPTY = ("empty.memory_format", "empty_like.default", "new_empty.default", "empty_strided.default")
START = {"add": "0", "multiply": "1", "or": "false", "and": "true"}
# What no number is below, and above.
LIMITS = {
    "int": ("(-2147483647 - 1)", "2147483647"),
    "long long": ("(-9223372036854775807LL - 1)", "9223372036854775807LL"),
    "short": ("-32768", "32767"),
    "signed char": ("-128", "127"),
    "unsigned char": ("0", "255"),
    "bool": ("false", "true"),
}


def type_of(loop: Loop) -> str:
    """The type in which a loop combines."""
    return "bool" if loop.fold in ("or", "and") else loop.kind


def start(loop: Loop) -> str:
    """What a fold begins with."""
    if loop.fold in START:
        return START[loop.fold]
    low, high = LIMITS.get(loop.kind, ("-INFINITE", "INFINITE"))
    return low if loop.fold == "most" else high


def combined(fold: str, terms: list[str]) -> str:
    """These terms folded."""
    if fold in ("most", "least"):
        text = terms[0]
        for t in terms[1:]:
            text = f"{fold}({text}, {t})"
        return text
    sign = {"add": " + ", "multiply": " * ", "or": " || ", "and": " && "}[fold]
    return "(" + sign.join(f"({t})" for t in terms) + ")"


def unravel(i: str, size: tuple[int, ...]) -> list[str | int]:
    """The index of each axis, from the place in a row-major order."""
    axes = [d for d, n in enumerate(size) if n != 1]
    out: list[str | int] = [0] * len(size)
    inner = 1
    for d in reversed(axes):
        text = i if inner == 1 else f"({i} / {inner})"
        out[d] = text if d == axes[0] else f"({text} % {size[d]})"
        inner *= size[d]
    return out


def literal(x: float) -> str:
    """A number as C writes it."""
    if x != x:
        return "NOT_A_NUMBER"
    if x in (float("inf"), float("-inf")):
        return "INFINITE" if x > 0 else "(-INFINITE)"
    return f"({x!r})" if x < 0 else repr(x)
