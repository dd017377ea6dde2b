"""Submissions: what adds up stands on a leaderboard, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_tables import A, C, made_up_host

from esper.bench.growtable import submissions
from esper.bench.growtable.reading import Reading
from esper.bench.growtable.score import HostKey, Tally, outcome_of
from esper.bench.growtable.submissions import Field
from esper.bench.growtable.table import Table, TableIdentity
from esper.bench.growtable.worlds import WORLDS
from esper.karn.stats import Interval
from esper.leyline import DataError

WORLD = WORLDS["digits-deep-noisy"]
HOSTS = [made_up_host(number, world=WORLD) for number in range(3)]
LED = {HostKey(WORLD.name, host.number): (A,) if host.number else (C,) for host in HOSTS}
NOTHING = {HostKey(WORLD.name, host.number): outcome_of(host, [host.records[()]]) for host in HOSTS}
FIELD = Field(Table(HOSTS, {}), TableIdentity(2, "a" * 64), {"random": NOTHING})
READING = Reading("all of these", "any host", Interval(1.0, 3, 0.5, 1.5), 4, 15, {})


def submitted(folder: Path, name: str = "mine") -> Path:
    given = submissions.submission(FIELD, (name, "p.safetensors", "b" * 64), "esper ...", LED, READING, Tally(9, 2))
    return submissions.write(folder, given)


def test_what_adds_up_comes_back_and_stands_on_the_leaderboard(tmp_path: Path) -> None:
    given = submissions.load(submitted(tmp_path), FIELD)
    assert given.played == {WORLD.name: {"0": "block2-conv3-4", "1": "block0-conv5-0", "2": "block0-conv5-0"}}
    assert given.ahead["random"][0] > 5
    text = submissions.leaderboard([given])
    assert f"Table {'a' * 16} of version 2, 3 hosts of `{WORLD.name}`." in text
    assert "| `mine` | " in text and "1.00 (0.50 to 1.50), 4 of 15 | 2 of 9 | bbbbbbbbbbbbbbbb |" in text


def test_the_best_stands_first(tmp_path: Path) -> None:
    given = submissions.load(submitted(tmp_path), FIELD)
    worse = submissions.submission(
        FIELD, ("none", "static", None), "esper ...", dict.fromkeys(LED, ()), READING, Tally(9, 0)
    )
    rows = submissions.leaderboard([worse, given]).splitlines()
    assert [row.split(" | ")[0] for row in rows[-2:]] == ["| `mine`", "| `none`"] and rows[-1].endswith("| code |")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "esper-growtable-submission-9"}, "'esper-growtable-submission-2' is needed"),
        ({"table": {"version": 3, "sha256": "a" * 64}}, "scored on table aaaaaaaaaaaaaaaa of version 3; the leader"),
        ({"table": {"version": 2, "sha256": "c" * 64}}, "scored on table cccccccccccccccc of version 2; the leader"),
        ({"objective": [99.0, 98.0, 100.0]}, "objective is 99.00 (98.00 to 100.00) there; the sequences that it names"),
        ({"ahead": {"random": [99.0, 98.0, 100.0]}}, "ahead of random is 99.00 (98.00 to 100.00) there; the sequences"),
        ({"ahead": {}}, "it is compared with ; needed: random"),
        ({"played": {WORLD.name: {"0": "static"}}}, "it played 1 hosts; needed are the table's 3 held-out ones"),
        (
            {"played": {WORLD.name: dict.fromkeys("012", "block1-norm-0")}},
            "of digits-deep-noisy holds no block1",
        ),
        ({"played": {WORLD.name: dict.fromkeys("012", "all")}}, "'all' names no sequence of choices"),
        ({"played": {WORLD.name: dict.fromkeys("012", "static")}}, "the sequences that it names give"),
        ({"changed": 16}, "contradict each other"),
        ({"lost": [2.0, 0.5, 1.5]}, "contradict each other"),
        ({"refused": 10}, "contradict each other"),
        ({"changed": 0}, "did nothing else in any episode"),
        ({"asked": "nine"}, "asked"),
        ({"name": "mine\n| `theirs` | 99"}, "matching regex"),
        ({"name": "mine\n"}, "matching regex"),
        ({"name": "mi\u202ene"}, "matching regex"),
        ({"policy_sha256": "b" * 64 + "\n"}, "matching regex"),
        ({"policy_sha256": "| 0 | bbbbbbbbb"}, "matching regex"),
        ({"rank": 1}, "rank"),
    ],
)
def test_what_does_not_is_refused_in_one_line(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = submitted(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError) as refused:
        submissions.load(path, FIELD)
    assert says in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        submissions.load(tmp_path / "nowhere.json", FIELD)
    (tmp_path / "torn.json").write_bytes(submitted(tmp_path).read_bytes()[:-9])
    with pytest.raises(DataError, match="torn"):
        submissions.load(tmp_path / "torn.json", FIELD)


def test_names_make_files(tmp_path: Path) -> None:
    assert submitted(tmp_path, "mine:Callable/../x").name == "mine-Callable-..-x.json"
    before = submitted(tmp_path, "mine:f").read_bytes()
    assert submitted(tmp_path, "mine:f").read_bytes() == before, "one's own is written anew"
    with pytest.raises(DataError, match="submission of 'mine/f': .*mine-f.json is the file of 'mine:f'"):
        submitted(tmp_path, "mine/f")
    assert submissions.load(tmp_path / "mine-f.json", FIELD).name == "mine:f"
    with pytest.raises(DataError, match="submission of 'a b': .*a-b.json is the file of 'a:b'"):
        submissions.places(tmp_path, ["a:b", "a b"])
    with pytest.raises(DataError, match="matching regex"):
        submitted(tmp_path, "mine\n")
