"""A picture of histograms: one panel a sample, with the density that it should have. Drawn by Pillow."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SCALE = 2  # drawn larger, then halved: smooth edges
WIDTH, HEIGHT, MARGIN, COLUMNS = 400, 236, 22, 3
LEFT, RIGHT, TOP, BOTTOM = 18, 18, 66, 46  # of the plot within its panel
INK, FAINT, PAPER, CARD = "#1f2933", "#7b8794", "#f4f6f8", "#ffffff"


@dataclass
class Panel:
    """One histogram. values: the sample. density: what it should follow, None for none. whole: bars at integers."""

    title: str
    subtitle: str
    axis: str
    tag: str
    color: str
    values: np.ndarray
    density: Callable[[np.ndarray], np.ndarray] | None = None
    log: bool = False
    whole: bool = False


def draw(panels: Sequence[Panel], title: str, subtitle: str, path: Path) -> None:
    """Write all panels as one PNG, three a row."""
    columns = min(COLUMNS, max(1, len(panels)))
    rows = math.ceil(len(panels) / columns)
    width, height = columns * (WIDTH + MARGIN) + MARGIN, rows * (HEIGHT + MARGIN) + MARGIN + 62
    image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    canvas = ImageDraw.Draw(image)
    _text(canvas, MARGIN, 18, title, 24, INK)
    _text(canvas, MARGIN, 48, subtitle, 14, FAINT)
    for i, panel in enumerate(panels):
        x = MARGIN + (i % columns) * (WIDTH + MARGIN)
        _panel(canvas, panel, x, 62 + MARGIN + (i // columns) * (HEIGHT + MARGIN))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((width, height), Image.Resampling.LANCZOS).save(path)


def _panel(canvas: ImageDraw.ImageDraw, p: Panel, x: int, y: int) -> None:
    box = [v * SCALE for v in (x, y, x + WIDTH, y + HEIGHT)]
    canvas.rounded_rectangle(box, radius=8 * SCALE, fill=CARD)
    _text(canvas, x + LEFT, y + 12, p.title, 18, INK)
    _text(canvas, x + WIDTH - RIGHT, y + 14, p.tag, 13, p.color, anchor="ra")
    _text(canvas, x + LEFT, y + 38, p.subtitle, 13, FAINT, room=WIDTH - LEFT - RIGHT)
    left, right, top, bottom = x + LEFT, x + WIDTH - RIGHT, y + TOP, y + HEIGHT - BOTTOM
    edges, heights = _bars(p)
    low, high = (_along(v, p) for v in (edges[0], edges[-1]))
    span = max(high - low, 1e-12)
    at = lambda v: left + (_along(v, p) - low) / span * (right - left)  # noqa: E731
    grid = np.linspace(0, 1, 121)
    points = np.exp(low + grid * span) if p.log else low + grid * span
    curve = None if p.density is None or p.whole else p.density(points)
    tallest = max(heights.max(), 0.0 if curve is None else curve.max(), 1e-12) * 1.05
    up = lambda h: bottom - h / tallest * (bottom - top)  # noqa: E731
    for a, b, h in zip(edges[:-1], edges[1:], heights):
        if h > 0:
            gap = 4.0 if p.whole else 0.6
            box = [at(a) + gap, up(h), max(at(b) - gap, at(a) + gap + 0.5), bottom]
            canvas.rectangle([v * SCALE for v in box], fill=p.color)
    if curve is not None:
        line = [(at(v) * SCALE, up(h) * SCALE) for v, h in zip(points, curve)]
        canvas.line(line, fill=INK, width=SCALE + 1, joint="curve")
    canvas.line([v * SCALE for v in (left, bottom, right, bottom)], fill=FAINT, width=SCALE)
    for v in _ticks(edges, p):
        canvas.line([c * SCALE for c in (at(v), bottom, at(v), bottom + 4)], fill=FAINT, width=SCALE)
        where = "la" if at(v) - left < 12 else "ra" if right - at(v) < 12 else "ma"
        _text(canvas, at(v), bottom + 6, f"{v:.3g}", 12, INK, anchor=where)
    _text(canvas, (left + right) / 2, bottom + 24, p.axis, 13, FAINT, anchor="ma")


def _along(v: float, p: Panel) -> float:
    return math.log(v) if p.log else float(v)


def _bars(p: Panel) -> tuple[np.ndarray, np.ndarray]:
    """Edges [n + 1] and heights [n]: density, along the logarithm where the axis is logarithmic."""
    values = p.values.astype(float)
    low, high = values.min(), values.max()
    if p.whole:
        edges = np.arange(round(low), round(high) + 2) - 0.5
    elif high - low <= 1e-9 * max(abs(low), abs(high), 1e-3):  # one value
        pad = max(abs(low), 1.0) * 0.05
        edges = np.linspace(low - pad, high + pad, 12)
    else:
        bins = int(np.clip(round(2 * len(values) ** (1 / 3)), 12, 48))
        edges = np.geomspace(low, high, bins + 1) if p.log else np.linspace(low, high, bins + 1)
    counts, _ = np.histogram(values, edges)
    widths = np.diff(np.log(edges) if p.log else edges)
    return edges, counts / max(counts.sum(), 1) / widths


def _ticks(edges: np.ndarray, p: Panel) -> list[float]:
    if p.whole:
        first, last = round(edges[0] + 0.5), round(edges[-1] - 0.5)
        return [float(v) for v in range(first, last + 1, max(1, (last - first) // 8))]
    low, high = float(edges[0]), float(edges[-1])
    middle = math.sqrt(low * high) if p.log else (low + high) / 2
    return [low, 0.0 if low < 0.0 < high and abs(middle) < 0.1 * (high - low) else middle, high]


def _text(
    canvas: ImageDraw.ImageDraw,
    x: float,
    y: float,
    text: str,
    size: int,
    color: str,
    *,
    anchor: str = "la",
    room: float | None = None,
) -> None:
    """Text at (x, y), cut where it takes more than room pixels."""
    font = ImageFont.load_default(size=size * SCALE)
    if room is not None and canvas.textlength(text, font=font) > room * SCALE:
        while text and canvas.textlength(text + "...", font=font) > room * SCALE:
            text = text[:-1]
        text += "..."
    canvas.text((x * SCALE, y * SCALE), text, fill=color, font=font, anchor=anchor)
