"""The ground of a compiled model in pictures: how high it is, and the part of a terrain that is worth drawing."""

from typing import Any

import numpy as np

REACH = 10.0  # half the width of what is drawn of a terrain [m]: a renderer without a GPU takes seconds for all of it
STEP = 2.0  # the part moves on when its middle is further than this from what the camera looks at [m]


def field_geom(model: Any) -> int | None:
    """The world's own first height field, None without one."""
    import mujoco

    found = np.flatnonzero((model.geom_type == mujoco.mjtGeom.mjGEOM_HFIELD) & (model.geom_bodyid == 0))
    return int(found[0]) if len(found) else None


def heights(model: Any, geom: Any) -> np.ndarray:
    """A view of a height field's heights, 0 to 1, rows along y."""
    field = model.geom_dataid[geom]
    start, rows, columns = model.hfield_adr[field], model.hfield_nrow[field], model.hfield_ncol[field]
    return model.hfield_data[start : start + rows * columns].reshape(rows, columns)


def ground_height(model: Any, xy: np.ndarray) -> np.ndarray:
    """Height of a terrain at points [..., 2], roughly: that of the nearest grid point [m]; 0 without one."""
    if (geom := field_geom(model)) is None:
        return np.zeros(xy.shape[:-1])
    values, size = heights(model, geom), model.hfield_size[model.geom_dataid[geom]]
    last = np.array(values.shape[::-1]) - 1
    place = ((xy - model.geom_pos[geom, :2]) / size[:2] + 1.0) / 2.0 * last
    column, row = np.moveaxis(np.clip(np.rint(place), 0, last).astype(int), -1, 0)
    return values[row, column] * size[2] + model.geom_pos[geom, 2]


class Window:
    """The part of a terrain around what a camera looks at. model: the renderer's own copy, which is changed; what is
    uploaded with it afterwards is the middle of the terrain."""

    def __init__(self, model: Any):
        self.model, self.geom = model, field_geom(model)
        if self.geom is None:
            return
        self.field = int(model.geom_dataid[self.geom])
        self.heights, self.size = heights(model, self.geom).copy(), model.hfield_size[self.field].copy()
        self.centre = model.geom_pos[self.geom].copy()
        self.last = np.array(self.heights.shape[::-1]) - 1  # cells along x and y
        self.cell = 2.0 * self.size[:2] / self.last  # [m]
        self.cells = np.minimum(np.rint(2.0 * REACH / self.cell).astype(int), self.last)
        self.first = (self.last - self.cells) // 2  # cell where what is shown begins
        self._show()

    def move(self, data: Any, lookat: np.ndarray, context: Any) -> None:
        """Show the part around a point in the picture that is drawn next of data."""
        import mujoco

        if self.geom is None:
            return
        place = (lookat[:2] - self.centre[:2] + self.size[:2]) / self.cell - self.cells / 2.0
        first = np.clip(np.rint(place), 0, self.last - self.cells).astype(int)
        if (abs(first - self.first) * self.cell > STEP).any():
            self.first = first
            self._show()
            mujoco.mjr_uploadHField(self.model, context, self.field)
        middle = (self.first + self.cells / 2.0) * self.cell - self.size[:2] + self.centre[:2]
        data.geom_xpos[self.geom, :2] = middle

    def _show(self) -> None:
        (x, y), (columns, rows) = self.first, self.cells + 1
        self.model.hfield_ncol[self.field], self.model.hfield_nrow[self.field] = columns, rows
        heights(self.model, self.geom)[:] = self.heights[y : y + rows, x : x + columns]
        self.model.hfield_size[self.field, :2] = self.cells * self.cell / 2.0
