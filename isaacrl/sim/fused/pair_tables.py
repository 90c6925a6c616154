"""Pairs of geoms as the fused kernel reads them: their kinds, parameters of contacts, and which are tried how."""

import mujoco
import numpy as np

from isaacrl.sim.fused.derive import last_dofs, parameters
from isaacrl.sim.fused.pairs import Pair, moves_apart

# Kinds of pairs, in the order of the enumeration in narrow.h, with the most contacts that each has.
_G = mujoco.mjtGeom
KINDS = {
    (int(_G.mjGEOM_PLANE), int(_G.mjGEOM_SPHERE)): ("PLANE_SPHERE", 1),
    (int(_G.mjGEOM_PLANE), int(_G.mjGEOM_CAPSULE)): ("PLANE_CAPSULE", 2),
    (int(_G.mjGEOM_PLANE), int(_G.mjGEOM_BOX)): ("PLANE_BOX", 4),
    (int(_G.mjGEOM_PLANE), int(_G.mjGEOM_CYLINDER)): ("PLANE_CYLINDER", 4),
    (int(_G.mjGEOM_PLANE), int(_G.mjGEOM_ELLIPSOID)): ("PLANE_ELLIPSOID", 1),
    (int(_G.mjGEOM_SPHERE), int(_G.mjGEOM_SPHERE)): ("SPHERE_SPHERE", 1),
    (int(_G.mjGEOM_SPHERE), int(_G.mjGEOM_CAPSULE)): ("SPHERE_CAPSULE", 1),
    (int(_G.mjGEOM_CAPSULE), int(_G.mjGEOM_CAPSULE)): ("CAPSULE_CAPSULE", 2),
    (int(_G.mjGEOM_SPHERE), int(_G.mjGEOM_BOX)): ("SPHERE_BOX", 1),
    (int(_G.mjGEOM_CAPSULE), int(_G.mjGEOM_BOX)): ("CAPSULE_BOX", 2),
    (int(_G.mjGEOM_BOX), int(_G.mjGEOM_BOX)): ("BOX_BOX", 8),
    (int(_G.mjGEOM_HFIELD), int(_G.mjGEOM_SPHERE)): ("HFIELD_SPHERE", 1),  # with each prism
    (int(_G.mjGEOM_HFIELD), int(_G.mjGEOM_CAPSULE)): ("HFIELD_CAPSULE", 1),
    (int(_G.mjGEOM_HFIELD), int(_G.mjGEOM_BOX)): ("HFIELD_BOX", 1),
}

# Columns of the tables of pairs, pair_real and pair_int.
INCLUDE = 8  # of pair_real: after the constraint parameters; then friction (5) and the damping of the tangents
INTS = (
    *("KIND", "SHAPE_A", "SHAPE_B", "GEOM_A", "GEOM_B", "BODY_A", "BODY_B"),
    *("BODY", "OTHER", "SIGN", "DIM", "FRICTION_FROM"),
)
REALS = 16


def add(m: mujoco.MjModel, pairs: list[Pair], sizes: dict, reals: dict, ints: dict) -> None:
    """Add the tables and sizes of the pairs that may touch, and of their geoms."""
    used = sorted({g for p in pairs for g in (p.geom1, p.geom2)})
    shape = {g: i for i, g in enumerate(used)}
    for name in ("geom_pos", "geom_quat", "geom_friction"):
        reals[name] = getattr(m, name)
    where = np.array(used, int)
    ints["geom_bodyid"], ints["shape_body"] = m.geom_bodyid, m.geom_bodyid[where]
    # Of the geoms that collide: place in the body, with the bounding radius as its fourth, and orientation.
    reals["shape_place"] = np.column_stack([m.geom_pos[where], m.geom_rbound[where], m.geom_quat[where]])
    reals["shape_size"] = m.geom_size[where]
    last = last_dofs(m)

    def kind(p: Pair) -> tuple[str, int]:
        return KINDS[int(m.geom_type[p.geom1]), int(m.geom_type[p.geom2])]

    def family(p: Pair) -> int:
        return 0 if kind(p)[0].startswith("PLANE") else 2 if kind(p)[0].startswith("HFIELD") else 1

    pairs = sorted(pairs, key=family)  # those with a plane first, those with a height field last
    names, rows, numbers, items, across = list(dict(KINDS.values())), [], [], [], False
    for k, p in enumerate(pairs):
        name, possible = kind(p)
        a, b = int(m.geom_bodyid[p.geom1]), int(m.geom_bodyid[p.geom2])
        moving_a, moving_b = last[a] >= 0, last[b] >= 0
        body, other, sign = (b, a if moving_a else 0, 1) if moving_b else (a, 0, -1)
        apart = moves_apart(m, p)
        prm = parameters(m, p.solref, p.solimp)
        damping = parameters(m, p.solreffriction, p.solimp)[1] if p.solreffriction.any() else prm[1]
        include = p.includemargin if apart else -np.inf  # no rows
        rows.append([*prm, p.margin, include, *p.friction, damping, 0.0])
        match p.friction_from:
            case "both":
                source = 0
            case "pair":
                source = 3
            case geom:
                source = 1 if geom == p.geom1 else 2
        numbers.append([names.index(name), shape[p.geom1], shape[p.geom2], p.geom1, p.geom2, a, b])
        numbers[-1] += [body, other, sign, p.condim, source]
        if family(p) == 0:
            items += [(k, i) for i in range(possible)]
        elif family(p) == 1:
            across |= not (moving_a and moving_b) or m.body_treeid[a] != m.body_treeid[b]
    planes, others, fields = (sum(family(p) == f for p in pairs) for f in range(3))
    reals["pair_real"], ints["pair_int"] = np.array(rows).reshape(-1, REALS), np.array(numbers, int)
    ints["pair_shapes"] = np.array([row[1] | row[2] << 16 for row in numbers], int)  # again, for the broad phase
    reals["pair_reach"] = np.array([row[7] for row in rows])
    if len(reaches := set(reals["pair_reach"].tolist())) == 1:
        sizes["REACH"] = float(reaches.pop())
    ints["plane_item"] = np.array(items, int)
    have = {kind(p)[0] for p in pairs}
    sizes |= {f"HAS_{name}": int(name in have) for name in names}
    sizes |= {"HAS_BOXES": 1} if have & {"SPHERE_BOX", "CAPSULE_BOX", "BOX_BOX"} else {}
    sizes |= {"NG": len(used), "NPLANE_ITEMS": len(items), "FIRST_PAIR": planes, "NPAIR": others}
    sizes |= {"FIRST_HFIELD": planes + others, "NHFIELD": fields} if fields else {}
    sizes |= {"PAIR_REALS": REALS, "PAIRS_ACROSS": int(across)}
    sizes["POSSIBLE_PAIR"] = max((kind(p)[1] for p in pairs[planes : planes + others]), default=0)
    sizes["MAXDIM"] = max([1, *(p.condim for p in pairs)])
    sizes["ANISOTROPIC"] = int(any(p.friction[0] != p.friction[1] for p in pairs))
    sizes["NPAIR_MOVING"] = sum(row[8] != 0 for row in numbers)
