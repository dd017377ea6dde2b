"""Verses of the King James Bible."""

from __future__ import annotations

from pathlib import Path
from shutil import which

import pytest
from torch import Tensor

from esper.leyline import DataError, MissingExtraError
from esper.tasks import TaskSpec, get_task
from esper.tasks.base import check_task
from esper.tasks.bible import FILES, FOLDER, HOW, PROGRAM, read_text
from esper.tasks.pretrained import minilm
from esper.tasks.pretrained.minilm import encoded
from esper.tasks.pretrained.verses import EXTRA, KINDS, TOKENS, read_verses
from tasks.conformance import check_examples, check_slots, score_after


@pytest.fixture(scope="module")
def task() -> TaskSpec:
    if which(PROGRAM) is None or not all(Path(FOLDER, name).is_file() for name in FILES):
        pytest.skip(f"the text is not installed; {HOW}")
    return get_task("verses")


def linked(folder: Path) -> Path:
    """A folder with Debian's files."""
    folder.mkdir()
    for name in FILES:
        (folder / name).symlink_to(Path(FOLDER, name))
    return folder


def test_it_is_a_sound_task(task: TaskSpec) -> None:
    check_examples(task, classes=6)
    assert [len(split) for split in task.data.splits().values()] == [640, 500, 1000]
    assert task.data.digest.startswith("fa4e838186baaf4a")
    # history, the largest kind
    assert task.metric.chance == pytest.approx(100 * 109 / 500)
    check_task(task)


def test_verses_have_the_kinds_of_their_books(task: TaskSpec) -> None:
    first_and_last = {
        "Law": ("In the beginning God created the heaven and the earth.", "And in all that mighty hand, and in all"),
        "History": ("Now after the death of Moses the servant of the LORD", "For Mordecai the Jew was next unto king"),
        "Wisdom": (
            "There was a man in the land of Uz, whose name was Job;",
            "Make haste, my beloved, and be thou",
        ),
        "Prophets": (
            "The vision of Isaiah the son of Amoz, which he saw",
            "And he shall turn the heart of",
        ),
        "Gospels and Acts": (
            "The book of the generation of Jesus Christ, the son",
            "Preaching the kingdom of God",
        ),
        "Letters": (
            "Paul, a servant of Jesus Christ, called to be an",
            "To the only wise God our Saviour",
        ),
    }
    verses = read_verses(Path(FOLDER))
    assert list(first_and_last) == list(KINDS)
    for number, texts in enumerate(first_and_last.values()):
        for row in encoded(list(texts), TOKENS, EXTRA):
            start = row[row != 0][:-1]
            there = (verses.inputs[:, : len(start)] == start).all(dim=1)
            assert verses.kinds[there.numpy()].tolist() == [number]
    # no verse of Revelation
    [row] = encoded(["The Revelation of Jesus Christ, which God gave unto him"], TOKENS, EXTRA)
    assert not (verses.inputs[:, : len(row) - 1] == row[:-1]).all(dim=1).any()


def test_no_chapter_and_no_text_is_in_two_splits(task: TaskSpec) -> None:
    verses = read_verses(Path(FOLDER))
    assert len(verses.inputs.unique(dim=0)) == len(verses.inputs) == 30335
    lines = [line.split(" ", 1) for line in read_text(Path(FOLDER), "verses").splitlines()]
    numbers = []
    for chapter in ("Ge1:", "Ge2:", "Psa119:", "Jude1:"):
        texts = encoded([text for place, text in lines if place.startswith(chapter)], TOKENS, EXTRA)
        there = (verses.inputs[:, None, : texts.shape[1]] == texts).all(dim=2).any(dim=1)
        numbers.append(set(verses.chapters[there.numpy()]))
    assert numbers == [{0}, {1}, {*numbers[2]}, {1166}] and len(numbers[2]) == 1
    assert set(verses.chapters) == set(range(1189 - 22))
    of_text = {text.numpy().tobytes(): chapter for text, chapter in zip(verses.inputs, verses.chapters, strict=True)}

    def chapters(inputs: Tensor) -> set[int]:
        return {of_text[text.numpy().tobytes()] for text in inputs}

    for split in (0, 1):
        data = get_task("verses", train=2000, split=split).data
        train, validation, test = (chapters(part.inputs) for part in data.splits().values())
        assert min(len(train), len(validation), len(test)) > 150
        assert not (train & validation or train & test or validation & test)


def test_fewer_training_examples_leave_what_is_held_out(task: TaskSpec) -> None:
    few = get_task("verses", train=60).data
    assert few.train.targets.bincount().tolist() == [12, 14, 9, 10, 10, 5]
    assert few.test.inputs.equal(task.data.test.inputs)
    assert few.validation.inputs.equal(task.data.validation.inputs)
    assert few.train.inputs.equal(task.data.train.inputs[:60])
    other = get_task("verses", split=1).data
    assert not other.test.inputs.equal(task.data.test.inputs)


@pytest.mark.parametrize("train", [0, 15216])
def test_more_examples_than_there_are_is_refused(train: int, task: TaskSpec) -> None:
    with pytest.raises(DataError, match=f"task verses: train is {train} examples; legal: 1 to 15215"):
        get_task("verses", train=train)


def test_missing_and_other_texts_are_said(tmp_path: Path, task: TaskSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"bible\.data is missing; on Debian and Ubuntu: apt-get install bible-kjv, or"):
        get_task("verses", data_dir=str(tmp_path))
    (tmp_path / "bible.data").write_bytes(b"another text")
    with pytest.raises(DataError, match=r"bible\.data: sha256 is"):
        get_task("verses", data_dir=str(tmp_path))
    other = linked(tmp_path / "there is a text")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="the program 'bible', which reads .*, is missing; .* install bible-kjv"):
        get_task("verses", data_dir=str(other))
    for script, told in (("echo Ge1:1 Other words.", "bible prints a text with sha256"), ("exit 3", "exit status 3")):
        (tmp_path / PROGRAM).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / PROGRAM).chmod(0o755)
        with pytest.raises(DataError, match=told):
            get_task("verses", data_dir=str(other))
    (other / "bible.data.conc").unlink()
    with pytest.raises(DataError, match=r"bible\.data\.conc is missing"):
        get_task("verses", data_dir=str(other))


def test_the_text_is_read_from_a_folder_with_spaces(tmp_path: Path, task: TaskSpec) -> None:
    folder = linked(tmp_path / "a text")
    assert len(read_text(folder, "verses").splitlines()) == 31102


def test_the_extra_is_named(task: TaskSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    read_verses.cache_clear()
    with pytest.raises(MissingExtraError, match="'verses'"):
        get_task("verses")


@pytest.mark.slow
def test_the_head_alone_learns_and_leaves_room(task: TaskSpec) -> None:
    check_slots(task)
    assert 30 < score_after(task, 3) < 75
