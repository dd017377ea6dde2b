"""Modules written down as source."""

from __future__ import annotations

from typing import Any

import pytest
from small_hosts import Writer
from torch import Tensor, nn

from esper.kasmina.replay import same
from esper.kasmina.source import CannotWrite, Source


class Lambda(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.Sequential(nn.Linear(2, 2), Lambda()), r"^1 \(Lambda\): .* cannot be imported by name"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "Linear"),
    ],
)
def test_what_has_no_form_as_source_is_named(module: nn.Module, why: str) -> None:
    with pytest.raises(CannotWrite, match=why):
        Source().module(module)


@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(3, 4, num_layers=2, bidirectional=True),
        nn.TransformerEncoderLayer(8, 2, 16, activation="gelu"),
        nn.Sequential(nn.Conv2d(2, 3, 3, padding="same"), nn.BatchNorm2d(3, affine=False), nn.ReLU(inplace=True)),
        nn.ModuleDict({"a": nn.Linear(2, 2).double(), "b": nn.ModuleList([nn.Identity()])}),
        Writer(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_an_expression_makes_the_same_module(module: nn.Module) -> None:
    source = Source()
    expression = source.module(module)
    space: dict[str, Any] = {}
    exec("from __future__ import annotations\n" + source.text(), space)
    twin = eval(expression, space)  # noqa: S307 - our own text
    assert repr(twin) == repr(module)
    twin.load_state_dict(module.state_dict())
    assert same(dict(twin.state_dict()), dict(module.state_dict()))


def test_two_things_of_one_name_get_two_names() -> None:
    source = Source(reserved=("load",))
    assert source.imported("json", "load") == "load_"
    assert source.imported("pathlib", "Path") == "Path"
    assert source.define("esper.kasmina.structure", "Path") == "Path_"
    assert source.define("esper.kasmina.structure", "get") == "get"
    space: dict[str, Any] = {}
    exec("from __future__ import annotations\n" + source.text(), space)
    assert space["get"]({"a": [1, 2]}, ("a", 1)) == 2
    assert "from json import load as load_" in source.text()


@pytest.mark.parametrize(
    "value", [1, -2.5, float("inf"), "x", None, True, (1,), [1, (2, 3)], {"a": {1, 2}}, int, nn.ReLU], ids=repr
)
def test_plain_values_come_back(value: Any) -> None:
    source = Source()
    text = source.value(value)
    space: dict[str, Any] = {}
    exec(source.text(), space)
    assert eval(text, space) == value  # noqa: S307 - our own text


@pytest.mark.parametrize("value", [object(), lambda: 0, {1: object()}], ids=["object", "lambda", "inside"])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(CannotWrite):
        Source().value(value)
