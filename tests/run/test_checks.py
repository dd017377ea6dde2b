"""What is refused before the first batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from esper.leyline import GateThresholds, UsageError
from esper.run.checks import check_loss, check_model, check_optimizer
from esper.run.own import Budget

BATCH = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"epochs": 0}, r"Budget.epochs is 0; legal: a whole number of at least 1"),
        ({"epochs": -3}, "epochs is -3"),
        ({"epochs": 2.5}, r"epochs is 2\.5"),
        ({"epochs": True}, "epochs is True"),
        ({"epochs": None}, "epochs is None"),
        ({"parameters": -5}, "parameters is -5; legal: a whole number of at least 1, or None"),
        ({"max_seeds": 0}, "max_seeds is 0"),
        ({"max_seeds": -1}, "max_seeds is -1"),
        ({"lr": 0.0}, r"Budget.lr is 0\.0; legal: a finite number above 0"),
        ({"lr": -1e-3}, "lr is -0.001"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"lr": "1e-3"}, "lr is '1e-3'"),
        ({"seed_lr_multiplier": 0.0}, "seed_lr_multiplier is 0"),
        ({"schedule": "linear"}, "schedule 'linear'"),
        ({"blueprints": ()}, r"blueprints is empty; .*policy='static' grows nothing"),
        ({"blueprints": "conv3"}, "a tuple of names"),
        ({"gates": 3}, "Budget.gates is a int; legal: a GateThresholds"),
        ({"gates": GateThresholds}, "Budget.gates is the class GateThresholds"),
    ],
)
def test_budgets_that_make_no_sense(odd: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Budget(**odd)


def test_budgets_that_do() -> None:
    Budget(epochs=int(np.int64(3)), max_seeds=None, parameters=1, blueprints=("conv3",), lr=1)
    assert Budget(epochs=np.int64(3)).epochs == 3  # type: ignore[arg-type]


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Muon(torch.optim.SGD):
    """As many packages have one."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: torch.optim.SGD, r"the class SGD; make one: SGD\(model.parameters"),
        (lambda m: 0.01, "is a float"),
        (lambda m: torch.optim.LBFGS(m.parameters()), "LBFGS cannot train what grows"),
        (lambda m: torch.optim.Muon([m[0].weight]), "Muon cannot train what grows"),
        (lambda m: Muon(m.parameters()), "Muon cannot train what grows"),
        (lambda m: torch.optim.SparseAdam(m.parameters()), "SparseAdam cannot"),
        (lambda m: torch.optim.SGD(model().parameters()), "holds no parameter of the model"),
    ],
)
def test_optimizers_that_seeds_cannot_join(make: Callable[[Any], Any], message: str) -> None:
    host = model()
    with pytest.raises(UsageError, match=message):
        check_optimizer(host, make(host))


def test_an_optimizer_of_a_part_is_one() -> None:
    host = nn.Sequential(model(), nn.Linear(2, 2))
    check_optimizer(host, torch.optim.Adagrad(host[1].parameters()))


def run(host: nn.Module, inputs: Any) -> Any:
    return host(inputs)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss, r"the class CrossEntropyLoss; make one: CrossEntropyLoss\(\)"),
        ("cross entropy", "loss is a str"),
    ],
)
def test_losses_that_are_no_function(loss: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_loss(loss)


def test_a_model_that_gives_nan_in_evaluation_alone() -> None:
    host = model()
    host[1].running_var.fill_(torch.nan)
    with pytest.raises(UsageError, match=r"NaN in eval\(\) and numbers in train\(\)"):
        check_model(host, run, BATCH)


def test_what_is_right_passes_without_a_trace_and_errors_are_left_to_training() -> None:
    host = model().train()
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    random = torch.get_rng_state()
    check_model(host, run, BATCH)
    check_model(host, lambda m, x: m(x, x), BATCH)
    assert host.training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], tensor) for name, tensor in host.state_dict().items())


@pytest.mark.parametrize(
    ("shift", "what"), [(float("nan"), "NaN"), (float("inf"), "infinity alone"), (-float("inf"), "infinity alone")]
)
def test_a_model_that_breaks_in_evaluation_alone_is_told(shift: float, what: str) -> None:
    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if self.training else super().forward(x) + shift

    with pytest.raises(UsageError, match=rf"the model gives {what} in eval\(\) and numbers in train\(\)"):
        check_model(Broken(3, 2), lambda model, x: model(x), BATCH)


def test_a_class_that_is_ruled_out_is_no_fault() -> None:
    class Masked(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            return out if self.training else out.index_fill(1, torch.tensor([0]), -float("inf"))

    check_model(Masked(3, 2), lambda model, x: model(x), BATCH)
