from __future__ import annotations

import logging
import threading
import time
from collections import Counter

import pytest
from event_strategies import note

from esper.leyline import Delivery, EsperError, TelemetryEvent, TelemetryEventType, UsageError
from esper.nissa.hub import DELIVERY, HubConfig, NissaHub, TelemetryError

T = TelemetryEventType


def gauge(value: float, env_id: int = 0, kind: str = "throughput") -> TelemetryEvent:
    return TelemetryEvent(event_type=T.ANALYTICS_SNAPSHOT, env_id=env_id, data={"kind": kind, "value": value})


def of_class(how: Delivery) -> list[str]:
    return [kind.name for kind, its in DELIVERY.items() if its is how]


def dropped(events: list[TelemetryEvent]) -> list[dict[str, object]]:
    return [event.data for event in events if event.event_type is T.TELEMETRY_DROPPED]


class Listening(list[TelemetryEvent]):
    """A sink that keeps what it gets and counts what else is asked of it."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def __call__(self, event: TelemetryEvent) -> None:
        self.append(event)

    def flush(self) -> None:
        self.asked["flush"] += 1

    def sync(self) -> None:
        self.asked["sync"] += 1

    def close(self) -> None:
        self.asked["close"] += 1


class Slow(Listening):
    """Takes an event only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Semaphore(0)

    def __call__(self, event: TelemetryEvent) -> None:
        self.let.acquire()
        super().__call__(event)


class Broken(Listening):
    """Raises on the first event of a type."""

    def __init__(self, on: T = T.COUNTERFACTUAL_UNAVAILABLE) -> None:
        super().__init__()
        self.on = on

    def __call__(self, event: TelemetryEvent) -> None:
        if event.event_type is self.on:
            raise OSError("it is gone")
        super().__call__(event)


def test_events_are_stamped_in_order_and_a_stamp_is_kept() -> None:
    hub, sink = NissaHub(producer="p", last_seq=41), Listening()
    hub.add_sink(sink)
    before = time.time(), time.monotonic()
    hub.emit(note())
    hub.emit(note(producer="worker", seq=7, timestamp=1.0, t_mono=2.0))
    hub.emit(note())
    hub.close()
    assert [event.event_id for event in sink] == ["p:42", "p:43", "worker:7", "p:44"]
    assert (sink[2].timestamp, sink[2].t_mono) == (1.0, 2.0)
    assert before[0] <= sink[1].timestamp <= time.time() and before[1] <= sink[1].t_mono <= time.monotonic()  # type: ignore[operator]
    assert hub.last_seq == 44


def test_each_producer_has_its_own_numbers_and_a_resume_goes_on_with_all_of_them() -> None:
    events: list[TelemetryEvent] = []
    hub = NissaHub(level="debug")
    hub.add_sink(events.append, name="list")
    sampled = TelemetryEventType[of_class(Delivery.SAMPLED)[0]]
    for _ in range(3):
        hub.emit(gauge(1.0))
        hub.emit(TelemetryEvent(event_type=TelemetryEventType.CHECKPOINT_SAVED, producer="run"))
        hub.emit(TelemetryEvent(event_type=sampled))
    assert [event.seq for event in events if event.producer == "run"] == [1, 2, 3]
    state, whole = hub.state(), len(events)
    again = NissaHub(level="debug")
    again.resume(state)
    again.add_sink(events.append, name="list")
    for _ in range(10):
        again.emit(TelemetryEvent(event_type=sampled))
    again.emit(TelemetryEvent(event_type=TelemetryEventType.CHECKPOINT_LOADED, producer="run"))
    told = [(event.event_type.name, event.producer, event.seq) for event in events[whole:]]
    last = state["last_seq"]
    assert told == [(sampled.name, "train", last + 1), ("CHECKPOINT_LOADED", "run", 4)]
    quieter = NissaHub(level="normal")
    quieter.resume(state)
    quieter.add_sink(events.append, name="list")
    quieter.emit(gauge(2.0))
    assert [event.event_type.name for event in events[-2:]] == ["TELEMETRY_LEVEL_SET", "ANALYTICS_SNAPSHOT"]


def test_the_level_is_said_first_and_whenever_it_changes() -> None:
    hub, sink = NissaHub(level="minimal"), Listening()
    hub.add_sink(sink)
    hub.emit(gauge(1))
    hub.emit(note())
    hub.set_level("normal")
    hub.emit(gauge(2))
    assert [event.event_type for event in sink] == [
        T.TELEMETRY_LEVEL_SET,
        T.COUNTERFACTUAL_UNAVAILABLE,
        T.TELEMETRY_LEVEL_SET,
        T.ANALYTICS_SNAPSHOT,
    ]
    gauges, sampled = of_class(Delivery.LATEST_WINS), of_class(Delivery.SAMPLED)
    assert sink[0].data == {"level": "minimal", "lifecycle_only": False, "suppressed": sorted(gauges + sampled)}
    assert sink[2].data["suppressed"] == sorted(sampled)
    assert [event.seq for event in sink] == [1, 2, 3, 4], "what a level suppresses leaves no gap"


def test_off_tells_only_that_it_is_off_and_lifecycle_only_keeps_what_must_be_kept() -> None:
    for lifecycle_only, expected in ((False, 1), (True, 2)):
        hub, sink = NissaHub(level="off", lifecycle_only=lifecycle_only), Listening()
        hub.add_sink(sink)
        hub.emit(note())
        hub.emit(gauge(1))
        assert len(sink) == expected
        assert sink[0].data["level"] == "off" and sink[0].data["lifecycle_only"] is lifecycle_only
    with pytest.raises(UsageError, match="unknown telemetry level 'loud'"):
        NissaHub(level="loud")


def test_flush_and_barrier_reach_the_sinks_and_close_happens_once() -> None:
    hub, sink = NissaHub(), Listening()
    with hub:
        hub.add_sink(sink)
        hub.add_sink(lambda event: None, name="a plain function")
        hub.flush()
        assert sink.asked == {"flush": 1}
        hub.flush(barrier=True)
        assert sink.asked == {"flush": 1, "sync": 1}
    hub.close()
    assert sink.asked["close"] == 1
    with pytest.raises(TelemetryError, match="after the telemetry hub was closed"):
        hub.emit(note())


def test_two_sinks_of_one_name_are_refused() -> None:
    hub = NissaHub()
    hub.add_sink(Listening(), name="a")
    with pytest.raises(UsageError, match="sink 'a' already"):
        hub.add_sink(Listening(), name="a")


def test_a_sink_that_raises_is_detached_and_named_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    hub, good, bad = NissaHub(), Listening(), Broken()
    hub.add_sink(bad, name="bad")
    hub.add_sink(good, name="good")
    with caplog.at_level(logging.ERROR, logger="esper.nissa"):
        for _ in range(5):
            hub.emit(note())
    assert [record.message for record in caplog.records] == [
        "telemetry sink 'bad' failed: OSError: it is gone; it was detached"
    ]
    (report,) = dropped(good)
    assert report == {
        "sink": "bad",
        "event_type": "COUNTERFACTUAL_UNAVAILABLE",
        "count": 1,
        "reason": "sink_failed",
        "first_seq": 2,
        "last_seq": 2,
    }
    assert next(e for e in good if e.event_type is T.TELEMETRY_DROPPED).message.startswith(
        "telemetry sink 'bad' failed"
    )
    hub.close()
    last = [data for data in dropped(good)[1:] if data["event_type"] == "COUNTERFACTUAL_UNAVAILABLE"]
    assert [(data["count"], data["first_seq"], data["last_seq"]) for data in last] == [(4, 3, 6)]
    assert bad.asked["close"] == 1, "it may still keep what it has"


def test_a_required_sink_that_raises_fails_the_run_once_and_the_others_still_hear_of_the_end() -> None:
    hub, good, bad = NissaHub(), Listening(), Broken()
    hub.add_sink(bad, name="journal", required=True)
    hub.add_sink(good)
    with pytest.raises(TelemetryError, match="telemetry sink 'journal' failed: OSError: it is gone") as caught:
        hub.emit(note())
    assert isinstance(caught.value, EsperError) and isinstance(caught.value.__cause__, OSError)
    hub.emit(note("the end"))
    hub.close()
    assert good[-1].event_type is T.TELEMETRY_DROPPED and good.asked["close"] == 1


def test_a_sink_that_fails_to_close_does_not_keep_the_others_from_it() -> None:
    class Stuck(Listening):
        def close(self) -> None:
            raise OSError("stuck")

    hub, good = NissaHub(), Listening()
    hub.add_sink(Stuck(), name="stuck", required=True)
    hub.add_sink(good, required=True)
    with pytest.raises(TelemetryError, match="'stuck' failed: OSError: stuck"):
        hub.close()
    assert good.asked["close"] == 1


def test_sampled_events_are_thinned_at_the_source_and_counted() -> None:
    delivery = {**DELIVERY, T.COMPUTE_SPENT: Delivery.SAMPLED}
    hub, sink = NissaHub(level="debug", delivery=delivery, config=HubConfig(sample_every=10)), Listening()
    hub.add_sink(sink)
    for _ in range(25):
        hub.emit(TelemetryEvent(event_type=T.COMPUTE_SPENT))
    hub.flush()
    assert [event.seq for event in sink if event.event_type is T.COMPUTE_SPENT] == [2, 3, 4]
    assert dropped(sink) == [{"sink": "*", "event_type": "COMPUTE_SPENT", "count": 22, "reason": "sampled"}]
    assert [event.event_id for event in sink] == ["train:1", "train:2", "train:3", "train:4", "hub:1"]


def test_a_slow_sink_gets_the_latest_gauge_of_each_key_and_every_event_that_must_be_kept() -> None:
    hub, slow, quick = NissaHub(), Slow(), Listening()
    hub.add_sink(slow, name="slow", background=True)
    hub.add_sink(quick, name="quick")
    hub.emit(note("first"))  # with the level before it; the sink is stuck on that
    for step in range(50):
        hub.emit(gauge(step, env_id=step % 2))
        hub.emit(note(str(step)))
    assert len(quick) == 102
    slow.let.release(10_000)
    hub.flush()
    assert [e.data["reason"] for e in slow if "reason" in e.data and "sink" not in e.data] == [
        "first",
        *map(str, range(50)),
    ]
    assert [(e.env_id, e.data["value"]) for e in slow if e.event_type is T.ANALYTICS_SNAPSHOT] == [(0, 48), (1, 49)]
    (report,) = dropped(quick)
    assert report["sink"] == "slow" and report["count"] == 48 and report["reason"] == "replaced_by_newer"
    seqs = [event.seq for event in slow if event.producer == "train"]
    assert seqs == sorted(seqs), "order is kept"  # type: ignore[type-var]
    delivered, lost = len(slow), sum(drop.count for drop in hub.drops)
    assert delivered + lost == len(quick), "every event was delivered or counted"
    hub.close()


def test_drops_are_reported_while_events_flow() -> None:
    hub, slow, quick = NissaHub(config=HubConfig(report_seconds=0.0)), Slow(), Listening()
    hub.add_sink(slow, background=True)
    hub.add_sink(quick)
    for step in range(5):
        hub.emit(gauge(step))
    assert sum(int(str(data["count"])) for data in dropped(quick)) >= 3
    slow.let.release(10_000)
    hub.close()


def test_a_full_queue_makes_room_by_dropping_gauges_and_counts_them() -> None:
    hub, slow = NissaHub(config=HubConfig(queue_events=4)), Slow()
    hub.add_sink(slow, name="slow", background=True)
    hub.emit(note())
    for env in range(10):
        hub.emit(gauge(env, env_id=env))
    slow.let.release(10_000)
    hub.flush()
    kept = [event.env_id for event in slow if event.event_type is T.ANALYTICS_SNAPSHOT]
    lost = sum(drop.count for drop in hub.drops if drop.reason == "queue_full")
    assert kept == sorted(kept) and kept[-1] == 9 and len(kept) + lost == 10 and lost >= 5
    hub.close()


def test_a_must_keep_event_waits_for_room_and_then_fails_loudly(caplog: pytest.LogCaptureFixture) -> None:
    config = HubConfig(queue_events=2, patience_seconds=0.05)
    for required in (False, True):
        hub, slow, quick = NissaHub(config=config), Slow(), Listening()
        hub.add_sink(slow, name="slow", background=True, required=required)
        hub.add_sink(quick, name="quick")
        sent = 0
        try:
            for sent in range(20):
                hub.emit(note(str(sent)))
        except TelemetryError as error:
            assert required and "took nothing for 0.05 s" in str(error)
            assert "COUNTERFACTUAL_UNAVAILABLE must not be dropped" in str(error)
        else:
            assert not required and "took nothing for 0.05 s" in caplog.text
            assert sum(int(str(data["count"])) for data in dropped(quick)) >= 2
        slow.let.release(10_000)
        hub.close()


def test_a_must_keep_event_gets_through_when_room_comes_in_time() -> None:
    hub, slow = NissaHub(config=HubConfig(queue_events=2, patience_seconds=30)), Slow()
    hub.add_sink(slow, background=True)
    timer = threading.Timer(0.05, lambda: slow.let.release(10_000))
    timer.start()
    for number in range(20):
        hub.emit(note(str(number)))
    hub.close()
    timer.join()
    assert len(slow) == 21 and not hub.drops and slow.asked["close"] == 1


def test_a_background_sink_that_raises_is_detached_with_all_it_had_queued_counted() -> None:
    hub, bad, good = NissaHub(), Broken(), Listening()
    hub.add_sink(bad, name="bad", background=True)
    hub.add_sink(good)
    deadline = time.monotonic() + 10
    while not dropped(good) and time.monotonic() < deadline:
        hub.emit(note())
        time.sleep(0.001)
    hub.close()
    lost = sum(drop.count for drop in hub.drops if drop.sink == "bad")
    assert lost + len(bad) == len(good)
