"""Tensors that lie in a file until they are read, instead of in memory.

The best network so far is read where it is delivered or saved, and else stands beside the last good state, epoch after
epoch. Over a file that is mapped it takes no memory that the system cannot have back: pages come as they are read, and
go where room is needed. The file has no name; the disk has its room back with the last of its tensors, also where the
process is killed.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from esper.leyline.files import sync_data, write_all

WORTH_IT: Final = 32 << 20
"""Bytes beyond which tensors are spilled: a tenth of what a process has before its first batch."""
_ALIGNED: Final = 64

_spilled: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
"""By id."""


def spill(tensors: Iterable[Tensor], folder: Path) -> None:
    """Put those of ``tensors`` that are in main memory into a file below ``folder``, and give the memory back.

    They stay the objects that they are, with every bit, stride and type, for all who hold them. A process that is
    forked, and whoever copies or pickles them, has its own, as of any tensor. Nothing happens to what is in a file
    already, nor where the rest has no more than :data:`WORTH_IT` bytes together. Memory is given back when the contents
    are on the disk. Raises ``OSError`` where they cannot be; then everything is as it was. A disk that later fails to
    read them ends the process (SIGBUS), as one that swaps does.
    """
    here = {id(t): t for t in tensors if type(t) is Tensor and t.device.type == "cpu" and t.numel()}
    here = {key: tensor for key, tensor in here.items() if _spilled.get(key) is not tensor}
    if sum(tensor.nbytes for tensor in here.values()) <= WORTH_IT:
        return
    places = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for tensor in here.values():
            place, content = file.tell(), _memory(tensor)
            write_all(file.fileno(), content.numpy().data)
            write_all(file.fileno(), bytes(-content.nbytes % _ALIGNED))
            places.append((tensor, place, content.nbytes))
        sync_data(file.fileno())
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    for tensor, place, size in places:
        storage = torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=place).untyped_storage()
        tensor.data = torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, tensor.stride())
        _spilled[id(tensor)] = tensor


def _memory(tensor: Tensor) -> Tensor:
    """The bytes from a tensor's first element to its last, whatever its strides: a view."""
    size, first = tensor.element_size(), int(tensor.storage_offset())
    span = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    found: Tensor = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage(), first * size, (span * size,), (1,))
    return found
