"""Learners of other packages train on the table unchanged, and those that are given the masks keep to them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import clients


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", clients.CLIENTS)
def test_a_client_trains_and_keeps_to_the_masks_that_it_is_given(name: str) -> None:
    client = clients.CLIENTS[name]
    if not clients.installed(client):
        pytest.skip(f"{client.distribution} is not installed here; .ci/clients runs it")
    trained = clients.run(client, 256)
    assert 200 <= trained.steps <= 400
    assert len(trained.returns) >= trained.steps // 12 - client.rows and np.isfinite(trained.returns).all()
    # a client without masks acts illegally, so that the count can fail
    assert trained.illegal == 0 if client.masked else trained.illegal > 50


def test_rows_of_the_page_stay_where_a_client_was_not_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"| ours of old | x |\n{clients.HEADER}\n| torchrl | kept |\n| sb3-ppo | 1 |\n", encoding="utf-8")
    assert clients.rows_of(page) == {"torchrl": "| torchrl | kept |", "sb3-ppo": "| sb3-ppo | 1 |"}
    done = clients.Trained(steps=10, illegal=3, returns=[1.0, 2.0], seconds=2.0)
    line = clients.row("sb3-ppo", clients.CLIENTS["sb3-ppo"], done)
    assert line.startswith("| sb3-ppo | stable-baselines3 2.") and line.endswith("| takes none | 10 | 3 | 1.5 | 5 |")
