"""``ModuleEngine``: N growing hosts as separate modules, trained one after the other in one process."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from esper.kasmina import growable
from esper.kasmina.export import compare, export, save_export
from esper.kasmina.layer import Beside
from esper.kasmina.slot import EventStamp, SeedSlot
from esper.kasmina.state import GrowthPlan, Incubation
from esper.kasmina.trial import device_of, mode, random_kept, trial
from esper.leyline import (
    ActionOutcome,
    AlphaConfig,
    EnvCost,
    EnvSpec,
    EnvView,
    EpochMeasurement,
    EvalResult,
    FactoredAction,
    GateResult,
    ModelExport,
    Op,
    Promise,
    SeedStage,
    Settled,
    Sink,
    SlotFacts,
    SlotView,
    TelemetryEvent,
    TelemetryEventType,
    TrainResult,
    UsageError,
    unknown,
)
from esper.tolaria import surgery
from esper.tolaria.diagnostics import DiagnosticsConfig, EnvDiagnostics
from esper.tolaria.evaluation import side_by_side
from esper.tolaria.ledger import Ledger
from esper.tolaria.legality import why_illegal
from esper.tolaria.ranks import require_agreement
from esper.tolaria.rng import derive, seeded
from esper.tolaria.saved import plain_outcome, read_outcome
from esper.tolaria.setup import GrowthTask, MakeSetup, TrainerConfig
from esper.tolaria.trainer import Trainer


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What every env may grow, and how it is trained."""

    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    max_seeds: int | None = None
    parameter_budget: int | None = None
    """Most parameters of all live seeds of an env together."""
    diagnostics: DiagnosticsConfig | None = None
    rehearse_export: bool = False
    """Whether a fresh env is exported once, to nowhere, so that what cannot be exported is refused at once."""


@dataclass
class _EnvState:
    """A trainer with the history that its view tells."""

    spec: EnvSpec
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
    promises: dict[str, dict[str, Promise]] = field(default_factory=dict)
    """slot -> blueprint -> what an audition said of it."""
    last_outcome: ActionOutcome | None = None
    diagnostics: EnvDiagnostics | None = None

    @property
    def slots(self) -> Mapping[str, SeedSlot]:
        return self.trainer.model.slots


G = TypeVar("G")

_SCALARS = ("epoch", "births", "metric", "loss", "train_loss")
_LISTS = ("metric_history", "loss_history")
_COUNTS = ("pruned", "fossilized", "vetoed_until")


class ModuleEngine:
    """See :class:`esper.leyline.HostEngine`. Envs are independent: none can tell that others run beside it."""

    def __init__(self, task: GrowthTask, prepare: MakeSetup, config: EngineConfig, emit: Sink) -> None:
        self.task, self.config = task, config
        self._prepare = prepare
        self._emit = emit
        self._envs: list[_EnvState] = []
        self._sizes: dict[str, dict[str, int]] = {}

    def reset(self, envs: Sequence[EnvSpec]) -> None:
        """Build a fresh host for each spec. Raises ``UsageError`` where no blueprint fits any slot."""
        trainer = self.config.trainer
        self._envs = [_EnvState(spec, Trainer(spec, self.task, self._prepare, trainer, self._emit)) for spec in envs]
        for env in self._envs:
            self._stamp(env, 0)
            if self.config.diagnostics is not None:
                env.diagnostics = EnvDiagnostics(env.spec, env.trainer, self.config.diagnostics, self._emit)
        self._sizes = {slot_id: self._sizes_in(slot) for slot_id, slot in self._envs[0].slots.items()}
        if not any(self._sizes.values()):
            raise UsageError(
                f"none of the blueprints {', '.join(self.task.blueprints)} fits any slot"
                + self._why_none(self._envs[0].slots.values())
            )
        if self.config.rehearse_export:
            for i in range(len(self._envs)):
                self.rehearse_export(i)

    def _why_none(self, slots: Iterable[SeedSlot]) -> str:
        """The first reason why a blueprint of the right layout may not grow in a slot; empty where there is none."""
        for slot in slots:
            for name in self.task.blueprints:
                if growable.fits(slot, name) and (reason := growable.against(slot, name)):
                    return f"; {name} may not grow in {slot.slot_id}: {reason}"
        return ""

    def _sizes_in(self, slot: SeedSlot) -> dict[str, int]:
        """Parameters of each blueprint that fits the slot and mixes nothing there that the host keeps apart."""
        everything = growable.known()
        sizes = {}
        for name in self.task.blueprints:
            if ":" not in name and name not in everything:
                raise unknown("blueprint", name, everything)
            if growable.fits(slot, name) and growable.against(slot, name) is None:
                sizes[name] = growable.size(slot, name)
        return sizes

    def train_epoch(self, envs: Sequence[int]) -> list[TrainResult]:
        """Train each env for one epoch, one after the other."""
        results = []
        for i in envs:
            self._awaken(self._envs[i])
            result = self._envs[i].trainer.train_epoch()
            self._envs[i].train_loss = result.loss
            results.append(result)
        return results

    def begin_epoch(self, env: int) -> None:
        """Make env ``env`` ready for an epoch that is trained by somebody else's loop; see :meth:`trainer`."""
        self._awaken(self._envs[env])
        self._envs[env].trainer.begin_epoch(0)

    def resume_epoch(self, env: int, state: Mapping[str, Any]) -> None:
        """Be in the midst of the epoch that :meth:`Trainer.epoch_state` was taken in, after :meth:`load`."""
        kept = self._envs[env]
        self._stamp(kept, kept.epoch + 1)
        kept.trainer.load_epoch(state)

    def trainer(self, env: int) -> Trainer:
        """The trainer of ``env``, for a loop of the user's own."""
        return self._envs[env].trainer

    def audition(self, env: int, candidates: Sequence[tuple[str, str]]) -> None:
        """Let candidates learn behind the host in the coming epoch. Raises ``UsageError`` where one cannot be."""
        kept = self._envs[env]
        for slot_id, blueprint in candidates:
            if slot_id not in kept.slots:
                raise unknown("slot", slot_id, kept.slots)
            if blueprint not in self._sizes[slot_id]:
                raise unknown(f"blueprint in slot {slot_id}", blueprint, self._sizes[slot_id])
        kept.trainer.auditioned = dict(candidates)

    def _awaken(self, env: _EnvState) -> None:
        """The epoch begins: its number goes on every event, and what has germinated starts to learn."""
        self._stamp(env, env.epoch + 1)
        if env.diagnostics is not None:
            env.diagnostics.begin_epoch(env.epoch + 1)
        for slot in env.slots.values():
            if slot.stage is SeedStage.GERMINATED:
                slot.advance_stage(SeedStage.TRAINING)

    def evaluate(
        self,
        envs: Sequence[int],
        configs: Sequence[Sequence[AlphaConfig]],
        split: str = "validation",
        settled: Settled | None = None,
    ) -> EvalResult:
        """Evaluate each env under its own configurations."""
        runs = [
            self._envs[i].trainer.evaluate(each, split, None if settled is None else partial(settled, number))
            for number, (i, each) in enumerate(zip(envs, configs, strict=True))
        ]
        return side_by_side(runs)

    def apply(
        self, envs: Sequence[int], actions: Sequence[FactoredAction], reasons: Sequence[str] | None = None
    ) -> list[ActionOutcome]:
        """Apply one action per env; an illegal one changes nothing and says why."""
        outcomes = []
        for i, action, reason in zip(envs, actions, reasons or ("",) * len(envs), strict=True):
            against = why_illegal(self._view(i), action)
            if against is not None:
                outcome = ActionOutcome(action, success=False, illegal=True, why_not=against)
            else:
                why_not = self._perform(self._envs[i], action, reason)
                outcome = ActionOutcome(action, success=why_not is None, why_not=why_not)
            self._envs[i].last_outcome = outcome
            outcomes.append(outcome)
        return outcomes

    def _perform(self, env: _EnvState, action: FactoredAction, reason: str) -> str | None:
        """Carry out a legal action; what its gate had against it, or ``None``."""
        if action.op is Op.WAIT:
            return None
        slot = env.slots[_given(action.slot)]
        if action.op is Op.PRUNE:
            self._prune(env, slot, reason or "asked for", by="policy")
            return None
        if action.op is Op.GERMINATE:
            result = self._germinate(env, slot, action)
        elif action.op is Op.SET_ALPHA:
            result = slot.retarget(_given(action.alpha_target), _given(action.tempo), _given(action.blend))
        else:
            result = slot.advance_stage(SeedStage.BLENDING if action.op is Op.ADVANCE else SeedStage.FOSSILIZED)
            if result.passed and action.op is Op.FOSSILIZE:
                env.fossilized[_given(slot.state).blueprint_id] += 1
        return None if result.passed else result.message

    def _germinate(self, env: _EnvState, slot: SeedSlot, action: FactoredAction) -> GateResult:
        env.births += 1
        budget = self.config.parameter_budget
        taken = sum(part.state.parameters or 0 for _, part in env.trainer.model.parts.values())
        spare = None if budget is None else budget - taken
        with seeded(derive(env.spec.seed, "seed", slot.slot_id, env.births)):
            result = slot.germinate(
                _given(action.blueprint),
                seed_id=f"e{env.spec.episode}-r{env.spec.env_id}-s{env.births}",
                plan=GrowthPlan(
                    _given(action.blend),
                    _given(action.tempo),
                    _given(action.alpha_target),
                    None if action.incubation is None else Incubation(action.incubation),
                ),
                parameter_budget=spare,
            )
        if result.passed:
            env.trainer.ranks.spread([*slot.parameters(), *slot.buffers()])
            env.trainer.adopt(_given(slot.state).seed_id)
            slot.record(metric_at_germination=env.metric)
        return result

    def _prune(self, env: _EnvState, slot: SeedSlot, reason: str, by: str) -> None:
        state = _given(slot.state)
        slot.prune(reason, by=by)
        env.trainer.release(state.seed_id)
        env.pruned[state.blueprint_id] += 1

    def settle(self, envs: Sequence[int], epoch: int, measured: Sequence[EpochMeasurement]) -> None:
        """Record what the epoch measured, then let every slot tick."""
        for i, facts in zip(envs, measured, strict=True):
            env = self._envs[i]
            env.epoch = epoch
            self._stamp(env, epoch)
            if facts.metric is not None and facts.loss is not None:
                env.metric, env.loss = facts.metric, facts.loss
                env.metric_history.append(facts.metric)
                env.loss_history.append(facts.loss)
            if facts.metric is not None:
                self._note_promises(env, epoch)
            for slot_id, slot in env.slots.items():
                if slot.live:
                    self._record(env, slot, facts.slots.get(slot_id, SlotFacts()), facts.loss)
                slot.tick()
            if env.diagnostics is not None:
                env.diagnostics.end_epoch(epoch, env.train_loss, facts)
            require_agreement(env.trainer.ranks, env.trainer.model, partial(self._view, i))

    def _record(self, env: _EnvState, slot: SeedSlot, facts: SlotFacts, loss: float | None) -> None:
        measured = {name: getattr(facts, name) for name in SlotFacts.__slots__} | {"loss": loss}
        slot.record(**{name: value for name, value in measured.items() if value is not None})

    def _note_promises(self, env: _EnvState, epoch: int) -> None:
        found, env.trainer.promises = env.trainer.promises, {}
        if not found:
            return
        for slot_id, (blueprint, promise) in found.items():
            env.promises.setdefault(slot_id, {})[blueprint] = replace(promise, epoch=epoch)
        data = {
            "promises": {slot_id: promise.value for slot_id, (_, promise) in found.items()},
            "blueprints": {slot_id: blueprint for slot_id, (blueprint, _) in found.items()},
            "steps": max(promise.steps for _, promise in found.values()),
            "macs": sum(promise.macs for _, promise in found.values()),
        }
        said = TelemetryEvent(event_type=TelemetryEventType.PROMISES_MEASURED, data=data)
        said.env_id, said.episode, said.epoch = env.spec.env_id, env.spec.episode, epoch
        self._emit(said)

    def quarantine(self, env: int, slot: str, epochs: int, reason: str) -> None:
        """Prune what lives in ``slot`` in the governor's name and let nothing grow there for ``epochs`` epochs."""
        found = self._envs[env].slots[slot]
        if found.live and found.stage is not SeedStage.FOSSILIZED:
            self._prune(self._envs[env], found, reason, by="governor")
        self._envs[env].vetoed_until[slot] = self._envs[env].epoch + epochs

    def conclude(self, envs: Sequence[int], stay: Collection[str], reason: str) -> None:
        """Prune every seed that was not fossilized, but for those in the slots ``stay``."""
        for i in envs:
            for slot_id, slot in self._envs[i].slots.items():
                if slot.live and slot.stage is not SeedStage.FOSSILIZED and slot_id not in stay:
                    self._prune(self._envs[i], slot, reason, by="lifecycle")

    def views(self, envs: Sequence[int]) -> list[EnvView]:
        """Plain state of each env."""
        return [self._view(i) for i in envs]

    def _view(self, i: int) -> EnvView:
        env = self._envs[i]
        return EnvView(
            env_id=env.spec.env_id,
            episode=env.spec.episode,
            epoch=env.epoch,
            max_epochs=env.spec.max_epochs,
            slots=tuple(self._slot_view(env, s) for s in env.slots.values()),
            blueprints=tuple(self.task.blueprints),
            blueprint_parameters=self._sizes,
            host_parameters=env.trainer.host_size,
            learning_parameters=env.trainer.learning_size,
            metric=env.metric,
            loss=env.loss,
            train_loss=env.train_loss,
            metric_history=tuple(env.metric_history),
            loss_history=tuple(env.loss_history),
            higher_is_better=self.task.metric.higher_is_better,
            gates=env.trainer.gates,
            parameter_budget=self.config.parameter_budget,
            max_seeds=self.config.max_seeds,
            vetoed=frozenset(slot for slot, until in env.vetoed_until.items() if until > env.epoch),
            last_outcome=env.last_outcome,
            pruned=dict(env.pruned),
            fossilized=dict(env.fossilized),
            spent=env.trainer.ledger.spent(),
            spent_before=Ledger.begun(env.trainer.setup.spent).spent(),
        )

    def _slot_view(self, env: _EnvState, slot: SeedSlot) -> SlotView:
        beside = isinstance(slot.config.layout, Beside)
        return replace(slot.view(), beside=beside, promise=env.promises.get(slot.slot_id, {}))

    def costs(self, envs: Sequence[int]) -> list[EnvCost]:
        """Parameters and multiply-accumulates of each env."""
        costs = []
        for i in envs:
            trainer, view = self._envs[i].trainer, self._view(i)
            costs.append(
                EnvCost(
                    host_parameters=view.host_parameters,
                    total_parameters=view.host_parameters + view.seed_parameters,
                    inference_macs=trainer.macs.forward,
                    learning_rate=float(surgery.host_groups(trainer.optimizer)[0]["lr"]),
                    spent=view.spent,
                    seed_macs=dict(trainer.macs.inside),
                )
            )
        return costs

    def charge(self, env: int, purpose: str, macs: int) -> None:
        """Add to what was spent on the env; see :meth:`Ledger.charge`."""
        self._envs[env].trainer.ledger.charge(purpose, macs)

    def state(self, env: int) -> dict[str, Any]:
        """Everything the env needs to continue bit for bit."""
        kept, state = self._envs[env], self._envs[env].trainer.state()
        outcome = kept.last_outcome
        state["plain"] = {
            "trainer": state["plain"],
            **{name: getattr(kept, name) for name in _SCALARS},
            **{name: list(getattr(kept, name)) for name in _LISTS},
            **{name: dict(getattr(kept, name)) for name in _COUNTS},
            "last_outcome": None if outcome is None else plain_outcome(outcome),
            "promises": {s: {b: asdict(p) for b, p in each.items()} for s, each in kept.promises.items()},
        }
        return state

    def load(self, env: int, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`, also into an env whose topology differs."""
        kept = self._envs[env]
        kept.trainer.load({"tensors": state["tensors"], "plain": state["plain"]["trainer"]})
        self._remember(kept, state["plain"])

    def _remember(self, kept: _EnvState, plain: Mapping[str, Any]) -> None:
        for name in _SCALARS:
            setattr(kept, name, plain[name])
        for name in _LISTS:
            setattr(kept, name, list(plain[name]))
        for name in _COUNTS:
            setattr(kept, name, type(getattr(kept, name))(plain[name]))
        # what 0.1.0 wrote lacks the key: it measured none
        promises = plain.get("promises", {})
        kept.promises = {s: {b: Promise(**p) for b, p in each.items()} for s, each in promises.items()}
        outcome = plain["last_outcome"]
        kept.last_outcome = None if outcome is None else read_outcome(outcome)
        self._stamp(kept, kept.epoch)

    def rewind(self, env: int, state: Mapping[str, Any]) -> None:
        """Go back to an earlier state of the same episode; the clock, what was spent and vetoes stay as they are."""
        kept = self._envs[env]
        epoch, spent, vetoes, births = kept.epoch, kept.trainer.ledger, kept.vetoed_until, kept.births
        lost = set(kept.trainer.model.parts)
        kept.trainer.rewind({"tensors": state["tensors"], "plain": state["plain"]["trainer"]})
        self._remember(kept, state["plain"])
        kept.epoch, kept.trainer.ledger, kept.vetoed_until, kept.births = epoch, spent, vetoes, births
        for seed_id in lost - set(kept.trainer.model.parts):
            spent.discard(seed_id)
        self._stamp(kept, epoch + 1)

    def network(self, env: int) -> dict[str, Any]:
        """What the env's network computes now, on the CPU."""
        return self._envs[env].trainer.network()

    def deliver(self, env: int, network: Mapping[str, Any], epoch: int) -> None:
        """Go back to what :meth:`network` gave after ``epoch``, with the seeds that took part in its forward pass."""
        kept, reason = self._envs[env], f"it has no part in the delivered model, which is that of epoch {epoch}"
        saved = network["plain"].values()
        part = {state["seed_id"] for each in saved if (state := each["state"]) is not None and state["alpha"] != 0.0}
        part |= {state["seed_id"] for each in saved for state in each["kept"]}
        before = set(kept.trainer.model.parts)
        for slot in kept.slots.values():
            if slot.live and slot.stage is not SeedStage.FOSSILIZED and _given(slot.state).seed_id not in part:
                self._prune(kept, slot, reason, by="lifecycle")
        kept.trainer.become(network, part)
        for seed_id in before - part:
            kept.trainer.ledger.discard(seed_id)

    def rehearse_export(self, env: int) -> None:
        """Write the env's network with a seed in every slot to a place that is forgotten. Raises what export raises."""
        trainer, model = self._envs[env].trainer, self._envs[env].trainer.model
        smallest = {slot: min(sizes, key=sizes.__getitem__) for slot, sizes in self._sizes.items() if sizes}

        def rehearse() -> None:
            with tempfile.TemporaryDirectory(prefix="esper-") as folder, model.sown(smallest), trial(model):
                self.save(env, Path(folder))

        with random_kept(device_of(model)), self.put_together(env):
            rehearse() if model.sharding is None else trainer.ranks.first(rehearse)

    def put_together(self, env: int) -> AbstractContextManager[None]:
        """Within, a network that is spread over ranks is whole on rank 0, where alone it may be run. All enter."""
        trainer = self._envs[env].trainer
        # an export asks for them: they are counted by all ranks together, and without what a rehearsal sows
        trainer.macs  # noqa: B018
        return trainer.model.put_together()

    def materialise(self, env: int) -> nn.Module:
        """The env's network as a plain module, with every seed that takes part in its forward pass."""
        trainer = self._envs[env].trainer
        with trainer.as_trained():
            return export(trainer.model, sample=trainer.sample)

    def save(self, env: int, directory: Path) -> ModelExport:
        """Write the env's network so that it can be loaded where there is no Esper."""
        trainer = self._envs[env].trainer
        with trainer.as_trained(), mode(trainer.model, False):
            exported = save_export(trainer.model, directory, trainer.sample)
            plain = export(trainer.model, sample=trainer.sample)
            difference = compare(trainer.model, plain, trainer.sample)
        return ModelExport(
            path=str(exported.code.parent),
            parameters=sum(p.numel() for p in plain.parameters()),
            max_abs_difference=difference.largest,
            formats=("model.py", "model.safetensors"),
            trained_parameters=self.costs([env])[0].total_parameters,
            folded=tuple(exported.shape.folded),
            unfolded=exported.unfolded,
        )

    def _stamp(self, env: _EnvState, epoch: int) -> None:
        stamp = EventStamp(env_id=env.spec.env_id, episode=env.spec.episode, epoch=epoch)
        for slot in env.slots.values():
            slot.stamp = stamp


def _given(value: G | None) -> G:
    """A head of a legal action, or the state of a live slot: never ``None``."""
    if value is None:
        raise RuntimeError("a legal action has all its heads, and a live slot a state")
    return value
