"""Searching topologies: what is proposed, what is stopped, and what a search spends."""

import math
from dataclasses import replace

import bench_toys
import pytest

from esper.bench.arms import ARMS, SEARCHED, chosen
from esper.bench.settings import TrialSetting
from esper.bench.topologies import SEARCHES, TopologySearch
from esper.bench.trial import Work, _TrialRun, run_trial
from esper.leyline import EsperError

SIZES = {"a": {"x": 1, "y": 2}, "b": {"x": 1}, "c": {}}
SPACE = {(a, b) for a in (None, "x", "y") for b in (None, "x")}
WORTH = {("y", "x"): 6.0, ("y", None): 5.0, ("x", "x"): 4.0, ("x", None): 3.0, (None, "x"): 2.0, (None, None): 1.0}


def whole(name, seed, higher=True):
    """Everything that is proposed until nothing is left, in order."""
    search, found = TopologySearch(SEARCHES[name], SIZES, seed, 9, higher), []
    while (candidate := search.ask()) is not None:
        key = candidate.topology.get("a"), candidate.topology.get("b")
        found.append(key)
        search.tell(candidate, WORTH[key] if higher else -WORTH[key])
    return found


@pytest.mark.parametrize("name", SEARCHES)
def test_every_topology_is_trained_once_in_an_order_that_the_seed_gives(name):
    orders = [whole(name, seed) for seed in range(3)]
    assert all(set(order) == SPACE and len(order) == len(SPACE) for order in orders)
    assert whole(name, 2) == orders[2]
    assert len({tuple(order) for order in orders}) > 1


def test_hyperband_stops_what_falls_behind_and_random_search_does_not():
    stopped = {}
    for name in SEARCHES:
        search, stopped[name] = TopologySearch(SEARCHES[name], {s: dict.fromkeys("pqrst", 1) for s in "abc"}, 0, 9), 0
        for number in range(30):
            candidate = search.ask()
            worth = 100.0 - number  # each is worse than those before
            stop = next((epoch for epoch in range(1, 10) if search.report(candidate, epoch, worth)), None)
            stopped[name] += stop is not None
            search.tell(candidate, worth)
    assert stopped["search-random"] == 0 and stopped["search-tpe"] > 10


def test_tpe_learns_where_the_good_ones_are_also_where_lower_is_better():
    """Of 5 ** 4 topologies those with ``p`` everywhere are best."""
    sizes = {slot: dict.fromkeys("pqrs", 1) for slot in "abcd"}
    for sign in (1.0, -1.0):
        means = {}
        for name in SEARCHES:
            got = []
            for seed in range(5):
                search = TopologySearch(SEARCHES[name], sizes, seed, 9, sign > 0)
                worths = []
                for _ in range(30):
                    candidate = search.ask()
                    worths.append(sum(blueprint == "p" for blueprint in candidate.topology.values()))
                    search.tell(candidate, sign * worths[-1])
                got.append(sum(worths[-8:]) / 8)
            means[name] = sum(got) / len(got)
        assert means["search-tpe"] > means["search-random"] + 0.5, (sign, means)


def test_one_that_failed_is_not_proposed_again():
    search = TopologySearch(SEARCHES["search-tpe"], {"a": {"x": 1}}, 0, 9)
    seen = []
    while (candidate := search.ask()) is not None:
        seen.append(dict(candidate.topology))
        search.tell(candidate, None)
    assert sorted(map(len, seen)) == [0, 1]


@pytest.mark.parametrize("stage", ["tune", "final"])
def test_a_search_spends_what_growing_spent_and_looks_at_the_test_split_once(stage):
    macs, setting = 12_000_000, TrialSetting(at=0.4)
    work = Work(bench_toys.TINY, (), 5)
    outcome = run_trial(
        bench_toys.trial(work=work, arm="search-tpe", stage=stage, topology=SEARCHED, macs=macs, setting=setting)
    )
    assert outcome.failed is None and outcome.candidates >= 1
    assert [spent for spent, _ in outcome.curve] == sorted(spent for spent, _ in outcome.curve)
    best = [metric for _, metric in outcome.curve]
    assert best == sorted(best) and outcome.validation == best[-1]
    assert outcome.macs >= macs > outcome.curve[-2][0] if len(outcome.curve) > 1 else outcome.macs >= macs
    assert (outcome.test is None) is (stage == "tune") and (outcome.spent["test_macs"] > 0) is (stage == "final")
    assert outcome.epochs == len(outcome.curve)
    assert outcome.macs == outcome.spent["total_macs"]


def test_a_search_counts_all_that_it_trained_and_a_metric_that_is_no_number_is_worst(monkeypatch):
    """The first candidate's metric is no number, the second fails; each took two seconds but that."""
    part, runs = _TrialRun.part, []

    def odd(run, epochs, told):
        runs.append(run)
        result = part(run, epochs, told)
        if len(runs) == 2:
            raise EsperError("training failed")
        return replace(result, seconds=2.0, **({"validation_metric": math.nan} if len(runs) == 1 else {}))

    monkeypatch.setattr(_TrialRun, "part", odd)
    outcome = run_trial(
        bench_toys.trial(work=Work(bench_toys.TINY, (), 1), arm="search-random", topology=SEARCHED, macs=9_000_000)
    )
    assert outcome.candidates == len(runs) > 2
    assert outcome.failed is None and outcome.validation == outcome.curve[-1][1]
    assert outcome.spent == {name: sum(run.purposes[name] for run in runs) for name in runs[0].purposes}
    assert outcome.macs == outcome.spent["total_macs"] and outcome.seconds > 2.0 * (len(runs) - 1)


def test_a_search_waits_for_the_grown_run():
    assert all(ARMS[name].dependent and not ARMS[name].grows for name in SEARCHES)
    assert [arm.name for arm in chosen(SEARCHES, "frugal")] == ["frugal", *SEARCHES]
