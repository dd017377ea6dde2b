"""The flight board as lines of styled text: one line per environment, drawn only when it is seen."""

from __future__ import annotations

from typing import Final

from esper.karn.parts import Figure
from esper.karn.schema import Chip, EnvironmentRow
from esper.karn.words import ABSENT
from esper.karn.words import figure as number

Piece = tuple[str, str]
"""Text and the name of its style: a level, a stage, or ``""``."""

MARKS: Final = {"critical": "!!", "bad": "! ", "watch": "~ ", "ok": "  "}
"""The level without colour."""

HEAD: Final = (
    f"{'':2} {'env':>5} {'arm':<10} {'epoch':>9} {'metric':>9} {'best':>9} {'loss':>9} {'score':>5}  why, slots"
)


def row_pieces(row: EnvironmentRow) -> list[Piece]:
    """One environment. A stale figure has ``~`` in front, one of unknown age ``?``."""
    arm = row.arm if row.arm is not None else ABSENT
    epoch = ABSENT if row.epoch is None else str(row.epoch)
    epoch += "" if row.max_epochs is None else f"/{row.max_epochs}"
    pieces = [
        (f"{MARKS[row.level]} ", row.level),
        (f"{row.env:>5} {str(arm)[:10]:<10} {epoch:>9} ", ""),
        (f"{_short(row.metric):>9} {_short(row.best):>9} {_short(row.loss):>9} ", ""),
        (f"{row.score:>5.2f}  ", row.level),
    ]
    if row.factors:
        pieces.append((f"{row.factors[0].text}  ", row.level))
    for chip in row.slots.values():
        pieces.append((f"{_chip(chip)} ", chip.stage or ""))
    return pieces


def _chip(chip: Chip) -> str:
    alpha = "" if chip.alpha is None else f" {_short(chip.alpha)}"
    gate = "" if chip.gate is None else f" {chip.gate}{'+' if chip.gate_passed else '-'}"
    blueprint = "" if chip.blueprint is None else f":{chip.blueprint}"
    kept = "" if chip.generations is None else f" ({chip.generations})"
    return f"{chip.glyph}{chip.slot}{blueprint}{alpha}{gate}{kept}"


def _short(value: Figure | object) -> str:
    if not isinstance(value, Figure):
        return ABSENT
    mark = "?" if value.epoch is None else "~" if value.stale else ""
    return mark + number(value.value)
