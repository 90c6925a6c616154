"""The help texts of the command line. The overview is plain text, so that it needs nothing imported."""

import dataclasses

VERBS = {
    "train": "train a policy, or sweep over settings with -m",
    "check": "look at a task before training: rewards, observations, start state",
    "bench": "how fast training runs here, where its time goes, and how many worlds pay",
    "randomization": "what the randomization of a task draws: a table and a picture",
    "play": "watch a trained policy: a video, or live in the browser",
    "eval": "measure a trained policy over fixed-seed episodes",
    "export": "write a trained policy as ONNX with a contract for the robot",
    "new": "write a commented robot or task file to start from, out of a model file",
    "list": "show tasks, assets (robots) and algos",
    "doctor": "what this machine has and what that means",
    "help": "help on a verb or a configuration key",
}

OVERVIEW = (
    "isaacrl: robot policies by reinforcement learning on many simulated robots at once\n\n"
    "usage: isaacrl VERB [key=value ...]\n\n"
    + "\n".join(f"  {verb:14} {text}" for verb, text in VERBS.items())
    + """

  isaacrl train task=cartpole                    train; everything lands in outputs/cartpole/<run>
  isaacrl check task=cartpole                    is the task sound? zero and random actions, before training
  isaacrl train task=cartpole algo.lr=5e-4       change any setting
  isaacrl train -m seed=0,1,2                    a sweep: one run each
  isaacrl eval                                   the newest run: does it solve its task?
  isaacrl play run=cartpole                      a video of the newest cartpole run

`isaacrl VERB --help` lists a verb's keys. `--debug` shows tracebacks. `--version` shows the version."""
)

TRAIN = """usage: isaacrl train [key=value ...] [-m] [--cfg job]

  isaacrl train task=cartpole_swingup seed=1     choose a task, set a key
  isaacrl train task.rewards.alive.weight=2 '~task.rewards.pole_speed'
                                                 change a reward, drop another; new names make new terms
  isaacrl train -m algo.lr=3e-4,1e-3 seed=0,1    sweep: every combination in its own run folder, a table at the end
  isaacrl train run=latest algo.lr=1e-4          a new run from that run's configuration
  isaacrl train run=latest resume=true           continue that run exactly where it stopped

groups (group=option; `isaacrl list` shows tasks, assets and algos):
  task  asset  randomization  algo  sim  logger  experiment
"""

FLAGS = """flags:
  -m, --multirun             train every combination of comma-separated values
  -c, --cfg job|hydra|all    print the configuration instead of training (--resolve, --package KEY)
  -cd, --config-dir DIR      another folder with task/, asset/, experiment/, ... (./conf is always one)
  -i, --info [WHAT]          Hydra's view: defaults, defaults-tree, config, plugins, searchpath
  -sc, --shell-completion    eval "$(isaacrl train -sc install=bash)" completes keys and names
"""

CHECK = """usage: isaacrl check [key=value ...]

  isaacrl check task=cartpole                    the settings are those of isaacrl train
  isaacrl check task=cartpole task.rewards.alive.weight=2 sim.engine=mjwarp

Steps a few worlds under zero and under random actions, and reports each reward term's size and sign, observations,
ends of episodes, limits reached, contacts against capacity, and a picture of the start state. Exit code 1 where
something is not finite; warnings do not count.
"""

BENCH = """usage: isaacrl bench [key=value ...]

  isaacrl bench task=go2_flat num_envs=4096      the settings are those of isaacrl train
  isaacrl bench task=go2_flat num_envs=auto      doubles the worlds while training gets at least 10% faster by it and a
                                                 GPU's memory stays below 60%; says which number that is

Trains for a few iterations, without a run folder, and reports steps per second, where an iteration's time goes, memory,
the start-up by phases, and what went wrong on the way; written to outputs/<task>/bench_<date>_<time>/bench.json.
"""

RANDOMIZATION = """usage: isaacrl randomization [key=value ...]

  isaacrl randomization task=go2_flat randomization=hard
  isaacrl randomization task=ant randomization=default picture=ant.png

Draws every entry in many worlds, over many resets, and shows what came out: a table, and a picture with one histogram
an entry and the density that it should have.
"""

RUN_EXAMPLES = {
    "play": "isaacrl play run=latest seconds=5 num_envs=9\n  isaacrl play viewer=browser",
    "eval": "isaacrl eval run=cartpole episodes=1024\n  isaacrl eval sim.engine=mjwarp      another physics engine",
    "export": "isaacrl export run=latest checkpoint=latest",
}

NEW = """usage: isaacrl new asset NAME path=FILE [key=value ...]
       isaacrl new task NAME asset=NAME

  isaacrl new asset my_robot path=models/my_robot.urdf
                                                 conf/asset/my_robot.yaml: joints, pose, feet, gains to start from
  isaacrl new task my_walk asset=my_robot        conf/task/my_walk.yaml: velocity tracking, or reaching for an arm
"""

LIST = "usage: isaacrl list [tasks|assets|algos]\n\nFrom the YAML files: isaacrl's, ./conf, and packages'."
DOCTOR = "usage: isaacrl doctor\n\nSays what this machine has (Python, torch, GPU, Warp, OpenGL) and what that means."
HELP = "usage: isaacrl help [VERB | KEY]\n\n  isaacrl help train\n  isaacrl help algo.lr\n  isaacrl help task"


def of_verb(verb: str) -> str:
    """The help of one verb."""
    if verb in ("list", "doctor", "help"):
        return {"list": LIST, "doctor": DOCTOR, "help": HELP}[verb]
    from isaacrl.options import OPTIONS, NewOptions

    if verb == "new":
        return f"{NEW}\nkeys:\n" + "\n".join(_line(f.name, f) for f in dataclasses.fields(NewOptions))
    own = "\n".join(_line(f.name, f) for f in dataclasses.fields(OPTIONS[verb]))
    if verb == "train":
        return f"{TRAIN}\nkeys of stored runs:\n{own}\n\nconfiguration keys:\n{keys()}\n\n{FLAGS}"
    if text := {"check": CHECK, "bench": BENCH, "randomization": RANDOMIZATION}.get(verb):
        return f"{text}\nkeys:\n{own}\n\nAny key of the configuration (isaacrl train --help) may follow."
    return (
        f"usage: isaacrl {verb} [key=value ...]\n\n  {RUN_EXAMPLES[verb]}\n\nkeys:\n{own}\n\n"
        "Any key of the configuration (isaacrl train --help) overrides the run's stored one."
    )


def keys(prefix: str = "") -> str:
    """The configuration keys at or below a prefix, a line each; empty if there are none."""
    from isaacrl.schema import ALGORITHMS, Config

    out: list[str] = []

    def add(cls: type, path: str) -> None:
        for f in dataclasses.fields(cls):
            full = f"{path}{f.name}"
            if path == "task." and f.name in ALGORITHMS:
                continue
            section = f.type if dataclasses.is_dataclass(f.type) else None
            if full == "algo":
                out.extend(line for name, line in _algorithms(ALGORITHMS) if not prefix or _below(name, prefix))
            elif section is not None:
                add(section, full + ".")
            elif not prefix or _below(full, prefix):
                out.append(_line(full, f))

    add(Config, "")
    return "\n".join(out)


def _below(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(prefix + ".")


def _algorithms(schemas: dict[str, type]) -> list[tuple[str, str]]:
    """(key, line) of the algorithms' keys; what not all of them have alike says whose it is."""
    owners: dict[tuple[str, str], list[str]] = {}
    for algorithm, schema in schemas.items():
        for f in dataclasses.fields(schema):
            owners.setdefault((f"algo.{f.name}", _line(f"algo.{f.name}", f)), []).append(algorithm)
    lines = []
    for (name, line), names in owners.items():
        whose = "" if len(names) == len(schemas) else f"   (algo={', '.join(names)})"
        lines.append((name, line + whose))
    return lines


def _line(name: str, f: dataclasses.Field) -> str:
    default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
    shown = {"None": "null", "True": "true", "False": "false", "???": "", "{}": ""}.get(str(default), str(default))
    choices = f.metadata.get("choices")
    options = f" [{'|'.join(choices)}]" if choices and len(choices) > 1 else ""
    return f"  {name + ('=' + shown if shown else ''):34} {f.metadata.get('help', '')}{options}"
