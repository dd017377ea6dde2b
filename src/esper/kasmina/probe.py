"""What trial passes tell about the places in a host where a slot could sit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.axes import Batch, batch_axes, canonical
from esper.kasmina.layout import Layout
from esper.kasmina.precision import weight_dtype
from esper.kasmina.structure import Path, get, put, tensors
from esper.kasmina.trace import Given, Trace, observed
from esper.kasmina.trial import ForwardCall, Sample, arguments, invoke, trial
from esper.leyline import DataError, UsageError, unknown


@dataclass(frozen=True, slots=True)
class Site:
    """Where to put a slot; the layout and batch axis of the output tensor are found by a probe where not given."""

    path: str
    layout: Layout | None = None
    batch_axis: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """The tensor that a slot sits on.

    ``position`` leads to it in the module's output; ``axes`` permutes it to ``layout`` (``None``: it already is).
    ``shape`` is the one probed, in ``layout``.
    """

    path: str
    position: Path
    axes: tuple[int, ...] | None
    layout: Layout
    channels: int
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    """Format of a seed's weights here."""

    def take(self, output: Any) -> Tensor:
        """The tensor, in ``layout``."""
        tensor: Tensor = get(output, self.position)
        return tensor if self.axes is None else tensor.permute(self.axes)

    def give(self, output: Any, tensor: Tensor) -> Any:
        """The module's output with ``tensor`` (in ``layout``) in its place."""
        if self.axes is not None:
            tensor = tensor.permute([self.axes.index(axis) for axis in range(len(self.axes))])
        return put(output, self.position, tensor)


@dataclass(frozen=True)
class Survey:
    """A place, or the reason against it, per path; and the pass in evaluation mode that was observed."""

    places: dict[str, Place | UsageError]
    trace: Trace


def survey(host: nn.Module, sites: Iterable[Site], sample: Sample) -> Survey:
    """Find out about each site from a few trial passes, which leave no trace in the host.

    Raises ``UsageError`` where a path names no submodule or the sample is none, ``DataError`` where it is not finite or
    the host does not take it.
    """
    wanted = {site: _submodule(host, site.path) for site in sites}
    _check(sample)
    with trial(host), observed(host, wanted.values()) as trace:
        try:
            invoke(host, sample)
        except Exception as error:
            raise DataError(f"the host does not take the sample ({type(error).__name__}: {error})") from error
    traces = [trace, *_training_trace(host, wanted.values(), sample)]
    batches = batch_axes(host, wanted.values(), sample)
    places: dict[str, Place | UsageError] = {}
    for site, module in wanted.items():
        try:
            _check_calls(site.path, module, traces)
            place = _place(site, trace.given[module], batches.get(module, {}))
            cast_to = trace.given[module].autocast.to(place.device)
            places[site.path] = replace(place, dtype=weight_dtype(module, host, place.dtype, cast_to))
        except UsageError as error:
            places[site.path] = error
    return Survey(places, trace)


def _submodule(host: nn.Module, path: str) -> nn.Module:
    named: dict[str, nn.Module] = dict(host.named_modules(remove_duplicate=False))
    if not path or path not in named:
        raise unknown("submodule", path, [name for name in named if name])
    return named[path]


def _check(sample: Sample) -> None:
    if not isinstance(sample, ForwardCall):
        arguments(sample)
    found = [tensor for _, tensor in tensors(sample)]
    if not found:
        raise UsageError("the sample holds no tensor")
    for tensor in found:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DataError(f"the sample's tensor of shape {list(tensor.shape)} has values that are not finite")


def _training_trace(host: nn.Module, modules: Iterable[nn.Module], sample: Sample) -> list[Trace]:
    """The pass in training mode; none for hosts that take other arguments then."""
    with trial(host, training=True), observed(host, modules) as trace:
        try:
            invoke(host, sample)
        except Exception:  # whatever a foreign host raises here, evaluation mode has told enough
            return []
    return [trace]


def _check_calls(path: str, module: nn.Module, traces: list[Trace]) -> None:
    if traces[0].count(module) == 0:
        raise UsageError(f"site {path!r} is never called on the sample; a slot needs a module that is called once")
    for trace in traces:
        if trace.count(module) > 1:
            raise UsageError(
                f"site {path!r} is called {trace.count(module)} times in one pass; a slot needs one that is called once"
            )
        if module in trace.given and trace.given[module].written():
            raise UsageError(
                f"the output of site {path!r} is written in place behind it (an in-place activation or +=); "
                "choose the module around it, or make that operation out of place"
            )


def _place(site: Site, given: Given, batch: Mapping[Path, Batch]) -> Place:
    name, output = f"site {site.path!r}", given.output
    if isinstance(output, nn.utils.rnn.PackedSequence):
        raise UsageError(f"{name} gives a packed sequence; choose a module that gives [batch, time, channels]")
    floats = [(path, tensor) for path, tensor in tensors(output) if tensor.is_floating_point()]
    if not floats:
        raise UsageError(f"{name} gives no floating-point tensor but {type(output).__name__}")
    if any(tensor.is_nested or tensor.layout is not torch.strided for _, tensor in floats):
        raise UsageError(f"{name} gives a nested or sparse tensor; a slot needs a dense one")
    position, tensor = next((each for each in floats if each[1].ndim >= 2), floats[0])
    shape = list(tensor.shape)
    if not 2 <= tensor.ndim <= 4:
        raise UsageError(f"{name} gives {tensor.ndim} axes, {shape}; legal: 2, 3 or 4")
    axis = batch.get(position, "has no batch axis") if site.batch_axis is None else site.batch_axis
    if isinstance(axis, str):
        raise UsageError(f"the output of {name}, {shape}, {axis}; if it is a batch, say Site(path, batch_axis=...)")
    if not 0 <= axis < tensor.ndim:
        raise UsageError(f"{name}: batch axis {axis}; legal for {shape}: 0 to {tensor.ndim - 1}")
    layout, axes = canonical(tensor, axis, given)
    if site.layout is not None:
        if site.layout.rank != tensor.ndim:
            raise UsageError(f"{name} gives {tensor.ndim} axes, {shape}; layout {site.layout} has {site.layout.rank}")
        layout, axes = site.layout, (axis, *(each for each in range(tensor.ndim) if each != axis))
    turned = tensor.permute(axes)
    return Place(
        path=site.path,
        position=position,
        axes=None if axes == tuple(range(tensor.ndim)) else axes,
        layout=layout,
        channels=turned.shape[layout.channel_axis],
        shape=tuple(turned.shape),
        device=tensor.device,
        dtype=tensor.dtype,
    )
