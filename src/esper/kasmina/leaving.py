"""Leaving a host: what has grown is built into it, and nothing else of Esper stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from torch import nn

from esper.kasmina.compiled import forget_graphs
from esper.kasmina.copies import Twin, built_in
from esper.kasmina.exposure import Exposed, Noticed
from esper.kasmina.portable import graft
from esper.kasmina.structure import own_modules
from esper.kasmina.tap import Inside, Tap, tap_of

_HOOKS: Final = ("_forward_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")


def leave(host: nn.Module, copies: Iterable[Exposed] = ()) -> None:
    """Take all that is Esper's off ``host``; it computes what it computed, as a plain module.

    Every seed that takes part in the forward pass is built in, in place, at its present alpha, by a
    :class:`~esper.kasmina.portable.Grown` where its site was; one that takes no part is gone. So it is in ``copies``,
    what answers in copies that were made meanwhile; averages among them first have the seeds that the host has. It does
    not matter how far attaching had come.
    """
    copies = list(copies)
    for each in copies:
        for twin in each.taps.values():
            if isinstance(twin, Twin) and twin.follows:
                twin.follow()
    for each in sorted(copies, key=lambda copied: -len(list(copied.module.modules()))):
        _build_in(each.module)
    _build_in(host)
    forget_graphs()


def _build_in(host: nn.Module) -> None:
    found: dict[str, Tap | Twin] = {}
    for path, module in nn.Module.named_modules(host):
        tap = tap_of(module)
        if tap is not None and path:
            found[path] = tap
    taking_part = {path: [part for part in tap.parts if part.alpha != 0.0] for path, tap in found.items()}
    seeds: dict[str, Callable[[nn.Module], nn.Module]] = {
        path: partial(built_in, found[path].place, parts, host.training) for path, parts in taking_part.items() if parts
    }
    root = tap_of(host)  # a copy of a site alone, in which a module cannot be put around it
    strip(host)
    if isinstance(root, Twin):
        host.register_forward_hook(root, with_kwargs=True)
    graft(host, seeds)


def strip(host: nn.Module) -> None:
    """Take every tap, hook and answer of Esper off ``host``, or off a copy of it."""
    for module in own_modules(host):
        own = module.__dict__
        if isinstance(own.get("forward"), Inside):
            del own["forward"]
        if isinstance(own.get("named_modules"), Exposed):
            del own["named_modules"]
        for hooks in _HOOKS:
            for key, hook in list(own[hooks].items()):
                if isinstance(getattr(hook, "hook", hook), Tap | Twin | Noticed):
                    del own[hooks][key]
                    own.get(f"{hooks}_with_kwargs", {}).pop(key, None)
