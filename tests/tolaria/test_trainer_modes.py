"""What the user holds in evaluation mode or has frozen stays so, and a host that is frozen as a whole can be grown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from users import batch, network, plant, trainer_of

from esper.kasmina.trial import held, mode
from esper.leyline import SeedStage

X, Y = batch()


class Backbone(nn.Module):
    """A BatchNorm and a dropout in front of what is trained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.body(self.backbone(x)))
        return output


class Keeping(Backbone):
    """Keeps its backbone in evaluation mode by itself, as many do."""

    def train(self, mode: bool = True) -> Keeping:
        super().train(mode)
        self.backbone.eval()
        return self


def modes(module: nn.Module) -> dict[str, bool]:
    return {name: each.training for name, each in module.named_modules()}


def train_and_look(host: nn.Module, site: str = "body.1") -> list[dict[str, bool]]:
    """Train for an epoch with a seed behind the host, and evaluate; the host's modes in each pass that teaches."""
    trainer = trainer_of(host, site=site)
    plant(trainer)
    seen: list[dict[str, bool]] = []

    def look(*_: Any) -> None:
        if torch.is_grad_enabled() and _get_current_dispatch_mode() is None:  # no trial pass that counts
            seen.append(modes(host))

    handle = host.register_forward_hook(look)
    trainer.train_epoch()
    trainer.evaluate([{}, {"slot": 1.0}], "validation")
    handle.remove()
    assert trainer.model.slots["slot"].training
    return seen


@pytest.mark.parametrize("way", ["held", "held and frozen", "whole model", "by itself"])
def test_a_frozen_batchnorm_does_not_drift_and_a_frozen_dropout_does_not_drop(way: str) -> None:
    host: Any = Keeping() if way == "by itself" else Backbone()
    if way in ("held and frozen", "whole model"):
        host.backbone.requires_grad_(False)
    if way != "by itself":
        (host if way == "whole model" else host.backbone).eval()
    before = {name: buffer.clone() for name, buffer in host.named_buffers()}
    seen = train_and_look(host)
    assert all(torch.equal(buffer, before[name]) for name, buffer in host.named_buffers())
    for each in seen:
        assert {name for name, training in each.items() if not training} == {
            name for name, _ in host.named_modules() if name.startswith("backbone")
        }
    assert len(seen) == 4, "two batches, twice"


def test_what_is_in_training_mode_drifts_as_it_would() -> None:
    host = Backbone()
    before = host.backbone[1].running_mean.clone()
    seen = train_and_look(host)
    assert all(all(each.values()) for each in seen)
    assert not torch.equal(host.backbone[1].running_mean, before)


def test_what_is_held() -> None:
    host = Backbone()
    assert held(host) == []
    host.eval()
    assert held(host) == [], "a model that comes in evaluation mode is trained"
    host.backbone.requires_grad_(False)
    assert held(host) == list(host.backbone.modules())
    host.head.train()
    assert set(held(host)) == set(host.modules()) - {host.head}, "modes set by hand are taken as they are"


def test_evaluation_gives_every_module_its_mode_back_and_lets_it_know() -> None:
    class Merged(nn.Linear):
        """As low-rank adapters do, changes more than a flag with its mode."""

        merged = False

        def train(self, mode: bool = True) -> Merged:
            super().train(mode)
            self.merged = not mode
            return self

    host = nn.Sequential(Merged(6, 6), nn.Dropout(), nn.BatchNorm1d(6))
    host[1].eval()
    with mode(host, False):
        assert host[0].merged and not any(modes(host).values())
    assert not host[0].merged and modes(host) == {"": True, "0": True, "1": False, "2": True}


def test_in_a_loop_of_ones_own_modes_are_the_users() -> None:
    host: Any = Backbone()
    trainer = trainer_of(host, site="body.1")
    plant(trainer)
    seed: Any = trainer.model.slots["slot"]
    for training in (True, False):
        host.train(training)
        before = modes(host)
        torch.autograd.backward(trainer.loss(X, Y))
        trainer.after_backward()
        assert modes(host) == before and seed.training, "a seed that is taught is in training mode"
        with trainer.model.alphas({"slot": 1.0}):
            host(X)
        assert seed.training is training, "else a seed is in the mode of the host"
        trainer.end_epoch()
        trainer.evaluate([{}], "validation")
        assert modes(host) == before
        trainer.begin_epoch(0)


@pytest.mark.parametrize(("stage", "alpha"), [(SeedStage.TRAINING, 0.0), (SeedStage.HOLDING, 0.5)])
def test_in_a_frozen_host_only_the_seed_learns(stage: SeedStage, alpha: float) -> None:
    host = network().requires_grad_(False)
    trainer = trainer_of(host)
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    for steps in ("before a seed is there", "with one"):
        first = trainer.train_epoch().loss
        if steps != "with one":
            plant(trainer, stage, alpha)
    for _ in range(8):
        trainer.train_epoch()
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.state_dict().items())
    assert all(parameter.grad is None for parameter in host.parameters())
    with trainer.model.alphas({"slot": 1.0}):
        start = trainer_of(network().requires_grad_(False))
        plant(start, stage, alpha)
        untaught = start.evaluate([{"slot": 1.0}], "validation").loss[0]
        assert trainer.evaluate([{}], "validation").loss[0] < untaught
    assert first > 0


def test_frozen_hosts_share_nothing() -> None:
    one, other = (trainer_of(network().requires_grad_(False)).optimizer for _ in range(2))
    one.param_groups[0]["lr"] = 9.0
    assert other.param_groups[0]["lr"] == 0.1


def test_a_frozen_host_has_no_gradient_to_compare_with_and_the_gate_asks_for_none() -> None:
    blocked = {}
    for frozen in (True, False):
        trainer = trainer_of(network().requires_grad_(not frozen))
        plant(trainer)
        trainer.train_epoch()
        slot = trainer.model.slots["slot"]
        assert slot.view().gradient_health is not None
        assert (slot.view().gradient_ratio is None) is frozen
        slot.record(gradient_ratio=0.0 if not frozen else None)
        blocked[frozen] = [name.split("=")[0] for name in slot.advance_stage(SeedStage.BLENDING).checks_failed]
    assert not any(name.startswith("gradient_ratio") for name in blocked[True])
    assert any(name.startswith("gradient_ratio") for name in blocked[False])


class Refusing(torch.autograd.Function):
    """No gradient may come here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise AssertionError("a gradient in front of the first part that learns")


class Prefix(nn.Module):
    """A frozen layer, told not to be asked for a gradient, in front of the network."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.front = nn.Linear(6, 6).requires_grad_(not frozen)
        self.network = network()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.network(Refusing.apply(self.front(x)))  # type: ignore[no-untyped-call]
        return output


@pytest.mark.parametrize("stage", [SeedStage.TRAINING, SeedStage.HOLDING])
@pytest.mark.parametrize("frozen", ["all", "front", "nothing"])
def test_no_gradient_is_computed_in_front_of_the_first_part_that_learns(stage: SeedStage, frozen: str) -> None:
    host = Prefix(frozen != "nothing")
    if frozen == "all":
        host.requires_grad_(False)
    trainer = trainer_of(host, site="network.1")
    plant(trainer, stage, 0.5 if stage is SeedStage.HOLDING else 0.0)
    if frozen == "nothing":
        with pytest.raises(AssertionError, match="in front"):
            trainer.train_epoch()
    else:
        trainer.train_epoch()
