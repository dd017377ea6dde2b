"""What can be grown: blueprints by name and by what they fit, our own and third parties'.

A third party adds blueprints by an entry point in the group ``esper.blueprints`` that names a :class:`Blueprint`, or
gives ``"package.module:ATTRIBUTE"`` wherever a name is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from torch import nn

from esper.kasmina.layer import Beside, Fit, Layer
from esper.kasmina.layout import Layout
from esper.leyline import Positions, SiteMixing, UsageError, load_attribute, plugins_in, unknown

ENTRY_POINTS: Final = "esper.blueprints"

Builder = Callable[[int, Any], nn.Module]
"""``(channels, layout)`` to a module that maps a feature to one of the same shape; beside a module ``(outputs,
beside)`` to one that maps its input to something of the shape of its output."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A kind of seed. The module that it builds is the whole of ``seed(h)``, skip connection included.

    Beside a module it is what is added to the module's output. A seed that is a linear map gives, by a method
    ``delta()``, what it adds to the module's weight, in the shape of ``beside.map(outputs).weight``; it is folded into
    that on export.

    Raises ``UsageError`` for a name that is not lower_snake_case.
    """

    name: str
    layouts: frozenset[Layout | Layer]
    """Orders of axes that the module can take, or kinds of layer beside which it can grow."""
    parameters: Callable[[Any], int]
    """Channels, or the :class:`Beside`, -> scalars in all parameters; checked on every build."""
    builder: Builder
    """``(channels, layout)`` -> a module that maps a feature to one of the same shape."""
    mixes: Positions | None = None
    """Which other positions one position of its output depends on; ``None`` where nobody says. Examples of a batch are
    never mixed. Either way it is measured at each germination (G0)."""

    def size(self, channels: int, layout: Fit) -> int:
        """Scalars in all parameters of a seed there."""
        return self.parameters(layout if isinstance(layout, Beside) else channels)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UsageError(f"blueprint name {self.name!r}; legal: lower_snake_case")


_registered: dict[tuple[str, Layout | Layer], Blueprint] = {}


def _kind(layout: Fit | Layer) -> Layout | Layer:
    return layout.layer if isinstance(layout, Beside) else layout


def add(blueprint: Blueprint) -> None:
    """Register ``blueprint`` for its layouts. Raises ``UsageError`` where the name is taken."""
    for layout in sorted(blueprint.layouts):
        if (blueprint.name, layout) in _registered:
            raise UsageError(f"blueprint {blueprint.name!r} is registered for layout {layout} already")
    _registered.update({(blueprint.name, layout): blueprint for layout in blueprint.layouts})


def register(
    name: str, layouts: Iterable[Layout | Layer], parameters: Callable[[Any], int], mixes: Positions | None = None
) -> Callable[[Builder], Builder]:
    """Decorator: register a builder under ``name`` for ``layouts``; one name may have one builder per layout."""

    def decorate(builder: Builder) -> Builder:
        add(Blueprint(name, frozenset(layouts), parameters, builder, mixes))
        return builder

    return decorate


def everything() -> tuple[str, ...]:
    """Every registered blueprint: those behind modules by layout, then those beside them."""
    return tuple(dict.fromkeys(name for kind in (*Layout, *Layer) for name in names(kind)))


def names(layout: Fit | Layer) -> tuple[str, ...]:
    """Registered blueprints that fit ``layout``, in the order of registration."""
    _load_entry_points()
    return tuple(name for name, each in _registered if each is _kind(layout))


def get(name: str, layout: Fit | Layer) -> Blueprint:
    """The blueprint ``name`` (or ``"module:ATTRIBUTE"``) for ``layout``. Raises ``UsageError`` if there is none."""
    kind = _kind(layout)
    here = f"layout {kind}" if isinstance(kind, Layout) else f"a site beside a layer of kind {kind}"
    if ":" in name:
        blueprint = find(name)
        if kind not in blueprint.layouts:
            raise UsageError(f"blueprint {name!r} does not fit {here}; it fits {', '.join(blueprint.layouts)}")
        return blueprint
    if (name, kind) not in _registered:
        _load_entry_points()
    if (name, kind) not in _registered:
        raise unknown(f"blueprint for {here}", name, names(kind))
    return _registered[name, kind]


def against(name: str, layout: Fit, may_mix: SiteMixing | None) -> str | None:
    """What speaks against the blueprint, by its declaration, where a site lets seeds mix ``may_mix``.

    ``None``: nothing does, as where nothing is declared or nothing was measured.
    """
    mixes = get(name, layout).mixes
    if may_mix is None:
        return None
    if not may_mix.channels:
        return "the host keeps apart what stands in its channels, and every seed mixes channels"
    if may_mix.first_alone and mixes is Positions.CAUSAL:
        return "it looks back only, and of what is behind it the host reads the first position alone"
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


def build(name: str, channels: int, layout: Fit) -> nn.Module:
    """A fresh seed, initialised from torch's global random stream. Raises ``UsageError`` where its declared parameter
    count is wrong.
    """
    blueprint = get(name, layout)
    module = blueprint.builder(channels, layout)
    declared = blueprint.size(channels, layout)
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
