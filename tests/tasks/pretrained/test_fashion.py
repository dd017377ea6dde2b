"""Clothes on photographs."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper.leyline import DataError
from esper.tasks import TaskSpec, get_task
from esper.tasks.base import check_task
from esper.tasks.clothes import FILES, FOLDER, HOW
from tasks.conformance import check_examples, check_slots, score_after


@pytest.fixture(scope="module")
def task() -> TaskSpec:
    if not all(Path(FOLDER, name).is_file() for name in FILES):
        pytest.skip(f"the pictures are not installed; {HOW}")
    return get_task("fashion-colour")


def test_it_is_a_sound_task(task: TaskSpec) -> None:
    check_examples(task, classes=10)
    assert [len(split) for split in task.data.splits().values()] == [640, 500, 1000]
    assert task.data.train.targets.bincount().tolist() == [64] * 10
    check_task(task)


def test_fewer_training_examples_leave_what_is_held_out(task: TaskSpec) -> None:
    few = get_task("fashion-colour", train=40).data
    assert few.train.targets.bincount().tolist() == [4] * 10
    assert few.test.inputs.equal(task.data.test.inputs)
    assert few.validation.inputs.equal(task.data.validation.inputs)


def test_missing_and_other_pictures_are_said(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"train-images-idx3-ubyte.gz is missing; on Debian and Ubuntu: apt-get install"
    ):
        get_task("fashion-colour", data_dir=str(tmp_path))
    for name in FILES:
        (tmp_path / name).write_bytes(b"other pictures")
    with pytest.raises(DataError, match="sha256 is"):
        get_task("fashion-colour", data_dir=str(tmp_path))
    with pytest.raises(DataError, match="size is 16 pixels; at least 32"):
        get_task("fashion-colour", size=16)


def test_digits_on_photographs_are_a_sound_task_too() -> None:
    digits = get_task("mnist-m", train=40)
    check_examples(digits, classes=10)
    check_task(digits)
    assert [len(split) for split in digits.data.splits().values()] == [40, 500, 1000]
    with pytest.raises(DataError, match="task mnist-m: train is 4000 examples; legal: 1 to 3500"):
        get_task("mnist-m", train=4000)


@pytest.mark.slow
def test_the_head_alone_learns_and_leaves_room(task: TaskSpec) -> None:
    check_slots(task)
    assert 15 < score_after(task, 3) < 60
