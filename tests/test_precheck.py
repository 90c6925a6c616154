"""`isaacrl check` finds what is planted, and leaves a sound task alone."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from isaacrl import cli
from isaacrl.config import compose
from isaacrl.options import CheckOptions
from isaacrl.precheck import precheck
from isaacrl.precheck_probe import Spread, both
from isaacrl.precheck_report import judge, show

MODULE = """
import torch
from isaacrl.task import Task

def negative(s): return -1.0 - s.joint_pos[:, 0].abs()
def nothing(s): return torch.zeros(s.num_envs)
def broken(s): return torch.where(s.episode_step > 5, torch.nan, 0.5)
def large(s): return 100.0 * s.joint_pos
def fixed(s): return torch.ones(s.num_envs, 2)
def at_once(s): return s.episode_step == 1

class Own(Task):
    num_actions = 1
    reward_names = ["up", "still"]
    def pre_physics_step(self, s, action): return 10 * action
    def observations(self, s): return {"policy": torch.cat((s.joint_pos, s.joint_vel), 1)}
    def rewards(self, s): return torch.stack((s.joint_pos[:, 1].cos(), -s.joint_vel[:, 0].abs()), 1)
    def dones(self, s): return s.joint_pos[:, 1].abs() > 1, torch.zeros_like(s.terminated)
"""


@pytest.fixture(autouse=True)
def beside_a_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "planted.py").write_text(MODULE)


def run(*overrides: str, seconds: float = 1.0) -> dict:
    return precheck(CheckOptions(seconds=seconds), compose(["task=cartpole", "num_envs=16", "device=cpu", *overrides]))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return run("num_envs=500", f"outputs={tmp_path_factory.mktemp('sound')}")


def test_a_sound_task_is_ok(sound):
    assert (sound["verdict"], sound["errors"], sound["warnings"]) == ("ok", [], [])
    robot = sound["robot"]
    assert (robot["mass"], robot["policy_hz"], robot["episode_steps"]) == (pytest.approx(1.1), 50, 500)
    assert sound["num_envs"] == 64  # enough to see, whatever training takes
    for e in sound["episodes"].values():
        assert sum(e["ends"].values()) >= e["ended"] > 50 and e["ends"]["time"] == 0  # the pole falls unattended
    terms = sound["rewards"]
    assert terms["terminated"]["min"] == pytest.approx(-2 / 0.02)  # weighted, per second: once in a step of 0.02 s
    assert sum(t["share"] for t in terms.values()) == pytest.approx(1)
    assert abs(terms["pole_speed"]["max"]) < 1e-3 and terms["pole_speed"]["zero"] < 0
    seen = sound["observations"]["policy"]["joint_pos"]
    assert seen["max"] <= 1.75 and seen["size"] == 2  # the rail ends at 1.8 m, an episode at 1.7 m


def test_actions_are_gaussian_and_clipped_where_they_should_be(sound):
    """Of a normal distribution 31.7 % lie beyond one standard deviation, which is the clip; the motor is then full."""
    assert sound["actions"]["clipped"] == pytest.approx(0.317, abs=0.02)
    slider = sound["actions"]["actuators"]["slider"]
    assert slider["target_at_limit"] == pytest.approx(0.317, abs=0.02) and slider["saturated"] > 0.25


def test_the_report_is_written_and_shows_every_term(sound, capsys):
    folder = Path(sound["picture"]).parent
    written = json.loads((folder / "check.json").read_text())
    assert written["rewards"].keys() == sound["rewards"].keys() and written["verdict"] == "ok"
    assert (folder / "start.png").read_bytes()[1:4] == b"PNG"
    show(sound)
    out = capsys.readouterr().out
    for part in (*sound["rewards"], "policy.joint_vel", "off_rail", "fallen", "start.png", "verdict: ok", "50 Hz"):
        assert part in out


def test_planted_mistakes_are_found(capsys):
    found = run(
        "task.rewards.pays={fn:'planted:negative',weight:-5000}",
        "task.rewards.costs={fn:'planted:negative',weight:0.1}",
        "task.rewards.dead={fn:'planted:nothing',weight:1}",
        "task.rewards.never={fn:'planted:nothing',weight:-1}",
        "task.observations.policy.large={fn:'planted:large'}",
        "task.observations.policy.fixed={fn:'planted:fixed'}",
        "task.observations.policy.tight={fn:joint_pos,clip:0.001}",
        "task.actions.effort.scale=1000",
        "algo.normalize_obs=false",
    )
    flags = {name: t["flag"] for name, t in found["rewards"].items()}
    assert (flags["pays"], flags["costs"], flags["dead"], flags["never"]) == (
        "penalty pays",
        "reward costs",
        *["dead"] * 2,
    )
    text = "\n".join(found["warnings"])
    for part in (
        "task.rewards.pays: the penalty pays",
        "task.rewards.costs: the reward costs",
        "task.rewards.dead: dead",
        "observations.policy.large: reaches",
        "observations.policy.fixed: constant, always 1.000",
        "observations.policy.tight: at its clip",
        "targets are at their limit",
    ):
        assert part in text, part
    assert "task.rewards.never" not in text and any("task.rewards.never" in n for n in found["notes"])
    assert found["verdict"] == "warnings" and found["errors"] == []


def test_an_end_at_the_first_step_is_found():
    found = run("task.terminations.early={fn:'planted:at_once'}", seconds=0.3)
    assert found["episodes"]["zero"]["at_first_step"] == found["episodes"]["zero"]["ended"] > 0
    assert any("task.terminations.early" in w and "first step" in w for w in found["warnings"])


def test_what_is_not_finite_is_an_error_and_exit_code_1(capsys):
    args = ["check", "task=cartpole", "num_envs=8", "device=cpu", "seconds=0.3"]
    assert cli.main([*args, "task.rewards.bad={fn:'planted:broken',weight:1}"]) == 1
    assert "error: task.rewards.bad: not finite" in capsys.readouterr().out
    assert cli.main([*args, "task.rewards.upright.weigth=1"]) == 2  # a mistake in the configuration comes first
    assert cli.main([*args, "-m"]) == 2 and "check: takes no --multirun" in capsys.readouterr().err


def test_a_task_written_as_one_class():
    without = [f"~task.{x}" for x in ("actions.effort", "terminations.fallen", "terminations.off_rail")]
    found = run("task.env=planted:Own", *without, seconds=0.5)
    assert set(found["rewards"]) == {"up", "still"} and found["rewards"]["still"]["weight"] is None
    assert found["rewards"]["up"]["max"] == pytest.approx(1, abs=0.01)
    assert found["observations"]["policy"]["all"]["size"] == 4
    ends = found["episodes"]["random"]["ends"]
    assert ends["terminated"] == found["episodes"]["random"]["ended"] > 0


def test_capacity_under_mujoco_warp_on_a_cpu():
    found = run("sim.engine=mjwarp", "sim.nconmax=24", "sim.njmax=40", seconds=0.2)
    limits = found["constraints"]
    assert (found["engine"], limits["nconmax"], limits["njmax"], limits["overflow"]) == ("mjwarp", 24, 40, 0)
    assert found["verdict"] == "ok"


def test_capacity_under_warp(capsys):
    """It has no bound on rows, so it names none."""
    found = run("sim.engine=warp", "sim.nconmax=24", seconds=0.2)
    limits = found["constraints"]
    assert (found["engine"], limits["nconmax"], limits["njmax"], limits["overflow"]) == ("warp", 24, None, 0)
    assert " contacts of 24 and " in capsys.readouterr().out
    found["constraints"] |= {"overflow": 7, "suggested_nconmax": 32}
    assert any(w.endswith("in 7 steps: sim.nconmax=32") for w in judge(found)["warnings"])


def test_physical_mistakes_are_judged(sound):
    r = copy.deepcopy(sound)
    r["start"] |= {"penetration": 0.03, "between": ["foot", "ground"], "joints_at_limits": ["knee"]}
    r["constraints"] |= {"overflow": 7, "suggested_nconmax": 32}
    r["episodes"]["random"] |= {"min_s": 0.22, "max_s": 0.24}
    judged = judge(r)
    text = "\n".join(judged["warnings"])
    assert "foot and ground overlap by 3.0 cm" in text and "in 7 steps: sim.nconmax=32" in text
    assert "what the policy does makes no difference" in text and "knee" in judged["notes"][-1]
    assert judge(sound | {"nonfinite_worlds": 2})["verdict"] == "broken"


def test_spread_agrees_with_numpy():
    rows = np.random.default_rng(0).normal(3, 2, (40, 8, 3)).astype(np.float32)
    rows[..., 2] = 5
    spreads = Spread(), Spread()
    for i, r in enumerate(rows):
        spreads[i % 2].add(torch.from_numpy(r))
    found, flat = both(*spreads).summary(slice(0, 2)), rows[..., :2].reshape(-1, 2).astype(float)
    assert found["mean"] == pytest.approx(flat.mean()) and found["abs"] == pytest.approx(np.abs(flat).mean())
    assert found["std"] == pytest.approx(np.sqrt(flat.var(0).mean()))
    assert (found["min"], found["max"], found["constant"]) == (flat.min(), flat.max(), 0)
    assert both(*spreads).summary()["constant"] == 1
    spreads[0].add(torch.tensor([[1.0, torch.nan, torch.inf]]))
    assert [spreads[0].summary(slice(i, i + 1))["nonfinite"] for i in range(3)] == [0, 1, 1]
