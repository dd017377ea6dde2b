"""Counting multiply-accumulates of what runs, without loading torch's compiler (as ``FlopCounterMode`` does)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


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
        flops = flop_registry.get(func._overloadpacket)
        if flops is not None:
            self.total += flops(*args, **(kwargs or {}), out_val=out) // 2
        return out


def counted(run: Callable[[], Any]) -> int:
    """MACs of ``run()``, which may take other kernels than usual: fused ones hide their products."""
    with _separate_kernels(), MacCounter() as counter:
        run()
    return int(counter.total)


@contextmanager
def _separate_kernels() -> Iterator[None]:
    fused = torch.backends.mha.get_fastpath_enabled()
    libraries = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
        torch.backends.cudnn.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled = libraries
