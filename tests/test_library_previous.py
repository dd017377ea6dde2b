"""Growing on from a previous run: its seeds are tried first on new data, and what it gave can be had again."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import esper
from esper import delivery
from esper.kasmina.portable import Grown
from esper.kasmina.reuse import chains
from esper.leyline import Blend, DataError, EnvView, FactoredAction, GateThresholds, Op, SeedStage, UsageError
from esper.library import Budget, Grower, GrowResult, OwnChoices, grow
from esper.run import previous
from four_classes import KeepOne
from own_loop import products

pytestmark = pytest.mark.usefixtures("without_figures")

LOSS = nn.CrossEntropyLoss()
KEEP = GateThresholds(min_training_epochs=0, min_holding_epochs=0, ask_for_gain=False)
BUDGET = Budget(epochs=6, parameters=5000, lr=1e-2, gates=KEEP)


def model() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def batches(n: int, seed: int, turned: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    """The task; ``turned`` is another: the features in another order."""
    x, y = products(n, seed)
    return DataLoader(TensorDataset(x.roll(1, 1) if turned else x, y), 64)


def grown(run_dir: Path, turned: bool = False, **given: Any) -> GrowResult:
    right: dict[str, Any] = {"at": ["2"], "policy": KeepOne(), "budget": BUDGET, "loss": LOSS, "run_dir": run_dir}
    network, previous = given.pop("network", None), given.pop("previous", None)
    given["budget"] = replace(given.get("budget", BUDGET), previous=previous)
    train, val = batches(256, 0, turned), batches(256, 1, turned)
    return grow(model() if network is None else network, **{**right, "train": train, "val": val, **given})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "write_report", partial(delivery.write_report, figures=False))
        grown(folder)
    return folder


X = products(64, 7)[0]


def outputs(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network.eval()(X)


def test_new_seeds_grow_on_those_of_the_previous_run_and_what_it_gave_is_there_again(
    first: Path, tmp_path: Path
) -> None:
    old = outputs(esper.apply(model(), first))
    result = grown(tmp_path / "second", turned=True, previous=first)
    names = {name for name, module in result.model.named_modules() if isinstance(module, Grown)}
    assert chains(names) == {"2": ["2", "2.module"]}
    new = outputs(result.model)
    assert not torch.equal(new, old), "the new seed does something"
    with esper.as_before(result.model, first):
        assert torch.equal(outputs(result.model), old)
    assert torch.equal(outputs(result.model), new)
    again = esper.apply(esper.apply(model(), first), tmp_path / "second")
    assert torch.equal(outputs(again), new)
    with esper.as_before(again, first):
        assert torch.equal(outputs(again), old)
    with pytest.raises(UsageError, match=r"grew on from an earlier run, .* lacks 1 of its seeds: apply that run first"):
        grown(tmp_path / "third", previous=tmp_path / "second")
    third = grown(tmp_path / "third", previous=tmp_path / "second", network=esper.apply(model(), first))
    for run, due in ((first, old), (tmp_path / "second", new)):
        with esper.as_before(third.model, run):
            assert torch.equal(outputs(third.model), due)


def test_a_seed_that_the_new_data_speak_against_is_off_and_comes_back(first: Path, tmp_path: Path) -> None:
    """The new targets are those that the network with the seed thinks the least likely."""
    whole = esper.apply(model(), first)
    seed = whole.get_submodule("2")
    assert isinstance(seed, Grown)
    old = outputs(whole)
    with torch.no_grad():
        sets = [(x, whole(x).argmin(1)) for x in (products(256, 3)[0], products(512, 5)[0])]
    seed.alpha = 0.0
    bare = outputs(whole)
    train, val = (DataLoader(TensorDataset(*each), 64) for each in sets)
    result = grown(tmp_path / "run", previous=first, policy="static", train=train, val=val)
    assert torch.equal(outputs(result.model), bare)
    with esper.as_before(result.model, first):
        assert torch.equal(outputs(result.model), old)
    assert torch.equal(outputs(esper.apply(esper.apply(model(), first), tmp_path / "run")), bare)
    helped = grown(tmp_path / "helped", previous=first, policy="static")
    assert torch.equal(outputs(helped.model), old), "on its own data it stays on"


def test_such_a_run_goes_on_after_an_interruption(first: Path, tmp_path: Path) -> None:
    class Breaking(KeepOne):
        name = "keep-one"

        def actions(self, view: EnvView, slot: str) -> dict[SeedStage, FactoredAction]:
            if view.epoch == 3 and not (tmp_path / "broken").exists():
                (tmp_path / "broken").touch()
                raise RuntimeError("broken")
            return {
                **super().actions(view, slot),
                SeedStage.DORMANT: FactoredAction(Op.GERMINATE, slot, "norm", Blend.LINEAR, 1.0, 1),
            }

    budget = Budget(epochs=6, parameters=5000, lr=1e-2, gates=KEEP, checkpoint_every=1)
    given: dict[str, Any] = {"turned": True, "previous": first, "budget": budget}
    with pytest.raises(RuntimeError, match="broken"):
        grown(tmp_path / "cut", policy=Breaking(), **given)
    with pytest.raises(DataError, match="cannot be resumed here: its model is"):
        grown(tmp_path / "cut", policy=Breaking(), **{**given, "previous": None}, resume=tmp_path / "cut")
    resumed = grown(tmp_path / "cut", policy=Breaking(), **given, resume=tmp_path / "cut")
    whole = grown(tmp_path / "whole", policy=Breaking(), **given)
    for mine, other in zip(resumed.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    with esper.as_before(resumed.model, first):
        assert torch.equal(outputs(resumed.model), outputs(esper.apply(model(), first)))


def test_beside_a_module_new_seeds_stay_apart(first: Path, tmp_path: Path) -> None:
    class KeepLow(KeepOne):
        def actions(self, view: EnvView, slot: str) -> dict[SeedStage, FactoredAction]:
            low = FactoredAction(Op.GERMINATE, slot, "lora4", Blend.LINEAR, 1.0, 1)
            return {**super().actions(view, slot), SeedStage.DORMANT: low}

    result = grown(tmp_path / "run", turned=True, previous=first, at=["+3"], policy=KeepLow())
    assert isinstance(result.model.get_submodule("3"), Grown)
    old = outputs(esper.apply(model(), first))
    assert not torch.equal(outputs(result.model), old)
    with esper.as_before(result.model, first):
        assert torch.equal(outputs(result.model), old)


def test_a_call_that_is_refused_leaves_the_model_as_it_was(first: Path, tmp_path: Path) -> None:
    network = model().train()
    network[1].eval()
    network[3].weight.requires_grad_(False)

    def state() -> dict[str, Any]:
        learning = {name: each.requires_grad for name, each in network.named_parameters()}
        return {"modules": {name: each.training for name, each in network.named_modules()}, "learning": learning}

    before, tensors = state(), {name: each.clone() for name, each in network.state_dict().items()}
    bare = tmp_path / "bare"
    grown(bare, policy="static")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "a file").touch()
    for given, message in (
        ({"budget": replace(BUDGET, epochs=1, gates=GateThresholds())}, "Budget.epochs is 1"),
        ({"budget": replace(BUDGET, blueprints=("nothing",))}, "nothing"),
        ({"at": ["9"]}, "9"),
        ({"metric": "best"}, "best"),
        ({"run_dir": taken}, "taken"),
        ({"previous": bare}, "delivered no seed"),
    ):
        with pytest.raises(UsageError, match=message):
            grown(**{"run_dir": tmp_path / "run", "network": network, "previous": first, **given})
        assert state() == before
        assert all(torch.equal(tensors[name], each) for name, each in network.state_dict().items())
    assert grown(tmp_path / "right", network=network, previous=first, policy="static").model is not network


def test_several_ranks_are_refused_before_the_model_is_touched(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        count = 2

    monkeypatch.setattr(previous, "present", Two)
    network = model()
    with pytest.raises(UsageError, match="Budget.previous is for one process"):
        previous.Previous.of(network, replace(BUDGET, previous=first))
    assert not any(isinstance(module, Grown) for module in network.modules()) and network.training


def test_what_cannot_be_gone_on_from_is_said_in_one_line(first: Path, tmp_path: Path) -> None:
    other = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))
    bare = tmp_path / "bare"
    grown(bare, policy="static")
    damaged = tmp_path / "damaged"
    (damaged / "model").mkdir(parents=True)
    content = (first / "model" / "model.safetensors").read_bytes()
    (damaged / "model" / "model.safetensors").write_bytes(content[: len(content) // 2])
    optimizer = torch.optim.AdamW(model().parameters())
    for given, kind, message in (
        ({"network": other}, UsageError, "has no submodule|is not like the one that"),
        ({"previous": tmp_path / "nowhere"}, UsageError, "holds no exported model"),
        ({"previous": damaged}, DataError, "cannot be read"),
        ({"previous": bare}, UsageError, "delivered no seed, so nothing can be tried"),
        ({"optimizer": optimizer}, UsageError, "new seeds alone learn"),
    ):
        with pytest.raises(kind, match=message) as caught:
            grown(tmp_path / "run", **{"previous": first, **given})
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    choices = OwnChoices(LOSS, budget=replace(BUDGET, previous=first))
    with pytest.raises(UsageError, match=r"Budget.previous is for grow\(\); in a loop of your own"):
        Grower(fresh := model(), torch.optim.AdamW(fresh.parameters()), val=batches(64, 1), choices=choices)
    trained = esper.apply(model(), first)
    with torch.no_grad():
        trained.get_submodule("5").bias.add_(1e-3)
    with pytest.raises(UsageError, match=r"'5.bias' of the Sequential is not what .* delivered: it was trained since"):
        with esper.as_before(trained, first):
            pass
    with pytest.raises(UsageError, match="lacks a seed that .* delivered at '2'"), esper.as_before(model(), first):
        pass
