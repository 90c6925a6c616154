"""Which geoms may touch and with which parameters, beside the contacts of C MuJoCo."""

from importlib.util import find_spec
from pathlib import Path

import mujoco
import numpy as np
import pytest
import robot_states

from isaacrl.sim.fused.pairs import contact_pairs, moves_apart

SHAPES = ("sphere", "capsule", "ellipsoid", "cylinder", "box")


def numbers(rng, low, high, n):
    return " ".join(f"{x:.6g}" for x in rng.uniform(low, high, n))


def parameters(rng, frictions):
    """Attributes that geoms and pairs share, each with some probability."""
    some = {
        "condim": str(rng.choice([1, 3, 4, 6])),
        "friction": " ".join(f"{x:.6g}" for x in rng.choice([0.0, 1e-7, 0.3, 1.5], frictions) * rng.random(frictions)),
        "solref": numbers(rng, 0.01, 1.0, 2) if rng.random() < 0.6 else numbers(rng, -100.0, -1.0, 2),
        "solimp": f"{numbers(rng, 0.3, 0.99, 2)} {numbers(rng, 0.001, 0.9, 2)} {rng.uniform(1.0, 4.0):.6g}",
        "margin": numbers(rng, 0.0, 0.1, 1),
        "gap": numbers(rng, 0.0, 0.1, 1),
    }
    return " ".join(f'{k}="{v}"' for k, v in some.items() if rng.random() < 0.6)


def heap(rng):
    """MJCF of bodies in which all geoms overlap, with random parameters, families, exclusions and pairs."""
    names, bodies = [], ["world"]

    def geom(fixed):
        names.append(f"g{len(names)}")
        kind = rng.choice([*SHAPES, "plane"] if fixed else SHAPES)
        out = f'<geom name="{names[-1]}" type="{kind}" pos="{numbers(rng, -0.02, 0.02, 3)}" '
        out += f'size="{numbers(rng, 0.3, 0.6, 3)}" {parameters(rng, 3)} '
        out += f'contype="{rng.integers(0, 4)}" conaffinity="{rng.integers(0, 4)}" ' if rng.random() < 0.6 else ""
        out += f'priority="{rng.integers(-1, 3)}" ' if rng.random() < 0.5 else ""
        return out + (f'solmix="{rng.choice([0.0, 1e-16, 0.3, 1.0, 2.5])}"/>' if rng.random() < 0.6 else "/>")

    def body(depth, fixed):
        bodies.append(f"b{len(bodies)}")
        mocap, kind = depth == 0 and rng.random() < 0.15, rng.choice(["free", "hinge", "slide", "ball", ""])
        joint = "" if mocap or not kind or (kind == "free" and depth) else f'<joint type="{kind}"/>'
        fixed = fixed and not joint
        out = f'<body name="{bodies[-1]}" mocap="{str(mocap).lower()}">{joint}'
        out += '<inertial mass="1" diaginertia="1 1 1" pos="0 0 0"/>'
        out += "".join(geom(fixed) for _ in range(rng.integers(0, 3)))
        return out + "".join(body(depth + 1, fixed) for _ in range(rng.integers(0, 3) if depth < 2 else 0)) + "</body>"

    world = "".join(geom(True) for _ in range(rng.integers(0, 3))) + "".join(body(0, True) for _ in range(3))
    contact = ""
    for _ in range(rng.integers(0, 4)):
        if len(names) > 1:
            a, b = rng.choice(names, 2, replace=False)
            friction = f'solreffriction="{numbers(rng, 0.01, 1.0, 2)}"' if rng.random() < 0.5 else ""
            contact += f'<pair geom1="{a}" geom2="{b}" {parameters(rng, 5)} {friction}/>'
    for _ in range(rng.integers(0, 3)):
        a, b = rng.choice(bodies, 2, replace=False)
        contact += f'<exclude body1="{a}" body2="{b}"/>'
    flag = rng.choice(["disable", "enable"])
    return (
        f'<mujoco><size memory="10M"/><option><flag filterparent="{flag}"/></option>'
        f"<worldbody>{world}</worldbody><contact>{contact}</contact></mujoco>"
    )


def as_key(geoms, x, dim):
    """What a contact has in common with its pair."""
    values = np.concatenate([x.friction, x.solref, x.solreffriction, x.solimp, [x.includemargin]])
    return (*geoms, dim, *np.round(values, 12).tolist())


def of_contacts(data):
    return {as_key(c.geom.tolist(), c, c.dim) for c in data.contact}


def of_pairs(model):
    return {as_key((p.geom1, p.geom2), p, p.condim) for p in contact_pairs(model)}


def test_pairs_are_those_of_all_contacts_where_everything_overlaps():
    """Geoms, their order and every parameter, both ways: nothing is missing, and nothing listed never touches."""
    rng, total = np.random.default_rng(0), 0
    for _ in range(150):
        model = mujoco.MjModel.from_xml_string(heap(rng))
        data = mujoco.MjData(model)
        mujoco.mj_fwdPosition(model, data)
        assert of_contacts(data) == of_pairs(model)
        total += len(of_pairs(model))
    assert total > 1000


def test_contacts_without_degrees_of_freedom_have_no_rows():
    """Only a <pair> makes them: of two geoms of one body, or of two that cannot move."""
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><geom name="a" size=".1"/><body><geom name="b" size=".1"/></body><body pos="1 0 0">'
        '<freejoint/><geom name="c" size=".1"/><geom name="d" size=".1"/></body></worldbody><contact>'
        '<pair geom1="a" geom2="b"/><pair geom1="d" geom2="c"/><pair geom1="a" geom2="c" margin="2"/>'
        "</contact></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    rows = {tuple(sorted(c.geom.tolist())): c.efc_address >= 0 for c in data.contact}
    assert {tuple(sorted((p.geom1, p.geom2))): moves_apart(model, p) for p in contact_pairs(model)} == rows | {
        (0, 3): True,  # too far apart to be among the contacts
        (1, 2): True,
        (1, 3): True,
    }


@pytest.mark.parametrize("explicit", [False, True])
def test_distances_of_detection_and_of_rows(explicit):
    """Margins and gaps of two geoms add up; rows end at the margin, contacts at margin and gap."""
    pair = '<pair geom1="a" geom2="b" margin=".11" gap=".22"/>' if explicit else ""
    for distance in (0.1099, 0.1101, 0.3299, 0.3301):
        model = mujoco.MjModel.from_xml_string(
            '<mujoco><worldbody><geom name="a" size=".1" margin=".01" gap=".02"/>'
            f'<body pos="{0.2 + distance} 0 0"><freejoint/><geom name="b" size=".1" margin=".1" gap=".2"/></body>'
            f"</worldbody><contact>{pair}</contact></mujoco>"
        )
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        (only,) = contact_pairs(model)
        assert only.explicit == explicit
        assert data.ncon == int(distance < only.margin) and data.nefc == 4 * int(distance < only.includemargin)


def test_disabled_contacts_have_no_pairs():
    balls = "<geom size='.1'/><body><joint/><geom size='.1'/></body>"
    xml = f"<mujoco><option>{{}}</option><worldbody>{balls}</worldbody></mujoco>"
    for flag in ("contact", "constraint"):
        assert contact_pairs(mujoco.MjModel.from_xml_string(xml.format(f'<flag {flag}="disable"/>'))) == []
    assert len(contact_pairs(mujoco.MjModel.from_xml_string(xml.format("")))) == 1


def test_friction_comes_from_where_it_says():
    """Written anew from geom_friction, as an engine does for each world, it is the pair's."""
    for seed in range(20):
        model = mujoco.MjModel.from_xml_string(heap(np.random.default_rng(seed)))
        model.geom_friction[:] = np.random.default_rng(seed).uniform(0.1, 1.0, model.geom_friction.shape)
        for p in contact_pairs(model):
            if p.friction_from == "pair":
                assert p.explicit
                continue
            geoms = [p.geom1, p.geom2] if p.friction_from == "both" else [p.friction_from]
            np.testing.assert_array_equal(p.friction, model.geom_friction[geoms].max(axis=0)[[0, 0, 1, 2, 2]])


def robot(name):
    """A bundled robot, or a model that a package ships."""
    package, _, file = name.partition(":")
    if not file:
        return robot_states.scene(name).model
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return mujoco.MjModel.from_xml_path(str(Path(found.submodule_search_locations[0]) / file))


SHIPPED = ("ant", "half_cheetah", "hopper", "humanoid", "pusher", "reacher", "walker2d", "swimmer")
SHIPPED = [f"gymnasium:envs/mujoco/assets/{name}.xml" for name in SHIPPED]
SUITE = [f"dm_control:suite/{x}.xml" for x in ("cheetah", "dog", "finger", "humanoid_CMU", "quadruped", "stacker")]


@pytest.mark.parametrize("name", [*robot_states.ASSETS, *SHIPPED, *SUITE], ids=lambda x: Path(x).stem)
def test_robots_touch_only_in_listed_pairs(name):
    model = robot(name)
    data, rng, listed, seen = mujoco.MjData(model), np.random.default_rng(0), of_pairs(model), 0
    for _ in range(100):
        velocity = rng.normal(size=model.nv) * rng.choice([0.3, 1.0, 3.0])
        data.qpos[:] = model.qpos0
        mujoco.mj_integratePos(model, data.qpos, velocity, 1.0)
        mujoco.mj_fwdPosition(model, data)
        assert of_contacts(data) <= listed
        seen += data.ncon
    assert seen > 0 or not listed or name == "cartpole"
