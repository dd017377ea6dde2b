"""What the executor costs over plain PyTorch, and what counterfactuals cost over a validation pass.

    uv run python benchmarks/executor.py

Ratios of CPU time, A and B in turn in one process on one thread; medians of the pairs. Both sides train the same host
on the same tensors with the same optimizer and schedule, and validate after each epoch.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from esper.kasmina import blueprints
from esper.kasmina.layout import Layout
from esper.kasmina.replay import evaluate_configs
from esper.leyline import WAIT, Blend, Decision, EnvSpec, FactoredAction, GateThresholds, Op, SeedStage
from esper.nissa.hub import NissaHub
from esper.nissa.journal import JournalWriter
from esper.tasks import get_task
from esper.tolaria import schedules
from esper.tolaria.engine import EngineConfig, ModuleEngine
from esper.tolaria.executor import Executor, ExecutorConfig
from esper.tolaria.governor import Governor
from esper.tolaria.setup import TrainerConfig, from_task

TASK = get_task("digits")
PAIRS = 9
EPOCHS = 5
WAITING = Decision(WAIT, "")
SCHEDULE = schedules.ScheduleConfig()


def _leave(config: int, output: object) -> None:
    """Outputs are not looked at."""


def plain_loop(network: nn.Module, behind: Callable[[nn.Module, torch.Tensor, torch.Tensor], None] | None) -> None:
    """EPOCHS epochs of training and validation, written by hand."""
    train, validation = TASK.data.train, TASK.data.validation
    optimizer = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), lr=5e-3, weight_decay=0.01)
    loss_of = nn.functional.cross_entropy
    for epoch in range(EPOCHS):
        network.train()
        order = torch.randperm(len(train))
        inputs, targets = train.inputs[order], train.targets[order]
        total = 0.0
        for step, (x, y) in enumerate(zip(inputs.split(100), targets.split(100), strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = 5e-3 * schedules.host_factor(SCHEDULE, epoch + step / 10, 30)
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(network(x), y)
            torch.autograd.backward(loss)
            if behind is not None:
                behind(network, x, y)
            optimizer.step()
            total += loss.detach()
        network.eval()
        with torch.no_grad():
            output = network(validation.inputs)
            loss_of(output, validation.targets).item()
            (output.argmax(1) == validation.targets).float().mean().item()
        float(total)


class ByHand(nn.Module):
    """The digits host with a conv5 seed after its first block, as one would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.host = TASK.host()
        self.seed = blueprints.build("conv5", 8, Layout.NCHW)

    def forward(self, x: torch.Tensor, alpha: float = 0.5) -> torch.Tensor:
        host = self.host
        h = host.block0(x)
        if alpha:
            h = torch.lerp(h, self.seed(h), alpha)
        return self.behind(h)

    def behind(self, h: torch.Tensor) -> torch.Tensor:
        host = self.host
        h = host.pool(host.block1(host.pool(h)))
        return host.head(host.block2(h).flatten(1))


class InProbe(ByHand):
    """The same, with the seed learning in a second pass of the part behind it."""

    def forward(self, x: torch.Tensor, alpha: float = 0.0) -> torch.Tensor:
        return super().forward(x, alpha)


def second_pass(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Teach the seed behind the host: features again, detached, and gradients of the seed alone."""
    with torch.no_grad():
        h = network.host.block0(x)
    parameters = list(network.seed.parameters())
    loss = nn.functional.cross_entropy(network.behind(network.seed(h)), y)
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient


def executor_with(stage: SeedStage | None, emit: NissaHub) -> Executor:
    """A fresh executor with one row, its seed brought to ``stage``; counterfactuals off."""
    lenient = GateThresholds(min_training_epochs=0, min_gradient_ratio=-1.0, confidence_z=1e9)
    trainer = replace(TrainerConfig(), lr=5e-3, thresholds=lenient)
    engine = ModuleEngine(TASK, from_task(TASK, trainer), EngineConfig(trainer), emit.emit)
    metric = TASK.metric
    config = ExecutorConfig(counterfactual_every=10**6)
    executor = Executor(engine, metric, emit.emit, lambda sink: Governor(metric, on_telemetry=sink), config)
    executor.reset([EnvSpec(0, 0, 0, 30)])
    if stage is not None:
        engine.apply([0], [FactoredAction(Op.GERMINATE, "block0", "conv5", Blend.LINEAR, 0.5, 1000)])
        slot = engine._envs[0].slots["block0"]
        slot.advance_stage(SeedStage.TRAINING)
        if stage is SeedStage.BLENDING:
            slot._start_ramp(0.5, 1000, Blend.LINEAR)
            slot.state.alpha = 0.5
    return executor


def cpu(run: Callable[[], object]) -> float:
    """CPU seconds of ``run``."""
    before = time.process_time()
    run()
    return time.process_time() - before


def paired(make_a: Callable[[], Callable[[], object]], make_b: Callable[[], Callable[[], object]]) -> list[float]:
    """Ratios A/B, pair by pair, after one warm-up of each."""
    make_a()(), make_b()()
    return [cpu(make_a()) / cpu(make_b()) for _ in range(PAIRS)]


def report(name: str, ratios: list[float], target: float) -> None:
    """One line of the table."""
    middle = statistics.median(ratios)
    print(f"| {name} | {middle:.3f} | {min(ratios):.3f} to {max(ratios):.3f} | {target:.2f} |", flush=True)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"| CPU time ratio, median of {PAIRS} pairs | measured | range | target |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        hub = NissaHub()
        hub.add_sink(JournalWriter(folder, "bench"), name="journal")

        def epochs(stage: SeedStage | None) -> Callable[[], Callable[[], object]]:
            def make() -> Callable[[], object]:
                executor = executor_with(stage, hub)
                return lambda: [executor.step([WAITING]) for _ in range(EPOCHS)]

            return make

        host = lambda: partial(plain_loop, TASK.host(), None)  # noqa: E731
        report("executor, no seed / bare loop", paired(epochs(None), host), 1.05)
        by_hand = lambda: partial(plain_loop, ByHand(), None)  # noqa: E731
        report("executor, BLENDING / by hand", paired(epochs(SeedStage.BLENDING), by_hand), 1.10)
        probing = lambda: partial(plain_loop, InProbe(), second_pass)  # noqa: E731
        report("executor, probe / two passes by hand", paired(epochs(SeedStage.TRAINING), probing), 1.15)

        engine = executor_with(None, hub).engine
        for slot in TASK.sites:
            engine.apply([0], [FactoredAction(Op.GERMINATE, slot, "conv5", Blend.LINEAR, 1.0, 3)])
        model = engine._envs[0].trainer.model
        for slot in model.slots.values():
            slot.state.stage, slot.state.alpha = SeedStage.HOLDING, 1.0
        inputs = TASK.data.validation.inputs
        names = list(TASK.sites)
        leave_one_out = [{}, *({name: 0.0} for name in names)]
        subsets = [{n: 0.0 for i, n in enumerate(names) if not mask >> i & 1} for mask in range(7, -1, -1)]
        one = lambda: lambda: [evaluate_configs(model, inputs, [{}], _leave) for _ in range(30)]  # noqa: E731
        for name, configs, target in (
            ("leave-one-out of three seeds / one pass", leave_one_out, 2.0),
            ("eight subsets for Shapley values / one pass", subsets, 2.5),
        ):
            many = lambda configs=configs: lambda: [evaluate_configs(model, inputs, configs, _leave) for _ in range(30)]  # noqa: E731
            report(name, paired(many, one), target)
        hub.close()


if __name__ == "__main__":
    main()
