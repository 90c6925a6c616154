"""Learning curves of results/learning_<task>_<device>.json as one picture, docs/images/learning.png.

    pip install 'isaacrl[bench]'
    python benchmarks/plot_learning.py

One panel a task: the first metric of its criterion over the training seconds, as the exploring policy does in training;
thin lines are seeds, the thick one their mean with its 95% confidence band (Student's t over seeds, at common times);
the return where the criterion is not logged in training.
Dots at the right: the evaluation of the trained policy, without exploration. Dashed: the criterion.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).parent
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}  # Student's t for n seeds, two-sided
LABELS = {
    "forward_speed": "forward speed [m/s]",
    "lin_vel_error": "velocity error [m/s]",
    "reached": "targets reached",
    "balanced": "time balanced",
}


def draw(ax, name: str, result: dict) -> None:
    """One task on its axes."""
    criterion = result["runs"][0]["criteria"][0]
    metric = criterion["metric"]
    key = f"metric/{metric}"
    curves = []
    for run in result["runs"]:
        times, values = run["curve"]["wall_s"], run["curve"].get(key, run["curve"]["return"])
        pairs = np.array([(t, v) for t, v in zip(times, values, strict=True) if v is not None])
        curves.append(pairs)
        ax.plot(*pairs.T, color="tab:blue", alpha=0.35, linewidth=0.8)
        if key in run["curve"]:
            ax.plot(pairs[-1, 0], run["criteria"][0]["value"], "o", color="tab:orange", markersize=4)
    if (n := len(curves)) > 1:
        common = np.linspace(max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves), 80)
        values = np.array([np.interp(common, *c.T) for c in curves])
        mean, half = values.mean(0), T95[n] * values.std(0, ddof=1) / np.sqrt(n)
        ax.plot(common, mean, color="tab:blue")
        low, high = values.min(0), values.max(0)
        # With two or three seeds t is so large that the band would hide the curves: it is cut a range beyond them.
        band = np.clip(mean - half, 2 * low - high, None), np.clip(mean + half, None, 2 * high - low)
        ax.fill_between(common, *band, color="tab:blue", alpha=0.15, linewidth=0)
    if key in result["runs"][0]["curve"]:
        ax.axhline(criterion.get("above", criterion.get("below")), color="black", linestyle="--", linewidth=0.8)
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['cores']} CPU cores"
    ax.set_title(f"{name}\n{where}, {len(curves)} seed{'s' * (len(curves) > 1)}", fontsize=9)
    ax.set_xlabel("training time [s]", fontsize=8)
    ax.set_ylabel(LABELS.get(metric, metric) if key in result["runs"][0]["curve"] else "return", fontsize=8)
    ax.tick_params(labelsize=7)
    ax.set_ylim(bottom=0)


if __name__ == "__main__":
    files = sorted((HERE / "results").glob("learning_*.json"))
    columns = 4
    rows = -(-len(files) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(12, 2.9 * rows), squeeze=False)
    for ax in axes.flat[len(files) :]:
        ax.axis("off")
    for ax, file in zip(axes.flat, files, strict=False):
        draw(ax, file.stem.removeprefix("learning_").rpartition("_")[0], json.loads(file.read_text()))
    figure.tight_layout()
    out = HERE.parent / "docs" / "images" / "learning.png"
    figure.savefig(out, dpi=110)
    print(out)
