"""What a policy is worth by family of worlds, against a slow reference."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from made_up_tables import DIGITS, A, B, made_up_host

from esper.bench.growtable import arms, report
from esper.bench.growtable.arms import BESIDE, ORACLE, scored
from esper.bench.growtable.entrants import entrant
from esper.bench.growtable.families import FamilyScore, by_family
from esper.bench.growtable.score import HostKey, HostResult
from esper.bench.growtable.table import Table
from esper.karn.stats import Interval

FAR = [replace(DIGITS, name=f"far-{kind}", family="far") for kind in range(2)]
NEAR = [replace(DIGITS, name=f"near-{kind}", family="near") for kind in range(2)]
TABLE = Table((made_up_host(n, ((),), world=world) for world in (*FAR, *NEAR) for n in range(3)), {})
MINE = {
    "far-0": (50.0, 51.0, 49.0),
    "far-1": (80.0, 84.0, 79.0),
    "near-0": (30.0, 20.0, 10.0),
    "near-1": (60.0, 61.0, 65.0),
}
THEIRS = {
    "far-0": (44.0, 42.0, 43.0),
    "far-1": (70.0, 73.0, 71.0),
    "near-0": (31.0, 29.0, 10.5),
    "near-1": (59.0, 63.0, 66.0),
}
LOST = {"far-0": (5.0, 6.0, 4.0), "far-1": (9.0, 8.0, 9.5), "near-0": (0.0, 0.0, 0.0), "near-1": (-1.0, 1.0, 0.0)}
QUANTILES = {2: 4.302653, 3: 3.182446, 4: 2.776445}
"""Student's t at 97.5 %, of a printed table."""


def by_host(values: dict[str, tuple[float, ...]]) -> dict[HostKey, float]:
    return {HostKey(world, n): value for world, those in values.items() for n, value in enumerate(those)}


def found() -> list[FamilyScore]:
    results = {
        arm: {key: HostResult(value, 0.0) for key, value in by_host(values).items()}
        for arm, values in (("mine", MINE), ("theirs", THEIRS))
    }
    return by_family(TABLE, TABLE.worlds, "mine", results, ["theirs"], by_host(LOST))


def slowly(values: dict[str, list[float]]) -> tuple[float, float, float]:
    """Mean of the worlds' means with its interval, as the books have it."""
    each = [(statistics.mean(part), statistics.variance(part) / len(part)) for part in values.values()]
    mean = statistics.mean(m for m, _ in each)
    freedom = sum(v for _, v in each) ** 2 / sum(v**2 / 2 for _, v in each)
    half = QUANTILES[int(freedom)] * sum(v for _, v in each) ** 0.5 / len(each)
    return mean, mean - half, mean + half


def test_each_family_is_the_slow_reference_of_its_own_hosts() -> None:
    for each, name in zip(found(), ("far", "near"), strict=True):
        assert (each.policy, each.family, each.lost.n) == ("mine", name, 6)
        worlds = [f"{name}-0", f"{name}-1"]
        paired = {w: [a - b for a, b in zip(MINE[w], THEIRS[w], strict=True)] for w in worlds}
        for interval, values in ((each.over["theirs"], paired), (each.lost, {w: list(LOST[w]) for w in worlds})):
            assert (interval.mean, interval.low, interval.high) == pytest.approx(slowly(values), rel=1e-6)


def test_what_holds_of_all_need_not_hold_of_each() -> None:
    far, near = found()
    assert far.over["theirs"].low is not None and far.over["theirs"].low > 0 > near.over["theirs"].mean
    rows = report.families([far, near]).splitlines()
    assert rows[0] == "| policy, in the table | family | hosts | minus theirs | loses, shown another host's |"
    assert rows[2].startswith("| mine | `far` | 6 | 8.33 (") and rows[3].endswith("| 0.00 (-1.24 to 1.24) |")


def test_a_score_has_them_by_the_hosts_of_its_data_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = [replace(world, held_out=True) for world in (FAR[0], NEAR[0])]
    table = Table((made_up_host(n, ((), (A,), (B,)), world=w) for w in (DIGITS, *held_out) for n in range(2)), {})
    monkeypatch.setattr(arms, "entrant", lambda *named: replace(entrant(*named), auditions=True))
    found = scored(table, ["digits"], ["far-0", "near-0"], {"none": "static"}, real_runs=False)
    assert [(each.policy, each.family) for each in found.families] == [("`none`", "far"), ("`none`", "near")]
    assert "`none`: In the table of far-0, near-0 it saw nothing that places promise" in "".join(found.remarks)
    for each in found.families:
        assert tuple(each.over) == (*BESIDE, ORACLE)
        for rival in each.over:
            mine, theirs = (
                [row["objective"] for row in found.rows() if (row["arm"], row["world"]) == (arm, f"{each.family}-0")]
                for arm in ("none", rival)
            )
            paired = [float(a) - float(b) for a, b in zip(mine, theirs, strict=True)]
            assert each.over[rival].mean == pytest.approx(statistics.mean(paired)) and len(paired) == 2
        assert each.lost == Interval(0.0, 2, 0.0, 0.0), "who never grows is a constant"


def test_one_family_or_none_has_no_table() -> None:
    results = {"mine": {key: HostResult(value, 0.0) for key, value in by_host(MINE).items()}}
    assert by_family(TABLE, ["far-0", "far-1"], "mine", results, ["mine"], by_host(LOST)) == []
    alone = Table((made_up_host(n, ((),)) for n in range(2)), {})
    assert by_family(alone, ["digits"], "mine", results, ["mine"], by_host(LOST)) == []
    assert report.families([]) == ""
