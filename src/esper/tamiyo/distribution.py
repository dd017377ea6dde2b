"""Masked factored distribution over the heads of an action.

p(a) = p(a_0) * product of p(a_k | earlier heads) over the heads that a_0 consumes. Masks are part of the distribution,
so that sampling, log-probability and entropy cannot disagree about them (Huang and Ontanon, "A closer look at invalid
action masking in policy gradient algorithms", 2022). Everything is computed in float32: rounding logits to bfloat16
alone moves probability ratios by two per cent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.leyline import DataError
from esper.tamiyo.heads import Heads

_EXCLUDED = -1e8
"""Logit of an illegal choice. Finite, so that no gradient becomes NaN; its probability underflows to exactly 0."""


@dataclass(frozen=True, slots=True)
class ActionEvaluation:
    """Given actions under a distribution of B rows; zeros where a head was not consumed."""

    log_prob: Tensor
    """Joint log-probability over the consumed heads, ``[B]``, nats."""
    entropy: Tensor
    """Entropy of each consumed head given the choices before it, ``[B, heads]``, nats."""
    consumed: Tensor
    """Which heads the action's op consumes, ``[B, heads]`` bool."""
    choices: Tensor
    """Number of legal choices of each consumed head, ``[B, heads]``."""


class FactoredDistribution:
    """Distribution of B rows. ``logits`` (float) and ``masks`` (bool, True is legal) hold one table ``[B, *context,
    n]`` per head (see ``Heads``).

    Masks are trusted: :meth:`Heads.check_masks` belongs at the boundary where they enter.
    """

    def __init__(self, heads: Heads, logits: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        self.heads = heads
        self._logits = tuple(table.float() for table in logits)
        self._masks = tuple(masks)
        self._relevance = heads.relevance().to(self._logits[0].device)
        self._rows = torch.arange(len(self._logits[0]), device=self._logits[0].device)

    def sample(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Actions ``[B, heads]`` int64 by inverse CDF, and their joint log-probability ``[B]`` in nats.

        ``uniforms`` are float32 in [0, 1), ``[B, heads]``: randomness is the caller's, so that a row's action depends
        on its own stream only. Heads that are not consumed are 0. Raises ``DataError`` where logits are not finite.
        """
        for name, table in zip(self.heads.names, self._logits, strict=True):
            if not table.isfinite().all():
                row = int((~table.isfinite()).nonzero()[0, 0])
                raise DataError(f"environment {row}: the policy's logits of head {name!r} are not finite")

        def draw(head: int, log_probs: Tensor) -> Tensor:
            # in double the scaled draw stays below the total, and a choice of probability 0 is never reached
            cumulative = log_probs.double().exp().cumsum(-1)
            target = uniforms[:, head, None].double() * cumulative[:, -1:]
            return (cumulative <= target).sum(-1)

        return self._choose(draw)

    def mode(self) -> tuple[Tensor, Tensor]:
        """The likeliest choice of each head, given those before it: actions ``[B, heads]`` int64, joint log-probability
        ``[B]``."""
        return self._choose(lambda head, log_probs: log_probs.argmax(-1))

    def evaluate(self, actions: Tensor) -> ActionEvaluation:
        """Log-probability and entropy of ``actions`` ``[B, heads]`` int64, differentiable in the logits.

        An illegal action is not refused: its log-probability is about -1e8.
        """
        consumed = self._relevance[actions[:, 0]]
        log_prob = torch.zeros(len(actions), device=actions.device)
        entropies, counts = [], []
        for head in range(len(self.heads)):
            log_probs, legal = self._row(head, actions)
            used = consumed[:, head]
            picked = log_probs.gather(-1, actions[:, head, None]).squeeze(-1)
            log_prob = log_prob + torch.where(used, picked, 0.0)
            surprise = torch.where(legal, log_probs.exp() * log_probs, 0.0).sum(-1)
            entropies.append(torch.where(used, -surprise, 0.0))
            counts.append(torch.where(used, legal.sum(-1), 0))
        return ActionEvaluation(log_prob, torch.stack(entropies, -1), consumed, torch.stack(counts, -1))

    def _choose(self, pick: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        actions = torch.zeros(len(self._rows), len(self.heads), dtype=torch.long, device=self._rows.device)
        log_prob = torch.zeros(len(self._rows), device=self._rows.device)
        for head in range(len(self.heads)):
            log_probs, _ = self._row(head, actions)
            choice = pick(head, log_probs)
            picked = log_probs.gather(-1, choice[:, None]).squeeze(-1)
            if head > 0:
                used = self._relevance[actions[:, 0], head]
                choice, picked = torch.where(used, choice, 0), torch.where(used, picked, 0.0)
            actions[:, head] = choice
            log_prob = log_prob + picked
        return actions, log_prob

    def _row(self, head: int, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``[B, n]`` and mask ``[B, n]`` of a head, given the choices before it."""
        legal = self._select(self._masks[head], actions)
        logits = self._select(self._logits[head], actions)
        return logits.masked_fill(~legal, _EXCLUDED).log_softmax(-1), legal

    def _select(self, table: Tensor, actions: Tensor) -> Tensor:
        context = table.shape[1:-1]
        if not context:
            return table
        return table[(self._rows, *(actions[:, j] if size > 1 else 0 for j, size in enumerate(context)))]
