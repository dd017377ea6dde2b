"""What a run delivered, put into a fresh model of its class."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from small_hosts import CASES, grow, put_seed, wrapped
from test_beside import CASES as BESIDE
from test_beside import put
from test_beside import wrapped as wrapped_beside
from torch import nn

import esper
from esper.kasmina.export import export, save_export
from esper.kasmina.leaving import leave
from esper.kasmina.portable import GrownBeside
from esper.leyline import DataError, SeedStage, UsageError


@pytest.mark.parametrize("name", list(CASES))
def test_a_fresh_model_becomes_the_delivered_one(name: str, tmp_path: Path) -> None:
    model, sample = wrapped(name)
    grow(model)
    save_export(model, tmp_path / "model", sample)
    grown = export(model)
    torch.manual_seed(9)
    for where in (tmp_path, tmp_path / "model"):
        fresh = CASES[name].build()
        before = torch.get_rng_state()
        assert esper.apply(fresh, where) is fresh
        assert torch.equal(torch.get_rng_state(), before)
        assert list(fresh.state_dict()) == list(grown.state_dict())
        assert all(torch.equal(mine, grown.state_dict()[key]) for key, mine in fresh.state_dict().items())
        fresh.load_state_dict(grown.state_dict())


@pytest.mark.parametrize(
    ("name", "blueprint"), [*((name, "lora2") for name in BESIDE), ("images", "adapter16"), ("sounds", "adapter16")]
)
def test_seeds_beside_a_module_folded_and_not(name: str, blueprint: str, tmp_path: Path) -> None:
    model, sample = wrapped_beside(name)
    put(model, SeedStage.HOLDING, 0.7, blueprint)
    apart = bool(save_export(model, tmp_path, sample).unfolded)
    grown = export(model, sample=sample)
    fresh = BESIDE[name].build()
    esper.apply(fresh, tmp_path)
    assert apart is any(isinstance(module, GrownBeside) for module in fresh.modules())
    assert list(fresh.state_dict()) == list(grown.state_dict())
    assert all(torch.equal(mine, grown.state_dict()[key]) for key, mine in fresh.state_dict().items())
    with torch.no_grad():
        assert torch.equal(fresh(sample), grown(sample))
        expected = model.eval()(sample)
        twin = copy.deepcopy(model.host)
        assert torch.equal(twin(sample), expected)
        leave(model.host)
        assert torch.equal(model.host(sample), expected)


def test_what_does_not_fit_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    model, sample = wrapped("mlp")
    put_seed(model, "1", SeedStage.HOLDING, 1.0)
    save_export(model, tmp_path, sample)
    wider = CASES["mlp"].build()
    wider[-1] = nn.Linear(wider[-1].in_features, 9)
    for other, message in (
        (nn.Sequential(nn.Linear(6, 8)), "no submodule '1'"),
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU()), "which the model lacks"),
        (wider, "there and of"),
    ):
        modules, weights = list(other.modules()), {k: v.clone() for k, v in other.state_dict().items()}
        with pytest.raises(UsageError, match=message):
            esper.apply(other, tmp_path)
        assert list(other.modules()) == modules
        assert all(torch.equal(weights[name], each) for name, each in other.state_dict().items())
    with pytest.raises(UsageError, match="holds no exported model"):
        esper.apply(nn.Linear(2, 2), tmp_path / "nowhere")
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read"):
        esper.apply(nn.Linear(2, 2), tmp_path)


def test_a_seed_that_cannot_be_built_leaves_those_before_it_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    own = "from esper.kasmina import blueprints, layout\nmine = blueprints.get('mlp', layout.Layout.NC)\n"
    (tmp_path / "going_blueprints.py").write_text(own)
    model, sample = wrapped("mlp")
    put_seed(model, "1", SeedStage.HOLDING, 1.0)
    last = model.slots["3"]
    assert last.germinate("going_blueprints:mine").passed and last.state is not None
    last.state.stage, last.state.alpha = SeedStage.HOLDING, 1.0
    save_export(model, tmp_path, sample)
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "going_blueprints")
    fresh = CASES["mlp"].build()
    modules, random = list(fresh.modules()), torch.get_rng_state()
    with pytest.raises(UsageError, match="going_blueprints"):
        esper.apply(fresh, tmp_path)
    assert list(fresh.modules()) == modules and torch.equal(torch.get_rng_state(), random)
