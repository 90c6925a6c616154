"""What goes wrong in training, told while it runs, from the metrics of each iteration (docs/troubles.md).

On the host, from numbers that are there anyway. A check looks at the history and returns a Finding or None. It counts
once it has held for some iterations in a row, and is over once it has not held for as many; while it counts, the check
is asked with `told`, where thresholds are looser, so that noise about a threshold does not tell it twice.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from isaacrl.progress import number
from isaacrl.trends import SHORT, History

FEWEST_EPISODES = 100  # that tell how the return goes
CONSTANT = -1e6  # explained variance below which returns do not vary at all
MAX_TOLD = 3  # times that one trouble is shown; the summary counts them all


class Finding(NamedTuple):
    measured: str
    cause: str
    remedy: str


# --- the checks ------------------------------------------------------------------------------------------------------


def collapse(h: History, told: bool) -> Finding | None:
    r = h.returns
    fall = r.best - r.smooth
    if r.range < 8.0 * r.noise and not told or fall <= (0.25 if told else 0.5) * r.range or fall < 3.0 * r.noise:
        return None
    step = "algo.lr" if "kl" not in h.recent else "algo.desired_kl" if _adaptive(h) else "algo.lr, or algo.epochs,"
    measured = f"return fell from {number(r.best)} to {number(r.smooth)}"
    return Finding(
        measured, "updates too large for what was learned", f"lower {step} and go on from the best checkpoint"
    )


def kl(h: History, told: bool) -> Finding | None:
    value = h.recent["kl"][-1] if h.recent.get("kl") else 0.0
    limit = max(10.0 * h.algo["desired_kl"], 0.1)
    if value <= (0.5 if told else 1.0) * limit:
        return None
    measured = f"KL of an update {number(value)}, aim {number(h.algo['desired_kl'])}"
    if not _adaptive(h):
        return Finding(
            measured, f"fixed learning rate {h.algo['lr']:g} too large", "algo.schedule=adaptive, or lower algo.lr"
        )
    rate = h.mean("lr") or math.inf
    if rate < 2.0 * h.algo["lr_min"]:
        return Finding(
            measured, "learning rate at its lower bound and still too large", "lower algo.lr_min or algo.epochs"
        )
    return Finding(measured, "learning rate jumps too high", "lower algo.lr_max or algo.desired_kl")


def value_loss(h: History, told: bool) -> Finding | None:
    """Normalized targets have a variance of 1: so has the loss of a critic that knows nothing."""
    loss, explained, normalized = h.mean("loss/value"), h.mean("explained_variance"), h.algo["normalize_value"]
    if loss is None or explained is None or h.iteration <= 2 * SHORT or explained < CONSTANT:
        return None
    large = loss > (3.0 if told else 10.0) if normalized else explained < (-0.5 if told else -2.0)
    if not large and math.isfinite(loss):
        return None
    measured = f"value loss {number(loss)}, explained variance {number(explained)}"
    remedy = _rate(h) if normalized else f"algo.normalize_value=true; {_rate(h)}"
    return Finding(measured, "the critic does not follow the returns: step size, or rewards that jump", remedy)


def no_value(h: History, told: bool) -> Finding | None:
    """A solved task has returns that hardly vary, which nothing can explain: then the loss is small."""
    loss, explained = h.mean("loss/value"), h.mean("explained_variance")
    if loss is None or explained is None or math.isinf(loss) or loss < 0.1:
        return None
    if not CONSTANT < explained <= (0.1 if told else 0.0):
        return None
    measured = f"explained variance {number(explained)} for long, value loss {number(loss)}"
    return Finding(
        measured, "the critic learns nothing from what it sees", f"{_rate(h)}; algo.gamma, task.observations"
    )


def dead_value(h: History, told: bool) -> Finding | None:
    loss, explained = h.mean("loss/value"), h.mean("explained_variance")
    if loss is None or explained is None or not any(h.rewards.values()):
        return None
    if loss > (1e-7 if told else 1e-9) and explained > CONSTANT:
        return None
    measured = f"value loss {number(loss)}, explained variance {number(explained)}: returns do not vary"
    return Finding(measured, "the same reward whatever the robot does", "give a term of task.rewards that varies")


def no_reward(h: History, told: bool) -> Finding | None:
    if not h.rewards or any(h.rewards.values()) or h.mean("spoilt_rewards"):
        return None
    remedy = "task.rewards: add a term that leads to the goal"
    return Finding("every reward term is 0", "weights of 0, or a goal never reached", remedy)


def reward_dominated(h: History, told: bool) -> Finding | None:
    """Later on penalties become small in a good run: what dwarfs all else by its weight does so from the start."""
    rewards = h.rewards
    total = sum(abs(v) for v in rewards.values())
    if sum(v != 0.0 for v in rewards.values()) < 2 or total == 0.0:
        return None
    name = max(rewards, key=lambda k: abs(rewards[k]))
    share = abs(rewards[name]) / total
    penalty = rewards[name] < 0.0 and any(v > 0.0 for v in rewards.values())
    early = told or h.iteration <= max(4 * SHORT, 0.2 * h.iterations)
    if not (early and share > (0.98 if told else 0.995) or penalty and share > (0.8 if told else 0.9)):
        return None
    cause = "a penalty outweighs all rewards" if penalty else "the other terms hardly count"
    return Finding(f"{name} is {100.0 * share:.4g}% of the reward", cause, f"task.rewards.{name}.weight nearer to 0")


def exploration(h: History, told: bool) -> Finding | None:
    std, floor = h.mean("std"), h.algo["min_std"]
    if h.iteration > 0.5 * h.iterations and not told or h.solved():
        return None
    if std is None or std > (1.2 if told else 1.02) * floor or h.algo["init_std"] <= 1.05 * floor:
        return None
    remedy = f"raise algo.entropy_coef; {_lower_rate(h)}"
    return Finding(f"std {number(std)} is at its floor", "noise vanished before the task was learned", remedy)


def entropy_low(h: History, told: bool) -> Finding | None:
    entropy = h.mean("entropy")
    target = min(h.algo["target_entropy"], 0.0) * h.num_actions  # no action between -1 and 1 has more than 0.69
    if entropy is None or entropy > target - (0.5 if told else 1.0) * h.num_actions:
        return None
    remedy = (
        "lower algo.lr, or raise algo.alpha" if h.algo["tune_alpha"] else "algo.tune_alpha=true, or raise algo.alpha"
    )
    return Finding(f"entropy {number(entropy)}, target {number(target)}", "too little weight of the entropy", remedy)


def noise_ceiling(h: History, told: bool) -> Finding | None:
    std, ceiling = h.mean("std"), h.algo.get("max_std")
    if (
        std is None
        or ceiling is None
        or h.algo["init_std"] >= 0.95 * ceiling
        or std < (0.8 if told else 0.97) * ceiling
    ):
        return None
    measured = f"std {number(std)} is at its ceiling"
    if h.algo["entropy_coef"] > 0.0:
        return Finding(measured, "the entropy bonus outweighs the reward", "lower algo.entropy_coef")
    return Finding(measured, "updates too large, or noise costs no reward", f"{_lower_rate(h)}; lower algo.max_std")


def saturated(h: History, told: bool) -> Finding | None:
    share = h.mean("saturated")
    if share is None or share < (0.6 if told else 0.8):
        return None
    measured = f"{100.0 * share:.0f}% of actions at or beyond the actuators' bounds"
    return Finding(
        measured, "scale too large, or a policy that saturates", "lower task.actions.*.scale; penalize action_l2"
    )


def no_progress(h: History, told: bool) -> Finding | None:
    """The return has not once been above where it began, nor have episodes become longer."""
    r = h.returns
    waited = h.iteration - r.first_at
    early = waited < max(30, 0.2 * h.iterations) or h.episodes < FEWEST_EPISODES
    if early or r.count <= SHORT or r.risen or h.lengths.risen or h.solved():
        return None
    measured = f"return {number(r.smooth)} after {waited} iterations, {number(r.first)} at first"
    if r.noise <= 1e-6 * abs(r.smooth):
        return Finding(measured, "the same reward whatever the robot does", "give a term of task.rewards that varies")
    return Finding(
        measured, "no signal to learn from, or wrong step sizes", "see isaacrl check; task.rewards, algo.lr, algo.gamma"
    )


def plateau(h: History, told: bool) -> Finding | None:
    """Only where the task says what solved means, and that is far off."""
    r = h.returns
    waited = h.iteration - r.risen_at
    if not r.risen or waited < max(100, 0.4 * h.iterations) or h.solved(slack=0.25) is not False:
        return None
    measured = f"return has not risen for {waited} iterations, task.solved is far"
    more = (
        "algo.entropy_coef"
        if "entropy_coef" in h.algo
        else "algo.target_entropy"
        if "alpha" in h.algo
        else "algo.max_noise"
    )
    return Finding(measured, "a local optimum", f"other task.rewards, more num_envs, higher {more}")


def q_bound(h: History, told: bool) -> Finding | None:
    q, a = h.mean("q"), h.algo
    if q is None:
        return None
    size, ease = abs(q), 0.85 if told else 1.0
    if a["critic"] == "categorical":
        if size < 0.9 * ease * a["v_max"]:
            return None
        remedy = "raise algo.v_max" if a["normalize_reward"] else "algo.normalize_reward=true, or raise algo.v_max"
        return Finding(
            f"Q value {number(q)}, bound {number(a['v_max'])}", "returns beyond what critics can tell", remedy
        )
    entropy = (h.mean("alpha") or 0.0) * abs(h.mean("entropy") or 0.0)
    if a["normalize_reward"]:
        limit = 3.0 * a["v_max"] + 3.0 * entropy / max(1.0 - a["gamma"], 1e-3)
    else:
        limit = 10.0 * (h.largest_reward + entropy) / max(1.0 - a["gamma"], 1e-3)
    if size < ease * limit:
        return None
    measured = f"Q value {number(q)}, rewards allow about {number(limit)}"
    return Finding(
        measured, "values feed on themselves", "algo.twin=min, algo.critic=categorical, lower algo.lr or algo.tau"
    )


def td_error(h: History, told: bool) -> Finding | None:
    """Scaled rewards have returns with a standard deviation of 1 at most: an error of that size knows nothing."""
    error, q, ease = h.mean("td_error"), h.mean("q"), 0.7 if told else 1.0
    if error is None or q is None or h.iteration <= 2 * SHORT:
        return None
    scaled = h.algo["normalize_reward"]
    rising = error > ease * max(3.0 * h.least_error, 0.5 if scaled else 0.5 * abs(q))
    if not rising and not (scaled and error > ease):
        return None
    measured = f"TD error {number(error)}, least so far {number(h.least_error)}, Q value {number(q)}"
    return Finding(
        measured, "targets run away from the critics", "lower algo.lr or algo.tau; algo.normalize_reward=true"
    )


def alpha_low(h: History, told: bool) -> Finding | None:
    """Alpha gets small in a good run too: there the entropy is held."""
    alpha, entropy = h.mean("alpha"), h.mean("entropy")
    if alpha is None or entropy is None or not h.algo["tune_alpha"]:
        return None
    if h.solved() or h.iteration > 0.5 * h.iterations and not told:
        return None
    if alpha > (0.1 if told else 0.01) * h.algo["alpha"] or entropy > (-1.5 if told else -2.0) * h.num_actions:
        return None
    measured = f"alpha {number(alpha)}, {number(h.algo['alpha'])} at first, entropy {number(entropy)}"
    return Finding(measured, "the entropy's target is too low", "raise algo.target_entropy")


def alpha_high(h: History, told: bool) -> Finding | None:
    alpha = h.mean("alpha")
    scale = 1.0 if h.algo["normalize_reward"] else max(1.0, 10.0 * h.largest_reward)
    if alpha is None or alpha < (0.3 if told else 1.0) * scale:
        return None
    measured = f"alpha {number(alpha)}, {number(h.algo['alpha'])} at first"
    return Finding(
        measured,
        "the entropy outweighs the reward; its target cannot be held",
        "lower algo.target_entropy or algo.alpha",
    )


def too_often(h: History, count: str, told: bool) -> str | None:
    """In what share of steps something happens, if that is too much."""
    share = (h.mean(count) or 0.0) / h.samples
    if share < (1e-4 if told else 1e-3):
        return None
    return f"{100.0 * share:.0f}%" if share >= 0.1 else f"{100.0 * share:.2g}%"


def nonfinite(h: History, told: bool) -> Finding | None:
    if (often := too_often(h, "nonfinite", told)) is None:
        return None
    measured = f"{often} of steps end in a non-finite world"
    return Finding(
        measured,
        "unstable physics, or an observation that is not finite (isaacrl check tells)",
        "lower task.physics_dt, gains, action scale",
    )


def spoilt_rewards(h: History, told: bool) -> Finding | None:
    if (often := too_often(h, "spoilt_rewards", told)) is None:
        return None
    return Finding(
        f"in {often} of steps, which count as 0",
        "a term divides by 0, or takes a root or logarithm of what is negative",
        "mend the one of task.rewards that isaacrl check names",
    )


def overflow(h: History, told: bool) -> Finding | None:
    if (often := too_often(h, "overflow", told)) is None:
        return None
    measured = f"contacts or constraint rows beyond capacity in {often} of steps"
    return Finding(measured, "contacts are dropped", "raise sim.nconmax (and sim.njmax for mjwarp)")


def skipped(h: History, told: bool) -> Finding | None:
    share = (h.mean("skipped_updates") or 0.0) / h.updates
    if share < (0.02 if told else 0.1):
        return None
    measured = f"{100.0 * share:.0f}% of updates skipped: gradients not finite"
    return Finding(
        measured, "learning rate too large, or observations that explode", f"{_lower_rate(h)}; clip task.observations"
    )


def _adaptive(h: History) -> bool:
    return h.algo.get("schedule") == "adaptive"


def _rate(h: History) -> str:
    """Which way the learning rate should go, by how far an update goes."""
    kl = h.mean("kl") or 0.0
    if kl < 0.1 * h.algo["desired_kl"]:
        return "raise algo.lr"
    return _lower_rate(h) if kl > 2.0 * h.algo["desired_kl"] else "another algo.lr"


def _lower_rate(h: History) -> str:
    return "lower algo.lr_max" if _adaptive(h) else "lower algo.lr"


Check = Callable[[History, bool], Finding | None]
ANY, PPO, OFF_POLICY, SAC = (), ("ppo",), ("sac", "td3"), ("sac",)
# name -> words, check, iterations in a row that it must hold, a share of all iterations where that is more, algorithms
CHECKS: dict[str, tuple[str, Check, int, float, tuple[str, ...]]] = {
    "policy_collapse": ("policy collapse", collapse, 10, 0.03, ANY),
    "no_progress": ("no progress", no_progress, 1, 0.0, ANY),
    "plateau": ("stuck", plateau, 1, 0.0, ANY),
    "no_reward": ("no reward", no_reward, 10, 0.1, ANY),
    "reward_dominated": ("reward dominated by one term", reward_dominated, 10, 0.02, ANY),
    "saturated": ("actions saturated", saturated, 10, 0.05, ANY),
    "nonfinite": ("worlds not finite", nonfinite, 1, 0.0, ANY),
    "spoilt_rewards": ("rewards not finite", spoilt_rewards, 1, 0.0, ANY),
    "overflow": ("contact overflow", overflow, 1, 0.0, ANY),
    "skipped": ("updates skipped", skipped, 1, 0.0, ANY),
    "kl_blowup": ("KL blow-up", kl, 5, 0.0, PPO),
    "value_loss": ("value loss exploding", value_loss, 5, 0.0, PPO),
    "no_value": ("critic explains nothing", no_value, 20, 0.1, PPO),
    "dead_value": ("value loss dead", dead_value, 10, 0.0, PPO),
    "exploration": ("exploration vanished", exploration, 5, 0.02, PPO),
    "noise_ceiling": ("exploration does not end", noise_ceiling, 10, 0.05, PPO),
    "q_bound": ("Q values exploding", q_bound, 5, 0.0, OFF_POLICY),
    "td_error": ("TD error too large", td_error, 5, 0.0, OFF_POLICY),
    "entropy_low": ("exploration vanished", entropy_low, 5, 0.02, SAC),
    "alpha_low": ("alpha collapsed", alpha_low, 5, 0.0, SAC),
    "alpha_high": ("alpha exploding", alpha_high, 5, 0.0, SAC),
}


# --- the whole -------------------------------------------------------------------------------------------------------


class Troubles:
    """All checks of a run. `found`: what was told, for summary.json."""

    def __init__(self, history: History):
        self.history = history
        self.found: list[dict[str, Any]] = []
        self._checks = {k: c[:4] for k, c in CHECKS.items() if not c[4] or history.algo["name"] in c[4]}
        self._streak = dict.fromkeys(CHECKS, 0)  # iterations in a row that say otherwise than what was told
        self._now: dict[str, dict[str, Any]] = {}

    def look(self, metrics: dict[str, float | None], iteration: int) -> list[tuple[str, str]]:
        """Take in an iteration; (name, one line) of every trouble that is to be told now."""
        self.history.add(metrics, iteration)
        lines = []
        for name, (words, check, least, share) in self._checks.items():
            told = name in self._now
            finding = check(self.history, told)
            self._streak[name] = self._streak[name] + 1 if (finding is None) == told else 0
            if self._streak[name] < max(least, round(share * self.history.iterations)) or not self._streak[name]:
                continue
            self._streak[name] = 0
            if finding is None:
                self._now.pop(name)["until"] = iteration
            elif entry := self._enter(name, finding, iteration):
                lines.append((f"{name}:{entry['times']}", f"{words}: {'; '.join(finding)}"))
        return lines

    def _enter(self, name: str, finding: Finding, iteration: int) -> dict[str, Any] | None:
        """Note a trouble; its entry if it is to be shown."""
        entry = next((e for e in self.found if e["name"] == name), None)
        if entry is None:
            entry = {"name": name, "iteration": iteration} | finding._asdict() | {"times": 0}
            self.found.append(entry)
        entry["times"] += 1
        entry["until"] = None
        self._now[name] = entry
        return entry if entry["times"] <= MAX_TOLD else None
