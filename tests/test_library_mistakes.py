"""What is wrong with a run of one's own is said in a sentence, at the first chance to know."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.leyline import GateThresholds, UsageError
from esper.library import Budget, Grower, OwnChoices, grow
from esper.nissa.reader import read_journal
from four_classes import KeepOne
from own_loop import LOSS, TRAIN, VALIDATION, Loop, epoch, narrow

pytestmark = pytest.mark.usefixtures("without_figures")

INPUTS, TARGETS = TRAIN[0]


def test_a_step_without_after_backward(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "static")
    with pytest.raises(UsageError, match=r"optimizer.step\(\) without after_backward\(\)"), loop.grower as grower:
        torch.autograd.backward(grower.loss(INPUTS, TARGETS))
        loop.optimizer.step()
    loop.optimizer.step()  # is the user's own again


def test_a_look_at_the_loss_is_no_batch_to_learn_from(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "static")
    with loop.grower as grower:
        loop.batch(INPUTS, TARGETS)
        with torch.no_grad():
            grower.loss(INPUTS, TARGETS)
        loop.optimizer.step()
        grower.after_epoch()


def test_what_is_refused_leaves_no_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for where in (None, tmp_path / "mine"):
        budget = Budget(epochs=8, blueprints=("conv3",))
        with pytest.raises(UsageError, match="conv3 fits any slot"):
            grow(narrow(), train=TRAIN, val=VALIDATION, loss=LOSS, at=["1"], budget=budget, run_dir=where)
    assert [path for path in tmp_path.rglob("*") if path.name != "runs"] == []


@pytest.mark.parametrize("call", ["after_epoch", "after_backward"])
def test_a_loss_that_was_computed_elsewhere(call: str, tmp_path: Path) -> None:
    loop = Loop(tmp_path, "static")
    with pytest.raises(UsageError, match=rf"{call}\(\) without a batch .* grower.loss\("), loop.grower as grower:
        torch.autograd.backward(LOSS(loop.model(INPUTS), TARGETS))
        getattr(grower, call)()


def test_a_forgotten_after_epoch_is_told_and_the_model_is_there(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "static")
    with pytest.raises(UsageError, match=r"after_epoch\(\) was never called"), loop.grower as grower:
        for _ in range(3):
            loop.batch(INPUTS, TARGETS)
    weights = grower.result.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in loop.model.state_dict().items())


def test_a_forgotten_loss_is_told(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "static")
    with pytest.raises(UsageError, match=r"grower.loss\(\) was never called"), loop.grower:
        torch.autograd.backward(LOSS(loop.model(INPUTS), TARGETS))
        loop.optimizer.step()


def test_a_vector_loss_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "static")
    vector = nn.CrossEntropyLoss(reduction="none")
    with pytest.raises(UsageError, match=r"a tensor of shape \(64,\); one number for the batch"), loop.grower as grower:
        grower.loss(INPUTS, TARGETS, vector)


def test_a_loss_of_shape_one_is_one_number(tmp_path: Path) -> None:
    result = grow(
        narrow(),
        train=TRAIN,
        val=VALIDATION,
        loss=lambda output, targets: LOSS(output, targets).reshape(1),
        at=["1"],
        policy="static",
        budget=Budget(epochs=2),
        run_dir=tmp_path / "run",
    )
    assert result.epoch in (1, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": nn.Linear}, "model is the class Linear; legal: a Module"),
        ({"model": None}, "model is a NoneType"),
        ({"policy": 3}, "policy is a int; legal: a name, or an object of your own; it needs name"),
        ({"budget": {"epochs": 2}}, "budget is a dict; legal: a Budget"),
        ({"seed": "a"}, "seed is 'a'; legal: a whole number of at least 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_of_another_kind(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    right = {"model": narrow(), "train": TRAIN, "val": VALIDATION, "loss": LOSS, "run_dir": tmp_path / "run"}
    with pytest.raises(UsageError, match=message):
        grow(**(right | given))
    assert not (tmp_path / "run").exists()


def test_more_epochs_than_the_budget_has(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "static", epochs=2)
    with pytest.raises(UsageError, match=r"epoch 3 begins, and Budget.epochs is 2"), loop.grower as grower:
        for _ in range(3):
            loop.epoch()
    assert grower.result.epoch in (1, 2)


class Odd(nn.Module):
    """A host with something in it."""

    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        if isinstance(thing, Tensor):
            self.thing = nn.Parameter(thing)
        else:
            self.lock = thing

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return h * self.thing.real.float() if hasattr(self, "thing") else h


class Counting:
    """How often it was read."""

    def __init__(self) -> None:
        self.epochs = 0

    def __iter__(self) -> Any:
        self.epochs += 1
        return iter(TRAIN)

    def __len__(self) -> int:
        return len(TRAIN)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (threading.Lock(), "the host cannot be copied: cannot pickle '_thread.lock'"),
        (torch.ones(4, dtype=torch.cdouble), r"cannot be exported: .* cannot hold all of torch\.complex128"),
    ],
)
def test_what_cannot_be_exported_is_known_before_the_first_batch(thing: Any, message: str, tmp_path: Path) -> None:
    batches = Counting()
    given = {"val": VALIDATION, "policy": "static"}
    with pytest.raises(UsageError, match=message):
        grow(Odd(thing), train=batches, loss=LOSS, at=["body.1"], run_dir=tmp_path / "run", **given)
    assert batches.epochs <= 1, "looked at when the loader is tried, and not trained on"
    model = Odd(thing)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    choices = OwnChoices(LOSS, at=["body.1"])
    with (
        pytest.raises(UsageError, match=message),
        Grower(model, optimizer, choices=choices, run_dir=tmp_path / "own", **given),
    ):
        raise AssertionError("the block must not be reached")


def test_complex_weights_can_be_grown_around(tmp_path: Path) -> None:
    model = Odd(torch.ones(4, dtype=torch.cfloat))
    result = grow(
        model,
        train=TRAIN,
        val=VALIDATION,
        loss=LOSS,
        at=["body.1"],
        policy="static",
        budget=Budget(epochs=1),
        run_dir=tmp_path / "run",
    )
    assert result.model.state_dict()["thing"].dtype is torch.cfloat


def test_trying_the_export_leaves_no_trace(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "static")
    before = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
    random = torch.get_rng_state()
    with loop.grower as grower:
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(before[name], tensor) for name, tensor in loop.model.state_dict().items())
        assert not grower.view.live_seeds and len(loop.optimizer.param_groups) == 1
        loop.epoch()


@pytest.mark.parametrize(
    ("optimizer", "budget", "message"),
    [
        (torch.optim.SGD, Budget(), "the class SGD"),
        (None, Budget(), "a NoneType"),
        ("adam", Budget(schedule="cosine"), "the rates are yours to move"),
    ],
)
def test_what_a_loop_of_ones_own_cannot_have(optimizer: Any, budget: Budget, message: str) -> None:
    model = narrow()
    if optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(UsageError, match=message):
        Grower(model, optimizer, val=VALIDATION, choices=OwnChoices(LOSS, budget=budget))


def test_a_vector_loss_is_refused_before_the_first_batch(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a tensor of shape \(\d+,\); one number for the batch"):
        grow(narrow(), train=TRAIN, val=VALIDATION, loss=nn.CrossEntropyLoss(reduction="none"))
    assert not list(tmp_path.iterdir())


def test_an_optimizer_for_seeds_alone_is_for_a_model_that_does_not_learn(tmp_path: Path) -> None:
    frozen, empty = narrow().requires_grad_(False), [{"params": []}]
    optimizer = torch.optim.SGD(empty, lr=0.1)
    choices = OwnChoices(LOSS, at=["1"], budget=Budget(epochs=1))
    with Grower(
        frozen, optimizer, val=VALIDATION, choices=choices, policy="static", run_dir=tmp_path / "run"
    ) as grower:
        torch.autograd.backward(grower.loss(INPUTS, TARGETS))
        grower.after_backward()
        optimizer.step()
        grower.after_epoch()
    for model in (narrow(), narrow().requires_grad_(False)):
        others = empty if model[0].weight.requires_grad else narrow().parameters()
        with pytest.raises(UsageError, match="holds no parameter of the model"):
            Grower(model, torch.optim.SGD(others, lr=0.1), val=VALIDATION, choices=choices)


def test_a_budget_too_short_for_any_seeds_life_is_told_before_the_first_batch(tmp_path: Path) -> None:
    def read() -> Iterator[Any]:
        raise AssertionError("a batch was read")
        yield

    class Unread:
        def __iter__(self) -> Iterator[Any]:
            return read()

        def __len__(self) -> int:
            return 1

    short = GateThresholds(min_training_epochs=1, min_holding_epochs=0)
    assert [GateThresholds().shortest_life(), short.shortest_life()] == [7, 3]
    for budget, life in ((Budget(epochs=6), 7), (Budget(epochs=2, gates=short), 3)):
        model = narrow()
        with pytest.raises(UsageError, match=f"epochs is {budget.epochs}, .* kept after {life} at the earliest"):
            grow(model, train=Unread(), val=Unread(), loss=LOSS, budget=budget, run_dir=tmp_path / "run")
        with pytest.raises(UsageError, match="nothing could grow"):
            Grower(
                model, torch.optim.SGD(model.parameters(), 0.1), val=Unread(), choices=OwnChoices(LOSS, budget=budget)
            )
    free = GateThresholds(min_gradient_ratio=0.0, min_gradient_health=0.0, ask_for_gain=False)
    result = grow(
        narrow(),
        train=TRAIN,
        val=VALIDATION,
        loss=LOSS,
        at=["1"],
        policy=KeepOne(),
        budget=Budget(epochs=7, parameters=5000, gates=free),
        run_dir=tmp_path / "shortest",
    )
    assert any(event.event_type.name == "SEED_FOSSILIZED" for event in read_journal(result.run_dir))


def test_a_loss_outside_of_the_block(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "static")
    with pytest.raises(UsageError, match="inside its with block: with Grower"):
        loop.grower.loss(INPUTS, TARGETS)


def test_a_block_that_is_left_before_any_seed_could_be_kept_says_so(tmp_path: Path) -> None:
    def left(epochs: int, budget: Budget, policy: str = "heuristic") -> None:
        model = narrow()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        choices = OwnChoices(LOSS, at=["1"], budget=budget)
        where = tmp_path / f"{policy}-{epochs}-{budget.epochs}"
        with Grower(model, optimizer, val=VALIDATION, choices=choices, policy=policy, run_dir=where) as grower:
            for _ in range(epochs):
                epoch(grower, optimizer)

    with pytest.warns(UserWarning, match="after epoch 2, and by Budget.gates a seed is kept after 7 at the"):
        left(2, Budget(parameters=5000))
    left(2, Budget(parameters=5000), policy="static")
    left(2, Budget(epochs=9, parameters=5000))
