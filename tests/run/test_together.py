"""Runs of several ranks: they come to what one comes to with the same batches, or end with an error that says why."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import esper
from esper.leyline import EnvView, FactoredAction, Op, UsageError
from esper.leyline import TelemetryEventType as T
from esper.library import Budget, Grower, OwnChoices
from esper.nissa.reader import read_journal
from esper.nissa.rundir import RunDirectory
from esper.run.resume import CheckpointInfo
from esper.run.together import NOTHING_LOST, how_to_go_on
from esper.tolaria.ranks import RankLost, RanksDiffer, Together
from own_loop import LOSS, narrow, products
from ranked_loop import VALIDATION, Moves, Ranked, committed, germinate, going_on, grown, saving_after, saving_at
from ranks import on_ranks

pytestmark = pytest.mark.usefixtures("without_figures")


def decided(view: EnvView) -> list[Any]:
    """What is exactly the same on any number of ranks."""
    slots = [(s.stage, s.seed_id, s.blueprint, s.alpha, s.blocked_by, s.isolation_violations) for s in view.slots]
    return [view.epoch, view.last_outcome, *slots]


def measured(view: EnvView) -> list[float]:
    """What is the same but for the order of sums."""
    facts = [
        number
        for slot in view.slots
        for fact in (slot.removal_cost, slot.removal_cost_loss, slot.probe_gain_loss)
        if fact is not None
        for number in (fact.value.value, fact.value.se, float(fact.value.n))
    ]
    ratios = [slot.gradient_ratio.value for slot in view.slots if slot.gradient_ratio is not None]
    return [view.metric, view.loss, *facts, *ratios]  # type: ignore[list-item]


def require_alike(one: dict[str, Any], many: list[dict[str, Any]]) -> None:
    """One rank's run, and that of several."""
    for rank, found in enumerate(many):
        assert isinstance(found, dict), f"rank {rank}: {found}"
        for name, weight in many[0]["weights"].items():
            assert torch.equal(weight, found["weights"][name]), (rank, name)
        assert [repr(view) for view in found["views"]] == [repr(view) for view in many[0]["views"]]
        assert found["delivered"] == many[0]["delivered"] and found["run_dir"] == many[0]["run_dir"]
        assert all(torch.equal(found["plain"][name], weight) for name, weight in many[0]["plain"].items())
    for before, after in zip(one["views"], many[0]["views"], strict=True):
        assert decided(before) == decided(after)
        assert measured(after) == pytest.approx(measured(before), rel=2e-3, abs=1e-5)
    assert one["delivered"] == many[0]["delivered"]
    for name, weight in one["plain"].items():
        torch.testing.assert_close(many[0]["plain"][name], weight, rtol=1e-3, atol=1e-4)


def lived(found: dict[str, Any]) -> list[str]:
    """What became of seeds, in the journal."""
    names = {T.SEED_GERMINATED, T.SEED_FOSSILIZED, T.SEED_PRUNED, T.GOVERNOR_ROLLBACK}
    return [event.event_type.name for event in read_journal(found["run_dir"]) if event.event_type in names]


def test_two_ranks_come_to_what_one_comes_to(tmp_path: Path) -> None:
    ranked = Ranked(micro=2)
    many = on_ranks(2, tmp_path / "ranks", lambda rank: ranked.run(tmp_path / "two", rank, 2))
    one = ranked.run(tmp_path / "one")
    require_alike(one, many)
    assert lived(many[0]) == lived(one) == ["SEED_GERMINATED", "SEED_GERMINATED", "SEED_PRUNED", "SEED_FOSSILIZED"]
    spent = [
        [event.data["total_macs"] for event in read_journal(found["run_dir"]) if event.event_type is T.COMPUTE_SPENT]
        for found in (one, many[0])
    ]
    assert spent[0] == spent[1] != []


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "ranks"), [("heuristic", 4), ("auto", 2), ("esper-v1", 3)])
def test_whoever_decides_several_ranks_come_to_what_one_comes_to(policy: str, ranks: int, tmp_path: Path) -> None:
    """``auto`` has candidates learn behind the host, whose gradients are averaged too."""
    train = [products(96, seed) for seed in range(4)]
    ranked = Ranked(policy=lambda: policy, epochs=14, train=train)
    many = on_ranks(ranks, tmp_path / "ranks", lambda rank: ranked.run(tmp_path / "many", rank, ranks))
    require_alike(ranked.run(tmp_path / "one"), many)
    assert lived(many[0])


class Branched(nn.Module):
    """Some batches go another way, and there is one that none goes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.front, self.middle = nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.back, self.more, self.never = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.middle(self.front(x).relu())
        out: torch.Tensor = self.back(h) if x[0, 0] > 0 else self.back(h) + self.more(h)
        return out


@pytest.mark.slow
def test_what_learns_on_one_rank_alone_stays_the_same_on_all(tmp_path: Path) -> None:
    train = [products(64, seed) for seed in range(4)]
    ways = [{bool(x[rank, 0] > 0) for rank in (0, 1)} for x, _ in train]
    assert {True, False} in ways, "in some batch the ranks go different ways"
    ranked = Ranked(model=Branched, at=("middle",), policy=lambda: Moves({1: germinate("middle")}), epochs=4)
    zero, one = on_ranks(2, tmp_path / "ranks", lambda rank: ranked.run(tmp_path / "two", rank, 2))
    require_alike(zero, [zero, one])
    assert torch.equal(zero["weights"]["never.weight"], Branched().never.weight)
    assert not torch.equal(zero["weights"]["more.weight"], Branched().more.weight)


@pytest.mark.slow
def test_a_rank_that_is_silent_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    def silent(rank: int) -> Any:
        ranks = Together()
        time.sleep(9 * rank)
        return ranks.all(rank)

    found = on_ranks(2, tmp_path / "ranks", silent, timeout=3)
    assert [type(each) for each in found] == [RankLost] * 2 and "Timed out" in str(found[0])


@pytest.mark.slow
def test_a_metric_that_reduces_over_a_split_sees_it_once(tmp_path: Path) -> None:
    """torchmetrics puts together by itself what processes have, of which each here has all."""

    def metric() -> Any:
        from torchmetrics import SumMetric

        class Right(SumMetric):
            """How many answers are right: of an example that counts twice two."""

            higher_is_better = True

            def update(self, preds: Any, target: Any) -> None:
                super().update((preds.argmax(1) == target).float())

        return Right()

    ranked = Ranked(metric=metric())
    many = on_ranks(2, tmp_path / "ranks", lambda rank: ranked.run(tmp_path / "two", rank, 2))
    one = ranked.run(tmp_path / "one")
    require_alike(one, many)
    assert one["views"][-1].metric > 100.0


def normed() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 4))


@pytest.mark.slow
def test_fifty_epochs_of_two_ranks_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    """A seed is kept, one pruned, and a rank whose batches are beyond all bounds has all of them roll back."""
    moves = {1: germinate("2"), 4: FactoredAction(Op.ADVANCE, "2"), 9: FactoredAction(Op.FOSSILIZE, "2")}
    moves |= {12: germinate("0", "norm"), 16: FactoredAction(Op.PRUNE, "0"), 35: germinate("0", "mlp")}
    moves |= {38: FactoredAction(Op.ADVANCE, "0")}
    ranked = Ranked(policy=lambda: Moves(moves), epochs=50, model=normed, at=("2", "0"), spoilt=25)
    zero, one = on_ranks(2, tmp_path / "ranks", lambda rank: ranked.run(tmp_path / "two", rank, 2))
    require_alike(zero, [zero, one])
    assert lived(zero)[:5] == [
        "SEED_GERMINATED", "SEED_FOSSILIZED", "SEED_GERMINATED", "SEED_PRUNED", "GOVERNOR_ROLLBACK"
    ]  # fmt: skip
    assert len(zero["views"]) == 50 and "SEED_GERMINATED" in lived(zero)[5:]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 4])
def test_as_many_ranks_as_there_are_go_on(ranks: int, tmp_path: Path) -> None:
    """Each is given its share of the same batches: what two have begun comes to what one comes to."""

    saved = tmp_path / "growth.pt"
    begun = Ranked(at_epoch=saving_after(4, saved))
    assert len(on_ranks(2, tmp_path / "a", lambda rank: begun.run(tmp_path / "two", rank, 2))) == 2
    on = Ranked(begin=going_on(saved, 5))
    many = on_ranks(ranks, tmp_path / "b", lambda rank: on.run(tmp_path / "two", rank, ranks))
    one = Ranked().run(tmp_path / "one")
    assert isinstance(many[0], dict), many[0]
    require_alike(one | {"views": one["views"][5:]}, many)
    loaded = [e.data for e in read_journal(many[0]["run_dir"]) if e.event_type is T.CHECKPOINT_LOADED]
    assert loaded[-1]["differences"] == [f"ranks: saved by 2, here {ranks}"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_as_many_ranks_as_there_are_go_on_in_mid_epoch(ranks: int, tmp_path: Path) -> None:
    saved = tmp_path / "growth.pt"
    begun = Ranked(at_step=saving_at(4, 2, saved))
    if ranks == 2:  # batches of other sizes are normed otherwise
        begun = replace(begun, model=normed, at=("2", "0"), policy=lambda: Moves({1: germinate("2")}))
    whole = on_ranks(2, tmp_path / "a", lambda rank: begun.run(tmp_path / "two", rank, 2))
    on = replace(begun, begin=going_on(saved, 4), skip=3, at_step=Ranked().at_step)
    many = on_ranks(ranks, tmp_path / "b", lambda rank: on.run(tmp_path / "two", rank, ranks))
    assert isinstance(many[0], dict), many[0]
    if ranks == 2:
        require_alike(many[0], [*many, whole[0] | {"views": whole[0]["views"][4:]}])
    assert many[0]["losses"] == pytest.approx(whole[0]["losses"][4:], rel=1e-4), "each example is counted once"


def test_ranks_that_drift_apart_end_with_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where gradients of the second pass of seeds are left out of the average."""
    average = Together.average

    def host_alone(ranks: Together, parameters: Any) -> None:
        average(ranks, list(parameters)[:6])

    monkeypatch.setattr(Together, "average", host_alone)
    found = on_ranks(2, tmp_path / "ranks", lambda rank: Ranked().run(tmp_path / "two", rank, 2))
    assert [type(each) for each in found] == [RanksDiffer] * 2
    assert str(found[0]).startswith("rank 1 and rank 0 have drifted apart, in the weights slots.1.seed.")
    events = list(read_journal(tmp_path / "two" / "run"))
    (told,) = [event for event in events if event.event_type is T.RANKS_DIFFER]
    assert told.data["ranks"] == [1] and events[-1].data["status"] == "failed"


def refused(ask: Callable[[], Any]) -> str:
    with pytest.raises(UsageError) as told:
        ask()
    return str(told.value)


def grower(model: nn.Module | None = None, val: Any = VALIDATION, **how: Any) -> Grower:
    model = narrow() if model is None else model
    choices = OwnChoices(LOSS, at=["1"], budget=Budget(epochs=8, **how), device="cpu")
    return Grower(model, torch.optim.SGD(model.parameters(), lr=0.1), val=val, choices=choices, policy="static")


def mistakes(rank: int) -> dict[str, str]:
    def same_batch() -> None:
        with grower() as open_one:
            open_one.loss(*products(8, 0))

    def unshared() -> None:
        data = DataLoader(TensorDataset(*products(16, 0)), batch_size=4, shuffle=True)
        esper.grow(narrow(), train=data, val=VALIDATION, loss=LOSS, policy="static", device="cpu")

    return {
        "val": refused(lambda: grower(val=[products(64, rank)])),
        "shard": refused(lambda: grower(val=VALIDATION[rank::2])),
        "budget": refused(lambda: grower(max_seeds=1 + rank)),
        "model": refused(lambda: grower(narrow() if rank else nn.Sequential(*list(narrow())[:3], nn.Linear(8, 4)))),
        "same batch": refused(same_batch),
        "unshared": refused(unshared),
    }


def test_what_is_not_right_is_refused_on_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    zero, one = on_ranks(2, tmp_path / "ranks", mistakes)
    assert isinstance(zero, dict), zero
    assert zero == one
    for name in ("val", "shard"):
        assert zero[name].startswith("the validation data: rank 0 has data ")
    assert zero["budget"].startswith("Budget.max_seeds: rank 0 has 1, rank 1 2;")
    assert zero["model"].startswith("the model: rank 0 has one of shape")
    assert "all 2 ranks train on the same batch" in zero["same batch"]
    assert "sampler=DistributedSampler(dataset)" in zero["unshared"]


def test_ranks_with_more_batches_than_others_do_not_wait_for_ever(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        ranked = Ranked()
        return replace(ranked, train=ranked.train[: 4 - rank]).run(tmp_path / "two", rank, 2)

    found = on_ranks(2, tmp_path / "ranks", work)
    assert [type(each) for each in found] == [UsageError] * 2
    assert "rank 0 at: gradients of a batch" in str(found[0]) and "rank 1 at: end of an epoch" in str(found[0])


def test_a_rank_that_is_killed_ends_the_run_and_it_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    whole = on_ranks(2, tmp_path / "a", lambda rank: grown(tmp_path / "whole", rank, 2))
    died = on_ranks(2, tmp_path / "b", lambda rank: grown(run, rank, 2, die_at=26 if rank else None))
    assert isinstance(died[0], RankLost) and died[1] is None
    assert "rank 0 of 2 has lost rank 1, whose process " in str(
        died[0]
    ) and f"grow(..., resume={str(run)!r}) goes on" in str(died[0])
    assert len(str(died[0]).splitlines()) == 1
    on = on_ranks(2, tmp_path / "c", lambda rank: grown(run, rank, 2, resume=True))
    assert all(isinstance(each, dict) for each in (*whole, *on)), (whole, on)
    for name, weight in whole[0]["model"].items():
        assert all(torch.equal(weight, each["model"][name]) for each in (whole[1], *on)), name
    assert committed(run) == committed(tmp_path / "whole")
    assert on[0]["samples"] == 9, "the sampler was told every epoch, the killed one too"


def test_what_to_do_is_said_by_what_there_is(tmp_path: Path) -> None:
    run, about = RunDirectory.create(tmp_path, "run"), CheckpointInfo("library", {}, {}, how="resume={run!r} goes on")
    assert how_to_go_on(None, run).startswith(f"{NOTHING_LOST}: load the last grower.state_dict()")
    told = (
        f"no checkpoint is seen from here, in {run.checkpoints} (Budget.checkpoint_every); without one it begins anew"
    )
    assert how_to_go_on(about, run) == told, "rank 0 may see one, on another machine"
    (run.checkpoints / "ckpt-000001-step-00000002").mkdir(parents=True)
    told = f"{NOTHING_LOST}: resume={str(run.path)!r} goes on from its last checkpoint, on as many ranks or others"
    assert how_to_go_on(about, run) == told


@pytest.mark.slow
def test_all_ranks_stop_where_one_is_asked_to(tmp_path: Path) -> None:
    run, term = tmp_path / "run", signal.SIGTERM
    found = on_ranks(2, tmp_path / "a", lambda rank: grown(run, rank, 2, die_at=14 if rank else None, by=term))
    assert found == [f"Stopped: stopped by SIGTERM; grow(..., resume={str(run)!r}) goes on"] * 2
    saved = [event.data for event in read_journal(run) if event.event_type is T.CHECKPOINT_SAVED]
    assert saved[-1]["reason"] == "signal"


PAGE = Path(__file__).parent.parent.parent / "docs" / "recipes" / "parallel.md"


def test_the_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 40, "a recipe is a page"
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE))

    def follow(rank: int) -> Any:
        names: dict[str, Any] = {"model": narrow(), "epochs": 8}
        names |= {"train_set": TensorDataset(*products(64, 0)), "val_set": TensorDataset(*products(150, 1))}
        exec(code, names)
        return names["plain"](products(3, 2)[0])

    zero, one = on_ranks(2, tmp_path / "ranks", follow, joined=False)
    assert isinstance(zero, torch.Tensor), zero
    assert torch.equal(zero, one)


@pytest.mark.slow
def test_grow_joins_the_group_that_torchrun_has_made_ready(tmp_path: Path) -> None:
    found = on_ranks(2, tmp_path / "ranks", lambda rank: grown(tmp_path / "run", rank, 2), joined=False)
    assert isinstance(found[0], dict), found[0]
    assert all(torch.equal(weight, found[1]["model"][name]) for name, weight in found[0]["model"].items())
