"""Worlds of GrowTable on a pretrained host that is held: does reading the host pay there?

    PYTHONPATH=benchmarks uv run esper growtable admit --seeds 5 \\
        --worlds pretrained_worlds:DIM,pretrained_worlds:RELABELLED,pretrained_worlds:SAME,pretrained_worlds:DIM_DEAR

A residual network of three blocks learns scikit-learn's digits and is then held, head and all. 200 other digits are
what seeds learn from: as they are, with a tenth of the contrast, or with every label one higher (shifts of the input
want the first layers, those of the output the last; Lee et al., "Surgical Fine-Tuning Improves Adaptation to
Distribution Shifts", 2023). In the family ``moved`` a policy has to find out where to grow, in ``asked`` whether to.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from typing import Any, Final

import torch
from torch import nn

from esper.bench.growtable.hosts import Residual, Shape
from esper.bench.growtable.worlds import WorldSpec
from esper.tasks import Data, get_task
from esper.tasks.base import Split

FEW: Final = 200
"""Examples that seeds learn from; the host has learned the others."""
PASSES: Final = 15


@lru_cache(32)
def _learned(shape: Shape, seed: int) -> Residual:
    known = get_task("digits").data.train
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = Residual(shape, kernel=3)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        for _ in range(PASSES):
            for part in (FEW + torch.randperm(len(known) - FEW)).split(50):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(known.inputs[part]), known.targets[part]).backward()
                optimizer.step()
    optimizer.zero_grad()
    return net.requires_grad_(False)


def pretrained(shape: Shape, kind: int) -> nn.Module:
    """A host that has learned the digits; which one, torch's generator says."""
    return deepcopy(_learned(shape, int(torch.randint(2**31, ()))))


def _digits(change: Callable[[Split], Split]) -> Data:
    data = get_task("digits").data
    return Data.of(*map(change, (data.train, data.validation, data.test)), source=data.source)


def same() -> Data:
    """The digits as they are."""
    return _digits(lambda split: split)


def dim() -> Data:
    """With a tenth of the contrast."""
    return _digits(lambda split: Split(split.inputs / 10, split.targets))


def relabelled() -> Data:
    """With every label one higher, 9 becoming 0."""
    return _digits(lambda split: Split(split.inputs, (split.targets + 1) % 10))


def _world(family: str, data: str, blueprints: tuple[str, ...], **settings: Any) -> WorldSpec:
    return WorldSpec(
        f"{family}-{data}",
        f"pretrained_worlds:{data}",
        family=family,
        host="pretrained_worlds:pretrained",
        blueprints=blueprints,
        epochs=10,
        times=(1,),
        max_seeds=1,
        audition="conv5",
        train=FEW,
        **settings,
    )


DIM, RELABELLED = (_world("moved", data, ("pointwise", "conv5")) for data in ("dim", "relabelled"))
SAME, DIM_DEAR = (_world("asked", data, ("norm", "conv3", "conv5"), rent=16.0) for data in ("same", "dim"))
