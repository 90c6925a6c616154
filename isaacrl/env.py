"""The environment: E robots stepped at once. `Env.step` shows the order of one step.

env = isaacrl.make("cartpole", num_envs=64, device="cpu")
obs = env.reset()
obs, reward, terminated, truncated, info = env.step(action)     # tensors on env.device, [E, ...]
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import torch
from omegaconf import DictConfig
from torch import Tensor

from isaacrl import mishaps, sim
from isaacrl.errors import UserError
from isaacrl.fuse import program
from isaacrl.fuse.trace import may_ask
from isaacrl.ground import Ground
from isaacrl.state import Robot, State
from isaacrl.task import Task, container
from isaacrl.terms import Bound, add_sensors, bind, bind_curricula, bind_sensors, check_value, find, stack
from isaacrl.terms.group import ObservationGroup
from isaacrl.terms.randomization import randomized_fields
from isaacrl.timer import Timer

FEWEST_FUSED = 64  # worlds; fewer gain little, and their number is often that of something else as well
SATURATED = 0.98  # share of its largest useful size from which an action counts as saturated: a tanh never gets to 1
COUNTS = 9  # columns of the sums of metrics before those of the task's own terms


class Env:
    """E worlds of one task. Tensors in, tensors out; worlds that end are reset in the same step."""

    def __init__(self, cfg: DictConfig):
        self.cfg = cfg
        self.device = sim.checked_device(cfg.device)
        self.task: Task = find("", cfg.task.env, "task.env")() if cfg.task.env else Task()
        scene = sim.make_scene(cfg.asset, cfg.task, edit=lambda spec: self._edit(spec, cfg))
        fields = randomized_fields(container(cfg.task)["events"], container(cfg.randomization))
        try:
            self.engine = sim.build(scene.model, cfg.num_envs, self.device, cfg.sim, scene.actuation, fields)
        except (ValueError, MemoryError) as e:
            if not mishaps.out_of_memory(e):
                raise UserError(f"randomization: {e}") from None
            raise UserError(f"num_envs: {cfg.num_envs} worlds do not fit in memory; take fewer") from None
        self.visual_model = scene.visual_model  # the engine's with all that pictures show
        self.robot_files = scene.files
        self.num_envs, self.decimation = cfg.num_envs, cfg.task.decimation
        self.step_dt = cfg.task.physics_dt * cfg.task.decimation
        self.max_episode_steps = max(1, round(cfg.task.episode_length_s / self.step_dt))
        self.timer = Timer(self.device)
        # On a GPU a step is a few kernels instead of hundreds of operations; they are compiled at the first step.
        self.fused = cfg.sim.graph and self.device != "cpu" and self.num_envs >= FEWEST_FUSED

        robot = Robot(scene.model, cfg.asset.base, container(cfg.asset.default_pose), self.device)
        s = self.state = State(
            self.engine, robot, seed=cfg.seed, step_dt=self.step_dt, max_steps=self.max_episode_steps
        )
        if scene.terrain is not None:
            s.ground = Ground(scene.terrain, s, cfg.task.terrain.start_level)
        table, randomization = container(cfg.task), container(cfg.randomization)
        self.everywhere = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        self._to_default_pose(self.everywhere)
        self.engine.forward()
        s.refresh()
        self.sensor_terms = bind_sensors(table["sensors"], s)
        s.whole.fill_(True)
        s.episode_metrics = {name: torch.zeros(self.num_envs, device=self.device) for name in table["metrics"]}
        self.curricula = bind_curricula(table["curricula"], s)
        self.command_terms = bind("commands", table["commands"], s, "task.commands")
        self._read_commands()
        self.task.setup(s, cfg)
        self.events = events = bind("events", table["events"], s, "task.events") + bind(
            "events", randomization, s, "randomization"
        )
        for e in events:
            if e.key.startswith("randomization."):
                e.stream = e.key  # an event of the task may have the same name
            if getattr(e.fn, "interval_only", False) and e.settings.get("when") != "interval":
                raise UserError(f"{e.key}.when: a {type(e.fn).__name__} strikes at times; give it when: interval")
        if s.left_out:
            print(f"left out: {'; '.join(f'{k} ({why})' for k, why in s.left_out.items())}", file=sys.stderr)
        self.reset_events = [e for e in events if e.settings.get("when", "reset") == "reset"]
        self.startup_events = [e for e in events if e.settings.get("when") == "startup"]
        self.interval_events = [e for e in events if e.settings.get("when") == "interval"]
        self.groups = [ObservationGroup(name, terms, s) for name, terms in table["observations"].items()]
        # Sensors first: other terms read them.
        self.memory_terms = [t for t in self.all_terms() if t.has_memory and t not in self.command_terms]
        last = [t.settings.get("reduce") == "last" for t in self.task.metric_terms]
        self._last_counts = torch.tensor(last, dtype=torch.bool, device=self.device)  # metrics that are not averaged
        self.timers = {e.stream: self._interval(e) for e in self.interval_events}
        for event in self.startup_events:
            event(s, self.everywhere)

        self.episode_return = torch.zeros(self.num_envs, device=self.device)  # [E]
        self.episode_metrics = torch.zeros(self.num_envs, len(self.task.metric_terms), device=self.device)
        columns = COUNTS + len(self.task.metric_terms) + len(self.task.reward_names)
        self._sums = torch.zeros(self.num_envs, columns, device=self.device)  # since the last read_metrics
        self._saturating = SATURATED * self.task.action_reach(s)  # [A], infinite where nothing bounds an action
        self._overflow, self.compile_seconds = 0, 0.0
        self._program: program.Compiled | None = None
        self._action = torch.zeros_like(s.action)
        self._out: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._dry_run()
        self.obs: dict[str, Tensor] = {}
        self.reset()

    def _edit(self, spec: mujoco.MjSpec, cfg: DictConfig) -> None:
        """Change the scene before it is compiled: the task's own hook, then the sensors that it asks for."""
        self.task.create(spec, cfg)
        add_sensors(spec, container(cfg.task)["sensors"], cfg.asset.base)

    # --- one step ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reset(self) -> dict[str, Tensor]:
        """Start every world anew; the observations, group -> [E, n]. Curricula hear nothing of what is cut off."""
        self.state.whole.fill_(False)
        self._reset(self.everywhere)
        self._read_commands()
        self._show(self._observe(reset=self.everywhere))
        return self.obs

    def _show(self, obs: dict[str, Tensor]) -> None:
        """New observations. Where a compiled step reads and writes them, their memory stays."""
        if not self.fused or not self.obs:
            self.obs = obs
            return
        for name, value in obs.items():
            self.obs[name].copy_(value)

    @torch.no_grad()
    def stagger(self) -> None:
        """Put every world at a random time of its first episode, so that time-outs do not come all at once.

        Those first, shorter episodes stay out of the metrics.
        """
        s = self.state
        s.use_stream("stagger")
        s.episode_step.copy_((s.uniform(1)[:, 0] * self.max_episode_steps).long())
        s.whole.fill_(False)

    @torch.no_grad()
    def step(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """One policy step of every world. action [E, num_actions].

        On a GPU the tensors that it returns are the same ones at every step: clone what shall outlast the next one.

        Returns (obs, reward [E], terminated [E], truncated [E], info). obs of worlds that ended is that of their new
        episode; info["final_obs"] is the true last one. info["target"] [E, nu] is what the actuators were told.
        """
        if not self.fused:
            return self.step_plainly(action)
        self._action.copy_(action)
        if self._program is None:
            self._program, self._out = self.compiled(lambda: self.step_plainly(self._action))
            return self._out
        if self.device == "cpu" or torch.cuda.is_current_stream_capturing():
            self._program()
        else:
            if self._graph is None:
                self._graph = torch.cuda.CUDAGraph()
                stream = torch.cuda.Stream(self.device)
                with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                    self._program()
            self._graph.replay()
        self.state.refresh()  # what was computed from the state before
        return self._out

    def compiled(self, fn: Callable[[], Any], moving: Sequence[Tensor] = ()) -> tuple[program.Compiled, Any]:
        """A function that steps this environment once, compiled (isaacrl.fuse.program), and what it returned now."""
        began = time.perf_counter()

        def recorded() -> Any:
            self.state.refresh()  # nothing of the step before may be taken for a constant
            result = fn()
            self.state.refresh()
            return result

        out = program.compile(recorded, self.num_envs, self.device, moving=moving)
        self.compile_seconds += time.perf_counter() - began
        return out

    @torch.no_grad()
    def step_plainly(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """`step`, operation by operation."""
        self.timer.lap("env")
        s, engine = self.state, self.engine
        s.last_action.copy_(s.action)
        s.action.copy_(action)
        target = self.task.pre_physics_step(s, s.action)
        self.timer.enter("sim")
        engine.step(self.decimation, target)
        self.timer.enter("env")
        s.refresh()
        s.episode_step += 1
        s.random.step += 1
        for term in self.memory_terms:
            term.advance(s)
        self._run_intervals()

        terminated, timed_out = self.task.dones(s)
        s.terminated = terminated | engine.nonfinite
        s.truncated = (timed_out | (s.episode_step >= self.max_episode_steps)) & ~s.terminated
        done = s.terminated | s.truncated
        rewards = self.task.rewards(s) * self.step_dt
        # A term that is not finite in one world must not spoil the batch: it counts as 0, and is counted.
        self.spoilt = engine.nonfinite | ~torch.isfinite(rewards).all(dim=1)
        rewards = torch.where(self.spoilt[:, None], 0.0, rewards)
        reward = rewards.sum(dim=1)
        self._record(rewards, reward, done)
        final_obs = self._observe()

        for command in self.command_terms:  # worlds that reset draw new ones all the same
            command.advance(s)
        if not may_ask(self.device) or bool(done.any()):
            self._reset(done)
        self._read_commands()
        obs = self._observe(again=True, reset=done)
        self._show(obs)
        self.timer.lap("")
        info = {"final_obs": final_obs, "target": target, "nonfinite": engine.nonfinite}
        return self.obs, reward, s.terminated, s.truncated, info

    def one_time_out(self, steps: int) -> bool:
        """Whether no world can reach a time limit twice within so many steps."""
        own = type(self.task).dones is not Task.dones
        return (
            not own
            and steps <= self.max_episode_steps
            and not any(t.settings.get("time_out") for t in self.task.termination_terms)
        )

    def _observe(self, *, again: bool = False, reset: Tensor | None = None) -> dict[str, Tensor]:
        own = self.task.observations(self.state)
        if own is not None:  # copies: a float32 engine's tensors are live
            return {name: value.clone() for name, value in own.items()}
        return {g.name: g.observe(self.state, again=again, reset=reset) for g in self.groups}

    def _reset(self, mask: Tensor) -> None:
        """Start the worlds of mask [E] anew."""
        s = self.state
        for term in self.curricula:  # they see the episode that ends
            term(s, mask)
        self._to_default_pose(mask)
        self.task.reset(s, mask)
        for event in self.reset_events:
            event(s, mask)
        self.engine.forward(mask)
        s.refresh()
        keep = ~mask
        s.episode_step *= keep
        for value in (s.action, s.last_action, self.episode_metrics):
            value.masked_fill_(mask[:, None], 0.0)  # not a product: NaN times 0 is NaN
        self.episode_return.masked_fill_(mask, 0.0)
        s.whole |= mask
        for term in [*self.memory_terms, *self.command_terms]:
            term.reset(s, mask)
        for event in self.interval_events:
            timer = self.timers[event.stream]
            timer.copy_(torch.where(mask, self._interval(event), timer))

    def _to_default_pose(self, mask: Tensor) -> None:
        """Joints and base at the default pose, at rest; what derives from positions is stale until the next forward."""
        s = self.state
        self.engine.reset(mask)
        s.write("qpos", s.default_qpos, mask)

    def _read_commands(self) -> None:
        held, values = self.state.commands, {c.name: c(self.state) for c in self.command_terms}
        for term in self.command_terms if self.fused else ():  # a compiled step writes where it wrote before
            own, value = [m.untyped_storage()._cdata for m in term.memory.values()], values[term.name]
            if value.untyped_storage()._cdata not in own:  # computed
                values[term.name] = held[term.name].copy_(value) if term.name in held else value.clone()
        self.state.commands = values

    def _interval(self, event: Bound) -> Tensor:
        """Steps until an interval event strikes each world, [E]."""
        low, high = event.settings["interval_s"]
        self.state.use_stream(event.stream + ".interval")
        return (self.state.uniform(1, low, high)[:, 0] / self.step_dt).round().long().clamp(min=1)

    def _run_intervals(self) -> None:
        """Events that strike at random times, in the worlds whose timers have run out."""
        struck = None
        for event in self.interval_events:
            timer = self.timers[event.stream]
            timer -= 1
            due = timer <= 0
            if may_ask(self.device) and not bool(due.any()):
                continue
            event(self.state, due)
            timer.copy_(torch.where(due, self._interval(event), timer))
            struck = due if struck is None else struck | due
        if struck is not None:
            self.engine.forward(struck)
            self.state.refresh()

    def all_terms(self) -> list[Bound]:
        """Every term of the task and its randomization."""
        task = self.task
        terms = [
            *self.sensor_terms,
            *task.actions,
            *task.reward_terms,
            *task.termination_terms,
            *task.metric_terms,
            *self.command_terms,
        ]
        return terms + self.curricula + self.events + [t for group in self.groups for t in group.terms]

    def _dry_run(self) -> None:
        """Every term once: mistakes show before training, and the engine learns which outputs are read."""
        s = self.state
        for term in [*self.task.reward_terms, *self.task.termination_terms, *self.task.metric_terms]:
            value = term(s)
            check_value(term, value, s)
            if term in self.task.termination_terms and value.dtype != torch.bool:
                raise UserError(f"{term.key}: must return a boolean tensor [num_envs], got {value.dtype}")
        own = self.task.observations(s)
        names = list(own) if own is not None else [g.name for g in self.groups]
        if "policy" not in names:
            raise UserError(f"task.observations: no group 'policy'; groups: {names}")
        s.joint_torque  # noqa: B018  (a metric of every run)
        shapes = {
            "rewards": (self.task.rewards(s), (self.num_envs, len(self.task.reward_names))),
            "pre_physics_step": (self.task.pre_physics_step(s, s.action), (self.num_envs, self.engine.model.nu)),
            "dones": (self.task.dones(s)[0], (self.num_envs,)),
        }
        for hook, (value, expected) in shapes.items():
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            if got != list(expected):
                raise UserError(f"task.env: {hook}() must return {list(expected)}, got {got}")
        self.engine.forward()
        s.refresh()

    # --- metrics: sums on the device, read once an iteration ---------------------------------------------------------

    def _record(self, rewards: Tensor, reward: Tensor, done: Tensor) -> None:
        s = self.state
        self.episode_return += reward
        measured = stack([t(s) for t in self.task.metric_terms], s)
        self.episode_metrics.copy_(torch.where(self._last_counts, measured, self.episode_metrics + measured))
        ended = (done & s.whole).float()
        length = s.episode_step.float()
        # Means are exact for whole episodes.
        per_episode = torch.where(self._last_counts, self.episode_metrics, self.episode_metrics / length[:, None])
        counts = [
            ended,
            ended * self.episode_return,
            ended * length,
            self.engine.nonfinite.float(),
            s.joint_torque.abs().sum(dim=1) / max(s.joint_torque.shape[1], 1),
            torch.ones_like(reward),
            done.float(),
            (s.action.abs() >= self._saturating).float().sum(dim=1) / max(s.action.shape[1], 1),
            (self.spoilt & ~self.engine.nonfinite).float(),
        ]
        of_episodes = torch.where(ended[:, None] > 0, per_episode, 0.0)
        self._sums += torch.cat((torch.stack(counts, dim=1), of_episodes, rewards), dim=1)
        self.last_episode_metrics = per_episode  # [E, M], of the episodes that end in this step
        s.episode_metrics = {t.name: per_episode[:, i] for i, t in enumerate(self.task.metric_terms)}

    def read_metrics(self) -> dict[str, float]:
        """Means since the last call; one copy to the host. Episode figures are absent if no episode ended."""
        sums = self._sums.sum(dim=0, dtype=torch.float64)
        progress = [t.fn.progress[None] for t in self.curricula]
        *sums, overflow = torch.cat((sums, *progress, self.engine.overflow.sum()[None])).tolist()
        sums, progress = sums[: len(sums) - len(progress)], sums[len(sums) - len(progress) :]
        overflow, self._overflow = overflow - self._overflow, overflow
        self._sums.zero_()
        episodes, steps, n = sums[0], max(sums[5], 1.0), COUNTS + len(self.task.metric_terms)
        out = {"nonfinite": sums[3], "overflow": float(overflow), "torque": sums[4] / steps, "resets": sums[6]}
        out["saturated"] = sums[7] / steps
        out["spoilt_rewards"] = sums[8]
        out |= {f"curriculum/{t.name}": value for t, value in zip(self.curricula, progress)}
        out["reward"] = sum(sums[n:]) / steps
        for name, value in zip(self.task.reward_names, sums[n:]):
            out[f"reward/{name}"] = value / steps
        if episodes:
            out |= {"episodes": episodes, "return": sums[1] / episodes, "episode_length": sums[2] / episodes}
            for term, value in zip(self.task.metric_terms, sums[COUNTS:]):
                out[f"metric/{term.name}"] = value / episodes
        return out

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Everything that lives outside the engine and outlasts a step."""
        s = self.state
        out = {
            "episode_step": s.episode_step,
            "action": s.action,
            "last_action": s.last_action,
            "encoder_bias": s.encoder_bias,
            "random_step": s.random.step,
            "episode_return": self.episode_return,
            "episode_metrics": self.episode_metrics,
            "whole": s.whole,
            "sums": self._sums,
        }
        out |= {"terrain_level": s.ground.level} if s.ground is not None else {}
        out |= {f"curriculum/{t.name}/{k}": v for t in self.curricula for k, v in t.fn.tensors.items()}
        out |= {f"timer/{k}": v for k, v in self.timers.items()}
        out |= {f"obs/{k}": v for k, v in self.obs.items()}
        out |= {f"{k}/{g.name}": v for g in self.groups for k, v in g.memory.items()}
        for term in [*self.memory_terms, *self.command_terms]:
            out |= {f"memory/{term.key}/{k}": v for k, v in term.memory.items()}
        return out

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, as tensors."""
        return {
            "engine_name": self.engine.name,
            "engine": self.engine.state_dict(),
            "env": {k: v.clone() for k, v in self.tensors().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where state_dict() was taken (same task, number of worlds and engine).

        Raises: UserError where the environment is another one.
        """
        if state["engine_name"] != self.engine.name:
            raise UserError(
                f"sim.engine: the run was simulated by {state['engine_name']}, here it is {self.engine.name}; resume "
                f"with sim.engine={state['engine_name']}, or start a new run from it without resume=true"
            )
        mine, theirs = self.tensors(), state["env"]
        if (worlds := len(theirs["episode_step"])) != self.num_envs:
            raise UserError(
                f"num_envs: the run has {worlds} worlds, here are {self.num_envs}; resume with num_envs={worlds}, or "
                "start a new run from it without resume=true"
            )
        shapes = {k: [list(x[k].shape) if k in x else None for x in (theirs, mine)] for k in sorted({*mine, *theirs})}
        if wrong := {k: both for k, both in shapes.items() if both[0] != both[1]}:
            shapes = dict(list(wrong.items())[:2])
            raise UserError(f"checkpoint: made by another environment; (stored, configured) shapes: {shapes}")
        self.engine.load_state_dict(state["engine"])
        self._overflow = int(self.engine.overflow.sum())
        for k, v in mine.items():
            v.copy_(theirs[k])
        self.state.refresh()
        self._read_commands()
