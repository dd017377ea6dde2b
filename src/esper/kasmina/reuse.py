"""What a run has grown, put into a model that is to grow on: held, and switched so that what it gave comes back.

A module on which several seeds grew is a chain of :class:`Grown`, the newest outermost. A chain in an export and the
chain at the same place of a model that grew on differ by the new ones in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from esper.kasmina.applied import apply, delivered, take_out
from esper.kasmina.portable import Grown
from esper.kasmina.structure import same_bits
from esper.leyline import UsageError, unknown


def take_over(
    model: nn.Module, run: str | Path, fresh: Sequence[str] = ()
) -> tuple[dict[str, Grown], Callable[[], None]]:
    """Make ``model``, a fresh one, what ``run`` delivered, all of it frozen, but for the submodules ``fresh``, which
    stay as they are.

    Returns the seeds of that run, by name, and what makes the model again what it was. Raises what :func:`apply`
    raises, and ``UsageError`` where a part that is to be fresh is not there or carries a seed; the model is then as it
    was.
    """
    modules = dict(model.named_modules())
    for path in fresh:
        if path not in modules:
            raise unknown("submodule in Budget.fresh", path, [name for name in modules if name])
    own = [(each, each.detach().clone(), each.requires_grad) for path in fresh for each in modules[path].parameters()]
    buffers = [(each, each.detach().clone()) for path in fresh for each in modules[path].buffers()]
    undo = _as_it_is(model)
    apply(model, run)
    model.requires_grad_(False)
    grown = grown_in(model)
    for path in grown:
        if _within(path, fresh):
            undo()
            raise UsageError(f"Budget.fresh names {path!r}, where {run} or a run before it grew a seed")
    with torch.no_grad():
        for parameter, values, learns in own:
            parameter.copy_(values)
            parameter.requires_grad_(learns)
        for buffer, values in buffers:
            buffer.copy_(values)
    return {name: each for name, each in grown.items() if each not in modules.values()}, undo


def _within(name: str, paths: Sequence[str]) -> bool:
    """Whether a module or tensor of that name is one of those at ``paths``, or in one."""
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def _as_it_is(model: nn.Module) -> Callable[[], None]:
    """What takes off all that is built into ``model`` from now on, and puts back weights, modes, and what learns.

    Tensors wait in the memory of the CPU.
    """
    modes = {module: module.training for module in model.modules()}
    learns = {parameter: parameter.requires_grad for parameter in model.parameters()}
    held = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _tensors(model).items()}

    def undo() -> None:
        take_out(model, [grown for grown in grown_in(model).values() if grown not in modes])
        with torch.no_grad():
            for name, tensor in _tensors(model).items():
                if name in held:
                    tensor.copy_(held[name])
        for module, training in modes.items():
            module.training = training
        for parameter, learning in learns.items():
            parameter.requires_grad_(learning)

    return undo


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, each once; without those that a first batch is still to make."""
    found: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in found.items() if not nn.parameter.is_lazy(tensor)}


def grown_in(model: nn.Module) -> dict[str, Grown]:
    """Every seed that is built in, by the name of the module around it."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Grown)}


@contextmanager
def as_before(model: nn.Module, run: str | Path, fresh: Sequence[str] = ()) -> Iterator[None]:
    """Within, ``model``, which has grown on from what ``run`` delivered, computes just what that did, bit for bit.

    Seeds that came later are off, and those of the run are on as they were. ``fresh`` names the submodules that later
    runs had as their own (``Budget.fresh``): what the run delivered there is put back within. Raises ``UsageError``
    where anything else that the run delivered is no longer in the model: a seed is missing, or a tensor was trained
    since.
    """
    alphas, tensors = delivered(run)
    here = grown_in(model)
    then, now = chains(alphas), chains(here)
    for path, names in then.items():
        if len(now.get(path, ())) < len(names):
            raise UsageError(f"the {type(model).__name__} lacks a seed that {run} delivered at {path!r}")
    extra = {path: len(names) - len(then.get(path, ())) for path, names in now.items()}
    own = {**model.state_dict(), **dict(model.named_buffers(remove_duplicate=False))}
    swapped: list[tuple[Tensor, Tensor]] = []
    for name, tensor in tensors.items():
        place = _moved(name, alphas, extra)
        if _within(name, fresh) and place in own and own[place].shape == tensor.shape:
            swapped.append((own[place], tensor))
        elif place not in own or not same_bits(own[place].cpu(), tensor):
            raise UsageError(
                f"{place!r} of the {type(model).__name__} is not what {run} delivered: it was trained since, or "
                "something was folded into it"
            )
    before = {grown: grown.alpha for grown in here.values()}
    held = [(tensor, tensor.clone()) for tensor, _ in swapped]
    try:
        _written(swapped)
        for path, names in now.items():
            for place in names[: extra[path]]:
                here[place].alpha = 0.0
            for place, name in zip(names[extra[path] :], then.get(path, ()), strict=True):
                here[place].alpha = alphas[name]
        yield
    finally:
        for grown, alpha in before.items():
            grown.alpha = alpha
        _written(held)


def _written(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for tensor, values in pairs:
            tensor.copy_(values)


def chains(names: Iterable[str]) -> dict[str, list[str]]:
    """Path in the host that nothing has grown in -> names of the seeds there, the newest first."""
    every = set(names)
    found: dict[str, list[str]] = {}
    for name in sorted(every, key=len):
        found.setdefault(_in_host(name, every), []).append(name)
    return found


def _in_host(name: str, grown: Iterable[str]) -> str:
    """The name without the steps from a seed to the module that it is around."""
    parts: list[str] = []
    prefix = ""
    for part in name.split("."):
        if not (part == "module" and prefix in grown):
            parts.append(part)
        prefix = f"{prefix}.{part}".strip(".")
    return ".".join(parts)


def _moved(name: str, grown: Mapping[str, float], extra: Mapping[str, int]) -> str:
    """Where a tensor of the export is in a model with ``extra`` seeds, by path in the host, in front."""
    parts: list[str] = []
    prefix, steps = "", dict(extra)
    for part in name.split("."):
        parts.append(part)
        prefix = f"{prefix}.{part}".strip(".")
        parts += ["module"] * steps.pop(_in_host(prefix, grown), 0)
    return ".".join(parts)
