"""What trial passes tell about the places in a host where a slot could sit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from esper.kasmina.axes import Batch, batch_axes, canonical
from esper.kasmina.beside import entry_of
from esper.kasmina.layer import Beside, Fit, Layer
from esper.kasmina.layout import Layout
from esper.kasmina.portable import Grown, GrownBeside
from esper.kasmina.precision import weight_dtype
from esper.kasmina.structure import Path, get, is_mask, mapped, put, same, tensors
from esper.kasmina.trace import Given, Trace, observed, removed
from esper.kasmina.trial import ForwardCall, Sample, arguments, invoke, livened, trial
from esper.leyline import DataError, UsageError, unknown


@dataclass(frozen=True, slots=True)
class Site:
    """Where to put a slot: behind the module at ``path``, or ``beside`` it.

    The layout and batch axis of the output tensor are found by a probe where not given.
    """

    path: str
    layout: Layout | None = None
    batch_axis: int | None = None
    beside: bool = False
    """Whether a seed sees the module's input and adds to its output, rather than to be blended into that."""

    def __str__(self) -> str:
        """The path, with ``+`` before it for a site beside the module."""
        return f"+{self.path}" if self.beside else self.path


@dataclass(frozen=True, slots=True)
class Place:
    """The tensor that a slot sits on.

    ``position`` leads to it in the module's output; ``axes`` permutes it to ``layout`` (``None``: it already is).
    ``shape`` is the one probed of what a seed takes. A seed beside the module takes what ``entry`` leads to in its
    ``(args, kwargs)``; ``layout`` is then what it has to fit.
    """

    path: str
    position: Path
    axes: tuple[int, ...] | None
    layout: Fit
    channels: int
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    """Format of a seed's weights here."""
    calls: int = 1
    """How often the module is called in one pass over the sample."""
    entry: Path | None = None

    def take(self, output: Any) -> Tensor:
        """The tensor, in ``layout``."""
        tensor: Tensor = get(output, self.position)
        return tensor if self.axes is None else tensor.permute(self.axes)

    def entering(self, args: Any, kwargs: Any) -> Tensor | None:
        """What a seed beside the module takes of its arguments; ``None`` for a site behind one."""
        if self.entry is None:
            return None
        tensor: Tensor = get((args, kwargs), self.entry)
        return tensor

    def with_seed(self, seed: nn.Module, alpha: float) -> partial[Any]:
        """What makes of the module here a plain one in which ``seed`` is built in."""
        if self.entry is None:
            return partial(Grown, seed=seed, alpha=alpha, position=self.position, axes=self.axes)
        return partial(GrownBeside, seed=seed, alpha=alpha, position=self.position, entry=self.entry)

    def blank(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Zeros of the shape that a seed takes."""
        counts = isinstance(self.layout, Beside) and self.layout.layer is Layer.EMBEDDING
        return torch.zeros(self.shape, device=device, dtype=torch.long if counts else dtype)

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
            given = trace.given[module][0]
            make = _place_beside if site.beside else _place
            found = given, batches.get(module, {}), _felt(host, module, given, sample)
            place = make(site, module, *found)
            _check_alike(place, [each for passed in traces for each in passed.given.get(module, ())])
            dtype = weight_dtype(module, host, place.dtype, given.autocast.to(place.device))
            places[site.path] = replace(place, dtype=dtype, calls=max(passed.count(module) for passed in traces))
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
    if not found and not isinstance(sample, ForwardCall):
        raise UsageError("the sample holds no tensor")
    for tensor in found:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all() and not is_mask(tensor):
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
        raise UsageError(f"site {path!r} is never called on the sample; a slot needs a module that is called")
    for trace in traces:
        if any(given.written() for given in trace.given.get(module, ())):
            raise UsageError(
                f"the output of site {path!r} is written in place behind it (an in-place activation or +=); "
                "choose the module around it, or make that operation out of place"
            )


def _check_alike(place: Place, calls: Iterable[Given]) -> None:
    """Raise ``UsageError`` unless every call gives the same kind of feature: one seed serves them all."""
    for given in calls:
        tensor = dict(tensors(given.output)).get(place.position)
        taken = dict(tensors(given.inputs)).get(place.entry or ())
        if isinstance(place.layout, Beside):
            if tensor is None or taken is None or place.layout.due(taken.shape) != tuple(tensor.shape):
                raise UsageError(f"site {place.path!r} is called several times, and not all calls fit one seed")
            continue
        if tensor is None or tensor.ndim != place.layout.rank:
            raise UsageError(f"site {place.path!r} is called several times, and not all calls give the same tensors")
        channels = (tensor if place.axes is None else tensor.permute(place.axes)).shape[place.layout.channel_axis]
        if channels != place.channels:
            raise UsageError(
                f"site {place.path!r} is called several times and gives {place.channels} channels, then {channels}; "
                "a slot needs one width"
            )


NOISES: Final = (0.1, 10.0, 1000.0)
"""Sizes of noise, as a share of the feature. What is small may be lost on a few examples: in a narrow layer all units
can be below the threshold of a ReLU."""


def _felt(host: nn.Module, module: nn.Module, given: Given, sample: Sample) -> Path | None:
    """The first of several tensors in a module's output that the host's own output depends on; ``None`` where there is
    but one, or none of them is felt.
    """
    candidates = [path for path, tensor in tensors(given.output) if tensor.is_floating_point() and tensor.ndim >= 2]
    if len(candidates) < 2:
        return None
    plain = _with_noise(host, module, (), 0.0, sample)
    for size in NOISES:
        for path in candidates:
            if not same(_with_noise(host, module, path, size, sample), plain):
                return path
    return None


def is_felt(host: nn.Module, place: Place, sample: Sample) -> bool:
    """Whether the host's output depends on the tensor at ``place``: on what stands in its way to no output."""
    module, position = host.get_submodule(place.path), place.position
    plain = _with_noise(host, module, position, 0.0, sample)
    return any(not same(_with_noise(host, module, position, size, sample), plain) for size in NOISES)


def _with_noise(host: nn.Module, module: nn.Module, position: Path, size: float, sample: Sample) -> Any:
    """The host's output where the tensor at ``position`` of the module's has noise of ``size`` in it."""

    def disturb(module: nn.Module, args: Any, output: Any) -> Any:
        tensor = get(output, position)
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor.device, tensor.dtype)
        return put(output, position, tensor + noise * (size * (tensor.abs().mean() + 0.1)))

    with trial(host), livened(host), ExitStack() as stack:
        if size:
            stack.enter_context(removed(module.register_forward_hook(disturb)))
        return mapped(invoke(host, sample), torch.clone)


def _sole(site: Site, given: Given, felt: Path | None) -> tuple[Path, Tensor]:
    """The tensor of the output that a slot sits on."""
    name, output = f"site {site.path!r}", given.output
    if isinstance(output, nn.utils.rnn.PackedSequence):
        raise UsageError(f"{name} gives a packed sequence; choose a module that gives [batch, time, channels]")
    floats = [(path, tensor) for path, tensor in tensors(output) if tensor.is_floating_point()]
    if not floats:
        raise UsageError(f"{name} gives no floating-point tensor but {type(output).__name__}")
    if any(tensor.is_nested or tensor.layout is not torch.strided for _, tensor in floats):
        raise UsageError(f"{name} gives a nested or sparse tensor; a slot needs a dense one")
    several = [each for each in floats if each[1].ndim >= 2] or floats
    return next((each for each in several if each[0] == felt), several[0])


def _place_beside(site: Site, module: nn.Module, given: Given, batch: Mapping[Path, Batch], felt: Path | None) -> Place:
    position, tensor = _sole(site, given, felt)
    axis = batch.get(position, "has no batch axis") if site.batch_axis is None else site.batch_axis
    entry, fit = entry_of(site.path, module, given, position, axis)
    return Place(
        path=site.path,
        position=position,
        axes=None,
        layout=fit,
        channels=fit.outputs,
        shape=tuple(get(given.inputs, entry).shape),
        device=tensor.device,
        dtype=tensor.dtype,
        entry=entry,
    )


def _place(site: Site, module: nn.Module, given: Given, batch: Mapping[Path, Batch], felt: Path | None) -> Place:
    name, (position, tensor) = f"site {site.path!r}", _sole(site, given, felt)
    shape = list(tensor.shape)
    if not 2 <= tensor.ndim <= 4:
        raise UsageError(f"{name} gives {tensor.ndim} axes, {shape}; legal: 2, 3 or 4")
    axis = batch.get(position, "has no batch axis") if site.batch_axis is None else site.batch_axis
    if isinstance(axis, str) and tensor.ndim == 2:
        axis = 0  # rows, such as the nodes of a graph: whatever they mix, a seed works on each by itself
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
