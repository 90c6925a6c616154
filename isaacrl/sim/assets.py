"""From a model file to a MuJoCo spec: MJCF and URDF, told apart by their content."""

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from isaacrl.errors import UserError
from isaacrl.robot_files import BUNDLED, find_file
from isaacrl.sim import urdf
from isaacrl.sim.names import match
from isaacrl.sim.xml_files import check_mjcf, read_xml
from isaacrl.suggest import did_you_mean, listing, one_line

FREE, SLIDE, HINGE = 0, 2, 3  # mujoco.mjtJoint, which does not compare with numpy's integers


@dataclass
class Asset:
    """A model as its file has it, with what MuJoCo's spec does not hold."""

    spec: mujoco.MjSpec
    file: Path
    others: list[Path] = field(default_factory=list)  # files that it refers to: parts of the model, meshes, textures
    is_urdf: bool = False
    effort_limits: dict[str, float] = field(default_factory=dict)  # a URDF's, joint -> N m or N
    velocity_limits: dict[str, float] = field(default_factory=dict)  # a URDF's, joint -> rad/s or m/s; not applied


def load(path: str, *, trust: bool = False, floating: bool | None = None) -> Asset:
    """A model from an MJCF or URDF file: absolute, relative to the working directory, or bundled with isaacrl.

    trust: whether it may refer to files outside its own folder. floating: whether its base is free; None: as the MJCF
    says, or for a URDF `urdf.is_floating`.

    Raises: UserError, one line, for whatever is wrong with the file or with those it refers to.
    """
    file = _find(path)
    root = read_xml(file)
    if root.tag == "robot":
        return _from_urdf(file, root, trust, floating)
    if root.tag != "mujoco":
        raise UserError(
            f"asset.path: '{file}' begins with <{one_line(root.tag, 40)}>; an MJCF begins with <mujoco>, a URDF with "
            "<robot>; convert other formats first"
        )
    check_mjcf(file, trust)
    try:
        spec = mujoco.MjSpec.from_file(str(file))
    except (ValueError, RuntimeError, mujoco.FatalError) as e:
        reason = f"name it {file.stem}.xml" if "decoder" in str(e) else one_line(e)
        raise UserError(f"asset.path: cannot read '{file}': {reason}") from None
    if floating is not None:
        _set_floating(spec, spec.worldbody.first_body(), floating, file)
    others = (Path(f) for f in mujoco.mju_getXMLDependencies(str(file)))
    return Asset(spec, file, [f for f in others if f != file and f.is_file()])


def _find(path: str) -> Path:
    file = find_file(path)
    if file is None:
        bundled = sorted(str(p.relative_to(BUNDLED)) for p in BUNDLED.rglob("*.xml"))
        raise UserError(
            f"asset.path: no file '{path}' in {os.getcwd()} or among the bundled models "
            f"({', '.join(bundled)}){did_you_mean(path, bundled)}"
        )
    return file


def _from_urdf(file: Path, root: urdf.Element, trust: bool, floating: bool | None) -> Asset:
    urdf.refuse_templates(root, file)
    base = urdf.root_link(root, file)
    free = urdf.is_floating(root, base) if floating is None else floating
    efforts, speeds = urdf.joint_limits(root, "effort"), urdf.joint_limits(root, "velocity")
    xml, meshes, others = urdf.prepare(root, file, trust)
    try:
        spec = mujoco.MjSpec.from_string(xml, assets=meshes)
    except (ValueError, RuntimeError, mujoco.FatalError) as e:
        reason = re.sub(r",? line \d+", "", one_line(e))  # of the XML as rewritten
        raise UserError(f"asset.path: cannot read '{file}': {reason}") from None
    if base != "world":
        _set_floating(spec, spec.body(base), free, file)
    elif floating:
        raise UserError(
            f"asset.floating: the root link of '{file}' is 'world', which is fixed; rename it or unset this"
        )
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST  # gains of position servos need it
    urdf.estimate_inertias(spec)
    _group_geoms(spec)
    _mark_frames(spec)
    return Asset(spec, file, others, True, efforts, speeds)


def _set_floating(spec: mujoco.MjSpec, body: mujoco.MjsBody | None, floating: bool, file: Path) -> None:
    """Give the model's first body a free joint, or take it away."""
    if body is None:
        raise UserError(f"asset.path: '{file}' has no bodies; a robot needs at least one")
    joints = list(body.joints)
    free = [j for j in joints if j.type == FREE]
    if floating and joints and not free:
        raise UserError(
            f"asset.floating: body '{body.name}' of '{file}' is held by joint '{joints[0].name}'; leave floating unset"
        )
    if floating == bool(free):
        return
    if floating:
        body.add_freejoint(name="floating_base")
    for joint in free:
        spec.delete(joint)
    for keyframe in list(spec.keys):  # their positions have another length now
        spec.delete(keyframe)


def _group_geoms(spec: mujoco.MjSpec) -> None:
    """Where a link has visual geometry, only that is drawn: MuJoCo draws groups 0 to 2."""
    for body in spec.bodies:
        visual = [g for g in body.geoms if not (g.contype or g.conaffinity)]
        for geom in body.geoms:
            geom.group = 2 if geom.name == "" and geom in visual else 3 if visual else 0


def _mark_frames(spec: mujoco.MjSpec) -> None:
    """A site of the same name at each link that is only a frame or that ends a chain: tools and sensors are there."""
    for body in spec.bodies:
        if body.name != "world" and not (list(body.geoms) and list(body.bodies)):
            body.add_site(name=body.name, group=4)


def limit_efforts(asset: Asset, chosen: Mapping[str, dict[str, Any]]) -> None:
    """Actuators whose configuration gives no effort limit take the URDF's; where it gives one, only that holds.

    chosen: the settings of the spec's actuators by joint, as `add_actuators` returns them; completed in place.
    """
    if not asset.is_urdf:
        return
    for name, node in chosen.items():
        asset.spec.joint(name).actfrclimited = 0  # MuJoCo's reader puts the URDF's limit here
        if "effort_limit" in node or name not in asset.effort_limits:
            continue
        limit = node["effort_limit"] = asset.effort_limits[name]
        actuator = asset.spec.actuator(name)
        actuator.forcelimited, actuator.forcerange = 1, [-limit, limit]
        if node["law"] == "effort":
            actuator.ctrllimited, actuator.ctrlrange = 1, [-limit, limit]


def compile_spec(spec: mujoco.MjSpec, file: Path | str) -> mujoco.MjModel:
    """The compiled model. Raises: UserError with MuJoCo's reason and, where it is known, the fix."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "obj_decoder")  # of textures that are not drawn anyway
            return spec.compile()
    except (ValueError, RuntimeError, mujoco.FatalError) as e:
        text = one_line(e, 300)
        fix = ""
        if "mass and inertia" in text:
            fix = (
                "; give that body an <inertial> with mass and inertia, or geoms with a density,"
                ' or all of them a lower bound: <compiler boundmass="0.001" boundinertia="1e-6"/> (URDF: in <mujoco>)'
            )
        raise UserError(f"asset.path: '{file}' does not compile: {text}{fix}") from None


def settle(asset: Asset, model: mujoco.MjModel, default_pose: Mapping[str, float]) -> bool:
    """Finish a URDF, which has no pose in the world: whether the spec has changed and must be compiled again.

    In the default pose the lowest collision geometry of a floating robot touches the ground, z = 0, and bodies whose
    collision geometry overlaps do not collide with each other (meshes of neighbouring links usually do overlap); those
    of a fixed robot that overlap the ground do not collide with it.
    """
    if not asset.is_urdf:
        return False
    data = mujoco.MjData(model)
    scalar = [j for j in range(model.njnt) if model.jnt_type[j] in (SLIDE, HINGE)]
    names = [model.joint(j).name for j in scalar]
    for pattern, value in default_pose.items():
        for i in match([pattern], names, "asset.default_pose"):
            data.qpos[model.jnt_qposadr[scalar[i]]] = float(value)
    mujoco.mj_kinematics(model, data)
    changed = False
    base = next((int(model.jnt_bodyid[j]) for j in range(model.njnt) if model.jnt_type[j] == FREE), None)
    if base is not None:
        low = lowest_point(model, data)
        body = asset.spec.body(model.body(base).name)
        body.pos = np.array(body.pos) - [0.0, 0.0, low]
        changed = bool(low)
    mujoco.mj_fwdPosition(model, data)
    pairs = {
        tuple(sorted(int(model.geom_bodyid[g]) for g in c.geom)) for c in data.contact[: data.ncon] if c.dist < 0.0
    }
    for first, second in sorted(pairs):
        if first > 0 or base is None:  # a floating robot stands on the ground
            asset.spec.add_exclude(bodyname1=model.body(first).name, bodyname2=model.body(second).name)
            changed = True
    return changed


def lowest_point(model: mujoco.MjModel, data: mujoco.MjData, body: int | None = None) -> float:
    """Height of the lowest point of a body's, or the whole robot's, geometry that collides (else of all of it) [m]."""
    geoms = [g for g in range(model.ngeom) if body in (None, model.geom_bodyid[g]) and model.geom_bodyid[g] > 0]
    colliding = [g for g in geoms if model.geom_contype[g] or model.geom_conaffinity[g]]
    return min((lowest_of_geom(model, data, g) for g in colliding or geoms), default=0.0)


def lowest_of_geom(model: mujoco.MjModel, data: mujoco.MjData, g: int) -> float:
    down = data.geom_xmat[g].reshape(3, 3)[2]  # height of a point of the geom's frame: pos_z + down . point
    size, kind = model.geom_size[g], mujoco.mjtGeom(model.geom_type[g])
    reach = 0.0
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = model.geom_dataid[g]
        first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        reach = -float((model.mesh_vert[first : first + count] @ down).min())
    elif kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        reach = size[0]
    elif kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        reach = size[0] + size[1] * abs(down[2])
    elif kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        reach = size[1] * abs(down[2]) + size[0] * np.hypot(down[0], down[1])
    elif kind == mujoco.mjtGeom.mjGEOM_BOX:
        reach = float(size @ np.abs(down))
    elif kind == mujoco.mjtGeom.mjGEOM_ELLIPSOID:
        reach = float(np.linalg.norm(size * down))
    return float(data.geom_xpos[g, 2] - reach)


def check_driven(asset: Asset, model: mujoco.MjModel) -> None:
    """Raise UserError for a model that nothing can move."""
    if not model.nu:
        raise UserError(
            f"asset.actuators: '{asset.file}' has none and the configuration names none; joints: "
            f"{listing(joint_names(asset))}; for example: "
            "'asset.actuators.all={joints: [\".*\"], law: position, kp: 50, kd: 2}' "
            "(laws: effort, position, velocity, pd)"
        )


def joint_names(asset: Asset) -> list[str]:
    """Names of the hinge and slide joints. Raises: UserError if there are none."""
    names = [j.name for j in asset.spec.joints if int(j.type) in (SLIDE, HINGE)]
    if not names:
        raise UserError(
            f"asset.path: '{asset.file}' has no hinge or slide joints (URDF: revolute, continuous or prismatic); "
            "a robot needs at least one"
        )
    return names
