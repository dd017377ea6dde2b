"""The one epoch cycle, for heuristic, library and PPO runs alike.

    apply actions -> train -> evaluate (+ counterfactuals) -> governor -> slots tick -> views

The executor drives an engine's rows in step, measures, keeps them safe, and says everything in events. It never touches
a row's module.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from esper.leyline import (
    ActionOutcome,
    Decision,
    EpochMeasurement,
    EvalResult,
    FactoredAction,
    HostEngine,
    Metric,
    Op,
    RowSpec,
    RowView,
    Sink,
    SlotView,
    TelemetryEvent,
    TrainResult,
)
from esper.leyline import TelemetryEventType as T
from esper.tolaria import counterfactual
from esper.tolaria.counterfactual import Readout
from esper.tolaria.governor import Governor, Verdict


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """How often to measure what."""

    counterfactual_every: int = 1
    """Epochs between counterfactual evaluations of live slots. At least 1."""
    shapley_every: int = 0
    """Epochs between exact Shapley values; 0 computes them after the last epoch only."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One row's epoch: what became of the action, what was measured, where the time went."""

    view: RowView
    outcome: ActionOutcome
    train: TrainResult
    readout: Readout | None
    """``None`` when validation itself failed."""
    rolled_back: bool
    train_seconds: float | None
    validate_seconds: float
    policy_seconds: float | None


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """How one row's episode ended. ``test_*`` come from the single look at the test split."""

    spec: RowSpec
    view: RowView
    test_metric: float
    test_loss: float
    total_macs: int
    seconds: float


@dataclass(slots=True)
class _Row:
    """What the executor remembers of a row within an episode."""

    spec: RowSpec
    governor: Governor
    started: float
    germinated: dict[str, int] = field(default_factory=dict)
    """seed id -> epoch of germination"""


class Executor:
    """Runs episodes of N rows. ``governor`` builds a fresh governor for a row from its emit function."""

    def __init__(
        self,
        engine: HostEngine,
        metric: Metric,
        emit: Sink,
        governor: Callable[[Sink], Governor],
        config: ExecutorConfig | None = None,
    ) -> None:
        self.engine = engine
        self.metric = metric
        self.config = config or ExecutorConfig()
        self._emit = emit
        self._make_governor = governor
        self._rows: list[_Row] = []
        self.epoch = 0

    @property
    def rows(self) -> range:
        """Indices of the rows of this episode."""
        return range(len(self._rows))

    def reset(self, specs: Sequence[RowSpec]) -> list[RowView]:
        """Begin an episode of ``len(specs)`` rows and return their views before the first epoch."""
        self.engine.reset(specs)
        self.epoch = 0
        now = time.perf_counter()
        self._rows = [
            _Row(spec, self._make_governor(lambda event, spec=spec: self._emit(self._stamped(event, spec))), now)  # type: ignore[misc]
            for spec in specs
        ]
        views = self.engine.views(self.rows)
        for row, view in zip(self._rows, views, strict=True):
            self._say(
                row,
                T.EPISODE_STARTED,
                seed=row.spec.seed,
                policy=row.spec.policy,
                arm=row.spec.arm,
                max_epochs=row.spec.max_epochs,
                host_parameters=view.host_parameters,
            )
        for i in self.rows:
            self._rows[i].governor.keep(0, self.engine.state(i))
        return views

    def step(self, decisions: Sequence[Decision], policy_seconds: float | None = None) -> list[StepReport]:
        """Apply one decision per row, train an epoch, measure, and settle.

        Raises ``EsperError`` when a row had to be rolled back too often.
        """
        outcomes = self._act(decisions)
        self.epoch += 1
        trained = self.engine.train_epoch(self.rows)
        plans = [counterfactual.plan(view, shapley=self._shapley_due(view)) for view in self.engine.views(self.rows)]
        if self.epoch % self.config.counterfactual_every:
            plans = [counterfactual.Plan(p.configs[:1], (), (), False) for p in plans]
        result = self.engine.evaluate(self.rows, [plan.configs for plan in plans])
        reports = []
        for i, row in enumerate(self._rows):
            readout = counterfactual.read(plans[i], result, i, self.metric)
            rolled_back = self._guard(i, readout, trained[i], outcomes[i].action)
            if not rolled_back:
                self._report_counterfactuals(i, plans[i], readout, result)
            measured = EpochMeasurement(readout.metric, readout.loss, readout.facts)
            unmeasured = EpochMeasurement(None, None, {})
            self.engine.settle([i], self.epoch, [unmeasured if rolled_back else measured])
            (view,) = self.engine.views([i])
            self._keep_good_state(i, view, rolled_back)
            self._complete_epoch(row, view, trained[i], readout, float(result.seconds[i]), policy_seconds)
            reports.append(
                StepReport(
                    view=view,
                    outcome=outcomes[i],
                    train=trained[i],
                    readout=readout,
                    rolled_back=rolled_back,
                    train_seconds=trained[i].seconds,
                    validate_seconds=float(result.seconds[i]),
                    policy_seconds=policy_seconds,
                )
            )
        return reports

    def finish(self, decisions: Sequence[Decision] | None = None, status: str = "completed") -> list[EpisodeResult]:
        """End the episode: a last word from the policy, unproven seeds out, the one look at the test split."""
        if decisions is not None:
            self._act(decisions)
        self.engine.conclude(self.rows)
        test = self.engine.evaluate(self.rows, [({},) for _ in self._rows], split="test")
        views, costs = self.engine.views(self.rows), self.engine.costs(self.rows)
        results = []
        for i, (row, view, cost) in enumerate(zip(self._rows, views, costs, strict=True)):
            seconds = time.perf_counter() - row.started
            metric, loss = float(test.metric[i, 0]), float(test.loss[i, 0])
            self._say(row, T.COMPUTE_SPENT, **cost.spent, seconds=seconds, arm=row.spec.arm)
            self._say(
                row,
                T.EPISODE_ENDED,
                seed=row.spec.seed,
                policy=row.spec.policy,
                arm=row.spec.arm,
                epochs=self.epoch,
                **_known(validation_metric=view.metric, validation_loss=view.loss),
                test_metric=metric,
                test_loss=loss,
                test_examples=test.examples,
                host_parameters=cost.host_parameters,
                total_parameters=cost.total_parameters,
                train_macs=cost.spent["train_forward_macs"] + cost.spent["train_backward_macs"],
                total_macs=cost.spent["total_macs"],
                inference_macs=cost.inference_macs,
                seconds=seconds,
                seeds=[_seed_record(slot, row.germinated) for slot in view.slots if slot.live],
                status=status,
            )
            results.append(EpisodeResult(row.spec, view, metric, loss, cost.spent["total_macs"], seconds))
        return results

    def _act(self, decisions: Sequence[Decision]) -> list[ActionOutcome]:
        """Ask the governor, then the engine; every command other than WAIT leaves two events."""
        vetoes: list[str | None] = []
        for row, view, decision in zip(self._rows, self.engine.views(self.rows), decisions, strict=True):
            action = decision.action
            if action.op is not Op.WAIT:
                evidence = {"evidence": dict(decision.evidence)} if decision.evidence else {}
                self._say(
                    row, T.COMMAND_ISSUED, slot_id=action.slot, **_command(action), reason=decision.reason, **evidence
                )
            vetoes.append(row.governor.preflight(view, action))
        allowed = [d.action if veto is None else FactoredAction() for d, veto in zip(decisions, vetoes, strict=True)]
        outcomes = self.engine.apply(self.rows, allowed)
        final = []
        for row, decision, veto, outcome in zip(self._rows, decisions, vetoes, outcomes, strict=True):
            if veto is not None:
                outcome = ActionOutcome(decision.action, success=False, illegal=True, why_not=veto)
            action = decision.action
            if action.op is not Op.WAIT:
                event = T.COMMAND_EXECUTED if outcome.success else T.COMMAND_FAILED
                why = {} if outcome.why_not is None else {"why_not": outcome.why_not}
                self._say(row, event, slot_id=action.slot, **_command(action), **why)
            final.append(outcome)
        for row, view in zip(self._rows, self.engine.views(self.rows), strict=True):
            for slot in view.slots:
                if slot.seed_id is not None and slot.live:
                    row.germinated.setdefault(slot.seed_id, self.epoch)
        return final

    def _guard(self, i: int, readout: Readout, trained: TrainResult, action: FactoredAction) -> bool:
        """Let the governor judge the epoch; roll the row back on a panic. Returns whether it was rolled back."""
        row = self._rows[i]
        verdict: Verdict = row.governor.observe(
            self.epoch,
            train_loss=trained.loss,
            val_loss=readout.loss,
            metric=readout.metric,
            weights_finite=trained.weights_finite,
            acted=action,
        )
        if verdict.ok:
            return False
        rollback = row.governor.rollback(self.epoch)
        assert rollback is not None, "a state is kept before the first epoch"
        self.engine.rewind(i, rollback.state)
        if rollback.suspect is not None:
            self.engine.quarantine(i, rollback.suspect, rollback.veto_epochs, verdict.reason)
        return True

    def _keep_good_state(self, i: int, view: RowView, rolled_back: bool) -> None:
        governor = self._rows[i].governor
        if not rolled_back and governor.snapshot_due(self.epoch):
            governor.keep(self.epoch, self.engine.state(i), loss=view.loss, metric=view.metric)

    def _shapley_due(self, view: RowView) -> bool:
        if self.config.shapley_every:
            return self.epoch % self.config.shapley_every == 0
        return self.epoch == view.max_epochs

    def _report_counterfactuals(self, i: int, plan: counterfactual.Plan, readout: Readout, result: EvalResult) -> None:
        row = self._rows[i]
        (view,) = self.engine.views([i])
        for slot in view.slots:
            fact = readout.facts.get(slot.slot_id)
            if fact is None:
                if slot.live:
                    self._say(
                        row,
                        T.COUNTERFACTUAL_UNAVAILABLE,
                        slot_id=slot.slot_id,
                        seed_id=slot.seed_id,
                        reason="not_scheduled",
                    )
                continue
            if not math.isfinite(readout.loss):
                self._say(
                    row,
                    T.COUNTERFACTUAL_UNAVAILABLE,
                    slot_id=slot.slot_id,
                    seed_id=slot.seed_id,
                    reason="non_finite_loss",
                )
                continue
            payload: dict[str, Any] = {}
            for name in ("removal_cost", "removal_cost_loss", "probe_gain", "probe_gain_loss"):
                paired = getattr(fact, name)
                if paired is not None:
                    payload |= {name: paired.value, f"{name}_se": paired.se}
            self._say(
                row,
                T.COUNTERFACTUAL_COMPUTED,
                slot_id=slot.slot_id,
                seed_id=slot.seed_id,
                **payload,
                **_known(
                    shapley=readout.shapley.get(slot.slot_id),
                    all_off_metric=readout.all_off_metric,
                    all_off_loss=readout.all_off_loss,
                    interaction=readout.interaction,
                ),
                unit=self.metric.unit,
                examples=result.examples,
                shared_prefix=bool(result.shared_prefix[i]),
                passes=float(result.passes[i]),
                alpha=slot.alpha,
            )

    def _complete_epoch(
        self,
        row: _Row,
        view: RowView,
        trained: TrainResult,
        readout: Readout,
        validate_seconds: float,
        policy_seconds: float | None,
    ) -> None:
        live = [slot for slot in view.slots if slot.live]
        self._say(
            row,
            T.EPOCH_COMPLETED,
            arm=row.spec.arm,
            train_loss=trained.loss,
            validation_loss=readout.loss,
            validation_metric=readout.metric,
            **_known(
                host_gradient_norm=trained.host_gradient_norm,
                learning_rate=trained.learning_rate,
                train_ms=_ms(trained.seconds),
                validate_ms=_ms(validate_seconds),
                input_wait_ms=_ms(trained.input_wait_seconds),
                policy_ms=_ms(policy_seconds),
            ),
            parameters=view.host_parameters + view.seed_parameters,
            live_seeds=view.live_seeds,
            alphas={slot.slot_id: slot.alpha for slot in live},
            stages={slot.slot_id: slot.stage.name for slot in view.slots},
            seed_gradient_norm_ratios={s.slot_id: s.gradient_ratio.value for s in live if s.gradient_ratio is not None},
            gradient_healths={s.slot_id: s.gradient_health.value for s in live if s.gradient_health is not None},
        )

    def _stamped(self, event: TelemetryEvent, spec: RowSpec) -> TelemetryEvent:
        event.env_id, event.episode, event.epoch = spec.env_id, spec.episode, self.epoch
        return event

    def _say(self, row: _Row, event: T, *, slot_id: str | None = None, seed_id: str | None = None, **data: Any) -> None:
        self._emit(
            self._stamped(TelemetryEvent(event_type=event, slot_id=slot_id, seed_id=seed_id, data=data), row.spec)
        )


def _known(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000.0 * seconds


def _command(action: FactoredAction) -> dict[str, Any]:
    heads = {"slot": action.slot, "blueprint": action.blueprint}
    return {"op": action.op.name, **{head: value for head, value in heads.items() if value is not None}}


def _seed_record(slot: SlotView, germinated: dict[str, int]) -> dict[str, Any]:
    record = {
        "slot_id": slot.slot_id,
        "seed_id": slot.seed_id,
        "blueprint": slot.blueprint,
        "stage": slot.stage.name,
        "parameters": slot.parameters,
        "epoch_germinated": germinated.get(slot.seed_id or "", 0),
    }
    if slot.removal_cost is not None:
        record["removal_cost"] = slot.removal_cost.value.value
    return record
