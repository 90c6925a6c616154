"""Imports go one way, and nothing loads pickles."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "isaacrl"
# The layers of docs/design.md, lowest first. A module imports from its own layer and from those below it. All others
# (config, errors, runs, log, render, ...) stand beside the layers and import none of them.
LAYERS = [
    {"fuse", "random", "sim", "timer"},
    {"state", "ground"},
    {"terms"},
    {"task"},
    {"env", "library"},
    {"algos"},
    {
        "train",
        "bench",
        "play",
        "evaluate",
        "export",
        "precheck",
        "precheck_probe",
        "precheck_report",
        "contract",
        "randomization",
        "doctor",
        "viewer",
        "new",
        "new_asset",
        "new_task",
    },
    {"cli", "sweep", "completion", "__init__", "__main__"},
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
BESIDE = -1
LAZY = {"make": "library", "Task": "task"}  # names of isaacrl itself, and where they come from
FILES = sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST, package: list[str]) -> set[str]:
    """Modules right below isaacrl that a file imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("isaacrl.")}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join(filter(None, [*base, node.module]))
            if source == "isaacrl":
                names |= {f"isaacrl.{LAZY.get(alias.name, alias.name)}" for alias in node.names}
            elif source.startswith("isaacrl."):
                names.add(source)
    return {name.split(".")[1] for name in names if not name.startswith("isaacrl.__")}


def upward(path: Path, source: str) -> list[str]:
    package = ["isaacrl", *path.relative_to(ROOT).parts[:-1]]
    level = LEVEL.get(module_of(path), BESIDE)
    return sorted(name for name in imported(ast.parse(source), package) if LEVEL.get(name, BESIDE) > level)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    assert not upward(path, path.read_text()), f"{path.name} imports a layer above its own"


@pytest.mark.parametrize(
    "line",
    [
        "from isaacrl.env import Env",
        "from isaacrl import env",
        "import isaacrl.cli",
        "def f():\n    from isaacrl import make",
        "from ..env import Env",
        "from .. import env",
    ],
)
def test_the_rule_sees_every_form_of_import(line):
    assert upward(ROOT / "terms" / "rewards.py", line)


PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def unsafe_loads(source: str) -> list[int]:
    """Lines that can run code from a data file: pickle modules, torch.load without weights_only=True, numpy pickles."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if {name.split(".")[0] for name in names} & PICKLES:
                lines.append(node.lineno)
        elif isinstance(node, ast.Call):
            given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            if ast.unparse(node.func) == "torch.load" and given.get("weights_only") is not True:
                lines.append(node.lineno)
            if given.get("allow_pickle") or given.get("weights_only") is False:
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_loads_pickles(path):
    assert not unsafe_loads(path.read_text())


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_the_rule_sees_unsafe_loads(line):
    assert unsafe_loads(line)
