"""A run keeps its robot: copies of the files, and a word where they are not the same any more."""

import json
import shutil
from pathlib import Path

import pytest

from isaacrl import cli, robot_files
from isaacrl.errors import UserError
from isaacrl.robot_files import RobotFiles
from isaacrl.sim import assets

CART = """<mujoco><include file="parts/pole.xml"/><worldbody/></mujoco>"""
POLE = """<mujoco><worldbody><body name="cart"><joint name="slider" type="slide" axis="1 0 0"/><geom size=".1"/>
<body name="pole" pos="0 0 .5"><joint name="hinge" axis="0 1 0"/><geom type="capsule" size=".04 .2"/></body></body>
</worldbody><actuator><motor name="slide" joint="slider"/></actuator></mujoco>"""
TRAIN = ["task=cartpole", "asset.path=robots/cart.xml", "asset.actuators={}", "num_envs=2", "algo.iterations=1"]
CART_ASSET = {"path": "robots/cart.xml", "actuators": {}}
HERE = ["device=cpu", "sim.engine=mujoco", "logger.console=none"]


def files_of(model: Path) -> list[Path]:
    asset = assets.load(str(model))
    return [asset.file, *asset.others]


@pytest.fixture
def robot(tmp_path, monkeypatch):
    (tmp_path / "robots/parts").mkdir(parents=True)
    (tmp_path / "robots/cart.xml").write_text(CART)
    (tmp_path / "robots/parts/pole.xml").write_text(POLE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "robots"


def the_run() -> Path:
    (folder,) = Path("outputs/cartpole").iterdir()
    return folder


def play(*overrides: str) -> int:
    return cli.main(["play", "video=false", "seconds=0.1", "width=32", "height=32", "device=cpu", *overrides])


def test_a_robot_that_changed_or_is_gone_is_told(robot, capsys):
    assert cli.main(["train", *TRAIN, *HERE]) == 0
    run = the_run()
    kept = json.loads((run / "run.json").read_text())["robot"]
    assert kept["path"] == "robots/cart.xml" and [f["name"] for f in kept["files"]] == ["cart.xml", "parts/pole.xml"]
    copies = run / "robot/robots"
    assert (copies / "cart.xml").read_text() == CART and (copies / "parts/pole.xml").read_text() == POLE
    capsys.readouterr()
    assert play() == 0 and "warning" not in capsys.readouterr().out
    (robot / "parts/pole.xml").write_text(POLE.replace('size=".04 .2"', 'size=".05 .2"'))
    assert play() == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "warning" in x]
    assert "parts/pole.xml" in line and f"asset.path={run}/robot/robots/cart.xml" in line
    shutil.rmtree(robot)
    assert play() == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and f"asset.path={run}/robot/robots/cart.xml" in error
    assert play(f"asset.path={run}/robot/robots/cart.xml") == 0 and "warning" not in capsys.readouterr().out


def test_bundled_and_large_robots_are_not_copied(robot, tmp_path, monkeypatch):
    cart = robot_files.find_file("cartpole.xml")
    assert cart
    bundled = robot_files.record("cartpole.xml", RobotFiles([cart]), tmp_path)
    assert bundled["files"][0]["copy"] is None and not (tmp_path / "robot").exists()
    files = RobotFiles([robot / "cart.xml", robot / "parts/pole.xml"])
    monkeypatch.setattr(robot_files, "MOST", len(CART) + len(POLE) - 1)
    kept = robot_files.record("robots/cart.xml", files, tmp_path)
    assert [f["copy"] for f in kept["files"]] == [None, None] and not (tmp_path / "robot").exists()
    assert robot_files.compare(tmp_path, kept, CART_ASSET, files_of) is None
    (robot / "cart.xml").write_text(CART + "\n")
    warning = robot_files.compare(tmp_path, kept, CART_ASSET, files_of)
    assert warning and "cart.xml" in warning and "copies" not in warning
    assert robot_files.compare(tmp_path, kept, CART_ASSET | {"path": "robots/other.xml"}, files_of) is None, (
        "another robot on purpose"
    )
    assert robot_files.compare(tmp_path, None, CART_ASSET, files_of) is None, "a run of before"


def test_files_beside_the_models_folder_keep_their_places(robot, tmp_path):
    paint = tmp_path / "paint.png"
    paint.write_bytes(b"blue")
    run = tmp_path / "run"
    kept = robot_files.record("robots/cart.xml", RobotFiles([robot / "cart.xml", robot / "parts/pole.xml", paint]), run)
    assert [(f["name"], f["copy"]) for f in kept["files"]] == [
        ("cart.xml", f"robot/{tmp_path.name}/robots/cart.xml"),
        ("parts/pole.xml", f"robot/{tmp_path.name}/robots/parts/pole.xml"),
        ("../paint.png", f"robot/{tmp_path.name}/paint.png"),
    ]
    paint.unlink()
    assert "../paint.png" in (robot_files.compare(run, kept, CART_ASSET, files_of) or "")
    (robot / "cart.xml").unlink()
    with pytest.raises(UserError, match="asset.path=.*run/robot/.*/cart.xml"):
        robot_files.compare(run, kept, CART_ASSET, files_of)


BOX = "".join(f"v {x} {y} {z}\n" for x in (0, 1) for y in (0, 1) for z in (0, 1)) + "f 1 2 3\nf 4 5 6\nf 1 7 8\n"
URDF = """<robot name="foo"><link name="base"><inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0"
 ixz="0" iyz="0"/></inertial><collision><geometry><mesh filename="{}"/></geometry></collision></link></robot>"""


@pytest.mark.parametrize("how", ["package", "absolute"])
def test_copies_of_a_urdf_are_loaded_with_their_own_meshes_or_not_at_all(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "foo_description"
    (package / "urdf").mkdir(parents=True)
    (package / "meshes").mkdir()
    (mesh := package / "meshes/box.obj").write_text(BOX)
    (package / "package.xml").write_text("<package/>")
    (model := package / "urdf/foo.urdf").write_text(
        URDF.format("package://foo_description/meshes/box.obj" if how == "package" else mesh)
    )
    asset, run = {"path": "foo_description/urdf/foo.urdf", "actuators": {}}, Path("outputs/run")
    found = assets.load(str(model), trust=True)
    assert found.others == [mesh]

    def files_with_trust(model: Path) -> list[Path]:
        asset = assets.load(str(model), trust=how == "absolute")
        return [asset.file, *asset.others]

    kept = robot_files.record(asset["path"], RobotFiles([found.file, *found.others]), run)
    mesh.write_text(BOX + "v 2 2 2\n")
    warning = robot_files.compare(run, kept, asset, files_with_trust)
    assert warning and "../meshes/box.obj: changed" in warning
    copy = run / "robot/foo_description/urdf/foo.urdf"
    assert (run / "robot/foo_description/meshes/box.obj").read_text() == BOX
    assert (f"asset.path={copy}" in warning) == (how == "package")
    assert ("outputs/run/robot (not to be loaded" in warning) == (how == "absolute")
    if how == "package":
        for _ in range(2):  # with the package in place, and without it
            assert assets.load(str(copy)).others == [tmp_path / "outputs/run/robot/foo_description/meshes/box.obj"]
            shutil.rmtree(package, ignore_errors=True)
        with pytest.raises(UserError, match=f"asset.path={copy}"):
            robot_files.compare(run, kept, asset, files_with_trust)


@pytest.mark.parametrize("path", ["cartpole.xml", "robots/cart.xml"])
def test_a_network_of_ones_own_is_kept_with_any_robot(robot, tmp_path, path):
    """By the name that the configuration gives it, wherever the robot itself lies."""
    (drive := tmp_path / "drive.pt").write_bytes(b"weights")
    run, asset = tmp_path / "run", {"path": path, "actuators": {"slide": {"law": "network", "file": "drive.pt"}}}
    model = robot_files.find_file(path)
    assert model
    kept = json.loads(json.dumps(robot_files.record(path, RobotFiles([model], {"drive.pt": drive}), run)))
    (network,) = kept["networks"]
    copy = run / network["copy"]
    assert copy.read_bytes() == b"weights" and robot_files.compare(run, kept, asset, files_of) is None
    drive.write_bytes(b"others")
    warning = robot_files.compare(run, kept, asset, files_of)
    assert warning and warning.startswith("asset.actuators.slide.file: drive.pt: changed")
    assert f"asset.actuators.slide.file={copy}" in warning and "asset.path" not in warning
    drive.unlink()
    with pytest.raises(UserError, match=f"^asset.actuators.slide.file: no file 'drive.pt'.*{copy}"):
        robot_files.compare(run, kept, asset, files_of)
    asset["actuators"]["slide"]["file"] = str(copy)
    assert robot_files.compare(run, kept, asset, files_of) is None, "the run's own copy"
