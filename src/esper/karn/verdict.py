"""Is the run good, why, and what next: read off the fold once, in the words that every face shows.

Nothing is judged by a bare number in a unit that the user chose. "Guessing" is a distance to chance within the noise of
the examples that it was measured on; "better" and "worse" are paired differences whose 95 % interval excludes zero;
"lost" is a share of the run's own progress. Where the journal does not hold what a judgement needs, there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from esper.karn import anomaly, words
from esper.karn.advice import About, next_step
from esper.karn.judge import COMPARED, Judged, judge, worth_telling
from esper.karn.parts import Level, number
from esper.karn.results import STATIC, ArmRow, EndTable, end_table
from esper.karn.schema import ArmResult, Finding, RunHeader, Verdict
from esper.karn.state import EnvironmentFold, EpisodeRecord, RunState
from esper.karn.stats import Interval, total
from esper.karn.words import count, duration, figure, rounded
from esper.leyline import visible

DEAR: Final = 2.0
"""Times a control's cost from which on the first line tells it."""
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
    ranks: Mapping[int, float] | None = None
    """Environment -> its rank by the clock; by the journal alone where there is none."""


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
    rate: float | None = None
    """The learning rate that it was set up with, where that is known."""

    @property
    def own(self) -> list[EpisodeRecord]:
        """Results of ``arm``."""
        return [result for result in self.results if result.arm == self.arm]

    @property
    def unit(self) -> str:
        """The metric's unit, with a blank before it."""
        return f" {self.state.run.unit}" if self.state.run.unit else ""

    def amount(self, value: float) -> str:
        """A value of the metric with its unit."""
        return f"{figure(float(value))}{self.unit}"

    def measured(self, found: Interval) -> str:
        """What an arm came to, without its unit: a mean and its interval, or the values where they are few."""
        if len(found.values) > 1:
            return " and ".join(map(figure, found.values))
        if found.half is None:
            return figure(float(found.mean))
        return f"{rounded(found.mean, found.half)} ± {rounded(found.half, found.half)}"

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
    case = _case(state, header, *(tables or Tables()).of(state), seen or Seen(), known)
    # the worst first; among those that are no alarm, as they were found: against the control that does not grow first
    judged = sorted(judge(case), key=lambda one: _ALARMS.get(one.level, len(_ALARMS)))
    head, headline = _headline(case, judged)
    findings = [finding("state", _state(case), _state_level(case)), *_now(case)]
    findings += [finding("judged by", head.more)] if head.more else []
    findings += [finding("also", one.text, one.level) for one in judged if one is not head]
    findings += _stand_out(case)
    findings += [*_result(case), *_delivered(case), *_grown(case), *_held_back(case)]
    command, why = next_step(case.header, case.table, case.arm, [one.kind for one in judged], known)
    return Verdict(
        level=head.level,
        headline=visible((headline[:1].upper() + headline[1:]).rstrip(". ")),
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


def _case(
    state: RunState, header: RunHeader, results: list[EpisodeRecord], table: EndTable, seen: Seen, known: About
) -> Case:
    folds = [state.environments[env] for env in sorted(state.environments)]
    names = [row.arm for row in table.arms] or [fold.arm for fold in folds if fold.arm]
    arm = next((name for name in names if name != STATIC), names[0] if names else "")
    rate = known.settings.get("lr")
    return Case(state, header, table, arm, results, [fold for fold in folds if fold.arm == arm], seen, rate)


def _headline(case: Case, judged: Sequence[Judged]) -> tuple[Judged, str]:
    """What the verdict is, and its first line: the worst judgement, and what it must not be read without."""
    told = next((one for one in judged if one.kind != "rolled back"), None)
    if told is not None:
        parts = [told.text]
        if told.kind in COMPARED:
            parts += [one.brief for one in judged if one is not told and one.brief]
            parts += _dear(case)
        if case.header.state == "running" and told.kind in COMPARED | {"at chance"}:
            share = case.header.progress.share
            parts.append("so far" + ("" if share is None else f", with {_percent(share)} done"))
        return told, "; ".join(parts)
    if case.header.state in ("waiting", "reading"):
        text = "nothing to judge yet"
    elif case.header.state == "running":
        text = "running, and nothing speaks against it so far"
    else:
        text = f"{_state(case)}, with no control to compare with"
    return Judged("state", "ok", text), text


def _dear(case: Case) -> Iterator[str]:
    """How many times the cost of its first control the arm has, where that is :data:`DEAR` or more."""
    parameters = {row.arm: row.parameters for row in case.table.arms}
    for one in case.table.differences[:1]:
        own, other = parameters.get(one.arm), parameters.get(one.control)
        ratios = {"training MACs": one.macs_ratio, "parameters": own / other if own and other else None}
        large = [f"{_times(ratio)} times the {what}" for what, ratio in ratios.items() if ratio and ratio >= DEAR]
        if large:
            yield f"at {' and '.join(large)} of {one.control}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < DEAR else f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _stand_out(case: Case) -> Iterator[Finding]:
    """The environments that faces count by their level, the worst first, with what was measured."""
    folds = case.state.environments
    ranks = case.seen.ranks if case.seen.ranks is not None else {env: fold.rank for env, fold in folds.items()}
    odd = sorted((env for env in ranks if anomaly.status(ranks[env]) != "ok"), key=lambda env: (-ranks[env], env))
    if not odd:
        return
    told = []
    for env in odd[:HELD_BACK]:
        fold = folds[env]
        name = f"environment {env}" + (f" ({fold.arm})" if fold.arm else "")
        why = "; ".join(factor.text for factor in anomaly.factors(fold.anomaly))
        told.append(f"{name}: {why or 'nothing in its newest epoch'}")
    more = f"; and {len(odd) - HELD_BACK} more" if len(odd) > HELD_BACK else ""
    share = f"{len(odd)} of {count(len(ranks), 'environment')}"
    yield finding("stand out", f"{share}: {'. '.join(told)}{more}", anomaly.status(ranks[odd[0]]))


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
    done = "" if share is None else f", {_percent(share)} done"
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
    if len(case.state.environments) > 1:
        where.append(f"in environment {fold.env}")
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
            told.append(f"{row.arm} {case.measured(found)}{case.unit}")
    if told:
        few = {1: "one episode each", 2: "two episodes each"}.get(counts[0]) if len(counts) == 1 else None
        span = " to ".join(map(str, counts[:: len(counts) - 1 or 1]))
        over = few or f"means of {span} episodes with 95 % intervals"
        over += f", {case.arm} in the newest rounds" if case.state.run.kind == "ppo" else ""
        yield finding("result", f"{' · '.join(told)} ({case.table.metric}, {split} split, {over})")
        return
    so_far = [
        f"{arm} {case.amount(mean)}" for arm, mean, _ in sorted(_so_far(case.state), key=lambda it: it[0] != case.arm)
    ]
    if (same := _no_result(case)) is not None:
        yield finding("result", f"none: every arm has the same {case.table.metric}, {same}")
    elif so_far:
        yield finding("result", f"{' · '.join(so_far)} ({case.table.metric}, validation split, so far)")


def _so_far(state: RunState) -> Iterator[tuple[str, float, int]]:
    """Arm, mean of the newest metric of its environments, and how many those are."""
    newest: dict[str, list[float]] = {}
    for fold in state.environments.values():
        if fold.metric.last is not None:
            newest.setdefault(fold.arm or "", []).append(fold.metric.last)
    for arm, values in newest.items():
        yield arm, total(values) / len(values), len(values)


def _no_result(case: Case) -> str | None:
    """The figure of every arm of a run that failed before it told any of them from the others."""
    figures = {case.amount(mean) for _, mean, _ in _so_far(case.state)}
    arms = {fold.arm for fold in case.state.environments.values()}
    return figures.pop() if case.state.run.end_status == "failed" and len(figures) == 1 < len(arms) else None


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
                    text=case.measured(found),
                    values=[number(value) for value in found.values],
                    n=found.n,
                    low=None if found.low is None else number(found.low),
                    high=None if found.high is None else number(found.high),
                    parameters=row.parameters,
                    judged=row.arm == case.arm,
                )
            )
    if not made and _no_result(case) is None:
        said = "validation, so far"
        made = [
            ArmResult(arm=arm, split=said, mean=number(mean), text=figure(float(mean)), n=n, judged=arm == case.arm)
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
        counted = f"{count(kept, 'seed')} kept" + (f" of {born} that germinated" if run.kind != "ppo" else "")
        yield finding("grown", f"{counted}{episodes}{held}")
        yield finding("cost", _cost(case, newest))
        return
    for fold in case.environments[:1]:
        live = [slot for slot in fold.slots.values() if slot.stage in _LIVE or slot.stage == "FOSSILIZED"]
        parameters = fold.facts.get("parameters")
        grown = "" if parameters is None else f"; {_growth(fold.host_parameters, int(parameters.value))}"
        text = f"{count(len(live), 'seed')} in place, {born} germinated" if born else "nothing has germinated"
        text += "" if run.end_status is not None else " so far" if born else " yet"
        yield finding("grown", f"{text}{grown}")


def _cost(case: Case, newest: EpisodeRecord) -> str:
    text, run = _growth(newest.host_parameters, newest.total_parameters), case.state.run
    if run.folded and run.exported_parameters is not None:
        text += f", {run.exported_parameters:,} as it is written: {words.folded(run.folded)}"
    paired = next((one for one in case.table.differences if one.macs_ratio is not None), None)
    if paired is not None and paired.macs_ratio is not None:
        text += f"; {_times(paired.macs_ratio)} times the multiply-accumulates of {paired.control} in training"
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
        held = sorted(_held_now(case), key=lambda one: one[0])
        if held:
            patience, text = held[0]
            more = f"; and {len(held) - 1} more" if len(held) > 1 else ""
            yield finding("held back", text + more, "ok" if patience else "watch")
        return
    refusals = sorted(case.state.refusals.get(case.arm, {}).values(), key=lambda one: -one.count)
    if refusals:
        told = [
            f"{one.gate} refused {count(one.count, 'time')} (the newest: {words.check(one.check)})"
            for one in refusals[:HELD_BACK]
        ]
        more = f"; and {count(len(refusals) - HELD_BACK, 'other check')}" if len(refusals) > HELD_BACK else ""
        yield finding("held back", "; ".join(told) + more)


def _held_now(case: Case) -> Iterator[tuple[bool, str]]:
    """Of each seed that a gate holds back: whether that is only a matter of epochs, and the words."""
    several = len(case.state.environments) > 1
    for fold in case.environments:
        for slot in fold.slots.values():
            gate = slot.gate
            if slot.seed is None or gate is None or gate.passed or slot.stage not in _LIVE:
                continue
            where = f" of environment {fold.env}" if several else ""
            why = words.deciding(gate.checks, False, gate.deciding)
            failed = [check for check in gate.checks if not check.get("passed")]
            name = f"{gate.gate} holds {slot.seed.blueprint or 'the seed'} in {slot.slot}{where} back: {why}"
            yield bool(failed) and all(map(words.waits, failed)), name


def _listed(names: Sequence[str], most: int = 5) -> str:
    """``a, b and c``; beyond ``most`` how many more there are."""
    shown = [*names[:most], f"{len(names) - most} more"] if len(names) > most else list(names)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
