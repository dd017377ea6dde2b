"""The search for a schedule finds the best there is, on seeds of its own."""

from __future__ import annotations

import pytest
from tiny import tiny

from esper.leyline import ActionSpace, UsageError
from esper.run.assembly import build_executor, workload
from esper.run.config import RunConfig
from esper.run.play import play_seeds
from esper.run.search import SearchPlan, search_schedule
from esper.tamiyo.policies import SchedulePolicy, StaticPolicy
from esper.tolaria.executor import Executor

CONFIG = RunConfig(max_epochs=8, device="cpu")


def executor() -> Executor:
    return build_executor(workload(tiny(8), CONFIG), CONFIG, lambda event: None, test=False)


def test_the_search_finds_a_schedule_that_is_no_worse_than_any_single() -> None:
    task = tiny(8)
    space = ActionSpace(tuple(task.sites), task.blueprints)
    plan = SearchPlan(seeds=(3,), max_epochs=8)
    found = search_schedule(executor, space, plan, higher_is_better=True)
    assert found.schedules >= 6 and found.macs > 0 and 1 <= len(found.entries) <= 2
    (static, again) = next(
        iter(play_seeds(executor(), {"static": StaticPolicy(), "found": SchedulePolicy(found.entries)}, [3], 8))
    )
    assert again.validation_metric == found.metric >= static.validation_metric
    assert static.test_metric is None


@pytest.mark.parametrize("wrong", [{"seeds": ()}, {"epochs": ()}, {"max_seeds": 0}])
def test_a_search_needs_something_to_search(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SearchPlan(**{"seeds": (1,), "max_epochs": 3, **wrong})  # type: ignore[arg-type]
