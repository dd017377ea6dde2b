"""Random growth, the control arm for every policy that claims to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from esper.leyline import (
    ALPHA_TARGETS,
    BLENDS,
    TEMPOS,
    WAIT,
    Decision,
    EnvSpec,
    EnvView,
    FactoredAction,
    Op,
    UsageError,
)
from esper.tamiyo.policies.base import EnvPolicy
from esper.tamiyo.policies.evidence import bring_through, just_failed
from esper.tolaria.legality import legal_alpha_targets, legal_blueprints, legal_slots


class RandomPolicy(EnvPolicy):
    """Acts in a share ``rate`` of the epochs, uniformly at random: first the op among those that are legal, then each
    head among its legal choices. Each env has a generator of its own, seeded by ``seed`` and the env's spec, so that
    its decisions do not depend on which envs run beside it.

    With ``nurture`` only growth is random (which blueprint, where and when); what it grew is brought through its gates
    on evidence. That is the fairer control of a policy that claims to choose well.
    """

    name = "random"

    def __init__(self, rate: float = 0.3, seed: int = 0, nurture: bool = False) -> None:
        if not 0.0 <= rate <= 1.0:
            raise UsageError(f"policy random: rate is {rate}; it must be in [0, 1]")
        self.rate, self.seed, self.nurture = rate, seed, nurture
        self._generators: list[np.random.Generator] = []

    def reset(self, specs: Sequence[EnvSpec]) -> None:
        """Seed a generator for each env."""
        self._generators = [
            np.random.default_rng((self.seed % 2**64, spec.seed % 2**64, spec.episode, spec.env_id)) for spec in specs
        ]

    def decide_env(self, env: int, view: EnvView) -> Decision:
        """A legal action at random, or WAIT."""
        if self.nurture:
            for slot in view.slots:
                decision = bring_through(view, slot)
                if decision is not None and not just_failed(view, decision.action):
                    return decision
        generator = self._generators[env]
        if generator.random() >= self.rate:
            return Decision(WAIT, f"random: acts in {self.rate:.0%} of the epochs, not in this one")
        ops = (Op.GERMINATE,) if self.nurture else tuple(Op)
        choices = {op: slots for op in ops if (slots := legal_slots(view, op))}
        if not choices:
            return Decision(WAIT, "random: nothing but waiting is legal")
        op = _pick(generator, list(choices))
        action = _fill(generator, view, op, _pick(generator, choices[op]))
        return Decision(action, f"random: one of {len(choices)} legal ops, then of its choices")

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


def _fill(generator: np.random.Generator, view: EnvView, op: Op, slot: str) -> FactoredAction:
    """Draw the heads that ``op`` consumes besides the slot."""
    heads: dict[str, Any] = {}
    if op is Op.GERMINATE:
        heads["blueprint"] = _pick(generator, legal_blueprints(view, slot))
    if op in (Op.GERMINATE, Op.SET_ALPHA):
        heads["alpha_target"] = _pick(generator, legal_alpha_targets(view, slot) or ALPHA_TARGETS)
        heads["blend"] = _pick(generator, BLENDS)
        heads["tempo"] = _pick(generator, TEMPOS)
    return FactoredAction(op, slot, **heads)


def _pick(generator: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(generator.integers(len(choices)))]


class NurturedPolicy(RandomPolicy):
    """Random growth, brought through its gates on evidence."""

    name = "nurtured"

    def __init__(self, rate: float = 0.3, seed: int = 0) -> None:
        super().__init__(rate, seed, nurture=True)
