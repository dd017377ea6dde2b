"""Rows as a policy network takes them: named tensors of what is seen, and one mask table per head.

Shapes: B rows, S slots, P blueprints, O ops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from esper.leyline import ActionSpace, EnvView
from esper.tamiyo.features import LAYOUT, encode
from esper.tamiyo.masks import Availability, availability
from esper.tamiyo.network import UNKNOWN, GrowthNetworkConfig

_COST_RANGE = 5.0
"""Largest ``log(1 + seed / host)`` that is told apart."""


def action_space(view: EnvView) -> ActionSpace:
    """The action space of a row's own slots and blueprints."""
    return ActionSpace(tuple(slot.slot_id for slot in view.slots), view.blueprints)


def observe(views: Sequence[EnvView], space: ActionSpace, config: GrowthNetworkConfig) -> dict[str, Tensor]:
    """Parts of an observation as :class:`GrowthNetwork` takes them. Rows share slots and blueprints.

    Features of a slot that came after the network was made stand behind those that it has, and are left out.
    """
    seen = [encode(view, space.slots) for view in views]
    vectors = torch.from_numpy(np.stack([one.vector for one in seen]))
    rows, slots = len(views), len(space.slots)
    return {
        "host": vectors[:, : LAYOUT.host_width],
        "slots": vectors[:, LAYOUT.host_width :].reshape(rows, slots, LAYOUT.slot_width)[..., : config.slot_width],
        "present": torch.ones(rows, slots, dtype=torch.bool),
        "held": torch.from_numpy(np.stack([one.blueprints for one in seen])),
        "blueprints": config.vocabulary(space.blueprints).repeat(rows, 1),
        "costs": torch.tensor([_costs(view, space) for view in views], dtype=torch.float32)[..., None],
    }


def without_names(observation: Mapping[str, Tensor], hidden: Tensor) -> dict[str, Tensor]:
    """As a network sees it that was trained without the blueprints ``hidden`` ``[B, P]`` bool: costs, no names."""
    return {**observation, "blueprints": torch.where(hidden, UNKNOWN, observation["blueprints"])}


def _costs(view: EnvView, space: ActionSpace) -> list[list[float]]:
    """What each blueprint would add in each slot, relative to the host; 0 for what cannot be built, and is masked."""
    sizes = view.blueprint_parameters
    return [
        [math.log1p(sizes.get(slot, {}).get(name, 0) / view.host_parameters) / _COST_RANGE for name in space.blueprints]
        for slot in space.slots
    ]


def tables(available: Sequence[Availability]) -> tuple[Tensor, ...]:
    """Availability of B rows as tables for the heads of :func:`~esper.tamiyo.heads.growth_heads`."""

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(one, name) for one in available]))

    return (
        stacked("op"),
        stacked("slot"),
        stacked("blueprint")[:, None],
        stacked("blend")[:, None, None],
        stacked("alpha_target")[:, None],
        stacked("tempo")[:, None, None],
    )


def mask_tables(views: Sequence[EnvView], space: ActionSpace) -> tuple[Tensor, ...]:
    """Which choices are legal in each row, conditioned on op and slot."""
    return tables([availability(view, space) for view in views])
