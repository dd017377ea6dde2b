"""C5: masked heads equal sb3-contrib's; known mistakes in masking do not."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from rl_oracles import sb3_masked
from torch import Tensor

from esper.tamiyo.distribution import FactoredDistribution
from esper.tamiyo.heads import independent_heads

SIZES = [4, 6, 5]


def _case(seed: int, rows: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, masks with at least one choice per head, and legal actions."""
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, sum(SIZES), generator=draw)
    masks = torch.rand(rows, sum(SIZES), generator=draw) < 0.5
    columns = []
    for part in masks.split(SIZES, dim=1):
        part[torch.arange(rows), torch.randint(part.shape[1], (rows,), generator=draw)] = True
        columns.append(torch.multinomial(part.float(), 1, generator=draw))
    return logits, masks, torch.cat(columns, dim=1)


def _ours(logits: Tensor, masks: Tensor) -> FactoredDistribution:
    return FactoredDistribution(independent_heads(SIZES), logits.split(SIZES, dim=1), masks.split(SIZES, dim=1))


@given(st.integers(0, 2**31))
def test_log_prob_entropy_and_gradients_equal_sb3_contrib(seed: int) -> None:
    logits, masks, actions = _case(seed)
    ours_in, theirs_in = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    ours = _ours(ours_in, masks).evaluate(actions)
    theirs = sb3_masked(theirs_in, masks, SIZES)
    # log-probabilities of several heads are summed in another order, in single precision
    torch.testing.assert_close(ours.log_prob, theirs.log_prob(actions), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.entropy.sum(-1), theirs.entropy(), atol=1e-5, rtol=0)
    (ours.log_prob.sum() + ours.entropy.sum()).backward()
    (theirs.log_prob(actions).sum() + theirs.entropy().sum()).backward()
    assert ours_in.grad is not None and theirs_in.grad is not None
    assert ours_in.grad.isfinite().all()
    assert (ours_in.grad[~masks] == 0).all()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, atol=1e-5, rtol=0)


@given(st.integers(0, 2**31))
def test_uniform_logits_have_as_many_effective_choices_as_legal_ones(seed: int) -> None:
    _, masks, actions = _case(seed)
    ours = _ours(torch.zeros(masks.shape), masks).evaluate(actions)
    legal = torch.stack([part.sum(1) for part in masks.split(SIZES, dim=1)], dim=1)
    torch.testing.assert_close(ours.entropy.exp(), legal.float(), atol=1e-4, rtol=1e-5)
    assert (ours.choices == legal).all()


def test_samples_follow_the_probabilities() -> None:
    logits, masks, _ = _case(5, rows=1)
    many = 20_000
    ours = _ours(logits.expand(many, -1), masks.expand(many, -1))
    actions, log_prob = ours.sample(torch.rand(many, len(SIZES), generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(log_prob, ours.evaluate(actions).log_prob)
    theirs = sb3_masked(logits, masks, SIZES)
    for head, distribution in enumerate(theirs.distributions):
        shares = actions[:, head].bincount(minlength=SIZES[head]) / many
        np.testing.assert_allclose(shares, distribution.probs[0], atol=4 * math.sqrt(0.25 / many))


def test_the_known_mistakes_are_caught() -> None:
    logits, masks, actions = _case(0)
    right = sb3_masked(logits, masks, SIZES)
    forgotten = _ours(logits, torch.ones_like(masks)).evaluate(actions)
    assert (forgotten.log_prob - right.log_prob(actions)).abs().max() > 0.5
    multiplied = _ours(logits * masks, torch.ones_like(masks)).evaluate(actions)
    assert (multiplied.log_prob - right.log_prob(actions)).abs().max() > 0.5
    ours = _ours(logits, masks).evaluate(actions)
    normalised = ours.entropy / ours.choices.clamp(min=2).log()
    assert (normalised.sum(-1) - right.entropy()).abs().max() > 0.5
    # minus infinity gives probabilities of 0 and an entropy without a gradient
    infinite = logits.masked_fill(~masks, -math.inf).requires_grad_()
    p = infinite[:, :4].softmax(-1)
    (p * infinite[:, :4].log_softmax(-1)).sum().backward()
    assert infinite.grad is not None and infinite.grad.isnan().any()
