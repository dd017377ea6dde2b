"""What Esper could leave behind on a user's objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper.kasmina.portable import Grown

_OURS = "esper."


def of_model(model: nn.Module) -> dict[str, Any]:
    """Everything about each module but the values of its tensors: class, attributes by name, hooks, mode.

    A module that grew is what it is around: what is ``Grown`` is looked through.
    """
    found = {}
    for path, module in nn.Module.named_modules(model):
        if isinstance(module, Grown) or ".seed." in f".{path}.":
            continue
        name = ".".join(part for part in path.split(".") if part != "module")
        own = dict(module.__dict__)
        hooks = {key: list(map(repr, value.values())) for key, value in own.items() if key.endswith("_hooks")}
        others = {key: id(value) for key, value in own.items() if key not in hooks and not key.startswith("_")}
        parameters = {
            key: [type(p).__name__, p.requires_grad, _hooks(p)]
            for key, p in own["_parameters"].items()
            if p is not None
        }
        found[name] = type(module), sorted(own), hooks, others, parameters, id(module)
    return found


def of_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """Number of groups, their options by name, hooks; attributes of torch's own come and go."""
    own = dict(optimizer.__dict__)
    hooks = {key: list(map(repr, value.values())) for key, value in own.items() if key.endswith("_hooks")}
    return {
        "groups": [sorted(group) for group in optimizer.param_groups],
        "hooks": hooks,
        "ours": [key for key, value in own.items() if type(value).__module__.startswith(_OURS)],
    }


def of_schedulers(schedulers: Iterable[LRScheduler]) -> list[Any]:
    """The optimizer that each has."""
    return [id(scheduler.optimizer) for scheduler in schedulers]


def ours(model: nn.Module) -> list[str]:
    """What is made of Esper's own, besides ``Grown``."""
    return [
        f"{path or 'the model'}: {key}"
        for path, module in nn.Module.named_modules(model)
        for key, value in module.__dict__.items()
        for each in (value.values() if isinstance(value, dict) else [value])
        if type(each).__module__.startswith(_OURS) and not isinstance(each, nn.Module) and key != "axes"
    ]


def _hooks(parameter: nn.Parameter) -> list[str]:
    hooks = parameter._post_accumulate_grad_hooks
    return [] if hooks is None else list(map(repr, hooks.values()))
