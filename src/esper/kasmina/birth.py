"""Trying a newborn seed before it enters a slot: does it run, keep the shape, stay finite, and can it learn?"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from esper.kasmina.isolation import isolate
from esper.kasmina.layer import Beside, Fit
from esper.kasmina.layout import SPATIAL_DIMENSIONS, Layout
from esper.kasmina.trial import device_of, livened, trial
from esper.leyline import Positions, SiteMixing

MIXING_TOLERANCE = 1e-5
"""Relative change of an output that counts as none: some 80 eps of float32, in which mixing is measured."""


@dataclass(frozen=True, slots=True)
class Birth:
    """What one forward and backward pass of a newborn seed showed; ``None`` where it did not get that far."""

    parameters: int
    due_shape: str
    """What its output should have."""
    output_shape: str | None = None
    finite: bool | None = None
    learning_tensors: int | None = None
    """Parameters (tensors) that receive a gradient other than zero."""
    error: str | None = None
    mixing: tuple[tuple[str, float | None], ...] = ()
    """What the seed mixes of what its site keeps apart: names and values of :func:`spread`."""


def parameter_count(module: nn.Module) -> int:
    """Scalars in all parameters of ``module``, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def random_input(layout: Fit, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A small input of a seed."""
    if isinstance(layout, Beside):
        sample = layout.sample()
    else:
        sample = torch.randn(layout.shape(channels), generator=torch.Generator().manual_seed(0))
    return sample.to(device, dtype if sample.is_floating_point() else sample.dtype)


def tried(seed: nn.Module, layout: Fit, sample: Tensor, may_mix: SiteMixing | None) -> Birth:
    """What ``sample`` shows of a newborn seed, and where ``may_mix`` was measured what it mixes beyond that."""
    due = layout.due(sample.shape) if isinstance(layout, Beside) else sample.shape
    birth = examine(seed, sample, due)
    if may_mix is None or birth.output_shape != birth.due_shape:
        return birth
    if isinstance(layout, Beside):
        return replace(birth, mixing=mixing_beside(seed, layout, sample, may_mix))
    return replace(birth, mixing=mixing(seed, layout, sample.shape, may_mix))


def examine(seed: nn.Module, sample: Tensor, due: Sequence[int] | None = None) -> Birth:
    """Run ``seed`` on ``sample`` and take the gradient of a random projection of its output.

    ``due`` is the shape that its output should have; without it that of ``sample``. Leaves the seed, its buffers and
    the global random stream as they were.
    """
    parameters, shape = parameter_count(seed), str(tuple(sample.shape if due is None else due))
    buffers = {name: buffer.clone() for name, buffer in seed.named_buffers()}
    devices = [sample.device] if sample.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            output = seed(isolate(sample))
            learning = _learning_tensors(seed, output)
    except Exception as error:  # a third party's module may raise anything, and that is its verdict
        return Birth(parameters, shape, error=f"{type(error).__name__}: {error}".splitlines()[0])
    finally:
        with torch.no_grad():
            for name, buffer in seed.named_buffers():
                buffer.copy_(buffers[name])
    finite = bool(torch.isfinite(output).all())
    return Birth(parameters, shape, str(tuple(output.shape)), finite, learning)


def _learning_tensors(seed: nn.Module, output: Tensor) -> int:
    wanted = [parameter for parameter in seed.parameters() if parameter.requires_grad]
    if not wanted or not output.requires_grad:
        return 0
    projection = (output * torch.randn_like(output)).sum()
    gradients = torch.autograd.grad(projection, wanted, allow_unused=True)
    return sum(gradient is not None and bool(gradient.any()) for gradient in gradients)


def mixing(
    seed: nn.Module, layout: Layout, shape: Sequence[int], may_mix: SiteMixing
) -> tuple[tuple[str, float | None], ...]:
    """What the seed mixes of what its site keeps apart: names and values of :func:`spread`; ``None``: not measured.

    ``shape`` is that of a feature which the seed takes. A larger one is tried first, which shows longer reaches.
    """
    names = forbidden(may_mix)
    extent = 16 if SPATIAL_DIMENSIONS.get(layout) == 2 else 32
    larger = layout.shape(shape[layout.channel_axis], batch=3, extent=extent)
    found: Mapping[str, float] = {}
    for tried in (larger, shape):
        try:
            found = spread(seed, layout, tried, names)
            break
        except Exception:  # a seed for one size of feature alone refuses the larger
            continue
    return tuple((name, found.get(name)) for name in names)


def mixing_beside(seed: nn.Module, fit: Beside, sample: Tensor, may_mix: SiteMixing) -> tuple[tuple[str, float], ...]:
    """What a seed beside a module mixes more than the module does: names and values as of :func:`mixing`.

    ``mixes_beyond_module``: the greatest change, relative to the greatest value, of outputs that a map over the
    module's own windows leaves as they were when a part of the input along any axis but the channels is changed.
    ``mixes_channels``, 1, where the site keeps channels apart: every seed beside a module mixes them.
    """
    with torch.random.fork_rng(devices=[]):
        reference = fit.map(8).to(sample.device)  # so many that no position stays as it was by chance
    copied = copy.deepcopy(seed).float()
    sample = sample.float() if sample.is_floating_point() else sample
    other = sample.roll(1, fit.channel_axis if sample.is_floating_point() else -1).flip(0) * 3 + 1
    other = other if sample.is_floating_point() else other % fit.inputs
    channels = fit.channel_axis % sample.ndim if sample.is_floating_point() else sample.ndim
    largest = 0.0
    with trial(copied), livened(copied), trial(reference):
        before, plain = copied(sample), reference(sample)
        scale = before.abs().amax().clamp_min(torch.finfo(before.dtype).tiny)
        for axis in [each for each in range(sample.ndim) if each != channels]:
            index = torch.arange(sample.shape[axis], device=sample.device)
            index = index.reshape([-1 if each == axis else 1 for each in range(sample.ndim)])
            for late in (index >= sample.shape[axis] // 2, index < sample.shape[axis] // 2):
                changed = torch.where(late, other, sample)
                change = (reference(changed) - plain).abs().amax(fit.channel_axis, keepdim=True)
                kept = change <= MIXING_TOLERANCE * plain.abs().amax()
                moved = (copied(changed) - before).abs()
                largest = max(largest, float((moved * kept).amax() / scale))
    return ("mixes_beyond_module", largest), *(() if may_mix.channels else (("mixes_channels", 1.0),))


def forbidden(may_mix: SiteMixing) -> tuple[str, ...]:
    """What of :func:`spread` must be none at a site."""
    names = ["mixes_later"] if may_mix.positions in (Positions.NONE, Positions.CAUSAL) else []
    names += ["mixes_earlier"] if may_mix.positions is Positions.NONE else []
    names += [] if may_mix.channels else ["mixes_channels"]
    return (*names, *(() if may_mix.examples else ("mixes_examples",)))


def spread(seed: nn.Module, layout: Layout, shape: Sequence[int], names: Collection[str]) -> dict[str, float]:
    """How far a change of one part of a feature moves the rest of the seed's output, relative to the greatest value.

    Of ``names``: ``mixes_later`` (later positions move earlier ones), ``mixes_earlier``, ``mixes_channels``,
    ``mixes_examples``. Measured on a copy in float32 and evaluation mode, with random numbers for weights that are
    zero, by cuts behind the first index of an axis, in its middle and before its last. Raises whatever the seed raises.
    """
    copied = copy.deepcopy(seed).float()
    device = device_of(copied)
    generator = torch.Generator().manual_seed(0)
    feature, noise = (torch.randn(tuple(shape), generator=generator).to(device) for _ in range(2))
    found = dict.fromkeys(_asked(layout, shape, names), 0.0)
    with trial(copied), livened(copied):
        before = copied(feature)
        scale = before.abs().amax().clamp_min(torch.finfo(before.dtype).tiny)
        for axis, late, name in _directions(layout):
            if name not in found:
                continue
            size, index = shape[axis], torch.arange(shape[axis], device=device)
            for cut in {1, size // 2, size - 1} - {0, size}:
                moved = (index >= cut) == late
                after = copied(
                    feature + noise * moved.reshape([-1 if each == axis else 1 for each in range(len(shape))])
                )
                change = (after - before).abs().index_select(axis, index[~moved]).amax()
                found[name] = max(found[name], float(change / scale))
    return found


def _directions(layout: Layout) -> Iterator[tuple[int, bool, str]]:
    """Axis, whether its later part is changed, and what that measures."""
    for axis, letter in enumerate(layout.value):
        for late in (True, False):
            positions = "mixes_later" if late else "mixes_earlier"
            yield axis, late, {"N": "mixes_examples", "C": "mixes_channels"}.get(letter, positions)


def _asked(layout: Layout, shape: Sequence[int], names: Collection[str]) -> list[str]:
    """Those of ``names`` that some axis of more than one index can tell."""
    return [name for axis, _, name in _directions(layout) if name in names and shape[axis] > 1]
