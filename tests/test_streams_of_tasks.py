"""Of the benchmark of streams: what is in an arm's account, and what is said of data that are not there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import stream_tasks
import streams

from esper.leyline import DataError, UsageError
from esper.tasks.base import Split

TINY = Split(torch.arange(24.0).reshape(8, 3).sin(), torch.arange(8) % 2)


def tasks(seed: int, train: int) -> list[stream_tasks.Task]:
    return [stream_tasks.Task(name, TINY, TINY, TINY) for name in "abc"]


def trial(arm: str, learned: Any = lambda: TINY) -> streams.Trial:
    return streams.Trial(stream_tasks.Stream("tiny", 2, 8, learned, tasks), arm, 0, 1e-3, 1, 8, 3)


def test_replay_leaves_heads_of_tasks_to_come_alone(tmp_path: Path) -> None:
    seen = []

    class Watched(streams.Replay):
        def run(self, model: nn.Module, *_: Any, **__: Any) -> Any:
            seen.append([streams.learning(head) for head in model.get_submodule("heads").children()])
            return SimpleNamespace(model=model)

    learner = Watched(trial("replay"), tasks(0, 8), "test", tmp_path)
    assert [len(said) for said in learner.learn()] == [1, 2, 3]
    head = 2 * stream_tasks.WIDTH + 2
    assert seen == [[head, 0, 0], [head, head, 0], [head, head, head]]
    body = streams.learning(stream_tasks.Perceptron(3, 2)) - head
    assert learner.added == [body + head, head, head]


def test_the_clock_is_off_while_the_host_is_made_and_while_what_is_kept_is_asserted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]

    def known() -> Split:
        now[0] += 1000.0
        return TINY

    class Timed(streams.Learner):
        asserted = 0

        def learn(self) -> Iterator[list[Tensor]]:
            for number in range(3):
                self.trial.stream.fresh(0, number)
                now[0] += 1.0
                yield [torch.eye(2)[TINY.targets]] * (number + 1)

        def assert_kept(self, said: Any) -> None:
            now[0] += 100.0
            Timed.asserted += len(said)

    monkeypatch.setattr(streams, "ARMS", {"grown": Timed})
    monkeypatch.setattr(streams, "time", SimpleNamespace(process_time=lambda: now[0]))
    found = streams.played(trial("grown", known), "test")
    assert found["cpu"] == 3.0 and now[0] == 1303.0 and Timed.asserted == 6
    assert found["accuracy"] == [[100.0], [100.0, 100.0], [100.0, 100.0, 100.0]]


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module, read in ((stream_tasks.clothes, stream_tasks._pictures), (stream_tasks.bible, stream_tasks._verses)):
        monkeypatch.setattr(module, "FOLDER", str(tmp_path))
        with pytest.raises(DataError, match=r"^\S+ is missing; on Debian and Ubuntu: apt-get install [\w -]+$"):
            read.__wrapped__()
    pictures = Split(torch.zeros(12_000 + 1500, 1, 1), torch.arange(13_500) % 10)
    monkeypatch.setattr(stream_tasks, "_pictures", lambda: {"clothes": pictures, "digits": pictures})
    assert len(stream_tasks._picture_tasks(0, 50)[0].train.targets) == 50
    for train in (0, 51):
        with pytest.raises(UsageError, match=f"--train is {train}; legal: 1 to 50, of a task of clothes"):
            stream_tasks._picture_tasks(0, train)
    books = [*stream_tasks.OTHERS, *(book for each in stream_tasks.BOOKS.values() for book in each)]
    verses = {book: (torch.zeros(20, 1), torch.arange(20)) for book in books}
    monkeypatch.setattr(stream_tasks, "_verses", lambda: verses)
    assert len(stream_tasks._verse_tasks(0, 40)[0].train.targets) == 40
    for train in (0, 42, 44):
        with pytest.raises(UsageError, match=f"--train is {train}; legal: multiples of 4 up to 40, by Ge"):
            stream_tasks._verse_tasks(0, train)
