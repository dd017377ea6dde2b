"""Makes Esper's environments known to Gymnasium: at once where it is imported already, else when it is.

Gymnasium reads no entry points of other packages; what registers an environment is an import. ``import esper`` is that
import, before Gymnasium's or after it, and ``gymnasium.make("esper:esper/Grow-v0")`` makes it itself, in any process.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

_GROW, _TABLE = "esper.simic.env:Grow", "esper.bench.growtable.env:GrowTable"
ENVIRONMENTS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "esper/Grow-v0": (_GROW, {}),
    "esper/GrowFlat-v0": (_GROW, {"actions": "joint"}),
    "esper/GrowTable-v0": (_TABLE, {}),
    "esper/GrowTableFlat-v0": (_TABLE, {"actions": "joint"}),
}
"""Id -> where its classes ``...Env`` and ``...VectorEnv`` are, and the keywords that they are made with."""


def register() -> None:
    """Put every environment that is missing in Gymnasium's registry; the modules are imported when one is made."""
    import gymnasium

    for name, (place, keywords) in ENVIRONMENTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point=f"{place}Env",
                vector_entry_point=f"{place}VectorEnv",
                kwargs=dict(keywords),
            )


class _Behind(MetaPathFinder):
    """Waits for ``import gymnasium``, and registers behind it."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Gymnasium's own spec, whose execution ends with :func:`register`; nothing for any other name."""
        if name != "gymnasium":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)
            return None
        execute = spec.loader.exec_module

        def then_register(module: ModuleType) -> None:
            execute(module)
            register()

        spec.loader.exec_module = then_register  # type: ignore[method-assign]
        return spec


def register_when_imported() -> None:
    """Register now, or as soon as there is something to register with."""
    if sys.modules.get("gymnasium") is not None:
        register()
    elif not any(isinstance(finder, _Behind) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Behind())
