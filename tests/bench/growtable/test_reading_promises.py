"""The policy that grows where an audition promised most, and the test that says whether it reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_up_tables import DIGITS, made_up_host

from esper.bench.growtable.host import TableHost
from esper.bench.growtable.reading import ALL, PROMISES, readings
from esper.bench.growtable.score import by_views, walk
from esper.bench.growtable.sequences import Choice, Choices
from esper.bench.growtable.worlds import BLUEPRINTS, SLOTS
from esper.leyline import Op, UsageError
from esper.tamiyo.policies import PromisePolicy

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
