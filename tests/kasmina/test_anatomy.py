"""What is told of a host's modules: all of them, once each, in the order of their calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.anatomy import anatomy, host_record
from esper.kasmina.macs import counted
from esper.kasmina.sites import spread
from esper.leyline.decoding import as_type
from esper.leyline.payloads.run import HostRecord


class Mixer(nn.Module):
    """A product of its own beside two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.drop = nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, h_BTC: Tensor) -> Tensor:
        weights_BTT = self.query(h_BTC) @ self.key(h_BTC).transpose(1, 2)
        return self.drop(weights_BTT @ h_BTC) * self.scale


class Tower(nn.Module):
    """Called in another order than it is defined in; a head that shares the weight of the first layer; a spare."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.spare = nn.Linear(4, 3, bias=False), nn.Linear(4, 2)
        self.layers = nn.ModuleList(Mixer() for _ in range(2))
        self.embed = nn.Linear(3, 4)
        self.tied = nn.Linear(4, 3, bias=False)
        self.tied.weight = self.head.weight

    def forward(self, x_BTC: Tensor) -> Tensor:
        h_BTC = self.embed(x_BTC)
        for _ in range(2):
            h_BTC = self.layers[0](h_BTC)
        return self.head(self.layers[1](h_BTC)) + self.tied(h_BTC)


X_BTC = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))


def named(host: nn.Module, at: list[str]) -> dict[str, str]:
    return {str(site): str(site) for site in spread(host, at)}


def test_parts_stand_in_the_order_of_their_calls_and_hold_everything_once() -> None:
    host = Tower()
    found = anatomy(host, named(host, ["+query"]), X_BTC)
    paths = ["embed", "layers.0", "layers.0.query", "layers.0.key", "layers.0.drop", "layers.1", "layers.1.query"]
    assert [part.path for part in found.parts] == [*paths, "layers.1.key", "layers.1.drop", "head", "tied", "spare"]
    assert sum(part.parameters for part in found.parts) == sum(p.numel() for p in host.parameters())
    with torch.no_grad():
        assert found.macs == counted(lambda: host.eval()(X_BTC)) > 0
    by_path = {part.path: part for part in found.parts}
    assert by_path["layers.0"].around and by_path["layers.0"].parameters == 4, "its scale"
    assert by_path["layers.0"].macs == 2 * 2 * (2 * 5 * 5 * 4), "two calls of two products over two examples"
    assert by_path["layers.0.query"].calls == 2 and by_path["layers.1.query"].calls == 1
    assert by_path["spare"].calls == 0 and by_path["spare"].parameters == 10
    assert sorted(by_path[name].parameters for name in ("head", "tied")) == [0, 12], "a tied weight is told once"


def test_a_module_is_taken_apart_only_as_far_as_there_are_sites_in_it() -> None:
    host = Tower()
    found = anatomy(host, {"first": "layers.0"}, X_BTC)
    assert "layers.0" in [part.path for part in found.parts] and "layers.0.query" not in [p.path for p in found.parts]
    assert {part.path: part.kind for part in found.parts}["layers.0"] == "Mixer"


def test_a_pass_leaves_no_trace() -> None:
    host = Tower().train()
    state = torch.get_rng_state()
    anatomy(host, {"first": "layers.0"}, X_BTC)
    assert host.training and host.layers[0].drop.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in host.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_the_record_is_of_one_example_and_fits_the_payload() -> None:
    host = Tower()
    record = host_record(host, named(host, ["+query"]), X_BTC, 2)
    assert record is not None
    assert record["macs"] == anatomy(host, named(host, ["+query"]), X_BTC).macs // 2
    assert sum(part["macs"] for part in record["parts"]) == record["macs"]
    assert record["sites"] == [
        {"slot": f"+layers.{n}.query", "path": f"layers.{n}.query", "beside": True} for n in range(2)
    ]
    assert as_type(record, "record", HostRecord) == record


@pytest.mark.parametrize("sample", [torch.randn(2, 5, 7), "no tensor"])
def test_a_host_that_does_not_take_the_sample_has_no_record(sample: object) -> None:
    host = Tower()
    assert host_record(host, {"first": "layers.0"}, sample, 2) is None  # type: ignore[arg-type]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in host.modules())
