"""A model's XML and the files that it refers to, before MuJoCo sees any of them.

A model may come from anywhere, so what it may read is bounded: no document type (entities), and no file outside its own
folder unless the user trusts it.
"""

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element
from xml.parsers import expat

from isaacrl.errors import UserError
from isaacrl.suggest import one_line

LARGEST = 100_000_000  # bytes of XML


def read_xml(file: Path) -> Element:
    """The root element of a file. Raises: UserError with the line of a mistake, or for a document type."""
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"asset.path: '{file}' is larger than {LARGEST} bytes")
        data = file.read_bytes()
        if data.lstrip()[:1] == b"<":  # files in the wild begin with blank lines and end with NUL bytes
            data = data.strip(b"\0 \t\r\n")
    except OSError as e:
        raise UserError(f"asset.path: cannot read '{file}': {one_line(e)}") from None

    def refuse(*_: object) -> None:
        raise UserError(f"asset.path: '{file}' declares a document type (<!DOCTYPE ...>), which is refused; remove it")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
        return ElementTree.fromstring(data)
    except (expat.ExpatError, ElementTree.ParseError) as e:
        raise UserError(f"asset.path: cannot read '{file}': {one_line(e)}; is it an MJCF or URDF file?") from None
    except (ValueError, LookupError, RecursionError) as e:  # unknown encodings, NUL bytes
        raise UserError(f"asset.path: cannot read '{file}': {one_line(e)}") from None


def existing(paths: Iterable[Path]) -> list[Path]:
    """Those that are files; a name that cannot be one is none."""
    found = []
    for path in paths:
        try:
            if path.is_file():
                found.append(path)
        except (OSError, ValueError):
            pass
    return found


def inside(file: Path, folder: Path) -> bool:
    """Whether a file lies in a folder once all symbolic links are followed."""
    return file.resolve().is_relative_to(folder.resolve())


def refuse_outside(what: str, file: Path, folder: Path, model: Path) -> None:
    """Raise UserError where a file that the model refers to lies outside its folder."""
    if not inside(file, folder):
        raise UserError(
            f"asset.path: {what} of '{model}' is '{file.resolve()}', outside the model's folder '{folder}'; "
            "if you trust this model, set asset.trust=true"
        )


def missing(what: str, name: str, model: Path, looked: Iterable[Path]) -> UserError:
    """The error for a file that is nowhere."""
    places = ", ".join(dict.fromkeys(str(p) for p in looked))
    return UserError(
        f"asset.path: {what} of '{model}': no file '{one_line(name)}' (looked for {one_line(places, 400)}); "
        "add the file or correct its name"
    )


def describe(element: Element) -> str:
    """How an element is named in a message: `mesh 'hip'`."""
    name = element.get("name")
    return f"{element.tag} '{one_line(name, 60)}'" if name else f"a {element.tag}"


def check_mjcf(file: Path, trust: bool) -> None:
    """Every file that an MJCF refers to, through includes and attached models, is there and in the model's folder.

    MuJoCo joins a file name with the compiler's mesh, texture or asset folder, of whichever file set them last. All
    combinations are tried here: one that exists must be inside, and one must exist.

    Raises: UserError naming the element and the file.
    """
    folder = file.parent
    seen: set[Path] = set()
    folders, asset_dirs = [folder], [""]
    references: list[tuple[str, str, Path]] = []
    queue = [file]
    while queue:
        current = queue.pop()
        if current.resolve() in seen:
            continue
        seen.add(current.resolve())
        root = read_xml(current)
        if root.tag == "robot":
            raise UserError(f"asset.path: '{current}' is a URDF, which an MJCF cannot include; load it by itself")
        folders.append(current.parent)
        for element in root.iter():
            if element.tag in ("include", "model") and (name := element.get("file")):
                looked = [base / name for base in (folder, current.parent)]
                found = existing(looked)
                if not found:
                    raise missing(describe(element), name, current, looked)
                for path in found:
                    if not trust:
                        refuse_outside(f"{describe(element)} file '{one_line(name)}'", path, folder, file)
                    queue.append(path)
                continue
            if element.tag == "compiler":
                asset_dirs += [element.get(k, "") for k in ("meshdir", "texturedir", "assetdir")]
            for key, value in element.attrib.items():
                # All of MuJoCo's attributes that name a file: file, fileright, fileup, ...
                if value and (key == "file" or element.tag == "texture" and key.startswith("file")):
                    references.append((describe(element), value, current))
            if element.tag == "config" and (value := element.get("value")):  # of a plugin; may be a file
                references.append(("", value, current))
    _check_references(references, folders, asset_dirs, folder, file, trust)


def _check_references(
    references: list[tuple[str, str, Path]],
    folders: list[Path],
    asset_dirs: list[str],
    folder: Path,
    file: Path,
    trust: bool,
) -> None:
    bases = list(dict.fromkeys(f / d for f in folders for d in asset_dirs))
    for what, name, current in references:
        # With the compiler's `strippath` only the last part of the name counts.
        looked = [base / n for base in bases for n in dict.fromkeys((name, name.replace("\\", "/").rpartition("/")[2]))]
        found = existing(looked)
        if not found and what:  # a plugin's value need not be a file's name
            raise missing(what, name, current, looked)
        for path in found:
            if not trust:
                refuse_outside(f"{what or 'a plugin'} file '{one_line(name)}'", path, folder, file)
