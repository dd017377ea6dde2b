"""Hosts of other number formats, autocast wherever the user has it, and mixed precision by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from users import batch, close, gradients, network, plant, trainer_of

from esper.kasmina.export import save_export
from esper.leyline import SeedStage, UsageError
from esper.run.assembly import trainer_config, workload
from esper.run.config import RunConfig
from esper.scripts.train import given_flags
from esper.tasks import get_task
from esper.tolaria.setup import TrainerConfig
from esper.tolaria.trainer import Trainer

X, Y = batch()


def formats(module: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in module.parameters()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_host_of_another_format_is_grown_in_it(dtype: torch.dtype, tmp_path: Path) -> None:
    trainer = trainer_of(network().to(dtype), batch(dtype=dtype))
    plant(trainer)
    trainer.train_epoch()
    state = copy.deepcopy(trainer.state())
    later = trainer.train_epoch().loss
    other = trainer_of(network().to(dtype), batch(dtype=dtype))
    other.load(state)
    assert formats(other.model) == formats(trainer.model) == {dtype}
    assert other.train_epoch().loss == later
    trainer.load(state)
    assert trainer.train_epoch().loss == later, "a rollback"
    assert trainer.model.slots["slot"].view().gradient_ratio is not None
    assert trainer.model.slots["slot"].state is not None
    trainer.model.slots["slot"].state.stage, trainer.model.slots["slot"].state.alpha = SeedStage.HOLDING, 1.0
    assert len(trainer.evaluate([{}, {"slot": 0.0}], "validation").loss) == 2
    with trainer.as_trained():
        save_export(trainer.model, tmp_path, trainer.sample)


class Mixed(nn.Module):
    """A float32 layer in a bfloat16 host."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network(8).to(torch.bfloat16)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.body(x.to(torch.bfloat16)).float())
        return output


def test_a_host_of_several_formats_is_measured_as_one() -> None:
    trainer = trainer_of(Mixed(), site="body.1")
    plant(trainer)
    result = trainer.train_epoch()
    assert result.weights_finite and result.host_gradient_norm is not None
    assert {p.dtype for p in trainer.model.seed_parameters("slot")} == {torch.bfloat16}


def step(trainer: Trainer, inside: str) -> None:
    """One loss and its backward pass, with as much as ``inside`` says inside autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = trainer.loss(X, Y)
        if inside == "all":
            torch.autograd.backward(loss)
            trainer.after_backward()
    if inside != "all":
        torch.autograd.backward(loss)
        trainer.after_backward()


def cast(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        output: Tensor = model(x)
        return output


def test_wherever_autocast_is_the_seed_learns_the_same() -> None:
    found = []
    for inside in ("loss", "all"):
        trainer = trainer_of(network())
        plant(trainer)
        step(trainer, inside)
        found.append(gradients(trainer)[1])
        assert formats(trainer.model) == {torch.float32}
    trainer = trainer_of(network(), forward=cast)
    plant(trainer)
    torch.autograd.backward(trainer.loss(X, Y))
    trainer.after_backward()
    found.append(gradients(trainer)[1])
    assert formats(trainer.model) == {torch.float32}
    plain = trainer_of(network())
    plant(plain)
    torch.autograd.backward(plain.loss(X, Y))
    plain.after_backward()
    exact = gradients(plain)[1]
    for each in found[1:]:
        assert close(each, found[0], 2**-5)
    assert close(found[0], exact, 0.1) and not close(found[0], exact, 1e-6), "computed in bfloat16, and right"


def test_validation_and_export_are_made_in_the_state_of_the_training_passes(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    host = network()
    trainer = trainer_of(host)
    plant(trainer, SeedStage.HOLDING, 1.0)
    host[4].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    step(trainer, "loss")
    seen.clear()
    trainer.evaluate([{}, {"slot": 0.0}], "validation")
    assert set(seen) == {torch.bfloat16}, "also when work is counted"
    seen.clear()
    with trainer.as_trained():
        save_export(trainer.model, tmp_path, trainer.sample)
    assert seen and set(seen) == {torch.bfloat16}
    torch.autograd.backward(trainer.loss(X, Y))
    seen.clear()
    trainer.evaluate([{}], "validation")
    assert seen == [torch.float32]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)])
def test_mixed_precision_by_name(precision: str, dtype: torch.dtype) -> None:
    seen: set[torch.dtype] = set()
    host = network()
    host[4].register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    trainer = trainer_of(host, precision=precision)
    plant(trainer)
    losses = [trainer.train_epoch().loss for _ in range(6)]
    assert seen == {dtype} and formats(trainer.model) == {torch.float32}
    exact = trainer_of(network())
    plant(exact)
    expected = [exact.train_epoch().loss for _ in range(6)]
    assert losses == pytest.approx(expected, rel=0.02) and losses[-1] < losses[0]
    ours, theirs = trainer.model.slots["slot"].view(), exact.model.slots["slot"].view()
    assert ours.gradient_ratio is not None and theirs.gradient_ratio is not None
    assert ours.gradient_ratio.value == pytest.approx(theirs.gradient_ratio.value, rel=0.05)


def test_a_resume_has_the_scale_of_the_loss() -> None:
    trainer = trainer_of(network(), precision="16-mixed")
    plant(trainer)
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 256.0})
    trainer.train_epoch()
    state = copy.deepcopy(trainer.state())
    other = trainer_of(network(), precision="16-mixed")
    other.load(state)
    assert other.scaler.get_scale() == trainer.scaler.get_scale() == 256.0
    assert other.train_epoch().loss == trainer.train_epoch().loss


def test_a_step_with_a_gradient_that_is_not_finite_is_left_out() -> None:
    trainer = trainer_of(network(), precision="16-mixed")
    plant(trainer)
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 2.0**120})
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    result = trainer.train_epoch()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    assert trainer.scaler.get_scale() < 2.0**120 and result.host_gradient_norm is None


@pytest.mark.parametrize("precision", [None, "bf16-mixed", "16-mixed"])
def test_a_frozen_host_in_any_precision(precision: str | None) -> None:
    trainer = trainer_of(network().requires_grad_(False), precision=precision)
    trainer.train_epoch()
    plant(trainer)
    before = [p.detach().clone() for p in trainer.model.seed_parameters("slot")]
    for _ in range(2):
        trainer.train_epoch()
    moved: Any = zip(trainer.model.seed_parameters("slot"), before, strict=True)
    assert any(not torch.equal(now, then) for now, then in moved)


@pytest.mark.parametrize("asked", [None, "bf16-mixed"])
def test_the_command_line_has_a_say(asked: str | None) -> None:
    flags = given_flags(["heuristic", *([] if asked is None else ["--precision", asked])])
    flags.pop("kind")
    config = RunConfig(**flags)
    assert trainer_config(workload(get_task("digits"), config), config).precision == asked


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean 'bf16-mixed'"):
        TrainerConfig(precision="bf16-mixd")
