"""Writes CIFAR-10's three forms with a few made-up pictures, as the published files are laid out."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from esper.tasks.cifar10.files import Expected, Images

TRAIN, TEST = 100, 20
PLAIN = Expected(train=TRAIN, test=TEST, digests={})
"""The right numbers of pictures, and no checksum known."""


def pictures(count: int, seed: int) -> Images:
    random = np.random.RandomState(seed)
    labels = random.permutation(np.arange(count) % 10).astype(np.int64)
    return Images(random.randint(256, size=(count, 3, 32, 32)).astype(np.uint8), labels)


def batches() -> dict[str, Images]:
    """Five training batches and the test batch, by name."""
    train = pictures(TRAIN, seed=1)
    each = TRAIN // 5
    named = {f"data_batch_{i + 1}": Images(*(part[i * each : (i + 1) * each] for part in train)) for i in range(5)}
    return {**named, "test_batch": pictures(TEST, seed=2)}


def binary(images: Images) -> bytes:
    flat = images.pictures.reshape(len(images.labels), -1)
    return np.concatenate([images.labels[:, None].astype(np.uint8), flat], axis=1).tobytes()


def _text(value: bytes) -> bytes:
    """A Python 2 ``str``."""
    return b"T" + struct.pack("<i", len(value)) + value


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def array(values: np.ndarray, code: bytes = b"u1") -> bytes:
    """What Python 2's NumPy wrote for an array of bytes."""
    dtype = b"cnumpy\ndtype\n(" + _text(code) + _integer(0) + _integer(1) + b"tR"
    dtype += b"(" + _integer(3) + _text(b"|") + b"NNN" + _integer(-1) + _integer(-1) + _integer(0) + b"tb"
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _integer(0) + b"\x85" + _text(b"b") + b"tR"
    shape = b"(" + b"".join(map(_integer, values.shape)) + b"t"
    return made + b"(" + _integer(1) + shape + dtype + b"\x89" + _text(values.tobytes()) + b"tb"


def pickled(data: bytes, labels: list[int]) -> bytes:
    """A protocol-2 pickle of a batch, whose ``data`` is given as opcodes."""
    items = _text(b"batch_label") + _text(b"a batch")
    items += _text(b"labels") + b"](" + b"".join(map(_integer, labels)) + b"e"
    return b"\x80\x02}(" + items + _text(b"data") + data + b"u."


def python(images: Images) -> bytes:
    return pickled(array(images.pictures.reshape(len(images.labels), -1)), images.labels.tolist())


def write_folder(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path: Path, inside: str, contents: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{inside}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path: Path, images: Images, column: str = "img") -> Path:
    encoded = []
    for picture in images.pictures.transpose(0, 2, 3, 1):
        png = io.BytesIO()
        Image.fromarray(picture).save(png, format="png")
        encoded.append({"bytes": png.getvalue(), "path": "x.png"})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: encoded, "label": images.labels}), path)
    return path


def write_form(root: Path, form: str) -> None:
    """Write one of the six places that the reader looks in."""
    made = batches()
    if form.startswith("cifar-10"):
        is_binary = "bin" in form
        suffix = ".bin" if is_binary else ""
        contents = {name + suffix: (binary if is_binary else python)(images) for name, images in made.items()}
        if form.endswith(".gz"):
            write_archive(root / form, "inside", contents | {"readme.html": b"x"})
        else:
            write_folder(root / form, contents)
        return
    train = Images(*(np.concatenate(parts) for parts in zip(*list(made.values())[:5], strict=True)))
    column = "image" if "0000.parquet" in form and "of" not in form else "img"
    write_parquet(root / form, train, column)
    beside = form.replace("train-", "test-").replace("/train/", "/test/")
    write_parquet(root / beside, made["test_batch"], column)


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"
