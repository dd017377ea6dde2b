from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.karn.aggregator import fold
from esper.karn.diff import apply, diff, plain
from esper.karn.snapshot import Builder, build
from esper.leyline import TelemetryEvent
from karn.streams import START, runs, story

trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=4),
    max_leaves=12,
)


@given(trees, trees)
def test_applying_the_difference_gives_the_new_tree(old: object, new: object) -> None:
    assert apply(old, diff(old, new)) == new


@given(st.lists(st.integers(0, 3)), st.integers(0, 5), st.lists(st.integers(0, 3), max_size=3))
def test_a_list_that_slides_is_not_sent_again(items: list[int], skip: int, added: list[int]) -> None:
    new = items[skip:] + added
    assert apply(items, diff(items, new)) == new


@given(runs(), st.data())
@settings(max_examples=10)
def test_snapshots(events: list[TelemetryEvent], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(events)))
    builder, state = Builder(), fold(events[:cut])
    old = builder.build(state, START + 5)
    before = plain(old)
    new = builder.build(fold(events[cut:], state), START + 6)
    patch = msgspec.json.decode(msgspec.json.encode(diff(old, new)))
    assert apply(before, patch) == plain(new) == msgspec.json.decode(msgspec.json.encode(new))


def test_a_quiet_second_is_a_small_patch() -> None:
    state = fold(story()[:-1])
    builder = Builder()
    old, new = builder.build(state, START + 14.0), builder.build(state, START + 15.0)
    assert len(msgspec.json.encode(diff(old, new))) < 120


def test_a_changed_environment_leaves_the_others_alone() -> None:
    events = story()
    at = len(events) - 4
    patch = diff(build(fold(events[:at]), START), build(fold(events[: at + 1]), START))
    assert patch is not None and len(patch[1]["environments"][1]) <= 1
