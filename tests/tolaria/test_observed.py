"""A framework's step made again: same batch, same chance, and nothing of it is seen outside."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from esper.tolaria.observed import ObservedStep, attributes_kept


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def made(step: ObservedStep, batch: Any, compute: Any) -> Any:
    """The framework's part."""
    step.keep()
    given = compute(batch)
    step.kept()
    return given


def test_a_step_made_again_draws_what_it_drew_and_leaves_the_streams_where_they_were() -> None:
    step = ObservedStep(lambda batch: draws(), ())
    first = made(step, (), lambda batch: draws())
    after = [step.again() for _ in range(2)]
    assert after == [first, first]
    untouched = ObservedStep(lambda batch: draws(), ())
    untouched.keep()
    assert untouched.again() == draws(), "the streams stand where the first step left them"


def test_a_batch_that_the_step_writes_and_takes_apart_is_whole_again() -> None:
    def compute(batch: dict[str, Tensor]) -> float:
        labels = batch.pop("labels")
        return float(batch["x"].mul_(2.0).sum() + labels.sum())

    batch = {"x": torch.ones(3), "labels": torch.ones(3)}
    step = ObservedStep(compute, batch)
    first = made(step, batch, compute)
    assert first == 9.0 and set(batch) == {"x"}, "the framework's own is written"
    assert [step.again() for _ in range(3)] == [9.0] * 3


def test_a_batch_that_is_only_read_is_not_copied() -> None:
    batch = (torch.ones(3),)
    seen: list[Tensor] = []
    step = ObservedStep(lambda again: seen.append(again[0]), batch)
    made(step, batch, lambda given: given[0].sum())
    step.again()
    assert seen[0] is batch[0]


class Module(nn.Module):
    """Notes what comes by, as users do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.steps, self.losses, self.recent = 0, [1.0], deque([1], maxlen=2)
        self.logged: defaultdict[str, list[int]] = defaultdict(list)
        self.total = torch.zeros(2)
        self.register_buffer("seen", torch.zeros(2))

    def step(self) -> None:
        self.steps += 1
        self.losses.append(2.0)
        self.recent.append(2)
        self.logged["train"].append(3)
        self.total += 1.0
        self.seen += 1.0
        self.best = 4.0


def test_what_a_step_notes_on_its_module_is_as_before() -> None:
    module = Module()
    module.logged["train"].append(1)
    held = module.losses, module.total, module.layer, module.layer.weight
    with attributes_kept([module]):
        module.step()
        assert module.losses == [1.0, 2.0] and module.logged["train"] == [1, 3], "within, it is noted"
    assert (module.steps, module.losses, list(module.recent), dict(module.logged)) == (0, [1.0], [1], {"train": [1]})
    now = module.losses, module.total, module.layer, module.layer.weight
    assert module.recent.maxlen == 2 and not hasattr(module, "best")
    assert torch.equal(module.total, torch.zeros(2)) and torch.equal(module.seen, torch.zeros(2))
    assert all(one is other for one, other in zip(held, now, strict=True))
