"""Figures of a report: direct labels, light ground, colours for colour-blind readers too (Okabe and Ito 2008).

The same evidence gives the same SVG bytes: fixed identifiers, no date, text as text.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from esper.karn.evidence import RunEvidence, SeedLife, Track, shown_track
from esper.karn.pulse import PULSE
from esper.karn.results import STATIC
from esper.karn.words import cut
from esper.leyline import MissingExtraError, visible
from esper.leyline.files import Folder

STAGE_COLOURS: Final = {
    "GERMINATED": "#f0e442",
    "TRAINING": "#56b4e9",
    "BLENDING": "#e69f00",
    "HOLDING": "#cc79a7",
    "FOSSILIZED": "#009e73",
    "PRUNED": "#d55e00",
    "EMBARGOED": "#bbbbbb",
    "RESETTING": "#dddddd",
}
STAGE_HATCHES: Final = {"PRUNED": "xx", "EMBARGOED": "//", "RESETTING": "..", "BLENDING": "\\\\"}
LINES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
QUIET: Final = "#7a7a7a"
INK: Final = "#222222"
GRID: Final = "#e6e6e6"
LINE: Final = 11.5
"""Points between the middles of two labels of 9 points."""
LARGEST: Final = 1e30
"""Of what is drawn; differences of numbers near the end of floats are infinite."""

STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "esper",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.linewidth": 0.4,
    "text.parse_math": False,
}


def draw(evidence: RunEvidence, report: Folder) -> list[str]:
    """Draw what the evidence has data for, as SVG and PNG in ``report``'s folder ``figures``, and return their names.

    The episode shown is the one of the growing arm with the best validation result, said in each title.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("drawing figures", "report") from None
    evidence = msgspec.structs.replace(evidence, tracks=[_on_paper(track) for track in evidence.tracks])
    shown = shown_track(evidence)
    painters: dict[str, Callable[[Any], bool]] = {}
    if evidence.updates:
        painters["learning"] = lambda figure: _learning(figure, evidence)
    if shown is not None:
        here, track = (shown.env_id, shown.episode, shown.arm), shown
        lives = {life.seed_id: life for life in evidence.seeds if (life.env_id, life.episode, life.arm) == here}
        painters["course"] = lambda figure: _course(figure, evidence, track)
        painters["contribution"] = lambda figure: _contribution(figure, evidence, track, lives)
        painters["alpha"] = lambda figure: _alpha(figure, track, lives)
    if not painters:
        return []
    names = []
    with matplotlib.rc_context(STYLE), report.folder("figures", make=True) as folder:
        for name, paint in painters.items():
            figure = Figure(figsize=(8.0, 4.6), dpi=144, facecolor="white", layout="constrained")
            if paint(figure):
                for kind, about in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
                    drawn = io.BytesIO()
                    figure.savefig(drawn, format=kind, metadata=about)
                    folder.write(f"{name}.{kind}", drawn.getvalue())
                names.append(name)
    return names


def _on_paper(track: Track) -> Track:
    """``track`` with what no axis has room for as infinite, which is marked instead of drawn."""

    def fit(value: float) -> float:
        return value if abs(value) <= LARGEST or math.isnan(value) else math.copysign(math.inf, value)

    def banded(points: Mapping[int, tuple[float, float | None]]) -> dict[int, tuple[float, float | None]]:
        return {at: (fit(value), None if se is None or not se <= LARGEST else se) for at, (value, se) in points.items()}

    return msgspec.structs.replace(
        track,
        metric={at: fit(value) for at, value in track.metric.items()},
        alphas={seed: {at: fit(value) for at, value in points.items()} for seed, points in track.alphas.items()},
        costs={seed: banded(points) for seed, points in track.costs.items()},
        gains={seed: banded(points) for seed, points in track.gains.items()},
    )


PANELS: Final = {
    "mean_episode_return": "return, mean of the round",
    "mean_objective_gain": "gain of the objective",
    "open.": "entropy by head, of the most",
    "kl": "KL of the update, nats",
    "clip_fraction": "clip fraction",
    "explained_variance": "explained variance",
}
"""Figure of a learner, or the start of several -> the title of its panel."""


def _learning(figure: Any, evidence: RunEvidence) -> bool:
    """The learner over its rounds, a panel for each figure; where it is a worry, a line (as in the policy's pulse)."""
    lines = {key: {name: points for name, points in evidence.updates.items() if name.startswith(key)} for key in PANELS}
    shown = [key for key in PANELS if lines[key]]
    columns = min(3, len(shown))
    grid = list(figure.subplots(-(-len(shown) // columns), columns, squeeze=False, sharex=True).flat)
    for axes, key in zip(grid, shown, strict=False):
        labels = []
        for index, (name, points) in enumerate(sorted(lines[key].items())):
            colour = LINES[index % len(LINES)]
            rounds = sorted(points)
            values = [points[at] if abs(points[at]) <= LARGEST else math.nan for at in rounds]
            axes.plot(rounds, values, color=colour, linewidth=1.6, marker="o", markersize=2.0)
            _mark_non_finite(axes, rounds, values, colour)
            finite = [(at, value) for at, value in zip(rounds, values, strict=True) if math.isfinite(value)]
            if finite and key == "open.":
                labels.append((*finite[-1], name.removeprefix(key), colour))
        worry = PULSE[key].threshold if key in PULSE else None
        low, high = axes.get_ylim()
        if worry is not None and low <= worry <= high:
            axes.axhline(worry, color=QUIET, linewidth=0.9, linestyle="--")
        dress(axes, "", PANELS[key])
        axes.title.set_fontsize(9.5)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", integer=True, nbins=5)
        _label_ends(axes, labels)
    for axes in grid[: len(shown)]:
        if axes.get_subplotspec().is_last_row():
            axes.set_xlabel("round")
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    return True


def _course(figure: Any, evidence: RunEvidence, shown: Track) -> bool:
    slots = [slot for slot, spans in shown.stages.items() if any(stage != "DORMANT" for _, stage in spans)]
    ratio = [5, max(1.0, 0.55 * len(slots))]
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=ratio) if slots else (figure.subplots(), None)
    others = [t for t in evidence.tracks if t.episode == shown.episode and t is not shown and t.metric]
    beside = [t for t in others if t.env_id == shown.env_id] or others  # a twin in its own environment is the control
    labels = []
    for index, track in enumerate([shown, *beside]):
        colour = QUIET if track.arm == STATIC else LINES[index % len(LINES)]
        style = "--" if track.arm == STATIC else "-"
        epochs = sorted(track.metric)
        values = [track.metric[epoch] for epoch in epochs]
        above.plot(epochs, values, style, color=colour, linewidth=2 if track is shown else 1.4)
        _mark_non_finite(above, epochs, values, colour)
        finite = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if math.isfinite(value)]
        if finite:
            name = track.arm or "unnamed"
            alone = sum(one.arm == track.arm for one in (shown, *beside)) == 1
            labels.append((*finite[-1], name if alone else f"{name}, environment {track.env_id}", colour))
    unit = f" ({evidence.table.unit})" if evidence.table.unit else ""
    dress(above, f"validation {evidence.table.metric}{unit}", f"Course of episode {shown.episode}, arm {shown.arm}")
    if below is not None:
        _swimlanes(below, shown, slots)
        below.set_xlabel("epoch")
        below.locator_params(axis="x", integer=True)
        above.set_xlabel("")
    _label_ends(above, labels)
    return True


def _swimlanes(axes: Any, track: Track, slots: list[str]) -> None:
    last = max(track.metric)
    for row, slot in enumerate(slots):
        spans = track.stages[slot]
        for (since, stage), following in zip(spans, [*spans[1:], (last + 1, "")], strict=True):
            if stage not in STAGE_COLOURS:
                continue
            length = max(following[0] - since, 0.6)
            axes.barh(
                row,
                length,
                left=since,
                height=0.62,
                color=STAGE_COLOURS[stage],
                edgecolor="white",
                hatch=STAGE_HATCHES.get(stage),
                linewidth=0.8,
            )
            if length >= 0.1 * last:
                box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.2}
                axes.text(since + length / 2, row, stage.lower(), ha="center", va="center", fontsize=7.5, bbox=box)
    axes.set_yticks(range(len(slots)), [_label(slot, 24) for slot in slots])
    axes.set_ylim(len(slots) - 0.4, -0.6)
    dress(axes, "", "", grid=False)


def _contribution(figure: Any, evidence: RunEvidence, shown: Track, lives: Mapping[str, SeedLife]) -> bool:
    if not shown.costs and not shown.gains:
        return False
    axes = figure.subplots()
    axes.axhline(0, color=INK, linewidth=0.8)
    labels = []
    for index, seed in enumerate(dict.fromkeys([*shown.costs, *shown.gains])):
        colour = LINES[index % len(LINES)]
        for table, style in ((shown.gains, ":"), (shown.costs, "-")):
            points = sorted(table.get(seed, {}).items())
            if not points:
                continue
            epochs, values = [epoch for epoch, _ in points], [value for _, (value, _) in points]
            axes.plot(epochs, values, style, color=colour, linewidth=1.8, marker="o", markersize=2.5)
            banded = [(epoch, value, se) for epoch, (value, se) in points if se is not None]
            if banded:
                axes.fill_between(
                    [epoch for epoch, _, _ in banded],
                    [value - 1.96 * se for _, value, se in banded],
                    [value + 1.96 * se for _, value, se in banded],
                    color=colour,
                    alpha=0.14,
                    linewidth=0,
                )
            _mark_non_finite(axes, epochs, values, colour)
        points = sorted((shown.costs.get(seed) or shown.gains.get(seed) or {}).items())
        if points and math.isfinite(points[-1][1][0]):
            labels.append((points[-1][0], points[-1][1][0], _name(seed, lives), colour))
    unit = f" ({evidence.table.unit})" if evidence.table.unit else ""
    dress(
        axes, f"{evidence.table.metric} lost without the seed{unit}", "Contribution with 95 % band (dotted: probe gain)"
    )
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)
    _label_ends(axes, labels)
    return True


def _alpha(figure: Any, shown: Track, lives: Mapping[str, SeedLife]) -> bool:
    if not shown.alphas:
        return False
    axes = figure.subplots()
    labels = []
    for index, (seed, points) in enumerate(shown.alphas.items()):
        colour = LINES[index % len(LINES)]
        epochs = sorted(points)
        axes.plot(epochs, [points[epoch] for epoch in epochs], color=colour, linewidth=2)
        if math.isfinite(points[epochs[-1]]):
            labels.append((epochs[-1], points[epochs[-1]], _name(seed, lives), colour))
    axes.set_ylim(-0.05, 1.08)
    dress(axes, "alpha", "Alpha that the forward pass used")
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)
    _label_ends(axes, labels)
    return True


def _name(seed: str, lives: Mapping[str, SeedLife]) -> str:
    life = lives.get(seed)
    return seed if life is None else f"{life.blueprint or seed} in {life.slot}, {life.outcome}"


def _label_ends(axes: Any, labels: list[tuple[int, float, str, str]]) -> None:
    """Write each line's name at its end, pushed apart so that none touches another; those that there is no room for are
    counted. To be called when the axes are dressed: what else stands there decides how high they are.
    """
    if not labels:
        return
    axes.figure.draw_without_rendering()  # the layout is known only then
    low, high = axes.get_ylim()
    room = (high - low) * LINE * axes.figure.dpi / 72 / axes.bbox.height
    most = max(1, int((high - low) / room))
    shown = sorted(labels, key=lambda label: label[1])
    if len(shown) > most:
        shown = [*shown[: most - 1], (shown[-1][0], high, f"and {len(shown) - most + 1} more", QUIET)]
    places: list[float] = []
    for _, y, _, _ in shown:
        places.append(max(y, places[-1] + room) if places else max(y, low))
    top = high - room / 2
    for place in reversed(range(len(places))):  # a pile that grew over the top is pushed back
        places[place] = min(places[place], top)
        top = places[place] - room
    beside = 0.012 * (axes.get_xlim()[1] - axes.get_xlim()[0])
    for (x, _, text, colour), at in zip(shown, places, strict=True):
        axes.text(x + beside, at, _label(text, 48), color=colour, fontsize=9, va="center", ha="left", clip_on=False)


def _mark_non_finite(axes: Any, epochs: list[int], values: list[float], colour: str) -> None:
    """Show where a value was NaN, infinite or too large, at the foot of the picture."""
    odd = [epoch for epoch, value in zip(epochs, values, strict=True) if not math.isfinite(value)]
    if odd:
        axes.plot(odd, [0.02] * len(odd), "x", color=colour, transform=axes.get_xaxis_transform(), clip_on=False)
        axes.annotate("not finite", (odd[0], 0.02), xycoords=axes.get_xaxis_transform(), fontsize=8, color=colour)


def dress(axes: Any, ylabel: str, title: str, grid: bool = True) -> None:
    """Quiet axes: two spines, a light grid, the title on the left."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if grid:
        axes.grid(True, axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    axes.set_ylabel(_label(ylabel, 64))
    axes.set_title(_label(title, 96), loc="left", fontsize=11)


def _label(text: str, most: int) -> str:
    """``text`` in the characters that a picture has room for."""
    return cut(visible(text), most)
