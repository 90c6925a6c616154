"""Height fields as the fused kernel reads them: one array of the heights of all, and tables of where each lies.

The heights are the same for all worlds, and many: the kernel reads them where they are, through the cache, and keeps
none. Below a geom that is higher than all around it reads a few numbers: the highest of each tile of cells.
"""

import mujoco
import numpy as np

TILE = 4  # cells along an edge of a tile
CELLS = 32  # how many are looked at in a batch


def add(m: mujoco.MjModel, sizes: dict, reals: dict, ints: dict) -> np.ndarray:
    """Add the tables and sizes of the model's height fields; returns their heights [m], then those of their tiles."""
    numbers, lengths, heights, tiles, start = [], [], [], [], int(m.nhfielddata)
    for k in range(m.nhfield):
        (rows, columns), first = (int(m.hfield_nrow[k]), int(m.hfield_ncol[k])), int(m.hfield_adr[k])
        x, y, top, base = m.hfield_size[k]
        height = m.hfield_data[first : first + rows * columns].reshape(rows, columns).astype(float) * top
        highest = _tiles(height)
        numbers.append([first, rows, columns, start, highest.shape[1], 0, 0, 0])
        dx, dy = 2.0 * x / (columns - 1), 2.0 * y / (rows - 1)
        lengths.append([-x, -y, dx, dy, -base, 1.0 / dx, 1.0 / dy, 0.0])
        heights.append(height.ravel())
        tiles.append(highest.ravel())
        start += highest.size
    ints["field_int"], reals["field_real"] = np.array(numbers, int), np.array(lengths)
    of_field = m.geom_type == int(mujoco.mjtGeom.mjGEOM_HFIELD)
    ints["geom_field"] = np.where(of_field, m.geom_dataid, 0)
    level = not m.geom_bodyid[of_field].any() and (m.geom_quat[of_field] == (1.0, 0.0, 0.0, 0.0)).all()
    sizes |= {"TILE": TILE, "CELLS": CELLS, "NFIELDS": int(m.nhfield), "FIELDS_LEVEL": int(level)}
    return np.concatenate([*heights, *tiles])


def _tiles(height: np.ndarray) -> np.ndarray:
    """The highest corner of each tile's cells, [tiles along y, tiles along x]."""
    cells = np.maximum(height[:-1], height[1:])
    cells = np.maximum(cells[:, :-1], cells[:, 1:])
    down, across = (np.arange(0, n, TILE) for n in cells.shape)
    return np.maximum.reduceat(np.maximum.reduceat(cells, down, axis=0), across, axis=1)
