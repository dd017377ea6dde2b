"""The learned policy for growing hosts: one set of weights for any number of slots and any set of blueprints.

Slots share their weights and are told apart by what they measure and where they stand; blueprints are told apart by
name and by what they cost. Shapes: B rows, S slots, P blueprints, O ops, D token width, C cost features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esper.leyline import ALPHA_TARGETS, BLENDS, TEMPOS, ObservationLayout, Op, UsageError, as_type
from esper.tamiyo.normalise import RunningNorm
from esper.tamiyo.recurrent import Observation, PolicyNetwork, linear

UNKNOWN, _EMPTY = 0, 1
"""Embedding of a blueprint that training never saw, and of a slot without a seed."""


@dataclass(frozen=True, slots=True)
class GrowthNetworkConfig:
    """Sizes of the network, all in units (entries, names or cells)."""

    host_width: int
    """Entries of the host part of an observation."""
    slot_width: int
    """Entries of one slot's part."""
    blueprints: tuple[str, ...]
    """Names with an embedding of their own; others share one and are told apart by cost."""
    cost_width: int = 1
    """Entries that describe a blueprint in a slot (its relative cost)."""
    token: int = 32
    features: int = 64
    cells: int = 64
    """LSTM cells; 0 leaves the memory out."""
    embedding: int = 8
    positions: int = 6
    """Places from either end of the network that have an embedding of their own."""
    other_choices: tuple[int, int, int] = (len(BLENDS), len(ALPHA_TARGETS), len(TEMPOS))
    """Choices of the heads blend, alpha_target and tempo."""

    def __post_init__(self) -> None:
        for name in ("host_width", "slot_width", "cost_width", "token", "features", "embedding", "positions"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of the policy network is {getattr(self, name)}; it must be 1 or more")
        if self.cells < 0:
            raise UsageError(f"cells of the policy network is {self.cells}; it must be 0 or more")
        if len(set(self.blueprints)) != len(self.blueprints):
            raise UsageError(f"blueprints of the policy network repeat a name: {', '.join(self.blueprints)}")

    @classmethod
    def for_layout(cls, layout: ObservationLayout, blueprints: Sequence[str], **sizes: Any) -> GrowthNetworkConfig:
        """Sizes that fit an observation layout."""
        return cls(host_width=layout.host_width, slot_width=layout.slot_width, blueprints=tuple(blueprints), **sizes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a saved policy."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> GrowthNetworkConfig:
        """Undo of :meth:`to_dict`, also after JSON. Raises ``UsageError`` for keys it does not know, ``DataError`` for
        values that are no sizes.
        """
        strange = plain.keys() - {field.name for field in dataclasses.fields(cls)}
        if strange:
            raise UsageError(f"a saved policy has unknown sizes: {', '.join(sorted(strange))}")
        return as_type(plain, "sizes of a saved policy", cls)

    def unlike(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Which of a saved network's ``shapes`` is not of these sizes; empty where each size is seen in one.

        A network of these sizes is then hardly larger than the saved one: no file asks for memory that it does not
        fill.
        """
        expected = {
            "slot_key.weight": (self.token, self.token),
            "host_in.weight": (self.features, self.host_width + 2 * self.token),
            "slot_in.weight": (self.token, self.slot_width + 2 * self.embedding),
            "cost_in.weight": (self.token, self.embedding + self.cost_width),
            "blueprint_names.weight": (len(self.blueprints) + 2, self.embedding),
            "from_front.weight": (self.positions, self.embedding),
            "others_out.weight": (sum(self.other_choices), self.token),
        }
        expected |= {"memory.lstm.weight_hh_l0": (4 * self.cells, self.cells)} if self.cells else {}
        for name, shape in expected.items():
            if shapes.get(name) != shape:
                return f"{name} is {shapes.get(name)}, {shape} is needed"
        return ""

    def misfit(self, layout: ObservationLayout) -> str:
        """Why a network of these sizes cannot see observations of ``layout``; empty where it can.

        A slot's part grows at its end alone, so that a network may see less of a slot than there is, and no more.
        """
        if self.host_width == layout.host_width and self.slot_width <= layout.slot_width:
            return ""
        return (
            f"made for observations of {self.host_width} entries of the host and {self.slot_width} of a slot; this "
            f"Esper has {layout.host_width} and {layout.slot_width}"
        )

    def vocabulary(self, names: Sequence[str]) -> Tensor:
        """Embedding index of each blueprint name, ``[P]``; 0 for one that this network was not built with."""
        known = {name: index for index, name in enumerate(self.blueprints, start=_EMPTY + 1)}
        return torch.tensor([known.get(name, UNKNOWN) for name in names], dtype=torch.long)


class GrowthNetwork(PolicyNetwork):
    """Scores ops, slots for an op, and blueprints, blends, alpha targets and tempos for an op in a slot.

    Parts of an observation: ``host`` ``[B, host_width]``; ``slots`` ``[B, S, slot_width]``; ``present`` ``[B, S]``
    bool (False pads hosts with fewer slots, at the end); ``held`` ``[B, S]`` index of the blueprint a slot holds, plus
    1 (0 = none); ``blueprints`` ``[B, P]`` from :meth:`GrowthNetworkConfig.vocabulary`; ``costs`` ``[B, S, P, C]``.
    """

    def __init__(self, config: GrowthNetworkConfig) -> None:
        super().__init__(config.features, config.cells)
        self.config = config
        width, ops = config.token, len(Op)
        self.normalisers["host"] = RunningNorm(config.host_width)
        self.normalisers["slots"] = RunningNorm(config.slot_width)
        self.blueprint_names = nn.Embedding(len(config.blueprints) + 2, config.embedding)
        self.from_front = nn.Embedding(config.positions, config.embedding)
        self.from_back = nn.Embedding(config.positions, config.embedding)
        self.slot_in = linear(config.slot_width + 2 * config.embedding, width)
        self.host_in = linear(config.host_width + 2 * width, config.features)
        self.cost_in = linear(config.embedding + config.cost_width, width)
        self.op_out = linear(self.core_width, ops, gain=0.01)
        self.slot_query = linear(self.core_width, ops * width, gain=0.01)
        self.slot_key = linear(width, width)
        self.core_to_place = linear(self.core_width, width)
        self.slot_to_place = linear(width, width)
        self.blueprint_query = linear(width, width, gain=0.01)
        self.others_out = linear(width, sum(config.other_choices), gain=0.01)
        self.others_bias = nn.Parameter(torch.zeros(ops, 1, sum(config.other_choices)))

    def encode(self, observation: Observation) -> tuple[Tensor, ...]:
        """Features ``[B, F]``, slot tokens ``[B, S, D]`` and blueprint tokens ``[B, S, P, D]``."""
        present = observation["present"]
        names = observation["blueprints"]
        nothing = torch.full_like(names[:, :1], _EMPTY)
        held = torch.cat([nothing, names], dim=1).gather(1, observation["held"])
        slots = self.normalisers["slots"](observation["slots"])
        tokens = torch.cat([slots, self.blueprint_names(held), self._place(present)], dim=-1)
        tokens = self.slot_in(tokens).relu() * present[..., None]
        # tokens are not negative, so an absent slot's 0 never wins the maximum
        pooled = torch.cat([tokens.sum(1) / present.sum(1, keepdim=True).clamp(min=1), tokens.amax(1)], dim=-1)
        features = self.host_in(torch.cat([self.normalisers["host"](observation["host"]), pooled], dim=-1)).tanh()
        costs = observation["costs"]
        choices = self.blueprint_names(names)[:, None].expand(-1, costs.shape[1], -1, -1)
        return features, tokens, self.cost_in(torch.cat([choices, costs], dim=-1)).relu()

    def score(self, core: Tensor, encoded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """op ``[B, O]``, slot ``[B, O, S]``, blueprint ``[B, 1, S, P]``, then three of ``[B, O, S, n]``."""
        _, tokens, blueprints = encoded
        scale = 1 / math.sqrt(self.config.token)
        queries = self.slot_query(core).view(len(core), len(Op), -1)
        slot = queries @ self.slot_key(tokens).transpose(1, 2) * scale
        places = (self.core_to_place(core)[:, None] + self.slot_to_place(tokens)).relu()
        blueprint = (blueprints @ self.blueprint_query(places)[..., None]).squeeze(-1) * scale
        others = self.others_out(places)[:, None] + self.others_bias
        return self.op_out(core), slot, blueprint[:, None], *others.split(self.config.other_choices, dim=-1)

    def observe(self, observation: Observation, valid: Tensor) -> None:
        """Slots that are only padding do not count."""
        real = observation["present"] & valid[..., None]
        for name, where in (("host", valid), ("slots", real)):
            norm = self.normalisers[name]
            assert isinstance(norm, RunningNorm)
            norm.observe(observation[name][where])

    def _place(self, present: Tensor) -> Tensor:
        """Embedding of each slot's place, counted from both ends of the network, ``[B, S, E]``."""
        last = self.config.positions - 1
        front = torch.arange(present.shape[1], device=present.device).expand_as(present)
        back = present.sum(1, keepdim=True) - 1 - front
        place: Tensor = self.from_front(front.clamp(max=last)) + self.from_back(back.clamp(0, last))
        return place
