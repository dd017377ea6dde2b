"""A task small enough for tests of the bench."""

from dataclasses import replace

import torch

from esper.bench.trial import Trial, Work
from esper.tasks import get_task
from esper.tasks.base import Data, TaskBudget, TaskSpec

TINY = "bench_toys:tiny"
BLUEPRINTS = ("norm", "conv3")


def tiny() -> TaskSpec:
    """60 digits to train on, 30 to validate, 30 to test; two blueprints."""
    digits = get_task("digits")
    cut = {"train": 60, "validation": 30, "test": 30}
    parts = [split.take(torch.arange(cut[name])) for name, split in digits.data.splits().items()]
    return replace(
        digits,
        name="tiny",
        data=Data.of(*parts, source="a few digits"),
        blueprints=BLUEPRINTS,
        budget=TaskBudget(max_epochs=2, batch_size=30, lr=5e-3, max_seeds=2),
    )


def copying() -> TaskSpec:
    """The same, in which blocks are copied; of the host's three the latter two are alike."""
    return replace(tiny(), name="copying", blueprints=("norm", "clone"))


def trial(**given) -> Trial:
    """A trial of the host alone, on the tiny task."""
    from esper.bench.settings import TrialSetting

    plain = {"work": Work(TINY, (), 2), "arm": "small", "stage": "tune", "seed": 3, "setting": TrialSetting()}
    return Trial(**{**plain, **given})
