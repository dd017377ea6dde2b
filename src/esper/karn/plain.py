"""Plain text for pipes and screen readers: the same snapshot, no colour, no cursor movement, every state in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from esper.karn.filter import Filter
from esper.karn.parts import Figure
from esper.karn.schema import Chip, EnvironmentRow, HostVitals, Pulse, Snapshot, Verdict
from esper.karn.verdict import lines
from esper.karn.words import ABSENT, duration
from esper.karn.words import figure as number
from esper.leyline import visible

FEED_SHOWN = 20
LEADERS_SHOWN = 5


def render(snapshot: Snapshot, wanted: Filter | None = None) -> str:
    """The whole snapshot as text, environments and events limited to those that ``wanted`` matches."""
    return "\n".join(map(visible, _lines(snapshot, wanted or Filter("", ())))) + "\n"


def shown(value: Figure | Any, unit: str = "", epoch: int | Any = None) -> str:
    """A figure with its age in words: absent, NaN, zero and stale all read differently."""
    if value is None:
        return ABSENT
    text = number(value.value) + (f" {unit}" if unit else "")
    if value.epoch is None:
        return text if value.time is not None else f"{text} (age unknown)"
    if value.stale and epoch is not None:
        return f"{text} (stale, {epoch - value.epoch} epochs old)"
    return text


def brief(pulse: Pulse, value: Any = None) -> str:
    """The figure of ``pulse``, or another ``value`` of its kind, without its age."""
    value = pulse.figure.value if value is None else value
    return f"{value:.0%}" if pulse.unit == "share" and isinstance(value, float) else number(value)


def pulse_words(pulse: Pulse, now: float) -> str:
    """A figure of the policy's pulse with its verdict, its threshold and its age."""
    told = brief(pulse) + (f" {pulse.unit}" if pulse.unit not in ("", "share") else "")
    worry = "below" if pulse.low_is_bad else "above"
    verdict = [] if pulse.threshold is None else [f"{pulse.level}, a worry {worry} {brief(pulse, pulse.threshold)}"]
    age = "age unknown" if pulse.figure.time is None else f"{duration(max(0.0, now - pulse.figure.time))} ago"
    return f"{told} ({', '.join([*verdict, age])})"


def levels_words(snapshot: Snapshot) -> str:
    """``1 critical, 2 watch, 9 ok``."""
    return ", ".join(f"{count} {level}" for level, count in snapshot.levels.items())


def chip_words(chip: Chip) -> str:
    """A slot in words: ``blocks_1: conv3 blending, alpha 0.4, G2 passed``."""
    if chip.stage is None:
        return f"{chip.slot}: unknown"
    parts = [f"{chip.blueprint} " if chip.blueprint is not None else "", str(chip.stage).lower()]
    text = f"{chip.slot}: {''.join(parts)}"
    if chip.generations is not None:
        text += f" ({chip.generations})"
    if chip.alpha is not None:
        text += f", alpha {shown(chip.alpha)}"
    if chip.gate is not None:
        text += f", {chip.gate} {'passed' if chip.gate_passed else 'failed'}"
    return text


def body_words(host: HostVitals, device: str | None) -> str:
    """Vitals of the run's machine; the GPU's where ``device`` is one. What could not be read is unknown."""
    share, gb = "{:.0%}", "{:.1f} GB"
    parts = [
        f"CPU {_amount(host.cpu_share, share)} of all cores",
        f"run {_amount(host.process_cores, '{:.1f}')} cores and {_amount(host.process_memory, gb, 1e9)}",
        f"memory left {_amount(host.memory_available, gb, 1e9)}",
        f"I/O wait {_amount(host.io_wait_share, share)}",
    ]
    if device is not None and device.startswith("cuda"):
        memory = f"{_amount(host.gpu_memory, gb, 1e9)} of {_amount(host.gpu_memory_total, gb, 1e9)}"
        parts.append(f"GPU {_amount(host.gpu_share, share)} busy, its memory {memory}")
    return " · ".join(parts)


def _amount(value: float | None, form: str, unit: float = 1.0) -> str:
    return "unknown" if value is None else form.format(value / unit)


def _lines(snapshot: Snapshot, wanted: Filter) -> Iterator[str]:
    yield from _head(snapshot)
    yield from verdict_lines(snapshot.verdict)
    yield ""
    yield from _warnings(snapshot)
    if snapshot.pulse:
        yield ""
        yield "POLICY"
        for pulse in snapshot.pulse:
            yield f"  {pulse.text}: {pulse_words(pulse, snapshot.clock.now)}"
        yield from _learner(snapshot)
    yield ""
    yield f"BOUND  {snapshot.bound.kind}: {snapshot.bound.text}. {snapshot.bound.advice}"
    if snapshot.host is not None:
        yield f"BODY  {body_words(snapshot.host, snapshot.run.device)}"
    yield from _steps(snapshot)
    rows = [row for row in ordered(snapshot) if wanted.row(row)]
    yield ""
    hidden = len(snapshot.environments) - len(rows)
    yield (
        f"ENVIRONMENTS  {len(rows)} shown, outliers first"
        + (f", {hidden} hidden by the filter" if hidden else "")
        + (f": {levels_words(snapshot)}" if snapshot.levels else "")
    )
    for row in rows:
        yield from _environment(row, snapshot.run.unit)
    if snapshot.census:
        yield ""
        yield "SEEDS"
        for kind in snapshot.census:
            yield (
                f"  {kind.blueprint}: {kind.germinated} germinated, {kind.fossilized} kept, {kind.pruned} pruned, "
                f"{kind.refused} failed gates"
            )
    yield from _leaders(snapshot)
    items = [item for item in snapshot.feed if wanted.item(item)]
    yield ""
    yield f"EVENTS  last {min(len(items), FEED_SHOWN)} of {len(items)} in the feed that match"
    for item in items[-FEED_SHOWN:]:
        yield f"  [{item.severity}] {_where(item.env, item.epoch, item.slot)}{item.text}"


def ordered(snapshot: Snapshot) -> Iterable[EnvironmentRow]:
    """Environments in the order to show them: by device, outliers first."""
    for group in snapshot.devices:
        for env in group.environments:
            row = snapshot.environments.get(str(env))
            if row is not None:
                yield row


def _head(snapshot: Snapshot) -> Iterator[str]:
    run, progress = snapshot.run, snapshot.run.progress
    names = [str(name) for name in (run.task, run.policy, run.run_id) if name is not None]
    yield f"ESPER  {' · '.join(names) or 'no run yet'}"
    done = f"{progress.epochs_done} epochs"
    if progress.epochs_total is not None:
        done = f"{progress.epochs_done} of {progress.epochs_total} epochs"
    if progress.eta_seconds is not None and run.state == "running":
        done += f", about {duration(progress.eta_seconds)} left"
    yield f"done   {done}, {run.episodes_ended} episodes ended, {snapshot.clock.events} events"


def verdict_lines(verdict: Verdict, only: Collection[str] | None = None) -> Iterator[str]:
    """The verdict, a line each, as all text faces print it; ``only`` those about something."""
    for about, text in lines(verdict):
        if only is None or about in only:
            yield f"{about.upper():<10} {text}"


def _warnings(snapshot: Snapshot) -> Iterator[str]:
    for damage in snapshot.damage:
        yield f"JOURNAL {damage.kind.upper()}  {damage.text}"
    for drop in snapshot.drops:
        by = "" if drop.sink == "*" else f" by {drop.sink}"
        yield f"DROPPED  {drop.count} {drop.type}{by} ({drop.reason})"
    if snapshot.missing:
        yield f"MISSING  {snapshot.missing} events that the sequence numbers count are not in the journal"
    if snapshot.unplaced:
        yield f"UNPLACED  {snapshot.unplaced} events did not say which environment they are about"


def _learner(snapshot: Snapshot) -> Iterator[str]:
    for prefix, title in (
        ("chose.", "chosen in the last round"),
        ("restricted.", "heads that masks narrowed"),
        ("forced.", "heads that masks left one choice"),
    ):
        parts = [
            f"{name.removeprefix(prefix)} {value.value:.0%}"
            for name, value in snapshot.learner.items()
            if name.startswith(prefix) and value.value
        ]
        if parts:
            yield f"  {title}: {', '.join(parts)}"


def _steps(snapshot: Snapshot) -> Iterator[str]:
    parts = [
        f"{name.replace('_', ' ')} {number(value)} ms"
        for name in ("train", "input_wait", "validate", "counterfactual", "policy")
        if (value := getattr(snapshot.steps, name)) is not None
    ]
    if parts:
        yield f"  an epoch: {', '.join(parts)}"


def _environment(row: EnvironmentRow, unit: str) -> Iterator[str]:
    arm = f" {row.arm}" if row.arm is not None else ""
    epoch = f" epoch {row.epoch}" if row.epoch is not None else ""
    of = f" of {row.max_epochs}" if row.epoch is not None and row.max_epochs is not None else ""
    yield (
        f"  env {row.env}{arm} on {row.device}: {row.level}, score {row.score:.2f},{epoch}{of}, "
        f"metric {shown(row.metric, unit, row.epoch)}, best {shown(row.best, unit)}, "
        f"loss {shown(row.loss, '', row.epoch)}"
    )
    for factor in row.factors:
        yield f"    ! {factor.name.replace('_', ' ')}: {factor.text} (weight {factor.weight:g})"
    for chip in row.slots.values():
        yield f"    {chip_words(chip)}"


def _leaders(snapshot: Snapshot) -> Iterator[str]:
    if not snapshot.leaderboard:
        return
    yield ""
    yield f"LEADERBOARD  first {min(LEADERS_SHOWN, len(snapshot.leaderboard))} of {len(snapshot.leaderboard)}"
    for place, leader in enumerate(snapshot.leaderboard[:LEADERS_SHOWN], 1):
        test = ABSENT if leader.test is None else number(leader.test)
        validation = ABSENT if leader.validation is None else number(leader.validation)
        yield (
            f"  {place}. {leader.arm} seed {leader.seed}: test {test}, validation {validation}, "
            f"{leader.parameters:,} parameters, {leader.seeds_kept} seeds kept"
        )


def _where(env: Any, epoch: Any, slot: Any) -> str:
    parts = [f"{name} {value}" for name, value in (("env", env), ("epoch", epoch), ("slot", slot)) if value is not None]
    return f"{', '.join(parts)}: " if parts else ""
