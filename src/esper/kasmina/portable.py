"""What an exported model needs to run. Nothing here needs more than torch: the generated ``model.py`` carries it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.structure import get, put

Call = tuple[Any, Any]
"""Positional and keyword arguments that the module of the host was called with."""


def run_seed(seed: nn.Module, h: Tensor, dtype: torch.dtype | None = None, call: Call | None = None) -> Tensor:
    """What ``seed`` makes of ``h``, in ``dtype`` (default: that of ``h``).

    It is computed in the format of its weights, or as autocast has it; indices are handed on as they are. A seed with
    a true ``takes_call`` is given ``call`` too, what the module that it sits on was called with, and ``h`` as that
    module gave it.
    """
    if call is not None and getattr(seed, "takes_call", False):
        own: Tensor = seed(h, *call)
        return own.to(dtype or h.dtype)
    weight = next(seed.parameters(), h)
    as_it_is = weight.dtype == h.dtype or not h.is_floating_point() or torch.is_autocast_enabled(h.device.type)
    h_in = h if as_it_is else h.to(weight.dtype)
    s: Tensor = seed(h_in)
    return s.to(dtype or h.dtype)


def blended(
    output: Any,
    seed: nn.Module,
    alpha: float,
    position: tuple[Any, ...],
    axes: tuple[int, ...] | None,
    call: Call | None = None,
) -> Any:
    """A module's output with ``h``, the tensor that ``position`` leads to, replaced by ``lerp(h, seed(h), alpha)``.

    ``axes`` permutes ``h`` to what the seed takes; ``call`` is what the module was called with.
    """
    if alpha == 0.0:
        return output
    h = get(output, position)
    if axes is not None:
        h = h.permute(axes)
    s = run_seed(seed, h, call=call)
    h = s if alpha == 1.0 else torch.lerp(h, s, alpha)
    if axes is not None:
        h = h.permute([axes.index(axis) for axis in range(len(axes))])
    return put(output, position, h)


def added(output: Any, seed: nn.Module, x: Tensor, alpha: float, position: tuple[Any, ...]) -> Any:
    """A module's output with ``h + alpha * seed(x)`` in place of ``h``, the tensor that ``position`` leads to."""
    if alpha == 0.0:
        return output
    h = get(output, position)
    return put(output, position, torch.add(h, run_seed(seed, x, h.dtype), alpha=alpha))


class Grown(nn.Module):
    """A module of the host with a seed on its output; arguments, keywords and attributes go through to the module."""

    def __init__(
        self,
        module: nn.Module,
        seed: nn.Module,
        alpha: float = 1.0,
        position: tuple[Any, ...] = (),
        axes: tuple[int, ...] | None = None,
    ) -> None:
        """``position`` leads to the tensor in the output, ``axes`` permutes it to what the seed takes."""
        super().__init__()
        self.module = module
        self.seed = seed
        self.alpha = alpha
        self.position = position
        self.axes = axes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, with ``h`` in it replaced by ``lerp(h, seed(h), alpha)``."""
        output = self.module(*args, **kwargs)
        return blended(output, self.seed, self.alpha, self.position, self.axes, (args, kwargs))

    def __getattr__(self, name: str) -> Any:
        """Attributes of its own first, then the module's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


class GrownBeside(Grown):
    """A module of the host with a seed beside it, which sees the module's input and adds to its output."""

    def __init__(
        self,
        module: nn.Module,
        seed: nn.Module,
        alpha: float = 1.0,
        position: tuple[Any, ...] = (),
        entry: tuple[Any, ...] = (0, 0),
    ) -> None:
        """``position`` leads to the tensor in the output, ``entry`` to that in ``(args, kwargs)``."""
        super().__init__(module, seed, alpha, position)
        self.entry = entry

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, with ``h + alpha * seed(x)`` in place of ``h`` in it."""
        x = get((args, kwargs), self.entry)
        return added(self.module(*args, **kwargs), self.seed, x, self.alpha, self.position)


def graft(host: nn.Module, seeds: Mapping[str, Callable[[nn.Module], nn.Module]]) -> nn.Module:
    """Put what is made of it (:class:`Grown`, or several of them, one around the other) in place of each named
    submodule, wherever the host holds it; returns the same host."""
    for path in sorted(seeds, key=lambda each: -each.count(".")):
        module = host.get_submodule(path)
        grown = seeds[path](module)
        for parent in list(host.modules()):
            for name, child in parent._modules.items():
                if child is module and parent is not grown:
                    parent._modules[name] = grown
    return host


def blank(
    kind: type[nn.Module],
    attributes: Mapping[str, Any],
    children: Mapping[str, nn.Module | None],
    parameters: Mapping[str, tuple[tuple[int, ...], torch.dtype] | None],
    buffers: Mapping[str, tuple[tuple[int, ...], torch.dtype, bool] | None],
) -> nn.Module:
    """An instance of ``kind`` with this content, made without its constructor; the tensors are still to be filled."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    for name, parameter in parameters.items():
        module.register_parameter(name, None if parameter is None else _parameter(*parameter))
    for name, buffer in buffers.items():
        module.register_buffer(
            name,
            None if buffer is None else torch.zeros(buffer[0], dtype=buffer[1]),
            persistent=buffer is None or buffer[2],
        )
    for name, child in children.items():
        module.add_module(name, child)
    module.__dict__.update(attributes)
    return module


def _parameter(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=dtype.is_floating_point or dtype.is_complex)


def fill(model: nn.Module, tensors: Mapping[str, Tensor], same: Mapping[str, str]) -> nn.Module:
    """Load weights and all buffers into ``model`` and return it in evaluation mode; ``same`` names shared tensors."""
    tensors = {**tensors, **{name: tensors[other] for name, other in same.items()}}
    expected = model.state_dict()
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name in expected})
    missing = dict(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name not in expected:
                missing[name].copy_(tensor)
    return model.eval()


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file."""
    kinds = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
        "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
    }  # fmt: skip
    content = Path(path).read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, entry in json.loads(content[8:begin]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            data = bytearray(content[begin + first : begin + last])
            kind = kinds[entry["dtype"]]
            flat = torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)
            tensors[name] = flat.reshape(entry["shape"])
    return tensors
