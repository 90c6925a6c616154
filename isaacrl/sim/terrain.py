"""Terrain: a height field of patches, kinds along y and levels of difficulty along x, from a seed.

A robot starts in the middle of a patch, which is flat but for `rough` and `waves`. Every patch ends at height 0 where
it meets its neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from isaacrl.errors import UserError
from isaacrl.suggest import did_you_mean

PLATFORM = 1.0  # half the width of the flat middle [m]
TREAD = 0.3  # depth of a stair [m]
HOLE = 1.0  # depth of gaps and between stones [m]
BASE = 0.5  # what is below the lowest point [m]
EXTENT = 3.0  # of the scene, for views [m]


@dataclass
class Terrain:
    """heights [rows, columns] [m], rows along y; origins [levels, patches along y, 3]: where robots stand [m]."""

    heights: np.ndarray
    resolution: float  # from one height to the next [m]
    origins: np.ndarray
    kinds: list[str]  # of the patches along y
    size: float  # of a patch [m]

    @property
    def corner(self) -> tuple[float, float]:
        """x and y of the first height [m]: the field's middle is at 0."""
        rows, columns = self.heights.shape
        return -(columns - 1) * self.resolution / 2.0, -(rows - 1) * self.resolution / 2.0


# --- kinds: (x, y from the patch's middle [m], difficulty 0 to 1, settings, random numbers) -> heights [m] ------------


def flat(x: np.ndarray, y: np.ndarray, d: float, cfg: Any, rng: np.random.Generator) -> np.ndarray:
    return np.zeros_like(x)


def rough(x: np.ndarray, y: np.ndarray, d: float, cfg: Any, rng: np.random.Generator) -> np.ndarray:
    """Random heights every 0.2 m, straight between."""
    n = max(2, round(cfg.size / 0.2) + 1)
    coarse = rng.uniform(-1.0, 1.0, (n, n)) * d * cfg.roughness
    place = np.linspace(0.0, n - 1.0, len(x))
    low = np.minimum(place.astype(int), n - 2)
    share = place - low
    between = coarse[:, low] * (1 - share) + coarse[:, low + 1] * share
    h = between[low] * (1 - share)[:, None] + between[low + 1] * share[:, None]
    return h * np.clip(_pyramid(x, y, cfg) / 0.3, 0.0, 1.0)


def _pyramid(x: np.ndarray, y: np.ndarray, cfg: Any) -> np.ndarray:
    """Distance from the patch's edge up to the middle's [m]."""
    return np.clip(cfg.size / 2.0 - np.maximum(abs(x), abs(y)), 0.0, cfg.size / 2.0 - PLATFORM)


def slope_down(x: np.ndarray, y: np.ndarray, d: float, cfg: Any, rng: np.random.Generator) -> np.ndarray:
    return _pyramid(x, y, cfg) * np.tan(np.radians(d * cfg.slope))


def slope_up(x: np.ndarray, y: np.ndarray, d: float, cfg: Any, rng: np.random.Generator) -> np.ndarray:
    return -slope_down(x, y, d, cfg, rng)


def stairs_down(x: np.ndarray, y: np.ndarray, d: float, cfg: Any, rng: np.random.Generator) -> np.ndarray:
    return np.floor(_pyramid(x, y, cfg) / TREAD + 1e-6) * (0.05 + d * (cfg.step_height - 0.05))


def stairs_up(x: np.ndarray, y: np.ndarray, d: float, cfg: Any, rng: np.random.Generator) -> np.ndarray:
    return -stairs_down(x, y, d, cfg, rng)


def obstacles(x: np.ndarray, y: np.ndarray, d: float, cfg: Any, rng: np.random.Generator) -> np.ndarray:
    """Blocks and pits with upright sides."""
    h, tall = np.zeros_like(x), 0.05 + d * (cfg.obstacle_height - 0.05)
    for _ in range(round(cfg.size**2 / 1.6)):
        middle, half = rng.uniform(-cfg.size / 2.0, cfg.size / 2.0, 2), rng.uniform(0.2, 0.8, 2)
        h[(abs(x - middle[0]) < half[0]) & (abs(y - middle[1]) < half[1])] = tall * rng.choice([-1.0, -0.5, 0.5, 1.0])
    return h * (np.maximum(abs(x), abs(y)) > PLATFORM) * (_pyramid(x, y, cfg) > 0.0)


def stones(x: np.ndarray, y: np.ndarray, d: float, cfg: Any, rng: np.random.Generator) -> np.ndarray:
    """Stepping stones with deep gaps between: smaller and further apart the harder; both in whole cells."""
    gap, wide = (round(v / cfg.resolution) for v in (0.05 + d * (cfg.stone_gap - 0.05), 1.2 - 0.8 * d))
    if d * cfg.stone_gap > 0.0:
        gap = max(gap, 2)  # over one cell alone two stones would meet
    shift = rng.integers(0, wide + gap, 2)
    cells = [np.rint(v / cfg.resolution).astype(int) + s for v, s in zip((x, y), shift)]
    inside = [np.mod(c, wide + gap) <= wide for c in cells]  # the heights at both of a stone's edges
    around = (np.maximum(abs(x), abs(y)) <= PLATFORM) | (_pyramid(x, y, cfg) < 0.3)
    return np.where(inside[0] & inside[1] | around, 0.0, -HOLE)


def gap(x: np.ndarray, y: np.ndarray, d: float, cfg: Any, rng: np.random.Generator) -> np.ndarray:
    """A ditch around the middle."""
    r = np.maximum(abs(x), abs(y)) - PLATFORM
    return np.where((r > 1e-6) & (r < 0.1 + d * (cfg.gap - 0.1) - 1e-6), -HOLE, 0.0)


def waves(x: np.ndarray, y: np.ndarray, d: float, cfg: Any, rng: np.random.Generator) -> np.ndarray:
    k = 4.0 * np.pi / cfg.size
    return d * cfg.wave_height / 4.0 * (np.cos(k * x) + np.cos(k * y) - 2.0) * np.clip(_pyramid(x, y, cfg), 0.0, 1.0)


KINDS: dict[str, Callable[..., np.ndarray]] = {
    f.__name__: f for f in (flat, rough, slope_up, slope_down, stairs_up, stairs_down, obstacles, stones, gap, waves)
}

# --- the whole field -------------------------------------------------------------------------------------------------


def build(cfg: Any) -> Terrain | None:
    """The terrain of task.terrain (schema.TerrainConfig); None where it names no kinds.

    Raises: UserError naming the key.
    """
    if not cfg.kinds:
        return None
    kinds = _columns(cfg)
    n, edge = round(cfg.size / cfg.resolution), round(cfg.border / cfg.resolution)
    if n * cfg.resolution < 4.0 * PLATFORM:
        raise UserError(
            f"task.terrain.size: {cfg.size} m; must be at least {4.0 * PLATFORM:g} m: a middle and a way out"
        )
    shape = len(kinds) * n + 2 * edge + 1, cfg.levels * n + 2 * edge + 1
    if shape[0] * shape[1] >= 2**24:
        raise UserError(
            f"task.terrain: {shape[1]} x {shape[0]} heights are more than 16 million; take fewer levels or columns, "
            "smaller patches or a larger resolution"
        )
    place = (np.arange(n) - n / 2.0) * cfg.resolution
    x, y = np.meshgrid(place, place)
    heights = np.zeros(shape)
    origins = np.zeros((cfg.levels, len(kinds), 3))
    middle = np.maximum(abs(x), abs(y)) < PLATFORM / 2.0
    corner = [-(k - 1) * cfg.resolution / 2.0 for k in heights.shape]  # y, x
    for column, kind in enumerate(kinds):
        for level in range(cfg.levels):
            rng = np.random.default_rng((cfg.seed, column, level))
            patch = KINDS[kind](x, y, level / max(1, cfg.levels - 1), cfg, rng)
            row, first = edge + column * n, edge + level * n
            heights[row : row + n, first : first + n] = patch
            along = [corner[i] + (start + n / 2.0) * cfg.resolution for i, start in enumerate((row, first))]
            origins[level, column] = along[1], along[0], patch[middle].max()
    return Terrain(heights.astype(np.float32), cfg.resolution, origins.astype(np.float32), kinds, cfg.size)


def _columns(cfg: Any) -> list[str]:
    """The kind of each patch along y, by the shares of cfg.kinds."""
    for kind, share in cfg.kinds.items():
        if kind not in KINDS:
            raise UserError(
                f"task.terrain.kinds: no kind '{kind}'; there is {', '.join(sorted(KINDS))}{did_you_mean(kind, KINDS)}"
            )
        if not isinstance(share, int | float) or isinstance(share, bool) or not share >= 0.0:
            raise UserError(f"task.terrain.kinds.{kind}: got {share}; must be a share of at least 0")
    shares = {k: v for k, v in cfg.kinds.items() if v > 0.0}
    if not shares:
        raise UserError("task.terrain.kinds: all shares are 0; give one more, or leave terrain out")
    if cfg.columns < len(shares):
        raise UserError(f"task.terrain.columns: {cfg.columns} for {len(shares)} kinds; give each at least one")
    total, counts = sum(shares.values()), dict.fromkeys(shares, 1)
    for _ in range(cfg.columns - len(shares)):  # the next one to whom most is owed
        kind = max(shares, key=lambda k: shares[k] / total * cfg.columns - counts[k])
        counts[kind] += 1
    return [kind for kind, n in counts.items() for _ in range(n)]


def add_to(spec: mujoco.MjSpec, terrain: Terrain, **geom: Any) -> None:
    """Put the field into a scene as its ground."""
    rows, columns = terrain.heights.shape
    low, high = float(terrain.heights.min()), float(terrain.heights.max())
    reach = max(high - low, 1e-3)
    spec.add_hfield(
        name="terrain",
        size=[(columns - 1) * terrain.resolution / 2.0, (rows - 1) * terrain.resolution / 2.0, reach, BASE],
        nrow=rows,
        ncol=columns,
        userdata=((terrain.heights - low) / reach).ravel(),
    )
    # What views are sized by: that of a robot. By the terrain's, shadows would be blocks and specks.
    spec.stat.extent, spec.stat.center = EXTENT, [0.0, 0.0, 0.0]
    spec.worldbody.add_geom(
        name="ground", type=mujoco.mjtGeom.mjGEOM_HFIELD, hfieldname="terrain", pos=[0.0, 0.0, low], **geom
    )
