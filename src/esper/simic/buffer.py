"""A finished rollout: what was seen, done and paid in T steps of N environments, ready to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esper.leyline import DataError
from esper.tamiyo.heads import Heads
from esper.tamiyo.recurrent import State


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of N environments, every field ``[N, ...]`` and named as in :class:`Rollout`."""

    observation: dict[str, Tensor]
    masks: tuple[Tensor, ...]
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    rewards: Tensor
    discounts: Tensor
    starts: Tensor
    cuts: Tensor
    valid: Tensor


_COLUMNS = ("actions", "log_probs", "values", "rewards", "discounts", "starts", "cuts", "valid")


def stack_steps(steps: Sequence[Transition]) -> dict[str, Tensor]:
    """Steps in order as named tensors ``[T, N, ...]``, bit for bit; see :func:`unstack_steps`."""
    stacked = {name: torch.stack([getattr(step, name) for step in steps]) for name in _COLUMNS}
    for name in steps[0].observation:
        stacked[f"observation.{name}"] = torch.stack([step.observation[name] for step in steps])
    for k in range(len(steps[0].masks)):
        stacked[f"mask.{k}"] = torch.stack([step.masks[k] for step in steps])
    return stacked


def unstack_steps(stacked: Mapping[str, Tensor]) -> list[Transition]:
    """The steps that :func:`stack_steps` was given, as copies, bit for bit."""
    seen = {name.removeprefix("observation."): part for name, part in stacked.items() if name.startswith("obs")}
    masks = [stacked[f"mask.{k}"] for k in range(sum(name.startswith("mask.") for name in stacked))]
    return [
        Transition(
            observation={name: part[t].clone() for name, part in seen.items()},
            masks=tuple(mask[t].clone() for mask in masks),
            **{name: stacked[name][t].clone() for name in _COLUMNS},
        )
        for t in range(len(stacked["valid"]))
    ]


@dataclass(frozen=True, slots=True)
class Rollout:
    """Time-major tensors ``[T, N, ...]``. Rewards and values are in the environment's unit, raw."""

    heads: Heads
    observation: dict[str, Tensor]
    """What the policy saw *before* each step."""
    masks: tuple[Tensor, ...]
    """Availability at each step, one table per head; learning applies the very same."""
    actions: Tensor
    """``[T, N, heads]``, 0 where a head was not consumed."""
    log_probs: Tensor
    """Joint log-probability under the policy that acted, nats."""
    values: Tensor
    """V of what was seen."""
    next_values: Tensor
    """V of what the step led to, within the same episode."""
    rewards: Tensor
    discounts: Tensor
    """gamma, and 0 where the step ended in a terminal state."""
    starts: Tensor
    """bool: the episode began with this observation, so memory is zeroed before it."""
    cuts: Tensor
    """bool: the next step does not continue this one."""
    valid: Tensor
    """bool: False where the step was no transition (a reset, padding); it then counts nowhere."""
    state: State
    """Memory of each environment before the first step, ``[N, H]`` each."""

    def __post_init__(self) -> None:
        after_invalid = ~self.valid[:-1] & self.valid[1:] & ~self.starts[1:]
        if after_invalid.any():
            step, environment = after_invalid.nonzero()[0].tolist()
            raise DataError(
                f"environment {environment}: step {step + 1} continues an episode after a step that was no transition; "
                "it must start one"
            )

    @classmethod
    def stack(cls, heads: Heads, steps: Sequence[Transition], next_values: Tensor, state: State) -> Rollout:
        """From T steps in order, ``next_values`` ``[T, N]`` and the ``state`` before the first, ``[N, H]`` each.

        What was seen, valued and paid in invalid steps is set to 0. Raises ``DataError`` where an episode goes on after
        one.
        """
        valid = torch.stack([step.valid for step in steps])
        observation = {
            name: _zero_unless(valid, torch.stack([step.observation[name] for step in steps]))
            for name in steps[0].observation
        }
        columns = {
            name: torch.stack([getattr(step, name) for step in steps])
            for name in ("actions", "log_probs", "discounts", "starts", "cuts")
        }
        numbers = {
            name: _zero_unless(valid, torch.stack([getattr(step, name) for step in steps]))
            for name in ("values", "rewards")
        }
        return cls(
            heads=heads,
            observation=observation,
            masks=tuple(torch.stack(tables) for tables in zip(*(step.masks for step in steps), strict=True)),
            valid=valid,
            next_values=_zero_unless(valid, next_values),
            state=state,
            **columns,
            **numbers,
        )

    @property
    def environments(self) -> int:
        """N, the number of environments."""
        return self.valid.shape[1]

    def select(self, rows: Tensor) -> Rollout:
        """All T steps of the environments ``rows`` (``[K]`` int64), in that order: ``[T, K, ...]``."""
        tensors = ("actions", "log_probs", "values", "next_values", "rewards", "discounts", "starts", "cuts", "valid")
        return replace(
            self,
            observation={name: part[:, rows] for name, part in self.observation.items()},
            masks=tuple(mask[:, rows] for mask in self.masks),
            state=tuple(part[rows] for part in self.state),
            **{name: getattr(self, name)[:, rows] for name in tensors},
        )


def _zero_unless(valid: Tensor, x: Tensor) -> Tensor:
    return torch.where(valid.view(*valid.shape, *(1,) * (x.ndim - 2)), x, torch.zeros((), dtype=x.dtype))
