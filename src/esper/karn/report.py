"""``esper report RUN``: written from the journal alone, so that anyone who has the run directory gets the same one.

report/report.json    everything, machine-readable
report/report.md      the table, what was grown and why, the figures
report/figures/*.svg  and *.png; the network as SVG alone
"""

from __future__ import annotations

import html
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec

from esper.karn.advice import about
from esper.karn.evidence import RunEvidence, SeedLife, gather, shown_track
from esper.karn.parts import wire_safe
from esper.karn.results import EndTable, difference_line, with_interval
from esper.karn.schema import Damage, Verdict
from esper.karn.source import damage_of, report_damage
from esper.karn.svg import paint
from esper.karn.words import ABSENT, duration, figure
from esper.leyline import DataError, MissingExtraError, TelemetryEvent
from esper.leyline.files import Folder
from esper.leyline.text import ascii_json, visible
from esper.nissa.reader import read_journal

REPORT_SCHEMA = 1
_ESCAPED: Final = re.compile(r"\\([\\`*_\[\]|#~$])")
"""What :func:`_text` writes for a mark."""
SEEDS_SHOWN: Final = 24
"""Seeds that ``report.md`` lists one by one; ``report.json`` has them all."""
GROUPS_SHOWN: Final = 40
REASONS_SHOWN: Final = 8
LONGEST_REASON: Final = 200
_NUMBER: Final = re.compile(r"(?<![A-Za-z\d.])-?\d[\d,.]*(?:e[+-]?\d+)?")


def write_report(directory: str | Path, *, figures: bool | None = None) -> Path:
    """Write the report of the run in ``directory`` and return the path of ``report.md``.

    ``figures=None`` draws them where matplotlib is installed; ``True`` raises :class:`MissingExtraError` where it is
    not. A journal that is damaged in the middle is reported on up to there, and the report says so. Raises
    ``DataError`` when there is no journal or no event in it.
    """
    directory = Path(directory)
    evidence, damage = read_evidence(directory)
    if not evidence.events:
        why = damage[-1].text if damage else f"{directory}: the journal holds no event yet, there is nothing to report"
        raise DataError(why)
    drawn: list[str] = []
    missing = ""
    with Folder.open(directory) as run, run.folder("report", make=True) as out:
        if figures is not False:
            if evidence.network is not None:
                with out.folder("figures", make=True) as folder:
                    folder.write("network.svg", paint(evidence.network).encode())
                drawn = ["network"]
            try:
                from esper.karn.figures import draw

                drawn += draw(evidence, out)
            except MissingExtraError as error:
                if figures:
                    raise
                missing = str(error)
        out.write("report.json", encode_report(evidence, damage))
        out.write("report.md", markdown(evidence, damage, drawn, missing).encode())
    return directory / "report" / "report.md"


def read_evidence(directory: str | Path, name: str | None = None) -> tuple[RunEvidence, list[Damage]]:
    """Evidence of the run in ``directory``, up to where its journal can be read, and what stood against more.

    ``name`` is what commands call the run; its own by default, so that a report says the same wherever it lies.
    """
    reading = read_journal(directory, validate=True)
    problems: list[Damage] = []

    def events() -> Iterator[TelemetryEvent]:
        try:
            yield from reading
        except DataError as problem:
            problems.append(damage_of(problem))

    evidence = gather(events(), about(directory, shlex.quote(name or Path(directory).name)))
    return evidence, [*report_damage(reading.report), *problems]


def encode_report(evidence: RunEvidence, damage: Sequence[Damage]) -> bytes:
    """``report.json``: deterministic, non-finite values by name, unmeasured ones left out, the picture too."""
    plain = msgspec.to_builtins(msgspec.structs.replace(evidence, network=None), str_keys=True)
    content = wire_safe({"schema": REPORT_SCHEMA, "damage": msgspec.to_builtins(list(damage)), **_without_none(plain)})
    return ascii_json(msgspec.json.format(msgspec.json.encode(content, order="deterministic"), indent=2)) + b"\n"


def markdown(evidence: RunEvidence, damage: Sequence[Damage], drawn: Sequence[str], missing: str = "") -> str:
    """``report.md``."""
    run = evidence.run
    title = f"# {_text(run.get('task', 'Run'))} · {_text(run.get('policy', 'unknown policy'))}"
    parts = [
        title,
        _verdict(evidence.verdict),
        _opening(evidence),
        *_warnings(evidence, damage),
        "## Result",
        result_table(evidence.table),
    ]
    parts += _difference_lines(evidence.table)
    parts += ["## What was grown", *_seed_tables(evidence)]
    shown = [f"![{_caption(name)}](figures/{name}.svg)" for name in drawn]
    if shown or missing:
        parts += ["## Figures", *shown, *([f"Not drawn: {missing}"] if missing else [])]
    return "\n\n".join(part for part in parts if part) + "\n"


def result_table(table: EndTable) -> str:
    """Markdown table of the arms, means over episodes with 95 % t intervals."""
    unit = f" ({_text(table.unit)})" if table.unit else ""
    metric = _text(table.metric)
    head = [
        f"| arm | episodes | test {metric}{unit} | validation | parameters | total MACs | seeds kept | time |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    rows = [
        f"| {_text(arm.arm)} | {arm.episodes} | {with_interval(arm.test)} | {with_interval(arm.validation)} "
        f"| {_whole(arm.parameters)} | {_macs(arm.total_macs)} | {_rounded(arm.seeds_kept)} "
        f"| {ABSENT if arm.seconds is None or arm.seconds != arm.seconds else duration(arm.seconds)} |"
        for arm in table.arms
    ]
    return "\n".join(head + rows) if rows else "No episode has ended."


def _difference_lines(table: EndTable) -> list[str]:
    lines = [f"- {_text(difference_line(difference, table))}" for difference in table.differences]
    note = "Positive means better. Every MAC is counted: training, probes, counterfactuals, discarded seeds."
    return ["\n".join(lines), note] if lines else ["There is no other arm to compare with."]


def _verdict(verdict: Verdict) -> str:
    """The verdict as every face has it: the headline, its lines, and the next command."""
    rows = [f"- *{finding.about}*: {_text(finding.text)}" for finding in verdict.findings]
    if verdict.command is not None:
        rows += [f"- *next*: {_text(verdict.why)}", f"\n      {verdict.command}"]
    return "\n".join([f"**{_text(verdict.headline)}.**", "", *rows])


def _opening(evidence: RunEvidence) -> str:
    run, end = evidence.run, evidence.end
    sizes = ", ".join(f"{figure(count)} {_text(name)}" for name, count in run.get("examples", {}).items())
    state = f"Run {_text(run.get('run_id', 'of unknown id'))}"
    state += f" {_text(end['status'])} after {duration(end.get('seconds', 0.0))}" if end else " has no end event"
    why = f" ({_text(end['reason'])})" if end and end.get("reason") else ""
    host = f" The host has {figure(run['host_parameters'])} parameters." if "host_parameters" in run else ""
    return f"{state}{why}. {figure(evidence.events)} events.{f' Examples: {sizes}.' if sizes else ''}{host}"


def _warnings(evidence: RunEvidence, damage: Sequence[Damage]) -> list[str]:
    lines = [f"> {_text(item.text)}" for item in damage]
    if evidence.dropped:
        lines.append(f"> {evidence.dropped} events were dropped before they reached the journal.")
    if evidence.rollbacks:
        lines.append(f"> Rollbacks by the governor: {evidence.rollbacks}.")
    return ["\n".join(lines)] if lines else []


def _seed_tables(evidence: RunEvidence) -> list[str]:
    """Every seed with its reason where they are few; else those of the episode that is shown, and all by place and
    kind: a learner's run has thousands.
    """
    seeds = evidence.seeds
    if not seeds:
        return ["Nothing germinated."]
    shown = seeds
    if len(seeds) > SEEDS_SHOWN and (track := shown_track(evidence)) is not None:
        here = (track.env_id, track.episode, track.arm)
        shown = [seed for seed in seeds if (seed.env_id, seed.episode, seed.arm) == here]
    told = [_seed_table(shown[:SEEDS_SHOWN])] if shown else []
    if len(seeds) > SEEDS_SHOWN:
        head = f"All {len(seeds):,} seeds by place and kind, those kept most often first; each is in report.json."
        told = [*([f"Of the episode in the figures, environment {shown[0].env_id}:"] if shown else []), *told]
        told += [head, _by_kind(seeds), _by_reason(seeds)]
    return told


def _seed_table(seeds: Sequence[SeedLife]) -> str:
    head = [
        "| arm | episode | slot | blueprint | parameters | born | end | outcome | removal cost | why |",
        "|---|---:|---|---|---:|---:|---:|---|---:|---|",
    ]
    rows = [
        f"| {_text(seed.arm)} | {seed.episode} | {_text(seed.slot)} | {_text(seed.blueprint)} "
        f"| {figure(seed.parameters)} | {figure(seed.germinated_epoch)} | {figure(seed.end_epoch)} | {seed.outcome} "
        f"| {_cost(seed)} | {_text(seed.reason)} |"
        for seed in seeds
    ]
    return "\n".join(head + rows)


OUTCOMES: Final = ("kept", "pruned", "left out", "undecided")


def _by_kind(seeds: Sequence[SeedLife]) -> str:
    """How many seeds of each arm, slot and blueprint came to what, and what the kept ones are worth."""
    groups: dict[tuple[str, str, str], list[SeedLife]] = {}
    for seed in seeds:
        groups.setdefault((seed.arm, seed.slot, seed.blueprint or ""), []).append(seed)
    head = [
        f"| arm | slot | blueprint | seeds | {' | '.join(OUTCOMES)} | removal cost of the kept, median |",
        f"|---|---|---|---:|{'---:|' * len(OUTCOMES)}---:|",
    ]
    rows = []
    kept = {key: sum(seed.outcome == "kept" for seed in those) for key, those in groups.items()}
    order = sorted(groups, key=lambda key: (-kept[key], key))
    for key in order[:GROUPS_SHOWN]:
        counts = Counter(seed.outcome for seed in groups[key])
        costs = [s.removal_cost for s in groups[key] if s.outcome == "kept" and s.removal_cost is not None]
        finite = sorted(cost for cost in costs if math.isfinite(cost))
        worth = figure(median(finite)) if finite else ABSENT
        cells = [*map(_text, key), figure(len(groups[key])), *(figure(counts[name]) for name in OUTCOMES), worth]
        rows.append(f"| {' | '.join(cells)} |")
    more = [f"\n{len(order) - GROUPS_SHOWN} more kinds are not listed."] if len(order) > GROUPS_SHOWN else []
    return "\n".join(head + rows + more)


def _by_reason(seeds: Sequence[SeedLife]) -> str:
    """Why seeds came to what they did, in words without their figures, the most frequent first."""
    reasons = Counter((seed.outcome, _NUMBER.sub("…", seed.reason)) for seed in seeds)
    shown = reasons.most_common(REASONS_SHOWN)
    lines = [f"- {figure(count)} {outcome}: {_text(reason[:LONGEST_REASON])}" for (outcome, reason), count in shown]
    left = len(reasons) - len(shown)
    return "\n".join([*lines, *([f"- and {left} other reasons"] if left else [])])


def _cost(seed: SeedLife) -> str:
    if seed.removal_cost is None:
        return ABSENT
    return figure(seed.removal_cost) + (f" (se {figure(seed.removal_cost_se)})" if seed.removal_cost_se else "")


def as_text(page: str) -> str:
    """A page of :func:`markdown` for a terminal: what it escapes for the sake of markup is itself again."""
    return html.unescape(_ESCAPED.sub(r"\1", page))


def _text(value: object) -> str:
    """Free text: no markup or link of its own, no new cell, no new line, nothing hidden."""
    if value is None:
        return ABSENT
    flat = visible(" ".join(str(value).split()))
    for mark in "\\`*_[]|#~$":
        flat = flat.replace(mark, "\\" + mark)
    for mark, name in (("&", "amp"), ("<", "lt"), (">", "gt"), ("://", "#58;//"), ("@", "#64"), ("www.", "#119;ww.")):
        flat = flat.replace(mark, f"&{name}" if ";" in name else f"&{name};")
    return flat


def _whole(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.0f}"


def _rounded(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3g}"


def _macs(value: float | None) -> str:
    if value is None:
        return ABSENT
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def _caption(name: str) -> str:
    return {
        "network": "The grown network: its modules, where each seed sits, what it takes and what it is worth",
        "learning": "What the learner did, round by round (dashed: from there on it is a worry)",
        "course": "Metric over epochs with the life of each slot",
        "contribution": "What each seed contributes",
        "alpha": "Alpha of each seed",
    }.get(name, name)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value if item is not None]
    return value
