from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np
import pytest
from hypothesis import given

from env_views import env_views, live_slot, measured, row_view
from esper.leyline import EnvView, Fact, Feature, GateThresholds, Metric, Paired, Promise, SeedStage, SlotView
from esper.tamiyo.features import LAYOUT, encode
from esper.tamiyo.policies.learned import SHIPPED_FILE, load_policy


def entries(view: EnvView) -> dict[str, float]:
    """Every entry of the observation under its declared name."""
    names = LAYOUT.names(tuple(slot.slot_id for slot in view.slots))
    return dict(zip(names, encode(view).vector.tolist(), strict=True))


@given(env_views())
def test_every_entry_is_declared_finite_and_in_range(view: EnvView) -> None:
    seen = encode(view)
    assert seen.vector.shape == (LAYOUT.width(len(view.slots)),)
    assert seen.vector.dtype == np.float32
    assert np.isfinite(seen.vector).all()
    assert (np.abs(seen.vector) <= 1.0).all()
    by_name = entries(view)
    for name, value in by_name.items():
        if name.endswith((".known", "_not_finite")):
            assert value in (0.0, 1.0)
        if by_name.get(f"{name}.known") == 0.0:
            assert value == 0.0
    assert ((seen.blueprints == 0) == [not slot.live for slot in view.slots]).all()


def test_names_are_unique_and_ranges_are_ranges() -> None:
    for part in (LAYOUT.host, LAYOUT.slot):
        assert len({feature.name for feature in part}) == len(part)
        assert all(feature.low < feature.high and feature.unit for feature in part)


@given(env_views())
def test_permuted_slots_permute_the_slot_parts(view: EnvView) -> None:
    turned = dataclasses.replace(view, slots=tuple(reversed(view.slots)))
    one, other = encode(view), encode(turned)
    h, w = LAYOUT.host_width, LAYOUT.slot_width
    assert LAYOUT.slot[0].name == "position"
    assert (one.vector[:h] == other.vector[:h]).all()
    parts, turned_parts = (seen.vector[h:].reshape(-1, w)[:, 1:] for seen in (one, other))
    assert (parts == turned_parts[::-1]).all()
    assert (one.blueprints == other.blueprints[::-1]).all()


@given(env_views())
def test_an_asked_order_moves_whole_parts(view: EnvView) -> None:
    order = tuple(reversed([slot.slot_id for slot in view.slots]))
    parts, turned = (encode(view, o).vector[LAYOUT.host_width :].reshape(-1, LAYOUT.slot_width) for o in (None, order))
    assert (parts == turned[::-1]).all()


@given(env_views())
def test_names_of_slots_and_blueprints_leave_no_trace(view: EnvView) -> None:
    def rename(slot: SlotView) -> SlotView:
        blueprint = None if slot.blueprint is None else f"new-{slot.blueprint}"
        return dataclasses.replace(slot, slot_id=f"new-{slot.slot_id}", blueprint=blueprint)

    renamed = dataclasses.replace(
        view,
        slots=tuple(map(rename, view.slots)),
        blueprints=tuple(f"new-{name}" for name in view.blueprints),
        vetoed=frozenset(f"new-{name}" for name in view.vetoed),
    )
    assert (encode(view).vector == encode(renamed).vector).all()
    assert (encode(view).blueprints == encode(renamed).blueprints).all()


def test_unknown_zero_and_not_finite_all_look_different() -> None:
    facts = (None, Fact(0.0, 3), Fact(math.nan, 3), Fact(math.inf, 3))
    seen = [entries(row_view(live_slot("s", SeedStage.TRAINING, gradient_ratio=fact))) for fact in facts]
    keys = ("s.gradient_ratio", "s.gradient_ratio.known", "s.gradient_ratio_not_finite")
    assert [tuple(view[key] for key in keys) for view in seen] == [(0, 0, 0), (0, 1, 0), (0, 1, 1), (1, 1, 1)]


def test_facts_carry_their_age() -> None:
    def age(fact: Fact[Paired]) -> tuple[float, float]:
        view = row_view(live_slot("s", SeedStage.HOLDING, removal_cost=fact), epoch=9)
        return entries(view)["s.removal_cost_age"], entries(view)["s.removal_cost_age.known"]

    assert age(measured(1.0, epoch=9)) == (0.0, 1.0)
    assert age(measured(1.0, epoch=4)) == (pytest.approx(math.log(6) / 5), 1.0)
    assert age(measured(1.0, epoch=None)) == (0.0, 0.0)


def test_paired_differences_are_relative_and_in_standard_errors() -> None:
    view = row_view(live_slot("s", SeedStage.HOLDING, removal_cost=measured(20.0, se=5.0)), metric=60.0)
    assert entries(view)["s.removal_cost"] == pytest.approx(20 / 80)
    assert entries(view)["s.removal_cost_errors"] == pytest.approx(0.4)


def test_trends_are_positive_when_things_get_better() -> None:
    falling = {"metric_history": (4.0, 2.0), "loss_history": (4.0, 2.0)}
    error = entries(row_view(higher_is_better=False, **falling))
    accuracy = entries(row_view(higher_is_better=True, **falling))
    assert error["host.metric_trend_1"] > 0 > accuracy["host.metric_trend_1"]
    assert error["host.loss_trend_1"] == accuracy["host.loss_trend_1"] > 0
    assert error["host.metric_trend_3.known"] == 0.0


def in_unit(metric: Metric, goodness: float, before: float, gain: float) -> EnvView:
    """A row that is so good of 100, in the unit of ``metric``."""
    assert metric.low is not None and metric.high is not None and metric.span is not None

    def level(value: float) -> float:
        share = value / 100 * metric.span  # type: ignore[operator]
        return metric.low + share if metric.higher_is_better else metric.high - share  # type: ignore[operator]

    paired = measured(gain / 100 * metric.span, se=0.3 * metric.span)
    slot = live_slot("s", SeedStage.HOLDING, removal_cost=paired, metric_at_germination=level(before))
    return row_view(
        slot,
        metric=level(goodness),
        metric_history=(level(before), level(goodness)),
        higher_is_better=metric.higher_is_better,
        gates=GateThresholds(metric=metric),
    )


def test_percent_fraction_and_error_look_alike() -> None:
    units = [
        Metric("accuracy", "%", low=0.0, high=100.0),
        Metric("accuracy", "", low=0.0, high=1.0),
        Metric("error", "", higher_is_better=False, low=0.0, high=1.0),
        Metric("error", "%", higher_is_better=False, low=0.0, high=100.0),
    ]
    percent, *others = (encode(in_unit(metric, 87.0, 60.0, 5.0)).vector for metric in units)
    for other in others:
        np.testing.assert_allclose(other, percent, atol=1e-6)
    unscaled = dataclasses.replace(in_unit(units[1], 87.0, 60.0, 5.0), gates=GateThresholds())
    assert np.abs(encode(unscaled).vector - percent).max() > 0.1, "without a scale a unit can be seen"


def test_what_places_promise_is_seen_relative_to_the_loss_and_to_the_greatest() -> None:
    heard = [
        SlotView("a", promise={"small": Promise(0.1, 9, 9, 2), "large": Promise(0.5, 9, 9, 2)}),
        SlotView("b", promise={"large": Promise(0.25, 9, 9, 2)}),
        SlotView("c", promise={"large": Promise(-2.0, 9, 9, 3)}),
        SlotView("d"),
    ]
    seen = entries(row_view(*heard, train_loss=1.5))
    assert [seen[f"{name}.promise_of_greatest"] for name in "abc"] == [1.0, 0.5, -1.0]
    assert [seen[f"{name}.promise"] for name in "abc"] == [0.25, pytest.approx(0.25 / 1.75), pytest.approx(-2 / 3.5)]
    assert [seen[f"{name}.promise_age"] > 0 for name in "abc"] == [True, True, False]
    assert not any(value for name, value in seen.items() if name.startswith("d.promise")), "unknown"
    silent = entries(row_view(*heard))
    assert silent["a.promise.known"] == 0.0 and silent["a.promise_of_greatest"] == 1.0, "the loss is not known"
    nothing = entries(row_view(*(dataclasses.replace(heard[2], slot_id=name) for name in "ab"), train_loss=1.5))
    assert nothing["a.promise_of_greatest"] == 0.0 and nothing["a.promise_of_greatest.known"] == 1.0
    wild = [
        SlotView(name, promise={"large": Promise(value, 9, 9)})
        for name, value in zip("ab", (math.nan, 2.0), strict=True)
    ]
    assert entries(row_view(*wild))["a.promise_not_finite"] == entries(row_view(*wild))["b.promise_of_greatest"] == 1.0


def digest(features: tuple[Feature, ...]) -> str:
    """Of every name, range and unit, in order."""
    return hashlib.sha256(repr(features).encode()).hexdigest()[:16]


def test_a_slots_part_grows_at_its_end_alone() -> None:
    """How many entries a policy sees of a slot stands in its file; those must mean what they meant to it."""
    seen_by_shipped = LAYOUT.slot[:41]
    assert sum(feature.width for feature in seen_by_shipped) == load_policy(SHIPPED_FILE).network.config.slot_width
    assert (digest(LAYOUT.host), digest(seen_by_shipped)) == ("3a221a99e9cd9dc0", "052d638f860e1ec0")
    assert digest(LAYOUT.slot[:40]) != digest((*LAYOUT.slot[1:40], LAYOUT.slot[0])), "the order counts"
