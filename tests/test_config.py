"""Composition, precedence, checks, term tables, stored configurations."""

import dataclasses
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from isaacrl import signatures
from isaacrl.check import all_keys, nearest_divisors
from isaacrl.conf_source import read_merged
from isaacrl.config import compose, conf_dir, dump, load_stored, search_dirs
from isaacrl.errors import UserError
from isaacrl.schema import ALGORITHMS, TERM_FAMILIES, PPOConfig
from isaacrl.suggest import distance, nearest

TASKS = sorted(p.stem for p in (conf_dir() / "task").glob("*.yaml"))


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def error(overrides: list[str], config_dir: Path | None = None) -> str:
    with pytest.raises(UserError) as e:
        compose(overrides, config_dir)
    text = str(e.value)
    assert "\n" not in text
    return text


# --- composition ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", sorted(ALGORITHMS))
@pytest.mark.parametrize("task", TASKS)
def test_every_task_composes_with_every_algorithm(task, algo):
    cfg = compose([f"task={task}", f"algo={algo}"])
    raw = read_merged(f"task/{task}", [conf_dir()])
    assert cfg.task.name == task
    assert cfg.asset.name == raw["overrides"]["asset"]
    assert cfg.num_envs == raw["num_envs"]
    assert algo not in cfg.task, "the task's section for the algorithm is in algo, not in task"
    for key, value in raw.get(algo, {}).items():
        assert cfg.algo[key] == value
    assert "${" not in dump(cfg)


@pytest.mark.parametrize("group", ["sim", "logger", "randomization"])
def test_every_option_of_the_small_groups_composes(group):
    for path in (conf_dir() / group).glob("*.yaml"):
        compose([f"{group}={path.stem}"])


def test_precedence_schema_algo_task_experiment_command_line(tmp_path):
    """The same key set at each level; the higher one wins, one level at a time."""
    default = PPOConfig().epochs
    files = {"task/mine.yaml": "defaults: [cartpole]\ndescription: mine\n"}
    conf = write(tmp_path, files)
    assert compose(["task=mine"], conf).algo.epochs == default == 5
    write(conf, {"algo/ppo.yaml": "defaults: [base_ppo]\nepochs: 6\n"})
    assert compose(["task=mine"], conf).algo.epochs == 6
    write(conf, {"task/mine.yaml": files["task/mine.yaml"] + "ppo: {epochs: 7}\n"})
    assert compose(["task=mine"], conf).algo.epochs == 7
    write(conf, {"experiment/e.yaml": "# @package _global_\nalgo: {epochs: 8}\nseed: 3\n"})
    assert compose(["task=mine", "experiment=e"], conf).algo.epochs == 8
    cfg = compose(["task=mine", "experiment=e", "algo.epochs=9"], conf)
    assert (cfg.algo.epochs, cfg.seed) == (9, 3)


def test_an_experiment_may_change_groups_and_values(tmp_path):
    text = "# @package _global_\ndefaults:\n  - override /task: cartpole_swingup\n  - override /sim: mujoco\n"
    text += "num_envs: 64\n"
    cfg = compose(["experiment=e"], write(tmp_path, {"experiment/e.yaml": text}))
    assert (cfg.task.name, cfg.sim.engine, cfg.num_envs) == ("cartpole_swingup", "mujoco", 64)
    assert cfg.algo.iterations == compose(["task=cartpole_swingup"]).algo.iterations, "its own section for ppo"


def test_the_command_line_chooses_another_asset_than_the_tasks(tmp_path):
    text = (conf_dir() / "asset/cartpole.yaml").read_text().replace("name: cartpole", "name: heavy")
    conf = write(tmp_path, {"asset/heavy.yaml": text})
    assert compose(["task=cartpole"], conf).asset.name == "cartpole"
    assert compose(["task=cartpole", "asset=heavy"], conf).asset.name == "heavy"
    experiment = "# @package _global_\ndefaults:\n  - override /asset: heavy\n"
    assert compose(["experiment=e"], write(conf, {"experiment/e.yaml": experiment})).asset.name == "heavy"


def test_a_task_builds_on_another_and_on_its_ppo_section(tmp_path):
    conf = write(tmp_path, {"task/hard.yaml": "defaults: [cartpole]\nepisode_length_s: 20.0\nppo: {num_steps: 32}\n"})
    cfg, base = compose(["task=hard"], conf), compose(["task=cartpole"])
    assert (cfg.task.name, cfg.task.episode_length_s, cfg.algo.num_steps) == ("hard", 20.0, 32)
    assert cfg.algo.iterations == base.algo.iterations and cfg.task.rewards == base.task.rewards


def test_conf_of_the_working_directory_joins_and_config_dir_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "conf", {"task/mine.yaml": "defaults: [cartpole]\ndecimation: 3\n", "config.yaml": "a: 1\n"})
    assert compose(["task=mine"]).task.decimation == 3
    other = write(tmp_path / "other", {"task/mine.yaml": "defaults: [cartpole]\ndecimation: 5\n"})
    assert compose(["task=mine"], other).task.decimation == 5
    assert search_dirs(other) == [other, tmp_path / "conf", conf_dir()]


def test_installed_packages_offer_configurations_and_are_not_imported(tmp_path, monkeypatch):
    write(
        tmp_path,
        {
            "robots_zoo/__init__.py": "raise RuntimeError('imported')",
            "robots_zoo/conf/task/zoo.yaml": "defaults: [cartpole]\ndecimation: 7\n",
            "robots_zoo-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: robots-zoo\nVersion: 1.0\n",
            "robots_zoo-1.0.dist-info/entry_points.txt": "[isaacrl.conf]\nzoo = robots_zoo.conf\n",
        },
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert compose(["task=zoo"]).task.decimation == 7
    assert "robots_zoo" not in sys.modules


def test_the_name_is_the_files(tmp_path):
    conf = write(tmp_path, {"task/a.yaml": "defaults: [cartpole]\nname: b\n"})
    assert "a.yaml" in error(["task=a"], conf) and "'b'" in error(["task=a"], conf)


# --- term tables ---------------------------------------------------------------------------------------------------


def test_term_tables_take_new_keys_and_lose_old_ones():
    cfg = compose(
        [
            "task.rewards.effort={fn: joint_torque_l2, weight: -0.1}",
            "~task.rewards.pole_speed",
            "task.rewards.upright.weight=-2",
            "task.rewards.action_l2.weight=-1",
            "task.observations.policy.last_action={}",
            "task.metrics.balanced={fn: joint_pos_within, limit: 0.2}",
            "randomization.push.velocity=[1, 1]",
        ]
    )
    rewards = cfg.task.rewards
    assert rewards.effort == {"fn": "joint_torque_l2", "weight": -0.1}
    assert "pole_speed" not in rewards and rewards.upright.weight == -2
    assert rewards.upright.fn == "joint_deviation_l2", "the rest of the node stays"
    assert rewards.action_l2 == {"weight": -1}
    assert cfg.task.observations.policy.last_action == {}
    assert cfg.randomization.push.velocity == [1, 1]
    assert "joint_vel" in compose(["task.observations.policy.joint_vel=null"]).task.observations.policy


@pytest.mark.parametrize("family", sorted(TERM_FAMILIES))
def test_signatures_from_source_are_those_of_the_imported_modules(family):
    """What the checks read without importing equals what Python says."""
    import importlib
    import inspect

    module = importlib.import_module(f"isaacrl.terms.{family}")
    terms = signatures.builtin_terms(family)
    assert terms
    for name, signature in terms.items():
        fn = getattr(module, name)
        params = inspect.signature(fn.__init__ if signature.is_class else fn).parameters.values()
        keyword = {p.name: p.default is p.empty for p in params if p.kind is p.KEYWORD_ONLY}
        assert keyword == {p.name: p.required for p in signature.parameters}
    mine = [
        n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__ and n[0] != "_"
    ]
    assert set(mine) <= set(terms)


def test_users_terms_are_checked_without_being_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path,
        {
            "my_pkg/__init__.py": "raise RuntimeError('imported')",
            "my_pkg/my_terms.py": "from x import other\ndef calm(s, *, std: float, joints=None): ...\n"
            "class Smooth:\n    def __init__(self, s, *, window: int = 3): ...\n"
            "class Task1: ...\ndef _hidden(s): ...\n",
            "broken.py": "def f(:\n",
        },
    )
    node = "task.rewards.mine={fn: 'my_pkg.my_terms:%s', weight: 1%s}"
    compose([node % ("calm", ", std: 0.5")])
    compose([node % ("Smooth", ", window: 5")])
    compose([node % ("other", ", anything: 5")])  # an import: nothing can be said about it
    compose(["task.env='my_pkg.my_terms:Task1'", "task.observations={}"])
    assert "task.rewards.mine.std: missing" in error([node % ("calm", "")])
    assert "task.rewards.mine.stdd: unknown parameter" in error([node % ("calm", ", stdd: 1")])
    assert "'x' is not a number" in error([node % ("calm", ", std: x")])
    assert "did you mean calm?" in error([node % ("clam", "")])
    assert "no module 'my_pkg.nothing'" in error(["task.rewards.mine={fn: 'my_pkg.nothing:f', weight: 1}"])
    assert "broken.py:1" in error(["task.rewards.mine={fn: 'broken:f', weight: 1}"])
    assert "must be a class" in error(["task.env='my_pkg.my_terms:calm'"])
    assert "my_pkg" not in sys.modules


# --- errors in files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("defaults: [cartpole]\ndecimation: 0\n", ["task.decimation", "integer >= 1", "mine.yaml"]),
        ("defaults: [cartpole]\ndecimation: many\n", ["task.decimation", "'many'", "integer >= 1", "mine.yaml"]),
        ("defaults: [cartpole]\ndecimatoin: 2\n", ["task.decimatoin", "decimation", "mine.yaml"]),
        ("defaults: [cartpole]\nrewards: {alive: {wieght: 1}}\n", ["task.rewards.alive.wieght", "weight", "mine.yaml"]),
        ("defaults: [cartpole]\nrewards: {alve: {weight: 1}}\n", ["task.rewards.alve", "alive", "mine.yaml"]),
        ("defaults: [cartpole]\nppo: {gamma: 2}\n", ["algo.gamma", "2", "<= 1", "mine.yaml"]),
        ("defaults: [cartpole]\nppo: {gama: 0.9}\n", ["algo.gama", "algo.gamma", "mine.yaml"]),
        ("defaults: [cartpol]\n", ["'cartpol'", "did you mean cartpole", "mine.yaml"]),
        ("defaults:\n  - cartpole\n  - override /asset: cartpol\n", ["asset", "'cartpol'", "cartpole", "mine.yaml"]),
        ("defaults: [cartpole]\nevents: {reset_joints: {position: [1\n", ["mine.yaml:", "YAML"]),
        ("defaults: [cartpole]\ndecimation: 2\ndecimation: 3\n", ["mine.yaml:3", "decimation", "twice"]),
        ("- a\n- b\n", ["mine.yaml", "key: value"]),
        ("defaults: [cartpole]\nevents: {reset_base: {position: [1, 2, 3]}}\n", ["reset_base.position", "ranges"]),
        (
            "defaults: [cartpole]\nevents: {x: {fn: randomize, field: 3, range: [0, 1]}}\n",
            ["x.field", "a list of them"],
        ),
        ("defaults: [cartpole]\nsensors: {x: {fn: contact, bodies: 3}}\n", ["sensors.x.bodies", "a list of them"]),
        (
            "defaults: [cartpole]\nobservations: {policy: {joint_pos: {noise: {gaussian: a}}}}\n",
            ["task.observations.policy.joint_pos.noise", "{gaussian: std}"],
        ),
        (
            "defaults: [cartpole]\nsolved: {_target_: os.system, return: {above: 1}}\n",
            ["_target_", "mine.yaml"],
        ),
        ("defaults: [cartpole]\ncamera: {distance: .nan}\n", ["task.camera.distance", "finite", "mine.yaml"]),
        ("defaults: [cartpole]\ndecimation: ${nothing}\n", ["task.decimation", "nothing", "mine.yaml"]),
        ("defaults: [cartpole]\ndecimation: ${\n", ["mine.yaml"]),
        ("defaults: [cartpole]\nrewards: {alive: {_target_: os.system, weight: 1}}\n", ["_target_", "mine.yaml"]),
        ("\xff", ["mine.yaml"]),
        ("defaults: [mine]\n", ["mine"]),
    ],
)
def test_mistakes_in_a_file_name_the_key_and_the_file(tmp_path, text, words):
    path = tmp_path / "task/mine.yaml"
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    message = error(["task=mine"], tmp_path)
    for word in words:
        assert word in message, message
    for leak in ("Config search path", "full_key", "object_type", "Traceback", "DictConfig"):
        assert leak not in message


def test_missing_values_are_named(tmp_path):
    conf = write(tmp_path, {"task/mine.yaml": "description: nothing more\n", "asset/blank.yaml": "description: x\n"})
    assert "asset.path: missing" in error(["asset=blank"], conf)
    assert "task.observations.policy: missing" in error(["task=mine"], conf)


# --- nearest names -------------------------------------------------------------------------------------------------


def test_distance_counts_edits():
    cases = {("", "abc"): 3, ("abc", "abc"): 0, ("seed", "sede"): 1, ("kitten", "sitting"): 3, ("lr", "rl"): 1}
    for (a, b), edits in cases.items():
        assert distance(a, b) == distance(b, a) == edits


def test_one_edit_typos_of_every_key_are_understood():
    """Swapping, dropping, or doubling one letter of any key: the error suggests the key, in at least 95% of cases."""
    keys = [k for k, f in all_keys() if "." in k and f.name not in ("name",)]
    hits = total = 0
    from isaacrl.check import unknown_key

    known = {k for k, _ in all_keys()}
    for key in keys:
        prefix, _, last = key.rpartition(".")
        for i in range(len(last)):
            for typo in (
                last[:i] + last[i + 1 :],
                last[:i] + last[i] + last[i:],
                last[:i] + last[i : i + 2][::-1] + last[i + 2 :],
            ):
                if typo and f"{prefix}.{typo}" not in known:
                    total += 1
                    hits += key in str(unknown_key(f"{prefix}.{typo}")).partition("?")[0]
    assert total > 500 and hits / total >= 0.95


def test_nearest_divisors():
    assert nearest_divisors(8192, 7) == [4, 8]
    assert nearest_divisors(7, 9) == [7]
    assert nearest("zzz", ["alpha", "beta"]) == []


# --- stored configurations -----------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    def make(change=None, text=None) -> Path:
        path = tmp_path / "config.yaml"
        data = OmegaConf.to_container(compose(["task=cartpole", "seed=7"]))
        if change:
            change(data)
        path.write_text(text if text is not None else OmegaConf.to_yaml(data))
        return path

    return make


@pytest.mark.parametrize("task", TASKS)
def test_dump_and_load_give_the_same_configuration(tmp_path, task):
    cfg = compose([f"task={task}", "algo.lr=3e-5"])
    (tmp_path / "config.yaml").write_text(dump(cfg))
    again = load_stored(tmp_path / "config.yaml")
    assert again == cfg and dump(again) == dump(cfg)
    assert OmegaConf.is_struct(again)


def test_overrides_lie_over_a_stored_configuration(stored):
    cfg = load_stored(
        stored(), ["num_envs=4", "task.rewards.action_l2.weight=-1", "~task.rewards.alive"], training=False
    )
    assert cfg.num_envs == 4 and cfg.seed == 7
    assert "action_l2" in cfg.task.rewards and "alive" not in cfg.task.rewards


def test_training_checks_are_left_out_for_other_verbs(stored):
    assert load_stored(stored(), ["num_envs=3", "algo.minibatches=7"], training=False).num_envs == 3
    with pytest.raises(UserError, match="minibatches"):
        load_stored(stored(), ["num_envs=3", "algo.minibatches=7"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(seed="${oc.env:HOME}"), "interpolation"),
        (lambda d: d.update(device="${device}"), "interpolation"),
        (lambda d: d["task"]["rewards"]["alive"].update(_target_="os.system"), "_target_"),
        (lambda d: d["task"]["rewards"]["alive"].update(fn="os:system"), "trust=true"),
        (lambda d: d["task"]["observations"]["policy"]["joint_pos"].update(fn="evil.mod:f"), "trust=true"),
        (lambda d: d["randomization"].update(push={"fn": "evil:f"}), "trust=true"),
        (lambda d: d["task"].update(env="evil:Task"), "trust=true"),
        (lambda d: d["task"].update(env="evil"), "trust=true"),
        (lambda d: d["algo"].update(name="evil"), "algo.name"),
        (lambda d: d.pop("algo"), "algo.name"),
        (lambda d: d.pop("task"), "task"),
        (lambda d: d["task"].pop("name"), "task.name"),
        (lambda d: d["algo"].update(gamma=2), "algo.gamma"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["algo"].update(gamma=float("nan")), "algo.gamma"),
        (lambda d: d["task"].update(name="../../x"), "task.name"),
        (lambda d: d.update(task=[1]), "task"),
        (lambda d: d.update(seed=None), "seed"),
    ],
)
def test_a_stored_configuration_is_data_not_a_program(stored, change, words):
    with pytest.raises(UserError) as e:
        load_stored(stored(change))
    assert words in str(e.value) and "\n" not in str(e.value)


def test_trust_allows_code_that_exists(stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"good.py": "def f(s): ...\n"})
    path = stored(lambda d: d["task"]["rewards"]["alive"].update(fn="good:f"))
    with pytest.raises(UserError, match="trust=true"):
        load_stored(path)
    assert load_stored(path, trust=True).task.rewards.alive.fn == "good:f"
    assert load_stored(stored(), ["task.rewards.alive.fn='good:f'"]).task.rewards.alive.fn == "good:f", (
        "the user's own word"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "a: &x [1]\nb: *x\n",
        "a: [",
        "\x00",
        "!!python/object/apply:os.system [ls]",
        "a: " + "[" * 2000,
        "x" * 1_100_000,
        "task: !!python/name:os.system\n",
    ],
)
def test_what_is_no_stored_configuration_is_refused_in_one_line(stored, text):
    with pytest.raises(UserError) as e:
        load_stored(stored(text=text))
    assert "config.yaml" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("override", ["task=cartpole_swingup", "algo=ppo", "hydra.run.dir=x", "sim=mujoco"])
def test_groups_of_a_stored_configuration_cannot_change(stored, override):
    with pytest.raises(UserError, match="stored run"):
        load_stored(stored(), [override])


def test_a_table_takes_several_entries_at_once():
    tables = ["asset.default_pose={hinge: 0.1, slider: 0.2}", "task.solved={return: {above: 1}}"]
    cfg = compose(["task=cartpole", *tables, "asset.actuators={second: {joints: [hinge], law: effort}}"])
    assert cfg.asset.default_pose == {"hinge": 0.1, "slider": 0.2} and cfg.task.solved["return"].above == 1
    assert set(cfg.asset.actuators) == {"cart", "second"}


# --- fuzz ----------------------------------------------------------------------------------------------------------

KEYS = [k for k, _ in all_keys()] + [
    "task.rewards.alive.weight",
    "task.rewards.x",
    "task.observations.policy.joint_pos.scale",
    "task.ppo.lr",
    "experiment",
    "hydra.verbose",
    "task.actions.effort.joints",
    "a/b",
    "x@y",
]
VALUES = [
    "1",
    "-1",
    "0",
    "1e9",
    "1.5",
    "nan",
    "-inf",
    "null",
    "true",
    "abc",
    "[]",
    "{}",
    "[1,2]",
    "[a,1]",
    "{a: 1}",
    "1,2",
    "???",
    "${seed}",
    "${num_envs}",
    "${oc.env:NOPE}",
    "${",
    "'",
    "range(3)",
    "[[1]]",
    "{fn: x}",
    "{fn: 'a:b'}",
    "cuda:0",
    "",
    "\\",
    "é",
    "{weight: nan}",
    "[1,[2,{b: 3}]]",
    "choice(1,2)",
    "glob(*)",
    "str(1)",
    "1_000",
    "0x10",
    "${a.b}",
    "{_target_: os.system}",
]
ONE = st.one_of(
    st.builds(
        lambda p, k, e, v: f"{p}{k}{e}{v}",
        st.sampled_from(["", "", "", "+", "++", "~"]),
        st.sampled_from(KEYS),
        st.sampled_from(["=", "=", "=", "", ".x=", ".0="]),
        st.sampled_from(VALUES),
    ),
    st.text(max_size=30),
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(ONE, max_size=2))
def test_any_override_composes_or_gives_one_line(overrides):
    try:
        cfg = compose(overrides)
    except UserError as e:
        assert "\n" not in str(e) and 5 < len(str(e)) < 2000
    else:
        again = OmegaConf.create(dump(cfg))
        assert again == cfg


def test_the_schema_documents_every_key():
    for key, f in all_keys():
        assert dataclasses.is_dataclass(f.type) or f.metadata.get("help"), key


@pytest.mark.parametrize("name", sorted(p.stem for p in (conf_dir() / "experiment").glob("*.yaml")))
def test_every_experiment_composes(name):
    assert compose([f"experiment={name}"]).task.name


@pytest.mark.parametrize(("device", "worlds"), [("cpu", 512), ("cuda", 8192), ("cuda:1", 8192)])
def test_a_task_is_trained_with_more_worlds_on_a_gpu(device, worlds):
    assert compose(["task=ant", f"device={device}"]).num_envs == worlds
    assert compose(["task=ant", f"device={device}", "num_envs=7"]).num_envs == 7
    assert compose(["task=g1_flat", f"device={device}"]).num_envs == 4096  # one number for all
