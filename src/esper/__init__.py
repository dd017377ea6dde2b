"""Esper grows neural networks while they train.

``import esper`` loads no torch: ``grow`` and ``export`` are found on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esper._version import __version__

if TYPE_CHECKING:
    from esper.kasmina.export import export as export
    from esper.library import grow as grow

__all__ = ["__version__", "export", "grow"]


def __getattr__(name: str) -> Any:
    if name == "grow":
        from esper.library import grow

        return grow
    if name == "export":
        from esper.kasmina.export import export

        return export
    raise AttributeError(f"module 'esper' has no attribute {name!r}; it has {', '.join(__all__)}")
