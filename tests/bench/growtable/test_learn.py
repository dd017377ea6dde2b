"""Learning in the table: rows that start anew where they end, and a policy that finds what is best."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_up_tables import FEW, A, B, made_up_host

from esper.bench.growtable.host import SPACE
from esper.bench.growtable.learn import LearnPlan, TableEnvironments, learn, network_player
from esper.bench.growtable.score import walk
from esper.bench.growtable.sequences import Choices
from esper.bench.growtable.worlds import WORLDS
from esper.leyline import UsageError
from esper.simic.vectorized import fresh_network
from esper.tamiyo.masks import to_indices
from esper.tamiyo.policies.learned import save_policy

SHORT = WORLDS["digits-wide-short"]


def test_rows_end_when_their_worlds_do_and_start_again_at_once() -> None:
    hosts = [made_up_host(0), made_up_host(1, sequences=((), (A,)), world=SHORT)]
    config = fresh_network(0).config
    environments = TableEnvironments(hosts, config, LearnPlan(rows=8))
    seen = environments.reset(3)
    environments.heads.check_masks(seen.masks)
    lengths = [node.host.world.epochs for node in environments.world.nodes]
    assert set(lengths) == {9, 12}, "both hosts were drawn"
    waiting = torch.tensor([to_indices(SPACE, A.action)] * 8)
    for step in range(1, 13):
        outcome = environments.step(waiting)
        environments.heads.check_masks(outcome.seen.masks)
        first = [length == step for length in lengths]
        assert [bool(ended) for ended in outcome.ended][: len(first)] == [
            a or b for a, b in zip(first, outcome.ended.tolist(), strict=True)
        ]
        for row, ended in enumerate(outcome.ended.tolist()):
            assert (environments.world.nodes[row].epoch == 0) == ended
        assert (outcome.final is not None) == bool(outcome.ended.any())
    assert {node.epoch for node in environments.world.nodes} <= {0, 3}


def test_an_untrained_network_plays_what_the_table_holds_and_the_same_each_time() -> None:
    host, network = made_up_host(0), fresh_network(0)
    for greedy in (True, False):
        player = network_player(network, greedy=greedy)
        ends = [walk(host, player(host, draw)).sequences for draw in (0, 0, 1, 2, 3, 4)]
        assert ends[0] == ends[1] and all(end[0] in FEW for end in ends)
        assert greedy == (len(set(ends)) == 1)


def test_plans_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="rows is 0"):
        LearnPlan(rows=0)


def test_the_same_seed_gives_a_policy_file_of_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        plan = LearnPlan(updates=1, rows=2, steps=3, minibatches=1, seed=seed)
        learned = learn([made_up_host(0)], plan, lambda update, mean_return, entropy: None)
        save_policy(tmp_path / name, learned.network, {"seed": 3}, nurture=True)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1] != written[2]


@pytest.mark.slow
def test_it_learns_what_is_best() -> None:
    def worth(choices: Choices, number: int) -> tuple[float, float]:
        score = 80.0 if choices == (A, B) else 50.0 - 5 * len(choices)
        return score, score

    host = made_up_host(0, worth=worth)
    told: list[float] = []
    plan = LearnPlan(updates=40, rows=16, steps=12, minibatches=2)
    learned = learn([host], plan, lambda update, mean_return, entropy: told.append(mean_return))
    assert walk(host, network_player(learned.network)(host, 0)).sequences == ((A, B),)
    assert learned.steps == 40 * 16 * 12 and learned.macs > learned.steps * 1000 and told[-1] > told[0]
