"""``esper growtable``: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import pytest
from made_up_tables import B, C, made_up_host

from esper.bench.growtable import arms
from esper.bench.growtable.arms import Scores
from esper.bench.growtable.families import FamilyScore
from esper.bench.growtable.host import TableHost
from esper.bench.growtable.learn import Learned, LearnPlan, Tell
from esper.bench.growtable.reading import readings
from esper.bench.growtable.score import ArmScore, Duel
from esper.bench.growtable.sequences import name_of
from esper.bench.growtable.table import Table, load_table, save_table
from esper.bench.growtable.worlds import KNOWN, WORLDS, WorldSpec
from esper.karn.stats import Interval
from esper.scripts import growtable_runs
from esper.scripts.main import main
from esper.simic.vectorized import fresh_network
from esper.tamiyo.policies import learned
from esper.tamiyo.policies.learned import READER, SHIPPED, SHIPPED_FILE, load_policy, save_policy


@pytest.fixture
def table(tmp_path: Path) -> Path:
    hosts = [
        made_up_host(number, world=WORLDS[name]) for name in ("digits", "digits-deep-noisy") for number in range(2)
    ]
    save_table(Table(hosts, {}), tmp_path / "t.growtable")
    return tmp_path / "t.growtable"


def test_a_score_goes_into_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # real runs of a few epochs, and one permutation instead of five
    monkeypatch.setattr(arms, "readings", partial(readings, count=1))
    hosts = []
    for name in ("digits", "digits-deep-noisy"):
        monkeypatch.setitem(KNOWN, name, replace(KNOWN[name], epochs=5))
        hosts += [made_up_host(number, world=KNOWN[name]) for number in range(2)]
    table, page, policy = (tmp_path / name for name in ("t.growtable", "page.md", "p.safetensors"))
    save_table(Table(hosts, {}), table)
    page.write_text("before\n<!-- bench growtable: begin -->\nold\n<!-- bench growtable: end -->\nafter\n")
    card = {"policy_macs": 10, "table_macs": 20}
    save_policy(policy, fresh_network(0, cells=8), card, nurture=True)
    rows, folder = tmp_path / "scores.csv", tmp_path / "submissions"
    command = ["growtable", "score", "--table", str(table), "--policy", str(policy), "--into", str(page)]
    command += ["--policy", SHIPPED]
    assert main([*command, "--output", str(rows), "--submit", str(folder)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    for part in (
        f"`{name_of((B, C))}`",
        "| random | 1.00 (",
        "| `p` | ",
        "| `p`, real runs | ",
        "| `esper-v1`, real runs | ",
        "| best schedule that fits | ",
        "| largest legal first | ",
        "| best constant ranking | ",
        "| UCB | ",
        "| `esper-v1` | best blind choice | ",
        "| `p` | all of these | of its world | ",
        "`p`: Reading test: ",
        "actions that it asked for in the table none was illegal",
        "`esper-v1`: In real runs it is ahead of frugal by ",
        "| frugal, real runs | ",
        "MACs a use",
        "| oracle",
    ):
        assert part in text
    assert "digits-deep-noisy" in capsys.readouterr().out
    read = list(csv.DictReader(rows.read_text().splitlines()))
    assert {(row["arm"], row["runs"]) for row in read} >= {("p", "table"), ("p", "real"), ("UCB", "table")}
    assert {(row["world"], row["host"]) for row in read} == {("digits-deep-noisy", "0"), ("digits-deep-noisy", "1")}
    shipped = json.loads((folder / f"{SHIPPED}.json").read_text())
    assert shipped["policy_sha256"] == hashlib.sha256(SHIPPED_FILE.read_bytes()).hexdigest()
    page.write_text("<!-- bench leaderboard: begin -->\n<!-- bench leaderboard: end -->\n")
    ranked = ["growtable", "leaderboard", str(folder / "p.json"), "--table", str(table), "--into", str(page)]
    assert main(ranked) == 0
    mean = fmean(float(row["objective"]) for row in read if (row["arm"], row["runs"]) == ("p", "table"))
    assert f"| `p` | {mean:.2f} (" in page.read_text()
    capsys.readouterr()
    assert main([*ranked[:3], str(folder / "p.json"), *ranked[3:]]) == 1
    assert "another one is called p, too" in capsys.readouterr().err


def test_a_policy_that_auditions_is_refused_where_no_audition_is_held(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["growtable", "score", "--table", str(table), "--policy", "promise"]) == 2
    error = capsys.readouterr().err
    assert "policy 'promise' asks for an audition on host 0 of digits-deep-noisy" in error and error.count("\n") == 1


def test_a_policy_learns_in_several_tables(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = WorldSpec("heard", "mnist1d", audition="conv5", times=(1,))
    other, policy = table.parent / "u.growtable", table.parent / "p.safetensors"
    save_table(Table([made_up_host(0, ((), (replace(B, epoch=1),)), world=heard)], {}), other)
    drawn: list[str] = []

    def learnt(hosts: list[TableHost], plan: LearnPlan, tell: Tell) -> Learned:
        drawn.extend(host.world.name for host in hosts)
        return Learned(fresh_network(0, cells=8), 9, 9)

    monkeypatch.setattr(growtable_runs, "learn", learnt)
    command = ["growtable", "train", "--output", str(policy), "--table", str(table), "--table"]
    assert main([*command, str(other)]) == 0
    saved = load_policy(policy)
    assert saved.auditions and saved.card["worlds"] == ["digits", "heard"] and saved.card["hosts"] == 3
    assert drawn == ["digits", "digits", "heard", "heard"], "tables count alike"
    assert main(["growtable", "tune", "--policy", str(policy), "--output", str(other)]) == 2
    error = capsys.readouterr().err
    assert "p.safetensors: rules audition places for it" in error and error.count("\n") == 1
    assert main([*command, str(table)]) == 2
    assert "t.growtable: holds digits, as one before it does; legal: " in capsys.readouterr().err


def test_a_shipped_policy_has_its_scores_on_its_card(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, shipped = table.parent / "p.safetensors", table.parent / "package" / "esper-v2.safetensors"
    save_policy(policy, fresh_network(0, cells=8), {"seed": 3}, nurture=True, auditions=True)
    monkeypatch.setattr(learned, "PACKAGED", {READER: shipped})

    def scored(
        table: Table, training: list[str], worlds: list[str], policies: dict[str, str], *, real_runs: bool
    ) -> Scores:
        assert (worlds, policies, real_runs) == (["digits-deep-noisy"], {READER: str(policy)}, False)
        arm = ArmScore("`p`, real runs", Interval(0.1, 2, 0.0, 0.2), {}, None, 1.0)
        points = Interval(1.0, 2, 0.5, 3.0)
        family = FamilyScore("`esper-v1`", "far", {arms.BLIND: points}, Interval(2.0, 2, 1.0, 3.0))
        duel = Duel("`esper-v1`", arms.BLIND, points, None)
        return Scores((), (), [arm], [duel], [family], remarks=["`p`: ahead"])

    monkeypatch.setattr(growtable_runs, "scored", scored)
    told = ["--name", READER, "--table-only", "--remark", "It reads."]
    assert main(["growtable", "ship", "--table", str(table), "--policy", str(policy), *told]) == 0
    saved = load_policy(shipped)
    assert (
        saved.nurture
        and saved.auditions
        and saved.card
        == {
            "seed": 3,
            "scored_on": ["digits-deep-noisy"],
            "regret": {"`p`, real runs": [0.0, 0.1, 0.2]},
            "ahead": {arms.BLIND: [0.5, 1.0, 3.0]},
            "families": {"far": {"ahead": {arms.BLIND: [0.5, 1.0, 3.0]}, "lost": [1.0, 2.0, 3.0]}},
            "remarks": ["`p`: ahead", "It reads."],
        }
    )
    once, policy = shipped.read_bytes(), shipped
    assert main(["growtable", "ship", "--table", str(table), "--policy", str(policy), *told]) == 0
    assert shipped.read_bytes() == once


def test_what_was_built_is_packed_and_what_was_not_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, out = str(tmp_path / "parts"), tmp_path / "t"
    plan = ["--worlds", "digits-wide-short", "--seeds", "2", "--singles", "1", "--pairs", "0", "--parts", parts]
    assert main(["growtable", "build", *plan, "--pack-only", "--output", str(out)]) == 1
    assert "holds no host that has played this plan" in capsys.readouterr().err and not out.exists()
    assert main(["growtable", "build", *plan, "--output", str(out)]) == 0
    assert "4 sequences, 0 missing" in capsys.readouterr().out
    assert main(["growtable", "build", *plan, "--seeds", "3", "--pack-only", "--output", str(out)]) == 0
    assert "4 sequences, 2 missing" in capsys.readouterr().out
    assert load_table(out).about["missing"] == 2


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["build", "--worlds", "digit"], 2, "unknown world 'digit'; did you mean 'digits'"),
        (["build", "--seeds", "1"], 2, "seeds is 1; it must be 2 or more"),
        (["score", "--table", "nowhere"], 1, "rebuild it with: esper growtable build"),
        (["score", "--table", "SMALL", "--policy", "no.safetensors"], 1, "policy no.safetensors: No such file"),
        (["score", "--table", "SMALL", "--policy", "nowhere_at_all:f"], 2, "cannot import 'nowhere_at_all'"),
        (["score", "--into", "nowhere.md"], 2, "--into nowhere.md: no such page"),
        (["score", "--output", "scores.xlsx"], 2, "--output scores.xlsx: a table of scores ends in .csv"),
        (["score", "--submit", "nowhere"], 2, "no --policy is named that could be submitted"),
        (["train", "--output", "."], 2, "--output .: a directory; a file is needed"),
        (["check", "--table", "SMALL", "--count", "0"], 2, "count is 0; it must be 1 or more"),
        (["prune"], 2, "invalid choice: 'prune'"),
        ([], 2, "required: COMMAND"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], status: int, says: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["growtable", *(str(table) if each == "SMALL" else each for each in arguments)]) == status
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_table_without_held_out_worlds_cannot_be_scored_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_table(Table([made_up_host(0), made_up_host(1)], {}), tmp_path / "t")
    assert main(["growtable", "score", "--table", str(tmp_path / "t")]) == 2
    assert "holds no held-out world with two hosts" in capsys.readouterr().err
