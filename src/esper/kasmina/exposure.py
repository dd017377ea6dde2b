"""Seeds among the modules of the host that they grow in, for code that only knows the host.

``clip_grad_norm_(model.parameters())``, ``model.zero_grad()`` and their like ask a module for ``named_modules``, and
those around it ask it in turn. Children of a ``Sequential`` are called one after the other, so a seed cannot be one of
them; what is asked is answered instead. A ``state_dict`` is the host's alone.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from esper.kasmina.copies import Twin, average
from esper.kasmina.tap import Tap
from esper.leyline import UsageError


class Exposed:
    """Stands before a module's ``named_modules`` and adds the seeds that grow inside, after all else.

    ``taps``: those on the module itself and inside it, by path.
    """

    def __init__(self, module: nn.Module, taps: Mapping[str, Tap | Twin]) -> None:
        self.module, self.taps = module, dict(taps)
        self.hidden = False
        self.copies: WeakSet[Exposed] = WeakSet()
        """Of the module, and copies of copies."""

    def __call__(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """As :meth:`torch.nn.Module.named_modules`; a seed is named as in an export."""
        memo = set() if memo is None else memo
        seeds = {} if self.hidden else self._seeds(memo)
        memo.update(seeds.values())  # modules inside leave them to this one
        yield from type(self.module).named_modules(self.module, memo, prefix, remove_duplicate)
        for path, seed in seeds.items():
            memo.discard(seed)
            yield from seed.named_modules(memo, ".".join(filter(None, (prefix, path, "seed"))), remove_duplicate)

    def _seeds(self, memo: set[nn.Module]) -> dict[str, nn.Module]:
        averaged = average() if any(isinstance(tap, Twin) or tap.parts for tap in self.taps.values()) else None
        for tap in self.taps.values() if averaged is not None else ():
            if isinstance(tap, Twin):
                tap.follow()
            elif not self._copied_in(averaged):
                raise UsageError(
                    f"the average of this model was made before the with block, and cannot hold the seed in"
                    f" {tap.slot.slot_id!r}; make it inside the block"
                )
        found = {}
        for path, tap in self.taps.items():
            parts = tap.parts
            for depth, part in zip(reversed(range(len(parts))), parts, strict=True):
                # in an export each stands around those before it
                found[".".join(filter(None, (path, *["module"] * depth)))] = part.seed
        return {path: seed for path, seed in found.items() if seed not in memo}

    def _copied_in(self, module: nn.Module | None) -> bool:
        return module is not None and any(
            isinstance(found := each.__dict__.get("named_modules"), Exposed) and found in self.copies
            for each in module.modules()
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Exposed:
        twin = Exposed(copy.deepcopy(self.module, memo), {p: copy.deepcopy(tap, memo) for p, tap in self.taps.items()})
        twin.copies = self.copies
        self.copies.add(twin)
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return Exposed, (self.module, self.taps)


class Noticed:
    """Hook on a module of the host; a copy of the module has none that does anything."""

    def __init__(self, notice: Callable[..., None]) -> None:
        self.notice = notice

    def __call__(self, *args: Any) -> None:
        """Whatever torch gives to the hook."""
        self.notice(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return Noticed, (_nothing,)


def _nothing(*args: Any) -> None:
    pass


class Exposure:
    """All that a host answers with while its seeds are exposed, and what was noticed of its state dicts."""

    def __init__(self, host: nn.Module, taps: Mapping[str, Tap]) -> None:
        """``taps``: by path."""
        self.host, self.taps = host, dict(taps)
        inside: dict[nn.Module, dict[str, Tap]] = {}
        for path, tap in taps.items():
            parts = path.split(".")
            for depth in range(len(parts) + 1):
                around = host.get_submodule(".".join(parts[:depth]))
                inside.setdefault(around, {})[".".join(parts[depth:])] = tap
        self.answers = [Exposed(module, found) for module, found in inside.items()]
        self.left_out: list[str] = []
        """Slots whose seed was not in the last state dict that somebody took."""
        self._unheard = False
        self._told = False

    @property
    def copies(self) -> list[Exposed]:
        """What answers in copies of the host, or of a part of it, that are still there."""
        return [copied for each in self.answers for copied in each.copies]

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within, the host answers."""
        with ExitStack() as stack:
            for each in self.answers:
                each.module.__dict__["named_modules"] = each
                stack.callback(each.module.__dict__.pop, "named_modules", None)
            for path, tap in self.taps.items():
                hook = Noticed(lambda *args, tap=tap: self._taken(tap))
                handle = self.host.get_submodule(path).register_state_dict_post_hook(hook)  # type: ignore[no-untyped-call]
                stack.callback(handle.remove)
            handle = self.host.register_load_state_dict_pre_hook(Noticed(self._put_back))  # type: ignore[no-untyped-call]
            stack.callback(handle.remove)
            yield

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Within, the host's modules and parameters are its own alone, and no state dict is noticed.

        A penalty on parameters in a second pass is then no second penalty.
        """
        before, self._unheard = self._unheard, True
        try:
            for each in self.answers:
                each.hidden = True
            yield
        finally:
            self._unheard = before
            for each in self.answers:
                each.hidden = before

    def _taken(self, tap: Tap) -> None:
        if self._unheard or not tap.parts:
            return
        if average() is not None:
            raise UsageError(
                "timm's ModelEma averages state_dict(), in which seeds are not: make a ModelEmaV3 with"
                " exclude_buffers=True, or take torch.optim.swa_utils.AveragedModel"
            )
        self.left_out.append(tap.slot.slot_id)

    def _put_back(self, module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        live = [tap.slot.slot_id for tap in self.taps.values() if tap.parts]
        if self._unheard or self._told or not live:
            return
        with self.hidden():
            here = self.host.state_dict()
        for name, tensor in here.items():
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor) and isinstance(tensor, Tensor) and not torch.equal(tensor, given.to(tensor)):
                self._told = True
                warnings.warn(
                    f"load_state_dict() changes the host alone; seeds stay as they are in {', '.join(live)}:"
                    " grower.load_state_dict(), before the with block, puts back both",
                    stacklevel=4,
                )
                return


@contextmanager
def hidden(exposures: Iterable[Exposure]) -> Iterator[None]:
    """:meth:`Exposure.hidden` of each."""
    with ExitStack() as stack:
        for each in exposures:
            stack.enter_context(each.hidden())
        yield
