"""``report.md``, ``report.json`` and figures of a bench, and its tables between two marks of a page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from esper.bench.analysis import ArmSummary, Findings, PairedDifference, macs
from esper.bench.arms import LARGE_EQUAL, RETRAINED_EQUAL, RIVALS
from esper.bench.campaign import Evidence
from esper.bench.figures import draw
from esper.bench.settings import DEFAULT, BenchConfig
from esper.bench.topologies import SEARCHES
from esper.bench.trial import Work
from esper.karn.results import with_interval
from esper.leyline import DataError, Metric, MissingExtraError
from esper.leyline.files import write_atomically
from esper.tamiyo.policies.learned import training_macs

SCHEMA = 1


def write_report(folder: Path, config: BenchConfig, work: Work, evidence: Evidence, findings: Findings) -> Path:
    """Write all of it into ``folder``; returns the path of ``report.md``. Figures need matplotlib."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = ""
    try:
        drawn = draw(evidence, findings, folder / "figures")
    except MissingExtraError as error:
        drawn, missing = [], str(error)
    write_atomically(folder / "report.json", encode(config, work, evidence, findings))
    parts = [f"# Bench · {work.task}", *tables(config, work, evidence, findings), _tuning(evidence, findings.metric)]
    parts += [f"![{name}](figures/{name}.svg)" for name in drawn]
    parts += [f"Figures were not drawn: {missing}"] if missing else []
    path = folder / "report.md"
    write_atomically(path, ("\n\n".join(part for part in parts if part) + "\n").encode())
    return path


def encode(config: BenchConfig, work: Work, evidence: Evidence, findings: Findings) -> bytes:
    """``report.json``: everything but the courses, which the trials' file has. What was not measured is left out."""
    finals = {
        arm: [{name: value for name, value in asdict(each).items() if name != "curve"} for each in outcomes]
        for arm, outcomes in evidence.finals.items()
    }
    content = {
        "schema": SCHEMA,
        "config": asdict(config),
        "work": asdict(work),
        "findings": _plain(findings),
        "tuning": {arm: _plain(tuning) for arm, tuning in evidence.tuning.items()},
        "schedule": evidence.schedule,
        "outcomes": finals,
    }
    return json.dumps(_known(content), indent=2, sort_keys=True).encode() + b"\n"


def tables(config: BenchConfig, work: Work, evidence: Evidence, findings: Findings) -> list[str]:
    """Headline, arms and differences in Markdown, a block each."""
    parts = [
        f"`{command(config, work)}`",
        *(f"> {note}" for note in findings.notes),
        "\n".join(f"- {sentence}" for sentence in headline(findings)),
        "\n".join(_arms(findings)),
        "\n".join(_differences(findings)),
    ]
    if findings.pareto is not None:
        parts.append(_pareto(findings))
    searched = [line for line in findings.lines if line.candidates is not None]
    if searched:
        each = ", ".join(f"{line.arm} {line.candidates:.1f}" for line in searched)
        parts.append(f"Topologies that a search trained, a run: {each}.")
    if evidence.schedule is not None:
        parts.append(_schedule(evidence.schedule, findings.metric))
    if config.policy is not None:
        parts.append(f"Policy: {config.policy}, {macs(training_macs(config.policy) or None)} MACs to train.")
    return parts


def command(config: BenchConfig, work: Work) -> str:
    """The command line that gives this bench."""
    parts = ["esper bench", f"--task {work.task}"]
    parts += [f"--task-option {name}={value}" for name, value in work.options]
    parts += [f"--seeds {config.seeds}", f"--trials {config.trials}", f"--tuning-seeds {config.tuning_seeds}"]
    parts += [f"--arms {','.join(config.arms)}", f"--epochs {work.epochs}", f"--seed {config.seed}"]
    parts += ["--resplit"] if config.resplit else []
    parts += [f"--grown {config.grown}"] if config.grown != DEFAULT.grown else []
    parts += [f"--policy-checkpoint {config.policy}"] if config.policy else []
    return " ".join(parts)


def headline(findings: Findings) -> list[str]:
    """The score in sentences, one a control at equal compute."""
    if not findings.headline:
        return ["No arm was trained from scratch at equal compute, nor an adapter: there is no headline score."]
    return [_headline(each, findings.metric) for each in findings.headline]


_HEADLINES: Final = {
    LARGE_EQUAL: "delta at equal compute",
    RETRAINED_EQUAL: "the same against its own end topology",
    **{name: "against a search over the same topologies" for name in SEARCHES},
}


def _headline(each: PairedDifference, metric: Metric) -> str:
    unit = f" {'points' if metric.unit == '%' else metric.unit}".rstrip()
    name = _HEADLINES.get(each.control, "against the adapter with the best validation")
    text = f"**{name}**: {each.arm} minus {each.control} {with_interval(each.test, sign=True)}{unit}"
    if each.test is not None and each.test.low is not None and each.test.high is not None:
        text += f" (95 % {each.test.low:+.2f} to {each.test.high:+.2f})"
    if each.macs_ratio is not None:
        text += f", at {each.macs_ratio:.3f} times its MACs"
    if each.control in RIVALS and each.trained_ratio is not None and each.cpu_ratio is not None:
        text += f", {each.trained_ratio:.2f} times its trained parameters and {each.cpu_ratio:.2f} times its CPU time"
    return f"{text}, {0 if each.test is None else each.test.n} paired seeds."


def _arms(findings: Findings) -> Iterator[str]:
    metric = findings.metric
    test = f"test {metric.name}{f', {metric.unit}' if metric.unit else ''}"
    costs = "parameters | of them trained | MACs a pass | MACs a run | CPU s"
    yield f"| arm | {test} | {costs} | seeds kept | tuned to | MACs to tune |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---|---:|"
    for line in findings.lines:
        yield f"| {' | '.join(_cells(line))} |"


def _cells(line: ArmSummary) -> tuple[str, ...]:
    return (
        line.arm,
        with_interval(line.test),
        _shown(line.parameters, ",.0f"),
        _shown(line.trained, ",.0f"),
        macs(line.inference_macs),
        macs(line.macs),
        _shown(line.cpu_seconds, ".3g"),
        _shown(line.kept, ".1f"),
        line.setting,
        macs(line.tuning_macs),
    )


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _differences(findings: Findings) -> Iterator[str]:
    ratios = "ratio of MACs | of trained parameters | of CPU time"
    yield f"| {findings.grown} minus | test, paired | 95 % t interval | {ratios} |"
    yield "|---|---:|---|---:|---:|---:|"
    for each in findings.differences:
        value = each.test
        bounds = "none" if value is None or value.low is None else f"{value.low:+.2f} to {value.high:+.2f}"
        ratios = " | ".join(_shown(ratio, ".3g") for ratio in (each.macs_ratio, each.trained_ratio, each.cpu_ratio))
        yield f"| {each.control} | {'–' if value is None else f'{value.mean:+.2f}'} | {bounds} | {ratios} |"


def _pareto(findings: Findings) -> str:
    found = findings.pareto
    assert found is not None
    parts = [f"all arms {found.hypervolume:.1f}"]
    parts += [f"arms that grow {found.hypervolume_growing:.1f}"] if found.hypervolume_growing is not None else []
    parts += [f"arms that do not {found.hypervolume_fixed:.1f}"] if found.hypervolume_fixed is not None else []
    return (
        f"Pareto front: {', '.join(found.front)}. Hypervolume ({findings.metric.name} times decades of MACs, reference "
        f"{found.reference_metric:.3g} at {macs(found.reference_macs)}): {'; '.join(parts)}."
    )


def _schedule(schedule: dict[str, Any], metric: Metric) -> str:
    growth = ", ".join(f"{e['blueprint']} in {e['slot']} after epoch {e['epoch']}" for e in schedule["entries"])
    return (
        f"Schedule: {growth}; the best of {schedule['schedules']} by validation ({schedule['metric']:.1f} "
        f"{metric.unit}), {macs(schedule['macs'])} MACs to find."
    )


def _tuning(evidence: Evidence, metric: Metric) -> str:
    lines = ["## Tuning", f"Mean validation {metric.name} on the tuning seeds; equal trials for every arm.", ""]
    lines += ["| arm | trial | validation |", "|---|---|---:|"]
    for arm, tuning in evidence.tuning.items():
        for setting, value in tuning.tried:
            chosen = " (chosen)" if setting == tuning.setting else ""
            lines.append(f"| {arm} | {setting.label()}{chosen} | {'failed' if value is None else f'{value:.2f}'} |")
    return "\n".join(lines)


def into_page(page: Path, name: str, text: str) -> None:
    """Replace what stands between the two marks of ``name`` in ``page``. Raises ``DataError`` where they are not."""
    begin, end = f"<!-- bench {name}: begin -->", f"<!-- bench {name}: end -->"
    whole = page.read_text(encoding="utf-8")
    if begin not in whole or end not in whole:
        raise DataError(f"{page}: has no lines {begin} and {end} for the tables to go between")
    before, rest = whole.split(begin, 1)
    _, after = rest.split(end, 1)
    write_atomically(page, f"{before}{begin}\n\n{text}\n\n{end}{after}".encode())


def _plain(value: Any) -> Any:
    """Dataclasses, and the structs inside them, as dictionaries."""
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _known(value: Any) -> Any:
    """Without what was not measured; numbers that are not finite by name."""
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_known(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
