"""A host under ``torch.compile``: what it computes is what it computes without, and no graph is stale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper import Budget, Grower, OwnChoices
from esper.kasmina import slot as slots
from esper.kasmina import tap
from esper.leyline import GateThresholds
from four_classes import KeepOne
from own_loop import LOSS, TRAIN, VALIDATION

GATES = GateThresholds(min_training_epochs=1, min_gradient_ratio=0.0, min_holding_epochs=1, ask_for_gain=False)


class Counted:
    """A backend that counts what it compiles, and runs it as it is."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


class Run:
    """A loop of a user's own, and what it saw: losses, his own validation, and graphs that were compiled."""

    def __init__(self, where: Path, prepare: Callable[[nn.Module], None], inside: Callable[[nn.Module], None]) -> None:
        model, inputs = Net(), VALIDATION[0][0]
        prepare(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        choices = OwnChoices(LOSS, at=["blocks.1"], budget=Budget(epochs=9, parameters=5000, gates=GATES))
        self.seen: list[Tensor] = []
        self.compiled: list[tuple[str, int]] = []
        """By epoch: stage, and graphs compiled for training."""
        grower = Grower(model, optimizer, val=VALIDATION, choices=choices, policy=KeepOne(), run_dir=where)
        torch.manual_seed(1)
        with grower:
            inside(model)
            for _ in range(9):
                model.train()
                before = counted.graphs
                for x, y in TRAIN:
                    optimizer.zero_grad()
                    loss = grower.loss(x, y)
                    torch.autograd.backward(loss)
                    grower.after_backward()
                    optimizer.step()
                    self.seen.append(loss.detach())
                self.compiled.append((grower.view.slots[0].stage.name, counted.graphs - before))
                grower.after_epoch()
                model.eval()
                with torch.no_grad():
                    self.seen.append(model(inputs))
        with torch.no_grad():
            self.seen.append(model(inputs))
        self.kept = grower.view.slots[0].stage.name
        assert torch.equal(self.seen[-1], grower.result.model(inputs))


counted = Counted()


def nothing(model: nn.Module) -> None:
    pass


def compile_and_call(model: nn.Module) -> None:
    model.compile(backend=counted, fullgraph=True)
    with torch.random.fork_rng(), torch.no_grad():
        model(VALIDATION[0][0])
        model.eval()(VALIDATION[0][0])
    model(TRAIN[0][0])


def compile_alone(model: nn.Module) -> None:
    model.compile(backend=counted, fullgraph=True)


@pytest.mark.slow  # some forty graphs, traced and retraced
def test_compiled_before_or_inside_the_run_is_the_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    plain = Run(tmp_path / "plain", nothing, nothing)
    assert plain.kept == "FOSSILIZED" and counted.graphs == 0
    for name, prepare, inside in (("before", compile_and_call, nothing), ("inside", nothing, compile_alone)):
        found = Run(tmp_path / name, prepare, inside)
        assert found.kept == "FOSSILIZED"
        assert all(torch.equal(a, b) for a, b in zip(found.seen, plain.seen, strict=True)), name
        changes = [now != last for (now, _), (last, _) in zip(found.compiled[1:], found.compiled, strict=False)]
        assert all(graphs <= 1 + change for (_, graphs), change in zip(found.compiled[1:], changes, strict=True))
        assert sum(graphs for _, graphs in found.compiled) <= 6, found.compiled

    monkeypatch.setattr(tap, "forget_graphs", lambda: None)
    monkeypatch.setattr(slots, "forget_graphs", lambda: None)
    torch.compiler.reset()
    stale = Run(tmp_path / "stale", compile_and_call, nothing)
    assert not all(torch.equal(a, b) for a, b in zip(stale.seen, plain.seen, strict=True))
