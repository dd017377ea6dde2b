"""Is the run good, why, and what next: read off the fold once, in the words that every face shows.

Nothing is judged by a bare number in a unit that the user chose. "Guessing" is a distance to chance within the noise of
the examples that it was measured on; "better" and "worse" are paired differences whose 95 % interval excludes zero;
"lost" is a share of the run's own progress. Where the journal does not hold what a judgement needs, there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from esper.karn import words
from esper.karn.advice import About, next_step
from esper.karn.judge import Judged, judge, worth_telling
from esper.karn.parts import Level, number
from esper.karn.results import STATIC, ArmRow, EndTable, end_table
from esper.karn.schema import ArmResult, Finding, RunHeader, Verdict
from esper.karn.state import EnvironmentFold, EpisodeRecord, RunState
from esper.karn.stats import Interval, total
from esper.karn.words import duration, figure, rounded
from esper.leyline import visible

HELD_BACK: Final = 3
"""Checks that are named when something is held back."""
_ALARMS: Final[dict[Level, int]] = {"critical": 0, "bad": 1}
_LIVE: Final = frozenset({"GERMINATED", "TRAINING", "BLENDING", "HOLDING"})
_CUT: Final = {"interrupted": "watch", "preempted": "watch", "failed": "critical"}


@dataclass(frozen=True, slots=True)
class Seen:
    """What who looks sees of a run beside its journal."""

    silent_for: float | None = None
    """Seconds since the last event; ``None`` once the run has ended."""
    gone: bool = False
    """The process that wrote the run is not there any more."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a verdict is made from."""

    state: RunState
    header: RunHeader
    table: EndTable
    arm: str
    """The arm that the run is about: the first one that grows."""
    results: list[EpisodeRecord]
    """Of all arms; of a learner's run, those of its newest rounds."""
    environments: list[EnvironmentFold]
    """Those that play ``arm`` now."""
    seen: Seen

    @property
    def own(self) -> list[EpisodeRecord]:
        """Results of ``arm``."""
        return [result for result in self.results if result.arm == self.arm]

    def amount(self, value: float, half: float | None = None) -> str:
        """A value of the metric with its unit; with half the width of its interval to as many digits as that says."""
        unit = f" {self.state.run.unit}" if self.state.run.unit else ""
        if half is None:
            return f"{figure(float(value))}{unit}"
        return f"{rounded(value, half)} ± {rounded(half, half)}{unit}"

    @property
    def points(self) -> str:
        """The unit of a difference, with a blank before it: those of percentages are points."""
        unit = "points" if self.state.run.unit == "%" else self.state.run.unit
        return f" {unit}" if unit else ""


def finding(about: str, text: str, level: Level = "ok") -> Finding:
    """One line of a verdict."""
    return Finding(about=about, text=visible(text), level=level)


class Tables:
    """The results of a run and their table, made anew only when an episode has ended: views come ten times a second."""

    def __init__(self) -> None:
        self._key: object = None
        self._made: tuple[list[EpisodeRecord], EndTable] | None = None

    def of(self, state: RunState) -> tuple[list[EpisodeRecord], EndTable]:
        """Results that the verdict is on, and their table."""
        run = state.run
        newest = state.results[-1] if state.results else None
        key = (run.episodes_ended, newest, run.kind, run.metric, run.unit, run.higher_is_better)
        if self._made is None or key != self._key:
            results = _judged(state)
            self._key, self._made = key, (results, end_table(results, run))
        return self._made


def make_verdict(
    state: RunState, header: RunHeader, known: About, tables: Tables | None = None, seen: Seen | None = None
) -> Verdict:
    """The verdict on what was folded; ``header`` says how the run is, by the clock of who looks."""
    case = _case(state, header, *(tables or Tables()).of(state), seen or Seen())
    # the worst first; among those that are no alarm, as they were found: against the control that does not grow first
    judged = sorted(judge(case), key=lambda one: _ALARMS.get(one.level, len(_ALARMS)))
    head = _headline(case, judged)
    findings = [finding("state", _state(case), _state_level(case)), *_now(case)]
    findings += [finding("also", one.text, one.level) for one in judged if one is not head]
    findings += [*_result(case), *_delivered(case), *_grown(case), *_held_back(case)]
    command, why = next_step(case.header, case.table, case.arm, [one.kind for one in judged], known)
    return Verdict(
        level=head.level,
        headline=visible((head.text[:1].upper() + head.text[1:]).rstrip(". ")),
        findings=findings,
        arms=_arms(case),
        command=None if command is None else visible(command),
        why=why,
        tell=worth_telling(case, judged),
    )


def lines(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """``(about, text)`` of every line, in order, as text faces print it."""
    yield "verdict", f"{verdict.headline}." + ("" if verdict.level == "ok" else f" [{verdict.level}]")
    yield from ((one.about, one.text) for one in verdict.findings)
    if verdict.command is not None or verdict.why:
        yield "next", ": ".join(part for part in (verdict.command, verdict.why) if part)


def _judged(state: RunState) -> list[EpisodeRecord]:
    """All results; of a learner, which changes, those of its newest quarter of rounds and of the hosts' twins."""
    results = state.results
    if state.run.kind != "ppo" or not results:
        return results
    last = max(result.episode or 0 for result in results)
    newest = last - max(1, (last + 1) // 4)
    played = [result for result in results if result.arm != STATIC and (result.episode or 0) > newest]
    hosts = {result.seed for result in played}
    return [*played, *(result for result in results if result.arm == STATIC and result.seed in hosts)]


def _case(state: RunState, header: RunHeader, results: list[EpisodeRecord], table: EndTable, seen: Seen) -> Case:
    folds = [state.environments[env] for env in sorted(state.environments)]
    names = [row.arm for row in table.arms] or [fold.arm for fold in folds if fold.arm]
    arm = next((name for name in names if name != STATIC), names[0] if names else "")
    return Case(state, header, table, arm, results, [fold for fold in folds if fold.arm == arm], seen)


def _headline(case: Case, judged: Sequence[Judged]) -> Judged:
    told = next((one for one in judged if one.kind != "rolled back"), None)
    if told is not None:
        return told
    if case.header.state in ("waiting", "reading"):
        return Judged("state", "ok", "nothing to judge yet")
    if case.header.state == "running":
        return Judged("state", "ok", "running, and nothing speaks against it so far")
    return Judged("state", "ok", f"{_state(case)}, with no control to compare with")


def _state(case: Case) -> str:
    run, header = case.state.run, case.header
    if run.end_status is not None:
        took = "" if run.end_seconds is None else f" after {duration(run.end_seconds)}"
        reason = f": {run.end_reason}" if run.end_reason and run.end_status != "failed" else ""
        return f"{run.end_status}{took}{reason}"
    if header.state == "silent":
        return f"{header.text}; it has not said that it ended"
    if header.state != "running":
        return header.text
    share, left = header.progress.share, header.progress.eta_seconds
    done = "" if share is None else f", {share:.0%} done"
    return f"running{done}" + ("" if left is None else f", about {duration(left)} left")


def _state_level(case: Case) -> Level:
    status = case.state.run.end_status
    if status is not None:
        return _CUT.get(status, "ok")  # type: ignore[return-value]
    return "critical" if case.header.state == "silent" else "ok"


def _now(case: Case) -> Iterator[Finding]:
    if case.header.state not in ("running", "silent") or not case.environments:
        return
    fold = max(case.environments, key=lambda one: one.last_time or 0.0)
    episodes = case.state.run.episodes
    where = [] if fold.epoch is None else [f"epoch {fold.epoch}{f' of {fold.max_epochs}' if fold.max_epochs else ''}"]
    if fold.episode is not None:
        name = "round" if case.state.run.kind == "ppo" else "episode"
        where.append(f"{name} {fold.episode + 1}{f' of {episodes}' if episodes else ''}")
    doing = [
        f"{slot.seed.blueprint or 'a seed'} in {slot.slot} is {(slot.stage or '').lower()}"
        for slot in fold.slots.values()
        if slot.seed is not None and slot.stage in _LIVE
    ]
    text = ", ".join(where)
    yield finding("now", ": ".join(part for part in (text, "; ".join(doing)) if part) or "about to begin")


def _split(table: EndTable) -> str:
    return "test" if any(row.test is not None for row in table.arms) else "validation"


def _measured(row: ArmRow, split: str) -> Interval | None:
    return row.test if split == "test" else row.validation


def _result(case: Case) -> Iterator[Finding]:
    """Every arm by name."""
    split, counts = _split(case.table), sorted({row.episodes for row in case.table.arms})
    told = []
    for row in sorted(case.table.arms, key=lambda row: row.arm != case.arm):
        found = _measured(row, split)
        if found is not None:
            told.append(f"{row.arm} {case.amount(found.mean, found.half)}")
    if told:
        over = (
            "one episode each"
            if counts == [1]
            else f"means of {' to '.join(map(str, counts[:: len(counts) - 1 or 1]))}"
        )
        over += " episodes with 95 % intervals" if counts != [1] else ""
        over += f", {case.arm} in the newest rounds" if case.state.run.kind == "ppo" else ""
        yield finding("result", f"{' · '.join(told)} ({case.table.metric}, {split} split, {over})")
        return
    so_far = [
        f"{arm} {case.amount(mean)}" for arm, mean, _ in sorted(_so_far(case.state), key=lambda it: it[0] != case.arm)
    ]
    if so_far:
        yield finding("result", f"{' · '.join(so_far)} ({case.table.metric}, validation split, so far)")


def _so_far(state: RunState) -> Iterator[tuple[str, float, int]]:
    """Arm, mean of the newest metric of its environments, and how many those are."""
    newest: dict[str, list[float]] = {}
    for fold in state.environments.values():
        if fold.metric.last is not None:
            newest.setdefault(fold.arm or "", []).append(fold.metric.last)
    for arm, values in newest.items():
        yield arm, total(values) / len(values), len(values)


def _arms(case: Case) -> list[ArmResult]:
    split = _split(case.table)
    made = []
    for row in case.table.arms:
        found = _measured(row, split)
        if found is not None:
            made.append(
                ArmResult(
                    arm=row.arm,
                    split=split,
                    mean=number(found.mean),
                    n=found.n,
                    low=None if found.low is None else number(found.low),
                    high=None if found.high is None else number(found.high),
                    parameters=row.parameters,
                    judged=row.arm == case.arm,
                )
            )
    if not made:
        made = [
            ArmResult(arm=arm, split="validation, so far", mean=number(mean), n=n, judged=arm == case.arm)
            for arm, mean, n in _so_far(case.state)
        ]
    return sorted(made, key=lambda one: not one.judged)


def _delivered(case: Case) -> Iterator[Finding]:
    own = [result for result in case.own if result.delivered is not None]
    if not own:
        return
    earlier = [r for r in own if r.delivered == "best" and r.delivered_epoch not in (None, r.epochs)]
    if len(own) == 1:
        (one,) = own
        if earlier:
            text = f"the network of epoch {one.delivered_epoch} of {one.epochs}, the best that was validated"
        else:
            text = f"the last network, of epoch {one.epochs}"
        text += _FLATTERED if one.test_metric is None else ""
    elif earlier:
        epochs = _listed([str(result.delivered_epoch) for result in earlier])
        text = f"{len(earlier)} of {len(own)} episodes hand over an earlier network than their last one, "
        text += f"the best that was validated: that of epoch {epochs} (of {own[0].epochs})"
    else:
        text = f"the last network of each of {len(own)} episodes"
    yield finding("delivered", text)


_FLATTERED: Final = "; chosen by validation, so that its figure there flatters it: a test split would tell"


def _grown(case: Case) -> Iterator[Finding]:
    own, run = case.own, case.state.run
    born = case.state.germinated.get(case.arm, 0)
    if own:
        newest = own[-1]
        kept = sum(result.seeds_kept for result in own)
        names = [f"{seed.blueprint or seed.seed_id}{f' in {seed.slot}' if seed.slot else ''}" for seed in newest.seeds]
        held = f" ({', '.join(names)}{' in the newest' if len(own) > 1 else ''})" if names else ""
        episodes = "" if len(own) == 1 else f" in {len(own)} episodes"
        counted = f"{_count(kept, 'seed')} kept" + (f" of {born} that germinated" if run.kind != "ppo" else "")
        yield finding("grown", f"{counted}{episodes}{held}")
        yield finding("cost", _cost(case, newest))
        return
    for fold in case.environments[:1]:
        live = [slot for slot in fold.slots.values() if slot.stage in _LIVE or slot.stage == "FOSSILIZED"]
        parameters = fold.facts.get("parameters")
        grown = "" if parameters is None else f"; {_growth(fold.host_parameters, int(parameters.value))}"
        text = (
            f"{_count(len(live), 'seed')} in place, {born} germinated so far" if born else "nothing has germinated yet"
        )
        yield finding("grown", f"{text}{grown}")


def _cost(case: Case, newest: EpisodeRecord) -> str:
    text, run = _growth(newest.host_parameters, newest.total_parameters), case.state.run
    if run.folded and run.exported_parameters is not None:
        text += f", {run.exported_parameters:,} as it is written: {words.folded(run.folded)}"
    paired = next((one for one in case.table.differences if one.macs_ratio is not None), None)
    if paired is not None and paired.macs_ratio is not None:
        ratio = f"{paired.macs_ratio:.2f}" if paired.macs_ratio < 10 else f"{paired.macs_ratio:,.0f}"
        text += f"; {ratio} times the multiply-accumulates of {paired.control} in training"
    return text


def _growth(host: int | None, total: int) -> str:
    if not host:
        return f"{total:,} parameters"
    if total == host:
        return f"{host:,} parameters, as before"
    return f"{host:,} → {total:,} parameters ({100 * (total - host) / host:+.0f} %)"


def _held_back(case: Case) -> Iterator[Finding]:
    """The checks that refused most; while the run goes on, those that hold a seed back now."""
    ended = case.state.run.end_status is not None
    if not ended:
        held = [
            f"{slot.gate.gate} holds {slot.seed.blueprint or 'the seed'} in {slot.slot} back: "
            + words.deciding(slot.gate.checks, False, slot.gate.deciding)
            for fold in case.environments
            for slot in fold.slots.values()
            if slot.seed is not None and slot.gate is not None and not slot.gate.passed and slot.stage in _LIVE
        ]
        if held:
            more = f"; and {len(held) - 1} more" if len(held) > 1 else ""
            yield finding("held back", held[0] + more, "watch")
        return
    refusals = sorted(case.state.refusals.get(case.arm, {}).values(), key=lambda one: -one.count)
    if refusals:
        told = [
            f"{one.gate} refused {_count(one.count, 'time')} (the newest: {words.check(one.check)})"
            for one in refusals[:HELD_BACK]
        ]
        more = f"; and {_count(len(refusals) - HELD_BACK, 'other check')}" if len(refusals) > HELD_BACK else ""
        yield finding("held back", "; ".join(told) + more)


def _listed(names: Sequence[str], most: int = 5) -> str:
    """``a, b and c``; beyond ``most`` how many more there are."""
    shown = [*names[:most], f"{len(names) - most} more"] if len(names) > most else list(names)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
