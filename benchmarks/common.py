"""What every benchmark states with its figures, and where it writes them."""

import json
import os
import platform
import re
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Hardware, versions, and the commit."""
    import torch

    from isaacrl.runs import git_state

    cpu = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "?"
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    packages = ("torch", "mujoco", "mujoco-warp", "warp-lang", "hydra-core")
    git = git_state(Path(__file__).parent)[0] or {}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "commit": git.get("commit"),
        "uncommitted_changes": git.get("dirty"),
    } | {p: version(p) for p in packages}


def kept_policy(path: Path, **keys: Any) -> tuple[Any, dict[str, Any]]:
    """What `time_to_solved.py --keep` wrote: (its configuration with other top-level keys, {policy, curricula})."""
    import torch
    from omegaconf import OmegaConf

    kept = torch.load(path, weights_only=True)
    return OmegaConf.merge(OmegaConf.create(kept.pop("config")), keys), kept


def acting(cfg: Any, kept: dict[str, Any]) -> tuple[Any, Any]:
    """(environment, controller) of a kept policy, with curricula as they stood."""
    from isaacrl import algos
    from isaacrl.env import Env
    from isaacrl.terms.curriculum import hold

    env = Env(cfg)
    algo = algos.build(env, cfg)
    algo.deployed.load_state_dict(kept["policy"])
    hold(env, kept["curricula"])
    return env, algo.controller(env)


def compared(values: dict[str, list[float]]) -> dict[str, Any]:
    """Two sides' means and standard errors over seeds, and whether they differ (Welch's t)."""
    error = {k: statistics.stdev(v) / len(v) ** 0.5 for k, v in values.items()}
    mean = {k: statistics.fmean(v) for k, v in values.items()}
    first, second = values
    t = (mean[first] - mean[second]) / (error[first] ** 2 + error[second] ** 2) ** 0.5
    return {"mean_return": mean, "standard_error": error, "t": round(t, 2), "within_noise": abs(t) < 2.3}


def write(name: str, result: dict[str, Any]) -> None:
    """results/<name>.json, and the same on the terminal."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **result}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


def merge(path: Path, name: str, result: dict[str, Any]) -> None:
    """Set one entry of a file of results; the others stay, those of earlier runs too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(text_of(known | {name: result}))


def text_of(result: dict[str, Any]) -> str:
    """JSON with lists of numbers on one line, and short objects without any in them."""
    text = json.dumps(result, indent=2)
    lists, objects = r"\[(?:[-+\d.eE,\s]|null)+\]", r"\{[^{}\[\]]*\}"
    text = re.sub(lists, lambda m: "[" + ", ".join(m[0][1:-1].replace(",", " ").split()) + "]", text)
    short = lambda m: line if len(line := re.sub(r"\s*\n\s*", " ", m[0])) <= 120 else m[0]  # noqa: E731
    return re.sub(objects, short, text) + "\n"
