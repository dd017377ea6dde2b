"""Blocks of a host that repeat, such as the layers of a transformer: where a copy of one can stand behind it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.clone import Clone, against_call, copied
from esper.kasmina.layer import Beside
from esper.kasmina.portable import Call
from esper.kasmina.probe import Place
from esper.kasmina.structure import Path, get, mapped, tensors
from esper.kasmina.trace import removed
from esper.kasmina.trial import Sample, invoke, trial


@dataclass(eq=False)
class Block:
    """A block of the host, and what it was called with and gave in a trial pass."""

    module: nn.Module
    place: Place
    entry: Path
    """Leads to the stream in ``(args, kwargs)``."""
    call: Call
    feature: Tensor
    """What it gave, in the layout of the place."""
    parameters: int
    """Scalars in all parameters of a copy."""

    def copy(self) -> Clone:
        """The same weights in a module of its own, without what stands on the block's output."""
        memo: dict[int, Any] = {id(hook): hook for hook in self.module._forward_hooks.values()}
        inside = self.module.__dict__.get("forward")
        memo |= {} if inside is None else {id(inside): inside}
        twin = copy.deepcopy(self.module, memo)
        twin._forward_hooks.clear()
        twin._forward_hooks_with_kwargs.clear()
        twin.__dict__.pop("forward", None)
        for module in twin.modules():
            module.__dict__.pop("named_modules", None)
        return copied(twin, self.entry, self.place.position, self.place.axes)

    def on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Call]:
        """A feature and a call to try a copy on; what had the format of the feature has ``dtype``."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.dtype == self.feature.dtype else tensor.dtype)

        return moved(self.feature), mapped(self.call, moved)

    @cached_property
    def last_layers(self) -> frozenset[str]:
        """Names of the parameters of a copy that are zero where it is to be the identity: the last layers of residual
        branches. None where the block with all its parameters zero is not the identity.

        A layer is given its weights again where the copy stays the identity with them; the rest is what is asked for.
        """
        twin = self.copy()
        weights = {each.dtype: each for each in twin.parameters()}
        weight = weights.get(self.feature.dtype, next(twin.parameters()))
        feature, call = self.on(weight.device, weight.dtype)
        kept = {name: each.detach().clone() for name, each in twin.named_parameters()}
        with trial(twin):
            for each in twin.parameters():
                each.zero_()
            if not torch.equal(twin(feature, *call), feature):
                return frozenset()
            zero: set[str] = set()
            for owner, layer in twin.named_modules():
                names = [f"{owner}.{name}" if owner else name for name, _ in layer.named_parameters(recurse=False)]
                for name in names:
                    twin.get_parameter(name).copy_(kept[name])
                if names and not torch.equal(twin(feature, *call), feature):
                    zero.update(names)
                    for name in names:
                        twin.get_parameter(name).zero_()
        return frozenset(zero)


def blocks(host: nn.Module, places: Mapping[str, Place], sample: Sample) -> dict[str, Block | str]:
    """Per slot the block that a copy can be made of, or why there is none. The host is not tapped yet.

    A block repeats where the host holds another of its class with parameters of the same shapes. Which of its
    arguments is the stream is told by one such block that is given what another gave, or by the shape, where just one
    argument has that of the output.
    """
    kinds: dict[Any, list[nn.Module]] = {}
    for module in host.modules():
        kinds.setdefault(_kind(module), []).append(module)
    repeating = {each for kind, found in kinds.items() if kind[1] and len(found) > 1 for each in found}
    seen = _Seen(host, repeating, sample)
    paths = {module: path for path, module in host.named_modules()}
    found: dict[str, Block | str] = {}
    for slot_id, place in places.items():
        module = host.get_submodule(place.path)
        within = [each.path for each in places.values() if each.path.startswith(f"{place.path}.")]
        if module not in repeating:
            legal = [paths[each] for each in seen.given if next(each.children(), None) is not None][:8]
            found[slot_id] = (
                f"{place.path!r} ({type(module).__name__}) does not repeat: the host holds no other block of its class "
                f"and shapes; legal: {', '.join(legal) or 'a host with such blocks'}"
            )
        elif isinstance(place.layout, Beside):
            found[slot_id] = "a copy stands behind a block, not beside it"
        elif within:
            found[slot_id] = f"{within[0]!r} inside the block {place.path!r} is a site of its own"
        else:
            found[slot_id] = seen.block(module, place)
    return found


def _kind(module: nn.Module) -> tuple[type, tuple[tuple[str, tuple[int, ...]], ...]]:
    return type(module), tuple((name, tuple(each.shape)) for name, each in module.named_parameters())


class _Seen:
    """What the blocks that repeat were called with and gave in one pass in evaluation mode."""

    def __init__(self, host: nn.Module, repeating: set[nn.Module], sample: Sample) -> None:
        self.given: dict[nn.Module, tuple[Any, Any, Any]] = {}

        def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.given.setdefault(module, (args, kwargs, output))

        with trial(host), ExitStack() as stack:
            for module in host.modules():
                if module in repeating:
                    stack.enter_context(removed(module.register_forward_hook(look, with_kwargs=True)))
            invoke(host, sample)

    def block(self, module: nn.Module, place: Place) -> Block | str:
        name = f"the block {place.path!r} ({type(module).__name__})"
        if module not in self.given:
            return f"{name} goes past its own forward where it is watched"
        args, kwargs, output = self.given[module]
        hooks = any(getattr(each, kind) for each in module.modules() for kind in _HOOKS)
        if hooks:
            return f"{name} has hooks, which a copy would call too"
        still = [str(each.dtype) for each in module.parameters() if not (each.is_floating_point() or each.is_complex())]
        if still:
            return f"{name} has parameters of {still[0]}, which cannot learn, and all of a copy does"
        reason = against_call(module, args, kwargs)
        if reason is not None:
            return f"a copy of {name} {reason}"
        others = [path for path, tensor in tensors(output) if path != place.position and tensor.is_floating_point()]
        if others:
            return f"{name} gives {len(others) + 1} tensors, and a copy could hand on one; legal: one that gives one"
        stream = get(output, place.position)
        entry = self._entry(module, args, kwargs, stream, place.position)
        if entry is None:
            shapes = ", ".join(str(list(tensor.shape)) for _, tensor in tensors((args, kwargs)))
            return (
                f"{name} takes {shapes or 'no tensor'} and gives {list(stream.shape)}: which is the stream, none tells"
            )
        detached = mapped((args, kwargs), lambda tensor: tensor.detach().clone())
        size = sum(parameter.numel() for parameter in module.parameters())
        return Block(module, place, entry, detached, place.take(output).detach().clone(), size)

    def _entry(self, module: nn.Module, args: Any, kwargs: Any, stream: Tensor, position: Path) -> Path | None:
        fits = [
            path
            for path, tensor in tensors((args, kwargs))
            if tensor.shape == stream.shape and tensor.dtype == stream.dtype
        ]
        gave = [id(get(each[2], position)) for other, each in self.given.items() if type(other) is type(module)]
        takes = {
            path
            for other, (its_args, its_kwargs, _) in self.given.items()
            if type(other) is type(module)
            for path, tensor in tensors((its_args, its_kwargs))
            if id(tensor) in gave
        }
        handed = [path for path in fits if path in takes]
        chosen = handed or fits
        return chosen[0] if len(chosen) == 1 else None


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
