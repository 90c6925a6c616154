"""`isaacrl bench` measures what it says, finds the number of worlds that pay; start-up phases add up to the start."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import isaacrl
from isaacrl import bench, cli, startup, train
from isaacrl.errors import UserError
from isaacrl.startup import Phases, process_began

SMALL = ["task=cartpole", "device=cpu", "algo.num_steps=8", "algo.hidden=[16]", "algo.epochs=1", "logger.console=none"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written() -> dict:
    (file,) = Path("outputs/cartpole").glob("bench_*/bench.json")
    return json.loads(file.read_text())


def test_the_figures_fit_together(capsys):
    assert cli.main(["bench", *SMALL, "num_envs=16", "iterations=4", "warmup=2"]) == 0
    r = written()
    ms = r["iteration_ms"]
    assert ms["total"] == pytest.approx(sum(v for k, v in ms.items() if k != "total"))
    assert all(v > 0 for v in ms.values()) and r["iteration_ms_range"][0] <= ms["total"] <= r["iteration_ms_range"][1]
    assert r["steps_per_iteration"] == 8 * 16
    assert r["env_steps_per_s"] == pytest.approx(8 * 16 / (ms["total"] / 1e3))
    assert r["physics_steps_per_s"] == pytest.approx(2 * r["env_steps_per_s"])  # a decimation of 2
    assert (r["overflow"], r["nonfinite"], r["skipped_updates"]) == (0, 0, 0)
    assert r["memory"] is None and r["device"] == "cpu" and r["engine"] == "mujoco" and "CPU" in r["engine_reason"]
    assert r["versions"].keys() >= {"isaacrl", "torch", "mujoco", "warp-lang"} and r["device_name"]
    assert list(r["startup_s"]) == ["scene", "networks", "first iteration"] and "auto" not in r
    out = " ".join(capsys.readouterr().out.split())
    for part in ("environment steps/s", "physics steps/s", "update", "first iteration", "nonfinite", "bench.json"):
        assert part in out
    assert not list(Path("outputs").glob("*/*/run.json"))


def test_only_what_happens_in_the_measurement_is_counted(monkeypatch):
    """Every world ends its episodes in their tenth step: in 7 iterations of 16 steps, the last 5 of which count."""
    Path("spoils.py").write_text(
        "import torch\n\n\ndef tenth(s):\n    return s.episode_step >= 10\n\n\n"
        "def bad(s):\n    return torch.full_like(s.episode_time, torch.nan)\n"
    )
    monkeypatch.syspath_prepend(Path.cwd())
    planted = ["task.terminations.tenth={fn: 'spoils:tenth'}", "task.rewards.bad={fn: 'spoils:bad', weight: 1}"]
    args = ["bench", *SMALL, *planted, "num_envs=4", "algo.num_steps=16", "iterations=5", "warmup=2"]
    assert cli.main(args) == 0
    r = written()
    ended = r["resets"]
    assert r["spoilt_rewards"] == 4 * 16 * 5 and r["nonfinite"] == 0 and ended == 4 * (7 * 16 // 10 - 2 * 16 // 10)


def fake(speeds: dict[int, float], room: int | None = None, total: int = 100):
    """Measurements of a machine that has these speeds; worlds take a byte each of its memory."""
    asked = []

    def measured(n):
        asked.append(n)
        if room is not None and n > room:
            raise bench.NoRoom(f"num_envs: {n} worlds do not fit")
        memory = {"device_bytes": 10 + n, "device_before_bytes": 10, "device_total_bytes": total}
        return {"num_envs": n, "env_steps_per_s": speeds[n], "memory": None if total == 0 else memory}

    return measured, asked


@pytest.mark.parametrize(
    ("speeds", "room", "total", "asked", "chosen", "reason"),
    [
        ({16: 100, 32: 150, 64: 160}, None, 0, [16, 32, 64], 32, "only 7% faster"),
        ({16: 100, 32: 150, 64: 120}, None, 0, [16, 32, 64], 32, "20% slower"),
        ({16: 100, 32: 99}, None, 0, [16, 32], 16, "1% slower"),
        ({16: 100, 32: 190, 64: 350}, None, 100, [16, 32], 32, "64 worlds would take about"),  # 74 of 100 bytes
        ({16: 100, 32: 190, 64: 350, 128: 600}, 64, 1000, [16, 32, 64, 128], 64, "128 worlds do not fit"),
    ],
)
def test_auto_doubles_until_it_does_not_pay(speeds, room, total, asked, chosen, reason):
    measured, seen = fake(speeds, room, total)
    tries, result, why = bench.choose(measured, 16)
    assert seen == asked and result["num_envs"] == chosen and reason in why
    assert [t["num_envs"] for t in tries] == [n for n in asked if room is None or n <= room]


def test_auto_ends(monkeypatch):
    monkeypatch.setattr(bench, "MOST", 64)
    measured, asked = fake({16 * 2**i: 100 * 2**i for i in range(9)}, total=0)
    assert bench.choose(measured, 16)[1]["num_envs"] == 64 and asked == [16, 32, 64]


def test_a_first_try_without_room_is_the_users_to_mend():
    measured, _ = fake({}, room=1)
    with pytest.raises(UserError, match="do not fit"):
        bench.choose(measured, 16)


def test_auto_from_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(bench, "FIRST_CPU", 4)
    monkeypatch.setattr(bench, "MOST", 8)
    assert cli.main(["bench", *SMALL, "num_envs=auto", "iterations=2", "warmup=1"]) == 0
    r, out = written(), capsys.readouterr().out
    assert [t["num_envs"] for t in r["auto"]["tries"]] == [4, 8] and r["startup_num_envs"] == 4
    assert r["num_envs"] == r["auto"]["chosen"] and f"num_envs={r['num_envs']}: {r['auto']['reason']}" in out
    assert "chosen" in out


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("Failed to allocate 9 B")])
def test_no_room_in_memory_is_one_line(error, monkeypatch, capsys):
    def refuse(cfg):
        raise error

    monkeypatch.setattr(train, "Env", refuse)
    assert cli.main(["bench", *SMALL, "num_envs=64"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: num_envs: 64 worlds do not fit") and err.count("\n") == 1
    assert not Path("outputs").exists()


def test_other_errors_stay_what_they_are(monkeypatch):
    def refuse(cfg):
        raise RuntimeError("boom")

    monkeypatch.setattr(train, "Env", refuse)
    with pytest.raises(RuntimeError, match="boom"):
        cli.main(["bench", *SMALL, "--debug"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["num_envs=autoo"], ["num_envs", "integer"]),
        (["num_envs=0"], ["num_envs", ">= 1"]),
        (["iterations=0"], ["iterations", ">= 1"]),
        (["warmup=0"], ["warmup", ">= 1"]),
        (["num_env=3"], ["did you mean num_envs?"]),
        (["task=cartpol"], ["did you mean cartpole"]),
        (["algo.minibatches=7", "num_envs=auto"], ["algo.minibatches"]),
        (["-m", "seed=1,2"], ["bench: takes no --multirun"]),
        (["--fast"], ["--fast"]),
    ],
)
def test_bad_input_is_one_line(args, words, capsys):
    assert cli.main(["bench", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert all(w in err for w in words), err
    assert not list(Path.cwd().iterdir())


def test_outputs_that_cannot_be_written(capsys):
    Path("file").write_text("")
    assert cli.main(["bench", *SMALL, "num_envs=4", "iterations=1", "warmup=1", "outputs=file"]) == 2
    assert "outputs=" in capsys.readouterr().err


# --- start-up --------------------------------------------------------------------------------------------------------


def test_phases_split_off_what_others_have_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    engine, algo = SimpleNamespace(compile_seconds=0.0), SimpleNamespace(capture_seconds=0.0)
    phases, env = Phases(), SimpleNamespace(compile_seconds=0.0, engine=engine)
    for name, seconds, engines, steps, captured in (
        ("scene", 5.0, 3.0, 0.0, 0.0),
        ("networks", 1.0, 3.0, 0.0, 0.0),
        ("first iteration", 4.0, 3.0, 0.5, 2.0),
    ):
        now[0] += seconds
        engine.compile_seconds, env.compile_seconds, algo.capture_seconds = engines, steps, captured
        phases.done(name, env, algo)
    expected = {"scene": 2.0, "compile": 3.5, "networks": 1.0, "capture": 2.0, "first iteration": 1.5}
    assert phases.seconds == pytest.approx(expected) and list(phases.seconds) == list(expected)
    now[0] += 1.0
    phases.done("first iteration", SimpleNamespace(engine=None), SimpleNamespace())  # nobody counts
    assert sum(phases.seconds.values()) == pytest.approx(11.0)


def test_the_process_began_when_the_system_says():
    root = str(Path(isaacrl.__file__).parent.parent)
    code = (
        f"import sys, time; time.sleep(0.3); sys.path.insert(0, {root!r})\n"
        "from isaacrl.startup import process_began\nprint(time.perf_counter() - process_began())"
    )
    before = time.perf_counter()
    age = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    elapsed = time.perf_counter() - before
    assert age <= elapsed + 0.02  # the system counts in hundredths
    if sys.platform == "linux":
        assert age > 0.28
    assert process_began() <= startup._imported


def test_only_the_first_start_of_a_program_has_imports():
    startup.count_from_process_start()
    shown = []
    for _ in range(2):
        phases = Phases()
        phases.done("scene")
        shown.append(list(phases.seconds))
    assert shown == [["imports", "scene"], ["scene"]]


def test_training_prints_phases_that_add_up_to_the_start():
    """From the start of the process to the end of the first iteration, as a clock outside sees it."""
    root = str(Path(isaacrl.__file__).parent.parent)
    args = [*SMALL[:-1], "num_envs=4", "algo.iterations=1", "logger.tensorboard=false", "logger.console=plain"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "isaacrl", "train", *args],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": root, "PATH": ""},
    )
    assert process.stdout is not None
    line = next(x for x in process.stdout if x.startswith("start-up "))
    elapsed = time.perf_counter() - began
    process.communicate(timeout=60)
    total, parts = line.removeprefix("start-up ").split(" s: ")
    phases = {name: float(s) for name, _, s in (p.strip().rpartition(" ") for p in parts.split(","))}
    assert list(phases) == ["imports", "scene", "networks", "logging", "first iteration"]
    assert sum(phases.values()) == pytest.approx(float(total), abs=0.03)
    assert float(total) <= elapsed + 0.05 and elapsed - float(total) < 1.0
