"""What heads accept, and how an unusable mask is named."""

from __future__ import annotations

import pytest
import torch

from esper.leyline import HEADS, ActionSpace, DataError, Op, UsageError
from esper.tamiyo.heads import Heads, growth_heads, independent_heads

SPACE = ActionSpace(("early", "late"), ("norm", "conv3", "lora"))


def _masks(rows: int = 2) -> list[torch.Tensor]:
    return list(growth_heads(SPACE).all_legal(rows))


def test_growth_heads_are_the_contract() -> None:
    heads = growth_heads(SPACE)
    assert heads.names == HEADS
    assert heads.sizes == (6, 2, 3, 3, 3, 4)
    assert heads.consumed[Op.WAIT] == (True, False, False, False, False, False)
    assert all(heads.consumed[Op.GERMINATE])
    assert heads.table_shape(2) == (6, 2, 3)


def test_masks_that_leave_a_choice_everywhere_pass() -> None:
    growth_heads(SPACE).check_masks(_masks())


def test_no_op_at_all_names_environment_and_head() -> None:
    masks = _masks()
    masks[0][1] = False
    with pytest.raises(DataError, match="environment 1: head 'op' has no legal choice$"):
        growth_heads(SPACE).check_masks(masks)


def test_a_legal_op_without_a_slot_is_a_dead_end() -> None:
    masks = _masks()
    masks[1] = torch.ones(2, 6, 2, dtype=torch.bool)
    masks[1][1, Op.PRUNE] = False
    with pytest.raises(DataError, match="environment 1: head 'slot' has no legal choice after op=PRUNE"):
        growth_heads(SPACE).check_masks(masks)
    masks[0][1, Op.PRUNE] = False
    growth_heads(SPACE).check_masks(masks)


def test_a_legal_slot_without_a_blueprint_is_a_dead_end() -> None:
    masks = _masks()
    masks[2] = torch.ones(2, 1, 2, 3, dtype=torch.bool)
    masks[2][0, 0, 1] = False
    with pytest.raises(
        DataError, match="environment 0: head 'blueprint' has no legal choice after op=GERMINATE, slot=1"
    ):
        growth_heads(SPACE).check_masks(masks)
    masks[1] = torch.ones(2, 6, 2, dtype=torch.bool)
    masks[1][0, Op.GERMINATE, 1] = False
    growth_heads(SPACE).check_masks(masks)


def test_a_head_that_no_legal_op_consumes_may_be_empty() -> None:
    masks = _masks()
    masks[0][:, 1:] = False
    for mask in masks[1:]:
        mask[:] = False
    growth_heads(SPACE).check_masks(masks)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 5, dtype=torch.bool), r"\(2, 5\); bool \[rows, 6\] is needed"),
        (torch.ones(2, 6), r"torch.float32 \(2, 6\)"),
        (torch.ones(2, 1, 6, dtype=torch.bool), r"\(2, 1, 6\)"),
    ],
)
def test_a_mask_of_the_wrong_kind_is_refused(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        growth_heads(SPACE).check_masks([mask, *_masks()[1:]])
    with pytest.raises(DataError, match="1 masks for 6 heads"):
        growth_heads(SPACE).check_masks([mask])


def test_impossible_heads_are_refused() -> None:
    with pytest.raises(UsageError, match="at least one choice"):
        independent_heads([2, 0])
    with pytest.raises(UsageError, match="only on earlier heads"):
        Heads(("a", "b"), (2, 2), (0, 2), ((True, True),) * 2)
    with pytest.raises(UsageError, match="one size and one context"):
        Heads((), (), (), ())
