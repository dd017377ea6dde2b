"""Random growth, the control arm for every policy that claims to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from esper.leyline import (
    BLENDS,
    RELEVANT_HEADS,
    TEMPOS,
    WAIT,
    ActionSpace,
    Decision,
    FactoredAction,
    Op,
    RowSpec,
    RowView,
    UsageError,
)
from esper.tamiyo.policies.base import RowPolicy
from esper.tolaria.legality import legal_alpha_targets, legal_blueprints, legal_slots


class RandomPolicy(RowPolicy):
    """Acts in a share ``rate`` of the epochs, uniformly at random: first the op among those that are legal, then each
    head among its legal choices. Each row has a generator of its own, seeded by ``seed`` and the row's spec, so that
    its decisions do not depend on which rows run beside it.
    """

    name = "random"

    def __init__(self, rate: float = 0.3, seed: int = 0) -> None:
        if not 0.0 <= rate <= 1.0:
            raise UsageError(f"policy random: rate is {rate}; it must be in [0, 1]")
        self.rate, self.seed = rate, seed
        self._generators: list[np.random.Generator] = []

    def reset(self, specs: Sequence[RowSpec]) -> None:
        """Seed a generator for each row."""
        self._generators = [np.random.default_rng((self.seed, spec.seed, spec.episode, spec.env_id)) for spec in specs]

    def decide_row(self, row: int, view: RowView) -> Decision:
        """A legal action at random, or WAIT."""
        generator = self._generators[row]
        if generator.random() >= self.rate:
            return Decision(WAIT, f"random: acts in {self.rate:.0%} of the epochs, not in this one")
        space = {op: slots for op in Op if (slots := legal_slots(view, op))}
        if not space:
            return Decision(WAIT, "random: nothing but waiting is legal")
        op = _pick(generator, list(space))
        slot = _pick(generator, space[op])
        heads: dict[str, Any] = {"slot": slot}
        if op is Op.GERMINATE:
            heads["blueprint"] = _pick(generator, legal_blueprints(view, slot))
        if "alpha_target" in RELEVANT_HEADS[op]:
            targets = legal_alpha_targets(view, slot) or ActionSpace((), ()).alpha_targets
            heads |= {
                "alpha_target": _pick(generator, targets),
                "blend": _pick(generator, BLENDS),
                "tempo": _pick(generator, TEMPOS),
            }
        return Decision(FactoredAction(op, **heads), f"random: one of {len(space)} legal ops, then of its choices")

    def state(self) -> dict[str, Any]:
        """The generators."""
        return {"generators": [generator.bit_generator.state for generator in self._generators]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`."""
        self._generators = []
        for saved in state["generators"]:
            generator = np.random.default_rng(0)
            generator.bit_generator.state = saved
            self._generators.append(generator)


def _pick(generator: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(generator.integers(len(choices)))]
