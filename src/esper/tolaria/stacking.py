"""``StackedEngine``: envs of one topology trained as one computation, where that was measured to be faster.

Many small hosts cost a processor mostly the calls that they are made of. Envs whose networks are alike are trained
together for an epoch: their parameters are stacked, one pass and one step of the optimizer do the work of all
(``torch.func.vmap`` over ``functional_call``), and then each env has its own again. Batches, rates, order and chance
are each env's own, so that what it learns is what it would learn alone, to float tolerance. Envs are grouped anew in
each epoch; those with a live seed, and hosts that cannot be stacked, are trained one after the other.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim import Optimizer

from esper.kasmina.precision import Autocast
from esper.kasmina.structure import tensors
from esper.kasmina.tap import Tap, untapped_forward
from esper.kasmina.trial import train
from esper.leyline import TrainResult
from esper.tasks.base import Batch
from esper.tasks.losses import one_number
from esper.tasks.pipeline import Batches
from esper.tolaria.engine import ModuleEngine
from esper.tolaria.epoch import Epoch
from esper.tolaria.ranks import LONE, digest
from esper.tolaria.setup import call
from esper.tolaria.surgery import BASE_RATE
from esper.tolaria.trainer import Trainer

ELEMENTWISE: Final = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)
"""Optimizers that treat each number by itself, so that a step of stacked parameters is a step of each."""
FASTER: Final = 1.1
"""A stack must be so many times as fast as its envs one after the other to be used."""
_STEPS: Final = 16
"""Steps that are timed at a time; with fewer, taking a stack apart again would weigh more than in an epoch."""
_LOOKS: Final = 3

_COMPARED_OTHERWISE: Final = {"params", "lr", BASE_RATE}
"""Of a group of the optimizer. Its rate is that of the step before; what it is made of is compared."""

_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MODULES_OWN: Final = frozenset(vars(nn.Module()))

Group = tuple[Any, ...]
"""What envs that can be trained together have in common."""


class StackedEngine(ModuleEngine):
    """A :class:`ModuleEngine` that trains envs of one topology together where a trial says that it is faster."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.gains: dict[tuple[str, int], float] = {}
        """Kind of host, envs in a stack -> how many times as fast it was found to be."""

    def train_epoch(self, envs: Sequence[int]) -> list[TrainResult]:
        """Train each env for one epoch, together with those that are like it."""
        groups: dict[Group, list[int]] = {}
        for i in envs:
            if (group := _group(self.trainer(i))) is not None and self._envs[i].diagnostics is None:
                groups.setdefault(group, []).append(i)
        results: dict[int, TrainResult] = {}
        for members in groups.values():
            if len(members) > 1 and self._pays(members):
                for i in members:
                    self._awaken(self._envs[i])
                together = train_together([self.trainer(i) for i in members])
                for i, result in zip(members, together, strict=True):
                    self._envs[i].train_loss = result.loss
                    results[i] = result
        alone = [i for i in envs if i not in results]
        results |= zip(alone, super().train_epoch(alone), strict=True)
        return [results[i] for i in envs]

    def state(self, env: int) -> dict[str, Any]:
        """See :meth:`ModuleEngine.state`. What was found goes along: a resumed run stacks what this one does."""
        state = super().state(env)
        state["plain"]["stack_gains"] = [[*key, gain] for key, gain in sorted(self.gains.items())]
        return state

    def load(self, env: int, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`."""
        super().load(env, state)
        known = state["plain"].get("stack_gains", ())
        self.gains |= {(str(kind), int(size)): float(gain) for kind, size, gain in known}

    def _pays(self, members: Sequence[int]) -> bool:
        key = _kind(self.trainer(members[0]).model.host), len(members)
        if key not in self.gains:
            self.gains[key] = measured_gain([self.trainer(i) for i in members])
        return self.gains[key] >= FASTER


def _group(trainer: Trainer) -> Group | None:
    """What must be equal in a stack; ``None`` where the env has to be trained by itself."""
    setup, optimizer = trainer.setup, trainer.optimizer
    plain = (
        type(optimizer) in ELEMENTWISE
        and type(trainer.batches) is Batches
        and setup.forward is call
        and setup.ranks is LONE
        and not trainer.scaler.is_enabled()
        and trainer.config.precision is None
        and trainer.on_backward is None
        and not trainer.auditioned
        and not trainer.model.parts
        and not any(True for _ in trainer.model.host.buffers())
        and all(p.requires_grad for p in trainer.model.host.parameters())
        and not any(_has_more_than_weights(module) for module in trainer.model.host.modules())
    )
    if not plain:
        return None
    held = frozenset(map(id, trainer.held))
    groups = tuple(
        (group.get(BASE_RATE, group["lr"]), *sorted((name, group[name]) for name in group.keys() - _COMPARED_OTHERWISE))
        for group in optimizer.param_groups
    )
    try:
        steps = tuple(sorted({float(state.get("step", 0.0)) for state in optimizer.state.values()}))
        computed = _made_of(trainer.model.host, held), _compared(setup.criterion)
        group = (computed, groups, steps, len(optimizer.state), *_clock(trainer))
        hash(group)
    except (TypeError, ValueError):  # an option of the optimizer that cannot be compared
        return None
    return group


def _kind(host: nn.Module) -> str:
    """Short digest of the modules in a host and of its weights' shapes, the same in every process."""
    modules = [(path, type(each).__module__, type(each).__qualname__) for path, each in host.named_modules()]
    shapes = [(name, tuple(p.shape), str(p.dtype)) for name, p in host.named_parameters()]
    return hashlib.sha256(repr((modules, shapes)).encode()).hexdigest()[:12]


def _made_of(module: nn.Module, held: Set[int] = frozenset()) -> Group:
    """What it computes, but for the values of its weights: the modules in it with their attributes, which of them are
    ``held`` in evaluation mode, shapes and formats of the weights, and which of these are one."""
    places: dict[int, int] = {}
    told: list[Group] = []
    for path, each in module.named_modules(remove_duplicate=False):
        weights = tuple(
            (name, None if p is None else (places.setdefault(id(p), len(places)), tuple(p.shape), p.dtype))
            for name, p in each._parameters.items()
        )
        own = {name: value for name, value in vars(each).items() if name not in _MODULES_OWN}
        told.append((path, type(each), id(each) in held, weights, _compared(each._buffers), _compared(own)))
    return tuple(told)


def _compared(value: Any) -> Any:
    """A value that is equal to another's where both do the same; what cannot be told is equal to itself alone.

    Raises ``TypeError`` for what has no hash.
    """
    if isinstance(value, nn.Module):
        hooked = any(getattr(each, hooks) for each in value.modules() for hooks in _HOOKS)
        weights = [(name, _compared(p.detach())) for name, p in value.named_parameters()]
        return id(value) if hooked else (value.training, _made_of(value), tuple(weights))
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, Mapping):
        return type(value), tuple((key, _compared(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_compared, value))
    return type(value), value


def _has_more_than_weights(module: nn.Module) -> bool:
    """Whether a stack, which computes by one env's modules with the weights of each, would take that env's for others'.

    So it is with hooks that are not Esper's, with a ``forward`` of the instance's own and with tensors that are plain
    attributes, also in a list or a dictionary.
    """
    if any(not isinstance(hook, Tap) for hooks in _HOOKS for hook in getattr(module, hooks).values()):
        return True
    if getattr(untapped_forward(module), "__self__", None) is not module:
        return True
    own = [value for name, value in vars(module).items() if name not in _MODULES_OWN]
    return any(True for _ in tensors(own))


def _clock(trainer: Trainer) -> tuple[Any, ...]:
    steps = len(trainer.batches)
    factors = tuple(trainer.rate_factors(step, steps)[0] for step in (0, steps - 1))
    return trainer.completed, trainer.max_epochs, steps, factors


class _Stack:
    """The parameters and the optimizer's memory of envs that are alike, as one; see :meth:`restore`."""

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        self.trainers = trainers
        self.host = trainers[0].model.host
        self._own = [dict(trainer.model.host.named_parameters()) for trainer in trainers]
        self.parameters = {
            name: torch.stack([own[name].detach() for own in self._own]).requires_grad_() for name in self._own[0]
        }
        self.optimizer = self._stacked()
        setup = trainers[0].setup

        def loss(parameters: dict[str, Tensor], inputs: Any, targets: Any) -> Tensor:
            return one_number(setup.criterion(functional_call(self.host, parameters, (inputs,)), targets))

        self._losses: Callable[..., Tensor] = vmap(loss)

    def losses(self, batches: Sequence[Batch]) -> Tensor:
        """Of each env's batch, ``[envs]``, with what is needed for :meth:`step`."""
        inputs, targets = (torch.stack(part) for part in zip(*batches, strict=True))
        first = self.trainers[0]
        first.autocast = Autocast.now(first.device)
        with first.autocast.entered(), first.model.teaching():
            return self._losses(self.parameters, inputs, targets)

    def step(self, step: int, epochs: Sequence[Epoch]) -> None:
        """One step of the optimizer, behind ``backward``; gradients are measured where it is their turn."""
        first = self.trainers[0]
        if step in epochs[0].measured:
            for i, (trainer, epoch) in enumerate(zip(self.trainers, epochs, strict=True)):
                for name, parameter in self._own[i].items():
                    gradient = self.parameters[name].grad
                    parameter.grad = None if gradient is None else gradient[i]
                epoch.host_norm = trainer.measure_gradients(1.0)
                trainer.optimizer.zero_grad(set_to_none=True)
        first.set_rates(step, epochs[0].steps)
        for mine, own in zip(self.optimizer.param_groups, first.optimizer.param_groups, strict=True):
            mine["lr"] = own["lr"]
        self.optimizer.step()

    def restore(self) -> None:
        """Give each env what it has learned, and what the optimizer remembers of it."""
        for i, (trainer, own) in enumerate(zip(self.trainers, self._own, strict=True)):
            memory = trainer.optimizer.state
            with torch.no_grad():
                for name, parameter in own.items():
                    stacked = self.parameters[name]
                    parameter.copy_(stacked[i])
                    if (known := self.optimizer.state.get(stacked)) is not None:
                        memory[parameter] = {key: _part(key, value, i) for key, value in known.items()}

    def _stacked(self) -> Optimizer:
        optimizer = self.trainers[0].optimizer
        names = {id(parameter): name for name, parameter in self._own[0].items()}
        groups = []
        for group in optimizer.param_groups:
            options = {name: value for name, value in group.items() if name in optimizer.defaults}
            groups.append({**options, "params": [self.parameters[names[id(p)]] for p in group["params"]]})
        made: Optimizer = type(optimizer)(groups)  # type: ignore[call-arg]
        for name, stacked in self.parameters.items():
            states = [
                trainer.optimizer.state.get(own[name]) for trainer, own in zip(self.trainers, self._own, strict=True)
            ]
            known = [state for state in states if state]
            if known:
                made.state[stacked] = {key: _joined(key, [state[key] for state in known]) for key in known[0]}
        return made


def _joined(key: str, values: list[Any]) -> Any:
    """Steps are counted for a stack as a whole, as for each."""
    first = values[0]
    if not isinstance(first, Tensor):
        return first
    return first.clone() if key == "step" else torch.stack(values)


def _part(key: str, value: Any, i: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.clone() if key == "step" else value[i].clone()


def train_together(trainers: Sequence[Trainer], steps: int | None = None) -> list[TrainResult]:
    """One epoch of envs that are alike, or its first ``steps``. Seconds are the stack's, and told as such."""
    began = time.perf_counter()
    epochs = [trainer.begin_epoch(len(trainer.batches)) for trainer in trainers]
    stack = _Stack(trainers)
    for trainer in trainers:
        train(trainer.model.host, trainer.held)
    totals = torch.zeros(len(trainers), device=trainers[0].device)
    sources = [trainer.batches.epoch() for trainer in trainers]
    for number, batches in enumerate(islice(zip(*sources, strict=True), steps)):
        stack.optimizer.zero_grad(set_to_none=True)
        losses = stack.losses(batches)
        torch.autograd.backward(losses.sum())
        stack.step(number, epochs)
        examples = len(batches[0][1])
        totals.add_(losses.detach(), alpha=examples)
        for epoch in epochs:
            epoch.step, epoch.examples = number + 1, epoch.examples + examples
    stack.restore()
    for trainer, epoch, total in zip(trainers, epochs, totals, strict=True):
        trainer.set_rates(epoch.step - 1, epoch.steps)
        epoch.total.copy_(total)
    results = [trainer.end_epoch() for trainer in trainers]
    took = time.perf_counter() - began
    return [
        replace(each, seconds=None, input_wait_seconds=None, stack_seconds=took, stacked=len(trainers))
        for each in results
    ]


def measured_gain(trainers: Sequence[Trainer]) -> float:
    """How many times as fast these envs are as one stack; 0 where they cannot be one. Leaves no trace in them."""

    def taken(some: Sequence[Trainer], work: Callable[[], object]) -> float:
        with ExitStack() as undone:
            for trainer in some:
                undone.enter_context(trainer.rehearsal())
            began = _now(trainers[0].device)
            work()
            return _now(trainers[0].device) - began

    alone, together = [], []
    try:
        for _ in range(_LOOKS):
            together.append(taken(trainers, lambda: train_together(trainers, _STEPS)))
            alone.append(taken(trainers[:1], lambda: trainers[0].train_epoch(_STEPS)))
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # what vmap says of what it cannot do
        return 0.0
    return len(trainers) * min(alone) / min(together)


def _now(device: torch.device) -> float:
    """CPU time, which others on the machine do not make longer; of an accelerator, the clock when its work is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()
