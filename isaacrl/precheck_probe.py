"""A rollout that remembers what the environment's terms returned: what `isaacrl check` judges."""

import math
import time
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from isaacrl.env import Env
from isaacrl.sim.engine import DIRECT

STEPS = 300  # of a rollout, if no more are needed to see episodes end
MIN_STEPS = 10  # however slow the task


class Spread:
    """Running mean, standard deviation and extremes of each column of [E, n]; what is not finite is counted apart."""

    def __init__(self) -> None:
        self.empty = True
        self.count = self.bad = self.sum = self.square = self.size = self.low = self.high = torch.zeros(0)

    def add(self, values: Tensor) -> None:
        x = values.detach().reshape(len(values), -1).to("cpu", torch.float64)
        good = torch.isfinite(x)
        if self.empty:
            zero = torch.zeros(x.shape[1], dtype=torch.float64)
            self.empty, self.low, self.high = False, zero + math.inf, zero - math.inf
            self.count, self.bad, self.sum, self.square, self.size = (zero.clone() for _ in range(5))
        self.bad += (~good).sum(0)
        zeroed = torch.where(good, x, 0.0)
        self.count += good.sum(0)
        self.sum += zeroed.sum(0)
        self.square += zeroed.square().sum(0)
        self.size += zeroed.abs().sum(0)
        self.low = torch.minimum(self.low, torch.where(good, x, math.inf).amin(0))
        self.high = torch.maximum(self.high, torch.where(good, x, -math.inf).amax(0))

    def summary(self, columns: slice = slice(None)) -> dict[str, Any]:
        """Over these columns: mean, std about each column's own mean, mean size, extremes, how many never change."""
        if not len(self.sum[columns]):
            names = ("mean", "std", "abs", "min", "max")
            return {"size": 0, "constant": 0, "nonfinite": 0} | dict.fromkeys(names, 0.0)
        n = self.count[columns].clamp(min=1)
        mean = self.sum[columns] / n
        variance = (self.square[columns] / n - mean.square()).clamp(min=0)
        low, high = self.low[columns], self.high[columns]
        return {
            "size": len(mean),
            "mean": mean.mean().item(),
            "std": variance.mean().sqrt().item(),
            "abs": (self.size[columns] / n).mean().item(),
            "min": low.min().item(),
            "max": high.max().item(),
            "constant": int((low >= high).sum()),
            "nonfinite": int(self.bad[columns].sum()),
        }


def both(a: Spread, b: Spread) -> Spread:
    """Two rollouts as one."""
    if a.empty or b.empty:
        return a if b.empty else b
    out = Spread()
    out.empty = False
    for name in ("count", "bad", "sum", "square", "size"):
        setattr(out, name, getattr(a, name) + getattr(b, name))
    out.low, out.high = torch.minimum(a.low, b.low), torch.maximum(a.high, b.high)
    return out


# --- a rollout -------------------------------------------------------------------------------------------------------


class Probe:
    """One rollout of an environment, and all that its hooks and terms returned."""

    def __init__(self, env: Env):
        self.env, self.steps, self.nonfinite = env, 0, 0
        self.rewards, self.raw_actions = Spread(), Spread()
        self.observed: dict[str, Spread] = {}
        self.clipped = {g.name: torch.zeros(g.width, device=env.device) for g in env.groups}
        self.commands = {name: Spread() for name in env.state.commands}
        self.lengths: list[int] = []
        self.ends = {t.name: 0 for t in env.task.termination_terms} | {"time": 0}
        self.ncon, self.nefc = env.engine.field("ncon"), env.engine.field("nefc")
        self.force, self.limit = env.engine.field("actuator_force"), force_limits(env)
        self.peaks = [0, 0]
        self.overflow = 0
        nu = env.engine.model.nu
        self.saturated, self.at_limit, self.clipped_actions = torch.zeros(nu), torch.zeros(nu), 0.0
        self.lows, self.highs, self.bounds = target_limits(env)

    @torch.no_grad()
    def run(self, act: Callable[[], Tensor], seconds: float) -> None:
        """Step until enough episodes have ended, a full episode has passed, or the time is up."""
        env, task = self.env, self.env.task
        rewards, dones, struck = task.rewards, task.dones, {}

        def recorded(s: Any) -> Tensor:
            values = rewards(s)
            self.rewards.add(values)
            return values

        def watched(s: Any) -> tuple[Tensor, Tensor]:
            out = dones(s)
            struck.update({t.name: t(s).clone() for t in task.termination_terms})
            return out

        before = env.engine.overflow.sum().item()
        length = torch.zeros(env.num_envs, dtype=torch.long, device=env.device)
        end = time.perf_counter() + seconds
        vars(task).update(rewards=recorded, dones=watched)  # in front of the class's own
        try:
            env.reset()
            while self.steps < env.max_episode_steps + 1:
                if self.steps >= MIN_STEPS and time.perf_counter() > end:
                    break
                if self.steps >= STEPS and len(self.lengths) >= env.num_envs:
                    break
                action = act()
                obs, _, terminated, truncated, info = env.step(action)
                length += 1
                done = terminated | truncated
                self._count_ends(length, terminated, truncated, struck)
                length *= ~done
                self._record(obs, action, info)
        finally:
            for name in ("rewards", "dones"):
                vars(task).pop(name, None)
        self.overflow = int(env.engine.overflow.sum().item() - before)

    def _count_ends(self, length: Tensor, terminated: Tensor, truncated: Tensor, struck: dict[str, Tensor]) -> None:
        self.lengths += length[terminated | truncated].tolist()
        unnamed = terminated.clone()
        timed = truncated.clone()
        for name, mask in struck.items():
            self.ends[name] += int((mask & (terminated | truncated)).sum())
            unnamed &= ~mask
            timed &= ~mask
        self.ends["time"] += int(timed.sum())
        nonfinite = self.env.engine.nonfinite
        if int((unnamed & ~nonfinite).sum()):  # a class's own dones()
            self.ends["terminated"] = self.ends.get("terminated", 0) + int((unnamed & ~nonfinite).sum())
        self.nonfinite += int(nonfinite.sum())

    def _record(self, obs: dict[str, Tensor], action: Tensor, info: dict[str, Any]) -> None:
        env = self.env
        self.steps += 1
        for name, values in obs.items():
            self.observed.setdefault(name, Spread()).add(values)
        for g in env.groups:
            self.clipped[g.name] += ((g.raw <= g.low) | (g.raw >= g.high)).float().mean(0)
        for name, value in env.state.commands.items():
            self.commands.setdefault(name, Spread()).add(value)
        self.raw_actions.add(action)
        target = info["target"].to("cpu", torch.float32)
        self.at_limit += ((target <= self.lows) | (target >= self.highs)).float().mean(0)
        if self.bounds is not None:
            self.clipped_actions += float((action.cpu().abs() > self.bounds).float().mean())
        self.saturated += (self.force.to("cpu", torch.float32).abs() >= 0.999 * self.limit).float().mean(0)
        self.peaks = [max(p, int(x.max())) for p, x in zip(self.peaks, (self.ncon, self.nefc))]

    def episodes(self) -> dict[str, Any]:
        """How many episodes ended, on what, and after how long [s]."""
        lengths = np.array(self.lengths or [0]) * self.env.step_dt
        return {
            "steps": self.steps,
            "step_s": self.env.step_dt,
            "ended": len(self.lengths),
            "mean_s": float(lengths.mean()),
            "min_s": float(lengths.min()),
            "max_s": float(lengths.max()),
            "at_first_step": int(sum(n <= 1 for n in self.lengths)),
            "ends": self.ends,
        }

    def actions(self) -> dict[str, Any]:
        """By actuator: share of steps with the target at a limit, and with all the torque it has."""
        names, n = self.env.state.robot.actuator_names, max(self.steps, 1)
        return {
            "clipped": self.clipped_actions / n,
            "actuators": {
                name: {"target_at_limit": a, "saturated": b}
                for name, a, b in zip(names, (self.at_limit / n).tolist(), (self.saturated / n).tolist())
            },
        }


def target_limits(env: Env) -> tuple[Tensor, Tensor, Tensor | None]:
    """(lowest, highest [nu]; bounds of the actions [num_actions] or None) beyond which a command changes nothing.

    Position targets end at the joint's limits, others at the actuator's range.
    """
    model, robot = env.engine.model, env.state.robot
    limited = torch.from_numpy(model.actuator_ctrllimited.astype(bool))
    span = torch.from_numpy(model.actuator_ctrlrange).float()
    low, high = torch.where(limited, span[:, 0], -math.inf), torch.where(limited, span[:, 1], math.inf)
    bounds = []
    for term in env.task.actions:
        if getattr(term.fn, "kind", "") == "position":
            for a in term.fn.actuators:
                j = robot.driven_joints[a]
                if j >= 0:
                    low[a], high[a] = robot.joint_pos_limits[j].cpu()
        bounds.append(term.fn.action_clip.cpu())
    return low, high, torch.cat(bounds) if bounds else None


def force_limits(env: Env) -> Tensor:
    """The largest force or torque of each actuator [N or N m], [nu]; infinite where nothing bounds it."""
    m, law = env.engine.model, env.engine.actuation
    limit = np.where(law.law != DIRECT, law.effort_limit, np.inf)
    limit = np.where(m.actuator_forcelimited, np.minimum(limit, np.abs(m.actuator_forcerange).max(1)), limit)
    motor = m.actuator_ctrllimited.astype(bool) & (m.actuator_biastype == mujoco.mjtBias.mjBIAS_NONE)
    reach = np.abs(m.actuator_ctrlrange).max(1) * np.abs(m.actuator_gainprm[:, 0])
    limit = np.where(motor, np.minimum(limit, reach), limit)
    return torch.from_numpy(np.where(limit > 0, limit, np.inf)).float()
