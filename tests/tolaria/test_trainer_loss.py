"""What is done to a loss reaches the seed behind the host as it reaches the host; the second pass is the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from users import CRITERION, batch, by_hand, close, gradients, network, plant, trainer_of

from esper.leyline import SeedStage, UsageError
from esper.tolaria.trainer import Trainer

Model = Callable[[Tensor], Tensor]
X, Y = batch()
QUARTERS = list(zip(X.chunk(4), Y.chunk(4), strict=True))


def squares(output: Tensor, targets: Tensor) -> Tensor:
    return (output - targets[:, None]).square().mean()


def plain(trainer: Trainer) -> None:
    torch.autograd.backward(trainer.loss(X, Y))
    trainer.after_backward()


def scaled(trainer: Trainer) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    torch.autograd.backward(scaler.scale(trainer.loss(X, Y)))
    trainer.after_backward()
    scaler.unscale_(trainer.optimizer)


def shared_out(trainer: Trainer) -> None:
    for x, y in QUARTERS:
        torch.autograd.backward(trainer.loss(x, y) / 4)
        trainer.after_backward()


def shared_out_and_taught_at_once(trainer: Trainer) -> None:
    for x, y in QUARTERS:
        torch.autograd.backward(trainer.loss(x, y) / 4)
    trainer.after_backward()


def two_at_once(trainer: Trainer) -> None:
    losses = [trainer.loss(x, y) for x, y in zip(X.chunk(2), Y.chunk(2), strict=True)]
    torch.autograd.backward((losses[0] + losses[1]) / 2)
    trainer.after_backward()


def taken_in_turn(trainer: Trainer) -> None:
    first, second = [trainer.loss(x, y) for x, y in zip(X.chunk(2), Y.chunk(2), strict=True)]
    for each in (second, first):
        torch.autograd.backward(each / 2)
        trainer.after_backward()


def one_for_the_log(trainer: Trainer) -> None:
    with torch.no_grad():
        trainer.loss(X, Y)
    trainer.loss(X, Y)
    plain(trainer)


def twice_through(trainer: Trainer) -> None:
    loss = trainer.loss(X, Y)
    torch.autograd.backward(loss / 4, retain_graph=True)
    torch.autograd.backward(loss * 0.75)
    trainer.after_backward()


TRICKS = [scaled, shared_out, shared_out_and_taught_at_once, two_at_once, taken_in_turn, one_for_the_log, twice_through]


@pytest.mark.parametrize("trick", [plain, *TRICKS])
def test_gradients_are_those_of_a_loop_that_blends_the_seed_in_by_hand(trick: Callable[[Trainer], None]) -> None:
    trainer = trainer_of(network())
    plant(trainer)
    trick(trainer)
    host, seed = gradients(trainer)
    ours, theirs = by_hand(trainer, lambda model: CRITERION(model(X), Y))
    assert close(host, ours) and close(seed, theirs)


def test_two_criteria_in_one_backward() -> None:
    trainer = trainer_of(network())
    plant(trainer)
    torch.autograd.backward(trainer.loss(X, Y) + 0.3 * trainer.loss(X, Y, squares))
    trainer.after_backward()
    host, seed = gradients(trainer)
    ours, theirs = by_hand(trainer, lambda model: CRITERION(model(X), Y) + 0.3 * squares(model(X), Y))
    assert close(host, ours) and close(seed, theirs)


def test_without_what_was_done_to_the_loss_the_comparison_would_fail() -> None:
    trainer = trainer_of(network())
    plant(trainer)
    torch.autograd.backward(trainer.loss(X, Y) * 1.001)
    trainer.after_backward()
    host, seed = gradients(trainer)
    ours, theirs = by_hand(trainer, lambda model: CRITERION(model(X), Y))
    assert not close(host, ours, 1e-4) and not close(seed, theirs, 1e-4)


@pytest.mark.parametrize("scale", [1024.0, 2.0**40, 2.0**-40])
def test_ratio_and_health_are_of_the_loss_whatever_its_scale(scale: float) -> None:
    norms, views = [], []
    for factor in (1.0, scale):
        trainer = trainer_of(network())
        plant(trainer)
        torch.autograd.backward(trainer.loss(X, Y) * factor)
        trainer.after_backward()
        norms.append(trainer.end_epoch().host_gradient_norm)
        views.append(trainer.model.slots["slot"].view())
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert views[1].gradient_ratio.value == pytest.approx(views[0].gradient_ratio.value, rel=1e-4)
    assert views[0].gradient_health.value == views[1].gradient_health.value == 1.0


def test_a_scale_that_overflows_measures_nothing() -> None:
    trainer = trainer_of(network())
    plant(trainer)
    torch.autograd.backward(trainer.loss(X, Y) * 2.0**127 * 4.0)
    trainer.after_backward()
    assert trainer.end_epoch().host_gradient_norm is None
    assert trainer.model.slots["slot"].view().gradient_health is None


def test_a_seed_that_is_being_blended_in_is_scaled_by_the_first_pass_alone() -> None:
    found = []
    for trick in (plain, shared_out, two_at_once):
        trainer = trainer_of(network())
        plant(trainer, SeedStage.BLENDING, 0.5)
        trick(trainer)
        found.append(gradients(trainer))
    for host, seed in found[1:]:
        assert close(host, found[0][0]) and close(seed, found[0][1])


def test_a_backward_that_was_not_made_is_missed_and_one_too_many_is_refused() -> None:
    trainer = trainer_of(network())
    plant(trainer)
    with pytest.raises(UsageError, match="no loss from here"):
        trainer.after_backward()
    loss = trainer.loss(X, Y)
    torch.autograd.backward(loss, retain_graph=True)
    trainer.after_backward()
    with pytest.raises(UsageError, match="once more"):
        torch.autograd.backward(loss)


@dataclass
class Answer:
    logits: Tensor
    extra: list[Tensor]


class Wrapped(nn.Module):
    """Gives the network's output in a container."""

    def __init__(self, kind: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.kind = network(), kind

    def forward(self, x: Tensor) -> Any:
        return self.kind(self.network(x))


CONTAINERS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "tensor": (lambda out: out, lambda out: out),
    "dict": (lambda out: {"logits": out}, lambda out: out["logits"]),
    "tuple": (lambda out: (out, None), lambda out: out[0]),
    "dataclass": (lambda out: Answer(out, [out]), lambda out: out.logits),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_criterion_is_given_the_same_kind_of_object_in_every_pass(name: str) -> None:
    kind, logits = CONTAINERS[name]
    seen: list[Any] = []

    def criterion(output: Any, targets: Tensor) -> Tensor:
        seen.append(type(output))
        return CRITERION(logits(output), targets)

    trainer = trainer_of(Wrapped(kind), criterion=criterion, site="network.1")
    plant(trainer)
    plain(trainer)
    assert len(seen) == 2 and len(set(seen)) == 1
    _, seed = gradients(trainer)
    other = trainer_of(network())
    plant(other)
    plain(other)
    assert close(seed, gradients(other)[1])


def test_the_second_pass_goes_through_the_users_call() -> None:
    targets = Y.float()
    shapes: list[torch.Size] = []

    def mse(output: Tensor, y: Tensor) -> Tensor:
        shapes.append(output.shape)
        return (output - y).square().mean()

    trainer = trainer_of(network(1), (X, targets), criterion=mse, forward=lambda m, x: m(x).squeeze(1))
    plant(trainer)
    torch.autograd.backward(trainer.loss(X, targets))
    trainer.after_backward()
    host, seed = gradients(trainer)
    ours, theirs = by_hand(trainer, lambda model: (model(X).squeeze(1) - targets).square().mean())
    assert close(host, ours) and close(seed, theirs)
    assert set(shapes) == {targets.shape}


def test_the_call_is_given_the_users_own_model_in_every_pass_and_its_work_is_counted() -> None:
    models: list[nn.Module] = []

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def logits(self, x: Tensor) -> Tensor:
            output: Tensor = self.network(x)
            return output

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        models.append(model)
        output: Tensor = model.logits(x)  # type: ignore[operator]
        return output

    trainer = trainer_of(host := Two(), forward=forward, site="network.1")
    plant(trainer)
    plain(trainer)
    trainer.evaluate([{}, {"slot": 1.0}], "validation")
    assert set(models) == {host}
    assert trainer.macs.forward - sum(trainer.macs.inside.values()) == 6 * 8 + 8 * 8 + 8 * 4
