"""What goes wrong in the user's own code, on the disk or in memory is one line, with its place, and exit code 2."""

import errno
import re
from pathlib import Path

import pytest

from isaacrl import cli, mishaps, sim
from isaacrl.config import compose
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.sim import scene
from isaacrl.train import train

TERMS = """import torch


def nothing(s):
    pass


def number(s):
    return 1.0


def outside(s):
    return s.joint_vel[:, 7]


def speeds(s):
    return s.joint_vel[:, 0]


def event(s):
    pass


def late(s):
    if int(s.random.step) > 40:
        raise ValueError("two\\nlines")
    return s.joint_pos[:, 0]


def nan(s):
    return torch.where(s.episode_step > 3, torch.nan, 0.1)
"""
SMALL = ["task=cartpole", "num_envs=16", "algo.iterations=3", "device=cpu", "sim.engine=mujoco", "logger.console=none"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mishap_terms.py").write_text(TERMS)
    (tmp_path / "mishap_broken.py").write_text("def f(s):\n    pass\n\n\nx = 1 / 0\n")
    (tmp_path / "mishap_leaves.py").write_text("def f(s):\n    pass\n\n\nraise SystemExit(3)\n")
    return tmp_path


@pytest.mark.parametrize(
    ("term", "says"),
    [
        (
            "rewards.mine={fn: 'mishap_terms:nothing', weight: 1}",
            "tensor [num_envs], got NoneType (@mishap_terms.py:4)",
        ),
        ("rewards.mine={fn: 'mishap_terms:number', weight: 1}", "must return a tensor [num_envs], got float"),
        ("rewards.mine={fn: 'mishap_terms:outside', weight: 1}", "IndexError: index 7 is out of bounds"),
        ("rewards.mine={fn: 'mishap_terms:late', weight: 1}", "ValueError: two lines (@mishap_terms.py:26)"),
        ("observations.policy.mine={fn: 'mishap_terms:nothing'}", "must return a tensor [num_envs, n], got NoneType"),
        ("terminations.mine={fn: 'mishap_terms:speeds'}", "must return a boolean tensor [num_envs], got torch.float"),
        ("events.mine={fn: 'mishap_terms:event', when: reset}", "TypeError: event() takes 1 positional argument"),
        (
            "rewards.mine={fn: 'mishap_broken:f', weight: 1}",
            "ZeroDivisionError: division by zero (@mishap_broken.py:5)",
        ),
        ("rewards.mine={fn: 'mishap_leaves:f', weight: 1}", "SystemExit: 3 (@mishap_leaves.py:5)"),
    ],
)
def test_a_mistake_in_a_term_of_ones_own(here, capsys, term, says):
    assert cli.main(["train", *SMALL, f"task.{term}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: task.{term.partition('=')[0]}") and says in re.sub(r"\(/\S*/", "(@", line)


def test_a_reward_that_is_not_finite_is_named(here):
    mine = "task.rewards.mine={fn: 'mishap_terms:nan', weight: 1}"
    run = Path(train(compose([*SMALL, mine, "logger.tensorboard=false", "algo.iterations=20"]))["run"])
    (warning,) = [x for x in (run / "warnings.log").read_text().splitlines() if "task.rewards.mine" in x]
    assert "task.rewards.mine: not finite in" in warning and "non-finite" not in (run / "warnings.log").read_text()


@pytest.mark.parametrize("error", [MemoryError(), ValueError("std::bad_alloc"), ValueError("no field")])
def test_worlds_that_do_not_fit(monkeypatch, error):
    def build(*args):
        raise error

    monkeypatch.setattr(sim, "build", build)
    says = "^randomization: no field" if "field" in str(error) else "^num_envs: 16 worlds do not fit in memory"
    with pytest.raises(UserError, match=says):
        Env(compose(SMALL))


def test_disk_and_memory_in_one_line():
    full = OSError(errno.ENOSPC, "No space left on device", "/runs/x.png")
    assert mishaps.explain(full) == "/runs/x.png: No space left on device; make room"
    too_much = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 40 GB")
    assert "num_envs" in (mishaps.explain(too_much) or "")
    assert mishaps.explain(RuntimeError("shapes differ")) is None and mishaps.explain(ZeroDivisionError()) is None


def test_a_full_disk_while_training_says_how_to_go_on(here, monkeypatch, capsys):
    """The last word is that of the checkpoints, not that of run.json, which cannot be written either."""
    from isaacrl import runs

    def full(*args, **kwargs):
        raise runs.CheckpointError(errno.ENOSPC, "No space left on device")

    def refuse(name):
        raise UserError(f"{name}: cannot be written")

    monkeypatch.setattr(runs, "save_checkpoint", full)
    monkeypatch.setattr(runs.Run, "update", lambda self, status, **_: status == "running" or refuse("run.json"))
    assert cli.main(["train", *SMALL, "checkpoint.every=1", "algo.iterations=9"]) == 2
    assert "continue with resume=true" in capsys.readouterr().err


def test_views_are_of_the_robot_not_of_its_large_floor(tmp_path):
    xml = """<mujoco>{}<worldbody><geom type="plane" size="20 20 .1"/><body pos="1 0 .5">
    <joint name="hinge" axis="0 1 0"/><geom type="capsule" size=".1 .4"/></body></worldbody>
    <actuator><motor joint="hinge"/></actuator></mujoco>"""
    for given, extent in (("", 1.0), ('<statistic extent="7"/>', 7.0)):
        (tmp_path / "robot.xml").write_text(xml.format(given))
        keys = [f"asset.path={tmp_path}/robot.xml", "~asset.actuators.cart"]
        model = scene.make_scene(*(compose(["task=cartpole", *keys])[k] for k in ("asset", "task"))).visual_model
        assert model.stat.extent == pytest.approx(extent, abs=0.01)
        if not given:
            assert model.stat.center.tolist() == pytest.approx([1.0, 0.0, 0.5], abs=0.01)
