"""What an env can be asked, legal or not, beside epochs that go wrong, in every order up to six times: the executor,
the governor, and an engine without tensors.
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import pytest
from fake_engine import FakeEngine

from esper.leyline import (
    REGISTRY,
    WAIT,
    Blend,
    Decision,
    EnvSpec,
    EsperError,
    FactoredAction,
    Metric,
    Op,
    SeedStage,
    TelemetryEvent,
)
from esper.leyline import TelemetryEventType as T
from esper.tolaria.executor import Executor, ExecutorConfig
from esper.tolaria.governor import Governor, GovernorConfig
from esper.tolaria.legality import why_illegal
from sequences import every_sequence

METRIC = Metric("accuracy", "%", chance=10.0)
SICK = "sick"
LETTERS = {
    "wait": WAIT,
    SICK: WAIT,
    "good-a": FactoredAction(Op.GERMINATE, "a", "good", Blend.LINEAR, 1.0, 1),
    "harmful-a": FactoredAction(Op.GERMINATE, "a", "harmful", Blend.LINEAR, 1.0, 1),
    "good-b": FactoredAction(Op.GERMINATE, "b", "good", Blend.LINEAR, 1.0, 1),
    "advance-a": FactoredAction(Op.ADVANCE, "a"),
    "advance-b": FactoredAction(Op.ADVANCE, "b"),
    "down-a": FactoredAction(Op.SET_ALPHA, "a", None, Blend.LINEAR, 0.5, 1),
    "prune-a": FactoredAction(Op.PRUNE, "a"),
    "fossilize-a": FactoredAction(Op.FOSSILIZE, "a"),
    "nonsense": FactoredAction(Op.ADVANCE, "nowhere"),
}


@dataclass(frozen=True)
class Moment:
    """An episode between two epochs."""

    state: Any
    rollbacks: int


def executor(governor: type[Governor], events: list[TelemetryEvent]) -> Executor:
    config = GovernorConfig(snapshot_every=1, max_rollbacks=3)
    return Executor(
        FakeEngine(), METRIC, events.append, lambda sink: governor(METRIC, config, sink), ExecutorConfig(test=False)
    )


def act(moment: Moment, name: str, governor: type[Governor]) -> Moment | None:
    """One epoch, judged; ``None`` where the run has failed plainly."""
    events: list[TelemetryEvent] = []
    run = executor(governor, events)
    (view,) = run.load(copy.deepcopy(moment.state))
    engine, action = run.engine, LETTERS[name]
    assert isinstance(engine, FakeEngine) and not events, "a state is loaded without a word"
    if name == SICK:
        engine.envs[0].poison.add(view.epoch + 1)
    try:
        (report,) = run.step([Decision(action, "in every order")])
    except EsperError:
        assert moment.rollbacks >= 3, "it gives up after three rollbacks, and not before"
        return None
    for event in events:
        msgspec.convert(event.data, REGISTRY[event.event_type].payload, strict=True)
    kinds = [event.event_type for event in events]
    illegal = why_illegal(view, action)
    assert not (illegal and report.outcome.success)
    assert report.outcome.success or report.outcome.why_not
    if illegal is None and not report.outcome.success and report.outcome.illegal:
        assert T.TRANSITION_VETOED in kinds, "a veto is an event"
    assert report.rolled_back is (T.GOVERNOR_ROLLBACK in kinds)
    assert report.rolled_back or name != SICK, "NaN is never carried on"
    assert report.view.epoch == view.epoch + 1
    assert report.view.loss is None or math.isfinite(report.view.loss)
    before = {slot.slot_id: slot.stage for slot in view.slots}
    after = {slot.slot_id: slot.stage for slot in report.view.slots}
    kept = {name for name, stage in before.items() if stage is SeedStage.FOSSILIZED}
    assert report.rolled_back or all(after[name] is SeedStage.FOSSILIZED for name in kept), "what is kept stays"
    assert kinds.count(T.EPOCH_COMPLETED) == 1
    return Moment(run.state(), moment.rollbacks + report.rolled_back)


def enumerate_episodes(depth: int, governor: type[Governor] = Governor) -> tuple[int, int]:
    run = executor(governor, [])
    run.reset([EnvSpec(0, 0, 0, depth + 2, "grown", "test")])
    letters = {name: partial(act, name=name, governor=governor) for name in LETTERS}
    return every_sequence(Moment(run.state(), 0), letters, depth, _key)


def _key(moment: Moment) -> str:
    """Without clocks."""
    plain = re.sub(r"'seconds': [^,}]*", "", repr(moment.state["plain"]))
    return f"{plain}{moment.rollbacks}"


@pytest.mark.slow
def test_every_sequence_of_six() -> None:
    sequences, states = enumerate_episodes(6)
    assert sequences > len(LETTERS) ** 6 * 0.9 and states > 1000
    print(f"{sequences:,} sequences through {states:,} states")


def test_every_sequence_of_two() -> None:
    assert enumerate_episodes(2)[0] == len(LETTERS) + len(LETTERS) ** 2


def test_they_catch_a_governor_that_sleeps() -> None:
    class Asleep(Governor):
        def observe(self, *given: Any, **more: Any) -> Any:
            verdict = super().observe(*given, **more)
            return type(verdict)(ok=True)

    with pytest.raises(AssertionError):
        enumerate_episodes(1, Asleep)
