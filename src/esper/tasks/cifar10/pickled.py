"""Reading CIFAR-10's Python 2 pickles without letting them call anything but the making of a byte array."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from esper.leyline import DataError

# what NumPy itself names in a pickled array, wherever this version keeps it
_RECONSTRUCT: Final[Callable[..., Any]] = np.empty(0, dtype=np.uint8).__reduce__()[0]  # type: ignore[assignment]


class _BatchUnpickler(pickle.Unpickler):
    """Knows the three names that a pickled NumPy array of bytes needs, and refuses every other."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for ``module.name``; raises ``UnpicklingError`` for anything not on the list."""
        match (module, name):
            case ("numpy.core.multiarray", "_reconstruct"):
                return _empty_array
            case ("numpy", "ndarray"):
                return np.ndarray
            case ("numpy", "dtype"):
                return _byte_type
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a batch of pictures does not need")


def _empty_array(kind: type, shape: tuple[int, ...], _: bytes) -> npt.NDArray[np.uint8]:
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("it asks for an array of another class")
    empty: npt.NDArray[np.uint8] = _RECONSTRUCT(np.ndarray, shape, b"b")
    return empty


def _byte_type(code: bytes, *_: int) -> np.dtype[np.uint8]:
    if code != b"u1":
        raise pickle.UnpicklingError(f"it asks for an array of {code!r}; pictures are bytes")
    return np.dtype("u1", copy=True)


def read_batch(where: str, content: bytes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pixels uint8 ``[N, 3072]`` and labels int64 ``[N]`` of one batch file. Raises ``DataError`` naming ``where``."""
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    # a damaged pickle can raise almost anything while it is read
    except Exception as error:
        raise DataError(f"{where}: not a batch of CIFAR-10: {error}") from error
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
        raise DataError(f"{where}: holds no data and labels")
    pixels, labels = batch[b"data"], batch[b"labels"]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        raise DataError(f"{where}: data is a {type(pixels).__name__}; an array of bytes is needed")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{where}: labels are no list of whole numbers")
    return pixels, np.array(labels, dtype=np.int64)
