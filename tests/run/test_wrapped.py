"""A model in ``DistributedDataParallel`` grows inside of it, and is averaged by it again afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
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


def sharded(**how: Any) -> Any:
    return fully_shard(narrow(), **how)


def refused(ask: Any) -> str:
    with pytest.raises(UsageError) as told:
        ask()
    return str(told.value)


def oddly_sharded(mesh: DeviceMesh) -> dict[str, Any]:
    several, compiled, partly, tensor, own = narrow(), narrow(), narrow(), narrow(), narrow()
    fully_shard([several[0], several[2]], mesh=mesh)
    fully_shard(compiled, mesh=mesh)
    compiled.compile(backend="eager")
    fully_shard(partly[0], mesh=mesh)
    parallelize_module(tensor, mesh, {"0": ColwiseParallel()})
    fully_shard(own, mesh=mesh, shard_placement_fn=lambda parameter: Shard(parameter.ndim - 1))
    bf16, inner = MixedPrecisionPolicy(param_dtype=torch.bfloat16), nn.Linear(6, 6)
    fully_shard(inner, mesh=mesh)
    return {
        "precision": sharded(mesh=mesh, mp_policy=bf16),
        "several": fully_shard(several, mesh=mesh),
        "compiled": compiled,
        "partly": partly,
        "tensor parallel inside": nn.Sequential(inner, tensor),
        "other axes": own,
        "replicas": sharded(mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("many", "one"))),
    }


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
        "parallel": refused(lambda: grower(parallel)),
        **{f"sharded: {way}": refused(lambda m=model: grower(m)) for way, model in oddly_sharded(mesh).items()},
        "sharded: scaled": refused(lambda: grower(sharded(mesh=mesh), precision="16-mixed")),
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
    assert zero["parallel"].endswith(fits)
    assert zero["sharded: precision"].startswith("the model's fully_shard has a MixedPrecisionPolicy; legal: one with")
    assert zero["sharded: several"].endswith("several modules at once; legal: fully_shard of each")
    assert zero["sharded: compiled"].startswith("the forward pass of the model is compiled, and the host sharded;")
    assert zero["sharded: partly"].startswith("parameter 'weight' of submodule '2' is not sharded, and others are;")
    odd = "is spread over devices in another way than by rows, by fully_shard"
    assert zero["sharded: tensor parallel inside"].startswith(f"parameter 'weight' of submodule '1.0' {odd}")
    for way in ("other axes", "replicas"):
        assert zero[f"sharded: {way}"].startswith(f"parameter 'weight' of submodule '0' {odd}"), way
    assert zero["sharded: scaled"].startswith("precision '16-mixed' with a host of fully_shard; legal: 'bf16-mixed'")
    assert zero["parallel"].startswith("parameter 'weight' of submodule '0' is spread over devices (DTensor: tensor p")
    assert zero["hooked"].startswith("the model's DistributedDataParallel has a communication hook")
    assert zero["delayed"].startswith("the model's DistributedDataParallel has delay_all_reduce_named_params, and grad")
    assert zero["inside"].endswith("legal: one around the whole model, whose gradients are averaged here")
    assert zero["forward"].startswith("forward calls a DistributedDataParallel, which is not the model that was given")
    assert zero["broken"].startswith("the model has grown since it was wrapped")
