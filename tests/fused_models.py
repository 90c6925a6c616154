"""Small models for what the bundled robots lack, as MJCF; and models that other packages ship."""

from importlib.util import find_spec
from pathlib import Path

import mujoco
import numpy as np

from isaacrl.sim.engine import PD, Actuation
from isaacrl.sim.fused.coverage import FOLLOWED_FLAGS, uncovered

# Whom a geom touches: planes everyone, balls (spheres and capsules) each other too, solids (the rest) planes only.
_PLANE, _BALL, _SOLID = 'contype="1" conaffinity="0"', 'contype="2" conaffinity="3"', 'contype="0" conaffinity="1"'
_GHOST = 'contype="0" conaffinity="0"'


def _mjcf(option, world, end="", default=""):
    return (
        f'<mujoco><compiler angle="radian" autolimits="true"/><option {option}</option><default>{default}</default>'
        f"<worldbody>{world}</worldbody>{end}</mujoco>"
    )


def shapes(option='timestep="0.004"', plane='condim="1"'):
    """One free body of each shape, 7 in all, on two tilted planes; balls touch each other. Condim 1, 3, 4 and 6."""
    ball = f'type="sphere" size=".12" {_BALL}'
    capsule = f'type="capsule" size=".08 .15" {_BALL}'
    bodies = [
        ('<freejoint name="ball"/>', f'<geom {ball} condim="1" solimp=".8 .95 .03 .4 1"/>'),
        (
            '<joint type="free" damping=".3" armature=".01" frictionloss=".02"/>',
            f'<geom {ball} condim="3" pos=".03 .02 -.01" solref="-800 -20" friction=".7 .01 .002"/>'
            f'<geom {capsule} condim="3" pos="-.05 .1 .1" euler=".4 .7 0" friction=".5 .01 .002"/>',
        ),
        (
            "<freejoint/>",
            f'<geom {capsule} condim="4" euler="1 .5 .2" solimp=".7 .95 .05 .3 3.5" margin=".02" gap=".015" '
            'friction=".6 .03 .004"/>',
        ),
        (
            "<freejoint/>",
            f'<geom {capsule} condim="6" pos="0 .02 0" friction=".9 .05 .02" margin=".01"/>'
            f'<body pos=".1 0 .05" euler=".3 0 0"><geom type="box" size=".03 .02 .05" {_GHOST}/></body>',
        ),
        (
            '<freejoint/><inertial mass="1.5" pos=".02 -.03 .01" quat=".8 .2 -.4 .4" diaginertia=".02 .03 .035"/>',
            f'<geom type="box" size=".1 .15 .2" {_SOLID} condim="3" friction="1.1 .005 .0001" euler=".2 0 .3"/>',
        ),
        (
            "<freejoint/>",
            f'<geom type="cylinder" size=".1 .15" {_SOLID} condim="4" friction=".4 .02 .001" solref=".03 .7"/>',
        ),
        (
            "<freejoint/>",
            f'<geom type="ellipsoid" size=".1 .15 .2" {_SOLID} condim="6" friction=".8 .04 .01" '
            'solimp=".6 .9 .02 .5 2"/>',
        ),
    ]
    world = f'<geom type="plane" size="2 2 1" pos=".01 .02 .03" euler=".15 -.2 .3" {_PLANE} {plane}/>'
    world += f'<geom type="plane" size="2 2 1" pos="-.3 0 0" euler=".1 1.2 0" {_PLANE} {plane}/>'
    for k, (joint, geom) in enumerate(bodies):
        world += (
            f'<body pos="{0.15 * (k % 3) - 0.1} {0.17 * (k // 3) - 0.1} .12"><site pos=".1 0 0"/>{joint}{geom}</body>'
        )
    return _mjcf(f"{option}>", world)


def joints(option='timestep="0.004"', flags=""):
    """Ball joints with limits, several joints a body, anchors off the origin, springs, friction loss, gravcomp."""
    capsule = f'type="capsule" size=".05" fromto="0 0 0 .02 .03 -.3" {_BALL}'
    loss = 'frictionloss=".3" solreffriction=".03 1.2" solimpfriction=".7 .9 .01 .4 1.5"'
    world = f"""
    <geom type="plane" size="2 2 1" {_PLANE}/>
    <body pos="0 0 .7" euler=".1 .2 .3">
      <joint type="ball" range="0 .5" limited="true" pos=".02 -.03 .05" damping=".2" armature=".01" margin=".02"
        solreflimit="-300 -10" frictionloss=".1"/>
      <geom {capsule}/>
      <body pos="0 .03 -.3" euler=".5 0 .2" gravcomp=".7">
        <joint axis="1 .2 0" pos=".01 .04 -.02" range="-.4 .6" damping=".5" {loss}/>
        <joint axis="0 1 .3" pos="-.01 0 .02" ref=".3" springref=".5" stiffness="4" armature=".02"/>
        <joint type="slide" axis=".3 .1 1" range="-.05 .05" stiffness="80" springref=".02" damping="3" ref="-.01"
          solimplimit=".8 .99 .02 .3 1" margin=".005" frictionloss=".5"/>
        <geom {capsule}/>
        <body pos=".05 0 -.3">
          <joint type="ball" pos="0 .01 .03" range="0 .4" limited="true" solimplimit=".5 .9 .3 .5 3"/>
          <geom {capsule}/>
          <body pos="0 0 -.1"><geom type="sphere" size=".07" {_GHOST}/></body>
        </body>
      </body>
      <body pos=".1 0 0" gravcomp="1.5">
        <joint type="slide" axis="1 0 0" {loss}/><joint type="slide" axis="0 1 0" range="-.1 .1"/>
        <geom type="box" size=".05 .06 .07" {_SOLID}/>
      </body>
    </body>
    <body pos=".5 0 .3">
      <joint type="free" frictionloss=".05" damping=".1"/>
      <geom {capsule} condim="1"/>
      <body pos=".1 0 0"><joint type="ball" range="0 .6" limited="true"/><geom {capsule}/>
        <body pos="0 0 -.2"><joint axis="0 1 0" range="-.2 .2"/><joint axis="0 0 1" pos=".1 0 0"/>
          <geom {capsule}/></body>
      </body>
    </body>"""
    return _mjcf(f"{option}>{flags}", world)


def actuators(option='timestep="0.004" integrator="implicitfast"', damping="0.3", flags=""):
    """Every kind of actuator on an arm whose last link may stand on the ground."""
    link = f'<geom type="capsule" size=".04" fromto="0 0 0 .25 0 0" {_BALL}/>'
    arm = "</body>" * 4
    for k in range(4, 0, -1):
        limit = 'actuatorfrcrange="-3 2"' if k in (1, 2) else 'range="-1.5 1.5"'
        arm = (
            f'<body pos="{0.25 * (k > 1)} 0 0"><joint name="j{k}" axis="0 {k % 2} {(k + 1) % 2}" damping="{damping}" '
            f'armature=".02" {limit}/>{link}' + arm
        )
    world = f'<geom type="plane" size="2 2 1" pos="0 0 -.3" euler=".2 .3 0" {_PLANE}/>'
    world += '<body><joint name="s" type="slide" axis="0 0 1" range="-.2 .3"/><geom size=".1" ' + _GHOST + "/>"
    end = """<actuator>
      <motor joint="j1" gear="-2" ctrlrange="-3 3"/>
      <position joint="j1" kp="5" kv=".6" forcerange="-1.5 1"/>
      <velocity joint="j2" kv="2" gear="1.5" ctrlrange="-2 1"/>
      <general joint="j2" gaintype="affine" gainprm="2 .5 -.7" biastype="affine" biasprm=".3 -2 -.4" forcerange="-2 2"/>
      <general joint="j3" gaintype="affine" gainprm="1 -.4 .3" gear=".7"/>
      <motor joint="j3"/>
      <position joint="j4" kp="20" kv="1" gear="-1.2"/>
      <motor joint="s" forcerange="-4 4"/>
    </actuator>"""
    return _mjcf(f"{option}>{flags}", world + arm + "</body>", end)


def scene(option='timestep="0.004"'):
    """Two free robots with limbs and an arm, which touch each other, themselves, mocap bodies and static geoms."""
    limb = f'type="capsule" size=".05 .12" {_BALL}'

    def robot(x, condim):
        legs = "".join(
            f'<body pos="{dx} {dy} -.05"><joint axis="0 1 .2" range="-1 1" damping=".1"/><geom {limb} pos="0 0 -.12"/>'
            f'<body pos="0 0 -.25"><joint axis="1 0 0" frictionloss=".1"/>'
            f'<geom {limb} pos="0 0 -.1" condim="{condim}"/>'
            "</body></body>"
            for dx, dy in ((-0.1, 0.0), (0.1, 0.05))
        )
        trunk = f'<freejoint/><geom name="b{condim}" {limb} euler="0 1.5 0"/>'
        trunk += f'<geom type="sphere" size=".07" pos=".08 .03 .07" {_BALL}/>'  # of a lower type than static capsules
        return f'<body name="r{condim}" pos="{x} 0 .4">{trunk}{legs}</body>'

    world = f"""
    <geom name="floor" type="plane" size="2 2 1" {_PLANE}/>
    <body pos="-.2 .1 .2" euler=".3 .2 0"><body pos="0 .1 0" euler="0 .5 .2"><geom name="bar" {limb} condim="3"/></body>
      <geom name="knob" type="sphere" size=".1" {_BALL} friction=".3 .1 .1"/></body>
    <body name="m1" mocap="true" pos=".1 .1 .2"><geom {limb}/></body>
    <body name="m2" mocap="true" pos="0 -.2 .1"><geom type="sphere" size=".1" {_BALL} condim="4"/>
      <body pos=".15 .05 .1" euler=".5 0 .3"><geom {limb}/></body></body>
    <body pos=".1 -.1 .5"><joint axis="1 0 0"/><geom {limb} pos="0 0 -.1"/>
      <body pos="0 0 -.2"><joint axis="0 1 0"/><geom name="hand" {limb} pos="0 0 -.1"/></body></body>
    {robot(-0.12, 6)}{robot(0.12, 4)}"""
    end = """<contact>
      <pair geom1="b6" geom2="b4" condim="6" friction="1 .4 .03 .02 .01" solreffriction=".05 .6" margin=".05"
        gap=".02"/>
      <pair geom1="hand" geom2="b4" condim="3" friction="1 .3 .1 .1 .1" solref="-500 -30" solreffriction="-300 -40"/>
      <pair geom1="floor" geom2="b6" condim="4" friction=".9 .5 .02 .1 .1" solimp=".8 .9 .1 .6 4" gap=".01"/>
      <pair geom1="floor" geom2="b4" condim="1"/>
      <exclude body1="r4" body2="m1"/>
    </contact>"""
    return _mjcf(f"{option}>", world, end)


def terrain(option='timestep="0.004"'):
    """Balls, capsules and a leg on a tilted height field and another one, upright and small; a plane below an edge."""
    rng = np.random.default_rng(0)
    heights = [" ".join(f"{h:.3f}" for h in rng.uniform(0, 1, k)) for k in (30 * 20, 4 * 3)]
    capsule = f'type="capsule" size=".04 .08" {_BALL}'
    fields = f'<hfield name="f" nrow="30" ncol="20" size="1 1.2 .15 .2" elevation="{heights[0]}"/>'
    fields += f'<hfield name="g" nrow="4" ncol="3" size=".3 .2 .1 .1" elevation="{heights[1]}"/>'
    world = f"""
    <geom type="hfield" hfield="f" pos=".3 -.2 -.05" euler=".1 -.15 .4" {_PLANE} condim="1"/>
    <geom type="hfield" hfield="g" pos="-.35 0 .2" euler="0 1.4 .2" {_PLANE} friction=".3 .01 .002"/>
    <geom type="plane" size="2 2 1" pos="0 0 -.1" {_PLANE}/>
    <body pos="0 .1 .2"><freejoint/><geom type="sphere" size=".06" {_BALL} condim="4" friction=".6 .03 .004"/></body>
    <body pos=".2 -.15 .21"><freejoint/><geom {capsule} euler="1 .5 .2" condim="3" margin=".015" gap=".01"/></body>
    <body pos="-.1 -.1 .24"><freejoint/><geom {capsule} euler="1.4 .2 0" condim="6" friction=".9 .05 .02"/>
      <body pos="0 0 -.05"><joint axis="0 1 0"/><geom type="sphere" size=".03" pos=".06 0 -.06" {_BALL}/>
        <geom {capsule} pos="0 .1 0" condim="1"/></body></body>"""
    return _mjcf(f"{option}>", world, f"<asset>{fields}</asset>")


def boxes(option='timestep="0.004"'):
    """Boxes, a capsule and a ball between a static box, a tilted one and each other."""
    world = '<geom type="box" size=".4 .4 .1" pos="0 0 -.1" condim="3"/>'
    world += '<geom type="box" size=".2 .3 .1" pos=".25 .1 .03" euler=".1 -.4 .3" condim="1"/>'
    geoms = [
        'type="box" size=".08 .06 .05" condim="3" friction=".7 .01 .002"',
        'type="box" size=".1 .05 .07" euler=".03 .02 .4" condim="4" margin=".01"',
        'type="box" size=".04 .06 .09" euler=".5 .6 .2" condim="6" gap=".01" margin=".005"',
        'type="capsule" size=".04 .1" euler="1.4 .3 0" condim="3"',
        'type="sphere" size=".07" condim="4"',
    ]
    places = ["-.1 -.05 .06", "-.12 0 .16", "0 .08 .12", ".08 -.1 .1", "-.05 .15 .08"]
    for geom, place in zip(geoms, places):
        world += f'<body pos="{place}"><freejoint/><geom {geom}/></body>'
    return _mjcf(f"{option}>", world)


def big(option='timestep="0.004"', count=64):
    """Free robots of many links, `count` degrees of freedom in all (at least 33): more than a group has lanes."""
    world, left = f'<geom type="plane" size="2 2 1" {_PLANE}/>', count
    for x in (-0.1, 0.1):
        hinges = (count // 2 if x < 0 else left) - 6
        left -= hinges + 6
        world += f'<body pos="{x} 0 .3"><freejoint/><geom type="sphere" size=".08" {_BALL}/>'
        for chain, step in ((hinges // 2, ".03 .05 -.06"), (hinges - hinges // 2, "-.04 -.03 -.06")):
            for k in range(chain):
                geom = f'<geom type="capsule" size=".04" fromto="0 0 0 {step}" {_BALL if k % 3 == 0 else _SOLID}/>'
                joint = f'<joint axis="{k % 2} 1 {k % 3}" armature=".01" damping=".05" range="-.3 .3"/>'
                world += f'<body pos="{step}">{joint}{geom}'
            world += "</body>" * chain
        world += "</body>"
    return _mjcf(f"{option}>", world)


_CONES = {
    "pyramidal": 'timestep="0.004"',
    "pyramidal impratio 5": 'timestep="0.004" impratio="5"',
    "elliptic": 'timestep="0.004" cone="elliptic"',
    "elliptic impratio 5": 'timestep="0.004" cone="elliptic" impratio="5"',
}
SMALL = {f"shapes, {k}": shapes(v) for k, v in _CONES.items()}
SMALL |= {f"scene, {k}": scene(v) for k, v in _CONES.items()}
SMALL |= {f"terrain, {k}": terrain(_CONES[k]) for k in ("pyramidal", "elliptic impratio 5")}
SMALL |= {f"boxes, {k}": boxes(_CONES[k]) for k in ("pyramidal", "elliptic")}
SMALL |= {"shapes, condim 3": shapes(plane='condim="3"')}
SMALL |= {"shapes, implicitfast": shapes('timestep="0.004" integrator="implicitfast"')}
SMALL |= {"joints": joints(), "joints, elliptic": joints('timestep="0.004" cone="elliptic" impratio="3"')}
SMALL |= {"joints, implicitfast": joints('timestep="0.004" integrator="implicitfast"')}
SMALL |= {"actuators": actuators(), "actuators, undamped": actuators(damping="0")}
SMALL |= {"actuators, Euler": actuators('timestep="0.004"'), "big, 64": big(), "big, 33": big(count=33)}
SMALL |= {"big, elliptic": big('timestep="0.004" cone="elliptic" impratio="2"')}
for _flag in FOLLOWED_FLAGS:
    _name = _flag.name.removeprefix("mjDSBL_").lower()
    _maker = actuators if _name in ("clampctrl", "damper") else joints
    SMALL[f"{_maker.__name__} without {_name}"] = _maker(flags=f'<flag {_name}="disable"/>')
# A time constant below two physics steps, which refsafe lengthens.
SMALL["joints without refsafe"] = SMALL["joints without refsafe"].replace(".03 1.2", ".006 1.2")


def small(name):
    """(model, actuation): of `actuators` some follow the PD law, with a torque-speed line or an effort limit."""
    model = mujoco.MjModel.from_xml_string(SMALL[name])
    law = Actuation.direct(model.nu)
    if name.startswith("actuators"):
        for u, stall in ((0, 2.0), (5, float("inf")), (7, 6.0)):
            law.law[u], law.kp[u], law.kd[u], law.effort_limit[u] = PD, 3.0, 0.4, 2.5
            law.saturation_effort[u], law.velocity_limit[u] = stall, 1.5 if stall < 1e9 else float("inf")
            joint = model.actuator_trnid[u, 0]
            law.qpos_adr[u], law.qvel_adr[u] = model.jnt_qposadr[joint], model.jnt_dofadr[joint]
        law.validate(model.nu)
    return model, law


# --- models of other packages ----------------------------------------------------------------------------------------


def _folder(package):
    found = find_spec(package)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


_WHERE = {
    "gymnasium": "envs/mujoco/assets/*.xml",
    "dm_control": "suite/*.xml",
    "mjlab": "asset_zoo/robots/*/xmls/*.xml",
}


def _files():
    for package, pattern in _WHERE.items():
        if folder := _folder(package):
            for path in sorted(folder.glob(pattern)):
                yield f"{package}:{path.stem}", path


FILES = dict(_files())


def shipped(name):
    """A shipped model, or None where the engine does not cover it. RK4 becomes Euler; fluids and energies go; robots of
    mjlab, which come without a scene, get a floor."""
    path = FILES[name]
    spec = mujoco.MjSpec.from_file(str(path))
    if name.startswith("mjlab"):
        spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[5, 5, 1], conaffinity=0)
    model = spec.compile()
    opt = model.opt
    if opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
        opt.integrator = mujoco.mjtIntegrator.mjINT_EULER
    opt.density = opt.viscosity = 0.0
    opt.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_ENERGY)
    if name == "gymnasium:point":  # its ball just touches the ground: a matter of roundoff
        model.body_pos[model.body("torso").id, 2] -= 0.01
    return None if uncovered(model, sensors=False) else model
