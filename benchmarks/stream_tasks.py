"""Streams of tasks, each with the host that is to learn them one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from esper.leyline import DataError, UsageError
from esper.tasks import bible, clothes
from esper.tasks.base import Split
from esper.tasks.colour import mnist_digits
from esper.tasks.pretrained.minilm import encoded, frozen_minilm
from esper.tasks.sources import stratified_order
from esper.tolaria.rng import derive, seeded

WIDTH, BLOCKS = 256, 4
HEAD = "head"
SITES = {
    "stem": "+stem",
    **{f"block{n}_{part}": f"+blocks.{n}.{part}" for n in range(BLOCKS) for part in ("up", "down")},
}
"""Where every arm adapts the host: beside each of its linear layers."""
BODY = ("stem", "blocks", "norm")
"""What fine-tuning trains."""
EPOCHS = 4
"""Of the host's own training."""


class Residual(nn.Module):
    """Two layers, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.down(nn.functional.gelu(self.up(self.norm(h))))
        return out


class Perceptron(nn.Module):
    """``x [N, inputs] -> logits [N, classes]``: residual layers, a norm and a head."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, WIDTH)
        self.blocks = nn.Sequential(*(Residual(WIDTH) for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head: nn.Module = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.blocks(self.stem(x))))
        return out


@dataclass(frozen=True)
class Task:
    """One task of a stream."""

    name: str
    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True)
class Stream:
    """A host and what it is to learn, one after the other."""

    name: str
    classes: int
    """Of each task."""
    train: int
    """Training examples of a task, where no other number is asked for."""
    learned: Callable[[], Split]
    """What the host has learned before."""
    tasks: Callable[[int, int], list[Task]]
    """``(seed, training examples)`` -> five tasks."""

    def fresh(self, seed: int, number: int) -> nn.Module:
        """The host, held, with the head of a task, which alone learns."""
        state, inputs, classes = _trained(self)
        host = Perceptron(inputs, classes)
        host.load_state_dict(state)
        host.requires_grad_(False)
        host.head = self.head(seed, number)
        return host

    def head(self, seed: int, number: int) -> nn.Linear:
        """The same for all arms."""
        with seeded(derive(seed, "head", number)):
            return nn.Linear(WIDTH, self.classes)


@lru_cache(maxsize=2)
def _trained(stream: Stream) -> tuple[dict[str, Tensor], int, int]:
    """The host's weights after training on what comes before the stream, its inputs and classes then."""
    before = stream.learned()
    inputs, classes = before.inputs.shape[1], int(before.targets.max()) + 1
    with seeded(0):
        host = Perceptron(inputs, classes)
        optimizer = torch.optim.AdamW(host.parameters(), lr=1e-3)
        for _ in range(EPOCHS):
            for part in torch.randperm(len(before.targets)).split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(host(before.inputs[part]), before.targets[part]).backward()
                optimizer.step()
    return host.state_dict(), inputs, classes


def _require(folder: str, files: Iterable[str], how: str) -> None:
    """Raise ``DataError`` where a file of a stream's data is not there."""
    for file in (Path(folder, name) for name in files):
        if not file.is_file():
            raise DataError(f"{file} is missing; {how}")


# --- pictures ---------------------------------------------------------------------------------------------------------

KNOWN = 12_000
"""Clothes that the host was trained on; tasks draw from the others."""
VALIDATION, TEST = 200, 500


@lru_cache(maxsize=1)
def _pictures() -> dict[str, Split]:
    _require(clothes.FOLDER, clothes.FILES, clothes.HOW)
    worn, kinds = clothes.read_clothes(Path(clothes.FOLDER), "fashion")
    digits, values = mnist_digits("mnist-m")
    return {
        "clothes": Split(torch.from_numpy(worn.astype(np.float32)), torch.from_numpy(kinds)),
        "digits": Split(torch.from_numpy(digits.astype(np.float32)), torch.from_numpy(values)),
    }


def _shaded(pictures: Tensor) -> Tensor:
    """``[N, 28, 28]`` from 0 to 255 -> ``[N, 784]`` from -1 to 1."""
    return (pictures / 127.5 - 1).flatten(1).contiguous()


def _clothes_known() -> Split:
    known = _pictures()["clothes"]
    return Split(_shaded(known.inputs[:KNOWN]), known.targets[:KNOWN])


def _picture_tasks(seed: int, train: int) -> list[Task]:
    """Turned by a quarter and negative clothes; digits upright, turned, negative. No picture is in two tasks.

    Raises ``UsageError`` where there are not so many training examples.
    """
    changes: Mapping[str, Callable[[Tensor], Tensor]] = {
        "": lambda x: x,
        "turned ": lambda x: x.rot90(1, (1, 2)),
        "negative ": lambda x: 255.0 - x,
    }
    tasks = []
    each = train + VALIDATION + TEST
    for kind, wanted in (("clothes", ("turned ", "negative ")), ("digits", ("", "turned ", "negative "))):
        known = _pictures()[kind]
        order = stratified_order(known.targets.numpy(), derive(seed, "stream", kind) % 2**32)
        order = order[order >= KNOWN] if kind == "clothes" else order
        most = len(order) // len(wanted) - VALIDATION - TEST
        if not 1 <= train <= most:
            raise UsageError(f"--train is {train}; legal: 1 to {most}, of a task of {kind}")
        for number, change in enumerate(wanted):
            mine = torch.from_numpy(order[number * each : (number + 1) * each])
            parts = mine.split([train, VALIDATION, TEST])
            splits = [Split(_shaded(changes[change](known.inputs[part])), known.targets[part]) for part in parts]
            tasks.append(Task(f"{change}{kind}", *splits))
    return tasks


# --- verses -----------------------------------------------------------------------------------------------------------

BOOKS: Mapping[str, tuple[str, ...]] = {
    "Law": ("Ge", "Exo", "Lev", "Deu"),
    "History": ("Josh", "Jdgs", "1Ki", "2Chr"),
    "Wisdom": ("Job", "Psa", "Prv", "Eccl"),
    "Prophets": ("Isa", "Jer", "Eze", "Dan"),
    "Gospels and Acts": ("Mat", "Luke", "John", "Acts"),
}
"""Task -> its classes."""
OTHERS = ("Num", "1Sm", "2Sm", "2Ki", "1Chr", "Neh", "Hos", "Zec", "Mark", "Rom", "Heb", "Rev")
"""The host has learned to tell these books apart."""
VERSES, TOKENS = 190, 12
"""Of each book, drawn once; and the most tokens of a verse."""
SHARES = {"validation": (0.0, 0.2), "test": (0.2, 0.5), "train": (0.5, 1.0)}
"""Of the chapters."""


@lru_cache(maxsize=1)
def _verses() -> dict[str, tuple[Tensor, Tensor]]:
    """Book -> MiniLM's mean embeddings ``[190, 384]``, and the chapter of each."""
    read: dict[str, list[tuple[str, int]]] = {}
    _require(bible.FOLDER, bible.FILES, bible.HOW)
    for line in bible.read_text(Path(bible.FOLDER), "verses").splitlines():
        place, text = line.split(" ", 1)
        chapter = place.partition(":")[0]
        book = chapter.rstrip("0123456789")
        read.setdefault(book, []).append((text, int(chapter.removeprefix(book))))
    random = torch.Generator().manual_seed(0)
    body = frozen_minilm(classes=1, extra="verses")
    body.head = nn.Identity()  # type: ignore[assignment]
    body.eval()
    found = {}
    for book in (*OTHERS, *(each for books in BOOKS.values() for each in books)):
        chosen = [read[book][place] for place in torch.randperm(len(read[book]), generator=random)[:VERSES].tolist()]
        with torch.no_grad():
            parts = encoded([text for text, _ in chosen], TOKENS, "verses").split(95)
            said = torch.cat([body(part) for part in parts])
        # of length 1; times the root of their number of entries, so that these are of order 1
        embedded = nn.functional.normalize(said, dim=1) * said.shape[1] ** 0.5
        found[book] = embedded, torch.tensor([chapter for _, chapter in chosen])
    return found


def _books_known() -> Split:
    known = [_verses()[book][0] for book in OTHERS]
    labels = [torch.full((len(each),), number) for number, each in enumerate(known)]
    return Split(torch.cat(known), torch.cat(labels))


def _verse_tasks(seed: int, train: int) -> list[Task]:
    """Which of four books of one kind is a verse from? No chapter is in two splits.

    Raises ``UsageError`` where there are not so many training examples.
    """
    sizes = {"validation": 100, "test": 200, "train": train}
    tasks = []
    for number, (kind, books) in enumerate(BOOKS.items()):
        random = torch.Generator().manual_seed(derive(seed, "stream", number))
        parts: dict[str, list[tuple[Tensor, int]]] = {name: [] for name in SHARES}
        for label, book in enumerate(books):
            embedded, of = _verses()[book]
            chapters = of.unique()
            order = chapters[torch.randperm(len(chapters), generator=random)]
            for name, (begin, end) in SHARES.items():
                held = order[round(begin * len(order)) : round(end * len(order))]
                mine = torch.isin(of, held).nonzero().flatten()
                most = len(books) * len(mine)
                if name == "train" and (train % len(books) or not 1 <= train <= most):
                    raise UsageError(f"--train is {train}; legal: multiples of {len(books)} up to {most}, by {book}")
                mine = mine[torch.randperm(len(mine), generator=random)[: sizes[name] // len(books)]]
                parts[name].append((embedded[mine], label))
        tasks.append(Task(kind, **{name: _labelled(each, random) for name, each in parts.items()}))
    return tasks


def _labelled(parts: list[tuple[Tensor, int]], random: torch.Generator) -> Split:
    """All classes, in no order."""
    inputs = torch.cat([each for each, _ in parts])
    labels = torch.cat([torch.full((len(each),), label) for each, label in parts])
    order = torch.randperm(len(labels), generator=random)
    return Split(inputs[order].contiguous(), labels[order])


# --- several tasks at once --------------------------------------------------------------------------------------------


class Pairs(Dataset[Any]):
    """``((x, task), y)`` of several tasks, or ``(x, y)`` of one."""

    def __init__(self, splits: Sequence[Split], numbered: bool = False) -> None:
        self.x = torch.cat([split.inputs for split in splits])
        self.y = torch.cat([split.targets for split in splits])
        self.of = torch.cat([torch.full((len(each.targets),), number) for number, each in enumerate(splits)])
        self.numbered = numbered

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Any:
        x = self.x[index]
        return ((x, self.of[index]) if self.numbered else x), self.y[index]


class Headed(nn.Module):
    """A host with a head for each task: ``(x, task) -> logits``."""

    def __init__(self, body: nn.Module, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.body, self.heads = body, nn.ModuleList(heads)

    def forward(self, x: Tensor, of: Tensor) -> Tensor:
        """``of`` is the number of each example's task."""
        features = self.body(x)
        said = torch.stack([head(features) for head in self.heads], dim=1)
        answer: Tensor = said[torch.arange(len(of)), of]
        return answer


class OfTask(nn.Module):
    """A headed host that is told the task."""

    def __init__(self, model: nn.Module, number: int) -> None:
        super().__init__()
        self.model, self.number = model, number

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.model(x, torch.full((len(x),), self.number))
        return answer


def first(split: Split, share: float) -> Split:
    """Classes are in no order, so that the first are a fair draw."""
    many = round(share * len(split.targets))
    return Split(split.inputs[:many], split.targets[:many])


STREAMS = {
    "pictures": Stream("pictures", 10, 320, _clothes_known, _picture_tasks),
    "verses": Stream("verses", 4, 128, _books_known, _verse_tasks),
}
