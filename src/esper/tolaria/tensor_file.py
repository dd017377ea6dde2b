"""Tensors in a file in the format of safetensors, written one after the other.

The library's own writer has all of them in memory once more. A tensor that stands under several names is written once;
the file's metadata say which names are the same.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

import safetensors
import torch
from safetensors.torch import load as _load
from safetensors.torch import save as _save
from torch import Tensor

from esper.leyline import DataError

_METADATA: Final = "__metadata__"
_SAME: Final = "same"
_ALIGNED: Final = 8


def pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of the file, of which no more than one tensor's are copied at a time. Raises ``DataError``, before the
    first of them where it can be known, for what cannot be saved."""
    once: dict[int, str] = {}
    same: dict[str, str] = {}
    for name, tensor in tensors.items():
        if type(name) is not str or not isinstance(tensor, Tensor):
            raise DataError(f"tensors[{name!r}] is a {type(tensor).__name__}, not a tensor by name")
        if (first := once.setdefault(id(tensor), name)) != name:
            same[name] = first
    # the widest first, so that each begins where its format wants it
    order = sorted(once.values(), key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {_METADATA: {_SAME: json.dumps(same)}} if same else {}
    end = 0
    for name in order:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _named(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [begin, end]}
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % _ALIGNED)
    yield struct.pack("<Q", len(told)) + told
    for name in order:
        try:
            flat = tensors[name].detach().to("cpu").resolve_conj().resolve_neg().contiguous().reshape(-1)
            yield flat.view(torch.uint8).numpy().data
        except (RuntimeError, NotImplementedError) as error:
            raise DataError(f"tensor {name!r} cannot be saved: {error}") from error


@functools.cache
def _named(dtype: torch.dtype) -> str:
    """What safetensors calls it."""
    try:
        content = _save({"it": torch.empty(0, dtype=dtype)})
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise DataError(f"tensors of {dtype} cannot be saved: {error}") from error
    name: str = _header(content)["it"]["dtype"]
    return name


def read(content: bytes) -> dict[str, Tensor]:
    """Undo of :func:`pieces`. Raises what safetensors, json and dictionaries raise for other contents."""
    tensors = _load(content)
    same = json.loads(_header(content).get(_METADATA, {}).get(_SAME, "{}"))
    return tensors | {name: tensors[first] for name, first in same.items()}


def _header(content: bytes) -> dict[str, Any]:
    (length,) = struct.unpack_from("<Q", content)
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    return header
