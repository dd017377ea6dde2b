"""Fashion-MNIST (Xiao et al., 2017, arXiv:1708.07747), as Debian packs it: found, checked and read."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from esper.leyline import DataError
from esper.tasks.pretrained.weights import check_sha256

FOLDER: Final = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package puts the files."""
HOW: Final = "on Debian and Ubuntu: apt-get install dataset-fashion-mnist"
CLASSES: Final = 10
SIDE: Final = 28
FILES: Final = MappingProxyType(
    {
        "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    }
)
"""Name -> sha256; Debian's are packed anew, so that those of the publishers differ."""


def read_clothes(folder: Path, task: str, part: str = "train") -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pictures ``[N, 28, 28]`` and labels ``[N]`` of the published training (``train``) or test (``t10k``) part, for
    the task of that name. Raises ``DataError`` where a file is missing or another one.
    """
    pictures = _unpacked(folder, f"{part}-images-idx3-ubyte.gz", task)[16:].reshape(-1, SIDE, SIDE)
    return pictures, _unpacked(folder, f"{part}-labels-idx1-ubyte.gz", task)[8:].astype(np.int64)


def _unpacked(folder: Path, name: str, task: str) -> npt.NDArray[np.uint8]:
    """The bytes of a file, header and all."""
    file = folder / name
    if not file.is_file():
        raise DataError(f"task {task}: {file} is missing; {HOW}, or name another folder by the option data_dir")
    check_sha256(file, FILES[name])
    with gzip.open(file) as packed:
        return np.frombuffer(packed.read(), np.uint8)
