"""A run's state as a dictionary that a user puts in a checkpoint of his own.

``torch.save`` takes it and ``torch.load(weights_only=True)`` gives it back: tensors by name, numbers and text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from esper._version import __version__
from esper.leyline import DataError
from esper.run.resume import Snapshot
from esper.tolaria import checkpoint
from esper.tolaria.checkpoint import Loaded

FORMAT: Final = "esper-growth"
VERSION: Final = 1


def pack(shot: Snapshot, step: int, run: Path) -> dict[str, Any]:
    """The snapshot of the run in the directory ``run`` after so many epochs."""
    about = {"step": step, "run": str(run), "environment": checkpoint.environment(shot.gpus), "extra": shot.extra}
    return {
        "format": FORMAT,
        "version": VERSION,
        "tensors": _own(shot.state["tensors"]),
        "plain": json.dumps(checkpoint.encode(shot.state["plain"]), allow_nan=False),
        "about": json.dumps(about, allow_nan=False),
    }


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies; what is one tensor under several names stays one. The run goes on with what they were made of."""
    copies = {id(tensor): tensor.detach().clone() for tensor in tensors.values()}
    return {name: copies[id(tensor)] for name, tensor in tensors.items()}


def unpack(state: Any) -> tuple[Loaded, Path]:
    """Undo of :func:`pack`: what was saved, and the run directory that it belongs to. Raises ``DataError``."""
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        kind = f"a dictionary with {', '.join(map(repr, list(state)[:5]))}" if isinstance(state, Mapping) else state
        raise DataError(f"{kind} is no state of a Grower; give load_state_dict() what grower.state_dict() gave")
    if state.get("version") != VERSION:
        raise DataError(
            f"the state of a Grower has format version {state.get('version')}; this Esper {__version__} reads {VERSION}"
        )
    try:
        about, plain = json.loads(state["about"]), checkpoint.decode(json.loads(state["plain"]))
        run = Path(about["run"])
        loaded = Loaded(
            path=run,
            step=about["step"],
            tensors=dict(state["tensors"]),
            plain=plain,
            extra=about["extra"],
            environment=about["environment"],
            passed_over=[],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the state of a Grower is damaged: {type(error).__name__}: {error}") from error
    return loaded, run
