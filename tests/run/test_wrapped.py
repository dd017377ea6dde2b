"""A model in ``DistributedDataParallel`` grows inside of it, and is averaged by it again afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from esper.leyline import UsageError
from esper.library import Budget, Grower, OwnChoices
from esper.run import wrapped
from esper.run.wrapped import quiet
from own_loop import LOSS, narrow, products
from ranked_loop import GATES, LIFE, VALIDATION, Moves, Ranked, halves
from ranks import on_ranks


class Normed(nn.Sequential):
    """With buffers that training writes, which a wrapper hands around before each pass."""

    def __init__(self) -> None:
        super().__init__(*narrow(), nn.BatchNorm1d(4))


def run(where: Path, rank: int, wrap: bool) -> dict[str, Any]:
    """A loop whose optimizer and gradients are of the wrapped model, as frameworks have it; then without Esper."""
    ranked = Ranked()
    torch.manual_seed(0)
    inner = Normed()
    model = DistributedDataParallel(inner, find_unused_parameters=True, bucket_cap_mb=1) if wrap else inner
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    budget = Budget(epochs=ranked.epochs, parameters=5000, gates=GATES)
    choices = OwnChoices(LOSS, at=["1", "3"], budget=budget, device="cpu")
    grower = Grower(model, optimizer, val=VALIDATION, choices=choices, policy=Moves(LIFE), run_dir=where)
    with grower:
        for _ in range(ranked.epochs):
            for batch in ranked.train:
                optimizer.zero_grad()
                torch.autograd.backward(grower.loss(*halves(batch, rank, 2)))
                grower.after_backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            grower.after_epoch()
    grown = {name: tensor.clone() for name, tensor in inner.state_dict().items()}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in model.parameters()} == held
    model.train()
    if wrap:
        for number in range(3):
            x, y = products(8, 10 * number + rank)
            optimizer.zero_grad()
            LOSS(model(x), y).backward()
            optimizer.step()
    settings = (model.find_unused_parameters, model.bucket_bytes_cap) if wrap else None
    return {"grown": grown, "on": dict(inner.named_parameters()), "settings": settings}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_wrapped_model_grows_and_is_averaged_afterwards(tmp_path: Path) -> None:
    zero, one = on_ranks(2, tmp_path / "ranks", lambda rank: run(tmp_path / "wrapped", rank, wrap=True))
    assert isinstance(zero, dict), zero
    assert any("seed" in name for name in zero["grown"]), "a seed is kept"
    assert equal(zero["grown"], one["grown"])
    assert equal(zero["on"], one["on"]), "after the block the wrapper averages all that has grown"
    assert not equal(zero["on"], {name: zero["grown"][name] for name in zero["on"]})
    assert zero["settings"] == (True, 2**20)


@pytest.mark.slow
def test_a_wrapped_model_grows_as_a_bare_one(tmp_path: Path) -> None:
    zero, _ = on_ranks(2, tmp_path / "a", lambda rank: run(tmp_path / "wrapped", rank, wrap=True))
    bare, _ = on_ranks(2, tmp_path / "b", lambda rank: run(tmp_path / "bare", rank, wrap=False))
    assert isinstance(zero, dict) and isinstance(bare, dict), (zero, bare)
    assert equal(zero["grown"], bare["grown"])


@pytest.mark.slow
def test_a_wrapper_that_was_not_made_anew_lets_what_grew_drift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first test would see."""
    monkeypatch.setattr(wrapped, "_make_anew", lambda wrapper: None)
    zero, one = on_ranks(2, tmp_path / "a", lambda rank: run(tmp_path / "wrapped", rank, wrap=True))
    assert equal(zero["grown"], one["grown"]) and not equal(zero["on"], one["on"])


def refused(ask: Any) -> str:
    with pytest.raises(UsageError) as told:
        ask()
    return str(told.value)


def mistakes(rank: int) -> dict[str, str]:
    def grower(model: nn.Module, **how: Any) -> Grower:
        choices = OwnChoices(LOSS, at=["1"], budget=Budget(epochs=8), device="cpu", **how)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Grower(model, optimizer, val=VALIDATION, choices=choices, policy="static")

    hooked = DistributedDataParallel(narrow())
    hooked.register_comm_hook(None, lambda state, bucket: bucket.buffer())
    delaying = narrow()
    late = [("0.bias", delaying[0].bias)]
    delayed = DistributedDataParallel(
        delaying, delay_all_reduce_named_params=late, param_to_hook_all_reduce=delaying[0].weight
    )
    around = DistributedDataParallel(narrow())
    broken = DistributedDataParallel(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(KeyError), quiet(broken):
        broken.module[0] = nn.Linear(2, 2)
        raise KeyError
    whole = DistributedDataParallel(nn.Linear(2, 2))
    with pytest.raises(KeyError), quiet(whole):
        raise KeyError
    assert whole.require_backward_grad_sync and whole(torch.ones(1, 2)).shape == (1, 2)
    mesh = init_device_mesh("cpu", (2,))
    parallel = parallelize_module(narrow(), mesh, {"0": ColwiseParallel()})
    return {
        "sharded": refused(lambda: grower(fully_shard(narrow(), mesh=mesh))),
        "sharded inside": refused(lambda: grower(nn.Sequential(fully_shard(narrow(), mesh=mesh), nn.ReLU()))),
        "parallel": refused(lambda: grower(parallel)),
        "hooked": refused(lambda: grower(hooked)),
        "delayed": refused(lambda: grower(delayed)),
        "inside": refused(lambda: grower(nn.Sequential(DistributedDataParallel(narrow()), nn.ReLU()))),
        "forward": refused(lambda: grower(around.module, forward=lambda model, x: around(x))),
        "broken": refused(lambda: broken(torch.ones(1, 2))),
    }


def test_wrappers_that_cannot_be_had_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    zero, one = on_ranks(2, tmp_path / "ranks", mistakes)
    assert isinstance(zero, dict), zero
    assert zero == one
    fits = "legal: a host that fits on each device, its gradients averaged here, under torchrun"
    assert zero["sharded"] == f"the model is a FSDPSequential, which spreads its work over devices; {fits}"
    assert zero["sharded inside"].startswith("submodule '0' is a FSDPSequential") and zero["parallel"].endswith(fits)
    assert zero["parallel"].startswith("parameter 'weight' of submodule '0' is spread over devices (DTensor: tensor p")
    assert zero["hooked"].startswith("the model's DistributedDataParallel has a communication hook")
    assert zero["delayed"].startswith("the model's DistributedDataParallel has delay_all_reduce_named_params, and grad")
    assert zero["inside"].endswith("legal: one around the whole model, whose gradients are averaged here")
    assert zero["forward"].startswith("forward calls a DistributedDataParallel, which is not the model that was given")
    assert zero["broken"].startswith("the model has grown since it was wrapped")
