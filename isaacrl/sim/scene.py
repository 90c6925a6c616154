"""The scene: one robot on its ground, as a MuJoCo model."""

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np
from omegaconf import DictConfig, OmegaConf

from isaacrl.errors import UserError
from isaacrl.robot_files import RobotFiles, find_file
from isaacrl.sim.actuators import actuation_of, add_actuators
from isaacrl.sim.assets import check_driven, compile_spec, joint_names, limit_efforts, load, settle
from isaacrl.sim.engine import Actuation
from isaacrl.sim.terrain import Terrain, add_to, build

# MuJoCo's own defaults, in full: the robot's model may have other ones for its geoms.
GROUND_CONTACT = {
    "contype": 1,
    "conaffinity": 1,
    "condim": 3,
    "priority": 0,
    "friction": [1, 0.005, 0.0001],
    "solmix": 1,
    "solref": [0.02, 1],
    "solimp": [0.9, 0.95, 0.001, 0.5, 2],
    "margin": 0,
    "gap": 0,
    "group": 0,
    "rgba": [0.5, 0.5, 0.5, 1],
}


@dataclass
class Scene:
    """What an engine steps, and what pictures show. Both models have the same state, bodies, sites and names."""

    spec: mujoco.MjSpec
    model: mujoco.MjModel  # for physics: without the nameless geoms that are there for the eye alone
    actuation: Actuation
    visual_model: mujoco.MjModel  # for pictures: everything
    files: RobotFiles
    terrain: Terrain | None = None


def frame_robot(model: mujoco.MjModel) -> None:
    """Views and shadows are sized by all that a model has: where a floor is far larger than the robot, by the robot."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    moving = model.geom_bodyid > 0
    if not moving.any():
        return
    pos, size = data.geom_xpos[moving], model.geom_rbound[moving, None]
    low, high = (pos - size).min(axis=0), (pos + size).max(axis=0)
    extent = float((high - low).max())
    if 0.0 < 2.0 * extent < model.stat.extent:
        model.stat.extent, model.stat.center[:] = extent, (low + high) / 2.0


def make_scene(asset: DictConfig, task: DictConfig, edit: Callable[[mujoco.MjSpec], None] | None = None) -> Scene:
    """The robot of `asset` with its actuators, on a ground, at the time step of `task`; edit changes the spec last.

    The actuators of `asset` replace the model's own; where it names none, those stay and take targets as controls.

    Raises: UserError for a missing or malformed model.
    """
    robot = load(asset.path, trust=bool(asset.get("trust")), floating=asset.get("floating"))
    joint_names(robot)  # there must be some
    spec = robot.spec
    spec.option.timestep = task.physics_dt
    terrain = build(task.terrain) if task.get("terrain") is not None else None
    if terrain is not None and grounds(spec):
        raise UserError(f"task.terrain: {asset.path} has a ground of its own ({grounds(spec)[0]}); use one of them")
    add_surroundings(spec, terrain)
    chosen = add_actuators(spec, OmegaConf.to_container(asset.actuators, resolve=True))
    limit_efforts(robot, chosen)
    if edit is not None:
        edit(spec)
    model = compile_spec(spec, asset.path)
    if settle(robot, model, OmegaConf.to_container(asset.get("default_pose") or OmegaConf.create({}), resolve=True)):
        model = compile_spec(spec, asset.path)
    check_driven(robot, model)
    if np.isnan(spec.stat.extent):  # else the model says what views are to show
        frame_robot(model)
    spec, physics = without_visuals(spec, model, asset.path)
    actuation = actuation_of(model, chosen)
    networks = {net.file: f for net in actuation.nets if (f := find_file(net.file))}
    files = RobotFiles([robot.file, *robot.others], networks)
    return Scene(spec, physics, actuation, model, files, terrain)


def without_visuals(spec: mujoco.MjSpec, model: mujoco.MjModel, file: str) -> tuple[mujoco.MjSpec, mujoco.MjModel]:
    """The scene without what only pictures need; the one given where that would not move in exactly the same way.

    C MuJoCo moves every geom at every step: where most of them are for the eye, this is a tenth to a third of its time.
    Geoms with a name stay, since sensors, contact pairs, tendons and terms may refer to them; so do all where a sensor
    casts rays, a fluid acts on them or bodies may sleep.
    """
    sees = (model.sensor_type == int(mujoco.mjtSensor.mjSENS_RANGEFINDER)).any()
    sleeps = model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_SLEEP
    if sees or sleeps or model.opt.density or model.opt.viscosity:
        return spec, model
    bare = spec.copy()
    bare.compiler.inertiafromgeom, bare.compiler.settotalmass = mujoco.mjtInertiaFromGeom.mjINERTIAFROMGEOM_AUTO, -1
    for body, compiled in zip(bare.bodies, spec.bodies):  # what geoms gave to a body stays
        i = compiled.id
        if i > 0:
            body.explicitinertial, body.fullinertia = True, [np.nan] * 6
            body.mass, body.inertia = model.body_mass[i], model.body_inertia[i]
            body.ipos, body.iquat = model.body_ipos[i], model.body_iquat[i]
    for geom in list(bare.geoms):
        if not (geom.name or geom.contype or geom.conaffinity):
            bare.delete(geom)
    try:
        physics = compile_spec(bare, file)
    except UserError:
        return spec, model
    inertial = ("body_mass", "body_inertia", "body_ipos", "body_iquat", "dof_invweight0", "body_invweight0")
    same = all(np.array_equal(getattr(model, f), getattr(physics, f)) for f in inertial)
    return (bare, physics) if same else (spec, model)


def grounds(spec: mujoco.MjSpec) -> list[str]:
    """Names of the world's geoms that are a ground."""
    kinds = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_HFIELD)
    return [
        g.name or "without a name" for g in spec.worldbody.geoms if g.type in kinds or g.name in ("ground", "floor")
    ]


def add_surroundings(spec: mujoco.MjSpec, terrain: Terrain | None = None) -> None:
    """A ground, a light, a sky and a camera where the model has none of its own."""
    world, kind, builtin, shape = spec.worldbody, mujoco.mjtTexture, mujoco.mjtBuiltin, mujoco.mjtGeom
    if not any(t.type == kind.mjTEXTURE_SKYBOX for t in spec.textures):
        spec.add_texture(
            name="isaacrl_sky",
            type=kind.mjTEXTURE_SKYBOX,
            builtin=builtin.mjBUILTIN_GRADIENT,
            rgb1=[0.93, 0.95, 0.98],
            rgb2=[0.62, 0.71, 0.82],
            width=256,
            height=256,
        )
    if not grounds(spec):
        spec.add_texture(
            name="isaacrl_ground",
            type=kind.mjTEXTURE_2D,
            builtin=builtin.mjBUILTIN_CHECKER,
            rgb1=[0.80, 0.83, 0.86],
            rgb2=[0.74, 0.77, 0.81],
            width=300,
            height=300,
        )
        material = spec.add_material(name="isaacrl_ground", texrepeat=[1, 1], texuniform=True)
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "isaacrl_ground"
        look = {"material": "isaacrl_ground"} | GROUND_CONTACT
        if terrain is not None:
            add_to(spec, terrain, **look)
        else:
            world.add_geom(name="ground", type=shape.mjGEOM_PLANE, size=[0, 0, 0.05], **look)
    if not spec.lights:
        # A directional light shines everywhere, but its shadows lie about its position: it goes with a robot that can.
        floating = next((b for b in world.bodies if any(j.type == mujoco.mjtJoint.mjJNT_FREE for j in b.joints)), None)
        (floating or world).add_light(
            name="isaacrl_light",
            mode=mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM if floating else mujoco.mjtCamLight.mjCAMLIGHT_FIXED,
            pos=[0, 0, 4],
            dir=[0, 0, -1],  # slanting ones draw specks on an endless plane
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
            diffuse=[0.7, 0.7, 0.68],
            castshadow=True,
        )
    if not spec.cameras:  # mujoco-warp's renderer, for machines without OpenGL, moves one about
        world.add_camera(name="isaacrl_view", pos=[0, -3, 1])
