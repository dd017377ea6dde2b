"""The three published forms of CIFAR-10, where each is looked for, and the checksums that pin them.

Layouts, sizes and checksums come from the data set's page and from public mirrors' metadata.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from esper.leyline import DataError
from esper.tasks.cifar10.pickled import read_batch

SIDE: Final = 32
PIXELS: Final = 3 * SIDE * SIDE
RECORD: Final = 1 + PIXELS
"""Bytes of a record in the binary form: the label, then the red, green and blue planes row by row."""
TRAIN_BATCHES: Final = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_BATCH: Final = "test_batch"


class Images(NamedTuple):
    """``pictures`` uint8 ``[N, 3, 32, 32]``, ``labels`` int64 ``[N]``."""

    pictures: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


PUBLISHED: Final = MappingProxyType(
    {
        "cifar-10-binary.tar.gz": "md5:c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-python.tar.gz": "md5:c58f30108f718f92721af3b95e74349a",
        "train-00000-of-00001.parquet": "sha256:8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883",
        "test-00000-of-00001.parquet": "sha256:841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
        "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
        "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
        "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "md5:40351d587109b95175f43aff81a1287e",
    }
)
"""File name -> ``algorithm:hexadecimal``."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the files must be. Tests pass their own for tiny stand-ins."""

    train: int = 50_000
    test: int = 10_000
    digests: Mapping[str, str] = field(default_factory=lambda: PUBLISHED)
    """A file that is not named here (single ``.bin`` files, mirrors' Parquet) is checked for size, labels and balance
    alone."""


class TrainTestImages(NamedTuple):
    """Training and test pictures, and which form they came from."""

    train: Images
    test: Images
    source: str


def read(folder: Path, expected: Expected) -> TrainTestImages:
    """Read the first form that ``folder`` holds: binary, then Parquet, then the Python pickles.

    Raises ``DataError`` when there is none (saying what to put where), or when a checksum, a size, a label or the
    balance of classes is not what it must be.
    """
    for file, reader, form in FORMS:
        path = folder / file
        if path.exists():
            train, test = reader(path, expected)
            _check(path, "training", train, expected.train)
            _check(path, "test", test, expected.test)
            return TrainTestImages(train, test, f"CIFAR-10 ({form}) from {path.name}")
    places = "\n".join(f"  {file}  ({form})" for file, _, form in FORMS)
    raise DataError(
        f"cifar10: no CIFAR-10 file in {folder}; the folder (option data_dir, or ESPER_DATA) must hold one of\n{places}"
    )


def verify(path: Path, expected: Expected) -> None:
    """Raise ``DataError`` when the file's checksum is known and differs."""
    try:
        with open(path, "rb") as file:
            _verify(path.name, str(path), partial(hashlib.file_digest, file), expected)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _verify(name: str, where: str, digest: Callable[[str], hashlib._Hash], expected: Expected) -> None:
    known = expected.digests.get(name)
    if known is None:
        return
    algorithm, _, wanted = known.partition(":")
    given = digest(algorithm).hexdigest()
    if given != wanted:
        raise DataError(f"{where}: {algorithm} is {given}, the published file's is {wanted}; fetch it again")


def _verify_bytes(name: str, where: Path, content: bytes, expected: Expected) -> None:
    _verify(name, f"{where}, {name}", lambda algorithm: hashlib.new(algorithm, content), expected)


def _check(path: Path, split: str, images: Images, count: int) -> None:
    labels = images.labels
    if len(labels) != count:
        raise DataError(f"{path}: {len(labels):,} {split} pictures; {count:,} are needed")
    if labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path}: a {split} label is {labels.max()}; labels go from 0 to 9")
    counts = np.bincount(labels, minlength=10)
    if (counts != count // 10).any():
        raise DataError(f"{path}: {split} pictures per class are {counts.tolist()}; {count // 10} of each are needed")


# --- binary ---------------------------------------------------------------------------------------------------------


def read_binary(path: Path, expected: Expected) -> tuple[Images, Images]:
    """The folder ``cifar-10-batches-bin`` or the archive that holds it."""
    return _read_batches(path, expected, suffix=".bin", decode=_decode_binary)


def _decode_binary(where: str, content: bytes) -> Images:
    if not content or len(content) % RECORD:
        raise DataError(f"{where}: {len(content):,} bytes; a multiple of {RECORD:,}, one record a picture, is needed")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, RECORD)
    return Images(records[:, 1:].reshape(-1, 3, SIDE, SIDE), records[:, 0].astype(np.int64))


# --- Python pickles -------------------------------------------------------------------------------------------------


def read_python(path: Path, expected: Expected) -> tuple[Images, Images]:
    """The folder ``cifar-10-batches-py`` or the archive that holds it."""
    return _read_batches(path, expected, suffix="", decode=_decode_pickled)


def _decode_pickled(where: str, content: bytes) -> Images:
    pixels, labels = read_batch(where, content)
    if pixels.ndim != 2 or pixels.shape[1] != PIXELS or len(pixels) != len(labels):
        raise DataError(f"{where}: pictures of shape {pixels.shape} and {len(labels)} labels; [N, {PIXELS}] and N fit")
    return Images(pixels.reshape(-1, 3, SIDE, SIDE), labels)


def _read_batches(
    path: Path, expected: Expected, suffix: str, decode: Callable[[str, bytes], Images]
) -> tuple[Images, Images]:
    wanted = [name + suffix for name in (*TRAIN_BATCHES, TEST_BATCH)]
    if path.is_dir():
        contents = _folder_members(path, wanted)
    else:
        verify(path, expected)
        contents = _archive_members(path, wanted)
    for name, content in contents.items():
        _verify_bytes(name, path, content, expected)
    *train, test = (decode(f"{path}, {name}", contents[name]) for name in wanted)
    joined = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return Images(*joined), test


def _folder_members(path: Path, wanted: list[str]) -> dict[str, bytes]:
    try:
        return {name: (path / name).read_bytes() for name in wanted}
    except OSError as error:
        raise DataError(f"{path}: cannot read {Path(error.filename or path).name}: {error.strerror}") from error


def _archive_members(path: Path, wanted: list[str]) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                # read into memory, never unpacked to disk: an archive cannot write outside its folder
                if name in wanted and (file := archive.extractfile(member)) is not None:
                    contents[name] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a readable archive: {error}") from error
    missing = [name for name in wanted if name not in contents]
    if missing:
        raise DataError(f"{path}: the archive lacks {missing[0]}")
    return contents


def read_parquet(path: Path, expected: Expected) -> tuple[Images, Images]:
    """The training file given, with the test file beside it."""
    from esper.tasks.cifar10.parquet import read_pictures

    other = _beside(path)
    for file in (path, other):
        verify(file, expected)
    return Images(*read_pictures(path)), Images(*read_pictures(other))


def _beside(path: Path) -> Path:
    other = path.with_name(path.name.replace("train-", "test-"))
    if path.parent.name == "train":
        other = path.parent.with_name("test") / path.name
    if not other.exists():
        raise DataError(f"{path}: the test file {other} is missing")
    return other


FORMS: Final[tuple[tuple[str, Callable[[Path, Expected], tuple[Images, Images]], str], ...]] = (
    ("cifar-10-binary.tar.gz", read_binary, "binary archive"),
    ("cifar-10-batches-bin", read_binary, "folder of binary files"),
    ("plain_text/train-00000-of-00001.parquet", read_parquet, "Parquet, with test-00000-of-00001.parquet beside it"),
    ("plain_text/train/0000.parquet", read_parquet, "Parquet, with plain_text/test/0000.parquet"),
    ("cifar-10-python.tar.gz", read_python, "Python archive"),
    ("cifar-10-batches-py", read_python, "folder of Python files"),
)
"""Where each form is looked for, in order; those that need no unpickling come first."""
