from __future__ import annotations

import dataclasses

import pytest

from esper.leyline import UsageError
from esper.nissa.profiles import PROFILES, TelemetryConfig


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_found_by_name(name: str) -> None:
    assert TelemetryConfig.from_profile(name) == PROFILES[name]


def test_each_profile_measures_all_that_the_one_before_does() -> None:
    ordered = [PROFILES[name] for name in ("minimal", "standard", "diagnostic", "research")]
    for less, more in zip(ordered, ordered[1:], strict=False):
        assert more.history > less.history or more.layers > less.layers
        for field in dataclasses.fields(TelemetryConfig):
            before, after = getattr(less, field.name), getattr(more, field.name)
            assert after <= before if field.name == "stride" else after >= before, field.name


def test_an_unknown_profile_gets_a_hint() -> None:
    with pytest.raises(UsageError, match="unknown diagnostics profile 'diagnostics'; did you mean 'diagnostic'"):
        TelemetryConfig.from_profile("diagnostics")
