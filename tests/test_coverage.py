"""What engine `warp` says that it does not cover of a model, one small model for each."""

import mujoco
import numpy as np
import pytest
import robot_states

from isaacrl.config import compose
from isaacrl.env import Env
from isaacrl.sim import drives, make_scene
from isaacrl.sim.fused.coverage import FIELDS, explain, uncovered
from isaacrl.terms.randomization import randomized_fields


def compiled(
    option="", joint='<joint name="j" axis="0 1 0"/>', geom="", world="", end="", asset="", shape='type="sphere"'
):
    """A ball on a joint over a plane, and what is added to it."""
    body = f'<body name="b" pos="0 0 .1">{joint}<geom name="g" {shape} size=".1 .1 .1" {geom}/><site name="s"/></body>'
    return mujoco.MjModel.from_xml_string(
        f'<mujoco><asset>{asset}</asset><option>{option}</option><worldbody><geom type="plane" size="1 1 1"/>{body}'
        f"{world}</worldbody>{end}</mujoco>"
    )


def joint(text, kind="hinge"):
    return {"joint": f'<joint name="j" type="{kind}" {text}/>'}


def actuator(text, element="general", extra=""):
    return {"end": f'{extra}<actuator><{element} name="a" {text}/></actuator>'}


def sensor(text, extra=""):
    return {"end": f"{extra}<sensor>{text}</sensor>"}


TETRAHEDRON = '<mesh name="m" vertex="0 0 0 .1 0 0 0 .1 0 0 0 .1"/>'
TENDON = '<tendon><fixed name="t"><joint joint="j" coef="1"/></fixed></tendon>'
FREE = {"joint": '<freejoint name="j"/>'}
OTHER = '<body pos="0 0 5"><joint/><geom {} size=".1 .1 .1"/></body>'
CYLINDER = 'type="cylinder" contype="0"'
UNSEEN = '<geom size=".1" contype="0" conaffinity="0"/>'
MUSCLE = 'joint="j" lengthrange="0 1"'
FIELD = {
    "asset": '<hfield name="f" nrow="2" ncol="2" size="1 1 1 1" elevation="0 1 0 0"/>',
    "world": '<geom name="h" type="hfield" hfield="f"/>',
}
REASONS = {
    "height field 'f' with more than 32768 points along an edge": FIELD
    | {"asset": '<hfield name="f" nrow="2" ncol="32769" size="1 1 1 1"/>'},
    "nv 65 (at most 64)": {"world": f"<body><joint/>{UNSEEN}</body>" * 64},
    "nv 0 (at least 1)": {"joint": ""},
    "1 tendon": {"end": TENDON},
    "1 equality constraint": {"end": '<equality><joint joint1="j" active="false"/></equality>'},
    "integrator RK4": {"edit": {"integrator": 1}},
    "integrator DISCRETE": {"edit": {"integrator": 4}},
    "solver PGS": {"edit": {"solver": 0}},
    "noslip iterations": {"edit": {"noslip_iterations": 3}},
    "fluid forces": {"edit": {"viscosity": 0.1}},
    "adhesive contacts": {"geom": 'adhesion="1"'},
    "surface velocities of geoms": {"geom": 'surfacevel="1 0 0 0 0 0"'},
    "flag actuation=disable": {"option": '<flag actuation="disable"/>'},
    "flag override=enable": {"option": '<flag override="enable"/>'},
    "flag energy=enable": {"option": '<flag energy="enable"/>'},
    "flag invdiscrete=enable": {"option": '<flag invdiscrete="enable"/>'},
    "flag sleep=enable": {"option": '<flag sleep="enable"/>'},
    "flag diagexact=enable": {"option": '<flag diagexact="enable"/>'},
    "flag speculative=enable": {"option": '<flag speculative="enable"/>'},
    "gravity compensation with flags spring=disable and damper=disable": {
        "option": '<flag spring="disable" damper="disable"/>',
        "world": f'<body gravcomp="1"><joint/>{UNSEEN}</body>',
    },
    "ball joint 'j' with a spring": joint('stiffness="1"', "ball"),
    "free joint 'j' with a spring": joint('stiffness="1"', "free"),
    "joint 'j' with a spring that yields": joint('stiffness="1" springyield="1"'),
    "joint 'j' with a nonlinear spring": joint('stiffness="1 2 0"'),
    "joint 'j' with nonlinear damping": joint('damping="1 2 0"'),
    "joint 'j' with gravity compensation by its actuators": {
        "joint": "",
        "world": f'<body gravcomp="1"><joint name="j" actuatorgravcomp="true"/>{UNSEEN}</body>',
    },
    "joint 'j' whose range is narrower than twice its margin": joint('range="-1 1" limited="true" margin="60"'),
    "actuator 'a' with transmission tendon": actuator('tendon="t"', extra=TENDON),
    "actuator 'a' with transmission site": actuator('site="s"'),
    "actuator 'a' with transmission body": actuator('body="b" ctrlrange="0 1"', "adhesion"),
    "actuator 'a' on a ball joint": actuator('joint="j"') | joint("", "ball"),
    "actuator 'a' on a free joint": actuator('joint="j"') | joint("", "free"),
    "actuator 'a' with integrator dynamics": actuator('joint="j" dyntype="integrator"'),
    "actuator 'a' with muscle dynamics": actuator(MUSCLE, "muscle"),
    "actuator 'a' with muscle gain": actuator(
        f'{MUSCLE} gaintype="muscle" gainprm=".75 1.05 -1 200 .5 1.6 1.5 1.3 1.2"'
    ),
    "actuator 'a' with muscle bias": actuator(
        f'{MUSCLE} biastype="muscle" biasprm=".75 1.05 -1 200 .5 1.6 1.5 1.3 1.2"'
    ),
    "actuator 'a' with damping": actuator('joint="j" damping="1"'),
    "actuator 'a' with armature": actuator('joint="j" armature="1"'),
    "actuator 'a' with a history": actuator('joint="j" nsample="5" delay="0.005"'),
    "actuator 'a' in a disabled group": actuator('joint="j" group="2"') | {"edit": {"disableactuator": 4}},
    "colliding mesh geom 'g'": {"shape": 'type="mesh" mesh="m"', "asset": TETRAHEDRON},
    "1 geom pair of hfield and cylinder": FIELD | {"shape": 'type="cylinder"'},
    "1 geom pair of hfield and box with a margin": FIELD | {"shape": 'type="box" margin=".01"'},
    "1 geom pair of sphere and ellipsoid": {"world": OTHER.format('type="ellipsoid"')},
    "2 geom pairs of capsule and cylinder": {"shape": 'type="capsule"', "world": OTHER.format(CYLINDER) * 2},
    "1 contact pair of geoms that nothing moves": {
        "world": '<geom name="w" size=".1"/><geom name="v" size=".1"/>',
        "end": '<contact><pair geom1="w" geom2="v"/></contact>',
    },
    "randomized field 'geom_size'": {"fields": ("geom_size", "body_mass")},
    "randomized field 'jnt_stiffness' with flag spring=disable": {
        "option": '<flag spring="disable"/>',
        "fields": ("jnt_stiffness", "dof_damping"),
    },
    "flag sensor=disable": sensor("<clock/>") | {"option": '<flag sensor="disable"/>'},
    "2 sensors of type force": sensor('<force site="s"/><force site="s"/>'),
    "sensor 'x' of type rangefinder": sensor('<rangefinder name="x" site="s"/>'),
    "sensor 'x' of type framepos of a camera": sensor('<framepos name="x" objtype="camera" objname="c"/>')
    | {"world": '<camera name="c"/>'},
    "sensor 0 with a cutoff": sensor('<jointvel joint="j" cutoff="1"/>'),
    "sensor 0 with a history or an interval": sensor('<jointvel joint="j" nsample="3" delay="0.005"/>'),
    "sensor 0 of type framelinvel with a reference frame": sensor(
        '<framelinvel objtype="site" objname="s" reftype="body" refname="b"/>'
    ),
    "sensor 0 of type contact with data other than found and force": sensor('<contact geom1="g" reduce="netforce"/>'),
    "sensor 0 of type contact of a geom with another reduction": sensor('<contact geom1="g" data="found force"/>'),
    "sensor 0 of type contact of a xbody with another reduction": sensor(
        '<contact subtree1="b" data="found force" reduce="netforce"/>'
    ),
    "sensor 0 of type contact against a body": sensor(
        '<contact geom1="g" body2="b" data="found force" reduce="netforce"/>'
    ),
    "sensor 0 of type contact of a site": sensor('<contact site="s" data="found force" reduce="netforce"/>'),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_is_not_covered_is_named(reason):
    """Each of these models has one thing, and what it cannot do without."""
    parts = dict(REASONS[reason])
    edit, fields = parts.pop("edit", {}), parts.pop("fields", ())
    model = compiled(**parts)
    for name, value in edit.items():
        setattr(model.opt, name, value)
    found = uncovered(model, fields)
    if "transmission tendon" in reason:
        found.remove("1 tendon")
    assert found == [reason]
    if "sensor " in reason or "sensors " in reason:
        assert not uncovered(model, fields, sensors=False)


COVERED = {
    "joints, springs and limits": {
        "joint": '<joint name="j" axis="0 1 0" stiffness="2" damping=".1" armature=".01" frictionloss=".1" '
        'range="-60 60" limited="true" margin="1" actuatorfrcrange="-1 1"/>',
        "world": '<body pos="0 0 9"><joint type="ball" range="0 60" limited="true" damping=".1"/>'
        f'<joint type="slide" stiffness="3"/>{UNSEEN}</body><body pos="0 3 9"><freejoint/>{UNSEEN}</body>'
        f'<body mocap="true">{UNSEEN}</body><body gravcomp="1"><joint/>{UNSEEN}</body>',
    },
    "actuators": {
        "end": '<actuator><motor joint="j" gear="3" ctrlrange="-1 1"/><position joint="j" kp="3" kv=".1"/>'
        '<velocity jointinparent="j" kv="2" forcerange="-1 1"/><damper joint="j" kv="1" ctrlrange="0 1"/></actuator>',
    },
    "shapes, pairs and exclusions": {
        "world": f"{OTHER.format(CYLINDER)}{OTHER.format(CYLINDER.replace('cylinder', 'box'))}".replace(
            "<geom", "<geom gap='.1'"
        )
        + '<body name="c" pos="0 0 2"><joint/><geom name="k" type="capsule" size=".1 .1" condim="6" margin=".01" '
        'contype="2"/></body>',
        "shape": 'type="sphere" contype="2"',
        "end": '<contact><pair geom1="g" geom2="k" condim="4"/><exclude body1="b" body2="world"/></contact>',
    },
    "boxes": {
        "shape": 'type="box"',
        "world": OTHER.format('type="box"') + OTHER.format('type="capsule"') + OTHER.format('type="sphere"'),
    },
    "height fields": {
        "asset": FIELD["asset"],
        "world": FIELD["world"].replace("/>", ' margin=".01"/>')
        + FIELD["world"].replace('"h"', '"k"')
        + '<body pos="0 0 2"><joint/><geom type="capsule" size=".1 .1"/></body>',
    },
    "what only pictures show": {
        "asset": TETRAHEDRON,
        "geom": "",
        "world": '<geom type="mesh" mesh="m" contype="0" conaffinity="0"/><camera/><light/>',
    },
    "what nothing touches": {"shape": 'type="mesh" mesh="m" contype="4" conaffinity="4"', "asset": TETRAHEDRON},
    "wind in a vacuum": {"option": "", "edit": {"wind": (1.0, 2.0, 3.0)}},
    "flags": {
        "option": '<flag limit="disable" frictionloss="disable" gravity="disable" clampctrl="disable" spring="disable" '
        'refsafe="disable" eulerdamp="disable" filterparent="disable" equality="disable" warmstart="disable" '
        'midphase="disable" autoreset="disable" nativeccd="disable" island="disable" multiccd="disable" '
        'fwdinv="enable"/>',
        **joint('range="-1 1" limited="true" margin="60"'),
    },
    "contacts of meshes switched off": {
        "option": '<flag contact="disable"/>',
        "shape": 'type="mesh" mesh="m"',
        "asset": TETRAHEDRON,
    },
    "solvers": {"option": "", "edit": {"solver": 1, "integrator": 3, "cone": 1, "impratio": 10.0}},
    "sensors": {
        **sensor(
            '<touch site="s"/><gyro site="s"/><accelerometer site="s"/><velocimeter site="s"/><jointpos joint="j"/>'
            '<jointvel joint="j"/><framepos objtype="geom" objname="g"/><framequat objtype="xbody" objname="b"/>'
            '<framexaxis objtype="body" objname="b" reftype="site" refname="s"/>'
            '<frameyaxis objtype="site" objname="s"/>'
            '<framezaxis objtype="site" objname="s"/><framelinvel objtype="body" objname="b"/><clock/>'
            '<frameangvel objtype="site" objname="s"/><actuatorpos actuator="a"/><actuatorvel actuator="a"/>'
            '<actuatorfrc actuator="a"/><jointactuatorfrc joint="j"/><subtreecom body="b"/><ballquat joint="k"/>'
            '<ballangvel joint="k"/><contact body1="b" data="found force" reduce="netforce"/>'
            '<contact geom1="g" body2="world" data="found force" reduce="netforce"/>'
            '<contact subtree1="b" subtree2="b" data="found force" reduce="maxforce"/>',
            extra='<actuator><motor name="a" joint="j"/></actuator>',
        ),
        "world": f'<body><joint name="k" type="ball"/>{UNSEEN}</body>',
    },
}


@pytest.mark.parametrize("what", COVERED)
def test_what_is_covered(what):
    parts = dict(COVERED[what])
    edit = parts.pop("edit", {})
    model = compiled(**parts)
    for name, value in edit.items():
        setattr(model.opt, name, value)
    assert uncovered(model, FIELDS if what != "flags" else ()) == []


def test_wind_without_a_medium_does_nothing():
    model, forces = compiled(), []
    for wind in (0.0, 30.0):
        model.opt.wind = wind
        data = mujoco.MjData(model)
        data.qvel[:] = 1.0
        mujoco.mj_forward(model, data)
        forces.append(data.qacc.copy())
    np.testing.assert_array_equal(*forces)


def test_flexes_and_plugins_are_counted():
    flex = '<flexcomp name="f" type="grid" count="3 1 1" spacing=".1 .1 .1" dim="1" mass="1"><contact contype="0"'
    assert "1 flex" in uncovered(compiled(world=f'{flex} conaffinity="0"/></flexcomp>'))
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><extension><plugin plugin="mujoco.pid"><instance name="i"><config key="kp" value="1"/></instance>'
        '</plugin></extension><worldbody><body><joint name="j"/><geom size=".1"/></body></worldbody>'
        '<actuator><plugin name="a" joint="j" plugin="mujoco.pid" instance="i"/></actuator></mujoco>'
    )
    assert uncovered(model) == ["1 plugin", "actuator 'a' of a plugin"]


def test_callbacks_are_named():
    model = compiled()
    mujoco.set_mjcb_control(lambda model, data: None)
    try:
        assert uncovered(model) == ["callback mjcb_control"]
    finally:
        mujoco.set_mjcb_control(None)
    assert uncovered(model) == []


def test_one_spring_of_two_is_named_and_both_are_counted():
    two = {"world": f'<body><joint type="ball" stiffness="1"/>{UNSEEN}</body>'}
    assert uncovered(compiled(**two)) == ["ball joint 1 with a spring"]
    assert uncovered(compiled(**two, **joint('stiffness="1"', "ball"))) == ["2 ball joints with a spring"]


@pytest.mark.parametrize("name", robot_states.ASSETS)
def test_bundled_robots_are_covered(name):
    assert uncovered(robot_states.scene(name).model, FIELDS) == []


@pytest.mark.parametrize("name", ["anymal_c", "g1", "go2", "h1", "humanoid"])
def test_robots_on_terrain_are_covered(name):
    """All with a floating base, but for the ant, whose task is flat."""
    cfg = compose(["task=go2_rough", f"asset={name}", "num_envs=1", "device=cpu"])
    model = make_scene(cfg.asset, cfg.task).model
    assert model.nhfield == 1 and uncovered(model, FIELDS) == []


@pytest.mark.parametrize("name", sorted(p.stem for p in (robot_states.ROOT / "conf" / "task").glob("*.yaml")))
def test_bundled_tasks_are_covered(name):
    """With their sensors, an IMU, every form of contact sensor, and the hardest randomization."""
    extra = {"imu": {}, "below": {"fn": "contact", "bodies": [".*"], "against": "self", "subtree": True}}
    cfg = compose([f"task={name}", "num_envs=1", "device=cpu", "randomization=hard", "sim.engine=mujoco"])
    cfg.task.sensors = {**(cfg.task.get("sensors") or {}), **extra}
    env = Env(cfg)
    fields = randomized_fields(cfg.task.events, cfg.randomization)
    assert env.engine.model.nsensor > 3 and fields
    assert uncovered(env.engine.model, fields) == []


def test_fields_of_the_drives_are_covered():
    assert set(drives.FIELDS) < set(FIELDS)


def test_explanations_name_a_few():
    assert explain(["2 tendons"]) == "engine warp does not cover 2 tendons"
    assert explain(["2 tendons", "fluid forces"]) == "engine warp does not cover 2 tendons and fluid forces"
    assert explain(list("abcd")) == "engine warp does not cover a, b, c and d"
    assert explain(list("abcdef")) == "engine warp does not cover a, b, c and 3 more"
    assert explain([]) == "engine warp covers the model"
