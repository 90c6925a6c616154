"""What a user installs: the wheel in a clean environment, the pins, the entry points of make and CI."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import isaacrl
from isaacrl.sim.fused import kernel

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    Requirement(r)
    for r in PROJECT["dependencies"] + [r for rs in PROJECT["optional-dependencies"].values() for r in rs]
]
STAGES = list(ROOT.glob("isaacrl/sim/fused/stages/*.h"))  # sources that are compiled where isaacrl runs
PINS = dict(
    re.match(r"([\w.-]+)==(\S+)$", line).groups()
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
PINS = {canonicalize_name(name): version for name, version in PINS.items()}


def run(*command, cwd=ROOT):
    """The finished process; its output is shown if it failed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    process = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process


def pip_wheel(source, folder):
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return pip_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """bin/ of a new environment with the wheel; its requirements are borrowed from this one, isaacrl itself is not."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, symlinks=True)
    binaries = home / "bin"
    run(sys.executable, "-m", "pip", "--python", binaries / "python", "install", "-q", "--no-deps", wheel)
    site = next((home / "lib").glob("python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return binaries


def test_the_wheel_carries_configuration_models_and_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in [
        *ROOT.glob("conf/**/*.yaml"),
        *ROOT.glob("isaacrl/assets/**/*.xml"),
        *ROOT.glob("isaacrl/**/*.py"),
        *STAGES,
    ]:
        name = path.relative_to(ROOT).as_posix()
        assert (f"isaacrl/{name}" if name.startswith("conf/") else name) in names
    assert "isaacrl/py.typed" in names and len(STAGES) == len(kernel.STAGES)
    assert {name.split("/")[0] for name in names} == {"isaacrl", f"isaacrl-{isaacrl.__version__}.dist-info"}


def test_a_source_distribution_builds_the_same_wheel(wheel, tmp_path):
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", tmp_path / "sdist")
    again = pip_wheel(next((tmp_path / "sdist").glob("*.tar.gz")), tmp_path)
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_the_installed_command_knows_its_tasks(installed, tmp_path):
    assert "train" in run(installed / "isaacrl", "--help", cwd=tmp_path).stdout
    assert "cartpole_swingup" in run(installed / "isaacrl", "list", cwd=tmp_path).stdout
    where = run(installed / "python", "-c", "import isaacrl, sys; print(isaacrl.__file__)", cwd=tmp_path).stdout
    assert Path(where.strip()).is_relative_to(installed.parent)


@pytest.mark.parametrize("engine", ["auto", "warp"])
def test_the_installed_command_trains(installed, tmp_path, engine):
    """Configuration, robot and the sources of engine warp come out of the wheel."""
    run(
        installed / "isaacrl",
        "train",
        "task=cartpole",
        "num_envs=16",
        "algo.iterations=1",
        "algo.minibatches=1",
        "device=cpu",
        f"sim.engine={engine}",
        "logger.tensorboard=false",
        cwd=tmp_path,
    )
    assert list(tmp_path.glob("outputs/cartpole/*/summary.json"))


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_every_requirement_is_pinned_within_its_range(requirement):
    if requirement.name == "isaacrl":
        assert requirement.extras <= set(PROJECT["optional-dependencies"])
        return
    version = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


def test_pins_fit_every_platform():
    assert not [name for name in PINS if name.startswith(("nvidia", "cuda"))]
    assert not [version for version in PINS.values() if "+" in version]


def test_every_target_of_make_is_explained():
    assert shutil.which("make"), "the Makefile is the way in; install make"
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", text, re.M).group(1).split()
    listed = re.findall(r"^  make (\w+) +\S", run("make", "--no-print-directory").stdout, re.M)
    assert listed == targets


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^exec make test$", script.read_text(), re.M)
