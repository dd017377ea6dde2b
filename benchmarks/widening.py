"""Does widening an MLP while it trains pay? On `letters`, against the widened MLP from scratch at equal compute.

    OMP_NUM_THREADS=1 uv run python benchmarks/widening.py [--seeds 10] [--into docs/benchmarks.md]

The host of `letters` (two hidden layers of 16) trains for a share of the steps; then both layers become twice as wide
and training goes on under the same cosine. *split*: every unit is there twice, what goes out of it is halved and gets a
little noise (Net2WiderNet, Chen, Goodfellow and Shlens, 2016), and AdamW's moments are split as the gradients are.
*fresh*: the new units are drawn as torch draws them, nothing goes out of them yet, and they have no moments. Both
compute after it what they computed before, but for the noise. *wide*: the widened MLP from scratch, for as many
multiply-accumulates as the widened run spent, rounded up to a step. *narrow*: the host alone, for as many.

Each arm tries four settings on two tuning seeds, validation chooses, and test is looked at once, on ten other seeds
that all arms share. Training and the looks at validation and test are counted.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from esper.bench.analysis import macs
from esper.bench.report import into_page
from esper.karn.results import with_interval
from esper.karn.stats import interval
from esper.tasks import Batches, TaskSpec, get_task
from esper.tasks.hosts import TabularHost
from esper.tolaria import ledger
from esper.tolaria.rng import derive

CHANNELS, TIMES = 16, 2
NOISE = 0.01
"""Of what goes out of a split unit, relative to its root mean square."""
RATES = (1e-2, 2e-2, 4e-2, 8e-2)
MOMENTS = {"exp_avg": 1, "exp_avg_sq": 2}
"""Of AdamW -> the power of the gradient that it averages."""


@dataclass(frozen=True)
class Setting:
    """What is tuned."""

    rate: float
    at: float = 0.0
    """Share of the steps after which it is widened."""

    def label(self) -> str:
        """In words."""
        return f"lr {self.rate:g}" + (f", at {self.at:.0%}" if self.at else "")


_AT = tuple(Setting(rate, at) for rate in RATES[1:3] for at in (0.3, 0.6))
ARMS: Mapping[str, tuple[Setting, ...]] = {
    "split": _AT,
    "fresh": _AT,
    "wide": tuple(map(Setting, RATES)),
    "narrow": tuple(map(Setting, RATES)),
}
"""Arm -> its settings. The first one's compute is what the last two get."""


@dataclass(frozen=True)
class Outcome:
    """One run."""

    validation: float
    test: float | None
    macs: int
    parameters: int


def host(task: TaskSpec, channels: int) -> TabularHost:
    """The task's host, ``channels`` wide."""
    columns = task.data.train.inputs.shape[1]
    return TabularHost(columns, channels, task.host().head.out_features)


def widened(old: TabularHost, split: bool, noise: float = NOISE) -> TabularHost:
    """``old`` with hidden layers twice as wide, which computes the same but for the noise of a split."""
    layers = [old.block0[0], old.block1[0], old.head]
    wide = TabularHost(layers[0].in_features, TIMES * layers[0].out_features, layers[-1].out_features)
    for number, (new, layer) in enumerate(zip((wide.block0[0], wide.block1[0], wide.head), layers, strict=True)):
        outputs, inputs = layer.weight.shape
        with torch.no_grad():
            if split:
                weight = layer.weight if number == 0 else torch.cat([layer.weight] * TIMES, dim=1) / TIMES
                grown = weight if layer is old.head else torch.cat([weight] * TIMES)
                scale = noise * grown.square().mean().sqrt()
                new.weight.copy_(grown if number == 0 else grown + scale * torch.randn_like(grown))
                new.bias.copy_(layer.bias if layer is old.head else torch.cat([layer.bias] * TIMES))
            else:
                new.weight[:outputs, :inputs], new.bias[:outputs] = layer.weight, layer.bias
                new.weight[:outputs, inputs:] = 0.0
    return wide


def carried(old: torch.optim.AdamW, new: torch.optim.AdamW, split: bool) -> None:
    """Give the optimizer of the wide MLP what the narrow one's knows, as its gradients relate to the narrow one's.

    Of a split unit each half has half the gradient, so half the first moment and a quarter of the second; what goes out
    of each has all of it.
    """
    pairs = list(zip(old.param_groups[0]["params"], new.param_groups[0]["params"], strict=True))
    for number, (narrow, wide) in enumerate(pairs):
        last = number >= len(pairs) - 2  # weight and bias of the head
        kept = old.state[narrow]
        state: dict[str, Tensor] = {"step": kept["step"].clone()}
        for name, power in MOMENTS.items():
            value = kept[name]
            if split:
                value = value if number < 2 or value.ndim == 1 else torch.cat([value] * TIMES, dim=1)
                value = value if last else torch.cat([value] * TIMES) / TIMES**power
                state[name] = value.clone()
            else:
                state[name] = torch.zeros_like(wide)
                state[name][tuple(slice(size) for size in value.shape)] = value
        new.state[wide] = state


def batches(task: TaskSpec, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches without end."""
    source = Batches(task.data.train, task.budget.batch_size, seed)
    while True:
        yield from source.epoch()


class Run:
    """One run of an arm on a seed."""

    def __init__(self, task: TaskSpec, seed: int, setting: Setting) -> None:
        self.task, self.setting = task, setting
        self.spent = 0
        self.source = batches(task, seed)

    def optimizer(self, model: nn.Module) -> torch.optim.AdamW:
        """AdamW at the setting's peak rate."""
        return torch.optim.AdamW(model.parameters(), lr=self.setting.rate, weight_decay=self.task.budget.weight_decay)

    def train(self, model: nn.Module, optimizer: torch.optim.AdamW, steps: range, of: int) -> None:
        """The ``steps`` of a cosine of ``of`` steps."""
        cost = step_macs(model, self.task)
        for step in steps:
            for group in optimizer.param_groups:
                group["lr"] = self.setting.rate * 0.5 * (1.0 + math.cos(math.pi * step / of))
            inputs, targets = next(self.source)
            optimizer.zero_grad()
            self.task.loss(model(inputs), targets).mean().backward()
            optimizer.step()
            self.spent += cost

    def judged(self, model: nn.Module, final: bool) -> Outcome:
        """Validation, and test where it is the run that counts."""
        found = {}
        for name in ("validation", "test") if final else ("validation",):
            split = self.task.data.splits()[name]
            with torch.no_grad():
                found[name] = float(self.task.score(model(split.inputs), split.targets).mean())
            self.spent += forward_macs(model, self.task) * len(split)
        parameters = sum(each.numel() for each in model.parameters())
        return Outcome(found["validation"], found.get("test"), self.spent, parameters)


def forward_macs(model: nn.Module, task: TaskSpec) -> int:
    """Of one example."""
    sample = task.data.train.inputs[:2]
    return ledger.count(lambda: model(sample), 2, model=model).forward


def step_macs(model: nn.Module, task: TaskSpec) -> int:
    """Of a training step."""
    forward = forward_macs(model, task)
    return task.budget.batch_size * (forward + ledger.backward(forward))


def run(task: TaskSpec, arm: str, setting: Setting, seed: int, budget: int | None, final: bool) -> Outcome:
    """One run; ``budget`` is what arms that do not widen spend at least."""
    torch.manual_seed(seed)
    this = Run(task, seed, setting)
    whole = task.budget.max_epochs * task.data.train.parts(task.budget.batch_size)
    if arm in ("wide", "narrow"):
        assert budget is not None
        model = host(task, CHANNELS * (TIMES if arm == "wide" else 1))
        held_out = sum(len(task.data.splits()[name]) for name in (("validation", "test") if final else ("validation",)))
        steps = -(-(budget - held_out * forward_macs(model, task)) // step_macs(model, task))
        this.train(model, this.optimizer(model), range(steps), steps)
        return this.judged(model, final)
    narrow = host(task, CHANNELS)
    optimizer, at = this.optimizer(narrow), round(setting.at * whole)
    this.train(narrow, optimizer, range(at), whole)
    model = widened(narrow, arm == "split")
    other = this.optimizer(model)
    carried(optimizer, other, arm == "split")
    this.train(model, other, range(at, whole), whole)
    return this.judged(model, final)


def seeds(stage: str, count: int) -> list[int]:
    """Those of tuning and of the judgement share none."""
    return [derive(0, f"widening-{stage}", number) % 2**31 for number in range(count)]


@dataclass(frozen=True)
class Found:
    """An arm's runs on the seeds that count, at its best setting by validation."""

    setting: Setting
    finals: list[Outcome]


def compared(task: TaskSpec, count: int, say: Callable[[str], None]) -> dict[str, Found]:
    """Tune every arm with equal trials, then run it on the seeds that all share."""
    found: dict[str, Found] = {}

    @cache
    def of(arm: str, setting: Setting, stage: str, number: int) -> Outcome:
        budget = None
        if arm in ("wide", "narrow"):
            first = next(iter(ARMS))
            budget = of(first, found[first].setting, stage, number).macs
        outcome = run(task, arm, setting, seeds(stage, number + 1)[-1], budget, stage == "final")
        say(f"{arm}, {setting.label()}, {stage} {number}: {outcome.validation:.1f}")
        return outcome

    for arm, settings in ARMS.items():
        tried = {each: statistics.fmean(of(arm, each, "tune", i).validation for i in range(2)) for each in settings}
        best = max(tried, key=lambda each: tried[each])
        found[arm] = Found(best, [])
        found[arm].finals.extend(of(arm, best, "final", i) for i in range(count))
    return found


def table(task: TaskSpec, found: Mapping[str, Found]) -> str:
    """Arms and paired differences in Markdown."""
    count = len(next(iter(found.values())).finals)
    lines = [f"`python benchmarks/widening.py --seeds {count}`", ""]
    lines += [f"| arm | test {task.metric.name}, {task.metric.unit} | parameters | MACs a run | tuned to |"]
    lines += ["|---|---:|---:|---:|---|"]
    for arm, each in found.items():
        tested = with_interval(interval(tests(each)))
        spent = statistics.fmean(outcome.macs for outcome in each.finals)
        lines.append(f"| {arm} | {tested} | {each.finals[0].parameters:,} | {macs(spent)} | {each.setting.label()} |")
    lines += ["", "| difference | test, paired | 95 % t interval | MACs ratio |", "|---|---:|---|---:|"]
    for one, other in (("split", "wide"), ("fresh", "wide"), ("split", "narrow"), ("split", "fresh")):
        pairs = zip(tests(found[one]), tests(found[other]), strict=True)
        difference = interval([a - b for a, b in pairs])
        assert difference is not None
        bounds = "none" if difference.low is None else f"{difference.low:+.2f} to {difference.high:+.2f}"
        ratio = sum(each.macs for each in found[one].finals) / sum(each.macs for each in found[other].finals)
        lines.append(f"| {one} minus {other} | {difference.mean:+.2f} | {bounds} | {ratio:.3g} |")
    return "\n".join(lines)


def tests(found: Found) -> list[float]:
    """Test scores, in the order of the seeds."""
    return [outcome.test for outcome in found.finals if outcome.test is not None]


def main(argv: list[str]) -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, metavar="N")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="write the table between the marks widening of PAGE")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    task = get_task("letters")
    text = table(task, compared(task, args.seeds, lambda line: print(line, file=sys.stderr)))
    print(text)
    if args.into is not None:
        into_page(args.into, "widening", text)


if __name__ == "__main__":
    main(sys.argv[1:])
