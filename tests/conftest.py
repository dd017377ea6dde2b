"""Settings that every test shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from journal_check import undeclared

settings.register_profile("quick", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("full", max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("ESPER_HYPOTHESIS", "quick"))

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small models are faster on one thread, and a fixed count keeps sums in one order."""
    import torch

    torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test draws does not depend on the tests before it in the same process."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def looked_through(tmp_path_factory: pytest.TempPathFactory) -> Iterator[set[Path]]:
    """Folders whose journals were read, or need not be; at the end all others are (several tests shared them)."""
    folders: set[Path] = set()
    yield folders
    _refuse(undeclared(tmp_path_factory.getbasetemp(), folders))


@pytest.fixture(autouse=True)
def journals_hold_what_is_declared(request: pytest.FixtureRequest, looked_through: set[Path]) -> Iterator[None]:
    """Every journal that a test makes, itself or by another process, is read with validation on.

    The product validates nothing when it emits, so an undeclared key would be met by the first reader that does.
    ``@pytest.mark.free_text``: a test writes on purpose what the contract does not have.
    """
    yield
    folder = request.node.funcargs.get("tmp_path")
    if folder is not None:
        looked_through.add(folder)
        if request.node.get_closest_marker("free_text") is None:
            _refuse(undeclared(folder))


def _refuse(faults: list[str]) -> None:
    if faults:
        shown = "\n".join(faults[:10])
        pytest.fail(
            f"{len(faults)} events in journals are not as the contract says, among them\n{shown}", pytrace=False
        )
