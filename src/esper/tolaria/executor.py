"""The one epoch cycle, for heuristic, library and PPO runs alike.

    apply actions -> train -> evaluate (+ counterfactuals) -> governor -> slots tick -> views

The executor drives an engine's rows in step, measures, keeps them safe, and says everything in events. It never touches
a row's module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esper.leyline import (
    WAIT,
    ActionOutcome,
    AlphaConfig,
    Decision,
    EpochMeasurement,
    EvalResult,
    FactoredAction,
    HostEngine,
    Metric,
    RowSpec,
    RowView,
    Sink,
    TrainResult,
)
from esper.tolaria import counterfactual
from esper.tolaria.counterfactual import Readout
from esper.tolaria.governor import Governor
from esper.tolaria.narrator import Narrator
from esper.tolaria.nested import State, join, plain_state, split
from esper.tolaria.saved import SavedRows

MakeGovernor = Callable[[Sink], Governor]
"""A fresh governor for one row, which sends its events to the given sink."""


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """How often to measure what."""

    counterfactual_every: int = 1
    """Epochs between counterfactual evaluations of live slots. At least 1."""
    shapley_every: int = 0
    """Epochs between exact Shapley values; 0 computes them after the last epoch only."""
    test: bool = True
    """Whether there is a test split to look at in the end."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One row's epoch: what became of the action, what was measured, where the time went."""

    view: RowView
    outcome: ActionOutcome
    train: TrainResult
    readout: Readout
    rolled_back: bool
    validate_seconds: float


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """How one row's episode ended. The test figures come from the single look at the test split, if there is one."""

    spec: RowSpec
    view: RowView
    validation_metric: float
    validation_loss: float
    test_metric: float | None
    test_loss: float | None
    test_examples: int | None
    total_macs: int
    seconds: float
    """The row's own time."""

    def scores(self) -> dict[str, float | int]:
        """What the ``EPISODE_ENDED`` payload takes from here."""
        names = ("validation_metric", "validation_loss", "test_metric", "test_loss", "test_examples", "seconds")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(slots=True)
class _Row:
    spec: RowSpec
    narrator: Narrator
    governor: Governor
    seconds: float = 0.0
    """The row's own time so far: training, validation and its share of deciding."""


class Executor:
    """Runs episodes of N rows on an engine."""

    def __init__(
        self,
        engine: HostEngine,
        metric: Metric,
        emit: Sink,
        governor: MakeGovernor,
        config: ExecutorConfig | None = None,
    ) -> None:
        self.engine = engine
        self.metric = metric
        self.config = config or ExecutorConfig()
        self.epoch = 0
        self._emit = emit
        self._make_governor = governor
        self._rows: list[_Row] = []
        self._outcomes: list[ActionOutcome] = []

    @property
    def rows(self) -> range:
        """Indices of the rows of this episode."""
        return range(len(self._rows))

    def reset(self, specs: Sequence[RowSpec]) -> list[RowView]:
        """Begin an episode of ``len(specs)`` rows and return their views before the first epoch."""
        self._open(specs)
        self._set_clock(0)
        views = self.engine.views(self.rows)
        for i, row in enumerate(self._rows):
            row.narrator.episode_started(views[i])
            row.governor.keep(0, self.engine.state(i))
        return views

    def step(self, decisions: Sequence[Decision], policy_seconds: float | None = None) -> list[StepReport]:
        """Apply one decision per row, train an epoch, measure, and settle.

        ``policy_seconds`` is what deciding took, per row. Raises ``EsperError`` when a row had to be rolled back too
        often.
        """
        self.begin(decisions)
        return self.complete(self.engine.train_epoch(self.rows), policy_seconds)

    def begin(self, decisions: Sequence[Decision]) -> None:
        """The first half of :meth:`step`, for those who train the epoch themselves: act, and start the clock."""
        self._outcomes = self._act(decisions)
        self._set_clock(self.epoch + 1)

    def complete(self, trained: Sequence[TrainResult], policy_seconds: float | None = None) -> list[StepReport]:
        """The second half of :meth:`step`: measure what was trained, and settle."""
        views = self.engine.views(self.rows)
        plans = [self._plan(view) for view in views]
        result = self.engine.evaluate(self.rows, [plan.configs for plan in plans])
        reports = []
        for i, (row, outcome) in enumerate(zip(self._rows, self._outcomes, strict=True)):
            readout = counterfactual.read(plans[i], result, i, self.metric)
            rolled_back = self._rolled_back(i, readout, trained[i], outcome)
            view = self._settle(i, views[i], readout, result, rolled_back)
            seconds = {
                "train": trained[i].seconds,
                "input_wait": trained[i].input_wait_seconds,
                "validate": float(result.seconds[i]),
                "policy": policy_seconds,
            }
            row.seconds += sum(seconds[name] or 0.0 for name in ("train", "validate", "policy"))
            row.narrator.epoch_completed(view, trained[i], readout, seconds)
            reports.append(StepReport(view, outcome, trained[i], readout, rolled_back, float(result.seconds[i])))
        return reports

    def finish(self, decisions: Sequence[Decision] | None = None, status: str = "completed") -> list[EpisodeResult]:
        """End the episode: a last word from the policy, unproven seeds out, the one look at the test split."""
        if decisions is not None:
            self._act(decisions)
        self.engine.conclude(self.rows)
        as_is: list[Sequence[AlphaConfig]] = [({},) for _ in self._rows]
        validation = self.engine.evaluate(self.rows, as_is)
        test = self.engine.evaluate(self.rows, as_is, split="test") if self.config.test else None
        views, costs = self.engine.views(self.rows), self.engine.costs(self.rows)
        results = []
        for i, row in enumerate(self._rows):
            result = EpisodeResult(
                spec=row.spec,
                view=views[i],
                validation_metric=float(validation.metric[i, 0]),
                validation_loss=float(validation.loss[i, 0]),
                test_metric=None if test is None else float(test.metric[i, 0]),
                test_loss=None if test is None else float(test.loss[i, 0]),
                test_examples=None if test is None else test.examples,
                total_macs=costs[i].spent["total_macs"],
                seconds=row.seconds,
            )
            row.narrator.compute_spent(costs[i], result.seconds)
            row.narrator.episode_ended(views[i], costs[i], result.scores(), status)
            results.append(result)
        return results

    def state(self) -> State:
        """Everything that the episode under way needs to go on bit for bit, as it is between two epochs."""
        return self.take(self.rows).state()

    def take(self, rows: Iterable[int]) -> SavedRows:
        """The same of some rows; :meth:`SavedRows.join` puts such parts together for :meth:`load`."""
        wanted = list(rows)
        specs = tuple(self._rows[i].spec for i in wanted)
        return SavedRows(self.epoch, specs, tuple(self._row_state(i) for i in wanted))

    def load(self, state: Mapping[str, Any]) -> list[RowView]:
        """Undo of :meth:`state`, without a word: the episode was announced before. Returns the rows' views."""
        rows = SavedRows.of(state)
        self._open(rows.specs)
        for i, row in enumerate(self._rows):
            saved = split(rows.rows[i], "own", "engine", "governor")
            self.engine.load(i, saved["engine"])
            row.governor.load(saved["governor"])
            row.seconds = saved["own"]["plain"]["seconds"]
            row.narrator.load(saved["own"]["plain"]["narrator"])
        self._set_clock(rows.epoch)
        return self.engine.views(self.rows)

    def _row_state(self, i: int) -> State:
        row = self._rows[i]
        own = plain_state({"seconds": row.seconds, "narrator": row.narrator.state()})
        return join({"own": own, "engine": self.engine.state(i), "governor": row.governor.state()})

    def _open(self, specs: Sequence[RowSpec]) -> None:
        """Fresh rows, not yet announced."""
        self.engine.reset(specs)
        self._rows = []
        for spec in specs:
            narrator = Narrator(spec, self.metric, self._emit)
            self._rows.append(_Row(spec, narrator, self._make_governor(narrator.relay)))

    def _set_clock(self, epoch: int) -> None:
        self.epoch = epoch
        for row in self._rows:
            row.narrator.epoch = epoch

    def _act(self, decisions: Sequence[Decision]) -> list[ActionOutcome]:
        """Ask the governor, then the engine; every command other than WAIT leaves two events."""
        views = self.engine.views(self.rows)
        vetoes: list[str | None] = []
        for i, (row, view, decision) in enumerate(zip(self._rows, views, decisions, strict=True)):
            if decision.macs:
                self.engine.charge(i, "policy", decision.macs)
            row.narrator.command_issued(decision)
            vetoes.append(row.governor.preflight(view, decision.action))
        allowed = [d.action if veto is None else FactoredAction() for d, veto in zip(decisions, vetoes, strict=True)]
        outcomes = self.engine.apply(self.rows, allowed, [decision.reason for decision in decisions])
        for i, (decision, veto) in enumerate(zip(decisions, vetoes, strict=True)):
            if veto is not None:
                outcomes[i] = ActionOutcome(decision.action, success=False, illegal=True, why_not=veto)
        if any(outcome.success and outcome.action != WAIT for outcome in outcomes):
            views = self.engine.views(self.rows)
        for row, view, outcome in zip(self._rows, views, outcomes, strict=True):
            row.narrator.command_answered(outcome)
            row.narrator.note_births(view)
        return outcomes

    def _plan(self, view: RowView) -> counterfactual.Plan:
        if self.epoch % self.config.counterfactual_every:
            return counterfactual.Plan(({},), (), (), shapley=False)
        every = self.config.shapley_every
        due = self.epoch % every == 0 if every else self.epoch == view.max_epochs
        return counterfactual.plan(view, shapley=due)

    def _rolled_back(self, i: int, readout: Readout, trained: TrainResult, outcome: ActionOutcome) -> bool:
        """Let the governor judge the epoch, and go back to the last good state on a panic."""
        governor = self._rows[i].governor
        verdict = governor.observe(
            self.epoch,
            train_loss=trained.loss,
            val_loss=readout.loss,
            metric=readout.metric,
            weights_finite=trained.weights_finite,
            acted=outcome.action if outcome.success else None,
        )
        if verdict.ok:
            return False
        rollback = governor.rollback(self.epoch)
        if rollback is None:
            raise RuntimeError("a state is kept before the first epoch; there is always one to go back to")
        self.engine.rewind(i, rollback.state)
        if rollback.suspect is not None:
            self.engine.quarantine(i, rollback.suspect, rollback.veto_epochs, rollback.reason)
        return True

    def _settle(self, i: int, trained: RowView, readout: Readout, result: EvalResult, rolled_back: bool) -> RowView:
        """Record the epoch's facts and let the slots tick; of a state that is gone nothing is recorded."""
        row = self._rows[i]
        if rolled_back:
            self.engine.settle([i], self.epoch, [EpochMeasurement(None, None, {})])
            return self.engine.views([i])[0]
        row.narrator.counterfactuals(trained, readout, result, i)
        self.engine.settle([i], self.epoch, [EpochMeasurement(readout.metric, readout.loss, readout.facts)])
        view = self.engine.views([i])[0]
        if row.governor.snapshot_due(self.epoch):
            row.governor.keep(self.epoch, self.engine.state(i), loss=view.loss, metric=view.metric)
        return view
