"""Run configuration: flags beat the file, the file beats the task's preset, the preset beats the default.

Every value remembers where it came from, so that ``run.json`` can say so.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from esper.leyline import UsageError
from esper.nissa import manifest
from esper.nissa.manifest import Setting


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What a heuristic run is asked to do. ``None`` leaves the choice to the task's preset."""

    task: str = "digits"
    policy: str = "heuristic"
    compare: tuple[str, ...] = ("random", "static")
    """Policies that run beside it on the same seeds; each is an arm of its own."""
    episodes: int = 3
    max_epochs: int | None = None
    slots: tuple[str, ...] | None = None
    blueprints: tuple[str, ...] | None = None
    max_seeds: int | None = None
    param_budget: int | None = None
    """Most parameters of all live seeds together."""
    batch_size: int | None = None
    lr: float | None = None
    seed_lr_multiplier: float | None = None
    incubation: str | None = None
    seed: int = 0
    device: str = "auto"
    threads: int = 1
    """Torch's intra-op threads; small models are faster on one."""
    run_dir: str | None = None
    telemetry_level: str = "normal"
    telemetry_lifecycle_only: bool = False
    diagnostics_profile: str | None = None
    diagnostics_every: int = 10
    """Epochs."""
    counterfactual_every: int = 1
    """Epochs."""
    checkpoint_every: int = 10
    """Epochs between checkpoints; 0 writes one only when the run is interrupted."""
    export: bool = True
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("episodes", "threads", "diagnostics_every", "counterfactual_every"):
            _at_least(name, getattr(self, name), 1)
        for name in ("max_epochs", "max_seeds", "param_budget", "batch_size"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        _at_least("checkpoint_every", self.checkpoint_every, 0)
        for name in ("lr", "seed_lr_multiplier"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}; it must be above 0")


C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Resolved(Generic[C]):
    """A configuration and, per field, its value with the source of it."""

    config: C
    settings: dict[str, Setting]


def resolve(
    of: type[C],
    flags: Mapping[str, Any],
    file: Mapping[str, Any] | None = None,
    preset: Mapping[str, Any] | None = None,
) -> Resolved[C]:
    """Merge the layers into the configuration dataclass ``of``.

    Raises ``UsageError`` for an unknown key, a wrong type or a value out of range.
    """
    declared: tuple[Field[Any], ...] = fields(of)  # type: ignore[arg-type]
    kinds = {each.name: str(each.type) for each in declared}
    settings = manifest.resolve(
        {each.name: each.default for each in declared},
        preset=_checked(preset or {}, kinds),
        file=_checked(file or {}, kinds),
        flag=_checked(flags, kinds),
    )
    return Resolved(of(**{name: setting.value for name, setting in settings.items()}), settings)


def _checked(layer: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, Any]:
    return {name: _coerce(name, value, kinds[name]) if name in kinds else value for name, value in layer.items()}


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read a TOML or JSON file of configuration keys (``-`` and ``_`` are the same). Raises ``UsageError``."""
    path = Path(path)
    if path.suffix not in (".toml", ".json"):
        raise UsageError(f"configuration file {path}: the name must end in .toml or .json")
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise UsageError(f"configuration file {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"configuration file {path}: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"configuration file {path}: holds a {type(content).__name__}, a table of keys is needed")
    return {key.replace("-", "_"): value for key, value in content.items()}


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{name} is {value}; it must be {least} or more")


def _coerce(name: str, value: Any, annotation: str) -> Any:
    """Check ``value`` against the field's annotation; lists become tuples, comma-separated text too."""
    optional = "None" in annotation
    if value is None and optional:
        return None
    if annotation.startswith("tuple"):
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, (list, tuple)) and all(isinstance(part, str) for part in parts):
            return tuple(part.strip() for part in parts if part.strip())
        raise UsageError(f"{name} is {value!r}; a list of names is needed")
    kinds = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
    wanted = [kind for kind in annotation.split(" | ") if kind in kinds]
    legal = tuple(kind for each in wanted for kind in kinds[each])
    if not isinstance(value, legal) or (isinstance(value, bool) and "bool" not in wanted):
        article = "an" if wanted[0] == "int" else "a"
        raise UsageError(f"{name} is {value!r}; {article} {' or '.join(wanted)} is needed")
    return float(value) if wanted == ["float"] else value
