"""How often gates keep a seed that is worth nothing, and how often one that is worth something, on recorded losses.

    uv run python benchmarks/evidence.py

Seeds are trained on real tasks and held for some epochs. Of each epoch the paired loss difference of every example is
recorded: the loss without the seed less the loss with it. A seed that is worth nothing has the same differences less
their mean, epoch by epoch; one that is worth something has them moved to a mean of so many standard errors of 200
examples. Draws of 200 examples, the same in every epoch, are then judged as gates judge them: after each of six epochs,
and while validation is read in sixteen batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import torch
from torch.nn import functional as F

from esper.kasmina.evidence import LEARNING
from esper.kasmina.sequential import spent, standard_errors
from esper.leyline import WAIT, Blend, Decision, EnvSpec, FactoredAction, GateThresholds, Op, SeedStage
from esper.run.assembly import build_executor, trainer_config, workload
from esper.run.config import RunConfig
from esper.tasks import get_task
from esper.tolaria.engine import ModuleEngine
from esper.tolaria.evaluation import Reading

N = 200
BATCHES = 16
EPOCHS = 6
Z = NormalDist().inv_cdf(0.95)
SEEDS = (("digits", "block0", "conv5"), ("digits", "block1", "norm"), ("mnist1d", "block0", "conv5"))
EFFECTS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Of one look at all 200 examples, in its standard errors."""

Asked = Callable[[int, float], float]
"""``(epoch in which the gate may pass, share read) -> standard errors that are asked``"""


@dataclass(frozen=True)
class Rule:
    """When a seed is kept."""

    asked: Asked
    looks: tuple[float, ...]
    """Shares of validation at which it is judged, in every epoch."""
    epochs: int = EPOCHS


def shares() -> tuple[float, ...]:
    """Where reading may stop."""
    read, found = 0, []
    for chosen in Reading().sets(BATCHES, stops=True):
        read += len(chosen)
        found.append(read / BATCHES)
    return tuple(found)


LOOSE = GateThresholds().blending_z
RULES = {
    "G5": Rule(lambda epoch, share: standard_errors(Z, spent(epoch), share), shares()),
    "G5, all of validation at once": Rule(lambda epoch, share: standard_errors(Z, spent(epoch)), (1.0,)),
    "one look, fixed n, 5 %": Rule(lambda epoch, share: Z, (1.0,), epochs=1),
    "naive: 1.645 after each epoch": Rule(lambda epoch, share: Z, (1.0,)),
    "naive: 1.645 at every look": Rule(lambda epoch, share: Z, shares()),
    "G2 (20 %)": Rule(lambda epoch, share: standard_errors(LOOSE, spent(epoch, LEARNING), share), shares()),
    "one look, fixed n, 20 %": Rule(lambda epoch, share: LOOSE, (1.0,), epochs=1),
}


def recorded(task_name: str, slot: str, blueprint: str, epochs: int = EPOCHS, seed: int = 0) -> np.ndarray:
    """Loss differences ``[epochs, examples]`` of a seed that is held, on validation and test examples."""
    task = get_task(task_name)
    config = RunConfig(task=task_name, max_epochs=30, device="cpu")
    load = workload(task, config)
    free = GateThresholds(ask_for_gain=False, min_training_epochs=2, min_gradient_ratio=0.0, min_gradient_health=0.0)
    trainer = replace(trainer_config(load, config), thresholds=free)
    executor = build_executor(load, config, lambda event: None, trainer=trainer)
    engine = executor.engine
    assert isinstance(engine, ModuleEngine)
    executor.reset([EnvSpec(0, 0, seed, 30)])
    executor.step([Decision(WAIT, "")])
    executor.step([Decision(FactoredAction(Op.GERMINATE, slot, blueprint, Blend.LINEAR, 1.0, 1), "")])
    splits = task.data.splits()
    inputs = torch.cat([splits["validation"].inputs, splits["test"].inputs])
    targets = torch.cat([splits["validation"].targets, splits["test"].targets])
    differences: list[np.ndarray] = []
    model = engine.trainer(0).model
    while len(differences) < epochs:
        stage = next(s.stage for s in engine.views([0])[0].slots if s.slot_id == slot)
        if stage is SeedStage.HOLDING:
            model.eval()
            with torch.no_grad():
                whole = F.cross_entropy(model(inputs), targets, reduction="none")
                with model.alphas({slot: 0.0}):
                    without = F.cross_entropy(model(inputs), targets, reduction="none")
            differences.append((without - whole).double().numpy())
        action = FactoredAction(Op.ADVANCE, slot) if stage is SeedStage.TRAINING else WAIT
        executor.step([Decision(action, "")])
    return np.stack(differences)


def kept(rule: Rule, population: np.ndarray, effect: float, runs: int, seed: int = 0) -> tuple[float, float]:
    """Share of ``runs`` in which a seed is kept, and what of validation was read up to then, in passes.

    ``effect`` is the mean of ``population [epochs, examples]`` in standard errors of N examples.
    """
    rng = np.random.default_rng(seed)
    spread = population.std(axis=1, keepdims=True)
    moved = population - population.mean(axis=1, keepdims=True) + effect * spread / math.sqrt(N)
    drawn = moved[:, rng.integers(0, population.shape[1], (runs, N))].transpose(1, 0, 2)
    open_, read = np.ones(runs, dtype=bool), np.zeros(runs)
    for epoch in range(rule.epochs):
        before = 0.0
        reading = open_.copy()
        for share in rule.looks:
            read[reading] += share - before
            before = share
            seen = drawn[:, epoch, : max(2, round(share * N))]
            value, se = seen.mean(axis=1), seen.std(axis=1, ddof=1) / math.sqrt(seen.shape[1])
            reading &= ~(value > rule.asked(epoch + 1, share) * se)
        open_ &= reading
    return float(1.0 - open_.mean()), float(read.mean())


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    populations = {
        f"{blueprint} in {slot} of {task}": recorded(task, slot, blueprint) for task, slot, blueprint in SEEDS
    }
    for name, population in populations.items():
        mean, spread = population.mean(axis=1), population.std(axis=1)
        skew = float((((population[0] - mean[0]) / spread[0]) ** 3).mean())
        related = float(np.corrcoef(population[0], population[1])[0, 1])
        print(f"{name}: {population.shape[1]} examples, skewness {skew:.1f}, epochs correlated by {related:.2f}")
    print(f"| rule | kept though worth nothing, % | {' | '.join(f'{e:g}' for e in EFFECTS)} | passes at 8 |")
    print("|---|--:|" + "--:|" * (len(EFFECTS) + 1))
    for name, rule in RULES.items():
        nothing = [kept(rule, each, 0.0, 20_000)[0] for each in populations.values()]
        cells = [" / ".join(f"{100 * each:.1f}" for each in nothing)]
        cells += [
            f"{100 * np.mean([kept(rule, each, effect, 4_000)[0] for each in populations.values()]):.0f}"
            for effect in EFFECTS
        ]
        cells.append(f"{np.mean([kept(rule, each, EFFECTS[-1], 4_000)[1] for each in populations.values()]):.2f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
