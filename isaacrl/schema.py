"""Every configuration key: its type, default, range and meaning.

Plain dataclasses that Hydra uses as structured configs. Imports nothing heavy. Ranges live in the field's metadata
and are checked by `isaacrl.config.check`.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


def key(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple | None = None,
) -> Any:
    """A configuration key with its meaning and its range."""
    rules = {"help": help, "ge": ge, "gt": gt, "le": le, "lt": lt, "choices": choices}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=rules)
    return field(default=default, metadata=rules)


@dataclass
class TerrainConfig:
    """A ground of patches: kinds side by side along y, harder from level to level along x."""

    kinds: dict[str, Any] = key({}, "kinds of terrain -> shares of the patches along y; none: an endless plane")
    levels: int = key(10, "levels of difficulty along x, from 0 to the hardest", ge=1)
    columns: int = key(20, "patches along y", ge=1)
    size: float = key(8.0, "length of a patch's side [m]", gt=0)
    resolution: float = key(0.1, "distance between heights [m]", gt=0)
    border: float = key(10.0, "flat ground around all patches [m]", ge=0)
    start_level: int = key(0, "worlds start on random levels up to this one", ge=0)
    seed: int = key(0, "of what is random", ge=0)
    step_height: float = key(0.23, "stairs of the hardest level [m]", ge=0)
    slope: float = key(35.0, "slopes of the hardest level [degrees]", ge=0, lt=80)
    roughness: float = key(0.1, "random heights of the hardest level, plus or minus [m]", ge=0)
    obstacle_height: float = key(0.25, "obstacles of the hardest level, up and down [m]", ge=0)
    gap: float = key(0.8, "ditches of the hardest level [m]", ge=0)
    stone_gap: float = key(0.4, "gaps between stepping stones of the hardest level [m]", ge=0)
    wave_height: float = key(0.5, "waves of the hardest level, from crest to trough [m]", ge=0)


@dataclass
class TaskConfig:
    """One task: what the robot observes, does, is rewarded for, and when an episode ends."""

    name: str = key(MISSING, "the task's name: its file's")
    description: str = key("", "one line for `isaacrl list`")
    env: str | None = key(None, "a task as one Python class: my_pkg.my_task:MyTask (the term tables are then optional)")
    num_envs: int = key(1024, "the number of worlds this task is usually trained with", ge=1)
    gpu_num_envs: int | None = key(None, "the same on a GPU; default: num_envs", ge=1)
    physics_dt: float = key(0.005, "physics time step [s]", gt=0, le=0.1)
    decimation: int = key(4, "physics steps a policy step", ge=1)
    episode_length_s: float = key(20.0, "length of a full episode [s]", gt=0)
    terrain: TerrainConfig = field(default_factory=TerrainConfig)
    actions: dict[str, Any] = key({}, "how actions become joint targets: terms of isaacrl.terms.actions")
    observations: dict[str, Any] = key({}, "groups (policy, critic) of terms of isaacrl.terms.observations")
    rewards: dict[str, Any] = key({}, "terms of isaacrl.terms.rewards, each with a weight (per second)")
    terminations: dict[str, Any] = key({}, "terms of isaacrl.terms.terminations")
    sensors: dict[str, Any] = key({}, "contacts and IMUs that terms read by name: terms of isaacrl.terms.sensors")
    commands: dict[str, Any] = key({}, "terms of isaacrl.terms.commands")
    events: dict[str, Any] = key({}, "resets and pushes: terms of isaacrl.terms.events")
    curricula: dict[str, Any] = key({}, "what becomes harder with success: terms of isaacrl.terms.curricula")
    metrics: dict[str, Any] = key({}, "terms of isaacrl.terms.metrics, averaged over each episode")
    solved: dict[str, Any] = key({}, "when `eval` says solved: metric -> {above: x} or {below: x}, all of them")
    milestone: dict[str, Any] = key({}, "a first success, within reach of slow machines; written as `solved`")
    ppo: dict[str, Any] = key({}, "this task's settings of algo=ppo")
    sac: dict[str, Any] = key({}, "this task's settings of algo=sac")
    td3: dict[str, Any] = key({}, "this task's settings of algo=td3")
    camera: dict[str, Any] = key({}, "view for videos: lookat, distance, azimuth, elevation, track")


@dataclass
class AssetConfig:
    """One robot."""

    name: str = key(MISSING, "the robot's name: its file's")
    description: str = key("", "one line for `isaacrl list`")
    path: str = key(MISSING, "MJCF or URDF: absolute, relative to the working directory, or bundled with isaacrl")
    trust: bool = key(False, "read files (meshes, includes, ...) outside the model's own folder as well")
    floating: bool | None = key(
        None, "whether the base is free; default: an MJCF's as written, a URDF's free unless it is an arm (README)"
    )
    base: str | None = key(None, "pattern of the body whose pose is the robot's; default: the free one, or the first")
    feet: list[str] = key([], "patterns of the bodies, or else geoms, that are the robot's feet")
    default_pose: dict[str, Any] = key({}, "joint pattern -> default position [rad or m]")
    mirror: dict[str, Any] = key({}, "pattern of names -> what it becomes on the other side (algo.symmetry)")
    actuators: dict[str, Any] = key(
        {}, "groups of joints and their actuation law, gains and limits (docs/actuators.md)"
    )


@dataclass
class SimConfig:
    """How physics is stepped."""

    engine: str = key(
        "auto",
        "the physics engine; auto: warp on a GPU where it covers the model, else mjwarp; mujoco on a CPU",
        choices=("auto", "mujoco", "mjwarp", "warp"),
    )
    num_threads: int = key(0, "CPU threads of the mujoco engine; 0: all cores", ge=0)
    nconmax: int | None = key(None, "contact capacity a world (warp, mjwarp); default: chosen from the model", ge=1)
    njmax: int | None = key(None, "constraint-row capacity a world (mjwarp); default: chosen from the model", ge=1)
    deterministic: bool = key(
        False, "physics that repeats bit for bit on a GPU, at some cost in speed (mjwarp; others always do)"
    )
    graph: bool = key(True, "on a GPU: compile the environment step, and run rollouts and updates as CUDA graphs")


@dataclass
class PPOConfig:
    """Proximal policy optimization."""

    name: str = key("ppo", "the algorithm", choices=("ppo",))
    iterations: int = key(300, "training iterations", ge=1)
    num_steps: int = key(24, "steps a rollout", ge=1)
    epochs: int = key(5, "passes over a rollout", ge=1)
    minibatches: int = key(4, "minibatches an epoch; must divide num_envs * num_steps", ge=1)
    lr: float = key(1e-3, "learning rate (the starting one if adaptive)", gt=0, le=1)
    schedule: str = key(
        "adaptive", "learning rate: follow the KL divergence, or stay fixed", choices=("adaptive", "fixed")
    )
    desired_kl: float = key(0.01, "KL divergence an adaptive learning rate aims at", gt=0)
    lr_min: float = key(1e-5, "lower bound of the adaptive learning rate", gt=0)
    lr_max: float = key(1e-2, "upper bound of the adaptive learning rate", gt=0)
    gamma: float = key(0.99, "discount a step", ge=0, le=1)
    gae_lambda: float = key(0.95, "trace decay of the advantage estimate", ge=0, le=1)
    clip: float = key(0.2, "clip range of the probability ratio", gt=0)
    value_clip: bool = key(True, "clip the value's change as well")
    value_coef: float = key(1.0, "weight of the value loss", ge=0)
    entropy_coef: float = key(0.0, "weight of the entropy bonus", ge=0)
    max_grad_norm: float = key(1.0, "gradient norm is clipped to this", gt=0)
    hidden: list[int] = key([256, 128, 64], "hidden layers of the policy", ge=1)
    critic_hidden: list[int] | None = key(None, "hidden layers of the critic; default: as the policy", ge=1)
    activation: str = key("elu", "activation of hidden layers", choices=("elu", "relu", "tanh"))
    recurrent: str = key(
        "none",
        "gru: a GRU before policy and critic, so that they remember; minibatches are then groups of worlds",
        choices=("none", "gru"),
    )
    rnn_hidden: int = key(256, "size of the GRUs' hidden states (algo.recurrent)", ge=1)
    precision: str = key(
        "tf32",
        "matrix products on a GPU, sums are always float32 (algo.recurrent: bf16 is tf32)",
        choices=("float32", "tf32", "bf16"),
    )
    average: float = key(
        0.0,
        "what eval, play and export use is a running average of the policy: the share kept an iteration",
        ge=0,
        lt=1,
    )
    init_std: float = key(1.0, "initial standard deviation of actions", gt=0)
    min_std: float = key(0.05, "lower bound of the standard deviation", gt=0)
    max_std: float = key(2.0, "upper bound of the standard deviation", gt=0)
    symmetry: str = key(
        "none",
        "left-right symmetry (asset.mirror); augment: learn from each rollout and its mirror image; loss: the policy's "
        "squared difference from its mirror image is part of the loss",
        choices=("none", "augment", "loss", "augment+loss"),
    )
    symmetry_coef: float = key(1.0, "weight of the mirror loss of symmetry=loss and augment+loss", ge=0)
    normalize_obs: bool = key(True, "normalize observations by running statistics")
    normalize_value: bool = key(True, "normalize value targets by running statistics")


@dataclass
class OffPolicyConfig:
    """What SAC and TD3 have in common."""

    name: str = MISSING
    num_envs: int | None = key(None, "worlds that it is trained with; default: the task's", ge=1)
    gpu_num_envs: int | None = key(None, "the same on a GPU; default: the task's", ge=1)
    iterations: int = key(1000, "training iterations", ge=1)
    num_steps: int = key(32, "steps of all worlds an iteration", ge=1)
    updates: int = key(4, "updates after each step of all worlds", ge=1)
    utd: float | None = key(
        None, "updates a transition (update-to-data ratio) instead, as in the classic algorithm", gt=0
    )
    batch_size: int | None = key(None, "transitions an update; default: four a world, at least 256", ge=1)
    warmup: int = key(32, "steps of all worlds before the first update, rounded up to whole iterations", ge=1)
    buffer_size: int = key(1_000_000, "transitions that are kept: the latest", ge=1)
    buffer_gib: float | None = key(
        None, "memory for them at most [GiB]; default: a fifth of a GPU's, 8 at most; 1 on a CPU", gt=0
    )
    save_buffer: bool = key(
        False, "store them in checkpoints: then a resumed run goes on exactly, else it fills a new one"
    )
    n_step: int = key(3, "steps of reward in a target before its value", ge=1)
    gamma: float = key(0.99, "discount a step", ge=0, le=1)
    lr: float = key(1e-3, "learning rate", gt=0, le=1)
    lr_end: float | None = key(
        None, "learning rate of the last iteration, which half a cosine leads to; default: as at the start", gt=0, le=1
    )
    tau: float = key(0.02, "share of the critics that their targets take over an update", gt=0, le=1)
    policy_delay: int = key(1, "updates of the critics for each of the policy", ge=1)
    average: float = key(
        0.0,
        "what eval, play and export use is a running average of the policy: the share kept an update",
        ge=0,
        lt=1,
    )
    max_grad_norm: float | None = key(None, "gradient norms are clipped to this", gt=0)
    critic: str = key(
        "categorical",
        "what critics predict: the distribution of returns, or their mean",
        choices=("categorical", "mean"),
    )
    atoms: int = key(104, "returns that a categorical critic tells apart; multiples of 8 suit a GPU", ge=3)
    v_max: float = key(
        10.0, "largest return that it tells apart, in units of normalize_reward; the smallest is its negative", gt=0
    )
    twin: str = key("mean", "the value of both critics: their mean, or the lower one", choices=("mean", "min"))
    hidden: list[int] = key([256, 256], "hidden layers of the policy", ge=1)
    critic_hidden: list[int] | None = key(None, "hidden layers of the critics; default: as the policy", ge=1)
    activation: str = key("relu", "activation of hidden layers", choices=("elu", "relu", "silu", "tanh"))
    layer_norm: bool = key(True, "normalize layers before their activation")
    normalize_obs: bool = key(True, "normalize observations by running statistics")
    normalize_reward: bool = key(
        True, "scale rewards so that returns have a variance of 1 at most, and fit within v_max"
    )


@dataclass
class SACConfig(OffPolicyConfig):
    """Soft actor-critic."""

    name: str = key("sac", "the algorithm", choices=("sac",))
    alpha: float = key(0.01, "weight of the entropy, at the start if it is tuned", gt=0)
    tune_alpha: bool = key(True, "let alpha hold the entropy at its target")
    target_entropy: float = key(-1.0, "target of the entropy an action, of actions scaled to -1 to 1 [nats]")


@dataclass
class TD3Config(OffPolicyConfig):
    """Twin delayed deep deterministic policy gradient."""

    name: str = key("td3", "the algorithm", choices=("td3",))
    policy_delay: int = key(2, "updates of the critics for each of the policy", ge=1)
    twin: str = key("min", "the value of both critics: their mean, or the lower one", choices=("mean", "min"))
    min_noise: float = key(0.05, "least standard deviation of exploration, of actions scaled to -1 to 1", ge=0)
    max_noise: float = key(0.4, "largest one; each world has its own", ge=0)
    target_noise: float = key(0.2, "standard deviation of the noise on a target's action", ge=0)
    target_noise_clip: float = key(0.5, "bound of that noise", ge=0)


@dataclass
class CheckpointConfig:
    """When checkpoints are written."""

    every: int = key(50, "iterations between checkpoints", ge=1)
    keep: int = key(3, "how many of the latest stay (the best one always does)", ge=1)


@dataclass
class LoggerConfig:
    """Where metrics go, besides metrics.jsonl."""

    console: str = key("auto", "live view, plain lines, or nothing", choices=("auto", "live", "plain", "none"))
    tensorboard: bool = key(True, "write TensorBoard events")
    wandb: bool = key(False, "log to Weights & Biases")
    wandb_project: str = key("isaacrl", "W&B project")
    wandb_mode: str = key("online", "W&B mode", choices=("online", "offline"))
    wandb_artifacts: bool = key(False, "send the policy, its contract, the configuration and the best checkpoint")
    wandb_video: bool = key(False, "send a video of the final policy, and those of video_every")
    video_every: int | None = key(None, "iterations between short videos in the run's videos folder", ge=1)


@dataclass
class Config:
    """The whole configuration of a training run."""

    task: TaskConfig = field(default_factory=TaskConfig)
    asset: AssetConfig = field(default_factory=AssetConfig)
    randomization: dict[str, Any] = key({}, "randomization terms: isaacrl.terms.events")
    algo: Any = key(MISSING, "the algorithm")
    sim: SimConfig = field(default_factory=SimConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = key(0, "seed of everything random", ge=0, lt=2**31)
    num_envs: int = key(MISSING, "number of worlds simulated at once", ge=1, le=2**30)
    device: str = key("auto", "auto, cpu, cuda or cuda:N")
    outputs: str = key("outputs", "folder of run folders")


# Term families, and the keys of a term's node that the environment reads itself; all others are the function's
# keyword-only parameters. The randomization group holds terms of the events family.
TERM_FAMILIES: dict[str, frozenset[str]] = {
    "actions": frozenset({"fn"}),
    "observations": frozenset({"fn", "scale", "clip", "noise", "history", "delay"}),
    "rewards": frozenset({"fn", "weight", "curriculum"}),
    "terminations": frozenset({"fn", "time_out"}),
    "sensors": frozenset({"fn"}),
    "commands": frozenset({"fn", "curriculum"}),
    "events": frozenset({"fn", "when", "interval_s", "schedule", "optional", "curriculum"}),
    "curricula": frozenset({"fn"}),
    "metrics": frozenset({"fn", "reduce"}),
}
ALGORITHMS = {"ppo": PPOConfig, "sac": SACConfig, "td3": TD3Config}
