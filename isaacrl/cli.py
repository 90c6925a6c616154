"""The command line: `isaacrl VERB [key=value ...]`.

Nothing heavy is imported before a command is known to be right. Exit codes: 0; 2 for what the user can mend (one line,
`error: ...`); 1 for an error of isaacrl or a failed job; 128 + signal number after an interruption (130 for Ctrl-C).
"""

import os
import signal
import sys
from typing import Any

from isaacrl import startup, usage
from isaacrl.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    if argv is None:
        startup.count_from_process_start()
    args = list(sys.argv[1:] if argv is None else argv)
    # By default torch's threads spin for milliseconds before they sleep: with another program on the same cores each
    # small operation then waits for the scheduler. Must be set before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    try:
        return _dispatch(args)
    except UserError as e:
        if debug:
            import traceback

            traceback.print_exc()
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `isaacrl list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:
        if debug:
            raise
        from isaacrl.mishaps import explain

        if (text := explain(e)) is None:
            return _internal_error(e)
        print(f"error: {text} (--debug shows more)", file=sys.stderr)
        return 2


def _internal_error(e: Exception) -> int:
    import tempfile
    import traceback

    where = traceback.extract_tb(e.__traceback__)[-1]
    text = " ".join(str(e).split())[:300]
    print(f"internal error: {type(e).__name__}: {text} ({where.filename}:{where.lineno})", file=sys.stderr)
    try:
        with tempfile.NamedTemporaryFile("w", prefix="isaacrl_", suffix=".log", delete=False) as file:
            file.write("".join(traceback.format_exception(e)))
        print(f"traceback: {file.name} (--debug shows it here)", file=sys.stderr)
    except OSError:
        print("--debug shows the traceback", file=sys.stderr)
    return 1


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(usage.OVERVIEW)
        return 0
    verb, rest = args[0], args[1:]
    if verb == "--version":
        from isaacrl import __version__

        print(f"isaacrl {__version__}")
        return 0
    if verb in ("-sc", "--shell-completion"):  # what the installed completion calls
        return complete(rest)
    if verb not in usage.VERBS:
        raise _unknown_verb(verb, args)
    if any(a in ("-h", "--help") for a in rest):
        print(usage.of_verb(verb))
        return 0
    if verb == "train":
        return train(rest)
    if verb == "check":
        return check(rest)
    if verb == "bench":
        return bench(rest)
    if verb == "randomization":
        return randomization(rest)
    if verb == "help":
        return show_help(rest)
    if verb == "list":
        from isaacrl.listing import show

        return show(rest)
    if verb == "new":
        from isaacrl.new import new

        return new(rest)
    if verb == "doctor":
        if rest:
            raise UserError(f"doctor: takes no arguments, got '{rest[0]}'")
        from isaacrl import doctor

        return doctor.main()
    return use_run(verb, rest)


def _unknown_verb(verb: str, args: list[str]) -> UserError:
    from isaacrl.suggest import did_you_mean, listing, one_line

    shown = one_line(verb, 60)
    if "=" in verb:
        return UserError(f"'{shown}' comes before the verb; did you mean isaacrl train {one_line(' '.join(args), 80)}?")
    return UserError(f"'{shown}' is no verb; there is: {listing(usage.VERBS)}{did_you_mean(verb, usage.VERBS)}")


def show_help(args: list[str]) -> int:
    """`isaacrl help`, `isaacrl help VERB`, `isaacrl help KEY`."""
    if not args:
        print(usage.OVERVIEW)
        return 0
    topic = args[0]
    text = usage.of_verb(topic) if topic in usage.VERBS else usage.keys(topic)
    if not text:
        from isaacrl.check import unknown_key
        from isaacrl.suggest import did_you_mean

        if "." not in topic and (hint := did_you_mean(topic, usage.VERBS)):
            raise UserError(f"'{topic}' is no verb and no configuration key{hint}")
        raise unknown_key(topic)
    print(text)
    return 0


# --- train -----------------------------------------------------------------------------------------------------------


def train(args: list[str]) -> int:
    """Train once, sweep, resume, or show the configuration."""
    flags, texts = _flags(args)
    if flags.shell_completion:
        return complete(texts)
    from isaacrl import config
    from isaacrl.options import TrainOptions

    options, overrides = config.read_options(TrainOptions, texts)
    if options.run is not None:
        return _train_from_run(options, overrides, flags)
    if options.resume or options.trust:
        raise UserError(f"{'resume' if options.resume else 'trust'}: needs a run; add run=latest, or run=FOLDER")
    if flags.info:
        return _hydra_shows(flags, overrides)
    if flags.cfg:
        return show_config(flags, overrides)
    if flags.multirun:
        from isaacrl import sweep

        return sweep.run(overrides, flags.config_dir)
    cfg = config.compose(overrides, flags.config_dir)
    if mine := [o for o in overrides if o.startswith(("hydra.", "hydra/"))]:
        raise UserError(f"{mine[0].partition('=')[0]}: Hydra's own settings act on sweeps only; add -m")
    from isaacrl import train as trainer

    return _exit_code(trainer.train(cfg))


def randomization(args: list[str]) -> int:
    """Show what a task's randomization draws."""
    from isaacrl import config
    from isaacrl.options import RandomizationOptions

    if flag := next((a for a in args if a.startswith("-")), None):
        raise UserError(f"'{flag}' is no flag of randomization; write key=value, and see its --help")
    options, overrides = config.read_options(RandomizationOptions, args)
    cfg = config.compose(overrides)
    from isaacrl.randomization import run

    run(options, cfg)
    return 0


def check(args: list[str]) -> int:
    """Look at a task before training."""
    from isaacrl import config
    from isaacrl.options import CheckOptions

    flags, texts = _flags_of("check", args)
    options, overrides = config.read_options(CheckOptions, texts)
    cfg = config.compose(overrides, flags.config_dir)
    from isaacrl.precheck import precheck

    return 1 if precheck(options, cfg)["errors"] else 0


def bench(args: list[str]) -> int:
    """Measure how fast training runs."""
    from isaacrl import config
    from isaacrl.options import BenchOptions

    flags, texts = _flags_of("bench", args)
    options, overrides = config.read_options(BenchOptions, texts)
    sized = lambda n: config.compose([*overrides, f"num_envs={n}"], flags.config_dir)  # noqa: E731
    cfg = config.compose(overrides, flags.config_dir) if options.num_envs in (None, "auto") else sized(options.num_envs)
    from isaacrl.bench import bench as measure

    measure(options, cfg, sized)
    return 0


def _flags_of(verb: str, args: list[str]) -> tuple[Any, list[str]]:
    """The flags of a verb that is not train: --config-dir is all that it takes."""
    flags, texts = _flags(args)
    for name in ("multirun", "cfg", "info", "shell_completion"):
        if getattr(flags, name):
            raise UserError(f"{verb}: takes no --{name.replace('_', '-')}; that is isaacrl train's")
    return flags, texts


def _train_from_run(options: Any, overrides: list[str], flags: Any) -> int:
    """A new run from a stored configuration, or the same run continued."""
    for name in ("multirun", "cfg", "info", "config_dir"):
        if getattr(flags, name):
            raise UserError(f"run: does not go together with --{name.replace('_', '-')}")
    from isaacrl import config, runs

    path = runs.find(options.run, _value(overrides, "outputs", "outputs"))
    cfg = config.load_stored(path / "config.yaml", overrides, options.trust)
    _compare_robot(path, cfg)
    from isaacrl import train as trainer

    return _exit_code(trainer.resume(path, cfg) if options.resume else trainer.train(cfg))


def _compare_robot(run: Any, cfg: Any) -> None:
    """Say so where the robot's files are not those that the run was trained with."""
    from isaacrl import runs

    def files_of(model: Any) -> list[Any]:
        from isaacrl.sim import assets

        try:
            asset = assets.load(str(model), trust=cfg.asset.trust, floating=cfg.asset.floating)
        except UserError:
            return []
        return [asset.file, *asset.others]

    if warning := runs.changed_robot(run, cfg.asset, files_of):
        print(f"warning: {warning}")


def _value(overrides: list[str], name: str, default: str) -> str:
    return next((o.partition("=")[2].strip("'\"") for o in reversed(overrides) if o.startswith(f"{name}=")), default)


def _exit_code(summary: dict[str, Any]) -> int:
    interrupted = summary.get("interrupted")
    return 128 + signal.Signals[interrupted].value if interrupted else 0


def _flags(args: list[str]) -> tuple[Any, list[str]]:
    """Hydra's flags, wherever they stand among the overrides."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise UserError(f"{' '.join(message.split())}; `isaacrl train --help` lists the flags")

    parser = Parser(prog="isaacrl train", add_help=False, allow_abbrev=False)
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--run", "-r", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    parser.add_argument(
        "--info",
        "-i",
        nargs="?",
        const="all",
        choices=("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    )
    parser.add_argument("overrides", nargs="*")
    flags = parser.parse_intermixed_args(args)
    if sum(map(bool, (flags.cfg, flags.multirun, flags.info, flags.shell_completion, flags.run))) > 1:
        raise UserError("--cfg, --multirun, --run, --info and --shell-completion exclude each other")
    if (flags.resolve or flags.package) and not flags.cfg:
        raise UserError("--resolve and --package go with --cfg")
    return flags, flags.overrides


# --- Hydra's flags ---------------------------------------------------------------------------------------------------


def show_config(flags: Any, overrides: list[str]) -> int:
    """`--cfg`: the configuration as YAML."""
    from omegaconf import OmegaConf

    from isaacrl import config

    cfg: Any = config.compose(overrides, flags.config_dir, resolve=flags.resolve)
    if flags.cfg != "job":
        return _hydra_shows(flags, overrides)
    if flags.package not in (None, "_global_"):
        try:
            part = OmegaConf.select(cfg, flags.package)
        except Exception:
            part = None
        if part is None:
            raise UserError(f"--package: there is no '{flags.package}' in the configuration")
        print(f"# @package {flags.package}")
        cfg = part
    print(OmegaConf.to_yaml(cfg).rstrip("\n") if OmegaConf.is_config(cfg) else cfg)
    return 0


def _hydra_shows(flags: Any, overrides: list[str]) -> int:
    """What Hydra itself prints: its own part of the configuration, its search path, its plugins."""
    from hydra.core.global_hydra import GlobalHydra

    from isaacrl import sweep

    hydra = sweep.open_hydra(flags.config_dir)
    try:
        if flags.info:
            hydra.show_info(flags.info, config_name="config", overrides=overrides)
        else:
            hydra.show_cfg(
                config_name="config",
                overrides=overrides,
                cfg_type=flags.cfg,
                package=flags.package,
                resolve=flags.resolve,
            )
    except (ValueError, OSError) as e:
        raise UserError(str(e)) from None
    finally:
        GlobalHydra.instance().clear()
    return 0


def complete(args: list[str]) -> int:
    """Shell completion: `install=bash`, `uninstall=bash`, or a query by what was installed."""
    from isaacrl.completion import run

    return run(args)


# --- play, eval, export ----------------------------------------------------------------------------------------------


def use_run(verb: str, args: list[str]) -> int:
    """The verbs that work on a finished (or running) run."""
    from isaacrl import config, runs
    from isaacrl.options import OPTIONS

    if flag := next((a for a in args if a.startswith("-")), None):
        raise UserError(f"'{flag}' is no flag of {verb}; write key=value, and see `isaacrl {verb} --help`")
    options, overrides = config.read_options(OPTIONS[verb], args)
    path = runs.find(options.run, options.outputs)
    cfg = config.load_stored(
        path / "config.yaml",
        [*overrides, f"device={options.device}", f"seed={options.seed}"],
        options.trust,
        training=False,
    )
    _compare_robot(path, cfg)
    if verb == "play":
        from isaacrl.play import play as act
    elif verb == "eval":
        from isaacrl.evaluate import evaluate as act
    else:
        from isaacrl.export import export as act
    act(options, cfg, path)
    return 0
