from __future__ import annotations

import pytest

from esper.leyline import Delivery, TelemetryEventType, UsageError
from esper.nissa.hub import DELIVERY
from esper.nissa.levels import Level, suppressed


def test_each_level_tells_more_than_the_one_before() -> None:
    delivery = {**DELIVERY, TelemetryEventType.COMPUTE_SPENT: Delivery.SAMPLED}
    silent = [suppressed(level, False, delivery) for level in Level]
    assert all(after < before for before, after in zip(silent, silent[1:], strict=False))
    assert silent[0] == set(TelemetryEventType) - {TelemetryEventType.TELEMETRY_LEVEL_SET} and not silent[-1]


@pytest.mark.parametrize("level", Level)
def test_lifecycle_only_is_the_same_at_every_level(level: Level) -> None:
    told = set(DELIVERY) - suppressed(level, True, DELIVERY)
    assert told == {kind for kind, how in DELIVERY.items() if how is Delivery.MUST_KEEP}


def test_an_unknown_level_gets_a_hint() -> None:
    assert Level.parse("debug") is Level.DEBUG
    with pytest.raises(UsageError, match="did you mean 'normal'"):
        Level.parse("norml")
