"""`isaacrl train -m`: every combination of the swept values in a run folder of its own.

Hydra enumerates and launches the jobs (its launcher plugins included). What becomes of each is written to a file in the
sweep's folder, since a launcher may run it in another process.
"""

import gc
import json
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from isaacrl import config, overrides
from isaacrl.conf_source import loader, search_dirs, search_path
from isaacrl.errors import UserError
from isaacrl.suggest import one_line

MOST_JOBS = 4096


def open_hydra(config_dir: str | None) -> Hydra:
    """Hydra over isaacrl's configuration folders. Close it with GlobalHydra.instance().clear()."""
    dirs = search_dirs(config_dir)
    loader(dirs)
    GlobalHydra.instance().clear()
    return Hydra.create_main_hydra2("train", search_path(dirs))


def plan(texts: list[str], config_dir: str | None) -> tuple[list[list[str]], list[str]]:
    """(the jobs' overrides, all overrides as Hydra takes them). Every job is composed and checked.

    Raises: UserError naming the job for the first that is wrong.
    """
    parsed = overrides.parse(texts, loader(search_dirs(config_dir)))
    given = [str(o.input_line) for o in parsed]
    mine = [o for o in parsed if not overrides.is_hydra(o)]
    own_sweeper = any(o.key_or_group.startswith(("hydra/sweeper", "hydra.sweeper")) for o in parsed)
    jobs = [[_first(o) for o in mine]] if own_sweeper else _product(mine)
    for i, job in enumerate(jobs):
        try:
            config.compose(job, config_dir)
        except UserError as e:
            if len(jobs) == 1:
                raise
            raise UserError(f"job {i} of {len(jobs)} ({one_line(' '.join(job), 120)}): {e}") from None
    return jobs, given


def _product(parsed: list[Override]) -> list[list[str]]:
    count = 1
    for o in parsed:
        if o.is_sweep_override():
            if not o.is_discrete_sweep():
                raise UserError(
                    f"{o.key_or_group}: '{one_line(o.input_line, 60)}' has no list of values; "
                    "interval() needs a sweeper that samples, such as hydra/sweeper=optuna"
                )
            count *= len(list(o.sweep_string_iterator()))
            if count > MOST_JOBS:
                raise UserError(f"the sweep has {count} jobs or more, the most is {MOST_JOBS}; split it")
            if count == 0:
                raise UserError(f"{o.key_or_group}: '{one_line(o.input_line, 60)}' gives no value at all")
    return BasicSweeper.split_arguments(parsed, None)[0]


def _first(o: Override) -> str:
    """An override with the first value of its sweep."""
    if not o.is_sweep_override():
        return str(o.input_line)
    value = next(iter(o.sweep_string_iterator())) if o.is_discrete_sweep() else o.value().start  # type: ignore[union-attr]
    return f"{o.get_key_element()}={value}"


def run(texts: list[str], config_dir: str | None) -> int:
    """Train all jobs, print the table, write sweep.json; the exit code."""
    jobs, given = plan(texts, config_dir)
    folder = _make_folder(Path(str(config.compose(jobs[0], config_dir).outputs)).absolute())
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    ours = [
        f"hydra.sweep.dir='{quoted}'",
        "hydra.sweep.subdir=.",
        "hydra.output_subdir=null",
        "hydra.job.chdir=false",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
    ]
    print(f"sweep: {len(jobs)} job(s), results in {folder}")
    code, broken = 0, ""
    try:
        hydra = open_hydra(config_dir)
        hydra.multirun(config_name="config", task_function=job, overrides=[*given, *ours], with_log_configuration=False)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except HydraException as e:
        broken = one_line(e, 300)
    finally:
        GlobalHydra.instance().clear()
    results = _collect(folder, jobs)
    (folder / "sweep.json").write_text(json.dumps({"command": sys.argv, "jobs": results}, indent=2) + "\n")
    _show(results, folder)
    if broken:
        raise UserError(f"the sweep could not run: {broken}")
    return code or int(any(r["status"] != "finished" for r in results))


def job(cfg: DictConfig) -> float:
    """One job of a sweep, called by Hydra's launcher, maybe in another process.

    Returns the last return, for sweepers that optimize. A failure is recorded and does not stop the others; a signal
    stops the sweep.
    """
    hydra = HydraConfig.get()
    folder, number = Path(hydra.sweep.dir), int(hydra.job.num)
    result: dict[str, Any] = {"job": number, "overrides": list(OmegaConf.to_container(hydra.overrides.task))}
    print(f"\n[{number}] {' '.join(result['overrides'])}", flush=True)
    summary: dict[str, Any] = {}
    try:
        from isaacrl.train import train

        summary = train(config.finish(cfg))
        result["status"] = f"interrupted ({summary['interrupted']})" if summary.get("interrupted") else "finished"
        result |= {k: summary.get(k) for k in ("run", "return", "episode_length", "iterations")}
    except UserError as e:
        result |= {"status": "failed", "error": one_line(e, 500)}
    except KeyboardInterrupt:
        result |= {"status": "interrupted (SIGINT)"}
        summary["interrupted"] = "SIGINT"
    except Exception as e:
        result |= {
            "status": "failed",
            "error": one_line(f"{type(e).__name__}: {e}", 500),
            "traceback": traceback.format_exc(),
        }
    (folder / "jobs").mkdir(exist_ok=True)
    (folder / "jobs" / f"{number:04d}.json").write_text(json.dumps(result, indent=2) + "\n")
    if "error" in result:
        print(f"[{number}] failed: {result['error']}", file=sys.stderr, flush=True)
    if summary.get("interrupted") == "SIGINT":
        raise KeyboardInterrupt
    if summary.get("interrupted"):
        raise SystemExit(128 + signal.Signals[summary["interrupted"]].value)
    gc.collect()  # the environment of a job is large, and holds cycles
    value = summary.get("return")
    return float("nan") if value is None else float(value)


def _make_folder(outputs: Path) -> Path:
    name, n = time.strftime("%Y-%m-%d_%H-%M-%S"), 1
    while True:
        folder = outputs / "sweeps" / (name if n == 1 else f"{name}_{n}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            n += 1
        except OSError as e:
            raise UserError(f"outputs: cannot make {folder} ({e.strerror})") from None


def _collect(folder: Path, jobs: list[list[str]]) -> list[dict[str, Any]]:
    """The results that jobs have left; those that left none never began, or died."""
    found = {}
    for file in sorted((folder / "jobs").glob("*.json")):
        try:
            result = json.loads(file.read_text())
            found[result["job"]] = result
        except (ValueError, KeyError, OSError):
            continue
    numbers = sorted(set(found) | set(range(len(jobs))))
    return [found.get(i, {"job": i, "overrides": jobs[i], "status": "no result"}) for i in numbers]


def _show(results: list[dict[str, Any]], folder: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="sweep")
    for name, side in (
        ("job", "right"),
        ("overrides", "left"),
        ("return", "right"),
        ("length", "right"),
        ("status", "left"),
        ("run or error", "left"),
    ):
        table.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
    numbers = {"return": "{:.4g}", "episode_length": "{:.4g}"}
    for r in results:
        figures = [numbers[k].format(r[k]) if isinstance(r.get(k), int | float) else "" for k in numbers]
        colour = "green" if r["status"] == "finished" else "red" if r["status"] == "failed" else "yellow"
        table.add_row(
            str(r["job"]),
            escape(" ".join(o.lstrip("+") for o in r["overrides"])),
            *figures,
            f"[{colour}]{r['status']}[/]",
            escape(str(r.get("error") or r.get("run") or "")),
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    print(f"written: {folder / 'sweep.json'}")
