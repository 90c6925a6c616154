"""Contacts with height fields, prism by prism, beside C MuJoCo's."""

from functools import cache

import fused_kernel as fused
import mujoco
import numpy as np
import pytest
import test_narrow as narrow
import warp as wp

from isaacrl.sim.engine import Actuation

CELLS, SPACING, TALL, BASE = 4, 0.1, 0.2, 0.3  # cells along an edge; lengths [m]
KINDS = ["hfield_sphere", "hfield_capsule", "hfield_box"]
FIRST = len(narrow.KINDS)  # where these begin in the enumeration
MOST = 2 * CELLS**2

SNIPPET = """
  CUDA_CALLABLE void contacts_of(int, int, const {c}*, const {c}*, {c}, {c}*, bool*);
  contacts_of(i, kind, heights.data, geoms.data, reach, contact.data, found.data);
}}
#undef int
#define REAL {c}
#define LANES 1
#define BACKWARDS 0
namespace hfields {{
{headers}
}}
CUDA_CALLABLE void contacts_of(int i, int kind, const {c}* heights, const {c}* geoms, {c} reach, {c}* contact,
                               bool* found) {{
  using namespace hfields;
  const int n = {cells};
  const {c} d = {spacing}, *all = heights + (n + 1) * (n + 1) * i, *p = geoms + 10 * i;
  Shape b{{v3(p), q4(p + 3), v3(p + 7)}};
  for (int k = 0; k < {most}; k++) {{
    int row = k / 2 / n, column = k / 2 % n;
    const {c}* at = all + row * (n + 1) + column;
    {c} h[4] = {{at[0] - b.pos.z, at[1] - b.pos.z, at[n + 1] - b.pos.z, at[n + 2] - b.pos.z}};
    vec3 corner = v3(d * column - b.pos.x - n * d / 2, d * row - b.pos.y - n * d / 2, 0);
    Prism q = prism_of(k % 2, corner, d, d, h, -({c}){base} - b.pos.z);
    Hit hit;
    if (!touch_prism(kind, q, b, reach, hit)) continue;
    {c}* out = contact + 10 * ({most} * i + k);
    store(out, b.pos + hit.pos), store(out + 3, hit.normal), out[9] = hit.dist;
    found[{most} * i + k] = true;
  }}
}}
#define int(x) cast_int(x)
CUDA_CALLABLE inline void rest() {{
"""


@cache
def kernel(dtype):
    headers = "\n".join((narrow.STAGES / name).read_text() for name in ("lanes.h", "math.h", "narrow.h", "hfield.h"))
    c = {wp.float64: "double", wp.float32: "float"}[dtype]
    text = {"c": c, "headers": headers.replace("#pragma once", ""), "most": MOST, "cells": CELLS}

    @wp.func_native(SNIPPET.format(spacing=SPACING, base=BASE, **text))
    def contacts_of(
        i: int,
        kind: int,
        heights: wp.array3d[dtype],
        geoms: wp.array2d[dtype],
        reach: dtype,
        contact: wp.array3d[dtype],
        found: wp.array2d[wp.bool],
    ): ...

    @wp.kernel(enable_backward=False, module="unique")
    def contacts(
        kind: int,
        heights: wp.array3d[dtype],  # [N, CELLS + 1, CELLS + 1] m
        geoms: wp.array2d[dtype],  # [N, 10] pos, quat, size
        reach: dtype,
        contact: wp.array3d[dtype],  # [N, MOST, 10] pos, normal, -, dist
        found: wp.array2d[wp.bool],  # [N, MOST]
    ):
        i = wp.tid()
        contacts_of(i, kind, heights, geoms, reach, contact, found)

    return contacts


def ours(kind, heights, geoms, reach=0.0, dtype=wp.float64):
    """Contacts [N, k, 10] and which there are [N, k], in the order of prisms."""
    n = len(geoms)
    inputs = [wp.array(x, dtype=dtype, device="cpu") for x in (heights, geoms)]
    contact = wp.zeros((n, MOST, 10), dtype=dtype, device="cpu")
    found = wp.zeros((n, MOST), dtype=wp.bool, device="cpu")
    number = FIRST + KINDS.index(kind)
    wp.launch(kernel(dtype), n, [number, *inputs, dtype(reach), contact, found], device="cpu")
    return narrow.first(contact.numpy(), found.numpy())


def c_mujoco(kind, heights, geoms, reach=0.0, disable=0):
    shape = kind.split("_")[1]
    spec, side = mujoco.MjSpec(), CELLS * SPACING / 2
    points = CELLS + 1
    spec.add_hfield(
        name="f", size=[side, side, TALL, BASE], nrow=points, ncol=points, userdata=np.linspace(0, 1, points**2)
    )
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_HFIELD, hfieldname="f")
    body = spec.worldbody.add_body()
    body.add_freejoint()
    body.add_geom(type=getattr(mujoco.mjtGeom, f"mjGEOM_{shape.upper()}"), size=[1, 1, 1], margin=reach)
    model = spec.compile()
    model.opt.ccd_tolerance, model.opt.ccd_iterations = 1e-10, 500
    model.opt.disableflags |= int(disable)
    data, matrix = mujoco.MjData(model), np.zeros(9)
    mujoco.mj_forward(model, data)
    contact, found = np.zeros((len(geoms), MOST, 10)), np.zeros((len(geoms), MOST), bool)
    for i, (h, row) in enumerate(zip(heights, geoms)):
        model.hfield_data[:] = h.ravel() / TALL
        mujoco.mju_quat2Mat(matrix, row[narrow.QUAT])
        data.geom_xpos[1], data.geom_xmat[1] = row[narrow.POS], matrix
        model.geom_size[1], model.geom_rbound[1] = row[narrow.SIZE], narrow.BOUND[shape](row[narrow.SIZE])
        mujoco.mj_collision(model, data)
        n = data.ncon
        found[i, :n] = True
        contact[i, :n] = np.hstack([data.contact.pos, data.contact.frame[:, :6], data.contact.dist[:, None]])
    return contact, found


def placed(kind, n, depth, seed=0):
    """Heights as float32 has them, and geoms that are up to `depth` [m] in one of the prisms."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    heights = rng.uniform(0.0, TALL, (n, CELLS + 1, CELLS + 1)) * rng.uniform(0.0, 1.0, (n, 1, 1)) ** 2
    heights = (heights / TALL).astype(np.float32).astype(float) * TALL
    geoms = np.hstack([rng.uniform(-0.2, 0.2, (n, 3)), rng.normal(size=(n, 4)), rng.uniform(0.02, 0.06, (n, 3))])
    geoms[:, narrow.QUAT] /= np.linalg.norm(geoms[:, narrow.QUAT], axis=1, keepdims=True)
    wanted, low, high = rng.uniform(0.0, depth, n), np.full(n, -0.05), np.full(n, 0.5)
    for _ in range(30):
        geoms[:, 2] = (low + high) / 2
        contact, found = ours(kind, heights, geoms)
        deep = np.where(found, contact[..., 9], 1.0).min(1) < -wanted
        low, high = np.where(deep, geoms[:, 2], low), np.where(deep, high, geoms[:, 2])
    return heights, geoms


def differences(one, other):
    """Of contacts: {"pos", "normal", "dist": [contacts]}."""
    (contact, found), (expected, has) = one, other
    np.testing.assert_array_equal(found, has)
    names = ("pos", "normal", "dist")
    return {k: np.abs(contact - expected)[..., narrow.CONTACT[k]].max(-1)[found] for k in names}


@pytest.mark.parametrize("reach", [0.0, 0.02])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_contacts_are_those_of_c_mujoco(kind, reach):
    """The same prisms, in the same order. While the centre of a ball, or the axis of a capsule, is in no prism, all is
    equal but for roundoff; deeper than the radius C MuJoCo's search ends 1e-6 m off."""
    for depth, exact in ((0.01, 1e-9), (0.05, 1e-5)):
        case = placed(kind, 500, depth)
        theirs = c_mujoco(kind, *case, reach)
        found = differences(ours(kind, *case, reach), theirs)
        print(kind, depth, {k: f"{v.max():.0e}" for k, v in found.items()})
        assert theirs[1].sum(1).mean() > 1.5 and theirs[1].sum(1).max() >= 6
        assert max(v.max() for v in found.values()) < exact, {k: v.max() for k, v in found.items()}


def test_boxes_find_the_shortest_way_out():
    """As C MuJoCo's other search does (flag nativeccd=disable), in nine of ten contacts to roundoff; where they differ,
    ours is the shorter way. The search that C MuJoCo has by default may end with less than the way out."""
    case = placed("hfield_box", 500, 0.01)
    mine, theirs = (
        ours("hfield_box", *case),
        c_mujoco("hfield_box", *case, disable=mujoco.mjtDisableBit.mjDSBL_NATIVECCD),
    )
    found = differences(mine, theirs)
    assert np.quantile(found["dist"], 0.9) < 1e-12 and np.quantile(found["normal"], 0.85) < 1e-9
    there = mine[1]
    assert (mine[0][..., 9][there] > theirs[0][..., 9][there] - 1e-9).all()
    # It is a way out: moved so far along it, the box touches that prism no more, and just before it does.
    heights, geoms = case
    alone = there.sum(1) == 1
    for further, touches in ((1e-9, False), (-1e-9, True)):
        moved = geoms.copy()
        moved[:, narrow.POS] += (further - mine[0][:, 0, 9:]) * mine[0][:, 0, narrow.CONTACT["normal"]]
        contact, still = ours("hfield_box", heights, moved)
        least = np.where(still, contact[..., 9], 0.0).min(1)[alone]
        assert (np.abs(least) < 2e-9).mean() > 0.9 and (still[alone].any(1) >= touches).all()


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision(kind):
    case = placed(kind, 500, 0.01)
    (contact, found), (expected, has) = ours(kind, *case, dtype=wp.float32), ours(kind, *case)
    same = (found == has).all(1)
    assert same.mean() > 0.99
    error = np.abs(contact - expected)[same][has[same]]
    assert error[:, 9].max() < 1e-6
    assert np.quantile(error[:, narrow.CONTACT["normal"]], 0.99) < 1e-4


STEPS = """<mujoco><option timestep=".004"/><asset>
<hfield name="f" nrow="30" ncol="20" size=".95 1.45 .3 .1"/>
</asset><worldbody><geom type="hfield" hfield="f"/><body pos="0 0 .3"><freejoint/>
<geom type="capsule" size=".03" fromto="-{half} 0 0 {half} 0 0"/></body></worldbody></mujoco>"""


@pytest.mark.parametrize("half", [0.08, 0.3])
@pytest.mark.parametrize("higher", ["row", "column"])
def test_nothing_high_is_overlooked(higher, half):
    """Whichever tile of cells it is in, of two or of three along the geom: against the side of a step, where tiles meet
    and elsewhere.
    """
    height = np.add.outer(
        np.arange(30) > (16 if higher == "row" else 99), np.arange(20) > (8 if higher == "column" else 99)
    )
    model = mujoco.MjModel.from_xml_string(STEPS.format(half=half))
    model.hfield_data[:] = height.ravel()
    rng, n = np.random.default_rng(0), 200
    angle = rng.uniform(0, np.pi, n)
    qpos = np.zeros((n, 7))
    low, high = np.array([-0.4, -0.2, 0.15]), np.array([0.3, 0.5, 0.33])
    qpos[:, :3] = rng.uniform(low, high, (n, 3)) - [0.1 * (half < 0.1), 0, 0]
    qpos[:, 3], qpos[:, 6] = np.cos(angle / 2), np.sin(angle / 2)
    state = {"qpos": qpos, "qvel": np.zeros((n, 6)), "target": np.zeros((n, 0))}
    law = Actuation.direct(0)
    theirs, found = fused.reference(model, law, state), fused.run(model, law, state)
    assert 0.1 < (theirs["ncon"] > 0).mean() < 0.95 and theirs["ncon"].max() > 10 * half
    np.testing.assert_array_equal(found["ncon"], theirs["ncon"])
