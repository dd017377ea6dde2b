"""Rollouts keep garbage out and select whole environments."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from esper.leyline import DataError
from esper.simic.buffer import Rollout, Transition
from esper.tamiyo.heads import independent_heads

HEADS = independent_heads([2])


def _steps(valid: torch.Tensor, starts: torch.Tensor, poison: float = 0.0) -> list[Transition]:
    """Steps that count up, with ``poison`` wherever a step is not valid."""
    steps, rows = valid.shape
    numbers = torch.arange(1.0, steps * rows + 1).view(steps, rows).where(valid, poison)
    return [
        Transition(
            observation={"obs": numbers[t, :, None].clone(), "count": torch.ones(rows, dtype=torch.long)},
            masks=HEADS.all_legal(rows),
            actions=torch.zeros(rows, 1, dtype=torch.long),
            log_probs=torch.zeros(rows),
            values=numbers[t],
            rewards=numbers[t],
            discounts=torch.ones(rows),
            starts=starts[t],
            cuts=~valid[t],
            valid=valid[t],
        )
        for t in range(steps)
    ]


def _stack(steps: list[Transition]) -> Rollout:
    rows = len(steps[0].valid)
    return Rollout.stack(HEADS, steps, torch.ones(len(steps), rows), (torch.arange(float(rows))[:, None],))


def test_garbage_in_invalid_steps_is_zeroed() -> None:
    valid = torch.tensor([[True, True], [False, True], [True, True]])
    starts = torch.tensor([[True, True], [False, False], [True, False]])
    for poison in (float("nan"), float("inf")):
        rollout = _stack(_steps(valid, starts, poison))
        for part in (rollout.observation["obs"], rollout.rewards, rollout.values, rollout.next_values):
            assert part[1, 0] == 0 and part.isfinite().all()
        assert rollout.observation["count"].tolist() == [[1, 1], [0, 1], [1, 1]]


def test_a_row_cannot_go_on_after_an_invalid_step() -> None:
    valid = torch.tensor([[True, True], [True, False], [True, True]])
    starts = torch.zeros(3, 2, dtype=torch.bool)
    with pytest.raises(DataError, match="environment 1: step 2 continues an episode"):
        _stack(_steps(valid, starts))
    starts[2, 1] = True
    _stack(_steps(valid, starts))


def test_select_takes_whole_rows_with_their_memory() -> None:
    yes = torch.ones(3, 4, dtype=torch.bool)
    rollout = _stack(_steps(yes, yes))
    part = rollout.select(torch.tensor([3, 1]))
    assert part.environments == 2
    assert part.rewards.tolist() == rollout.rewards[:, [3, 1]].tolist()
    assert part.state[0].flatten().tolist() == [3.0, 1.0]
    assert replace(part, valid=part.valid).masks[0].shape == (3, 2, 2)
