"""Where the ground of a compiled model is, for cameras."""

from typing import Any

import numpy as np


def ground_height(model: Any, xy: np.ndarray) -> np.ndarray:
    """Height of a terrain at points [..., 2], roughly: that of the nearest grid point [m]; 0 without one."""
    import mujoco

    fields = np.flatnonzero((model.geom_type == mujoco.mjtGeom.mjGEOM_HFIELD) & (model.geom_bodyid == 0))
    if not len(fields):
        return np.zeros(xy.shape[:-1])
    geom = fields[0]
    field, start = model.geom_dataid[geom], model.hfield_adr[model.geom_dataid[geom]]
    shape = np.array([model.hfield_ncol[field], model.hfield_nrow[field]])
    place = (xy - model.geom_pos[geom, :2]) / model.hfield_size[field, :2]  # -1 to 1
    column, row = np.moveaxis(np.clip(np.rint((place + 1.0) / 2.0 * (shape - 1)), 0, shape - 1).astype(int), -1, 0)
    heights = model.hfield_data[start + row * shape[0] + column] * model.hfield_size[field, 2]
    return heights + model.geom_pos[geom, 2]
