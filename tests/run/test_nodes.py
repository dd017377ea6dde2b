"""Two network namespaces of this machine as two nodes, and the link between them cut in the midst of an epoch."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from esper.tolaria.ranks import RankLost
from ranked_loop import committed, grown
from ranks import on_ranks

NODES = (f"esper-{os.getpid()}-a", f"esper-{os.getpid()}-b")
LINKS = (f"e{os.getpid()}a", f"e{os.getpid()}b")
CLONE_NEWNET = 0x40000000

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_figures")]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def link(state: str) -> None:
    """Of the second node, ``up`` or ``down``."""
    ip("-n", NODES[1], "link", "set", LINKS[1], state)


@pytest.fixture
def nodes() -> Iterator[None]:
    made = []
    try:
        try:
            for node in NODES:
                ip("netns", "add", node)
                made.append(node)
            ip("link", "add", LINKS[0], "type", "veth", "peer", "name", LINKS[1])
            for number, (node, end) in enumerate(zip(NODES, LINKS, strict=True), 1):
                ip("link", "set", end, "netns", node)
                ip("-n", node, "addr", "add", f"10.77.0.{number}/24", "dev", end)
                ip("-n", node, "link", "set", "lo", "up")
                ip("-n", node, "link", "set", end, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield
    finally:
        for node in made:
            ip("netns", "del", node)


def enter(rank: int) -> None:
    """Be on the rank's node from now on."""
    node = os.open(f"/var/run/netns/{NODES[rank]}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(node, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    os.close(node)
    os.environ["GLOO_SOCKET_IFNAME"] = LINKS[rank]


def test_a_link_that_is_cut_ends_the_run_and_it_goes_on(nodes: None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    whole = on_ranks(2, tmp_path / "a", lambda rank: grown(tmp_path / "whole", rank, 2), enter=enter)
    assert all(isinstance(each, dict) for each in whole), whole

    def cut(rank: int) -> object:
        return grown(run, rank, 2, die_at=26 if rank == 0 else None, by=lambda: link("down"))

    lost = on_ranks(2, tmp_path / "b", cut, timeout=10.0, enter=enter)
    for rank, error in enumerate(lost):
        assert isinstance(error, RankLost), error
        told = str(error)
        # one machine in truth: who gives up second may see that the other's process is gone
        assert re.match(rf"rank {rank} of 2 has lost rank {1 - rank}(, whose process \d+ is gone)? \(", told), told
        assert len(told.splitlines()) == 1
        assert f"grow(..., resume={str(run)!r}) goes on from its last checkpoint, on as many ranks or others" in told
    link("up")
    on = on_ranks(2, tmp_path / "c", lambda rank: grown(run, rank, 2, resume=True), enter=enter)
    assert all(isinstance(each, dict) for each in on), on
    for name, weight in whole[0]["model"].items():
        assert all(torch.equal(weight, each["model"][name]) for each in (whole[1], *on)), name
    assert committed(run) == committed(tmp_path / "whole")
