"""What cannot be grown as it comes is refused with what can be done; what can be helped is helped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from esper import Budget, Grower, OwnChoices, Site, UsageError
from esper.kasmina.auto import auto_sites
from esper.kasmina.growing import GrowingModel, named_sites
from esper.kasmina.hosts import check_host, fill_lazy
from own_loop import LOSS, VALIDATION, epoch, steps


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


class Around(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_is_refused_with_the_one_to_give() -> None:
    for host in (torch.jit.script(plain()), Around(torch.jit.script(plain()))):
        with pytest.raises(UsageError, match="is scripted.* give the module that it was made from"):
            auto_sites(host, torch.randn(2, 6))


def test_what_spreads_over_devices_is_refused_with_the_module_inside() -> None:
    with pytest.raises(UsageError, match=r"the model is a DataParallel, .* give the module inside, model\.module"):
        check_host(nn.DataParallel(plain()))
    with pytest.raises(UsageError, match=r"'part' is a DataParallel, .* give the module inside, its\.module"):
        check_host(Around(nn.DataParallel(plain())))


class OptimizedModule(nn.Module):
    """Named like what ``torch.compile`` returns; the real one loads the compiler, which takes seconds."""


@pytest.mark.parametrize(
    "make", [OptimizedModule, pytest.param(lambda: torch.compile(plain(), backend="eager"), marks=pytest.mark.slow)]
)
def test_what_compile_made_is_refused_with_the_module_inside(make: Any) -> None:
    with pytest.raises(UsageError, match=r"give the module inside, model\._orig_mod, and compile it in place"):
        check_host(make())
    with pytest.raises(UsageError, match=r"'part' is what torch\.compile made; give the module inside, its _orig_mod"):
        check_host(Around(make()))


def test_a_model_that_is_being_grown_is_refused() -> None:
    host = plain()
    model = GrowingModel.wrap(host, ["1"], torch.randn(2, 6))
    for each in (host, model):
        with pytest.raises(UsageError, match="being grown already"):
            check_host(each)


def lazy() -> nn.Sequential:
    return nn.Sequential(
        nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 4)
    )


def test_lazy_layers_are_filled_and_stay_in_the_optimizer() -> None:
    with pytest.raises(UsageError, match="'0' is lazy .* call the model on one batch"):
        check_host(lazy())
    host = lazy()
    optimizer = torch.optim.SGD(host.parameters(), lr=0.1)
    fill_lazy(host, torch.randn(3, 6))
    check_host(host)
    assert host.training and not host[1].num_batches_tracked
    host(torch.randn(3, 6)).sum().backward()
    before = [parameter.clone() for parameter in host.parameters()]
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, host.parameters(), strict=True))


def test_a_lazy_model_grows_in_a_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = lazy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    choices = OwnChoices(LOSS, at=["2"], budget=Budget(epochs=1))
    with Grower(model, optimizer, val=VALIDATION, choices=choices, policy="static", run_dir=tmp_path / "run") as grower:
        epoch(grower, optimizer)
    assert isinstance(grower.result.model, nn.Sequential)


def test_places_may_be_sites_and_never_share_a_name() -> None:
    found = named_sites(["b.0", Site("b_0", batch_axis=0), "b.1"])
    assert {slot: site.path for slot, site in found.items()} == {"b_0": "b.0", "b_0_2": "b_0", "b_1": "b.1"}
    for wrong, why in ((["a", "a"], "'a' is named twice"), ([3], "not a int"), ([], "no sites given")):
        with pytest.raises(UsageError, match=why):
            named_sites(wrong)  # type: ignore[arg-type]


def test_a_site_can_be_said_in_the_choices(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        """Its batch is always of four: no trial pass can tell which axis that is."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 8), nn.Linear(16, 4)

        def forward(self, x: Any) -> Any:
            return self.head(self.body(x.reshape(2, 2, 3)).flatten(1))

    batch = [(torch.randn(2, 6), torch.tensor([0, 1]))]
    for at, legal in ((["body"], False), ([Site("body", batch_axis=0)], True), ({"slot": Site("body", None, 0)}, True)):
        model = Fixed()
        choices = OwnChoices(LOSS, metric="loss", at=at, budget=Budget(epochs=1))
        optimizer, where = torch.optim.SGD(model.parameters(), 0.1), tmp_path / str(at)[:9]
        grower = Grower(model, optimizer, val=batch, choices=choices, policy="static", run_dir=where)
        if legal:
            with pytest.raises(UsageError, match="after_epoch"), grower:
                grower.loss(*batch[0])
                assert len(grower.view.slots) == 1
        else:
            with pytest.raises(UsageError, match=r"say Site\(path, batch_axis"), grower:
                pass


class WithMask(nn.Module):
    """Keeps a mask of minus infinities, as attention has it, and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))

    def forward(self, x: Any) -> Any:
        return self.head(torch.relu(self.norm(self.body(x)))) @ self.mask.softmax(-1)


@pytest.mark.parametrize("broken", [False, True])
def test_a_mask_of_infinities_is_no_broken_weight_and_a_broken_statistic_is_one(broken: bool, tmp_path: Path) -> None:
    model = WithMask()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    choices = OwnChoices(LOSS, at=["norm"], budget=Budget(epochs=1))
    with Grower(model, optimizer, val=VALIDATION, choices=choices, policy="static", run_dir=tmp_path / "run") as grower:
        steps(grower, optimizer)
        if broken:
            model.norm.running_var[0] = float("inf")
        grower.after_epoch()
    text = (tmp_path / "run" / "events-00001.jsonl").read_text()
    assert ("non_finite_weights" in text) == broken
