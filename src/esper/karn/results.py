"""What the episodes of a run came to: every arm, and arms against each other on the same seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from esper.karn.state import EpisodeRecord, RunFold
from esper.karn.stats import Interval, described, total
from esper.karn.words import ABSENT
from esper.leyline import visible

STATIC: Final = "static"
"""The arm that others are compared with when it is there."""


class ArmRow(msgspec.Struct, omit_defaults=True):
    """Means of one arm over its finished episodes; what no episode measured is missing."""

    arm: str
    episodes: int
    test: Interval | None = None
    validation: Interval | None = None
    parameters: float | None = None
    total_macs: float | None = None
    inference_macs: float | None = None
    seconds: float | None = None
    seeds_kept: float | None = None

    def cells(self) -> list[str]:
        """What stands under :attr:`EndTable.head`, up to the seeds that were kept."""
        return [
            self.arm,
            str(self.episodes),
            with_interval(self.test),
            with_interval(self.validation),
            ABSENT if self.parameters is None else f"{self.parameters:,.0f}",
        ]


class ArmDifference(msgspec.Struct, omit_defaults=True):
    """``arm`` minus ``control``, paired by seed; positive means that ``arm`` is better."""

    arm: str
    control: str
    pairs: int
    unpaired: int
    test: Interval | None = None
    validation: Interval | None = None
    macs_ratio: float | None = None
    """Total MACs of the arm over the control's, mean over pairs."""


class EndTable(msgspec.Struct, omit_defaults=True):
    """The table at the end of a run and at the head of its report."""

    metric: str
    unit: str
    higher_is_better: bool
    arms: list[ArmRow]
    differences: list[ArmDifference]

    @property
    def head(self) -> list[str]:
        """Names of the columns."""
        unit = f" ({self.unit})" if self.unit else ""
        return ["arm", "episodes", f"test {self.metric}{unit}", "validation", "parameters", "seeds kept"]

    def __str__(self) -> str:
        """An aligned table, and each difference in a sentence."""
        rows = [[*arm.cells(), ABSENT if arm.seeds_kept is None else f"{arm.seeds_kept:.3g}"] for arm in self.arms]
        if not rows:
            return "No episode has ended."
        widths = [max(map(len, column)) for column in zip(self.head, *rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (self.head, *rows)]
        return "\n".join(map(visible, [*lines, *(difference_line(each, self) for each in self.differences)]))


def left_out(result: EpisodeRecord | None, seed_id: str) -> str | None:
    """Why a seed that was kept is not in the network that is delivered; ``None`` where it is, or may be yet."""
    if result is None or result.delivered != "best" or any(seed.seed_id == seed_id for seed in result.seeds):
        return None
    return f"kept only after epoch {result.delivered_epoch}, whose network is delivered"


def end_table(episodes: Sequence[EpisodeRecord], run: RunFold) -> EndTable:
    """The table of ``episodes`` in the metric of ``run``."""
    return EndTable(
        metric=run.metric or "metric",
        unit=run.unit,
        higher_is_better=run.higher_is_better,
        arms=_arms(episodes),
        differences=_differences(episodes, run.higher_is_better),
    )


def with_interval(value: Interval | None, sign: bool = False) -> str:
    """``91.40 ± 0.62``; two values are ``90.90 and 91.90``; a single one has no interval and says ``(n = 1)``."""
    if value is None:
        return ABSENT
    if len(value.values) > 1:
        return " and ".join(f"{one:+.2f}" if sign else f"{one:.2f}" for one in value.values)
    shown = f"{value.mean:+.2f}" if sign else f"{value.mean:.2f}"
    return f"{shown} ± {value.half:.2f}" if value.half is not None else f"{shown} (n = {value.n})"


def difference_line(difference: ArmDifference, table: EndTable) -> str:
    """One paired difference in one sentence."""
    head = f"{difference.arm} minus {difference.control}"
    found = difference.test or difference.validation
    if found is None:
        return f"{head}: nothing to compare, no pair of episodes was measured."
    split = "test" if difference.test is not None else "validation"
    pairs = (
        f"{found.n} pair{'s' if found.n != 1 else ''} of episodes"
        if found.n == difference.pairs
        else (f"{difference.pairs} pairs of episodes on {found.n} seed{'s' if found.n != 1 else ''}")
    )
    text = f"{head}: {with_interval(found, sign=True)} {table.unit} on the {split} split".replace("  ", " ")
    text += f", {pairs} of the same seed"
    if found.low is not None and found.high is not None:
        text += f", 95 % t interval {found.low:+.2f} to {found.high:+.2f}"
    if difference.macs_ratio is not None:
        text += f", at {difference.macs_ratio:.2f} times the MACs"
    if difference.unpaired:
        text += f"; {difference.unpaired} episodes without a partner are left out"
    return text + "."


def _arms(episodes: Sequence[EpisodeRecord]) -> list[ArmRow]:
    arms = dict.fromkeys(episode.arm for episode in episodes)
    return [_arm(name, [episode for episode in episodes if episode.arm == name]) for name in arms]


_MEANS: Final = ("total_macs", "inference_macs", "seconds", "seeds_kept")


def _arm(name: str, episodes: Sequence[EpisodeRecord]) -> ArmRow:
    return ArmRow(
        arm=name,
        episodes=len(episodes),
        test=described(_known(episode.test_metric for episode in episodes)),
        validation=described(_known(episode.validation_metric for episode in episodes)),
        parameters=_mean(episode.total_parameters for episode in episodes),
        **{mean: _mean(getattr(episode, mean) for episode in episodes) for mean in _MEANS},
    )


def _differences(episodes: Sequence[EpisodeRecord], higher_is_better: bool) -> list[ArmDifference]:
    """The first arm that grows against every other; every other against static besides, where there is a static one."""
    arms = list(dict.fromkeys(episode.arm for episode in episodes))
    grown = next((arm for arm in arms if arm != STATIC), None)
    if grown is None:
        return []
    controls = sorted((arm for arm in arms if arm != grown), key=lambda arm: arm != STATIC)
    return [_difference(episodes, grown, control, 1.0 if higher_is_better else -1.0) for control in controls]


def _difference(episodes: Sequence[EpisodeRecord], arm: str, control: str, sign: float) -> ArmDifference:
    """A learner plays the same host again and again, and its twin that does not grow once: a control's episode of the
    same seed serves where there is none of the same number. Pairs of one seed count as one, by their mean.
    """
    own = [episode for episode in episodes if episode.arm == arm]
    theirs = [episode for episode in episodes if episode.arm == control]
    by_seed = {episode.seed: episode for episode in theirs}
    exact = {(episode.episode, episode.seed): episode for episode in theirs}
    found = ((e, exact.get((e.episode, e.seed)) or by_seed.get(e.seed)) for e in own)
    pairs = [(mine, other) for mine, other in found if other is not None]

    def paired(field: str) -> Interval | None:
        by_host: dict[int, list[float]] = {}
        for mine, other in pairs:
            a, b = getattr(mine, field), getattr(other, field)
            if a is not None and b is not None:
                by_host.setdefault(mine.seed, []).append(sign * (a - b))
        return described([total(values) / len(values) for values in by_host.values()])

    ratios = [a.total_macs / b.total_macs for a, b in pairs if a.total_macs is not None and b.total_macs]
    return ArmDifference(
        arm=arm,
        control=control,
        pairs=len(pairs),
        unpaired=len(own) - len(pairs) + len(theirs) - len({id(other) for _, other in pairs}),
        test=paired("test_metric"),
        validation=paired("validation_metric"),
        macs_ratio=_mean(ratios),
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | int | None]) -> float | None:
    known = _known(values)
    return total(known) / len(known) if known else None
