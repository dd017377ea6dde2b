"""Judgements on a run: failed, silent, diverged, at chance, against its controls, stopped improving."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from esper.karn import anomaly
from esper.karn.parts import Level
from esper.karn.state import EnvironmentFold, RunFold
from esper.karn.stats import Interval, total
from esper.karn.words import duration, end_reason, figure, rounded, size

if TYPE_CHECKING:
    from esper.karn.verdict import Case

LOST: Final = 0.5
"""Share of its progress that a run which has diverged has lost again."""
QUIET: Final = 1 / 3
"""Share of an episode's epochs without a better metric after which it has stopped improving."""


SOON: Final = 3600.0
"""Seconds in which a disk that is then full is told of."""
COMPARED: Final = frozenset({"better", "worse", "not told apart", "one pair", "few pairs", "the same"})
"""Kinds of judgement that set the run beside a control."""
MEASURED: Final = 60.0
"""Seconds below which how fast a disk fills is not known."""
UNTOLD: Final = 1 / 3
"""Share of its first episode in which a run that guesses is not told of yet: it may be about to learn."""
TELL: Final = ("failed", "silent", "out of disk", "at chance", "ended")
"""What a person who is not looking is told of, the worst first."""


class Judged(NamedTuple):
    """One judgement: its kind (``failed``, ``at chance``, ...), how bad it is, and its words."""

    kind: str
    level: Level
    text: str
    brief: str = ""
    """The same behind another judgement in one line; empty where that has no room for it."""
    more: str = ""
    """What it rests on."""


def judge(case: Case) -> Iterator[Judged]:
    """Everything that can be said for or against the run, from what was measured."""
    run, header = case.state.run, case.header
    if run.end_status == "failed":
        reason = end_reason(run.end_reason) or "no reason given"
        if case.rate is not None:
            reason = reason.replace("learning rate", f"learning rate ({case.rate:g})", 1)
        yield Judged("failed", "critical", f"failed: {reason}")
    elif run.end_status in ("interrupted", "preempted"):
        yield Judged(run.end_status, "watch", f"{run.end_status} before its end; it can be resumed")
    elif header.state == "silent":
        gone = ", and its process is gone" if case.seen.gone else ""
        yield Judged("silent", "critical", f"no contact: {header.text}, and it has not said that it ended{gone}")
    if (filling := _out_of_disk(case)) is not None:
        yield filling
    diverged = _diverged(case)
    if diverged is not None and diverged.level == "bad":
        yield diverged
    guessing = _at_chance(case)
    if guessing is not None:
        yield guessing
    # what guesses is not made better by its control guessing worse
    yield from _against_controls(case, quiet=guessing is not None)
    if run.end_status is None and guessing is None:
        yield from _stopped(case)
    if diverged is not None and diverged.level != "bad":
        yield diverged
    gone_back = [fold for fold in case.environments if fold.rollbacks]
    if gone_back:
        back = sum(fold.rollbacks for fold in gone_back)
        times = "once" if back == 1 else f"{back} times"
        where = f"environment {gone_back[0].env}" if len(gone_back) == 1 else f"{len(gone_back)} environments"
        text = f"the governor had to go back to the last good state {times} in {where}"
        yield Judged("rolled back", "watch", text)


def worth_telling(case: Case, judged: Iterable[Judged]) -> list[str]:
    """Which of :data:`TELL` the run is. Silence and guessing only once they are no matter of patience."""
    run, kinds = case.state.run, {one.kind for one in judged}
    if run.end_status is not None:
        kinds.add("ended" if run.end_status != "failed" else "failed")
    elif "silent" in kinds and not (case.seen.gone or _silent_for_long(case)):
        kinds.discard("silent")
    if "at chance" in kinds and run.end_status is None and not case.table.arms:
        shares = [(fold.epoch or 0) / fold.max_epochs for fold in case.environments if fold.max_epochs]
        if max(shares, default=1.0) < UNTOLD:
            kinds.discard("at chance")
    return [kind for kind in TELL if kind in kinds]


def _silent_for_long(case: Case) -> bool:
    waits = [fold.epoch_seconds or 0.0 for fold in case.state.environments.values()]
    return (case.seen.silent_for or 0.0) > anomaly.patience(max(waits, default=0.0))


def _out_of_disk(case: Case) -> Judged | None:
    """A disk that is full within :data:`SOON` at the rate of the last minutes, whoever fills it, or that has less room
    than the run holds in memory: what it would have to write down may not fit."""
    host, course = case.state.host, case.state.disk
    if host is None or host.disk_free is None or case.state.run.end_status is not None:
        return None
    left = f"{size(host.disk_free)} left on the disk that the run writes to"
    (since, before), (now, free) = course[0], course[-1]
    if now - since >= MEASURED and before > free and (full := free * (now - since) / (before - free)) < SOON:
        text = f"out of disk in about {duration(full)}: {left}, and it fills at that rate"
        return Judged("out of disk", "critical", text)
    if host.process_memory is not None and host.disk_free < host.process_memory:
        text = f"almost out of disk: {left}, less than the {size(host.process_memory)} that it holds in memory"
        return Judged("out of disk", "bad", text)
    return None


def _diverged(case: Case) -> Judged | None:
    """Figures that are not finite, or a metric that fell back, in the environments that play the arm now: bad news of
    the run where it is so in half of them, of some environments else."""
    last = case.environments
    odd = [fold for fold in last if fold.non_finite]
    if odd:
        names = ", ".join(name.replace("_", " ") for name in odd[0].non_finite)
        text = f"{names} not finite in epoch {odd[0].epoch} of environment {odd[0].env}"
        return Judged("diverged", _weight(odd, last), f"diverged{_share(odd, last)}: {text}")
    lost = sorted((fold for fold in last if anomaly.lost_share(fold) > LOST), key=anomaly.lost_share, reverse=True)
    if not lost:
        return None
    text = f"{100 * anomaly.lost_share(lost[0]):.0f} % of what the metric had gained is lost again"
    ahead = any(result.delivered == "best" for result in case.own)
    kept = "; the best network before that is what is delivered" if ahead else ""
    level: Level = "watch" if ahead else _weight(lost, last)
    return Judged("diverged", level, f"diverged{_share(lost, last)}: {text} in environment {lost[0].env}{kept}")


def _weight(some: list[EnvironmentFold], every: list[EnvironmentFold]) -> Level:
    return "bad" if 2 * len(some) >= len(every) else "watch"


def _share(some: list[EnvironmentFold], every: list[EnvironmentFold]) -> str:
    return f" in {len(some)} of {len(every)} environments" if len(every) > 1 else ""


def chance_margin(run: RunFold, examples: int | None, wobble: float | None) -> float:
    """How far a metric at chance is from chance by noise alone, in its unit.

    Twice the standard error of a mean over ``examples`` whose terms lie in the metric's range and have chance as their
    mean: at most ``sqrt((chance - low) (high - chance) / n)`` (Bhatia and Davis 2000), which for an accuracy is the
    binomial one. Without a range, twice the usual change from epoch to epoch; 0 where neither is known.
    """
    low, high, chance = run.low, run.high, run.chance
    if low is not None and high is not None and chance is not None and examples and low < chance < high:
        return 2 * math.sqrt((chance - low) * (high - chance) / examples)
    return 2 * (wobble or 0.0)


def _at_chance(case: Case) -> Judged | None:
    run = case.state.run
    if run.chance is None:
        return None
    found = _level_with_chance(case, case.arm)
    if found is None:
        return None
    mean, split, margin, examples = found
    text = f"no better than guessing: {case.amount(mean)} where a constant answer has {case.amount(run.chance)}"
    more = f"{case.arm} has {case.table.metric} {case.amount(mean)} on the {split} split"
    if examples and margin:
        more += f", whose {examples:,} examples tell no difference below {figure(float(f'{margin:.2g}'))}"
    others = [row.arm for row in case.table.arms if row.arm != case.arm and _level_with_chance(case, row.arm)]
    if others:
        more += f"; {' and '.join(others)} {'guesses' if len(others) == 1 else 'guess'} too"
    return Judged("at chance", "bad", text, more=more)


def _level_with_chance(case: Case, arm: str) -> tuple[float, str, float, int] | None:
    """Mean, split, margin and examples of an arm that is not clear of chance; ``None`` of one that is, or may be."""
    run = case.state.run
    row = next((row for row in case.table.arms if row.arm == arm), None)
    found, split = (None, "") if row is None else (row.test or row.validation, "test" if row.test else "validation")
    wobbles = [fold.wobble for fold in case.environments if fold.wobble is not None]
    if found is not None:
        mean = found.mean
    else:
        seen = [fold for fold in case.environments if fold.metric.seen >= anomaly.MIN_EPOCHS and fold.arm == arm]
        if not seen or run.end_status == "failed":
            return None
        mean, split = total([float(fold.metric.last or math.nan) for fold in seen]) / len(seen), "validation"
    examples = run.examples.get(split, 0)
    assert run.chance is not None
    margin = chance_margin(run, examples, max(wobbles, default=None))
    lead = mean - run.chance if run.higher_is_better else run.chance - mean
    return (mean, split, margin, examples) if lead <= margin else None


def _against_controls(case: Case, quiet: bool) -> Iterator[Judged]:
    for difference in case.table.differences:
        found = difference.test or difference.validation
        if found is None or not math.isfinite(found.mean):
            continue
        judged = _compared(case, difference.control, found)
        if not (quiet and judged.kind != "worse"):
            yield judged


def _compared(case: Case, name: str, found: Interval) -> Judged:
    """Positive differences are better, whatever the metric's direction."""
    control, half = f"its control {name}", found.half or 0.0
    size, pairs = f"{rounded(abs(found.mean), half)}{case.points}", f"{found.n} pairs of the same seed"
    side = "better" if found.mean > 0 else "worse"
    apart = f"not told apart from {name}"
    if len(found.values) == 2:
        return _in_two_pairs(case, name, found)
    if found.low is None or found.high is None:
        if found.mean == 0:
            return Judged("not told apart", "watch", f"the same as {control} in the one pair of episodes", apart)
        text = f"{side} than {control} by {size}, in one pair of episodes, which may be luck"
        return Judged("one pair", "watch", text, f"{side} than {name} in one pair")
    if found.low == found.high == 0:
        text = f"the same as {control} in each of {pairs}: growing changed nothing"
        return Judged("the same", "watch", text, f"the same as {name}")
    if found.low > 0 or found.high < 0:
        ends = sorted((abs(found.low), abs(found.high)))
        low, high = (rounded(end, half) for end in ends)
        text = f"{side} than {control} by {size} (95 % interval {low} to {high}, {pairs})"
        return Judged(side, "ok" if side == "better" else "bad", text, f"{side} than {name}")
    so_far = " so far" if case.state.run.end_status is None else ""
    text = f"not told apart from {control}: {size} {side}{so_far}, and the 95 % interval, "
    text += f"{rounded(found.low, half)} to {rounded(found.high, half)} over {pairs}, holds zero"
    return Judged("not told apart", "watch", text, apart)


def _in_two_pairs(case: Case, name: str, found: Interval) -> Judged:
    """Two differences have a sign, and no spread worth telling."""
    first, second = found.values
    least, most = sorted(found.values, key=abs)
    if least == most == 0:
        text = f"the same as its control {name} in both pairs of the same seed: growing changed nothing"
        return Judged("the same", "watch", text, f"the same as {name}")
    side = "better" if most > 0 else "worse"
    if least * most > 0:
        by = f"{figure(abs(first))} and {figure(abs(second))}{case.points}"
        text = f"{side} than its control {name} in both pairs of the same seed, by {by}: "
        text += "two are too few to tell by how much"
        return Judged("few pairs", "watch", text, f"{side} than {name} in both pairs")
    other = "the same" if least == 0 else f"{figure(abs(least))} {'better' if least > 0 else 'worse'}"
    text = f"not told apart from its control {name}: {figure(abs(most))}{case.points} {side} in one pair "
    text += f"of the same seed, {other} in the other, and two pairs are too few to tell"
    return Judged("not told apart", "watch", text, f"not told apart from {name}")


def _stopped(case: Case) -> Iterator[Judged]:
    quiet = [(fold, waited) for fold in case.environments if (waited := _waited(fold)) is not None]
    if quiet and len(quiet) == len(case.environments):
        fold, waited = min(quiet, key=lambda one: one[1])
        best = fold.best
        assert best is not None
        text = f"stopped improving: nothing better than {case.amount(float(best.value))} of epoch {best.epoch} "
        yield Judged("stopped", "watch", text + f"in the {waited} epochs since")


def _waited(fold: EnvironmentFold) -> int | None:
    """Epochs since the best metric, where they are too many of the episode's."""
    best, epoch = fold.best, fold.epoch
    if fold.status != "running" or best is None or best.epoch is None or epoch is None or not fold.max_epochs:
        return None
    waited = epoch - best.epoch
    return waited if waited >= max(anomaly.MIN_EPOCHS, QUIET * fold.max_epochs) else None
