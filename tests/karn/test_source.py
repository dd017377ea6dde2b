from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from esper.karn import state as states
from esper.karn.aggregator import fold
from esper.karn.source import Follower
from esper.leyline import TelemetryEvent
from esper.nissa.journal import JournalWriter, Supersede
from karn.journals import RUN_ID, write_run
from karn.streams import random_run, story


def _same(follower: Follower, events: list[TelemetryEvent]) -> bool:
    return states.encode(follower.state) == states.encode(fold(events))


def test_follows_a_growing_journal(tmp_path: Path) -> None:
    events = story()
    follower = Follower(tmp_path)
    assert follower.poll() == 0
    with JournalWriter(tmp_path, RUN_ID) as writer:
        for at, event in enumerate(events):
            writer(event)
            if at % 7 == 0:
                writer.flush()
                follower.poll()
    follower.poll()
    assert _same(follower, events) and follower.damage == []


def test_a_torn_tail_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    path = write_run(tmp_path, story())
    journal = path / "events-00001.jsonl"
    whole = journal.read_bytes()
    commit = whole.rindex(b'{"commit"')
    journal.write_bytes(whole[: commit - 10])
    follower = Follower(path)
    follower.poll()
    assert 0 < follower.state.events < len(story())
    (damage,) = follower.damage
    assert damage.kind == "torn" and "not committed" in damage.text


def test_damage_in_the_middle_stops_with_file_and_offset(tmp_path: Path) -> None:
    path = write_run(tmp_path, story())
    journal = path / "events-00001.jsonl"
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    follower = Follower(path)
    follower.poll()
    (damage,) = follower.damage
    assert damage.kind == "damaged" and "events-00001.jsonl: journal damaged at byte" in damage.text
    assert follower.poll() == 0


def test_a_newer_schema_is_said(tmp_path: Path) -> None:
    path = write_run(tmp_path, story())
    journal = path / "events-00001.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"schema":1', b'"schema":9', 1))
    follower = Follower(path)
    follower.poll()
    (damage,) = follower.damage
    assert damage.kind == "newer" and "upgrade" in damage.text


def test_a_journal_deleted_and_replaced_while_open(tmp_path: Path) -> None:
    path = write_run(tmp_path, story())
    follower = Follower(path)
    follower.poll()
    before = states.encode(follower.state)
    shutil.rmtree(path)
    assert follower.poll() == 0
    assert [damage.kind for damage in follower.damage] == ["replaced"] or follower.damage == []
    assert states.encode(follower.state) == before
    other = random_run(5)
    write_run(tmp_path, other)
    for _ in range(3):
        follower.poll()
    assert _same(follower, other)


def test_a_resume_takes_back_what_it_supersedes(tmp_path: Path) -> None:
    events = story()
    with JournalWriter(tmp_path, RUN_ID) as writer:
        for event in events[:30]:
            writer(event)
    follower = Follower(tmp_path)
    follower.poll()
    with JournalWriter(tmp_path, RUN_ID, supersede=Supersede("train", 20)) as writer:
        for event in events[20:]:
            writer(event)
    follower.poll()
    assert _same(follower, events)
    assert [damage.kind for damage in follower.damage] == ["resumed"]


def test_an_empty_folder_waits(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    assert follower.poll() == 0 and follower.damage == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs permissions that bind")
def test_an_unreadable_journal_is_said(tmp_path: Path) -> None:
    path = write_run(tmp_path, story())
    (path / "events-00001.jsonl").chmod(0)
    follower = Follower(path)
    follower.poll()
    assert [damage.kind for damage in follower.damage] == ["damaged"]
