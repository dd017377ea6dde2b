"""What rules leave to a policy that has learnt where to grow: what germinates, in which slot, and when.

A seed's fate is a matter of evidence. The heuristic's rules ask for its gates, and take out what fails or does harm;
the policy chooses among what they offer. This is what the table of ``esper growtable`` holds, so that a policy which
has learnt there plays by the same rules elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from esper.leyline import WAIT, ActionSpace, Decision, EnvView, FactoredAction, Op
from esper.tamiyo.masks import Availability, availability
from esper.tamiyo.policies.heuristic import HeuristicConfig, HeuristicPolicy
from esper.tamiyo.policies.promise import audition_in_time


@dataclass(frozen=True, slots=True)
class Offer:
    """What a policy may choose from, as masks: to let a seed germinate, or what rules do otherwise."""

    available: Availability
    otherwise: Decision


class Nurture:
    """Offers growth to a policy, and does the rest itself. It remembers nothing."""

    def __init__(self, config: HeuristicConfig | None = None, *, auditions: bool = False) -> None:
        """With ``auditions`` what each place promises is measured first: no growth is offered before it was heard."""
        self.rules = HeuristicPolicy(config)
        self.auditions = auditions

    def offer(self, view: EnvView, space: ActionSpace) -> Offer:
        """Harm and blending go before growth, and leave no choice; keeping and clearing away wait for it.

        Raises ``UsageError`` for a run that is too short for the audition and a seed after it.
        """
        masks = availability(view, space)
        urgent = self.rules.before_growth(view)
        # what a rollback has taken back, or what no finite gradient has shown, is listened for again
        unheard = self.auditions and not any(slot.promise for slot in view.slots)
        if unheard and urgent is None and masks.op[Op.GERMINATE]:
            urgent = audition_in_time(view, self.rules)
        otherwise = urgent or self.rules.after_growth(view) or Decision(WAIT, "no seed is ready for its gate")
        growth = masks.op[Op.GERMINATE] and urgent is None and not unheard
        growth = growth and self.rules.has_time(view) and not _refused(view)
        return Offer(_narrowed(masks, space, otherwise.action, bool(growth), self.rules.config), otherwise)


def _refused(view: EnvView) -> bool:
    """Whether a germination failed last epoch; the next one waits, so that seeds get their turn."""
    outcome = view.last_outcome
    return outcome is not None and not outcome.success and outcome.action.op is Op.GERMINATE


def _narrowed(
    masks: Availability, space: ActionSpace, otherwise: FactoredAction, growth: bool, config: HeuristicConfig
) -> Availability:
    """``masks`` without all that is neither ``otherwise`` nor a germination in the rules' own manner of blending."""
    op, slot = np.zeros_like(masks.op), np.zeros_like(masks.slot)
    op[otherwise.op] = True
    if otherwise.slot is not None:
        slot[otherwise.op, space.slots.index(otherwise.slot)] = True
    if growth:
        op[Op.GERMINATE], slot[Op.GERMINATE] = True, masks.slot[Op.GERMINATE]
    return replace(
        masks,
        op=op,
        slot=slot,
        blend=np.array([blend is config.blend for blend in space.blends]),
        alpha_target=masks.alpha_target & np.array([target == 1.0 for target in space.alpha_targets]),
        tempo=np.array([tempo == config.tempo for tempo in space.tempos]),
    )
