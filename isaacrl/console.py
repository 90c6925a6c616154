"""What a training run shows: a live view in a terminal, lines elsewhere, and a closing summary."""

import io
import math
import os
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from isaacrl.progress import Series, Status, bar, clip, duration, number, quantity, shown_path, signed, value_or

REFRESH_HZ = 4
MAX_WIDTH = 120  # a wider panel only tears its two columns apart
LEARNING = {  # metric -> label, and a short one
    "q": ("Q value", "Q"),
    "td_error": ("TD error", "TD"),
    "alpha": ("alpha", "alpha"),
    "loss/policy": ("policy loss", "policy"),
    "loss/value": ("value loss", "value"),
    "loss/critic": ("critic loss", "critic"),
    "buffer": ("buffer full", "buffer"),
    "kl": ("KL", "KL"),
    "lr": ("lr", "lr"),
    "std": ("std", "std"),
    "entropy": ("entropy", "entropy"),
    "clip_fraction": ("clipped", "clipped"),
    "explained_variance": ("explained", "expl"),
    "torque": ("torque", "torque"),
    "grad_norm": ("grad norm", "grad"),
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise as any other file would: rich itself would end the process, and with it the training."""
        raise BrokenPipeError


class View(Protocol):
    """One way to show a run."""

    def info(self, text: str) -> None: ...
    def warn(self, text: str, first: bool) -> None: ...
    def update(self) -> None: ...
    def close(self, summary: dict[str, Any] | None) -> None: ...


def open_view(mode: str, status: Status, console: Console | None = None) -> View:
    """The view for a mode: auto, live, plain or none."""
    if console is None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # an ASCII terminal gets question marks, not an exception
            sys.stdout.reconfigure(errors="replace")
        console = _Console(highlight=False, force_terminal=True if mode == "live" else None)
    if mode == "auto":
        mode = "live" if console.is_terminal and not console.is_dumb_terminal else "plain"
    return {"live": LiveView, "plain": PlainView, "none": NoView}[mode](status, console)


class NoView:
    """Nothing."""

    def __init__(self, status: Status, console: Console): ...
    def info(self, text: str) -> None: ...
    def warn(self, text: str, first: bool) -> None: ...
    def update(self) -> None: ...
    def close(self, summary: dict[str, Any] | None) -> None: ...


class PlainView:
    """Lines for files and pipes: the first iteration, then every tenth of the run and every few seconds."""

    def __init__(self, status: Status, console: Console):
        self.status, self.console = status, console
        self._printed_at, self._tenth = -1e9, -1
        path = shown_path(status.run_path)
        self._print(f"{status.title}: iterations {status.start + 1} to {status.iterations}, {path}")

    def _print(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)  # Text: square brackets in a name are no markup
        self.console.file.flush()

    def info(self, text: str) -> None:
        self._print(text)

    def warn(self, text: str, first: bool) -> None:
        if first:
            self._print(f"warning: {text}")

    def update(self) -> None:
        s, now = self.status, time.monotonic()
        tenth = 10 * s.iteration // max(s.iterations, 1)
        pause = min(60.0, max(5.0, s.elapsed / 20))  # long runs get fewer lines
        if tenth == self._tenth and now - self._printed_at < pause:
            return
        if self._tenth < 0 and s.phases:
            self._print(start_up(s))
        self._tenth, self._printed_at = tenth, now
        self._print(plain_line(s))

    def close(self, summary: dict[str, Any] | None) -> None:
        if summary is not None:
            for line in closing(self.status, summary):
                self._print(line.plain)


class LiveView:
    """A panel that a thread of its own redraws, so that drawing never waits for training nor training for drawing."""

    def __init__(self, status: Status, console: Console):
        self.status, self.console = status, console
        self._live = Live(console=console, refresh_per_second=REFRESH_HZ, get_renderable=self._render)
        self._live.start()

    def _render(self) -> RenderableType:
        return panel(self.status, self.console)

    def info(self, text: str) -> None:
        self.console.print(Text(text, style="dim"))

    def warn(self, text: str, first: bool) -> None:
        """The panel shows it."""

    def update(self) -> None:
        """The next redraw shows it."""

    def close(self, summary: dict[str, Any] | None) -> None:
        self._live.stop()
        if summary is not None:
            for line in closing(self.status, summary):
                self.console.print(line, soft_wrap=True)


# --- the pieces ------------------------------------------------------------------------------------------------------


def panel(s: Status, console: Console) -> RenderableType:
    """The live view, at most MAX_WIDTH wide."""
    width = max(min(console.width, MAX_WIDTH), 30)
    inner, ascii_only = width - 4, console.options.ascii_only
    lines = [_progress_line(s, inner, ascii_only)]
    if s.iteration <= s.start or not s.metrics:
        lines.append(Text(start_up(s) if s.phases else "starting", style="dim"))
    else:
        lines += [
            Text(),
            _series_line("return", s.returns, inner, "bold green", ascii_only),
            _series_line("length", s.lengths, inner, "green", ascii_only, best=False),
            _speed_line(s, inner, ascii_only),
        ]
        if metrics := _metrics_line(s):
            lines.append(metrics)
        rows = 8 if console.height >= 30 else 5
        if inner < 64:
            lower = _term_lines(s, inner, rows, ascii_only) + _learning_lines(s, inner, rows)
        else:
            left = (inner - 3) // 2 + 2
            lower = _beside(_term_lines(s, left, rows, ascii_only), _learning_lines(s, inner - left - 3, rows), left)
        lines += [Text(), *lower]
    lines += [Text(), *_health_lines(s, inner), Text(shown_path(s.run_path), style="dim")]
    for line in lines:
        line.no_wrap, line.overflow = True, "crop" if ascii_only else "ellipsis"
    state = "training" if s.iteration < s.iterations else "done"
    return Panel(
        Group(*lines),
        title=Text(s.title, style="bold"),
        title_align="left",
        width=width,
        padding=(0, 1),
        subtitle=Text(state, style="dim"),
        subtitle_align="right",
        border_style="blue",
    )


def plain_line(s: Status) -> str:
    """One iteration in one aligned line."""
    m, n = s.metrics, len(str(s.iterations))
    eta = duration(s.eta) if s.eta is not None else "-"
    return (
        f"{s.iteration:>{n}}/{s.iterations} {100 * s.iteration // max(s.iterations, 1):>3}%"
        f"  return {number(s.returns.last):>8}  length {number(s.lengths.last):>7}"
        f"  {quantity(m.get('steps_per_s')):>6} steps/s{_learning(m)}  {duration(s.elapsed):>7}  eta {eta:>7}"
    )


def _learning(m: dict[str, float]) -> str:
    """How learning goes, in a few words of a line."""
    if "buffer" in m:
        alpha = f"  alpha {number(m.get('alpha')):>6}  entropy {number(m.get('entropy')):>6}" if "alpha" in m else ""
        return f"  Q {number(m.get('q')):>6}  TD {number(m.get('td_error')):>6}{alpha}"
    rate = _shown("lr", m.get("lr", math.nan))
    return f"  kl {number(m.get('kl')):>8}  lr {rate:>7}  std {number(m.get('std')):>6}"


def _command() -> str:
    """What to type for isaacrl: its name where the shell finds it, else its path (an environment not activated)."""
    own = Path(sys.argv[0])
    if shutil.which("isaacrl") or own.name != "isaacrl" or not own.is_file():
        return "isaacrl"
    return shown_path(own)


def closing(s: Status, summary: dict[str, Any]) -> list[Text]:
    """What was learned, how long it took, where it lies, and what to type next."""
    stopped = summary.get("interrupted")
    path = shown_path(s.run_path)
    wall = value_or(s.metrics.get("wall_s"), s.elapsed)
    steps = s.metrics.get("env_steps")
    head = f"{s.title}: " + (
        f"stopped by {stopped} at iteration {s.iteration} of {s.iterations}"
        if stopped
        else f"{summary.get('status', 'finished')}, {s.iteration} iterations"
    )
    took = duration(wall)
    if steps:
        took += f", {quantity(steps)} steps, {quantity(steps / max(wall, 1e-9))} steps/s"
    if s.elapsed > wall + 5.0 and s.elapsed > 1.1 * wall:
        took += f"; {duration(s.elapsed)} with checkpoints, videos and uploads"
    rows = [("return", _change(s.returns)), ("length", _change(s.lengths, best=False)), ("took", took)]
    for text, count in list(s.warnings.values())[:5]:
        rows.append(("warning", text + (f" ({count} times)" if count > 1 else "")))
    if len(s.warnings) > 5:
        rows.append(("warning", f"and {len(s.warnings) - 5} others: {path}/warnings.log"))
    rows.append(("run", path))
    if (s.run_path / "policy.onnx").is_file():
        rows.append(("policy", f"{path}/policy.onnx"))
    name = shlex.quote(path) + (" trust=true" if summary.get("user_code") else "")
    isaacrl = shlex.quote(_command())
    commands = [f"{isaacrl} eval run={name}", f"{isaacrl} play run={name}"]
    if stopped and not summary.get("iterations", 1):
        rows.append(("note", "stopped before the first iteration: nothing to resume"))
        commands = []
    elif stopped:
        commands.insert(0, f"{isaacrl} train run={name} resume=true")
    lines = [Text(), Text(head, style="bold yellow" if stopped else "bold green")]
    styles = {"warning": "yellow"}
    lines += [Text.assemble((f"  {label:<9}", "dim"), (value, styles.get(label, ""))) for label, value in rows]
    return lines + [Text("next:", style="dim")] + [Text(f"  {c}", style="cyan") for c in commands]


def shown(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
    """Go through items; on a terminal with a bar, which goes away at the end."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    from rich.progress import track

    yield from track(items, description=what, total=total, console=console, transient=True)


def start_up(s: Status) -> str:
    """How long each phase of the start took."""
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in s.phases.items())
    return f"start-up {sum(s.phases.values()):.2f} s: {parts}"


def _progress_line(s: Status, width: int, ascii_only: bool) -> Text:
    share = min(s.iteration / max(s.iterations, 1), 1.0)
    eta = f"  ETA {duration(s.eta)}" if s.eta is not None and s.iteration < s.iterations else ""
    tail = f" {s.iteration}/{s.iterations} {share:>4.0%}  {duration(s.elapsed)}{eta}"
    room = max(width - len(tail), 5)
    full = round(room * share)
    done, rest = ("#", ".") if ascii_only else ("━", "─")
    return Text.assemble((done * full, "bold blue"), (rest * (room - full), "bright_black"), tail)


def _series_line(label: str, series: Series, width: int, style: str, ascii_only: bool, best: bool = True) -> Text:
    note = f"  best {number(series.best[0])} at {series.best[1]}" if best and series.best else ""
    spark = series.spark(max(width - 20 - 26, 4), ascii_only)
    value = number(series.last) if series.last is not None else "no episode ended yet"
    return Text.assemble((f"{label:<8}", "dim"), (f"{value:>9}", "bold"), "   ", (spark, style), (note, "dim"))


def _speed_line(s: Status, width: int, ascii_only: bool) -> Text:
    speed = quantity(s.metrics.get("steps_per_s"))
    line = Text.assemble(("speed   ", "dim"), (f"{speed:>9}", "bold"), ("/s ", "dim"))
    parts = [p for p in s.split if p[2] >= 0.005 or p[0] != "log"]
    labels = "  ".join(f"{name} {share:.0%}" for name, _, share in parts)
    room = min(width - 22 - len(labels), 40)
    if parts and room >= 6:
        edges = [round(room * sum(p[2] for p in parts[:i])) for i in range(len(parts) + 1)]
        for (_, style, _), a, b in zip(parts, edges, edges[1:]):
            line.append(("#" if ascii_only else "█") * (b - a), style=style)
        line.append("  ")
    for i, (name, style, share) in enumerate(parts):
        line.append(("  " if i else "") + name, style=style)
        line.append(f" {share:.0%}")
    return line


def _metrics_line(s: Status) -> Text | None:
    found = [(k[7:], v) for k, v in s.metrics.items() if k.startswith("metric/")]
    if not found:
        return None
    line = Text("metrics ", style="dim")
    for name, value in found[:6]:
        line.append(f"  {name} ", style="dim").append(number(value), style="default")
    return line


def _term_lines(s: Status, width: int, rows: int, ascii_only: bool) -> list[Text]:
    """The largest reward terms as bars, green for rewards and red for penalties."""
    names = [n for n in s.reward_terms if f"reward/{n}" in s.metrics]
    names = names or [k[7:] for k in s.metrics if k.startswith("reward/")]
    values = sorted(((n, value_or(s.metrics[f"reward/{n}"], 0.0)) for n in names), key=lambda item: -abs(item[1]))
    lines = [Text("reward terms" + (f", {rows} largest of {len(values)}" if len(values) > rows else ""), style="dim")]
    top = abs(values[0][1]) if values else 0.0
    label = min(max([len(n) for n, _ in values[:rows]], default=8), max(width - 24, 8))
    for name, value in values[:rows]:
        color = "green" if value >= 0 else "red"
        room = max(width - label - 12, 1)
        lines.append(
            Text.assemble(
                clip(name, label),
                (f" {signed(value):>9} ", color),
                (bar(abs(value) / top if top else 0.0, room, ascii_only), color),
            )
        )
    return lines


def _learning_lines(s: Status, width: int, rows: int) -> list[Text]:
    """Losses and what steers them, in two columns where they do not fit in one."""
    found = [(labels, _shown(key, s.metrics[key])) for key, labels in LEARNING.items() if key in s.metrics]
    columns = 2 if len(found) > rows and width >= 34 else 1
    cell = min(width // columns, 26)
    short, room = cell < 24, cell - 10 if cell < 24 else cell - 12
    found = found[: rows * columns]
    per = -(-len(found) // columns)
    lines = [Text("learning", style="dim")]
    for i in range(per):
        line = Text()
        for labels, value in found[i::per]:
            line.append(clip(labels[short], room), style="dim").append(f"{value:>8}  " if short else f"{value:>9}   ")
        line.rstrip()
        lines.append(line)
    return lines


def _shown(key: str, value: float) -> str:
    return f"{value:.1e}" if key == "lr" else number(value)


def _health_lines(s: Status, width: int) -> list[Text]:
    """What went wrong, counted, and the newest warning; quiet while nothing did."""
    counts = [
        (sum(n for _, n in list(s.warnings.values())), "warning"),
        (s.nonfinite, "non-finite world"),
        (int(value_or(s.metrics.get("overflow"), 0)), "overflow"),
        (s.skipped, "skipped update"),
    ]
    shown = ", ".join(f"{quantity(n)} {what}{'s' if n != 1 else ''}" for n, what in counts if n)
    if not shown:
        return [Text("no warnings", style="dim")]
    newest = list(s.warnings.values())[-1][0] if s.warnings else ""
    if newest and len(shown) + len(newest) + 2 <= width:
        parts = [f"{shown}: {newest}"]
    else:  # the newest on two lines at most
        first, *rest = textwrap.wrap(newest, width) or [""]
        parts = [shown, first, " ".join(rest)]
    return [Text(part, style="yellow") for part in parts if part]


def _beside(left: list[Text], right: list[Text], width: int) -> list[Text]:
    lines = []
    for i in range(max(len(left), len(right))):
        line = left[i].copy() if i < len(left) else Text()
        line.append(" " * (width - cell_len(line.plain) + 3))
        lines.append(line.append_text(right[i]) if i < len(right) else line)
    return lines


def _change(series: Series, best: bool = True) -> str:
    if series.first is None:
        return "no episode ended"
    text = f"{number(series.first)} -> {number(series.last)}"
    return text + (f", best {number(series.best[0])} at iteration {series.best[1]}" if best and series.best else "")


def abandon_stdout() -> None:
    """After the reader of a pipe has gone: no more output, and no complaint about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
