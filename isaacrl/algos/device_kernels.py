"""Kernels written in C++, compiled by Warp for a GPU or, to test them, for a CPU."""

import functools
import importlib.resources
import re
from typing import Any

import warp as wp
from torch import Tensor

import isaacrl.sim.streams  # noqa: F401  starts Warp quietly

BLOCK = 256  # threads of a block

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


class Kernel:
    """One KERNEL of the header; call it with its parameters' values after the number of threads."""

    def __init__(self, name: str, parameters: str, module: Any, source: str, threads: int, resident: int, scratch: int):
        self.name, self.threads, arguments = name, threads, ["thread"]
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
        run = wp.func_native(_SNIPPET.format(name=name, arguments=", ".join(arguments), source=source))(native)
        words = wp.constant(scratch // 4)

        def kernel(pointers: _Pointers, ints: _Ints, floats: _Floats):  # pyright: ignore[reportInvalidTypeForm]
            run(wp.tid(), pointers, ints, floats)

        def kernel_with_scratch(pointers: _Pointers, ints: _Ints, floats: _Floats):  # pyright: ignore[reportInvalidTypeForm]
            memory = wp.tile_empty(shape=words, dtype=wp.float32, storage="shared")  # noqa: F841  the block's tiles
            run(wp.tid(), pointers, ints, floats)

        options: Any = {"launch_bounds": (threads, resident)} if resident else {}
        make = wp.kernel(name=name, module=module, enable_backward=False, grid_stride=False, **options)
        self.kernel = make(kernel_with_scratch if scratch else kernel)

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
        wp.launch(self.kernel, dim=threads, inputs=inputs, device=device, **_block(device, self.threads))


def _block(device: str, threads: int) -> dict[str, int]:
    return {} if device == "cpu" else {"block_dim": threads}


class Kernels:
    """All kernels of a header, as attributes.

    threads: of a block. resident: how many blocks a multiprocessor shall have room for, which bounds the registers; 0:
    whatever the compiler thinks. scratch: bytes of shared memory that a block finds in isaacrl_tiles.
    """

    def __init__(
        self, header: str, macros: dict[str, Any], *, threads: int = BLOCK, resident: int = 0, scratch: int = 0
    ):
        self.threads = threads
        folder = importlib.resources.files("isaacrl.algos")
        own = (folder / header).read_text()
        lines = [f"#define {k} {v}" for k, v in (macros | {"SCRATCH": scratch}).items()]
        source = "\n".join([*lines, (folder / "device_common.h").read_text(), own])
        name = "_".join(re.sub(r"\W+", "_", str(x)) for x in (header.removesuffix(".h"), *macros.values(), resident))
        self.module = wp.get_module(f"isaacrl_{name.lower()}")
        self._kernels = {
            k: Kernel(k, p, self.module, source, threads, resident, scratch) for k, p in _KERNEL.findall(own)
        }

    def __getattr__(self, name: str) -> Kernel:
        return self._kernels[name]

    def load(self, device: str) -> None:
        """Compile what is not in Warp's cache: nothing may be loaded in a capture."""
        wp.load_module(self.module, device, **_block(device, self.threads))


@functools.cache
def build(actions: int, activation: str, bfloat16: bool) -> Kernels:
    """The kernels of device_kernels.h, for one number of actions, activation and way to store reals."""
    macros = {"BFLOAT16": int(bfloat16), "ACTIVATION": activation.upper(), "ACTIONS": actions}
    return Kernels("device_kernels.h", macros)
