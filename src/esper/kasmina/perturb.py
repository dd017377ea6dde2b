"""Changing one part of a batch and nothing else: half of an axis, or what stands at padded positions.

Float inputs get noise, integers (tokens) another value of the same batch, which is legal
wherever that is. Masks are not content: they are set, to make padding, and never disturbed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from esper.kasmina.structure import Path, put, tensors
from esper.kasmina.trace import removed
from esper.kasmina.trial import Arguments

DRAWS: Final = 3
"""Ways to disturb the same part, ever more strongly."""


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One call of the host. ``embeddings_at`` ``[batch, time]``: where the outputs of embeddings get noise."""

    arguments: Arguments
    embeddings_at: Tensor | None = None
    draw: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Passes that differ from a reference in a part of the batch; ``untouched`` is the share of it that is the same.

    ``changed`` holds :data:`DRAWS` of them: what looks unmoved may have been a maximum that stayed one, or a dead ReLU.
    """

    reference: Pass
    changed: tuple[Pass, ...]
    untouched: float
    axis: tuple[Path, int, int] | None = None
    """Of a half: input, axis and its size."""


@dataclass(frozen=True, slots=True, eq=False)
class Contrast:
    """The same positions disturbed while they are padded, and while they are not."""

    padded: Probe
    control: Probe


def halves(host: nn.Module, call: Arguments) -> Iterator[tuple[Probe, Probe]]:
    """Per axis of each input: its second half disturbed, and its first. The axis may be time, space or the batch."""
    reference = Pass(call)
    for path, tensor in _contents(host, call):
        for axis, size in enumerate(tensor.shape):
            if size < 2:
                continue
            cut = size // 2
            late = torch.arange(size, device=tensor.device) >= cut
            late = late.reshape([-1 if each == axis else 1 for each in range(tensor.ndim)])
            late_half, early_half = (
                tuple(Pass(put(call, path, _disturbed(tensor, half, draw))) for draw in range(DRAWS))
                for half in (late, ~late)
            )
            yield (
                Probe(reference, late_half, cut / size, (path, axis, size)),
                Probe(reference, early_half, (size - cut) / size, (path, axis, size)),
            )


def paddings(host: nn.Module, call: Arguments) -> Iterator[tuple[bool, Contrast]]:
    """A quarter of the positions, the first and the last, with and without padding; and whether a mask pads them.

    A mask among the inputs is tried in either sense. A token may pad as well, when the host looks for it: the
    ``padding_idx`` of an embedding is tried, else 0.
    """
    contents = _contents(host, call)
    for path, mask in _masks(host, call, contents):
        for padding in (0, 1):
            whole = put(call, path, torch.full_like(mask, 1 - padding))
            for where in _ends(mask):
                padded = put(call, path, torch.where(where, padding, 1 - padding).to(mask.dtype))
                yield True, _contrast(padded, whole, contents, where)
    embeddings = [module for module in host.modules() if isinstance(module, nn.Embedding)]
    declared = [module.padding_idx for module in embeddings if module.padding_idx is not None]
    for path, tokens in contents:
        if embeddings and tokens.ndim == 2 and tokens.shape[1] > 1 and not tokens.is_floating_point():
            pad = declared[0] if declared else 0
            others = tokens[tokens != pad]
            plain = torch.where(tokens == pad, others[0] if len(others) else pad + 1, tokens)
            for where in _ends(tokens):
                padded, whole = (put(call, path, each) for each in (torch.where(where, pad, plain), plain))
                yield False, _contrast(padded, whole, None, where)


def _contrast(
    padded: Arguments, whole: Arguments, contents: list[tuple[Path, Tensor]] | None, where: Tensor
) -> Contrast:
    """``contents`` are disturbed in both; without any, the embeddings are."""
    untouched = 1.0 - float(where.double().mean())

    def disturbed(call: Arguments, draw: int) -> Pass:
        if contents is None:
            return Pass(call, where, draw)
        for path, tensor in contents:
            new = _disturbed_where(tensor, where, draw)
            call = call if new is None else put(call, path, new)
        return Pass(call)

    return Contrast(
        *(
            Probe(Pass(call), tuple(disturbed(call, draw) for draw in range(DRAWS)), untouched)
            for call in (padded, whole)
        )
    )


@contextmanager
def embeddings_disturbed(host: nn.Module, run: Pass) -> Iterator[None]:
    """Within, embeddings that are called on a tensor of the shape of ``run.embeddings_at`` give noise there."""
    at = run.embeddings_at

    def disturb(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        assert at is not None
        return _disturbed(output, at.unsqueeze(-1), run.draw) if args and args[0].shape == at.shape else None

    with ExitStack() as stack:
        for module in () if at is None else host.modules():
            if isinstance(module, nn.Embedding):
                stack.enter_context(removed(module.register_forward_hook(disturb)))
        yield


def _contents(host: nn.Module, call: Arguments) -> list[tuple[Path, Tensor]]:
    """The inputs that say something: all but masks."""
    found = [(path, tensor) for path, tensor in tensors(call) if tensor.ndim and not tensor.is_complex()]
    return [(path, tensor) for path, tensor in found if not _is_mask(_name(host, path), tensor, found)]


def _masks(host: nn.Module, call: Arguments, contents: list[tuple[Path, Tensor]]) -> Iterator[tuple[Path, Tensor]]:
    """Masks ``[batch, time]`` of some content."""
    said = {path for path, _ in contents}
    for path, tensor in tensors(call):
        if path not in said and tensor.ndim == 2 and tensor.shape[1] > 1:
            where = torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
            if any(_disturbed_where(content, where, 0) is not None for _, content in contents):
                yield path, tensor


def _is_mask(name: str, tensor: Tensor, inputs: list[tuple[Path, Tensor]]) -> bool:
    if tensor.dtype is torch.bool or "mask" in name:
        return True
    if tensor.ndim != 2 or tensor.is_floating_point() or not ((tensor == 0) | (tensor == 1)).all():
        return False
    return any(other is not tensor and other.shape[:2] == tensor.shape for _, other in inputs)


def _name(host: nn.Module, path: Path) -> str:
    """What the host calls the argument; empty where that cannot be told."""
    if path[0] == 1:
        return str(path[1])
    parameters = list(inspect.signature(host.forward).parameters)
    return parameters[path[1]] if path[1] < len(parameters) else ""


def _ends(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The last and the first quarter of the positions of ``[batch, time]``, at least one."""
    time = tensor.shape[1]
    quarter, positions = max(1, time // 4), torch.arange(time, device=tensor.device)
    late, early = positions >= time - quarter, positions < quarter
    return late.expand(tensor.shape).clone(), early.expand(tensor.shape).clone()


def _disturbed_where(tensor: Tensor, where: Tensor, draw: int) -> Tensor | None:
    """``tensor`` disturbed at the examples and positions of ``where``; ``None`` where it has no such axes."""
    batch, time = where.shape
    rest = [1] * (tensor.ndim - 2)
    if tensor.ndim >= 2 and tuple(tensor.shape[:2]) == (batch, time):
        return _disturbed(tensor, where.reshape(batch, time, *rest), draw)
    if tensor.ndim == 3 and (tensor.shape[0], tensor.shape[2]) == (batch, time):
        return _disturbed(tensor, where.reshape(batch, 1, time), draw)
    if tensor.ndim >= 2 and tuple(tensor.shape[:2]) == (time, batch):
        return _disturbed(tensor, where.T.reshape(time, batch, *rest), draw)
    return None


def _disturbed(tensor: Tensor, where: Tensor, draw: int) -> Tensor:
    if tensor.is_floating_point():
        generator = torch.Generator().manual_seed(draw)
        noise = torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
        return torch.where(where, tensor + noise * (tensor.abs().mean() + 0.01) * 3**draw, tensor)
    values: Tensor = torch.unique(tensor)
    if len(values) > 1:
        other = values[(torch.searchsorted(values, tensor.contiguous()) + 1 + draw % (len(values) - 1)) % len(values)]
    else:
        other = torch.where(tensor > 0, tensor - 1, tensor + 1)
    return torch.where(where, other, tensor)
