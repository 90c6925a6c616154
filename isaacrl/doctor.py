"""`isaacrl doctor`: what this machine has, what that means for training, and how to mend what is missing.

Every part is checked on its own: one that is broken becomes a line of the table, never an exception.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[bold red]problem[/]"}
GIB = 2**30


class Line(NamedTuple):
    """One finding. `problem` means that training cannot run until it is mended; everything less is a `note`."""

    status: str
    part: str
    found: str
    meaning: str = ""


def main() -> int:
    """Print the table; 1 when training cannot run on this machine, else 0."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    lines = examine()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("", "part", "found", "what that means"):
        table.add_column(title, overflow="fold")
    for line in lines:
        table.add_row(MARKS[line.status], *(escape(text) for text in line[1:]))
    console = Console(width=None if sys.stdout.isatty() else 140)  # a log has no width of its own
    console.print(table)
    problems = [line.part for line in lines if line.status == "problem"]
    console.print(
        f"\nTraining cannot run here yet: see {', '.join(problems)}."
        if problems
        else "\nTraining can run here: isaacrl train task=cartpole",
        highlight=False,
    )
    return 1 if problems else 0


def examine() -> list[Line]:
    """All findings, in the table's order."""
    return [line for name, check in CHECKS.items() for line in _guarded(name, check)]


def _guarded(name: str, check: Callable[[], Iterator[Line]]) -> list[Line]:
    lines = []
    try:
        for line in check():
            lines.append(line)
    except Exception as error:
        status = "problem" if name in NEEDED else "note"
        lines.append(Line(status, name, f"{type(error).__name__}: {_one_line(error)}", _mend(name, error)))
    return lines


def _mend(name: str, error: Exception) -> str:
    if isinstance(error, ImportError):
        return "a package is missing or broken: pip install --force-reinstall isaacrl; in a checkout: make clean setup"
    return "training cannot run without it" if name in NEEDED else "could not be checked; training may still run"


# --- the machine ---


def check_python() -> Iterator[Line]:
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < (3, 11):  # noqa: UP036  (pip refuses it, a copied checkout does not)
        yield Line("problem", "Python", found, "isaacrl needs Python 3.11 or newer")
    else:
        yield Line("ok", "Python", found)


def check_system() -> Iterator[Line]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    memory = pages * os.sysconf("SC_PAGE_SIZE") / GIB if pages else 0
    found = f"{platform.system()} {platform.machine()}, {cores} cores"
    found += f", {memory:.0f} GiB memory" if memory else ""
    if 0 < memory < 4:
        yield Line("note", "system", found, "little memory: use few worlds, num_envs=128")
    else:
        yield Line("ok", "system", found)


# --- torch and the GPU ---


def check_torch() -> Iterator[Line]:
    import torch

    cuda = torch.version.cuda
    found = f"{torch.__version__}, " + (f"built for CUDA {cuda}" if cuda else "CPU build")
    size = _cuda_libraries() / GIB
    if cuda and not torch.cuda.is_available() and not _nvidia_smi():
        yield Line(
            "note",
            "torch",
            found,
            f"its CUDA libraries take {size:.1f} GiB, but there is no GPU; smaller: "
            "make clean setup TORCH_INDEX=https://download.pytorch.org/whl/cpu",
        )
    else:
        yield Line("ok", "torch", found)


def check_gpu() -> Iterator[Line]:
    import torch

    driver = _nvidia_smi()
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(i)
            yield Line(
                "ok",
                f"GPU {i}",
                f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, compute capability "
                f"{gpu.major}.{gpu.minor}" + (f", driver {driver}" if driver else ""),
                f"device=cuda:{i}; device=auto takes the first GPU",
            )
    elif driver and torch.version.cuda is None:
        yield Line(
            "note",
            "GPU",
            f"driver {driver}",
            "an NVIDIA GPU, but torch is a CPU build: install a CUDA build "
            "(pytorch.org tells the index): make clean setup TORCH_INDEX=...",
        )
    elif driver:
        yield Line(
            "note",
            "GPU",
            f"driver {driver}",
            f"torch cannot use the GPU: its CUDA {torch.version.cuda} may "
            "need a newer driver. Training runs on the CPU meanwhile",
        )
    else:
        yield Line("ok", "GPU", "none", "device=cpu: the mujoco engine, on CPU threads")


def check_warp() -> Iterator[Line]:
    with _silent_stderr():
        import warp as wp

        wp.config.log_level = wp.LOG_ERROR
        wp.init()
    version = f"warp {metadata.version('warp-lang')}"
    toolkit, driver = wp.get_cuda_toolkit_version(), wp.get_cuda_driver_version()
    if wp.is_cuda_available():
        yield Line(
            "ok", "Warp", f"{version}, CUDA {_dotted(driver)} driver", "the warp and mjwarp engines run on the GPU"
        )
    elif _nvidia_smi():
        yield Line(
            "note",
            "Warp",
            f"{version}, built for CUDA {_dotted(toolkit)}",
            "cannot use the NVIDIA driver; a newer one may help. Until then: device=cpu",
        )
    else:
        yield Line(
            "ok", "Warp", f"{version}, no CUDA driver", "the warp and mjwarp engines serve for checks on the CPU only"
        )
    cache = Path(wp.config.kernel_cache_dir or ".")
    problem = _not_writable(cache)
    if problem:
        yield Line(
            "note",
            "kernel cache",
            f"{cache}: {problem}",
            "compiled kernels cannot be kept: set WARP_CACHE_PATH to a folder that can be written",
        )
    else:
        yield Line(
            "ok",
            "kernel cache",
            f"{cache}, {_size(cache) / 2**20:.0f} MiB",
            "may be deleted; the next run compiles its kernels again",
        )


def check_mujoco() -> Iterator[Line]:
    import mujoco

    if not hasattr(mujoco, "batch") and util.find_spec("mujoco.batch") is None:
        yield Line("problem", "MuJoCo", mujoco.__version__, "isaacrl needs 4.0 or newer: pip install 'mujoco>=4.0'")
    else:
        yield Line("ok", "MuJoCo", f"{mujoco.__version__}, mujoco-warp {metadata.version('mujoco-warp')}")


# --- pictures and extras ---


def check_video() -> Iterator[Line]:
    from isaacrl import render

    name, reason = render.backend()
    if name == "warp":
        yield Line("note", "pictures", reason, "works; faster with Mesa (Debian: apt install libegl1 libgl1)")
    else:
        yield Line("ok", "pictures", reason)
    try:
        import imageio_ffmpeg

        exe = imageio_ffmpeg.get_ffmpeg_exe()
        version = subprocess.run([exe, "-version"], capture_output=True, text=True, timeout=30, check=True).stdout
        yield Line("ok", "videos", " ".join(version.split()[:3]))
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        yield Line("note", "videos", _one_line(error), "no mp4 without ffmpeg: pip install imageio-ffmpeg")


def check_extras() -> Iterator[Line]:
    for extra, packages, purpose in (
        ("wandb", ("wandb",), "logger=wandb"),
        ("viewer", ("viser", "mjviser"), "isaacrl play viewer=browser"),
    ):
        missing = [package for package in packages if util.find_spec(package) is None]
        if missing:
            yield Line("ok", extra, "not installed", f"optional, for {purpose}: pip install 'isaacrl[{extra}]'")
        else:
            yield Line("ok", extra, ", ".join(f"{p} {metadata.version(p)}" for p in packages), purpose)


# --- folders ---


def check_config() -> Iterator[Line]:
    from isaacrl.conf_source import conf_dir, search_dirs

    own = conf_dir()
    for folder in search_dirs():
        num = len(list((folder / "task").glob("*.yaml")))
        yield Line("ok", "configuration", f"{folder}, {num} tasks", "" if folder == own else "yours, read first")
    if not list((own / "task").glob("*.yaml")):
        yield Line("problem", "configuration", f"{own} holds no tasks", "install isaacrl anew")


def check_outputs() -> Iterator[Line]:
    outputs = Path("outputs").absolute()
    problem = _not_writable(outputs)
    free = shutil.disk_usage(_existing(outputs)).free / GIB
    if problem:
        yield Line("problem", "outputs", f"{outputs}: {problem}", "run folders go there: outputs=/a/writable/folder")
    elif free < 1:
        yield Line("note", "outputs", f"{outputs}, {free:.1f} GiB free", "little room for runs: outputs=/another/disk")
    else:
        yield Line("ok", "outputs", f"{outputs}, {free:.0f} GiB free")


CHECKS: dict[str, Callable[[], Iterator[Line]]] = {
    "Python": check_python,
    "system": check_system,
    "torch": check_torch,
    "GPU": check_gpu,
    "MuJoCo": check_mujoco,
    "Warp": check_warp,
    "pictures": check_video,
    "extras": check_extras,
    "configuration": check_config,
    "outputs": check_outputs,
}
NEEDED = ("Python", "torch", "MuJoCo", "configuration", "outputs")


# --- small tools ---


def _nvidia_smi() -> str:
    """Version of the NVIDIA driver, empty where there is none."""
    try:
        run = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.split("\n")[0].strip() if run.returncode == 0 else ""


def _cuda_libraries() -> int:
    """Bytes of the CUDA packages that come with torch."""
    roots = [
        Path(place)
        for name in ("nvidia", "triton")
        if (spec := util.find_spec(name))
        for place in spec.submodule_search_locations or []
    ]
    return sum(_size(root) for root in roots)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _not_writable(folder: Path) -> str:
    """Why nothing can be written under `folder`, empty where it can."""
    place = _existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            return ""
    except OSError as error:
        return f"{place} cannot be written ({error.strerror})"


def _dotted(version: tuple[int, int] | None) -> str:
    return ".".join(map(str, version)) if version else "?"


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[-1].strip()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Warp's native library reports a missing driver on stderr by itself; the table says it better."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
