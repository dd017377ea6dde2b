"""Letters from measurements of their pictures."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from esper.leyline import DataError
from esper.tasks import TaskSpec, get_task
from esper.tasks.letters import HOW, PACKAGE, PATH, load_letters
from tasks.conformance import check_conformance, score_after


@pytest.fixture(scope="module")
def task() -> TaskSpec:
    if find_spec(PACKAGE) is None:
        pytest.skip(f"the letters are not installed; {HOW}")
    return get_task("letters")


def test_it_is_a_sound_task(task: TaskSpec) -> None:
    check_conformance(task, classes=26)
    assert [len(split) for split in task.data.splits().values()] == [4000, 1000, 4000]
    assert task.data.digest.startswith("22f8cba3feb04aac")
    train = task.data.train
    assert torch.allclose(train.inputs.mean(dim=0), torch.zeros(16), atol=1e-5)
    assert torch.allclose(train.inputs.std(dim=0, correction=0), torch.ones(16), atol=1e-5)
    whole = load_letters(13_668, 0).train.targets.bincount(minlength=26) / 13_668
    assert torch.allclose(train.targets.bincount(minlength=26) / 4000, whole, atol=1e-3)  # stratified


def test_all_examples_can_be_had_and_held_out_ones_stay(task: TaskSpec) -> None:
    whole = load_letters(13_668, 0)
    assert len(torch.cat([split.inputs for split in whole.splits().values()]).unique(dim=0)) == 18_668
    assert whole.test.targets.equal(task.data.test.targets)
    assert whole.validation.targets.equal(task.data.validation.targets)
    assert not load_letters(4000, 1).test.targets.equal(task.data.test.targets)
    with pytest.raises(DataError, match="task letters: train is 13669 examples; legal: 1 to 13668"):
        get_task("letters", train=13_669)


def test_a_missing_package_and_another_file_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_package_of_letters"
    monkeypatch.setattr("esper.tasks.letters.PACKAGE", package.name)
    with pytest.raises(DataError, match=r"a_package_of_letters is not installed; its file .* is needed: pip install"):
        get_task("letters")
    (package / PATH).parent.mkdir(parents=True)
    (package / PATH).write_text("2,8,3,5,1,8,13,0,6,6,10,8,0,8,0,8,T\n")
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError, match=r"letter\.dat: sha256 is"):
        get_task("letters")


@pytest.mark.slow
def test_the_host_learns_and_leaves_room(task: TaskSpec) -> None:
    assert 60 < score_after(task, 10) < 80
