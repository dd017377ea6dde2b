"""A user's own loop over a model that was grown by hand, which needs torch alone, and how far two loops are apart."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from esper.leyline import SeedStage
from own_cases import EPOCHS, Case, Pairs, penalty

MULTIPLE = 3.0
"""Of a seed's rate over that of the parameters around it."""


@dataclass
class Told:
    """What one loop saw."""

    losses: list[float] = field(default_factory=list)
    gradients: list[list[Tensor]] = field(default_factory=list)
    """Of the seed, at each step; none where it had none."""
    weights: list[list[Tensor]] = field(default_factory=list)
    """Of the host, after each step."""
    figures: list[list[float]] = field(default_factory=list)
    """By epoch: metric, loss, and, where it was read, what the seed is worth in both."""
    read: list[set[int]] = field(default_factory=list)
    """By epoch: batches of validation that the seed's worth was read from; none where it was not read."""
    course: list[tuple[SeedStage, float]] = field(default_factory=list)
    """By epoch: stage and alpha."""
    born: nn.Module | None = None
    """The seed as it was when it was first taught."""
    born_in: int = 0


def steps(pairs: Pairs, micro: int) -> Iterator[Pairs]:
    for start in range(0, len(pairs), micro):
        yield pairs[start : start + micro]


def seed_gradients(seed: nn.Module | None) -> list[Tensor]:
    return [] if seed is None else [p.grad.double() for p in seed.parameters() if p.grad is not None]


class ByHand:
    """The user's own loop over a model that was grown by hand: a hook that blends, and a pass to teach the seed."""

    def __init__(self, case: Case, told: Told) -> None:
        self.case, self.model, self.criterion = case, case.model(), case.criterion()
        self.course, self.read, self.birth, self.newborn = told.course, told.read, told.born_in, told.born
        self.seed: Any = None
        self.alpha, self.teaching = 0.0, False
        self.model.get_submodule(case.kind.site).register_forward_hook(self.blend)
        self.optimizer = case.optimizer_of(self.model)
        self.seed_optimizer: Any = None
        self.scaler = torch.amp.GradScaler("cpu", case.scale or 1.0, enabled=bool(case.scale))

    def blend(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self.alpha == 0.0:
            return output
        h = output[0] if isinstance(output, tuple) else output
        if torch.is_grad_enabled() and (self.teaching or not h.requires_grad):
            h = h.contiguous()  # in bfloat16 sums differ by how a tensor lies in memory
        grown = torch.lerp(h, self.seed(h).to(h.dtype), self.alpha)
        return (grown, *output[1:]) if isinstance(output, tuple) else grown

    def loss(self, x: Any, y: Tensor, criterion: Callable[[Any, Tensor], Tensor]) -> Tensor:
        with self.case.cast("loss"), self.case.cast("all"):
            return criterion(self.case.forward(self.model, x), y)

    @property
    def criteria(self) -> list[Callable[[Any, Tensor], Tensor]]:
        return [self.criterion, penalty] if self.case.second else [self.criterion]

    def minimised(self, loss: Tensor) -> Tensor:
        return self.scaler.scale(loss / self.case.micro)

    def for_seed(self, loss: Tensor) -> Tensor:
        return self.minimised(loss)

    def teach(self, x: Any, y: Tensor, criterion: Callable[[Any, Tensor], Tensor]) -> None:
        """The seed alone learns from a pass with it, which leaves no trace."""
        with self.without_a_trace():
            self.alpha, self.teaching = 1.0, True
            learners = list(self.seed.parameters())
            gradients = torch.autograd.grad(self.for_seed(self.loss(x, y, criterion)), learners)
            self.alpha, self.teaching = 0.0, False
        for parameter, gradient in zip(learners, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    @contextmanager
    def without_a_trace(self) -> Iterator[None]:
        random, buffers = torch.get_rng_state(), [b.clone() for b in self.model.buffers()]
        yield
        torch.set_rng_state(random)
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def set_modes(self) -> None:
        self.case.modes(self.model)

    def seed_rate(self) -> None:
        around = self.optimizer.param_groups[0]
        options = {name: value for name, value in around.items() if name not in ("params", "initial_lr")}
        self.seed_optimizer.param_groups[0].update(options | {"lr": MULTIPLE * around["lr"]})

    def clipped(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *(self.seed.parameters() if self.seed is not None else ())]

    def run(self) -> Told:
        told, scheduler = Told(), self.case.scheduler_of(self.optimizer)
        torch.manual_seed(self.case.seed)
        for epoch, (stage, alpha) in enumerate(self.course):
            if epoch == self.birth:
                self.seed = copy.deepcopy(self.newborn)
                self.seed_optimizer = type(self.optimizer)(self.seed.parameters())
            self.alpha = alpha
            self.set_modes()
            for pairs in steps(self.case.train, self.case.micro):
                optimizers = [self.optimizer] + ([] if self.seed is None else [self.seed_optimizer])
                for optimizer in optimizers:
                    optimizer.zero_grad()
                losses = []
                for pair in pairs:
                    losses.append(sum(self.loss(*pair, each) for each in self.criteria))
                    if losses[-1].requires_grad:
                        torch.autograd.backward(self.minimised(losses[-1]))
                    taught = pairs if self.case.taught_at_once and pair is pairs[-1] else [pair]
                    if stage is SeedStage.TRAINING and (taught is pairs or not self.case.taught_at_once):
                        for each, criterion in product(taught, self.criteria):
                            self.teach(*each, criterion)
                if self.seed is not None:
                    self.seed_rate()
                for optimizer in optimizers:
                    self.scaler.unscale_(optimizer)
                if self.case.clip is not None:
                    nn.utils.clip_grad_norm_(self.clipped(), self.case.clip)
                told.losses += [float(loss.detach()) for loss in losses]
                told.gradients.append(seed_gradients(self.seed))
                for optimizer in optimizers:
                    self.scaler.step(optimizer)
                self.scaler.update()
                told.weights.append([p.detach().double().clone() for p in self.model.parameters()])
                if scheduler is not None:
                    scheduler.step()
            told.figures.append(self.figures(alpha, self.read[epoch]))
        return told

    def figures(self, alpha: float, read: set[int]) -> list[float]:
        validation = self.case.validation
        as_is = self.evaluate(alpha, validation)
        if not read:
            return list(as_is)
        part = [validation[i] for i in sorted(read)]
        one, other = (self.evaluate(each, part) for each in (alpha, 0.0 if alpha else 1.0))
        with_it, without = (one, other) if alpha else (other, one)
        sign = -1.0 if self.case.kind.classes is None else 1.0
        return [*as_is, sign * (with_it[0] - without[0]), without[1] - with_it[1]]

    @torch.no_grad()
    def evaluate(self, alpha: float, batches: Pairs) -> tuple[float, float]:
        """Metric and loss over batches: of each what the loss says, by how much of it the loss counts."""
        total, weight, right, labels = 0.0, 0.0, 0, 0
        self.model.eval()
        if self.seed is not None:
            self.seed.eval()
        before, self.alpha = self.alpha, alpha
        for x, y in batches:
            with self.case.cast("loss"), self.case.cast("all"):
                output = self.case.forward(self.model, x)
                loss = self.criterion(output, y)
            total, weight = total + float(loss) * self.counted(y), weight + self.counted(y)
            if self.case.kind.classes is not None:
                right, labels = right + int((output.argmax(1) == y).sum()), labels + int(self.label(y).sum())
        self.alpha = before
        if self.seed is not None:
            self.seed.train()
        return total / weight if self.case.kind.classes is None else 100.0 * right / labels, total / weight

    def label(self, y: Tensor) -> Tensor:
        return y != -100

    def counted(self, y: Tensor) -> float:
        if self.case.kind.classes is None or self.case.reduction != "mean":
            return len(y)
        weight: Any = self.criterion.weight
        return float(self.label(y).sum()) if weight is None else float(weight[y[self.label(y)]].double().sum())


def differences(one: Told, other: Told, case: Case) -> dict[str, float]:
    """The largest difference in each respect, as a share of the largest value; of weights, of how far they went, unless
    they are so coarse that they go by steps.
    """
    coarse = case.dtype is torch.bfloat16
    start = [p.detach().double() * (not coarse) for p in case.model().parameters()]
    moved = [[[w - s for w, s in zip(step, start, strict=True)] for step in told.weights] for told in (one, other)]
    return {
        "losses": apart([torch.tensor(one.losses)], [torch.tensor(other.losses)]),
        "gradients": max(map(apart, one.gradients, other.gradients)),
        "weights": max(map(apart, *moved)),
        "metrics": max(map(figures_apart, one.figures, other.figures, [0] * EPOCHS, [case.percent] * EPOCHS)),
        "validation losses": max(map(figures_apart, one.figures, other.figures, [1] * EPOCHS, [False] * EPOCHS)),
    }


def apart(one: list[Tensor], other: list[Tensor], least: float = 1e-12) -> float:
    assert [each.shape for each in one] == [each.shape for each in other]
    largest = max([least, *(float(each.abs().max()) for each in other)])
    return max([0.0, *(float((a - b).abs().max()) / largest for a, b in zip(one, other, strict=True))])


def figures_apart(one: list[float], other: list[float], column: int, percent: bool) -> float:
    """Of the metric (0) or the loss (1), and what the seed is worth in it, as a share of the figure or of 100 %."""
    return apart([torch.tensor(one[column::2])], [torch.tensor(other[column::2])], 100.0 if percent else 1e-12)


def limit(case: Case) -> float:
    """Both sides do the same in the same order, but for a few sums (the norm of all gradients, a gradient over several
    batches): a rounding or two, which twenty steps make more of. In bfloat16 a rounding is 2^-8.
    """
    if case.dtype is torch.bfloat16 or case.autocast is not None:
        return 2**-3
    return 1e-9 if case.dtype is torch.float64 else 1e-3
