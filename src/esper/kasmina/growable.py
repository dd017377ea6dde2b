"""What may grow in a slot: blueprints that fit it, and copies of the block of the host that it stands behind.

A copy is named like a blueprint and is known by the host alone: it has the block's class, size and weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from esper.kasmina import blueprints
from esper.kasmina.birth import Birth, examine, random_input, tried
from esper.kasmina.clone import Clone
from esper.kasmina.layer import Fit
from esper.kasmina.portable import Call
from esper.leyline import SiteMixing, UsageError

if TYPE_CHECKING:
    from esper.kasmina.repeating import Block
    from esper.kasmina.slot import SeedSlot


@dataclass(frozen=True, slots=True)
class CopyKind:
    """How a copy begins."""

    noise: float = 0.0
    """Standard deviation of what is added to each parameter, a share of the root mean square of its tensor."""
    zeroed: bool = False
    """Whether the last layers of residual branches are zero: the copy is then the identity at birth."""
    state: bool = True
    """Whether it goes on with what the optimizer keeps of the block, where weights are the block's."""


COPIES: Final = {
    "clone": CopyKind(),
    "clone_fresh": CopyKind(state=False),
    "clone_noise": CopyKind(noise=0.02),
    "clone_zero": CopyKind(zeroed=True),
}
"""Name -> how it begins. None is the identity but ``clone_zero``: stacked copies learn faster than preserved functions
(Du et al., "Stacking your transformers", 2024, section 3)."""


def known() -> tuple[str, ...]:
    """Every name of what can grow anywhere: blueprints, then copies."""
    return (*blueprints.everything(), *COPIES)


def fits(slot: SeedSlot, name: str) -> bool:
    """Whether it is of the kind that the slot takes."""
    return ":" in name or name in COPIES or name in blueprints.names(slot.config.layout)


def against(slot: SeedSlot, name: str) -> str | None:
    """What speaks against it in the slot, by what was measured; ``None``: nothing does."""
    if name not in COPIES:
        return blueprints.against(name, slot.config.layout, slot.may_mix)
    if isinstance(slot.block, str):
        return slot.block
    if slot.may_mix is None or not slot.may_mix.copies:
        return f"a copy of the block {slot.block.place.path!r} mixes what the host keeps apart, or nothing was measured"
    if COPIES[name].zeroed and not slot.block.last_layers:
        legal = ", ".join(each for each, kind in COPIES.items() if not kind.zeroed)
        return (
            f"the block {slot.block.place.path!r} is not the identity with all its weights zero, "
            f"so that no copy of it can be; legal: {legal}"
        )
    return None


def size(slot: SeedSlot, name: str) -> int:
    """Scalars in all parameters of one in the slot, where nothing speaks against it."""
    if name in COPIES:
        return _block(slot).parameters
    return blueprints.get(name, slot.config.layout).size(slot.channels, slot.config.layout)


def build(slot: SeedSlot, name: str) -> nn.Module:
    """A fresh seed for the slot; random numbers come from torch's global stream."""
    if name not in COPIES:
        return blueprints.build(name, slot.channels, slot.config.layout)
    block, kind = _block(slot), COPIES[name]
    twin = block.copy()
    zero = block.last_layers if kind.zeroed else frozenset()
    with torch.no_grad():
        for path, parameter in twin.named_parameters():
            if path in zero:
                parameter.zero_()
            elif kind.noise and parameter.is_floating_point():
                strength = parameter.square().mean().sqrt()
                parameter.add_(torch.randn(parameter.shape).to(parameter) * strength * kind.noise)
    return twin


def placed(seed: nn.Module, device: torch.device | None, dtype: torch.dtype) -> nn.Module:
    """The seed on the device, its weights in that format; a copy keeps those of the block, which may be several."""
    return seed.to(device) if isinstance(seed, Clone) else seed.to(device, dtype)


def origins(slot: SeedSlot) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Parameters of the slot's newest seed with those of the host whose optimizer state they go on with."""
    kind = None if slot.state is None else COPIES.get(slot.state.blueprint_id)
    if kind is None or not kind.state or not isinstance(slot.seed, Clone):
        return []
    block = _block(slot)
    zero = block.last_layers if kind.zeroed else frozenset()
    # by name: in a loop of the user's own the block answers for the seeds on it, too
    named = slot.seed.block.named_parameters()
    return [(each, block.module.get_parameter(path)) for path, each in named if f"block.{path}" not in zero]


def called(slot: SeedSlot, seed: nn.Module, feature: Tensor) -> Tensor:
    """What ``seed`` makes of a feature of the shape that was probed, called as its module was when that was probed."""
    if not isinstance(seed, Clone):
        out: Tensor = seed(feature)
        return out
    _, call = _block(slot).on(feature.device, feature.dtype)
    given: Tensor = seed(feature, *call)
    return given


@dataclass(frozen=True, slots=True)
class Birthplace:
    """What a newborn seed is tried on."""

    sample: Tensor
    dtype: torch.dtype
    """Of its weights."""
    fit: Fit
    may_mix: SiteMixing | None
    call: Call | None = None

    @classmethod
    def of(cls, slot: SeedSlot, name: str, sample: Tensor | None) -> Birthplace:
        """``sample`` is what a seed takes in the slot; without one it is random numbers, or what the block gave."""
        fit, call = slot.config.layout, None
        if name in COPIES:
            feature, call = _block(slot).on(slot.device, slot.dtype)
            sample = feature if sample is None or sample.shape != feature.shape else sample
        elif sample is None:
            sample = random_input(fit, slot.channels, slot.device, slot.dtype)
        dtype = sample.dtype if sample.is_floating_point() else slot.dtype
        return cls(sample, dtype, fit, slot.may_mix, call)

    def born(self, seed: nn.Module) -> Birth:
        """What it showed. What a copy mixes was measured with the host, by :attr:`SiteMixing.copies`."""
        if self.call is None:
            return tried(seed, self.fit, self.sample, self.may_mix)
        return examine(_Called(seed, self.call), self.sample)


class _Called(nn.Module):
    """A seed that takes a call, with one."""

    def __init__(self, seed: nn.Module, call: Call) -> None:
        super().__init__()
        self.seed, self.call = seed, call

    def forward(self, h: Tensor) -> Tensor:
        """What the seed gives."""
        out: Tensor = self.seed(h, *self.call)
        return out


def _block(slot: SeedSlot) -> Block:
    if isinstance(slot.block, str):
        raise UsageError(f"no copy can grow in slot {slot.slot_id!r}: {slot.block}")
    return slot.block
