"""The frozen part of a host in front of everything that learns, computed once for each example.

In front of the first module that learns or carries a live seed, a host that is held gives the same for the same
example, epoch after epoch. What it gives is kept, by the example's own bytes and the size of its batch, and played
back: the modules there do not run again. Nothing is taken on trust. In evaluation and in training, and for each size of
batch, the first passes that could be played back are made in full and compared bit for bit; where a bit differs, since
a product rounds otherwise in another batch, whole passes go on as before. Behind dropout or batch normalisation that is
in training mode, and where examples do not come again, as under augmentation, nothing is kept. :attr:`Prefix.off` says
why.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor, nn

from esper.kasmina.compiled import as_written
from esper.kasmina.macs import counted
from esper.kasmina.precision import Autocast
from esper.kasmina.structure import mapped, same, tensors, version
from esper.kasmina.tap import KEEPS, Forward, Tap, substituted, untapped_forward
from esper.kasmina.trace import Call, observed
from esper.kasmina.trial import device_of, random_kept, trial

if TYPE_CHECKING:
    from esper.kasmina.growing import GrowingModel

Purpose = Literal["training", "evaluation"]
PROVEN: Final[Mapping[Purpose, int]] = {"training": 3, "evaluation": 1}
"""Passes of each size that are made in full and compared before what is kept is played back. In evaluation examples
come again in the batch that they came in."""
IN_MEMORY: Final = 1 << 29
"""Bytes; what is larger is mapped from a file that has no name."""
FIRST_ROWS: Final = 256
MOST_BYTES: Final = 1 << 32
"""Of all that is kept."""
KEY_BYTES: Final = 16

Pass = Callable[[], Any]
Told = dict[nn.Module, list[Any]]
"""What modules gave, call by call."""


@dataclass(eq=False)
class _Rows:
    """One tensor of one call of one module, an example a row; ``[capacity, ...]`` grows as it fills."""

    values: Tensor
    mapped: bool = False

    @classmethod
    def like(cls, tensor: Tensor) -> _Rows:
        """None yet."""
        return cls(torch.empty(FIRST_ROWS, *tensor.shape[1:], dtype=tensor.dtype))

    def put(self, at: int, new: Tensor) -> None:
        """Write rows from ``at`` on."""
        needed = at + len(new)
        if needed > len(self.values):
            self._grow(max(needed, 2 * len(self.values)))
        self.values[at:needed] = new.detach().to("cpu")

    def _grow(self, rows: int) -> None:
        shape, dtype, before = self.values.shape[1:], self.values.dtype, self.values
        size = rows * prod(shape)
        if size * dtype.itemsize > IN_MEMORY:
            with tempfile.NamedTemporaryFile(prefix="esper-prefix-") as file:
                flat = torch.from_file(file.name, shared=True, size=size, dtype=dtype)
            self.values, self.mapped = flat.view(rows, *shape), True
        else:
            self.values = torch.empty(rows, *shape, dtype=dtype)
        self.values[: len(before)] = before


@dataclass(eq=False)
class _Store:
    """What is kept of passes of one kind: purpose, modes, precision, shape of an example and size of batch."""

    kept: dict[nn.Module, list[tuple[Any, list[_Rows]]]] = field(default_factory=dict)
    """For each module call by call what an output looks like, and the rows of its tensors; none where it is not needed.
    """
    index: dict[bytes, int] = field(default_factory=dict)
    """Example -> row."""
    proven: int = 0
    """Passes that were compared."""


class Prefix:
    """Keeps what the frozen part in front of all that learns gives, and plays it back. Used only within :meth:`used`.

    ``misses`` counts examples of passes that were not played back; ``saved`` are the multiply-accumulates that were not
    made.
    """

    def __init__(self, model: GrowingModel, sample: Any, examples: int) -> None:
        """``examples`` are in the sample, a batch for trial passes."""
        self.model, self.sample, self.examples = model, sample, examples
        self.off: dict[Purpose, str] = {}
        """Why nothing is kept."""
        self.macs = 0
        """Of the prefix, for one example."""
        self.misses = self.saved = 0
        self._using = self._filling = False
        self._known: tuple[tuple[bool, ...], tuple[str, ...]] | None = None
        """What learned, and which slots had a seed, when it was looked."""
        self._written: list[int] = []
        self._modules: list[nn.Module] = []
        """In the order of their calls."""
        self._needed: set[nn.Module] = set()
        self._stores: dict[Any, _Store] = {}

    @contextmanager
    def used(self, *, fill: bool = True) -> Iterator[None]:
        """Within, passes of the model are played back where they can be; without ``fill`` nothing new is kept, as for
        what is read once.
        """
        self.look()
        before, self._using, self._filling = (self._using, self._filling), True, fill
        try:
            yield
        finally:
            self._using, self._filling = before

    @property
    def active(self) -> bool:
        """Whether a pass may be played back here: not where seeds were sown for a moment, or one was taken out."""
        if not self._using or self.model.replaying or _purpose() in self.off or not self._modules:
            return False
        return self._known is not None and self._known[1] == self._live()

    def _live(self) -> tuple[str, ...]:
        return tuple(slot_id for slot_id, slot in self.model.slots.items() if not slot.bare)

    def size(self) -> int:
        """Bytes of everything that is kept."""
        calls = (call for store in self._stores.values() for each in store.kept.values() for call in each)
        return sum(rows.values.numel() * rows.values.dtype.itemsize for _, each in calls for rows in each)

    def taken(self) -> tuple[int, int]:
        """``(misses, saved)`` since the last time."""
        counted_so_far = self.misses, self.saved
        self.misses = self.saved = 0
        return counted_so_far

    def reviewed(self, examples: int) -> None:
        """After an epoch of training on so many examples: whether they come again."""
        if any(kind[0] == "training" and len(store.index) > examples for kind, store in self._stores.items()):
            self._stop("training", "examples do not come again, as under augmentation")

    # --- what is in front of all that learns -----------------------------------------------------------------------

    def look(self) -> None:
        """Find the prefix anew where another part learns; forget what it gave where a weight in it was written.

        A model that is spread over processes has none: they make each pass together, and keep other examples.
        """
        if self.model.sharding is not None:
            return
        learning = tuple(parameter.requires_grad for parameter in self.model.host.parameters())
        known = learning, self._live()
        if known != self._known:
            self._stores, self._modules, self._needed, self.macs, self.off = {}, [], set(), 0, {}
            self._known = known
            if not all(learning):
                self._find(known[1])
        elif self._versions() != self._written:
            self._stores = {}
        else:
            return
        self._written = self._versions()

    def _versions(self) -> list[int]:
        """How often each tensor in front was written."""
        return [version(each) for each in self._frozen()]

    def _frozen(self) -> Iterator[Tensor]:
        for module in self._modules:
            yield from module.parameters()
            yield from module.buffers()

    def _find(self, live: tuple[str, ...]) -> None:
        with trial(self.model.host), observed(self.model.host, ()) as trace:
            self.model.run(self.sample)
        self._modules = _in_front(trace.calls, {self.model.sites[slot_id] for slot_id in live})
        reason = self._reason()
        if reason is not None or not self._modules:
            self._stop_all(reason or "something that learns stands in front of everything else")
            return
        with trial(self.model.host), self.model.alphas(dict.fromkeys(live, 1.0)):
            given: Told = {}
            with substituted(self._recorders(given)):
                whole = self._again()
            if any(not _by_example(outputs, self.examples) for outputs in given.values()):
                self._stop_all("a module in front gives something that is not one row an example")
                return
            self._needed = set(self._modules)
            for module in self._modules:
                if _floating(given[module]) and same(self._played(given, self._needed - {module}), whole):
                    self._needed.remove(module)
            if not same(self._played(given, self._needed), whole):
                self._stop_all("what is in front cannot be played back")
                return
            played = counted(lambda: self._played(given, self._needed))
            self.macs = max(0, counted(self._again) - played) // self.examples

    def _again(self) -> Any:
        with random_kept(device_of(self.model)):
            return self.model.run(self.sample)

    def _played(self, given: Told, needed: set[nn.Module]) -> Any:
        with substituted(_players(given, needed)):
            return self._again()

    def _reason(self) -> str | None:
        """Why the modules in front may not be left out."""
        for module in self._modules:
            for name, part in module.named_modules():
                where = f"{type(part).__name__} {name!r} in {type(module).__name__}" if name else type(part).__name__
                if any(not isinstance(hook, Tap) for hook in part._forward_hooks.values()) or part._forward_pre_hooks:
                    return f"somebody watches {where} by a hook"
                if getattr(part, "_compiled_call_impl", None) is not None:
                    return f"{where} is compiled"
        return None

    # --- passes -----------------------------------------------------------------------------------------------------

    def run(self, inputs: Any, whole: Pass) -> Any:
        """A pass of the model over ``inputs``, made by ``whole``: played back where it can be."""
        keys, shapes = _keys(inputs)
        reason = self._moving()
        if reason is not None:
            self._stop(_purpose(), reason)
        if not keys or reason is not None:
            return whole()
        store = self._stores.setdefault(self._kind(shapes, len(keys)), _Store())
        rows = [store.index.get(key) for key in keys]
        if any(row is None for row in rows):
            return self._first(store, keys, whole)
        given = self._gathered(store, torch.tensor(rows))
        if store.proven < PROVEN[_purpose()]:
            return self._compared(store, given, len(keys), whole)
        self.saved += self.macs * len(keys)
        with as_written(), substituted({module: _heard(module, each) for module, each in self._play(given).items()}):
            return whole()

    def _play(self, given: Told) -> dict[nn.Module, Forward]:
        return _players(given, set(given))

    def _kind(self, shapes: Any, size: int) -> tuple[Any, ...]:
        modes = tuple(part.training for module in self._modules for part in module.modules())
        return _purpose(), size, shapes, modes, Autocast.now(device_of(self.model))

    def _moving(self) -> str | None:
        """What in the prefix gives something else each time, as it is now."""
        for module in self._modules:
            for name, part in module.named_modules():
                if part.training and isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
                    return f"dropout {name or type(part).__name__!r} is in training mode"
                if part.training and isinstance(part, nn.modules.batchnorm._NormBase):
                    return f"{type(part).__name__} {name!r} is in training mode"
        return None

    def _first(self, store: _Store, keys: list[bytes], whole: Pass) -> Any:
        self.misses += len(keys)
        if not self._filling:
            return whole()
        given: Told = {}
        written = self._versions()
        with substituted(self._recorders(given)):
            output = whole()
        if written != self._versions():
            self._stop(_purpose(), "a pass writes into a buffer in front")
            return output
        if any(not _by_example(outputs, len(keys)) for outputs in given.values()):
            self._stop(_purpose(), "a module in front gives something that is not one row an example")
            return output
        at, new = len(store.index), []
        for number, key in enumerate(keys):
            if key not in store.index:
                store.index[key] = len(store.index)
                new.append(number)
        self._keep(store, given, at, torch.tensor(new))
        if self.size() > MOST_BYTES:
            self._stop(_purpose(), f"what is in front would take more than {MOST_BYTES >> 30} GiB")
        return output

    def _keep(self, store: _Store, given: Told, at: int, new: Tensor) -> None:
        for module, outputs in given.items():
            for number, output in enumerate(outputs):
                found = [tensor for _, tensor in tensors(output)]
                calls = store.kept.setdefault(module, [])
                if number == len(calls):
                    kept = found if module in self._needed else []
                    calls.append((mapped(output, _likeness), [_Rows.like(tensor) for tensor in kept]))
                for rows, tensor in zip(calls[number][1], found, strict=False):
                    rows.put(at, tensor.index_select(0, new.to(tensor.device)))

    def _gathered(self, store: _Store, rows: Tensor) -> Told:
        """What the modules gave for these examples; for what is not needed, nothing that could be taken for it."""
        device = device_of(self.model)

        def output(likeness: Any, kept: list[_Rows]) -> Any:
            if not kept:
                return mapped(likeness, lambda each: each.expand(len(rows), *each.shape[1:]).clone())
            values = iter([each.values.index_select(0, rows).to(device) for each in kept])
            return mapped(likeness, lambda _: next(values))

        return {module: [output(*call) for call in calls] for module, calls in store.kept.items()}

    def _compared(self, store: _Store, given: Told, size: int, whole: Pass) -> Any:
        """The pass in full, and what is kept against it."""
        self.misses += size
        again: Told = {}
        with substituted(self._recorders(again)):
            output = whole()
        if all(len(given[module]) == len(again[module]) for module in given) and all(
            same(given[module], again[module]) for module in self._needed
        ):
            store.proven += 1
        else:
            self._stop(_purpose(), "what is in front gives other bits for the same example in another batch")
        return output

    def _stop(self, purpose: Purpose, reason: str) -> None:
        self.off[purpose] = reason
        self._stores = {kind: store for kind, store in self._stores.items() if kind[0] != purpose}

    def _stop_all(self, reason: str) -> None:
        self._stop("training", reason)
        self._stop("evaluation", reason)

    def _recorders(self, given: Told) -> dict[nn.Module, Forward]:
        return {module: _recorder(given.setdefault(module, []), untapped_forward(module)) for module in self._modules}


def _recorder(given: list[Any], inner: Forward) -> Forward:
    def forward(*args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        given.append(mapped(output, lambda tensor: tensor.detach().clone()))
        return output

    return forward


def _players(given: Mapping[nn.Module, list[Any]], needed: set[nn.Module]) -> dict[nn.Module, Forward]:
    return {module: _player(outputs, module in needed) for module, outputs in given.items()}


def _heard(module: nn.Module, player: Forward) -> Forward:
    """The player, and whoever keeps what the module gives is told."""
    keep = getattr(untapped_forward(module), KEEPS, None)
    if keep is None:
        return player

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = player(*args, **kwargs)
        keep(output)
        return output

    return forward


def _purpose() -> Purpose:
    return "training" if torch.is_grad_enabled() else "evaluation"


def _likeness(tensor: Tensor) -> Tensor:
    """Of one example, without memory of its own, and nothing that could be taken for a value."""
    fill = torch.nan if tensor.is_floating_point() else 0
    return torch.full((), fill, dtype=tensor.dtype, device=tensor.device).expand(1, *tensor.shape[1:])


def _floating(outputs: list[Any]) -> bool:
    return all(tensor.is_floating_point() for output in outputs for _, tensor in tensors(output))


def _player(outputs: list[Any], needed: bool) -> Forward:
    calls = iter(outputs)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return mapped(next(calls), lambda tensor: tensor if needed else _blank(tensor))

    return forward


def _blank(tensor: Tensor) -> Tensor:
    """What would be seen in the output if it were felt."""
    return torch.full_like(tensor, torch.nan)


def _in_front(calls: list[Call], sites: set[nn.Module]) -> list[nn.Module]:
    """The maximal modules that have returned before the first one that learns begins, or the first of ``sites`` has
    returned, that one included."""
    first = next((number for number, call in enumerate(calls) if call.module in sites or _learns(call.module)), None)
    if first is None:
        return []
    around = {id(each) for each in _ancestors(calls[first])}
    done = [call for call in calls[:first] if id(call) not in around and call.returned is not None]
    if calls[first].module in sites and not any(p.requires_grad for p in calls[first].module.parameters()):
        done.append(calls[first])
    inside = {id(call) for call in done}
    found = dict.fromkeys(call.module for call in done if call.parent is None or id(call.parent) not in inside)
    later = {call.module for call in calls if id(call) not in inside}
    return [] if later & found.keys() else list(found)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _ancestors(call: Call) -> Iterator[Call]:
    parent = call.parent
    while parent is not None:
        yield parent
        parent = parent.parent


def _by_example(outputs: list[Any], examples: int) -> bool:
    found = [tensor for output in outputs for _, tensor in tensors(output)]
    return bool(found) and all(each.ndim > 0 and len(each) == examples for each in found)


def _keys(inputs: Any) -> tuple[list[bytes], Any]:
    """A key for each example, of all its bytes; and what an example looks like. No keys where batches have no rows."""
    found = list(tensors(inputs))
    if not found or any(tensor.ndim == 0 or len(tensor) != len(found[0][1]) for _, tensor in found):
        return [], None
    shapes = tuple((path, tensor.dtype, tuple(tensor.shape[1:])) for path, tensor in found)
    rows = [
        tensor.detach().cpu().contiguous().view(len(tensor), -1).view(torch.uint8).numpy()
        for _, tensor in found
        if tensor.numel()
    ]
    if not rows:
        return [], None
    return [_digest([each[number] for each in rows]) for number in range(len(rows[0]))], shapes


def _digest(parts: list[Any]) -> bytes:
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        digest.update(part.data)
    return digest.digest()
