"""Doing the same with every action open: what a policy does in the table, learnt under the masks of a real run.

A table masks all that nobody played, so what was learnt in it says nothing about asking for a gate or pruning. Here the
choices that the policy makes under the table's masks are learnt again by maximum likelihood (behavioural cloning) under
the masks that the same states have in ``esper/Grow-v0``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esper.bench.growtable.host import SPACE, TableHost
from esper.bench.growtable.learn import Learned, LearnPlan, TableEnvironments
from esper.simic.buffer import Rollout
from esper.simic.collect import Collector
from esper.tamiyo.batch import mask_tables
from esper.tamiyo.distribution import FactoredDistribution
from esper.tamiyo.network import GrowthNetwork
from esper.tamiyo.recurrent import acting_macs
from esper.tolaria import ledger
from esper.tolaria.rng import derive


@dataclass(frozen=True, slots=True)
class ClonePlan:
    """How long to imitate."""

    rollouts: int = 10
    passes: int = 30
    """Over each rollout."""
    learning_rate: float = 1e-3
    minibatches: int = 4
    max_grad_norm: float = 0.5


def open_up(network: GrowthNetwork, hosts: Sequence[TableHost], plan: LearnPlan, clone: ClonePlan) -> Learned:
    """A copy of ``network`` that does with every action open what ``network`` does under the table's masks.

    Gates are asked for when they pass, and nothing is pruned: so do the table's sequences.
    """
    teacher, pupil = network, copy.deepcopy(network)
    environments = TableEnvironments(hosts, network.config, plan)
    collector = Collector(environments, teacher, 1.0, derive(plan.seed, "teacher's draws"))
    optimizer = torch.optim.Adam(pupil.parameters(), lr=clone.learning_rate)
    generator = torch.Generator().manual_seed(derive(plan.seed, "cloning"))
    for number in range(clone.rollouts):
        for group in optimizer.param_groups:
            group["lr"] = clone.learning_rate * (1 - 0.9 * number / clone.rollouts)
        rollout = _opened(collector, environments, plan.steps)
        for _ in range(clone.passes):
            for rows in torch.randperm(plan.rows, generator=generator).chunk(clone.minibatches):
                _imitate(pupil, rollout.select(rows), optimizer, clone.max_grad_norm)
    steps = clone.rollouts * plan.steps * plan.rows
    each = acting_macs(network, collector.seen.observation)
    learning = clone.passes * (each + ledger.backward(each))
    return Learned(pupil, steps, steps * (each + learning))


def _opened(collector: Collector, environments: TableEnvironments, steps: int) -> Rollout:
    """What is done under the table's masks, with the masks that the same states have in real runs."""
    masks: list[tuple[Tensor, ...]] = []

    def look() -> None:
        masks.append(mask_tables([node.view for node in environments.world.nodes], SPACE))

    look()
    collector.on_step = look
    rollout, _ = collector.collect(steps)
    return replace(rollout, masks=tuple(torch.stack(tables) for tables in zip(*masks, strict=True)))


def _imitate(pupil: GrowthNetwork, rollout: Rollout, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> None:
    output = pupil.unroll(rollout.observation, rollout.state, rollout.starts)
    distribution = FactoredDistribution(rollout.heads, output.logits, [mask.flatten(0, 1) for mask in rollout.masks])
    surprise = -distribution.evaluate(rollout.actions.flatten(0, 1)).log_prob.mean()
    optimizer.zero_grad()
    surprise.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(pupil.parameters(), max_grad_norm)
    optimizer.step()
