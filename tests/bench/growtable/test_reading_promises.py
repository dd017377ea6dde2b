"""The policy that grows where an audition promised most, and the test that says whether it reads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from made_up_tables import DIGITS, made_up_host

from esper.bench.growtable.host import TableHost
from esper.bench.growtable.reading import ALL, PROMISES, readings
from esper.bench.growtable.score import by_views, walk
from esper.bench.growtable.sequences import Choice, Choices
from esper.bench.growtable.worlds import BLUEPRINTS, SLOTS
from esper.leyline import WAIT, EnvView, Op, UsageError
from esper.tamiyo.policies import HeuristicPolicy, PromisePolicy

HEARD = replace(DIGITS, audition="conv5", times=(1,), max_seeds=1)
PLACES: tuple[Choices, ...] = tuple((Choice(1, slot, "conv5"),) for slot in SLOTS)


def promising(number: int, best: int) -> TableHost:
    """A host on which a seed pays in slot ``best`` alone, and an audition says so after the first epoch."""

    def worth(choices: Choices, number: int) -> tuple[float, float]:
        score = 50.0 + 20.0 * (choices == PLACES[best])
        return score, score

    host = made_up_host(number, ((), *PLACES), worth, HEARD)
    conv5 = BLUEPRINTS.index("conv5")
    for record in host.records.values():
        for i in range(len(SLOTS)):
            record.steps["promise"][1:, i, conv5] = 0.5 if i == best else 0.1 * i
            record.steps["promise_steps"][1:, i, conv5] = 10
            record.steps["promise_age"][1:, i, conv5] = np.arange(HEARD.epochs)
    return host


class _Hosts:
    """As much of a table as the reading test asks for."""

    def __init__(self) -> None:
        self.hosts = [promising(n, n % 3) for n in range(6)]

    def of(self, world: str) -> list[TableHost]:
        return self.hosts


def test_it_auditions_first_and_then_grows_where_most_is_promised() -> None:
    policy = PromisePolicy()
    for best in range(3):
        host = promising(best, best)
        decision = policy.decide([host.root.view])[0]
        assert decision.action.op is Op.WAIT
        assert decision.audition == tuple((slot, "conv5") for slot in SLOTS)
        assert walk(host, by_views(policy)(host, 0)).sequences == (PLACES[best],)
    silent = made_up_host(0, ((), *PLACES), world=replace(HEARD, audition=None))
    with pytest.raises(
        UsageError, match="'promise' asks for an audition on host 0 of digits, after 0 epochs"
    ) as refused:
        walk(silent, by_views(policy)(silent, 0))
    assert "legal: a table of worlds with an audition" in str(refused.value)


def _promising(*values: float, **changes: object) -> EnvView:
    """A view after one epoch, in which slot ``i`` promises ``values[i]`` for its largest blueprint."""
    view = promising(0, 0).root.after(WAIT)[1].view
    slots = tuple(
        replace(slot, promise={"conv5": replace(slot.promise["conv5"], value=value)})
        for slot, value in zip(view.slots, values, strict=True)
    )
    return replace(view, slots=slots, **changes)  # type: ignore[arg-type]


def _grown(view: EnvView) -> tuple[str | None, str | None]:
    action = PromisePolicy().decide([view])[0].action
    return action.slot, action.blueprint


def test_what_is_no_number_or_promises_nothing_gets_no_seed() -> None:
    assert _grown(_promising(0.1, 0.9, 0.3)) == ("block1", "conv5")
    assert _grown(_promising(math.nan, 0.3, 0.9)) == ("block2", "conv5")
    assert _grown(_promising(math.inf, 0.3, -0.9)) == ("block1", "conv5")
    for nothing in (-1.0, 0.0, math.nan, math.inf):
        assert _grown(_promising(nothing, nothing, nothing)) == (None, None)


def test_what_was_pruned_goes_behind_what_was_not_as_the_heuristic_has_it() -> None:
    view = _promising(0.1, 0.2, 0.9, pruned={"conv5": 3})
    rules = HeuristicPolicy().decide([view])[0].action
    assert rules.op is Op.GERMINATE and rules.blueprint != "conv5"
    assert _grown(view) == ("block2", rules.blueprint)
    assert _grown(replace(view, pruned=dict.fromkeys(BLUEPRINTS, 1))) == (None, None), "learning has not stalled"


def test_a_promise_is_seen_as_it_was_recorded() -> None:
    host = promising(0, 2)
    view = host.root.after(host.root.default)[1].view
    found = view.slots[2].promise["conv5"]
    assert (found.value, found.steps, found.macs, found.epoch) == (0.5, 10, 0, 1)
    assert not host.root.view.slots[2].promise


def test_the_reading_test_finds_what_it_reads_and_nothing_else() -> None:
    found = readings(_Hosts(), ["digits"], by_views(PromisePolicy()), count=3)  # type: ignore[arg-type]
    lost = {(each.group, each.scope): each for each in found}
    for name in (PROMISES, ALL):
        assert lost[name, "any host"].reads and lost[name, "any host"].lost.mean > 5
    others = [each for (group, _), each in lost.items() if group not in (PROMISES, ALL)]
    assert len(others) == 6 and all(each.changed == 0 for each in others)
