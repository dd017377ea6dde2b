"""Seeds beside a host whose learning rates somebody else moves: a scheduler of the user's, or the user's own hand.

A seed's group takes everything from the host's group around its site (weight decay, momentum, betas), and a multiple of
that group's learning rate; it follows before every step of the optimizer, whatever moved the host.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper.leyline import UsageError
from esper.tolaria.surgery import BASE_RATE, HOST_GROUP, SEED, host_groups, seed_groups, set_rate

MULTIPLE: Final = "host_rate_multiple"
"""Key of a seed's group that follows the rate of one of the host's: its own over that."""


def neighbour(optimizer: Optimizer, host: nn.Module, path: str) -> int:
    """Number, among the host's groups, of the one that a seed at ``path`` belongs to.

    It is the group of most parameters of the module there; where that has none, of the nearest module before it in the
    order of registration, then of the nearest behind it. Groups that stand still (rate 0 while others learn; where all
    are 0, as a warm-up begins, those that started from 0) are passed over: a seed would never learn there.
    """
    moving = _moving(host_groups(optimizer))
    owner: dict[nn.Parameter, int] = {p: number for number, group in moving.items() for p in group["params"]}
    inside: Counter[int] = Counter()
    before: list[nn.Module] = []
    behind: list[nn.Module] = []
    seen = False
    for name, module in host.named_modules():
        if name == path or name.startswith(f"{path}."):
            seen = True
            inside.update(_shares(module, owner))
        else:
            (behind if seen else before).append(module)
    around = (_shares(module, owner, dims) for dims in (2, 0) for module in (*reversed(before), *behind))
    best = next((shares for shares in (inside, *around) if shares), None)
    return next(iter(moving)) if best is None else max(best, key=best.__getitem__)


def _moving(groups: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The groups that learn now, else those that will, else all; by number."""
    numbered = dict(enumerate(groups))
    for rate in ("lr", BASE_RATE):
        found = {number: group for number, group in numbered.items() if float(group.get(rate, 0.0)) > 0.0}
        if found:
            return found
    return numbered


def _shares(module: nn.Module, owner: dict[nn.Parameter, int], dims: int = 0) -> Counter[int]:
    """Elements of the module's own parameters by group, where one of them has ``dims`` dimensions or more.

    Weights and norms are often in groups of their own, for decay and for none; a seed is like the weights.
    """
    own = [parameter for parameter in module.parameters(recurse=False) if parameter in owner]
    shares: Counter[int] = Counter()
    if any(parameter.ndim >= dims for parameter in own):
        for parameter in own:
            shares[owner[parameter]] += parameter.numel()
    return shares


def inherited(optimizer: Optimizer, number: int) -> dict[str, Any]:
    """The optimizer's options as the host's group ``number`` has them, without its learning rate."""
    group = host_groups(optimizer)[number]
    return {name: group[name] for name in optimizer.defaults if name != "lr" and name in group}


def follow(optimizer: Optimizer) -> None:
    """Give every seed's group that follows one of the host's what that has now."""
    hosts = host_groups(optimizer)
    for group in seed_groups(optimizer).values():
        if MULTIPLE not in group:
            continue
        group.update(inherited(optimizer, group[HOST_GROUP]))
        set_rate(group, float(hosts[group[HOST_GROUP]]["lr"]) * group[MULTIPLE])


@contextmanager
def host_rates_kept(optimizer: Optimizer) -> Iterator[None]:
    """Whatever is loaded within, the options of the host's groups (not their state) are afterwards as before."""
    before = [{name: group[name] for name in group if name != "params"} for group in host_groups(optimizer)]
    yield
    for group, options in zip(host_groups(optimizer), before, strict=True):
        group.update(options)
    follow(optimizer)


@contextmanager
def rates_kept(optimizer: Optimizer) -> Iterator[None]:
    """Within, schedules start from the rates as they are, not from where a scheduler began; then both are back."""
    groups = host_groups(optimizer)
    before = [(float(group["lr"]), group.get(BASE_RATE)) for group in groups]
    for group, (rate, _) in zip(groups, before, strict=True):
        group[BASE_RATE] = rate
    try:
        yield
    finally:
        for group, (rate, base) in zip(groups, before, strict=True):
            set_rate(group, rate)
            if base is None:
                group.pop(BASE_RATE, None)
            else:
                group[BASE_RATE] = base


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer that steps, inside of wrappers that have no hooks (Accelerate's)."""
    while not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        optimizer = optimizer.optimizer  # type: ignore[attr-defined]
    return optimizer


class HostGroups:
    """An optimizer as a scheduler knew it when it was made: without the groups of seeds."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.whole = optimizer

    @classmethod
    def of(cls, optimizer: Optimizer) -> HostGroups:
        """Of a class that is called as the optimizer's is, since monitors show its name."""
        named: type[HostGroups] = type(type(optimizer).__name__, (cls,), {})
        return named(optimizer)

    def __reduce__(self) -> tuple[Any, ...]:
        return HostGroups.of, (self.whole,)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The host's groups, themselves."""
        return host_groups(self.whole)

    def __getattr__(self, name: str) -> Any:
        if name == "whole":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.whole, name)


class Schedulers:
    """Keeps learning-rate schedulers working beside seeds.

    A scheduler of ``torch.optim.lr_scheduler`` has a list entry for each group that was there when it was made, and its
    ``step`` fails once there are more. Those that are found get to see the host's groups alone, until :meth:`release`.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._shielded = ExitStack()

    def shield(self) -> None:
        """Find the schedulers of the optimizer. It does not know them, so they are looked for among all objects."""
        if not any(SEED in group for group in self._optimizer.param_groups):
            return
        for found in gc.get_objects():
            if issubclass(type(found), LRScheduler) and self._knows(found):
                self.add(found)

    def add(self, scheduler: LRScheduler) -> None:
        """One more, known by name. Raises ``UsageError`` for one that was made when seeds had joined."""
        if self._knows(scheduler):
            rates, groups = len(getattr(scheduler, "base_lrs", ())), len(host_groups(self._optimizer))
            if rates > groups:
                raise UsageError(
                    f"the {type(scheduler).__name__} was made when a seed had joined the optimizer, and counts {rates}"
                    f" parameter groups for the model's {groups}; make schedulers before the first epoch"
                )
            self._shielded.callback(setattr, scheduler, "optimizer", scheduler.optimizer)
            scheduler.optimizer = HostGroups.of(scheduler.optimizer)  # type: ignore[assignment]

    def _knows(self, scheduler: LRScheduler) -> bool:
        """Whether it moves the optimizer, or a wrapper of it."""
        held = getattr(scheduler, "optimizer", None)
        return isinstance(held, Optimizer) and innermost(held) is self._optimizer

    def release(self) -> None:
        """Leave every scheduler as it was."""
        self._shielded.close()
