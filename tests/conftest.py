"""Settings that every test shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from journal_check import undeclared

settings.register_profile("quick", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("full", max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("ESPER_HYPOTHESIS", "quick"))

os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or "1"
THREADS = int(os.environ["OMP_NUM_THREADS"].partition(",")[0])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests marked ``signals``, what they start, and their fixtures are interrupted by SIGINT and SIGHUP wherever
    pytest was started: a shell lets a job in the background ignore the one, ``nohup`` the other, and that is inherited.
    """
    if item.get_closest_marker("signals") is None:
        return (yield)
    defaults: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    try:
        return (yield)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test draws, and in which order it sums, does not depend on the tests before it in the same process.

    One thread unless the environment says otherwise: small models are faster so.
    """
    import torch

    torch.set_num_threads(THREADS)
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


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of ``grow`` and ``Grower`` are written without figures, which take longer to draw than small runs do."""
    from functools import partial

    from esper import delivery
    from esper.karn.report import write_report

    monkeypatch.setattr(delivery, "write_report", partial(write_report, figures=False))
