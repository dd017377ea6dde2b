"""Sites beside a module: a seed there sees the module's input and adds to its output, and widths may differ."""

from __future__ import annotations

from torch import Tensor, nn

from esper.kasmina.axes import Batch, canonical
from esper.kasmina.layer import Beside, Layer, Windows
from esper.kasmina.layout import SPATIAL_DIMENSIONS, Layout
from esper.kasmina.structure import Path, tensors
from esper.kasmina.trace import Given
from esper.leyline import UsageError

_LEGAL = (
    "legal: Linear, Embedding, a convolution, or a module that keeps all axes but the channels as they are"
    " (an attention or MLP block)"
)


def entry_of(path: str, module: nn.Module, given: Given, position: Path, batch: Batch) -> tuple[Path, Beside]:
    """Where in ``(args, kwargs)`` of the module's call the tensor is that a seed sees, and what the seed has to fit.

    ``position`` leads to the output tensor that the seed adds to. Raises ``UsageError`` where there is no such tensor.
    """
    name, output = f"site {path!r}", next(tensor for place, tensor in tensors(given.output) if place == position)
    if given.input_written:
        raise UsageError(f"{name} writes its input in place, and a seed beside it would see what is left; {_LEGAL}")
    found = [(place, tensor) for place, tensor in tensors(given.inputs) if _dense(tensor)]
    if isinstance(module, nn.Embedding):
        found = [(place, tensor) for place, tensor in found if not tensor.is_floating_point()]
        if found and found[0][1].shape == output.shape[:-1]:
            return found[0][0], Beside(
                Layer.EMBEDDING, module.num_embeddings, output.shape[-1], padding_idx=module.padding_idx
            )
    found = [(place, tensor) for place, tensor in found if tensor.is_floating_point()]
    for place, tensor in found:
        fit = _fit(module, tensor, output, given, batch)
        if fit is not None:
            return place, fit
    shapes = ", ".join(str(list(tensor.shape)) for _, tensor in found) or "no floating-point tensor"
    raise UsageError(f"no seed fits beside {name}, which takes {shapes} and gives {list(output.shape)}; {_LEGAL}")


def _dense(tensor: Tensor) -> bool:
    return not tensor.is_nested and not tensor.is_sparse and tensor.ndim > 0


def _fit(module: nn.Module, tensor: Tensor, output: Tensor, given: Given, batch: Batch) -> Beside | None:
    """What a seed has to fit that maps ``tensor`` to something of the shape of ``output``."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1:
        if tensor.ndim != len(module.kernel_size) + 2:
            return None
        return Beside(Layer.CONV, module.in_channels, module.out_channels, Windows.of(module))
    if tensor.ndim != output.ndim:
        return None
    if isinstance(module, nn.Linear) or _channels_last(output, given, batch):
        if tensor.shape[:-1] == output.shape[:-1]:
            return Beside(Layer.LINEAR, tensor.shape[-1], output.shape[-1])
        return None
    if not isinstance(batch, int) or batch != 0 or not 3 <= output.ndim <= 4:
        return None
    if (tensor.shape[0], *tensor.shape[2:]) != (output.shape[0], *output.shape[2:]):
        return None
    return Beside(Layer.CONV, tensor.shape[1], output.shape[1], Windows.pointwise(output.ndim - 2))


def _channels_last(output: Tensor, given: Given, batch: Batch) -> bool:
    """Whether the last axis is the channels, as its neighbours tell."""
    if output.ndim == 2:
        return True
    if not isinstance(batch, int) or not 3 <= output.ndim <= 4:
        return False
    layout, axes = canonical(output, batch, given)
    return layout is Layout.NTC or (layout in SPATIAL_DIMENSIONS and axes[1] == output.ndim - 1)
