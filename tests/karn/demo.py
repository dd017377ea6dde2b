"""A made-up run that shows trouble of every kind, for tests in a browser and for pictures.

    python tests/karn/demo.py RUN_DIR [--pace 0.2] [--epochs 60] [--envs 12] [--end]

Environment 7 stalls, 3 has a seed that G5 keeps from fossilizing, 5 turns NaN and is rolled back, 9 falls back; the
others do well. With a pace it writes an epoch every so many seconds, as a run would.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from esper.leyline import GATE_FOR, SeedStage, TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.nissa.journal import JournalWriter
from esper.nissa.rundir import RunDirectory
from karn.streams import SLOTS, Recorder, begin, begin_episode, move

STALLED, BLOCKED, BROKEN, FALLING = 7, 3, 5, 9
BLUEPRINTS = ("conv3", "norm", "attention", "bottleneck")
S = SeedStage


def epochs(
    envs: int = 12,
    count: int = 60,
    start: float = 1_760_000_000.0,
    step: float = 2.0,
    clock: Callable[[], float] | None = None,
) -> Iterator[list[Any]]:
    """Events of the beginning, then of each epoch of all environments, then of the end.

    An epoch is at ``step`` seconds behind the one before, or at the time of the ``clock``.
    """
    rec, dice = Recorder(start), random.Random(4)
    begin(rec, envs=envs, max_epochs=count)
    hosts = [Host(env, dice) for env in range(envs)]
    for env in range(envs):
        begin_episode(rec, env, arm="static" if hosts[env].static else "grown", max_epochs=count)
    yield _taken(rec)
    for epoch in range(1, count + 1):
        rec.now = max(rec.now, start + epoch * step if clock is None else clock())
        for host in hosts:
            host.epoch(rec, epoch)
        yield [*_taken(rec), *([_sample(rec, epoch)] if epoch % 5 == 0 else [])]
    for host in hosts:
        host.end(rec, count)
    rec.say(T.TRAINING_ENDED, status="completed", seconds=rec.now - start)
    yield _taken(rec)


def _sample(rec: Recorder, epoch: int) -> TelemetryEvent:
    """The machine, every fifth epoch: for some time others keep it busy."""
    used = 0.4 if 20 <= epoch < 30 else 1.9
    return TelemetryEvent(
        event_type=T.ANALYTICS_SNAPSHOT,
        timestamp=rec.now,
        producer="vitals",
        seq=epoch // 5,
        data={
            **{"kind": "host_vitals", "cores": 2, "cpu_share": 0.97, "process_cores": used, "io_wait_share": 0.01},
            **{"process_memory": 400_000_000 + 2_000_000 * epoch, "memory_total": 33_000_000_000},
            **{"memory_available": 21_000_000_000, "disk_free": 80_000_000_000, "read_bytes_per_second": 0.0},
        },
    )


def _taken(rec: Recorder) -> list[TelemetryEvent]:
    new = rec.events[getattr(rec, "given", 0) :]
    rec.given = len(rec.events)  # type: ignore[attr-defined]
    return new


class Host:
    """One environment and the one or two seeds that it tries."""

    def __init__(self, env: int, dice: random.Random) -> None:
        self.env, self.dice = env, dice
        self.static = env % 6 == 5 and env != BROKEN
        self.top = dice.uniform(86, 94)
        self.pace = dice.uniform(5, 10)
        self.born = {SLOTS[env % 3]: 4 + env % 4, SLOTS[(env + 1) % 3]: 16 + env % 5}
        self.stages = dict.fromkeys(SLOTS, S.DORMANT)
        self.alphas: dict[str, float] = {}
        self.metric = 0.0

    def end(self, rec: Recorder, epochs: int) -> None:
        """The result, and what it cost."""
        live = sum(stage is not S.DORMANT for stage in self.stages.values())
        macs = round(epochs * (31e6 + 14e6 * live))
        rec.say(
            T.EPISODE_ENDED,
            env_id=self.env,
            episode=0,
            epoch=epochs,
            seed=100 + self.env,
            arm="static" if self.static else "grown",
            policy="static" if self.static else "heuristic",
            status="completed",
            epochs=epochs,
            validation_metric=round(self.metric, 2),
            test_metric=round(self.metric - self.dice.uniform(0.2, 1.4), 2),
            host_parameters=6418,
            total_parameters=6418 + 2400 * live,
            train_macs=macs,
            total_macs=round(1.2 * macs),
            seconds=0.25 * epochs,
            seeds=[
                {
                    "slot_id": slot,
                    "seed_id": f"e{self.env}-{slot}-1",
                    "blueprint": BLUEPRINTS[(self.env + len(slot)) % 4],
                    "stage": stage.name,
                    "parameters": 2400,
                    "epoch_germinated": self.born[slot],
                }
                for slot, stage in self.stages.items()
                if stage is not S.DORMANT
            ],
        )

    def epoch(self, rec: Recorder, epoch: int) -> None:
        """All that the environment says in one epoch."""
        for slot, born in self.born.items() if not self.static else ():
            self._grow(rec, epoch, slot, epoch - born)
        metric = self.metric = self._metric(epoch)
        broken = self.env == BROKEN and epoch in (30, 31)
        if broken:
            where = {"env_id": self.env, "episode": 0, "epoch": epoch}
            rec.say(
                T.GOVERNOR_PANIC,
                **where,
                severity="error",
                reason="non_finite_loss",
                consecutive_panics=epoch - 29,
                rollbacks=epoch - 30,
            )
            rec.say(
                T.GOVERNOR_ROLLBACK,
                **where,
                severity="warning",
                reason="non_finite_loss",
                to_epoch=28,
                lost_epochs=epoch - 28,
                consecutive_panics=epoch - 29,
                rollbacks=epoch - 29,
                cause="internal",
            )
        live = [slot for slot, stage in self.stages.items() if stage is not S.DORMANT]
        rec.say(
            T.EPOCH_COMPLETED,
            env_id=self.env,
            episode=0,
            epoch=epoch,
            step=0.003,
            arm="static" if self.static else "grown",
            validation_metric=math.nan if broken else metric,
            validation_loss=math.nan if broken else 2.3 - metric / 50,
            train_loss=math.nan if broken else 2.1 - metric / 50,
            host_gradient_norm=self.dice.uniform(0.5, 1.5),
            learning_rate=0.003 * (1 - epoch / 80),
            parameters=6418 + 2400 * len(live),
            live_seeds=len(live),
            alphas=dict(self.alphas),
            stages={slot: stage.name for slot, stage in self.stages.items()},
            seed_gradient_norm_ratios={slot: self.dice.uniform(0.4, 1.6) for slot in live},
            gradient_healths={slot: self.dice.uniform(0.8, 1.0) for slot in live},
            train_ms=self.dice.uniform(180, 220),
            validate_ms=34.0,
            counterfactual_ms=21.0 * len(live),
            input_wait_ms=6.0,
            policy_ms=0.4,
        )

    def _metric(self, epoch: int) -> float:
        reach = min(epoch, 22) if self.env == STALLED else epoch
        metric = 12 + (self.top - 12) * (1 - math.exp(-reach / self.pace)) + sum(self.alphas.values()) * 1.5
        if self.env == STALLED and epoch > 12:
            return 71.2 - 0.01 * (epoch % 3)
        if self.env == FALLING and epoch > 24:
            metric -= min(40.0, (epoch - 24) * 2.2)
        return min(99.4, metric + self.dice.gauss(0, 0.25))

    def _grow(self, rec: Recorder, epoch: int, slot: str, age: int) -> None:
        where = {"env_id": self.env, "episode": 0, "epoch": epoch, "slot_id": slot}
        seed = f"e{self.env}-{slot}-1"
        blueprint = BLUEPRINTS[(self.env + len(slot)) % 4]
        if age == 0:
            ask = {"op": "GERMINATE", "slot": slot, "blueprint": blueprint}
            ask |= {"blend": "cosine", "alpha_target": 1.0, "tempo": 4}
            rec.say(T.COMMAND_ISSUED, **where, **ask, reason="plateau", evidence={"plateau_epochs": 3.0})
            self._gate(rec, epoch, slot, seed, S.GERMINATED, ("learning_tensors", 4, ">=", 1, None))
            rec.say(
                T.SEED_GERMINATED,
                **where,
                seed_id=seed,
                blueprint=blueprint,
                parameters=2400,
                blend="cosine",
                incubation="probe",
                tempo=4,
                alpha_target=1.0,
                alpha=0.0,
            )
            rec.say(T.COMMAND_EXECUTED, **where, op="GERMINATE", slot=slot)
            self._to(rec, epoch, slot, seed, S.GERMINATED)
        elif age == 1:
            self._gate(rec, epoch, slot, seed, S.TRAINING, ("seed_present", True, "is", True, None))
            self._to(rec, epoch, slot, seed, S.TRAINING)
            self.alphas[slot] = 0.0
        elif age == 5 and self.env % 4 != 2:
            self._gate(rec, epoch, slot, seed, S.BLENDING, ("probe_gain_loss", None, ">", 0.0, "nats"))
        elif age == 6:
            self._gate(rec, epoch, slot, seed, S.BLENDING, ("probe_gain_loss", 0.041, ">", 0.0, "nats"))
            self._to(rec, epoch, slot, seed, S.BLENDING)
        elif age == 10:
            self._gate(rec, epoch, slot, seed, S.HOLDING, ("ramp", 1.0, ">=", 1.0, None))
            self._to(rec, epoch, slot, seed, S.HOLDING)
        if 6 <= age <= 10:
            self.alphas[slot] = (age - 6) / 4
        if self.stages[slot] in (S.TRAINING, S.BLENDING, S.HOLDING) and age % 2 == 0:
            self._measure(rec, where, seed, age)
        if self.stages[slot] is S.HOLDING and age >= 14 and age % 3 == 2:
            self._judge(rec, epoch, slot, seed, where, blueprint)

    def _measure(self, rec: Recorder, where: dict[str, Any], seed: str, age: int) -> None:
        trained = self.stages[where["slot_id"]] is S.TRAINING
        worth = 0.31 if self.env == BLOCKED else 1.4
        name, value = ("probe_gain", 0.05 * age) if trained else ("removal_cost", worth + self.dice.gauss(0, 0.04))
        rec.say(
            T.COUNTERFACTUAL_COMPUTED,
            **where,
            seed_id=seed,
            **{name: value, f"{name}_se": 0.12},
            unit="points",
            examples=300,
            shared_prefix=True,
            passes=1.5,
            alpha=self.alphas.get(where["slot_id"], 0.0),
            **({} if trained else {"all_off_metric": 81.4, "interaction": -0.22}),
        )

    def _judge(self, rec: Recorder, epoch: int, slot: str, seed: str, where: dict[str, Any], blueprint: str) -> None:
        good = self.env != BLOCKED
        measured = 1.42 if good else 0.31
        ok = self._gate(
            rec,
            epoch,
            slot,
            seed,
            S.FOSSILIZED,
            ("removal_cost", measured, ">=", 0.5, "points"),
            ("removal_cost_lower", measured - 0.2, ">", 0.0, "points"),
            ("epochs_in_holding", 5, ">=", 5, "epochs"),
        )
        if ok:
            facts = {"blueprint": blueprint, "parameters": 2400, "removal_cost": measured, "removal_cost_epoch": epoch}
            rec.say(T.SEED_FOSSILIZED, **where, seed_id=seed, **facts, age_epochs=14, unit="points", alpha=1.0)
            self._to(rec, epoch, slot, seed, S.FOSSILIZED)

    def _gate(self, rec: Recorder, epoch: int, slot: str, seed: str, target: SeedStage, *checks: Any) -> bool:
        records = []
        for name, measured, comparison, threshold, unit in checks:
            holds = measured is not None and {">=": measured >= threshold, ">": measured > threshold}.get(
                comparison, True
            )
            known = {"id": name, "measured": measured, "unit": unit}
            record = {key: value for key, value in known.items() if value is not None}
            records.append(record | {"comparison": comparison, "threshold": threshold, "passed": holds})
        passed = all(record["passed"] for record in records)
        rec.say(
            T.SEED_GATE_EVALUATED,
            env_id=self.env,
            episode=0,
            epoch=epoch,
            slot_id=slot,
            seed_id=seed,
            gate=GATE_FOR[target].name,
            passed=passed,
            target_stage=target.name,
            checks_passed=[record["id"] for record in records if record["passed"]],
            checks_failed=[record["id"] for record in records if not record["passed"]],
            message_="",
            checks=records,
        )
        return passed

    def _to(self, rec: Recorder, epoch: int, slot: str, seed: str, stage: SeedStage) -> None:
        move(rec, self.env, epoch, slot, seed, self.stages[slot], stage)
        self.stages[slot] = stage


def main() -> None:
    """Write the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--envs", type=int, default=12)
    parser.add_argument("--end", action="store_true", help="say that the run ended; else it just stops")
    given = parser.parse_args()
    run = RunDirectory.create(given.directory.parent, given.directory.name, {})
    start = time.time() - (0.0 if given.pace else 2.0 * given.epochs)
    clock = time.time if given.pace else None
    with JournalWriter(run.path, given.directory.name) as writer:
        for events in epochs(given.envs, given.epochs, start, clock=clock):
            if events[-1].event_type is T.TRAINING_ENDED and not given.end:
                break
            for event in events:
                writer(event)
            writer.flush()
            time.sleep(given.pace)
        while given.pace and not given.end:
            time.sleep(1)


if __name__ == "__main__":
    main()
