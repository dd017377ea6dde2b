"""Which axis of a feature holds the examples, and which the channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Final

import torch
from torch import Tensor, nn

from esper.kasmina.layout import Layout
from esper.kasmina.structure import Path, mapped, tensors
from esper.kasmina.trace import Given, removed
from esper.kasmina.trial import Sample, invoke, trial

_CHANNELS_FIRST: Final = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_CHANNELS_LAST: Final = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention, nn.RNNBase, nn.Embedding)
_LAYOUT: Final = {2: Layout.NC, 3: Layout.NCL, 4: Layout.NCHW}


def canonical(tensor: Tensor, batch: int, given: Given) -> tuple[Layout, tuple[int, ...]]:
    """The layout of ``tensor`` and the permutation that brings it about; channels-last maps are turned to ``NCHW``."""
    rest = [axis for axis in range(tensor.ndim) if axis != batch]
    channels_last = _channels_last([tensor.shape[axis] for axis in rest], given)
    if tensor.ndim == 3 and channels_last:
        return Layout.NTC, (batch, *rest)
    if tensor.ndim == 4 and channels_last:
        rest = [rest[-1], *rest[:-1]]
    return _LAYOUT[tensor.ndim], (batch, *rest)


def _channels_last(sizes: list[int], given: Given) -> bool:
    """Whether the last of the axes behind the batch is the channels, rather than the first.

    The closest neighbours with a known width tell: those that took the tensor, then those that ran before it.
    """
    neighbours = [(module, True) for module in given.takers] + [(module, False) for module in given.makers]
    for module, takes in neighbours:
        width = _width(module, takes)
        if width is None or width not in (sizes[0], sizes[-1]):
            continue
        if sizes[0] == sizes[-1] and not type(module).__module__.startswith("torch.nn"):
            continue  # a LayerNorm for images, say: its base class does not tell which of two equal axes it means
        preferred = sizes[0] if isinstance(module, _CHANNELS_FIRST) else sizes[-1]
        return isinstance(module, _CHANNELS_LAST) == (preferred == width)
    return len(sizes) == 2


def _width(module: nn.Module, takes: bool) -> int | None:
    """Channels that a layer of a known kind takes, or gives."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return module.normalized_shape[-1]
    if not isinstance(module, _CHANNELS_FIRST + _CHANNELS_LAST):
        return None
    own = ("in_channels", "in_features", "input_size") if takes else ("out_channels", "out_features", "hidden_size")
    names = (*own, "num_features", "num_channels", "embed_dim", "embedding_dim")
    return next((int(getattr(module, name)) for name in names if hasattr(module, name)), None)


Batch = int | str
"""The axis of an output tensor that holds the examples, or what is wrong."""


def batch_axes(host: nn.Module, modules: Iterable[nn.Module], sample: Sample) -> dict[nn.Module, dict[Path, Batch]]:
    """Per module and tensor of its output: the axis that holds the examples, or what is wrong.

    Two experiments for the first axis of the input and, for what that leaves open, for its second. Leaving one example
    out shows which axis of the output shrinks; changing one example shows whether the others feel it, as they do where
    the axis is time rather than batch.
    """
    found: dict[nn.Module, dict[Path, Batch]] = {}
    open_modules = list(modules)
    for axis in (0, 1):
        variants = _variants(sample, axis) if open_modules else None
        if variants is None:
            break
        whole, fewer, changed = [_outputs(host, open_modules, variant) for variant in variants]
        for module in whole:
            answers = found.setdefault(module, {})
            for path, tensor in whole[module].items():
                answer = _judge(tensor, fewer.get(module, {}).get(path), changed.get(module, {}).get(path))
                if isinstance(answer, int):
                    answers[path] = answer
                elif answer is not None:
                    answers.setdefault(path, answer)
        open_modules = [
            module
            for module in open_modules
            if not found.get(module) or any(isinstance(answer, str) for answer in found[module].values())
        ]
    return found


def _judge(whole: Tensor, fewer: Tensor | None, changed: Tensor | None) -> Batch | None:
    if fewer is None or fewer.ndim != whole.ndim:
        return None
    shrunk = [axis for axis in range(whole.ndim) if fewer.shape[axis] != whole.shape[axis]]
    if len(shrunk) != 1:
        return "has more than one axis that grows with the batch" if shrunk else None
    (axis,) = shrunk
    each = whole.shape[axis] - fewer.shape[axis]
    if changed is not None and changed.shape == whole.shape:
        kept, felt = (tensor.narrow(axis, each, tensor.shape[axis] - each).double() for tensor in (whole, changed))
        if not torch.allclose(kept, felt, rtol=1e-3, atol=1e-5, equal_nan=True):
            return f"mixes examples along axis {axis}"
    return axis


def _variants(sample: Sample, axis: int) -> list[Sample] | None:
    """The sample, the sample with one example less, and with its first example changed, along ``axis``."""
    first = next((tensor for _, tensor in tensors(sample) if tensor.ndim > axis), None)
    if first is None:
        return None
    size = first.shape[axis]

    def along(change: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor], Tensor]:
        def on(tensor: Tensor) -> Tensor:
            own = next((a for a in (axis, 0) if tensor.ndim > a and tensor.shape[a] == size), None)
            return tensor if own is None else change(tensor, own)

        return on

    if size == 1:
        sample = mapped(sample, along(lambda tensor, own: torch.cat([tensor, tensor.roll(1, -1)], own)))
        size = 2
    fewer = mapped(sample, along(lambda tensor, own: tensor.narrow(own, 0, size - 1)))
    return [sample, fewer, mapped(sample, along(_first_changed))]


def _first_changed(tensor: Tensor, axis: int) -> Tensor:
    """The first example replaced by the second one's values in another order: legal wherever those are."""
    new = tensor.clone()
    new.narrow(axis, 0, 1).copy_(tensor.narrow(axis, 1, 1).roll(1, -1))
    return new


def _outputs(host: nn.Module, modules: list[nn.Module], sample: Sample) -> dict[nn.Module, dict[Path, Tensor]]:
    """Output tensors of the modules; nothing where the host does not take these arguments."""
    outputs: dict[nn.Module, dict[Path, Tensor]] = {}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        outputs.setdefault(module, {path: tensor.clone() for path, tensor in tensors(output) if not tensor.is_nested})

    with trial(host), ExitStack() as stack:
        for module in modules:
            stack.enter_context(removed(module.register_forward_hook(keep)))
        try:
            invoke(host, sample)
        except Exception:  # an experiment that a foreign host refuses tells nothing
            return {}
    return outputs
