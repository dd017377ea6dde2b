"""Playing a world's sequences for the table, each only from the epoch in which it parts from its parent.

Two sequences that have done the same so far are in the same state, bit for bit (resume is exact), so the trunk is
played once, and a sequence starts from a copy of the state in which it differs. All that start together are rows of one
executor. A schedule decides; it brings what it grew through its gates on evidence, as in any run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from esper.bench.growtable.record import Ending, Record, Row, row_of, stacked
from esper.bench.growtable.sequences import Choices
from esper.bench.growtable.worlds import SLOTS, WorldSpec, task_of
from esper.leyline import Decision, EnvSpec, EnvView, Policy
from esper.run.assembly import build_paid, workload
from esper.run.config import RunConfig
from esper.run.play import Episode, SideBySide
from esper.tamiyo.policies import SchedulePolicy
from esper.tolaria.executor import EpisodeResult, Executor
from esper.tolaria.saved import SavedEnvs


@dataclass(frozen=True, slots=True)
class Fork:
    """One row as it was between two epochs, with the policy's memory and what was recorded so far."""

    row: SavedEnvs
    policy: dict[str, Any]
    told: tuple[Row, ...]


Keep = dict[Choices, set[int]]
"""Which rows are wanted again at which epochs."""


def executor_of(world: WorldSpec, *, test: bool = True) -> Executor:
    """A silent executor of the world, as an environment of ``esper/Grow-v0`` has it."""
    config = RunConfig(device="cpu")
    return build_paid(workload(task_of(world), config), config, lambda event: None, test=test)


def play(world: WorldSpec, number: int, wanted: Sequence[Choices]) -> Iterator[tuple[Choices, Record]]:
    """Play ``wanted`` on host ``number``, shared beginnings once; yields each sequence as it is done.

    What ``wanted`` needs to start from, and is not wanted itself, is played as far as it is needed.
    """
    table = _HostPlayer(world, number, frozenset(wanted))
    singles: set[Choices] = {choices for choices in wanted if len(choices) == 1}
    pairs = sorted(choices for choices in wanted if len(choices) == 2)
    later = [pair for pair in pairs if _branch(pair)[0]]
    together = [pair for pair in pairs if not _branch(pair)[0]]
    singles |= {_branch(pair)[0] for pair in later}
    first = sorted([*singles, *together], key=lambda choices: choices[0].epoch)
    yield from table.begin({choices[0].epoch for choices in first})
    for epoch, group in groupby(first, key=lambda choices: choices[0].epoch):
        batch = list(group)
        children = [pair for pair in later if _branch(pair)[0] in batch]
        keep: Keep = {pair[:1]: _times(children, pair[:1]) for pair in children}
        whole = [choices for choices in batch if choices in table.wanted]
        for rows in (whole, [choices for choices in batch if choices not in table.wanted]):
            if rows:
                yield from table.branch(rows, epoch, keep)
        children.sort(key=lambda pair: pair[1].epoch)
        for later_epoch, siblings in groupby(children, key=lambda pair: pair[1].epoch):
            yield from table.branch(list(siblings), later_epoch, {})
        table.forget(batch)


def play_freely(world: WorldSpec, numbers: Sequence[int], policy: Policy, *, test: bool) -> list[EpisodeResult]:
    """Let ``policy`` play hosts ``numbers`` of a world for real, free of what was tabulated; ``test``: whether the test
    split is looked at in the end.
    """
    executor = executor_of(world, test=test)
    specs = [EnvSpec(i, 0, world.seed(number), world.epochs) for i, number in enumerate(numbers)]
    episode = Episode.begin(executor, specs, policy)
    for _ in episode.epochs(policy):
        pass
    return episode.finish()


def _branch(choices: Choices) -> tuple[Choices, int]:
    """What a sequence starts from, and when; choices of one time start together."""
    epoch = choices[-1].epoch
    return tuple(choice for choice in choices if choice.epoch < epoch), epoch


def _times(children: Sequence[Choices], parent: Choices) -> set[int]:
    return {pair[1].epoch for pair in children if pair[:1] == parent}


class _Heard(SideBySide):
    """The policies' decisions; in the first epoch candidates learn behind the hosts, where the world wants that."""

    def __init__(self, policies: Sequence[Policy], world: WorldSpec) -> None:
        super().__init__(policies)
        self._candidates = () if world.audition is None else tuple((slot, world.audition) for slot in SLOTS)

    def decide(self, views: Sequence[EnvView]) -> list[Decision]:
        decided = super().decide(views)
        if not self._candidates or views[0].epoch:
            return decided
        return [replace(decision, audition=self._candidates) for decision in decided]


class _HostPlayer:
    """Host ``number`` of one world, its trunk and the states that others start from."""

    def __init__(self, world: WorldSpec, number: int, wanted: frozenset[Choices]) -> None:
        self.world, self.seed, self.wanted = world, world.seed(number), wanted
        self.executor = executor_of(world)
        self.start_metric = 0.0
        self._forks: dict[tuple[Choices, int], Fork] = {}

    def begin(self, epochs: set[int]) -> Iterator[tuple[Choices, Record]]:
        """The host that never grows; its states at ``epochs`` are kept."""
        policy = SchedulePolicy()
        (view,) = Episode.begin(self.executor, [self._spec(0)], policy).views
        self.start_metric = float(self.executor.engine.evaluate([0], [({},)]).metric[0, 0])
        yield from self._run([()], [policy], [[row_of(view, None)]], {(): epochs})

    def branch(self, batch: Sequence[Choices], epoch: int, keep: Keep) -> Iterator[tuple[Choices, Record]]:
        """Start all of ``batch`` from their parents' states at ``epoch``."""
        forks = [self._forks[_branch(choices)[0], epoch] for choices in batch]
        specs = [self._spec(i) for i in range(len(batch))]
        self.executor.load(SavedEnvs.join([fork.row for fork in forks], specs).state())
        policies = []
        for choices, fork, spec in zip(batch, forks, specs, strict=True):
            policy = SchedulePolicy([choice.entry for choice in choices])
            policy.reset([spec])
            known = len(_branch(choices)[0])
            (waiting,) = fork.policy["open"]
            policy.load({**fork.policy, "open": [[*waiting, *range(known, len(choices))]]})
            policies.append(policy)
        yield from self._run(batch, policies, [list(fork.told) for fork in forks], keep)

    def forget(self, batch: Sequence[Choices]) -> None:
        """Drop the states of ``batch``; nothing starts from them any more."""
        gone = set(batch)
        self._forks = {key: fork for key, fork in self._forks.items() if key[0] not in gone}

    def _spec(self, i: int) -> EnvSpec:
        return EnvSpec(env_id=i, episode=0, seed=self.seed, max_epochs=self.world.epochs)

    def _run(
        self, batch: Sequence[Choices], policies: Sequence[SchedulePolicy], told: list[list[Row]], keep: Keep
    ) -> Iterator[tuple[Choices, Record]]:
        """From the present epoch to the end, or as far as is kept where none of ``batch`` is wanted."""
        episode = Episode(self.executor)
        last = max((epoch for choices in batch for epoch in keep.get(choices, ())), default=0)
        until = last if self.wanted.isdisjoint(batch) else self.world.epochs
        decisions: Sequence[Decision] = ()
        for epoch in episode.epochs(
            _Heard(policies, self.world), until=until, before=lambda: self._keep(batch, policies, told, keep)
        ):
            decisions = epoch.decisions
            if episode.over:
                break
            for rows, report, decision in zip(told, epoch.reports, decisions, strict=True):
                rows.append(row_of(report.view, decision.action))
        if not episode.over:
            self._keep(batch, policies, told, keep)
            return
        for choices, rows, result, decision in zip(batch, told, episode.finish(), decisions, strict=True):
            rows.append(row_of(result.view, decision.action))
            yield choices, Record(stacked(rows), self.start_metric, _ending(result))

    def _keep(
        self, batch: Sequence[Choices], policies: Sequence[SchedulePolicy], told: list[list[Row]], keep: Keep
    ) -> None:
        epoch = self.executor.epoch
        wanted = [i for i, choices in enumerate(batch) if epoch in keep.get(choices, ())]
        for i in wanted:
            row = self.executor.take([i])
            self._forks[batch[i], epoch] = Fork(row, policies[i].state(), tuple(told[i]))


def _ending(result: EpisodeResult) -> Ending:
    if result.test_metric is None or result.test_loss is None:
        raise RuntimeError("a table's executor looks at the test split")
    return Ending(
        validation_metric=result.validation_metric,
        test_metric=result.test_metric,
        test_loss=result.test_loss,
        total_macs=result.total_macs,
        kept_parameters=result.view.seed_parameters,
    )
