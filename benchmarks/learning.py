"""What each choice of the learner is worth in GrowTable: one thing is changed at a time.

    uv run python benchmarks/learning.py --run learning.jsonl --into docs/growtable.md      # resumable

Every variant learns in the training worlds from a fresh network, several times. Regret is in the table, with the
learner's masks, pooled over worlds (``src/esper/bench/growtable/score.py``): of the worlds that it learned in, by
which a choice is made, and of held-out ones.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, Final

import torch
from faults import shown

from esper.bench.growtable.learn import LearnPlan, learn, network_player
from esper.bench.growtable.score import line, norms, played
from esper.bench.growtable.table import STORED, load_table
from esper.bench.growtable.worlds import HELD_OUT, TRAINING
from esper.bench.report import into_page
from esper.karn.stats import interval
from esper.simic.rewards import RewardConfig

BASE: Final = LearnPlan()

VARIANTS: Final = MappingProxyType(
    {
        "base": BASE,
        "reward simplified": replace(BASE, reward=RewardConfig("simplified")),
        "reward sparse": replace(BASE, reward=RewardConfig("sparse")),
        "reward shaped": replace(BASE, reward=RewardConfig("shaped")),
        "no memory": replace(BASE, sizes={"cells": 0}),
        "16 cells": replace(BASE, sizes={"cells": 16}),
        "half of everything": replace(BASE, sizes={"token": 16, "features": 32, "cells": 32}),
        "twice everything": replace(BASE, sizes={"token": 64, "features": 128, "cells": 128}),
        "every blueprint named": replace(BASE, nameless=0.0),
        "no blueprint named": replace(BASE, nameless=1.0),
        "twice the updates": replace(BASE, updates=120),
        "a third of the learning rate": replace(BASE, learning_rate=3e-4),
    }
)


def play(asked: tuple[str, int, Path]) -> dict[str, Any]:
    """Learn once, and score."""
    name, seed, path = asked
    torch.set_num_threads(1)
    table = load_table(path).whole
    training = [world for world in TRAINING if world in table.worlds]
    held_out = [world for world in HELD_OUT if world in table.worlds]
    hosts = [host for world in training for host in table.of(world)]
    plan = replace(VARIANTS[name], seed=seed)
    learned = learn(hosts, plan, lambda update, mean_return, entropy: None)
    player = network_player(learned.network, nameless=plan.nameless == 1.0)

    def regret(worlds: Sequence[str]) -> float:
        found = line(name, played(table, worlds, player), norms(table, worlds), None).regret
        assert found is not None
        return found.mean

    parameters = sum(part.numel() for part in learned.network.parameters())
    return {
        "variant": name,
        "seed": seed,
        "table": table.about,
        "training": regret(training),
        "held_out": regret(held_out),
        "parameters": parameters,
        "macs": learned.macs,
    }


def rows(runs: Mapping[tuple[str, int], Mapping[str, Any]], seeds: int) -> Iterator[str]:
    """One line a variant."""
    yield "| learner | parameters | MACs to learn | regret, training worlds | held-out worlds | less than base there |"
    yield "|---|---:|---:|---|---|---|"
    for name in VARIANTS:
        mine, base = ([runs[each, seed] for seed in range(seeds)] for each in (name, "base"))
        less = interval([b["held_out"] - m["held_out"] for m, b in zip(mine, base, strict=True)])
        yield (
            f"| {name} | {mine[0]['parameters']:,} | {fmean(m['macs'] for m in mine):.2e} | "
            f"{shown(interval([m['training'] for m in mine]))} | {shown(interval([m['held_out'] for m in mine]))} | "
            f"{'' if name == 'base' else shown(less)} |"
        )


def main() -> None:
    """Learn what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--table", type=Path, default=STORED)
    parser.add_argument(
        "--run", type=Path, required=True, help="JSONL of finished runs; those of other tables are left"
    )
    parser.add_argument("--into", type=Path, help="write the result between the marks of this page, too")
    given = parser.parse_args()
    known = [json.loads(text) for text in given.run.read_text().splitlines()] if given.run.exists() else []
    about = json.loads(json.dumps(load_table(given.table).about))
    runs = {(run["variant"], run["seed"]): run for run in known if run["table"] == about}
    missing = [
        (name, seed, given.table) for seed in range(given.seeds) for name in VARIANTS if (name, seed) not in runs
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.workers, mp_context=context) as pool, given.run.open("a") as file:
        for result in pool.map(play, missing):
            runs[result["variant"], result["seed"]] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(f"{result['variant']}, seed {result['seed']}: {result['held_out']:.2f}", flush=True)
    text = "\n".join(rows(runs, given.seeds))
    print(text)
    if given.into is not None:
        into_page(given.into, "growtable-learning", f"{given.seeds} runs each.\n\n{text}")


if __name__ == "__main__":
    main()
