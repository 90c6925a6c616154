"""Pairs of geoms that may touch, with the parameters of their contacts, as MuJoCo selects and mixes them.

MuJoCo finds the pairs anew in every step; here they are listed once. Model fields that say who collides with whom
(types, bodies, contype, ...) are therefore fixed; friction may still differ between worlds (`Pair.friction_from`).
Contact parameters that `option` overrides for all contacts (enable flag `override`) are not considered.
"""

from dataclasses import dataclass
from typing import Literal

import mujoco
import numpy as np

_DISABLE = mujoco.mjtDisableBit
_NEVER_TOUCH = (int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_HFIELD))  # among themselves
_MINVAL, _MINMU = float(mujoco.mjMINVAL), float(mujoco.mjMINMU)


@dataclass
class Pair:
    """Two geoms that may touch. Fields as in `mujoco.MjContact`, and as they would be in its contacts."""

    geom1: int  # its type is not greater than that of
    geom2: int
    condim: int  # 1, 3, 4 or 6
    friction: np.ndarray  # [5]: two tangents, spin, two rolls
    solref: np.ndarray  # [2]
    solreffriction: np.ndarray  # [2], zeros: solref holds for friction too
    solimp: np.ndarray  # [5]
    margin: float  # contacts are detected below this distance [m]
    includemargin: float  # and have constraint rows only below this one [m]
    explicit: bool  # from a <pair> of the model
    # Whose geom_friction it is: the larger of "both", element by element; that of the geom of this id; or the "pair"'s.
    friction_from: int | Literal["both", "pair"]


def contact_pairs(model: mujoco.MjModel) -> list[Pair]:
    """Every pair of geoms for which MuJoCo may report contacts, in the order of the geoms' ids.

    Two <pair>s of the same geoms make two pairs, as they make two sets of contacts.
    """
    if model.opt.disableflags & (_DISABLE.mjDSBL_CONTACT | _DISABLE.mjDSBL_CONSTRAINT):
        return []
    pairs = [_explicit(model, i) for i in range(model.npair)]
    pairs = [p for p in pairs if not _without_collider(model, p.geom1, p.geom2)]
    named = {frozenset(x) for x in zip(model.pair_geom1.tolist(), model.pair_geom2.tolist())}
    pairs += [_mixed(model, a, b) for a, b in _candidates(model) if frozenset((a, b)) not in named]
    return sorted(pairs, key=lambda p: (min(p.geom1, p.geom2), max(p.geom1, p.geom2)))


def moves_apart(model: mujoco.MjModel, pair: Pair) -> bool:
    """Whether any degree of freedom moves the two geoms against each other. Without one, a contact has no rows."""
    weld1, weld2 = model.body_weldid[model.geom_bodyid[[pair.geom1, pair.geom2]]]
    return bool(weld1 != weld2 and (model.body_dofnum[weld1] or model.body_dofnum[weld2]))


def _candidates(model: mujoco.MjModel) -> list[tuple[int, int]]:
    """Pairs of geoms (a < b) that pass MuJoCo's filters of bodies and geoms."""
    a, b = np.triu_indices(model.ngeom, k=1)
    body_a, body_b = model.geom_bodyid[a], model.geom_bodyid[b]
    weld_a, weld_b = model.body_weldid[body_a], model.body_weldid[body_b]
    moves = model.body_dofnum > 0
    meets = (model.geom_contype[a] & model.geom_conaffinity[b]) | (model.geom_contype[b] & model.geom_conaffinity[a])
    keep = meets != 0
    keep &= (weld_a != weld_b) & (moves[weld_a] | moves[weld_b])
    if not model.opt.disableflags & _DISABLE.mjDSBL_FILTERPARENT:
        parent = model.body_weldid[model.body_parentid[model.body_weldid]]  # [nbody], that of a body's weld
        family = (parent[body_a] == weld_b) | (parent[body_b] == weld_a)
        keep &= ~(family & (weld_a != 0) & (weld_b != 0))  # the world is nobody's parent here
    low, high = np.minimum(body_a, body_b), np.maximum(body_a, body_b)
    keep &= ~np.isin((low << 16) + high, model.exclude_signature)
    pairs = zip(a[keep].tolist(), b[keep].tolist())
    return [(i, j) for i, j in pairs if not _without_collider(model, i, j)]


def _without_collider(model: mujoco.MjModel, a: int, b: int) -> bool:
    return model.geom_type[a] in _NEVER_TOUCH and model.geom_type[b] in _NEVER_TOUCH


def _by_type(model: mujoco.MjModel, a: int, b: int) -> tuple[int, int]:
    return (b, a) if model.geom_type[a] > model.geom_type[b] else (a, b)


def _explicit(model: mujoco.MjModel, i: int) -> Pair:
    """The i-th <pair>. The compiler has mixed already what it leaves open."""
    geom1, geom2 = _by_type(model, int(model.pair_geom1[i]), int(model.pair_geom2[i]))
    margin = float(model.pair_margin[i])
    return Pair(
        geom1=geom1,
        geom2=geom2,
        condim=int(model.pair_dim[i]),
        friction=np.maximum(model.pair_friction[i], _MINMU),
        solref=model.pair_solref[i].copy(),
        solreffriction=model.pair_solreffriction[i].copy(),
        solimp=model.pair_solimp[i].copy(),
        margin=margin + float(model.pair_gap[i]),
        includemargin=margin,
        explicit=True,
        friction_from="pair",
    )


def _mixed(model: mujoco.MjModel, a: int, b: int) -> Pair:
    """Two geoms without a <pair>: the parameters of the one with priority, or of both, mixed."""
    geom1, geom2 = _by_type(model, a, b)
    both = [geom1, geom2]
    priority, solref, solimp = model.geom_priority[both], model.geom_solref[both], model.geom_solimp[both]
    margin = float(model.geom_margin[both].sum())
    if priority[0] != priority[1]:
        winner = int(priority[1] > priority[0])
        friction, friction_from = model.geom_friction[both[winner]], both[winner]
        condim, solref, solimp = model.geom_condim[both[winner]], solref[winner], solimp[winner]
    else:
        friction, friction_from = model.geom_friction[both].max(axis=0), "both"
        condim = model.geom_condim[both].max()
        weight = _weights(model.geom_solmix[both])
        # Negative ones are stiffness and damping, which are not mixed: the stiffer and the more damped counts.
        solref = weight @ solref if (solref[:, 0] > 0.0).all() else solref.min(axis=0)
        solimp = weight @ solimp
    return Pair(
        geom1=geom1,
        geom2=geom2,
        condim=int(condim),
        friction=np.maximum(friction[[0, 0, 1, 2, 2]], _MINMU),
        solref=solref.copy(),
        solreffriction=np.zeros(mujoco.mjNREF),
        solimp=solimp.copy(),
        margin=margin + float(model.geom_gap[both].sum()),
        includemargin=margin,
        explicit=False,
        friction_from=friction_from,
    )


def _weights(solmix: np.ndarray) -> np.ndarray:
    """Shares of two geoms in what is mixed, [2], from their solmix."""
    some = solmix >= _MINVAL
    if some.all():
        return solmix / solmix.sum()
    return np.array([0.5, 0.5]) if some[0] == some[1] else some.astype(float)
