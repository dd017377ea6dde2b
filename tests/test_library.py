"""``grow`` and ``Grower`` on a model that was not written for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from keeping_hosts import GPT, CausalConvolutions, Masked, tokens
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import esper
from esper.leyline import (
    Blend,
    DataError,
    Decision,
    EnvSpec,
    EnvView,
    FactoredAction,
    Metric,
    Op,
    SeedStage,
    UsageError,
)
from esper.library import Budget, Grower, OwnChoices, Scored, grow
from esper.nissa.reader import read_journal
from esper.tolaria.legality import legal_blueprints

EPOCHS = 9


class KeepOne:
    """Grows one seed as soon as may be and brings it through."""

    name = "keep-one"

    def reset(self, specs: list[EnvSpec]) -> None:
        pass

    def decide(self, views: list[EnvView]) -> list[Decision]:
        (view,) = views
        slot = view.slots[0]
        actions = {
            SeedStage.DORMANT: FactoredAction(Op.GERMINATE, slot.slot_id, "mlp", Blend.LINEAR, 1.0, 1),
            SeedStage.TRAINING: FactoredAction(Op.ADVANCE, slot.slot_id),
            SeedStage.HOLDING: FactoredAction(Op.FOSSILIZE, slot.slot_id),
        }
        return [Decision(actions.get(slot.stage, FactoredAction()), "the next step")]


def products(n: int, seed: int) -> TensorDataset:
    """Which of two products is positive: four classes that a linear model cannot tell apart."""
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] * x[:, 3] > 0).long())


def loader(n: int, seed: int, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(products(n, seed), 64, shuffle=shuffle, generator=torch.Generator().manual_seed(1))


def narrow() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=5e-3)


def test_a_model_comes_back_plain_and_grown(tmp_path: Path) -> None:
    result = grow(
        narrow(),
        train=loader(640, 0, shuffle=True),
        val=loader(256, 1),
        test=loader(256, 2),
        loss=nn.CrossEntropyLoss(),
        at=["1"],
        policy=KeepOne(),
        budget=Budget(epochs=EPOCHS, lr=5e-3, parameters=5000),
        run_dir=tmp_path / "run",
    )
    assert not any(type(module).__module__.startswith("esper.kasmina.slot") for module in result.model.modules())
    (arm,) = result.report.table.arms
    assert arm.seeds_kept == 1 and arm.test is not None and arm.test.mean > 45
    assert (result.run_dir / "model" / "model.py").is_file() and (result.run_dir / "report" / "report.md").is_file()
    inputs, targets = products(256, 2).tensors
    with torch.no_grad():
        accuracy = 100 * float((result.model(inputs).argmax(1) == targets).float().mean())
    assert accuracy == pytest.approx(arm.test.mean)


def test_unless_told_otherwise_the_shipped_policy_decides_and_leaves_gates_to_evidence(tmp_path: Path) -> None:
    result = grow(
        narrow(),
        train=loader(640, 0, shuffle=True),
        val=loader(256, 1),
        loss=nn.CrossEntropyLoss(),
        at=["1"],
        budget=Budget(epochs=EPOCHS, lr=5e-3, parameters=5000),
        run_dir=tmp_path / "run",
    )
    told = {
        e.data["op"]: e.data["reason"] for e in read_journal(result.run_dir) if "reason" in e.data and "op" in e.data
    }
    assert told["GERMINATE"] == "the learned policy's likeliest choice"
    assert "behind the host: blend it in" in told["ADVANCE"]
    (arm,) = result.report.table.arms
    assert arm.arm == "esper-v1"


def test_the_own_loop_does_what_grow_does(tmp_path: Path) -> None:
    budget = Budget(epochs=EPOCHS, parameters=5000)
    model = narrow()
    result = grow(
        model,
        train=loader(640, 0, shuffle=True),
        val=loader(256, 1),
        loss=nn.CrossEntropyLoss(),
        at=["1"],
        optimizer=adam(model),
        policy=KeepOne(),
        budget=budget,
        run_dir=tmp_path / "grow",
    )
    model = narrow()
    optimizer = adam(model)
    batches = loader(640, 0, shuffle=True)
    choices = OwnChoices(nn.CrossEntropyLoss(), at=["1"], budget=budget)
    with Grower(
        model, optimizer, val=loader(256, 1), choices=choices, policy=KeepOne(), run_dir=tmp_path / "loop"
    ) as grower:
        for _ in range(EPOCHS):
            for inputs, targets in batches:
                optimizer.zero_grad()
                torch.autograd.backward(grower.loss(inputs, targets))
                grower.after_backward()
                optimizer.step()
            report = grower.after_epoch()
    assert report.view.epoch == EPOCHS
    ours, theirs = grower.result.model.state_dict(), result.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_scheduler_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    model = narrow()
    optimizer = adam(model)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=EPOCHS)
    batches = loader(64, 0)
    choices = OwnChoices(nn.CrossEntropyLoss(), at=["1"], budget=Budget(epochs=EPOCHS, parameters=10_000))
    with Grower(
        model, optimizer, val=loader(64, 1), choices=choices, policy=KeepOne(), run_dir=tmp_path / "run"
    ) as grower:
        for epoch in range(EPOCHS):
            for inputs, targets in batches:
                optimizer.zero_grad()
                torch.autograd.backward(grower.loss(inputs, targets))
                grower.after_backward()
                optimizer.step()
            if epoch == 2:
                host, seed = optimizer.param_groups
                assert seed["lr"] / seed["initial_lr"] == pytest.approx(host["lr"] / host["initial_lr"])
            grower.after_epoch()
            if epoch < EPOCHS - 1:
                grower.step_scheduler(scheduler)


def test_a_trained_optimizer_keeps_its_state(tmp_path: Path) -> None:
    model = narrow()
    optimizer = adam(model)
    inputs, targets = products(64, 0).tensors
    torch.autograd.backward(nn.functional.cross_entropy(model(inputs), targets))
    optimizer.step()
    grow(
        model,
        train=loader(64, 0),
        val=loader(64, 1),
        loss=nn.functional.cross_entropy,
        optimizer=optimizer,
        policy="static",
        budget=Budget(epochs=1),
        run_dir=tmp_path / "run",
    )
    assert all(float(state["step"]) == 2 for state in optimizer.state.values())


def test_a_metric_and_a_call_of_ones_own(tmp_path: Path) -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))

        def forward(self, *, features: Tensor) -> dict[str, Tensor]:
            return {"answer": self.body(features)}

    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    data = [(x[:64], x[:64, 0]), (x[64:], x[64:, 0])]
    worst = Scored(Metric("squared error", "m²", higher_is_better=False), lambda out, y: (out.squeeze(1) - y) ** 2)
    result = grow(
        Keyword(),
        train=data,
        val=data,
        loss=lambda out, y: ((out.squeeze(1) - y) ** 2).mean(),
        metric=worst,
        forward=lambda model, inputs: model(features=inputs)["answer"],
        at=["body.1"],
        policy="static",
        budget=Budget(epochs=3, lr=1e-2),
        run_dir=tmp_path / "run",
    )
    events = list(read_journal(result.run_dir))
    losses = [e.data["validation_loss"] for e in events if e.event_type.name == "EPOCH_COMPLETED"]
    metrics = [e.data["validation_metric"] for e in events if e.event_type.name == "EPOCH_COMPLETED"]
    # the same squares, meaned in single precision by the loss and in double by the metric
    assert losses == pytest.approx(metrics, rel=1e-5) and losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"metric": "acuracy"}, UsageError, "did you mean 'accuracy'"),
        ({"at": ["layer9"]}, UsageError, "layer9"),
        ({"device": "cuda:9"}, UsageError, "cuda:9"),
        ({"policy": "heuristc"}, UsageError, "did you mean 'heuristic'"),
        ({"train": iter([])}, UsageError, "read only once"),
        ({"val": []}, DataError, "no batch"),
        ({"val": [(torch.full((4, 6), torch.nan), torch.zeros(4).long())]}, DataError, "NaN"),
        ({"budget": Budget(blueprints=("conv99",))}, UsageError, "conv99"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], error: type[Exception], message: str, tmp_path: Path) -> None:
    right = {"train": loader(64, 0), "val": loader(64, 1), "loss": nn.CrossEntropyLoss(), "run_dir": tmp_path / "run"}
    with pytest.raises(error, match=message):
        grow(narrow(), **{**right, **change})  # type: ignore[arg-type]


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(UsageError, match="unfreeze"):
        grow(narrow().requires_grad_(False), train=loader(64, 0), val=loader(64, 1), loss=nn.CrossEntropyLoss())


def test_grow_is_found_where_it_is_announced() -> None:
    assert esper.grow is grow


class MostMixing:
    """Grows a seed in every slot, the legal one that mixes most."""

    name = "most-mixing"
    order = ("attention_full", "conv7", "squeeze_excite", "attention", "depthwise5", "norm", "pointwise")

    def reset(self, specs: list[EnvSpec]) -> None:
        pass

    def decide(self, views: list[EnvView]) -> list[Decision]:
        (view,) = views
        for slot in view.slots:
            legal = legal_blueprints(view, slot.slot_id)
            for blueprint in self.order if legal else ():
                if blueprint in legal:
                    action = FactoredAction(Op.GERMINATE, slot.slot_id, blueprint, Blend.LINEAR, 1.0, 1)
                    return [Decision(action, "because it may")]
        return [Decision(FactoredAction(), "all is grown")]


@pytest.mark.parametrize(
    ("build", "sequence", "expected"),
    [
        (CausalConvolutions, True, "pointwise"),
        (lambda: nn.Sequential(GPT(), _Transposed()), True, "attention"),
        (Masked, False, "norm"),
    ],
    ids=["causal convolutions", "GPT", "masked encoder"],
)
def test_what_grows_in_a_users_model_mixes_no_more_than_it_does(
    build: type[nn.Module], sequence: bool, expected: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = tokens(48, seed=1)
    data = DataLoader(TensorDataset(x, tokens(48, seed=2) if sequence else x[:, 0] % 5), 16)
    result = grow(
        build(),
        train=data,
        val=data,
        loss=nn.CrossEntropyLoss(),
        policy=MostMixing(),
        budget=Budget(epochs=2, max_seeds=9, parameters=10**6),
        run_dir=tmp_path / "run",
    )
    grown = [e.data["blueprint"] for e in read_journal(result.run_dir) if e.event_type.name == "SEED_GERMINATED"]
    assert grown and set(grown) == {expected}


class _Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def test_where_nothing_may_grow_the_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    data = DataLoader(TensorDataset(tokens(8), tokens(8, seed=2)), 8)
    with pytest.raises(UsageError, match="no output of the host depends on later positions"):
        grow(
            CausalConvolutions(),
            train=data,
            val=data,
            loss=nn.CrossEntropyLoss(),
            budget=Budget(epochs=2, blueprints=("conv5",)),
            run_dir=tmp_path / "run",
        )
