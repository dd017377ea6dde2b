"""Sites beside modules, as a user writes them: a path, or how paths end, with ``+`` before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from torch import nn

from esper.kasmina.probe import Site
from esper.leyline import UsageError, unknown

BESIDE: Final = "+"
"""Before a path: a seed sees the module's input and adds to its output."""

Written = str | Site

Sites = Mapping[str, Written] | Sequence[Written]
"""slot -> submodule path, or paths alone (a slot is then named after its path, with ``_`` for ``.``), or ``"auto"``.

``"+path"`` is a site beside the module. ``"+name"`` in a list stands for every module whose path ends so, as in PEFT's
``target_modules``; a whole path names that module alone.
"""


def site_of(written: Written) -> Site:
    """The site that is written as a path, ``+`` before it for one beside the module."""
    if isinstance(written, Site):
        return written
    if written.startswith(BESIDE):
        return Site(written.removeprefix(BESIDE), beside=True)
    return Site(written)


def spread(host: nn.Module, sites: Sites) -> Sites:
    """The sites with whole paths: in a list, the end of paths becomes every module whose path ends so.

    Raises ``UsageError`` where no path ends so, or in a mapping several.
    """
    if isinstance(sites, str) or not all(isinstance(each, Written) for each in _each(sites)):
        return sites
    if not isinstance(sites, Mapping):
        return [each for written in sites for each in _matching(host, site_of(written))]
    found: dict[str, Written] = {}
    for name, written in sites.items():
        first, *others = _matching(host, site_of(written))
        if others:
            raise UsageError(
                f"{str(written)!r} of slot {name!r} names {1 + len(others)} modules"
                f" ({first.path}, {others[0].path}, ...); legal: a whole path, or at=[...], which gives each a slot"
            )
        found[name] = first
    return found


def _each(sites: Sites) -> Sequence[Written]:
    return list(sites.values() if isinstance(sites, Mapping) else sites)


def _matching(host: nn.Module, site: Site) -> list[Site]:
    """The site, or for one beside a module those whose path ends so."""
    if not site.beside or site.path in dict(host.named_modules(remove_duplicate=False)):
        return [site]
    paths = [path for path, _ in host.named_modules() if path]
    ending = [path for path in paths if path.endswith(f".{site.path}")] if site.path else []
    if not ending:
        raise unknown("submodule", site.path, paths)
    return [Site(path, site.layout, site.batch_axis, beside=True) for path in ending]
