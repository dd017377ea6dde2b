"""The reader of Python 2 pickles makes arrays of bytes and calls nothing else."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from esper.leyline import DataError
from esper.tasks.cifar10.pickled import read_batch
from tasks.cifar10 import tiny

PIXELS = np.arange(12, dtype=np.uint8).reshape(2, 6)


def test_a_batch_reads_back() -> None:
    pixels, labels = read_batch("here", tiny.pickled(tiny.array(PIXELS), [3, 9]))
    assert np.array_equal(pixels, PIXELS)
    assert labels.tolist() == [3, 9]


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(U\x04trueeR".replace(b"eR", b"tR"),
        b"cbuiltins\neval\n(U\x03 1 tR",
        b"c__builtin__\neval\n(U\x03 1 tR",
        b"cnumpy.core.multiarray\nscalar\n(tR",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\nK\x00\x85U\x01btR",
        tiny.array(np.arange(4, dtype=np.uint8), code=b"O8"),
        tiny.array(np.arange(8, dtype=np.uint8), code=b"f8"),
    ],
    ids=["os.system", "eval", "python 2 eval", "scalar", "another class", "objects", "floats"],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="here: not a batch of CIFAR-10: it asks for"):
        read_batch("here", tiny.pickled(data, [0]))


def test_the_refused_pickles_would_have_worked_otherwise() -> None:
    """The mutant: a plain unpickler runs what the one above refuses."""
    hostile = tiny.pickled(b"cbuiltins\neval\n(U\x0340+tR".replace(b"40+", b"6*7"), [0])
    assert pickle.loads(hostile, encoding="latin1")["data"] == 42  # noqa: S301
    with pytest.raises(DataError):
        read_batch("here", hostile)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a batch"),
        (tiny.pickled(tiny.array(PIXELS), [1])[:60], "not a batch"),
        (b"\x80\x02].", "holds no data and labels"),
        (tiny.pickled(b"N", [1]), "data is a NoneType"),
        (tiny.pickled(tiny.array(PIXELS), [1]).replace(b"](J\x01\x00\x00\x00e", b"](Ne"), "no list of whole numbers"),
    ],
)
def test_damage_is_named(content: bytes, says: str) -> None:
    with pytest.raises(DataError, match=f"here: .*{says}"):
        read_batch("here", content)
