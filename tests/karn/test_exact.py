"""What a browser would round: integers beyond 2**53."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from esper.karn.aggregator import apply
from esper.karn.detail import build_detail
from esper.karn.parts import EXACT, travelling, wire_safe
from esper.karn.snapshot import build
from esper.karn.state import RunState
from esper.karn.web.columns import Columns
from esper.karn.web.frames import Mode, Sight, View, decode_frame, encode_frame
from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T
from karn.streams import START, story

HUGE = 7_879_204_788_149_259_239


def huge(events: list[TelemetryEvent]) -> list[TelemetryEvent]:
    """The story with integers as large as seeds and counts of operations are."""
    for event in events:
        data = event.data
        if event.event_type in (T.EPISODE_STARTED, T.EPISODE_ENDED):
            data["seed"] = HUGE + (event.env_id or 0)
        if event.event_type is T.EPISODE_ENDED:
            data |= {"total_macs": HUGE, "train_macs": HUGE, "inference_macs": HUGE}
        for record in data.get("checks", ()):
            record |= {"measured": HUGE, "threshold": HUGE + 1}
        if event.event_type is T.COMMAND_ISSUED:
            data["evidence"] = {"tokens": HUGE}
        if event.event_type is T.COMPUTE_SPENT:
            data["total_macs"] = HUGE
    return events


def _said(kind: T, data: dict[str, Any]) -> TelemetryEvent:
    return TelemetryEvent(event_type=kind, timestamp=START, env_id=0, epoch=0, data=data)


def integers(value: Any, place: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from integers(inner, f"{place}.{key}")
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from integers(inner, f"{place}[{at}]")
    elif isinstance(value, int) and not isinstance(value, bool):
        yield place, value


def test_no_integer_of_any_frame_is_rounded_by_a_browser() -> None:
    state, before, columns, seeds = RunState(), None, Columns(), set()
    events = huge(story())
    events[5:5] = [_said(T.COMPUTE_SPENT, {"total_macs": HUGE})]
    diagnostics = {"kind": "diagnostic_snapshot", "snapshot": {"tokens": HUGE, "layers": [HUGE]}}
    events[6:6] = [_said(T.ANALYTICS_SNAPSHOT, diagnostics)]
    for event in events:
        apply(state, event)
        if 0 not in state.environments:
            continue
        view = View(build(state, START + 20), Mode("live"), build_detail(state, 0, START + 20))
        sight = Sight(view, columns.board(state, START + 20))
        content = decode_frame(encode_frame(1, 0, before, sight), None if before is None else before.board).content
        before = sight
        rounded = [(place, value) for place, value in integers(content) if abs(value) > EXACT]
        assert not rounded
        seeds |= {str(row.seed) for row in view.snapshot.leaderboard}
        assert view.snapshot.environments["0"].seed in (None, str(HUGE))
    assert seeds == {str(HUGE), str(HUGE + 1)}, "digit by digit"


@pytest.mark.parametrize("value", [EXACT, -EXACT, 0, True, 1.5])
def test_what_a_browser_holds_exactly_stays_as_it_is(value: Any) -> None:
    assert travelling(value) is value and wire_safe(value) is value


def test_what_it_would_round_is_said_as_what_it_is() -> None:
    assert wire_safe({"seed": EXACT + 1}) == {"seed": "9007199254740993"}
    assert travelling(EXACT + 1) == float(EXACT) and isinstance(travelling(EXACT + 1), float)
    assert msgspec.json.encode(travelling(10**18)) == b"1e18"
