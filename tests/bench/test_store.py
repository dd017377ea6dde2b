"""A bench can be interrupted at any time, and gone on with by the same settings only."""

import json
from dataclasses import asdict, replace

import bench_toys
import pytest

from esper.bench.settings import BenchConfig
from esper.bench.store import TRIALS, Store
from esper.bench.trial import TrialOutcome, Work
from esper.leyline import DataError, UsageError

CONFIG = BenchConfig(task=bench_toys.TINY, arms=("small",))
WORK = Work(bench_toys.TINY, (), 2)
OUTCOME = TrialOutcome(validation=50.0, macs=7, curve=((3, 40.0), (7, 50.0)))


@pytest.fixture
def run(tmp_path):
    store = Store.open(tmp_path / "run", CONFIG, WORK)
    for seed in range(3):
        trial = bench_toys.trial(seed=seed)
        store.put(trial.key(), asdict(trial), asdict(replace(OUTCOME, macs=seed)))
    return tmp_path / "run"


def again(run, **changed):
    work = Work(bench_toys.TINY, (), changed.pop("epochs", 2))
    return Store.open(run, replace(CONFIG, **changed), work)


def test_what_was_stored_is_there_again(run):
    store = again(run)
    assert len(store) == 3 and store.torn == 0
    assert store.outcome(bench_toys.trial(seed=2)) == replace(OUTCOME, macs=2)
    assert bench_toys.trial(seed=4).key() not in store


def test_more_seeds_other_arms_and_workers_may_go_on(run):
    assert len(again(run, seeds=20, arms=("large", "small"), workers=1)) == 3


@pytest.mark.parametrize(
    "changed", [{"epochs": 3}, {"trials": 1}, {"tuning_seeds": 1}, {"seed": 1}, {"resplit": True}, {"policy": "x"}]
)
def test_other_settings_are_refused_in_one_line_that_names_them(run, changed):
    with pytest.raises(UsageError) as error:
        again(run, **changed)
    (name,) = changed
    assert name in str(error.value) and "other settings" in str(error.value) and "\n" not in str(error.value)


def test_a_torn_last_line_is_run_again_and_what_follows_stays_readable(run):
    file = run / TRIALS
    file.write_bytes(file.read_bytes()[:-20])
    store = again(run)
    assert len(store) == 2 and store.torn == 1
    trial = bench_toys.trial(seed=9)
    store.put(trial.key(), asdict(trial), asdict(OUTCOME))
    third = again(run)
    assert len(third) == 3 and third.torn == 0


def test_a_line_without_its_end_is_torn_even_where_it_reads_well(run):
    file = run / TRIALS
    file.write_bytes(file.read_bytes()[:-1])
    store = again(run)
    assert len(store) == 2 and store.torn == 1


def test_damage_in_the_middle_is_named_by_its_line(run):
    file = run / TRIALS
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([lines[0], b'{"key": 1', lines[2], b""]))
    with pytest.raises(DataError, match="line 2"):
        again(run)


def test_a_directory_of_another_kind_is_refused(run):
    manifest = json.loads((run / "run.json").read_text())
    manifest["details"]["kind"] = "heuristic"
    (run / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="not a bench"):
        again(run)
