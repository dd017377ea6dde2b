"""Next-character prediction on the language reference that ships inside Python itself."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from platform import python_version
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from esper.leyline import DataError
from esper.tasks.base import Data, Split, TaskBudget, TaskSpec
from esper.tasks.hosts import CharTransformer
from esper.tasks.scoring import accuracy_metric, constant_accuracy

LENGTH: Final = 64
"""Characters of a sequence."""
ALPHABET: Final = "\n" + "".join(map(chr, range(32, 127)))
"""Characters with a number of their own; every other shares the one after them."""
CHARACTERS: Final = len(ALPHABET) + 1
HELD_OUT: Final = 0.1
"""Share of the text, from its end, that is test; as much before it is validation."""


def text() -> TaskSpec:
    """Characters of ``pydoc_data.topics``. The text differs between versions of Python; the digest says which it was.

    An example is a sequence of 64 characters; its loss is the mean over them in nats, its score the percentage of
    them predicted right.
    """
    data = load_text()
    return TaskSpec(
        name="text",
        description="next character of Python's language reference, small transformer",
        metric=accuracy_metric(constant_accuracy(data)),
        host=partial(CharTransformer, characters=CHARACTERS, length=LENGTH),
        sites={f"block{i}": f"blocks.{i}" for i in range(2)},
        blueprints=("norm", "pointwise", "lora", "mlp", "depthwise3", "attention"),
        loss=sequence_loss,
        score=sequence_accuracy,
        data=data,
        budget=TaskBudget(max_epochs=10, batch_size=32, lr=5e-3, max_seeds=2),
    )


def sequence_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per sequence: ``[N, T, K]``, int64 ``[N, T]`` -> ``[N]``."""
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(dim=1)


def sequence_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Percentage of characters predicted right per sequence: ``[N, T, K]``, ``[N, T]`` -> ``[N]``."""
    return 100.0 * (logits.argmax(dim=2) == targets).to(logits.dtype).mean(dim=1)


def load_text() -> Data:
    """Inputs int64 ``[N, 64]``, targets the same one character later; splits are stretches of the text in order."""
    written = corpus()
    tail = int(len(written) * HELD_OUT)
    bounds = (0, len(written) - 2 * tail, len(written) - tail, len(written))
    train, validation, test = (
        sequences(written[start:end]) for start, end in zip(bounds[:-1], bounds[1:], strict=True)
    )
    return Data.of(train, validation, test, source=f"pydoc_data.topics of Python {python_version()}")


def corpus() -> str:
    """The paragraphs of every topic, in alphabetical order, each once.

    Topics quote one another at length; a repeated paragraph would put training text into the held-out tail.
    """
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise DataError("this Python comes without pydoc_data.topics, the text that task text reads") from error
    paragraphs = (paragraph for name in sorted(topics) for paragraph in topics[name].split("\n\n"))
    once = {" ".join(paragraph.split()): paragraph.strip("\n") for paragraph in paragraphs if paragraph.strip()}
    return "\n\n".join(once.values())


def sequences(written: str) -> Split:
    """Consecutive stretches of 64 characters and, as targets, the same moved on by one; the rest is left out."""
    numbers = {character: number for number, character in enumerate(ALPHABET)}
    encoded = torch.from_numpy(np.array([numbers.get(character, CHARACTERS - 1) for character in written]))
    count = (len(encoded) - 1) // LENGTH
    inputs = encoded[: count * LENGTH].reshape(count, LENGTH)
    return Split(inputs, encoded[1 : count * LENGTH + 1].reshape(count, LENGTH))
