"""Growing on from a previous run: its seeds are tried first on new data, and what it gave can be had again."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from cutting import CallCounter, Cut, Ended, in_child
from histories import bits, model_files
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import esper
from esper import delivery
from esper.kasmina.portable import Grown
from esper.kasmina.reuse import chains
from esper.leyline import Blend, DataError, EnvView, FactoredAction, GateThresholds, Op, SeedStage, UsageError
from esper.library import Budget, Grower, GrowResult, OwnChoices, grow
from esper.nissa.reader import read_journal
from esper.run import previous
from esper.tolaria.ledger import count
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


def grown(run_dir: Path | None, turned: bool = False, **given: Any) -> GrowResult:
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


def counterfactual_macs(run: Path) -> int:
    spent = [event.data for event in read_journal(run) if event.event_type.name == "COMPUTE_SPENT"]
    return int(spent[-1]["counterfactual_macs"])


X = products(64, 7)[0]


def outputs(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network.eval()(X)


def exported(run: Path) -> nn.Module:
    """By the ``model.py`` of the export, which needs no Esper."""
    told = spec_from_file_location("exported", run / "model" / "model.py")
    assert told is not None and told.loader is not None
    module = module_from_spec(told)
    told.loader.exec_module(module)
    loaded: nn.Module = module.load()
    return loaded


def test_new_seeds_grow_on_those_of_the_previous_run_and_what_it_gave_is_there_again(
    first: Path, tmp_path: Path
) -> None:
    old = outputs(esper.apply(model(), first))
    result = grown(tmp_path / "second", turned=True, previous=first)
    assert torch.equal(outputs(exported(tmp_path / "second")), outputs(result.model))
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
    passes = [
        count(lambda each=each: each(X), len(X), model=each).forward for each in (esper.apply(model(), first), model())
    ]
    assert 0 < passes[1] < passes[0]
    assert counterfactual_macs(tmp_path / "helped") == 256 * sum(passes), "with the seed, and without it"


def test_such_a_run_goes_on_after_an_interruption(first: Path, tmp_path: Path) -> None:
    judging: list[int] = []

    class Breaking(KeepOne):
        name = "keep-one"

        def actions(self, view: EnvView, slot: str) -> dict[SeedStage, FactoredAction]:
            judging.append(view.spent_before["counterfactual_macs"])
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
    passes = [count(lambda each=each: each(X), len(X), model=each) for each in (esper.apply(model(), first), model())]
    assert set(judging) == {256 * sum(each.forward for each in passes)}, "as policies see it, the resumed run's too"
    for mine, other in zip(resumed.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    with esper.as_before(resumed.model, first):
        assert torch.equal(outputs(resumed.model), outputs(esper.apply(model(), first)))


class KeepLow(KeepOne):
    def actions(self, view: EnvView, slot: str) -> dict[SeedStage, FactoredAction]:
        low = FactoredAction(Op.GERMINATE, slot, "lora4", Blend.LINEAR, 1.0, 1)
        return {**super().actions(view, slot), SeedStage.DORMANT: low}


def test_beside_a_module_new_seeds_stay_apart(first: Path, tmp_path: Path) -> None:
    result = grown(tmp_path / "run", turned=True, previous=first, at=["+3"], policy=KeepLow())
    assert isinstance(result.model.get_submodule("3"), Grown)
    old = outputs(esper.apply(model(), first))
    assert not torch.equal(outputs(result.model), old)
    with esper.as_before(result.model, first):
        assert torch.equal(outputs(result.model), old)


def test_other_classes_have_a_head_of_their_own_and_the_old_answers_are_there_with_the_old_head(tmp_path: Path) -> None:
    beside: dict[str, Any] = {"at": ["+3"], "policy": KeepLow()}
    first, second = tmp_path / "first", tmp_path / "second"
    base = grown(first, budget=replace(BUDGET, fold=False), **beside).model
    assert isinstance(base.get_submodule("3"), Grown), "not folded"
    old = outputs(base)
    x, y = products(512, 3)
    others = DataLoader(TensorDataset(x, (3 - y).clamp(max=2)), 64)
    data: dict[str, Any] = {"train": others, "val": others}
    fresh = nn.Linear(8, 3)
    network = model()
    network[5] = fresh
    was = {name: each.clone() for name, each in fresh.state_dict().items()}
    budget = replace(BUDGET, epochs=1, previous=first, fresh=("5",))
    tried = grown(tmp_path / "tried", network=network, previous=first, budget=budget, policy="static", **data)
    assert counterfactual_macs(tmp_path / "tried") == 0, "nothing can be judged by a head that knows nothing"
    (weight, _) = tried.model.get_submodule("5").parameters()
    assert torch.equal(weight, was["weight"]) is False and (weight - was["weight"]).abs().max() < 0.1, (
        "it went on from its own"
    )
    other = model()
    other[5] = nn.Linear(8, 3)
    given = {"network": other, **data}
    result = grown(second, previous=first, budget=replace(budget, epochs=6), **given, **beside)
    assert chains({n for n, each in result.model.named_modules() if isinstance(each, Grown)}) == {
        "3": ["3", "3.module"]
    }
    new = outputs(result.model)
    other = model()
    other[5] = nn.Linear(8, 3)
    with pytest.raises(UsageError, match="tensors differ, among them '5.weight'"):
        esper.apply(other, first)
    for again in (result.model, esper.apply(esper.apply(other, first, fresh=("5",)), second)):
        assert torch.equal(outputs(again), new) and new.shape != old.shape
        with esper.as_before(again, first, fresh=("5",)):
            assert torch.equal(outputs(again), old)
        assert torch.equal(outputs(again), new)
        with pytest.raises(UsageError, match="'5.(weight|bias)' of the Sequential is not what .* was trained since"):
            with esper.as_before(again, first):
                pass
    again[5] = nn.Linear(8, 3, bias=False)
    with pytest.raises(UsageError, match="'5.bias' is in only one of the Sequential and .* of the same modules"):
        with esper.as_before(again, first, fresh=("5",)):
            pass
    again[5] = nn.Sequential(nn.Linear(8, 4))
    with pytest.raises(UsageError, match="'5.(weight|bias)' is in only one"), esper.as_before(again, first, ("5",)):
        pass


@pytest.mark.parametrize("of", ["a parameter", "a buffer", "a module"])
def test_a_fresh_part_that_shares_a_tensor_with_the_rest_is_refused(first: Path, of: str) -> None:
    network = model()
    if of == "a parameter":
        network[5].bias = nn.Parameter(torch.zeros(4))
        network.register_parameter("tied", network[5].bias)
    elif of == "a buffer":
        network[5].register_buffer("mean", torch.zeros(8))
        network.register_buffer("tied", network[5].mean)
    else:
        network.tied = network[5]
    before = {name: each.clone() for name, each in network.state_dict().items()}
    with pytest.raises(UsageError, match=r"fresh has '5\.\w+', which is also 'tied.* of what .* delivered; legal is"):
        previous.Previous.of(network, replace(BUDGET, previous=first, fresh=("5",)))
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())
    assert not any(isinstance(module, Grown) for module in network.modules()) and network.training


def test_a_fresh_part_without_weights_is_refused(first: Path) -> None:
    network = model()
    network[5] = nn.LazyLinear(4)
    with pytest.raises(UsageError, match=r"fresh has '5\.weight', which is lazy and has no weights yet; legal is"):
        previous.Previous.of(network, replace(BUDGET, previous=first, fresh=("5",)))
    assert not any(isinstance(module, Grown) for module in network.modules())


def test_a_fresh_part_within_what_carries_a_seed_is_refused(tmp_path: Path) -> None:
    def nested() -> nn.Sequential:
        return nn.Sequential(model(), nn.Identity())

    grown(tmp_path / "first", network=nested(), at=["0"])
    for network in (nested(), esper.apply(nested(), tmp_path / "first")):
        path = "0.5" if isinstance(network[0], nn.Sequential) else "0.module.5"
        modules = list(network.modules())
        with pytest.raises(UsageError, match=f"fresh names '{path}', and .* grew a seed at '0'; legal is"):
            esper.apply(network, tmp_path / "first", fresh=(path,))
        assert list(network.modules()) == modules


def test_a_call_that_is_refused_leaves_the_model_as_it_was(first: Path, tmp_path: Path) -> None:
    network = model().train()
    network[1].eval()
    network[3].requires_grad_(False)

    def state() -> dict[str, Any]:
        learning = {name: each.requires_grad for name, each in network.named_parameters()}
        return {"modules": {name: each.training for name, each in network.named_modules()}, "learning": learning}

    before, tensors = state(), {name: each.clone() for name, each in network.state_dict().items()}
    bare = tmp_path / "bare"
    grown(bare, policy="static")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "a file").touch()
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"budget": replace(BUDGET, epochs=1, gates=GateThresholds())}, "Budget.epochs is 1"),
        ({"budget": replace(BUDGET, blueprints=("nothing",))}, "unknown blueprint 'nothing'"),
        ({"at": ["9"]}, "unknown submodule '9'"),
        ({"metric": "best"}, "unknown metric 'best'"),
        ({"run_dir": taken}, "taken"),
        ({"previous": bare}, "delivered no seed"),
        ({"budget": replace(BUDGET, previous=first, fresh=("head",))}, "submodule in fresh 'head'"),
        ({"budget": replace(BUDGET, previous=first, fresh=("2",))}, "fresh names '2', and .* grew a seed at '2'"),
        ({"budget": replace(BUDGET, previous=first, fresh=("3",))}, "Budget.fresh names '3', of which nothing learns"),
    )
    for number, (given, message) in enumerate(cases):
        with pytest.raises(UsageError, match=message):
            grown(**{"run_dir": tmp_path / f"run{number}", "network": network, "previous": first, **given})
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
        ({"network": other}, UsageError, "(has no submodule|is not like the one that).* legal is a fresh model"),
        ({"previous": tmp_path / "nowhere"}, UsageError, "holds no exported model"),
        ({"previous": damaged}, DataError, "model.safetensors cannot be read: .* give a run whose export is whole"),
        ({"previous": 3}, UsageError, "Budget.previous is 3; legal: the directory of a run"),
        ({"previous": bare}, UsageError, "delivered no seed, so nothing can be tried"),
        ({"optimizer": optimizer}, UsageError, "new seeds alone learn"),
    ):
        with pytest.raises(kind, match=message) as caught:
            grown(tmp_path / "run", **{"previous": first, **given})
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="it is for Budget.previous"):
        Budget(fresh=("5",))
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


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_and_ends_as_if_it_had_not_been(first: Path, tmp_path: Path) -> None:
    import torch._dynamo

    budget = replace(BUDGET, previous=first, checkpoint_every=1)

    def learn(folder: Path, resume: bool = False, cut: Cut | None = None) -> Ended:
        def work() -> int:
            sys.setprofile(None if cut is None else CallCounter(cut))
            where = {"resume": folder / "run", "run_dir": None} if resume else {"run_dir": folder / "run"}
            result = grown(turned=True, previous=first, budget=budget, **where)
            torch.save(result.model.state_dict(), folder / "end.pt")
            return 0

        folder.mkdir(exist_ok=True)
        return in_child(work, folder / "log")

    assert (ended := learn(tmp_path / "whole")).status == 0, ended.said
    end = torch.load(tmp_path / "whole" / "end.pt", weights_only=True)
    counted = 0
    for number in range(12):
        folder, draw = tmp_path / f"cut{number}", random.Random(number)
        if learn(folder, cut=Cut(draw.randrange(5, 24), function="trainer.after_backward")).status == 0:
            continue
        counted += 1
        learn(folder, resume=True, cut=Cut(draw.randrange(1, 12), function="trainer.after_backward"))
        if not (folder / "end.pt").exists():
            assert (ended := learn(folder, resume=True)).status == 0, ended.said
        mine = torch.load(folder / "end.pt", weights_only=True)
        assert {name: bits(each) for name, each in mine.items()} == {name: bits(each) for name, each in end.items()}
        assert model_files(folder / "run") == model_files(tmp_path / "whole" / "run")
    assert counted > 8
