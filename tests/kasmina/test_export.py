"""Exported models: the same outputs, plain modules, files that need only torch."""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_hosts import CASES, grow, put_seed, wrapped
from torch import Tensor, nn

from esper.kasmina import export as export_module
from esper.kasmina.export import compare, export, save_export, save_onnx, to_program
from esper.kasmina.growing import GrowingModel
from esper.kasmina.portable import Grown
from esper.kasmina.replay import same
from esper.kasmina.slot import SeedSlot
from esper.leyline import DataError, MissingExtraError, SeedStage, UsageError
from esper.tasks.hosts import PointwiseHost2d

CLOSE = 1e-5
"""Single precision, outputs near 1: an exported model's sums may be in another order."""


def loaded(code: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"exported_{code.parent.name}", code)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", CASES)
def test_the_plain_model_gives_the_same_and_holds_nothing_of_ours_that_runs(name: str) -> None:
    model, sample = wrapped(name)
    grow(model)
    model.eval()
    plain = export(model)
    assert compare(model, plain, sample).largest <= CLOSE
    assert not plain.training
    assert not any(isinstance(module, SeedSlot | GrowingModel) for module in plain.modules())
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in plain.modules())
    with torch.no_grad():
        before = model(sample)
        for parameter in plain.parameters():
            parameter.zero_()
        assert same(model(sample), before)


def test_what_takes_no_part_is_left_out() -> None:
    model, sample = wrapped("pointwise")
    put_seed(model, "blocks_0", SeedStage.TRAINING)
    put_seed(model, "blocks_1", SeedStage.HOLDING, 1.0)
    put_seed(model, "blocks_2", SeedStage.FOSSILIZED, 1.0)
    plain = export(model.eval())
    assert [name for name, module in plain.named_modules() if isinstance(module, Grown)] == ["blocks.1", "blocks.2"]
    assert compare(model, plain, sample).largest <= CLOSE
    kept = export(model, stages={SeedStage.FOSSILIZED})
    assert [name for name, module in kept.named_modules() if isinstance(module, Grown)] == ["blocks.2"]
    with model.alphas({"blocks_1": 0.0}):
        assert compare(model, kept, sample).largest <= CLOSE


def test_without_seeds_the_plain_model_is_the_host() -> None:
    model, sample = wrapped("residual")
    plain = export(model.eval())
    assert list(plain.state_dict()) == list(model.host.state_dict())
    with torch.no_grad():
        assert same(plain(sample), model(sample))


@pytest.mark.parametrize("name", CASES)
def test_files_give_the_model_back(name: str, tmp_path: Path) -> None:
    model, sample = wrapped(name)
    grow(model)
    model.eval()
    files = save_export(model, tmp_path, sample)
    assert not files.needs_host
    module = loaded(files.code)
    assert compare(export(model), module.load(), sample).largest <= CLOSE
    assert compare(export(model), module.load(CASES[name].build), sample).largest <= CLOSE


class Configured(nn.Module):
    """Keeps an object that has no form as source."""

    def __init__(self) -> None:
        super().__init__()
        self.config = object()
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 8)
        self.last.weight = self.middle = nn.Parameter(torch.randn(8, 8))
        self.register_buffer("shift", torch.randn(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) @ self.middle + self.shift)


def test_a_host_that_cannot_be_written_is_given_to_load_and_ties_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sample = torch.randn(3, 6)
    model = GrowingModel.wrap(Configured(), ["first"], sample)
    put_seed(model, "first", SeedStage.HOLDING, 0.5)
    files = save_export(model.eval(), tmp_path, sample)
    assert files.needs_host
    module = loaded(files.code)
    with pytest.raises(TypeError, match="needs a Configured"):
        module.load()
    again = module.load(Configured())
    assert compare(model, again, sample).largest <= CLOSE
    assert again.last.weight is again.middle
    assert torch.equal(again.shift, model.host.shift)
    assert set(load_file(files.weights)) & {"middle", "last.weight"} == {"middle"}


def test_a_built_in_host_needs_neither_esper_nor_safetensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sample = torch.randn(4, 1, 8, 8)
    model = GrowingModel.wrap(PointwiseHost2d(8, 10), "auto", sample)
    grow(model)
    model.eval()
    files = save_export(model, tmp_path, sample)
    with torch.no_grad():
        save_file({"sample": sample, "output": model(sample)}, tmp_path / "expected.safetensors")
    code = """
import sys
sys.modules["esper"] = sys.modules["safetensors"] = None
import model, torch
expected = model.read_tensors("expected.safetensors")
print(float((model.load()(expected["sample"]) - expected["output"]).abs().max()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert float(done.stdout) <= CLOSE
    assert "import esper" not in files.code.read_text() and "from esper" not in files.code.read_text()


class Detour(nn.Module):
    """Reaches its block by a list that is not registered."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(6, 6)
        self.hidden = [self.block]

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0](x).tanh()


def test_a_host_that_goes_around_its_paths_is_refused(tmp_path: Path) -> None:
    model = GrowingModel.wrap(Detour(), ["block"], torch.randn(2, 6))
    put_seed(model, "block", SeedStage.HOLDING, 1.0)
    with pytest.raises(UsageError, match="by another way"):
        save_export(model, tmp_path, torch.randn(2, 6))


def test_what_is_loaded_to_be_compared_draws_nothing_from_the_process(tmp_path: Path) -> None:
    model, sample = wrapped("pointwise")
    grow(model)
    before = torch.get_rng_state()
    save_export(model.eval(), tmp_path, sample)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("code", "where", "told"),
    [(errno.EIO, None, "Input/output error"), (errno.EACCES, None, "denied"), (errno.EACCES, "model.py", "denied")],
)
def test_files_that_fail_are_not_a_host_that_cannot_be_written(
    code: int, where: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*given: object) -> None:
        raise OSError(code, os.strerror(code), *([str(tmp_path / where)] if where else []))

    model, sample = wrapped("pointwise")
    built = compare(model.eval(), export(model), sample)
    monkeypatch.setattr(export_module, "compare", lambda one, *more: built if one is model else unread())
    with pytest.raises(UsageError, match=rf"cannot write the export to .*{told}"):
        save_export(model, tmp_path, sample)


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    model, sample = wrapped("mlp")
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="cannot write the export to .*taken"):
        save_export(model, tmp_path / "taken", sample)


@pytest.mark.slow  # torch imports its compiler
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["pointwise", "structured", "encoder"])
def test_graphs_give_the_same(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, sample = wrapped(name)
    grow(model)
    plain = export(model.eval())
    expected = plain(sample)
    if isinstance(expected, dict):
        expected = expected["logits"]

    graph = to_program(plain, sample).module()(sample)
    assert torch.allclose(graph["logits"] if isinstance(graph, dict) else graph, expected, atol=CLOSE)
    smaller = to_program(plain, sample).module()(sample[:2])
    assert (smaller["logits"] if isinstance(smaller, dict) else smaller).shape[0] == 2

    session = onnxruntime.InferenceSession(save_onnx(plain, sample, tmp_path / "model.onnx"))
    found = session.run(None, {session.get_inputs()[0].name: sample.numpy()})
    assert torch.allclose(torch.from_numpy(found[0]), expected, atol=CLOSE)


def test_onnx_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="'onnx'"):
        save_onnx(nn.Linear(2, 2), torch.randn(1, 2), tmp_path / "model.onnx")


@pytest.mark.parametrize("grown_again", [True, False])
def test_an_exported_model_can_be_wrapped_and_exported_again(grown_again: bool, tmp_path: Path) -> None:
    model, sample = wrapped("pointwise")
    put_seed(model, "blocks_1", SeedStage.FOSSILIZED, 1.0)
    again = GrowingModel.wrap(export(model.eval()), ["blocks.1", "blocks.2", "blocks.1.module"], sample)
    if grown_again:
        put_seed(again, "blocks_1", SeedStage.FOSSILIZED, 0.5)
        put_seed(again, "blocks_1_module", SeedStage.FOSSILIZED, 0.5)
    again.eval()
    exported = save_export(again, tmp_path, sample)
    assert compare(again, loaded(exported.code).load(), sample).largest <= CLOSE


def test_an_export_goes_through_no_link(tmp_path: Path) -> None:
    outside, where = tmp_path / "outside.py", tmp_path / "model"
    outside.write_text("mine")
    where.mkdir()
    for name in ("model.py", "model.safetensors"):
        (where / name).symlink_to(outside)
    model, sample = wrapped("mlp")
    save_export(model, where, sample)
    assert outside.read_text() == "mine" and not (where / "model.py").is_symlink()
    (tmp_path / "linked").symlink_to(where)
    with pytest.raises(DataError, match="linked: a link"):
        save_export(model, tmp_path / "linked", sample)
