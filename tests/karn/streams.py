"""Event streams for the tests of karn: a scripted story, a random run, and Hypothesis strategies over both."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import strategies as st

from esper.leyline import GATE_FOR, SeedStage, TelemetryEvent
from esper.leyline import TelemetryEventType as T

START = 1_760_000_000.0
SLOTS = ("stem", "blocks_1", "neck")


class Recorder:
    """Stamps events as the hub would: one clock, one producer, a sequence without gaps."""

    def __init__(self, start: float = START, producer: str = "train") -> None:
        self.now = start
        self.producer = producer
        self.events: list[TelemetryEvent] = []

    def say(self, event: T, *, step: float = 0.01, **fields: Any) -> TelemetryEvent:
        """Append an event; envelope fields by name, all else is payload, without a trailing underscore (``from_``, and
        ``message_`` where it is not the envelope's)."""
        envelope = {name: fields.pop(name) for name in _ENVELOPE if name in fields}
        data = {name.rstrip("_"): value for name, value in fields.items()}
        self.now += step
        made = TelemetryEvent(
            event_type=event,
            timestamp=self.now,
            t_mono=self.now - START,
            producer=self.producer,
            seq=len(self.events) + 1,
            data=data,
            **envelope,
        )
        self.events.append(made)
        return made


_ENVELOPE = ("episode", "epoch", "env_id", "slot_id", "seed_id", "severity", "message")


def begin(rec: Recorder, *, envs: int = 2, max_epochs: int = 12, slots: tuple[str, ...] = SLOTS) -> None:
    """The run's first event."""
    rec.say(
        T.TRAINING_STARTED,
        run_id="20261122-101500-abcd",
        kind="heuristic",
        task="digits",
        policy="heuristic",
        metric={"name": "accuracy", "unit": "points", "higher_is_better": True, "chance": 10.0},
        slots=list(slots),
        blueprints=["norm", "conv3"],
        episodes=1,
        envs=envs,
        max_epochs=max_epochs,
        device="cpu",
        threads=2,
        examples={"train": 1000, "validation": 300, "test": 497},
        host_parameters=6418,
    )


def begin_episode(rec: Recorder, env: int, *, arm: str = "grown", episode: int = 0, max_epochs: int = 12) -> None:
    """A fresh host in one environment."""
    rec.say(
        T.EPISODE_STARTED,
        env_id=env,
        episode=episode,
        epoch=0,
        seed=100 + episode,
        policy="heuristic" if arm == "grown" else "static",
        arm=arm,
        max_epochs=max_epochs,
        host_parameters=6418,
    )


def gate(
    rec: Recorder, env: int, epoch: int, slot: str, seed: str, target: SeedStage, passed: bool, **check: Any
) -> TelemetryEvent:
    """One gate evaluation with one check."""
    name = GATE_FOR[target].name
    record = {"id": "removal_cost", "measured": 0.4, "comparison": ">=", "threshold": 0.5, "passed": passed} | check
    record = {key: value for key, value in record.items() if value is not None}
    figure = f"{record['id']}={record['measured']}" if "measured" in record else f"{record['id']}_not_measured"
    return rec.say(
        T.SEED_GATE_EVALUATED,
        env_id=env,
        episode=0,
        epoch=epoch,
        slot_id=slot,
        seed_id=seed,
        gate=name,
        passed=passed,
        target_stage=target.name,
        checks_passed=[figure] if passed else [],
        checks_failed=[] if passed else [figure],
        message_=f"{name} {'passed' if passed else 'failed'}",
        checks=[record],
        blueprint="conv3",
    )


def move(rec: Recorder, env: int, epoch: int, slot: str, seed: str, before: SeedStage, to: SeedStage) -> None:
    """A stage change."""
    rec.say(
        T.SEED_STAGE_CHANGED,
        env_id=env,
        episode=0,
        epoch=epoch,
        slot_id=slot,
        seed_id=seed,
        from_=before.name,
        to=to.name,
    )


def epoch_done(rec: Recorder, env: int, epoch: int, metric: float | None, **data: Any) -> None:
    """The last event of an epoch of one environment."""
    known = {} if metric is None else {"validation_metric": metric, "validation_loss": 2.0 - metric / 60}
    payload = {"parameters": 6418, "live_seeds": 0, "alphas": {}, "stages": {}, "train_ms": 50.0, "validate_ms": 8.0}
    said = {"episode": 0, "arm": "grown", **payload, **known, **data}
    rec.say(T.EPOCH_COMPLETED, env_id=env, epoch=epoch, step=0.5, **said)


def story() -> list[TelemetryEvent]:
    """Two environments: in 0 a seed is blocked at G5, then kept; 1 stalls, turns NaN and is rolled back."""
    rec = Recorder()
    begin(rec)
    begin_episode(rec, 0)
    begin_episode(rec, 1)
    stages = {"stem": "DORMANT", "blocks_1": "DORMANT", "neck": "DORMANT"}
    for epoch in range(1, 13):
        live = epoch >= 3
        _grow(rec, epoch, stages)
        if live:
            rec.say(
                T.COUNTERFACTUAL_COMPUTED,
                env_id=0,
                episode=0,
                epoch=epoch,
                slot_id="blocks_1",
                seed_id="s1",
                **(
                    {"probe_gain": 0.1 * epoch} if epoch < 6 else {"removal_cost": 0.15 * epoch, "removal_cost_se": 0.2}
                ),
                unit="points",
                examples=300,
                shared_prefix=True,
                passes=1.5,
                alpha=min(1.0, max(0.0, (epoch - 5) / 3)),
            )
        _keep(rec, epoch, stages)
        alpha = min(1.0, max(0.0, (epoch - 5) / 3))
        epoch_done(
            rec,
            0,
            epoch,
            80 + epoch + (2 if epoch > 7 else 0),
            alphas={"blocks_1": alpha} if live else {},
            stages=dict(stages),
            live_seeds=int(live),
            parameters=8818 if live else 6418,
            input_wait_ms=4.0,
        )
        _trouble(rec, epoch)
    for env, test in ((0, 95.0), (1, 86.0)):
        end_episode(rec, env, test, grown=env == 0)
    rec.say(T.TRAINING_ENDED, status="completed", seconds=rec.now - START)
    return rec.events


def _grow(rec: Recorder, epoch: int, stages: dict[str, str]) -> None:
    """Environment 0 up to HOLDING, with a gate that fails before it passes."""
    s = SeedStage
    if epoch == 3:
        rec.say(
            T.COMMAND_ISSUED,
            env_id=0,
            episode=0,
            epoch=2,
            slot_id="blocks_1",
            op="GERMINATE",
            slot="blocks_1",
            blueprint="conv3",
            blend="cosine",
            alpha_target=0.7,
            tempo=5,
            reason="plateau of 3 epochs",
            evidence={"plateau_epochs": 3.0},
        )
        gate(rec, 0, 2, "blocks_1", "s1", s.GERMINATED, True, id="finite_output", measured=True, threshold=True)
        rec.say(
            T.SEED_GERMINATED,
            env_id=0,
            episode=0,
            epoch=2,
            slot_id="blocks_1",
            seed_id="s1",
            blueprint="conv3",
            parameters=2400,
            blend="cosine",
            incubation="probe",
            tempo=3,
            alpha_target=1.0,
            alpha=0.0,
        )
        rec.say(T.COMMAND_EXECUTED, env_id=0, episode=0, epoch=2, slot_id="blocks_1", op="GERMINATE", slot="blocks_1")
        move(rec, 0, 3, "blocks_1", "s1", s.GERMINATED, s.TRAINING)
        stages["blocks_1"] = "TRAINING"
    if epoch == 5:
        gate(rec, 0, 5, "blocks_1", "s1", s.BLENDING, False, id="probe_gain_loss", measured=None, threshold=0.0)
    if epoch == 6:
        gate(rec, 0, 6, "blocks_1", "s1", s.BLENDING, True, id="probe_gain_loss", measured=0.2, threshold=0.0)
        move(rec, 0, 6, "blocks_1", "s1", s.TRAINING, s.BLENDING)
        stages["blocks_1"] = "BLENDING"
    if epoch == 8:
        move(rec, 0, 8, "blocks_1", "s1", s.BLENDING, s.HOLDING)
        stages["blocks_1"] = "HOLDING"
    if epoch == 9:
        gate(rec, 0, 9, "blocks_1", "s1", s.FOSSILIZED, False)


def _keep(rec: Recorder, epoch: int, stages: dict[str, str]) -> None:
    """Environment 0: G5 passes in epoch 11."""
    s = SeedStage
    if epoch == 11:
        gate(rec, 0, 11, "blocks_1", "s1", s.FOSSILIZED, True, measured=1.6)
        move(rec, 0, 11, "blocks_1", "s1", s.HOLDING, s.FOSSILIZED)
        stages["blocks_1"] = "FOSSILIZED"
        rec.say(
            T.SEED_FOSSILIZED,
            env_id=0,
            episode=0,
            epoch=11,
            slot_id="blocks_1",
            seed_id="s1",
            blueprint="conv3",
            parameters=2400,
            age_epochs=9,
            removal_cost=1.6,
            removal_cost_epoch=10,
            unit="points",
            alpha=1.0,
        )


def _trouble(rec: Recorder, epoch: int) -> None:
    """Environment 1: fine, then NaN in epoch 8, a panic and a rollback to epoch 6."""
    if epoch == 8:
        epoch_done(rec, 1, epoch, None, validation_loss=float("nan"), train_loss=float("inf"))
        rec.say(
            T.GOVERNOR_PANIC,
            env_id=1,
            episode=0,
            epoch=8,
            severity="error",
            reason="non_finite_loss",
            consecutive_panics=1,
            rollbacks=0,
            device="cpu",
        )
        rec.say(
            T.GOVERNOR_ROLLBACK,
            env_id=1,
            episode=0,
            epoch=8,
            severity="warning",
            reason="non_finite_loss",
            to_epoch=6,
            lost_epochs=2,
            consecutive_panics=1,
            rollbacks=1,
            cause="external",
        )
    else:
        epoch_done(rec, 1, epoch, 85.0 + 0.01 * min(epoch, 4))


def end_episode(
    rec: Recorder, env: int, test: float, *, grown: bool = True, arm: str = "grown", seed: int = 100, episode: int = 0
) -> None:
    """The end of one environment's episode."""
    kept = {
        "slot_id": "blocks_1",
        "seed_id": "s1",
        "blueprint": "conv3",
        "stage": "FOSSILIZED",
        "parameters": 2400,
        "epoch_germinated": 2,
        "removal_cost": 1.6,
    }
    rec.say(
        T.EPISODE_ENDED,
        env_id=env,
        episode=episode,
        epoch=12,
        seed=seed,
        policy="heuristic" if arm == "grown" else "static",
        arm=arm,
        epochs=12,
        validation_metric=test - 1,
        test_metric=test,
        test_loss=0.3,
        test_examples=497,
        host_parameters=6418,
        total_parameters=8818 if grown else 6418,
        train_macs=10**9,
        total_macs=2 * 10**9,
        seconds=6.0,
        seeds=[kept] if grown else [],
        status="completed",
    )


def random_run(seed: int, *, envs: int = 3, epochs: int = 20, slots: tuple[str, ...] = SLOTS) -> list[TelemetryEvent]:
    """A run whose seeds live and die by dice, with unmeasured, non-finite and repeated values mixed in."""
    dice = random.Random(seed)
    rec = Recorder()
    begin(rec, envs=envs, max_epochs=epochs, slots=slots)
    for env in range(envs):
        begin_episode(rec, env, max_epochs=epochs)
    stage = {(env, slot): SeedStage.DORMANT for env in range(envs) for slot in slots}
    names: dict[tuple[int, str], str] = {}
    for epoch in range(1, epochs + 1):
        for env in range(envs):
            for slot in slots:
                _random_step(rec, dice, env, slot, epoch, stage, names)
            metric = dice.choice([None, dice.gauss(70, 5), dice.gauss(70, 5), float("nan"), float("inf")])
            epoch_done(
                rec,
                env,
                epoch,
                metric,
                stages={slot: stage[env, slot].name for slot in slots},
                alphas={slot: dice.random() for slot in slots if stage[env, slot] in _BLENDED},
                train_ms=dice.choice([40.0, 45.0, 400.0]),
                host_gradient_norm=dice.choice([1.0, float("-inf"), float("nan")]),
            )
    if dice.random() < 0.5:
        rec.say(T.TRAINING_ENDED, status=dice.choice(["completed", "failed", "interrupted"]), seconds=12.0)
    return rec.events


_BLENDED = (SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED)
_ORDER = (SeedStage.DORMANT, SeedStage.GERMINATED, SeedStage.TRAINING, *_BLENDED)


def _random_step(
    rec: Recorder,
    dice: random.Random,
    env: int,
    slot: str,
    epoch: int,
    stage: dict[tuple[int, str], SeedStage],
    names: dict[tuple[int, str], str],
) -> None:
    now = stage[env, slot]
    where = {"env_id": env, "episode": 0, "epoch": epoch, "slot_id": slot}
    if now in _ORDER[:-1] and dice.random() < 0.3:
        target = _ORDER[_ORDER.index(now) + 1]
        if now is SeedStage.DORMANT:
            names[env, slot] = f"e{env}-{slot}-{epoch}"
        seed = names[env, slot]
        passed = dice.random() < 0.7
        measured = dice.choice([None, 0.1, float("nan"), float("inf")])
        gate(rec, env, epoch, slot, seed, target, passed, measured=measured)
        if not passed:
            return
        if target is SeedStage.GERMINATED:
            rec.say(
                T.SEED_GERMINATED,
                **where,
                seed_id=seed,
                blueprint=dice.choice(["norm", "conv3"]),
                parameters=dice.randrange(3000),
                blend="linear",
                incubation="probe",
                tempo=3,
                alpha_target=1.0,
            )
        move(rec, env, epoch, slot, seed, now, target)
        stage[env, slot] = target
    elif now in (SeedStage.TRAINING, *_BLENDED[:2]) and dice.random() < 0.2:
        seed = names[env, slot]
        rec.say(T.SEED_PRUNED, **where, seed_id=seed, from_=now.name, reason="no gain", age_epochs=3, by="policy")
        move(rec, env, epoch, slot, seed, now, SeedStage.PRUNED)
        stage[env, slot] = SeedStage.DORMANT
        move(rec, env, epoch, slot, seed, SeedStage.PRUNED, SeedStage.DORMANT)
    elif now in _BLENDED:
        seed = names[env, slot]
        if dice.random() < 0.8:
            cost = dice.choice([dice.gauss(0, 1), float("nan")])
            known = {"removal_cost": cost, "removal_cost_se": 0.3, "unit": "points", "examples": 300}
            rec.say(
                T.COUNTERFACTUAL_COMPUTED, **where, seed_id=seed, **known, shared_prefix=False, passes=2.0, alpha=1.0
            )
        else:
            rec.say(T.COUNTERFACTUAL_UNAVAILABLE, **where, seed_id=seed, reason="not_scheduled")


@st.composite
def runs(draw: st.DrawFn) -> list[TelemetryEvent]:
    """A random run, shortened and with some events lost, as a crash or a drop would leave it."""
    events = random_run(draw(st.integers(0, 10_000)), envs=draw(st.integers(1, 4)), epochs=draw(st.integers(1, 12)))
    events = events[: draw(st.integers(1, len(events)))]
    lost = draw(st.sets(st.integers(0, len(events) - 1), max_size=5))
    return [event for index, event in enumerate(events) if index not in lost] or events[:1]
