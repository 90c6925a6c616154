"""The kernels of `device_update.py`: `device_kernels.h` compiled by Warp for a GPU or, to test it, for a CPU."""

import functools
import importlib.resources
import re
from typing import Any

import warp as wp
from torch import Tensor

import isaacrl.sim.streams  # noqa: F401  starts Warp quietly

BLOCK = 256  # threads of a block
ACTIVATIONS = ("elu", "relu", "tanh")

# All kernels have the same parameters, which the native function takes apart: addresses, integers, reals.
_Pointers, _Ints, _Floats = (wp.types.vector(n, t) for n, t in ((14, wp.uint64), (8, wp.int32), (8, wp.float32)))

_KERNEL = re.compile(r"^KERNEL (\w+)\(int thread, ([^)]*)\) \{", re.MULTILINE)
# Warp pastes a snippet into the body of a function. This one leaves that body for file scope, where the header goes,
# and ends inside another function; a Warp that pastes differently fails to compile it. Warp has macros int(x) and
# float(x) for casts, which mean nothing there.
_SNIPPET = """
  CUDA_CALLABLE void isaacrl_{name}(int, const unsigned long long*, const int*, const float*);
  isaacrl_{name}(thread, pointers.c, ints.c, floats.c);
}}
#ifndef ISAACRL_KERNELS
#undef int
#undef float
#define ISAACRL_KERNELS
#define BFLOAT16 {bfloat16}
#define ACTIVATION {activation}
#define ACTIONS {actions}
namespace isaacrl {{
{source}
}}
#define int(x) cast_int(x)
#define float(x) cast_float(x)
#endif
CUDA_CALLABLE void isaacrl_{name}(int thread, const unsigned long long* pointers, const int* ints,
                                  const float* floats) {{
  using namespace isaacrl;
  {name}({arguments});
}}
#define int(x) cast_int(x)
inline CUDA_CALLABLE void isaacrl_end_{name}() {{
"""


def _source() -> str:
    folder = importlib.resources.files("isaacrl.algos")
    return "".join((folder / name).read_text() for name in ("device_common.h", "device_kernels.h"))


class Kernel:
    """One KERNEL of the header; call it with its parameters' values after the number of threads."""

    def __init__(self, name: str, parameters: str, module: Any, macros: dict[str, Any]):
        self.name, arguments = name, ["thread"]
        self.kinds: list[str] = []  # of its values
        counts = {"pointers": 0, "ints": 0, "floats": 0}
        for parameter in parameters.split(","):
            kind, _ = parameter.strip().rsplit(" ", 1)
            group = "pointers" if kind.endswith("*") else f"{kind}s"
            arguments.append(f"({kind}){group}[{counts[group]}]")
            counts[group] += 1
            self.kinds.append(group)

        def native(thread: int, pointers: _Pointers, ints: _Ints, floats: _Floats): ...  # pyright: ignore[reportInvalidTypeForm]

        native.__qualname__ = f"{module.name}_{name}"
        run = wp.func_native(_SNIPPET.format(name=name, arguments=", ".join(arguments), **macros))(native)

        def kernel(pointers: _Pointers, ints: _Ints, floats: _Floats):  # pyright: ignore[reportInvalidTypeForm]
            run(wp.tid(), pointers, ints, floats)

        self.kernel = wp.kernel(name=name, module=module, enable_backward=False, grid_stride=False)(kernel)

    def __call__(self, device: str, threads: int, *values: Tensor | int | float | None) -> None:
        """On Warp's current stream. Tensors and None for pointers; whole blocks where threads work together."""
        sorted_values: dict[str, list[Any]] = {"pointers": [], "ints": [], "floats": []}
        if len(values) != len(self.kinds):
            raise TypeError(f"{self.name} takes {len(self.kinds)} values, got {len(values)}")
        for kind, value in zip(self.kinds, values):
            if kind == "pointers":
                value = value.data_ptr() if isinstance(value, Tensor) else 0
            sorted_values[kind].append(value)
        inputs = [
            make(*x, *[0] * (make._length_ - len(x)))
            for make, x in zip((_Pointers, _Ints, _Floats), sorted_values.values())
        ]
        wp.launch(self.kernel, dim=threads, inputs=inputs, device=device, **_block(device))


def _block(device: str) -> dict[str, int]:
    return {} if device == "cpu" else {"block_dim": BLOCK}


class Kernels:
    """All kernels for one number of actions, activation and way to store reals, as attributes."""

    def __init__(self, actions: int, activation: str, bfloat16: bool):
        macros = {
            "bfloat16": int(bfloat16),
            "activation": ACTIVATIONS.index(activation),
            "actions": actions,
            "source": _source(),
        }
        kind = "bfloat16" if bfloat16 else "float32"
        self.module = wp.get_module(f"isaacrl_update_{activation}_{actions}_{kind}")
        self._kernels = {name: Kernel(name, p, self.module, macros) for name, p in _KERNEL.findall(_source())}

    def __getattr__(self, name: str) -> Kernel:
        return self._kernels[name]

    def load(self, device: str) -> None:
        """Compile what is not in Warp's cache: nothing may be loaded in a capture."""
        wp.load_module(self.module, device, **_block(device))


build = functools.cache(Kernels)
