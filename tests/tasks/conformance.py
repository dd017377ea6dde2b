"""What every task must satisfy, built in or not."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import nn

from esper.kasmina.blueprints import build
from esper.kasmina.growing import GrowingModel
from esper.tasks import Batches, TaskSpec
from esper.tasks.base import check_task, digest_of


def check_conformance(task: TaskSpec, *, classes: int | None) -> None:
    """Shapes, types, splits without a common example, digest, sites, and a host whose source stands alone."""
    check_task(task)
    check_examples(task, classes=classes)
    check_slots(task)
    assert isinstance(task.host, partial)
    check_source_stands_alone(task.host, task.data.train.inputs[:3])


def check_examples(task: TaskSpec, *, classes: int | None) -> None:
    """Digest, types, and splits without a common example."""
    data = task.data
    assert data.digest == digest_of(data.train, data.validation, data.test)
    rows = {
        name: {part.numpy().tobytes() for part in split.inputs.contiguous()} for name, split in data.splits().items()
    }
    assert not rows["train"] & rows["validation"]
    assert not rows["train"] & rows["test"]
    assert not rows["validation"] & rows["test"]
    if classes is not None:
        for split in data.splits().values():
            assert split.targets.dtype == torch.int64
            assert split.targets.min() >= 0
            assert split.targets.max() < classes


def check_slots(task: TaskSpec) -> None:
    """A slot fits every site, in the order given, and every blueprint fits every slot."""
    sample = task.data.train.inputs[:2]
    model = GrowingModel.wrap(task.host(), task.sites, sample)
    assert list(model.slots) == list(task.sites)
    for place in model.places.values():
        for name in task.blueprints:
            build(name, place.channels, place.layout)


def check_source_stands_alone(host: partial[nn.Module], inputs: torch.Tensor) -> None:
    namespace: dict[str, Any] = {"torch": torch, "nn": nn}
    source = "from __future__ import annotations\n" + inspect.getsource(host.func)
    exec(source, namespace)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        here = host().eval()
        torch.manual_seed(0)
        there = namespace[host.func.__name__](*host.args, **host.keywords).eval()
    with torch.no_grad():
        assert torch.equal(here(inputs), there(inputs))


def score_after(task: TaskSpec, epochs: int, seed: int = 0) -> float:
    """Validation metric of the host alone after ``epochs`` of AdamW at the budget's peak rate, by a plain loop."""
    budget = task.budget
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        host = task.host()
        optimizer = torch.optim.AdamW(host.parameters(), lr=budget.lr, weight_decay=budget.weight_decay)
        source = Batches(task.data.train, budget.batch_size, seed, augment=task.augment)
        for _ in range(epochs):
            for inputs, targets in source.epoch():
                optimizer.zero_grad()
                task.loss(host(inputs), targets).mean().backward()
                optimizer.step()
        host.eval()
        with torch.no_grad():
            batches = Batches(task.data.validation, 500, shuffle=False).epoch()
            return float(torch.cat([task.score(host(inputs), targets) for inputs, targets in batches]).mean())
