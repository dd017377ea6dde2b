"""``ModuleEngine``: N growing hosts as separate modules, trained one after the other in one process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from esper.kasmina import blueprints
from esper.kasmina.export import export, largest_difference, save_export
from esper.kasmina.layout import Layout
from esper.kasmina.slot import SeedSlot, Stamp
from esper.kasmina.state import GrowthPlan
from esper.leyline import (
    ActionOutcome,
    AlphaConfig,
    Blend,
    EpochMeasurement,
    EvalResult,
    FactoredAction,
    GateResult,
    ModelExport,
    Op,
    RowCost,
    RowSpec,
    RowView,
    SeedStage,
    Sink,
    SlotFacts,
    TrainResult,
    UsageError,
    unknown,
)
from esper.tolaria import surgery
from esper.tolaria.diagnostics import DiagnosticsConfig, RowDiagnostics
from esper.tolaria.legality import why_illegal
from esper.tolaria.material import Prepare, Subject, TrainerConfig
from esper.tolaria.rng import derive, seeded
from esper.tolaria.trainer import Trainer


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What every row may grow, and how it is trained."""

    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    max_seeds: int | None = None
    parameter_budget: int | None = None
    """Most parameters of all live seeds of a row together."""
    diagnostics: DiagnosticsConfig | None = None


@dataclass
class _Row:
    """A trainer with the history that its view tells."""

    spec: RowSpec
    trainer: Trainer
    epoch: int = 0
    births: int = 0
    metric: float | None = None
    loss: float | None = None
    train_loss: float | None = None
    metric_history: list[float] = field(default_factory=list)
    loss_history: list[float] = field(default_factory=list)
    pruned: Counter[str] = field(default_factory=Counter)
    fossilized: Counter[str] = field(default_factory=Counter)
    vetoed_until: dict[str, int] = field(default_factory=dict)
    last_outcome: ActionOutcome | None = None
    diagnostics: RowDiagnostics | None = None

    @property
    def slots(self) -> Mapping[str, SeedSlot]:
        return self.trainer.model.slots


G = TypeVar("G")

_SCALARS = ("epoch", "births", "metric", "loss", "train_loss")
_LISTS = ("metric_history", "loss_history")
_COUNTS = ("pruned", "fossilized", "vetoed_until")


class ModuleEngine:
    """See :class:`esper.leyline.HostEngine`. Rows are independent: none can tell that others run beside it."""

    def __init__(self, subject: Subject, prepare: Prepare, config: EngineConfig, emit: Sink) -> None:
        self.subject, self.config = subject, config
        self._prepare = prepare
        self._emit = emit
        self._rows: list[_Row] = []
        self._sizes: dict[str, dict[str, int]] = {}

    def reset(self, rows: Sequence[RowSpec]) -> None:
        """Build a fresh host for each spec. Raises ``UsageError`` where no blueprint fits any slot."""
        trainer = self.config.trainer
        self._rows = [_Row(spec, Trainer(spec, self.subject, self._prepare, trainer, self._emit)) for spec in rows]
        for row in self._rows:
            self._stamp(row, 0)
            if self.config.diagnostics is not None:
                row.diagnostics = RowDiagnostics(row.spec, row.trainer, self.config.diagnostics, self._emit)
        self._sizes = {slot_id: self._sizes_in(slot) for slot_id, slot in self._rows[0].slots.items()}
        if not any(self._sizes.values()):
            raise UsageError(f"none of the blueprints {', '.join(self.subject.blueprints)} fits any slot")

    def _sizes_in(self, slot: SeedSlot) -> dict[str, int]:
        """Parameters of each blueprint that fits the slot."""
        everything = {name for layout in Layout for name in blueprints.names(layout)}
        sizes = {}
        for name in self.subject.blueprints:
            if ":" not in name and name not in everything:
                raise unknown("blueprint", name, everything)
            if ":" in name or name in blueprints.names(slot.config.layout):
                sizes[name] = blueprints.get(name, slot.config.layout).parameters(slot.channels)
        return sizes

    def train_epoch(self, rows: Sequence[int]) -> list[TrainResult]:
        """Train each row for one epoch, one after the other."""
        results = []
        for i in rows:
            self._awaken(self._rows[i])
            result = self._rows[i].trainer.train_epoch()
            self._rows[i].train_loss = result.loss
            results.append(result)
        return results

    def begin_epoch(self, row: int) -> None:
        """Make row ``row`` ready for an epoch that is trained by somebody else's loop; see :meth:`trainer`."""
        self._awaken(self._rows[row])
        self._rows[row].trainer.begin_epoch(0)

    def trainer(self, row: int) -> Trainer:
        """The trainer of ``row``, for a loop of the user's own."""
        return self._rows[row].trainer

    def _awaken(self, row: _Row) -> None:
        """The epoch begins: its number goes on every event, and what has germinated starts to learn."""
        self._stamp(row, row.epoch + 1)
        if row.diagnostics is not None:
            row.diagnostics.begin_epoch(row.epoch + 1)
        for slot in row.slots.values():
            if slot.stage is SeedStage.GERMINATED:
                slot.advance_stage(SeedStage.TRAINING)

    def evaluate(
        self, rows: Sequence[int], configs: Sequence[Sequence[AlphaConfig]], split: str = "validation"
    ) -> EvalResult:
        """Evaluate each row under its own configurations."""
        runs = [self._rows[i].trainer.evaluate(each, split) for i, each in zip(rows, configs, strict=True)]
        widest = max((len(run.metric) for run in runs), default=0)

        def table(name: str) -> np.ndarray:
            padded = np.full((len(runs), widest), np.nan)
            for i, run in enumerate(runs):
                values = getattr(run, name)
                padded[i, : len(values)] = values
            return padded

        return EvalResult(
            metric=table("metric"),
            loss=table("loss"),
            metric_se=table("metric_se"),
            loss_se=table("loss_se"),
            examples=runs[0].examples if runs else 0,
            passes=np.array([run.passes for run in runs]),
            shared_prefix=np.array([run.shared for run in runs], dtype=bool),
            seconds=np.array([run.seconds for run in runs]),
        )

    def apply(
        self, rows: Sequence[int], actions: Sequence[FactoredAction], reasons: Sequence[str] | None = None
    ) -> list[ActionOutcome]:
        """Apply one action per row; an illegal one changes nothing and says why."""
        outcomes = []
        for i, action, reason in zip(rows, actions, reasons or ("",) * len(rows), strict=True):
            against = why_illegal(self._view(i), action)
            if against is not None:
                outcome = ActionOutcome(action, success=False, illegal=True, why_not=against)
            else:
                why_not = self._perform(self._rows[i], action, reason)
                outcome = ActionOutcome(action, success=why_not is None, why_not=why_not)
            self._rows[i].last_outcome = outcome
            outcomes.append(outcome)
        return outcomes

    def _perform(self, row: _Row, action: FactoredAction, reason: str) -> str | None:
        """Carry out a legal action; what its gate had against it, or ``None``."""
        if action.op is Op.WAIT:
            return None
        slot = row.slots[_given(action.slot)]
        if action.op is Op.PRUNE:
            self._prune(row, slot, reason or "asked for", by="policy")
            return None
        if action.op is Op.GERMINATE:
            result = self._germinate(row, slot, action)
        elif action.op is Op.SET_ALPHA:
            result = slot.retarget(_given(action.alpha_target), _given(action.tempo), _given(action.blend))
        else:
            result = slot.advance_stage(SeedStage.BLENDING if action.op is Op.ADVANCE else SeedStage.FOSSILIZED)
            if result.passed and action.op is Op.FOSSILIZE:
                row.fossilized[_given(slot.state).blueprint_id] += 1
        return None if result.passed else result.message

    def _germinate(self, row: _Row, slot: SeedSlot, action: FactoredAction) -> GateResult:
        row.births += 1
        budget = self.config.parameter_budget
        spare = None if budget is None else budget - sum(s.view().parameters for s in row.slots.values() if s.live)
        with seeded(derive(row.spec.seed, "seed", slot.slot_id, row.births)):
            result = slot.germinate(
                _given(action.blueprint),
                seed_id=f"e{row.spec.episode}-r{row.spec.env_id}-s{row.births}",
                plan=GrowthPlan(_given(action.blend), _given(action.tempo), _given(action.alpha_target)),
                parameter_budget=spare,
            )
        if result.passed:
            row.trainer.adopt(slot.slot_id)
            slot.record(metric_at_germination=row.metric)
        return result

    def _prune(self, row: _Row, slot: SeedSlot, reason: str, by: str) -> None:
        state = _given(slot.state)
        slot.prune(reason, by=by)
        row.trainer.release(slot.slot_id, state.seed_id)
        row.pruned[state.blueprint_id] += 1

    def settle(self, rows: Sequence[int], epoch: int, measured: Sequence[EpochMeasurement]) -> None:
        """Record what the epoch measured, then let every slot tick."""
        for i, facts in zip(rows, measured, strict=True):
            row = self._rows[i]
            row.epoch = epoch
            self._stamp(row, epoch)
            if facts.metric is not None and facts.loss is not None:
                row.metric, row.loss = facts.metric, facts.loss
                row.metric_history.append(facts.metric)
                row.loss_history.append(facts.loss)
            for slot_id, slot in row.slots.items():
                if slot.live:
                    self._record(row, slot, facts.slots.get(slot_id, SlotFacts()), facts.loss)
                slot.tick()
            if row.diagnostics is not None:
                row.diagnostics.end_epoch(epoch, row.train_loss, facts)

    def _record(self, row: _Row, slot: SeedSlot, facts: SlotFacts, loss: float | None) -> None:
        measured = {name: getattr(facts, name) for name in SlotFacts.__slots__} | {"loss": loss}
        slot.record(**{name: value for name, value in measured.items() if value is not None})

    def quarantine(self, row: int, slot: str, epochs: int, reason: str) -> None:
        """Prune what lives in ``slot`` in the governor's name and let nothing grow there for ``epochs`` epochs."""
        found = self._rows[row].slots[slot]
        if found.live and found.stage is not SeedStage.FOSSILIZED:
            self._prune(self._rows[row], found, reason, by="governor")
        self._rows[row].vetoed_until[slot] = self._rows[row].epoch + epochs

    def conclude(self, rows: Sequence[int]) -> None:
        """Prune every seed that was not fossilized."""
        for i in rows:
            for slot in self._rows[i].slots.values():
                if slot.live and slot.stage is not SeedStage.FOSSILIZED:
                    self._prune(self._rows[i], slot, "the episode ended before it was fossilized", by="lifecycle")

    def views(self, rows: Sequence[int]) -> list[RowView]:
        """Plain state of each row."""
        return [self._view(i) for i in rows]

    def _view(self, i: int) -> RowView:
        row = self._rows[i]
        return RowView(
            env_id=row.spec.env_id,
            episode=row.spec.episode,
            epoch=row.epoch,
            max_epochs=row.spec.max_epochs,
            slots=tuple(slot.view() for slot in row.slots.values()),
            blueprints=tuple(self.subject.blueprints),
            blueprint_parameters=self._sizes,
            host_parameters=row.trainer.host_size,
            metric=row.metric,
            loss=row.loss,
            train_loss=row.train_loss,
            metric_history=tuple(row.metric_history),
            loss_history=tuple(row.loss_history),
            higher_is_better=self.subject.metric.higher_is_better,
            parameter_budget=self.config.parameter_budget,
            max_seeds=self.config.max_seeds,
            vetoed=frozenset(slot for slot, until in row.vetoed_until.items() if until > row.epoch),
            last_outcome=row.last_outcome,
            pruned=dict(row.pruned),
            fossilized=dict(row.fossilized),
        )

    def costs(self, rows: Sequence[int]) -> list[RowCost]:
        """Parameters and multiply-accumulates of each row."""
        costs = []
        for i in rows:
            trainer, view = self._rows[i].trainer, self._view(i)
            costs.append(
                RowCost(
                    host_parameters=view.host_parameters,
                    total_parameters=view.host_parameters + view.seed_parameters,
                    inference_macs=trainer.macs.forward,
                    learning_rate=float(surgery.host_groups(trainer.optimizer)[0]["lr"]),
                    spent=trainer.ledger.spent(),
                )
            )
        return costs

    def charge(self, row: int, purpose: str, macs: int) -> None:
        """Add to what was spent on the row; see :meth:`Ledger.charge`."""
        self._rows[row].trainer.ledger.charge(purpose, macs)

    def state(self, row: int) -> dict[str, Any]:
        """Everything the row needs to continue bit for bit."""
        kept, state = self._rows[row], self._rows[row].trainer.state()
        outcome = kept.last_outcome
        state["plain"] = {
            "trainer": state["plain"],
            **{name: getattr(kept, name) for name in _SCALARS},
            **{name: list(getattr(kept, name)) for name in _LISTS},
            **{name: dict(getattr(kept, name)) for name in _COUNTS},
            "last_outcome": None if outcome is None else _plain_outcome(outcome),
        }
        return state

    def load(self, row: int, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`, also into a row whose topology differs."""
        kept, plain = self._rows[row], state["plain"]
        kept.trainer.load({"tensors": state["tensors"], "plain": plain["trainer"]})
        for name in _SCALARS:
            setattr(kept, name, plain[name])
        for name in _LISTS:
            setattr(kept, name, list(plain[name]))
        for name in _COUNTS:
            setattr(kept, name, type(getattr(kept, name))(plain[name]))
        outcome = plain["last_outcome"]
        kept.last_outcome = None if outcome is None else _read_outcome(outcome)
        self._stamp(kept, kept.epoch)

    def rewind(self, row: int, state: Mapping[str, Any]) -> None:
        """Go back to an earlier state of the same episode; the clock, what was spent and vetoes stay as they are."""
        kept = self._rows[row]
        epoch, spent, vetoes, births = kept.epoch, kept.trainer.ledger, kept.vetoed_until, kept.births
        lost = {slot.state.seed_id for slot in kept.slots.values() if slot.live and slot.state is not None}
        self.load(row, state)
        kept.epoch, kept.trainer.ledger, kept.vetoed_until, kept.births = epoch, spent, vetoes, births
        for seed_id in lost - {slot.state.seed_id for slot in kept.slots.values() if slot.state is not None}:
            spent.discard(seed_id)
        self._stamp(kept, epoch + 1)

    def materialise(self, row: int) -> nn.Module:
        """The row's network as a plain module, with every seed that takes part in its forward pass."""
        return export(self._rows[row].trainer.model)

    def save(self, row: int, directory: Path) -> ModelExport:
        """Write the row's network so that it can be loaded where there is no Esper."""
        trainer = self._rows[row].trainer
        exported = save_export(trainer.model, directory, trainer.material.sample)
        plain = export(trainer.model)
        trainer.model.eval()
        return ModelExport(
            path=str(exported.code.parent),
            parameters=sum(p.numel() for p in plain.parameters()),
            max_abs_difference=largest_difference(trainer.model, plain, trainer.material.sample),
            formats=("model.py", "model.safetensors"),
        )

    def _stamp(self, row: _Row, epoch: int) -> None:
        stamp = Stamp(env_id=row.spec.env_id, episode=row.spec.episode, epoch=epoch)
        for slot in row.slots.values():
            slot.stamp = stamp


def _plain_outcome(outcome: ActionOutcome) -> dict[str, Any]:
    action = asdict(outcome.action)
    blend = None if outcome.action.blend is None else outcome.action.blend.value
    return {**asdict(outcome), "action": {**action, "op": outcome.action.op.name, "blend": blend}}


def _read_outcome(plain: Mapping[str, Any]) -> ActionOutcome:
    action = plain["action"]
    blend = None if action["blend"] is None else Blend(action["blend"])
    return ActionOutcome(**{**plain, "action": FactoredAction(**{**action, "op": Op[action["op"]], "blend": blend})})


def _given(value: G | None) -> G:
    """A head of a legal action, or the state of a live slot: never ``None``."""
    if value is None:
        raise RuntimeError("a legal action has all its heads, and a live slot a state")
    return value
