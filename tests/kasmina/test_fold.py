"""Linear seeds beside a module are folded into its weight where that is right, else they are modules of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_beside import CASES, Text, put, wrapped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from esper.kasmina.blueprints import Blueprint
from esper.kasmina.export import compare, export, save_export
from esper.kasmina.growing import GrowingModel
from esper.kasmina.layer import Beside, Layer
from esper.kasmina.macs import counted
from esper.kasmina.portable import Grown
from esper.leyline import SeedStage


def kinds(module: nn.Module) -> list[type]:
    return [type(each) for each in module.modules()]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_a_folded_seed_costs_nothing_and_changes_no_class(name: str, alpha: float, tmp_path: Path) -> None:
    model, sample = wrapped(name)
    model.eval()
    with torch.no_grad():
        bare = model(sample)
    macs = counted(lambda: model(sample))
    put(model, SeedStage.HOLDING, alpha)
    assert counted(lambda: model(sample)) > macs
    plain = export(model, sample=sample)
    whole = {slot_id for slot_id, verdict in model.folds.items() if verdict is False}
    files = save_export(model, tmp_path, sample)
    assert set(files.unfolded) == {f"{slot_id}-1" for slot_id in set(model.folds) - whole}
    if whole == set(model.folds):
        assert kinds(plain) == kinds(CASES[name].build()) and counted(lambda: plain(sample)) == macs
    difference = compare(model, plain, sample)
    with torch.no_grad():
        assert difference.same and not torch.allclose(model(sample), bare, atol=1e-3)


class Tied(nn.Module):
    """The table is the head's weight too, or is used by the way."""

    def __init__(self, by_the_way: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 8)
        self.by_the_way = by_the_way
        if not by_the_way:
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.tanh(self.mix(self.embed(tokens))).mean(1)
        return F.linear(x, self.embed.weight) if self.by_the_way else self.head(x)


@pytest.mark.parametrize(
    ("by_the_way", "says"),
    [(False, "the weight of embed is tied to that of head"), (True, "the host uses the weight of embed elsewhere")],
)
def test_a_weight_that_is_used_twice_is_not_folded_into(by_the_way: bool, says: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (4, 6))
    model = GrowingModel.wrap(Tied(by_the_way).eval(), ["+embed", "+mix"], tokens)
    put(model, SeedStage.HOLDING, 1.0)
    files = save_export(model, tmp_path, tokens)
    assert list(files.unfolded) == ["embed-1"] and files.unfolded["embed-1"].startswith(says)
    assert f"# not folded into the weight: {says}" in files.code.read_text()
    plain = export(model)
    assert isinstance(plain.embed, Grown) and type(plain.mix) is nn.Linear
    assert compare(model, plain, tokens).same
    if not by_the_way:
        assert plain.head.weight is plain.embed.weight


class Turned(nn.Module):
    """A linear layer that keeps its weight with the inputs first, as GPT-2's do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, width) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Scaled(nn.Linear):
    """Its output is not that of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


class Standardised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


ELSEWHERE = "the host uses the weight of 0 elsewhere, or otherwise than as a plain linear map"


@pytest.mark.parametrize(
    ("layer", "verdict"),
    [
        (lambda: Turned(8), True),
        (lambda: Turned(5), True),
        (lambda: nn.Linear(8, 8), False),
        (lambda: Scaled(8, 8), ELSEWHERE),
        (
            lambda: Standardised(8, 8),
            ELSEWHERE,
        ),
        (lambda: parametrizations.weight_norm(nn.Linear(8, 8)), "0 has a parametrized weight"),
        (lambda: parametrizations.orthogonal(nn.Linear(8, 8)), "0 has a parametrized weight"),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU()), "0 has no weight of its own"),
    ],
)
def test_what_the_weight_is_to_the_module_is_proven_at_wrap(layer: object, verdict: bool | str) -> None:
    torch.manual_seed(0)
    sample = torch.randn(5, 8)
    first = layer()  # type: ignore[operator]
    width = 5 if isinstance(first, Turned) and first.weight.shape[1] == 5 else 8
    model = GrowingModel.wrap(nn.Sequential(first, nn.Tanh(), nn.Linear(width, 3)).eval(), ["+0"], sample)
    assert model.folds == {"0": verdict}
    put(model, SeedStage.HOLDING, 0.8)
    plain = export(model)
    assert isinstance(plain[0], Grown) is isinstance(verdict, str)
    assert compare(model, plain, sample).same


def test_the_mutant_a_wrong_way_to_fold_is_caught_on_the_sample(tmp_path: Path) -> None:
    model, sample = wrapped("text")
    put(model, SeedStage.HOLDING, 1.0)
    model.eval()
    model.folds["attention_0_query"] = True  # a square weight: turned, it is another map
    assert not compare(model, export(model), sample).same
    assert compare(model, export(model, sample=sample), sample).same
    assert "would change outputs by" in save_export(model, tmp_path, sample).unfolded["attention_0_query-1"]


def test_what_rounding_would_swallow_stays_a_module() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (4, 6))
    model = GrowingModel.wrap(Text().bfloat16().eval(), ["+query"], tokens)
    put(model, SeedStage.HOLDING, 1.0)
    assert type(export(model).attention[0].query) is nn.Linear
    seed = model.slots["attention_0_query"].seed
    assert seed is not None
    with torch.no_grad():
        seed.up.weight.mul_(1e-3)
    plain = export(model)
    assert isinstance(plain.attention[0].query, Grown) and type(plain.attention[1].query) is nn.Linear


class Lying(nn.Module):
    """Its ``delta`` is not what it computes."""

    def __init__(self, outputs: int, fit: Beside) -> None:
        super().__init__()
        self.map = fit.map(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x).tanh()

    def delta(self) -> Tensor:
        return self.map.weight


lying = Blueprint("lying", frozenset({Layer.LINEAR}), lambda fit: fit.inputs * fit.outputs, Lying)


def test_a_seed_whose_delta_is_not_what_it_computes_is_not_folded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (4, 6))
    model = GrowingModel.wrap(Text().eval(), ["+attention.0.query", "+attention.1.query"], tokens)
    for slot, blueprint in zip(model.slots.values(), (f"{__name__}:lying", "adapter16"), strict=True):
        assert slot.germinate(blueprint).passed and slot.state is not None
        slot.state.stage, slot.state.alpha = SeedStage.HOLDING, 1.0
    plain = export(model, sample=tokens)
    assert compare(model, plain, tokens).same
    assert isinstance(plain.attention[0].query, Grown) and isinstance(plain.attention[1].query, Grown)


def test_files_with_folded_seeds_and_others_load_where_there_is_no_esper(tmp_path: Path) -> None:
    model, sample = wrapped("images")
    put(model, SeedStage.FOSSILIZED, 0.9)
    files = save_export(model.eval(), tmp_path, sample)
    assert set(files.unfolded) == {"3-1"} and not files.needs_host
    with torch.no_grad():
        save_file({"sample": sample, "output": model(sample)}, tmp_path / "expected.safetensors")
    code = """
import sys
sys.modules["esper"] = None
import model, torch
expected = model.read_tensors("expected.safetensors")
network = model.load()
print(float((network(expected["sample"]) - expected["output"]).abs().max()), *(type(each).__name__ for each in network))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    difference, *names = done.stdout.split()
    assert float(difference) <= 1e-5
    assert names == ["Conv2d", "BatchNorm2d", "ReLU", "GrownBeside", "Conv2d", "AdaptiveAvgPool2d", "Flatten", "Linear"]


def test_of_what_is_hardly_felt_it_is_told_all_the_same() -> None:
    """A fresh model attends to all alike: its output hardly feels a query."""
    torch.manual_seed(0)
    host = Text().eval()
    with torch.no_grad():
        for attention in host.attention:
            for part in (attention.query, attention.key):
                part.weight.mul_(1e-2)
                part.bias.mul_(1e-2)
    model = GrowingModel.wrap(host, ["+query"], torch.randint(0, 11, (4, 6)))
    assert model.folds == {"attention_0_query": False, "attention_1_query": False}
