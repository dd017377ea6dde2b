"""All three forms of CIFAR-10 read to the same pictures; anything that is not them is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from esper.leyline import DataError
from esper.tasks.cifar10.files import FORMS, Expected, Images, read
from tasks.cifar10 import tiny

PLACES = [place for place, _, _ in FORMS]


@pytest.mark.parametrize("form", PLACES)
def test_every_form_reads_to_the_same_pictures(tmp_path: Path, form: str) -> None:
    tiny.write_form(tmp_path, form)
    found = read(tmp_path, tiny.PLAIN)
    made = tiny.batches()
    assert np.array_equal(found.test.pictures, made["test_batch"].pictures)
    assert np.array_equal(found.test.labels, made["test_batch"].labels)
    train = [made[f"data_batch_{i}"] for i in range(1, 6)]
    assert np.array_equal(found.train.pictures, np.concatenate([images.pictures for images in train]))
    assert np.array_equal(found.train.labels, np.concatenate([images.labels for images in train]))
    assert Path(form).name in found.source


def test_what_needs_no_unpickling_comes_first(tmp_path: Path) -> None:
    for form in reversed(PLACES):
        tiny.write_form(tmp_path, form)
    assert "binary archive" in read(tmp_path, tiny.PLAIN).source


def test_an_empty_folder_says_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, Expected())
    for place in PLACES:
        assert place in str(caught.value)


@pytest.mark.parametrize("form", ["cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"])
def test_an_archive_is_verified(tmp_path: Path, form: str) -> None:
    tiny.write_form(tmp_path, form)
    right = {form: tiny.md5((tmp_path / form).read_bytes())}
    read(tmp_path, replace(tiny.PLAIN, digests=right))
    with pytest.raises(DataError, match=rf"{form}: md5 is [0-9a-f]{{32}}, the published file's is c"):
        read(tmp_path, replace(Expected(), train=tiny.TRAIN, test=tiny.TEST))


def test_each_python_batch_and_each_parquet_file_is_verified(tmp_path: Path) -> None:
    tiny.write_form(tmp_path, "cifar-10-batches-py")
    contents = {name: tiny.python(images) for name, images in tiny.batches().items()}
    right = {name: tiny.md5(content) for name, content in contents.items()}
    read(tmp_path, replace(tiny.PLAIN, digests=right))
    with pytest.raises(DataError, match="cifar-10-batches-py, test_batch: md5 is"):
        read(tmp_path, replace(tiny.PLAIN, digests=right | {"test_batch": "md5:0"}))
    other = tmp_path / "other"
    tiny.write_form(other, PLACES[2])
    with pytest.raises(DataError, match="test-00000-of-00001.parquet: sha256 is"):
        read(other, replace(tiny.PLAIN, digests={"test-00000-of-00001.parquet": "sha256:0"}))


def test_counts_labels_and_balance_are_checked(tmp_path: Path) -> None:
    tiny.write_form(tmp_path, "cifar-10-batches-bin")
    with pytest.raises(DataError, match="100 training pictures; 50,000 are needed"):
        read(tmp_path, replace(Expected(), digests={}))
    images = tiny.batches()["test_batch"]
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(tiny.binary(Images(images.pictures, np.zeros_like(images.labels))))
    with pytest.raises(DataError, match=r"test pictures per class are \[20, 0"):
        read(tmp_path, tiny.PLAIN)
    path.write_bytes(tiny.binary(Images(images.pictures, images.labels + 1)))
    with pytest.raises(DataError, match="a test label is 10"):
        read(tmp_path, tiny.PLAIN)


def test_damage_is_named(tmp_path: Path) -> None:
    tiny.write_form(tmp_path, "cifar-10-batches-bin")
    batch = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(DataError, match="data_batch_3.bin: 61,459 bytes; a multiple of 3,073"):
        read(tmp_path, tiny.PLAIN)
    batch.unlink()
    with pytest.raises(DataError, match="cannot read data_batch_3.bin"):
        read(tmp_path, tiny.PLAIN)
    archive = tmp_path / "cifar-10-binary.tar.gz"
    tiny.write_archive(archive, "inside", {"data_batch_1.bin": b""})
    with pytest.raises(DataError, match="the archive lacks data_batch_2.bin"):
        read(tmp_path, tiny.PLAIN)
    archive.write_bytes(archive.read_bytes()[:50])
    with pytest.raises(DataError, match="not a readable archive"):
        read(tmp_path, tiny.PLAIN)


def test_parquet_that_is_not_pictures_is_named(tmp_path: Path) -> None:
    tiny.write_form(tmp_path, PLACES[2])
    train = tmp_path / PLACES[2]
    tiny.write_parquet(train, tiny.pictures(10, seed=0), column="photo")
    with pytest.raises(DataError, match="no column img or image; there are photo, label"):
        read(tmp_path, tiny.PLAIN)
    train.write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="not a table of CIFAR-10's pictures"):
        read(tmp_path, tiny.PLAIN)
    (train.parent / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match="the test file .* is missing"):
        read(tmp_path, tiny.PLAIN)
