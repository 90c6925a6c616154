"""The scene: one robot on its ground, as a MuJoCo model."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mujoco
from omegaconf import DictConfig, OmegaConf

from isaacrl.errors import UserError
from isaacrl.sim.actuators import actuation_of, add_actuators
from isaacrl.sim.engine import Actuation
from isaacrl.suggest import did_you_mean, one_line

BUNDLED = Path(__file__).parent.parent / "assets"


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
    spec = load(asset.path)
    spec.option.timestep = task.physics_dt
    add_surroundings(spec)
    chosen = add_actuators(spec, OmegaConf.to_container(asset.actuators, resolve=True))
    if edit is not None:
        edit(spec)
    try:
        model = spec.compile()
    except (ValueError, RuntimeError, mujoco.FatalError) as e:
        raise UserError(f"asset.path: '{asset.path}' does not compile: {one_line(e)}") from None
    return Scene(spec, model, actuation_of(model, chosen))


def load(path: str) -> mujoco.MjSpec:
    """A spec from an MJCF or URDF file: absolute, relative to the working directory, or bundled with isaacrl."""
    file = next((p for p in (Path(path).expanduser(), BUNDLED / path) if p.is_file()), None)
    if file is None:
        bundled = sorted(str(p.relative_to(BUNDLED)) for p in BUNDLED.rglob("*.xml"))
        raise UserError(
            f"asset.path: no file '{path}' in {os.getcwd()} or among the bundled models "
            f"({', '.join(bundled)}){did_you_mean(path, bundled)}"
        )
    try:
        return mujoco.MjSpec.from_file(str(file))
    except (ValueError, RuntimeError, mujoco.FatalError) as e:
        raise UserError(f"asset.path: cannot read '{file}': {one_line(e)}") from None


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
        world.add_geom(name="ground", type=shape.mjGEOM_PLANE, size=[0, 0, 0.05], material="isaacrl_ground")
    if not spec.lights:
        world.add_light(
            pos=[0, 0, 4],
            dir=[0, 0, -1],  # slanting ones draw specks on an endless plane
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
            diffuse=[0.7, 0.7, 0.68],
            castshadow=True,
        )
    if not spec.cameras:  # mujoco-warp's renderer, for machines without OpenGL, moves one about
        world.add_camera(name="isaacrl_view", pos=[0, -3, 1])
