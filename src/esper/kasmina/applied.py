"""What has grown in one model, put into another of its class."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import safetensors
import torch
from torch import Tensor, nn

from esper.kasmina import blueprints
from esper.kasmina.clone import Clone, copied
from esper.kasmina.generations import Part
from esper.kasmina.growable import placed
from esper.kasmina.growing import GrowingModel
from esper.kasmina.layer import Beside
from esper.kasmina.layout import Layout
from esper.kasmina.portable import Grown, GrownBeside, fill, graft, read_tensors
from esper.leyline import DataError, UsageError, unknown

WEIGHTS: Final = "model.safetensors"
_KEY: Final = "esper"
_COPY: Final = "copy"
"""What leads to the stream of a block that was copied."""
_LEADS: Final = ("position", "axes", "entry")
"""What leads to the tensors that a seed takes and changes."""


def described(
    model: GrowingModel, plain: nn.Module, built_in: Mapping[str, Sequence[Part]], same: Mapping[str, str]
) -> dict[str, str]:
    """For the header of the exported weights: how to build these seeds, by slot, other names of tensors, and the alpha
    of all that has grown in ``plain``, before this run too."""
    seeds = {}
    for slot_id, parts in built_in.items():
        slot, place = model.slots[slot_id], model.places[slot_id]
        given = {name: value for name, value in place.with_seed(nn.Identity(), 0.0).keywords.items() if name in _LEADS}
        about = {
            "channels": slot.channels,
            "fit": msgspec.to_builtins(slot.config.layout),
            "dtype": str(slot.dtype).rpartition(".")[2],
            **{name: repr(value) for name, value in given.items()},
        }
        seeds[place.path] = [
            about | {"blueprint": part.state.blueprint_id, "alpha": part.alpha} | _of_copy(part.seed) for part in parts
        ]
    about = {"seeds": seeds, "same": dict(same), "alphas": alphas_in(plain)}
    return {_KEY: json.dumps(about, sort_keys=True)}


def alphas_in(plain: nn.Module) -> dict[str, float]:
    """Of every seed that is built in, by the name of the module around it."""
    return {name: module.alpha for name, module in plain.named_modules() if isinstance(module, Grown)}


def delivered(run: str | Path) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Alphas of all that has grown in what ``run`` delivered, by the name of the module around it, and its tensors.

    Raises ``UsageError`` or ``DataError`` where there is none, or an earlier Esper wrote it.
    """
    about, tensors = _read(_weights(Path(run)))
    if "alphas" not in about:
        raise DataError(f"{run} does not say at which alphas its seeds are; an earlier Esper wrote it: grow it anew")
    return dict(about["alphas"]), {**tensors, **{name: tensors[other] for name, other in about["same"].items()}}


def apply(model: nn.Module, run: str | Path, fresh: Sequence[str] = ()) -> nn.Module:
    """Make ``model``, a fresh one of the class that was grown, the model that ``run`` delivered: in place.

    ``run`` is a run directory or the folder of an export. What has grown there is built in, and all weights are loaded;
    ``model.state_dict()`` has the names that ``result.model.state_dict()`` has. The model is then in evaluation mode.
    ``fresh`` names submodules that stay as ``model`` has them, such as a head for another number of classes.
    Raises ``UsageError`` or ``DataError``, and leaves the model as it was, where there is no export or the model is
    another, where a fresh part shares a tensor with the rest or a seed is in or around it, and where ``run`` grew on
    from an earlier run whose seeds are not there: that is applied first. Blueprints of one's own must be there to be
    imported. Returns the model.
    """
    about, tensors = _read(_weights(Path(run)))
    _check_fresh(model, run, fresh, about["seeds"])
    paths = dict(nn.Module.named_modules(model, remove_duplicate=False))
    missing = [path for path in about["seeds"] if path not in paths]
    lacking = _earlier(about) - sum(isinstance(module, Grown) for module in model.modules())
    if lacking > 0:
        raise UsageError(
            f"{run} grew on from an earlier run, and the {type(model).__name__} lacks {lacking} of its seeds: apply"
            " that run first, esper.apply(model, EARLIER)"
        )
    if missing:
        raise UsageError(
            f"the {type(model).__name__} has no submodule {missing[0]!r}, where something grew in {run}; legal is a"
            " fresh model, made as that one was"
        )
    made: list[Grown] = []
    try:
        with torch.random.fork_rng(devices=[]):
            graft(model, {path: partial(_grown, made, seeds) for path, seeds in about["seeds"].items()})
    except BaseException:
        take_out(model, made)
        raise
    tensors |= {name: tensors[other] for name, other in about["same"].items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not within(name, fresh)}
    own = {name: value for name, value in model.state_dict().items() if within(name, fresh)}
    differing = _differing(model, {**tensors, **own})
    if differing:
        take_out(model, made)
        raise UsageError(
            f"the {type(model).__name__} is not like the one that {run} delivered: {len(differing)} tensors differ,"
            f" among them {differing[0]}; legal is a fresh model, made as that one was"
        )
    for name, alpha in about.get("alphas", {}).items():
        model.get_submodule(name).alpha = alpha
    return fill(model, {**tensors, **own}, {})


def within(name: str, paths: Sequence[str]) -> bool:
    """Whether a module or tensor of that name is one of those at ``paths``, or in one."""
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def _check_fresh(model: nn.Module, run: str | Path, fresh: Sequence[str], seeds: Iterable[str]) -> None:
    """Raise ``UsageError`` where a part that is to be fresh is not there, is lazy, is not apart, or a seed is in or
    around it: by ``seeds``, where ``run`` grew some, or of a run before it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for path in fresh:
        if not path or path not in modules:
            raise unknown("submodule in fresh", path, [name for name in modules if name])
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    rest = {id(tensor): name for name, tensor in every if not within(name, fresh)}
    for name, tensor in every:
        if within(name, fresh) and nn.parameter.is_lazy(tensor):
            raise UsageError(
                f"fresh has {name!r}, which is lazy and has no weights yet; legal is a part that has: call the model on"
                " one batch first"
            )
        if within(name, fresh) and id(tensor) in rest:
            raise UsageError(
                f"fresh has {name!r}, which is also {rest[id(tensor)]!r} of what {run} delivered; legal is a part"
                " that has no tensor in common with the rest"
            )
    for path in (*seeds, *(name for name, module in modules.items() if isinstance(module, Grown))):
        for part in fresh:
            if within(path, fresh) or within(part, [path]):
                raise UsageError(
                    f"fresh names {part!r}, and {run} or a run before it grew a seed at {path!r}; legal is a part"
                    " with none in or around it"
                )


def _earlier(about: Mapping[str, Any]) -> int:
    """How many seeds were there before this run; what a copy of a block has inside is the copy's."""
    alphas = about.get("alphas", {})
    outside = [name for name in alphas if not any(name.startswith(f"{other}.seed.") for other in alphas)]
    return len(outside) - sum(map(len, about["seeds"].values()))


def _read(weights: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the header says has grown, and the tensors."""
    try:
        with safetensors.safe_open(str(weights), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "null"))
        tensors = read_tensors(weights)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise DataError(f"{weights} cannot be read: {error}; give a run whose export is whole") from error
    if about is None:
        raise DataError(f"{weights} does not say what has grown; an earlier Esper wrote it: use load() of its model.py")
    return about, tensors


def tell_of_adapters(model: nn.Module, run: Path) -> None:
    """PEFT's own ``save_pretrained`` goes by the names of adapters, which seeds do not have."""
    adapted = any(kind.__name__ == "PeftModel" for kind in type(model).__mro__)
    if adapted and any(isinstance(module, Grown) for module in model.modules()):
        warnings.warn(
            f"save_pretrained() of a {type(model).__name__} writes adapters alone, without what has grown; {run} holds "
            f"all of it: esper.apply(get_peft_model(base, config), {str(run)!r})",
            stacklevel=2,
        )


def _weights(run: Path) -> Path:
    for folder in (run, run / "model"):
        if (folder / WEIGHTS).is_file():
            return folder / WEIGHTS
    raise UsageError(f"{run} holds no exported model ({WEIGHTS} or model/{WEIGHTS}): give a run that delivered one")


def _grown(made: list[Grown], seeds: Sequence[Mapping[str, Any]], module: nn.Module) -> nn.Module:
    """The module with all its seeds, the newest outermost."""
    own = module
    for about in seeds:
        module = _around(about, module, own)
        made.append(module)
    return module


def _around(about: Mapping[str, Any], module: nn.Module, own: nn.Module) -> Grown:
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
    seed = _seed(about, own)
    seed = placed(seed, device, getattr(torch, about["dtype"]))
    leads = {name: ast.literal_eval(about[name]) for name in _LEADS if name in about}
    return (GrownBeside if "entry" in leads else Grown)(module, seed, about["alpha"], **leads)


def _of_copy(seed: nn.Module) -> dict[str, str]:
    return {_COPY: repr((seed.entry, seed.position, seed.axes))} if isinstance(seed, Clone) else {}


def _seed(about: Mapping[str, Any], own: nn.Module) -> nn.Module:
    """A seed with weights still to be filled; a copy is made of the host's own module."""
    if _COPY not in about:
        return blueprints.build(about["blueprint"], about["channels"], msgspec.convert(about["fit"], Layout | Beside))
    return copied(own, *ast.literal_eval(about[_COPY]))


def _differing(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    here = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    known = {*here, *(name for name, _ in model.named_buffers(remove_duplicate=False))}
    odd = [f"{name!r}, which the run lacks" for name in here if name not in tensors]
    odd += [f"{name!r}, which the model lacks" for name in tensors if name not in known]
    return odd + [
        f"{name!r}, of {list(tensors[name].shape)} there and of {list(tensor.shape)} here"
        for name, tensor in here.items()
        if name in tensors and tensor.shape != tensors[name].shape
    ]


def take_out(model: nn.Module, made: Sequence[Grown]) -> None:
    """Undo of building ``made`` in, in either order: the module that each is around stands in its place again."""
    for grown in reversed(made):
        for parent in model.modules():
            for name, child in parent._modules.items():
                if child is grown:
                    parent._modules[name] = grown.module
