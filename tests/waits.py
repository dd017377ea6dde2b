"""Where a program would wait for an accelerator, found on a CPU: every place that asks a tensor for its value.

What a device computes comes back to the host by few ways (``item``, ``tolist``, ``cpu``, a boolean test, an operation
whose result has a size that depends on values). Each such call is noted with the innermost line of Esper that made it,
as if all tensors were on the device.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import esper

HOME: Final = str(Path(esper.__file__).parent)
ASKS: Final = frozenset(
    {
        *("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__complex__"),
        *("__contains__", "equal", "allclose", "is_nonzero", "nonzero", "argwhere", "masked_select", "unique"),
        *("unique_consecutive", "bincount", "repeat_interleave"),
    }
)
"""Names of functions and methods that need a value, or whose result has a size that depends on one."""


class Waits(TorchFunctionMode):
    """Within, places are noted, by how often they ask."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._asks(func, args, kwargs or {}) and (place := _place()) is not None:
            self.found[place] += 1
        return func(*args, **(kwargs or {}))

    def _asks(self, func: Any, args: Any, kwargs: Any) -> bool:
        name = getattr(func, "__name__", "")
        if name in ASKS:
            return True
        if name == "to":
            there = [*args[1:2], kwargs.get("device")]
            return any(str(each) == "cpu" for each in there)
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return any(isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in index)
        return False


def _place() -> str | None:
    """``file: function`` of the innermost call in Esper; ``None`` in torch's optimizers, whose counts are on the host,
    and outside of Esper."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if "/torch/optim/" in code.co_filename:
            return None
        if code.co_filename.startswith(HOME):
            return f"{code.co_filename[len(HOME) + 1 :]}: {code.co_qualname}"
        frame = frame.f_back
    return None
