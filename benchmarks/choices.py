"""What each choice of growth is worth: one thing is changed at a time, on paired seeds.

    uv run python benchmarks/choices.py --task digits --run choices.jsonl --into docs/choices.md  # resumable

The base is the policy ``frugal`` with the learning rates that tuning gave it on the task (``docs/benchmarks.md``) and
quick gates: one epoch in TRAINING, one in HOLDING. Nothing else is tuned again, so a choice that needs another learning
rate looks worse than it is. Validation metric after the task's epochs; the test split is not looked at.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, Final

import torch
from faults import shown

from esper.bench.report import into_page
from esper.karn.stats import interval
from esper.kasmina.slot import SlotConfig
from esper.kasmina.state import Incubation
from esper.leyline import Blend, GateThresholds
from esper.run.assembly import build_executor, trainer_config, workload
from esper.run.config import RunConfig
from esper.run.play import play_seeds as episodes
from esper.tamiyo.policies import HeuristicConfig, HeuristicPolicy
from esper.tasks import get_task
from esper.tolaria.rng import derive
from esper.tolaria.schedules import ScheduleConfig

RATES: Final = MappingProxyType({"digits": 8.0, "mnist1d": 4.0})
"""Task -> the host's learning rate that tuning gave ``frugal``, a multiple of the task's."""


@dataclass(frozen=True)
class Choice:
    """Everything that is compared."""

    gates: GateThresholds = GateThresholds(min_training_epochs=1, min_holding_epochs=1)
    rules: HeuristicConfig = HeuristicConfig(first_size=1 / 3)
    slot: SlotConfig = SlotConfig()
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(seed_multiplier=1.0))


BASE: Final = Choice()


def _gates(**changed: Any) -> Choice:
    return replace(BASE, gates=replace(BASE.gates, **changed))


def _rules(**changed: Any) -> Choice:
    return replace(BASE, rules=replace(BASE.rules, **changed))


def _slot(incubation: Incubation, **changed: Any) -> Choice:
    return replace(BASE, slot=SlotConfig(incubation=incubation, **changed))


def _rates(**changed: Any) -> Choice:
    return replace(BASE, schedule=replace(BASE.schedule, **changed))


CHOICES: Final = MappingProxyType(
    {
        "incubation": {
            "probe (base)": BASE,
            "straight through": _slot(Incubation.STRAIGHT_THROUGH),
            "graft, isolated for 3 epochs": _slot(Incubation.GRAFT),
            "graft, isolated for 1": _slot(Incubation.GRAFT, detach_epochs=1),
            "graft, never isolated": _slot(Incubation.GRAFT, detach_epochs=0),
        },
        "gates": {
            "1 epoch of training, 1 of holding (base)": BASE,
            "3 and 2": _gates(min_training_epochs=3, min_holding_epochs=2),
            "5 and 4": _gates(min_training_epochs=5, min_holding_epochs=4),
            "any gain, however uncertain": _gates(confidence_z=0.0, blending_z=0.0),
            "3 standard errors of gain": _gates(confidence_z=3.0, blending_z=3.0),
            "no least removal cost": _gates(min_removal_cost=0.0),
            "removal must cost 2 points": _gates(min_removal_cost=0.02),
            "no gain asked for": _gates(ask_for_gain=False),
        },
        "blending": {
            "linear over 1 epoch (base)": BASE,
            "linear over 3": _rules(tempo=3),
            "linear over 5": _rules(tempo=5),
            "cosine over 3": _rules(tempo=3, blend=Blend.COSINE),
            "sigmoid over 3": _rules(tempo=3, blend=Blend.SIGMOID),
        },
        "a seed's learning rate": {
            "the host's (base)": BASE,
            "half of it": _rates(seed_multiplier=0.5),
            "twice": _rates(seed_multiplier=2.0),
            "four times": _rates(seed_multiplier=4.0),
            "warm-up of 1 epoch": _rates(seed_warmup=1.0),
            "warm-up of 3 epochs": _rates(seed_warmup=3.0),
            "the host's restarts, too": _rates(host_restart=True),
        },
        "first germination": {
            "before the first epoch": _rules(first_epoch=0),
            "after 1 (base)": BASE,
            "after 3": _rules(first_epoch=3),
            "after 6": _rules(first_epoch=6),
            "after 10": _rules(first_epoch=10),
            "after 15": _rules(first_epoch=15),
        },
        "size of the first seed, of the largest": {
            "a third (base)": BASE,
            "a twentieth": _rules(first_size=0.05),
            "a half": _rules(first_size=0.5),
            "all of it": _rules(first_size=1.0),
        },
    }
)


def play(task_name: str, choice: Choice, number: int) -> dict[str, Any]:
    """One run: its validation metric, its multiply-accumulates and how many seeds it kept."""
    torch.set_num_threads(1)
    task = get_task(task_name)
    config = RunConfig(task=task_name, device="cpu", max_seeds=len(task.sites))
    load = workload(task, config)
    base = trainer_config(load, config)
    slot = replace(base.slot, incubation=choice.slot.incubation, detach_epochs=choice.slot.detach_epochs)
    rate = base.lr * RATES[task_name]
    trainer = replace(base, lr=rate, schedule=choice.schedule, thresholds=choice.gates, slot=slot)
    executor = build_executor(load, config, lambda event: None, test=False, trainer=trainer)
    policy = HeuristicPolicy(choice.rules)
    seed = derive(number, "choices", task_name)
    ((result,),) = episodes(executor, {policy.name: policy}, [seed], load.max_epochs)
    kept = sum(result.view.fossilized.values())
    return {"validation": result.validation_metric, "macs": result.total_macs, "kept": kept}


Runs = Mapping[tuple[str, int], Mapping[str, Any]]


def table(runs: Runs, seeds: Iterable[int], unit: str) -> Iterator[str]:
    """One line a choice: the mean, what it is better by than the base, compute, seeds kept."""
    seeds = list(seeds)
    for subject, choices in CHOICES.items():
        yield ""
        yield f"| {subject} | validation, {unit} | minus base, paired (95 %) | MACs, of the base's | seeds kept |"
        yield "|---|---:|---|---:|---:|"
        for name, choice in choices.items():
            mine, base = ([runs[key_of(each), seed] for seed in seeds] for each in (choice, BASE))
            difference = interval([a["validation"] - b["validation"] for a, b in zip(mine, base, strict=True)])
            share = fmean(a["macs"] / b["macs"] for a, b in zip(mine, base, strict=True))
            level, kept = fmean(a["validation"] for a in mine), fmean(a["kept"] for a in mine)
            better = "" if choice == BASE else shown(difference)
            yield f"| {name} | {level:.1f} | {better} | {share:.2f} | {kept:.1f} |"


def key_of(choice: Choice) -> str:
    """Names a choice by its content, so that a changed one is played again."""
    return repr(choice)


def finished(path: Path, task: str) -> dict[tuple[str, int], dict[str, Any]]:
    """What was played before."""
    lines = path.read_text().splitlines() if path.exists() else []
    entries = (json.loads(line) for line in lines)
    return {(entry["choice"], entry["seed"]): entry for entry in entries if entry["task"] == task}


def _play(asked: tuple[str, Choice, int]) -> dict[str, Any]:
    return play(*asked)


def measure(task: str, seeds: int, path: Path, workers: int, tell: Callable[[str], None]) -> Runs:
    """Play what is missing; every run is a line of ``path``."""
    runs = finished(path, task)
    every = {key_of(choice): choice for choices in CHOICES.values() for choice in choices.values()}
    missing = [(key, seed) for seed in range(seeds) for key in every if (key, seed) not in runs]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool, path.open("a") as file:
        results = pool.map(_play, [(task, every[key], seed) for key, seed in missing])
        for done, ((key, seed), result) in enumerate(zip(missing, results, strict=True), 1):
            runs[key, seed] = {"task": task, "choice": key, "seed": seed, **result}
            file.write(json.dumps(runs[key, seed]) + "\n")
            file.flush()
            tell(f"{done}/{len(missing)}  {result['validation']:.1f}")
    return runs


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits", choices=sorted(RATES))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--run", type=Path, required=True, help="JSONL of finished runs")
    parser.add_argument("--into", type=Path, help="write the tables between the marks of this page, too")
    given = parser.parse_args()
    runs = measure(given.task, given.seeds, given.run, given.workers, print)
    text = "\n".join(table(runs, range(given.seeds), get_task(given.task).metric.unit or ""))
    print(text)
    if given.into is not None:
        into_page(given.into, f"choices {given.task}", f"{given.seeds} paired seeds.\n{text}")


if __name__ == "__main__":
    main()
