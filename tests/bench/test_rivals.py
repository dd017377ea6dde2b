"""Adapters of PEFT and fine-tuning, as arms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from esper.bench.arms import ARMS, FULL, RIVALS, chosen
from esper.bench.rivals import RivalTask, adapting
from esper.bench.settings import Family, TrialSetting
from esper.bench.trial import Trial, Work, run_trial
from esper.kasmina.macs import counted
from esper.leyline import EnvSpec, UsageError
from esper.tasks.base import Data, Split, TaskBudget, TaskSpec
from esper.tasks.pretrained.minilm import MiniLM, sites_of_minilm
from esper.tasks.scoring import accuracy, accuracy_metric, cross_entropy
from esper.tolaria.setup import TrainerConfig, adamw, from_task
from esper.tolaria.trainer import Trainer

TINY = "test_rivals:tiny_text"


def held_encoder() -> MiniLM:
    host = MiniLM(2, tokens=12, positions=6, layers=2, channels=24, heads=2)
    host.bert.requires_grad_(False)
    return host


def tiny_text() -> TaskSpec:
    """Does 7 stand in a text of five tokens? A small encoder that is held."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(1, 12, (96, 5), generator=generator)
    whole = Split(inputs, (inputs == 7).any(dim=1).long())
    parts = (whole.take(part) for part in torch.arange(96).split([64, 16, 16]))
    return TaskSpec(
        name="tiny-text",
        description="is there a seven?",
        metric=accuracy_metric(chance=50.0),
        host=held_encoder,
        sites=sites_of_minilm(layers=2),
        blueprints=("lora2", "lora4", "lora8"),
        loss=cross_entropy,
        score=accuracy,
        data=Data.of(*parts, source="made up for a test"),
        budget=TaskBudget(max_epochs=2, batch_size=16, lr=1e-2),
    )


def pictures() -> TaskSpec:
    """A convolution to adapt, which AdaLoRA cannot."""
    host = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(12, 2))
    split = Split(torch.randn(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64))
    return replace(
        tiny_text(), host=lambda: host, sites={"first": "+0"}, data=Data.of(split, split, split, source="made up")
    )


def made(arm: str, steps: int = 8) -> tuple[RivalTask, nn.Module]:
    rival = RivalTask(tiny_text(), arm, steps)
    torch.manual_seed(0)
    return rival, rival.task.host()


@pytest.mark.parametrize("arm", ["lora4", "lora8-qv", "dora", "adalora"])
def test_an_adapter_changes_nothing_at_birth_and_learns_beside_the_head(arm: str) -> None:
    _, adapted = made(arm)
    torch.manual_seed(0)
    host, inputs = held_encoder(), tiny_text().data.train.inputs
    with torch.no_grad():
        torch.testing.assert_close(adapted.eval()(inputs), host.eval()(inputs))
    learning = {name for name, each in adapted.named_parameters() if each.requires_grad}
    assert {"head.weight", "head.bias"} < learning
    assert all(name.startswith("head.") or "lora_" in name for name in learning)
    places = {name.split(".lora_")[0] for name in learning if "lora_" in name}
    assert len(places) == (4 if arm == "lora8-qv" else 12)


def test_a_rank_costs_what_it_should() -> None:
    sizes = {}
    for arm in ("lora4-qv", "lora8-qv", "lora8"):
        _, host = made(arm)
        sizes[arm] = sum(each.numel() for name, each in host.named_parameters() if "lora_" in name)
    assert sizes["lora4-qv"] == 4 * 4 * 2 * 24
    assert sizes["lora8-qv"] == 2 * sizes["lora4-qv"]
    assert sizes["lora8"] == 2 * 8 * (4 * 2 * 24 + 2 * (24 + 96))


def test_all_weights_are_fine_tuned() -> None:
    _, host = made("full")
    assert all(each.requires_grad for each in host.parameters())


def trained(rival: RivalTask, host: nn.Module, factory: Any, steps: int) -> None:
    data = tiny_text().data.train
    optimizer = factory([each for each in host.parameters() if each.requires_grad], 1e-2, 0.0)
    for step in range(steps):
        optimizer.zero_grad()
        at = slice(16 * (step % 4), 16 * (step % 4) + 16)
        rival.task.loss(host(data.inputs[at]), data.targets[at]).mean().backward()
        optimizer.step()


def ranks(host: nn.Module) -> list[int]:
    """How many singular values of each module are left."""
    return [int((each != 0).sum()) for name, each in host.named_parameters() if "lora_E" in name]


@pytest.mark.parametrize("allocates", [True, False])
def test_adalora_gives_ranks_to_where_they_count(allocates: bool) -> None:
    rival, host = made("adalora", steps=40)
    trained(rival, host, rival.optimizer(adamw) if allocates else adamw, 40)
    left = ranks(host)
    assert len(left) == 12
    # 12 each to begin with; 8 on average are to stay
    assert sum(left) == (12 * 8 if allocates else 12 * 12)
    assert (len(set(left)) > 1) is allocates


def test_adalora_is_regularised_in_training_alone() -> None:
    rival, host = made("adalora")
    inputs, targets = tiny_text().data.train.inputs[:4], tiny_text().data.train.targets[:4]
    output = host(inputs)
    plain = cross_entropy(output, targets)
    with torch.no_grad():
        assert torch.equal(rival.task.loss(output, targets), plain)
    extra = rival.task.loss(output, targets) - plain
    grams = [
        each @ each.T if "lora_A" in name else each.T @ each
        for name, each in host.named_parameters()
        if "lora_A" in name or "lora_B" in name
    ]
    expected = 0.5 * sum(torch.norm(gram - torch.eye(len(gram))) for gram in grams) / len(grams)
    torch.testing.assert_close(extra, expected.expand(4))


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(UsageError, match="arm 'adalora' adapts linear layers alone; of task 'tiny-text' 0 is none"):
        RivalTask(pictures(), "adalora", 8).task.host()
    with pytest.raises(UsageError, match="has no site beside a module named query, value"):
        RivalTask(pictures(), "lora4-qv", 8).task.host()
    behind = replace(tiny_text(), sites={"all": "bert"})
    with pytest.raises(UsageError, match="has no site beside a module, so there is none to adapt"):
        RivalTask(behind, "lora4", 8).task.host()


def test_convolutions_are_adapted() -> None:
    host = RivalTask(pictures(), "lora4", 8).task.host()
    assert {name.split(".")[0] for name, each in host.named_parameters() if each.requires_grad} == {"0"} | {"2"}


@pytest.mark.parametrize("arm", ["lora8", "dora", "full"])
def test_the_work_of_a_step_is_booked_as_it_is_done(arm: str) -> None:
    """Within 2 %: AdaLoRA's regularisation, once a batch, is left out."""
    rival = RivalTask(tiny_text(), arm, 8)
    config = rival.trainer(TrainerConfig(batch_size=16))
    task = replace(rival.task, sites={"last": "+bert.encoder.layer.1.output.dense"})
    trainer = Trainer(EnvSpec(0, 0, 3, 1), task, from_task(task, config), config, lambda event: None)
    trainer.train_epoch()
    booked = trainer.ledger.train_forward_macs + trainer.ledger.train_backward_macs
    data = task.data.train

    def epoch() -> None:
        for inputs, targets in zip(data.inputs.split(16), data.targets.split(16), strict=True):
            task.loss(trainer.model(inputs), targets).mean().backward()

    assert counted(epoch) == pytest.approx(booked, rel=0.02)


def test_a_trial_of_a_rival_is_one_like_any_other() -> None:
    outcomes = {}
    for arm in ("small", "lora4", "full", "all-sites"):
        topology = "middle" if arm == "all-sites" else None
        work = Work(TINY, (), 2)
        outcomes[arm] = run_trial(Trial(work, arm, "final", 3, TrialSetting(), topology=topology))
        assert outcomes[arm].failed is None
        assert outcomes[arm].test is not None
    head = 24 * 2 + 2
    assert outcomes["small"].trained == head
    assert outcomes["lora4"].trained == outcomes["all-sites"].trained == head + 2 * 4 * (4 * 2 * 24 + 2 * (24 + 96))
    assert outcomes["full"].trained == outcomes["full"].parameters == outcomes["small"].parameters
    assert outcomes["small"].macs < outcomes["lora4"].macs < outcomes["full"].macs
    assert set(outcomes["all-sites"].seeds.values()) == {"lora4"}
    assert all(outcome.cpu_seconds > 0 for outcome in outcomes.values())


def test_half_of_what_lora_takes_is_the_most_that_an_arm_may_grow() -> None:
    half = 8 * (4 * 2 * 24 + 2 * (24 + 96))  # of rank 8 in two layers
    assert adapting(tiny_text(), "lora8") == 2 * half
    grown = {}
    for arm in ("auto", "auto-half"):
        outcome = run_trial(Trial(Work(TINY, (), 4), arm, "tune", 3, TrialSetting(), policy="auto"))
        grown[arm] = outcome.trained - (24 * 2 + 2)
    assert 0 < grown["auto-half"] <= half < grown["auto"]


def test_rivals_are_arms_with_rates_of_their_own_and_policies_are_arms_by_their_names() -> None:
    assert set(RIVALS) < set(ARMS)
    assert not set(RIVALS) & set(FULL)
    assert ARMS["lora8"].family is Family.ADAPTER
    assert ARMS["full"].family is Family.FULL
    assert [arm.name for arm in chosen(["esper-v1", "lora8"], "frugal")] == ["frugal", "lora8", "esper-v1"]
    with pytest.raises(UsageError, match="unknown arm 'static'"):
        chosen(["static"], "frugal")
