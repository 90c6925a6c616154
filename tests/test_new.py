"""`isaacrl new`: from a model file to a robot, a task and a training run; nothing is overwritten."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from isaacrl import cli
from isaacrl.config import compose
from isaacrl.env import Env

ASSETS = Path(cli.__file__).parent / "assets"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pybullet(name):
    found = find_spec("pybullet_data")
    if found is None:
        pytest.skip("pybullet is not installed")
    return Path(found.submodule_search_locations[0]) / name


def run(*args):
    assert cli.main(["new", *map(str, args)]) == 0


def test_from_pybullets_laikago_to_a_training_run(tmp_path, capsys):
    run("asset", "laikago", f"path={pybullet('laikago/laikago_toes_zup.urdf')}")
    assert "next: isaacrl new task laikago_task asset=laikago" in capsys.readouterr().out
    run("task", "trot", "asset=laikago")
    assert "next: isaacrl train task=trot" in capsys.readouterr().out
    asset = compose(["task=trot"]).asset
    assert asset.floating and asset.base == "chassis" and sorted(asset.feet) == ["toeFL", "toeFR", "toeRL", "toeRR"]
    assert len(asset.default_pose) == 12 and asset.actuators.all.effort_limit == 100.0  # the URDF's
    train = ["train", "task=trot", "num_envs=16", "algo.iterations=2", "device=cpu", "logger.console=none"]
    assert cli.main([*train, "algo.minibatches=1", "logger.tensorboard=false"]) == 0
    assert list(tmp_path.glob("outputs/trot/*/summary.json"))


@pytest.mark.parametrize(
    ("file", "table", "term"),
    [("go2.xml", "commands", "velocity"), ("franka.xml", "commands", "pose"), ("cartpole.xml", "rewards", "pose")],
)
def test_each_kind_of_robot_gets_a_task_that_runs(file, table, term):
    """Floating: velocity tracking; an arm with a tool: reaching; few joints: holding a pose."""
    run("asset", "mine", f"path={ASSETS / file}")
    run("task", "go", "asset=mine")
    cfg = compose(["task=go", "num_envs=2", "device=cpu", "sim.num_threads=1"])
    assert term in cfg.task[table]
    env = Env(cfg)
    low = env.state.robot.joint_pos_limits[:, 0]
    high = env.state.robot.joint_pos_limits[:, 1]
    pose = env.state.robot.default_joint_pos
    assert bool(((low <= pose) & (pose <= high)).all())
    for _ in range(20):  # it stays up by itself for a while
        terminated = env.step(env.state.action * 0.0)[2]
        assert not terminated.any() and env.engine.overflow.sum() == 0


def test_bundled_quadruped_gets_its_own_feet_and_limits():
    """The guesses against what the bundled asset's author wrote."""
    run("asset", "dog", f"path={ASSETS / 'go2.xml'}")
    guess, known = compose(["asset=dog"]).asset, compose(["asset=go2"]).asset
    assert len(guess.feet) == 4 and guess.base == known.base
    covered = [joint for group in guess.actuators.values() for joint in group.joints]
    assert covered == [".*"] or len(covered) == 12


REFUSED = {
    "write new asset NAME path=FILE": [[], ["robot", "x"]],
    "path is missing": [["asset", "x"]],
    "asset is missing": [["task", "x"]],
    "needs one name": [["asset", "path=a.xml"], ["asset", "a", "b", "path=a.xml"]],
    "is no name": [["asset", "../x", "path=a.xml"], ["task", "a-b", "asset=go2"]],
    "unknown key 'pth'; did you mean path?": [["asset", "x", "path=a.xml", "pth=b"]],
    "does not take asset": [["asset", "x", "path=a.xml", "asset=go2"]],
    "the name 'go2' is taken by": [["asset", "go2", "path=a.xml"]],
    "no file 'a.xml'": [["asset", "x", "path=a.xml"]],
    "did you mean cartpole": [["task", "x", "asset=cartpool"]],
}


@pytest.mark.parametrize("message", REFUSED)
def test_mistakes_write_nothing(message, capsys, tmp_path):
    for args in REFUSED[message]:
        assert cli.main(["new", *args]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_joints_need_names(capsys, tmp_path):
    (tmp_path / "a.xml").write_text(
        "<mujoco><worldbody><body><joint/><geom size='.1'/></body></worldbody></mujoco>", encoding="utf-8"
    )
    assert cli.main(["new", "asset", "x", "path=a.xml"]) == 2
    assert "have no names" in capsys.readouterr().err and not Path("conf").exists()


def test_nothing_is_overwritten(capsys):
    run("asset", "dog", f"path={ASSETS / 'go2.xml'}")
    Path("conf/asset/dog.yaml").write_text("mine")
    assert cli.main(["new", "asset", "dog", f"path={ASSETS / 'go2.xml'}"]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert Path("conf/asset/dog.yaml").read_text() == "mine"
