"""Functions of many worlds at once, recorded and compiled to a few kernels: `program.compile`."""
