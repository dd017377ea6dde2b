from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from rich.console import Console

from esper.karn.advice import About, about, again
from esper.karn.aggregator import fold
from esper.karn.evidence import gather
from esper.karn.judge import chance_margin
from esper.karn.plain import render, verdict_lines
from esper.karn.report import markdown
from esper.karn.schema import Snapshot, Verdict
from esper.karn.snapshot import Builder, build
from esper.karn.state import RunFold
from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.nissa.manifest import Setting
from esper.nissa.rundir import RunDirectory
from karn.journals import write_run
from karn.streams import Recorder, begin, begin_episode, end_episode, epoch_done, gate, runs, story

ACCURACY = {"name": "accuracy", "unit": "%", "higher_is_better": True, "chance": 10.0, "low": 0.0, "high": 100.0}
ERROR = {"name": "error", "unit": "mm", "higher_is_better": False}


def run_of(results: dict[str, list[float]], metric: dict[str, Any] = ACCURACY, **end: Any) -> list[TelemetryEvent]:
    """A run whose arms reach these test metrics, an episode each, on the same seeds."""
    rec = Recorder()
    begin(rec, envs=len(results))
    rec.events[0].data |= {"metric": metric, "episodes": len(next(iter(results.values())))}
    for env, (arm, values) in enumerate(results.items()):
        for episode, value in enumerate(values):
            begin_episode(rec, env, arm=arm, episode=episode)
            epoch_done(rec, env, 12, value, arm=arm, episode=episode)
            end_episode(rec, env, value, grown=arm != "static", arm=arm, seed=7 + episode, episode=episode)
    rec.say(T.TRAINING_ENDED, **{"status": "completed", "seconds": 9.0, **end})
    return rec.events


def judged(events: list[TelemetryEvent], ahead: float = 1.0, known: About | None = None) -> Verdict:
    state = fold(events)
    return build(state, (state.last_time or 0.0) + ahead, known=known).verdict


def said(verdict: Verdict, about: str) -> str:
    return "; ".join(finding.text for finding in verdict.findings if finding.about == about)


BETTER = {"heuristic": [90.0, 91.0, 92.5], "static": [80.0, 81.5, 82.0]}


def test_better_than_its_control_with_the_interval() -> None:
    verdict = judged(run_of(BETTER))
    assert verdict.level == "ok"
    assert verdict.headline == (
        "Better than its control static by 10.0 points (95 % interval 8.8 to 11.2, 3 pairs of the same seed)"
    )
    assert said(verdict, "result").startswith("heuristic 91.2 ± 3.1 % · static 81.2 ± 2.6 % (accuracy, test split")
    assert [(arm.arm, arm.judged) for arm in verdict.arms] == [("heuristic", True), ("static", False)]
    assert verdict.command == "esper bench --task digits --quick"


def test_worse_than_its_control_is_bad_news_whatever_the_metrics_direction() -> None:
    swapped = {"heuristic": BETTER["static"], "static": BETTER["heuristic"]}
    verdict = judged(run_of(swapped))
    assert verdict.level == "bad" and verdict.headline.startswith("Worse than its control static by 10.0 points")
    assert verdict.command is not None and verdict.command.startswith("esper query RUN ")
    assert judged(run_of(swapped, ERROR)).headline.startswith("Better than its control static by 10.0 mm")
    assert judged(run_of(BETTER, ERROR)).level == "bad"


def test_what_cannot_be_told_apart_is_not_called_better_and_says_how_many_episodes_would_tell() -> None:
    verdict = judged(run_of({"heuristic": [90.0, 80.0, 92.0], "static": [88.0, 83.0, 85.0]}))
    assert verdict.level == "watch" and verdict.headline.startswith("Not told apart from its control static: 2")
    assert "holds zero" in verdict.headline and verdict.command is not None and "so far" not in verdict.headline
    under_way = run_of({"heuristic": [90.0, 80.0, 92.0], "static": [88.0, 83.0, 85.0]})[:-1]
    assert "better so far, and the 95 % interval" in judged(under_way).headline
    assert verdict.command.startswith("esper query RUN") and "some 116 episodes would tell heuristic" in verdict.why
    near = judged(run_of({"heuristic": [90.0, 84.0, 92.0], "static": [84.0, 83.0, 85.0]}))
    assert near.command == "esper train heuristic --task digits --episodes 10"
    assert "10 episodes would tell heuristic from static" in near.why
    alone = judged(run_of({"heuristic": [90.0], "static": [80.0]}))
    assert alone.level == "watch" and "in one pair of episodes, which may be luck" in alone.headline
    same = judged(run_of({"heuristic": [80.0] * 3, "static": [80.0] * 3}))
    assert same.headline.startswith("The same as its control static in each of 3 pairs")


def test_two_pairs_have_a_sign_and_no_interval() -> None:
    verdict = judged(run_of({"heuristic": [96.25, 96.75], "static": [53.25, 49.0], "random": [97.25, 83.5]}))
    assert verdict.level == "watch" and verdict.headline == (
        "Better than its control static in both pairs of the same seed, by 43 and 47.75 points: "
        "two are too few to tell by how much; not told apart from random"
    )
    assert said(verdict, "also") == (
        "not told apart from its control random: 13.25 points better in one pair of the same seed, 1 worse in the "
        "other, and two pairs are too few to tell"
    )
    assert said(verdict, "result") == (
        "heuristic 96.25 and 96.75 % · static 53.25 and 49 % · random 97.25 and 83.5 % "
        "(accuracy, test split, two episodes each)"
    )
    assert [arm.text for arm in verdict.arms] == ["96.25 and 96.75", "53.25 and 49", "97.25 and 83.5"]
    larger_first = judged(run_of({"heuristic": [96.25, 96.75], "static": [53.5, 83.5]}))
    assert "by 42.75 and 13.25 points" in larger_first.headline, "as the results of these episodes stand"
    assert all(arm.low is None and len(arm.values) == 2 for arm in verdict.arms)
    assert verdict.command is not None and "--episodes 10" in verdict.command


def test_the_row_and_the_chart_have_one_rounding() -> None:
    verdict = judged(run_of({"heuristic": [67.5, 68.5, 69.5, 68.5], "static": [60.5, 61.5, 62.5, 61.5]}))
    for arm in verdict.arms:
        assert f"{arm.arm} {arm.text} %" in said(verdict, "result") and " ± " in arm.text


def test_the_first_line_has_the_other_controls_and_a_large_cost() -> None:
    events = run_of({**BETTER, "random": [90.5, 84.0, 93.0]})
    for event in events:
        if event.event_type is T.EPISODE_ENDED:
            grown = event.data["arm"] == "heuristic"
            event.data |= {"total_macs": 69_000_000 if grown else 1_000_000, "total_parameters": 3882 if grown else 490}
    verdict = judged(events)
    assert verdict.headline == (
        "Better than its control static by 10.0 points (95 % interval 8.8 to 11.2, 3 pairs of the same seed); "
        "not told apart from random; at 69 times the training MACs and 7.9 times the parameters of static"
    )
    assert "times the training MACs" not in judged(run_of(BETTER)).headline


def test_going_on_the_first_line_says_so_and_next_is_no_repetition() -> None:
    verdict = judged(run_of(BETTER)[:-1])
    assert verdict.headline.split("; ")[-1].startswith("so far")
    assert verdict.command is None and verdict.why == "Curves in Overwatch show whether it still learns"


def test_a_failure_has_its_learning_rate_its_rollbacks_and_no_result(tmp_path: Path) -> None:
    rec = Recorder()
    begin(rec, envs=2)
    for env, arm in enumerate(("heuristic", "static")):
        begin_episode(rec, env, arm=arm)
        epoch_done(rec, env, 1, 9.824, arm=arm)
        for before in range(3):
            rec.say(T.GOVERNOR_ROLLBACK, env_id=env, episode=0, epoch=1, to_epoch=0, rollbacks=before)
    reason = "EsperError: fails again after 3 rollbacks. Check the learning rate and the data."
    rec.say(T.TRAINING_ENDED, status="failed", reason=reason, seconds=9.0)
    run = RunDirectory.create(tmp_path, "fast", {"config": {"lr": Setting("flag", 1e18)}})
    verdict = judged(rec.events, known=about(run.path))
    assert verdict.headline == "Failed: fails again after 3 rollbacks. Check the learning rate (1e+18) and the data"
    assert "to the last good state 3 times in environment 0" in said(verdict, "also")
    assert said(verdict, "result").startswith("none: every arm has the same accuracy, 9.824") and not verdict.arms
    assert said(verdict, "grown") == "nothing has germinated; 6,418 parameters, as before", "it is over"
    assert "learning rate and" in judged(rec.events).headline, "no value is made up"
    rec.events[-1].data["status"] = "completed"
    assert len(judged(rec.events).arms) == 2


def test_the_environments_that_are_counted_are_named() -> None:
    state = fold(story())
    shot = build(state, state.last_time or 0.0)
    counted = sum(count for level, count in shot.levels.items() if level != "ok")
    assert counted and said(shot.verdict, "stand out").startswith(f"{counted} of {len(shot.environments)} environment")
    assert said(judged(run_of(BETTER)), "stand out") == ""


def test_waiting_for_epochs_is_no_warning_and_a_place_has_its_environment() -> None:
    from esper.leyline import SeedStage

    rec = Recorder()
    begin(rec, envs=3)
    for env in range(3):
        begin_episode(rec, env)
    where = {"env_id": 2, "episode": 0, "slot_id": "stem", "seed_id": "s1"}
    rec.say(T.SEED_GERMINATED, **where, epoch=1, blueprint="conv3", parameters=2400)
    gate(rec, 2, 1, "stem", "s1", SeedStage.BLENDING, False, measured=0.31)
    told = rec.events[-1].data
    waiting = {"id": "training_epochs", "measured": 2, "comparison": ">=", "threshold": 3, "unit": "epochs"}
    told["checks"] = [{**waiting, "passed": False}]
    epoch_done(rec, 2, 1, 80.0, stages={"stem": "TRAINING"})
    live = judged(rec.events)
    assert said(live, "now").startswith("epoch 1 of 12, episode 1 of 1, in environment 2: conv3 in stem is training")
    (held,) = [one for one in live.findings if one.about == "held back"]
    assert (held.level, held.text) == ("ok", "G2 holds conv3 in stem of environment 2 back: 2 of 3 epochs in training")
    told["checks"].append({"id": "gain", "measured": 0.1, "comparison": ">=", "threshold": 1, "passed": False})
    (held,) = [one for one in judged(rec.events).findings if one.about == "held back"]
    assert held.level == "watch"


def test_without_a_control_nothing_is_claimed() -> None:
    verdict = judged(run_of({"grown": [90.0, 91.0]}))
    assert verdict.level == "ok" and verdict.headline == "Completed after 9 s, with no control to compare with"


@pytest.mark.parametrize(("value", "guesses"), [(10.08, True), (13.2, True), (13.8, False), (4.0, True)])
def test_at_chance_within_the_noise_of_the_examples(value: float, guesses: bool) -> None:
    """On 300 examples a guesser has 10 ± 1.7 %; the test split of the story has 497, so 2.7 is twice that."""
    verdict = judged(run_of({"heuristic": [value] * 2, "static": [value - 0.5, value - 1.0]}))
    assert ("No better than guessing" in verdict.headline) is (guesses and value < 12.7)


def test_at_chance_says_what_the_controls_do_and_how_to_go_on(tmp_path: Path) -> None:
    config = {"lr": Setting("flag", 1e-9), "episodes": Setting("flag", 2), "task": Setting("default", "digits")}
    run = RunDirectory.create(tmp_path, "odd name", {"config": config})
    verdict = judged(run_of({"heuristic": [10.1, 9.9], "static": [10.0, 10.0]}), known=about(run.path))
    assert verdict.level == "bad"
    assert verdict.headline == ("No better than guessing: 10 % where a constant answer has 10 %")
    assert said(verdict, "judged by") == (
        "heuristic has accuracy 10 % on the test split, whose 497 examples tell no difference below 2.7; "
        "static guesses too"
    )
    assert verdict.command == "esper train heuristic --task digits --lr 0.001 --episodes 2"


def test_without_a_chance_level_guessing_is_not_claimed_and_without_a_range_noise_is_the_runs_own() -> None:
    metric = {name: value for name, value in ACCURACY.items() if name != "chance"}
    assert "guessing" not in judged(run_of({"heuristic": [10.0], "static": [10.0]}, metric)).headline
    run = RunFold(chance=50.0, higher_is_better=False)
    assert chance_margin(run, 300, wobble=0.4) == pytest.approx(0.8) and chance_margin(run, 300, None) == 0.0
    bounded = RunFold(chance=0.1, low=0.0, high=1.0)
    assert chance_margin(bounded, 900, wobble=5.0) == pytest.approx(0.02)
    scaled = RunFold(chance=10.0, low=0.0, high=100.0)
    assert chance_margin(scaled, 900, wobble=5.0) == pytest.approx(2.0), "the same in another unit"
    worse = {**ERROR, "chance": 40.0}
    assert judged(run_of({"grown": [41.0, 42.0]}, worse)).level == "bad"
    assert judged(run_of({"grown": [31.0, 32.0]}, worse)).level == "ok"


def test_a_failure_an_interruption_and_silence() -> None:
    failed = judged(run_of(BETTER, status="failed", reason="EsperError: the loss is not finite."))
    assert (failed.level, failed.headline) == ("critical", "Failed: the loss is not finite")
    assert "esper overwatch RUN --once" in (failed.command or "")
    cut = judged(run_of(BETTER, status="interrupted", reason="Ctrl-C"))
    assert cut.level == "watch" and cut.command == "esper train heuristic --resume RUN"
    silent = judged(run_of(BETTER)[:-1], ahead=100.0)
    assert silent.level == "critical" and silent.headline.startswith("No contact: no event for")
    going_on = judged(run_of(BETTER)[:-1], ahead=1.0)
    assert going_on.level == "ok", "and the clock alone made the difference"


def course(values: list[float], **told: Any) -> list[TelemetryEvent]:
    rec = Recorder()
    begin(rec, envs=1, max_epochs=len(values) + 4)
    begin_episode(rec, 0, max_epochs=len(values) + 4)
    for epoch, value in enumerate(values, 1):
        epoch_done(rec, 0, epoch, value, **(told if epoch == len(values) else {}))
    return rec.events


def test_live_it_says_what_is_lost_what_has_stopped_and_what_is_not_finite() -> None:
    rising = [20.0 + 3 * epoch for epoch in range(16)]
    assert judged(course(rising)).headline == "Running, and nothing speaks against it so far"
    fallen = judged(course([*rising, 40.0, 30.0, 25.0]))
    assert fallen.level == "bad" and fallen.headline.startswith("Diverged: 89 % of what the metric had gained is lost")
    stopped = judged(course([*rising, *([60.0] * 14)]))
    assert stopped.level == "watch" and "nothing better than 65 points of epoch 16 in the 14 epochs since" in (
        stopped.headline
    )
    assert "stopped" not in judged(course([*rising, *([60.0] * 6)])).headline
    odd = judged(course(rising, validation_loss=float("nan")))
    assert odd.level == "bad" and odd.headline == "Diverged: validation loss not finite in epoch 16 of environment 0"
    guessing = judged(course([10.0, 10.5, 9.5, 10.0, 10.2, 10.1]))
    assert guessing.headline == (
        "No better than guessing: 10.1 points where a constant answer has 10 points; so far, with 60 % done"
    )
    assert said(guessing, "judged by").startswith("grown has accuracy 10.1 points on the validation split")
    assert "guessing" not in judged(course([10.0, 10.5])).headline, "two epochs are too early to say so"


def test_what_is_delivered_and_whether_it_is_the_last() -> None:
    def delivered(**told: Any) -> str:
        events = run_of({"grown": [90.0]})
        for event in events:
            if event.event_type is T.EPISODE_ENDED:
                event.data |= told
        return said(judged(events), "delivered")

    assert delivered() == ""
    assert delivered(delivered="last") == "the last network, of epoch 12"
    assert delivered(delivered="best", delivered_epoch=12) == "the last network, of epoch 12"
    assert delivered(delivered="best", delivered_epoch=7) == (
        "the network of epoch 7 of 12, the best that was validated"
    )


def test_what_was_grown_what_it_costs_and_what_held_it_back() -> None:
    verdict = judged(run_of(BETTER))
    assert said(verdict, "grown") == "3 seeds kept of 0 that germinated in 3 episodes (conv3 in blocks_1 in the newest)"
    assert said(verdict, "cost").startswith(
        "6,418 → 8,818 parameters (+37 %); 1.00 times the multiply-accumulates of static"
    )
    assert said(judged(story()), "also") == "the governor had to go back to the last good state once in environment 1"
    told = said(judged(story()), "held back")
    assert told.startswith("G2 refused 1 time (the newest: probe gain loss was not measured") and "needs >= 0.5" in told
    rec = Recorder()
    begin(rec, envs=1)
    begin_episode(rec, 0)
    from esper.leyline import SeedStage

    where = {"env_id": 0, "episode": 0, "slot_id": "stem", "seed_id": "s1"}
    rec.say(T.SEED_GERMINATED, **where, epoch=1, blueprint="conv3", parameters=2400)
    gate(rec, 0, 1, "stem", "s1", SeedStage.FOSSILIZED, False, measured=0.31)
    epoch_done(rec, 0, 1, 80.0, stages={"stem": "HOLDING"})
    live = judged(rec.events)
    assert said(live, "held back") == "G5 holds conv3 in stem back: removal cost 0.31, needs >= 0.5"
    assert said(live, "now") == "epoch 1 of 12, episode 1 of 1: conv3 in stem is holding"


def test_a_learner_is_compared_with_its_twins_of_the_same_seed_in_its_newest_rounds() -> None:
    rec = Recorder()
    begin(rec, envs=2)
    rec.events[0].data |= {"kind": "ppo", "policy": "ppo", "episodes": 8, "metric": ACCURACY}
    for env, value in enumerate((50.0, 60.0)):
        end_episode(rec, env, value, grown=False, arm="static", seed=env, episode=0)
    for episode in range(8):
        for env, value in enumerate((50.0, 60.0)):
            gained = 5.0 + env if episode > 5 else -20.0
            end_episode(rec, env, value + gained, arm="grown", seed=env, episode=episode)
    rec.say(T.TRAINING_ENDED, status="completed", seconds=9.0)
    verdict = judged(rec.events)
    assert verdict.headline.startswith("Better than its control static in both pairs of the same seed, by 5 and 6 ")
    assert verdict.level == "watch" and verdict.command == "esper eval RUN"


def test_the_network_that_is_drawn_is_the_one_that_is_called_the_newest() -> None:
    rec = Recorder()
    begin(rec, envs=3)
    for env, arm in enumerate(("grown", "grown", "static")):
        begin_episode(rec, env, arm=arm)
        epoch_done(rec, env, 12, 50.0, arm=arm)
    for env, arm in ((1, "grown"), (0, "grown"), (2, "static")):
        end_episode(rec, env, 50.0, grown=env == 0, arm=arm)
        network = build(fold(rec.events), 0.0).network
        assert network is not None and network.title.startswith(
            f"environment {env if arm == 'grown' else 0}, episode 1"
        )
    begin_episode(rec, 0, arm="grown", episode=1)
    network = build(fold(rec.events), 0.0).network
    assert network is not None and network.title.startswith("environment 1, episode 1")


def test_the_same_words_in_every_face(tmp_path: Path) -> None:
    pytest.importorskip("textual")
    from esper.karn.tui import head_text
    from esper.scripts.summary import print_summary

    path = write_run(tmp_path, run_of(BETTER), run_id="words")
    evidence = gather(run_of(BETTER))
    shot = build(fold(run_of(BETTER)), 0.0)
    assert evidence.verdict == shot.verdict
    wanted = list(verdict_lines(shot.verdict))
    console = io.StringIO()
    print_summary(path, Console(file=console, width=300, highlight=False))
    assert set(wanted[:2]) <= set(head_text(shot).splitlines())
    for face in (render(shot), console.getvalue().replace(" words ", " RUN ")):
        assert [line for line in wanted if line not in face.splitlines()] == []
    page = markdown(evidence, [], [])
    page = page.replace("\\", "")
    assert shot.verdict.headline in page and all(finding.text in page for finding in shot.verdict.findings)
    assert page.index(shot.verdict.headline) < page.index("## Result")


@given(runs())
@settings(max_examples=30, deadline=None)
def test_any_run_has_a_verdict_at_any_moment(events: list[TelemetryEvent]) -> None:
    for upto in range(0, len(events), 9):
        state = fold(events[:upto])
        shot = build(state, (state.last_time or 0.0) + 1)
        assert shot.verdict.headline and all(finding.text for finding in shot.verdict.findings)
        assert msgspec.json.decode(msgspec.json.encode(shot), type=Snapshot) == shot


def test_the_next_command_repeats_the_flags_of_this_run() -> None:
    given_ = {
        "task": "my:Task",
        "compare": ["random", "static"],
        "lr": 0.01,
        "export": False,
        "run_dir": "/x",
        "optimizer": {"betas": [0.9, 0.99]},
        "quiet": True,
        "max_epochs": None,
    }
    assert again(About("RUN", given_, given_), "heuristic", "digits", episodes=20) == (
        "esper train heuristic --task my:Task --compare random,static --lr 0.01 --no-export "
        "--optimizer-option 'betas=[0.9, 0.99]' --quiet --episodes 20"
    )
    assert about("/nowhere").name == "/nowhere" and not about("/nowhere").given


def test_what_some_environments_do_is_not_the_verdict_on_all() -> None:
    def mixed(fallen: int) -> Verdict:
        rec = Recorder()
        begin(rec, envs=5, max_epochs=30)
        for env in range(5):
            begin_episode(rec, env, max_epochs=30)
            for epoch, value in enumerate([20.0, 40.0, 60.0, 62.0, 64.0, 64.5, 25.0 if env < fallen else 65.0], 1):
                epoch_done(rec, env, epoch, value)
        return judged(rec.events)

    assert mixed(0).headline == "Running, and nothing speaks against it so far"
    one = mixed(1)
    assert one.level == "watch" and one.headline.startswith("Diverged in 1 of 5 environments: 89 % of what")
    most = mixed(3)
    assert most.level == "bad" and most.headline.startswith("Diverged in 3 of 5 environments")


def test_a_series_of_views_says_what_each_alone_would() -> None:
    """Also when the first of them was made before anything was said."""
    builder, state = Builder(), fold([])
    builder.build(state, 0.0)
    for event in run_of({"heuristic": [90.0, 84.0, 92.0], "static": [84.0, 83.0, 85.0]}):
        fold([event], state)
        now = state.last_time or 0.0
        assert builder.build(state, now).verdict == build(state, now).verdict
