"""Injected faults: is each one detected, and what does it cost in the end?

    uv run python benchmarks/faults.py --run faults.jsonl --into docs/benchmarks.md     # resumable

Four kinds in turn, on ``mnist1d`` with 20,000 test examples, each against a clean run and a static host of the same
seed. Detected means that an event of the run itself speaks of it, after the injection and by the kind's own witness:

    nan seed             a weight of a live seed becomes NaN                  the governor panics
    exploding rate       every base learning rate is multiplied by 1,000      the governor panics
    destructive policy   for some epochs seeds that carry the run are pruned  the governor or the rules say no
    lying telemetry      the policy is told that every seed is a marvel       a gate fails what it asks for
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from esper.bench.report import into_page
from esper.karn.stats import Interval, interval
from esper.leyline import Decision, EnvSpec, EnvView, Fact, FactoredAction, Op, Paired, Policy, TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.run.assembly import Workload, build_executor, workload
from esper.run.config import RunConfig
from esper.tamiyo.policies import make_policy
from esper.tasks import get_task
from esper.tolaria import surgery
from esper.tolaria.engine import ModuleEngine
from esper.tolaria.rng import derive
from esper.tolaria.trainer import Trainer

KINDS = ("nan seed", "exploding rate", "destructive policy", "lying telemetry")
SIEGE = 4
"""Epochs that a destructive policy goes on for."""
FLOOR = 2.0
"""Points below the static host that no faulty run may end at."""


@dataclass(frozen=True)
class Fault:
    """One fault: its kind, the seed of the run, and the epoch from which it may happen."""

    kind: str
    seed: int
    epoch: int
    draw: int


def planned(count: int, seeds: int, epochs: int) -> list[Fault]:
    """``count`` faults, the kinds in turn, over ``seeds`` runs; the same ones every time."""
    draw = random.Random(0)
    runs = [derive(0, "faults", i) for i in range(seeds)]
    faults = []
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        # a lie matters while there is a seed that has something to prove
        last = 2 if kind == "lying telemetry" else epochs * 2 // 3
        faults.append(Fault(kind, runs[i // len(KINDS) % seeds], draw.randint(1, last), i))
    return faults


def witnessed(kind: str, event: TelemetryEvent) -> bool:
    """Whether ``event`` speaks of a fault of this kind."""
    if kind in ("nan seed", "exploding rate"):
        return event.event_type is T.GOVERNOR_PANIC
    if kind == "destructive policy":
        return event.event_type in (T.TRANSITION_VETOED, T.COMMAND_FAILED, T.GOVERNOR_PANIC)
    return event.event_type is T.SEED_GATE_EVALUATED and not event.data["passed"]


class Saboteur:
    """Sits between a row and the one who drives it. ``done`` is the epoch of the first injection."""

    def __init__(self, fault: Fault | None) -> None:
        self.fault = fault
        self.done: int | None = None
        self._draw = random.Random(0 if fault is None else fault.draw)

    def _due(self, kind: str, epoch: int) -> bool:
        return self.fault is not None and self.fault.kind == kind and epoch >= self.fault.epoch

    def strike(self, trainer: Trainer, epoch: int) -> None:
        """Break what an epoch begins with."""
        if self.done is not None:
            return
        seeds = [slot for slot in trainer.model.slots.values() if slot.live]
        if self._due("nan seed", epoch) and seeds:
            weights = list(self._draw.choice(seeds).seed_parameters())
            with torch.no_grad():
                self._draw.choice(weights).view(-1)[0] = float("nan")
            self.done = epoch
        elif self._due("exploding rate", epoch):
            for group in trainer.optimizer.param_groups:
                group[surgery.BASE_RATE] *= 1000.0
            self.done = epoch

    def told(self, view: EnvView, epoch: int) -> EnvView:
        """What the policy is told instead of ``view``."""
        if not self._due("lying telemetry", epoch):
            return view
        marvel = Fact(Paired(50.0, 0.1, 1000), view.epoch)
        praised = [
            replace(
                slot,
                epochs_in_stage=max(slot.epochs_in_stage, 5),
                probe_gain=marvel,
                probe_gain_loss=marvel,
                removal_cost=marvel,
                removal_cost_loss=marvel,
                gradient_ratio=Fact(1.0, view.epoch),
                gradient_health=Fact(1.0, view.epoch),
                isolation_violations=0,
            )
            if slot.live
            else slot
            for slot in view.slots
        ]
        if self.done is None and any(slot.live for slot in view.slots):
            self.done = epoch
        return replace(view, slots=tuple(praised))

    def commanded(self, view: EnvView, decision: Decision, epoch: int) -> Decision:
        """What is done instead of the policy's decision."""
        carrying = [slot.slot_id for slot in view.slots if slot.live and slot.alpha > 0.5]
        over = self.done is not None and epoch >= self.done + SIEGE
        if not self._due("destructive policy", epoch) or over or not carrying:
            return decision
        self.done = epoch if self.done is None else self.done
        return Decision(FactoredAction(Op.PRUNE, self._draw.choice(carrying)), "sabotage")


def episode(load: Workload, policy: Policy, seed: int, fault: Fault | None) -> dict[str, Any]:
    """One run; what it ended with and what was said of the fault."""
    events: list[TelemetryEvent] = []
    config = RunConfig(task=load.task.name, max_epochs=load.max_epochs, device=load.device)
    executor = build_executor(load, config, events.append)
    assert isinstance(executor.engine, ModuleEngine)
    spec = EnvSpec(0, 0, seed, load.max_epochs, policy=policy.name)
    (view,) = executor.reset([spec])
    policy.reset([spec])
    saboteur = Saboteur(fault)
    noticed = 0
    for epoch in range(load.max_epochs):
        before = len(events)
        saboteur.strike(executor.engine.trainer(0), epoch)
        decision = saboteur.commanded(view, policy.decide([saboteur.told(view, epoch)])[0], epoch)
        view = executor.step([decision])[0].view
        if fault is not None and saboteur.done is not None:
            noticed += sum(witnessed(fault.kind, event) for event in events[before:])
    (result,) = executor.finish(policy.decide([view]))
    return {
        "test": result.test_metric,
        "macs": result.total_macs,
        "kept": sum(result.view.fossilized.values()),
        "struck": saboteur.done,
        "noticed": noticed,
        "rollbacks": sum(event.event_type is T.GOVERNOR_ROLLBACK for event in events),
    }


class Book:
    """Finished runs, a line each."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self._known: dict[str, dict[str, Any]] = {entry["key"]: entry for entry in map(json.loads, lines)}

    def get(self, key: str, run: Callable[[], dict[str, Any]]) -> Mapping[str, Any]:
        """The run under ``key``, played when it is not there."""
        if key not in self._known:
            self._known[key] = {"key": key, **run()}
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps(self._known[key]) + "\n")
        return self._known[key]


def shown(value: Interval | None) -> str:
    """``-0.12 (-0.40 to +0.16)``."""
    if value is None:
        return "–"
    return f"{value.mean:+.2f}" + ("" if value.low is None else f" ({value.low:+.2f} to {value.high:+.2f})")


def table(faults: Sequence[Fault], ends: Sequence[tuple[Mapping[str, Any], ...]]) -> list[str]:
    """One line a kind and one for all. ``ends``: the faulty, the clean and the static run of each fault.

    Faults of one seed share its clean run, so that intervals are over seeds.
    """
    lines = [
        "| fault | runs | detected | minus clean, points | least above static | rollbacks a run |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for kind in (*KINDS, "all"):
        rows, by_seed = [], dict[int, list[float]]()
        for fault, end in zip(faults, ends, strict=True):
            if kind in (fault.kind, "all"):
                rows.append(end)
                by_seed.setdefault(fault.seed, []).append(end[0]["test"] - end[1]["test"])
        if not rows:
            continue
        detected = sum(faulty["noticed"] > 0 for faulty, _, _ in rows)
        lines.append(
            f"| {kind} | {len(rows)} | {detected} | {shown(interval([fmean(each) for each in by_seed.values()]))} | "
            f"{min(f['test'] - s['test'] for f, _, s in rows):+.2f} | "
            f"{sum(f['rollbacks'] for f, _, _ in rows) / len(rows):.2f} |"
        )
    return lines


def ended(load: Workload, fault: Fault, book: Book) -> tuple[Mapping[str, Any], ...]:
    """The faulty, the clean and the static run of one fault."""
    about = f"{load.task.name}-{load.max_epochs}-{fault.seed}"

    def run(key: str, policy: str, sabotage: Fault | None) -> Mapping[str, Any]:
        return book.get(f"{about}-{key}", lambda: episode(load, make_policy(policy), fault.seed, sabotage))

    name = f"{fault.kind}-{fault.epoch}-{fault.draw}"
    return run(name, "heuristic", fault), run("clean", "heuristic", None), run("static", "static", None)


def main() -> None:
    """Run what is missing, print the table, and fail where a fault went unnoticed or a run fell through the floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="mnist1d")
    parser.add_argument("--test", type=int, default=20_000, help="test examples, for mnist1d")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=10, help="different runs that the faults are spread over")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--run", type=Path, help="file of finished runs; begun or gone on with")
    parser.add_argument("--into", type=Path, help="write the table between the marks of this page, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = get_task(arguments.task, **({"test": arguments.test} if arguments.task == "mnist1d" else {}))
    load = workload(task, RunConfig(task=task.name, max_epochs=arguments.epochs, device="cpu"))
    faults = planned(arguments.faults, arguments.seeds, load.max_epochs)
    book = Book(arguments.run)
    ends = []
    for number, fault in enumerate(faults):
        ends.append(ended(load, fault, book))
        faulty, clean, _ = ends[-1]
        print(f"{number + 1}/{len(faults)} {fault.kind}: {faulty['test']:.2f}, clean {clean['test']:.2f}", flush=True)
    text = "\n".join(table(faults, ends))
    print(text)
    if arguments.into is not None:
        into_page(arguments.into, "faults", text)
    for fault, (faulty, _, static) in zip(faults, ends, strict=True):
        assert faulty["struck"] is not None, f"{fault} never happened"
        assert faulty["noticed"], f"{fault} was not detected"
        assert faulty["test"] >= static["test"] - FLOOR, f"{fault} ended at {faulty['test']}, static {static['test']}"


if __name__ == "__main__":
    main()
