"""The task on pictures that a user brings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from esper.leyline import DataError
from esper.tasks import get_task
from esper.tasks.cifar10.task import load_cifar10, shift_and_mirror, task_of
from tasks.cifar10 import tiny
from tasks.conformance import check_conformance


def test_it_is_a_sound_task(tmp_path: Path) -> None:
    tiny.write_form(tmp_path, "cifar-10-batches-bin")
    task = task_of(load_cifar10(tmp_path, tiny.PLAIN))
    check_conformance(task, classes=10)
    assert [len(split) for split in task.data.splits().values()] == [90, 10, 20]
    assert task.data.train.inputs.dtype == torch.uint8
    assert task.data.validation.targets.bincount().tolist() == [1] * 10


def test_without_files_it_says_what_to_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESPER_DATA", raising=False)
    with pytest.raises(DataError, match="option data_dir or in ESPER_DATA"):
        get_task("cifar10")
    monkeypatch.setenv("ESPER_DATA", str(tmp_path))
    with pytest.raises(DataError, match="cifar-10-binary.tar.gz"):
        get_task("cifar10")
    with pytest.raises(DataError, match=f"no CIFAR-10 file in {tmp_path}/x"):
        get_task("cifar10", data_dir=f"{tmp_path}/x")


def test_pictures_are_moved_and_mirrored_one_by_one_as_the_obvious_loop_does() -> None:
    pictures = torch.randint(1, 256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    moved = shift_and_mirror(pictures, torch.Generator().manual_seed(1))
    assert moved.dtype == torch.uint8
    assert moved.shape == pictures.shape
    padded = torch.nn.functional.pad(pictures, (4, 4, 4, 4))
    seen = set()
    for before, after in zip(padded, moved, strict=True):
        crops = {(top, left): before[:, top : top + 32, left : left + 32] for top in range(9) for left in range(9)}
        matches = [(place, False) for place, crop in crops.items() if torch.equal(crop, after)]
        matches += [(place, True) for place, crop in crops.items() if torch.equal(crop.flip(2), after)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 20
    assert {mirrored for _, mirrored in seen} == {False, True}
    assert torch.equal(moved, shift_and_mirror(pictures, torch.Generator().manual_seed(1)))
