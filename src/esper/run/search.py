"""The search for the best fixed schedule, on seeds of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from esper.leyline import ActionSpace, Blend, FactoredAction, Op, Policy, UsageError
from esper.run.assembly import Workload, build_executor
from esper.run.config import CommonConfig
from esper.run.play import play_seeds
from esper.tamiyo.policies import Entry, SchedulePolicy
from esper.tolaria.executor import Executor
from esper.tolaria.rng import derive


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """How hard to look for a schedule. The seeds must not be those it is then judged on."""

    seeds: tuple[int, ...]
    max_epochs: int
    epochs: tuple[int, ...] = (1,)
    """When a seed may germinate, in epochs done."""
    max_seeds: int = 2
    """Germinations in a schedule, found one after the other."""

    def __post_init__(self) -> None:
        if not self.seeds or not self.epochs or self.max_seeds < 1:
            raise UsageError("the search for a schedule needs at least one seed, one epoch and one germination")


@dataclass(frozen=True, slots=True)
class FoundSchedule:
    """The best schedule: its entries, its mean validation metric on the search's seeds, and what finding it took."""

    entries: tuple[Entry, ...]
    metric: float
    schedules: int
    macs: int


def search_schedule(
    make_executor: Callable[[], Executor], space: ActionSpace, plan: SearchPlan, higher_is_better: bool
) -> FoundSchedule:
    """Greedy search: every single germination, then everything that may follow the best, while it gets better.

    Validation decides; ``make_executor`` should not look at the test split.
    """
    sign = 1.0 if higher_is_better else -1.0
    best: tuple[tuple[Entry, ...], float] | None = None
    tried, macs = 0, 0
    for _ in range(plan.max_seeds):
        known = () if best is None else best[0]
        candidates = [(*known, entry) for entry in _entries(space, plan) if _free(entry, known)]
        if not candidates:
            break
        scores: list[list[float]] = [[] for _ in candidates]
        policies: dict[str, Policy] = {str(i): SchedulePolicy(entries) for i, entries in enumerate(candidates)}
        for results in play_seeds(make_executor(), policies, plan.seeds, plan.max_epochs):
            for score, result in zip(scores, results, strict=True):
                score.append(sign * result.validation_metric)
                macs += result.total_macs
        tried += len(candidates)
        means = [fmean(score) for score in scores]
        top = max(range(len(candidates)), key=means.__getitem__)
        if best is not None and means[top] <= best[1]:
            break
        best = (candidates[top], means[top])
    assert best is not None, "there is at least one slot and one blueprint"
    return FoundSchedule(best[0], sign * best[1], tried, macs)


def find_schedule(config: CommonConfig, load: Workload, count: int) -> FoundSchedule:
    """Search on ``count`` seeds that neither training nor evaluation uses."""
    seeds = tuple(derive(config.seed, "search", number) for number in range(count))
    budget = config.max_seeds or load.task.budget.max_seeds or len(load.task.sites)
    plan = SearchPlan(seeds, load.max_epochs, max_seeds=min(budget, len(load.task.sites)))
    space = ActionSpace(tuple(load.task.sites), load.task.blueprints)
    higher = load.task.metric.higher_is_better
    return search_schedule(lambda: build_executor(load, config, lambda event: None, test=False), space, plan, higher)


def _entries(space: ActionSpace, plan: SearchPlan) -> list[Entry]:
    return [
        Entry(epoch, FactoredAction(Op.GERMINATE, slot, blueprint, Blend.LINEAR, 1.0, 1))
        for epoch in plan.epochs
        for slot in space.slots
        for blueprint in space.blueprints
    ]


def _free(entry: Entry, known: Sequence[Entry]) -> bool:
    return all(other.action.slot != entry.action.slot for other in known)
