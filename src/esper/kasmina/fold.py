"""Folding a seed that is a linear map into the weight of the module beside which it grew: no cost at inference.

That a module's output follows its weight as the seed's output is added to it, and that nothing else in the host uses
that weight, is proven when the host is wrapped: a seed of low rank with random weights is put in the slot, and then in
the weight, and the outputs are compared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from esper.kasmina import blueprints
from esper.kasmina.generations import Part
from esper.kasmina.layer import Beside, Layer
from esper.kasmina.portable import Call, run_seed
from esper.kasmina.precision import tolerance
from esper.kasmina.sharded import gathered
from esper.kasmina.state import SeedState
from esper.kasmina.structure import Path, tensors
from esper.kasmina.tap import Tap
from esper.kasmina.trial import Sample, device_of, livened, random_kept, trial

if TYPE_CHECKING:
    from esper.kasmina.growing import GrowingModel

LOST: Final = 0.1
"""Largest share of what a seed adds that may be lost in the rounding of the weight it is folded into."""
_ALIKE: Final = {True: 0.1, False: 0.01}
"""Largest difference between a seed in its slot and in the weight, as a share of what it changes; by narrow formats."""

_SIZES: Final = (1.0, 30.0, 1000.0)
"""Of the random seed's share in the weight, over the weight: in a fresh model little is felt of a query."""

Outputs = dict[Path, Tensor]
Folds = dict[str, bool | str]
"""Slot beside a module -> whether its weight is kept turned (inputs first); or why nothing can be folded into it."""


def rehearse(model: GrowingModel, sample: Sample) -> Folds:
    """Which slots beside a module have a weight that a seed can be folded into. All slots must be empty."""
    folds: Folds = {}
    with trial(model), livened(model):
        for slot_id, tap in model.taps.items():
            fit = tap.place.layout
            if isinstance(fit, Beside):
                folds[slot_id] = _obstacle(model.host, tap.place.path, fit) or _rehearsed(model, sample, tap, fit)
    return folds


def _obstacle(host: nn.Module, path: str, fit: Beside) -> str | None:
    """What stands against folding, by the look of the module."""
    module = host.get_submodule(path)
    weight = module._parameters.get("weight")
    if weight is None:
        named = "a parametrized weight" if "parametrizations" in module._modules else "no weight of its own"
        return f"{path} has {named}"
    if not weight.is_floating_point():
        return f"the weight of {path} is of {weight.dtype}"
    if module._forward_pre_hooks or getattr(module, "max_norm", None) is not None:
        return f"{path} changes its weight or its input before each pass"
    for name, other in host.named_modules():
        if other is not module and any(parameter is weight for parameter in other._parameters.values()):
            return f"the weight of {path} is tied to that of {name}"
    legal = {fit.weight_shape, fit.weight_shape[::-1]} if fit.layer is Layer.LINEAR else {fit.weight_shape}
    if tuple(weight.shape) not in legal:
        return f"the weight of {path}, {list(weight.shape)}, is no map of its input to its output"
    return None


def _rehearsed(model: GrowingModel, sample: Sample, tap: Tap, fit: Beside) -> bool | str:
    def whole() -> Outputs:
        with random_kept(device_of(model)):
            return {
                path: tensor.clone()
                for path, tensor in tensors(model.run(sample))
                if tensor.is_floating_point() and tensor.numel()
            }

    module, slot, plain = model.host.get_submodule(tap.place.path), tap.slot, whole()
    weight = _whole_weight(module)
    for size in _SIZES:
        seed = _random_seed(weight, fit, slot.dtype, size)
        tap.slot = _Fixed(seed)  # type: ignore[assignment]
        try:
            beside = whole()
        finally:
            tap.slot = slot
        if _distinct(plain, beside):
            break
    else:
        return f"no share in the weight of {tap.place.path} changes the host's output by more than rounding does"
    for turned in (False, True):
        if tuple(weight.shape) == (fit.weight_shape[::-1] if turned else fit.weight_shape):
            part = Part(seed, 1.0, SeedState("rehearsed", "lora2"))
            with _standing_in(module, folded(weight, [part], turned)):
                inside = whole()
            if _alike(plain, beside, inside):
                return turned
    return f"the host uses the weight of {tap.place.path} elsewhere, or otherwise than as a plain linear map"


def _whole_weight(module: nn.Module) -> Tensor:
    weight = module._parameters["weight"]
    assert weight is not None
    return gathered(weight.detach())


def _random_seed(weight: Tensor, fit: Beside, dtype: torch.dtype, size: float) -> nn.Module:
    """A seed whose share in the weight would be ``size`` times as large as the weight."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        seed = blueprints.build("lora2", fit.outputs, fit)
        for parameter in seed.parameters():
            nn.init.normal_(parameter)
    seed.scale *= size * float(weight.float().std() / seed.delta().std())  # type: ignore[operator, assignment]
    return seed.to(weight.device, dtype).eval()


class _Fixed:
    """Stands in for a slot with a seed beside a module."""

    bare = False
    training = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, h: Tensor, alpha: float | None, x: Tensor, call: Call) -> Tensor:
        return h + run_seed(self.module, x, h.dtype)


@contextmanager
def _standing_in(module: nn.Module, weight: nn.Parameter) -> Iterator[None]:
    before = module._parameters["weight"]
    module._parameters["weight"] = weight
    try:
        yield
    finally:
        module._parameters["weight"] = before


def _alike(plain: Outputs, one: Outputs, other: Outputs) -> bool:
    """Whether two changes of the same outputs are the same, but for rounding."""
    return all(
        _gap(one[path], other[path]) <= max(_share(before) * _gap(one[path], before), _rounding(before))
        for path, before in plain.items()
    )


def _distinct(plain: Outputs, changed: Outputs) -> bool:
    """Whether some output changes by so much that rounding cannot hide a difference between two changes."""
    return any(_share(before) * _gap(changed[path], before) > _rounding(before) for path, before in plain.items())


def _share(output: Tensor) -> float:
    return _ALIKE[output.dtype.itemsize < 4]


def _rounding(output: Tensor) -> float:
    return tolerance([output.dtype]) * float(output.double().abs().amax())


def _gap(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().amax())


def folded(weight: Tensor, parts: Sequence[Part], turned: bool) -> nn.Parameter:
    """``weight`` with ``alpha * seed.delta()`` of every seed added, as a parameter in the weight's format.

    The sum is made in a format no narrower, and rounded once.
    """
    with torch.no_grad():
        total = _wide(weight) + sum(_share_of(weight, part, turned) for part in parts)
    return nn.Parameter(total.to(weight.dtype), requires_grad=weight.requires_grad)


def _wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _share_of(weight: Tensor, part: Part, turned: bool) -> Tensor:
    """What the seed adds to the weight."""
    exact = copy.deepcopy(part.seed).to(torch.promote_types(weight.dtype, torch.float32))
    delta: Tensor = exact.delta().to(weight.device)  # type: ignore[operator]
    return part.alpha * (delta.T if turned else delta)


def against(model: GrowingModel, parts: Mapping[str, tuple[str, Part]]) -> dict[str, str]:
    """Why seeds beside modules (seed id -> slot and seed) cannot be folded; of those that can nothing is said."""
    found: dict[str, str] = {}
    able: dict[str, list[Part]] = {}
    for seed_id, (slot_id, part) in parts.items():
        why = _against(model, slot_id, part)
        if why is None:
            able.setdefault(slot_id, []).append(part)
        else:
            found[seed_id] = why
    for slot_id, together in able.items():
        path = model.places[slot_id].path
        weight = model.host.get_submodule(path)._parameters["weight"]
        assert weight is not None
        while together:
            # each is judged beside the others: in what they make of the weight a small one may be lost
            lost, worst = max(
                ((_lost(weight, part, together, bool(model.folds[slot_id])), part) for part in together),
                key=lambda pair: pair[0],
            )
            if lost <= LOST:
                break
            found[worst.seed_id] = f"rounding of the weight of {path} would lose {lost:.0%} of what it adds"
            together.remove(worst)
    return found


def _against(model: GrowingModel, slot_id: str, part: Part) -> str | None:
    place, found = model.places[slot_id], model.folds[slot_id]
    fit = place.layout
    assert isinstance(fit, Beside)
    if not callable(getattr(part.seed, "delta", None)):
        return "it is no linear map"
    obstacle = found if isinstance(found, str) else _obstacle(model.host, place.path, fit)
    if obstacle is not None:
        return obstacle
    return None if _honest(part.seed, fit) else "its delta() is not what it computes"


def _honest(seed: nn.Module, fit: Beside) -> bool:
    """Whether a map with the weight ``delta()`` gives what the seed gives."""
    exact = copy.deepcopy(seed).eval().double()
    x = fit.sample().to(device_of(exact))
    x = x.double() if x.is_floating_point() else x
    with torch.no_grad():
        return torch.allclose(exact(x), fit.mapped(x, exact.delta()), rtol=1e-9, atol=1e-9)  # type: ignore[operator]


def _lost(weight: Tensor, part: Part, together: Sequence[Part], turned: bool) -> float:
    """Share of what the seed adds, where it adds most, that is lost when all of ``together`` are rounded into the
    weight."""
    with torch.no_grad():
        added = _share_of(weight, part, turned).flatten(1).float()
        total = _wide(weight) + sum(_share_of(weight, each, turned) for each in together)
        rounding = (total.to(weight.dtype).to(total.dtype) - total).flatten(1).float()
        direction = added.abs().sum(0)
        for _ in range(3):  # towards the direction of the input, or the index, that the seed answers to most
            direction = added.T @ (added @ direction)
            direction = direction / direction.norm().clamp_min(torch.finfo(direction.dtype).tiny)
        effect = (added @ direction).norm()
        return float((rounding @ direction).norm() / effect) if effect > 0 else 0.0
