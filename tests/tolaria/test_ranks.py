"""Processes that train together: what they exchange, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import DistBackendError

from esper.kasmina.growing import GrowingModel
from esper.leyline import EsperError, UsageError
from esper.run.config import RunConfig
from esper.run.open import RunRequest, prepare
from esper.tolaria import missing
from esper.tolaria.missing import Process, rank_lost
from esper.tolaria.ranks import (
    LONE,
    RankLost,
    RanksDiffer,
    Together,
    WrittenBuffers,
    checksums,
    digest,
    require_agreement,
    require_same,
)
from ranks import on_ranks


def gradients(*values: float | None) -> list[nn.Parameter]:
    """Parameters of several formats; ``None`` has no gradient."""
    kinds = (torch.float32, torch.float64, torch.bfloat16)
    made = []
    for value, kind in zip(values, kinds, strict=True):
        parameter = nn.Parameter(torch.zeros(2, 3, dtype=kind))
        parameter.grad = None if value is None else torch.full((2, 3), value, dtype=kind)
        made.append(parameter)
    return made


def first_entries(parameters: list[nn.Parameter]) -> list[float | None]:
    return [None if p.grad is None else float(p.grad[0, 0]) for p in parameters]


def odd() -> list[Tensor]:
    """Tensors of every kind that a model holds."""
    every_other = torch.arange(12.0).reshape(3, 4)[:, ::2]
    images = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    whole, yes = torch.tensor(7), torch.tensor([True, False, True])
    return [
        every_other,
        images,
        whole,
        yes,
        torch.randn(3, dtype=torch.complex64),
        torch.empty(0),
        torch.randn(1).half(),
    ]


def refused(ask: Any, kind: type[Exception] = UsageError) -> str:
    with pytest.raises(kind) as told:
        ask()
    return str(told.value)


def exchange(rank: int) -> dict[str, Any]:
    ranks, found = Together(), {}
    parameters = gradients(*(((1.0, None, None), (3.0, 4.0, None))[rank]))
    ranks.average(parameters)
    found["averaged"] = first_entries(parameters)
    ranks.average(parameters)  # of what is equal: nothing changes
    found["again"] = first_entries(parameters)
    torch.manual_seed(rank)
    tensors = odd()
    before = [tensor.clone() for tensor in tensors]
    ranks.spread(tensors)
    found["spread"], found["before"] = tensors, before
    found["all"] = ranks.all({"rank": rank})
    found["first"] = ranks.first(lambda: rank)
    found["error"] = refused(lambda: ranks.first(lambda: 1 // rank), ZeroDivisionError if rank == 0 else EsperError)
    found["mine"] = [number for number in range(5) if ranks.mine(number)]
    sparse = nn.Parameter(torch.zeros(2, 3))
    sparse.grad = torch.ones(2, 3).to_sparse()
    found["sparse"] = refused(lambda: ranks.average([sparse]))
    found["elsewhere"] = refused(lambda: ranks.average(gradients(1.0, 1.0, 1.0)) if rank else ranks.all(0))
    found["given"] = refused(lambda: require_same(ranks, {"seed": 0, "Budget.epochs": 3 + rank}))
    require_same(ranks, {"seed": 0})
    model = GrowingModel.wrap(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), ["1"], torch.randn(2, 3))
    ranks.spread(list(model.parameters()))
    require_agreement(ranks, model, lambda: "seen")
    found["figures"] = refused(lambda: require_agreement(ranks, model, lambda: rank), RanksDiffer)
    model.host[0].bias.data[1] += rank
    found["apart"] = refused(lambda: require_agreement(ranks, model, lambda: "seen"), RanksDiffer)
    norm = nn.BatchNorm1d(3)
    norm.register_buffer("fixed", torch.ones(2) * rank)
    written = WrittenBuffers(ranks, norm)
    norm(torch.randn(4, 3))
    written.after_step()
    found["running"] = [norm.running_mean.clone(), norm.fixed.clone()]
    written.after_epoch()
    found["fixed"] = norm.fixed.clone()
    return found


def test_two_ranks_exchange(tmp_path: Path) -> None:
    zero, one = on_ranks(2, tmp_path / "ranks", exchange)
    for found in (zero, one):
        assert found["averaged"] == found["again"] == [2.0, 2.0, None]
        assert found["all"] == [{"rank": 0}, {"rank": 1}] and found["first"] == 0
        assert "sparse" in found["sparse"]
        assert "rank 0 at: figures; rank 1 at: gradients of a batch (18 numbers)" in found["elsewhere"]
        assert found["given"].startswith("Budget.epochs: rank 0 has 3, rank 1 4;")
        apart = "rank 1 and rank 0 have drifted apart, in {}; the run ends"
        assert found["figures"] == apart.format("what was measured and decided")
        assert found["apart"] == apart.format("the weights host.0.bias")
        assert torch.equal(found["running"][0], zero["running"][0]) and found["fixed"].tolist() == [0.0, 0.0]
        for told, meant in zip(found["spread"], zero["before"], strict=True):
            assert told.dtype is meant.dtype and torch.equal(told, meant)
    assert "division" in zero["error"] and one["error"].startswith("rank 0 failed: ZeroDivisionError")
    assert (zero["mine"], one["mine"]) == ([0, 2, 4], [1, 3])
    assert one["running"][1].tolist() == [1.0, 1.0], "what no step writes is not sent at every step"


def test_a_rank_that_is_gone_is_an_error_and_no_wait(tmp_path: Path) -> None:
    def work(rank: int) -> str | None:
        ranks = Together()
        ranks.all(rank)  # both are there before one leaves
        return None if rank else refused(lambda: ranks.all(0), RankLost)

    told, _ = on_ranks(2, tmp_path / "ranks", work)
    assert told.startswith("rank 0 of 2 has lost rank 1")


def test_a_process_that_is_gone_is_known_to_be_on_its_own_machine() -> None:
    here = Process.this()
    assert not here.gone() and here.machine
    assert replace(here, began="1").gone(), "another process has its number now"
    assert not replace(here, began="1", machine="elsewhere").gone()
    silent = RuntimeError("[/gloo/transport/tcp/buffer.cc:1] Timed out. More.")
    told = rank_lost(silent, 1, 3, [here, here, replace(here, began="1")])
    assert str(told) == f"rank 1 of 3 has lost rank 2, whose process {here.pid} is gone (Timed out)"


NCCL = "NCCL error in: /pytorch/NCCLUtils.hpp:268, {}, NCCL version 2.21.5\n{}"


@pytest.mark.parametrize(
    ("error", "lost", "certain"),
    [
        (RuntimeError("[/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset"), (1, 1), (1, 1)),
        (RuntimeError("[enforce fail at /home/gloo/gloo/allreduce.cc:24] opts.elements > 0"), (0, 0), (0, 0)),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), (0, 0), (0, 0)),
        (ValueError("[/gloo/transport/tcp/pair.cc:537] Connection closed by peer"), (0, 0), (0, 0)),
        (
            DistBackendError(NCCL.format("remote process exited or there was a network error", "ncclRemoteError: A")),
            (1, 1), (0, 1),
        ),
        (
            DistBackendError(NCCL.format("internal error", "Last error:\nNet : Connection closed by remote peer")),
            (1, 1), (0, 1),
        ),
        (DistBackendError("Watchdog caught collective operation timeout: WorkNCCL(...)"), (1, 1), (0, 1)),
        (DistBackendError(NCCL.format("invalid usage", "Duplicate GPU detected")), (0, 1), (0, 0)),
        (DistBackendError(NCCL.format("unhandled cuda error", "Cuda failure 'out of memory'")), (0, 1), (0, 0)),
    ],
)  # fmt: skip
def test_what_a_backend_says_of_a_rank_that_is_gone_is_told_from_other_errors(
    error: Exception, lost: tuple[int, int], certain: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missing, "_PATIENCE", 0.0)
    here = Process.this()
    for gone, other in enumerate([here, replace(here, began="1")]):
        told = rank_lost(error, 0, 2, [here, other])
        assert (told is not None) is bool(lost[gone])
        assert told is None or told.__cause__ is (None if certain[gone] else error)


def test_one_process_has_no_one_to_ask() -> None:
    (parameter, *_) = parameters = gradients(1.0, None, 2.0)
    LONE.average(parameters)
    assert first_entries(parameters) == [1.0, None, 2.0]
    assert LONE.all(3) == [3] and LONE.first(lambda: 4) == 4 and LONE.mine(9)
    LONE.spread([parameter])


def test_a_checksum_sees_every_bit() -> None:
    weights = {
        "a": torch.randn(5),
        "b": torch.zeros(2),
        "c": torch.tensor(True),
        "d": torch.randn(2).to(torch.float8_e5m2),
    }
    before = checksums(weights)
    assert before == checksums({name: tensor.clone() for name, tensor in weights.items()})
    weights["b"][1] = -0.0
    weights["a"][2] = torch.nextafter(weights["a"][2], torch.tensor(9.0))
    after = checksums(weights)
    assert {name for name in before if before[name] != after[name]} == {"a", "b"}
    assert digest([torch.ones(2)]) != digest([torch.ones(2, 1)]) != digest([torch.zeros(2, 1)])


def test_training_a_task_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="esper train heuristic runs in 2 processes that train together"):
        prepare(RunRequest("heuristic", RunConfig, {"run_dir": str(tmp_path / "run")}))
