"""Whatever way a run is left, a model grows on, is trained on, copied and saved like any other."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from esper.kasmina.portable import Grown
from esper.leyline import GateThresholds, UsageError
from esper.library import Budget, Grower, OwnChoices, grow
from four_classes import EPOCHS, KeepOne
from own_loop import LOSS, TRAIN, VALIDATION, epoch, narrow
from traces import of_model, of_optimizer, of_schedulers, ours

pytestmark = pytest.mark.usefixtures("without_figures")


class Reached(nn.Module):
    """A site that is not the host's own child, beside one that is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"b": nn.Sequential(nn.Linear(6, 8), nn.ReLU()), "b_0": nn.Linear(8, 8)})
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner["b"](x)
        return self.head(torch.relu(self.norm(self.inner["b_0"](h))))


class Encoder(nn.Module):
    """Its layer computes otherwise when it has hooks, so that the tap is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x).unsqueeze(1)).squeeze(1))


HOSTS: dict[str, tuple[Any, str]] = {
    "chain": (narrow, "1"),
    "reached": (Reached, "inner.b"),
    "encoder": (Encoder, "layer"),
}


def started(
    name: str, where: Path, policy: Any = None, **budget: Any
) -> tuple[nn.Module, torch.optim.Optimizer, Grower]:
    make, at = HOSTS[name]
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3 if name == "encoder" else 2e-2)
    # these hosts gain little: here a seed is let in by the sign of its gain alone
    given = {"epochs": EPOCHS, "parameters": 5000, "gates": GateThresholds(blending_z=0.0), **budget}
    choices = OwnChoices(LOSS, at=[at], budget=Budget(**given))
    grower = Grower(
        model, optimizer, val=VALIDATION, choices=choices, policy=policy or KeepOne(), run_dir=where / "run"
    )
    return model, optimizer, grower


class Mine(Exception):
    """A user's own."""


WAYS = ("normal", "error", "ctrl-c", "in mid-epoch", "on entering", "no blueprint")
QUICK = {("normal", "chain"), ("error", "encoder"), ("ctrl-c", "reached"), ("on entering", "encoder")}


@pytest.mark.parametrize(
    ("way", "name"),
    [pytest.param(way, name, marks=[] if (way, name) in QUICK else pytest.mark.slow) for way in WAYS for name in HOSTS],
)
def test_nothing_is_left(name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = {"blueprints": ("conv3x3",)} if way == "no blueprint" else {}
    model, optimizer, grower = started(name, tmp_path, **budget)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    before = of_model(model), of_optimizer(optimizer), of_schedulers([scheduler])
    if way == "on entering":
        monkeypatch.setattr("esper.run.loop.OwnLoop.begin", _raising(grower))
    raised = {"error": Mine(), "ctrl-c": KeyboardInterrupt(), "in mid-epoch": Mine(), "on entering": Mine()}.get(way)
    try:
        with grower:
            for _ in range(EPOCHS if way == "normal" else 5):
                epoch(grower, optimizer)
            assert ours(model), "while it grows there is something to be left"
            if way == "in mid-epoch":
                torch.autograd.backward(grower.loss(*TRAIN[0]))
            if raised is not None:
                raise raised
    except (Mine, KeyboardInterrupt, UsageError) as error:
        assert error is raised or type(error) is type(raised) or way == "no blueprint"
    assert not ours(model)
    assert (of_model(model), of_optimizer(optimizer), of_schedulers([scheduler])) == before
    again, _ = copy.deepcopy((model, optimizer))
    inputs = VALIDATION[0][0]
    assert torch.equal(again.eval()(inputs), model.eval()(inputs))
    pickled = pickle.loads(pickle.dumps(model))  # noqa: S301
    for copied in (pickled, _through_a_file(model)):
        assert torch.equal(copied(inputs), model(inputs))


def _raising(grower: Grower) -> Any:
    from esper.run.loop import OwnLoop

    begin = OwnLoop.begin

    def broken(self: OwnLoop) -> None:
        begin(self)
        raise Mine

    return broken


def _through_a_file(model: nn.Module) -> nn.Module:
    with io.BytesIO() as file:
        torch.save(model, file)
        file.seek(0)
        read: nn.Module = torch.load(file, weights_only=False)
    return read


@pytest.mark.parametrize(
    "name", ["encoder", *(pytest.param(name, marks=pytest.mark.slow) for name in ("chain", "reached"))]
)
def test_training_goes_on_with_what_has_grown(name: str, tmp_path: Path) -> None:
    model, optimizer, grower = started(name, tmp_path)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.95**step)
    with grower:
        for _ in range(EPOCHS):
            epoch(grower, optimizer)
            scheduler.step()
    inputs, targets = VALIDATION[0]
    model.eval()
    assert torch.equal(model(inputs), grower.result.model(inputs)), "in place it is the network of the result"
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    seeds = [p for n, p in model.named_parameters() if ".seed." in n]
    assert seeds and all(p in optimizer.state for p in group["params"])
    before = [p.detach().clone() for p in group["params"]]
    rate, losses = group["lr"], []
    model.train()
    for _ in range(3):
        total = 0.0
        for x, y in TRAIN:
            optimizer.zero_grad()
            loss = LOSS(model(x), y)
            torch.autograd.backward(loss)
            optimizer.step()
            total += float(loss.detach())
        losses.append(total)
        scheduler.step()
    assert losses[-1] < losses[0] and group["lr"] == pytest.approx(rate * 0.95**3)
    assert not any(torch.equal(p, was) for p, was in zip(group["params"], before, strict=True) if p.grad.any())
    result = grow(
        model,
        train=TRAIN,
        val=VALIDATION,
        loss=LOSS,
        optimizer=optimizer,
        at=[HOSTS[name][1]],
        policy=KeepOne(),
        budget=Budget(epochs=EPOCHS, parameters=5000, schedule="cosine"),
        run_dir=tmp_path / "second",
    )
    assert not ours(model) and group["lr"] == pytest.approx(rate * 0.95**3), "and it can be grown again"
    assert torch.equal(model.eval()(inputs), result.model(inputs))


def test_places_of_like_names_are_two(tmp_path: Path) -> None:
    make, _ = HOSTS["reached"]
    choices = OwnChoices(LOSS, at=["inner.b.0", "inner.b_0"], budget=Budget(epochs=1))
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Grower(model, optimizer, val=VALIDATION, choices=choices, policy="static", run_dir=tmp_path / "run") as grower:
        assert [slot.slot_id for slot in grower.view.slots] == ["inner_b_0", "inner_b_0_2"]
        epoch(grower, optimizer)


def test_a_change_of_directory_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for where in (None, "mine"):
        model, optimizer, _ = started("chain", tmp_path / "unused")
        choices = OwnChoices(LOSS, at=["1"], budget=Budget(epochs=2))
        grower = Grower(model, optimizer, val=VALIDATION, choices=choices, policy="static", run_dir=where)
        monkeypatch.chdir(tmp_path / "there")
        with grower:
            for _ in range(2):
                epoch(grower, optimizer)
        path = grower.result.run_dir
        assert path.is_absolute() and path.is_relative_to(tmp_path / "here")
        assert (path / "model" / "model.py").is_file() and (path / "report" / "report.md").is_file()
        assert not list((tmp_path / "there").iterdir())
        monkeypatch.chdir(tmp_path / "here")


@pytest.mark.parametrize("after", [0, 40])
def test_grow_that_fails_leaves_nothing(after: int, tmp_path: Path) -> None:
    model = narrow().eval()
    optimizer = torch.optim.SGD(
        [{"params": model[:2].parameters(), "lr": 0.1}, {"params": model[2:].parameters()}], 0.01
    )
    before = of_model(model), of_optimizer(optimizer), [group["lr"] for group in optimizer.param_groups]
    calls = 0

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += output.requires_grad
        if calls > after and output.requires_grad:
            raise Mine
        return LOSS(output, targets)

    with pytest.raises(Mine):
        grow(
            model,
            train=TRAIN,
            val=VALIDATION,
            loss=loss,
            optimizer=optimizer,
            at=["1"],
            policy=KeepOne(),
            budget=Budget(epochs=EPOCHS + 3, parameters=5000, schedule="cosine"),
            run_dir=tmp_path / "run",
        )
    assert calls == after + 1
    after_it = of_model(model), of_optimizer(optimizer), [group["lr"] for group in optimizer.param_groups]
    assert after_it == before and not ours(model) and not any(module.training for module in model.modules())


class Around(nn.Module):
    """A user's module around the host, as a LightningModule is, with a layer behind it."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.net, self.head = host, nn.Linear(4, 4)


def test_what_is_around_the_model_is_averaged_and_left_too(tmp_path: Path) -> None:
    model, optimizer, grower = started("chain", tmp_path)
    around = Around(model)
    before = of_model(around)
    with grower:
        average = AveragedModel(around, multi_avg_fn=get_ema_multi_avg_fn(0.0))
        for _ in range(EPOCHS):
            epoch(grower, optimizer)
            for _ in range(2):
                average.update_parameters(around)
        for (name, mine), (theirs, live) in zip(
            average.module.named_parameters(), around.named_parameters(), strict=True
        ):
            assert name == theirs and torch.equal(mine, live)
        assert sum(".seed." in name for name, _ in around.named_parameters()) > 0
    assert of_model(around) == before and not ours(average)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_model_is_left_too(tmp_path: Path) -> None:
    model, optimizer, grower = started("chain", tmp_path)
    model.compile(backend="eager")
    with grower:
        for _ in range(EPOCHS):
            epoch(grower, optimizer)
    inputs = VALIDATION[0][0]
    assert any(isinstance(module, Grown) for module in model.modules())
    assert torch.allclose(model.eval()(inputs), grower.result.model(inputs), atol=1e-6)
