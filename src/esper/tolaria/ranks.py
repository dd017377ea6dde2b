"""The processes that train one host together, each on its share of the examples (data parallel).

What is measured is put together before anything is decided by it, so that all ranks come to the same; gradients are
averaged as ``DistributedDataParallel`` averages them: the mean over ranks of what each has of its own loss. Nothing is
wrapped, so that what grows and its second passes are averaged with the host.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from esper.kasmina.growing import GrowingModel
from esper.kasmina.sharded import is_shard
from esper.kasmina.structure import same_bits
from esper.kasmina.structure import tensors as all_tensors
from esper.leyline import EsperError, UsageError
from esper.tolaria.missing import Process, RankLost, rank_lost, ranks_named

T = TypeVar("T")

TIMEOUT: Final = timedelta(minutes=10)
"""So long a rank waits for the others in a group that is made here."""
BUCKET: Final = 1 << 22
"""Entries of gradients that travel together: while some are on their way, the next are packed."""
WAYS: Final = (
    "gradients of a batch",
    "end of an epoch",
    "state_dict",
    "weights",
    "decision",
    "figures",
    "comparison",
    "pass over a batch",
)
"""What ranks meet for."""


class Ranks(Protocol):
    """The processes that train a host together, as one of them sees it. Every method but :meth:`mine` and
    :meth:`lost` is a meeting: all ranks call it, in the same order."""

    @property
    def rank(self) -> int:
        """The number of this one; 0 decides and writes."""

    @property
    def count(self) -> int:
        """How many there are."""

    def mine(self, number: int) -> bool:
        """Whether piece ``number`` of shared work is this rank's."""

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make each gradient its mean over the ranks; a rank that has none counts as 0. Where none has one there is
        none."""

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Make tensors, of the same shapes everywhere, what they are on rank 0; each keeps its own of shards."""

    def whole(self, rows: Tensor, shape: Sequence[int]) -> Tensor | None:
        """The tensor of this ``shape``, on the CPU, of which each rank has its ``rows``; on rank 0 alone."""

    def all(self, value: T, what: str = "figures") -> list[T]:
        """What every rank has, by rank."""

    def first(self, make: Callable[[], T], what: str = "figures") -> T:
        """What ``make`` gives on rank 0, where alone it is called. Its error is an error everywhere."""

    def lost(self, error: BaseException) -> RankLost | None:
        """What an error of a backend's own says of another rank that is gone; ``None`` where it says nothing of that.
        Its cause is the error, unless that is certain to say no more. No meeting."""


class Lone:
    """One process."""

    rank: Final = 0
    count: Final = 1

    def mine(self, number: int) -> bool:
        """All."""
        return True

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """The mean of one."""

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """They are."""

    def whole(self, rows: Tensor, shape: Sequence[int]) -> Tensor | None:
        """It has all rows."""
        return rows

    def all(self, value: T, what: str = "figures") -> list[T]:
        """One."""
        return [value]

    def first(self, make: Callable[[], T], what: str = "figures") -> T:
        """What it gives."""
        return make()

    def lost(self, error: BaseException) -> RankLost | None:
        """No other is there."""
        return None


LONE: Final = Lone()


class RanksDiffer(EsperError):
    """Ranks that must be the same are not: ``ranks`` have come to something else than rank 0, in ``what``."""

    def __init__(self, ranks: Sequence[int], what: str) -> None:
        super().__init__(f"{ranks_named(ranks)} and rank 0 have drifted apart, in {what}; the run ends")
        self.ranks, self.what = list(ranks), what

    def __reduce__(self) -> tuple[Any, ...]:
        return RanksDiffer, (self.ranks, self.what)


class Together:
    """The ranks of torch's process group.

    Before each meeting ranks say what they come for: those that come for different things get an error that names them,
    where their data would be mistaken for each other's, or all would wait for ever.
    """

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        # what is said among processors goes over gloo, whatever accelerators use
        self._group = None if "gloo" in dist.get_backend() else dist.new_group(backend="gloo")
        self._said = torch.zeros(2, dtype=torch.int64)
        self._heard = [torch.zeros(2, dtype=torch.int64) for _ in range(self.count)]
        self._buckets: dict[tuple[torch.dtype, torch.device], _Buckets] = {}
        self._processes: list[Process] = []
        self._processes = self.all(Process.this())

    def mine(self, number: int) -> bool:
        """See :class:`Ranks`."""
        return number % self.count == self.rank

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """See :class:`Ranks`. Raises ``UsageError`` for sparse gradients."""
        size = 0
        kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
        for parameter in parameters:
            if is_shard(parameter):
                continue  # its gradient is the mean as it comes
            if parameter.grad is not None and parameter.grad.is_sparse:
                raise UsageError("gradients are sparse (Embedding(sparse=True)); legal with several ranks: dense ones")
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
            size += parameter.numel()
        self._meet("gradients of a batch", size)
        with self._answering():
            for kind, members in kinds.items():
                buckets = self._buckets.get(kind)
                if buckets is None or not buckets.hold(members):
                    buckets = self._buckets[kind] = _Buckets(members)
                buckets.average(self.count, self._group if kind[1].type == "cpu" else None)

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """See :class:`Ranks`."""
        tensors = [tensor for tensor in tensors if not is_shard(tensor)]
        self._meet("weights", sum(tensor.numel() for tensor in tensors))
        with self._answering(), torch.no_grad():
            for some in _bucketed(tensors):
                self._spread(some)

    def _spread(self, tensors: Sequence[Tensor]) -> None:
        """Of one device, as the bytes that they are."""
        told = torch.cat([tensor.detach().reshape(-1).contiguous().view(torch.uint8) for tensor in tensors])
        dist.broadcast(told, 0, group=self._group if told.device.type == "cpu" else None)
        if self.rank == 0:
            return
        sizes = [each.numel() * each.element_size() for each in tensors]
        for tensor, mine in zip(tensors, torch.split(told, sizes), strict=True):
            new = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            new.view(-1).view(torch.uint8).copy_(mine)
            tensor.detach().copy_(new)

    def whole(self, rows: Tensor, shape: Sequence[int]) -> Tensor | None:
        """See :class:`Ranks`."""
        size = torch.Size(shape).numel()
        self._meet("weights", size)
        most = -(-shape[0] // self.count) * (size // max(shape[0], 1)) * rows.element_size()
        sent = torch.zeros(most, dtype=torch.uint8)
        own = rows.reshape(-1).contiguous().view(torch.uint8)
        sent[: len(own)] = own
        parts = [torch.empty_like(sent) for _ in range(self.count)] if self.rank == 0 else None
        with self._answering():
            dist.gather(sent, parts, 0, group=self._group)
        if parts is None:
            return None
        return torch.cat(parts)[: size * rows.element_size()].view(rows.dtype).reshape(torch.Size(shape))

    def all(self, value: T, what: str = "figures") -> list[T]:
        """See :class:`Ranks`."""
        self._meet(what)
        found: list[Any] = [None] * self.count
        with self._answering():
            dist.all_gather_object(found, value, group=self._group)
        return found

    def first(self, make: Callable[[], T], what: str = "figures") -> T:
        """See :class:`Ranks`."""
        error: Exception | None = None
        said: list[Any] = [None, None]
        if self.rank == 0:
            try:
                said[0] = make()
            except Exception as raised:
                error, said[1] = raised, f"{type(raised).__name__}: {raised}"
        self._meet(what)
        with self._answering():
            dist.broadcast_object_list(said, 0, group=self._group)
        if error is not None:
            raise error
        if said[1] is not None:
            raise EsperError(f"rank 0 failed: {said[1]}")
        return cast(T, said[0])

    def _meet(self, what: str, size: int = 0) -> None:
        """Raise ``UsageError`` unless all ranks come for the same."""
        self._said[0], self._said[1] = WAYS.index(what), size
        with self._answering():
            dist.all_gather(self._heard, self._said, group=self._group)
        heard = [each.tolist() for each in self._heard]
        if all(each == heard[0] for each in heard):
            return
        came: dict[tuple[int, int], list[int]] = {}
        for rank, (way, entries) in enumerate(heard):
            came.setdefault((way, entries), []).append(rank)
        told = "; ".join(
            f"{ranks_named(ranks)} at: {WAYS[way]}" + (f" ({entries:,} numbers)" if entries else "")
            for (way, entries), ranks in came.items()
        )
        raise UsageError(
            f"ranks are not at the same place, {told}; every rank takes as many batches in an epoch, and makes the same"
            " calls (DistributedSampler shares examples out evenly)"
        )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Raise :class:`RankLost` where a rank does not answer."""
        try:
            yield
        except RuntimeError as error:  # what every backend raises
            if (lost := self.lost(error)) is None:
                raise
            raise lost from lost.__cause__

    def lost(self, error: BaseException) -> RankLost | None:
        """See :class:`Ranks`."""
        if isinstance(error, RankLost):
            return error
        return rank_lost(error, self.rank, self.count, self._processes)


class _Buckets:
    """Gradients of parameters of one kind, packed."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._parts = [self._packed(part) for part in _bucketed(parameters)]

    def _packed(self, part: list[nn.Parameter]) -> tuple[list[nn.Parameter], Tensor, list[Tensor]]:
        """A buffer with a place for each gradient, and at its end one for each that says whether there is one."""
        sizes = [each.numel() for each in part]
        flat = torch.zeros(sum(sizes) + len(part), dtype=part[0].dtype, device=part[0].device)
        places = torch.split(flat, [*sizes, len(part)])
        return list(part), flat, [place.view(each.shape) for place, each in zip(places, part, strict=False)]

    def hold(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether they are of these parameters."""
        return len(self._parameters) == len(parameters) and all(map(_is, self._parameters, parameters))

    @torch.no_grad()
    def average(self, count: int, group: Any) -> None:
        """Of ``count`` ranks."""
        works = []
        for part, flat, places in self._parts:
            there = [each.grad is not None for each in part]
            flat[-len(part) :] = torch.tensor(there, dtype=flat.dtype)
            if all(there):
                torch._foreach_copy_(places, [cast(Tensor, each.grad) for each in part])
            else:
                for each, place in zip(part, places, strict=True):
                    place.zero_() if each.grad is None else place.copy_(each.grad)
            works.append(dist.all_reduce(flat, group=group, async_op=True))
        for work, (part, flat, places) in zip(works, self._parts, strict=True):
            cast(Any, work).wait()
            flat.div_(count)
            if any(each.grad is None for each in part):
                # what learns elsewhere; asked only where it is not known, for an accelerator must be waited for
                for each, place, has in zip(part, places, flat[-len(part) :].tolist(), strict=True):
                    if has and each.grad is None:
                        each.grad = torch.empty_like(each)
                    if each.grad is not None:
                        each.grad.copy_(place)
            else:
                torch._foreach_copy_([cast(Tensor, each.grad) for each in part], places)


def _is(one: Any, other: Any) -> bool:
    return one is other


P = TypeVar("P", bound=Tensor)


def _bucketed(tensors: Sequence[P]) -> Iterator[list[P]]:
    """In order, so many that they have :data:`BUCKET` entries or a few more; each time of one device alone."""
    part: list[P] = []
    for tensor in tensors:
        if part and (part[0].device != tensor.device or sum(each.numel() for each in part) >= BUCKET):
            yield part
            part = []
        part.append(tensor)
    if part:
        yield part


def differing(given: Sequence[Mapping[str, Any]]) -> tuple[str, list[int]] | None:
    """The first key in which what ranks have differs from rank 0's, and the ranks; ``None`` where nothing does."""
    for key in dict.fromkeys(key for each in given for key in each):
        odd = [rank for rank, each in enumerate(given) if each.get(key) != given[0].get(key)]
        if odd:
            return key, odd
    return None


def require_agreement(ranks: Ranks, model: GrowingModel, seen: Callable[[], Any]) -> None:
    """Raise :class:`RanksDiffer` where a rank has come to other weights or another topology than rank 0, or to other
    figures or decisions, which ``seen()`` gives. Of shards every rank has its own."""
    if ranks.count == 1:
        return
    alike = {f"the weights {name}": each for name, each in model.named_parameters() if not is_shard(each)}
    weights = checksums(alike)
    come_to = {**weights, "topology": model.topology(), "what was measured and decided": repr(seen())}
    if (found := differing(ranks.all(come_to, "comparison"))) is not None:
        raise RanksDiffer(found[1], found[0])


def require_same(ranks: Ranks, what: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` where a rank was given something else than rank 0."""
    given = ranks.all(dict(what), "comparison")
    if (found := differing(given)) is not None:
        key, odd = found
        here, there = given[0].get(key), given[odd[0]].get(key)
        raise UsageError(
            f"{key}: rank 0 has {here}, {ranks_named(odd)} {there}; every rank is given the same, but for the examples"
            " that it trains on"
        )


def require_shares(ranks: Ranks, batch: Any) -> None:
    """Raise ``UsageError`` where all ranks train on the very same batch."""
    if ranks.count > 1 and len(set(ranks.all(digest(batch), "comparison"))) == 1:
        raise UsageError(
            f"all {ranks.count} ranks train on the same batch; give each its share of the examples:"
            " DataLoader(..., sampler=DistributedSampler(dataset))"
        )


class Arrivals:
    """Ranks come to their batches. Where they make the passes ``together`` none goes on before all have come."""

    def __init__(self, ranks: Ranks, *, together: bool) -> None:
        self._ranks, self._together = ranks, together
        self._shared_out = False
        """Whether they were seen to have batches of their own."""

    def come(self, batch: Any) -> None:
        """To a batch to train on. Raises what :func:`require_shares` raises, and ``UsageError`` where a rank is
        elsewhere."""
        if self._together:
            self._ranks.all(None, "pass over a batch")
        if not self._shared_out:
            require_shares(self._ranks, batch)
            self._shared_out = True


class WrittenBuffers:
    """Buffers that training writes, such as running statistics: after each step all ranks have rank 0's, as
    ``DistributedDataParallel`` has it. Those that are written are found in the first step that is seen."""

    def __init__(self, ranks: Ranks, model: nn.Module) -> None:
        self._ranks, self._model = ranks, model
        self._before = {name: buffer.clone() for name, buffer in self._buffers().items()}
        self._written: list[str] = []

    def _buffers(self) -> dict[str, Tensor]:
        return {} if self._ranks.count == 1 else dict(self._model.named_buffers())

    def after_step(self) -> None:
        """A step of the epoch was made."""
        if self._before:
            here = [name for name, buffer in self._buffers().items() if not same_bits(buffer, self._before[name])]
            self._written = sorted({name for names in self._ranks.all(here) for name in names})
            self._before = {}
        if self._written:
            buffers = self._buffers()
            self._ranks.spread([buffers[name] for name in self._written])

    def after_epoch(self) -> None:
        """All of them, those too that only a later step has written."""
        if buffers := self._buffers():
            self._ranks.spread(list(buffers.values()))


def checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Of each tensor: the sum of its bits, read as whole numbers."""
    sums = [_bits(tensor).sum(dtype=torch.int64) for tensor in tensors.values()]
    return dict(zip(tensors, torch.stack([each.cpu() for each in sums]).tolist() if sums else (), strict=True))


def _bits(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1).contiguous()
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    return flat.view(kinds.get(flat.element_size(), torch.int64))


def digest(value: Any) -> str:
    """Of the tensors in a value, with their places and shapes; short, to be told apart by."""
    found = hashlib.sha256()
    for path, tensor in all_tensors(value):
        found.update(f"{path} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]


def started() -> int:
    """How many processes train together: those of torch's process group, or as ``torchrun`` started this one among."""
    if not dist.is_available():
        return 1
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def present() -> Ranks:
    """The ranks among which this process is. Under ``torchrun`` they are joined to a group where they are not yet."""
    if started() == 1:
        return LONE
    if not dist.is_initialized():
        nccl = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=TIMEOUT)
    return Together()


def place(asked: str) -> str:
    """The device of this rank where that is left to be chosen: accelerators of a machine are shared out among its
    ranks."""
    if asked == "auto" and started() > 1 and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', dist.get_rank())}"
    return asked


def require_one(what: str) -> None:
    """Raise ``UsageError`` where several processes train together, which ``what`` does not take part in: each would
    grow a host of its own."""
    if (ranks := started()) > 1:
        raise UsageError(
            f"{what} runs in {ranks} processes that train together (torch.distributed, torchrun); legal: one, since "
            "each would measure and grow by itself, and their models drift apart"
        )
