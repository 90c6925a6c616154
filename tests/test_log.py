"""Logging: nothing lost, nothing twice, no output that can stop a run, and views that fit the terminal."""

import io
import json
import math
import os
import pty
import select
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from isaacrl import console, log
from isaacrl.progress import Series, Status, duration, number, quantity, shown_path
from isaacrl.schema import LoggerConfig

TERMS = [
    "upright",
    "track_lin_vel",
    "joint_deviation_of_both_hips_and_knees",
    "action_rate",
    "torque",
    "air_time",
    "x" * 60,
]


def quiet(**kwargs) -> LoggerConfig:
    return LoggerConfig(**{"console": "none", "tensorboard": False} | kwargs)


def metrics(i: int) -> dict[str, float]:
    """What a trainer sends; no episode ends in the first two iterations."""
    out = {
        "iteration": i,
        "env_steps": i * 1000,
        "wall_s": i * 0.5,
        "reward": 0.5,
        "torque": 12.3,
        "loss/policy": -0.0123,
        "loss/value": 0.2,
        "entropy": 3.2,
        "kl": 0.0098,
        "lr": 1e-3,
        "std": 0.8,
        "clip_fraction": 0.12,
        "grad_norm": 0.5,
        "steps_per_s": 185e3,
        "time/sim": 0.31,
        "time/env": 0.05,
        "time/policy": 0.04,
        "time/update": 0.1,
        "nonfinite": 0,
        "overflow": 0,
        "skipped_updates": 0,
    }
    out |= {f"reward/{name}": (-1) ** k / (k + 1) for k, name in enumerate(TERMS)}
    if i > 2:
        out |= {"return": 10.0 * i, "episode_length": 5.0 * i, "metric/tip_height": 0.9}
    return out


def open_quiet(path: Path, start: int = 0, **kwargs) -> log.Log:
    return log.open_log(
        quiet(**kwargs), path, title="cartpole ppo", iterations=100, start_iteration=start, reward_terms=TERMS
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


# --- metrics.jsonl ---------------------------------------------------------------------------------------------------


def test_one_strict_json_object_an_iteration_at_once(tmp_path):
    run = open_quiet(tmp_path)
    for i in range(1, 4):
        run.log(metrics(i) | {"bad": math.nan, "worse": -math.inf}, i)
        assert [r["iteration"] for r in lines(tmp_path)] == list(range(1, i + 1))  # before close
    run.close(None)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line, parse_constant=refuse)
        assert record["bad"] is None and record["worse"] is None and record["lr"] == 1e-3
    assert "time/log" in lines(tmp_path)[2] and 0 < lines(tmp_path)[2]["time/log"] < 0.5


def test_resume_cuts_what_will_be_done_again(tmp_path):
    """Killed while writing iteration 8, resumed from the checkpoint of 5: every iteration once, in order."""
    run = open_quiet(tmp_path)
    for i in range(1, 8):
        run.log(metrics(i) | {"life": 1}, i)
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"iteration": 8, "lo')
    run = open_quiet(tmp_path, start=5)
    for i in range(6, 10):
        run.log(metrics(i) | {"life": 2}, i)
    run.close(None)
    assert [(r["iteration"], r["life"]) for r in lines(tmp_path)] == [(i, 1 if i < 6 else 2) for i in range(1, 10)]


def test_a_torn_last_line_is_dropped_and_a_whole_file_is_left_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1, "return": 3.0}\n{"iteration": 2}\n{"itera')
    assert [r["iteration"] for r in log.cut(path, 2)] == [1, 2]
    assert path.read_text() == '{"iteration": 1, "return": 3.0}\n{"iteration": 2}\n'
    before = path.stat().st_ino
    log.cut(path, 2)
    assert path.stat().st_ino == before
    log.cut(path, 0)
    assert path.read_text() == ""


def test_the_history_is_continued_on_resume(tmp_path):
    run = open_quiet(tmp_path)
    for i in range(1, 11):
        run.log(metrics(i), i)
    run.close(None)
    status = open_quiet(tmp_path, start=6)._status
    assert (status.returns.first, status.returns.last, status.returns.best) == (30.0, 60.0, (60.0, 6))


def test_a_full_disk_costs_lines_but_not_the_run(tmp_path, monkeypatch):
    run = open_quiet(tmp_path)
    run.log(metrics(1), 1)
    real = os.write
    monkeypatch.setattr(log.os, "write", lambda fd, data: real(fd, data[:20]))  # what a nearly full disk does
    run.log(metrics(2), 2)
    run.log(metrics(3), 3)
    monkeypatch.undo()
    run.log(metrics(4), 4)
    run.close(None)
    assert [r["iteration"] for r in lines(tmp_path)] == [1, 4]
    assert run.warnings == 2 and (tmp_path / "warnings.log").read_text().count("No space left") == 1


def test_warnings_are_counted_by_key_and_written_once(tmp_path):
    run = open_quiet(tmp_path)
    run.log(metrics(1), 1)
    for n in range(5):
        run.warn(f"{n} worlds became non-finite", key="nonfinite")
    run.warn("something else")
    run.close(None)
    text = (tmp_path / "warnings.log").read_text().splitlines()
    assert run.warnings == 6 and len(text) == 2
    assert "iteration 1: 0 worlds became non-finite" in text[0] and "something else" in text[1]


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def events(path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(path / "tb"), size_guidance={"scalars": 0}).Reload()


def test_tensorboard_reads_every_metric_back(tmp_path):
    run = open_quiet(tmp_path, tensorboard=True)
    for i in range(1, 6):
        run.log(metrics(i), i)
    run.close(None)
    read = events(tmp_path)
    assert set(read.Tags()["scalars"]) == set(metrics(5)) - {"iteration"} | {"time/log"}
    assert [(e.step, e.value) for e in read.Scalars("return")] == [(i, 10.0 * i) for i in range(3, 6)]
    assert [e.value for e in read.Scalars("loss/policy")] == pytest.approx([-0.0123] * 5)


def test_tensorboard_shows_no_iteration_twice_after_resume(tmp_path):
    for start, life in ((0, 1.0), (5, 2.0)):
        run = open_quiet(tmp_path, start=start, tensorboard=True)
        for i in range(start + 1, start + 9):
            run.log({"life": life}, i)
        run.close(None)
        time.sleep(1.1)  # event files are read in the order of the seconds in their names
    read = [(e.step, e.value) for e in events(tmp_path).Scalars("life")]
    assert read == [(i, 1 if i < 6 else 2) for i in range(1, 14)]


def test_a_slow_import_does_not_hold_up_training(tmp_path, monkeypatch):
    """TensorBoard needs a second to load here; opening and the first iterations do not wait, and nothing is lost."""
    release, wrote = threading.Event(), []

    def slow(*_):
        release.wait(10)
        return lambda m, step, _: wrote.append(step), lambda: None

    monkeypatch.setattr(log, "_tensorboard", slow)
    began = time.perf_counter()
    run = open_quiet(tmp_path, tensorboard=True)
    for i in range(1, 21):
        run.log(metrics(i), i)
    assert time.perf_counter() - began < 8 and wrote == []  # `slow` would have held it up for 10 s
    release.set()
    run.close(None)
    assert wrote == list(range(1, 21))


def test_a_failing_output_is_left_out_with_one_warning(tmp_path, monkeypatch):
    def broken(m, step, wall_time):
        raise RuntimeError("no more\nroom")

    monkeypatch.setattr(log, "_tensorboard", lambda *_: (broken, lambda: None))
    run = open_quiet(tmp_path, tensorboard=True)
    for i in range(1, 10):
        run.log(metrics(i), i)
        time.sleep(0.005)
    run.close(None)
    assert run.warnings == 1 and len(lines(tmp_path)) == 9
    assert "TensorBoard: RuntimeError: no more room" in (tmp_path / "warnings.log").read_text()


# --- Weights & Biases ------------------------------------------------------------------------------------------------


class FakeWandb(types.ModuleType):
    """The parts of wandb that are used; online runs fail as told."""

    def __init__(self, login: bool = True, error: Exception | None = None, delay: float = 0.0):
        super().__init__("wandb")
        self.inits, self.logged, self.finished, self.torn_down = [], [], 0, 0
        self._login, self._error, self._delay = login, error, delay

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert prompt is False  # a prompt would wait for ever behind the live view
        return self._login

    def Settings(self, **kwargs):
        return kwargs

    def init(self, **kwargs):
        self.inits.append(kwargs)
        if kwargs["mode"] == "online":
            time.sleep(self._delay)
            if self._error:
                raise self._error
        return self

    def log(self, m, step):
        self.logged.append((step, m))

    def finish(self):
        self.finished += 1

    def teardown(self):
        self.torn_down += 1


def train_with_wandb(path: Path, monkeypatch, module, mode: str = "online") -> tuple[log.Log, float]:
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (path / "run.json").write_text('{"id": "abc"}')
    (path / "config.yaml").write_text("seed: 3\n")
    began = time.perf_counter()
    run = open_quiet(path, wandb=True, wandb_mode=mode)
    for i in range(1, 6):
        run.log(metrics(i), i)
    held_up = time.perf_counter() - began
    run.close(None)
    return run, held_up


def test_wandb_gets_every_iteration_of_a_run_with_a_lasting_id(tmp_path, monkeypatch):
    fake = FakeWandb()
    run, _ = train_with_wandb(tmp_path, monkeypatch, fake)
    assert [s for s, _ in fake.logged] == [1, 2, 3, 4, 5] and fake.logged[4][1]["return"] == 50.0
    (init,) = fake.inits
    assert (init["mode"], init["id"], init["resume"], init["config"]) == ("online", "abc", "allow", {"seed": 3})
    assert init["settings"]["init_timeout"] < 15 and init["settings"]["console"] == "off"
    assert fake.finished == 1 and run.warnings == 0


@pytest.mark.parametrize("fault", ["unreachable", "no login"])
def test_without_a_wandb_server_a_run_goes_on_offline(tmp_path, monkeypatch, fault):
    fake = FakeWandb(login=fault != "no login", error=OSError("timed out after 10 s"), delay=1.0)
    run, held_up = train_with_wandb(tmp_path, monkeypatch, fake)
    assert held_up < 0.5  # the wait is not training's
    assert [k["mode"] for k in fake.inits] == (["offline"] if fault == "no login" else ["online", "offline"])
    assert [s for s, _ in fake.logged] == [1, 2, 3, 4, 5] and fake.finished == 1
    assert run.warnings == 1 and "wandb sync" in (tmp_path / "warnings.log").read_text()
    assert len(lines(tmp_path)) == 5


def test_without_wandb_installed_a_run_goes_on_with_one_warning(tmp_path, monkeypatch):
    run, _ = train_with_wandb(tmp_path, monkeypatch, None)  # None in sys.modules: ImportError
    assert run.warnings == 1 and "not installed" in (tmp_path / "warnings.log").read_text()
    assert len(lines(tmp_path)) == 5


def test_wandb_offline_on_request_asks_for_no_login(tmp_path, monkeypatch):
    fake = FakeWandb(login=False)
    run, _ = train_with_wandb(tmp_path, monkeypatch, fake, mode="offline")
    assert [k["mode"] for k in fake.inits] == ["offline"] and run.warnings == 0


def test_a_wandb_that_never_returns_does_not_keep_a_run(tmp_path, monkeypatch):
    fake = FakeWandb()
    fake.finish = lambda: time.sleep(60)
    monkeypatch.setattr(log, "WANDB_INIT_S", 0)
    monkeypatch.setattr(log, "WANDB_FINISH_S", -9.5)  # and 10 s of grace
    began = time.perf_counter()
    train_with_wandb(tmp_path, monkeypatch, fake)
    assert time.perf_counter() - began < 5 and "left behind" in (tmp_path / "warnings.log").read_text()


def real_wandb(path: Path, code: str, **env: str) -> tuple[subprocess.CompletedProcess, float]:
    """A run of 5 iterations with the real package in a process of its own; seconds until all were logged."""
    (path / "run.json").write_text('{"id": "abc"}')
    (path / "config.yaml").write_text("seed: 3\n")
    program = f"""
import sys, time
import wandb  # which takes its seconds on a cold machine
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_log import log, metrics, open_quiet
path = Path({str(path)!r})
log.WANDB_INIT_S, log.WANDB_FINISH_S = 2, 3
began = time.perf_counter()
run = open_quiet(path, wandb=True, wandb_mode={env.pop("mode", "online")!r})
for i in range(1, 6):
    run.log(metrics(i), i)
print("held up", time.perf_counter() - began)
{code}
run.close({{}})
"""
    home = {"HOME": str(path), "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false"}
    kept = {k: v for k, v in environment().items() if not k.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=kept | home | env, timeout=60, cwd=path
    )
    assert done.returncode == 0, done.stderr
    return done, float(done.stdout.split("held up")[1].split()[0])


def offline_record(path: Path) -> bytes:
    (file,) = path.glob("wandb/offline-run-*/run-abc.wandb")
    return file.read_bytes()


def test_the_real_wandb_offline_keeps_metrics_artifacts_and_videos(tmp_path):
    (tmp_path / "policy.onnx").write_bytes(b"the policy")
    (tmp_path / "walk.mp4").write_bytes(b"a video")
    _, held_up = real_wandb(
        tmp_path, "run.share([path / 'policy.onnx', path / 'config.yaml', path / 'walk.mp4'], 5)", mode="offline"
    )
    record = offline_record(tmp_path)
    for part in (b"loss/policy", b"track_lin_vel", b"abc-policy", b"policy.onnx", b"config.yaml"):
        assert part in record, part
    (video,) = tmp_path.glob("wandb/offline-run-*/files/media/videos/*.mp4")
    assert video.read_bytes() == b"a video" and not (tmp_path / "warnings.log").exists()
    assert held_up < 2


@pytest.mark.parametrize("server", ["refuses", "never answers"])
def test_the_real_wandb_without_a_server_costs_one_warning(tmp_path, server):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if server == "never answers":
            silent.listen(64)  # connections succeed, and then nothing comes
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.perf_counter()
        _, held_up = real_wandb(tmp_path, "", WANDB_BASE_URL=url)
        assert held_up < 2 and time.perf_counter() - began < 40
    assert len((tmp_path / "warnings.log").read_text().splitlines()) == 1
    assert "wandb sync" in (tmp_path / "warnings.log").read_text()
    assert len(lines(tmp_path)) == 5 and b"loss/policy" in offline_record(tmp_path)


def test_videos_on_the_way_change_nothing_but_the_time(tmp_path):
    """With and without logger.video_every: the same numbers; the videos lie in the run's folder."""
    from isaacrl.config import compose
    from isaacrl.train import train

    found = []
    for every in ("null", "2"):
        keys = ("num_envs=16", "device=cpu", "algo.iterations=3", "algo.minibatches=2", "logger.console=none")
        keys += (f"outputs={tmp_path / every}", f"logger.video_every={every}", "logger.tensorboard=false")
        path = Path(train(compose(["task=cartpole", *keys]))["run"])
        timed = ("time/", "wall_s", "steps_per_s")
        found.append([{k: v for k, v in record.items() if not k.startswith(timed)} for record in lines(path)])
        assert [v.name for v in path.glob("videos/*")] == ([] if every == "null" else ["iteration_000002.mp4"])
    assert found[0] == found[1] and len(found[0]) == 3


# --- the console -----------------------------------------------------------------------------------------------------


def trained(iterations: int = 60, path: str = "outputs/cartpole/2025-01-01_00-00-00_ppo") -> Status:
    status = Status("cartpole · ppo", Path(path), 100, 0, TERMS)
    for i in range(1, iterations + 1):
        status.add(metrics(i), i)
    return status


def drawn(status: Status, width: int, height: int = 40, **kwargs) -> list[str]:
    terminal = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None, **kwargs)
    terminal.print(console.panel(status, terminal))
    return terminal.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [34, 50, 80, 100, 160, 250])
@pytest.mark.parametrize("iterations", [0, 1, 60, 100])
def test_the_live_view_fits_every_terminal(width, iterations):
    status = trained(iterations)
    status.warnings["k"] = ("a very long warning " * 20, 12_345)
    shown = drawn(status, width)
    assert {cell_len(line) for line in shown} == {min(width, console.MAX_WIDTH)}  # a frame without a dent
    assert shown[0].startswith("╭─ cartpole") and shown[-1].endswith("─╯")


def test_the_live_view_shows_what_matters():
    status = trained()
    status.add(metrics(61) | {"nonfinite": 3, "overflow": 7, "skipped_updates": 1}, 61)
    status.warnings["k"] = ("raise sim.nconmax", 2)
    for width in (80, 160):
        text = "\n".join(drawn(status, width))
        for part in (
            "61/100",
            "61%",
            "ETA",
            "610.0",
            "best 610.0 at 61",
            "305.0",
            "185k",
            "sim 62%",
            "update 20%",
            "▁",
            "█",
            "+1.000",
            "-0.5000",
            "track_lin_vel",
            "KL",
            "0.0098",
            "1.0e-03",
            "tip_height",
            "0.9000",
            "2 warnings, 3 non-finite worlds, 7 overflows, 1 skipped update",
            "raise sim.nconmax",
            "outputs/cartpole/2025-01-01_00-00-00_ppo",
        ):
            assert part in text, (width, part)
    assert len(drawn(status, 80, height=24)) <= 23
    order = [line.split("│")[1].split()[0] for line in drawn(status, 160) if "+" in line or " -0.5" in line]
    assert order[:2] == ["upright", "track_lin_vel"]  # the largest first


def test_the_live_view_survives_missing_and_broken_numbers():
    status = Status("t", Path("r"), 10)
    status.add(
        {
            "return": math.nan,
            "reward/a": math.nan,
            "reward/b": math.inf,
            "kl": math.nan,
            "steps_per_s": math.nan,
            "nonfinite": math.nan,
            "time/sim": math.nan,
            "lr": math.inf,
        },
        1,
    )
    text = "\n".join(drawn(status, 80))
    assert "no episode ended" in text and "nan" in text
    assert "1/10" in console.plain_line(status)
    status.add({}, 2)
    assert len(drawn(status, 80)) > 3


def test_a_terminal_without_unicode_gets_ascii():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    terminal = Console(width=80, height=40, file=file, force_terminal=True, color_system=None)
    status = trained()
    status.title = "cartpole ppo"
    status.warnings["k"] = ("long " * 40, 1)
    terminal.print(console.panel(status, terminal))  # strict: anything else would raise
    file.seek(0)
    assert "##########" in file.read()


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from test_log import LoggerConfig, TERMS, log, metrics
run = log.open_log(LoggerConfig(console={mode!r}, tensorboard=False), {path!r}, title="cartpole · ppo", iterations=100,
                   reward_terms=TERMS)
run.phase("scene", 0.25)
run.info("engine [mujoco]")
import time
for i in range(1, 101):
    run.log(metrics(i), i)
    time.sleep({pause})
    if i == 50:
        run.warn("watch [out]")
        print("printed by someone else")
run.close({summary!r})
sys.stderr.write("the end")
"""


def program(path: Path, mode: str = "auto", pause: float = 0.0, summary: dict | None = None) -> list[str]:
    code = PROGRAM.format(
        tests=str(Path(__file__).parent), mode=mode, path=str(path), pause=pause, summary=summary or {}
    )
    return [sys.executable, "-c", code]


def environment(**extra: str) -> dict[str, str]:
    gone = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
    return {k: v for k, v in os.environ.items() if k not in gone} | {"TERM": "xterm-256color"} | extra


def test_plain_lines_when_piped(tmp_path):
    (tmp_path / "policy.onnx").touch()
    done = subprocess.run(program(tmp_path), capture_output=True, text=True, env=environment(), timeout=60)
    out = done.stdout.splitlines()
    assert done.stderr == "the end" and "\x1b" not in done.stdout
    assert out[0].startswith("cartpole · ppo: iterations 1 to 100") and "engine [mujoco]" in out
    assert "start-up 0.25 s: scene 0.25" in out and "warning: watch [out]" in out
    steps = [line for line in out if "/100" in line]
    assert [int(line.split("/")[0]) for line in steps] == [1, *range(10, 101, 10)]
    assert len({line.index("steps/s") for line in steps}) == 1 and max(map(len, steps)) <= 130  # aligned
    text = done.stdout
    for part in (
        "finished, 100 iterations",
        "30.00 -> 1000, best 1000 at iteration 100",
        "15.00 -> 500.0",
        "0:50, 100k steps, 2k steps/s",
        "policy.onnx",
        f"isaacrl eval run={shown_path(tmp_path)}",
        f"isaacrl play run={shown_path(tmp_path)}",
    ):
        assert part in text, part
    assert "resume=true" not in text


def test_an_interrupted_run_says_how_to_resume(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "outputs" / "my runs"
    path.mkdir(parents=True)
    run = log.open_log(quiet(console="plain"), path, title="t", iterations=9)
    run.log(metrics(3), 3)
    run.close({"interrupted": "SIGTERM"})
    run.close({"interrupted": "SIGTERM"})
    out = capsys.readouterr().out
    assert out.count("stopped by SIGTERM at iteration 3 of 9") == 1
    assert "\n  isaacrl train run='outputs/my runs' resume=true\n" in out  # from here, and safe to paste


def test_console_none_is_silent(tmp_path, capfd):
    run = open_quiet(tmp_path)
    run.info("x")
    run.warn("y")
    run.log(metrics(1), 1)
    run.close({})
    assert capfd.readouterr() == ("", "")


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path):
    """`isaacrl train | head -1`"""
    child = subprocess.Popen(
        program(tmp_path, pause=0.005), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.readline().startswith("cartpole")
    child.stdout.close()
    assert child.stderr.read() == "the end" and child.wait(30) == 0
    assert len(lines(tmp_path)) == 100


def in_terminal(command: list[str], width: int = 80, **extra: str) -> tuple[str, int]:
    """What a command writes to a terminal of this size, and its exit status."""
    main, side = pty.openpty()
    child = subprocess.Popen(
        command,
        stdout=side,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env=environment(COLUMNS=str(width), LINES="24", **extra),
    )
    os.close(side)
    out, end = b"", time.monotonic() + 30
    while time.monotonic() < end:
        if select.select([main], [], [], 0.2)[0]:
            try:
                chunk = os.read(main, 1 << 16)
            except OSError:  # the child has closed it
                break
            out += chunk
        elif child.poll() is not None:
            break
    os.close(main)
    return out.decode(), child.wait(10)


def test_a_terminal_gets_the_live_view_a_few_times_a_second(tmp_path):
    out, status = in_terminal(program(tmp_path, pause=0.015))
    assert status == 0
    frames = out.count("╭─")
    assert 3 <= frames <= 60  # 1.5 s at 4 Hz for 100 iterations, more on a slow machine
    assert out.count("printed by someone else") == 1 and "watch [out]" in out and "engine [mujoco]" in out
    assert out.rstrip().endswith(f"isaacrl play run={shown_path(tmp_path)}\x1b[0m") and "100/100 100%" in out
    assert out.rindex("\x1b[?25h") > out.rindex("\x1b[?25l")  # the cursor is back


def test_no_color_and_dumb_terminals_are_respected(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    out, _ = in_terminal(program(tmp_path / "a"), NO_COLOR="1")
    assert "╭─" in out and "\x1b[3" not in out and ";3" not in out
    out, _ = in_terminal(program(tmp_path / "b"), TERM="dumb")
    assert "╭─" not in out and "\x1b" not in out and "100/100 100%" in out


# --- pieces ----------------------------------------------------------------------------------------------------------


def test_a_series_keeps_its_shape_in_bounded_memory():
    series = Series(size=64)
    for i in range(100_000):
        series.add(float(i), i)
    series.add(math.nan, 1)
    series.add(None, 2)
    assert len(series.points) < 64 and (series.first, series.last, series.best) == (0.0, 99_999.0, (99_999.0, 99_999))
    assert series.points == sorted(series.points)
    spark = series.spark(24)
    assert len(spark) == 24 and list(spark) == sorted(spark) and spark[0] == "▁" and spark[-1] == "█"
    flat = Series()
    for i in range(3):
        flat.add(1.0, i)
    assert flat.spark(10) == "▁▁▁" and Series().spark(10) == ""


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0, "0.000"),
        (1.23456, "1.235"),
        (-12.345, "-12.35"),
        (123.456, "123.5"),
        (1e4, "10000"),
        (2e6, "2.0e+06"),
        (0.0123, "0.0123"),
        (-1e-5, "-1.0e-05"),
        (None, "-"),
        (math.nan, "nan"),
    ],
)
def test_numbers_read_well(x, text):
    assert number(x) == text


def test_quantities_and_durations_read_well():
    assert [quantity(x) for x in (7, 999, 185_000, 999_900, 1.23e7, 4e9, None)] == [
        "7",
        "999",
        "185k",
        "1000k",
        "12.3M",
        "4G",
        "-",
    ]
    assert [duration(x) for x in (0, 41, 60, 3723, 90_000)] == ["0:00", "0:41", "1:00", "1:02:03", "25:00:00"]


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.1, 0.5, 0.999, 1.0])
def test_bars_are_never_too_long_and_never_hide_something(share):
    for width in (1, 7, 20):
        for ascii_only in (False, True):
            drawn_bar = console.bar(share, width, ascii_only)
            assert len(drawn_bar) <= width and bool(drawn_bar) == (share > 0)
