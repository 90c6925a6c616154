"""The scene: one robot on its ground, as a MuJoCo model."""

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
from omegaconf import DictConfig, OmegaConf

from isaacrl.sim.actuators import actuation_of, add_actuators
from isaacrl.sim.assets import check_driven, compile_spec, joint_names, limit_efforts, load, settle
from isaacrl.sim.engine import Actuation

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
    """What an engine steps."""

    spec: mujoco.MjSpec
    model: mujoco.MjModel
    actuation: Actuation


def make_scene(asset: DictConfig, task: DictConfig, edit: Callable[[mujoco.MjSpec], None] | None = None) -> Scene:
    """The robot of `asset` with its actuators, on a ground, at the time step of `task`; edit changes the spec last.

    The actuators of `asset` replace the model's own; where it names none, those stay and take targets as controls.

    Raises: UserError for a missing or malformed model.
    """
    robot = load(asset.path, trust=bool(asset.get("trust")), floating=asset.get("floating"))
    joint_names(robot)  # there must be some
    spec = robot.spec
    spec.option.timestep = task.physics_dt
    add_surroundings(spec)
    chosen = add_actuators(spec, OmegaConf.to_container(asset.actuators, resolve=True))
    limit_efforts(robot, chosen)
    if edit is not None:
        edit(spec)
    model = compile_spec(spec, asset.path)
    if settle(robot, model, OmegaConf.to_container(asset.get("default_pose") or OmegaConf.create({}), resolve=True)):
        model = compile_spec(spec, asset.path)
    check_driven(robot, model)
    return Scene(spec, model, actuation_of(model, chosen))


def add_surroundings(spec: mujoco.MjSpec) -> None:
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
    grounds = (shape.mjGEOM_PLANE, shape.mjGEOM_HFIELD)
    if not any(g.type in grounds or g.name in ("ground", "floor") for g in world.geoms):
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
        world.add_geom(
            name="ground", type=shape.mjGEOM_PLANE, size=[0, 0, 0.05], material="isaacrl_ground", **GROUND_CONTACT
        )
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
