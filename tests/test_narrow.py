"""The narrow phase of the fused engine equals C MuJoCo's: the same contacts in the same order, frames included."""

from functools import cache
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
import warp as wp

from isaacrl import sim

STAGES = Path(sim.__file__).parent / "fused" / "stages"
KINDS = {  # name: most contacts; in the order of narrow.h's enum
    "plane_sphere": 1,
    "plane_capsule": 2,
    "plane_box": 4,
    "plane_cylinder": 4,
    "plane_ellipsoid": 1,
    "sphere_sphere": 1,
    "sphere_capsule": 1,
    "capsule_capsule": 2,
    "sphere_box": 1,
    "capsule_box": 2,
    "box_box": 8,
}
PLANES = [kind for kind in KINDS if kind.startswith("plane")]
MOST = 8
POS, QUAT, SIZE = slice(0, 3), slice(3, 7), slice(7, 10)  # of a geom's row
CONTACT = {"pos": slice(0, 3), "normal": slice(3, 6), "tangent": slice(6, 9), "dist": slice(9, 10)}
BOUND = {  # MuJoCo's geom_rbound
    "plane": lambda size: 0,
    "sphere": lambda size: size[0],
    "capsule": lambda size: size[0] + size[1],
    "cylinder": lambda size: np.hypot(size[0], size[1]),
    "ellipsoid": np.max,
    "box": np.linalg.norm,
}

# A snippet is pasted into a function's body. This one leaves it for file scope, where the headers go, and ends in
# another function's body. Warp's macro for casts, int(x), would break `operator int()`.
SNIPPET = """
  CUDA_CALLABLE void possible_contacts(int, int, const {c}*, const {c}*, const {c}*, {c}*, bool*);
  possible_contacts(i, kind, a.data, b.data, reach.data, contact.data, found.data);
}}
#undef int
#define REAL {c}
#define LANES 1
#define BACKWARDS 0
namespace narrow {{
{headers}
}}
CUDA_CALLABLE void possible_contacts(int i, int kind, const {c}* a, const {c}* b, const {c}* reach, {c}* contact,
                                     bool* found) {{
  using namespace narrow;
  const {c} *p = a + 10 * i, *q = b + 10 * i;
  Shape one{{v3(p), q4(p + 3), v3(p + 7)}}, other{{v3(q), q4(q + 3), v3(q + 7)}};
  for (int k = 0; k < POSSIBLE(kind); k++) {{
    Hit hit;
    if (!(kind >= SPHERE_BOX ? touch_box : touch)(kind, k, one, other, reach[i], hit)) continue;
    {c}* row = contact + 10 * ({most} * i + k);
    store(row, hit.pos), store(row + 3, hit.normal), store(row + 6, hit.tangent), row[9] = hit.dist;
    found[{most} * i + k] = true;
  }}
}}
#define int(x) cast_int(x)
CUDA_CALLABLE inline void rest() {{
"""


@cache
def kernel(dtype):
    headers = "\n".join((STAGES / name).read_text() for name in ("lanes.h", "math.h", "narrow.h", "boxes.h"))
    c = {wp.float64: "double", wp.float32: "float"}[dtype]

    @wp.func_native(SNIPPET.format(c=c, headers=headers.replace("#pragma once", ""), most=MOST))
    def possible_contacts(
        i: int,
        kind: int,
        a: wp.array2d[dtype],
        b: wp.array2d[dtype],
        reach: wp.array[dtype],
        contact: wp.array3d[dtype],
        found: wp.array2d[wp.bool],
    ): ...

    @wp.kernel(enable_backward=False, module="unique")
    def contacts(
        kind: int,
        a: wp.array2d[dtype],  # [N, 10] pos, quat, size
        b: wp.array2d[dtype],  # [N, 10]
        reach: wp.array[dtype],  # [N] m
        contact: wp.array3d[dtype],  # [N, MOST, 10] pos, normal, tangent, dist
        found: wp.array2d[wp.bool],  # [N, MOST]
    ):
        i = wp.tid()
        possible_contacts(i, kind, a, b, reach, contact, found)

    return contacts


def first(contact, found):
    """Those found, moved to the front in their order, zeros behind."""
    order = np.argsort(~found, axis=1, kind="stable")
    found = np.take_along_axis(found, order, 1)
    return np.where(found[..., None], np.take_along_axis(contact, order[..., None], 1), 0), found


def ours(kind, a, b, reach, dtype=wp.float64, device="cpu"):
    """Contacts [N, MOST, 10] and which there are [N, MOST]."""
    inputs = [wp.array(x, dtype=dtype, device=device) for x in (a, b, reach)]
    contact = wp.zeros((len(a), MOST, 10), dtype=dtype, device=device)
    found = wp.zeros((len(a), MOST), dtype=wp.bool, device=device)
    wp.launch(kernel(dtype), len(a), [list(KINDS).index(kind), *inputs, contact, found], device=device)
    return first(contact.numpy(), found.numpy())


def c_mujoco(kind, a, b, reach):
    """The same from mj_collision, of an explicit pair: nothing but the bounding spheres filters those."""
    types = kind.split("_")
    spec = mujoco.MjSpec()
    for name, geom_type in zip("ab", types):
        body = spec.worldbody if geom_type == "plane" else spec.worldbody.add_body()
        if geom_type != "plane":
            body.add_freejoint()
        body.add_geom(name=name, type=getattr(mujoco.mjtGeom, f"mjGEOM_{geom_type.upper()}"), size=[1, 1, 1])
    spec.add_pair(geomname1="a", geomname2="b")
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    contact, found = np.zeros((len(a), MOST, 10)), np.zeros((len(a), MOST), bool)
    matrix = np.zeros(9)
    for i in range(len(a)):
        for name, geom_type, row in zip("ab", types, (a[i], b[i])):
            g = model.geom(name).id
            mujoco.mju_quat2Mat(matrix, row[QUAT])
            data.geom_xpos[g], data.geom_xmat[g] = row[POS], matrix
            model.geom_size[g], model.geom_rbound[g] = row[SIZE], BOUND[geom_type](row[SIZE])
        model.pair_margin[0] = reach[i]
        mujoco.mj_collision(model, data)
        n = data.ncon
        found[i, :n] = True
        contact[i, :n] = np.hstack([data.contact.pos, data.contact.frame[:, :6], data.contact.dist[:, None]])
    return contact, found


def errors(mine, theirs):
    return {name: float(np.abs(mine[..., s] - theirs[..., s]).max()) for name, s in CONTACT.items()}


def z_axes(quat):
    w, x, y, z = quat.T
    return np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), w * w - x * x - y * y + z * z], 1)


def products(p, q):
    result = np.zeros_like(p)
    for i in range(len(p)):
        mujoco.mju_mulQuat(result[i], p[i], q[i])
    return result


def random_pairs(kind, n, seed=0):
    """Poses, sizes and reaches at random, near enough that most touch."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    a, b = (np.hstack([rng.normal(size=(n, 7)), rng.uniform(0.05, 0.3, (n, 3))]) for _ in range(2))
    for geom in (a, b):
        geom[:, QUAT] /= np.linalg.norm(geom[:, QUAT], axis=1, keepdims=True)
    offset = rng.normal(0, 0.18, (n, 3))
    if kind in PLANES:
        normal = z_axes(a[:, QUAT])
        offset += (rng.uniform(-0.1, 0.4, n) - (offset * normal).sum(1))[:, None] * normal
    b[:, POS] = a[:, POS] + offset
    return a, b, rng.choice([0, 0, 0.02, 0.1], n)


TURNS = np.array(
    [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [1, 1, 1, 1]],
    dtype=float,
)
TURNS /= np.linalg.norm(TURNS, axis=1, keepdims=True)


def degenerate_pairs(kind, n, seed=1):
    """Quarter turns apart, centres that coincide or lie on each other's axes, zero lengths, flat and thin shapes."""
    a, b, reach = random_pairs(kind, n, seed)
    rng = np.random.default_rng(seed)
    a[:, POS], a[:, QUAT] = 0, TURNS[0]
    b[:, QUAT] = TURNS[rng.integers(len(TURNS), size=n)]
    which, scale = np.arange(n) % 4, np.where(np.arange(n) % 3, 0.03, b[:, 8] + a[:, 8] - 0.01)
    b[:, POS] = (np.eye(4, 3)[which] if kind not in PLANES else np.eye(4, 3)[2] * which[:, None]) * scale[:, None]
    for geom, shape in zip((a, b), kind.split("_")):
        if shape not in ("box", "ellipsoid"):
            geom[rng.random(n) < 0.2, 8] = 0
    b[rng.random(n) < 0.1, 7] = 1e-3
    return a, b, reach


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", [random_pairs, degenerate_pairs])
def test_contacts_are_those_of_c_mujoco(kind, pairs):
    args = pairs(kind, 2000)
    (contact, found), (expected, has) = ours(kind, *args), c_mujoco(kind, *args)
    assert has.any(1).mean() > 1 / 3
    most = 1 if (kind, pairs) == ("capsule_capsule", random_pairs) else KINDS[kind]  # two need parallel axes
    assert has.any(0).sum() == (4 if (kind, pairs) == ("box_box", degenerate_pairs) else most)
    if pairs == degenerate_pairs and kind in ("capsule_box", "box_box"):
        # Which of two ends, or of two opposite faces, is nearer is a matter of roundoff; and where a polygon begins.
        contact, expected = in_order(contact), in_order(expected)
        alike = (found == has).all(1) & (np.abs(contact - expected).max((1, 2)) < 1e-10)
        assert alike.mean() > 0.75 and (found == has).all(1).mean() > 0.98
        return
    np.testing.assert_array_equal(found, has)
    assert max(errors(contact, expected).values()) < 1e-10, errors(contact, expected)


def in_order(contact):
    """Each pair's contacts [N, MOST, 10], ordered by their places."""
    places = np.round(contact[..., CONTACT["pos"]], 6) @ [1.0, np.pi, np.e]
    return np.take_along_axis(contact, np.argsort(places, axis=1)[..., None], 1)


@pytest.mark.parametrize("tilt", [1e-4, 1e-2, 0.1])
def test_boxes_on_boxes(tilt):
    """Face upon face but for a small angle, as they rest: up to eight contacts, corners of what both faces share."""
    a, b, reach = random_pairs("box_box", 1000, seed=4)
    rng = np.random.default_rng(5)
    turn = np.zeros((1000, 4))
    angle = rng.uniform(0, np.pi, 1000)
    turn[:, 0], turn[:, 3] = np.cos(angle / 2), np.sin(angle / 2)
    axis = rng.normal(size=(1000, 3))
    lean = np.hstack([np.ones((1000, 1)), tilt / 2 * axis])
    lean /= np.linalg.norm(lean, axis=1, keepdims=True)
    b[:, QUAT] = products(products(a[:, QUAT], turn), lean)
    up = z_axes(a[:, QUAT])
    aside = rng.normal(0, 0.08, (1000, 3))
    aside -= (aside * up).sum(1, keepdims=True) * up
    b[:, POS] = a[:, POS] + aside + up * (a[:, 9] + b[:, 9] - rng.uniform(0, 0.02, 1000))[:, None]
    (contact, found), (expected, has) = (f("box_box", a, b, reach) for f in (ours, c_mujoco))
    np.testing.assert_array_equal(found, has)
    assert has.sum(1).max() == 8 and has.sum(1).mean() > (3 if tilt < 0.1 else 2)
    assert max(errors(contact, expected).values()) < 1e-9, errors(contact, expected)


@pytest.mark.parametrize("angle", [1e-3, 2e-4, 5e-5, 1e-7, 0])
def test_nearly_parallel_capsules(angle):
    """One contact or, below 1e-4 rad, two."""
    a, b, reach = random_pairs("capsule_capsule", 1000, seed=2)
    axis = np.random.default_rng(3).normal(size=(1000, 3)) * [1, 1, 0]
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    turn = np.hstack([np.full((1000, 1), np.cos(angle / 2)), np.sin(angle / 2) * axis])
    b[:, QUAT] = products(products(a[:, QUAT], turn), TURNS[np.arange(1000) % 4])
    (contact, found), (expected, has) = (f("capsule_capsule", a, b, reach) for f in (ours, c_mujoco))
    np.testing.assert_array_equal(found, has)
    assert has[:, 1].any() == (angle < 1e-4)
    assert max(errors(contact, expected).values()) < 1e-10, errors(contact, expected)


@pytest.mark.parametrize("reach", [0, 0.5])
@pytest.mark.parametrize("kind", ["plane_sphere", "sphere_sphere"])
def test_what_just_touches_is_a_contact(kind, reach):
    """At a distance of exactly the reach, as in C; only beyond it there is none."""
    a = np.array([[0, 0, 0, 1, 0, 0, 0, 0.25, 0, 0]], dtype=float)
    b = np.array([[0, 0, 0.5 + reach, 1, 0, 0, 0, 0.5, 0, 0]], dtype=float)
    if kind == "sphere_sphere":
        b[0, 2] += 0.25
    for further, touches in ((0, True), (1e-9, False)):
        b[0, 2] += further
        for contacts in (ours, c_mujoco):
            assert contacts(kind, a, b, [reach])[1].any() == touches


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=[pytest.mark.gpu, NO_GPU])])
@pytest.mark.parametrize("kind", KINDS)
def test_single_precision(kind, device):
    """Positions and distances to some 1e-6 m. A direction is as well determined as its points are far apart."""
    a, b, reach = random_pairs(kind, 2000)
    contact, found = ours(kind, a, b, reach, wp.float32, device)
    expected, has = ours(kind, a, b, reach)
    # Contacts that end just at the reach may be there or not; the rest have the same neighbours.
    near = np.abs(expected[..., 9] - reach[:, None]).min(1) < 1e-6
    same = (found == has).all(1)
    assert same[~near].all() and same.mean() > 0.99
    error = errors(contact[same], expected[same])
    on_box = kind.endswith("box") and kind != "plane_box"
    assert error["dist"] < (3e-6 if on_box else 1e-6), error
    assert error["pos"] < (5e-5 if kind == "capsule_capsule" else 1e-5 if on_box else 1e-6), error
    assert max(error["normal"], error["tangent"]) < (5e-4 if kind == "capsule_capsule" or on_box else 2e-5), error


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=[pytest.mark.gpu, NO_GPU])])
@pytest.mark.parametrize("kind", ["plane_capsule", "plane_cylinder"])
@pytest.mark.parametrize("tilt", [0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-3])
def test_upright_in_single_precision(kind, tilt, device):
    """What stands on end, tilted by no more than rounding: distances as in double precision, orthonormal frames."""
    a, b, reach = random_pairs(kind, 500)
    spin = np.zeros((500, 4))
    spin[:, 0], spin[:, 3] = np.cos(np.arange(500)), np.sin(np.arange(500))
    b[:, QUAT] = products(products(a[:, QUAT], spin), np.tile([np.cos(tilt / 2), np.sin(tilt / 2), 0, 0], (500, 1)))
    reach[:] = 1  # both ends are in reach
    (contact, found), (expected, has) = ours(kind, a, b, reach, wp.float32, device), ours(kind, a, b, reach)
    np.testing.assert_array_equal(found, has)
    np.testing.assert_allclose(np.sort(contact[..., 9]), np.sort(expected[..., 9]), atol=2e-6)
    normal, tangent = (contact[..., CONTACT[name]][found] for name in ("normal", "tangent"))
    np.testing.assert_allclose((tangent * tangent).sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose((tangent * normal).sum(-1), 0, atol=1e-6)
