"""Weights that installed packages carry: found without importing the package, checked, read without pickle's code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from esper.leyline import DataError
from esper.tasks.sources import package_file


@dataclass(frozen=True, slots=True)
class Weights:
    """A file of weights in a package, and what it must be."""

    package: str
    path: str
    sha256: str
    extra: str
    """That installs the package."""
    unused: tuple[str, ...] = ()
    """Beginnings of the names that the host has no place for: parts that it leaves out."""


def load_into(module: nn.Module, weights: Weights) -> None:
    """Copy the weights into ``module``: every one of them but the unused, and every one that it has.

    Raises ``MissingExtraError`` without the package, ``DataError`` where the file is another one or does not fit.
    """
    values = _read(weights)
    try:
        module.load_state_dict(dict(values), strict=True)
    except RuntimeError as error:
        raise DataError(f"weights of {weights.package} do not fit: {error}") from error


@cache
def _read(weights: Weights) -> Mapping[str, Tensor]:
    """Read and checked once a process; whoever loads copies from it."""
    file = package_file(weights.package, weights.path, extra=weights.extra)
    check_sha256(file, weights.sha256)
    try:
        values = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    except (OSError, RuntimeError, ValueError, SafetensorError, UnpicklingError) as error:
        raise DataError(f"{file}: not readable weights: {error}") from error
    return {name: value for name, value in values.items() if not name.startswith(weights.unused)}


def check_sha256(file: Path, expected: str) -> None:
    """Raises ``DataError`` where the file's bytes are not the ones that were pinned."""
    try:
        with file.open("rb") as source:
            given = hashlib.file_digest(source, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    if given != expected:
        raise DataError(f"{file}: sha256 is {given[:16]}…, not {expected[:16]}…; another version was meant")
