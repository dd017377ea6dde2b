"""The registry: names, third parties, and errors that say what is legal."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest
from torch import nn

from esper.kasmina.blueprints import Blueprint, add, build, get, names, register, registry
from esper.kasmina.layout import Layout
from esper.leyline import UsageError, plugins

PLUGIN = Blueprint("plugin", frozenset({Layout.NC}), lambda c: c * c + c, lambda c, _: nn.Linear(c, c))
NOT_A_BLUEPRINT = 3
HERE = __name__


@pytest.fixture(autouse=True)
def untouched_registry() -> Iterator[None]:
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)
    registry._load_entry_points.cache_clear()


def test_names_are_those_of_the_layout() -> None:
    assert {"norm", "pointwise", "depthwise3", "depthwise5", "conv3", "conv5", "conv7", "bottleneck"} <= set(
        names(Layout.NCHW)
    )
    assert {"lora", "mlp", "attention", "norm"} <= set(names(Layout.NTC))
    assert "attention" not in names(Layout.NC)


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(UsageError, match="did you mean 'conv3'"):
        build("cnov3", 8, Layout.NCL)
    with pytest.raises(UsageError, match="layout NC "):
        get("conv3", Layout.NC)


def test_a_name_is_given_once() -> None:
    with pytest.raises(UsageError, match="already"):
        register("norm", (Layout.NC,), lambda c: c)(lambda c, _: nn.Identity())
    with pytest.raises(UsageError, match="lower_snake_case"):
        register("Norm", (Layout.NC,), lambda c: c)(lambda c, _: nn.Identity())


def test_a_wrong_parameter_count_is_refused() -> None:
    register("liar", (Layout.NC,), lambda c: 7)(lambda c, _: nn.Linear(c, c))
    with pytest.raises(UsageError, match="declares 7 parameters for 3 channels and has 12"):
        build("liar", 3, Layout.NC)


def test_by_module_and_attribute() -> None:
    assert get(f"{HERE}:PLUGIN", Layout.NC) is PLUGIN
    assert isinstance(build(f"{HERE}:PLUGIN", 3, Layout.NC), nn.Linear)


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        (f"{HERE}:PLUGIN", "does not fit layout NCL"),
        (f"{HERE}:NOT_A_BLUEPRINT", "is a int"),
        (f"{HERE}:MISSING", "has no attribute 'MISSING'"),
        ("no_such_package:X", "cannot import"),
    ],
)
def test_references_that_lead_nowhere(reference: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        get(reference, Layout.NCL)


def test_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("plugin", f"{HERE}:PLUGIN", registry.ENTRY_POINTS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == registry.ENTRY_POINTS else [])
    registry._load_entry_points.cache_clear()
    assert get("plugin", Layout.NC) is PLUGIN
    assert "plugin" in names(Layout.NC)


def test_adding_is_all_or_nothing() -> None:
    taken = Blueprint("norm", frozenset(Layout), lambda c: 0, lambda c, _: nn.Identity())
    before = dict(registry._registered)
    with pytest.raises(UsageError):
        add(taken)
    assert registry._registered == before
