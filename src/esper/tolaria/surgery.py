"""Optimizer surgery: parameters come and go, everything that was there before stays bit for bit.

The host keeps the parameter groups that its optimizer was made with; each seed gets one group of its own, marked with
its seed id: a slot that opened again has several. Torch's optimizers update group by group and keep state per
parameter, so adding or removing a group cannot change a bit of another group's update (tested for SGD, Adam and AdamW,
``foreach`` on and off). Growing operators that touch existing entries (Net2Net, GradMax) would need more; seeds do not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.kasmina.sharded import Sharding, is_shard
from esper.leyline import DataError, UsageError, unknown

SEED: Final = "seed_id"
"""Key that marks a seed's parameter group. The host's groups lack it."""

HOST_GROUP: Final = "host_group"
"""Key of a seed's group: number of the host's group that it grows beside."""

BASE_RATE: Final = "initial_lr"
"""Key of the learning rate that schedules multiply; the name that ``torch.optim.lr_scheduler`` uses for it."""

NamedParameters = Iterable[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class OptimizerState:
    """State of an optimizer by parameter name: ``tensors`` for safetensors, ``plain`` for JSON. Aliases nothing."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)


def host_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups that belong to the host, in the optimizer's order."""
    return [group for group in optimizer.param_groups if SEED not in group]


def seed_groups(optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """seed id -> its group."""
    return {group[SEED]: group for group in optimizer.param_groups if SEED in group}


def add_seed_group(optimizer: Optimizer, seed_id: str, parameters: NamedParameters, **options: Any) -> dict[str, Any]:
    """Give the seed ``seed_id`` a group of its own and return it.

    ``options`` are the optimizer's own (``lr``, ``weight_decay``, ...); what is not given is the optimizer's default.
    Raises :class:`UsageError` when it has a group already, the seed has nothing to train, a parameter is already
    being optimized, or the optimizer cannot take the group. The optimizer is then unchanged.
    """
    if seed_id in seed_groups(optimizer):
        raise UsageError(f"seed {seed_id!r} already has a parameter group; a seed has one, and its id is its own")
    named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    if not named:
        raise UsageError(f"the seed {seed_id!r} has no parameter that requires a gradient")
    stray = sorted(set(options) - set(optimizer.defaults))
    if stray:
        raise unknown(f"option of {type(optimizer).__name__}", stray[0], optimizer.defaults)
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError("LBFGS trains a single parameter group and cannot take a seed; use SGD, Adam or AdamW")
    names_kept = any("param_names" in group for group in optimizer.param_groups)
    members: list[Any] = named if names_kept else [parameter for _, parameter in named]
    try:
        optimizer.add_param_group({"params": members, SEED: seed_id, **options})
    except (ValueError, TypeError) as error:
        raise UsageError(f"{type(optimizer).__name__} cannot take the seed {seed_id!r}: {error}") from error
    group: dict[str, Any] = optimizer.param_groups[-1]
    group[BASE_RATE] = _detached(group["lr"])
    return group


def inherit(optimizer: Optimizer, pairs: Iterable[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """The first of each pair goes on with a copy of what the optimizer keeps of the second, where it keeps anything."""
    for parameter, origin in pairs:
        kept = optimizer.state.get(origin)
        if kept:
            optimizer.state[parameter] = copy.deepcopy(kept)


def remove_seed_group(optimizer: Optimizer, seed_id: str) -> None:
    """Forget a seed: its group and its entries of the state, and nothing else."""
    groups = seed_groups(optimizer)
    if seed_id not in groups:
        raise unknown("seed with a parameter group", seed_id, groups)
    gone = groups[seed_id]
    # by identity: comparing groups with == would compare their tensors
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group is not gone]
    for parameter in gone["params"]:
        optimizer.state.pop(parameter, None)


def join_seeds(optimizer: Optimizer, model: nn.Module) -> None:
    """Let every seed that is part of ``model`` join the host's group that it grew beside; the others are forgotten.

    There are as many groups as before there were seeds, so that schedulers go on. A seed keeps its state and takes the
    options and the rate of its group, in which parameters stand in the order of ``model`` if they did before.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = {parameter: place for place, parameter in enumerate(names)}
    for seed_id, group in seed_groups(optimizer).items():
        if not all(parameter in names for parameter in group["params"]):
            remove_seed_group(optimizer, seed_id)
            continue
        host = host_groups(optimizer)[group[HOST_GROUP]]
        places = [order.get(parameter, -1) for parameter in host["params"]]
        host["params"] = [*host["params"], *group["params"]]
        if places == sorted(places):
            host["params"].sort(key=lambda parameter: order.get(parameter, -1))
        optimizer.param_groups[:] = [each for each in optimizer.param_groups if each is not group]
        if "param_names" in host:
            host["param_names"] = [names[parameter] for parameter in host["params"]]


def set_rates(optimizer: Optimizer, host: float, seeds: Mapping[str, float]) -> None:
    """Set every group's learning rate to its base rate times a factor: ``host``, or ``seeds[seed_id]``.

    The base rate of a host group is the rate it had at the first call (or before an ``lr_scheduler`` took it over).
    """
    for group in optimizer.param_groups:
        base = group.setdefault(BASE_RATE, _detached(group["lr"]))
        set_rate(group, base * (seeds[group[SEED]] if SEED in group else host))


def named_state(optimizer: Optimizer, parameters: NamedParameters) -> OptimizerState:
    """Everything the optimizer knows, by parameter name; its tensors themselves.

    ``parameters`` is what ``model.named_parameters()`` gives. Raises :class:`DataError` for an optimized parameter that
    is not among them and for state that is neither tensor nor plain value.
    """
    name_of: dict[Tensor, str] = {parameter: name for name, parameter in parameters}
    state = OptimizerState(plain={"optimizer": type(optimizer).__name__, "groups": [], "state": {}})
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if parameter not in name_of:
                raise DataError(f"group {index} optimizes a parameter of shape {tuple(parameter.shape)} without a name")
        options: dict[str, Any] = {}
        for key, value in group.items():
            if key not in ("params", "param_names"):
                _put(state.tensors, options, f"group/{index}/{key}", key, value)
        names = [name_of[parameter] for parameter in group["params"]]
        state.plain["groups"].append({"names": names, "options": options})
    for parameter, entries in optimizer.state.items():
        if parameter not in name_of:
            raise DataError("the optimizer keeps state for something that is not a named parameter of the model")
        kept = state.plain["state"].setdefault(name_of[parameter], {})
        for key, value in entries.items():
            _put(state.tensors, kept, f"state/{name_of[parameter]}/{key}", key, value)
    return state


def load_named_state(optimizer: Optimizer, parameters: NamedParameters, state: OptimizerState) -> None:
    """Undo of :func:`named_state`, also into an optimizer rebuilt for the same topology, in any order of seed groups.

    Tensors shaped like their parameter take its device and memory layout, and keep their own dtype. Raises
    :class:`DataError`, and changes nothing, when optimizer, groups or parameter names differ from the saved ones.
    """
    name_of: dict[Tensor, str] = {parameter: name for name, parameter in parameters}
    if type(optimizer).__name__ != state.plain["optimizer"]:
        raise DataError(f"state of {state.plain['optimizer']} cannot be loaded into {type(optimizer).__name__}")
    ordered = _match_groups(optimizer, name_of, state.plain["groups"])
    entries: dict[Tensor, dict[str, Any]] = {}
    for group in ordered:
        step_moves = bool(group.get("capturable") or group.get("fused"))
        for parameter in group["params"]:
            name = name_of[parameter]
            plain = state.plain["state"].get(name)
            if plain is not None:
                values = {key: _get(state.tensors, plain, f"state/{name}/{key}", key) for key in plain}
                entries[parameter] = {
                    key: _placed(value, parameter, moves=step_moves or key != "step") for key, value in values.items()
                }
    for index, (group, saved) in enumerate(zip(ordered, state.plain["groups"], strict=True)):
        options = saved["options"]
        for key in [key for key in group if key not in ("params", "param_names") and key not in options]:
            del group[key]
        for key in options:
            value, here = _get(state.tensors, options, f"group/{index}/{key}", key), group.get(key)
            group[key] = value.to(here.device) if isinstance(value, Tensor) and isinstance(here, Tensor) else value
    optimizer.param_groups[:] = ordered
    optimizer.state.clear()
    optimizer.state.update(entries)


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set a group's learning rate, in place where the optimizer holds it in a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _match_groups(
    optimizer: Optimizer, name_of: Mapping[Tensor, str], saved: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The optimizer's groups in the saved order; seeds' groups are found by their ids, the host's by position."""
    seeds, hosts = seed_groups(optimizer), iter(host_groups(optimizer))
    if len(saved) != len(optimizer.param_groups):
        raise DataError(
            f"the saved optimizer has {len(saved)} parameter groups, this one {len(optimizer.param_groups)}"
        )
    ordered = []
    for index, entry in enumerate(saved):
        seed_id = entry["options"].get(SEED)
        group = next(hosts, None) if seed_id is None else seeds.get(seed_id)
        where = f"group {index}" if seed_id is None else f"group of seed {seed_id!r}"
        if group is None:
            raise DataError(f"the saved {where} of the optimizer has no counterpart here")
        here = [name_of.get(parameter, "(unnamed)") for parameter in group["params"]]
        if here != entry["names"]:
            odd = sorted(set(here) ^ set(entry["names"])) or ["their order"]
            raise DataError(f"the saved {where} of the optimizer differs in {', '.join(odd[:5])}")
        ordered.append(group)
    return ordered


def _put(tensors: dict[str, Tensor], plain: dict[str, Any], path: str, key: str, value: Any) -> None:
    """File ``value`` as a tensor under ``path`` (``plain`` then holds ``{"tensor": path}``) or in ``plain``."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        plain[key] = {"tensor": path}
    elif _is_plain(value):
        plain[key] = value
    else:
        raise DataError(f"optimizer state {path} is a {type(value).__name__}; legal: tensors and plain values")


def _get(tensors: Mapping[str, Tensor], plain: Mapping[str, Any], path: str, key: str) -> Any:
    value = plain[key]
    if not isinstance(value, dict):
        return value
    if path not in tensors:
        raise DataError(f"optimizer state {path} is missing")
    return tensors[path].detach().clone()


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _placed(value: Any, parameter: Tensor, *, moves: bool) -> Any:
    """``value`` where the optimizer would have made it. Step counts stay on the CPU unless the update reads them."""
    if not isinstance(value, Tensor) or not moves:
        return value
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    if is_shard(parameter) and not is_shard(value):
        value = Sharding(parameter.device_mesh).of(value)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _detached(rate: float | Tensor) -> float:
    """A learning rate as a number: some optimizers hold it in a tensor that is changed in place."""
    return float(rate)
