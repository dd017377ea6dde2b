"""What the executor did and measured, as events. Nothing is decided here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from esper.leyline import (
    HEADS,
    ActionOutcome,
    Decision,
    EnvCost,
    EnvSpec,
    EnvView,
    EvalResult,
    FactoredAction,
    KeptView,
    Metric,
    Op,
    Paired,
    SeedStage,
    Sink,
    SlotView,
    TelemetryEvent,
    TrainResult,
)
from esper.leyline import TelemetryEventType as T
from esper.tolaria.counterfactual import Readout

UNPROVEN: Final = "kept in the delivered model, in which it took part, but not proven"
"""Why a seed that did not pass its last gate is in a network that is delivered."""


class EpisodeEventWriter:
    """Writes one env's events. ``epoch`` is the executor's clock and is stamped on each."""

    def __init__(self, spec: EnvSpec, metric: Metric, emit: Sink) -> None:
        self.spec = spec
        self.epoch = 0
        self._metric = metric
        self._emit = emit
        self._germinated: dict[str, int] = {}
        self._last_good: int | None = None

    def state(self) -> dict[str, Any]:
        """What it remembers of the episode, JSON-able; the clock is the executor's."""
        return {"germinated": dict(self._germinated), "last_good": self._last_good}

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`."""
        self._germinated, self._last_good = dict(state["germinated"]), state.get("last_good")

    def of_governor(self, event: TelemetryEvent) -> None:
        """Pass on an event of the env's governor. Which state it kept is told with the epoch; an event for each would
        be a sixth of all events."""
        if event.event_type is T.GOVERNOR_SNAPSHOT:
            self._last_good = event.data["of_epoch"]
            if self.epoch > 0:
                return
        self.relay(event)

    def relay(self, event: TelemetryEvent) -> None:
        """Stamp and pass on an event of the env."""
        event.env_id, event.episode, event.epoch = self.spec.env_id, self.spec.episode, self.epoch
        self._emit(event)

    def episode_started(self, view: EnvView) -> None:
        """Before the first epoch."""
        self._say(
            T.EPISODE_STARTED,
            {
                "seed": self.spec.seed,
                "policy": self.spec.policy,
                "arm": self.spec.arm,
                "max_epochs": self.spec.max_epochs,
                "host_parameters": view.host_parameters,
            },
        )

    def command_issued(self, decision: Decision) -> None:
        """A policy asked for something other than to wait."""
        action = decision.action
        if action.op is Op.WAIT:
            return
        data = {**_command(action), "reason": decision.reason}
        if decision.evidence:
            data["evidence"] = dict(decision.evidence)
        self._say(T.COMMAND_ISSUED, data, action.slot)

    def command_answered(self, outcome: ActionOutcome) -> None:
        """What became of it."""
        action = outcome.action
        if action.op is Op.WAIT:
            return
        why = {} if outcome.why_not is None else {"why_not": outcome.why_not}
        self._say(T.COMMAND_EXECUTED if outcome.success else T.COMMAND_FAILED, {**_command(action), **why}, action.slot)

    def note_births(self, view: EnvView) -> None:
        """Remember when each living seed was first seen."""
        for slot in view.slots:
            if slot.seed_id is not None and slot.live:
                self._germinated.setdefault(slot.seed_id, self.epoch)

    def counterfactuals(self, view: EnvView, readout: Readout, result: EvalResult, row: int) -> None:
        """One event per live slot: what was measured, or why nothing was."""
        for slot in view.slots:
            if not slot.live:
                continue
            fact = readout.facts.get(slot.slot_id)
            if fact is None or not math.isfinite(readout.loss):
                reason = readout.unread.get(slot.slot_id, "non_finite_loss")
                self._say(T.COUNTERFACTUAL_UNAVAILABLE, {"reason": reason}, slot.slot_id, slot.seed_id)
                continue
            data: dict[str, Any] = {}
            read: Paired | None = None
            for name in ("removal_cost", "removal_cost_loss", "probe_gain", "probe_gain_loss"):
                paired = getattr(fact, name)
                if paired is not None:
                    data |= {name: paired.value, f"{name}_se": paired.se}
                    read = paired
            assert read is not None
            data |= _known(
                shapley=readout.shapley.get(slot.slot_id),
                all_off_metric=readout.all_off_metric,
                all_off_loss=readout.all_off_loss,
                interaction=readout.interaction,
                read=read.read,
            )
            data |= {
                "unit": self._metric.unit,
                "examples": read.n,
                "shared_prefix": bool(result.shared_prefix[row]),
                "passes": float(result.passes[row]),
                "alpha": slot.alpha,
            }
            self._say(T.COUNTERFACTUAL_COMPUTED, data, slot.slot_id, slot.seed_id)

    def epoch_completed(
        self,
        view: EnvView,
        cost: EnvCost,
        trained: TrainResult,
        readout: Readout,
        seconds: Mapping[str, float | None],
    ) -> None:
        """The commit barrier: last event of an epoch. ``seconds`` are shares of the env's time, by name."""
        live = [slot for slot in view.slots if slot.live]
        data: dict[str, Any] = {
            "arm": self.spec.arm,
            "train_loss": trained.loss,
            "validation_loss": readout.loss,
            "validation_metric": readout.metric,
            **_known(host_gradient_norm=trained.host_gradient_norm, learning_rate=trained.learning_rate),
            **_known(last_good_epoch=self._last_good),
            **_known(**{f"{name}_ms": None if s is None else 1000.0 * s for name, s in seconds.items()}),
            "parameters": view.host_parameters + view.seed_parameters,
            "inference_macs": cost.inference_macs,
            "live_seeds": view.live_seeds,
            "alphas": {slot.slot_id: slot.alpha for slot in live},
            "stages": {slot.slot_id: slot.stage.name for slot in view.slots},
        }
        if trained.stack_seconds is not None:
            data |= {"stack_train_ms": 1000.0 * trained.stack_seconds, "stacked_envs": trained.stacked}
        for name, fact in (("seed_gradient_norm_ratios", "gradient_ratio"), ("gradient_healths", "gradient_health")):
            measured = {slot.slot_id: value.value for slot in live if (value := getattr(slot, fact)) is not None}
            if measured:
                data[name] = measured
        if live:
            macs = {slot.slot_id: cost.seed_macs.get(slot.seed_id or "") for slot in live}
            data["seed_macs"] = {slot_id: n for slot_id, n in macs.items() if n is not None}
        self._say(T.EPOCH_COMPLETED, data)

    def compute_spent(self, cost: EnvCost, seconds: float) -> None:
        """The ledger so far."""
        self._say(T.COMPUTE_SPENT, {**cost.spent, "seconds": seconds, "arm": self.spec.arm})

    def episode_ended(self, view: EnvView, cost: EnvCost, scores: Mapping[str, float | int | str], status: str) -> None:
        """The end. ``scores`` are the keys of the payload that hold metrics, losses, examples, seconds and what is
        delivered."""
        self._say(
            T.EPISODE_ENDED,
            {
                "seed": self.spec.seed,
                "policy": self.spec.policy,
                "arm": self.spec.arm,
                "epochs": self.epoch,
                **scores,
                "host_parameters": cost.host_parameters,
                "total_parameters": cost.total_parameters,
                "train_macs": cost.spent["train_forward_macs"] + cost.spent["train_backward_macs"],
                "total_macs": cost.spent["total_macs"],
                "inference_macs": cost.inference_macs,
                "seeds": [record for slot in view.slots for record in self._seed_records(slot)],
                "status": status,
            },
        )

    def _seed_records(self, slot: SlotView) -> Iterator[dict[str, Any]]:
        for seed in slot.kept:
            yield self._seed_record(slot, seed, SeedStage.FOSSILIZED)
        if slot.live:
            yield self._seed_record(slot, slot, slot.stage)

    def _seed_record(self, slot: SlotView, seed: SlotView | KeptView, stage: SeedStage) -> dict[str, Any]:
        record: dict[str, Any] = {
            "slot_id": slot.slot_id,
            "seed_id": seed.seed_id,
            "blueprint": seed.blueprint,
            "stage": stage.name,
            "parameters": seed.parameters,
            "epoch_germinated": self._germinated[seed.seed_id or ""],
        }
        if stage is not SeedStage.FOSSILIZED:
            record["reason"] = UNPROVEN
        return record | ({} if seed.removal_cost is None else {"removal_cost": seed.removal_cost.value.value})

    def _say(self, event: T, data: dict[str, Any], slot_id: str | None = None, seed_id: str | None = None) -> None:
        self.relay(TelemetryEvent(event_type=event, slot_id=slot_id, seed_id=seed_id, data=data))


def _known(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _command(action: FactoredAction) -> dict[str, Any]:
    heads = {name: getattr(action, name) for name in HEADS if name != "op"}
    return {"op": action.op.name, **{head: value for head, value in heads.items() if value is not None}}
