"""URDF: what MuJoCo's own reader leaves open. Meshes by package:// and relative names, floating bases, effort limits.

Links keep their names (fixed joints are not fused), visual geometry is drawn only, and inertias that violate
the triangle inequality are balanced, as simulators that are less strict read them.
"""

import os
import re
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import mujoco
import numpy as np

from isaacrl.errors import UserError
from isaacrl.robot_files import is_package
from isaacrl.sim.xml_files import describe, existing, missing, refuse_outside
from isaacrl.suggest import listing, one_line

READABLE = (".obj", ".stl", ".msh")  # mesh formats that MuJoCo reads
COMPILER = {"discardvisual": "false", "fusestatic": "false", "balanceinertia": "true"}
MOVING = ("revolute", "continuous", "prismatic", "planar", "floating", "spherical")


def refuse_templates(root: Element, file: Path) -> None:
    """Raise UserError for a URDF that another program must complete first."""
    if any("xacro" in e.tag or any(v.startswith(("${", "$(")) for v in e.attrib.values()) for e in root.iter()):
        raise UserError(f"asset.path: '{file}' is a xacro template; expand it first: xacro {file.name} > robot.urdf")
    if next(root.iter("include"), None) is not None:
        raise UserError(f"asset.path: '{file}' has an <include>, which a URDF cannot; put its content in its place")


def prepare(root: Element, file: Path, trust: bool) -> tuple[str, dict[str, bytes], list[Path]]:
    """(the URDF's XML with a plain name for each mesh, the meshes' content by that name, their files), for MjSpec.

    root: of the file; changed in place. Raises: UserError naming the link and the file.
    """
    extension = root.find("mujoco")
    extension = ElementTree.SubElement(root, "mujoco") if extension is None else extension
    compiler = extension.find("compiler")
    compiler = ElementTree.SubElement(extension, "compiler") if compiler is None else compiler
    for key, value in COMPILER.items():
        compiler.attrib.setdefault(key, value)
    mesh_dir = [compiler.attrib.pop(k) for k in ("meshdir", "assetdir") if k in compiler.attrib]

    content: dict[str, bytes] = {}
    names: dict[Path, str] = {}
    for link in root.findall("link"):
        for kind in ("visual", "collision"):
            for element in link.findall(kind):
                mesh = element.find("geometry/mesh")
                if mesh is None:
                    if _is_empty(element):
                        link.remove(element)
                    continue
                path = find_mesh(mesh.get("filename", ""), kind, link, file, mesh_dir, trust)
                if path.suffix.lower() not in READABLE:
                    if kind == "visual":  # it is only drawn: the collision geometry is drawn in its place
                        link.remove(element)
                        continue
                    raise UserError(
                        f"asset.path: collision mesh of {describe(link)} of '{file}': MuJoCo cannot read "
                        f"'{path.name}'; convert it to one of {', '.join(READABLE)} and name that file"
                    )
                if path not in names:
                    names[path] = _plain_name(path, set(content))
                    content[names[path]] = path.read_bytes()
                mesh.set("filename", names[path])
    return ElementTree.tostring(root, encoding="unicode"), content, list(names)


def _is_empty(element: Element) -> bool:
    """Whether a visual or collision is a shape of size zero, which MuJoCo refuses and which does nothing."""
    sizes = [(e.get("radius") or e.get("size") or "1") for e in element.findall("geometry/*")]
    return any(set(size.replace("-", " ").split()) <= {"0", "0.0", "0."} for size in sizes)


def _plain_name(path: Path, taken: set[str]) -> str:
    """A file name without folders that no other mesh has: MuJoCo names meshes by it."""
    stems = {Path(n).stem.lower() for n in taken}
    stem, number = path.stem, 1
    while stem.lower() in stems:
        number += 1
        stem = f"{path.stem}_{number}"
    return stem + path.suffix.lower()


def find_mesh(name: str, kind: str, link: Element, file: Path, mesh_dir: list[str], trust: bool) -> Path:
    """The file of a mesh. Relative names start at the URDF's folder.

    package://NAME/path is searched in folders upward that are called NAME or hold NAME/, then in ROS_PACKAGE_PATH,
    then in the URDF's own folder. A package is trusted with its own files where it has a package.xml and holds this
    URDF or lies beside its folder, or is in ROS_PACKAGE_PATH: the user's own choice.

    Raises: UserError where it is missing, or outside the trusted folder.
    """
    what, folder = f"{kind} mesh of {describe(link)}", file.parent
    candidates: list[tuple[Path, Path]] = []  # file, folder that it may not leave
    package = re.fullmatch(r"(?:package|model)://([^/]+)/+(.+)", name)
    if package:
        looked = [(root / package[2], limit) for root, limit in _packages(package[1], folder)]
        candidates = [*looked, (folder / package[2], folder)]
    else:
        plain = re.sub(r"^file:(//)?", "", name)
        candidates = [(folder / d / plain, folder) for d in [*mesh_dir, ""]]
    found = existing(p for p, _ in candidates) if name else []
    if not found:
        raise missing(what, name, file, [p for p, _ in candidates])
    path, limit = next((p, limit) for p, limit in candidates if p == found[0])
    if not trust:
        refuse_outside(f"{what} file '{one_line(name)}'", path, limit, file)
    return path


def _packages(name: str, folder: Path) -> list[tuple[Path, Path]]:
    """Folders that a package of that name may be, each with the folder that its files may not leave."""
    if name in (".", ".."):
        return [(folder / name, folder)]
    roots = []
    for up in (folder, *folder.parents):
        for root in (up, up / name) if up.name == name else (up / name,):
            roots.append((root, root if is_package(root) else folder))
    for part in filter(None, os.environ.get("ROS_PACKAGE_PATH", "").split(os.pathsep)):
        for root in (Path(part), Path(part) / name):
            if root.name == name:
                roots.append((root, root))
    return roots


def estimate_inertias(spec: mujoco.MjSpec) -> None:
    """Links that give a mass but a zero inertia get that of their collision geometry (else visual), of that mass."""
    for body in spec.bodies:
        if body.mass > 0.0 and not np.any(body.inertia) and not np.any(np.nan_to_num(body.fullinertia)):
            shapes = [g for g in body.geoms if g.contype or g.conaffinity] or list(body.geoms)
            if shapes:
                body.explicitinertial, body.ipos = False, [np.nan] * 3  # undefined: MuJoCo infers it
                for geom in shapes:
                    geom.mass = body.mass / len(shapes)


def root_link(root: Element, file: Path) -> str:
    """The one link that is no joint's child. Raises: UserError."""
    links = [link.get("name", "") for link in root.findall("link")]
    children = {child.get("link") for child in root.findall("joint/child")}
    roots = [name for name in links if name not in children]
    if len(roots) != 1:
        why = "it has no links" if not links else f"it has {len(roots)} root links ({listing(roots)})"
        raise UserError(f"asset.path: '{file}' is not one robot: {why}; connect its links to one tree by joints")
    return roots[0]


def is_floating(root: Element, base: str) -> bool:
    """Whether a URDF's base is meant to be free, which the format does not say.

    Fixed: a root link called `world`, or one that carries a single moving joint, as arms and cart-poles do. Free: all
    others, such as legged and wheeled robots and single bodies.
    """
    if base == "world":
        return False
    joints = [
        (j.get("type"), getattr(j.find("parent"), "attrib", {}).get("link"), j.find("child"))
        for j in root.findall("joint")
    ]
    cluster, grown = {base}, True  # the links that are rigidly part of the base
    while grown:
        more = {c.get("link", "") for kind, p, c in joints if kind == "fixed" and p in cluster and c is not None}
        grown = not more <= cluster
        cluster |= more
    return sum(kind in MOVING and parent in cluster for kind, parent, _ in joints) != 1


def joint_limits(root: Element, key: str) -> dict[str, float]:
    """The limit `effort` [N m or N] or `velocity` [rad/s or m/s] of each joint that gives one above zero."""
    limits = {}
    for joint in root.findall("joint"):
        limit = joint.find("limit")
        try:
            value = float(limit.get(key, "0")) if limit is not None else 0.0
        except ValueError:
            value = 0.0
        if 0.0 < value < float("inf"):  # zero means that none was given
            limits[joint.get("name", "")] = value
    return limits
