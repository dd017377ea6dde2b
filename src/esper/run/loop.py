"""An episode whose epochs are trained by a loop of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from esper.kasmina.precision import Autocast
from esper.kasmina.sharded import as_shards
from esper.leyline import Decision, EnvSpec, EnvView, Policy, UsageError
from esper.run.play import Saveable
from esper.tolaria.engine import ModuleEngine
from esper.tolaria.executor import EpisodeResult, Executor, StepReport
from esper.tolaria.nested import State, join, plain_state, split
from esper.tolaria.trainer import Trainer


class OwnLoop:
    """One env, one episode. It can be saved between two epochs, and in an epoch between two steps."""

    def __init__(self, executor: Executor, policy: Policy, epochs: int) -> None:
        self.executor, self.policy, self.epochs = executor, policy, epochs
        self.on_boundary: Callable[[int], None] | None = None
        self.views: list[EnvView] = []
        self.under_way = False
        """Whether an epoch has begun."""

    @property
    def engine(self) -> ModuleEngine:
        """The engine of the executor."""
        assert isinstance(self.executor.engine, ModuleEngine)
        return self.executor.engine

    @property
    def trainer(self) -> Trainer:
        """The env's trainer, once there is one."""
        return self.engine.trainer(0)

    def begin(self) -> None:
        """A fresh env, and a policy that remembers nothing."""
        spec = EnvSpec(0, 0, 0, self.epochs, self.policy.name, self.policy.name)
        self.views = self.executor.reset([spec])
        self.policy.reset([spec])

    def begin_epoch(self) -> None:
        """The first batch comes."""
        done = self.views[0].epoch
        if done >= self.epochs:
            raise UsageError(
                f"epoch {done + 1} begins, and Budget.epochs is {self.epochs}; set it to the epochs you train"
            )
        self.executor.begin(self._decide())
        self.engine.begin_epoch(0)
        self.under_way = True

    def end_epoch(self) -> StepReport:
        """The last batch was."""
        (report,) = self.executor.complete([self.trainer.end_epoch()])
        self.views = [report.view]
        self.under_way = False
        return report

    def finish(self) -> EpisodeResult:
        """End it, with a last word from the policy."""
        (result,) = self.executor.finish(self._decide())
        return result

    def _decide(self) -> Sequence[Decision]:
        return self.policy.decide(self.views)

    def least(self) -> dict[str, int]:
        """Nothing makes it longer or shorter."""
        return {}

    def remarks(self) -> list[str]:
        """What keeps a resume from being exact: a policy that cannot be saved."""
        if isinstance(self.policy, Saveable):
            return []
        return [f"policy {self.policy.name}: it cannot be saved (it has no state and load), and begins anew"]

    def state(self) -> State:
        """All it takes to go on bit for bit."""
        trainer = self.trainer
        own = {
            "policy": self.policy.state() if isinstance(self.policy, Saveable) else None,
            "autocast": [[kind, on, str(dtype).rpartition(".")[2]] for kind, on, dtype in trainer.autocast.states],
        }
        parts = {"own": plain_state(own), "executor": self.executor.state()}
        if self.under_way:
            gradients = {name: p.grad.clone() for name, p in _named(trainer.model).items() if p.grad is not None}
            parts["epoch"] = trainer.epoch_state()
            parts["step"] = {"tensors": as_shards(gradients), "plain": self.executor.outcomes}
        return join(parts)

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`."""
        parts = split(state)
        own = parts["own"]["plain"]
        self.views = self.executor.load(parts["executor"])
        trainer = self.trainer
        trainer.autocast = Autocast(tuple((kind, on, getattr(torch, name)) for kind, on, name in own["autocast"]))
        if own["policy"] is not None and isinstance(self.policy, Saveable):
            self.policy.load(own["policy"])
        else:
            self.policy.reset([EnvSpec(0, 0, 0, self.epochs, self.policy.name, self.policy.name)])
        self.under_way = "epoch" in parts
        if self.under_way:
            self.executor.outcomes = parts["step"]["plain"]
            self.engine.resume_epoch(0, parts["epoch"])
            named, gradients = _named(trainer.model), parts["step"]["tensors"]
            if (sharding := trainer.model.sharding) is not None:
                gradients = sharding.fitted(gradients, named)
            for name, parameter in named.items():
                gradient = gradients.get(name)
                parameter.grad = None if gradient is None else gradient.to(parameter.device).clone()


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())
