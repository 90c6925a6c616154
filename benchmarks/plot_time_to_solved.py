"""results/time_to_solved.json as a picture, docs/images/time_to_solved.png; another file's beside it.

    pip install 'isaacrl[bench]'
    python benchmarks/plot_time_to_solved.py

One panel a task: the first metric of its criterion, or the mean level of its terrain, over the seconds since the first
step, as the exploring policy does in training; a thin line a seed. Dots: evaluations without exploration. Triangles:
from here on the task is solved. Dashed: the criterion.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from common import RESULTS

DEFAULT = RESULTS / "time_to_solved.json"
PICTURE = RESULTS.parents[1] / "docs/images/time_to_solved.png"
LABELS = {
    "forward_speed": "forward speed [m/s]",
    "lin_vel_error": "velocity error [m/s]",
    "episode_length": "share of the longest episode",
    "reached": "targets reached",
    "balanced": "time balanced",
    "stages": "stages passed",
    "terrain_level": "mean level of the terrain",
}


def draw(ax: Any, task: str, result: dict[str, Any]) -> None:
    """One task on its axes."""
    runs = result["runs"]
    criteria = runs[0]["evaluations"][0]["criteria"] if runs[0]["evaluations"] else [{"metric": "return"}]
    which = next((i for i, c in enumerate(criteria) if c["metric"] == "terrain_level"), 0)
    criterion, metric = criteria[which], criteria[which]["metric"]
    for i, run in enumerate(runs):
        curve, color = run["curve"], f"C{i}"
        values = curve.get(f"metric/{metric}") or curve.get(metric) or curve.get("return", [])
        scale = run["max_episode_steps"] if metric == "episode_length" else 1.0
        pairs = [(t, v / scale) for t, v in zip(curve["seconds"], values, strict=False) if v is not None]
        ax.plot([t for t, _ in pairs], [v for _, v in pairs], color=color, alpha=0.7, linewidth=0.8)
        seen = [(e["seconds"], e["criteria"][which]["value"], e["iteration"]) for e in run["evaluations"]]
        ax.plot([s[0] for s in seen], [s[1] for s in seen], ".", color=color, markersize=3, alpha=0.7)
        if run["solved"]:
            value = next(s[1] for s in seen if s[2] == run["solved_iteration"])
            time = run["solved_s_from_first_step"]
            ax.plot(time, value, "^", color=color, markersize=7, markeredgecolor="black", zorder=3)
            ax.axvline(time, color=color, linewidth=0.5, alpha=0.5)
    if len(criterion) > 1:
        ax.axhline(criterion.get("above", criterion.get("below")), color="black", linestyle="--", linewidth=0.8)
    machine = result["machine"]
    where = machine["gpu"] if runs[0]["device"] != "cpu" else f"{machine['cores']} CPU cores"
    median = result["solved_s_from_first_step_median"]
    when = f", median {median:.1f} s" if median is not None else ""
    ax.set_title(f"{task}: {result['solved']}{when}\n{where}, engine {runs[0]['engine']}", fontsize=9)
    ax.set_xlabel("seconds since the first step", fontsize=8)
    ax.set_ylabel(LABELS.get(metric, metric), fontsize=8)
    ax.tick_params(labelsize=7)
    ax.set_xlim(left=0)


def plot(file: Path) -> Path:
    """Draw the results of a file; the picture's path."""
    tasks = json.loads(file.read_text())
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.1 * rows), squeeze=False)
    for ax in axes.flat[len(tasks) :]:
        ax.axis("off")
    for ax, (task, result) in zip(axes.flat, tasks.items(), strict=False):
        draw(ax, task, result)
    figure.tight_layout()
    out = PICTURE if file.resolve() == DEFAULT else file.with_suffix(".png")
    figure.savefig(out, dpi=110)
    return out


if __name__ == "__main__":
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    print(plot(results) if results.is_file() else f"{results}: not there; python benchmarks/time_to_solved.py makes it")
