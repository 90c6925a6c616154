"""Troubles of training: each is told on a run made bad on purpose, none on good ones; nothing noisy is told twice."""

import json
import math
import random
import re
import time
from pathlib import Path

import pytest

from isaacrl.config import compose, load_stored
from isaacrl.train import resume, train
from isaacrl.trends import History, Rise
from isaacrl.troubles import CHECKS, MAX_TOLD, Troubles

ROOT = Path(__file__).resolve().parent.parent


def history(*overrides: str, iterations: int = 100) -> History:
    cfg = compose(["task=cartpole_swingup", "device=cpu", f"algo.iterations={iterations}", *overrides])
    return History(cfg, max_episode_steps=200, num_actions=1, updates=20)


def good(i: int, noise: random.Random) -> dict[str, float]:
    """A healthy run of PPO: the return rises for 60 iterations, then stays."""
    learned = min(i / 60, 1.0)
    return {
        "return": 1.0 + 7.0 * learned + noise.gauss(0.0, 0.4),
        "episode_length": 200.0,
        "episodes": 40.0,
        "metric/balanced": 0.8 * learned,
        "reward": 0.005 + 0.03 * learned,
        "reward/swingup": 0.006 + 0.03 * learned,
        "reward/effort": -0.001,
        "kl": abs(noise.gauss(0.01, 0.005)),
        "lr": 1e-3,
        "std": 1.0 - 0.8 * learned,
        "entropy": 1.4 - 1.5 * learned,
        "loss/value": 3.0 / i + abs(noise.gauss(0.0, 0.01)),
        "explained_variance": min(i / 10 - 0.3, 0.9) + noise.gauss(0.0, 0.05),
        "saturated": 0.3,
        "nonfinite": 0.0,
        "spoilt_rewards": 0.0,
        "overflow": 0.0,
        "skipped_updates": 0.0,
    }


def good_off_policy(i: int, noise: random.Random) -> dict[str, float]:
    out = {k: v for k, v in good(i, noise).items() if k not in ("kl", "loss/value", "explained_variance")}
    q = 4.0 * min(i / 20, 1.0) * (1.0 - 0.2 * max(0.0, i - 20) / 80)
    return out | {"q": q, "td_error": 0.1 + abs(noise.gauss(0.0, 0.02)), "alpha": 0.01 * 0.97**i, "entropy": -1.0}


def told(h: History, make, *, iterations: int = 100, seed: int = 0) -> dict[str, int]:
    """Name -> first iteration of what is told about make(i, noise)."""
    troubles, noise = Troubles(h), random.Random(seed)
    for i in range(1, iterations + 1):
        troubles.look(make(i, noise), i)
    return {e["name"]: e["iteration"] for e in troubles.found}


@pytest.mark.parametrize("seed", range(20))
def test_silent_on_healthy_metrics(seed):
    assert told(history(), good, seed=seed) == {}
    for algo in ("sac", "td3"):
        assert told(history(f"algo={algo}"), good_off_policy, seed=seed) == {}


def spoil(base=good, **bad):
    """base with some metrics replaced by functions of the iteration; `reward_x` stands for reward/x."""
    names = {"loss_value": "loss/value", "balanced": "metric/balanced"}

    def make(i: int, noise: random.Random) -> dict[str, float]:
        out = base(i, noise)
        for k, f in bad.items():
            key = names.get(k, k.replace("reward_", "reward/"))
            out[key] = f(i) + (noise.gauss(0.0, 0.1) if k == "return_" else 0.0)
        if "return_" in out:
            out["return"] = out.pop("return_")
        return out

    return make


CASES = {  # name -> overrides, metrics, the iterations between which it must be told
    "policy_collapse": ([], spoil(return_=lambda i: min(i, 40) / 5 if i < 60 else 1.0), 70, 80),
    "kl_blowup": ([], spoil(kl=lambda i: 0.3 if i > 50 else 0.01), 54, 56),
    "value_loss": ([], spoil(loss_value=lambda i: 1.3 ** (i - 40), explained_variance=lambda i: -1.0), 48, 60),
    "no_value": ([], spoil(loss_value=lambda i: 1.0, explained_variance=lambda i: -0.05), 20, 30),
    "dead_value": ([], spoil(loss_value=lambda i: 0.0), 10, 20),
    "no_reward": ([], spoil(reward_swingup=lambda i: 0.0, reward_effort=lambda i: 0.0), 10, 20),
    "reward_dominated": ([], spoil(reward_swingup=lambda i: 1.0), 10, 20),
    "exploration": ([], spoil(std=lambda i: max(0.05, 1.0 - i / 20)), 20, 35),
    "noise_ceiling": ([], spoil(std=lambda i: min(2.0, 1.0 + i / 20)), 25, 40),
    "saturated": ([], spoil(saturated=lambda i: 0.95), 10, 20),
    "no_progress": ([], spoil(return_=lambda i: 1.0), 30, 40),
    "plateau": ([], spoil(return_=lambda i: min(i, 40) / 10, balanced=lambda i: 0.1), 140, 158),
    "q_bound": (["algo=sac"], spoil(good_off_policy, q=lambda i: min(i / 5, 9.8)), 45, 56),
    "td_error": (["algo=td3"], spoil(good_off_policy, td_error=lambda i: 0.1 + max(0, i - 30) / 20), 35, 50),
    "entropy_low": (["algo=sac"], spoil(good_off_policy, entropy=lambda i: 0.0 - i / 20), 40, 55),
    "alpha_low": (["algo=sac"], spoil(good_off_policy, alpha=lambda i: 0.01 * 0.7**i, entropy=lambda i: -4.0), 15, 30),
    "alpha_high": (["algo=sac"], spoil(good_off_policy, alpha=lambda i: 0.01 * 1.2**i), 28, 40),
    "nonfinite": ([], spoil(nonfinite=lambda i: 50.0), 5, 5),
    "spoilt_rewards": ([], spoil(spoilt_rewards=lambda i: 50.0), 5, 5),
    "overflow": ([], spoil(overflow=lambda i: 50.0), 5, 5),
    "skipped": ([], spoil(skipped_updates=lambda i: 10.0), 5, 5),
}


@pytest.mark.parametrize("name", list(CHECKS))
def test_each_trouble_is_told_once_and_in_time(name):
    overrides, make, first, last = CASES[name]
    found = told(history(*overrides), make, iterations=160)
    assert first <= found.get(name, 0) <= last, found


def test_settings_that_change_what_is_measured():
    """Values that are not normalized, critics of means, an alpha that is not tuned."""
    worse = spoil(explained_variance=lambda i: -0.1 * i, loss_value=lambda i: 1e4 * i)
    assert "value_loss" in told(history("algo.normalize_value=false"), worse)
    large = spoil(loss_value=lambda i: 1e4 / i)  # in units of squared returns
    assert told(history("algo.normalize_value=false"), large) == {}
    wild = spoil(good_off_policy, q=lambda i: 2.0**i)
    assert "q_bound" in told(history("algo=td3", "algo.critic=mean"), wild)
    assert "q_bound" in told(history("algo=sac", "algo.critic=mean", "algo.normalize_reward=false"), wild)
    narrow = spoil(good_off_policy, entropy=lambda i: -3.0)
    assert "entropy_low" in told(history("algo=sac", "algo.tune_alpha=false"), narrow)


def staged(
    i: int, noise: random.Random, *, collapses: bool = False, name: str = "curriculum/stage"
) -> dict[str, float]:
    """From iteration 70 on another stage, in which the return is much lower; or as low without one."""
    row = good(i, noise)
    return row | {"return": row["return"] - (5.0 if i >= 70 else 0.0), name: 0.5 if i >= 70 and not collapses else 0.0}


def test_a_return_that_falls_as_the_task_becomes_harder_is_no_collapse():
    assert told(history(), staged) == {}
    assert told(history(), lambda i, noise: staged(i, noise, name="other")).keys() == {"policy_collapse"}
    assert told(history(), lambda i, noise: staged(i, noise, collapses=True)).keys() == {"policy_collapse"}


def test_one_outlier_is_no_trouble():
    """An iteration with a wild KL, value loss and return, now and then."""
    make = spoil(
        kl=lambda i: 5.0 if i % 10 == 0 else 0.01,
        loss_value=lambda i: 40.0 if i % 25 == 0 else 0.1,
        saturated=lambda i: 1.0 if i % 10 == 0 else 0.3,
    )
    assert told(history(), make) == {}


def test_what_went_away_and_came_back_is_told_again_a_few_times():
    troubles, noise, lines = Troubles(history(iterations=1000)), random.Random(0), []
    for i in range(1, 400):
        kl = 0.3 if i // 40 % 2 else 0.01
        lines += [(i, *line) for line in troubles.look(good(i, noise) | {"kl": kl}, i)]
    (entry,) = troubles.found
    assert [i for i, *_ in lines] == [44, 124, 204] and len({key for _, key, _ in lines}) == MAX_TOLD
    assert entry["times"] == 5 and entry["iteration"] == 44 and entry["until"] is None


def test_hysteresis_keeps_what_wavers_about_its_threshold_one_trouble():
    troubles, noise = Troubles(history(iterations=1000)), random.Random(0)
    for i in range(1, 300):
        troubles.look(good(i, noise) | {"kl": 0.12 if i < 30 else 0.1 + noise.gauss(0.0, 0.02)}, i)
    (entry,) = troubles.found
    assert entry["times"] == 1 and entry["until"] is None


def test_a_line_says_what_was_measured_the_cause_and_a_key():
    for name, (overrides, make, *_) in CASES.items():
        troubles, noise, lines = Troubles(history(*overrides)), random.Random(0), []
        for i in range(1, 161):
            lines += [text for key, text in troubles.look(make(i, noise), i) if key.startswith(f"{name}:")]
        (line,) = lines
        words, measured, cause, remedy = (line.partition(": ")[0], *line.partition(": ")[2].split("; ", 2))
        assert words == CHECKS[name][0] and measured and cause and "\n" not in line and len(line) < 190, line
        assert any(k in remedy for k in ("algo.", "task.", "sim.")), line


def test_keys_named_in_remedies_exist():
    """Words that look like keys of algo and sim, in the source of the checks and in the docs."""
    known = {f"algo.{k}" for algo in ("ppo", "sac", "td3") for k in compose([f"algo={algo}"]).algo}
    known |= {f"sim.{k}" for k in compose([]).sim}
    for file in ("isaacrl/troubles.py", "docs/troubles.md"):
        for key in re.findall(r"(?<![\w.])(?:algo|sim)\.[a-z_]+", (ROOT / file).read_text()):
            assert key in known or key in ("algo.get",), (file, key)


def test_the_docs_list_every_trouble():
    text = (ROOT / "docs/troubles.md").read_text()
    assert [name for name in CHECKS if f"| `{name}` |" not in text] == []
    assert text.count("\n| `") == len(CHECKS)


@pytest.mark.parametrize("algo", ["ppo", "sac", "td3"])
def test_strange_numbers_do_no_harm(algo):
    """None as in metrics.jsonl, infinities, huge and missing values in any metric, in any order."""
    base = good if algo == "ppo" else good_off_policy
    for seed in range(20):
        noise, troubles = random.Random(seed), Troubles(history(f"algo={algo}"))
        for i in range(1, 60):
            m = base(i, noise)
            for k in list(m):
                if noise.random() < 0.2:
                    m[k] = noise.choice([None, math.nan, math.inf, -math.inf, 1e300, -1e300, 0.0])
                elif noise.random() < 0.1:
                    del m[k]
            troubles.look(m, i)
        json.dumps(troubles.found)


def test_looking_costs_next_to_nothing():
    """A go2's metrics: about 50 us an iteration; the limit leaves room for a busy machine."""
    troubles, noise = Troubles(history(iterations=1000)), random.Random(0)
    rows = [good(i, noise) | {f"reward/{k}": 0.01 * (k + 1) for k in range(16)} for i in range(1, 301)]
    began = time.perf_counter()
    for i, row in enumerate(rows, 1):
        troubles.look(row, i)
    assert (time.perf_counter() - began) / len(rows) < 1e-3


def test_rise_by_hand():
    r = Rise()
    for i, x in enumerate([0.0, 0.0, 0.0, 0.0, 0.0, 10.0, 10.0], 1):
        r.add(x, i)
    assert r.first == 0.0 and r.smooth == pytest.approx(3.6) and r.best == r.smooth and r.range == pytest.approx(3.6)
    r.add(math.nan, 8)
    r.add(None, 9)
    assert r.count == 7


def test_a_resumed_run_remembers():
    """Fed the first half from metrics.jsonl, it goes on as if it had never stopped."""
    noise = random.Random(0)
    rows = [good(i, noise) | {"kl": 0.3 if i > 20 else 0.01} for i in range(1, 61)]
    whole, second = Troubles(history()), Troubles(history())
    for i, row in enumerate(rows, 1):
        whole.look(row, i)
    for i, row in enumerate(json.loads(json.dumps(rows)), 1):
        second.look(row, i)
    assert whole.found == second.found and len(whole.found) == 1


def test_the_committed_learning_curves_are_silent():
    """Returns and metrics only, every few iterations."""
    count = 0
    for file in sorted((ROOT / "benchmarks/results").glob("learning_*.json")):
        result = json.loads(file.read_text())
        cfg = compose([word for word in result["command"].split() if "=" in word])
        for run in result["runs"]:
            curve = run["curve"]
            cfg.algo.iterations = n = len(curve["wall_s"])
            h = History(cfg, max_episode_steps=500, num_actions=1, updates=20)
            troubles = Troubles(h)
            for i in range(n):
                row = {k: v[i] for k, v in curve.items() if k not in ("wall_s", "env_steps")}
                troubles.look(row | {"episodes": 40.0}, i + 1)
            assert troubles.found == [], file.name
            count += 1
    assert count >= 18


# --- real runs -------------------------------------------------------------------------------------------------------

TINY = ["num_envs=32", "algo.num_steps=16", "algo.hidden=[16]", "algo.minibatches=2", "algo.epochs=2"]
OFF_POLICY = ["num_envs=8", "algo.num_steps=8", "algo.hidden=[16]", "algo.batch_size=32"]
QUIET = ["device=cpu", "logger.console=none", "logger.tensorboard=false"]
UNSTABLE = ["algo.critic=mean", "algo.twin=mean", "algo.layer_norm=false", "algo.lr=0.05", "algo.tau=1"]
KICK = "{fn: reset_joints, when: interval, interval_s: [0.1, 0.2], velocity: [1e11, 1e11]}"
BAD = {  # names that must be told -> task, algorithm, iterations, overrides
    "kl_blowup saturated": ("cartpole", "ppo", 30, ["algo.schedule=fixed", "algo.lr=1"]),
    "saturated": ("cartpole", "ppo", 20, ["task.actions.effort.scale=1000"]),
    "reward_dominated no_value": ("cartpole", "ppo", 40, ["task.rewards.alive.weight=1000"]),
    "reward_dominated": ("cartpole", "ppo", 20, ["task.rewards.cart_speed.weight=-1000"]),
    "no_reward no_progress": ("cartpole_swingup", "ppo", 60, ["task.rewards.swingup.weight=0"]),
    "dead_value no_progress": (
        "cartpole_swingup",
        "ppo",
        60,
        ["~task.rewards.swingup", "task.rewards.alive.weight=1", "algo.gamma=0", "algo.gae_lambda=0", "algo.lr=0.01"],
    ),
    "value_loss": ("cartpole_swingup", "ppo", 20, ["algo.gamma=0", "algo.schedule=fixed", "algo.lr=1e-5"]),
    "exploration": ("cartpole", "ppo", 60, ["algo.min_std=0.9", "algo.schedule=fixed", "algo.lr=0.01"]),
    "noise_ceiling": ("cartpole", "ppo", 40, ["algo.entropy_coef=1", "algo.schedule=fixed", "algo.lr=0.02"]),
    "skipped": ("cartpole", "ppo", 10, ["task.rewards.alive.weight=1e30", "algo.normalize_value=false"]),
    "nonfinite": ("cartpole", "ppo", 10, [f"task.events.kick={KICK}"]),
    "spoilt_rewards": ("cartpole", "ppo", 10, ["task.rewards.bad={fn: 'bad_terms:sometimes_nan', weight: 1}"]),
    "overflow": ("ant", "ppo", 6, ["sim.engine=mjwarp", "sim.nconmax=1", "num_envs=4", "algo.num_steps=8"]),
    "q_bound": ("cartpole_swingup", "sac", 30, ["algo.v_max=0.05", "algo.normalize_reward=false"]),
    "q_bound td_error": ("cartpole_swingup", "td3", 40, ["algo.hidden=[32,32]", "algo.batch_size=256", *UNSTABLE]),
    "entropy_low": ("cartpole_swingup", "sac", 60, ["algo.tune_alpha=false", "algo.alpha=1e-8", "algo.lr=0.01"]),
    "alpha_low": ("cartpole_swingup", "sac", 80, ["algo.target_entropy=-20", "algo.lr=0.05"]),
    "alpha_high": ("cartpole_swingup", "sac", 60, ["algo.target_entropy=5", "algo.lr=0.01"]),
}


def run(tmp_path: Path, task: str, algo: str, iterations: int, *overrides: str) -> dict:
    """summary.json of a run, which also says what it warned about in warnings.log."""
    size = TINY if algo == "ppo" else OFF_POLICY
    given = [f"task={task}", f"algo={algo}", f"algo.iterations={iterations}", f"outputs={tmp_path}", *QUIET, *size]
    path = Path(train(compose([*given, *overrides]))["run"])
    return json.loads((path / "summary.json").read_text())


@pytest.mark.parametrize("names", list(BAD))
def test_a_run_made_bad_on_purpose_is_told(tmp_path, monkeypatch, names):
    (tmp_path / "bad_terms.py").write_text(
        "import torch\n\ndef sometimes_nan(s):\n    return torch.where(s.joint_vel[:, 0] > 0.1, torch.nan, 0.0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    task, algo, iterations, overrides = BAD[names]
    summary = run(tmp_path, task, algo, iterations, *overrides)
    found = {e["name"]: e for e in summary["troubles"]}
    assert set(names.split()) <= set(found)
    log = (Path(summary["run"]) / "warnings.log").read_text()
    for name in names.split():
        entry = found[name]
        assert set(entry) == {"name", "iteration", "measured", "cause", "remedy", "times", "until"}
        line = f"iteration {entry['iteration']}: {CHECKS[name][0]}: {entry['measured']}; {entry['cause']}"
        assert line in log


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> dict:
    """A cart-pole that has learned to balance: nothing to tell."""
    given = ["task=cartpole", "seed=1", "algo.iterations=45", f"outputs={tmp_path_factory.mktemp('learned')}"]
    return train(compose([*given, *QUIET]))


def test_a_good_run_is_silent(learned):
    assert learned["troubles"] == [] and learned["return"] > 5.0
    assert not (Path(learned["run"]) / "warnings.log").exists()


def test_a_policy_that_collapses_in_plain_and_live_view(learned, capsys):
    """The run goes on with steps far too large. Told in the console, once; again in the closing summary."""
    path = Path(learned["run"])
    changed = ["algo.iterations=75", "algo.schedule=fixed", "algo.lr=0.3", "logger.console=plain"]
    summary = resume(path, load_stored(path / "config.yaml", changed))
    found = {e["name"]: e for e in summary["troubles"]}
    assert {"policy_collapse", "kl_blowup", "value_loss"} <= set(found)
    assert all(45 < e["iteration"] <= 75 for e in found.values())
    said = capsys.readouterr().out
    assert said.count("warning: policy collapse: return fell from") == 1 and "algo.lr" in said
    assert "  warning  policy collapse" in said
    again = resume(path, load_stored(path / "config.yaml", ["algo.iterations=76", "logger.console=live"]))
    assert [e for e in again["troubles"] if e["iteration"] <= 75] == summary["troubles"]  # remembered


def test_a_run_that_learns_no_more_far_from_its_goal(tmp_path):
    """Some iterations of learning, then none."""
    given = [
        "task=cartpole",
        *TINY,
        "num_envs=64",
        "algo.epochs=5",
        "algo.iterations=40",
        f"outputs={tmp_path}",
        *QUIET,
    ]
    path = Path(train(compose(given))["run"])
    changed = ["algo.iterations=160", "algo.schedule=fixed", "algo.lr=1e-9", "task.solved={episode_length: {above: 5}}"]
    summary = resume(path, load_stored(path / "config.yaml", changed))
    assert "plateau" in {e["name"] for e in summary["troubles"]}
