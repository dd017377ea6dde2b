"""An accelerator is waited for in no training step, but for those whose gradients are measured; and where else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from esper import grow
from esper.leyline import FactoredAction, Op
from esper.library import Budget, Grower, OwnChoices
from esper.tolaria import trainer as trainer_module
from esper.tolaria.trainer import Trainer
from own_loop import LOSS, TRAIN, narrow
from ranked_loop import GATES, VALIDATION, Moves, germinate
from waits import Waits

pytestmark = pytest.mark.usefixtures("without_figures")

MEASURED: Final = {
    "tolaria/order.py: Untouched.check": "whether gradients were changed; the version tells most, this the rest",
    "tolaria/lessons.py: weight.<locals>.<genexpr>": "the factor of the loss, by which norms are divided",
    "kasmina/gradients.py: tensor_norms": "norms of gradients, all of a model in one transfer",
}
"""In a step whose gradients are measured: one of an epoch in a loop of one's own, a few in :func:`esper.grow`."""
BIRTH: Final = {
    "kasmina/birth.py": "a newborn seed is tried, once",
    "kasmina/growable.py: placed": "it is moved to its device",
    "kasmina/trial.py: livened": "the same",
}
"""As an epoch begins in which a seed germinates."""
ENDED: Final = {
    "tolaria/order.py: Untouched.check": "what was not asked in a step",
    "tolaria/trainer.py: Trainer._weights_finite": "one answer for all weights",
    "tolaria/epoch.py: Epoch.share": "the training loss",
    "tasks/tree.py: moved": "a validation batch goes to the device",
    "tasks/reduction.py": "figures of validation: one transfer a batch and configuration, then sums on the host",
    "tasks/chance.py: load_process": "the host's own streams of chance",
    "tolaria/trainer.py: Trainer.network": "a copy of the best network",
    "kasmina/structure.py: same_bits": "what is on the host already is compared with its copy; other devices' are not",
    "kasmina/isolation.py": "what the isolation monitors have counted",
}
"""When an epoch is over: validation, the governor, what is kept."""


def beyond(found: Counter[str], listed: dict[str, str]) -> dict[str, int]:
    """What was found and is not listed."""
    return {place: n for place, n in found.items() if not any(place.startswith(each) for each in listed)}


LIFE: Final = {
    1: germinate("1"),
    3: FactoredAction(Op.ADVANCE, "1"),
    4: germinate("3", "bottleneck"),
}


def followed(where: Path, incubation: str | None = None) -> dict[str, list[Counter[str]]]:
    """A loop of one's own with seeds that learn behind the host and are blended in; what was waited for, by part."""
    moves = {
        epoch: FactoredAction(**{**vars_of(move), "incubation": incubation}) if move.op is Op.GERMINATE else move
        for epoch, move in LIFE.items()
    }
    model = narrow()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    choices = OwnChoices(LOSS, at=["1", "3"], budget=Budget(epochs=9, parameters=5000, gates=GATES), device="cpu")
    parts: dict[str, list[Counter[str]]] = {"begin": [], "first": [], "steps": [], "end": []}
    grower = Grower(model, optimizer, val=VALIDATION, choices=choices, policy=Moves(moves), run_dir=where / "run")
    with grower:
        for _ in range(7):
            with Waits() as begin:
                grower.begin_epoch()
            parts["begin"].append(begin.found)
            for number, (x, y) in enumerate(TRAIN):
                with Waits() as step:
                    optimizer.zero_grad()
                    grower.loss(x, y).backward()
                    grower.after_backward()
                    optimizer.step()
                parts["steps" if number else "first"].append(step.found)
            with Waits() as end:
                grower.after_epoch()
            parts["end"].append(end.found)
        assert all(slot.seed_id is not None for slot in grower.view.slots), "both live, one of them blended in"
    return parts


def vars_of(action: FactoredAction) -> dict[str, Any]:
    return {name: getattr(action, name) for name in action.__dataclass_fields__}


@pytest.mark.parametrize("incubation", [None, pytest.param("graft", marks=pytest.mark.slow)])
def test_a_training_step_waits_for_nothing(incubation: str | None, tmp_path: Path) -> None:
    parts = followed(tmp_path, incubation)
    for part, listed in {"steps": {}, "first": MEASURED, "begin": BIRTH, "end": ENDED}.items():
        assert [beyond(each, listed) for each in parts[part]] == [{}] * len(parts[part]), part
    assert all(sum(parts["first"], Counter())[place] for place in MEASURED), "what is listed is there"


def test_the_guard_sees_a_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the loss of the second pass is made a number."""
    probe = trainer_module.probe_backward
    monkeypatch.setattr(trainer_module, "probe_backward", lambda *args: float(probe(*args)))
    found = sum(followed(tmp_path)["steps"], Counter())
    assert beyond(found, {}) == {"tolaria/trainer.py: Trainer._teach": found.total()} and found.total() >= 9


def test_long_epochs_of_grow_wait_as_often_as_short_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Counter[str]] = []
    train_epoch = Trainer.train_epoch

    def watched(trainer: Trainer) -> Any:
        with Waits() as waits:
            result = train_epoch(trainer)
        found.append(waits.found)
        return result

    monkeypatch.setattr(Trainer, "train_epoch", watched)
    budget = Budget(epochs=6, parameters=5000, gates=GATES)
    for times in (2, 4):
        grow(
            narrow(), train=TRAIN * times, val=VALIDATION, loss=LOSS, at=["1", "3"], policy=Moves(LIFE), budget=budget,
            device="cpu", run_dir=tmp_path / str(times),
        )  # fmt: skip
    loaded = {
        "tasks/tree.py: moved": "a batch goes to the device",
        "tasks/tree.py: require_finite": "the loader's batches are looked at in the first epoch, where it has them",
    }
    few, many = ([beyond(each, loaded) for each in part] for part in (found[:6], found[6:]))
    assert few == many and beyond(sum(found, Counter()), MEASURED | ENDED | loaded) == {}
    assert all("tasks/tree.py: require_finite" not in each for each in (*found[1:6], *found[7:]))


@pytest.mark.parametrize(
    "ask",
    [
        lambda t: t.sum().item(), lambda t: bool(t.any()), lambda t: t.tolist(), lambda t: t[t > 0], lambda t: t.cpu(),
        lambda t: t.to("cpu"), lambda t: int(t[0]), lambda t: torch.equal(t, t), lambda t: t.nonzero(),
    ],
)  # fmt: skip
def test_each_way_to_wait_is_known(ask: Any) -> None:
    def asking(tensor: Tensor) -> Any:
        return ask(tensor)

    with Waits() as waits:
        place = compile_in_esper(asking)
        place(torch.ones(3))
    assert waits.found.total() >= 1
    with Waits() as none:
        compile_in_esper(lambda t: (t + 1).sum() * t[0] + t[torch.tensor([0, 1])].mean())(torch.ones(3))
    assert not none.found


def compile_in_esper(function: Any) -> Any:
    """The function, called from a file that counts as Esper's."""
    names = {"function": function}
    exec(compile("def call(t):\n    return function(t)", trainer_module.__file__, "exec"), names)
    return names["call"]
