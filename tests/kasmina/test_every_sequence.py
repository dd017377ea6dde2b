"""What one slot can be asked, legal or not, in every order up to six times: judged like the random lives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from test_lifecycle_property import EVIDENCE, Greedy, Life, Undead, Ungated

from esper.kasmina.slot import EventStamp, SeedSlot
from esper.kasmina.state import GrowthPlan, Incubation
from esper.leyline import Blend, Paired, SeedStage
from sequences import every_sequence

BAD = {"gradient_ratio": math.nan, "loss": math.nan, "removal_cost": Paired(-1.0, 0.1, 300), "isolation_violations": 1}
PLAN = GrowthPlan(Blend.LINEAR, 1, 1.0)


@dataclass(frozen=True)
class Moment:
    """A slot between two letters."""

    lifecycle: str
    tensors: dict[str, Any]
    measured: frozenset[str]
    epoch: int


def life_of(kind: type[SeedSlot], incubation: Incubation, generations: int) -> Life:
    """A life that begins."""
    life = Life.__new__(Life)
    life.kind = kind  # type: ignore[misc]
    life.begin(incubation=incubation, embargo=1, detach=1, generations=generations)
    return life


def life_at(moment: Moment, kind: type[SeedSlot], incubation: Incubation, generations: int) -> Life:
    """A life that stands there."""
    life = life_of(kind, incubation, generations)
    life.slot.load_lifecycle(json.loads(moment.lifecycle))
    life.kept = [each.state.seed_id for each in life.slot.kept]
    life.slot.load_state_dict(moment.tensors)
    life.measured, life.epoch = set(moment.measured), moment.epoch
    life.slot.stamp = EventStamp(epoch=moment.epoch)
    return life


def moment_of(life: Life) -> Moment:
    """Where it stands."""
    plain = json.dumps(life.slot.lifecycle(), allow_nan=False, sort_keys=True)
    tensors = {name: value.clone() for name, value in life.slot.state_dict().items()}
    return Moment(plain, tensors, frozenset(life.measured), life.epoch)


LETTERS: dict[str, Callable[[Life], Any]] = {
    "germinate": lambda life: life.germinate(blueprint="norm", plan=PLAN, budget=None),
    "germinate-too-large": lambda life: life.germinate(blueprint="mlp", plan=PLAN, budget=5),
    "advance": lambda life: life.advance(to=None),
    **{f"advance-to-{to.name}": partial(lambda life, to: life.advance(to=to), to=to) for to in SeedStage},
    "down": lambda life: life.retarget(alpha=0.5, tempo=1, blend=Blend.LINEAR),
    "off": lambda life: life.retarget(alpha=0.0, tempo=1, blend=Blend.LINEAR),
    "prune": lambda life: life.prune(),
    "good": lambda life: life.record(facts=EVIDENCE),
    "bad": lambda life: life.record(facts=BAD),
    "tick": lambda life: life.tick(),
    "mature": lambda life: life.gather_evidence_and_advance() if life.slot.live else None,
}


def enumerate_lives(
    depth: int, incubation: Incubation, kind: type[SeedSlot] = SeedSlot, generations: int = 1, first: Sequence[str] = ()
) -> tuple[int, int]:
    """Numbers of sequences and of states, after the letters ``first``; raises for what must not be."""

    def act(moment: Moment, letter: Callable[[Life], Any]) -> Moment:
        life = life_at(moment, kind, incubation, generations)
        letter(life)
        life.dead_stages_hold_no_seed()
        assert life.kept[: len(before)] == before, "what was kept is not forgotten"
        return moment_of(life)

    begin = life_of(kind, incubation, generations)
    for name in first:
        LETTERS[name](begin)
        begin.dead_stages_hold_no_seed()
    before = list(begin.kept)
    assert len(before) == ("tick" in first)
    letters = {name: partial(act, letter=letter) for name, letter in LETTERS.items()}
    return every_sequence(
        moment_of(begin), letters, depth, lambda moment: f"{moment.lifecycle}{moment.epoch}{sorted(moment.measured)}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("incubation", Incubation)
def test_every_sequence_of_six(incubation: Incubation) -> None:
    sequences, states = enumerate_lives(6, incubation)
    assert sequences == sum(len(LETTERS) ** length for length in range(1, 7)) and states > 1000
    print(f"{sequences:,} sequences through {states:,} states")


KEPT = ("germinate", "mature", "mature", "mature", "tick")
"""A seed is kept, and the slot opens again."""


@pytest.mark.slow
@pytest.mark.parametrize("incubation", Incubation)
def test_every_sequence_of_six_in_a_slot_that_opens_again(incubation: Incubation) -> None:
    sequences, states = enumerate_lives(6, incubation, generations=2, first=KEPT)
    assert sequences == sum(len(LETTERS) ** length for length in range(1, 7)) and states > 1000
    print(f"{sequences:,} sequences through {states:,} states")


def test_every_sequence_of_two_in_a_slot_that_has_opened_again() -> None:
    assert enumerate_lives(2, Incubation.PROBE, generations=2, first=KEPT)[0] == len(LETTERS) + len(LETTERS) ** 2


def test_every_sequence_of_three() -> None:
    sequences, _ = enumerate_lives(3, Incubation.PROBE)
    assert sequences == sum(len(LETTERS) ** length for length in range(1, 4))


@pytest.mark.parametrize("mutant", [Ungated, Undead])
def test_they_catch_a_slot_that_is(mutant: type[SeedSlot]) -> None:
    with pytest.raises(AssertionError):
        enumerate_lives(3, Incubation.PROBE, mutant)


def test_they_catch_a_slot_that_opens_for_what_grows() -> None:
    with pytest.raises(AssertionError):
        enumerate_lives(2, Incubation.PROBE, Greedy, generations=2, first=KEPT[:3])
