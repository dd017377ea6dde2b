"""What can be grown: blueprints by name and layout, our own and third parties'.

A third party adds blueprints by an entry point in the group ``esper.blueprints`` that names a :class:`Blueprint`, or
gives ``"package.module:ATTRIBUTE"`` wherever a name is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final

from torch import nn

from esper.kasmina.layout import Layout
from esper.leyline import Positions, SiteMixing, UsageError, load_attribute, plugins_in, unknown

ENTRY_POINTS: Final = "esper.blueprints"

Builder = Callable[[int, Layout], nn.Module]
"""``(channels, layout)`` to a module that maps a feature to one of the same shape."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A kind of seed. The module that it builds is the whole of ``seed(h)``, skip connection included.

    Raises ``UsageError`` for a name that is not lower_snake_case.
    """

    name: str
    layouts: frozenset[Layout]
    """Orders of axes that the module can take."""
    parameters: Callable[[int], int]
    """Channels -> scalars in all parameters; checked on every build."""
    builder: Builder
    """``(channels, layout)`` -> a module that maps a feature to one of the same shape."""
    mixes: Positions | None = None
    """Which other positions one position of its output depends on; ``None`` where nobody says. Examples of a batch are
    never mixed. Either way it is measured at each germination (G0)."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UsageError(f"blueprint name {self.name!r}; legal: lower_snake_case")


_registered: dict[tuple[str, Layout], Blueprint] = {}


def add(blueprint: Blueprint) -> None:
    """Register ``blueprint`` for its layouts. Raises ``UsageError`` where the name is taken."""
    for layout in sorted(blueprint.layouts):
        if (blueprint.name, layout) in _registered:
            raise UsageError(f"blueprint {blueprint.name!r} is registered for layout {layout} already")
    _registered.update({(blueprint.name, layout): blueprint for layout in blueprint.layouts})


def register(
    name: str, layouts: Iterable[Layout], parameters: Callable[[int], int], mixes: Positions | None = None
) -> Callable[[Builder], Builder]:
    """Decorator: register a builder under ``name`` for ``layouts``; one name may have one builder per layout."""

    def decorate(builder: Builder) -> Builder:
        add(Blueprint(name, frozenset(layouts), parameters, builder, mixes))
        return builder

    return decorate


def names(layout: Layout) -> tuple[str, ...]:
    """Registered blueprints that fit ``layout``, in the order of registration."""
    _load_entry_points()
    return tuple(name for name, each in _registered if each is layout)


def get(name: str, layout: Layout) -> Blueprint:
    """The blueprint ``name`` (or ``"module:ATTRIBUTE"``) for ``layout``. Raises ``UsageError`` if there is none."""
    if ":" in name:
        blueprint = find(name)
        if layout not in blueprint.layouts:
            raise UsageError(f"blueprint {name!r} does not fit layout {layout}; it fits {', '.join(blueprint.layouts)}")
        return blueprint
    if (name, layout) not in _registered:
        _load_entry_points()
    if (name, layout) not in _registered:
        raise unknown(f"blueprint for layout {layout}", name, names(layout))
    return _registered[name, layout]


def against(name: str, layout: Layout, may_mix: SiteMixing | None) -> str | None:
    """What speaks against the blueprint, by its declaration, where a site lets seeds mix ``may_mix``.

    ``None``: nothing does, as where nothing is declared or nothing was measured.
    """
    mixes = get(name, layout).mixes
    if may_mix is None:
        return None
    if not may_mix.channels:
        return "the host keeps apart what stands in its channels, and every seed mixes channels"
    order = list(Positions)
    if mixes is None or may_mix.positions is None or order.index(mixes) <= order.index(may_mix.positions):
        return None
    if may_mix.cached:
        reason = "the host caches keys and values, or a state, of earlier positions"
    elif may_mix.padding is False:
        reason = "the host keeps out what is padded"
    elif may_mix.positions is Positions.CAUSAL:
        reason = "no output of the host depends on later positions"
    else:
        reason = "the host is not seen to mix positions"
    return f"it mixes positions ({mixes}; legal here: {may_mix.positions}), and {reason}"


def build(name: str, channels: int, layout: Layout) -> nn.Module:
    """A fresh seed, initialised from torch's global random stream. Raises ``UsageError`` where its declared parameter
    count is wrong.
    """
    blueprint = get(name, layout)
    module = blueprint.builder(channels, layout)
    declared = blueprint.parameters(channels)
    actual = sum(parameter.numel() for parameter in module.parameters())
    if actual != declared:
        raise UsageError(f"blueprint {name!r} declares {declared} parameters for {channels} channels and has {actual}")
    return module


def find(reference: str) -> Blueprint:
    """The blueprint that ``reference`` (``module:ATTRIBUTE``) names. Raises ``UsageError``."""
    found = load_attribute("blueprint", reference)
    if not isinstance(found, Blueprint):
        raise UsageError(f"{reference!r} is a {type(found).__name__}; legal: an esper.kasmina.blueprints.Blueprint")
    return found


@cache
def _load_entry_points() -> None:
    for point in plugins_in(ENTRY_POINTS).values():
        add(find(point.value))
