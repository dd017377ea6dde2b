"""Live progress: a bar with the time to go, each arm's metric and slot chips on a terminal; plain lines in a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from esper.leyline import Metric, SeedStage, SlotView
from esper.run.play import EpisodePlan
from esper.tolaria.executor import EpisodeResult, StepReport

GLYPHS = {
    SeedStage.DORMANT: ("·", "dim"),
    SeedStage.GERMINATED: ("∘", "cyan"),
    SeedStage.TRAINING: ("◔", "cyan"),
    SeedStage.BLENDING: ("◑", "yellow"),
    SeedStage.HOLDING: ("◕", "yellow"),
    SeedStage.FOSSILIZED: ("●", "green"),
    SeedStage.PRUNED: ("✕", "red"),
    SeedStage.EMBARGOED: ("×", "dim"),
    SeedStage.RESETTING: ("×", "dim"),
}


def chip(slot: SlotView) -> Text:
    """``◑ block0 conv5 0.66``: stage glyph, slot, blueprint, alpha."""
    glyph, style = GLYPHS[slot.stage]
    words = [glyph, slot.slot_id]
    if slot.live:
        words += [slot.blueprint or "?", f"{slot.alpha:.2f}"]
    return Text(" ".join(words), style=style)


class ConsoleProgress:
    """Shows a run while it runs. ``epoch`` and ``episode`` are called by the run."""

    def __init__(
        self, plan: EpisodePlan, arms: Sequence[str], metric: Metric, console: Console, *, quiet: bool
    ) -> None:
        self._plan, self._arms, self._metric = plan, arms, metric
        self._console = console
        self._quiet = quiet
        self._latest: Sequence[StepReport] = ()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("ep 0", total=plan.episodes * plan.max_epochs)
        self._live = Live(
            get_renderable=self._picture, console=console, refresh_per_second=4, transient=True, screen=False
        )

    def __enter__(self) -> Self:
        if self._shown:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._live.stop()

    @property
    def _shown(self) -> bool:
        return self._console.is_terminal and not self._quiet

    def epoch(self, episode: int, epoch: int, reports: Sequence[StepReport]) -> None:
        """Take in one epoch of every arm."""
        self._latest = reports
        description = f"ep {episode}"
        self._bar.update(self._task, description=description, completed=episode * self._plan.max_epochs + epoch)

    def say(self, lines: Sequence[str]) -> None:
        """Lines that stay."""
        if not self._quiet:
            for line in lines:
                self._console.print(Text(line), soft_wrap=True)

    def episode(self, results: Sequence[EpisodeResult]) -> None:
        """Take in an episode's end: one line that stays."""
        if self._quiet:
            return
        unit = self._metric.unit
        line = Text(f"ep {results[0].spec.episode}  {self._metric.name}: ")
        for i, result in enumerate(results):
            split, value = ("test", result.test_metric) if result.test_metric is not None else ("validation", None)
            value = result.validation_metric if value is None else value
            line.append(", " if i else "")
            line.append(f"{result.spec.arm} ", style="bold" if i == 0 else "")
            line.append(f"{value:.1f} {unit} ({split})")
        self._console.print(line, soft_wrap=True)

    def _picture(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for report in self._latest:
            metric = report.view.metric
            shown = "–" if metric is None else f"{metric:.1f} {self._metric.unit}"
            chips = Text("   ").join(chip(slot) for slot in report.view.slots)
            table.add_row(Text(self._arms[report.view.env_id], style="bold"), shown, chips)
        return Group(table, self._bar)
