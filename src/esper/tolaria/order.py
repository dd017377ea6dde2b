"""Whether gradients are still as ``backward`` left them when seeds are taught.

What was unscaled or clipped before a seed had its gradient was not done to the seed, and nobody would see it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from esper.leyline import UsageError

SMALL = 4096
"""Most entries of a gradient that is kept to be compared: a scaler's unscaling leaves no mark on its version."""


class Untouched:
    """Notes how gradients are when they have come. Where processes average theirs, they write them later: not asked."""

    def __init__(self) -> None:
        self._versions: dict[Tensor, int] = {}
        self._kept: tuple[Tensor, Tensor] | None = None
        self._changed: Tensor | None = None
        """Whether what was kept has become another, as it is known on the device."""

    @contextmanager
    def watching(self, parameters: Iterable[Tensor]) -> Iterator[None]:
        """Within, the gradients of ``parameters`` are watched."""
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        watched = [parameter for parameter in parameters if parameter.requires_grad and alone]
        last = next((parameter for parameter in reversed(watched) if parameter.numel() <= SMALL), None)

        def note(parameter: Tensor) -> None:
            if parameter.grad is None:
                return
            self._versions[parameter] = parameter.grad._version
            if parameter is last:
                self._kept = parameter, parameter.grad.clone()

        handles = [
            parameter.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]
            for parameter in watched
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def check(self, now: bool) -> None:
        """Raise ``UsageError`` where one was written since; then begin anew.

        What only a look at its entries tells is asked for ``now``, or the next time: an accelerator is waited for.
        """
        versions, self._versions = self._versions, {}
        kept, self._kept = self._kept, None
        written = any(p.grad is not None and p.grad._version != seen for p, seen in versions.items())
        if kept is not None and kept[0].grad is not None and not written:
            changed = ~torch.isclose(kept[0].grad, kept[1], rtol=0.0, atol=0.0, equal_nan=True).all()
            self._changed = changed if self._changed is None else self._changed | changed
        if now and self._changed is not None:
            written, self._changed = written or bool(self._changed), None
        if written:
            raise UsageError(
                "gradients were changed between backward() and after_backward(); call after_backward() first, then"
                " unscale, clip or average them"
            )
