"""The command line: exit codes, one-line errors, sweeps, Hydra's flags, completion, and what is never imported."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

import isaacrl
from isaacrl import cli, completion
from isaacrl.config import compose, dump
from isaacrl.errors import UserError

HEAVY = ("torch", "mujoco", "mujoco_warp", "warp", "numpy", "rich", "onnx", "tensorboard")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    """A stand-in for isaacrl.train that writes down what it is asked to do. `behave` decides how a job ends."""
    fake = types.ModuleType("isaacrl.train")
    fake.calls, fake.behave = [], lambda cfg: None

    def summary(cfg, path):
        fake.calls.append((path, cfg))
        interrupted = fake.behave(cfg)
        return {
            "run": f"outputs/{cfg.task.name}/{len(fake.calls)}",
            "return": cfg.seed * 1.5,
            "episode_length": 100.0,
            "iterations": 3,
            "interrupted": interrupted,
        }

    fake.train = lambda cfg, run=None: summary(cfg, None)
    fake.resume = lambda path, cfg: summary(cfg, path)
    monkeypatch.setitem(sys.modules, "isaacrl.train", fake)
    monkeypatch.setattr(isaacrl, "train", fake, raising=False)
    return fake


@pytest.fixture
def run_folder(tmp_path):
    """A run as `runs` leaves it, as far as the command line looks at it."""
    path = tmp_path / "outputs/cartpole/2030-01-01_00-00-00_ppo"
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(dump(compose(["task=cartpole", "seed=7"])))
    (path / "run.json").write_text(json.dumps({"schema": 1, "started": 1.0, "status": "finished"}))
    return path


# --- bad input -----------------------------------------------------------------------------------------------------

BAD = [
    ("algo.lrr=1", "algo.lrr", "did you mean algo.lr?"),
    ("lr=1", "lr:", "did you mean algo.lr?"),
    ("sede=1", "sede", "did you mean seed?"),
    ("algo.num_envs=8", "algo.num_envs", "did you mean num_envs"),
    ("task.rewrds.alive.weight=1", "task.rewrds", "did you mean task.rewards?"),
    ("seed.x=1", "seed.x", "an integer"),
    ("+foo=1", "foo", "the configuration has"),
    ("task=cartpol", "task", "did you mean cartpole"),
    ("algo=pppo", "algo", "did you mean ppo?"),
    ("sim=mujco", "sim", "did you mean mujoco?"),
    ("logger=wandbb", "logger", "did you mean wandb?"),
    ("experiment=none_such", "experiment", "there is no experiment"),
    ("asset=null", "asset", "cartpole"),
    ("tsk/x=1", "tsk/x", "task"),
    ("seed=abc", "seed", "an integer >= 0"),
    ("seed=1.5", "seed", "an integer"),
    ("seed=null", "seed", "an integer"),
    ("num_envs=-5", "num_envs", ">= 1"),
    ("num_envs=0", "num_envs", ">= 1"),
    ("algo.gamma=1.3", "algo.gamma", ">= 0 and <= 1"),
    ("algo.lr=nan", "algo.lr", "finite"),
    ("algo.lr=-1e-3", "algo.lr", "> 0"),
    ("algo.lr_min=0.5", "algo.lr_min", "algo.lr_max"),
    ("algo.minibatches=7", "algo.minibatches", "4 and 8"),
    ("algo.hidden=[64,0]", "algo.hidden", "integers >= 1"),
    ("algo.schedule=adaptve", "algo.schedule", "did you mean adaptive?"),
    ("algo.value_clip=maybe", "algo.value_clip", "true or false"),
    ("sim.engine=mjwrap", "sim.engine", "did you mean mjwarp?"),
    ("device=gpu", "device", "did you mean cuda?"),
    ("device=cuda:x", "device", "cuda:N"),
    ("seed=1,2", "seed", "-m"),
    ("seed=range(3)", "seed", "-m"),
    ("num_envs=???", "num_envs", "missing"),
    ("algo.lr=[1", "algo.lr", "key=value"),
    ("cartpole", "cartpole", "task=cartpole"),
    ("seed=${sed}", "seed", "sed"),
    ("num_envs=${num_envs}", "num_envs", "circle"),
    ("seed=${oc.env:NOT_SET_ANYWHERE}", "seed", "NOT_SET_ANYWHERE"),
    ("task.ppo.lr=1", "task.ppo.lr", "set algo.lr"),
    ("task.rewards.alive.wieght=1", "task.rewards.alive.wieght", "did you mean weight?"),
    ("task.rewards.uprght.weight=1", "task.rewards.uprght", "did you mean upright?"),
    ("task.rewards.upright.fn=uprigt", "task.rewards.upright.fn", "did you mean upright?"),
    ("task.rewards.action_l2={}", "task.rewards.action_l2.weight", "missing"),
    ("task.rewards.alive.weight=much", "task.rewards.alive.weight", "a number"),
    ("task.terminations.fallen.limit=far", "task.terminations.fallen.limit", "a number"),
    ("~task.terminations.fallen.limit", "task.terminations.fallen.limit", "requires limit"),
    ("~task.rewards.aliv", "task.rewards.aliv", "did you mean alive?"),
    ("~algo.lr", "algo.lr", "cannot be removed"),
    ("task.events.reset_joints.when=always", "task.events.reset_joints.when", "reset, startup, interval"),
    ("task.observations.polcy.joint_pos={}", "task.observations", "polcy"),
    ("~task.observations.policy", "task.observations.policy", "missing"),
    ("task.observations.policy.joint_pos.noise=[1]", "task.observations.policy.joint_pos.noise", "uniform"),
    ("task.rewards.x={fn: 'no_pkg.mod:f', weight: 1}", "task.rewards.x.fn", "no module 'no_pkg.mod'"),
    ("task.rewards.alive._target_=os.system", "_target_", "fn:"),
    ("task.env=MyTask", "task.env", "my_pkg.my_task:MyTask"),
    ("task.solved.retrn={above: 1}", "task.solved.retrn", "did you mean return?"),
    ("task.solved.episode_length.above=high", "task.solved.episode_length", "{above: x}"),
    ("task.camera.lookt=[0,0,0]", "task.camera.lookt", "did you mean lookat?"),
    ("task.name=a/b", "task.name", "letters"),
    ("resume=true", "resume", "run="),
    ("hydra.verbose=true", "hydra.verbose", "-m"),
]


@pytest.mark.parametrize(("override", "key", "advice"), BAD, ids=[b[0] for b in BAD])
def test_bad_input_gives_one_line_and_exit_code_2(override, key, advice, capsys, trainer):
    if override.startswith("task.observations.polcy"):  # another group is allowed; the policy's is what is missing
        assert cli.main(["train", override, "~task.observations.policy"]) == 2
    else:
        assert cli.main(["train", override]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert key in err and advice in err, err
    for leak in ("Traceback", "full_key", "object_type", "DictConfig", "omegaconf", "Config search path"):
        assert leak not in err
    assert not trainer.calls and not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["trian"], ["'trian'", "did you mean train?"]),
        (["task=cartpole"], ["isaacrl train task=cartpole"]),
        (["train", "--config-dir", "nowhere"], ["--config-dir", "nowhere"]),
        (["train", "--multirn"], ["--multirn"]),
        (["train", "--cfg", "jb"], ["jb", "job"]),
        (["train", "--resolve"], ["--cfg"]),
        (["train", "-m", "--cfg", "job"], ["exclude"]),
        (["train", "--cfg", "job", "-p", "algoo"], ["algoo"]),
        (["train", "run=nowhere"], ["run=nowhere"]),
        (["train", "-m", "run=latest"], ["multirun"]),
        (["train", "-m", "seed=1,2", "algo.gamma=0.9,1.9"], ["job 1 of 4", "algo.gamma", "<= 1"]),
        (["train", "-m", "seed=interval(1,2)"], ["seed", "interval"]),
        (["train", "-m", "seed=range(1000000)"], ["4096"]),
        (["train", "-m", "hydra.sweep.dirr=x"], ["hydra.sweep.dirr"]),
        (["list", "taks"], ["taks", "did you mean tasks?"]),
        (["doctor", "now"], ["now"]),
        (["eval", "run=nowhere"], ["run=nowhere"]),
        (["eval", "episodes=0"], ["episodes", ">= 1"]),
        (["eval", "episodes=1,2"], ["episodes"]),
        (["play", "viewer=browsr"], ["viewer", "did you mean browser?"]),
        (["play", "--video"], ["--video", "key=value"]),
        (["export", "steps=many"], ["steps", "an integer"]),
        (["help", "algo.lrr"], ["did you mean algo.lr?"]),
        (["train", "-sc", "install=tcsh"], ["bash"]),
    ],
)
def test_bad_commands(args, words, capsys, trainer):
    assert cli.main(args) == 2
    _, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, err
    assert not trainer.calls


def isaacrl_process(code: str) -> subprocess.CompletedProcess:
    root = str(Path(isaacrl.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{code}"],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("args", "code", "never"),
    [
        (["--help"], 0, (*HEAVY, "hydra", "omegaconf", "argparse")),
        (["train", "--help"], 0, (*HEAVY, "hydra")),
        (["play", "--help"], 0, (*HEAVY, "hydra")),
        (["bench", "--help"], 0, (*HEAVY, "hydra")),
        (["bench", "num_envs=auto", "algo.lrr=1"], 2, HEAVY),
        (["help", "algo.lr"], 0, (*HEAVY, "hydra")),
        (["trian"], 2, (*HEAVY, "hydra", "omegaconf")),
        (["train", "algo.lrr=1"], 2, HEAVY),
        (["train", "task.rewards.uprigt.weight=1"], 2, HEAVY),
        (["train", "task=cartpol"], 2, HEAVY),
        (["train", "--cfg", "job"], 0, HEAVY),
    ],
)
def test_what_a_fast_answer_never_imports(args, code, never):
    """Start-up stays fast because of what is not imported; that, unlike a time, can be asserted."""
    done = isaacrl_process(
        f"from isaacrl.cli import main\ncode = main({args!r})\n"
        f"print('CODE', code, [m for m in {never!r} if m in sys.modules])"
    )
    assert done.stdout.splitlines()[-1] == f"CODE {code} []", done.stdout + done.stderr


def test_python_m_isaacrl():
    root = str(Path(isaacrl.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", "isaacrl", "train", "sede=1"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": root, "PATH": ""},
    )
    assert done.returncode == 2 and done.stdout == "" and "did you mean seed?" in done.stderr


# --- help and lists ------------------------------------------------------------------------------------------------


def test_help(capsys):
    assert cli.main([]) == 0
    overview = capsys.readouterr().out
    for verb in ("train", "check", "bench", "play", "eval", "export", "list", "doctor"):
        assert verb in overview
        assert cli.main([verb, "--help"]) == 0
        assert f"isaacrl {verb}" in capsys.readouterr().out
    cli.main(["help", "algo.gamma"])
    assert "discount" in capsys.readouterr().out
    cli.main(["help", "eval"])
    assert "episodes=512" in capsys.readouterr().out


def test_list_shows_tasks_assets_and_algos_of_all_folders(capsys, tmp_path):
    (tmp_path / "conf/task").mkdir(parents=True)
    (tmp_path / "conf/task/mine.yaml").write_text("defaults: [cartpole]\ndescription: my own [task]\nnum_envs: 77\n")
    (tmp_path / "conf/task/broken.yaml").write_text("a: [\n")
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    line = next(x for x in out.splitlines() if x.startswith("mine"))
    assert "my own [task]" in line and "77" in line and "cartpole" in line and "episode_length >= 0.99" in line
    assert "broken.yaml" in out and "ppo" in out
    cli.main(["list", "algos"])
    assert "cartpole" not in capsys.readouterr().out


# --- train ---------------------------------------------------------------------------------------------------------


def test_train_hands_the_composed_configuration_over(trainer):
    assert (
        cli.main(["train", "task=cartpole_swingup", "seed=3", "~task.metrics.balanced", "~task.solved.balanced"]) == 0
    )
    ((path, cfg),) = trainer.calls
    assert path is None and cfg.seed == 3 and cfg.task.name == "cartpole_swingup" and "balanced" not in cfg.task.metrics
    assert list(Path.cwd().iterdir()) == [], "neither Hydra nor the command line makes folders; training does"


@pytest.mark.parametrize(("signal", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_exit_codes_of_interruptions(trainer, signal, code):
    trainer.behave = lambda cfg: signal
    assert cli.main(["train"]) == code


def test_user_errors_and_internal_errors_of_training(trainer, capsys):
    def fail(error):
        def behave(cfg):
            raise error

        return behave

    trainer.behave = fail(UserError("asset.path: no file 'x'"))
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "error: asset.path: no file 'x'\n"
    trainer.behave = fail(ZeroDivisionError("oh\nno"))
    assert cli.main(["train"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("internal error: ZeroDivisionError: oh no (") and "Traceback" not in err
    log = Path(err.splitlines()[1].split()[1])
    assert "ZeroDivisionError" in log.read_text()
    log.unlink()
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "--debug"])
    trainer.behave = fail(KeyboardInterrupt())
    assert cli.main(["train"]) == 130


TENDON = '<tendon><fixed name="t"><joint joint="hinge" coef="1"/></fixed></tendon></mujoco>'


def test_an_engine_that_does_not_cover_the_model_is_one_line(capsys, tmp_path):
    """Before anything is written."""
    model = (Path(isaacrl.__file__).parent / "assets" / "cartpole.xml").read_text()
    Path("tied.xml").write_text(model.replace("</mujoco>", TENDON))
    before = set(tmp_path.rglob("*"))
    assert cli.main(["train", "asset.path=tied.xml", "sim.engine=warp", "device=cpu", "logger.console=none"]) == 2
    said = "error: sim.engine: engine warp does not cover 1 tendon; use sim.engine=mujoco\n"
    assert capsys.readouterr().err == said
    assert set(tmp_path.rglob("*")) == before


def test_train_from_a_run_and_resume(trainer, run_folder):
    assert cli.main(["train", "run=latest", "algo.lr=1e-4"]) == 0
    assert cli.main(["train", f"run={run_folder}", "resume=true", "algo.iterations=99"]) == 0
    (first, new), (second, same) = trainer.calls
    assert first is None and new.seed == 7 and new.algo.lr == 1e-4
    assert Path(second).resolve() == run_folder.resolve() and same.algo.iterations == 99


def test_code_of_others_needs_trust(trainer, run_folder, capsys):
    Path("good.py").write_text("def f(s): ...\n")
    text = (run_folder / "config.yaml").read_text().replace("    alive:\n", "    alive:\n      fn: good:f\n")
    (run_folder / "config.yaml").write_text(text)
    assert cli.main(["train", "run=latest"]) == 2
    assert "trust=true" in capsys.readouterr().err
    assert cli.main(["train", "run=latest", "trust=true"]) == 0


# --- sweeps --------------------------------------------------------------------------------------------------------


def sweep_json() -> dict:
    (file,) = Path("outputs/sweeps").glob("*/sweep.json")
    return json.loads(file.read_text())


def test_a_sweep_trains_every_combination_and_a_failure_stops_nobody(trainer, capsys):
    def behave(cfg):
        if cfg.seed == 2 and cfg.algo.lr == 1e-3:
            raise RuntimeError("boom [red]")

    trainer.behave = behave
    assert cli.main(["train", "-m", "seed=1,2,3", "algo.lr=1e-3,1e-4", "task.rewards.action_l2.weight=-1"]) == 1
    assert [(c.seed, c.algo.lr) for _, c in trainer.calls] == [(s, lr) for s in (1, 2, 3) for lr in (1e-3, 1e-4)]
    assert all(c.task.rewards.action_l2.weight == -1 and "ppo" not in c.task for _, c in trainer.calls)
    jobs = sweep_json()["jobs"]
    assert [j["status"] for j in jobs] == ["finished", "finished", "failed", "finished", "finished", "finished"]
    assert jobs[2]["error"] == "RuntimeError: boom [red]" and "behave" in jobs[2]["traceback"]
    assert jobs[4] | {"overrides": 0} == {
        "job": 4,
        "overrides": 0,
        "status": "finished",
        "run": "outputs/cartpole/5",
        "return": 4.5,
        "episode_length": 100.0,
        "iterations": 3,
    }
    assert jobs[4]["overrides"][:2] == ["seed=3", "algo.lr=0.001"]
    out = capsys.readouterr().out
    assert "boom [red]" in out and "outputs/cartpole/6" in out and "4.5" in out
    (folder,) = Path("outputs/sweeps").iterdir()
    assert {p.name for p in folder.iterdir()} == {"jobs", "sweep.json", "multirun.yaml"}
    assert {p.name for p in Path.cwd().iterdir()} == {"outputs"}


def test_a_sweep_over_tasks_uses_each_tasks_own_settings(trainer):
    assert cli.main(["train", "-m", "task=cartpole,cartpole_swingup"]) == 0
    got = [(c.task.name, c.algo.iterations) for _, c in trainer.calls]
    assert got == [(t, compose([f"task={t}"]).algo.iterations) for t in ("cartpole", "cartpole_swingup")]


def test_a_sweep_with_a_mistake_trains_nothing(trainer, capsys):
    assert cli.main(["train", "-m", "num_envs=512,-1"]) == 2
    assert "job 1 of 2" in capsys.readouterr().err and not trainer.calls and not Path("outputs").exists()


@pytest.mark.parametrize(("signal", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interruption_stops_the_sweep(trainer, signal, code):
    trainer.behave = lambda cfg: signal if cfg.seed == 1 else None
    assert cli.main(["train", "-m", "seed=0,1,2"]) == code
    assert [j["status"] for j in sweep_json()["jobs"]] == ["finished", f"interrupted ({signal})", "no result"]
    assert len(trainer.calls) == 2


def test_a_sweep_of_a_users_configuration(trainer, tmp_path):
    (tmp_path / "other/task").mkdir(parents=True)
    (tmp_path / "other/task/mine.yaml").write_text("defaults: [cartpole]\nppo: {epochs: 2}\n")
    assert cli.main(["train", "-m", "-cd", "other", "task=mine", "seed=range(2)", "outputs=elsewhere"]) == 0
    assert [(c.task.name, c.algo.epochs, c.seed) for _, c in trainer.calls] == [("mine", 2, 0), ("mine", 2, 1)]
    assert list(Path("elsewhere/sweeps").glob("*/sweep.json"))


# --- Hydra's flags -------------------------------------------------------------------------------------------------


def test_cfg_shows_the_configuration(capsys):
    assert cli.main(["train", "--cfg", "job", "task=cartpole_swingup", "algo.lr=2e-4"]) == 0
    out = capsys.readouterr().out
    assert "num_envs: ${worlds:" in out and "lr: 0.0002" in out and "ppo:" not in out
    cli.main(["train", "-c", "job", "--resolve", "device=cpu"])
    assert "\nnum_envs: 256" in capsys.readouterr().out
    cli.main(["train", "-c", "job", "-p", "task.solved"])
    assert capsys.readouterr().out.splitlines()[:2] == ["# @package task.solved", "episode_length:"]
    assert cli.main(["train", "-c", "hydra"]) == 0
    assert "launcher" in capsys.readouterr().out
    assert cli.main(["train", "-c", "all", "seed=5"]) == 0
    assert "seed: 5" in capsys.readouterr().out
    assert cli.main(["train", "--info", "searchpath"]) == 0
    assert "conf://" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("isaacrl tr", ["train"]),
        ("isaacrl ", list(completion.VERBS)),
        ("isaacrl train alg", ["algo.", "algo="]),
        ("isaacrl train task=cartpole_", ["task=cartpole_swingup"]),
        ("isaacrl train task=cartpole algo.gam", ["algo.gamma="]),
        ("isaacrl train task.rewards.up", ["task.rewards.upright."]),
        ("isaacrl train res", ["resume="]),
        ("isaacrl eval epi", ["episodes="]),
        ("isaacrl bench war", ["warmup="]),
        ("isaacrl bench algo.gam", ["algo.gamma="]),
        ("isaacrl list a", ["assets", "algos"]),
        ("isaacrl nonsense x", []),
        ("isaacrl train --wrong x", []),
    ],
)
def test_shell_completion_answers(line, expected, monkeypatch):
    monkeypatch.setenv("COMP_LINE", line)
    assert sorted(completion.answers(line)) == sorted(expected)


def test_shell_completion_works_in_bash(tmp_path):
    """The installed script, in a real bash, with a console script on the path."""
    root = str(Path(isaacrl.__file__).parent.parent)
    script = tmp_path / "bin/isaacrl"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {root!r})\n"
        "from isaacrl.cli import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    commands = (
        'eval "$(isaacrl train --shell-completion install=bash)"\n'
        'COMP_LINE="isaacrl train algo.gam"; COMP_POINT=${#COMP_LINE}; COMP_CWORD=2\n'
        'hydra_bash_completion; echo "GOT ${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", commands],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": f"{script.parent}:/usr/bin:/bin"},
    )
    assert "GOT algo.gamma=" in done.stdout, done.stdout + done.stderr


# --- play, eval, export --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "module", "function"),
    [
        ("play", "play", "play"),
        ("eval", "evaluate", "evaluate"),
        ("export", "export", "export"),
    ],
)
def test_verbs_of_a_run_get_options_configuration_and_folder(verb, module, function, run_folder, monkeypatch):
    calls = []
    fake = types.ModuleType(f"isaacrl.{module}")
    setattr(fake, function, lambda options, cfg, path: calls.append((options, cfg, path)))
    monkeypatch.setitem(sys.modules, f"isaacrl.{module}", fake)
    own = {"play": "seconds=2.5", "eval": "episodes=64", "export": "steps=32"}[verb]
    assert cli.main([verb, "run=cartpole", own, "device=cpu", "task.episode_length_s=3", "checkpoint=latest"]) == 0
    ((options, cfg, path),) = calls
    assert Path(path).resolve() == run_folder.resolve()
    assert getattr(options, own.partition("=")[0]) == float(own.partition("=")[2])
    assert options.checkpoint == "latest" and options.run == "cartpole"
    assert cfg.device == "cpu" and cfg.task.episode_length_s == 3 and cfg.seed == options.seed == 1000
    assert cfg.num_envs == 256
    assert cli.main([verb, "sede=3"]) == 2
    assert cli.main([verb, "task=cartpole_swingup"]) == 2
    assert len(calls) == 1


def test_paths_are_taken_as_they_stand(run_folder, trainer):
    odd = run_folder.rename(run_folder.parent / "a (b) = c, d")
    assert cli.main(["train", f"run={odd}"]) == 0
    assert len(trainer.calls) == 1
