"""``torch.compile`` on a host that grows.

A graph that was compiled before a module had hooks does not know of them, and torch does not look (its option
``skip_nnmodule_hook_guards``): such graphs are forgotten when slots come and go. What a slot reads in its hook is
guarded, so that a graph is made anew where a seed comes, is blended in or goes; older ones are forgotten then, since
torch keeps no more than eight. Passes that are made to find something out, with other alphas or with stand-ins for
modules, run as they are written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

_COMPILER: Final = "torch._dynamo"
"""Loaded only where something is compiled, or an optimizer was made: loading it takes seconds."""


@contextmanager
def as_written() -> Iterator[None]:
    """Within, what is compiled runs as it is written."""
    if _COMPILER not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def forget_graphs() -> None:
    """What is compiled is compiled anew when it is called again."""
    compiler: Any = sys.modules.get(_COMPILER)
    if compiler is not None:
        compiler.reset_code_caches()
