"""However a run of ``grow`` or ``Grower`` ends, it leaves the best state that was validated."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esper.leyline import (
    EnvView,
    FactoredAction,
    GateThresholds,
    Op,
    SeedStage,
    TelemetryEvent,
    UsageError,
)
from esper.leyline import TelemetryEventType as T
from esper.library import Budget, grow
from esper.nissa.reader import read_journal
from esper.run.stopping import Stopped
from four_classes import KeepOne
from own_loop import LOSS, TRAIN, VALIDATION, Loop, narrow

pytestmark = pytest.mark.usefixtures("without_figures")


LET_IN = GateThresholds(blending_z=0.0)
"""A seed is blended in by the sign of its gain alone."""


class Hold(KeepOne):
    """It never asks for its seed's proof; after ``prune_at`` epochs it takes it out."""

    name = "hold"

    def __init__(self, prune_at: int | None = None) -> None:
        self.prune_at = prune_at

    def actions(self, view: EnvView, slot: str) -> dict[SeedStage, FactoredAction]:
        if view.epoch == self.prune_at:
            return {SeedStage.HOLDING: FactoredAction(Op.PRUNE, slot)}
        found = super().actions(view, slot)
        del found[SeedStage.HOLDING]
        return found


def accuracy(model: nn.Module) -> float:
    inputs, targets = VALIDATION[0]
    model.eval()
    with torch.no_grad():
        return 100.0 * float((model(inputs).argmax(1) == targets).float().mean())


def events(where: Path) -> list[TelemetryEvent]:
    return list(read_journal(where / "run"))


def best_and_delivered(where: Path) -> tuple[float, float]:
    told = events(where)
    (end,) = [e.data["validation_metric"] for e in told if e.event_type is T.EPISODE_ENDED]
    return max(e.data["validation_metric"] for e in told if e.event_type is T.EPOCH_COMPLETED), end


def test_an_early_stop_keeps_a_seed_that_holds(tmp_path: Path) -> None:
    loop = Loop(tmp_path, Hold(), gates=LET_IN)
    with loop.grower as grower:
        for _ in range(14):
            view = loop.epoch()
            if view.slots[0].stage is SeedStage.HOLDING:
                break
        live = accuracy(loop.model)
        without = grower._engine.evaluate([0], [({"1": 0.0},)]).metric[0, 0]
    assert view.slots[0].stage is SeedStage.HOLDING and view.epoch < 14
    best, delivered = best_and_delivered(tmp_path)
    assert delivered >= best >= live > without, "and the seed is worth something"
    result = grower.result
    assert accuracy(result.model) == pytest.approx(delivered) == accuracy(loop.model)
    (life,) = result.report.seeds
    assert life.outcome == "kept" and "not proven" in life.reason
    assert life.stage in ("BLENDING", "HOLDING"), "as it was when it was validated, at full alpha"
    assert result.report.episodes[0].seeds_kept == 1 and result.epoch == view.epoch


def test_a_model_that_got_worse_is_given_up_for_the_best_one(tmp_path: Path) -> None:
    loop = Loop(tmp_path, Hold(prune_at=9), epochs=10, gates=LET_IN)
    with loop.grower as grower:
        for epoch in range(10):
            if epoch == 8:
                for group in loop.optimizer.param_groups:
                    group["lr"] = 0.3
            loop.epoch()
    best, delivered = best_and_delivered(tmp_path)
    assert delivered == best > accuracy_of_last(tmp_path)
    assert accuracy(grower.result.model) == pytest.approx(best)
    assert grower.result.epoch < 10
    (life,) = grower.result.report.seeds
    assert life.outcome == "kept", "it was pruned after the epoch whose model is delivered"


def accuracy_of_last(where: Path) -> float:
    return float([e.data["validation_metric"] for e in events(where) if e.event_type is T.EPOCH_COMPLETED][-1])


def test_a_stop_in_mid_epoch_is_judged_by_what_validation_says_then(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "static")
    with loop.grower as grower:
        for _ in range(3):
            loop.epoch()
        with torch.no_grad():
            loop.model[4].weight.zero_()
        loop.batch(*TRAIN[0])
    best, delivered = best_and_delivered(tmp_path)
    assert delivered == best and accuracy(grower.result.model) == pytest.approx(best)
    (end,) = [e for e in events(tmp_path) if e.event_type is T.EPISODE_ENDED]
    assert end.data["epochs"] == 3 == end.epoch


@pytest.mark.parametrize(
    ("raised", "status"), [(KeyboardInterrupt(), "interrupted"), (ZeroDivisionError("mine"), "failed")]
)
def test_what_breaks_a_loop_off_leaves_the_result_so_far(raised: BaseException, status: str, tmp_path: Path) -> None:
    loop = Loop(tmp_path, Hold())
    with pytest.raises(type(raised)) as caught, loop.grower as grower:
        for _ in range(3):
            loop.epoch()
        with torch.no_grad():
            loop.model[4].weight.fill_(torch.nan)
        loop.batch(*TRAIN[0])
        raise raised
    assert caught.value is raised and not loop.optimizer._optimizer_step_pre_hooks
    (note,) = raised.__notes__
    assert str(tmp_path / "run" / "model") in note and f"epoch {grower.result.epoch}" in note
    best, delivered = best_and_delivered(tmp_path)
    assert delivered == best == pytest.approx(accuracy(grower.result.model))
    told = events(tmp_path)
    assert [e.data["status"] for e in told if e.event_type in (T.EPISODE_ENDED, T.TRAINING_ENDED)] == [status] * 2
    assert (tmp_path / "run" / "model" / "model.py").is_file()
    assert (tmp_path / "run" / "report" / "report.md").is_file()


def test_a_loop_that_ends_before_its_first_epoch_has_nothing_to_leave(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "static")
    with pytest.raises(ZeroDivisionError) as caught, loop.grower as grower:
        raise ZeroDivisionError
    assert not getattr(caught.value, "__notes__", [])
    with pytest.raises(UsageError, match="after one epoch or more"):
        _ = grower.result


class Interrupting:
    """Batches that get a signal after some epochs."""

    def __init__(self) -> None:
        self.epochs = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.epochs += 1
        if self.epochs > 4:  # the first is read when the loader is tried
            signal.raise_signal(signal.SIGINT)
        yield from TRAIN

    def __len__(self) -> int:
        return len(TRAIN)


@pytest.mark.signals
def test_ctrl_c_in_grow_leaves_the_model_and_says_where(tmp_path: Path) -> None:
    model = narrow()
    with pytest.raises(Stopped) as caught:
        grow(
            model,
            train=Interrupting(),
            val=VALIDATION,
            loss=LOSS,
            policy="static",
            budget=Budget(epochs=20, lr=2e-2),
            run_dir=tmp_path / "run",
        )
    assert str(tmp_path / "run" / "model") in caught.value.__notes__[0]
    best, delivered = best_and_delivered(tmp_path)
    assert delivered == best == pytest.approx(accuracy(model)), "the model in place is the one in the files"
    assert [e.data["status"] for e in events(tmp_path) if e.event_type is T.TRAINING_ENDED] == ["interrupted"]
