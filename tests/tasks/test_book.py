"""Next characters of the King James Bible."""

from __future__ import annotations

from pathlib import Path
from shutil import which

import pytest
import torch

from esper.kasmina import growable
from esper.kasmina.growing import GrowingModel
from esper.kasmina.slot_config import SlotConfig
from esper.leyline import DataError, UsageError
from esper.tasks import TaskSpec, get_task
from esper.tasks.base import check_task
from esper.tasks.bible import FILES, FOLDER, HOW, PROGRAM, read_text
from esper.tasks.book import BATCH, Draws
from esper.tasks.pipeline import seeded_streams
from esper.tasks.text import ALPHABET, CHARACTERS
from tasks.conformance import check_examples, check_source_stands_alone


@pytest.fixture(scope="module")
def task() -> TaskSpec:
    if which(PROGRAM) is None or not all(Path(FOLDER, name).is_file() for name in FILES):
        pytest.skip(f"the text is not installed; {HOW}")
    return get_task("book", steps=3, validation=5, test=7)


def written(row: torch.Tensor) -> str:
    return "".join(ALPHABET[number] for number in row.tolist())


def test_it_is_a_sound_task(task: TaskSpec) -> None:
    check_examples(task, classes=CHARACTERS)
    check_task(task)
    check_source_stands_alone(task.host, task.data.train.inputs[:3])
    assert [len(split) for split in task.data.splits().values()] == [3 * BATCH, 5, 7]
    assert 0.4e6 < sum(parameter.numel() for parameter in task.host().parameters()) < 1e6
    # by how often characters come: some 4.3 bits; all alike would be 6.6
    assert task.metric.chance is not None and 4.0 < task.metric.chance < 4.9
    for split in task.data.splits().values():
        assert torch.equal(split.inputs[:, 1:], split.targets[:, :-1])


def test_no_chapter_is_in_two_splits_and_places_are_left_out(task: TaskSpec) -> None:
    whole = read_text(Path(FOLDER), "book")
    chapters: dict[str, set[str]] = {}
    for line in whole.splitlines():
        place, _, text = line.partition(" ")
        chapters.setdefault(place.rpartition(":")[0], set()).add(text)
    numbers = {name: index % 10 for index, name in enumerate(chapters)}
    assert len(numbers) == 1189
    for name, split in task.data.splits().items():
        folds = {"train": range(8), "validation": [8], "test": [9]}[name]
        texts = "\n\n".join("\n".join(line for line in chapters[c]) for c in chapters if numbers[c] in folds)
        for row in split.inputs:
            longest = max(written(row).split("\n"), key=len)
            assert longest in texts, "what stands on one line is in a chapter of its split"


def test_every_slot_takes_a_copy(task: TaskSpec) -> None:
    model = GrowingModel.wrap(task.host(), task.sites, task.data.train.inputs[:2], config=SlotConfig(copies=True))
    for slot in model.slots.values():
        assert [growable.against(slot, name) for name in growable.COPIES] == [None] * len(growable.COPIES)


def test_an_epoch_is_drawn_anew_from_all_chapters(task: TaskSpec) -> None:
    assert task.feed is not None
    source, again = (task.feed(4, seeded_streams(seed)) for seed in (0, 0))
    first = [inputs for inputs, _ in source.epoch()]
    assert len(first) == len(source) == 3 and all(len(inputs) == 4 for inputs in first)
    state = source.state()
    second = [inputs for inputs, _ in source.epoch()]
    assert not torch.equal(torch.cat(first), torch.cat(second))
    again.load(state)
    assert torch.equal(torch.cat([inputs for inputs, _ in again.epoch()]), torch.cat(second))
    assert isinstance(source, Draws) and len(source.split) > 50_000


def test_what_cannot_be_is_said(task: TaskSpec, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"task book: .*bible.data is missing; on Debian and Ubuntu: apt-get install bib"
    ):
        get_task("book", data_dir=str(tmp_path))
    with pytest.raises(UsageError, match="option steps of task 'book' is 0; it must be 1 or more"):
        get_task("book", steps=0)
    with pytest.raises(UsageError, match=r"task book: 1000000 sequences for test; legal: 1 to \d+"):
        get_task("book", test=1_000_000)
    with pytest.raises(UsageError, match="9 batches of 4 are more than the 5 training sequences"):
        Draws(task.data.validation, 9, 4, seeded_streams(0))
