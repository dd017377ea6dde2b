"""What every policy network shares: memory with resets, a value head with its own scale, stepping and unrolling.

Shapes: T steps, N environments, B = T * N rows in time-major order, F features, H memory cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from esper.tamiyo.normalise import RunningMoments, RunningNorm
from esper.tolaria import ledger

Observation = Mapping[str, Tensor]
"""Named parts of an observation, each ``[B, ...]`` (or ``[T, N, ...]`` in a rollout)."""

State = tuple[Tensor, ...]
"""Hidden and cell state ``[N, H]`` of the policy, then of the value; empty for a network without memory."""

RETURN_HORIZON = 10_000
"""Steps after which returns of an older policy are forgotten."""

_LEAST_SPREAD = 0.1
"""Returns that hardly differ are measured in this share of their mean: a scale near 0 would freeze the weights."""


@dataclass(frozen=True, slots=True)
class PolicyOutput:
    """One table of logits ``[B, *context, n]`` per head (see ``Heads``) and V(s) ``[B]`` in the reward's unit."""

    logits: tuple[Tensor, ...]
    value: Tensor


class Memory(nn.Module):
    """One LSTM layer whose state is zeroed *before* a step that starts an episode.

    Hochreiter and Schmidhuber, "Long short-term memory" (1997), in torch's form (forget gate, no peepholes).
    """

    def __init__(self, features: int, cells: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, cells)
        for parameter in self.lstm.parameters():
            if parameter.ndim == 2:
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)

    def initial_state(self, rows: int) -> State:
        """Hidden and cell state before the first step: zeros, ``[rows, H]`` each."""
        zeros = next(self.lstm.parameters()).new_zeros(rows, self.lstm.hidden_size)
        return zeros, zeros.clone()

    def step(self, x: Tensor, state: State, starts: Tensor) -> State:
        """Hidden and cell state ``[N, H]`` after ``x`` ``[N, F]``; the hidden state is the output. ``starts``: ``[N]``
        bool."""
        before = tuple(torch.where(starts[:, None], 0.0, part) for part in state)
        after: State = torch.lstm_cell(x, before, *self.lstm.parameters())
        return after

    def unroll(self, x: Tensor, state: State, starts: Tensor) -> Tensor:
        """Outputs ``[T, N, H]`` of a whole rollout ``x`` ``[T, N, F]`` that begins from ``state``.

        Each environment's row is cut where episodes start and the pieces run side by side as one packed sequence,
        so that nothing is padded:

            env 0   a a a b b        position 0: a c b d
            env 1   c c d d d   ->   position 1: a c b d
                                     position 2: a d
        """
        steps, rows = starts.shape
        begins = starts.clone()
        begins[0] = True
        flat = begins.T.reshape(-1)
        first = flat.nonzero().squeeze(1)
        piece = flat.cumsum(0) - 1
        position = torch.arange(len(flat), device=flat.device) - first[piece]
        order = piece.bincount().argsort(descending=True, stable=True)
        rank = order.argsort()
        packing = (position * len(first) + rank[piece]).argsort()

        carried = (first % steps == 0) & ~starts.T.reshape(-1)[first]
        source = first // steps
        before = tuple(torch.where(carried[:, None], part[source], 0.0)[order][None] for part in state)
        packed = PackedSequence(x.transpose(0, 1).reshape(steps * rows, -1)[packing], position.bincount().cpu())
        outputs: Tensor = self.lstm(packed, before)[0].data
        return outputs[packing.argsort()].view(rows, steps, -1).transpose(0, 1)


class ValueHead(nn.Module):
    """V(s) from a linear unit on the scale of past returns.

    When the scale moves the weights are corrected so that every value stays what it was: van Hasselt et al.,
    "Learning values across many orders of magnitude" (2016), PopArt.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.returns = RunningMoments(1, RETURN_HORIZON)

    @property
    def scale(self) -> Tensor:
        """About the standard deviation of returns, float64; 1 while none was observed. Errors are measured in it."""
        if self.returns.count == 0:
            return torch.ones((), dtype=torch.float64)
        return (self.returns.variance + (_LEAST_SPREAD * self.returns.mean).square() + 1e-8).sqrt()[0]

    def forward(self, x: Tensor) -> Tensor:
        """``[..., F]`` to ``[...]``, in the reward's unit."""
        unscaled: Tensor = self.linear(x).squeeze(-1)
        if self.returns.count == 0:
            return unscaled
        return unscaled * self.scale.to(x.dtype) + self.returns.mean[0].to(x.dtype)

    @torch.no_grad()
    def observe(self, returns: Tensor) -> None:
        """Move the scale to take in ``[M]`` returns, without moving any value."""
        old_mean, old_scale = self.returns.mean.clone(), self.scale
        self.returns.observe(returns[:, None])
        self.linear.weight.mul_(old_scale / self.scale)
        self.linear.bias.copy_((self.linear.bias * old_scale + old_mean - self.returns.mean) / self.scale)


class PolicyNetwork(nn.Module, ABC):
    """Encoder, then a memory and heads for the policy and a memory of its own for the value.

    The value learns other things at another pace: with one memory for both, CartPole without velocities was not learnt.
    Subclasses say how to encode an observation and how to score choices. Observations arrive raw; ``normalisers`` (name
    of the part -> statistics) are frozen until :meth:`observe`.
    """

    def __init__(self, features: int, cells: int) -> None:
        super().__init__()
        self.core_width = cells or features
        self.memory = Memory(features, cells) if cells else None
        self.value_memory = Memory(features, cells) if cells else None
        self.value_hidden = linear(self.core_width, self.core_width)
        self.value_head = ValueHead(self.core_width)
        self.normalisers = nn.ModuleDict()

    @abstractmethod
    def encode(self, observation: Observation) -> tuple[Tensor, ...]:
        """Features ``[B, F]`` that go into the memories, then whatever else :meth:`score` needs."""

    @abstractmethod
    def score(self, core: Tensor, encoded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Logits ``[B, *context, n]`` of every head from the policy memory's output ``[B, core_width]``."""

    def initial_state(self, rows: int) -> State:
        """State of ``rows`` environments before their first step: zeros, ``[rows, H]`` each; ``()`` without memory."""
        if self.memory is None or self.value_memory is None:
            return ()
        return *self.memory.initial_state(rows), *self.value_memory.initial_state(rows)

    def step(self, observation: Observation, state: State, starts: Tensor) -> tuple[PolicyOutput, State]:
        """Output for N environments (B = N) and the state after it. ``starts`` ``[N]`` bool: first steps of
        episodes."""
        encoded = self.encode(observation)
        core = value_core = encoded[0]
        if self.memory is not None and self.value_memory is not None:
            ours = self.memory.step(core, state[:2], starts)
            theirs = self.value_memory.step(core, state[2:], starts)
            core, value_core, state = ours[0], theirs[0], (*ours, *theirs)
        return PolicyOutput(self.score(core, encoded), self._value(value_core)), state

    def values(self, observation: Observation, state: State) -> Tensor:
        """V ``[N]``, in the reward's unit, of observations that continue from ``state``, which does not advance."""
        core = self.encode(observation)[0]
        if self.value_memory is not None:
            continuing = torch.zeros(len(core), dtype=torch.bool, device=core.device)
            core = self.value_memory.step(core, state[2:], continuing)[0]
        return self._value(core)

    def unroll(self, observation: Observation, state: State, starts: Tensor) -> PolicyOutput:
        """Output for a whole rollout ``[T, N, ...]`` from the ``state`` before its first step, B = T * N rows in time-
        major order. ``starts``: ``[T, N]`` bool."""
        encoded = self.encode({name: part.flatten(0, 1) for name, part in observation.items()})
        core = value_core = encoded[0]
        if self.memory is not None and self.value_memory is not None:
            features = core.view(*starts.shape, -1)
            core = self.memory.unroll(features, state[:2], starts).flatten(0, 1)
            value_core = self.value_memory.unroll(features, state[2:], starts).flatten(0, 1)
        return PolicyOutput(self.score(core, encoded), self._value(value_core))

    def observe(self, observation: Observation, valid: Tensor) -> None:
        """Move the normalisers by the steps of a rollout ``[T, N, ...]`` where ``valid`` (``[T, N]`` bool) holds."""
        for name, norm in self.normalisers.items():
            assert isinstance(norm, RunningNorm)
            norm.observe(observation[name][valid])

    def _value(self, core: Tensor) -> Tensor:
        value: Tensor = self.value_head(self.value_hidden(core).tanh())
        return value


def linear(inputs: int, outputs: int, gain: float = 2.0**0.5) -> nn.Linear:
    """A layer with orthogonal weights of that ``gain`` and zero bias; 0.01 starts a policy close to uniform.

    Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks"
    (2014); the gains as in Andrychowicz et al., "What matters for on-policy deep actor-critic methods?" (2021).
    """
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def acting_macs(network: PolicyNetwork, observation: Observation) -> int:
    """Multiply-accumulates of deciding once in one of the rows of ``observation``."""
    rows = len(next(iter(observation.values())))
    state, starts = network.initial_state(rows), torch.ones(rows, dtype=torch.bool)
    return ledger.count(lambda: network.step(observation, state, starts), rows, model=network).forward
