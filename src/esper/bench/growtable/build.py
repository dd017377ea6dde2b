"""Building a table: which hosts play which sequences, over processes, resumed where it was left."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import torch

from esper.bench.growtable.parts import Parts, PlayedSequence
from esper.bench.growtable.play import play
from esper.bench.growtable.sequences import Choices, pairs, singles
from esper.bench.growtable.worlds import WORLDS, WorldSpec, chosen
from esper.leyline import UsageError


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What is to be tabulated. The defaults are the whole plan, some hours on two cores."""

    worlds: tuple[str, ...] = tuple(WORLDS)
    seeds: int = 6
    """Hosts per world that play the single choices."""
    singles: int | None = None
    """Single choices per world, of a fixed order; ``None`` for all."""
    pairs: int = 400
    """Pairs per world."""
    pair_seeds: int = 4
    """Hosts per world that play the pairs."""

    def __post_init__(self) -> None:
        for name, least in (("seeds", 2), ("pairs", 0), ("pair_seeds", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if self.singles is not None and self.singles < 1:
            raise UsageError(f"singles is {self.singles}; it must be 1 or more")


@dataclass(frozen=True, slots=True)
class Unit:
    """Sequences that begin at one time on one host, and play together."""

    world: WorldSpec
    number: int
    wanted: tuple[Choices, ...]


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """After a unit: sequences done of all that are planned, and the seconds that the rest will take at this pace."""

    unit: Unit
    done: int
    of: int
    remaining_seconds: float


def wanted(plan: BuildPlan, world: WorldSpec, number: int) -> list[Choices]:
    """What host ``number`` of a world is to play."""
    alone = singles(world, plan.singles)
    both = pairs(world, plan.pairs, alone) if number < plan.pair_seeds else []
    return [(), *alone, *both]


_CHUNK: Final = 24
"""Most sequences of a unit: few are lost when it is interrupted, and what they share is played again for each unit."""


def units(plan: BuildPlan, parts: Parts) -> Iterator[Unit]:
    """What is still to be played: host by host through all worlds, so that every world is begun early."""
    for number in range(plan.seeds):
        for world in chosen(plan.worlds):
            missing = set(wanted(plan, world, number)) - parts.done(world, number)
            # the host that never grows is the trunk of every unit: the first one brings it in
            trunk: tuple[Choices, ...] = ((),) if () in missing else ()
            ordered = sorted(missing - {()}, key=lambda choices: (choices[0].epoch, choices))
            for _, group in groupby(ordered, key=lambda choices: choices[0].epoch):
                rest = list(group)
                while rest:
                    yield Unit(world, number, (*trunk, *rest[:_CHUNK]))
                    trunk, rest = (), rest[_CHUNK:]
            if trunk:
                yield Unit(world, number, trunk)


def planned(plan: BuildPlan, parts: Parts) -> Iterator[PlayedSequence]:
    """What was played on the hosts that have played all that the plan wants of them, in a fixed order."""
    for world in chosen(plan.worlds):
        for number in range(plan.seeds):
            asked = set(wanted(plan, world, number))
            for choices in sorted(asked) if asked <= parts.done(world, number) else ():
                yield parts.read(world, number, choices)


def build(plan: BuildPlan, root: Path, workers: int, tell: Callable[[BuildProgress], None]) -> None:
    """Play what is missing in ``root`` with ``workers`` processes. Interrupted and called again, it goes on."""
    if workers < 1:
        raise UsageError(f"workers is {workers}; it must be 1 or more")
    parts = Parts(root)
    work = list(units(plan, parts))
    total = sum(len(wanted(plan, world, number)) for world in chosen(plan.worlds) for number in range(plan.seeds))
    done = before = total - sum(len(unit.wanted) for unit in work)
    began = time.perf_counter()
    for unit in _played(work, root, workers):
        done += len(unit.wanted)
        pace = (time.perf_counter() - began) / (done - before)
        tell(BuildProgress(unit, done, total, pace * (total - done)))


def _played(work: Sequence[Unit], root: Path, workers: int) -> Iterator[Unit]:
    tasks = [(unit, root) for unit in work]
    if workers == 1:
        yield from map(_play_unit, tasks)
        return
    # a forked process would inherit torch's threads in whatever state they are
    with multiprocessing.get_context("spawn").Pool(min(workers, max(1, len(work)))) as pool:
        yield from pool.imap_unordered(_play_unit, tasks)


def _play_unit(task: tuple[Unit, Path]) -> Unit:
    unit, root = task
    torch.set_num_threads(1)
    parts = Parts(root)
    for choices, record in play(unit.world, unit.number, unit.wanted):
        parts.write(PlayedSequence(unit.world, unit.number, choices, record))
    return unit
