"""What a model gives under each configuration, kept for a look at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esper.kasmina.growing import GrowingModel
from esper.kasmina.replay import ConfigCost, evaluate_configs
from esper.kasmina.trial import Sample
from esper.leyline import AlphaConfig


@dataclass(frozen=True)
class Kept:
    outputs: list[Any]
    cost: ConfigCost


def evaluated(model: GrowingModel, sample: Sample, configs: Sequence[AlphaConfig]) -> Kept:
    outputs: dict[int, Any] = {}
    cost = evaluate_configs(model, sample, configs, outputs.__setitem__)
    return Kept([outputs[i] for i in range(len(configs))], cost)
