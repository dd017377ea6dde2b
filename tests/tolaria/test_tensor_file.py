"""Files of tensors that are written one after the other are those of safetensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from esper.kasmina.structure import same_bits
from esper.leyline import DataError
from esper.tolaria import checkpoint, tensor_file

KINDS = (
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
    torch.complex64,
)  # fmt: skip


def many() -> dict[str, Tensor]:
    """Of every kind and of odd shapes and strides."""
    chance = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, 5, generator=chance)
    found = {f"a {kind}": (drawn * 3).abs().to(kind) for kind in KINDS}
    every_other = torch.arange(12.0).reshape(3, 4)[:, ::2]
    images = torch.randn(2, 3, 4, 4, generator=chance).to(memory_format=torch.channels_last)
    conjugate = torch.randn(3, dtype=torch.complex64, generator=chance).conj()
    return found | {
        "strided": every_other, "images": images, "one": torch.tensor(7), "none": torch.empty(0, 3), "conj": conjugate,
    }  # fmt: skip


def test_the_file_is_the_librarys(tmp_path: Path) -> None:
    tensors = many()
    content = b"".join(tensor_file.pieces(tensors))
    (tmp_path / "it.safetensors").write_bytes(content)
    for read in (tensor_file.read(content), safetensors.torch.load_file(tmp_path / "it.safetensors")):
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert same_bits(read[name], tensor.resolve_conj()), name
    theirs = safetensors.torch.save({name: tensor.resolve_conj().contiguous() for name, tensor in tensors.items()})
    assert all(same_bits(tensor_file.read(theirs)[name], tensor.resolve_conj()) for name, tensor in tensors.items())


def test_what_stands_under_two_names_is_there_once(tmp_path: Path) -> None:
    large, other = torch.randn(1000), torch.randn(2)
    saved = checkpoint.save(tmp_path, 1, {"good/x": large, "run/x": large, "run/y": other, "best/x": large}, None)
    assert large.nbytes < saved.bytes < 2 * large.nbytes
    loaded = checkpoint.load(saved.path).tensors
    assert set(loaded) == {"good/x", "run/x", "run/y", "best/x"}
    assert all(torch.equal(loaded[name], large) for name in loaded if name != "run/y")


def test_tensors_are_copied_one_at_a_time() -> None:
    """A device is asked for the next one when the one before is written."""
    asked: list[str] = []

    class Away(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if getattr(func, "__name__", "") == "to":
                asked.append("to")
            return super().__torch_function__(func, types, args, kwargs or {})

    written = tensor_file.pieces({str(n): torch.ones(4).as_subclass(Away) for n in range(3)})
    for expected in range(4):
        next(written)
        assert len(asked) == expected


def test_what_cannot_be_saved_is_told_before_anything_is_written(tmp_path: Path) -> None:
    odd = {"wide": torch.ones(2, dtype=torch.complex128), "text": "x", "x": torch.ones(1)}
    for name in ("wide", "text"):
        with pytest.raises(DataError, match=name if name == "text" else "complex128"):
            checkpoint.save(tmp_path, 1, {"x": odd["x"], name: odd[name]}, None)  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []
