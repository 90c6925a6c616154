"""A replay buffer on the device: what the worlds did, step by step, in a ring.

Shapes: C steps, E worlds, B samples. All worlds step together, so that one position serves the rings of all.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isaacrl.algos import off_policy_ops as ops
from isaacrl.algos.networks import Normalizer
from isaacrl.errors import UserError

GIB = 2**30
SHARE, MOST = 0.2, 8.0  # of a GPU's memory, and GiB, that a buffer takes at most where nobody says; 1 GiB on a CPU


@dataclass
class Sample:
    """Sampled transitions over up to n steps; first and last: which of the buffer's capacity * E steps, [B]."""

    first: Tensor
    last: Tensor
    reward: Tensor  # discounted sum [B]
    discount: Tensor  # of the value after the last step: gamma^steps, 0 where the episode terminated [B]


class Replay:
    """The last C steps of E worlds.

    columns: name -> width of what is stored of each step. observed: those of them that are stored twice, before the
    step and after it. An episode that runs out of time goes on in `following`, with its true last observation.
    """

    def __init__(self, columns: dict[str, int], observed: list[str], capacity: int, num_envs: int, device: str):
        self.capacity, self.num_envs, self.device = capacity, num_envs, device
        self.columns = {k: torch.zeros(capacity, num_envs, n, device=device) for k, n in columns.items()}
        self.following = {k: torch.zeros_like(self.columns[k]) for k in observed}
        self.reward = torch.zeros(capacity, num_envs, device=device)
        self.terminated, self.truncated = (
            torch.zeros(capacity, num_envs, dtype=torch.bool, device=device) for _ in range(2)
        )
        self.at, self.filled = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))  # next row; rows

    def write(
        self,
        columns: dict[str, Tensor],
        following: dict[str, Tensor],
        reward: Tensor,
        terminated: Tensor,
        truncated: Tensor,
    ) -> None:
        """One step of all worlds, [E, ...]; the oldest one gives way."""
        row = self.at[None]
        for store, values in ((self.columns, columns), (self.following, following)):
            for k, x in store.items():
                x.index_copy_(0, row, values[k][None])
        for x, value in ((self.reward, reward), (self.terminated, terminated), (self.truncated, truncated)):
            x.index_copy_(0, row, value[None])
        self.at.copy_((self.at + 1) % self.capacity)
        self.filled.copy_((self.filled + 1).clamp(max=self.capacity))

    def sample(self, size: int, steps: int, gamma: float, generator: torch.Generator) -> Sample:
        """Transitions of uniformly random steps and worlds, summed over up to `steps` steps.

        A sum ends with the episode, and with the newest step: then it has fewer steps.
        """
        # float32 has 24 bits: drawn apart, steps and worlds are uniform up to 16 million of each.
        draws = torch.rand(2, size, generator=generator, device=self.device)
        if ops.use(draws):
            return Sample(*ops.transitions(self, draws, steps, gamma))
        age = (draws[0] * self.filled).long().clamp(max=self.filled - 1)  # 0: the newest
        world = (draws[1] * self.num_envs).long().clamp(max=self.num_envs - 1)
        return self.transitions(age, world, steps, gamma)

    def transitions(self, age: Tensor, world: Tensor, steps: int, gamma: float) -> Sample:
        """`sample` of given steps (0: the newest one) and worlds, [B]."""

        def place(k: Tensor | int) -> Tensor:  # k steps later
            return (self.at - 1 - age + k) % self.capacity * self.num_envs + world

        def of(x: Tensor, index: Tensor) -> Tensor:
            return x.flatten(0, 1).index_select(0, index)

        first = last = place(0)
        total = of(self.reward, first)
        discount = torch.full_like(total, gamma)
        going = ~(of(self.terminated, first) | of(self.truncated, first))
        for k in range(1, steps):
            going = going & (age >= k)
            index = place(k)
            total = total + torch.where(going, discount * of(self.reward, index), 0.0)
            discount = torch.where(going, gamma * discount, discount)
            last = torch.where(going, index, last)
            going = going & ~(of(self.terminated, index) | of(self.truncated, index))
        return Sample(first, last, total, discount * ~of(self.terminated, last))

    def column(self, name: str, sample: Sample) -> Tensor:
        """What is stored of the samples' first steps, [B, n]."""
        return self.columns[name].flatten(0, 1).index_select(0, sample.first)

    def observed(self, name: str, sample: Sample, normalizer: Normalizer | None) -> tuple[Tensor, Tensor]:
        """Observations before the first and after the last step, the true last ones at an episode's end, normalized."""
        both = []
        for x, index in ((self.columns[name], sample.first), (self.following[name], sample.last)):
            if ops.use(index):
                both.append(ops.take(x.flatten(0, 1), index, normalizer))
            else:
                rows = x.flatten(0, 1).index_select(0, index)
                both.append(rows if normalizer is None else normalizer(rows))
        return both[0], both[1]

    def tensors(self) -> dict[str, Tensor]:
        """All that is stored, by name."""
        return (
            {f"column/{k}": x for k, x in self.columns.items()}
            | {f"following/{k}": x for k, x in self.following.items()}
            | {k: getattr(self, k) for k in ("reward", "terminated", "truncated", "at", "filled")}
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the rows that are filled."""
        rows = int(self.filled)
        stored = {k: (x[:rows] if x.ndim else x).clone() for k, x in self.tensors().items()}
        return stored | {"capacity": torch.tensor(self.capacity)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore state_dict() in place. Raises: UserError where the stored buffer is of another size."""
        if int(state["capacity"]) != self.capacity:
            raise UserError(
                f"algo.buffer_size: the stored buffer has room for {int(state['capacity'])} steps a world, this one "
                f"for {self.capacity}; use the run's own buffer_size and buffer_gib"
            )
        rows = int(state["filled"])
        for k, x in self.tensors().items():
            x[:rows].copy_(state[k]) if x.ndim else x.copy_(state[k])


def capacity(columns: dict[str, int], observed: list[str], num_envs: int, device: str, cfg: Any) -> int:
    """Steps a world: as many as algo.buffer_size transitions, or as algo.buffer_gib holds, whichever is less."""
    width = 4 * (sum(columns.values()) + sum(columns[k] for k in observed) + 1) + 2  # bytes of a transition
    room = cfg.buffer_gib
    if room is None:
        room = 1.0
        if device != "cpu":
            room = min(SHARE * torch.cuda.get_device_properties(device).total_memory / GIB, MOST)
    return max(2, min(cfg.buffer_size, int(room * GIB / width)) // num_envs)
