"""A host of ``fully_shard`` grows as a plain one on a single rank does, with the same batches."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_together import lived, normed, require_alike
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef

from esper.kasmina import sharded
from esper.kasmina.growing import GrowingModel
from esper.leyline import FactoredAction, Op, UsageError
from esper.leyline import TelemetryEventType as T
from esper.library import Grower
from esper.nissa.reader import read_journal
from esper.tolaria.missing import RankLost
from esper.tolaria.ranks import RanksDiffer
from own_loop import LOSS, TRAIN, narrow, products
from ranked_loop import (
    VALIDATION,
    Moves,
    Ranked,
    committed,
    germinate,
    going_on,
    grown,
    halves,
    saving_after,
    saving_at,
    whole,
)
from ranks import on_ranks

pytestmark = pytest.mark.usefixtures("without_figures")
PAGE = Path(__file__).parents[2] / "docs" / "recipes" / "sharded.md"


def fsdp(model: nn.Module) -> nn.Module:
    """Sharded by layer, and around all."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for module in model.children():
        if any(True for _ in module.parameters()):
            fully_shard(module, mesh=mesh)
    whole_model: nn.Module = sharding(model, mesh)
    return whole_model


def sharding(model: Any, mesh: DeviceMesh) -> Any:
    """What it gives is a module, which it does not say."""
    return fully_shard(model, mesh=mesh)


class Watched(Ranked):
    """Goes on with the model without Esper when it has grown; notes what a rank holds of it meanwhile."""

    wrap: Callable[[nn.Module], nn.Module] = staticmethod(fsdp)

    def run(self, where: Path, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
        shard = torch.distributed.is_initialized()
        model = self.model()
        model = type(self).wrap(model) if shard else model
        kept: dict[str, Any] = {}

        def note(epoch: int, grower: Grower) -> None:
            kept["optimizer"] = grower._optimizer
            tensors = grower._loop.executor._envs[0].governor.state()["tensors"]
            kept["held"] = sum(t.numel() for n, t in tensors.items() if n.startswith(("model/", "optimizer/state")))
            self.at_epoch(epoch, grower)

        found = Ranked.run(replace(self, model=lambda: model, at_epoch=note), where, rank, ranks)
        found["held"] = kept["held"]
        if shard:
            assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
            assert all(isinstance(module, FSDPModule) for module in (model, next(model.children())))
        model.train()
        for number in range(3):
            x, y = halves(products(24, 10 * number), rank, ranks)
            kept["optimizer"].zero_grad()
            torch.autograd.backward(LOSS(model(x), y))
            total = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            kept["optimizer"].step()
        found["norm"] = float(whole(total))
        found["after"] = {name: whole(tensor).clone() for name, tensor in model.state_dict().items()}
        return found


def require_as_plain(one: dict[str, Any], many: list[Any]) -> None:
    """One rank's run of a plain host, and that of several of a sharded one, whose plain model is on rank 0."""
    assert isinstance(many[0], dict), many[0]
    assert all(found["plain"] == {} for found in many[1:])
    require_alike(one, [found | {"plain": many[0]["plain"]} for found in many])
    assert many[0]["norm"] == pytest.approx(one["norm"], rel=1e-3)
    for name, weight in one["after"].items():
        torch.testing.assert_close(many[0]["after"][name], weight, rtol=2e-3, atol=2e-4)
        assert torch.equal(many[1]["after"][name], many[0]["after"][name])


def spent(found: dict[str, Any]) -> list[int]:
    told = [event.data for event in read_journal(found["run_dir"]) if event.event_type is T.COMPUTE_SPENT]
    return [data["total_macs"] for data in told]


def come_to_the_same(ranked: Watched, where: Path) -> list[str]:
    """What became of seeds."""
    many = on_ranks(2, where / "ranks", lambda rank: ranked.run(where / "two", rank, 2))
    one = ranked.run(where / "one")
    require_as_plain(one, many)
    assert lived(many[0]) == lived(one)
    assert spent(many[0]) == spent(one) != []
    assert many[0]["held"] + many[1]["held"] == pytest.approx(one["held"], abs=40), "step counts are on both"
    return lived(one)


def test_two_ranks_come_to_what_one_comes_to_in_a_few_epochs(tmp_path: Path) -> None:
    moves = {1: germinate("1"), 2: FactoredAction(Op.ADVANCE, "1")}
    lives = come_to_the_same(Watched(policy=lambda: Moves(moves), epochs=4, train=TRAIN[:2]), tmp_path)
    assert lives[0] == "SEED_GERMINATED"


@pytest.mark.slow
def test_two_ranks_come_to_what_one_comes_to(tmp_path: Path) -> None:
    lives = come_to_the_same(Watched(micro=2), tmp_path)
    assert lives == ["SEED_GERMINATED", "SEED_GERMINATED", "SEED_PRUNED", "SEED_FOSSILIZED"]


@pytest.mark.slow
def test_ranks_with_more_batches_than_others_do_not_wait_for_ever(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        ranked = Watched()
        return replace(ranked, train=ranked.train[: 4 - rank]).run(tmp_path / "two", rank, 2)

    found = on_ranks(2, tmp_path / "ranks", work)
    assert [type(each) for each in found] == [UsageError] * 2
    assert "rank 0 at: pass over a batch" in str(found[0]) and "rank 1 at: end of an epoch" in str(found[0])


@pytest.mark.slow
def test_what_was_grown_grows_again(tmp_path: Path) -> None:
    """Clipped within the block, too."""

    def twice(rank: int) -> Any:
        model = fsdp(narrow())
        for turn in range(2):
            again = Ranked(model=lambda: model, at_step=lambda epoch, step, grower: clip(model), epochs=9)
            found = again.run(tmp_path / str(turn), rank, 2)
        return found

    def clip(model: nn.Module) -> None:
        assert torch.isfinite(whole(nn.utils.clip_grad_norm_(model.parameters(), 1.0)))

    zero, one = on_ranks(2, tmp_path / "ranks", twice)
    assert isinstance(zero, dict), zero
    require_alike(zero, [zero, one | {"plain": zero["plain"]}])
    assert len([name for name in zero["plain"] if name.endswith("seed.body.1.weight")]) == 2


@pytest.mark.slow
def test_norms_of_the_rows_of_a_rank_alone_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are on one rank each, and what is measured of them must be the same on all."""
    monkeypatch.setattr(sharded.Sharding, "sums", lambda sharding, figures: figures)
    found = on_ranks(2, tmp_path / "ranks", lambda rank: Watched().run(tmp_path / "two", rank, 2))
    assert [type(each) for each in found] == [RanksDiffer] * 2


@pytest.mark.slow
def test_gradients_that_are_sums_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first test would see."""
    mean = sharded._Gathered.backward
    monkeypatch.setattr(sharded._Gathered, "backward", staticmethod(lambda ctx, g: mean(ctx, g) * ctx.mesh.size()))
    ranked = Watched(micro=2)
    many = on_ranks(2, tmp_path / "ranks", lambda rank: ranked.run(tmp_path / "two", rank, 2))
    assert isinstance(many[0], dict), many[0]
    one = ranked.run(tmp_path / "one")
    with pytest.raises(AssertionError):
        require_as_plain(one, many)


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "ranks"), [("heuristic", 3), ("auto", 2), ("esper-v1", 2)])
def test_whoever_decides_several_ranks_come_to_what_one_comes_to(policy: str, ranks: int, tmp_path: Path) -> None:
    train = [products(96, seed) for seed in range(4)]
    ranked = Watched(policy=lambda: policy, epochs=14, train=train)
    many = on_ranks(ranks, tmp_path / "ranks", lambda rank: ranked.run(tmp_path / "many", rank, ranks))
    require_as_plain(ranked.run(tmp_path / "one"), many)
    assert lived(many[0])


@pytest.mark.slow
def test_seeds_beside_modules_are_folded(tmp_path: Path) -> None:
    moves = {1: germinate("2", "lora4"), 4: FactoredAction(Op.ADVANCE, "2"), 8: FactoredAction(Op.FOSSILIZE, "2")}
    ranked = Watched(policy=lambda: Moves(moves), at=("+2",))
    many = on_ranks(2, tmp_path / "ranks", lambda rank: ranked.run(tmp_path / "two", rank, 2))
    one = ranked.run(tmp_path / "one")
    require_as_plain(one, many)
    assert lived(one) == ["SEED_GERMINATED", "SEED_FOSSILIZED"]
    assert many[0]["plain"].keys() == narrow().state_dict().keys(), "it is in the weight"


@pytest.mark.slow
def test_a_rank_whose_batches_are_beyond_all_bounds_has_all_roll_back(tmp_path: Path) -> None:
    moves = {1: germinate("1"), 4: FactoredAction(Op.ADVANCE, "1"), 9: FactoredAction(Op.FOSSILIZE, "1")}
    ranked = Watched(policy=lambda: Moves(moves), epochs=16, spoilt=11)
    zero, one = on_ranks(2, tmp_path / "ranks", lambda rank: ranked.run(tmp_path / "two", rank, 2))
    assert isinstance(zero, dict), zero
    require_alike(zero, [zero, one | {"plain": zero["plain"]}])
    assert "GOVERNOR_ROLLBACK" in lived(zero) and torch.isfinite(torch.tensor(zero["losses"][-1]))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_as_many_ranks_as_there_are_go_on(ranks: int, tmp_path: Path) -> None:
    """On one rank the host is a plain one."""

    saved = tmp_path / "growth.pt"
    train = [products(96, seed) for seed in range(4)]
    begun = Watched(at_epoch=saving_after(4, saved), train=train)
    two = on_ranks(2, tmp_path / "a", lambda rank: begun.run(tmp_path / "two", rank, 2))
    assert isinstance(two[0], dict), two[0]
    on = Watched(begin=going_on(saved, 5), train=train)
    one = Watched(train=train).run(tmp_path / "one")
    one["views"] = one["views"][5:]
    if ranks == 1:
        found = on.run(tmp_path / "two")
        require_alike(one, [found])
        return
    many = on_ranks(ranks, tmp_path / "b", lambda rank: on.run(tmp_path / "two", rank, ranks))
    require_as_plain(one, many)
    loaded = [e.data for e in read_journal(many[0]["run_dir"]) if e.event_type is T.CHECKPOINT_LOADED]
    if ranks == 2:
        assert loaded[-1]["exact"]
        assert all(torch.equal(weight, many[0]["weights"][name]) for name, weight in two[0]["weights"].items())
    else:
        assert loaded[-1]["differences"] == [f"ranks: saved by 2, here {ranks}"]


@pytest.mark.slow
def test_ranks_go_on_in_mid_epoch(tmp_path: Path) -> None:
    saved = tmp_path / "growth.pt"
    begun = Watched(at_step=saving_at(4, 2, saved))
    two = on_ranks(2, tmp_path / "a", lambda rank: begun.run(tmp_path / "two", rank, 2))
    on = Watched(begin=going_on(saved, 4), skip=3)
    many = on_ranks(2, tmp_path / "b", lambda rank: on.run(tmp_path / "two", rank, 2))
    assert isinstance(many[0], dict), many[0]
    assert many[0]["losses"] == two[0]["losses"][4:]
    assert all(torch.equal(weight, many[0]["weights"][name]) for name, weight in two[0]["weights"].items())


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_and_it_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def work(where: Path, **how: Any) -> Callable[[int], Any]:
        return lambda rank: grown(where, rank, 2, make=lambda: fsdp(narrow()), **how)

    all_of_it = on_ranks(2, tmp_path / "a", work(tmp_path / "whole"))
    died = on_ranks(2, tmp_path / "b", lambda rank: work(run, die_at=26 if rank else None)(rank))
    assert isinstance(died[0], RankLost) and died[1] is None
    on = on_ranks(2, tmp_path / "c", work(run, resume=True))
    assert all(isinstance(each, dict) for each in (*all_of_it, *on)), (all_of_it, on)
    for name, weight in all_of_it[0]["model"].items():
        assert all(torch.equal(weight, each["model"][name]) for each in (all_of_it[1], *on)), name
    assert committed(run) == committed(tmp_path / "whole")


def test_a_shard_is_told_from_a_tensor_that_all_have() -> None:
    rows = torch.ones(2, 3)
    assert sharded.as_shards({"a.b": rows})["a.b"] is not None
    assert sharded.unmarked("x/a.b..7x3") == ("x/a.b", [7, 3])
    named = nn.Module()
    for odd in ("a@7", "7x3"):
        named.register_buffer(odd, rows)
    assert all(sharded.unmarked(f"x/{name}") == (f"x/{name}", None) for name in named.state_dict())
    with pytest.raises(KeyError):
        named.register_buffer("a..7x3", rows)  # torch refuses the name that would be taken for a shard's


@pytest.mark.slow
def test_buffers_that_training_writes_are_the_same_on_all(tmp_path: Path) -> None:
    """As where every rank has all of the host."""
    ranked = Ranked(policy=lambda: Moves({1: germinate("2"), 4: FactoredAction(Op.ADVANCE, "2")}), at=("2", "0"))
    plainly = on_ranks(2, tmp_path / "a", lambda rank: replace(ranked, model=normed).run(tmp_path / "one", rank, 2))
    many = on_ranks(
        2, tmp_path / "b", lambda rank: replace(ranked, model=lambda: fsdp(normed())).run(tmp_path / "two", rank, 2)
    )
    require_alike(plainly[0], [found | {"plain": many[0]["plain"]} for found in many])
    assert "1.running_mean" in many[0]["weights"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(12), nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        x, mask = self.first(h), nn.Transformer.generate_square_subsequent_mask(h.shape[1])
        h = h + self.attention(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]
        out: torch.Tensor = h + self.down(self.up(self.second(h)).relu())
        return out


class Talker(nn.Module):
    """A small language model: positions, attention that is causal, a head that is tied to the embedding.

    In double precision, in which the order of sums is not felt after ten epochs either.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.tokens, self.positions = nn.Embedding(7, 12), nn.Parameter(torch.randn(6, 12) * 0.1)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.tokens((x > 0).long() + 2 * (x > 1).long()) + self.positions
        for block in self.blocks:
            h = block(h)
        out: torch.Tensor = (self.norm(h).mean(1) @ self.tokens.weight.T)[:, :4]
        return out


def talker() -> Talker:
    return Talker().double()


def by_block(model: Talker) -> nn.Module:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    whole_model: nn.Module = sharding(model, mesh)
    return whole_model


@pytest.mark.slow
def test_a_language_model_of_uneven_shards_grows(tmp_path: Path) -> None:
    """With a tied weight, by three ranks, which do not divide its rows; a seed behind a block, and one beside a map."""
    moves = {1: germinate("blocks_0", "bottleneck"), 2: germinate("blocks_1_up", "lora2")}
    moves |= {4: FactoredAction(Op.ADVANCE, "blocks_0"), 5: FactoredAction(Op.ADVANCE, "blocks_1_up")}
    moves |= {8: FactoredAction(Op.FOSSILIZE, "blocks_0"), 9: FactoredAction(Op.FOSSILIZE, "blocks_1_up")}
    train = [products(48, seed) for seed in range(4)]
    at = ("blocks.0", "+blocks.1.up")
    ranked = Ranked(policy=lambda: Moves(moves), epochs=11, train=train, model=talker, at=at)
    spread = replace(ranked, model=lambda: by_block(talker()))
    many = on_ranks(3, tmp_path / "ranks", lambda rank: spread.run(tmp_path / "many", rank, 3))
    assert isinstance(many[0], dict), many[0]
    one = ranked.run(tmp_path / "one")
    require_alike(one, [found | {"plain": many[0]["plain"]} for found in many])
    assert lived(one).count("SEED_FOSSILIZED") == 2


def held(made: list[StorageWeakRef]) -> int:
    """How many are still there when gloo's threads, which hold what they have gathered a moment longer, are done."""
    end = time.monotonic() + 2.0
    while (there := sum(not each.expired() for each in made)) and time.monotonic() < end:
        time.sleep(0.01)
    return there


@pytest.mark.slow
def test_no_whole_weight_is_kept_between_a_pass_and_its_backward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of the host's own pass, made without Esper, is told."""
    gather, made = sharded.gathered, list[StorageWeakRef]()

    def noted(tensor: torch.Tensor) -> torch.Tensor:
        whole_one = gather(tensor)
        made.append(StorageWeakRef(whole_one.untyped_storage()))
        return whole_one

    def kept(rank: int) -> tuple[list[int], bool]:
        model, plain, (x, _) = fsdp(narrow()), narrow(), products(8, rank)
        torch.autograd.backward(plain(torch.cat([products(8, 0)[0], products(8, 1)[0]])).sum())
        found = []
        with sharded.resting(model):
            growing = GrowingModel.wrap(model, ["1"], x)
            for run in (model, growing):
                model.zero_grad()
                made.clear()
                loss = run(x).sum() * 2
                found.append(held(made))
                torch.autograd.backward(loss)
        pairs = zip(model.parameters(), plain.parameters(), strict=True)
        close = [torch.allclose(whole(mine.grad), its.grad, atol=1e-5) for mine, its in pairs]  # type: ignore[arg-type]
        return found, all(close)

    monkeypatch.setattr(sharded, "gathered", noted)
    found = on_ranks(2, tmp_path / "ranks", kept)
    assert found == [([2, 0], True)] * 2, "two of the weights are needed again"


@pytest.mark.slow
def test_the_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 40, "a recipe is a page"
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE))

    def follow(rank: int) -> Any:
        names: dict[str, Any] = {"model": narrow(), "batches": [halves(batch, rank, 2) for batch in TRAIN]}
        exec(code, names | {"val_loader": VALIDATION})

    assert on_ranks(2, tmp_path / "ranks", follow, joined=False) == [None, None]
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert not list((tmp_path / "ranks").glob("*.traceback"))
