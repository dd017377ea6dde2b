"""What to type next: commands made from the run's own settings."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from esper.karn.results import EndTable
from esper.karn.schema import RunHeader
from esper.leyline import DataError
from esper.nissa.rundir import RunDirectory

USUAL_RATE: Final = 1e-3
"""Where AdamW is tried first (its authors' default)."""
_NOT_REPEATED: Final = frozenset({"run_dir", "resume", "override", "overwatch", "seed", "config"})
"""Flags of one run that the next one does not get."""


class About(msgspec.Struct, frozen=True):
    """What a run's directory says of it beside its journal: how it is called, and how it was set up."""

    name: str = "RUN"
    """What commands call the run."""
    settings: Mapping[str, Any] = {}
    """Setting -> value, of all."""
    given: Mapping[str, Any] = {}
    """Setting -> value, of those that a flag gave."""


def about(directory: str | Path, name: str | None = None) -> About:
    """What the manifest in ``directory`` says; nothing where there is none. ``name`` is what commands call the run."""
    path = Path(directory)
    called = name or shlex.quote(str(directory))
    try:
        config = RunDirectory.open(path).manifest.config
    except DataError:
        return About(called)
    values = {key: setting.value for key, setting in config.items()}
    return About(called, values, {key: values[key] for key, setting in config.items() if setting.source == "flag"})


def again(known: About, kind: str, task: str, **changed: Any) -> str:
    """``esper train`` with the flags of this run, and what is to be ``changed``."""
    flags = {"task": known.given.get("task", task), **known.given, **changed}
    words = ["esper", "train", kind]
    for name, value in flags.items():
        if name not in _NOT_REPEATED:
            words += _flag(name, value)
    return shlex.join(words)


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if name in ("export", "control"):
        return [] if value else [f"--no-{name}"]
    if name == "optimizer":
        return [word for key, it in value.items() for word in ("--optimizer-option", f"{key}={it}")]
    if isinstance(value, bool):
        return [flag] if value else []
    if isinstance(value, list | tuple):
        return [flag, ",".join(map(str, value))]
    return [] if value is None else [flag, f"{value:g}" if isinstance(value, float) else str(value)]


LEAST: Final = 10
"""Episodes that are asked for at least."""
MANY: Final = 100
"""Episodes beyond which no one is sent to tell a difference."""


_OPEN: Final = frozenset({"not told apart", "one pair", "few pairs"})
"""Kinds of judgement that more episodes would settle."""


def next_step(
    header: RunHeader, table: EndTable, arm: str, kinds: Sequence[str], known: About
) -> tuple[str | None, str]:
    """``(command, why)``: what to type after a run that is of these ``kinds``, the worst first. See ``judge``."""
    kind, task = header.kind or "", header.task or ""
    for judged in kinds:
        found = _after(judged, header, known)
        if found is not None:
            return found
    if header.state == "running":
        return (
            None,
            f"Curves in Overwatch show whether {'the learner improves' if kind == 'ppo' else 'it still learns'}",
        )
    if header.state != "ended":
        return None, ""
    if kind == "ppo":
        return f"esper eval {known.name}", "plays the learned policy on seeds that it has not seen, beside its controls"
    if kind != "heuristic":
        return f"esper report {known.name}", "writes the evidence for each seed down"
    if "better" in kinds and not (_OPEN | {"worse"}) & set(kinds):
        words = shlex.join(["esper", "bench", "--task", task, "--quick"])
        return words, "shows whether growing still pays when the others get the same compute"
    if _OPEN & set(kinds):
        return _more_episodes(table, arm, header, known)
    return _inside(known), "shows what each seed did to the metric"


def _inside(known: About) -> str:
    return f'esper query {known.name} "select slot_id, blueprint, outcome, removal_cost, reason from seeds"'


def _after(judged: str, header: RunHeader, known: About) -> tuple[str, str] | None:
    kind, task, rate = header.kind or "", header.task or "", known.settings.get("lr")
    trained = kind in ("heuristic", "ppo")
    if judged in ("interrupted", "preempted") and trained:
        return f"esper train {kind} --resume {known.name}", "goes on exactly where it stopped"
    if judged == "silent" and trained:
        return f"esper train {kind} --resume {known.name}", "goes on from the newest checkpoint, if its process is gone"
    if judged in ("failed", "diverged") and kind == "heuristic" and rate is not None:
        lower = min(rate / 10, USUAL_RATE)
        return again(known, kind, task, lr=lower), f"tries a lower learning rate than {rate:g}"
    if judged in ("failed", "diverged"):
        return f"esper overwatch {known.name} --once --filter 'severity>=warning'", "shows what came before"
    if judged == "at chance" and kind == "heuristic":
        if rate is None:
            return again(known, kind, task, lr=USUAL_RATE), "tries another learning rate: the host must learn first"
        other = USUAL_RATE if not 1 / 3 < rate / USUAL_RATE < 3 else rate * 10
        return again(
            known, kind, task, lr=other
        ), f"tries another learning rate than {rate:g}: the host must learn first"
    if judged in ("at chance", "worse"):
        return _inside(known), "shows what each seed did to the metric"
    return None


def _more_episodes(table: EndTable, arm: str, header: RunHeader, known: About) -> tuple[str | None, str]:
    """How many episodes would tell the widest open difference from zero, by what its interval is now."""
    needed, name = LEAST, ""
    for it in table.differences:
        found = it.test or it.validation
        if found is None or found.low is not None and found.high is not None and not found.low <= 0 <= found.high:
            continue
        wanted = LEAST
        if found.half is not None and found.mean:
            wanted = max(LEAST, math.ceil(found.n * (found.half / found.mean) ** 2))
        if wanted >= needed:
            needed, name = wanted, it.control
    if needed > MANY:
        return _inside(known), f"shows what each seed did; some {needed:,} episodes would tell {arm} from {name}"
    words = again(known, header.kind or "", header.task or "", episodes=needed)
    return words, f"{needed} episodes would tell {arm} from {name}, if the difference is as large as it looks"
