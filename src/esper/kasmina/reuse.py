"""What a run has grown, put into a model that is to grow on: held, and switched so that what it gave comes back.

A module on which several seeds grew is a chain of :class:`Grown`, the newest outermost. A chain in an export and the
chain at the same place of a model that grew on differ by the new ones in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from esper.kasmina.applied import apply, delivered, take_out, within
from esper.kasmina.portable import Grown
from esper.kasmina.structure import same_bits
from esper.leyline import UsageError


def take_over(
    model: nn.Module, run: str | Path, fresh: Sequence[str] = ()
) -> tuple[dict[str, Grown], Callable[[], None]]:
    """Make ``model``, a fresh one, what ``run`` delivered, all of it frozen, but for the submodules ``fresh``, which
    stay as they are.

    Returns the seeds of that run, by name, and what makes the model again what it was. Raises what :func:`apply`
    raises, and ``UsageError`` where nothing of a part that is to be fresh learns; the model is then as it was.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    learns = {
        path: [(each, each.requires_grad) for each in modules[path].parameters()] for path in fresh if path in modules
    }
    for path, parameters in learns.items():
        if parameters and not any(learning for _, learning in parameters):
            raise UsageError(f"Budget.fresh names {path!r}, of which nothing learns; legal is one given unfrozen")
    undo = _as_it_is(model)
    apply(model, run, fresh)
    model.requires_grad_(False)
    for parameter, learning in chain.from_iterable(learns.values()):
        parameter.requires_grad_(learning)
    return {name: each for name, each in grown_in(model).items() if each not in modules.values()}, undo


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
    runs had as their own (``Budget.fresh``), of the same modules and of any sizes: what the run delivered there is put
    back within. Raises ``UsageError`` where a fresh part has other tensors, or anything else that the run delivered is
    no longer in the model: a seed is missing, or a tensor was trained since.
    """
    alphas, tensors = delivered(run)
    here = grown_in(model)
    then, now = chains(alphas), chains(here)
    for path, names in then.items():
        if len(now.get(path, ())) < len(names):
            raise UsageError(f"the {type(model).__name__} lacks a seed that {run} delivered at {path!r}")
    extra = {path: len(names) - len(then.get(path, ())) for path, names in now.items()}
    held = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    own = {**model.state_dict(), **held}
    places = {_moved(name, alphas, extra): name for name in tensors}
    odd = [place for place, name in places.items() if within(name, fresh) and place not in held]
    later = [f"{place}.seed" for path, names in now.items() for place in names[: extra[path]]]
    parts = [_moved(part, alphas, extra) for part in fresh]
    odd += [name for name in held if within(name, parts) and name not in places and not within(name, later)]
    if odd:
        raise UsageError(
            f"fresh: {odd[0]!r} is in only one of the {type(model).__name__} and {run}; legal is a part of the same"
            " modules, of any sizes, or esper.apply(model, run) on a fresh model"
        )
    swapped: list[tuple[Tensor, Tensor]] = []
    for place, name in places.items():
        if within(name, fresh):
            swapped.append((held[place], tensors[name].to(held[place])))
        elif place not in own or not same_bits(own[place].cpu(), tensors[name]):
            raise UsageError(
                f"{place!r} of the {type(model).__name__} is not what {run} delivered: it was trained since, or "
                "something was folded into it"
            )
    before = {grown: grown.alpha for grown in here.values()}
    back = [(tensor, tensor.data) for tensor, _ in swapped]
    try:
        _put(swapped)
        for path, names in now.items():
            for place in names[: extra[path]]:
                here[place].alpha = 0.0
            for place, name in zip(names[extra[path] :], then.get(path, ()), strict=True):
                here[place].alpha = alphas[name]
        yield
    finally:
        for grown, alpha in before.items():
            grown.alpha = alpha
        _put(back)


def _put(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Make tensors hold these values, which may have other sizes, so that they cannot be copied into them."""
    for tensor, values in pairs:
        tensor.data = values


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
