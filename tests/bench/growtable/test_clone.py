"""What a policy does under a table's masks, learnt for a world without them."""

from __future__ import annotations

import torch
from made_up_tables import A, B, made_up_host

from esper.bench.growtable.clone import ClonePlan, open_up
from esper.bench.growtable.host import SPACE, TableHost
from esper.bench.growtable.learn import LearnPlan, network_player
from esper.bench.growtable.score import walk
from esper.leyline import Op, RowSpec
from esper.simic.vectorized import fresh_network
from esper.tamiyo.masks import availability
from esper.tamiyo.network import GrowthNetwork
from esper.tamiyo.policies.learned import LearnedPolicy


def _asked_for_what_is_held(network: GrowthNetwork, host: TableHost) -> float:
    """Share of the epochs of a greedy episode in which an action that is chosen among all is one of the table's."""
    policy = LearnedPolicy(network, greedy=True)
    policy.reset([RowSpec(0, 0, 0, host.world.epochs)])
    node, held = host.root, 0
    while not node.ended:
        (decision,) = policy.decide([node.view])
        held += decision.action in node.held
        node = node.held.get(decision.action) or next(iter(node.held.values()))
    return held / host.world.epochs


def test_a_pupil_does_of_itself_what_masks_made_its_teacher_do() -> None:
    host = made_up_host(0, sequences=((A, B),))
    node = host.root.after(A.action)[1]
    assert availability(node.view, SPACE).op[Op.PRUNE] and not node.availability.op[Op.PRUNE], "it has to be learnt"
    teacher = fresh_network(0, cells=8)
    before = {name: part.clone() for name, part in teacher.state_dict().items()}
    plan = LearnPlan(rows=4, steps=12, nameless=0.0)
    opened = open_up(teacher, [host], plan, ClonePlan(rollouts=2, passes=40, minibatches=1, learning_rate=1e-2))
    assert _asked_for_what_is_held(teacher, host) < 0.5 < 0.9 < _asked_for_what_is_held(opened.network, host)
    assert all(torch.equal(part, before[name]) for name, part in teacher.state_dict().items())
    assert opened.steps == 2 * 4 * 12 and opened.macs > 40 * opened.steps * 1000
    assert walk(host, network_player(opened.network)(host, 0)).sequences == ((A, B),)
