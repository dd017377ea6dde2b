"""A growing host as text and as a picture."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from esper.leyline import EnvView, SeedStage, UsageError

MODES: Final = ("ansi", "rgb_array")
Picture = npt.NDArray[np.uint8]

CURVE, LANE, WIDTH = 60, 14, 240
"""Pixels: height of the metric's curve and of a slot's lane, width of both."""
GROUND, INK, LINE = (255, 255, 255), (60, 60, 60), (220, 220, 220)
COLOURS: Final[dict[SeedStage, tuple[int, int, int]]] = {
    SeedStage.DORMANT: (235, 235, 235),
    SeedStage.TRAINING: (240, 180, 60),
    SeedStage.BLENDING: (80, 160, 220),
    SeedStage.HOLDING: (60, 110, 200),
    SeedStage.FOSSILIZED: (60, 150, 90),
}
OTHER: Final = (160, 160, 160)
"""Stages that are passed through."""


def check_mode(mode: str | None) -> None:
    """Raises ``UsageError`` for a mode that does not exist."""
    if mode is not None and mode not in MODES:
        raise UsageError(f"render_mode={mode!r}; legal: {', '.join(MODES)}")


def render(view: EnvView, mode: str | None) -> Any:
    """``ansi``: a line for the host, then one for each slot. ``rgb_array``: uint8 ``[height, width, 3]``, the metric
    after each epoch over one lane for each slot, coloured by its stage and as long as its alpha. ``None``: nothing.
    """
    if mode is None:
        return None
    return _text(view) if mode == "ansi" else _picture(view)


def _text(view: EnvView) -> str:
    metric = "not measured yet" if view.metric is None else f"metric {view.metric:.4g}"
    lines = [f"epoch {view.epoch} of {view.max_epochs}, {metric}, {view.seed_parameters:,} parameters of seeds"]
    for slot in view.slots:
        seed = "" if slot.blueprint is None else f" {slot.blueprint}, alpha {slot.alpha:.2f}, age {slot.age_epochs}"
        lines.append(f"{slot.slot_id}: {slot.stage.name}{seed}")
    return "\n".join(lines) + "\n"


def _picture(view: EnvView) -> Picture:
    picture = np.full((CURVE + LANE * len(view.slots), WIDTH, 3), GROUND, dtype=np.uint8)
    known = np.array(view.metric_history, dtype=float)
    known[~np.isfinite(known)] = np.nan
    if np.isfinite(known).any():
        low, high = min(0.0, float(np.nanmin(known))), max(float(np.nanmax(known)), 0.0)
        heights = (known - low) / ((high - low) or 1.0) * (CURVE - 4)
        for epoch, height in enumerate(heights):
            if np.isfinite(height):
                left, right = (WIDTH * (epoch + i) // view.max_epochs for i in (0, 1))
                picture[CURVE - 2 - int(height) : CURVE - 1, left : max(left + 1, right - 1)] = INK
    for i, slot in enumerate(view.slots):
        top = CURVE + LANE * i
        colour = COLOURS.get(slot.stage, OTHER)
        picture[top : top + LANE - 1] = LINE
        picture[top + 1 : top + LANE - 2, 1 : WIDTH - 1] = COLOURS[SeedStage.DORMANT]
        if slot.stage is not SeedStage.DORMANT:
            # a seed that is not felt yet is there all the same
            length = max(LANE, int((WIDTH - 2) * min(1.0, slot.alpha)))
            picture[top + 1 : top + LANE - 2, 1 : 1 + length] = colour
    return picture
