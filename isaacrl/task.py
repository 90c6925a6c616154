"""A task as hooks: what the robot sees, does, is rewarded for, and when an episode ends."""

from typing import Any, cast

import mujoco
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from isaacrl.errors import UserError
from isaacrl.sim.drives import target_kinds
from isaacrl.state import State
from isaacrl.terms import bind, stack


class Task:
    """What a robot is to do, as six hooks. The default ones are the term tables of the task's YAML file.

    A task written as one Python class (`task.env: my_pkg.my_task:MyTask`) overrides the hooks it wants; `num_actions`
    must then be set if there is no `actions` table.
    """

    num_actions: int

    def create(self, spec: mujoco.MjSpec, cfg: DictConfig) -> None:
        """Before the scene is compiled: change it."""

    def setup(self, s: State, cfg: DictConfig) -> None:
        """Once, when the simulation stands: bind the term tables. Overrides call super().setup(s, cfg) first."""
        table = container(cfg.task)
        self.actions = bind("actions", table["actions"], s, "task.actions")
        if self.actions:
            self.num_actions = sum(len(t.fn.actuators) for t in self.actions)
        elif not hasattr(self, "num_actions"):
            raise UserError(f"task.actions: none given; a task without them sets num_actions in {type(self).__name__}")
        s.action = torch.zeros(s.num_envs, self.num_actions, device=s.device)
        s.last_action = s.action.clone()
        self.reward_terms = bind("rewards", table["rewards"], s, "task.rewards")
        self.weights = torch.tensor([float(t.settings.get("weight", 1.0)) for t in self.reward_terms], device=s.device)
        self.termination_terms = bind("terminations", table["terminations"], s, "task.terminations")
        self.metric_terms = bind("metrics", table["metrics"], s, "task.metrics")
        used = [a for t in self.actions for a in t.fn.actuators]
        if len(used) != len(set(used)):
            twice = next(s.robot.actuator_names[a] for a in used if used.count(a) > 1)
            raise UserError(f"task.actions: joint '{twice}' is driven by two terms; give each joint to one")
        self._columns = torch.tensor(used, dtype=torch.long, device=s.device)
        kinds = target_kinds(s.engine.model, s.engine.actuation)
        # Servos that no action drives hold the default pose, in the encoders' coordinates; other actuators get 0.
        self.held = [
            a for a, j in enumerate(s.robot.driven_joints) if j >= 0 and kinds[a] == "position" and a not in used
        ]
        self._held_joints = torch.tensor([s.robot.driven_joints[a] for a in self.held], device=s.device).long()
        self.rest = torch.zeros(s.engine.model.nu, device=s.device)  # [nu]
        self.rest[self.held] = s.robot.default_joint_pos[self._held_joints]
        self._held_columns = torch.tensor(self.held, device=s.device).long()

    def pre_physics_step(self, s: State, action: Tensor) -> Tensor:
        """Targets of the actuators, [E, nu], from the policy's action [E, num_actions]."""
        target = self.rest.repeat(s.num_envs, 1)
        if self.held:
            target.index_add_(1, self._held_columns, s.encoder_bias[:, self._held_joints], alpha=-1)
        parts, first = [], 0
        for term in self.actions:
            n = len(term.fn.actuators)
            parts.append(term(s, action[:, first : first + n]))
            first += n
        return target.index_copy(1, self._columns, torch.cat(parts, dim=1)) if parts else target

    def action_bounds(self, s: State) -> Tensor:
        """The largest useful size of each action, [num_actions], for policies that need bounds."""
        parts = [t.fn.bounds(s) for t in self.actions if hasattr(t.fn, "bounds")]
        found = torch.cat(parts) if parts else torch.ones(0, device=s.device)
        return found if len(found) == self.num_actions else torch.ones(self.num_actions, device=s.device)

    def action_reach(self, s: State) -> Tensor:
        """The size from which each action changes nothing any more, [num_actions]; infinite where there is none."""
        parts = [t.fn.reach(s) for t in self.actions if hasattr(t.fn, "reach")]
        found = torch.cat(parts) if parts else torch.ones(0, device=s.device)
        return found if len(found) == self.num_actions else torch.full((self.num_actions,), torch.inf, device=s.device)

    def observations(self, s: State) -> dict[str, Tensor] | None:
        """Named groups [E, n], `policy` among them; None: the tables."""
        return None

    def rewards(self, s: State) -> Tensor:
        """[E, K], the weighted reward terms per second; columns are `reward_names`."""
        values = [t(s) * s.share if t.settings.get("curriculum") else t(s) for t in self.reward_terms]
        return stack(values, s) * self.weights

    @property
    def reward_names(self) -> list[str]:
        return [t.name for t in self.reward_terms]

    def dones(self, s: State) -> tuple[Tensor, Tensor]:
        """(terminated, timed out), boolean [E]; the full episode length is added by the environment."""
        none = torch.zeros(s.num_envs, dtype=torch.bool, device=s.device)
        ends = {False: none, True: none}
        for term in self.termination_terms:
            ends[bool(term.settings.get("time_out"))] = ends[bool(term.settings.get("time_out"))] | term(s)
        return ends[False], ends[True]

    def reset(self, s: State, mask: Tensor) -> None:
        """After the worlds of mask went back to the default pose, and before the task's reset events."""


def container(node: DictConfig) -> dict[str, Any]:
    """A configuration node as a plain dictionary."""
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
