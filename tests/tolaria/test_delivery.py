"""What the last look at validation is of, and what it decides."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from env_views import live_slot, measured, row_view
from esper.leyline import Metric, Promise, SeedStage
from esper.tolaria.delivery import ALONE, Scored, better, left_out, looks, unproven

METRIC = Metric("accuracy", "%", chance=10.0)


def named(count: int) -> list[str]:
    return [f"s{number}" for number in range(count)]


def test_few_are_looked_at_one_by_one_and_many_in_ever_larger_parts() -> None:
    assert looks([]) == [{}]
    assert looks(["a", "b"]) == [{}, {"a": 0.0}, {"b": 0.0}]
    many = named(27)
    assert [list(each) for each in looks(many)] == [many[:count] for count in (0, 4, 7, 14, 27)]
    assert [len(each) for each in looks(named(5))] == [0, 1, 2, 3, 5]


@given(st.integers(ALONE + 1, 70), st.data())
def test_of_many_as_many_of_the_weakest_go_as_it_is_best_without(count: int, data: st.DataObject) -> None:
    slots = named(count)
    asked = looks(slots)
    figure = st.sampled_from([40.0, 50.0, 60.0, math.nan])
    scored: list[Scored] = [(data.draw(figure), 1.0) for _ in asked]
    out = left_out(slots, scored, METRIC)
    chosen = scored[asked.index(out)]
    assert not any(better(each, chosen, METRIC) for each in scored), "nothing that was seen is better"
    larger = [each for without, each in zip(asked, scored, strict=True) if len(without) > len(out)]
    assert not math.isfinite(chosen[0]) or chosen not in larger, "where nothing tells them apart the smaller is taken"


def test_one_by_one_those_go_without_whom_it_is_no_worse() -> None:
    scored = [(60.0, 1.0), (60.0, 1.0), (59.0, 0.5), (61.0, 1.0)]
    assert left_out(["a", "b", "c"], scored, METRIC) == {"a": 0.0, "c": 0.0}


@pytest.mark.parametrize("stage", [SeedStage.TRAINING, SeedStage.HOLDING])
def test_the_weakest_come_first_by_what_they_cost_to_remove_or_else_by_their_promise(stage: SeedStage) -> None:
    def seed(name: str, cost: float | None, promise: float | None) -> object:
        slot = live_slot(name, stage, "small", alpha=1.0)
        found = {} if promise is None else {"small": Promise(promise, 40, 1000, 1)}
        return replace(slot, promise=found, removal_cost_loss=None if cost is None else measured(cost, 0.1, epoch=3))

    slots = [seed("a", 0.3, 0.0), seed("b", None, 0.2), seed("c", None, None), seed("d", -0.1, 0.9)]
    off = replace(live_slot("e", SeedStage.TRAINING, "small"), alpha=0.0)
    kept = live_slot("f", SeedStage.FOSSILIZED, "small", alpha=1.0)
    assert unproven(row_view(*slots, off, kept)) == ["d", "c", "b", "a"]  # type: ignore[arg-type]
