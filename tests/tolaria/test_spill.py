"""What lies in a file is what was in memory, bit for bit, and takes none."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from esper.kasmina.structure import same_bits
from esper.library import Budget, Grower, OwnChoices
from esper.tolaria import executor, spill
from own_loop import LOSS, VALIDATION, epoch, narrow

Spill = Callable[[Iterable[Tensor], Path], None]


def test_a_spilled_tensor_is_the_same_in_every_bit_stride_and_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [
        torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last).bfloat16(),
        torch.tensor([float("nan"), -0.0]),
        torch.tensor(5),
        torch.tensor([True, False, True]),
        torch.randn(10)[3:7],
        torch.randn(1, 5).expand(4, 5),
        torch.randn(4, 5, dtype=torch.complex64).t(),
        torch.zeros(0),
    ]
    tensors.append(tensors[0])
    before = [(tensor.clone(), tensor.stride()) for tensor in tensors]
    memory = [tensor.data_ptr() for tensor in tensors]
    spill.spill(tensors, tmp_path)
    assert memory == [tensor.data_ptr() for tensor in tensors], "too small to be worth a file"

    monkeypatch.setattr(spill, "WORTH_IT", 0)
    with pytest.raises(OSError):
        spill.spill(tensors, tmp_path / "missing")
    assert memory == [tensor.data_ptr() for tensor in tensors]
    spill.spill(tensors, tmp_path)
    for tensor, (content, stride), place in zip(tensors, before, memory, strict=True):
        assert same_bits(tensor, content) and tensor.stride() == stride
        assert tensor.data_ptr() != place or not tensor.numel()
    assert not os.listdir(tmp_path)
    memory = [tensor.data_ptr() for tensor in tensors]
    spill.spill(tensors, tmp_path)
    assert memory == [tensor.data_ptr() for tensor in tensors], "what is in a file stays there"

    torch.save(tensors[0], written := io.BytesIO())
    written.seek(0)
    for another in (copy.deepcopy(tensors[0]), torch.load(written)):
        assert same_bits(another, before[0][0])
        another.zero_()
    assert same_bits(tensors[0], before[0][0]), "copies are their holder's own"


class Run:
    """Four epochs of ``Grower``'s loop, of which the second is the best; then what ends it."""

    def __init__(self, folder: Path) -> None:
        self.model = narrow()
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        choices = OwnChoices(LOSS, "loss", at=["1"], budget=Budget(epochs=10), device="cpu")
        self.grower = Grower(
            self.model, optimizer, val=VALIDATION, choices=choices, policy="static", run_dir=folder / "run"
        )
        self.executor = self.grower._loop.executor
        with self.grower:
            for rate in (1e-2, 1e-2, -1e-3, -1e-3):
                optimizer.param_groups[0]["lr"] = rate
                epoch(self.grower, optimizer)
                if rate > 0:
                    self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
            (env,) = self.executor._envs
            assert env.best is not None and env.best.epoch == 2
            self.kept = list(env.best.network["tensors"].values())
            self.saved = self.grower.state_dict()["tensors"]
        assert self.grower.result.epoch == 2

    @property
    def restored(self) -> bool:
        """Whether what is delivered, and what a checkpoint has of it, is the best network bit for bit."""
        delivered = self.grower.result.model.state_dict()
        saved = {name: value for name, value in self.saved.items() if "/best/" in name}
        assert len(saved) >= len(self.best)
        return all(
            same_bits(delivered[name], value) and any(same_bits(each, value) for each in saved.values())
            for name, value in self.best.items()
        )


def altered(tensors: Iterable[Tensor], folder: Path) -> None:
    """A file in which the last bit of every number is 1."""
    spilled = list(tensors)
    spill.spill(spilled, folder)
    for tensor in spilled:
        tensor.view(torch.uint8).bitwise_or_(1)


@pytest.mark.parametrize(("how", "restores"), [(spill.spill, True), (altered, False)])
def test_the_best_network_comes_back_from_the_file_when_the_good_state_has_moved_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Spill, restores: bool
) -> None:
    monkeypatch.setattr(spill, "WORTH_IT", 0)
    monkeypatch.setattr(executor, "spill", how)
    run = Run(tmp_path)
    assert all(spill._spilled.get(id(tensor)) is tensor for tensor in run.kept)
    assert run.restored is restores


def test_where_the_disk_takes_nothing_the_best_network_stays_in_memory_and_that_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill, "WORTH_IT", 0)
    monkeypatch.setattr(spill, "write_all", full)
    with pytest.warns(UserWarning, match="the best network so far stays in memory: .*run: No space left") as told:
        run = Run(tmp_path)
    assert len(told) == 1 and run.restored
    assert not any(id(tensor) in spill._spilled for tensor in run.kept)
