"""The doctor never raises, knows machines that the tests do not have, and exits by what blocks training."""

import sys
from types import SimpleNamespace

import pytest

from isaacrl import doctor, render


def lines_of(check):
    return {line.part: line for line in check()}


def test_this_machine_can_train_and_every_part_is_reported(capsys):
    assert doctor.main() == 0
    out = capsys.readouterr().out
    for part in (
        "Python",
        "system",
        "torch",
        "GPU",
        "MuJoCo",
        "Warp",
        "kernel cache",
        "pictures",
        "videos",
        "wandb",
        "viewer",
        "configuration",
        "outputs",
        "Training can run here",
    ):
        assert part in out
    assert "[green]" not in out


@pytest.mark.parametrize("part", doctor.CHECKS)
@pytest.mark.parametrize("error", [RuntimeError("[bold]part\nlast line"), ImportError("no module"), OSError(5, "I/O")])
def test_a_broken_part_is_a_line(monkeypatch, capsys, part, error):
    def broken():
        raise error
        yield

    checks = dict.fromkeys(doctor.CHECKS, lambda: iter([doctor.Line("ok", "other", "fine")])) | {part: broken}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert doctor.main() == (1 if part in doctor.NEEDED else 0)
    out = capsys.readouterr().out
    assert type(error).__name__ in out and part in out
    assert out.count("fine") == len(checks) - 1
    assert ("cannot run here yet: see " + part in out) == (part in doctor.NEEDED)


def fake_torch(cuda, gpus):
    properties = SimpleNamespace(name="NVIDIA Test", total_memory=24 * 2**30, major=9, minor=0)
    return SimpleNamespace(
        __version__="2.13.0",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(
            is_available=lambda: gpus > 0, device_count=lambda: gpus, get_device_properties=lambda i: properties
        ),
    )


@pytest.mark.parametrize(
    "cuda, gpus, driver, torch_says, gpu_says",
    [
        (None, 0, "", ("ok", ""), ("ok", "device=cpu")),
        ("13.0", 0, "", ("note", "no GPU; smaller: make clean setup TORCH_INDEX="), ("ok", "device=cpu")),
        ("13.0", 2, "580.1", ("ok", ""), ("ok", "device=cuda:0")),
        (None, 0, "580.1", ("ok", ""), ("note", "torch is a CPU build")),
        ("13.0", 0, "470.1", ("ok", ""), ("note", "newer driver")),
    ],
)
def test_torch_and_gpu(monkeypatch, cuda, gpus, driver, torch_says, gpu_says):
    monkeypatch.setitem(sys.modules, "torch", fake_torch(cuda, gpus))
    monkeypatch.setattr(doctor, "_nvidia_smi", lambda: driver)
    torch_line = lines_of(doctor.check_torch)["torch"]
    assert torch_line.status == torch_says[0] and torch_says[1] in torch_line.meaning
    gpu = lines_of(doctor.check_gpu)
    assert len(gpu) == max(gpus, 1)
    first = gpu["GPU 0" if gpus else "GPU"]
    assert first.status == gpu_says[0] and gpu_says[1] in first.meaning
    if gpus:
        assert first.found == "NVIDIA Test, 24 GiB, compute capability 9.0, driver 580.1"


def test_an_old_python_blocks_training(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    assert lines_of(doctor.check_python)["Python"].status == "problem"


def test_pictures_without_opengl_are_a_note(monkeypatch):
    monkeypatch.setattr(render, "backend", lambda: ("warp", "mujoco-warp's own renderer: no OpenGL here"))
    line = lines_of(doctor.check_video)["pictures"]
    assert line.status == "note" and "Mesa" in line.meaning


def test_videos_without_ffmpeg_are_a_note(monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    line = lines_of(doctor.check_video)["videos"]
    assert line.status == "note" and "imageio-ffmpeg" in line.meaning


def test_outputs_that_cannot_be_written_block_training(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert lines_of(doctor.check_outputs)["outputs"].status == "ok"
    assert list(tmp_path.iterdir()) == []  # looking leaves no trace
    (tmp_path / "outputs").write_text("a file where a folder should be")
    line = lines_of(doctor.check_outputs)["outputs"]
    assert line.status == "problem" and "outputs=" in line.meaning


def test_a_missing_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    lines = lines_of(doctor.check_extras)
    assert "pip install 'isaacrl[wandb]'" in lines["wandb"].meaning
    assert "pip install 'isaacrl[viewer]'" in lines["viewer"].meaning


def test_own_configuration_is_shown(monkeypatch, tmp_path):
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "mine.yaml").write_text("description: mine\n")
    monkeypatch.chdir(tmp_path)
    found = {line.found: line.meaning for line in doctor.check_config()}
    assert "yours" in found[f"{tmp_path / 'conf'}, 1 tasks"]
    assert all(line.status == "ok" for line in doctor.check_config())


def test_warps_own_complaints_stay_out_of_the_table(capfd):
    assert "Warp" in lines_of(doctor.check_warp)
    assert capfd.readouterr() == ("", "")
