"""Other people's robots load as they are; what a file may read is bounded; every mistake is one line.

The models are those that pybullet, gymnasium and mjlab ship. They are found, never imported; where a package is not
installed (pybullet has wheels for few platforms) its cases are skipped.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from isaacrl import sim
from isaacrl.config import compose, dump, load_stored
from isaacrl.errors import UserError
from isaacrl.schema import SimConfig
from isaacrl.sim.assets import compile_spec, load, lowest_point

SERVOS = {"all": {"joints": [".*"], "law": "position", "kp": 20.0, "kd": 0.5}}
# package, file in it, joints, whether the base is free, actuators
ROBOTS = [
    ("pybullet_data", "laikago/laikago.urdf", 12, True),
    ("pybullet_data", "laikago/laikago_toes_zup.urdf", 12, True),
    ("pybullet_data", "a1/a1.urdf", 12, True),
    ("pybullet_data", "aliengo/aliengo.urdf", 12, True),
    ("pybullet_data", "mini_cheetah/mini_cheetah.urdf", 12, True),
    ("pybullet_data", "quadruped/minitaur.urdf", 16, True),
    ("pybullet_data", "humanoid/humanoid.urdf", 4, True),
    ("pybullet_data", "r2d2.urdf", 8, True),
    ("pybullet_data", "racecar/racecar.urdf", 6, True),
    ("pybullet_data", "franka_panda/panda.urdf", 9, False),
    ("pybullet_data", "kuka_iiwa/model.urdf", 7, False),
    ("pybullet_data", "xarm/xarm6_robot.urdf", 6, False),
    ("pybullet_data", "cartpole.urdf", 2, False),
    ("gymnasium", "envs/mujoco/assets/ant.xml", 8, True),
    ("gymnasium", "envs/mujoco/assets/half_cheetah.xml", 9, False),
    ("gymnasium", "envs/mujoco/assets/hopper.xml", 6, False),
    ("gymnasium", "envs/mujoco/assets/humanoid.xml", 17, True),
    ("gymnasium", "envs/mujoco/assets/humanoidstandup.xml", 17, True),
    ("gymnasium", "envs/mujoco/assets/inverted_double_pendulum.xml", 3, False),
    ("gymnasium", "envs/mujoco/assets/inverted_pendulum.xml", 2, False),
    ("gymnasium", "envs/mujoco/assets/point.xml", 3, False),
    ("gymnasium", "envs/mujoco/assets/pusher.xml", 11, False),
    ("gymnasium", "envs/mujoco/assets/pusher_v5.xml", 11, False),
    ("gymnasium", "envs/mujoco/assets/reacher.xml", 4, False),
    ("gymnasium", "envs/mujoco/assets/swimmer.xml", 5, False),
    ("gymnasium", "envs/mujoco/assets/walker2d.xml", 9, False),
    ("gymnasium", "envs/mujoco/assets/walker2d_v5.xml", 9, False),
    ("mjlab", "asset_zoo/robots/unitree_go1/xmls/go1.xml", 12, True),
    ("mjlab", "asset_zoo/robots/unitree_g1/xmls/g1.xml", 29, True),
    ("mjlab", "asset_zoo/robots/i2rt_yam/xmls/yam.xml", 8, False),
]


def shipped(package: str, name: str = "") -> Path:
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Path(found.submodule_search_locations[0]) / name


def scene(path, actuators=SERVOS, pose=None, dt=0.002, **keys):
    asset = {"path": str(path), "actuators": actuators, "default_pose": pose or {}} | keys
    return sim.make_scene(OmegaConf.create(asset), OmegaConf.create({"physics_dt": dt}))


@pytest.mark.parametrize(("package", "name", "joints", "floating"), ROBOTS, ids=lambda x: Path(str(x)).stem)
def test_shipped_models_load_without_edits_and_move(package, name, joints, floating):
    path = shipped(package, name)
    soft = {"all": SERVOS["all"] | {"kp": 5.0, "kd": 0.05}} if package == "mjlab" else SERVOS
    made = scene(path, soft)
    model = made.model
    assert model.nu == joints and bool((model.jnt_type == 0).any()) == floating
    engine = sim.build(model, 1, "cpu", SimConfig(engine="mujoco", num_threads=1), made.actuation)
    start = engine.field("qpos").clone()
    engine.step(50, torch.full((1, model.nu), 0.05, dtype=torch.float64))
    assert torch.isfinite(engine.field("qpos")).all() and not engine.nonfinite.any()
    moved = (engine.field("qpos") - start).abs().max()
    assert 1e-5 < moved < 3.0  # neither stuck nor thrown away by overlapping geometry


def test_every_model_of_gymnasium_is_covered():
    """A model that a new version adds must not be forgotten."""
    names = {p.name for p in shipped("gymnasium", "envs/mujoco/assets").glob("*.xml")}
    assert names == {Path(name).name for package, name, *_ in ROBOTS if package == "gymnasium"}


# --- URDF -------------------------------------------------------------------------------------------------------------

BOX = '<inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial>'
SOLID = BOX + '<collision><geometry><box size="0.2 0.2 0.2"/></geometry></collision>'
TETRAHEDRON = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"


def joint(name, parent, child, kind="revolute", z=-0.5, limit='lower="-1" upper="1" effort="7" velocity="3"'):
    return (
        f'<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/><origin xyz="0 0 {z}"/>'
        f'<axis xyz="0 1 0"/><limit {limit}/></joint>'
    )


def link(name, content=SOLID):
    return f'<link name="{name}">{content}</link>'


def mesh(filename, kind="collision"):
    return f'{BOX}<{kind}><geometry><mesh filename="{filename}"/></geometry></{kind}>'


def urdf(path: Path, *parts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<robot name="r">{"".join(parts)}</robot>')
    return path


def arm(path: Path, content=SOLID, **keys) -> Path:
    return urdf(path, link("base"), link("tip", content), joint("j", "base", "tip", **keys))


def test_a_floating_base_stands_on_the_ground_in_its_default_pose(tmp_path):
    legs = link("base"), link("l", SOLID), link("r", SOLID), joint("jl", "base", "l"), joint("jr", "base", "r")
    path = urdf(tmp_path / "biped.urdf", *legs)
    for angle in (0.0, 0.8):
        made = scene(path, pose={"j.": angle})
        data = mujoco.MjData(made.model)
        data.qpos[7:] = angle
        mujoco.mj_kinematics(made.model, data)
        assert lowest_point(made.model, data) == pytest.approx(0.0, abs=1e-9)
    # By hand: unturned, the boxes' centres are 0.5 m below the base, their faces 0.1 m below that.
    assert scene(path).model.qpos0[2] == pytest.approx(0.6)


def test_lowest_points_of_shapes_are_those_of_their_surfaces(tmp_path):
    """Against MuJoCo's own distance between each shape and a plane."""
    shapes = (
        'box" size=".1 .2 .3',
        'capsule" size=".1 .3',
        'cylinder" size=".2 .1',
        'ellipsoid" size=".1 .2 .3',
        'sphere" size=".2',
    )
    (tmp_path / "t.obj").write_text(TETRAHEDRON)
    for shape in (*shapes, 'mesh" mesh="t'):
        model = mujoco.MjModel.from_xml_string(
            '<mujoco><asset><mesh name="t" file="t.obj"/></asset><worldbody><geom type="plane" size="9 9 1"/>'
            f'<body pos="0 0 2" euler="20 30 40"><geom type="{shape}"/></body></worldbody></mujoco>',
            {"t.obj": TETRAHEDRON.encode()},
        )
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        expected = mujoco.mj_geomDistance(model, data, 0, 1, 10.0, None)
        assert lowest_point(model, data) == pytest.approx(expected, abs=1e-5), shape


def test_arms_are_fixed_and_the_choice_is_the_users(tmp_path):
    path = arm(tmp_path / "arm.urdf")
    assert scene(path).model.nq == 1  # one moving joint at the base
    assert scene(path, floating=True).model.nq == 8
    two = urdf(
        tmp_path / "two.urdf", link("base"), link("a"), link("b"), joint("ja", "base", "a"), joint("jb", "base", "b")
    )
    assert scene(two).model.nq == 9 and scene(two, floating=False).model.nq == 2
    world = urdf(
        tmp_path / "world.urdf",
        link("world", ""),
        link("a"),
        link("b"),
        joint("ja", "world", "a"),
        joint("jb", "world", "b"),
    )
    assert scene(world).model.nq == 2
    # A base that is a bare frame, as ROS has it, counts with what is fixed to it.
    dummy = urdf(
        tmp_path / "dummy.urdf", link("base", ""), link("trunk"), link("a"), link("b"),
        joint("f", "base", "trunk", "fixed"), joint("ja", "trunk", "a"), joint("jb", "trunk", "b"),
    )  # fmt: skip
    assert scene(dummy).model.nq == 9


def test_floating_of_an_mjcf_can_be_changed(tmp_path):
    path = tmp_path / "m.xml"
    body = '<body name="b">{}<geom size=".1"/><body pos="1 0 0"><joint name="j"/><geom size=".1"/></body></body>'
    for free, other in (("", True), ("<freejoint/>", False)):
        path.write_text(f"<mujoco><worldbody>{body.format(free)}</worldbody></mujoco>")
        assert scene(path).model.nq == (1 if other else 8) and scene(path, floating=other).model.nq == (
            8 if other else 1
        )


def test_effort_limits_come_from_the_urdf_unless_they_are_given(tmp_path):
    path = arm(tmp_path / "arm.urdf")

    def limits(law, **more):
        made = scene(path, {"a": {"law": law} | more})
        model = made.model
        assert not model.jnt_actfrclimited.any()  # one limit, in one place
        return model.actuator_forcerange[0, 1], made.actuation.effort_limit[0]

    assert limits("position", kp=1.0) == limits("effort") == limits("pd", kp=1.0) == (7.0, 7.0)
    assert limits("position", kp=1.0, effort_limit=9.0) == (9.0, 9.0)  # above the URDF's
    unlimited = arm(tmp_path / "free.urdf", kind="continuous", limit='effort="0" velocity="0"')
    assert scene(unlimited).actuation.effort_limit[0] == np.inf


def test_visual_geometry_is_drawn_and_collision_geometry_collides(tmp_path):
    look = '<visual><geometry><sphere radius="0.3"/></geometry></visual>'
    model = scene(arm(tmp_path / "arm.urdf", SOLID + look)).visual_model
    tip = [g for g in range(model.ngeom) if model.geom_bodyid[g] == model.body("tip").id]
    sphere, box = sorted(tip, key=lambda g: model.geom_type[g])
    assert not model.geom_contype[sphere] and model.geom_contype[box]
    assert model.geom_group[sphere] <= 2 < model.geom_group[box]  # MuJoCo draws groups 0 to 2
    base = [g for g in range(model.ngeom) if model.geom_bodyid[g] == model.body("base").id]
    assert model.geom_group[base[0]] <= 2  # a link without visual geometry is seen by the other
    assert model.body("tip").mass == pytest.approx(1.0)


def test_a_mass_without_inertia_takes_that_of_the_geometry(tmp_path):
    heavy = SOLID.replace('value="1"', 'value="3"').replace('="1"', '="0"')
    model = scene(arm(tmp_path / "arm.urdf", heavy)).model
    np.testing.assert_allclose(model.body("tip").inertia, 3.0 / 12.0 * (0.2**2 + 0.2**2), rtol=1e-6)
    assert model.body("tip").mass == pytest.approx(3.0)


def test_links_that_overlap_do_not_push_each_other_apart(tmp_path):
    parts = [link("a"), link("b"), link("c"), joint("ab", "a", "b", z=-0.05), joint("bc", "b", "c", z=-0.05)]
    made = scene(urdf(tmp_path / "chain.urdf", *parts), floating=True)
    assert made.model.nexclude == 1  # a and c; MuJoCo itself leaves out parents
    data = mujoco.MjData(made.model)
    mujoco.mj_forward(made.model, data)
    assert not [c for c in data.contact if min(made.model.geom_bodyid[c.geom]) > 0]


def test_meshes_are_found_by_package_and_relative_names(tmp_path, monkeypatch):
    """Two meshes of one file name stay two."""
    package = tmp_path / "ws" / "my_robot"
    for folder, size in (("meshes", 1), ("other", 2)):
        (package / folder).mkdir(parents=True)
        (package / folder / "part.obj").write_text(TETRAHEDRON.replace("1 0 0", f"{size} 0 0"))
    (package / "package.xml").write_text("<package/>")
    content = mesh("package://my_robot/meshes/part.obj") + mesh("package://my_robot/other/part.obj").replace(BOX, "")
    model = scene(arm(package / "urdf" / "r.urdf", content)).model
    assert model.nmesh == 2
    corners = [model.mesh_vert[a : a + 4] for a in model.mesh_vertadr]
    longest = sorted(max(np.linalg.norm(p - q) for p in c for q in c) for c in corners)
    np.testing.assert_allclose(longest, [2**0.5, 5**0.5], rtol=1e-5)
    # Beside the package, by ROS_PACKAGE_PATH, and relative to the URDF.
    assert (
        scene(arm(tmp_path / "ws" / "second" / "r.urdf", mesh("package://my_robot/meshes/part.obj"))).model.nmesh == 1
    )
    elsewhere = arm(tmp_path / "far" / "deep" / "r.urdf", mesh("package://my_robot/meshes/part.obj"))
    with pytest.raises(UserError, match="collision mesh of link 'tip'.*no file"):
        scene(elsewhere)
    monkeypatch.setenv("ROS_PACKAGE_PATH", str(tmp_path / "ws"))
    assert scene(elsewhere).model.nmesh == 1
    assert scene(arm(package / "r.urdf", mesh("meshes/part.obj"))).model.nmesh == 1
    assert scene(arm(package / "r2.urdf", mesh(f"file://{package}/meshes/part.obj"))).model.nmesh == 1


def test_collada_is_dropped_where_it_is_only_drawn(tmp_path):
    (tmp_path / "a.dae").write_text("<COLLADA/>")
    assert scene(arm(tmp_path / "r.urdf", SOLID + mesh("a.dae", "visual").replace(BOX, ""))).model.nmesh == 0
    with pytest.raises(
        UserError, match="collision mesh of link 'tip'.*MuJoCo cannot read 'a.dae'; convert it to .* .obj"
    ):
        scene(arm(tmp_path / "r.urdf", mesh("a.dae")))


# --- trust ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    """Files that a model in tmp_path/model has no business with."""
    (tmp_path / "model").mkdir()
    (tmp_path / "secret.obj").write_text(TETRAHEDRON)
    (tmp_path / "secret.xml").write_text(
        '<mujoco><worldbody><body><joint name="j"/><geom size=".1"/></body></worldbody></mujoco>'
    )
    (tmp_path / "secret.png").write_bytes(b"\x89PNG")
    return tmp_path


MJCF = '<mujoco>{}<worldbody><body><joint name="j"/><geom size=".1"/></body></worldbody></mujoco>'
ESCAPES = {
    "mesh": MJCF.format('<asset><mesh file="../secret.obj"/></asset>'),
    "absolute": MJCF.format('<asset><mesh file="{root}/secret.obj"/></asset>'),
    "meshdir": MJCF.format('<compiler meshdir=".."/><asset><mesh file="secret.obj"/></asset>'),
    "texture": MJCF.format('<asset><texture type="cube" fileright="../secret.png"/></asset>'),
    "hfield": MJCF.format('<asset><hfield name="h" size="1 1 1 1" file="../secret.png"/></asset>'),
    "include": '<mujoco><include file="../secret.xml"/></mujoco>',
    "nested include": '<mujoco><include file="inner.xml"/></mujoco>',
    "model": MJCF.format('<asset><model name="m" file="../secret.xml"/></asset>'),
    "link": MJCF.format('<asset><mesh file="link.obj"/></asset>'),
    "flex": '<mujoco><worldbody><flexcomp name="f" type="mesh" file="../secret.obj"/></worldbody></mujoco>',
    "urdf": f'<robot name="r"><link name="a">{mesh("../secret.obj")}</link></robot>',
    "urdf link": f'<robot name="r"><link name="a">{mesh("link.obj")}</link></robot>',
    "urdf package": f'<robot name="r"><link name="a">{mesh("package://ROOT/secret.obj")}</link></robot>',
    "urdf package up": f'<robot name="r"><link name="a">{mesh("package://../secret.obj")}</link></robot>',
}  # fmt: skip


@pytest.mark.parametrize("case", ESCAPES)
def test_files_outside_the_models_folder_are_refused_unless_trusted(case, outside):
    folder = outside / "model"
    (folder / "inner.xml").write_text('<mujocoinclude><include file="../secret.xml"/></mujocoinclude>')
    os.symlink(outside / "secret.obj", folder / "link.obj")
    path = folder / "m.xml"
    path.write_text(ESCAPES[case].replace("{root}", str(outside)).replace("ROOT", outside.name))
    with pytest.raises(UserError, match="outside the model's folder.*asset.trust=true") as e:
        load(str(path))
    assert "secret." in str(e.value) and "\n" not in str(e.value)
    try:
        load(str(path), trust=True)
    except UserError as e:  # MuJoCo's own opinion of the file
        assert "outside" not in str(e)


def test_a_models_own_folder_needs_no_trust(tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "a.obj").write_text(TETRAHEDRON)
    (tmp_path / "part.xml").write_text('<mujocoinclude><asset><mesh name="a" file="a.obj"/></asset></mujocoinclude>')
    path = tmp_path / "m.xml"
    path.write_text(
        MJCF.format('<compiler meshdir="assets"/><include file="part.xml"/>').replace(
            'size=".1"', 'type="mesh" mesh="a"'
        )
    )
    assert scene(path).model.nmesh == 1


def test_a_stored_run_cannot_grant_itself_trust(tmp_path):
    path = tmp_path / "config.yaml"
    text = dump(compose(["task=cartpole"]))
    assert "  trust: false\n" in text
    path.write_text(text.replace("  trust: false\n", "  trust: true\n"))
    with pytest.raises(UserError, match="asset.trust: .*add trust=true if you trust it"):
        load_stored(path)
    assert load_stored(path, trust=True).asset.trust


BOMB = '<!DOCTYPE m [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><mujoco model="&b;"/>'


@pytest.mark.parametrize(
    "text", [BOMB, BOMB.encode("utf-16"), BOMB.replace("mujoco", "robot")], ids=["utf-8", "utf-16", "urdf"]
)
def test_document_types_are_refused(text, tmp_path):
    path = tmp_path / "m.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match="declares a document type"):
        load(str(path))


# --- mistakes ---------------------------------------------------------------------------------------------------------

FRAME = BOX.replace('="1"', '="0"')
MISTAKES = {
    r"line 2, column": "<mujoco>\n<worldbody></mujoco>",
    r"begins with <sdf>.*<mujoco>.*<robot>": "<sdf/>",
    r"mesh 'hip' of .*m.xml.*no file 'hip.stl'.*add the file": MJCF.format(
        '<asset><mesh name="hip" file="hip.stl"/></asset>'
    ),
    r"include of .*m.xml.*no file 'gone.xml'": '<mujoco><include file="gone.xml"/></mujoco>',
    r"has no hinge or slide joints": "<mujoco><worldbody><body><geom size='.1'/></body></worldbody></mujoco>",
    r"has 2 root links \(a, b\)": f"<robot name='r'>{link('a')}{link('b')}</robot>",
    r"is a xacro template.*xacro m.xml > robot.urdf": '<robot xmlns:xacro="http://www.ros.org/wiki/xacro">'
    '<xacro:macro name="a"/></robot>',
    r"mesh of link 'a' .*no file 'gone.stl'": f'<robot name="r"><link name="a">{mesh("gone.stl")}</link></robot>',
    r"name 'tip'.*give that body an <inertial>": "<robot name='r'>"
    + link("base")
    + link("tip", FRAME)
    + joint("j", "base", "tip")
    + "</robot>",
    r"has an <include>": "<robot name='r'><include file='x'/></robot>",
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_one_line_that_names_the_file(message, tmp_path):
    path = tmp_path / "m.xml"
    path.write_text(MISTAKES[message])
    with pytest.raises(UserError, match=message) as e:
        scene(path)
    assert "\n" not in str(e.value) and "asset.path" in str(e.value) and "m.xml" in str(e.value)


def test_a_model_without_actuators_gets_a_ready_made_suggestion(tmp_path):
    path = arm(tmp_path / "arm.urdf")
    with pytest.raises(
        UserError, match=r"joints: j; .*asset.actuators.all=\{joints: \[\"\.\*\"\], law: position, kp: 50"
    ) as e:
        scene(path, {})
    suggestion = str(e.value).split("'asset.actuators.")[1].split("'")[0]
    assert scene(path, OmegaConf.from_dotlist([suggestion])).model.nu == 1  # it works as it stands


def test_the_default_base_is_the_free_body(tmp_path):
    from isaacrl.state import Robot

    path = tmp_path / "m.xml"
    path.write_text(
        '<mujoco><worldbody><body name="table"><geom size=".1"/></body><body name="trunk" pos="0 0 3"><freejoint/>'
        '<geom size=".1"/><body name="leg" pos="1 0 0"><joint name="j"/><geom size=".1"/></body></body>'
        "</worldbody></mujoco>"
    )
    model = compile_spec(load(str(path)).spec, path)
    robot = Robot(model, None, {}, "cpu")
    assert robot.body_names[robot.base] == "trunk" and robot.floating
    assert Robot(model, "le.", {}, "cpu").base == model.body("leg").id
    with pytest.raises(UserError, match="asset.base: 'foot' matches nothing; there are: world, table, trunk, leg"):
        Robot(model, "foot", {}, "cpu")
