"""A slot: where a seed can grow behind a submodule or beside it. State machine, gates, telemetry and forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from esper.kasmina import growable, measured
from esper.kasmina.birth import parameter_count
from esper.kasmina.compiled import forget_graphs
from esper.kasmina.evidence import check, fact
from esper.kasmina.gates import evaluate_birth, evaluate_gate, verdict
from esper.kasmina.generations import Kept, Part, run
from esper.kasmina.isolation import IsolatedBlend, IsolationMonitor, StraightThrough, added, blend, isolate
from esper.kasmina.payloads import fossil_payload, gate_payload, health_payload
from esper.kasmina.portable import Call
from esper.kasmina.repeating import Block
from esper.kasmina.sharded import Sharding
from esper.kasmina.slot_config import EventStamp, SlotConfig
from esper.kasmina.state import GrowthPlan, Incubation, SeedState
from esper.kasmina.structure import mapped
from esper.leyline import (
    LEGAL_MOVES,
    LIVE,
    PRUNABLE,
    Blend,
    GateResult,
    GateThresholds,
    SeedStage,
    Severity,
    Sink,
    SiteMixing,
    SlotView,
    TelemetryEvent,
    TelemetryEventType,
)

__all__ = ["SeedSlot", "SeedState", "SlotConfig", "EventStamp"]


NOT_ASKED: Final = "no copies were asked for when the host was wrapped"
_NEXT: Final = {
    SeedStage.GERMINATED: SeedStage.TRAINING,
    SeedStage.TRAINING: SeedStage.BLENDING,
    SeedStage.BLENDING: SeedStage.HOLDING,
    SeedStage.HOLDING: SeedStage.FOSSILIZED,
}
"""The moves that a gate guards and ``advance_stage`` makes."""


class SeedSlot(nn.Module):
    """State machine, gates and forward pass of one slot.

    ``gates`` are the thresholds, ``on_telemetry`` takes each event as it happens, ``device`` is where seeds are built.
    ``channels`` is the width of the feature that the slot sits on.
    """

    seed: nn.Module | None
    """The newest seed, while it lives; ``None`` without one."""
    state: SeedState | None
    """Of the newest seed; ``None`` while DORMANT; outlives the seed through the cool-down."""
    kept: Sequence[Kept]
    """Older seeds, which were kept before the slot opened again, the oldest first."""

    def __init__(
        self,
        slot_id: str,
        channels: int,
        device: str | torch.device = "cpu",
        gates: GateThresholds | None = None,
        on_telemetry: Sink | None = None,
        *,
        config: SlotConfig | None = None,
    ) -> None:
        super().__init__()
        self.slot_id = slot_id
        self.channels = channels
        self.device = torch.device(device)
        self.dtype = torch.float32
        """Format of a seed's weights."""
        self.gates = gates or GateThresholds()
        self.on_telemetry = on_telemetry
        self.config = config or SlotConfig()
        self.stamp = EventStamp()
        self.may_mix: SiteMixing | None = None
        """What the host lets a seed mix here, once it was measured."""
        self.block: Block | str = NOT_ASKED
        """The block of the host that a copy can be made of here, or why there is none."""
        self.sharding: Sharding | None = None
        """How a seed is spread over processes: as its host is."""
        self.monitor = IsolationMonitor()
        self.germinations = 0
        self.seed = self.state = None
        self.kept = nn.ModuleList()  # type: ignore[assignment]

    def forward(
        self, h: Tensor, alpha: float | None = None, x: Tensor | None = None, call: Call | None = None
    ) -> Tensor:
        """The feature behind the slot, of the shape of ``h``; a seed beside a module sees its input ``x``.

        ``alpha`` replaces the slot's own for this call only; 0 leaves the newest seed out, and nothing those that were
        kept. Where no seed takes part, the very tensor ``h`` comes back. ``call`` is what the module was called with.
        """
        for each in self.kept:
            h = each(h, x, call)
        if self.seed is None or self.state is None:
            return h
        if alpha is None:
            if self._straight_through:
                s = self._run(h if x is None else x, h.dtype, call)
                return StraightThrough.apply(h, s)  # type: ignore[no-any-return, no-untyped-call]
            alpha = self.state.alpha
        if alpha == 0.0:
            return h
        s = self._run(h if x is None else x, h.dtype, call)
        if x is not None:
            return added(h, s, alpha)
        if self.isolated and torch.is_grad_enabled():
            return IsolatedBlend.apply(h, s, alpha)  # type: ignore[no-any-return, no-untyped-call]
        return blend(h, s, alpha)

    def _run(self, h: Tensor, dtype: torch.dtype, call: Call | None) -> Tensor:
        assert self.seed is not None
        if self.isolated and torch.is_grad_enabled():
            h = isolate(self.monitor.tap(h))
            if call is not None and getattr(self.seed, "takes_call", False):
                call = mapped(call, Tensor.detach)
        return run(self.seed, h, dtype, call)

    @property
    def isolated(self) -> bool:
        """Whether the seed sees the host's feature without a path back to the host."""
        return self.state is not None and self.state.isolated

    @property
    def _straight_through(self) -> bool:
        state = self.state
        return (
            state is not None
            and state.incubation is Incubation.STRAIGHT_THROUGH
            and state.stage is SeedStage.TRAINING
            and self.training
            and torch.is_grad_enabled()
        )

    @property
    def stage(self) -> SeedStage:
        """Stage of the slot."""
        return self.state.stage if self.state is not None else SeedStage.DORMANT

    @property
    def live(self) -> bool:
        """Whether the slot holds a seed."""
        return self.seed is not None and self.stage in LIVE

    @property
    def alpha(self) -> float:
        """The alpha that the forward pass uses."""
        return self.state.alpha if self.state is not None and self.live else 0.0

    @property
    def bare(self) -> bool:
        """Whether no seed is here, neither one that grows nor one that was kept."""
        return self.seed is None and not self.kept

    def parts(self) -> list[Part]:
        """Every seed that is here, also one that takes no part, in the order in which they are passed."""
        found = [each.part() for each in self.kept]
        if self.seed is not None and self.state is not None:
            found.append(Part(self.seed, self.alpha, self.state))
        return found

    def seed_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the newest seed; none without one."""
        return self.seed.parameters() if self.seed is not None else iter(())

    def view(self) -> SlotView:
        """Plain data for a policy."""
        state = self.state
        if state is None:
            return SlotView(self.slot_id, may_mix=self.may_mix, kept=tuple(each.view() for each in self.kept))
        return SlotView(
            slot_id=self.slot_id,
            stage=state.stage,
            seed_id=state.seed_id,
            blueprint=state.blueprint_id,
            alpha=self.alpha,
            alpha_target=state.alpha_target,
            parameters=(state.parameters or 0) if self.live else 0,
            epochs_in_stage=state.epochs_in_stage,
            stage_epoch=state.stage_epoch,
            age_epochs=state.age_epochs,
            metric_at_germination=state.metrics.metric_at_germination,
            gradient_ratio=fact(state.metrics, "seed_gradient_norm_ratio"),
            host_learns=state.host_learns,
            gradient_health=fact(state.telemetry, "gradient_health"),
            removal_cost=fact(state.metrics, "removal_cost"),
            removal_cost_loss=fact(state.metrics, "removal_cost_loss"),
            probe_gain=fact(state.metrics, "probe_gain"),
            probe_gain_loss=fact(state.metrics, "probe_gain_loss"),
            isolation_violations=state.metrics.isolation_violations,
            isolation_due=state.isolated_epochs > 0,
            blocked_by=state.blocked_by,
            may_mix=self.may_mix,
            kept=tuple(each.view() for each in self.kept),
        )

    def record(self, **facts: Any) -> None:
        """Set measured facts of the present seed, with the stamp's epoch as their age; see :func:`measured.record`."""
        measured.record(self.state, self.stamp.epoch, facts)

    def record_gradients(
        self,
        gradients: Sequence[Tensor | None],
        host_norm: float | None,
        host_parameters: int,
        scale: float = 1.0,
    ) -> None:
        """Measure health and ratio on the seed's ``gradients`` (one per parameter, ``None`` where there is none).

        ``host_norm`` is the norm of the host's gradient of the same pass, ``host_parameters`` how many of its
        parameters learn, ``scale`` what the loss was multiplied by before the backward pass; ``host_norm`` has been
        divided by it. The ratio goes into the moving average; what cannot be measured is left as it was.
        """
        if self.state is None:
            return
        self.state.host_learns = host_parameters > 0
        self.record(**measured.of_gradients(self.state, gradients, host_norm, host_parameters, scale))

    def germinate(
        self,
        blueprint: str,
        *,
        seed_id: str | None = None,
        plan: GrowthPlan | None = None,
        sample: Tensor | None = None,
        parameter_budget: int | None = None,
    ) -> GateResult:
        """Build a seed, try it on ``sample`` (what a seed takes here; random numbers without one) and ask G0.

        Weights come from torch's global random stream. Raises ``UsageError`` for an unknown blueprint.
        """
        if self.state is not None:
            return self._veto(SeedStage.GERMINATED, f"the slot is {self.stage.name}, not DORMANT")
        seed = growable.build(self, blueprint)
        trial = growable.Birthplace.of(self, blueprint, sample)
        growable.placed(seed, trial.sample.device, trial.dtype).train()
        self.germinations += 1
        plan = plan or GrowthPlan()
        self.state = SeedState(
            seed_id=seed_id or f"{self.slot_id}-{self.germinations}",
            blueprint_id=blueprint,
            slot_id=self.slot_id,
            incubation=plan.incubation or self.config.incubation,
            detach_epochs=self.config.detach_epochs,
            parameters=parameter_count(seed),
            alpha_target=plan.alpha_target,
            blend=plan.blend,
            tempo=plan.tempo,
        )
        birth = trial.born(seed)
        result = evaluate_birth(self.state, birth, parameter_budget)
        self._emit_gate(result, SeedStage.GERMINATED)
        if not result.passed:
            self.state = None
            return result
        self.seed = self._spread(seed).train(self.training)
        self._move(SeedStage.GERMINATED)
        self._emit_telemetry(
            TelemetryEventType.SEED_GERMINATED,
            data={
                "blend": plan.blend.value,
                "incubation": self.state.incubation.value,
                "tempo": plan.tempo,
                "alpha_target": plan.alpha_target,
                "generation": len(self.kept),
            },
        )
        return result

    def advance_stage(self, target_stage: SeedStage | None = None) -> GateResult:
        """Ask the gate before ``target_stage`` (the next on the way up) and move if it passes."""
        state = self.state
        following = _NEXT.get(self.stage)
        target = following or SeedStage.GERMINATED if target_stage is None else target_stage
        if state is None or target is not following:
            return self._veto(target, f"{self.stage.name} cannot advance to {target.name}")
        result = evaluate_gate(state, target, self.gates, seed_present=self.seed is not None)
        self._emit_gate(result, target)
        if not result.passed:
            return result
        if target is SeedStage.TRAINING and state.incubation is Incubation.GRAFT:
            state.alpha = 1.0
        if target is SeedStage.BLENDING:
            self._start_ramp(state.alpha_target, state.tempo, state.blend)
        else:
            self._move(target)
        if target is SeedStage.FOSSILIZED:
            self._emit_telemetry(TelemetryEventType.SEED_FOSSILIZED, data=fossil_payload(state, self.gates.unit))
        return result

    def retarget(self, alpha: float, tempo: int, blend: Blend) -> GateResult:
        """Send a HOLDING seed back to BLENDING, towards ``alpha`` over ``tempo`` epochs, up or down."""
        if self.stage is not SeedStage.HOLDING:
            return self._veto(SeedStage.BLENDING, f"alpha can be set in HOLDING; the slot is {self.stage.name}")
        self._start_ramp(alpha, tempo, blend)
        return _granted(f"ramp to {alpha:g} over {tempo} epochs")

    def prune(self, reason: str, by: str = "policy") -> GateResult:
        """Take the seed out for good; its parameters are gone at once. ``by`` is who decided."""
        state, origin = self.state, self.stage
        if state is None or origin not in PRUNABLE:
            return self._veto(SeedStage.PRUNED, f"{origin.name} holds nothing that may be pruned")
        del self.seed
        self.seed = None
        state.alpha = 0.0
        self.monitor.drain()
        self._move(SeedStage.PRUNED, reason)
        self._emit_telemetry(
            TelemetryEventType.SEED_PRUNED,
            data={
                "from": origin.name,
                "reason": reason,
                "age_epochs": state.age_epochs,
                "by": by,
                "embargo_epochs": self.config.embargo_epochs,
            },
        )
        return _granted(f"pruned: {reason}")

    def tick(self) -> None:
        """End of an epoch, after its measurements: count, and make the moves that take no decision."""
        state = self.state
        if state is None:
            return
        state.epochs_in_stage += 1
        if state.stage in LIVE:
            state.age_epochs += 1
            self._read_monitor(state)
        if state.stage is SeedStage.GERMINATED:
            self.advance_stage(SeedStage.TRAINING)
        elif state.stage is SeedStage.BLENDING:
            if state.ramp_complete:
                self.advance_stage(SeedStage.HOLDING)
            else:
                state.step_ramp()
        elif state.stage is SeedStage.FOSSILIZED:
            if len(self.kept) + 1 < self.config.generations:
                self._reopen(state)
        else:
            self._cool_down(state)

    def _reopen(self, state: SeedState) -> None:
        """Be DORMANT again, with the seed that was kept beneath what comes. Its parameters are the same ones."""
        seed = self.seed
        assert seed is not None
        self.kept.append(Kept(seed, state))  # type: ignore[attr-defined]
        self._emit_telemetry(
            TelemetryEventType.SLOT_REOPENED,
            data={"generation": len(self.kept), "generations": self.config.generations},
        )
        del self.seed
        self.seed = self.state = None
        forget_graphs()

    def _cool_down(self, state: SeedState) -> None:
        if state.stage is SeedStage.PRUNED:
            self._move(SeedStage.EMBARGOED)
        elif state.stage is SeedStage.EMBARGOED and state.epochs_in_stage >= self.config.embargo_epochs:
            self._move(SeedStage.RESETTING)
        elif state.stage is SeedStage.RESETTING:
            self._move(SeedStage.DORMANT)
            self.state = None

    def _read_monitor(self, state: SeedState) -> None:
        passes, violations, norm = self.monitor.drain()
        if passes == 0:
            return
        total = (state.metrics.isolation_violations or 0) + violations
        self.record(isolation_violations=total)
        if violations:
            self._emit_telemetry(
                TelemetryEventType.ISOLATION_VIOLATION,
                data={"host_gradient_norm": norm, "violations": total},
                severity="error",
            )

    def _start_ramp(self, target: float, tempo: int, blend: Blend) -> None:
        assert self.state is not None
        self.state.begin_ramp(target, tempo, blend)
        self._move(SeedStage.BLENDING)
        self._emit_telemetry(
            TelemetryEventType.SEED_ALPHA_RETARGETED,
            data={
                "alpha_from": self.state.alpha_from,
                "alpha_target": target,
                "tempo": tempo,
                "blend": blend.value,
            },
        )

    def _move(self, to: SeedStage, reason: str | None = None) -> None:
        """The one place where a stage changes."""
        state = self.state
        assert state is not None
        origin, stayed = state.stage, state.epochs_in_stage
        if to not in LEGAL_MOVES[origin]:
            raise RuntimeError(f"slot {self.slot_id}: {origin.name} -> {to.name} is not a legal move")
        state.enter(to, self.stamp.epoch)
        if self.seed is not None or to is SeedStage.PRUNED:
            forget_graphs()
        data: dict[str, Any] = {"from": origin.name, "to": to.name, "epochs_in_stage": stayed}
        data |= {} if reason is None else {"reason": reason}
        self._emit_telemetry(TelemetryEventType.SEED_STAGE_CHANGED, data=data)

    def lifecycle(self) -> dict[str, Any]:
        """Everything but weights and buffers, JSON-able."""
        return {
            "state": self.state.to_dict() if self.state is not None else None,
            "germinations": self.germinations,
            "kept": [each.lifecycle() for each in self.kept],
        }

    def load_lifecycle(self, plain: Mapping[str, Any]) -> None:
        """Undo of :meth:`lifecycle`, silently. Seeds are built anew, for ``load_state_dict`` to fill."""
        self.clear()
        self.germinations = int(plain["germinations"])
        # what 0.1.0 wrote lacks the key: its slots kept one seed
        states = [SeedState.from_dict(each) for each in plain.get("kept", ())]
        self.kept = nn.ModuleList(Kept(self._built(each), each) for each in states)  # type: ignore[assignment]
        self.state = None if plain["state"] is None else SeedState.from_dict(plain["state"])
        if self.state is not None and self.state.stage in LIVE:
            self.seed = self._built(self.state)

    def _built(self, state: SeedState) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            seed = growable.build(self, state.blueprint_id)
        return self._spread(growable.placed(seed, self.device, self.dtype)).train(self.training)

    def _spread(self, seed: nn.Module) -> nn.Module:
        return seed if self.sharding is None else self.sharding.shard(seed)

    def clear(self) -> None:
        """Be DORMANT, without a word: what grows here is of a network that is gone. What was kept stays."""
        del self.seed
        self.seed = self.state = None
        self.monitor.drain()

    def _veto(self, target: SeedStage, reason: str) -> GateResult:
        self._emit_telemetry(
            TelemetryEventType.TRANSITION_VETOED,
            data={"from": self.stage.name, "target_stage": target.name, "by": "lifecycle", "reason": reason},
            severity="warning",
        )
        legal = check("legal_move", f"{self.stage.name}->{target.name}", "is", "legal")
        return verdict(None, [legal], reason)

    def _emit_gate(self, result: GateResult, target: SeedStage) -> None:
        assert self.state is not None and result.gate is not None
        self.state.blocked_by = result.checks_failed
        self._emit_telemetry(TelemetryEventType.SEED_GATE_EVALUATED, data=gate_payload(result, self.stage, target))

    def _emit_telemetry(
        self, event_type: TelemetryEventType, data: Mapping[str, Any] | None = None, severity: Severity = "info"
    ) -> None:
        """Send ``data`` with the slot's health added where it is known; what the caller gives wins."""
        if self.on_telemetry is None:
            return
        payload = dict(data or {})
        if self.state is not None:
            for key, value in health_payload(self.state).items():
                payload.setdefault(key, value)
        self.on_telemetry(
            TelemetryEvent(
                event_type=event_type,
                env_id=self.stamp.env_id,
                episode=self.stamp.episode,
                epoch=self.stamp.epoch,
                slot_id=self.slot_id,
                seed_id=self.state.seed_id if self.state is not None else None,
                severity=severity,
                data=payload,
            )
        )


def _granted(message: str) -> GateResult:
    return verdict(None, [check("legal_move", True, "is", True)], message)
