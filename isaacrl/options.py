"""The verbs' own keys, beside those of the configuration."""

from dataclasses import dataclass

from isaacrl.schema import key


@dataclass
class TrainOptions:
    """isaacrl train"""

    run: str | None = key(None, "start from the stored configuration of a run: latest, a task's name, or a run folder")
    resume: bool = key(False, "continue the run itself, exactly where its last checkpoint stands")
    trust: bool = key(False, "allow the run's configuration to name code outside isaacrl")


@dataclass
class CheckOptions:
    """isaacrl check"""

    seconds: float = key(8.0, "time for the two rollouts together [s]; a slow task gets fewer steps", gt=0, le=600)


@dataclass
class BenchOptions:
    """isaacrl bench"""

    num_envs: str | None = key(None, "number of worlds; auto: the most that still pay here; default: the task's")
    iterations: int = key(20, "iterations that are timed", ge=1)
    warmup: int = key(3, "iterations before them", ge=1)


@dataclass
class RunOptions:
    """What play, eval and export share."""

    run: str = key("latest", "latest (the newest of all), a task's name (its newest), or a run folder")
    checkpoint: str = key("best", "best, latest, or a checkpoint file")
    device: str = key("auto", "auto, cpu, cuda or cuda:N")
    seed: int = key(1000, "seed of the episodes; not training's default, so that they are new ones", ge=0, lt=2**31)
    trust: bool = key(False, "allow the run's configuration to name code outside isaacrl")
    outputs: str = key("outputs", "folder of run folders")


@dataclass
class PlayOptions(RunOptions):
    """isaacrl play"""

    video: bool = key(True, "write an mp4 beside the picture")
    seconds: float = key(10.0, "length of the video [s]", gt=0, le=3600)
    num_envs: int = key(4, "number of robots", ge=1, le=1024)
    width: int = key(960, "width of the video [pixels]", ge=16, le=7680)
    height: int = key(544, "height of the video [pixels]", ge=16, le=4320)
    viewer: str = key("none", "browser: watch live instead", choices=("none", "browser"))


@dataclass
class EvalOptions(RunOptions):
    """isaacrl eval"""

    episodes: int = key(512, "number of episodes", ge=1)
    num_envs: int = key(1024, "at most so many worlds at a time; more episodes run one after another in them", ge=1)


@dataclass
class ExportOptions(RunOptions):
    """isaacrl export"""

    steps: int = key(256, "steps of the recorded rollout that the exported policy is checked against", ge=2)


@dataclass
class NewOptions:
    """isaacrl new"""

    path: str | None = key(None, "new asset: the MJCF or URDF file")
    trust: bool = key(False, "new asset: read files (meshes, includes, ...) outside the model's own folder as well")
    floating: bool | None = key(None, "new asset: whether the base is free; default: as asset.floating")
    asset: str | None = key(None, "new task: the robot, an option of the group asset")


@dataclass
class RandomizationOptions:
    """isaacrl randomization"""

    worlds: int = key(256, "number of worlds that draw", ge=1, le=65536)
    resets: int = key(20, "resets, each with new draws", ge=1, le=1000)
    picture: str | None = key(None, "file of the picture; default: randomization.png among the task's runs")


OPTIONS: dict[str, type] = {
    "train": TrainOptions,
    "randomization": RandomizationOptions,
    "check": CheckOptions,
    "bench": BenchOptions,
    "play": PlayOptions,
    "eval": EvalOptions,
    "export": ExportOptions,
}
