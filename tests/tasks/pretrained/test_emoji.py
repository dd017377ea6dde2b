"""Names of emoji."""

from __future__ import annotations

import pytest

from esper.leyline import DataError
from esper.tasks import TaskSpec, get_task
from esper.tasks.base import check_task
from tasks.conformance import check_examples, check_slots, score_after


@pytest.fixture(scope="module")
def task() -> TaskSpec:
    return get_task("emoji")


def test_it_is_a_sound_task(task: TaskSpec) -> None:
    check_examples(task, classes=9)
    assert [len(split) for split in task.data.splits().values()] == [1297, 300, 300]
    assert task.data.digest.startswith("2c73577617e0c321")
    # people and bodies, the largest group
    assert task.metric.chance == pytest.approx(100 * 61 / 300)
    check_task(task)


def test_fewer_training_examples_leave_what_is_held_out(task: TaskSpec) -> None:
    few = get_task("emoji", train=200).data
    assert len(few.train) == 200
    assert few.test.inputs.equal(task.data.test.inputs)
    assert few.validation.inputs.equal(task.data.validation.inputs)
    other = get_task("emoji", split=1).data
    assert not other.test.inputs.equal(task.data.test.inputs)


@pytest.mark.parametrize("train", [0, 1298])
def test_more_examples_than_there_are_is_refused(train: int) -> None:
    with pytest.raises(DataError, match=f"train is {train} examples; legal: 1 to 1297"):
        get_task("emoji", train=train)


@pytest.mark.slow
def test_the_head_alone_learns_and_leaves_room(task: TaskSpec) -> None:
    check_slots(task)
    assert 50 < score_after(task, 3) < 90
