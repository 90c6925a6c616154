"""Do trained policies stay within what their robots' motors can do?

    pip install 'isaacrl[bench]'
    python benchmarks/time_to_solved.py --tasks go2_flat --seeds 0 --keep policies
    python benchmarks/motors.py policies/*.pt

Torque against speed of every joint, in MuJoCo's own physics on the CPU: 64 robots, one episode each, at every policy
step. Pushes, noise and randomization of the task stay on. docs/images/motors.png shows where the samples lie, a row a
policy and a column a group of motors, with the torque limit and the line from stall to no-load speed where the robot's
file has one; torque counts as positive where it drives. It is that of a physics step, the speed that after it: an
impact can part them. results/motors.json has the figures.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from common import RESULTS, acting, kept_policy, write
from matplotlib.colors import LogNorm

PICTURE = RESULTS.parents[1] / "docs/images/motors.png"
WORLDS = 64


def samples(path: Path) -> tuple[Any, list[str], torch.Tensor, torch.Tensor]:
    """The configuration of a kept policy, joint names, and torque [N m] and speed [rad/s] of each joint, [n, J]."""
    cfg, kept = kept_policy(path, num_envs=WORLDS, device="cpu", seed=1000, sim={"engine": "mujoco"})
    env, act = acting(cfg, kept)
    obs, torque, speed = env.reset(), [], []
    for _ in range(env.max_episode_steps):
        obs, *_ = env.step(act(obs["policy"]))
        torque.append(env.state.joint_torque.clone())
        speed.append(env.state.joint_vel.clone())
    return cfg, list(env.state.robot.joint_names), torch.cat(torque), torch.cat(speed)


def limit(group: Any, speed: torch.Tensor) -> torch.Tensor:
    """The largest driving torque at a speed."""
    out = torch.full_like(speed, float(group.get("effort_limit", float("inf"))))
    if "saturation_effort" in group:
        line = float(group.saturation_effort) * (1.0 - speed / float(group.velocity_limit))
        out = torch.minimum(out, line.clamp(min=0.0))
    return out


def draw(ax: Any, title: str, group: Any, torque: torch.Tensor, speed: torch.Tensor) -> dict[str, float]:
    """One group of motors; its figures."""
    drive, fast = torque * speed.sign(), speed.abs()
    top = float(group.get("effort_limit", torque.abs().max()))
    most = max(1.1 * fast.max().item(), float(group.get("velocity_limit", 0.0)))
    ax.hexbin(fast, drive, gridsize=45, extent=(0, most, -1.05 * top, 1.05 * top), norm=LogNorm(), cmap="viridis", lw=0)
    x = torch.linspace(0.0, most, 200)
    ax.plot(x, limit(group, x), color="tab:red", lw=1)
    ax.axhline(-top, color="tab:red", lw=1)
    ax.set_title(title, fontsize=7)
    ax.tick_params(labelsize=6)
    return {
        "effort_limit": top,
        "velocity_limit": float(group.get("velocity_limit", "nan")),
        "torque_rms": torque.square().mean().sqrt().item(),
        "torque_max": torque.abs().max().item(),
        "speed_max": fast.max().item(),
        "share_at_the_torque_limit": (torque.abs() >= 0.99 * top).float().mean().item(),
        "share_of_full_speed_99.9%": fast.flatten()[:: max(1, fast.numel() // 2**22)].quantile(0.999).item()
        / float(group.get("velocity_limit", "nan")),
    }


def main() -> None:
    from isaacrl.files import finite
    from isaacrl.sim.names import match

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="+", type=Path)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    args = parser.parse_args()
    found = {path.stem: samples(path) for path in args.policies}
    columns = max(len(cfg.asset.actuators) for cfg, *_ in found.values())
    size = 2.4 * columns, 2.1 * len(found)
    figure, axes = plt.subplots(len(found), columns, figsize=size, squeeze=False, layout="constrained")
    result: dict[str, Any] = {}
    for row, (name, (cfg, joints, torque, speed)) in zip(axes, found.items()):
        result[name] = {}
        for ax, (group, node) in zip(row, cfg.asset.actuators.items()):
            ids = match(list(node.joints), joints, f"asset.actuators.{group}")
            title = f"{cfg.task.name}: {group}"
            result[name][group] = draw(ax, title, node, torque[:, ids].flatten(), speed[:, ids].flatten())
        for ax in row[len(cfg.asset.actuators) :]:
            ax.axis("off")
    for ax in axes[-1]:
        ax.set_xlabel("speed [rad/s]", fontsize=7)
    for row in axes:
        row[0].set_ylabel("driving torque [N m]", fontsize=7)
    figure.savefig(args.picture, dpi=110)
    write("motors", {"robots": WORLDS, "policies": finite(result)})
    print(args.picture)


if __name__ == "__main__":
    main()
