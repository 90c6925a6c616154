"""`isaacrl train`: one straight line from a configuration to a trained policy in a run folder."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from isaacrl import algos, runs
from isaacrl.config import dump
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.export import export_policy
from isaacrl.log import Log, open_log
from isaacrl.runs import CheckpointError, Run, StopSignals

MAX_FAILED_SAVES = 3  # consecutive failures to write a checkpoint before training stops
MAX_SKIPPED_ITERATIONS = 20  # consecutive iterations without one finite update before training stops


def train(cfg: DictConfig, run: str | None = None) -> dict[str, Any]:
    """Train from scratch in a new run folder; the content of its summary.json."""
    with StopSignals() as signals:
        phases = Phases()
        env = Env(cfg)
        phases.done("scene")
        algo = algos.build(env, cfg)
        env.stagger()
        phases.done("networks")
        folder = runs.create(
            cfg.outputs, cfg.task.name, cfg.algo.name, dump(cfg), command=sys.argv, term_files=_user_files(env)
        )
        with folder:
            return _loop(cfg, env, algo, folder, signals, phases, Progress())


def resume(run_path: Path, cfg: DictConfig) -> dict[str, Any]:
    """Continue a run where its latest checkpoint stands: N + resume + M iterations equal N + M."""
    with StopSignals() as signals, runs.open_run(run_path) as folder:
        phases = Phases()
        state, _ = runs.load_checkpoint(run_path, "latest")
        env = Env(cfg)
        phases.done("scene")
        algos.check_signature(state["signature"], env)
        algo = algos.build(env, cfg)
        algo.load_state_dict(state["algo"])
        env.load_state_dict(state["env"])
        phases.done("networks")
        progress = Progress(**state["progress"])
        if progress.iteration >= cfg.algo.iterations:
            raise UserError(
                f"run={run_path}: already at iteration {progress.iteration} of {cfg.algo.iterations}; "
                f"add algo.iterations={2 * progress.iteration} to train on"
            )
        return _loop(cfg, env, algo, folder, signals, phases, progress)


class Phases:
    """How long each phase of the start took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def done(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


class Progress:
    """The counters of a run that outlast a restart."""

    def __init__(
        self,
        iteration: int = 0,
        env_steps: int = 0,
        wall_s: float = 0.0,
        best: float | None = None,
        first: float | None = None,
        last: float | None = None,
        last_length: float | None = None,
    ):
        self.iteration, self.env_steps, self.wall_s = iteration, env_steps, wall_s
        self.best, self.first, self.last, self.last_length = best, first, last, last_length


def _loop(
    cfg: DictConfig, env: Env, algo: Any, run: Run, signals: StopSignals, phases: Phases, progress: Progress
) -> dict[str, Any]:
    start = progress.iteration
    log = open_log(
        cfg.logger,
        run.path,
        title=f"{cfg.task.name} · {cfg.algo.name}",
        iterations=cfg.algo.iterations,
        start_iteration=start,
        reward_terms=env.task.reward_names,
    )
    log.info(f"engine {env.engine.name}: {env.engine.reason}")
    phases.done("logging")
    for name, seconds in phases.seconds.items():
        log.phase(name, seconds)
    run.update(status="running", engine=env.engine.name)
    failed_saves = skipped = 0
    saved_at = start if start else -1
    status = "finished"
    try:
        while progress.iteration < cfg.algo.iterations and not signals.received:
            metrics = _iterate(cfg, env, algo, progress, log)
            skipped = skipped + 1 if metrics["skipped_updates"] >= cfg.algo.epochs * cfg.algo.minibatches else 0
            if skipped >= MAX_SKIPPED_ITERATIONS:
                raise UserError(
                    f"training diverged: no finite update in {skipped} iterations; the last good checkpoint is "
                    f"kept in {run.path}; lower algo.lr or look at the rewards"
                )
            last = progress.iteration == cfg.algo.iterations or bool(signals.received)
            better = _improved(progress, metrics)
            if last or failed_saves or better or progress.iteration % cfg.checkpoint.every == 0:
                # The best policy is worth a file only every few iterations while it improves all the time.
                if last or failed_saves or progress.iteration - saved_at >= min(10, cfg.checkpoint.every):
                    failed_saves, saved_at = _save(cfg, env, algo, run, progress, log, failed_saves), progress.iteration
        if signals.received and saved_at != progress.iteration and progress.iteration > 0:
            _save(cfg, env, algo, run, progress, log, 0)
        status = f"interrupted by {signals.received}" if signals.received else "finished"
        summary = _summary(cfg, run, progress, signals, start)
        if not signals.received:
            export_policy(env, algo, run.path, cfg)
        run.write_json("summary.json", summary)
        log.close(summary)
        return summary
    except BaseException:
        status = "failed"
        log.close(None)
        raise
    finally:
        run.update(status=status)


def _iterate(cfg: DictConfig, env: Env, algo: Any, progress: Progress, log: Log) -> dict[str, float]:
    """One iteration and its metrics: one copy from the device."""
    began = time.perf_counter()
    device = algo.iterate(env.timer)
    values = dict(zip(device, torch.stack([v.float() for v in device.values()]).tolist()))
    metrics = env.read_metrics()
    spent = env.timer.read()
    seconds = time.perf_counter() - began
    steps = cfg.algo.num_steps * env.num_envs
    progress.iteration += 1
    progress.env_steps += steps
    progress.wall_s += seconds
    out: dict[str, float] = {
        "iteration": progress.iteration,
        "env_steps": progress.env_steps,
        "wall_s": progress.wall_s,
    }
    out |= metrics | values
    out["steps_per_s"] = steps / seconds
    out |= {f"time/{name}": spent.get(name, 0.0) for name in ("sim", "env", "policy", "update")}
    if metrics["nonfinite"]:
        log.warn(f"{int(metrics['nonfinite'])} world(s) became non-finite and were reset", key="nonfinite")
    if metrics["overflow"]:
        log.warn("contacts or constraint rows exceeded their capacity: raise sim.nconmax and sim.njmax", key="overflow")
    if values["skipped_updates"]:
        log.warn(f"{int(values['skipped_updates'])} update(s) with non-finite gradients skipped", key="skipped")
    log.log(out, progress.iteration)
    return out


def _improved(progress: Progress, metrics: dict[str, float]) -> bool:
    """Keep track of the return; whether it is the best so far."""
    if "return" not in metrics:
        return False
    progress.last, progress.last_length = metrics["return"], metrics["episode_length"]
    progress.first = progress.first if progress.first is not None else progress.last
    if progress.best is None or progress.last > progress.best:
        progress.best = progress.last
        return True
    return False


def _save(cfg: DictConfig, env: Env, algo: Any, run: Run, progress: Progress, log: Log, failures: int) -> int:
    """Write a checkpoint; the number of consecutive failures."""
    state = {
        "signature": algos.signature(env),
        "algo": algo.state_dict(),
        "env": env.state_dict(),
        "progress": dict(vars(progress)),
    }
    try:
        runs.save_checkpoint(run.path, state, progress.iteration, progress.last, cfg.checkpoint.keep)
        return 0
    except CheckpointError as e:
        if failures + 1 >= MAX_FAILED_SAVES:
            raise UserError(
                f"{run.path}: {MAX_FAILED_SAVES} checkpoints in a row could not be written ({e}); "
                "make room and continue with resume=true"
            ) from e
        log.warn(f"checkpoint not written ({e}); trying again after the next iteration")
        return failures + 1


def _summary(cfg: DictConfig, run: Run, progress: Progress, signals: StopSignals, start: int) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "task": cfg.task.name,
        "algo": cfg.algo.name,
        "seed": cfg.seed,
        "num_envs": cfg.num_envs,
        "iterations": progress.iteration,
        "resumed_at": start or None,
        "env_steps": progress.env_steps,
        "wall_s": round(progress.wall_s, 3),
        "steps_per_s": round(progress.env_steps / max(progress.wall_s, 1e-9)),
        "return_first": progress.first,
        "return": progress.last,
        "return_best": progress.best,
        "episode_length": progress.last_length,
        "interrupted": signals.received,
    }


def _user_files(env: Env) -> list[Path]:
    """Source files of terms that are not isaacrl's own."""
    own = Path(__file__).parent
    sources = {Path(t.source) for t in env.all_terms() if t.source}
    if type(env.task).__module__.partition(".")[0] != "isaacrl":
        sources.add(Path(sys.modules[type(env.task).__module__].__file__ or ""))
    return sorted(p for p in sources if own not in p.resolve().parents)
