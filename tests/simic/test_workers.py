"""What hosts do and what is said of them does not depend on who drives them, nor on who is lost on the way."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny as tiny_task
from histories import without_clock
from tiny import tiny

from esper.leyline import WAIT, Blend, Decision, EnvSpec, EsperError, FactoredAction, Op, TelemetryEvent, UsageError
from esper.leyline import TelemetryEventType as T
from esper.run.assembly import FORGIVING, build_executor, workload
from esper.run.config import RunConfig, resolve
from esper.simic import workers
from esper.simic.mdp import GrowthMDP, MDPConfig
from esper.simic.ppo_config import PPORunConfig
from esper.simic.rewards import RewardConfig
from esper.simic.vectorized import ActionSpace, PPOPlan, PPORun, fresh_network
from esper.simic.workers import (
    EnvFactory,
    EnvShard,
    LocalWorker,
    SaveRequest,
    WorkerAnswer,
    WorkerLost,
    WorkerPool,
    portable,
)
from esper.simic.workers_process import ProcessWorker, Sender, _serve
from esper.tolaria.executor import Executor

CONFIG = RunConfig(task="tiny:tiny", device="cpu")
EPOCHS, ROWS = 6, 5
GERMINATE = FactoredAction(Op.GERMINATE, "first", "mlp", Blend.LINEAR, 1.0, 1)
SCRIPT = [WAIT, GERMINATE, WAIT, FactoredAction(Op.PRUNE, "first"), GERMINATE, WAIT]


def make(emit: Callable[[TelemetryEvent], None]) -> Executor:
    return build_executor(workload(tiny(EPOCHS), CONFIG), CONFIG, emit, governor=FORGIVING, test=False)


def told(events: list[TelemetryEvent]) -> list[Any]:
    """Everything that is said, in order, but for times and for losses."""
    return [
        (event.event_type, event.env_id, event.episode, event.epoch, event.slot_id, repr(without_clock(event.data)))
        for event in events
        if event.event_type is not T.WORKER_REPLACED
    ]


def specs(rows: int = ROWS) -> list[EnvSpec]:
    return [EnvSpec(row, 0, 100 + row, EPOCHS, policy="scripted") for row in range(rows)]


def decisions(epoch: int, rows: int = ROWS) -> list[Decision]:
    """Another action for every row."""
    return [Decision(SCRIPT[(epoch + row) % len(SCRIPT)], "scripted", macs=7) for row in range(rows)]


def play(pool: WorkerPool, epochs: range = range(EPOCHS), begin: bool = True) -> list[Any]:
    """What the rows came to, bit for bit."""
    seen: list[Any] = []
    if begin:
        seen.append([(row.view, row.metric, row.cost) for row in pool.begin(specs())])
    for epoch in epochs:
        stepped = pool.step(decisions(epoch))
        seen.append([(row.report.view, row.report.readout, row.report.outcome, row.cost) for row in stepped])
    return seen


def crew_of(size: int, events: list[TelemetryEvent]) -> WorkerPool:
    return WorkerPool(lambda: LocalWorker(EnvShard(make)), size, events.append)


@pytest.fixture(scope="module")
def alone() -> tuple[list[Any], list[Any]]:
    events: list[TelemetryEvent] = []
    return play(crew_of(1, events)), told(events)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_number_of_workers_changes_nothing(size: int, alone: tuple[list[Any], list[Any]]) -> None:
    events: list[TelemetryEvent] = []
    assert (play(crew_of(size, events)), told(events)) == alone
    assert sum(event.event_type is T.EPISODE_ENDED for event in events) == ROWS


def test_workers_without_rows_idle() -> None:
    pool = crew_of(5, [])
    assert len(pool.begin(specs(2))) == 2 and len(pool.step(decisions(0, 2))) == 2


def test_an_episode_goes_on_with_another_number_of_workers(alone: tuple[list[Any], list[Any]]) -> None:
    before: list[TelemetryEvent] = []
    after: list[TelemetryEvent] = []
    pool = crew_of(3, before)
    seen = play(pool, range(3))
    again = crew_of(2, after)
    views = again.load(pool.state())
    assert again.epoch == 3 and [view.env_id for view in views] == list(range(ROWS)) and not after
    seen += play(again, range(3, EPOCHS), begin=False)
    assert (seen, told(before) + told(after)) == alone


class Mortal(LocalWorker):
    """Is lost for good with the answer to its ``dies``-th request, having done what was asked."""

    def __init__(self, dies: int) -> None:
        super().__init__(EnvShard(make))
        self.left = dies

    def answer(self) -> WorkerAnswer:
        answer = super().answer()
        self.left -= 1
        if self.left <= 0:
            raise WorkerLost("struck by lightning")
        return answer


def mortals(deaths: list[int], events: list[TelemetryEvent], size: int = 2) -> WorkerPool:
    """Workers that are lost at these requests, in the order in which they are hired; then immortal ones."""
    lives = iter(deaths)
    return WorkerPool(lambda: Mortal(next(lives, 10**9)), size, events.append)


@pytest.mark.parametrize(
    ("deaths", "lost"),
    [
        ([1], [(0, 0)]),  # with the episode's beginning
        ([4], [(0, 2)]),  # in mid-episode
        ([10**9, 7], [(1, 5)]),  # with the last step
        ([4, 4], [(0, 2), (1, 2)]),  # both at once
        ([4, 10**9, 3], [(0, 2), (0, 2)]),  # the replacement too, while it catches up
    ],
)
def test_who_is_lost_is_replaced(
    deaths: list[int], lost: list[tuple[int, int]], alone: tuple[list[Any], list[Any]]
) -> None:
    events: list[TelemetryEvent] = []
    assert (play(mortals(deaths, events)), told(events)) == alone
    said = [event for event in events if event.event_type is T.WORKER_REPLACED]
    assert [(event.data["worker"], event.data["epochs_repeated"]) for event in said] == lost
    assert all(event.producer == "run" and "lightning" in event.data["reason"] for event in said)
    assert said[0].data["environments"] == [[0, 1], [2, 3, 4]][lost[0][0]]


def test_a_loaded_episode_is_repeated_from_where_it_was_loaded(alone: tuple[list[Any], list[Any]]) -> None:
    pool = crew_of(1, [])
    play(pool, range(2))
    again = mortals([3], [])
    again.load(pool.state())
    assert play(again, range(2, EPOCHS), begin=False) == alone[0][3:]


def test_without_its_past_a_replacement_would_not_be_the_same(alone: tuple[list[Any], list[Any]]) -> None:
    """The mutant: it repeats all but one epoch."""
    pool = mortals([4], [])
    seen = play(pool, range(2))
    pool._past[0].pop()
    assert play(pool, range(2, EPOCHS), begin=False) != alone[0][3:]
    assert seen == alone[0][:3]


def test_patience_ends() -> None:
    pool = mortals([1] * 9, [], size=1)
    with pytest.raises(EsperError, match="worker 0 was lost 4 times over one step: struck by lightning"):
        pool.begin(specs())


class Silent(LocalWorker):
    """Answers when it was waited for so often."""

    def __init__(self, waits: int) -> None:
        super().__init__(EnvShard(make))
        self.waits = waits

    def wait(self, seconds: float) -> bool:
        time.sleep(0.01)
        self.waits -= 1
        return self.waits < 0

    def condition(self) -> str:
        return "it sleeps"


def test_a_worker_that_is_silent_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SILENT_SECONDS", 0.03)
    said: list[str] = []
    pool = WorkerPool(lambda: Silent(15), 1, lambda event: None, tell=said.append)
    pool.begin(specs(2))
    assert 1 <= len(said) <= 3, "once, and again each time that doubles"
    assert re.fullmatch(
        r"worker 0 \(this process, environments 0, 1\) has not answered for 0 s; it sleeps; "
        "--workers-timeout SECONDS limits that",
        said[0],
    )
    pool.step(decisions(0, 2))
    assert pool._longest >= 0.15 and len(said) <= 3, "what takes long is not silence the second time"


def test_and_is_not_waited_for_for_ever() -> None:
    pool = WorkerPool(lambda: Silent(10**9), 1, lambda event: None, timeout=0.05)
    with pytest.raises(EsperError, match=r"has not answered for .* it sleeps; --workers-timeout 0.05 is over"):
        pool.begin(specs(2))


def test_a_signal_waits_for_a_moment_of_waiting_to_be_over() -> None:
    """Ray would make another error of what a handler raises in it."""
    waiting = [False]

    @contextmanager
    def shield() -> Iterator[None]:
        waiting[0] = True
        yield
        waiting[0] = False
        raise KeyboardInterrupt

    class Attentive(Silent):
        def wait(self, seconds: float) -> bool:
            assert waiting[0] and seconds <= 0.2
            return False

    pool = WorkerPool(lambda: Attentive(1), 1, lambda event: None)
    pool.shield = shield
    with pytest.raises(KeyboardInterrupt):
        pool.begin(specs(2))


def test_what_is_sent_to_a_worker_that_reads_nothing_is_not_waited_for() -> None:
    ours, its = multiprocessing.Pipe()
    sender = Sender(ours)
    sender.send(bytes(1 << 22))
    its.close()
    sender.join()
    ours.close()


def test_what_was_said_before_an_error_is_told() -> None:
    events: list[TelemetryEvent] = []
    pool = crew_of(2, events)
    pool.begin(specs())
    executor = pool.workers[1].share.executor  # type: ignore[attr-defined]

    def broken(rows: Any) -> Any:
        raise UsageError("out of order")

    executor.engine.train_epoch = broken
    before = len(events)
    with pytest.raises(UsageError, match="out of order"):
        pool.step([Decision(GERMINATE, "scripted")] * ROWS)
    assert {event.env_id for event in events[before:]} == set(range(ROWS))


def test_errors_travel() -> None:
    mistake = portable(WorkerAnswer(None, UsageError("no such slot"), (), 0.0)).error
    assert type(mistake) is UsageError and str(mistake) == "no such slot"
    try:
        raise ZeroDivisionError("deep inside")
    except ZeroDivisionError as error:
        fault = portable(WorkerAnswer(None, error, (), 0.0)).error
    assert isinstance(fault, RuntimeError) and "test_errors_travel" in str(fault) and "deep inside" in str(fault)


@pytest.mark.parametrize("size", [2, 3])
def test_a_policy_learns_the_same_from_any_crew(size: int) -> None:
    def learn(pool: WorkerPool, events: list[TelemetryEvent]) -> tuple[list[Any], dict[str, Any]]:
        load = workload(tiny(4), CONFIG)
        mdp = GrowthMDP(pool, load.task.metric, MDPConfig(4, RewardConfig(control=True)))
        space = ActionSpace(tuple(load.task.sites), load.task.blueprints)

        class Journal:
            emit = staticmethod(events.append)

        run = PPORun(mdp, space, fresh_network(3, cells=8), PPOPlan(rounds=2, envs=3, seed=3, hosts=4), Journal())
        run.run()
        totals.append(run.training_macs)
        return told(events), {name: part.numpy().tobytes() for name, part in run.network.state_dict().items()}

    def make_four(emit: Callable[[TelemetryEvent], None]) -> Executor:
        return build_executor(workload(tiny(4), CONFIG), CONFIG, emit, governor=FORGIVING, test=False)

    totals: list[int] = []
    one: list[TelemetryEvent] = []
    many: list[TelemetryEvent] = []
    first = learn(WorkerPool.here(make_four, one.append), one)
    assert learn(WorkerPool(lambda: LocalWorker(EnvShard(make_four)), size, many.append), many) == first
    spent = [event.data for event in one if event.event_type is T.COMPUTE_SPENT]
    acting = [event.data["acting_macs"] for event in one if event.event_type is T.PPO_UPDATE_COMPLETED]
    assert sum(acting) > 0 and sum(data["policy_macs"] for data in spent) == sum(acting)
    learning = [event.data["update_macs"] for event in one if event.event_type is T.PPO_UPDATE_COMPLETED]
    assert totals == [sum(data["total_macs"] for data in spent) + sum(learning)] * 2
    assert all((data["policy_macs"] == 0) == (data["arm"] == "static") for data in spent)
    for data in spent:
        parts = ("train_forward", "train_backward", "probe", "validation", "counterfactual", "test", "policy")
        assert data["total_macs"] == sum(data[f"{part}_macs"] for part in parts)
    controls = [event for event in one if event.event_type is T.EPISODE_STARTED and event.data["arm"] == "static"]
    assert len(controls) == len({event.data["seed"] for event in controls}) == 4, "one for each distinct host"


@pytest.mark.slow
def test_processes_do_the_same_and_are_replaced_when_they_are_killed(alone: tuple[list[Any], list[Any]]) -> None:
    events: list[TelemetryEvent] = []
    factory = EnvFactory(CONFIG, tiny_task.tiny().data.digest)
    with WorkerPool(lambda: ProcessWorker(factory), 1, events.append) as pool:
        seen = play(pool, range(3))
        victim = pool.workers[0]
        assert isinstance(victim, ProcessWorker) and victim.process.pid is not None
        os.kill(victim.process.pid, signal.SIGKILL)
        seen += play(pool, range(3, EPOCHS), begin=False)
        assert pool.cpu_seconds > 0
        last = pool.workers[0]
    assert (seen, told(events)) == alone
    (replaced,) = [event for event in events if event.event_type is T.WORKER_REPLACED]
    assert replaced.data["reason"] == "killed by SIGKILL" and replaced.data["epochs_repeated"] == 3
    assert isinstance(last, ProcessWorker) and not last.process.is_alive()


@pytest.mark.slow
def test_a_process_that_was_stopped_says_so_and_takes_what_is_sent() -> None:
    factory = EnvFactory(CONFIG, tiny_task.tiny().data.digest)
    with WorkerPool(lambda: ProcessWorker(factory), 1, lambda event: None) as pool:
        pool.begin(specs())
        victim = pool.workers[0]
        assert isinstance(victim, ProcessWorker) and victim.process.pid is not None
        os.kill(victim.process.pid, signal.SIGSTOP)
        pool._timeout = 1.0
        with pytest.raises(EsperError, match=r"it was stopped \(SIGSTOP\).*--workers-timeout 1 is over"):
            pool.step(decisions(0))
    assert not victim.process.is_alive()


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_a_worker_ends_when_the_learner_is_gone(asked: int) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours, its = multiprocessing.Pipe()
    for _ in range(asked):
        ours.send(SaveRequest())
    ours.close()
    try:
        _serve(its, EnvFactory(CONFIG, "another digest"))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        its.close()


def test_a_worker_with_other_data_refuses() -> None:
    share = EnvShard(EnvFactory(CONFIG, "another digest"))
    error = share.answer(SaveRequest()).error
    assert isinstance(error, EsperError) and "another digest" in str(error)


@pytest.mark.parametrize("workers", [0, 9, "many", "http://there"])
def test_nonsense_is_refused(workers: Any) -> None:
    with pytest.raises(UsageError, match="workers is"):
        PPORunConfig(envs=8, workers=workers)


@pytest.mark.parametrize(("given", "legal"), [(2, True), ("ray", True), ("ray://there:10001", True), (True, False)])
def test_a_file_may_say_how_many(given: Any, legal: bool) -> None:
    if legal:
        assert resolve(PPORunConfig, {}, {"workers": given}).config.workers == given
    else:
        with pytest.raises(UsageError, match="workers is True: Expected `int . str`"):
            resolve(PPORunConfig, {}, {"workers": given})
