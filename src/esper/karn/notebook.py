"""A run as a notebook shows it: verdict, table, seeds, the grown network and the course. Every text is escaped."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from esper.karn.results import difference_line
from esper.karn.svg import paint
from esper.karn.words import ABSENT, figure
from esper.leyline import DataError, MissingExtraError
from esper.leyline.files import Folder
from esper.leyline.text import visible

if TYPE_CHECKING:
    from esper.karn.evidence import RunEvidence, SeedLife

SEEDS: Final = 20
"""Seeds that are listed."""
MOST: Final = 16_000_000
"""Bytes of a figure that is shown."""


def evidence_html(evidence: RunEvidence, run_dir: Path | None = None) -> str:
    """The evidence as HTML; ``run_dir`` is where the report's figures are, which are drawn where there are none."""
    run, verdict = evidence.run, evidence.verdict
    about = [run.get("task"), None if "policy" not in run else f"policy {run['policy']}", run_dir]
    lines = [(one.about, one.text) for one in verdict.findings]
    lines += [("next", " · ".join(part for part in (verdict.command, verdict.why) if part))] if verdict.command else []
    parts = [
        f"<p><strong>{escaped(verdict.headline)}.</strong><br><small>"
        f"{escaped(' · '.join(str(part) for part in about if part is not None))}</small></p>",
        table_html(("", ""), lines),
        table_html(*_arms(evidence)),
        *(f"<p>{escaped(difference_line(each, evidence.table))}</p>" for each in evidence.table.differences),
        table_html(*_seeds(evidence.seeds)) if evidence.seeds else "<p>Nothing germinated.</p>",
    ]
    if evidence.network is not None:
        parts.append(f'<div style="overflow-x:auto">{paint(evidence.network)}</div>')
    parts.append(_course(evidence, run_dir))
    return f'<div class="esper-run">{"".join(parts)}</div>'


def table_html(head: Sequence[str], rows: Iterable[Sequence[Any]], more: str = "") -> str:
    """A table of texts, and under it what it leaves out."""
    top = "".join(f'<th style="text-align:left">{escaped(name)}</th>' for name in head) if any(head) else ""
    cells = (
        "".join(f'<td style="text-align:left;max-width:70ch">{escaped(cell)}</td>' for cell in row) for row in rows
    )
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    left_out = f"<p><small>{escaped(more)}</small></p>" if more else ""
    return f"<table>{f'<thead><tr>{top}</tr></thead>' if top else ''}<tbody>{body}</tbody></table>{left_out}"


def escaped(text: Any) -> str:
    """Free text: no markup, and nothing hidden."""
    return html.escape(visible(str(text)), quote=True)


def _arms(evidence: RunEvidence) -> tuple[list[str], list[list[str]]]:
    table = evidence.table
    return table.head, [[*arm.cells(), figure(arm.seeds_kept)] for arm in table.arms]


def _seeds(seeds: Sequence[SeedLife]) -> tuple[list[str], list[list[str]], str]:
    head = ["seed", "slot", "blueprint", "outcome", "parameters", "removal cost", "of epoch", "why"]
    rows = [
        [
            life.seed_id,
            life.slot,
            life.blueprint or ABSENT,
            life.outcome,
            figure(life.parameters),
            figure(life.removal_cost) + ("" if life.removal_cost_se is None else f" ± {figure(life.removal_cost_se)}"),
            figure(life.removal_cost_epoch),
            life.reason,
        ]
        for life in seeds[:SEEDS]
    ]
    left = len(seeds) - SEEDS
    return head, rows, f"{left:,} more seeds of {len(seeds):,}" if left > 0 else ""


def _course(evidence: RunEvidence, run_dir: Path | None) -> str:
    """The figure of the course, as an image: its styles and names stay its own."""
    drawn = None if run_dir is None else _read(run_dir / "report" / "figures")
    if drawn is None:
        from esper.karn.figures import draw

        with tempfile.TemporaryDirectory(prefix="esper-") as place:
            try:
                with Folder.open(place) as folder:
                    draw(evidence, folder)
            except MissingExtraError as error:
                return f"<p><small>Not drawn: {escaped(error)}</small></p>"
            drawn = _read(Path(place) / "figures")
    if drawn is None:
        return ""
    data = base64.b64encode(drawn).decode()
    return f'<p><img alt="Metric over epochs with the life of each slot" src="data:image/svg+xml;base64,{data}"></p>'


def _read(figures: Path) -> bytes | None:
    """The figure, where there is one that is a file of its own."""
    try:
        with Folder.open(figures) as folder:
            return folder.read("course.svg", MOST)
    except (DataError, OSError):
        return None
