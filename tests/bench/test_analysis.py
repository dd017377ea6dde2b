"""Differences, notes, Pareto front and hypervolume."""

import math
import random

import pytest

from esper.bench.analysis import analyse, hypervolume, pareto
from esper.bench.arms import ARMS
from esper.bench.campaign import Evidence, Tuning
from esper.bench.report import headline, into_page
from esper.bench.settings import TrialSetting
from esper.bench.trial import TrialOutcome
from esper.leyline import DataError, Metric

ACCURACY = Metric("accuracy", "%", chance=10.0)
ERROR = Metric("error", "", higher_is_better=False)


def evidence(scores, failed=()):
    """``scores``: arm -> one test metric a seed; ``failed``: ``(arm, seed)``."""

    def outcome(name, seed, value):
        if (name, seed) in failed:
            return TrialOutcome(failed="lost")
        return TrialOutcome(validation=value, test=value, macs=10 + len(name))

    finals = {name: [outcome(name, i, value) for i, value in enumerate(values)] for name, values in scores.items()}
    tuning = {name: Tuning(TrialSetting(), ((TrialSetting(), 1.0),), 5) for name in scores}
    return Evidence(tuple(ARMS[name] for name in scores), tuning, finals)


SCORES = {"large-equal": [80.0, 82.0, 84.0], "retrained-equal": [85.0, 85.0, 85.0], "heuristic": [83.0, 84.0, 88.0]}


def test_differences_are_paired_by_seed():
    findings = analyse(evidence(SCORES), "heuristic", ACCURACY)
    first, second = findings.headline
    assert (first.control, second.control) == ("large-equal", "retrained-equal")
    assert first.test.mean == pytest.approx(3.0) and second.test.mean == pytest.approx(0.0)
    # by hand: differences 3, 2, 4, standard deviation 1, t(2, 97.5 %) = 4.3027
    assert first.test.half == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)
    assert first.macs_ratio == pytest.approx(19 / 21)
    assert findings.notes == ()
    assert "+3.00" in headline(findings)[0] and "3 paired seeds" in headline(findings)[0]


def test_positive_is_better_where_less_is_better():
    findings = analyse(evidence({"large-equal": [2.0, 2.0], "heuristic": [1.0, 1.5]}), "heuristic", ERROR)
    assert findings.headline[0].test.mean == pytest.approx(0.75)


def test_one_seed_gives_no_interval_and_says_so():
    findings = analyse(evidence({name: values[:1] for name, values in SCORES.items()}), "heuristic", ACCURACY)
    assert findings.headline[0].test.half is None
    assert findings.notes == ("1 seed is too few for an interval; give --seeds 2 or more",)


def test_a_failed_run_leaves_its_pair_out_and_says_so():
    findings = analyse(evidence(SCORES, failed=[("large-equal", 2)]), "heuristic", ACCURACY)
    assert findings.headline[0].test.mean == pytest.approx(2.5)
    assert findings.headline[0].unpaired == 1
    assert findings.notes == ("large-equal failed on 1 of 3 seeds; its figures are of the others",)


def test_without_an_equal_arm_there_is_no_headline():
    findings = analyse(evidence({"small": [50.0, 50.0], "heuristic": [80.0, 80.0]}), "heuristic", ACCURACY)
    assert findings.headline == ()
    assert "no headline" in headline(findings)[0]


def test_hypervolume_is_the_area_that_a_grid_counts():
    """The reference counts cells of a fine grid that some point dominates."""
    draw = random.Random(0)
    for _ in range(10):
        points = [(10 ** draw.uniform(1, 4), draw.uniform(0, 90)) for _ in range(draw.randint(1, 6))]
        n = 300
        cells = 0
        for i in range(n):
            macs = 10 ** (1 + 3 * (i + 0.5) / n)
            best = max([value for cost, value in points if cost <= macs], default=10.0)
            cells += max(0.0, best - 10.0) * 3 / n
        assert hypervolume(points, 10.0, 1e4) == pytest.approx(cells, abs=90 * 3 / n * len(points))


def test_a_point_below_the_reference_adds_nothing():
    assert hypervolume([(10.0, 5.0)], 10.0, 1000.0) == 0.0
    assert hypervolume([(10.0, 30.0)], 10.0, 1000.0) == pytest.approx(40.0)


def test_the_front_is_what_nothing_beats():
    lines = analyse(evidence({"small": [50.0], "heuristic": [90.0], "large": [80.0]}), "heuristic", ACCURACY).lines
    found = pareto(lines, ACCURACY)
    # MACs here are 10 + the length of the name: small 15, large 15, heuristic 19
    assert set(found.front) == {"large", "heuristic"}
    assert found.hypervolume == pytest.approx(70 * math.log10(19 / 15))
    assert found.hypervolume_growing == 0.0 and found.reference_metric == 10.0


def test_tables_go_between_the_marks_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench digits: begin -->\nold\n<!-- bench digits: end -->\nafter\n")
    for text in ("new", "newer"):
        into_page(page, "digits", text)
    assert page.read_text() == "before\n<!-- bench digits: begin -->\n\nnewer\n\n<!-- bench digits: end -->\nafter\n"
    with pytest.raises(DataError, match="bench text: begin"):
        into_page(page, "text", "x")
