"""From a growing model to a plain one: in memory, as files that need only torch, and as torch.export or ONNX graphs."""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial, reduce, wraps
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save as pack
from torch import Tensor, nn

from esper.kasmina import fold
from esper.kasmina.applied import WEIGHTS, alphas_in, described
from esper.kasmina.clone import Clone, copied
from esper.kasmina.generations import Part
from esper.kasmina.growing import GrowingModel
from esper.kasmina.leaving import strip
from esper.kasmina.portable import fill, graft, read_tensors
from esper.kasmina.precision import Autocast, tolerance
from esper.kasmina.probe import Place
from esper.kasmina.sharded import plainly_copied
from esper.kasmina.source import CannotWrite, Source
from esper.kasmina.structure import Path as Where
from esper.kasmina.structure import mapped, tensors
from esper.kasmina.tap import Inside, Tap
from esper.kasmina.trial import Sample, arguments, device_of, invoke, mode, random_kept
from esper.leyline import DataError, MissingExtraError, SeedStage, UsageError
from esper.leyline.files import Folder

CODE = "model.py"


def export(model: GrowingModel, stages: Collection[SeedStage] | None = None, sample: Sample | None = None) -> nn.Module:
    """A copy of the host with its seeds built in, in evaluation mode: plain modules without slots or Esper's hooks.

    Every seed that takes part in the forward pass is built in at its present alpha, so that outputs equal those of the
    growing model; ``stages`` keeps only the seeds in one of these. A seed beside a module that is a linear map is
    folded into the module's weight where that changes no output beyond the precision's tolerance, on ``sample`` too if
    there is one; else it is a module of its own. Raises ``UsageError`` for a host that cannot be copied.
    """
    return _build(model, stages, sample).model


@dataclass(frozen=True, slots=True)
class Shape:
    """What a plain model is made of, besides the host: seed id -> slot and seed, slots in network order, in each the
    oldest first.
    """

    apart: Mapping[str, tuple[str, Part]]
    """Seeds that are modules of their own."""
    folded: Mapping[str, tuple[str, Part]]
    """Those that are in the weight of the module beside which they grew."""
    unfolded: Mapping[str, str]
    """Why a seed beside a module was not folded."""


@dataclass(frozen=True, slots=True)
class _Plain:
    model: nn.Module
    shape: Shape
    compared: Difference | None
    """Outputs on the sample against those of the growing model."""


def _build(model: GrowingModel, stages: Collection[SeedStage] | None, sample: Sample | None) -> _Plain:
    parts = _built_in(model, stages)
    beside = {seed_id: part for seed_id, part in parts.items() if part[0] in model.folds}
    why = fold.against(model, beside)
    shape = _shape(parts, beside, why)
    plain = _with_seeds(model, shape)
    compared = None
    if sample is not None:
        with _only(model, stages), mode(model, False):
            compared = compare(model, plain, sample)
            if shape.folded and not compared.same:
                text = f"folded, it would change outputs by {compared.largest:.1g}"
                shape = _shape(parts, beside, dict.fromkeys(shape.folded, text) | why)
                plain = _with_seeds(model, shape)
                compared = compare(model, plain, sample)
    return _Plain(plain, shape, compared)


def _shape(
    parts: Mapping[str, tuple[str, Part]], beside: Mapping[str, tuple[str, Part]], unfolded: Mapping[str, str]
) -> Shape:
    folded = {seed_id: part for seed_id, part in beside.items() if seed_id not in unfolded}
    return Shape({seed_id: part for seed_id, part in parts.items() if seed_id not in folded}, folded, unfolded)


def _with_seeds(model: GrowingModel, shape: Shape) -> nn.Module:
    host = _bare_host(model)
    for slot_id, parts in by_slot(shape.folded).items():
        module = host.get_submodule(model.places[slot_id].path)
        weight = module._parameters["weight"]
        assert weight is not None
        module._parameters["weight"] = fold.folded(weight, parts, bool(model.folds[slot_id]))
    apart = [(model.places[slot_id], parts) for slot_id, parts in by_slot(shape.apart).items()]
    return graft(host, {place.path: _grown(place, parts) for place, parts in apart}).eval()


def by_slot(parts: Mapping[str, tuple[str, Part]]) -> dict[str, list[Part]]:
    """slot -> its seeds."""
    found: dict[str, list[Part]] = {}
    for slot_id, part in parts.values():
        found.setdefault(slot_id, []).append(part)
    return found


def _only(model: GrowingModel, stages: Collection[SeedStage] | None) -> AbstractContextManager[None]:
    """Within, the seeds that are not part of the plain model take no part in the growing one."""
    built_in = _built_in(model, stages)
    without = [s for s, slot in model.slots.items() if slot.state is not None and slot.state.seed_id not in built_in]
    return model.alphas(dict.fromkeys(without, 0.0))


def _built_in(model: GrowingModel, stages: Collection[SeedStage] | None) -> dict[str, tuple[str, Part]]:
    """Seeds that are part of the plain model; those that were kept before their slot opened again always are."""
    return {
        seed_id: (slot_id, part)
        for seed_id, (slot_id, part) in model.parts.items()
        if part.alpha != 0.0
        and (stages is None or part.state.stage in stages or part.seed is not model.slots[slot_id].seed)
    }


def _grown(place: Place, parts: Sequence[Part]) -> Callable[[nn.Module], nn.Module]:
    """Puts copies of a slot's seeds around a module, the newest outermost."""
    made = _makers(place, parts)
    return lambda module: reduce(lambda inner, make: make(inner), made, module)


def _makers(place: Place, parts: Sequence[Part]) -> list[partial[Any]]:
    return [place.with_seed(plainly_copied(part.seed), part.alpha) for part in parts]


def _bare_host(model: GrowingModel) -> nn.Module:
    """A copy of the host without taps."""
    ours = [*model.taps.values(), *(site.__dict__.get("forward") for site in model.sites.values())]
    memo: dict[int, Any] = {id(each): each for each in ours if isinstance(each, Tap | Inside)}
    try:
        host = plainly_copied(model.host, memo)
    except Exception as error:
        raise UsageError(f"the host cannot be copied: {error}") from error
    strip(host)
    return host


@dataclass(frozen=True, slots=True)
class Exported:
    """Files of an export. ``needs_host``: ``load`` of ``code`` must be given a host, since it could not be written."""

    code: Path
    weights: Path
    needs_host: bool
    shape: Shape
    """What became of the seeds."""

    @property
    def unfolded(self) -> Mapping[str, str]:
        """seed id -> why a seed beside a module is a module of its own, and not folded into the weight."""
        return self.shape.unfolded


def save_export(
    model: GrowingModel, directory: str | Path, sample: Sample, stages: Collection[SeedStage] | None = None
) -> Exported:
    """Write ``model.py`` and ``model.safetensors``; ``model.load()`` gives the plain model wherever torch is.

    ``model.py`` holds the source of the seeds, and of the host where that can be written down (its classes are then
    imported, or copied if they are Esper's). Else ``load(host)`` takes a fresh host or a function that makes one. What
    was written is loaded again and its outputs on ``sample`` are compared with the growing model's: to 1e-5, or to a
    few roundings where they were computed in a narrower format than float32.
    """
    directory = Path(directory)
    built = _build(model, stages, sample)
    plain, compared = built.model, built.compared
    if compared is not None and not compared.same:
        raise UsageError(
            f"the host reaches a submodule by another way than its path: outputs differ by {compared.largest:g}"
        )
    saved, same = _unshared(plain)
    try:
        content = pack(saved, described(model, plain, by_slot(built.shape.apart), same))
    except (KeyError, ValueError, SafetensorError) as error:
        kinds = ", ".join(sorted({str(tensor.dtype) for tensor in saved.values()}))
        raise UsageError(f"the model cannot be exported: a safetensors file cannot hold all of {kinds}") from error
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with Folder.open(directory, follow=False) as folder:
            folder.write(WEIGHTS, content)
            del content
            return _with_code(model, built, folder, sample, same)
    except OSError as error:
        raise UsageError(f"cannot write the export to {directory}: {error}") from error


def _with_code(model: GrowingModel, built: _Plain, folder: Folder, sample: Sample, same: dict[str, str]) -> Exported:
    """Write ``model.py`` beside the weights, with the host in it where that can be."""
    code = folder.path / CODE
    reasons: list[str] = []
    for with_host in (True, False):
        try:
            folder.write(CODE, _code(model, built, same, with_host).encode())
            _check(model, built.model, code, sample, None if with_host else _blank(_bare_host(model)))
        except (CannotWrite, DataError) as error:
            reasons.append(str(error))
            continue
        return Exported(code, folder.path / WEIGHTS, not with_host, built.shape)
    raise UsageError(f"the model cannot be exported: {reasons[-1]}")


def _unshared(plain: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, and for the other names of shared ones the name it is saved under."""
    everything = dict(plain.state_dict())
    everything |= {name: b for name, b in plain.named_buffers(remove_duplicate=False) if name not in everything}
    saved: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in everything.items():
        if not isinstance(tensor, Tensor):
            raise UsageError(f"the host keeps {name!r} in its state, a {type(tensor).__name__}; only tensors are saved")
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        if first.setdefault(key, name) != name:
            same[name] = first[key]
        else:
            saved[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return saved, same


def _code(model: GrowingModel, built_in: _Plain, same: dict[str, str], with_host: bool) -> str:
    shape = built_in.shape
    source = Source(reserved=("load", "seeds", "make_host", "SHARED", "ALPHAS", "host", "weights", "tensors"))
    imports = {"nn": source.imported("torch", "nn"), "Path": source.imported("pathlib", "Path")}
    seeds = []
    for slot_id, parts in by_slot(shape.apart).items():
        place, built = model.places[slot_id], "module"
        for part, grown in zip(parts, _makers(place, parts), strict=True):
            given = dict(grown.keywords)
            seed = _written(source, given.pop("seed").eval(), place)
            rest = ", ".join([repr(given.pop("alpha")), *(source.value(each) for each in given.values())])
            built = f"{source.name(grown.func)}({built}, {seed}, {rest})"
            why = shape.unfolded.get(part.seed_id)
            seeds += [f"        # not folded into the weight: {why}\n"] if why else []
        seeds.append(f"        {place.path!r}: lambda module: {built},\n")
    kind = type(model.host)
    host = (
        f"    return {source.module(_bare_host(model), depth=1)}\n"
        if with_host
        else (f'    raise TypeError("load(host) needs a {kind.__qualname__}, or a function that makes one")\n')
    )
    run = {each.__name__: source.name(each) for each in (graft, fill, read_tensors)}
    return _TEMPLATE.format(
        kind=f"{kind.__module__}:{kind.__qualname__}",
        usage="load()" if with_host else "load(host)",
        definitions=source.text(),
        seeds="".join(seeds),
        host=host,
        same=source.value(same),
        alphas=source.value(alphas_in(built_in.model)),
        **imports,
        **run,
    )


def _written(source: Source, seed: nn.Module, place: Place) -> str:
    """An expression for a seed; a copy of a block is made of the host's own."""
    if not isinstance(seed, Clone):
        return source.module(seed, f"the seed at {place.path!r}", depth=2)
    leads = ", ".join(source.value(each) for each in (seed.entry, seed.position, seed.axes))
    return f"{source.name(copied)}(module, {leads})"


_TEMPLATE = '''"""A grown {kind}, exported by Esper. Needs torch, and what is imported below.

    import model
    network = model.{usage}
"""

from __future__ import annotations

{definitions}

SHARED = {same}
"""Other names of tensors that are saved once."""

ALPHAS = {alphas}
"""How much of each seed takes part, of earlier runs too, by the name of the module around it."""


def seeds():
    """What has grown, by the path of the host's module that it sits on."""
    return {{
{seeds}    }}


def make_host():
    """The host, with blank tensors."""
{host}

def load(host=None, weights=None):
    """The grown model, in evaluation mode.

    host: a fresh host, or a function that makes one; default: make_host().
    weights: path of the tensors; default: model.safetensors beside this file.
    """
    if host is None:
        host = make_host()
    elif not isinstance(host, {nn}.Module):
        host = host()
    tensors = {read_tensors}(weights or {Path}(__file__).with_name("model.safetensors"))
    model = {graft}(host, seeds())
    for name, alpha in ALPHAS.items():
        model.get_submodule(name).alpha = alpha
    return {fill}(model, tensors, SHARED)
'''


def _blank(host: nn.Module) -> nn.Module:
    """The host with other weights, so that what it gives after loading cannot come from them."""
    with torch.no_grad():
        for tensor in (*host.parameters(), *host.buffers()):
            tensor.zero_()
    return host


_OF_THE_DISK: Final = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE)


def _of_the_files(error: Exception, code: Path) -> bool:
    """Whether what was written cannot be read, which no other way to write the model down would mend.

    A host that opens files of its own when it is made names them.
    """
    if not isinstance(error, OSError):
        return False
    return error.errno in _OF_THE_DISK or error.filename is None or Path(error.filename).is_relative_to(code.parent)


class _Unwritten(SourceFileLoader):
    """Leaves nothing compiled beside the source, where nothing is but what a model is made of."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Nothing."""


def _check(model: GrowingModel, plain: nn.Module, code: Path, sample: Sample, host: nn.Module | None) -> None:
    name = "esper_exported_model"
    spec = importlib.util.spec_from_file_location(name, code, loader=_Unwritten(name, str(code)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with random_kept(device_of(plain)):  # a host that is made draws its weights
            spec.loader.exec_module(module)
            loaded = module.load() if host is None else module.load(host)
            compared = compare(plain, loaded.to(device_of(plain)), sample)
    except Exception as error:
        if _of_the_files(error, code):
            raise
        raise DataError(f"the written model does not load: {type(error).__name__}: {error}") from error
    if not compared.same:
        raise DataError(f"outputs of the written model differ by {compared.largest:g}")


@dataclass(frozen=True, slots=True)
class Difference:
    """Largest absolute difference between outputs, relative to them where they exceed 1, and how much there may be."""

    largest: float
    tolerance: float

    @property
    def same(self) -> bool:
        """Whether the outputs are equal to the precision they have."""
        return self.largest <= self.tolerance


def compare(one: nn.Module, other: nn.Module, sample: Sample) -> Difference:
    """The difference between two models' outputs on ``sample``."""
    outputs, formats = [], set()
    for network in (one, other):
        device = device_of(network)
        given = mapped(sample, partial(Tensor.to, device=device))
        host = network.host if isinstance(network, GrowingModel) else network
        with torch.no_grad(), random_kept(device):
            outputs.append({path: tensor.cpu() for path, tensor in tensors(invoke(host, given))})
        formats |= Autocast.now(device).dtypes
        formats |= {tensor.dtype for tensor in (*outputs[-1].values(), *network.parameters())}
    return Difference(_largest(*outputs), tolerance(formats))


def _largest(one: dict[Where, Tensor], other: dict[Where, Tensor]) -> float:
    if one.keys() != other.keys():
        return float("inf")
    worst = 0.0
    for path, expected in one.items():
        found = other[path]
        if expected.shape != found.shape:
            return float("inf")
        if expected.numel():
            gap = (expected.double() - found.double()).abs() / expected.double().abs().clamp(min=1.0)
            worst = max(worst, float(gap.max()))
    return worst


def to_program(plain: nn.Module, sample: Sample) -> torch.export.ExportedProgram:
    """The graph of a plain model by ``torch.export``; the batch, the first axis of the arguments, may vary."""
    args, kwargs = arguments(sample)
    return torch.export.export(plain, args, kwargs, dynamic_shapes=_dynamic(args, kwargs))


def save_onnx(plain: nn.Module, sample: Sample, path: str | Path) -> Path:
    """Write a plain model as ONNX; the tensors of its output, in order, are the graph's outputs.

    Raises :class:`MissingExtraError` without the extra ``onnx``.
    """
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxscript") is None:
        raise MissingExtraError("ONNX export", "onnx")
    args, kwargs = arguments(sample)
    program = torch.onnx.export(
        _TensorsOnly(plain).eval(),
        args,
        kwargs=kwargs,
        dynamo=True,
        dynamic_shapes=_dynamic(args, kwargs),
        verbose=False,
    )
    assert program is not None
    program.save(str(path))
    return Path(path)


class _TensorsOnly(nn.Module):
    """A model whose output is the tensors of another's, with the other's signature: ONNX knows no other outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

        @wraps(model.forward)
        def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
            return tuple(tensor for _, tensor in tensors(model(*args, **kwargs)))

        self.forward = forward


def _dynamic(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def batch(value: Any) -> Any:
        return {0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.ndim else None

    if kwargs and not args:
        return {name: batch(value) for name, value in kwargs.items()}
    return tuple(batch(value) for value in args)
