"""Which terms a module offers and what parameters they take, read from its source: nothing is imported or run.

So that a mistake in a term table is reported at once, before torch and the simulator are loaded.
"""

import ast
import functools
import importlib.machinery
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from isaacrl.errors import KeyedError, UserError
from isaacrl.suggest import did_you_mean, listing

TERMS = Path(__file__).parent / "terms"
ALSO_IN = {
    "events": ("randomization",),
    "observations": ("rays",),
}  # further files whose terms a family's module imports


@dataclass(frozen=True)
class Parameter:
    """A keyword-only parameter of a term."""

    name: str
    required: bool
    annotation: str  # as written, "" for none


@dataclass(frozen=True)
class Signature:
    """A function or class of a module, as a term sees it."""

    name: str
    parameters: tuple[Parameter, ...]
    positional: tuple[str, ...]  # names before the `*`
    any_keyword: bool  # **kwargs
    is_class: bool

    @property
    def is_term(self) -> bool:
        """Whether it looks like a term rather than a helper: `f(s, ...)`, or a class made with `(s, *, ...)`."""
        if self.name.startswith("_"):
            return False
        return len(self.positional) == 1 if self.is_class else self.positional[:1] in (("s",), ("state",))


@functools.lru_cache(maxsize=256)
def _parse(path: str, modified: int) -> dict[str, Signature]:
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as e:
        line = getattr(e, "lineno", None)
        raise UserError(f"{path}{f':{line}' if line else ''}: not valid Python ({getattr(e, 'msg', e)})") from None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    out = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            out[node.name] = _signature(node.name, node.args, is_class=False)
        elif isinstance(node, ast.ClassDef):
            args = _constructor(node, classes)
            out[node.name] = _signature(node.name, args, is_class=True)
    return out


def _constructor(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> ast.arguments | None:
    """Arguments of __init__ without self, inherited ones of the same module included."""
    for _ in range(len(classes) + 1):
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                args = item.args
                return ast.arguments([], args.args[1:], args.vararg, args.kwonlyargs, args.kw_defaults, args.kwarg, [])
        base = next((b.id for b in node.bases if isinstance(b, ast.Name) and b.id in classes), None)
        if base is None:
            return None
        node = classes[base]
    return None


def _signature(name: str, args: ast.arguments | None, *, is_class: bool) -> Signature:
    if args is None:  # a class whose constructor is not in this file
        return Signature(name, (), ("s",), True, is_class)
    parameters = tuple(
        Parameter(a.arg, default is None, ast.unparse(a.annotation) if a.annotation else "")
        for a, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    )
    positional = tuple(a.arg for a in [*args.posonlyargs, *args.args])
    return Signature(name, parameters, positional, args.kwarg is not None, is_class)


def read(path: Path) -> dict[str, Signature]:
    """Top-level functions and classes of a Python file, by name."""
    return _parse(str(path), path.stat().st_mtime_ns)


def builtin_terms(family: str) -> dict[str, Signature]:
    """The terms of a family, in the order of its files."""
    files = (family, *ALSO_IN.get(family, ()))
    return {name: s for f in files for name, s in read(TERMS / f"{f}.py").items() if s.is_term}


def user_term(target: str, key: str) -> Signature | None:
    """`my_pkg.my_module:my_reward`, found without importing it; None where the module has no source to read.

    Raises: UserError where the module or the name in it does not exist.
    """
    module, _, name = target.partition(":")
    if not module or not name.isidentifier() or not all(p.isidentifier() for p in module.split(".")):
        raise KeyedError(key, f"'{target}' does not name code; write my_pkg.my_module:my_function")
    origin = find_module(module)
    if origin is None:
        raise KeyedError(key, f"no module '{module}' (searched {os.getcwd()} and the installed packages)")
    if origin.suffix != ".py":
        return None
    found = read(origin)
    if name not in found:
        if _assigned(origin, name):
            return None
        public = [n for n in found if not n.startswith("_")]
        raise KeyedError(key, f"{origin} has no '{name}'; it has: {listing(public)}{did_you_mean(name, public)}")
    return found[name]


def _assigned(path: Path, name: str) -> bool:
    """Whether a module binds the name in another way: an import or an assignment."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom) and any(
            (a.asname or a.name) in (name, "*") for a in node.names
        ):
            return True
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return True
    return False


def find_module(module: str) -> Path | None:
    """The file of a module, on the working directory or the Python path. Parent packages are not executed."""
    first, *rest = module.split(".")
    spec = importlib.machinery.PathFinder.find_spec(first, [os.getcwd(), *sys.path])
    if spec is None:  # an editable install has a finder of its own; a top-level name is found without running anything
        try:
            spec = importlib.util.find_spec(first)
        except (ImportError, ValueError):
            spec = None
    full = first
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        full = f"{full}.{part}"
        spec = importlib.machinery.PathFinder.find_spec(full, list(spec.submodule_search_locations))
    if spec is None or spec.origin in (None, "built-in", "frozen"):
        return None
    return Path(spec.origin)


def find_folder(package: str) -> Path | None:
    """The folder `my_pkg.conf` inside a package, which need not be a Python package itself."""
    first, *rest = package.split(".")
    spec = importlib.machinery.PathFinder.find_spec(first, [os.getcwd(), *sys.path]) or importlib.util.find_spec(first)
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location, *rest)
        if folder.is_dir():
            return folder
    return None
