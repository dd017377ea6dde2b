"""The one episode loop: whoever decides, an episode is reset, decided, stepped and finished in the same way."""

from __future__ import annotations

import pytest
from tiny import tiny

from esper.leyline import Blend, EnvSpec, FactoredAction, Op
from esper.run.assembly import build_executor, workload
from esper.run.config import RunConfig
from esper.run.play import Episode, SideBySide
from esper.tamiyo.policies import Entry, SchedulePolicy, StaticPolicy
from esper.tolaria.executor import Executor

CONFIG = RunConfig(max_epochs=4, device="cpu")
SPECS = [EnvSpec(i, 0, 5, 4, arm=str(i)) for i in range(2)]


@pytest.fixture
def executor() -> Executor:
    return build_executor(workload(tiny(8), CONFIG), CONFIG, lambda event: None, test=False)


def test_the_loop_asks_before_every_epoch_and_stops_where_it_is_told_to(executor: Executor) -> None:
    policy, at = StaticPolicy(), []
    episode = Episode.begin(executor, SPECS, policy)
    told = [epoch.reports[0].view.epoch for epoch in episode.epochs(policy, until=3, before=lambda: at.append(1))]
    assert told == [1, 2, 3] and len(at) == 3 and not episode.over
    assert [len(epoch.decisions) for epoch in episode.epochs(policy)] == [2]
    assert episode.over and len(episode.finish(policy)) == 2


def test_several_policies_side_by_side_decide_each_for_its_own_row(executor: Executor) -> None:
    task = tiny(8)
    germinate = FactoredAction(Op.GERMINATE, next(iter(task.sites)), task.blueprints[0], Blend.LINEAR, 1.0, 1)
    everyone = SideBySide([StaticPolicy(), SchedulePolicy([Entry(1, germinate)])])
    episode = Episode.begin(executor, SPECS, everyone)
    static, grown = [epoch.reports for epoch in episode.epochs(everyone, until=2)][-1]
    assert not any(slot.live for slot in static.view.slots)
    assert [slot.slot_id for slot in grown.view.slots if slot.live] == [germinate.slot]
