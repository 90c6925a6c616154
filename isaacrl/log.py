"""Where metrics go, behind one `log(metrics, step)`: console, metrics.jsonl, TensorBoard, Weights & Biases.

No output can end or hold up a run: files are appended in one write, slow libraries and networks have threads of their
own, and what fails says so once and is left out.
"""

import json
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from isaacrl.console import NoView, Status, View, abandon_stdout, open_view
from isaacrl.files import finite, write_atomic

WANDB_INIT_S = 10  # how long to look for the W&B server; training goes on meanwhile
WANDB_FINISH_S = 30  # how long to wait for uploads at the end of a run

Write = Callable[[dict[str, float], int, float], None]  # metrics, step, wall time
Share = Callable[[list[Path], int], None]  # files of the run, step


class Log:
    """The log of one run. `warnings` counts them all; `phases` holds the seconds of the start-up phases."""

    def __init__(self, status: Status, view: View, sinks: dict[str, "_Background"]):
        self.phases = status.phases
        self._status, self._view, self._sinks = status, view, sinks
        self._file = _JsonLines(status.run_path / "metrics.jsonl")
        self._lock = threading.RLock()  # warnings come from the sinks' threads, too
        self._spent: float | None = None
        self._closed = False

    @property
    def warnings(self) -> int:
        return sum(count for _, count in list(self._status.warnings.values()))

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log one iteration. metrics: flat; time/log, what the call before took [s], is added. step: counted from 1."""
        began = time.perf_counter()
        metrics = {"iteration": step} | metrics
        if self._spent is not None:
            metrics.setdefault("time/log", self._spent)
        try:
            self._file.append(metrics)
        except OSError as e:
            self.warn(f"metrics.jsonl: {e.strerror or e}; iterations are missing there", key="metrics.jsonl")
        for sink in self._sinks.values():
            sink.put(metrics, step)
        self._status.add(metrics, step)
        self._show(lambda view: view.update())
        self._spent = time.perf_counter() - began

    def share(self, paths: Iterable[Path], step: int) -> None:
        """Send files of the run where files can go: W&B. An mp4 is shown as a video, others are an artifact."""
        for sink in self._sinks.values():
            sink.put(list(paths), step)

    def info(self, text: str) -> None:
        """Tell something about the run as a whole."""
        self._show(lambda view: view.info(text))

    def warn(self, text: str, key: str | None = None) -> None:
        """Count a warning and show it. key: what makes two the same (default: text); warnings.log gets the first."""
        with self._lock:
            key, known = key or text, self._status.warnings
            count = known.pop(key, ("", 0))[1] + 1  # the newest stands last
            known[key] = (text, count)
            if count == 1:
                try:
                    with open(self._status.run_path / "warnings.log", "a") as f:
                        f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} iteration {self._status.iteration}: {text}\n")
                except OSError:
                    pass  # a full disk is itself what is warned about
            self._show(lambda view: view.warn(text, count == 1))

    def phase(self, name: str, seconds: float) -> None:
        """Note how long a phase of the start-up took."""
        self.phases[name] = self.phases.get(name, 0.0) + seconds

    def close(self, summary: dict[str, Any] | None) -> None:
        """Write out everything and show the closing summary; none where summary is None (the run failed).

        summary: `interrupted` names the signal that ended the run, if one did. A second call does nothing.
        """
        if self._closed:
            return
        self._closed = True
        try:
            for sink in self._sinks.values():
                sink.finish()
            self._file.close()
        finally:
            self._show(lambda view: view.close(summary))  # gives the terminal its cursor back

    def _show(self, act: Callable[[View], None]) -> None:
        """Use the view; when the terminal or pipe has gone away, go on without it."""
        try:
            act(self._view)
        except (OSError, ValueError) as e:
            self._view = NoView(self._status, None)  # type: ignore[arg-type]
            if isinstance(e, BrokenPipeError):
                abandon_stdout()


def open_log(
    cfg_logger: Any,
    run_path: str | Path,
    *,
    title: str,
    iterations: int,
    start_iteration: int = 0,
    reward_terms: Iterable[str] = (),
) -> Log:
    """Open the log of a run folder. cfg_logger: the keys of `isaacrl.schema.LoggerConfig`.

    start_iteration: iterations done before; what metrics.jsonl says beyond them is cut off, as they will be done again.
    """
    run_path = Path(run_path)
    status = Status(title, run_path, iterations, start_iteration, tuple(reward_terms), iteration=start_iteration)
    for record in cut(run_path / "metrics.jsonl", start_iteration):
        status.returns.add(record.get("return"), record["iteration"])
        status.lengths.add(record.get("episode_length"), record["iteration"])
    sinks: dict[str, _Background] = {}
    log = Log(status, open_view(cfg_logger.console, status), sinks)
    if cfg_logger.tensorboard:
        sinks["tensorboard"] = _Background(
            "TensorBoard", lambda: _tensorboard(run_path, start_iteration), log.warn, wait_s=30
        )
    if cfg_logger.wandb:  # the only place that asks
        sinks["wandb"] = _Background(
            "W&B",
            lambda: _wandb(cfg_logger, run_path, title, log.warn),
            log.warn,
            wait_s=WANDB_INIT_S + WANDB_FINISH_S + 10,
        )
    for sink in sinks.values():
        sink.start()
    return log


def cut(path: Path, iteration: int) -> list[dict[str, Any]]:
    """Drop from a metrics file what lies beyond an iteration, is torn, or comes twice; the records that stay."""
    if not path.exists():
        return []
    content = path.read_bytes()
    kept: dict[int, tuple[bytes, dict]] = {}
    for line in content.split(b"\n"):
        try:
            record = json.loads(line)
            number = record["iteration"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(number, int) and number <= iteration:
            kept[number] = line, record
    clean = b"".join(kept[i][0] + b"\n" for i in sorted(kept))
    if clean != content:
        write_atomic(path, clean)
    return [kept[i][1] for i in sorted(kept)]


class _JsonLines:
    """Appends one JSON object a line, each in one write, so that a killed process leaves at most one torn line."""

    def __init__(self, path: Path):
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, record: dict[str, Any]) -> None:
        """Raises: OSError where the disk refuses; the file then ends with the record before."""
        line = json.dumps(finite(record), allow_nan=False).encode() + b"\n"
        size = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, line)
        except OSError:
            os.ftruncate(self._fd, size)
            raise
        if written != len(line):
            os.ftruncate(self._fd, size)
            raise OSError(28, os.strerror(28))

    def close(self) -> None:
        os.close(self._fd)


class _Background(threading.Thread):
    """An output on a thread of its own. `opens` does what is slow and returns how to write and to finish, or None."""

    def __init__(
        self,
        name: str,
        opens: Callable[[], tuple[Write, Callable[[], None]] | tuple[Write, Callable[[], None], Share] | None],
        warn: Callable[[str], None],
        wait_s: float,
    ):
        super().__init__(name=name, daemon=True)
        self._queue: queue.SimpleQueue[tuple[dict[str, float] | list[Path], int, float] | None] = queue.SimpleQueue()
        self._opens, self._warn, self._wait_s = opens, warn, wait_s
        self._alive, self._left = True, False

    def put(self, what: dict[str, float] | list[Path], step: int) -> None:
        """Metrics, or files."""
        if self._alive:
            self._queue.put((what, step, time.time()))

    def run(self) -> None:
        try:
            opened = self._opens()
            if opened is None:
                return
            write, finish, *share = opened
            while (item := self._queue.get()) is not None:
                what, step, wall_time = item
                if isinstance(what, dict):
                    write(what, step, wall_time)
                elif share:
                    share[0](what, step)
            finish()
        except Exception as e:  # other people's libraries, networks and disks: whatever they do, training goes on
            reason = " ".join(str(e).split())
            if not self._left:  # then that was said, and the library may have been torn down under this thread
                self._warn(f"{self.name}: {type(e).__name__}: {reason[:200]}; training goes on without it")
        finally:
            self._alive = False

    def finish(self) -> None:
        """Wait until everything is written, but not for ever."""
        self._queue.put(None)
        self.join(self._wait_s)
        if self.is_alive():
            self._left = True
            self._warn(f"{self.name}: still busy after {self._wait_s:.0f} s; left behind")


def _tensorboard(run_path: Path, start_iteration: int) -> tuple[Write, Callable[[], None]]:
    """TensorBoard events in tb/. The event writer alone: torch.utils.tensorboard takes seconds to import."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(run_path / "tb"), max_queue_size=1000, flush_secs=5)
    usual = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        """Its own thread would end with a traceback on the console where the disk is full; add_event says so, too."""
        files = [f.filename for f in traceback.extract_tb(args.exc_traceback)]
        if not isinstance(args.exc_value, OSError) or not any("tensorboard" in f for f in files):
            usual(args)

    threading.excepthook = hook
    if start_iteration:  # readers then drop what an earlier process wrote beyond this step
        writer.add_event(
            Event(wall_time=time.time(), step=start_iteration + 1, session_log=SessionLog(status=SessionLog.START))
        )

    def write(metrics: dict[str, float], step: int, wall_time: float) -> None:
        values = [Summary.Value(tag=k, simple_value=v) for k, v in metrics.items() if k != "iteration"]
        writer.add_event(Event(wall_time=wall_time, step=step, summary=Summary(value=values)))

    def finish() -> None:
        writer.close()
        threading.excepthook = usual

    return write, finish


def _wandb(
    cfg: Any, run_path: Path, title: str, warn: Callable[[str], None]
) -> tuple[Write, Callable[[], None], Share] | None:
    """A W&B run; offline, to be synced later, where there is no login or no server."""
    try:
        import wandb
    except ImportError:
        warn("logger.wandb: wandb is not installed (pip install wandb); training goes on without it")
        return None
    import yaml

    run = json.loads((run_path / "run.json").read_text()) if (run_path / "run.json").is_file() else {}
    config = yaml.safe_load((run_path / "config.yaml").read_text()) if (run_path / "config.yaml").is_file() else None

    def init(mode: str) -> Any:
        # silent, no console capture: the terminal belongs to the live view. The id makes a resumed run the same run.
        settings = wandb.Settings(init_timeout=WANDB_INIT_S, finish_timeout=WANDB_FINISH_S, console="off", silent=True)
        return wandb.init(
            project=cfg.wandb_project,
            name=f"{title} {run_path.name}",
            id=run.get("id"),
            resume="allow",
            dir=str(run_path),
            config=config,
            mode=mode,
            settings=settings,
        )

    mode = os.environ.get("WANDB_MODE", cfg.wandb_mode)
    reason = ""
    if mode == "online":
        try:
            # never ask for a key: there may be nobody, and the live view holds the terminal
            if wandb.login(prompt=False, verify=False):
                return _wandb_output(wandb, init("online"))
            reason = "no login (wandb login)"
        except Exception as e:
            reason = " ".join(str(e).split())[:150] or type(e).__name__
            wandb.teardown()  # its service otherwise goes on claiming the run's id
        warn(f"logger.wandb: {reason}; logging offline: send it later with wandb sync {run_path}/wandb/offline-run-*")
    return _wandb_output(wandb, init("offline"))


def _wandb_output(wandb: Any, tracker: Any) -> tuple[Write, Callable[[], None], Share]:
    """How to log to a W&B run."""

    def share(paths: list[Path], step: int) -> None:
        videos = [p for p in paths if p.suffix == ".mp4"]
        for path in videos:
            tracker.log({"video": wandb.Video(str(path), format="mp4")}, step=step)
        if files := [p for p in paths if p not in videos]:
            artifact = wandb.Artifact(f"{tracker.id}-policy", type="model", metadata={"iteration": step})
            for path in files:
                artifact.add_file(str(path), name=path.name)
            tracker.log_artifact(artifact)

    return lambda m, step, _: tracker.log(m, step=step), tracker.finish, share
