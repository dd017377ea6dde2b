"""What growing leaves behind: a plain model, its evidence, and where both are written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from esper.karn.evidence import RunEvidence
from esper.karn.notebook import evidence_html
from esper.karn.report import as_text, markdown


@dataclass(frozen=True, slots=True, repr=False)
class GrowResult:
    """The result of growing."""

    model: nn.Module
    """A plain model in evaluation mode, which needs no Esper."""
    report: RunEvidence
    """The evidence for every seed. ``print(result)`` shows it as a page, a notebook with the grown network."""
    run_dir: Path
    """Holds the journal, the report and the exported model."""
    epoch: int
    """After which the model was as it is here; none was better on validation."""
    delivered: str
    """``last``, as training left it, or ``best``. Validation chose it, so that its figure there flatters it."""

    def __str__(self) -> str:
        return as_text(markdown(self.report, (), ()))

    def __repr__(self) -> str:
        return (
            f"GrowResult(model={type(self.model).__name__}(...), epoch={self.epoch}, run_dir={str(self.run_dir)!r},"
            f" report={self.report!r})"
        )

    def _repr_html_(self) -> str:
        return evidence_html(self.report, self.run_dir)
