"""Counting multiply-accumulates of what runs, without loading torch's compiler (as ``FlopCounterMode`` does)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from esper.kasmina.compiled import as_written


def _matrix_vector(matrix: Tensor, vector: Tensor) -> int:
    return matrix.numel()


def _added_matrix_vector(bias: Tensor, matrix: Tensor, vector: Tensor, **scales: Any) -> int:
    return matrix.numel()


def _dot(left: Tensor, right: Tensor) -> int:
    return left.numel()


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """Of the gradients that are asked for, to the input and to the weight, each takes what the forward pass takes.

    PyTorch's formula leaves the groups out for the weight, and counts a depthwise convolution as a dense one.
    """
    *_, transposed, _, _, asked = rest
    places = x if transposed else gradient
    return (int(asked[0]) + int(asked[1])) * places.numel() * prod(weight.shape[1:])


_ALSO: Final[dict[Any, Callable[..., int]]] = {
    torch.ops.aten.mv: _matrix_vector,
    torch.ops.aten.addmv: _added_matrix_vector,
    torch.ops.aten.dot: _dot,
    torch.ops.aten.convolution_backward: _convolution_backward,
}
"""MACs of products that torch 2.13's own table of FLOPs leaves out, or counts wrongly."""


class MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, ``total`` grows by the MACs of every matrix product and convolution; elementwise work is not counted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch asks; the other answer imports its compiler at the first operation, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        kernel = func._overloadpacket
        if kernel in _ALSO:
            self.total += _ALSO[kernel](*args, **(kwargs or {}))
        elif kernel in flop_registry:
            self.total += flop_registry[kernel](*args, **(kwargs or {}), out_val=out) // 2
        return out


def counted(run: Callable[[], Any]) -> int:
    """MACs of ``run()``."""
    with counting() as counter:
        run()
    return counter.total


@contextmanager
def counting() -> Iterator[MacCounter]:
    """Within, MACs are counted. Kernels are other than usual: fused ones hide their products."""
    fused = torch.backends.mha.get_fastpath_enabled()
    libraries = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
        torch.backends.cudnn.enabled = False
        with as_written(), sdpa_kernel(SDPBackend.MATH), MacCounter() as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled = libraries
