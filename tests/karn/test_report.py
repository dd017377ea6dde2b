from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from esper.karn.aggregator import fold
from esper.karn.evidence import gather
from esper.karn.report import markdown, read_evidence, write_report
from esper.karn.results import difference_line
from esper.leyline import DataError, MissingExtraError, TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.leyline.files import Folder
from karn.journals import write_run
from karn.streams import Recorder, begin, begin_episode, end_episode, epoch_done, random_run, story


def paired(gains: list[float], *, arms: tuple[str, str] = ("heuristic", "static")) -> list[TelemetryEvent]:
    """One episode per gain, in which the first arm's test metric is 90 plus the gain and the other's 90."""
    rec = Recorder()
    begin(rec)
    for episode, gain in enumerate(gains):
        for env, arm in enumerate(arms):
            begin_episode(rec, env, arm=arm, episode=episode)
        for env, arm in enumerate(arms):
            test = 90.0 + (gain if env == 0 else 0.0)
            end_episode(rec, env, test, grown=env == 0, arm=arm, seed=100 + episode, episode=episode)
    rec.say(T.TRAINING_ENDED, status="completed", seconds=9.0)
    return rec.events


def test_paired_difference_with_interval() -> None:
    table = gather(paired([1.0, 2.0, 3.0])).table
    assert [(arm.arm, arm.episodes, arm.seeds_kept) for arm in table.arms] == [
        ("heuristic", 3, 1.0),
        ("static", 3, 0.0),
    ]
    (difference,) = table.differences
    assert difference.test is not None and difference.test.low is not None
    assert (difference.test.mean, difference.pairs) == (2.0, 3)
    assert difference.test.low == pytest.approx(2.0 - 4.303 / 3**0.5, abs=1e-3)
    assert "heuristic minus static: +2.00 ± 2.48 points on the test split, 3 pairs" in difference_line(
        difference, table
    )


def test_one_pair_has_no_interval_and_says_so() -> None:
    table = gather(paired([1.5])).table
    assert "+1.50 (n = 1) points on the test split, 1 pair of episodes" in difference_line(table.differences[0], table)


def test_lower_is_better_turns_the_sign() -> None:
    events = paired([1.0, 2.0])
    events[0].data["metric"]["higher_is_better"] = False
    test = gather(events).table.differences[0].test
    assert test is not None and test.mean == -1.5


def test_an_episode_without_a_partner_is_left_out_and_said() -> None:
    events = paired([1.0, 2.0])
    del events[-2]
    table = gather(events).table
    assert "1 episodes without a partner are left out" in difference_line(table.differences[0], table)


def test_why_a_seed_was_kept_and_why_another_was_pruned() -> None:
    (kept,) = gather(story()).seeds
    assert (kept.outcome, kept.germinated_because) == ("kept", "plateau of 3 epochs")
    assert kept.reason == "G5 passed in epoch 11: removal cost 1.6, needs >= 0.5"
    lost = [seed for seed in gather(random_run(2)).seeds if seed.outcome == "pruned"]
    assert lost and all(seed.reason == "no gain (by policy)" for seed in lost)


def test_a_seed_that_the_end_overtook() -> None:
    events = [event for event in story() if event.event_type is not T.SEED_FOSSILIZED and (event.epoch or 0) < 11]
    (seed,) = gather(events).seeds
    assert seed.outcome == "undecided"
    assert seed.reason.startswith("in stage HOLDING when the episode ended, G5 failed in epoch 9: removal cost 0.4")


def one_after_another(seeds: int) -> list[TelemetryEvent]:
    """A slot in which seed after seed is born, measured twice and pruned; in the third epoch nothing is measured."""
    rec = Recorder()
    begin(rec)
    begin_episode(rec, 0)
    for n in range(seeds):
        seed, first = f"s{n}", 4 * n + 1
        where: dict[str, Any] = {"env_id": 0, "episode": 0, "slot_id": "stem", "seed_id": seed}
        rec.say(T.SEED_GERMINATED, epoch=first, blueprint="conv3", parameters=n, **where)
        for epoch in range(first, first + 2):
            rec.say(T.COUNTERFACTUAL_COMPUTED, epoch=epoch, removal_cost=n + 0.5, removal_cost_se=0.25, **where)
            epoch_done(rec, 0, epoch, 50.0 + n, stages={"stem": "BLENDING"}, alphas={"stem": 0.5})
        epoch_done(rec, 0, first + 2, None, stages={"stem": "BLENDING"})
        rec.say(T.SEED_PRUNED, epoch=first + 2, from_="BLENDING", reason=f"reason {n}", by="policy", **where)
        epoch_done(rec, 0, first + 3, 50.0 + n, stages={"stem": "DORMANT"})
    return rec.events


def test_every_epoch_and_every_seed_is_kept_where_the_fold_forgets() -> None:
    events = one_after_another(40)
    (environment,) = fold(events).environments.values()
    assert len(environment.slots["stem"].past) < 40 and len(environment.metric.buckets) < 120, "the fold is bounded"
    evidence = gather(events)
    (track,) = evidence.tracks
    measured = [4 * n + 1 + later for n in range(40) for later in (0, 1)]
    assert sorted(track.metric) == sorted([*measured, *(4 * n + 4 for n in range(40))])
    assert [epoch for course in track.alphas.values() for epoch in course] == measured
    assert [epoch for course in track.costs.values() for epoch in course] == measured
    assert track.costs["s3"] == {13: (3.5, 0.25), 14: (3.5, 0.25)}
    assert len(track.stages["stem"]) == 80
    assert [(life.seed_id, life.parameters, life.outcome, life.reason) for life in evidence.seeds] == [
        (f"s{n}", n, "pruned", f"reason {n} (by policy)") for n in range(40)
    ]


def test_what_a_seed_was_ended_on_stands_though_a_newer_counterfactual_is_known() -> None:
    events = story()
    ended = next(event for event in events if event.event_type is T.SEED_FOSSILIZED)
    newest = fold(events).environments[0].slots["blocks_1"].seed
    (kept,) = gather(events).seeds
    assert (kept.removal_cost, kept.removal_cost_epoch) == (1.6, 10) == (ended.data["removal_cost"], 10)
    assert newest is not None and newest.facts["removal_cost"].epoch == 12


def test_a_seed_that_a_rollback_took_back_has_the_stage_of_its_emptied_slot() -> None:
    events = [event for event in one_after_another(1) if event.event_type is not T.SEED_PRUNED]
    (seed,) = gather(events).seeds
    assert (seed.outcome, seed.reason) == ("undecided", "in stage DORMANT when the episode ended")


def test_a_seed_whose_birth_was_lost_is_told_as_far_as_it_is_known() -> None:
    events = [event for event in story() if event.event_type is not T.SEED_GERMINATED]
    (seed,) = gather(events).seeds
    assert (seed.outcome, seed.arm, seed.blueprint) == ("kept", "grown", "conv3")
    assert seed.germinated_epoch is None and seed.germinated_because is None


@pytest.mark.slow
def test_report_files_are_the_same_each_time(tmp_path: Path) -> None:
    path = write_run(tmp_path, story())
    write_report(path, figures=True)
    first = {file.name: file.read_bytes() for file in (path / "report").rglob("*.*") if file.is_file()}
    assert {f"{name}.{kind}" for name in ("course", "contribution", "alpha") for kind in ("svg", "png")} <= set(first)
    write_report(path, figures=True)
    assert {file.name: file.read_bytes() for file in (path / "report").rglob("*.*") if file.is_file()} == first
    assert json.loads(first["report.json"])["table"]["arms"][0]["arm"] == "grown"
    assert b"null" not in first["report.json"] and b"NaN," not in first["report.json"]


@pytest.mark.parametrize("seed", range(3))
def test_any_run_can_be_reported(tmp_path: Path, seed: int) -> None:
    path = write_run(tmp_path, random_run(seed, epochs=8))
    text = write_report(path, figures=seed == 0).read_text()
    assert "## What was grown" in text
    drawn = sorted(file.name for file in (path / "report").glob("figures/*"))
    assert ("course.png" in drawn and "course.svg" in drawn) is (seed == 0)
    json.loads((path / "report" / "report.json").read_text(), parse_constant=pytest.fail)


def test_free_text_is_never_markup(tmp_path: Path) -> None:
    events = random_run(2)
    for event in events:
        if "reason" in event.data:
            event.data["reason"] = "<img src=x onerror=alert(1)> | new\ncell `code` [link](x)"
    text = markdown(*read_evidence(write_run(tmp_path, events)), [])
    assert "<img" not in text and "| new" not in text.replace("\\|", "")


def test_damage_is_said_and_the_rest_reported(tmp_path: Path) -> None:
    path = write_run(tmp_path, story())
    journal = path / "events-00001.jsonl"
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    text = write_report(path, figures=False).read_text()
    assert "journal damaged at byte" in text and "has no end event" in text


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no event yet"):
        write_report(write_run(tmp_path, []))


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = write_run(tmp_path, story())
    assert "pip install '.[report]'" in write_report(path).read_text()
    with pytest.raises(MissingExtraError, match="extra 'report'"):
        write_report(path, figures=True)


def test_a_run_of_no_epoch_has_no_figures(tmp_path: Path) -> None:
    rec = Recorder()
    begin(rec)
    path = write_run(tmp_path, rec.events)
    assert "## Figures" not in write_report(path, figures=True).read_text()


def test_non_finite_values_are_shown_in_figures(tmp_path: Path) -> None:
    rec = Recorder()
    begin(rec)
    begin_episode(rec, 0)
    for epoch, value in enumerate((50.0, float("nan"), 52.0), 1):
        epoch_done(rec, 0, epoch, value)
    path = write_run(tmp_path, rec.events)
    write_report(path, figures=True)
    assert "not finite" in (path / "report" / "figures" / "course.svg").read_text()


def test_twins_in_one_environment_keep_their_own_course() -> None:
    """A learner's control is played in its environment, in the same episode: neither course overwrites the other."""
    rec = Recorder()
    begin(rec, envs=1)
    for arm, metric in (("static", 30.0), ("grown", 60.0)):
        begin_episode(rec, 0, arm=arm)
        for epoch in (1, 2):
            epoch_done(rec, 0, epoch, metric + epoch, arm=arm)
        end_episode(rec, 0, metric, grown=arm == "grown", arm=arm)
    evidence = gather(rec.events)
    assert {track.arm: track.metric for track in evidence.tracks} == {
        "static": {1: 31.0, 2: 32.0},
        "grown": {1: 61.0, 2: 62.0},
    }


def test_the_table_of_results_prints_as_a_table() -> None:
    text = str(gather(paired([1.0, 2.0])).table)
    assert text.splitlines()[0].split() == [
        *("arm", "episodes", "test", "accuracy", "(points)", "validation", "parameters", "seeds", "kept")
    ]
    assert "EndTable(" not in text and text.splitlines()[-1].startswith("heuristic minus static: +1.00 and +2.00 ")
    assert str(gather([]).table) == "No episode has ended."


def learner(rounds: int, seeds: int) -> list[TelemetryEvent]:
    """A learner's run: in each round an environment grows some seeds, and an update follows."""
    rec = Recorder()
    begin(rec, envs=1)
    rec.events[0].data |= {"kind": "ppo", "policy": "ppo", "episodes": rounds}
    for number in range(1, rounds + 1):
        begin_episode(rec, 0, arm="grown", episode=number)
        for seed in range(seeds):
            where = {"episode": number, "env_id": 0, "slot_id": "stem", "seed_id": f"stem-{number}-{seed}"}
            rec.say(T.SEED_GERMINATED, epoch=1, blueprint="norm", parameters=4, **where)
            why = {"reason": f"the loss rose by {number}.{seed} points", "by": "policy", "from_": "TRAINING"}
            rec.say(T.SEED_PRUNED, epoch=2, **where, **why)
        epoch_done(rec, 0, 3, 80.0, arm="grown", episode=number)
        end_episode(rec, 0, 80.0, arm="grown", episode=number, seed=number)
        heads = {"op": {"entropy": 1.0 / number, "most": 2.0, "share": 1.0}, "slot": {"entropy": 0.0, "most": 0.0}}
        update = {"round": number, "kl": 0.01, "clip_fraction": 0.1, "mean_episode_return": float(number)}
        rec.say(T.PPO_UPDATE_COMPLETED, **update, heads=heads, entropy=1.0)
    rec.say(T.TRAINING_ENDED, status="completed", seconds=9.0)
    return rec.events


def test_a_learners_report_has_its_learning_curves_and_its_seeds_by_kind_and_reason() -> None:
    evidence = gather(learner(rounds=6, seeds=10))
    assert evidence.updates["mean_episode_return"] == {at: float(at) for at in range(1, 7)}
    assert evidence.updates["open.op"] == {at: 0.5 / at for at in range(1, 7)} and "open.slot" not in evidence.updates
    assert "explained_variance" not in evidence.updates, "what was not measured is absent"
    page = markdown(evidence, [], [])
    assert evidence.verdict.headline in page
    assert "All 60 seeds by place and kind" in page and "| grown | stem | norm | 60 | 0 | 60 | 0 | 0 | – |" in page
    assert "- 60 pruned: the loss rose by … points (by policy)" in page
    assert page.count("the loss rose by") <= 11 and len(page) < 8000
    few = markdown(gather(learner(rounds=2, seeds=3)), [], [])
    assert few.count("the loss rose by") == 6 and "by place and kind" not in few


def test_figures_of_a_learner(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from esper.karn.figures import draw

    with Folder.open(tmp_path) as folder:
        assert "learning" in draw(gather(learner(rounds=3, seeds=2)), folder)
    text = (tmp_path / "figures" / "learning.svg").read_text()
    assert "KL of the update" in text and "explained variance" not in text


@pytest.mark.parametrize("count", [1, 4, 12, 200])
@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0])
def test_labels_of_lines_keep_clear_of_each_other(count: int, spread: float) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from esper.karn.figures import _label_ends

    figure = Figure(figsize=(8.0, 4.6), dpi=144, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0.0, 1.0])
    _label_ends(axes, [(1, 0.99 - spread * at / count, f"line {at}", "#000000") for at in range(count)])
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert boxes and all(one.y1 <= other.y0 + 0.5 for one, other in zip(boxes, boxes[1:], strict=False))
    assert boxes[-1].y1 <= figure.bbox.y1 and boxes[0].y0 >= 0
    shown = [text.get_text() for text in axes.texts]
    more = [int(text.split()[1]) for text in shown if text.startswith("and ")]
    assert len(shown) - len(more) + sum(more) == count, "nothing is left out silently"
