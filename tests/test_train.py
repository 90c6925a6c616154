"""Training: it learns, resumes exactly, exports what it trained, evaluates fairly."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from isaacrl import algos, cli, evaluate, export, runs
from isaacrl.config import compose, load_stored
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.evaluate import run_episodes, statistics
from isaacrl.train import resume, train

TINY = ["num_envs=16", "algo.num_steps=8", "algo.hidden=[16]", "device=cpu", "logger.console=none"]
OFF_POLICY = ["algo.warmup=8", "algo.updates=1", "algo.save_buffer=true"]
OF_ALGORITHM = {"ppo": ["algo.minibatches=2", "algo.epochs=2"], "sac": OFF_POLICY, "td3": OFF_POLICY}
EACH_ALGORITHM = pytest.mark.parametrize("algo", list(OF_ALGORITHM))


def config(outputs: Path, *overrides: str, task="cartpole", algo="ppo"):
    given = [f"task={task}", f"algo={algo}", *TINY, *OF_ALGORITHM[algo], f"outputs={outputs}"]
    return compose([*given, *overrides])


@pytest.mark.parametrize(
    ("task", "engine", "algo"),
    [
        *(
            (task, engine, "ppo")
            for task in ("cartpole", "cartpole_swingup")
            for engine in ("mujoco", "mjwarp", "warp")
        ),
        *(("go2_flat", "mujoco", algo) for algo in ("sac", "td3")),
    ],
)
def test_every_task_and_algorithm_trains_on_every_cpu_engine(tmp_path, task, engine, algo):
    summary = train(config(tmp_path, "algo.iterations=2", f"sim.engine={engine}", task=task, algo=algo))
    assert summary["iterations"] == 2
    rows = [json.loads(x) for x in (Path(summary["run"]) / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(v) for r in rows for v in r.values() if v is not None)
    assert rows[1]["nonfinite"] == 0 and rows[1]["skipped_updates"] == 0


def test_cartpole_is_learned(tmp_path):
    """Solved by the task's own criterion within 70 of its 100 iterations; an untrained policy falls."""
    cfg = compose(["task=cartpole", "device=cpu", "logger.console=none", "algo.iterations=70", f"outputs={tmp_path}"])
    run = Path(train(cfg)["run"])
    env = Env(compose(["task=cartpole", "device=cpu", "num_envs=128", "seed=1000"]))
    untrained = algos.build(env, cfg)
    before = run_episodes(env, untrained.act, 128)["episode_length"].mean()
    trained, _ = algos.load(env, cfg, run, "best")
    after = run_episodes(env, trained.act, 128)["episode_length"].mean()
    assert before < 0.3 and after >= 0.99


def test_the_run_folder_holds_what_the_design_promises(tmp_path):
    path = Path(train(config(tmp_path, "algo.iterations=3", "checkpoint.every=1"))["run"])
    names = {p.name for p in path.iterdir()}
    assert names >= {
        "run.json",
        "config.yaml",
        "metrics.jsonl",
        "tb",
        "checkpoints",
        "policy.onnx",
        "policy.json",
        "summary.json",
    }
    rows = [json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()]
    assert [r["iteration"] for r in rows] == [1, 2, 3] and rows[-1]["env_steps"] == 3 * 8 * 16
    for key in (
        "wall_s",
        "reward",
        "reward/alive",
        "reward/upright",
        "loss/policy",
        "loss/value",
        "kl",
        "lr",
        "std",
        "torque",
        "steps_per_s",
        "time/sim",
        "time/env",
        "time/policy",
        "time/update",
        "nonfinite",
        "overflow",
        "skipped_updates",
    ):
        assert key in rows[-1], key
    assert rows[-1]["reward"] == pytest.approx(sum(v for k, v in rows[-1].items() if k.startswith("reward/")), abs=1e-6)
    state, _ = runs.load_checkpoint(path, "latest")
    assert state["progress"]["iteration"] == 3
    assert load_stored(path / "config.yaml").task.name == "cartpole"
    assert list((path / "tb").iterdir())
    assert json.loads((path / "run.json").read_text())["status"] == "finished"


FULL = [
    "task.commands.goal={fn: uniform, low: [-1], high: [1], resample_s: 0.1}",
    "task.rewards.acc={fn: joint_acc_l2, weight: -1e-5}",
    "task.observations.policy.joint_vel.history=3",
    "task.observations.policy.joint_pos.noise=0.02",
    "task.events.kick={fn: reset_joints, when: interval, interval_s: [0.1, 0.5], position: [-0.1, 0.1]}",
]


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@EACH_ALGORITHM
def test_n_resume_m_equals_n_plus_m_bit_for_bit(tmp_path, algo):
    """Weights, moments, normalizers, environment, simulation, term memory and metrics, in fresh objects."""
    whole = Path(train(config(tmp_path / "a", "algo.iterations=9", *FULL, algo=algo))["run"])
    part = Path(train(config(tmp_path / "b", "algo.iterations=4", *FULL, algo=algo))["run"])
    resume(part, load_stored(part / "config.yaml", ["algo.iterations=9"]))
    a, b = (runs.load_checkpoint(p, "latest")[0] for p in (whole, part))
    for key in ("algo", "env"):
        assert same(a[key], b[key]), key
    timing = {"wall_s", "steps_per_s", "time/sim", "time/env", "time/policy", "time/update", "time/log"}
    rows = [
        [
            {k: v for k, v in json.loads(x).items() if k not in timing}
            for x in (p / "metrics.jsonl").read_text().splitlines()
        ]
        for p in (whole, part)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 9


def test_what_a_resume_changes_holds_from_then_on(tmp_path):
    run = Path(train(config(tmp_path, "algo.iterations=1", "algo.schedule=fixed"))["run"])
    resume(run, load_stored(run / "config.yaml", ["algo.iterations=2", "algo.lr=1e-4"]))
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["lr"] == pytest.approx(1e-3) and rows[1]["lr"] == pytest.approx(1e-4)
    assert load_stored(run / "config.yaml").algo.iterations == 2


def test_a_task_in_code_trains_though_it_cannot_be_exported(tmp_path, monkeypatch):
    (tmp_path / "lean.py").write_text(
        "import isaacrl\n\nclass Lean(isaacrl.Task):\n"
        "    def pre_physics_step(self, s, action):\n        return 3.0 * action\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = Path(train(config(tmp_path, "algo.iterations=1", "task.env='lean:Lean'"))["run"])
    assert (run / "summary.json").is_file() and not (run / "policy.onnx").exists()
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert "in code" in (run / "warnings.log").read_text() and (run / "terms" / "lean.py").is_file()


def test_a_run_of_other_worlds_is_resumed_with_as_many(tmp_path):
    run = Path(train(config(tmp_path, "algo.iterations=1"))["run"])
    with pytest.raises(UserError, match=r"^num_envs: the run has \d+ worlds, here are 3; resume with num_envs=\d+, or"):
        resume(run, load_stored(run / "config.yaml", ["algo.iterations=2", "num_envs=3"]))


def test_resume_of_a_finished_run_says_how_to_go_on(tmp_path):
    run = Path(train(config(tmp_path, "algo.iterations=1"))["run"])
    with pytest.raises(UserError, match=r"algo\.iterations=2"):
        resume(run, load_stored(run / "config.yaml"))


def test_a_policy_for_another_robot_or_observation_is_refused(tmp_path):
    run = Path(train(config(tmp_path, "algo.iterations=1"))["run"])
    other = config(tmp_path, task="cartpole_swingup")
    with pytest.raises(UserError, match="observations"):
        algos.load(Env(other), other, run, "latest")


def test_sigterm_saves_and_the_run_goes_on(tmp_path):
    command = [
        sys.executable,
        "-m",
        "isaacrl",
        "train",
        *TINY,
        f"outputs={tmp_path}",
        "algo.iterations=100000",
        "logger.console=plain",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    metrics = None
    for _ in range(600):
        metrics = next(tmp_path.glob("cartpole/*/metrics.jsonl"), None)
        if metrics and metrics.read_text().count("\n") > 5:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "resume=true" in said
    path = metrics.parent
    stopped = runs.load_checkpoint(path, "latest")[0]["progress"]["iteration"]
    assert stopped == len(metrics.read_text().splitlines()) > 5
    assert cli.main(["train", f"run={path}", "resume=true", f"algo.iterations={stopped + 2}"]) == 0
    assert len(metrics.read_text().splitlines()) == stopped + 2


@EACH_ALGORITHM
def test_exported_policy_acts_as_the_environment_did(tmp_path, algo):
    """Scales, clips, history and normalizer are inside: onnxruntime on raw observations gives the joint targets."""
    import onnxruntime

    scaled = ["task.observations.policy.joint_pos.scale=2.0", "task.observations.policy.joint_vel.clip=1.5", *FULL]
    cfg = config(tmp_path, "algo.iterations=3", *scaled, algo=algo)
    path = Path(train(cfg)["run"])
    contract = json.loads((path / "policy.json").read_text())
    assert contract["parity"]["max_abs_error"] < 1e-5 and contract["parity"]["resets"] > 0
    session = onnxruntime.InferenceSession(path / "policy.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["isaacrl"])["output"] == contract["output"]
    env = Env(cfg)
    agent, _ = algos.load(env, cfg, path, "latest")
    for _ in range(30):
        raw = env.groups[0].raw.numpy().copy()
        target, action = session.run(None, {"obs": raw})
        ours = agent.act(env.obs["policy"])
        _, _, _, _, info = env.step(ours)
        np.testing.assert_allclose(target, info["target"].numpy(), atol=1e-5)
        np.testing.assert_allclose(action, ours.numpy(), atol=1e-5)
    terms = {t["name"]: t for t in contract["input"]["terms"]}
    assert terms["joint_pos"]["parameters"]["biased"] is True
    assert terms["joint_pos"]["unit"] == ["m", "rad"] and terms["joint_vel"]["unit"] == ["m/s", "rad/s"]
    assert terms["joint_vel"]["history"] == 3 and terms["joint_vel"]["components"] == ["slider", "hinge"]
    assert terms["joint_pos"]["scale"] == [2.0, 2.0] and terms["joint_vel"]["clip"][0] == [-1.5, -1.5]
    joint = contract["output"]["joints"][0]
    assert (
        joint["joint"] == "slider"
        and joint["scale"] == 10.0
        and joint["limits"] == [-10.0, 10.0]
        and joint["unit"] == "N"
    )
    assert contract["policy_hz"] == pytest.approx(50.0)


def test_an_export_that_differs_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    cfg = config(tmp_path)
    env = Env(cfg)
    algo = algos.build(env, cfg)
    real = export.Deployed.forward
    monkeypatch.setattr(export.Deployed, "forward", lambda self, obs: tuple(x + 1e-3 for x in real(self, obs)))
    with pytest.raises(UserError, match="differs from the environment"):
        export.export_policy(env, algo, tmp_path, cfg, steps=8)
    assert not (tmp_path / "policy.onnx").exists() and not (tmp_path / "policy.json").exists()


def test_evaluation_counts_each_worlds_first_episodes(tmp_path):
    """A world that ends early must not count more often than one that lasts."""
    env = Env(config(tmp_path, "num_envs=20", "task.events.reset_joints.position=[-0.78,0.78]"))
    zero = lambda obs: torch.zeros(len(obs), 1)  # noqa: E731
    first = run_episodes(env, zero, 20)
    env.reset()
    again = Env(config(tmp_path, "num_envs=20", "task.events.reset_joints.position=[-0.78,0.78]"))
    lengths, alive = torch.zeros(20), torch.ones(20, dtype=torch.bool)
    again.reset()
    for _ in range(again.max_episode_steps):
        _, _, terminated, truncated, _ = again.step(torch.zeros(20, 1))
        lengths += alive
        alive &= ~(terminated | truncated)
    torch.testing.assert_close(first["episode_length"], lengths / again.max_episode_steps)
    assert len(first["return"]) == 20 and first["episode_length"].std() > 0


def test_confidence_interval_by_hand():
    assert statistics(torch.tensor([3.0])) == {"mean": 3.0, "min": 3.0, "max": 3.0} | dict.fromkeys(
        ("ci95_low", "ci95_high", "std")
    )
    s = statistics(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    half = 1.96 * (5 / 3) ** 0.5 / 2
    assert s["mean"] == 2.5 and s["ci95_low"] == pytest.approx(2.5 - half) and s["max"] == 4.0


@EACH_ALGORITHM
def test_eval_and_play_through_the_command_line(tmp_path, capsys, algo):
    run = train(config(tmp_path, "algo.iterations=1", algo=algo))["run"]
    assert cli.main(["eval", f"run={run}", "episodes=30", "device=cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "solved: no"
    result = json.loads((Path(run) / "eval.json").read_text())
    assert result["metrics"]["episode_length"]["mean"] < 0.99 and result["solved"]["solved"] is False
    assert cli.main(["play", f"run={run}", "seconds=0.5", "num_envs=2", "width=96", "height=64", "device=cpu"]) == 0
    videos = list((Path(run) / "videos").iterdir())
    assert {p.suffix for p in videos} == {".mp4", ".png"} and all(p.stat().st_size > 200 for p in videos)


def test_an_evaluation_takes_as_many_worlds_as_told(tmp_path, monkeypatch):
    run, seen = train(config(tmp_path, "algo.iterations=1"))["run"], []
    monkeypatch.setattr(evaluate, "Env", lambda cfg: seen.append(cfg.num_envs) or Env(cfg))
    for given in ([], ["num_envs=7"], ["num_envs=100"]):
        assert cli.main(["eval", f"run={run}", "episodes=30", "device=cpu", *given]) == 0
        assert json.loads((Path(run) / "eval.json").read_text())["episodes"] == 30
    assert seen == [30, 6, 30]


def test_a_full_disk_does_not_end_training(tmp_path, monkeypatch):
    real, calls = runs.save_checkpoint, []

    def flaky(*args, **kwargs):
        calls.append(args[2])
        if len(calls) == 1:
            raise runs.CheckpointError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr("isaacrl.runs.save_checkpoint", flaky)
    path = Path(train(config(tmp_path, "algo.iterations=4", "checkpoint.every=1"))["run"])
    assert calls[:2] == [1, 2] and runs.load_checkpoint(path, "latest")[1]["iteration"] == 4
