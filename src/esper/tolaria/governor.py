"""The governor keeps one environment's training alive.

It judges every epoch's vital signs, keeps the last state that was good, rolls back to it when the run is lost, and
vetoes unsafe moves before they happen. It knows neither engine nor modules: states are opaque, actions and views are
plain data. An epoch goes ``observe``, then ``rollback`` on a panic, else ``keep`` where ``snapshot_due``: the judgement
comes before the snapshot, so that a bad state is never kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from esper.leyline import (
    EnvView,
    EsperError,
    FactoredAction,
    Metric,
    Op,
    SeedStage,
    Severity,
    Sink,
    SlotView,
    TelemetryEvent,
)
from esper.leyline import TelemetryEventType as T
from esper.tolaria.vitals import Sign, Vitals, VitalsConfig

_SUSPICIOUS: Final = frozenset({Op.GERMINATE, Op.ADVANCE, Op.SET_ALPHA, Op.PRUNE})
"""Ops that change what the network computes. FOSSILIZE does not."""

_TARGET: Final = {
    Op.GERMINATE: SeedStage.GERMINATED,
    Op.ADVANCE: SeedStage.BLENDING,
    Op.SET_ALPHA: SeedStage.BLENDING,
    Op.PRUNE: SeedStage.PRUNED,
    Op.FOSSILIZE: SeedStage.FOSSILIZED,
}


@dataclass(frozen=True, slots=True)
class GovernorConfig:
    """When to panic, how often to keep a state, and how long to hold a grudge. Lengths are in epochs."""

    vitals: VitalsConfig = field(default_factory=VitalsConfig)
    consecutive: int = 2
    """Ill epochs in a row that make a panic, where one alone is not certain."""
    snapshot_every: int = 1
    max_rollbacks: int = 3
    """Rollbacks in an episode after which another panic fails the run."""
    recurrence: int = 5
    """A panic for the same reason so soon after a rollback has an internal cause, and so has one after the same move
    at any time. A first panic is no proof against the move before it: most moves are harmless, and what a good seed is
    worth is far more than a second rollback."""
    memory: int = 10
    """How far back an action may lie to be suspected when a panic recurs."""
    veto: int = 5
    """How long a suspect slot or action is vetoed."""
    cooldown: int = 2
    """How long nothing new may grow after a rollback with an internal cause."""
    evidence_age: int | None = 3
    """Oldest removal cost on which a blended-in seed may be pruned; ``None`` asks for no evidence."""
    dependence: float = 0.5
    """Alpha above which the host is taken to depend on a seed."""
    stake: float = 0.1
    """Share of the fall in validation loss since the first epoch that one pruning may certainly give back."""


@dataclass(frozen=True, slots=True)
class GovernorVerdict:
    """Judgement of an epoch. ``ok`` is false on a panic; ``consecutive`` counts ill epochs in a row, this one included.

    An epoch can be ill and still ``ok``: one bad epoch is no panic unless it is certain. Nothing is kept of it.
    """

    ok: bool
    reason: str | None = None
    measured: float | None = None
    threshold: float | None = None
    consecutive: int = 0


@dataclass(frozen=True, slots=True)
class Rollback:
    """What to go back to, and why. Counters are as they were at the panic.

    ``suspect`` is the slot to quarantine for ``veto_epochs``; it is ``None`` for an external cause, for an internal one
    without a suspect, and where the suspect is the removal of a seed (then the governor vetoes that).
    """

    state: Any
    to_epoch: int
    lost_epochs: int
    cause: str
    reason: str
    suspect: str | None
    veto_epochs: int
    consecutive: int
    rollbacks: int


@dataclass(frozen=True, slots=True)
class _Move:
    epoch: int
    op: Op
    slot: str


@dataclass(frozen=True, slots=True)
class _Panic:
    epoch: int
    reason: str
    before: tuple[Op, str] | None
    """Op and slot of the last move since the good state; it was undone."""


class Governor:
    """Safety of one environment during one episode."""

    def __init__(
        self,
        metric: Metric,
        config: GovernorConfig | None = None,
        on_telemetry: Sink | None = None,
        *,
        device: str | None = None,
    ) -> None:
        self.config = config or GovernorConfig()
        self.rollbacks = 0
        self._vitals = Vitals(metric, self.config.vitals)
        self._on_telemetry = on_telemetry
        self._device = {} if device is None else {"device": device}
        self._good: tuple[int, Any] | None = None
        self._verdict = GovernorVerdict(ok=True)
        self._observed = 0
        self._moves: list[_Move] = []
        self._panics: list[_Panic] = []
        """Those that were rolled back."""
        self._spared: dict[str, int] = {}
        """slot -> last epoch in which its seed must not be pruned"""
        self._calm_until = 0

    def observe(
        self,
        epoch: int,
        *,
        train_loss: float | None,
        val_loss: float | None,
        metric: float | None,
        weights_finite: bool,
        acted: FactoredAction | None = None,
    ) -> GovernorVerdict:
        """Judge epoch ``epoch``; ``acted`` is the action that was carried out before it. Emits ``GOVERNOR_PANIC``."""
        self._observed = epoch
        if acted is not None and acted.op in _SUSPICIOUS and acted.slot is not None:
            self._moves.append(_Move(epoch, acted.op, acted.slot))
        self._moves = [move for move in self._moves if epoch - move.epoch <= self.config.memory]
        sign = self._vitals.judge(train_loss, val_loss, metric)
        if not weights_finite and (sign is None or not sign.reason.startswith("non_finite")):
            sign = Sign("non_finite_weights", math.nan, math.inf, certain=True)
        if sign is None:
            self._vitals.accept(train_loss, val_loss, metric)
            self._verdict = GovernorVerdict(ok=True)
            return self._verdict
        consecutive = self._verdict.consecutive + 1
        panic = sign.certain or consecutive >= self.config.consecutive
        finite_check = sign.reason.startswith("non_finite")
        self._verdict = GovernorVerdict(
            ok=not panic,
            reason=sign.reason,
            measured=None if sign.reason == "non_finite_weights" else sign.measured,
            threshold=None if finite_check else sign.threshold,
            consecutive=consecutive,
        )
        if panic:
            self._say(T.GOVERNOR_PANIC, "error", f"panic: {_in_words(self._verdict)}", self._counters())
        return self._verdict

    @property
    def healthy(self) -> bool:
        """Whether the last epoch was not ill in any way."""
        return self._verdict.consecutive == 0

    def snapshot_due(self, epoch: int) -> bool:
        """Whether the state after ``epoch`` should be kept; never after an ill epoch."""
        fits = self._good is None or epoch - self._good[0] >= self.config.snapshot_every
        return fits and self._verdict.consecutive == 0

    def let_go(self) -> None:
        """Of the last good state: another is about to take its place, and both would be twice the memory, or nothing
        can be rolled back any more. An error meanwhile ends the run."""
        self._good = None

    def keep(self, epoch: int, state: Any, *, loss: float | None = None, metric: float | None = None) -> None:
        """Keep ``state`` (opaque, aliasing nothing that trains on) as the last good one. Emits ``GOVERNOR_SNAPSHOT``.

        Before the first epoch it is a fallback for a run that fails at once. Raises ``ValueError`` for the state of an
        epoch that was not judged healthy.
        """
        if self._verdict.consecutive or epoch != self._observed:
            raise ValueError(f"the state of epoch {epoch} was not judged healthy and must not be kept")
        self._good = (epoch, state)
        data = {"of_epoch": epoch, "bytes": _bytes(state), **_known(loss=loss, metric=metric)}
        self._say(T.GOVERNOR_SNAPSHOT, "debug", f"kept the state of epoch {epoch}", data)

    def rollback(self, epoch: int) -> Rollback | None:
        """Answer the panic of ``epoch``: what to go back to. ``None`` when no good state was kept yet.

        Emits ``GOVERNOR_ROLLBACK``. Raises :class:`EsperError` when the run was rolled back too often already.
        """
        verdict = self._verdict
        if verdict.ok or verdict.reason is None:
            raise ValueError(f"epoch {epoch} did not panic; there is nothing to roll back")
        if self._good is None:
            return None
        if self.rollbacks >= self.config.max_rollbacks:
            raise EsperError(
                f"training fails again in epoch {epoch} after {self.rollbacks} rollbacks: {_in_words(verdict)}; "
                f"the last good state is that of epoch {self._good[0]}. Check the learning rate and the data."
            )
        to_epoch, state = self._good
        cause, culprit = self._blame(epoch, to_epoch, verdict.reason)
        pruned = culprit is not None and culprit.op is Op.PRUNE
        if culprit is not None and pruned:
            self._spared[culprit.slot] = epoch + self.config.veto
        if cause == "internal":
            self._calm_until = epoch + self.config.cooldown
        answer = Rollback(
            state=state,
            to_epoch=to_epoch,
            lost_epochs=epoch - to_epoch,
            cause=cause,
            reason=verdict.reason,
            suspect=None if culprit is None or pruned else culprit.slot,
            veto_epochs=0 if culprit is None else self.config.veto,
            consecutive=verdict.consecutive,
            rollbacks=self.rollbacks,
        )
        data = {"to_epoch": to_epoch, "lost_epochs": epoch - to_epoch, "cause": cause, **self._counters()}
        for superfluous in ("measured", "threshold"):
            data.pop(superfluous, None)
        if culprit is not None:
            data |= {"suspect": f"{culprit.op.name} {culprit.slot}", "vetoed_epochs": self.config.veto}
        self._say(T.GOVERNOR_ROLLBACK, "warning", f"back to epoch {to_epoch}: {_in_words(verdict)}", data)
        self.rollbacks += 1
        self._panics.append(_Panic(epoch, verdict.reason, self._undone(to_epoch)))
        # what happened after the good state is undone; the culprit answers for it no longer
        self._moves = [move for move in self._moves if move.epoch <= to_epoch and move != culprit]
        self._verdict = GovernorVerdict(ok=True)
        return answer

    def preflight(self, view: EnvView, action: FactoredAction) -> str | None:
        """Why ``action`` is unsafe now, or ``None``. Emits ``TRANSITION_VETOED``.

        Legality is judged elsewhere (:func:`esper.tolaria.legality.why_illegal`); this is about legal moves that would
        harm: growing while the run is ill or has just been rolled back, and taking out a seed that carries the run.
        """
        if action.op is Op.WAIT or action.slot is None:
            return None
        slot = next((slot for slot in view.slots if slot.slot_id == action.slot), None)
        if slot is None:
            return None
        reason = (
            self._against_pruning(view, slot) if action.op is Op.PRUNE else self._against_growing(view, slot, action)
        )
        if reason is not None:
            self._veto(slot, action.op, reason)
        return reason

    def state(self) -> dict[str, Any]:
        """``{"tensors", "plain"}`` for a checkpoint, the kept state (of the same form) included."""
        epoch, good = self._good if self._good is not None else (None, {"tensors": {}, "plain": None})
        verdict = self._verdict
        plain = {
            "rollbacks": self.rollbacks,
            "vitals": self._vitals.state(),
            "good_epoch": epoch,
            "good": good["plain"],
            "verdict": [verdict.ok, verdict.reason, verdict.measured, verdict.threshold, verdict.consecutive],
            "observed": self._observed,
            "moves": [[move.epoch, move.op.name, move.slot] for move in self._moves],
            "panics": [[p.epoch, p.reason, p.before and [p.before[0].name, p.before[1]]] for p in self._panics],
            "spared": dict(self._spared),
            "calm_until": self._calm_until,
        }
        return {"tensors": dict(good["tensors"]), "plain": plain}

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`."""
        plain = state["plain"]
        epoch = plain["good_epoch"]
        self._good = None if epoch is None else (epoch, {"tensors": dict(state["tensors"]), "plain": plain["good"]})
        self.rollbacks = plain["rollbacks"]
        self._vitals.load(plain["vitals"])
        self._verdict = GovernorVerdict(*plain["verdict"])
        self._observed = plain["observed"]
        self._moves = [_Move(epoch, Op[op], slot) for epoch, op, slot in plain["moves"]]
        self._panics = [
            _Panic(epoch, reason, before and (Op[before[0]], before[1])) for epoch, reason, before in plain["panics"]
        ]
        self._spared = dict(plain["spared"])
        self._calm_until = plain["calm_until"]

    def _blame(self, epoch: int, to_epoch: int, reason: str) -> tuple[str, _Move | None]:
        """Cause and suspect. Only a panic that recurs has an internal cause: after the same move as before, which then
        answers for it, or so soon that it is the last move before the earlier panic.
        """
        before, alike = self._undone(to_epoch), [past for past in self._panics if past.reason == reason]
        if before is not None and any(past.before == before for past in alike):
            return "internal", self._moves[-1]
        if not alike or epoch - alike[-1].epoch > self.config.recurrence:
            return "external", None
        earlier = [move for move in self._moves if move.epoch <= alike[-1].epoch]
        return "internal", earlier[-1] if earlier else None

    def _undone(self, to_epoch: int) -> tuple[Op, str] | None:
        """The last move that going back to ``to_epoch`` undoes."""
        last = self._moves[-1] if self._moves else None
        return (last.op, last.slot) if last is not None and last.epoch > to_epoch else None

    def _against_growing(self, view: EnvView, slot: SlotView, action: FactoredAction) -> str | None:
        if action.op is Op.SET_ALPHA and action.alpha_target is not None and action.alpha_target < slot.alpha:
            return None
        ill = _not_finite(view)
        if ill is not None:
            return f"{ill} is not finite"
        if self._verdict.consecutive:
            return f"the last epoch was ill: {_in_words(self._verdict)}"
        if self._observed < self._calm_until:
            return f"nothing grows until epoch {self._calm_until} is over, after the rollback"
        return None

    def _against_pruning(self, view: EnvView, slot: SlotView) -> str | None:
        if self._observed < self._spared.get(slot.slot_id, 0):
            return f"pruning it made the run fail before; vetoed until epoch {self._spared[slot.slot_id]} is over"
        # a run that is ill already has little to lose, and the seed may be the reason
        if slot.alpha <= self.config.dependence or _not_finite(view) is not None or self._verdict.consecutive:
            return None
        cost, oldest = slot.removal_cost, self.config.evidence_age
        if oldest is not None and (cost is None or cost.epoch is None or view.epoch - cost.epoch > oldest):
            return f"alpha is {slot.alpha:g} and what its removal costs was not measured in the last {oldest} epochs"
        share = _given_back(view, slot)
        if share is not None and share > self.config.stake:
            return f"it carries {share:.0%} of what the run has gained in loss (threshold {self.config.stake:.0%})"
        without = self._vitals.judge(None, *_without(view, slot))
        if without is None:
            return None
        return f"without it: {without.reason} (measured {without.measured:.4g}, threshold {without.threshold:.4g})"

    def _veto(self, slot: SlotView, op: Op, reason: str) -> None:
        data: dict[str, Any] = {"from": slot.stage.name, "target_stage": _TARGET[op].name, "op": op.name}
        data |= {"by": "governor", "reason": reason}
        if slot.blueprint is not None:
            data |= {"alpha": slot.alpha, "blueprint": slot.blueprint}
        self._say(T.TRANSITION_VETOED, "warning", f"{op.name} vetoed: {reason}", data, slot)

    def _counters(self) -> dict[str, Any]:
        verdict = self._verdict
        return {
            "reason": verdict.reason,
            **_known(measured=verdict.measured, threshold=verdict.threshold),
            "consecutive_panics": verdict.consecutive,
            "rollbacks": self.rollbacks,
            **self._device,
        }

    def _say(
        self, event: T, severity: Severity, message: str, data: dict[str, Any], slot: SlotView | None = None
    ) -> None:
        if self._on_telemetry is None:
            return
        self._on_telemetry(
            TelemetryEvent(
                event_type=event,
                slot_id=None if slot is None else slot.slot_id,
                seed_id=None if slot is None else slot.seed_id,
                severity=severity,
                message=message,
                data=data,
            )
        )


def _known(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _in_words(verdict: GovernorVerdict) -> str:
    text = str(verdict.reason).replace("_", " ")
    if verdict.measured is not None and verdict.threshold is not None:
        text += f" (measured {verdict.measured:.4g}, threshold {verdict.threshold:.4g})"
    return text


def _not_finite(view: EnvView) -> str | None:
    """Name of the first measured value of ``view`` that is not finite."""
    values = (("train loss", view.train_loss), ("validation loss", view.loss), ("validation metric", view.metric))
    return next((name for name, value in values if value is not None and not math.isfinite(value)), None)


def _given_back(view: EnvView, slot: SlotView) -> float | None:
    """Share of the fall in loss since the first epoch that goes with the seed, by its lower confidence bound (95 %)."""
    if slot.removal_cost_loss is None or view.loss is None or not view.loss_history:
        return None
    gained, lower = view.loss_history[0] - view.loss, slot.removal_cost_loss.value.lower()
    return lower / gained if gained > 0.0 and lower > 0.0 else None


def _without(view: EnvView, slot: SlotView) -> tuple[float | None, float | None]:
    """Validation loss and metric as the last counterfactual has them without the seed."""
    loss, metric = view.loss, view.metric
    if slot.removal_cost_loss is None or loss is None:
        loss = None
    else:
        loss += slot.removal_cost_loss.value.value
    if slot.removal_cost is None or metric is None:
        metric = None
    else:
        cost = slot.removal_cost.value.value
        metric = metric - cost if view.higher_is_better else metric + cost
    return loss, metric


def _bytes(state: Any) -> int:
    """Size of the tensors in a kept state."""
    tensors = state.get("tensors", {}) if isinstance(state, Mapping) else {}
    return sum(int(tensor.nbytes) for tensor in tensors.values())
