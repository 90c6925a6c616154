"""The judgement and the printed report of `isaacrl check`."""

import math
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isaacrl.progress import number, signed

DOMINANT = 0.9  # share of the rewards' sum from which one term drowns the others
LARGE = 10.0  # an observation beyond this needs a scale where nothing normalizes it
SATURATED = 0.5  # share of steps at a limit that leaves the policy little to say
OVERLAP = 0.005  # geoms that overlap by more than this at the start [m] push each other apart


def judge(r: dict[str, Any]) -> dict[str, Any]:
    """{errors, warnings, notes}: what makes training impossible, what is probably a mistake, what is worth knowing."""
    errors: list[str] = []
    warnings: list[str] = []
    notes: list[str] = []
    if r["nonfinite_worlds"]:
        errors.append(
            f"the simulation became non-finite {r['nonfinite_worlds']} time(s): lower task.physics_dt or gains"
        )
    _judge_rewards(r["rewards"], errors, warnings, notes)
    _judge_observations(r, errors, warnings, notes)
    _judge_episodes(r["episodes"], warnings, notes)
    _judge_physics(r, warnings, notes)
    verdict = "broken" if errors else "warnings" if warnings else "ok"
    return {"verdict": verdict, "errors": errors, "warnings": warnings, "notes": notes}


def _judge_rewards(rows: dict[str, Any], errors: list[str], warnings: list[str], notes: list[str]) -> None:
    for name, t in rows.items():
        key, weight = f"task.rewards.{name}", t["weight"]
        t["flag"] = ""
        if t["nonfinite"]:
            errors.append(f"{key}: not finite {t['nonfinite']} time(s)")
            t["flag"] = "not finite"
        elif weight == 0:
            t["flag"] = "weight 0"
        elif t["min"] == t["max"] == 0:
            t["flag"] = "dead"
            if weight is not None and weight < 0:
                notes.append(f"{key}: a penalty that never struck")
            else:
                warnings.append(f"{key}: dead, always 0: neither policy earns it")
        elif t["min"] == t["max"]:
            t["flag"] = "constant"
            notes.append(f"{key}: always {number(t['min'])}, so there is nothing to learn from it")
        elif weight is not None and weight < 0 <= t["min"]:
            t["flag"] = "penalty pays"
            warnings.append(f"{key}: the penalty pays: its weight is negative and so is its value; turn one of them")
        elif weight is not None and weight > 0 >= t["max"]:
            t["flag"] = "reward costs"
            warnings.append(
                f"{key}: the reward costs: its weight is positive but its value never was; turn the weight, "
                "unless a trained robot earns it"
            )
        elif len(rows) > 1 and t["share"] > DOMINANT and t["share_of_spread"] > DOMINANT:
            t["flag"] = "dominant"
            warnings.append(f"{key}: {t['share']:.0%} of the sum of all rewards: the others will hardly count")


def _judge_observations(r: dict[str, Any], errors: list[str], warnings: list[str], notes: list[str]) -> None:
    for group, terms in r["observations"].items():
        for name, t in terms.items():
            key = f"task.observations.{group}" + ("" if name == "all" else f".{name}")
            t["flag"] = ""
            if t["nonfinite"]:
                t["flag"] = "not finite"
                errors.append(f"{key}: not finite {t['nonfinite']} time(s)")
            elif t["size"] and t["constant"] == t["size"]:
                t["flag"] = "constant"
                warnings.append(f"{key}: constant, always {number(t['mean'])}: it tells the policy nothing")
            elif t["constant"]:
                t["flag"] = f"{t['constant']} constant"
                notes.append(f"{key}: {t['constant']} of {t['size']} components never change")
            if t["clipped"] > SATURATED:
                t["flag"] = "clipped"
                warnings.append(f"{key}: at its clip {t['clipped']:.0%} of the time: widen clip")
            if not r["normalized"] and max(abs(t["min"]), abs(t["max"])) > LARGE:
                t["flag"] = "large"
                warnings.append(
                    f"{key}: reaches {number(max(abs(t['min']), abs(t['max'])))} and nothing normalizes it: "
                    "give it a scale, or algo.normalize_obs=true"
                )


def _judge_episodes(episodes: dict[str, Any], warnings: list[str], notes: list[str]) -> None:
    for name, e in episodes.items():
        if e["ended"] and e["at_first_step"] > 0.1 * e["ended"]:
            what = max((k for k in e["ends"] if k != "time"), key=lambda k: e["ends"][k], default="time")
            share = e["at_first_step"] / e["ended"]
            warnings.append(
                f"task.terminations.{what}: under {name} actions {share:.0%} of the episodes end at their first step: "
                "the start state already meets it"
            )
    e, step = episodes["random"], episodes["random"]["step_s"]
    if e["ended"] > 1 and not e["ends"]["time"] and step < e["max_s"] < e["min_s"] + 2.5 * step:
        warnings.append(
            f"episodes: under random actions all end after {e['min_s']:.2f} to {e['max_s']:.2f} s: what the policy "
            "does makes no difference"
        )
    ends = {k: sum(e["ends"].get(k, 0) for e in episodes.values()) for k in episodes["random"]["ends"]}
    terms = [k for k in ends if k != "time"]
    never = [k for k in terms if not ends[k]]
    if never:
        notes.append(f"task.terminations: {', '.join(never)} never ended an episode")


def _judge_physics(r: dict[str, Any], warnings: list[str], notes: list[str]) -> None:
    start, limits, actions = r["start"], r["constraints"], r["actions"]["actuators"]
    if start["penetration"] > OVERLAP:
        a, b = start["between"]
        warnings.append(
            f"start: {a} and {b} overlap by {start['penetration'] * 100:.1f} cm: "
            "raise the robot, or change asset.default_pose"
        )
    if start["joints_at_limits"]:
        notes.append(f"start: at a limit of their range: {_some(start['joints_at_limits'])}")
    for field, why in (
        ("target_at_limit", "targets are at their limit: lower the action's scale"),
        ("saturated", "actuators give all the force they have: lower the action's scale or the gains"),
    ):
        hit = [n for n, a in actions.items() if a[field] > SATURATED]
        if hit:
            (warnings if len(hit) > len(actions) / 2 else notes).append(
                f"actions: under random actions (std {r['random_std']:g}), in most steps, {why} ({_some(hit)})"
            )
    if limits["overflow"]:
        warnings.append(
            f"sim: contacts or constraint rows exceeded their capacity in {limits['overflow']} steps: "
            f"sim.nconmax={limits['suggested_nconmax']}"
            + (f" sim.njmax={limits['suggested_njmax']}" if limits["njmax"] is not None else "")
        )
    if r["picture_missing"]:
        notes.append(f"no picture: {r['picture_missing']}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


# --- printing --------------------------------------------------------------------------------------------------------


def show(r: dict[str, Any]) -> None:
    """Print the report."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(_summary(r), highlight=False, soft_wrap=True)
    for table in (_rewards(r), _observations(r), _episodes(r), *([_commands(r)] if r["commands"] else [])):
        console.print(table)
    for line in _physics(r):
        console.print(line, highlight=False, soft_wrap=True)
    if r["picture"]:
        print(f"picture: {r['picture']}")
    for title, style in (("errors", "bold red"), ("warnings", "yellow"), ("notes", "dim")):
        for text in r[title]:
            console.print(f"[{style}]{title[:-1]}:[/] {escape(text)}", highlight=False, soft_wrap=True)
    count = f"{len(r['errors'])} error(s), {len(r['warnings'])} warning(s)"
    verdict = "[bold green]ok[/]" if r["verdict"] == "ok" else f"[bold yellow]{count}[/]"
    console.print(f"verdict: {verdict}  ({r['seconds']:.1f} s)", highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or not column else "right", no_wrap=i > 0)
    return table


def _summary(r: dict[str, Any]) -> str:
    b, s = r["robot"], r["start"]
    low, high = s["base_height"]
    base = f"{number(low)} to {number(high)}" if high - low > 1e-3 else number(low)
    return (
        f"[bold]{escape(r['task'])}[/]: {escape(b['asset'])}, {number(b['mass'])} kg, {number(b['height'])} m high, "
        f"{b['joints']} joints, {b['actuators']} actuators, {b['num_actions']} actions, "
        f"{'floating' if b['floating'] else 'fixed'} base {escape(b['base'])} at {base} m\n"
        f"engine {r['engine']} on {r['device']}, {r['num_envs']} worlds; dt {b['physics_dt']:g} s, "
        f"policy {b['policy_hz']:g} Hz, episode {b['episode_s']:g} s = {b['episode_steps']} steps\n"
    )


def _flag(text: str) -> str:
    calm = text in ("", "constant", "weight 0") or text.endswith(" constant")
    return text if calm else f"[yellow]{text}[/]"


def _rewards(r: dict[str, Any]) -> Table:
    table = _table(
        "rewards, weighted, per second", "term", "weight", "zero", "random", "std", "min", "max", "share", ""
    )
    for name, t in r["rewards"].items():
        weight = "" if t["weight"] is None else f"{t['weight']:g}"
        cells = [signed(t[k] + 0.0) for k in ("zero", "random")]
        cells += [number(t["std"])] + [signed(t[k] + 0.0) for k in ("min", "max")]
        table.add_row(escape(name), weight, *cells, f"{t['share']:.0%}", _flag(t["flag"]))
    return table


def _observations(r: dict[str, Any]) -> Table:
    table = _table(
        "\nobservations, as the networks get them", "term", "size", "min", "mean", "max", "std", "clipped", ""
    )
    for group, terms in r["observations"].items():
        for name, t in terms.items():
            cells = [number(t[k]) for k in ("min", "mean", "max", "std")]
            clipped = f"{t['clipped']:.0%}" if t["clipped"] else ""
            table.add_row(escape(f"{group}.{name}"), str(t["size"]), *cells, clipped, _flag(t["flag"]))
    return table


def _episodes(r: dict[str, Any]) -> Table:
    ends = list(dict.fromkeys(k for e in r["episodes"].values() for k in e["ends"]))
    table = _table("\nepisodes", "actions", "steps", "ended", "shortest", "mean", "longest", *ends)
    for name, e in r["episodes"].items():
        times = [f"{e[k]:.2f} s" if e["ended"] else "-" for k in ("min_s", "mean_s", "max_s")]
        table.add_row(name, str(e["steps"]), str(e["ended"]), *times, *(str(e["ends"].get(k, 0)) for k in ends))
    return table


def _commands(r: dict[str, Any]) -> Table:
    table = _table("\ncommands", "command", "size", "min", "mean", "max")
    for name, c in r["commands"].items():
        table.add_row(escape(name), str(c["size"]), *(number(c[k]) for k in ("min", "mean", "max")))
    return table


def _physics(r: dict[str, Any]) -> list[str]:
    a, c, s = r["actions"], r["constraints"], r["start"]

    def worst(field: str) -> str:
        name, most = max(((n, x[field]) for n, x in a["actuators"].items()), key=lambda p: p[1], default=("-", 0.0))
        mean = sum(x[field] for x in a["actuators"].values()) / max(len(a["actuators"]), 1)
        return f"{mean:.0%}" + (f" (most: {escape(name)} {most:.0%})" if most > 0.005 and not math.isnan(most) else "")

    room = ["" if c[key] is None else f" of {c[key]}" for key in ("nconmax", "njmax")]
    return [
        f"\n[bold]actions[/] (random, std {r['random_std']:g}): actions clipped {a['clipped']:.0%}; targets at a limit "
        f"{worst('target_at_limit')}; force at its limit {worst('saturated')}",
        f"[bold]start[/]: deepest overlap {s['penetration'] * 1000:.1f} mm"
        + (f" ({escape(s['between'][0])}, {escape(s['between'][1])})" if s["between"] else "")
        + f", {s['contacts']} contacts; joints at a limit: {escape(_some(s['joints_at_limits']) or 'none')}",
        f"[bold]capacity[/]: at most {c['ncon']} contacts{room[0]} and {c['nefc']} constraint rows{room[1]} a world, "
        f"{c['overflow']} overflows; on a GPU sim.nconmax={c['suggested_nconmax']} (with sim.engine=mjwarp also "
        f"sim.njmax={c['suggested_njmax']}) is enough",
    ]
