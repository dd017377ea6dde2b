"""kill -9 at random moments of whole runs, in a save and in a resume too: nothing lost, invented or different."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from killing import Killer, Kind, prepare_server

import esper.scripts.heuristic
import esper.scripts.ppo
import esper.scripts.summary
from counting import Count

PPO = "train ppo --task tiny:tiny --rounds 2 --envs 2 --episode-length 5 --checkpoint-every 2 --quiet".split()
KINDS = {
    "heuristic": Kind(
        "train heuristic --task tiny:tiny --episodes 2 --max-epochs 7 --compare random --checkpoint-every 2"
        " --quiet".split()
    ),
    "ppo": Kind(PPO),
    "two workers": Kind([*PPO, "--workers", "2"], forked_workers=True),
}
KILLS = {"heuristic": 400, "ppo": 400, "two workers": 190}
KEYS = ("kills", "in a save", "in a resume", "torn tails", "lost", "invented", "different")


@pytest.fixture(scope="module")
def imported() -> None:
    """What children find imported."""
    import torch._dynamo  # noqa: F401

    assert esper.scripts.heuristic and esper.scripts.ppo and esper.scripts.summary
    prepare_server()


def count(kind: str, wanted: int, folder: Path) -> Count:
    """Kill until that many kills are counted. A case that finds anything fails the test."""
    counted = Count(f"kills of {kind} runs", wanted, KEYS)
    killer = Killer(KINDS[kind], folder)
    killer.play_whole()
    for number in counted.left():
        began = time.monotonic()
        found = killer.case(number)
        counted.add(time.monotonic() - began, **found, lost=0, invented=0, different=0)
    return counted


@pytest.mark.slow
@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize("kind", KINDS)
def test_kills(kind: str, tmp_path: Path) -> None:
    count(kind, KILLS[kind], tmp_path).finish()
