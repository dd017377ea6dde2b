from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.karn import snapshot
from esper.karn.aggregator import fold
from esper.karn.filter import FIELDS, parse
from esper.leyline import UsageError
from karn.streams import story

ITEM = {"env": 3, "severity": "error", "stage": "BLENDING", "text": "G2 failed: probe gain", "epoch": 7}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("env=3", True),
        ("env=1,3", True),
        ("env!=1,2", True),
        ("env!=1,3", False),
        ("stage=blending severity>=warning gain", True),
        ("severity<warning", False),
        ('"probe gain"', True),
        ('"gain probe"', False),
        ("-env=3", False),
        ("-env=4 -text", True),
        ("epoch>6 epoch<=7", True),
        ("blueprint=conv3", False),
        ("-blueprint=conv3", True),
        ("ENV = 3", True),
    ],
)
def test_matches(text: str, expected: bool) -> None:
    assert parse(text).matches(ITEM) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env=3 stge=x", "position 7: unknown field 'stge'; did you mean 'stage'?"),
        ("env=x", "position 5: env is a number, not 'x'"),
        ("severity>loud", "position 10: severity is one of debug, info, warning, error, critical, not 'loud'"),
        ("env=", "position 5: a value after env= is missing"),
        ("stage>blending", "position 6: stage has no order, so > makes no sense"),
        ('a "b c', "position 3: the quotation is not closed"),
        ("-", "position 2: a word is missing"),
    ],
)
def test_errors_name_the_position(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert message in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused_plainly(text: str) -> None:
    try:
        parse(text).matches(ITEM)
    except UsageError as refusal:
        assert "position" in str(refusal)


def test_the_same_language_for_feed_and_board() -> None:
    shown = snapshot.build(fold(story()), 0.0)
    blocked = [item for item in shown.feed if parse("type=seed_gate_evaluated env=0 failed gate=G5").item(item)]
    assert [item.epoch for item in blocked] == [9]
    rows = shown.environments.values()
    assert [row.env for row in rows if parse("stage=fossilized blueprint=conv3 metric>90").row(row)] == [0]
    assert [row.env for row in rows if parse("factor=panic").row(row)] == [1]


def test_every_field_is_known_to_some_subject() -> None:
    from esper.karn.filter import item_subject, row_subject
    from esper.karn.runtable import RunRow, run_subject

    shown = snapshot.build(fold(story()), 0.0)
    known = {name for item in shown.feed for name in item_subject(item)}
    known |= {name for row in shown.environments.values() for name in row_subject(row)}
    row = RunRow(name="a", run_id="a", state="completed", ended=True, task="t", kind="k", seconds=1.0)
    known |= set(run_subject(msgspec.structs.replace(row, title="mine", tags=["best"])))
    assert set(FIELDS) <= known
