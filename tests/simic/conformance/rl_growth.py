"""A stand-in for growing hosts: every step a new one, with conditional masks, whose right action can be read off."""

from __future__ import annotations

import torch
from torch import Tensor

from esper.leyline import ActionSpace, Op
from esper.simic.collect import MaskedObservation, VectorStep
from esper.tamiyo.heads import growth_heads
from esper.tamiyo.network import GrowthNetworkConfig

BLUEPRINTS = ("conv3", "lora", "norm")


class FakeGrowth:
    """Germinate the wanted blueprint in the marked slot where the host asks for it; otherwise wait.

    Right WAIT pays 1; right GERMINATE pays half for the slot and half for the blueprint. Every step ends its episode.
    Ops, slots and blueprints are forbidden at random, never the right ones; an illegal action is an error.
    """

    def __init__(self, size: int, slots: int = 3, blueprints: tuple[str, ...] = BLUEPRINTS) -> None:
        self.space = ActionSpace(tuple(f"s{i}" for i in range(slots)), blueprints)
        self.heads = growth_heads(self.space)
        self.size = size
        self.config = GrowthNetworkConfig(host_width=1 + len(BLUEPRINTS), slot_width=2, blueprints=BLUEPRINTS)
        self.actions_taken = 0

    def reset(self, seed: int) -> MaskedObservation:
        self.generator = torch.Generator().manual_seed(seed)
        return self._draw()

    def step(self, actions: Tensor) -> VectorStep:
        self.assert_legal(actions)
        self.actions_taken += len(actions)
        op, slot, blueprint = actions[:, 0], actions[:, 1], actions[:, 2]
        germinated = 0.5 * (slot == self.slot) + 0.5 * (blueprint == self._index_of_wanted())
        rewards = torch.where(self.grow, torch.where(op == Op.GERMINATE, germinated, 0.0), (op == Op.WAIT).float())
        yes = torch.ones(self.size, dtype=torch.bool)
        return VectorStep(self._draw(), rewards, yes, yes, yes, yes, final=None)

    def assert_legal(self, actions: Tensor) -> None:
        """Every consumed head chose what its table allows, every other head is 0."""
        rows = torch.arange(self.size)
        op, slot = actions[:, 0], actions[:, 1]
        consumed = self.heads.relevance()[op]
        for k, mask in enumerate(self.masks):
            context = [i if n > 1 else torch.zeros_like(i) for i, n in zip((op, slot), mask.shape[1:-1], strict=False)]
            legal = mask[(rows, *context, actions[:, k])]
            assert (legal | ~consumed[:, k]).all(), f"illegal choice of {self.heads.names[k]}"
            assert (consumed[:, k] | (actions[:, k] == 0)).all()

    def _index_of_wanted(self) -> Tensor:
        return torch.tensor([self.space.blueprints.index(name) for name in BLUEPRINTS])[self.wanted]

    def _draw(self) -> MaskedObservation:
        rows, slots, blueprints = self.size, len(self.space.slots), len(self.space.blueprints)
        draw = self.generator
        self.grow = torch.rand(rows, generator=draw) < 0.5
        self.slot = torch.randint(slots, (rows,), generator=draw)
        self.wanted = torch.randint(len(BLUEPRINTS), (rows,), generator=draw)
        marked = torch.nn.functional.one_hot(self.slot, slots).bool()
        asked = torch.nn.functional.one_hot(self.wanted, len(BLUEPRINTS)).float()
        noise = torch.randn(rows, slots, generator=draw)
        observation = {
            "host": torch.cat([self.grow[:, None].float(), asked], dim=1),
            "slots": torch.stack([marked.float(), noise], dim=-1),
            "present": torch.ones(rows, slots, dtype=torch.bool),
            "held": torch.randint(blueprints + 1, (rows, slots), generator=draw),
            "blueprints": self.config.vocabulary(self.space.blueprints).expand(rows, -1),
            "costs": torch.rand(rows, slots, blueprints, 1, generator=draw),
        }
        ops = torch.rand(rows, len(Op), generator=draw) < 0.5
        ops[:, Op.WAIT] = ops[:, Op.GERMINATE] = True
        slot = torch.rand(rows, len(Op), slots, generator=draw) < 0.5
        slot |= marked[:, None]
        blueprint = torch.rand(rows, 1, slots, blueprints, generator=draw) < 0.5
        blueprint[torch.arange(rows), 0, :, self._index_of_wanted()] = True
        alpha = torch.ones(rows, 1, slots, 3, dtype=torch.bool)
        alpha[..., 0] = torch.rand(rows, 1, slots, generator=draw) < 0.5
        anything = [torch.ones(rows, 1, 1, n, dtype=torch.bool) for n in (3, 4)]
        # rows that no legal op leads to may be empty
        slot[:, Op.WAIT] = False
        self.masks = (ops, slot, blueprint, anything[0], alpha, anything[1])
        return MaskedObservation(observation, self.masks)
