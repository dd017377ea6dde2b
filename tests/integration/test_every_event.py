"""Every type of event is caused by something that really happens here, and whoever looks at the run can see it."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
import test_detectors
import test_slot
import test_workers
import torch
from tiny import tiny

from esper.karn.aggregator import apply
from esper.karn.detail import build_detail
from esper.karn.snapshot import build
from esper.karn.state import RunState
from esper.leyline import REGISTRY, WAIT, Blend, Decision, EnvSpec, FactoredAction, Op, SeedStage, TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal
from esper.nissa.vitals import Sampler, VitalsRecorder
from esper.run.assembly import build_executor, workload
from esper.run.config import RunConfig
from esper.scripts.train import main
from esper.simic.detectors import DetectorConfig, Finding, PolicyMonitor, RoundFigures, memory


def _kinds(payload: Any) -> tuple[str, ...]:
    """The literal by which a snapshot of analytics is told from the others."""
    return get_args(get_type_hints(payload)["kind"])


ANALYTICS = {kind for member in REGISTRY[T.ANALYTICS_SNAPSHOT].payload.__args__ for kind in _kinds(member)}
FLAGS = ["--task", "tiny:tiny", "--device", "cpu", "--quiet"]


def learning(base: Path) -> list[list[TelemetryEvent]]:
    """PPO from scratch at the debug level, and again from the policy that it saved."""
    first, second = base / "ppo", base / "again"
    small = ["ppo", *FLAGS, "--envs", "2", "--episode-length", "5", "--cells", "8"]
    deep = ["--telemetry-level", "debug", "--diagnostics-profile", "minimal", "--diagnostics-every", "2"]
    assert main([*small, "--rounds", "2", *deep, "--run-dir", str(first)]) == 0
    saved = ["--policy-checkpoint", str(first / "policy.safetensors")]
    assert main([*small, "--rounds", "1", *saved, "--run-dir", str(second)]) == 0
    return [list(read_journal(run)) for run in (first, second)]


def growing(base: Path) -> list[list[TelemetryEvent]]:
    """A heuristic run with its model exported."""
    run = base / "heuristic"
    short = ["--max-epochs", "6", "--episodes", "1", "--compare", "random", "--policy", "random"]
    assert main(["heuristic", *FLAGS, *short, "--run-dir", str(run)]) == 0
    return [list(read_journal(run))]


def stepping(base: Path) -> list[list[TelemetryEvent]]:
    """Hosts with a seed whose worth is looked at every third epoch, and with a learning rate that none survives."""
    return [_stepped(every=3), _stepped(lr=1e18)]


def _stepped(every: int = 1, lr: float = 1e-2) -> list[TelemetryEvent]:
    events: list[TelemetryEvent] = []
    config = RunConfig(task="tiny:tiny", device="cpu", counterfactual_every=every)
    task = tiny()
    task = replace(task, budget=replace(task.budget, lr=lr))
    executor = build_executor(workload(task, config), config, events.append)
    executor.reset([EnvSpec(0, 0, 1, 6)])
    for action in (FactoredAction(Op.GERMINATE, "first", "mlp", Blend.LINEAR, 1.0, 1), WAIT, WAIT):
        executor.step([Decision(action, "")])
    return events


def one_slot(base: Path) -> list[list[TelemetryEvent]]:
    """Seeds without a host: one leaks gradient, one gets another ramp, one is kept; an empty slot is asked to move."""
    leaking, events = test_slot.make()
    test_slot.grow(leaking, SeedStage.TRAINING)
    leaking.monitor.tap(torch.ones(2, requires_grad=True)).sum().backward()
    leaking.tick()
    ramped, more = test_slot.make()
    assert not ramped.advance_stage(), "it is dormant"
    test_slot.grow(ramped, SeedStage.HOLDING)
    assert ramped.retarget(0.5, 4, Blend.LINEAR)
    kept, still = test_slot.make()
    test_slot.grow(kept, SeedStage.FOSSILIZED)
    for event in (said := [*events, *more, *still]):
        event.env_id = 0
    return [said]


def losing_workers(base: Path) -> list[list[TelemetryEvent]]:
    """A worker that is lost in mid-episode."""
    events: list[TelemetryEvent] = []
    test_workers.play(test_workers.mortals([4], events))
    return [events]


def detectors(base: Path) -> list[list[TelemetryEvent]]:
    """Rounds with figures that are wrong, one after the other, before the watch that a learner has."""
    events: list[TelemetryEvent] = []

    def look(
        watch: PolicyMonitor, round_number: int, gain: float, paid: float = 0.0, step: float = 20.0, **bad: float
    ) -> None:
        figures = RoundFigures((gain + paid,) * 4, (gain,) * 4, step)
        findings = watch.look(test_detectors.report(**bad), figures)
        events.extend(finding.event(round_number) for finding in findings)

    courses: list[Callable[[int], float]] = [lambda n: 0.1 * n, lambda n: -0.1 * n, lambda n: 1.0 + 0.01 * (-1) ** n]
    for course in courses:
        watch = PolicyMonitor()
        for number in range(1, 17):
            look(watch, number, course(number))
    watch = PolicyMonitor()
    for number in range(1, 6):
        look(watch, number, 1.0, explained_variance=-1.0, ratio_max=9.0, ratio_min=0.01, kl=math.nan)
    look(watch, 6, 1.0, paid=50.0, step=500.0)
    decided = test_detectors.HeadReport(0.001, 1.5, 1.0)
    for number in range(7, 10):
        findings = watch.look(test_detectors.report(heads={"op": decided}), RoundFigures((), (), None))
        events.extend(finding.event(number) for finding in findings)
    full = memory(95, 100, DetectorConfig())
    assert isinstance(full, Finding)
    return [[*events, full.event(10)]]


def sampling(base: Path) -> list[list[TelemetryEvent]]:
    """A machine that is looked at."""
    recorder, events = VitalsRecorder(Sampler(os.getpid()), every=0.001), []
    while not events:
        time.sleep(0.001)
        events += recorder.take()
    recorder.close()
    return [events]


def seen(state: RunState) -> bytes:
    """All that faces show, but for the count of events."""
    shot = build(state, 0.0)
    clock = msgspec.structs.replace(shot.clock, events=0, time=0.0, silent_for=0.0)
    shown = [msgspec.structs.replace(shot, clock=clock), *(build_detail(state, env, 0.0) for env in state.environments)]
    return msgspec.json.encode(shown, order="deterministic")


def shows(event: TelemetryEvent, state: RunState) -> bool:
    """Whether anything on the screen is another with the event; it is folded either way."""
    before = seen(state)
    apply(state, event)
    return seen(state) != before


APART = {T.SLOT_REOPENED.name, T.RANKS_DIFFER.name, T.PROMISES_MEASURED.name}
"""Caused where several generations, several processes and auditions are tested."""


@pytest.fixture(scope="module")
def makers() -> Iterator[dict[str, list[set[str]]]]:
    """Name of an event -> for each that was made here, the modules that were at work then."""
    made: dict[str, list[set[str]]] = {}

    def make(**fields: Any) -> TelemetryEvent:
        frame, working = sys._getframe(1), set()
        while frame is not None:
            working.add(str(frame.f_globals.get("__name__")).removeprefix("esper."))
            frame = frame.f_back
        made.setdefault(fields["event_type"].name, []).append(working)
        return TelemetryEvent(**fields)

    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("esper.") and not name.startswith("esper.leyline") and hasattr(module, "TelemetryEvent"):
                patch.setattr(module, "TelemetryEvent", make)
        yield made


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory, makers: object) -> list[list[TelemetryEvent]]:
    base = tmp_path_factory.mktemp("runs")
    causes = (learning, growing, stepping, one_slot, losing_workers, detectors, sampling)
    return [story for cause in causes for story in cause(base)]


def test_every_type_is_produced_and_appears_in_a_view(stories: list[list[TelemetryEvent]]) -> None:
    produced: set[str] = set()
    visible: set[str] = set()
    for story in stories:
        state = RunState()
        for event in story:
            name = str(event.data.get("kind")) if event.event_type is T.ANALYTICS_SNAPSHOT else event.event_type.name
            produced.add(name)
            if name in visible:
                apply(state, event)
            elif shows(event, state):
                visible.add(name)
    wanted = {kind.name for kind in T if kind is not T.ANALYTICS_SNAPSHOT and kind.name not in APART} | ANALYTICS
    assert wanted - produced == set(), "nothing here causes these"
    assert produced - visible == set(), "nobody could see these"


def test_a_declared_producer_is_at_work_when_an_event_is_made(
    stories: list[list[TelemetryEvent]], makers: dict[str, list[set[str]]]
) -> None:
    assert set(makers) | APART == {kind.name for kind in T}
    strangers = {
        name: working
        for name, times in makers.items()
        for working in times
        if not working.intersection(REGISTRY[T[name]].producers)
    }
    assert strangers == {}
    saving = makers[T.CHECKPOINT_SAVED.name]
    assert all(working.isdisjoint({"tolaria.checkpoint"}) for working in saving), "who writes the file makes no event"


def test_an_event_that_changes_nothing_would_be_found_out() -> None:
    state = RunState()
    gone = TelemetryEvent(event_type=T.ANALYTICS_SNAPSHOT, env_id=0, data={"kind": "unheard of"})
    apply(state, gone)
    assert not shows(gone, state)
