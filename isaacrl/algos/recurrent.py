"""A recurrent policy for PPO: a GRU (Cho et al. 2014, arXiv:1406.1078) before the networks of policy and critic.

The networks are those of rsl_rl's ActorCriticRecurrent: normalizer, GRU, multilayer perceptron, each of policy and
critic with a GRU of its own. Learning is truncated backpropagation through time over the T steps of a rollout, from
the hidden states that it began with, cut where episodes end. No operation asks the host for a value, and all shapes
are fixed, so that a GPU runs them as CUDA graphs.

Shapes: T steps of a rollout, E worlds, B worlds of a minibatch, D observation, H hidden state, A action.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from isaacrl.algos.networks import Normalizer, mlp


class GRU(nn.GRUCell):
    """A layer of gated recurrent units, with torch's parameters and definition."""

    def gates(self, x: Tensor) -> Tensor:
        """The inputs' share [..., 3 H] of the gates: of all steps at once, it does not depend on the hidden state."""
        return nn.functional.linear(x, self.weight_ih, self.bias_ih)

    def advance(self, gates: Tensor, hidden: Tensor) -> Tensor:
        """The hidden state [..., H] after a step with inputs of `gates`, [..., 3 H]."""
        n = 2 * self.hidden_size
        own = nn.functional.linear(hidden, self.weight_hh, self.bias_hh)
        reset, update = torch.sigmoid(gates[..., :n] + own[..., :n]).chunk(2, dim=-1)
        new = torch.tanh(gates[..., n:] + reset * own[..., n:])
        return new + update * (hidden - new)

    def over(self, x: Tensor, done: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states after each step [T, B, H], and the one that the step after them begins with, [B, H].

        x [T, B, D]; hidden [B, H] at the start. Where an episode ended with step t (done [T, B]) the next one begins
        with zeros; the state after step t itself is the one before that.
        """
        return _Sequence.apply(self.gates(x), self.weight_hh, self.bias_hh, done, hidden, self.advance)


class _Sequence(torch.autograd.Function):
    """The loop of `GRU.over`, with its gradient by hand.

    Autograd would keep, and go back through, a dozen operations a step. What does not depend on later steps is
    computed of all steps at once here, anew from the hidden states; four operations a step are left.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, bias: Tensor, done: Tensor, first: Tensor, advance: Any):
        out, hidden, zero = [], first, first.new_zeros(())
        for x, end in zip(gates.unbind(), done.unbind()):
            out.append(advance(x, hidden))
            hidden = torch.where(end[:, None], zero, out[-1])
        states = torch.stack(out)
        ctx.save_for_backward(gates, weight, bias, done, first, states)
        return states, hidden

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_states, grad), (gates, weight, bias, done, first, states) = grads, ctx.saved_tensors
        n = first.shape[-1]
        before = torch.cat((first[None], torch.where(done[:-1, :, None], 0.0, states[:-1])))
        own = nn.functional.linear(before, weight, bias)
        reset, update = torch.sigmoid(gates[..., : 2 * n] + own[..., : 2 * n]).chunk(2, dim=-1)
        new = torch.tanh(gates[..., 2 * n :] + reset * own[..., 2 * n :])
        # By how much the state after a step changes with the hidden state's share of the gates, [T, B, 3, H].
        slope = (1.0 - update) * (1.0 - new.square())
        by_reset, by_update = (
            slope * own[..., 2 * n :] * reset * (1.0 - reset),
            (before - new) * update * (1.0 - update),
        )
        by_gates = torch.stack((by_reset, by_update, slope * reset), dim=2)
        keep = (~done).to(gates.dtype)[..., None]
        grad_own, total = torch.empty_like(by_gates), torch.empty_like(states)
        for t in reversed(range(len(states))):
            torch.addcmul(grad_states[t], keep[t], grad, out=total[t])
            torch.mul(by_gates[t], total[t, :, None], out=grad_own[t])
            grad = torch.addmm(update[t] * total[t], grad_own[t].flatten(1), weight)
        grad_own = grad_own.flatten(2)
        grad_gates = torch.cat((grad_own[..., : 2 * n], slope * total), dim=-1)
        grad_weight = grad_own.flatten(0, 1).t() @ before.flatten(0, 1)
        return grad_gates, grad_weight, grad_own.sum(dim=(0, 1)), None, grad, None


class Recurrent(nn.Module):
    """Normalizer, GRU and network: (observation [N, D], hidden state [N, H]) -> (output, next hidden state)."""

    def __init__(self, num_obs: int, outputs: int, hidden: list[int], last_gain: float, cfg: Any):
        super().__init__()
        self.normalizer = Normalizer(num_obs) if cfg.normalize_obs else None
        self.rnn = GRU(num_obs, cfg.rnn_hidden)
        self.net = mlp([cfg.rnn_hidden, *hidden, outputs], cfg.activation, last_gain)

    def forward(self, obs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        obs = self.normalizer(obs) if self.normalizer else obs
        hidden = self.rnn.advance(self.rnn.gates(obs), hidden)
        return self.net(hidden), hidden

    def over(self, obs: Tensor, done: Tensor, hidden: Tensor) -> Tensor:
        """Outputs [T, B, n] of a sequence of normalized observations; arguments as of `GRU.over`."""
        return self.net(self.rnn.over(obs, done, hidden)[0])


class RecurrentPolicy(Recurrent):
    """Mean action [N, A]. log_std is a free parameter."""

    def __init__(self, num_obs: int, num_actions: int, cfg: Any):
        super().__init__(num_obs, num_actions, cfg.hidden, 0.01, cfg)
        self.log_std = nn.Parameter(torch.full((num_actions,), math.log(cfg.init_std)))


class RecurrentCritic(Recurrent):
    """Value [N, 1] in normalized units; in reward units after `restore`."""

    def __init__(self, num_obs: int, cfg: Any):
        super().__init__(num_obs, 1, cfg.critic_hidden or cfg.hidden, 1.0, cfg)
        self.returns = Normalizer(1, clip=torch.inf) if cfg.normalize_value else None

    def restore(self, value: Tensor) -> Tensor:
        return self.returns.restore(value) if self.returns else value


class Memory:
    """Hidden states of all worlds in training, [E, H], written in place.

    policy: now. policy_start, critic_start: at the start of the rollout. critic_end: at its end; the critic runs over
    whole rollouts only, after them.
    """

    def __init__(self, num_envs: int, size: int, device: str):
        self.policy, self.policy_start, self.critic_start, self.critic_end = (
            torch.zeros(num_envs, size, device=device) for _ in range(4)
        )

    def begin(self) -> None:
        """A rollout begins."""
        self.policy_start.copy_(self.policy)

    def act(self, policy: RecurrentPolicy, obs: Tensor, mean: Tensor) -> None:
        """Write the mean action [E, A] of obs [E, D], and the hidden state after it."""
        value, hidden = policy(obs, self.policy)
        mean.copy_(value)
        self.policy.copy_(hidden)

    def reset(self, done: Tensor) -> None:
        """Start anew in the worlds of done [E]."""
        self.policy.masked_fill_(done[:, None], 0.0)

    def end(self) -> None:
        """All is learnt from the rollout."""
        self.critic_start.copy_(self.critic_end)

    def values(
        self, critic: RecurrentCritic, obs: Tensor, last: Tensor, final: Tensor, truncated: Tensor, done: Tensor
    ) -> tuple[Tensor, Tensor]:
        """V of the observations of a rollout, and of those that its steps led to, in reward units, both [T, E].

        obs [T, E, D]; last [E, D], what the rollout led to; final [T, E, D], or [E, D] where an episode can run out of
        time once in a rollout: the true last observations. Their values are those of a critic that has seen all of
        its episode, and nothing of the next one.
        """

        def value(x: Tensor, hidden: Tensor) -> Tensor:
            return critic.restore(critic(x, hidden)[0][..., 0])

        normalized = critic.normalizer(obs) if critic.normalizer else obs
        hidden, end = critic.rnn.over(normalized, done, self.critic_start)
        self.critic_end.copy_(end)
        values = critic.restore(critic.net(hidden)[..., 0])
        following = torch.cat((values[1:], value(last, end)[None]))
        if final.ndim == 2:
            worlds = torch.arange(len(last), device=last.device)
            ended = value(final, hidden[truncated.int().argmax(dim=0), worlds]).expand_as(values)
        else:
            ended = value(final, hidden)
        return values, torch.where(truncated, ended, following)

    def state_dict(self) -> dict[str, Tensor]:
        """What the next rollout begins with: copies."""
        return {"policy": self.policy.clone(), "critic": self.critic_start.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore state_dict(); that of another number of worlds means nothing here, where all then start anew."""
        for name, x in (("policy", self.policy), ("critic", self.critic_start)):
            stored = state.get(name)
            x.copy_(stored) if stored is not None and stored.shape == x.shape else x.zero_()


class Controller:
    """A trained policy in an environment: observation [E, D] -> action [E, A].

    Its hidden state [E, H] starts anew by itself where an episode of the environment does.
    """

    def __init__(self, policy: RecurrentPolicy, env: Any):
        self.policy, self.env = policy, env
        self.hidden = torch.zeros(env.num_envs, policy.rnn.hidden_size, device=env.device)

    @torch.no_grad()
    def __call__(self, obs: Tensor) -> Tensor:
        begins = self.env.state.episode_step == 0
        action, self.hidden = self.policy(obs, torch.where(begins[:, None], 0.0, self.hidden))
        return action
