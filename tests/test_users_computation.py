"""Esper computes what the user computes: a property against the user's own loop over a model that was grown by hand.

A random case is trained twice: by :class:`Grower`, and by :class:`ByHand`, which needs torch alone and is given copies
of the seed as it was born. Losses, gradients of the seed, weights of the host, and what validation says must be equal.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keeping_hosts import GPT, TOKENS, CausalConvolutions, Recurrent, tokens
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler

from esper.leyline import Blend, Decision, EnvSpec, EnvView, FactoredAction, GateThresholds, Op, SeedStage
from esper.library import Budget, Grower, OwnChoices

pytestmark = pytest.mark.usefixtures("without_figures")

EPOCHS = 4
MULTIPLE = 3.0
Pairs = list[tuple[Any, Tensor]]


class Dense(nn.Module):
    """A BatchNorm in front of the site, a BatchNorm and a dropout behind it."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.back = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, outputs))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.back(self.front(x))
        return output


class Images(nn.Module):
    """Convolutions over ``[N, 1, 6, 6]``."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.back = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))

    def forward(self, *, pixels: Tensor) -> dict[str, Tensor]:
        return {"logits": self.back(self.front(pixels))}


@dataclass(frozen=True)
class Host:
    """A model, where a seed sits in it, what grows there, and how its user calls it."""

    build: Callable[[], nn.Module]
    site: str
    blueprint: str
    forward: Callable[[nn.Module, Any], Any]
    """To logits with the classes on axis 1, or to one number per example."""
    front: tuple[str, ...]
    """What comes before the site, and may be frozen."""
    inputs: Callable[[int, int], Tensor]
    """``(examples, seed)``"""
    labels: tuple[int, ...] = ()
    """Shape of an example's labels; ``None`` classes is regression."""
    classes: int | None = 4


def normal(*shape: int) -> Callable[[int, int], Tensor]:
    return lambda n, seed: torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def words(n: int, seed: int) -> Tensor:
    return tokens(n, 6, seed)


def plain(model: nn.Module, x: Any) -> Any:
    return model(x)


def squeezed(model: nn.Module, x: Any) -> Any:
    return model(x).squeeze(1)


def named(model: nn.Module, x: Any) -> Any:
    """Inputs come by keyword, from a tensor or a mapping; the answer is one of several."""
    return model(**(x if isinstance(x, dict) else {"pixels": x}))["logits"]


def turned(model: nn.Module, x: Any) -> Any:
    return model(x).mT


def first(model: nn.Module, x: Any) -> Any:
    return model(x)[0].mT


HOSTS = {
    "MLP": Host(Dense, "front.2", "mlp", plain, ("front",), normal(6)),
    "regression": Host(partial(Dense, 1), "front.2", "pointwise", squeezed, ("front",), normal(6), classes=None),
    "convolutions": Host(Images, "front.2", "conv3", named, ("front",), normal(1, 6, 6)),
    "causal convolutions": Host(
        CausalConvolutions, "blocks.0", "pointwise", plain, ("embed", "blocks.0"), words, (6,), TOKENS
    ),
    "GPT": Host(GPT, "blocks.0", "depthwise3", turned, ("embed", "place", "blocks.0"), words, (6,), TOKENS),
    "GRU": Host(Recurrent, "cell", "mlp", first, ("embed", "cell"), words, (6,), TOKENS),
}


@dataclass(frozen=True)
class Case:
    """What a user does."""

    host: str = "MLP"
    dtype: torch.dtype = torch.float32
    autocast: str | None = None
    """Where the user has it: around the ``loss``, around ``all`` of the step, or in the ``forward``."""
    reduction: str = "mean"
    """Or ``sum``, or ``own``: by a function of the user's."""
    ignored: bool = False
    weighted: bool = False
    smoothing: float = 0.0
    second: bool = False
    """Whether another loss is added in the same backward pass."""
    micro: int = 1
    """Batches to a step of the optimizer."""
    scale: float | None = None
    clip: float | None = None
    optimizer: str = "SGD"
    schedule: str | None = None
    frozen: str | None = None
    """``front`` or ``all``."""
    groups: int = 1
    """Parameter groups of the optimizer."""
    alpha: float = 1.0
    tempo: int = 1
    taught_at_once: bool = False
    """Whether ``after_backward`` comes once for all batches of a step."""
    size: int = 8
    seed: int = 0

    @property
    def kind(self) -> Host:
        return HOSTS[self.host]

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        model = self.kind.build().to(self.dtype)
        for name in self.kind.front if self.frozen == "front" else ("",) if self.frozen == "all" else ():
            model.get_submodule(name).requires_grad_(False)
        return model

    def modes(self, model: nn.Module) -> None:
        """As the user sets them before each epoch."""
        model.train()
        if self.frozen == "front":
            for name in self.kind.front:
                model.get_submodule(name).eval()

    def forward(self, model: nn.Module, x: Any) -> Any:
        with self.cast("forward"):
            return self.kind.forward(model, x)

    def cast(self, where: str) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if self.autocast == where else nullcontext()

    def criterion(self) -> Callable[[Any, Tensor], Tensor]:
        if self.kind.classes is None:
            return huber if self.reduction == "own" else nn.MSELoss(reduction=self.reduction)
        if self.reduction == "own":
            return flat
        weighted = (
            self.weighted and self.autocast != "forward"
        )  # whose logits are narrower than the weights: torch refuses
        weight = torch.linspace(0.5, 3.0, self.kind.classes, dtype=self.dtype) if weighted else None
        return nn.CrossEntropyLoss(weight, reduction=self.reduction, label_smoothing=self.smoothing)

    def batches(self, seed: int, sizes: tuple[int, ...]) -> Pairs:
        found = []
        for i, n in enumerate(sizes):
            x, chance = self.kind.inputs(n, seed + i), torch.Generator().manual_seed(1000 + seed + i)
            if self.kind.classes is None:
                y = x.square().mean(1).to(self.dtype)
            elif self.kind.labels:
                y = (3 * x + x.roll(1, 1)) % self.kind.classes
            else:
                y = x.flatten(1)[:, :4].argmax(1)
            if self.ignored and self.kind.classes is not None:
                hidden = torch.rand(y.shape, generator=chance) < 0.2 + 0.5 * (i % 2)
                hidden.view(-1)[:1] = False
                y = y.masked_fill(hidden, -100)
            found.append((x.to(self.dtype) if x.is_floating_point() else x, y))
        return found

    @property
    def percent(self) -> bool:
        """Whether the metric is an accuracy, and not the loss."""
        return self.kind.classes is not None

    @property
    def train(self) -> Pairs:
        """The last batch is smaller, and no whole number of steps."""
        pairs = self.batches(10, (self.size,) * 4 + (self.size // 2,))
        return [({"pixels": x}, y) for x, y in pairs] if self.host == "convolutions" else pairs

    @property
    def validation(self) -> Pairs:
        return self.batches(50, (self.size, self.size, 3))

    def optimizer_of(self, model: nn.Module) -> Optimizer:
        parameters = [p for p in model.parameters() if p.requires_grad]
        front = [p for name, p in model.named_parameters() if p.requires_grad and name.startswith(self.kind.front)]
        groups: list[dict[str, Any]] = [{"params": parameters}]
        if self.groups == 2 and front:
            inside = set(front)
            groups = [{"params": front}, {"params": [p for p in parameters if p not in inside], "lr": 0.004}]
        if self.optimizer == "AdamW":
            # of a bias in front of a BatchNorm the gradient is rounding alone, which a small eps would make a step of
            return AdamW(groups, lr=0.002, weight_decay=0.05, eps=1e-3)
        return SGD(groups, lr=0.02 if self.reduction != "sum" else 0.0005, momentum=0.8, weight_decay=0.01)

    def scheduler_of(self, optimizer: Optimizer) -> Any:
        steps = EPOCHS * -(-5 // self.micro)
        if self.schedule == "warm-up":
            return lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 3))
        if self.schedule == "one cycle":
            return lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps + 1)
        return lr_scheduler.StepLR(optimizer, 3, 0.5) if self.schedule == "steps" else None


def huber(output: Tensor, targets: Tensor) -> Tensor:
    return F.smooth_l1_loss(output, targets)


def flat(output: Tensor, targets: Tensor) -> Tensor:
    """A cross-entropy that nobody can look into."""
    return F.cross_entropy(output.movedim(1, -1).flatten(0, -2), targets.flatten())


def penalty(output: Tensor, targets: Tensor) -> Tensor:
    return 0.1 * output.float().square().mean()


@dataclass
class Told:
    """What one loop saw."""

    losses: list[float] = field(default_factory=list)
    gradients: list[list[Tensor]] = field(default_factory=list)
    """Of the seed, at each step; none where it had none."""
    weights: list[list[Tensor]] = field(default_factory=list)
    """Of the host, after each step."""
    figures: list[list[float]] = field(default_factory=list)
    """By epoch: metric, loss, and what the seed is worth in both."""
    course: list[tuple[SeedStage, float]] = field(default_factory=list)
    """By epoch: stage and alpha."""
    born: nn.Module | None = None
    """The seed as it was when it was first taught."""
    born_in: int = 0


class Script:
    """Germinates one seed after an epoch, and blends it in after one more."""

    name = "script"

    def __init__(self, case: Case) -> None:
        self.case = case

    def reset(self, specs: list[EnvSpec]) -> None:
        pass

    def decide(self, views: list[EnvView]) -> list[Decision]:
        slot = views[0].slots[0]
        born = FactoredAction(
            Op.GERMINATE, slot.slot_id, self.case.kind.blueprint, Blend.LINEAR, self.case.alpha, self.case.tempo
        )
        action = {(1, SeedStage.DORMANT): born, (2, SeedStage.TRAINING): FactoredAction(Op.ADVANCE, slot.slot_id)}
        return [Decision(action.get((views[0].epoch, slot.stage), FactoredAction()), "as it is written")]


FREE = GateThresholds(min_training_epochs=0, min_gradient_ratio=0.0, min_gradient_health=0.0, ask_for_gain=False)


def steps(pairs: Pairs, micro: int) -> Iterator[Pairs]:
    for start in range(0, len(pairs), micro):
        yield pairs[start : start + micro]


def seed_gradients(seed: nn.Module | None) -> list[Tensor]:
    return [] if seed is None else [p.grad.double() for p in seed.parameters() if p.grad is not None]


def with_esper(case: Case) -> Told:
    """The user's loop as the docstring of :class:`Grower` has it."""
    told, model, criterion = Told(), case.model(), case.criterion()
    optimizer = case.optimizer_of(model)
    scheduler, scaler = (
        case.scheduler_of(optimizer),
        torch.amp.GradScaler("cpu", case.scale or 1.0, enabled=bool(case.scale)),
    )
    choices = OwnChoices(
        criterion,
        metric="loss" if case.kind.classes is None else "accuracy",
        forward=case.forward,
        at=[case.kind.site],
        budget=Budget(EPOCHS, parameters=10**6, seed_lr_multiplier=MULTIPLE, gates=FREE),
        device="cpu",
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        Grower(
            model, optimizer, val=case.validation, choices=choices, policy=Script(case), run_dir=Path(folder) / "run"
        ) as grower,
    ):
        slot = grower._engine.trainer(0).model.slots[grower.view.slots[0].slot_id]
        torch.manual_seed(case.seed)
        for epoch in range(EPOCHS):
            case.modes(model)
            for pairs in steps(case.train, case.micro):
                model.zero_grad()
                for x, y in pairs:
                    with case.cast("all"):
                        with case.cast("loss"):
                            loss = grower.loss(x, y)
                            if case.second:
                                loss = loss + grower.loss(x, y, penalty)
                        if slot.seed is not None and told.born is None:
                            told.born, told.born_in = matter(slot.seed), epoch
                        torch.autograd.backward(scaler.scale(loss / case.micro))
                        if not case.taught_at_once:
                            grower.after_backward()
                    told.losses.append(float(loss.detach()))
                if case.taught_at_once:
                    grower.after_backward()
                scaler.unscale_(optimizer)
                if case.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), case.clip)
                told.gradients.append(seed_gradients(slot.seed))
                scaler.step(optimizer)
                scaler.update()
                seeds = set() if slot.seed is None else set(slot.seed.parameters())
                told.weights.append([p.detach().double().clone() for p in model.parameters() if p not in seeds])
                if scheduler is not None:
                    scheduler.step()
            told.course.append((slot.stage, slot.alpha))
            report = grower.after_epoch()
            assert not report.rolled_back
            facts = report.readout.facts.get(slot.slot_id)
            worth = (
                []
                if facts is None
                else [facts.probe_gain or facts.removal_cost, facts.probe_gain_loss or facts.removal_cost_loss]
            )
            told.figures.append([report.readout.metric, report.readout.loss, *(each.value for each in worth if each)])
    return told


def matter(seed: nn.Module) -> nn.Module:
    """Give a seed, which is the identity at birth, weights that matter; returns a copy."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in seed.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return copy.deepcopy(seed)


class ByHand:
    """The user's own loop over a model that was grown by hand: a hook that blends, and a pass to teach the seed."""

    def __init__(self, case: Case, told: Told) -> None:
        self.case, self.model, self.criterion = case, case.model(), case.criterion()
        self.course, self.birth, self.newborn = told.course, told.born_in, told.born
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
                        for each in product(taught, self.criteria):
                            self.teach(*each[0], each[1])
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
            told.figures.append(self.figures(stage, alpha))
        return told

    def figures(self, stage: SeedStage, alpha: float) -> list[float]:
        as_is = self.evaluate(alpha)
        if self.seed is None:
            return list(as_is)
        other = self.evaluate(0.0 if alpha else 1.0)
        with_it, without = (as_is, other) if alpha else (other, as_is)
        sign = -1.0 if self.case.kind.classes is None else 1.0
        return [*as_is, sign * (with_it[0] - without[0]), without[1] - with_it[1]]

    @torch.no_grad()
    def evaluate(self, alpha: float) -> tuple[float, float]:
        """Metric and loss over the split: of every batch what the loss says, by how much of it the loss counts."""
        total, weight, right, labels = 0.0, 0.0, 0, 0
        self.model.eval()
        if self.seed is not None:
            self.seed.eval()
        before, self.alpha = self.alpha, alpha
        for x, y in self.case.validation:
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
    """The largest difference in each respect, as a share of the largest value; of weights, of how far they went, if they
    are not so coarse that they go by steps.
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


@st.composite
def cases(draw: st.DrawFn, host: str) -> Case:
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16]))
    frozen = draw(st.sampled_from([None, None, "front", "all"]))
    micro = draw(st.sampled_from([1, 1, 2, 3]))
    return Case(
        host=host,
        dtype=dtype,
        autocast=draw(st.sampled_from([None, "loss", "all", "forward"])) if dtype is torch.float32 else None,
        reduction=draw(st.sampled_from(["mean", "mean", "sum", "own"])),
        ignored=draw(st.booleans()),
        weighted=draw(st.booleans()),
        smoothing=draw(st.sampled_from([0.0, 0.1])),
        second=draw(st.booleans()),
        micro=micro,
        scale=draw(st.sampled_from([None, 1024.0])) if frozen != "all" else None,
        clip=draw(st.sampled_from([None, 0.05])),
        optimizer=draw(st.sampled_from(["SGD", "AdamW"])),
        schedule=draw(st.sampled_from([None, "warm-up", "one cycle", "steps"])),
        frozen=frozen,
        groups=draw(st.sampled_from([1, 2])),
        alpha=draw(st.sampled_from([0.5, 1.0])),
        tempo=draw(st.sampled_from([1, 3])),
        taught_at_once=draw(st.booleans()),
        size=draw(st.sampled_from([6, 8])),
        seed=draw(st.integers(0, 99)),
    )


def limit(case: Case) -> float:
    """Both sides do the same in the same order, but for a few sums (the norm of all gradients, a gradient over several
    batches): a rounding or two, which twenty steps make more of. In bfloat16 a rounding is 2^-8.
    """
    if case.dtype is torch.bfloat16 or case.autocast is not None:
        return 2**-3
    return 1e-9 if case.dtype is torch.float64 else 1e-3


def too_far(told: Told, by_hand: ByHand, case: Case, most: float) -> dict[str, float]:
    found = differences(told, by_hand.run(), case)
    return {name: value for name, value in found.items() if not value <= most}


@pytest.mark.parametrize("host", HOSTS)
@given(st.data())
@settings(
    max_examples=max(5, settings().max_examples // len(HOSTS)),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_all_that_is_computed_is_what_the_user_computes(host: str, data: st.DataObject) -> None:
    case = data.draw(cases(host))
    told = with_esper(case)
    stages = [stage for stage, _ in told.course]
    assert SeedStage.TRAINING in stages and told.course[-1][1] > 0.0, (
        "a seed learned behind the host, and was blended in"
    )
    assert len(told.figures[0]) == 2 and all(len(figures) == 4 for figures in told.figures[1:])
    assert too_far(told, ByHand(case, told), case, limit(case)) == {}


class Unscaled(ByHand):
    def for_seed(self, loss: Tensor) -> Tensor:
        return loss / self.case.micro


class Undivided(ByHand):
    def for_seed(self, loss: Tensor) -> Tensor:
        return self.scaler.scale(loss)


class WithoutForward(ByHand):
    """The second pass calls the model without the user's ``squeeze``: outputs and targets broadcast."""

    def loss(self, x: Any, y: Tensor, criterion: Callable[[Any, Tensor], Tensor]) -> Tensor:
        return (self.model(x) - y).square().mean() if self.teaching else super().loss(x, y, criterion)


class WithoutAutocast(ByHand):
    def loss(self, x: Any, y: Tensor, criterion: Callable[[Any, Tensor], Tensor]) -> Tensor:
        with torch.autocast("cpu", enabled=False) if self.teaching else nullcontext():
            return criterion(self.model(x), y) if self.teaching else super().loss(x, y, criterion)


class EvaluatedWithoutAutocast(ByHand):
    def evaluate(self, alpha: float) -> tuple[float, float]:
        before, self.case = self.case, replace(self.case, autocast=None)
        try:
            return super().evaluate(alpha)
        finally:
            self.case = before


class OneLoss(ByHand):
    def teach(self, x: Any, y: Tensor, criterion: Callable[[Any, Tensor], Tensor]) -> None:
        if criterion is penalty:
            super().teach(x, y, criterion)


class CountingIgnored(ByHand):
    def label(self, y: Tensor) -> Tensor:
        return torch.ones_like(y, dtype=torch.bool)


class CountingAlike(ByHand):
    def counted(self, y: Tensor) -> float:
        return float(self.label(y).sum())


class Steady(ByHand):
    def seed_rate(self) -> None:
        super().seed_rate()
        self.seed_optimizer.param_groups[0]["lr"] = MULTIPLE * 0.02


class HostClipped(ByHand):
    def clipped(self) -> list[nn.Parameter]:
        return list(self.model.parameters())


class Drifting(ByHand):
    """The second pass leaves its trace in the statistics of a BatchNorm."""

    @contextmanager
    def without_a_trace(self) -> Iterator[None]:
        random = torch.get_rng_state()
        yield
        torch.set_rng_state(random)


class Drawing(ByHand):
    """The second pass takes random numbers away."""

    @contextmanager
    def without_a_trace(self) -> Iterator[None]:
        with super().without_a_trace():
            yield
            random = torch.get_rng_state()
        torch.set_rng_state(random)


class Awake(ByHand):
    def set_modes(self) -> None:
        self.model.train()


LABELS = Case("causal convolutions", ignored=True)
MUTANTS: dict[str, tuple[Case, Callable[[Case, Told], ByHand], set[str]]] = {
    "the scale of the loss": (Case(scale=1024.0), Unscaled, {"gradients"}),
    "the share of a micro-batch": (Case(micro=3), Undivided, {"gradients"}),
    "forward": (Case("regression"), WithoutForward, {"gradients"}),
    "autocast": (Case(autocast="loss"), WithoutAutocast, {"gradients"}),
    "autocast in validation": (Case(autocast="loss"), EvaluatedWithoutAutocast, {"validation losses"}),
    "one of two losses": (Case(second=True), OneLoss, {"gradients"}),
    "the sum of a loss": (
        Case(reduction="sum"),
        lambda case, told: ByHand(replace(case, reduction="mean"), told),
        {"losses"},
    ),
    "label smoothing": (Case(smoothing=0.1), lambda case, told: ByHand(replace(case, smoothing=0.0), told), {"losses"}),
    "ignored labels": (LABELS, CountingIgnored, {"metrics", "validation losses"}),
    "weights of classes": (replace(LABELS, weighted=True), CountingAlike, {"validation losses"}),
    "the schedule": (Case(schedule="warm-up"), Steady, {"gradients"}),
    "clipping": (Case(clip=0.05), HostClipped, {"gradients", "weights"}),
    "a BatchNorm": (Case(), Drifting, {"validation losses"}),
    "random numbers": (Case(), Drawing, {"losses"}),
    "a part in eval()": (Case(frozen="front"), Awake, {"losses"}),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_loop_that_leaves_something_out_is_told_apart(name: str) -> None:
    case, mutant, respects = MUTANTS[name]
    told, most = with_esper(case), 1e-4 if case.autocast else limit(case)
    assert too_far(told, ByHand(case, told), case, most) == {}
    assert respects <= set(too_far(told, mutant(case, told), case, most))
