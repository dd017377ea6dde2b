"""What a host is made of, as it is drawn: its modules in the order of their calls, each with parameters and MACs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from esper.kasmina.macs import MacCounter, counting
from esper.kasmina.probe import Site
from esper.kasmina.sites import Written, site_of
from esper.kasmina.trace import removed
from esper.kasmina.trial import Sample, invoke, trial

MOST: Final = 5000
"""Parts of a host that are told; one of more is told without its parts."""


@dataclass(slots=True)
class Part:
    """A module, or what a module around others has and does itself (parameters of its own, products in its forward)."""

    path: str
    kind: str
    """Name of its class."""
    parameters: int = 0
    """Those that no part before it has: tied ones count once."""
    macs: int = 0
    """Multiply-accumulates of one pass over the sample."""
    calls: int = 0
    """How often it, or a module in it, was called; 0 is never."""
    around: bool = False
    """Whether it stands for a module around others, which are parts of their own."""


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A host's parts in the order in which they are first called, those that never are at the end."""

    parts: tuple[Part, ...]
    sites: Mapping[str, Site]

    @property
    def macs(self) -> int:
        """Of one pass over the sample."""
        return sum(part.macs for part in self.parts)

    def told(self, examples: int) -> dict[str, Any]:
        """A :class:`~esper.leyline.payloads.run.HostRecord`, with the MACs of one of the sample's ``examples``."""

        def one(macs: int) -> int:
            return -(-macs // examples)

        parts = [
            {
                "path": part.path,
                "kind": part.kind,
                "parameters": part.parameters,
                "macs": one(part.macs),
                "calls": part.calls,
                **({"around": True} if part.around else {}),
            }
            for part in self.parts
        ]
        sites = [{"slot": slot, "path": site.path, "beside": site.beside} for slot, site in self.sites.items()]
        return {"macs": one(self.macs), "sites": sites, "parts": parts if len(parts) <= MOST else []}


def anatomy(host: nn.Module, sites: Mapping[str, Written], sample: Sample) -> Anatomy:
    """The parts of ``host`` after one pass over ``sample``, which leaves no trace.

    A module is taken apart as far as there are sites in it, so that each site has its module, or one around others.
    Raises what the host raises.
    """
    found = {slot: site_of(written) for slot, written in sites.items()}
    owners = _owners(host, {site.path for site in found.values()})
    order: dict[int, Part] = {}
    with trial(host), counting() as counter, _Stops(host, owners, counter, order) as stops:
        stops.into(None)
        invoke(host, sample)
        stops.into(None)
    parts = {id(part): part for part in owners.values()}
    ranked = [*order.values(), *(part for key, part in parts.items() if key not in order)]
    return Anatomy(tuple(part for part in ranked if not part.around or part.parameters or part.macs), found)


def host_record(host: nn.Module, sites: Mapping[str, Written], sample: Sample, examples: int) -> dict[str, Any] | None:
    """What the journal says of a host; ``None`` where it does not take the sample: the survey says so in a moment."""
    try:
        return anatomy(host, sites, sample).told(examples)
    except Exception:  # a user's host may raise anything, and nothing depends on its picture
        return None


def _owners(host: nn.Module, paths: Iterable[str]) -> dict[nn.Module, Part]:
    """Module -> the part that it belongs to."""
    around = {path[:end] for path in paths for end in (0, *(at for at, sign in enumerate(path) if sign == "."))}
    owners: dict[nn.Module, Part] = {}
    counted: set[int] = set()

    def own(module: nn.Module) -> int:
        fresh = {id(each): each for each in module._parameters.values() if each is not None and id(each) not in counted}
        counted.update(fresh)
        return sum(parameter.numel() for parameter in fresh.values())

    def walk(path: str, module: nn.Module, part: Part | None) -> None:
        if module in owners:
            return
        if part is None or part.around:
            part = Part(path, type(module).__name__, around=path in around)
        owners[module] = part
        part.parameters += own(module)
        for name, child in module.named_children():
            walk(f"{path}.{name}" if path else name, child, part)

    walk("", host, None)
    return owners


class _Stops:
    """Hooks that book the MACs between two of them on the part that runs there."""

    def __init__(
        self, host: nn.Module, owners: Mapping[nn.Module, Part], counter: MacCounter, order: dict[int, Part]
    ) -> None:
        self._host, self._owners, self._counter, self._order = host, owners, counter, order
        self._stack: list[nn.Module] = []
        self._seen = 0
        self._hooks = ExitStack()

    def __enter__(self) -> _Stops:
        for module in self._host.modules():
            self._hooks.enter_context(removed(module.register_forward_pre_hook(self._enter)))
            self._hooks.enter_context(removed(module.register_forward_hook(self._leave)))
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def into(self, module: nn.Module | None) -> None:
        """What was counted since the last stop is of the part that ran; what runs in no module is the host's."""
        ran = self._owners[self._stack[-1] if self._stack else self._host]
        ran.macs += self._counter.total - self._seen
        self._seen = self._counter.total
        if module is not None:
            self._stack.append(module)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.into(module)
        part = self._owners[module]
        outer = self._owners[self._stack[-2]] if len(self._stack) > 1 else None
        self._order.setdefault(id(part), part)
        part.calls += outer is not part

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.into(None)
        while self._stack and self._stack.pop() is not module:  # calls that an exception ended, and the host went on
            pass
