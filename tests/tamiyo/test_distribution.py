"""Conditional heads: what is consumed counts, what is illegal cannot be said."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import ActionSpace, DataError, Op
from esper.tamiyo.distribution import FactoredDistribution
from esper.tamiyo.heads import growth_heads

SPACE = ActionSpace(("a", "b"), ("norm", "conv3"))
HEADS = growth_heads(SPACE)


def _tables(seed: int, rows: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits and masks whose tables have their full shape; WAIT is always legal, dead ends are closed off."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [HEADS.table_shape(k) for k in range(len(HEADS))]
    logits = [2 * torch.randn(rows, *shape, generator=draw) for shape in shapes]
    masks = [torch.rand(rows, *shape, generator=draw) < 0.6 for shape in shapes]
    for mask in masks[2:]:
        mask[..., 0] = True
    masks[0] &= masks[1].any(-1)
    masks[0][:, Op.WAIT] = True
    return logits, masks


def _every_action() -> torch.Tensor:
    """Every distinct action, unconsumed heads 0."""
    everything = itertools.product(*(range(size) for size in HEADS.sizes))
    consumed = HEADS.consumed
    kept = [a for a in everything if all(consumed[a[0]][k] or a[k] == 0 for k in range(len(a)))]
    return torch.tensor(kept)


@given(st.integers(0, 2**31))
def test_probabilities_of_all_actions_sum_to_one_and_entropy_is_their_surprise(seed: int) -> None:
    logits, masks = _tables(seed, rows=1)
    actions = _every_action()
    many = [table.expand(len(actions), *table.shape[1:]) for table in logits]
    legal = [table.expand(len(actions), *table.shape[1:]) for table in masks]
    evaluated = FactoredDistribution(HEADS, many, legal).evaluate(actions)
    p = evaluated.log_prob.double().exp()
    # each of the six heads' logarithms is rounded to single precision
    torch.testing.assert_close(p.sum(), torch.ones((), dtype=torch.float64), atol=1e-5, rtol=0)
    # chain rule: the joint entropy is the mean over actions of the entropies met on the way
    joint = -(p * evaluated.log_prob.clamp(min=-1e4).double()).sum()
    torch.testing.assert_close((p * evaluated.entropy.sum(-1)).sum(), joint, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 2**31))
def test_samples_are_legal_and_evaluate_to_their_own_log_prob(seed: int) -> None:
    logits, masks = _tables(seed, rows=200)
    HEADS.check_masks(masks)
    distribution = FactoredDistribution(HEADS, logits, masks)
    uniforms = torch.rand(200, len(HEADS), generator=torch.Generator().manual_seed(seed))
    for actions, log_prob in (distribution.sample(uniforms), distribution.mode()):
        evaluated = distribution.evaluate(actions)
        torch.testing.assert_close(log_prob, evaluated.log_prob, atol=1e-5, rtol=0)
        assert (log_prob > -100).all(), "an illegal choice has a log-probability near -1e8"
        assert (evaluated.consumed | (actions == 0)).all()
        assert (evaluated.entropy[~evaluated.consumed] == 0).all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_draw_stay_legal(uniform: float) -> None:
    logits, masks = _tables(1, rows=500)
    logits = [20 * table for table in logits]
    _, log_prob = FactoredDistribution(HEADS, logits, masks).sample(torch.full((500, len(HEADS)), uniform))
    assert log_prob.isfinite().all() and (log_prob > -1e6).all()


def test_heads_that_the_op_ignores_get_no_gradient() -> None:
    logits, masks = _tables(2, rows=1)
    logits = [table.requires_grad_() for table in logits]
    distribution = FactoredDistribution(HEADS, logits, masks)
    distribution.evaluate(torch.zeros(1, len(HEADS), dtype=torch.long)).log_prob.sum().backward()
    assert logits[0].grad is not None and logits[0].grad.abs().sum() > 0
    assert all(table.grad is None or (table.grad == 0).all() for table in logits[1:])


def test_rows_draw_from_their_own_numbers_only() -> None:
    logits, masks = _tables(3, rows=8)
    uniforms = torch.rand(8, len(HEADS), generator=torch.Generator().manual_seed(0))
    together, _ = FactoredDistribution(HEADS, logits, masks).sample(uniforms)
    backwards, _ = FactoredDistribution(HEADS, [t.flip(0) for t in logits], [m.flip(0) for m in masks]).sample(
        uniforms.flip(0)
    )
    assert torch.equal(together, backwards.flip(0))


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits, masks = _tables(4, rows=4)
    actions, _ = FactoredDistribution(HEADS, logits, masks).mode()
    evaluated = FactoredDistribution(HEADS, [table.bfloat16() for table in logits], masks).evaluate(actions)
    assert evaluated.log_prob.dtype == torch.float32


def test_broken_logits_name_environment_and_head() -> None:
    logits, masks = _tables(5, rows=4)
    logits[1][2, 0, 0] = float("nan")
    with pytest.raises(DataError, match="environment 2: the policy's logits of head 'slot' are not finite"):
        FactoredDistribution(HEADS, logits, masks).sample(torch.zeros(4, len(HEADS)))
