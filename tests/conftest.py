"""Settings that every test shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("quick", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("full", max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("ESPER_HYPOTHESIS", "quick"))

os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or "1"
THREADS = int(os.environ["OMP_NUM_THREADS"].partition(",")[0])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests marked ``signals``, what they start, and their fixtures are interrupted by SIGINT wherever pytest was
    started: a shell lets a job in the background ignore it, and that is inherited."""
    if item.get_closest_marker("signals") is None:
        return (yield)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return (yield)
    finally:
        signal.signal(signal.SIGINT, before)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test draws, and in which order it sums, does not depend on the tests before it in the same process.

    One thread unless the environment says otherwise: small models are faster so.
    """
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
