"""CIFAR-10 as Parquet: a struct of PNG bytes per picture, and its label."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esper.leyline import DataError, MissingExtraError


def read_pictures(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pictures uint8 ``[N, 3, 32, 32]`` and labels int64 ``[N]``, in the file's own order.

    The pictures' column is called ``img`` or ``image``. Raises ``MissingExtraError`` without the extra ``parquet``,
    ``DataError`` when the file is not such a table.
    """
    try:
        from PIL import Image
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise MissingExtraError("reading CIFAR-10 from Parquet", "parquet") from error
    try:
        table = read_table(path)
        column = next(name for name in ("img", "image") if name in table.column_names)
        encoded = [struct["bytes"] for struct in table[column].to_pylist()]
        pictures = np.stack([np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in encoded])
        labels = np.asarray(table["label"].to_pylist(), dtype=np.int64)
    except StopIteration:
        raise DataError(f"{path}: no column img or image; there are {', '.join(table.column_names)}") from None
    except (ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a table of CIFAR-10's pictures: {error}") from error
    if pictures.shape[1:] != (32, 32, 3):
        raise DataError(f"{path}: pictures of shape {pictures.shape[1:]}; 32x32 in three colours is needed")
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)), labels
