"""Run folders, checkpoints, locks and signals: what must survive crashes, full disks, damage and malice."""

import errno
import hashlib
import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from isaacrl import checkpoints, files, runs
from isaacrl.errors import UserError


def new_run(outputs: Path, task: str = "cartpole", **kwargs) -> runs.Run:
    return runs.create(outputs, task, "ppo", "seed: 0\n", command=["isaacrl", "train", "task=a b"], **kwargs)


def state(value: float, size: int = 8) -> dict:
    return {"net": {"w": torch.full((size,), value)}, "lr": 1e-3, "names": ["a", "b"], "none": None, "n": int(value)}


def save(path: Path, *iterations: int, score: float | None = None, keep: int = 3) -> None:
    for i in iterations:
        runs.save_checkpoint(path, state(i), i, score, keep)


def saved(path: Path) -> set[str]:
    return {p.name for p in (path / "checkpoints").glob("*.pt") if not p.is_symlink()}


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "bit flip":
        data[len(data) // 2] ^= 1
    elif how == "truncated":
        del data[len(data) // 2 :]
    elif how == "empty":
        data.clear()
    path.write_bytes(data)
    if how == "missing":
        path.unlink()


# --- run folders -----------------------------------------------------------------------------------------------------


def test_a_new_run_says_where_it_came_from(tmp_path, monkeypatch):
    terms = [tmp_path / "a" / "rewards.py", tmp_path / "b" / "rewards.py"]
    for i, file in enumerate(terms):
        file.parent.mkdir()
        file.write_text(f"x = {i}\n")
    monkeypatch.chdir(tmp_path)
    with new_run(tmp_path / "out", term_files=terms) as run:
        info = json.loads((run.path / "run.json").read_text())
        assert run.path.parent == tmp_path / "out" / "cartpole" and run.path.name.endswith("_ppo")
        assert (run.path / "config.yaml").read_text() == "seed: 0\n"
        assert info["command"] == "isaacrl train 'task=a b'" and info["schema"] == 1 and info["git"] is None
        assert info["versions"]["torch"] == torch.__version__.partition("+")[0] or "+" in info["versions"]["torch"]
        assert [t["source"] for t in info["terms"]] == [str(f) for f in terms]
        for i, t in enumerate(info["terms"]):
            content = (run.path / t["file"]).read_bytes()
            assert content == f"x = {i}\n".encode() and t["sha256"] == hashlib.sha256(content).hexdigest()
        run.update(status="finished", extra=float("nan"))
        after = json.loads((run.path / "run.json").read_text())
        assert after == info | {"status": "finished", "extra": None}


def test_git_commit_and_uncommitted_changes_are_kept(tmp_path, monkeypatch):
    def git(*args):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *args], cwd=tmp_path, check=True, capture_output=True
        )

    git("init")
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", "code.py")
    git("commit", "-m", "first")
    monkeypatch.chdir(tmp_path)
    clean = new_run(tmp_path / "out")
    assert json.loads((clean.path / "run.json").read_text())["git"]["dirty"] is False
    assert not (clean.path / "git.diff").exists()
    (tmp_path / "code.py").write_text("a = 2\n")
    dirty = new_run(tmp_path / "out")
    info = json.loads((dirty.path / "run.json").read_text())["git"]
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path, text=True).strip()
    assert info["commit"] == head and info["dirty"] is True
    assert "+a = 2" in (dirty.path / "git.diff").read_text()


def test_runs_of_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    """Eight threads at the same frozen second: mkdir decides, nobody shares."""
    monkeypatch.setattr(runs.time, "time", lambda: 1.7e9)
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(new_run(tmp_path).path)) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(made)) == 8
    names = sorted(p.name for p in made)
    assert sorted(n.rpartition("_ppo")[2] for n in names) == ["", *(f"_{i}" for i in range(2, 9))]


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    run = new_run(tmp_path)
    code = (
        "import sys; from isaacrl import runs, errors\n"
        "try: runs.open_run(sys.argv[1])\n"
        "except errors.UserError as e: print(e); sys.exit(2)\n"
    )

    def other():
        return subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, timeout=30)

    refused = other()
    assert refused.returncode == 2 and f"in use by process {os.getpid()}" in refused.stdout
    assert len(refused.stdout.splitlines()) == 1
    with pytest.raises(UserError, match="in use"):
        runs.open_run(run.path)
    run.close()
    assert other().returncode == 0
    runs.open_run(run.path).close()  # the process that ended has let go


def test_open_run_refuses_what_is_no_run_and_what_is_newer(tmp_path):
    with pytest.raises(UserError, match=r"no run\.json"):
        runs.open_run(tmp_path)
    with new_run(tmp_path) as run:
        run.update(schema=99)
        (run.path / ".left.1-1.tmp").write_text("half")
    with pytest.raises(UserError, match="newer isaacrl"):
        runs.open_run(run.path)
    files.write_json(run.path / "run.json", {"schema": 1})
    with runs.open_run(run.path):
        assert not list(run.path.glob(".*.tmp"))


def test_creation_where_nothing_can_be_written_is_a_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="outputs="):
        new_run(tmp_path / "file")
    with pytest.raises(UserError, match=r"gone\.py"):
        new_run(tmp_path, term_files=[tmp_path / "gone.py"])


def test_a_full_disk_at_creation_is_a_users_error_and_leaves_no_run(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        new_run(tmp_path)
    assert list((tmp_path / "cartpole").iterdir()) == []


def test_find(tmp_path, monkeypatch):
    now = [1.7e9]
    monkeypatch.setattr(runs.time, "time", lambda: now[0])
    paths = {}
    for name, task in (("old", "cartpole"), ("swing", "cartpole_swingup"), ("new", "cartpole"), ("ant", "ant")):
        now[0] += 0.25  # all but the names' seconds tell them apart
        paths[name] = new_run(tmp_path, task).path
    (tmp_path / "cartpole" / "2099-01-01_00-00-00_ppo").mkdir()  # still being made: no run.json
    assert runs.find("latest", tmp_path) == paths["ant"]
    assert runs.find("cartpole", tmp_path) == paths["new"]  # the task itself, not cartpole_swingup
    assert runs.find("cartpole_s", tmp_path) == paths["swing"]
    assert runs.find(paths["new"].name, tmp_path) == paths["new"]
    assert runs.find(f"cartpole/{paths['old'].name}", tmp_path) == paths["old"]
    assert runs.find(str(paths["old"]), "elsewhere") == paths["old"]
    with pytest.raises(UserError, match=r"did you mean cartpole.*the newest: .*ant") as e:
        runs.find("cartpoel", tmp_path)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="train one first"):
        runs.find("latest", tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no run\.json"):
        runs.find(str(tmp_path / "cartpole"), tmp_path)


def test_importing_runs_and_log_imports_nothing_heavy():
    code = (
        "import sys, isaacrl.runs, isaacrl.log\n"
        "print([m for m in ('torch', 'numpy', 'tensorboard', 'wandb') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_returns_as_it_was(tmp_path):
    save(tmp_path, 5, score=2.5)
    got, entry = runs.load_checkpoint(tmp_path)
    assert torch.equal(got["net"]["w"], state(5)["net"]["w"])
    assert {k: v for k, v in got.items() if k != "net"} == {k: v for k, v in state(5).items() if k != "net"}
    assert (entry["iteration"], entry["score"], entry["file"], entry["warnings"]) == (5, 2.5, "000005.pt", [])


def test_the_last_and_the_best_stay(tmp_path):
    for i, score in ((10, 1.0), (20, 9.0), (30, 2.0), (40, float("nan")), (50, None), (60, 3.0)):
        runs.save_checkpoint(tmp_path, state(i), i, score, keep=2)
    assert saved(tmp_path) == {"000020.pt", "000050.pt", "000060.pt"}
    folder = tmp_path / "checkpoints"
    assert (os.readlink(folder / "latest.pt"), os.readlink(folder / "best.pt")) == ("000060.pt", "000020.pt")
    index = json.loads((folder / "index.json").read_text())
    assert (index["latest"], index["best"]) == ("000060.pt", "000020.pt")
    for entry in index["entries"]:
        assert entry["sha256"] == hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()
    assert runs.load_checkpoint(tmp_path, "best")[1]["iteration"] == 20
    for which in (folder / "000050.pt", "000050", "000050.pt", str(folder / "latest.pt")):
        assert runs.load_checkpoint(tmp_path, which)[1]["iteration"] in (50, 60)


def test_the_best_is_one_from_where_curricula_had_come_furthest(tmp_path):
    """Whatever the returns were while the task was easier."""
    scores = {10: (0.0, 9.0), 20: (0.5, 5.0), 30: (1.0, 1.0), 40: (1.0, 2.0), 50: (1.0, None), 60: (0.95, 8.0)}
    for i, (far, score) in scores.items():
        runs.save_checkpoint(tmp_path, state(i), i, score, 1, curriculum=far)
    assert runs.load_checkpoint(tmp_path, "best")[1]["iteration"] == 40
    assert saved(tmp_path) == {"000040.pt", "000060.pt"}
    (tmp_path / "checkpoints/index.json").unlink()  # it is in the files, too
    assert runs.load_checkpoint(tmp_path, "best")[1]["iteration"] == 40


def test_the_same_iteration_again_never_overwrites_the_file_that_counts(tmp_path, monkeypatch):
    """A crash between the new file and the new index must leave the old pair whole."""
    save(tmp_path, 7)

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as m:
        m.setattr(checkpoints, "write_json", die)
        with pytest.raises(Killed):
            runs.save_checkpoint(tmp_path, state(8), 7, None, 3)
    assert runs.load_checkpoint(tmp_path)[0]["n"] == 7
    runs.save_checkpoint(tmp_path, state(8), 7, None, 3)
    assert runs.load_checkpoint(tmp_path)[0]["n"] == 8
    assert len(saved(tmp_path)) == 1


@pytest.mark.parametrize("how", ["bit flip", "truncated", "empty", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, how, caplog):
    save(tmp_path, 1, 2, 3)
    damage(tmp_path / "checkpoints" / "000003.pt", how)
    got, entry = runs.load_checkpoint(tmp_path)
    assert got["n"] == 2 and entry["iteration"] == 2
    assert len(entry["warnings"]) == 1 and "000003.pt" in entry["warnings"][0] and "000002.pt" in entry["warnings"][0]
    assert "000003.pt" in caplog.text
    with pytest.raises(UserError, match=r"000003"):  # whoever names a file gets that one or none
        runs.load_checkpoint(tmp_path, "000003.pt")
    for name in ("000001.pt", "000002.pt"):
        damage(tmp_path / "checkpoints" / name, how)
    with pytest.raises(UserError, match="no checkpoint can be loaded"):
        runs.load_checkpoint(tmp_path)


def test_random_damage_never_loads_silently(tmp_path):
    """150 flips, cuts and splices of the newest file: each time the one before is loaded."""
    save(tmp_path, 1, 2)
    path = tmp_path / "checkpoints" / "000002.pt"
    good, rng = path.read_bytes(), random.Random(0)
    for i in range(150):
        data = bytearray(good)
        at, to = sorted(rng.sample(range(len(data)), 2))
        if i % 3 == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif i % 3 == 1:
            del data[at:]
        else:
            data[at:at] = data[to : to + 50] or b"x"
        path.write_bytes(data)
        assert runs.load_checkpoint(tmp_path)[0]["n"] == 1
    path.write_bytes(good)
    assert runs.load_checkpoint(tmp_path)[0]["n"] == 2


def test_the_best_falls_back_to_the_next_best(tmp_path):
    for i, score in ((1, 5.0), (2, 9.0), (3, 7.0), (4, None)):
        runs.save_checkpoint(tmp_path, state(i), i, score, keep=9)
    damage(tmp_path / "checkpoints" / "000002.pt", "bit flip")
    assert runs.load_checkpoint(tmp_path, "best")[1]["iteration"] == 3


def test_a_lost_or_damaged_index_is_made_anew_from_whole_files(tmp_path):
    for i, score in ((1, 5.0), (2, 9.0), (3, 7.0)):
        runs.save_checkpoint(tmp_path, state(i), i, score, keep=9)
    (tmp_path / "checkpoints" / "index.json").write_text('{"entries": [{"fi')
    damage(tmp_path / "checkpoints" / "000003.pt", "bit flip")
    assert runs.load_checkpoint(tmp_path)[0]["n"] == 2
    assert runs.load_checkpoint(tmp_path, "best")[0]["n"] == 2
    save(tmp_path, 4, keep=9)
    entries = json.loads((tmp_path / "checkpoints" / "index.json").read_text())["entries"]
    assert [e["iteration"] for e in entries] == [1, 2, 4]


class Gadget:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("wrap", ["pickle", "torch", "torch legacy", "inside a state"])
def test_code_in_a_checkpoint_does_not_run(tmp_path, wrap):
    save(tmp_path, 1)
    path, marker = tmp_path / "checkpoints" / "000001.pt", tmp_path / "executed"
    if wrap == "pickle":
        path.write_bytes(pickle.dumps(Gadget(marker)))
    elif wrap == "inside a state":
        torch.save({"isaacrl_checkpoint": 1, "iteration": 1, "score": None, "state": {"x": Gadget(marker)}}, path)
    else:
        torch.save(Gadget(marker), path, _use_new_zipfile_serialization=wrap == "torch")
    index = tmp_path / "checkpoints" / "index.json"
    content = json.loads(index.read_text())
    content["entries"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()  # the index is theirs, too
    index.write_text(json.dumps(content))
    for which in ("latest", path):
        with pytest.raises(UserError, match="not an isaacrl checkpoint"):
            runs.load_checkpoint(tmp_path, which)
    index.unlink()
    with pytest.raises(UserError):
        runs.load_checkpoint(tmp_path)
    assert not marker.exists()
    if wrap == "pickle":
        pickle.loads(path.read_bytes())  # noqa: S301  the gadget does work
        assert marker.exists()


def test_an_index_cannot_point_outside_the_run(tmp_path):
    for i, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        save(tmp_path / name, i + 1)
    index = tmp_path / "b" / "checkpoints" / "index.json"
    index.write_text(index.read_text().replace('"000002.pt"', '"../../a/checkpoints/000001.pt"'))
    assert runs.load_checkpoint(tmp_path / "b")[0]["n"] == 2  # the index was made anew from the folder itself


def test_a_newer_checkpoint_is_named_as_such(tmp_path, monkeypatch):
    save(tmp_path, 1)
    with monkeypatch.context() as m:
        m.setattr(checkpoints, "SCHEMA", 2)
        save(tmp_path, 2)
    with pytest.raises(UserError, match="newer isaacrl"):
        runs.load_checkpoint(tmp_path)


def test_a_state_that_could_not_be_loaded_is_refused_when_saved(tmp_path):
    import numpy as np

    for bad in (np.float64(1.0), Path("x"), {1, 2}, object()):
        with pytest.raises(TypeError, match=r"state\['a'\]\[1\]"):
            runs.save_checkpoint(tmp_path, {"a": [0, bad]}, 1, None, 3)
    assert not (tmp_path / "checkpoints").exists()


def test_no_checkpoint_yet(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        runs.load_checkpoint(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        runs.load_checkpoint(tmp_path, "000009")


def test_a_file_size_limit_keeps_the_old_checkpoints(tmp_path):
    """RLIMIT_FSIZE makes real writes fail half-way, as a full disk or a quota does."""
    save(tmp_path, 1, 2)
    before = {p.name: p.read_bytes() for p in (tmp_path / "checkpoints").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(runs.CheckpointError) as e:
            runs.save_checkpoint(tmp_path, state(3, size=100_000), 3, None, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert e.value.errno == errno.EFBIG
    assert {p.name: p.read_bytes() for p in (tmp_path / "checkpoints").iterdir()} == before
    save(tmp_path, 3)
    assert runs.load_checkpoint(tmp_path)[0]["n"] == 3


@pytest.mark.parametrize("nth", range(6))
def test_a_disk_that_fills_up_at_any_moment_keeps_a_loadable_checkpoint(tmp_path, nth, monkeypatch):
    """The nth rename or link of a save fails."""
    save(tmp_path, 1, 2)
    calls = iter(range(100))

    def failing(real):
        def call(*args, **kwargs):
            if next(calls) == nth:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as m:
        for name in ("replace", "symlink"):
            m.setattr(os, name, failing(getattr(os, name)))
        with pytest.raises(runs.CheckpointError, match="No space left"):
            runs.save_checkpoint(tmp_path, state(3), 3, None, 1)
    assert runs.load_checkpoint(tmp_path)[0]["n"] in (2, 3)
    assert not list((tmp_path / "checkpoints").glob(".*.tmp"))
    save(tmp_path, 4)
    assert runs.load_checkpoint(tmp_path)[0]["n"] == 4


def test_a_write_that_lies_is_found_out(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoints, "sha256", lambda path: "0" * 64)
    with pytest.raises(runs.CheckpointError, match="read back"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert runs.load_checkpoint(tmp_path)[0]["n"] == 1 and saved(tmp_path) == {"000001.pt"}


def in_a_process_of_its_own(work: Callable[[Path], None], path: Path) -> None:
    """Work that forks: this process has other tests' memory by now, which a fork may not get once more."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += f"from pathlib import Path; import test_runs; test_runs.{work.__name__}(Path({str(path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_kill_9_at_any_moment_leaves_a_loadable_checkpoint(tmp_path):
    in_a_process_of_its_own(kill_while_saving, tmp_path)


def kill_while_saving(path: Path) -> None:
    """A child saves in a tight loop and is killed 15 times; the latest always loads and never goes backwards."""
    rng, last = random.Random(1), 1
    runs.save_checkpoint(path, {"x": [1] * 2000}, 1, 1.0, 2)
    for _ in range(15):
        read, write = os.pipe()
        child = os.fork()  # after torch is imported: a process of its own would spend its time importing
        if child == 0:
            try:
                start = runs.load_checkpoint(path)[1]["iteration"]
                for i in range(start + 1, start + 10_000):
                    runs.save_checkpoint(path, {"x": [i] * 2000}, i, float(i % 7), 2)
                    os.write(write, f"{i}\n".encode())
            finally:
                os._exit(1)
        os.close(write)
        told = os.read(read, 1)  # it is at it
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        while chunk := os.read(read, 1 << 16):
            told += chunk
        os.close(read)
        acknowledged = int(told.split()[-1])
        got, entry = runs.load_checkpoint(path)
        assert entry["warnings"] == [], entry
        assert entry["iteration"] >= acknowledged > last, (entry, acknowledged, last)
        assert got == {"x": [entry["iteration"]] * 2000}
        assert (path / "checkpoints" / "latest.pt").exists() and (path / "checkpoints" / "best.pt").exists()
        last = entry["iteration"]
    assert last > 15


def test_kill_9_during_an_atomic_write_leaves_the_old_or_the_new(tmp_path):
    in_a_process_of_its_own(kill_while_writing, tmp_path)


def kill_while_writing(path: Path) -> None:
    path = path / "x.json"
    files.write_json(path, {"i": 0, "pad": "0" * 50_000})
    for _ in range(5):
        child = os.fork()
        if child == 0:
            try:
                for i in range(100_000):
                    files.write_json(path, {"i": i, "pad": str(i % 10) * 50_000})
            finally:
                os._exit(1)
        time.sleep(0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        content = json.loads(path.read_text())
        assert content["pad"] == str(content["i"] % 10) * 50_000


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_the_first_signal_only_asks(name):
    before = signal.getsignal(signal.Signals[name])
    with runs.StopSignals() as stop:
        assert stop.received is None and stop.exit_code == 0
        os.kill(os.getpid(), signal.Signals[name])
        assert stop.received == name and stop.exit_code == 128 + signal.Signals[name]
    assert signal.getsignal(signal.Signals[name]) is before


def test_a_second_interrupt_ends_at_once():
    with runs.StopSignals() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # asks again, politely
        assert stop.received == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_signals_outside_the_main_thread_are_left_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with runs.StopSignals() as stop:
            seen.append((signal.getsignal(signal.SIGINT) is before, stop.received))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, None)]
