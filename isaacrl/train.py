"""`isaacrl train`: one straight line from a configuration to a trained policy in a run folder."""

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from isaacrl import algos, render, runs
from isaacrl.config import dump, load_stored
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.export import export_policy
from isaacrl.log import Log, cut, open_log
from isaacrl.play import film
from isaacrl.runs import CheckpointError, Run, StopSignals
from isaacrl.startup import Phases
from isaacrl.task import container
from isaacrl.trends import History
from isaacrl.troubles import Troubles

MAX_FAILED_SAVES = 3  # consecutive failures to write a checkpoint before training stops
GRADE = 0.05  # of curricula: returns are compared where these are as far, and levels of a terrain always move a little
MAX_SKIPPED_ITERATIONS = 20  # consecutive iterations without one finite update before training stops


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train from scratch in a new run folder; the content of its summary.json."""
    with StopSignals() as signals:
        phases = Phases()
        env, algo = start(cfg, phases)
        folder = runs.create(
            cfg.outputs,
            cfg.task.name,
            cfg.algo.name,
            dump(cfg),
            command=sys.argv,
            term_files=_user_files(env),
            robot=(cfg.asset.path, env.robot_files),
        )
        with folder:
            return _loop(cfg, env, algo, folder, signals, phases, Progress())


def start(cfg: DictConfig, phases: Phases) -> tuple[Env, Any]:
    """The environment, its worlds at random times of their first episodes, and the untrained algorithm."""
    env = Env(cfg)
    render.check_camera(env.visual_model, container(cfg.task.camera))  # now, not when somebody wants to see it
    phases.done("scene", env)
    algo = algos.build(env, cfg)
    env.stagger()
    phases.done("networks", env, algo)
    return env, algo


def resume(run_path: Path, cfg: DictConfig) -> dict[str, Any]:
    """Continue a run where its latest checkpoint stands: N + resume + M iterations equal N + M."""
    with StopSignals() as signals, runs.open_run(run_path) as folder:
        phases = Phases()
        state, _ = runs.load_checkpoint(run_path, "latest")
        env = Env(cfg)
        phases.done("scene", env)
        algos.check_signature(state["signature"], env)
        algo = algos.build(env, cfg)
        algos.restore(algo, state["algo"])
        env.load_state_dict(state["env"])
        if cfg.algo.lr != load_stored(run_path / "config.yaml", trust=True, training=False).algo.lr:
            algo.lr.fill_(cfg.algo.lr)  # asked for on the command line: instead of the stored one
        phases.done("networks", env, algo)
        progress = Progress(**state["progress"])
        if progress.iteration >= cfg.algo.iterations:
            raise UserError(
                f"run={run_path}: already at iteration {progress.iteration} of {cfg.algo.iterations}; "
                f"add algo.iterations={2 * progress.iteration} to train on"
            )
        runs.write_atomic(run_path / "config.yaml", dump(cfg))  # what changed holds from here on
        return _loop(cfg, env, algo, folder, signals, phases, progress)


@dataclass
class Progress:
    """The counters of a run that outlast a restart; first, last, best: mean returns of the iterations' episodes."""

    iteration: int = 0
    env_steps: int = 0
    wall_s: float = 0.0
    first: float | None = None
    last: float | None = None
    fresh: bool = False  # whether `last` is of the latest iteration; there are some in which no episode ends
    last_length: float | None = None
    best: float | None = None
    best_saved: float | None = None
    curriculum: float = 0.0  # how far the task's curricula have come, their mean, 0 to 1 in steps of GRADE
    curriculum_saved: float = 0.0  # when best_saved was

    @property
    def better(self) -> bool:
        """Than all that was saved. A return on a harder task is not to be compared with one on an easier task."""
        if not self.fresh or self.last is None or self.best_saved is None:
            return self.fresh
        return (self.curriculum, self.last) > (self.curriculum_saved, self.best_saved)


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
    run.update(status="running", engine=env.engine.name)
    env.timer.enabled = True
    saver = Saver(cfg, env, algo, run, progress, log)
    troubles = _troubles(cfg, env, algo, run, start)
    skipped = 0
    try:
        algo.prepare(env.timer)
        while progress.iteration < cfg.algo.iterations and not signals.received:
            metrics = _iterate(cfg, env, algo, progress, log)
            if progress.iteration == start + 1:
                phases.done("first iteration", env, algo)
                for name, seconds in phases.seconds.items():
                    log.phase(name, seconds)
            log.log(metrics, progress.iteration)
            for key, text in troubles.look(metrics, progress.iteration):
                log.warn(text, key=key)
            skipped = skipped + 1 if metrics["skipped_updates"] >= algo.updates_per_iteration else 0
            if skipped >= MAX_SKIPPED_ITERATIONS:
                raise UserError(
                    f"training diverged: no finite update in {skipped} iterations; the last good checkpoint is "
                    f"kept in {run.path}; lower algo.lr or look at the rewards"
                )
            _track(progress, metrics)
            if not skipped:
                saver.after_iteration()
            if cfg.logger.video_every and progress.iteration % cfg.logger.video_every == 0:
                _film(cfg, algo, run, progress.iteration, log)
        saver.finish()
        needs_trust = bool(_user_files(env) or cfg.asset.trust)
        summary = _summary(cfg, run, progress, signals, start) | {"user_code": needs_trust, "troubles": troubles.found}
        run.write_json("summary.json", summary)
        if not signals.received:
            best = _export_best(cfg, env, algo, run, log)
            _share(cfg, algo, run, best, progress.iteration, log)
        status = f"interrupted by {signals.received}" if signals.received else "finished"
        log.close(summary)
        run.update(status=status)
        return summary
    except BaseException:
        log.close(None)
        with contextlib.suppress(UserError):  # of a full disk, say; what ended training is what counts
            run.update(status="failed")
        raise


class Saver:
    """Writes checkpoints: at regular iterations, when the policy is better than any saved one, and at the end."""

    def __init__(self, cfg: DictConfig, env: Env, algo: Any, run: Run, progress: Progress, log: Log):
        self.cfg, self.env, self.algo, self.run, self.progress, self.log = cfg, env, algo, run, progress, log
        self.saved_at, self.failures = progress.iteration, 0

    def after_iteration(self) -> None:
        at, every = self.progress.iteration, self.cfg.checkpoint.every
        # While it improves all the time, the best policy is worth a file only every few iterations.
        if at % every == 0 or self.failures or (self.progress.better and at - self.saved_at >= min(10, every)):
            self.save()

    def finish(self) -> None:
        """The last state, with a second try; Raises: UserError where it cannot be written."""
        while self.saved_at != self.progress.iteration:
            self.save()

    def save(self) -> None:
        progress = self.progress
        before = progress.best_saved, progress.curriculum_saved
        if progress.better:
            progress.best_saved, progress.curriculum_saved = progress.last, progress.curriculum
        state = {
            "signature": algos.signature(self.env),
            "algo": self.algo.state_dict(),
            "env": self.env.state_dict(),
            "progress": dict(vars(progress)),
        }
        try:
            runs.save_checkpoint(
                self.run.path,
                state,
                progress.iteration,
                progress.last if progress.fresh else None,
                self.cfg.checkpoint.keep,
                curriculum=progress.curriculum,
            )
        except CheckpointError as e:
            self.failures += 1
            progress.best_saved, progress.curriculum_saved = before
            if self.failures >= MAX_FAILED_SAVES:
                raise UserError(
                    f"{self.run.path}: {MAX_FAILED_SAVES} checkpoints in a row could not be written ({e}); "
                    "make room and continue with resume=true"
                ) from e
            self.log.warn(f"checkpoint not written ({e}); trying again")
        else:
            self.failures, self.saved_at = 0, progress.iteration


def _export_best(cfg: DictConfig, env: Env, algo: Any, run: Run, log: Log) -> int | None:
    """policy.onnx of the checkpoint that eval and play take as well; its iteration. Its failure costs no training."""
    try:
        state, entry = runs.load_checkpoint(run.path, "best")
        algos.take_policy(algo, state)
        export_policy(env, algo, run.path, cfg, checkpoint=entry)
        return entry["iteration"]
    except (UserError, OSError) as e:
        log.warn(f"no policy.onnx: {e}", key="export")
        return None


def _film(cfg: DictConfig, algo: Any, run: Run, iteration: int, log: Log, of: int | None = None) -> None:
    """A video in videos/ of the policy as it is now, that of iteration `of`. Its failure costs no training."""
    try:
        path = film(cfg, algo, run.path, of or iteration)
    except Exception as e:  # graphics drivers and ffmpeg: whatever they do, training goes on
        log.warn(f"no video: {' '.join(str(e).split())[:200]}", key="video")
        return
    if cfg.logger.wandb_video:
        log.share([path], iteration)


def _share(cfg: DictConfig, algo: Any, run: Run, best: int | None, iteration: int, log: Log) -> None:
    """At the end: what logger.wandb_video and logger.wandb_artifacts ask for, of the best policy."""
    if cfg.logger.wandb and cfg.logger.wandb_video:
        _film(cfg, algo, run, iteration, log, of=best)
    if cfg.logger.wandb_artifacts:
        files = [run.path / name for name in ("policy.onnx", "policy.json", "config.yaml", "checkpoints/best.pt")]
        log.share([f for f in files if f.is_file()], iteration)


def iterate(env: Env, algo: Any) -> tuple[dict[str, float], dict[str, float], float]:
    """One iteration: (metrics, copied from the device at its end; seconds by section; seconds in all)."""
    began = time.perf_counter()
    device = algo.iterate(env.timer)
    values = dict(zip(device, torch.stack([v.float() for v in device.values()]).tolist()))
    metrics = env.read_metrics() | values
    return metrics, env.timer.read(), time.perf_counter() - began


def _iterate(cfg: DictConfig, env: Env, algo: Any, progress: Progress, log: Log) -> dict[str, float]:
    """One iteration, its metrics and warnings."""
    metrics, spent, seconds = iterate(env, algo)
    steps = cfg.algo.num_steps * env.num_envs
    progress.iteration += 1
    progress.env_steps += steps
    progress.wall_s += seconds
    out: dict[str, float] = {
        "iteration": progress.iteration,
        "env_steps": progress.env_steps,
        "wall_s": progress.wall_s,
    }
    out |= metrics
    out["steps_per_s"] = steps / seconds
    out |= {f"time/{name}": spent.get(name, 0.0) for name in ("sim", "env", "policy", "update")}
    if metrics["nonfinite"]:
        times = f"{int(metrics['nonfinite'])} times" if metrics["nonfinite"] > 1 else "once"
        log.warn(f"a world became non-finite and was reset ({times})", key="nonfinite")
    if metrics["spoilt_rewards"]:
        which = ", ".join(_spoilt_terms(env)) or "a term of task.rewards"
        log.warn(
            f"{which}: not finite in {100.0 * metrics['spoilt_rewards'] / steps:.2g}% of steps, whose rewards count as "
            "0; it divides by 0, or takes a root or logarithm of what is negative",
            key="spoilt_rewards",
        )
    if metrics["overflow"]:
        room = "sim.nconmax and sim.njmax" if env.engine.name == "mjwarp" else "sim.nconmax"
        log.warn(f"contacts or constraint rows exceeded their capacity: raise {room}", key="overflow")
    if metrics["skipped_updates"]:
        log.warn(f"{int(metrics['skipped_updates'])} update(s) with non-finite gradients skipped", key="skipped")
    return out


def _troubles(cfg: DictConfig, env: Env, algo: Any, run: Run, start: int) -> Troubles:
    """The checks of training; of a resumed run they have seen the iterations before."""
    sizes = {"max_episode_steps": env.max_episode_steps, "num_actions": env.task.num_actions}
    troubles = Troubles(History(cfg, **sizes, updates=algo.updates_per_iteration))
    for record in cut(run.path / "metrics.jsonl", start):
        troubles.look(record, record["iteration"])
    return troubles


def _spoilt_terms(env: Env) -> list[str]:
    """Keys of the reward terms that are not finite in some world as things stand."""
    bad, names = ~torch.isfinite(env.task.rewards(env.state)).all(dim=0), env.task.reward_names
    keys = {t.name: t.key for t in env.task.reward_terms}
    return [keys.get(name, f"task.env: {name} of rewards()") for name, wrong in zip(names, bad.tolist()) if wrong]


def _track(progress: Progress, metrics: dict[str, float]) -> None:
    """Keep the first, last and best return, and how far the curricula are."""
    far = [v for k, v in metrics.items() if k.startswith("curriculum/")]
    progress.curriculum = round(sum(far) / len(far) / GRADE) * GRADE if far else 0.0
    progress.fresh = "return" in metrics
    if progress.fresh:
        progress.last, progress.last_length = metrics["return"], metrics["episode_length"]
        progress.first = progress.first if progress.first is not None else progress.last
        progress.best = progress.last if progress.best is None else max(progress.best, progress.last)


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
