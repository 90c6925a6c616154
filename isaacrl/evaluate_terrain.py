"""What `isaacrl eval` adds for a task with a terrain: how the policy does on each kind and level of its patches."""

from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from isaacrl.files import finite


def by_patch(env: Any, run: Any) -> dict[str, Any]:
    """{"levels": L, "worlds": E, metric: {kind: [L means]}}, of one episode in each world; a mean of none is null.

    env: its worlds are spread over all kinds and levels. run: () -> figures by name, [E], one episode of each world.
    """
    ground = env.state.ground
    ground.level.copy_(torch.arange(env.num_envs, device=env.device) % ground.levels)
    figures = run()
    kinds, levels = [ground.kinds[c] for c in ground.column.tolist()], ground.level.cpu()
    out: dict[str, Any] = {"levels": ground.levels, "worlds": env.num_envs}
    for name, values in figures.items():
        out[name] = {}
        for kind in dict.fromkeys(kinds):
            of_kind = torch.tensor([k == kind for k in kinds])
            means = [values[of_kind & (levels == n)].mean().item() for n in range(ground.levels)]
            out[name][kind] = [finite(m) for m in means]
    return out


def show(console: Console, found: dict[str, Any]) -> None:
    """Falls, and the way that was kept to, a table each: kinds down, levels across. eval.json has all metrics."""
    titles = {"terminated": "share of episodes that failed", "way": "share of the commanded way"}
    for metric in (m for m in titles if m in found):
        table = Table(title=f"{titles[metric]}, by level of terrain", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("", no_wrap=True)
        for level in range(found["levels"]):
            table.add_column(str(level), justify="right")
        for kind, means in found[metric].items():
            table.add_row(kind, *("-" if m is None else f"{m:.2f}" for m in means))
        console.print(table)
