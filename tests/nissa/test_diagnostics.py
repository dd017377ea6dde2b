from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from event_strategies import same_event
from torch import nn

from esper.leyline import TelemetryEventType, UsageError
from esper.nissa.diagnostics import (
    VANISHING,
    DiagnosticTracker,
    EpochSnapshot,
    RedFlag,
    diagnostic_event,
    diagnostic_payload,
)
from esper.nissa.profiles import TelemetryConfig
from esper.nissa.wire import decode, encode

RESEARCH = TelemetryConfig.from_profile("research")


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 6, generator=generator), torch.arange(16) % 3


def backward(net: nn.Module) -> float:
    net.zero_grad()
    inputs, targets = batch()
    loss = nn.functional.cross_entropy(net(inputs), targets)
    loss.backward()
    return float(loss.detach())


def test_gradients_are_those_of_the_layers() -> None:
    net = model()
    tracker = DiagnosticTracker(net, RESEARCH)
    backward(net)
    tracker.on_backward()
    snapshot = tracker.end_epoch(3, train_loss=1.0)
    assert snapshot.layers is not None and set(snapshot.layers) == {"0", "2"}
    for name in ("0", "2"):
        flat = torch.cat([p.grad.flatten() for p in net[int(name)].parameters()])  # type: ignore[union-attr]
        layer = snapshot.layers[name]
        # single precision, summed in another order
        assert layer.norm == pytest.approx(float(flat.norm()), rel=1e-5)
        assert layer.vanishing == pytest.approx(float((flat.abs() < VANISHING).float().mean()))
        assert (layer.exploding, layer.parameters, layer.steps) == (0.0, flat.numel(), 1)
        assert layer.percentiles is not None
        assert layer.percentiles["p50"] == pytest.approx(float(flat.quantile(0.5)), rel=1e-5, abs=1e-7)
    total = torch.cat([p.grad.flatten() for p in net.parameters()])  # type: ignore[union-attr]
    assert snapshot.gradient_norm == pytest.approx(float(total.norm()), rel=1e-5)


def test_the_mean_is_over_the_steps_looked_at_and_an_epoch_starts_afresh() -> None:
    net = nn.Linear(1, 1, bias=False)
    tracker = DiagnosticTracker(net, TelemetryConfig(layers=("*",), stride=3))
    for step in range(7):
        net.weight.grad = torch.full((1, 1), float(step))
        tracker.on_backward()
    layers = tracker.end_epoch(1).layers
    assert layers is not None and layers["model"].norm == pytest.approx((0 + 3 + 6) / 3) and layers["model"].steps == 3
    assert tracker.end_epoch(2).layers is None


def test_what_was_not_measured_is_absent_not_zero() -> None:
    tracker = DiagnosticTracker(model(), RESEARCH)
    assert tracker.end_epoch(1).to_dict() == {"epoch": 1, "red_flags": []}
    net = model()
    net[0].requires_grad_(False)
    tracker = DiagnosticTracker(net, RESEARCH)
    backward(net)
    tracker.on_backward()
    layers = tracker.end_epoch(1).layers
    assert layers is not None and set(layers) == {"2"}, "a layer without gradient has no health, good or bad"


def test_patterns_that_match_nothing_are_an_error_that_names_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"layer pattern 'host.conv1' matches nothing; modules with parameters: 0, 2"):
        DiagnosticTracker(model(), TelemetryConfig(layers=("0", "host.conv1")))
    with pytest.raises(UsageError, match=r"\(none\)"):
        DiagnosticTracker(nn.ReLU(), TelemetryConfig(layers=("*",)))
    DiagnosticTracker(nn.ReLU(), TelemetryConfig.from_profile("minimal"))


def test_layers_that_come_and_go_are_followed() -> None:
    net = model()
    tracker = DiagnosticTracker(net, RESEARCH)
    net.add_module("seed", nn.Linear(3, 3))
    backward(net)
    tracker.on_backward()
    snapshot = tracker.end_epoch(1)
    assert snapshot.layers is not None and "seed" in snapshot.layers
    backward(net)
    tracker.on_backward()
    snapshot = tracker.end_epoch(2)
    assert snapshot.activations is not None and "seed" in snapshot.activations, "hooked from the next epoch on"
    del net.seed
    backward(net)
    tracker.on_backward()
    assert "seed" not in (tracker.end_epoch(3).layers or {})


def test_activations_are_those_of_training_steps_only() -> None:
    net = model()
    tracker = DiagnosticTracker(net, RESEARCH)
    inputs, _ = batch()
    with torch.no_grad():
        net(inputs)
    net.eval()
    net(inputs)
    assert tracker.end_epoch(1).activations is None
    net.train()
    expected = net[0](inputs).detach()
    tracker.end_epoch(2)
    backward(net)
    found = tracker.end_epoch(3).activations
    assert found is not None and found["0"].steps == 1
    # single precision, of two forward passes
    assert found["0"].mean == pytest.approx(float(expected.mean()), abs=1e-5)
    assert found["0"].std == pytest.approx(float(expected.std(correction=0)), abs=1e-5)


def test_close_takes_every_hook_off() -> None:
    net = model()
    tracker = DiagnosticTracker(net, RESEARCH)
    assert any(module._forward_hooks for module in net.modules())
    tracker.close()
    assert not any(module._forward_hooks for module in net.modules())


def test_classes_and_confusion() -> None:
    targets = torch.tensor([0, 0, 1, 1, 1, 3])
    guess = torch.tensor([0, 1, 1, 1, 0, 3])
    scores = nn.functional.one_hot(guess, 4).float()
    for predictions in (guess, scores):
        snapshot = DiagnosticTracker(model(), RESEARCH).end_epoch(1, predictions=predictions, targets=targets)
        assert snapshot.confusion == [[1, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
        content = snapshot.to_dict()["classes"]
        assert content["0"] == {"examples": 2, "accuracy": 50.0} and content["1"]["accuracy"] == pytest.approx(200 / 3)
        assert content["2"] == {"examples": 0}, "no examples, no accuracy"
    plain = DiagnosticTracker(model(), TelemetryConfig.from_profile("standard"))
    assert plain.end_epoch(1, predictions=guess, targets=targets).classes is None


def test_sharpness_is_that_of_a_known_bowl_and_leaves_no_trace() -> None:
    """In a quadratic bowl of curvature c the loss changes by c/2 * ((w + d)^2 - w^2) for a step d."""
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(2.0)
    kept = copy.deepcopy(net.state_dict())
    calls: list[float] = []

    def loss() -> float:
        calls.append(float(net.weight.detach()))
        return 0.5 * 10.0 * float(net.weight.detach()) ** 2

    state = torch.random.get_rng_state()
    config = TelemetryConfig(landscape_samples=8, landscape_scale=0.01)
    snapshot = DiagnosticTracker(net, config).end_epoch(1, loss_at=loss)
    up, down = (0.5 * 10 * abs((2 + step) ** 2 - 4) / 0.01 for step in (0.02, -0.02))
    assert snapshot.sharpness is not None and min(up, down) - 1e-3 <= snapshot.sharpness <= max(up, down) + 1e-3
    assert len(calls) == 9 and set(round(w, 4) for w in calls) == {2.0, 2.02, 1.98}
    assert torch.equal(net.weight, kept["weight"]) and torch.equal(state, torch.random.get_rng_state())

    def failing() -> float:
        if float(net.weight.detach()) != 2.0:
            raise ValueError("loss failed")
        return 1.0

    with pytest.raises(ValueError, match="loss failed"):
        DiagnosticTracker(net, config).end_epoch(2, loss_at=failing)
    assert torch.equal(net.weight, kept["weight"])


def test_watching_leaves_training_bit_for_bit_as_it_was() -> None:
    ends = []
    for watched in (False, True):
        net = model()
        tracker = DiagnosticTracker(net, RESEARCH) if watched else None
        torch.manual_seed(5)
        for epoch in range(2):
            for _ in range(3):
                backward(net)
                if tracker:
                    tracker.on_backward()
                with torch.no_grad():
                    for parameter in net.parameters():
                        parameter -= 0.1 * parameter.grad  # type: ignore[operator]
            if tracker:
                tracker.end_epoch(epoch, loss_at=lambda net=net: backward_free_loss(net))  # type: ignore[misc]
        ends.append((net.state_dict(), torch.rand(3)))
    assert all(torch.equal(ends[0][0][key], ends[1][0][key]) for key in ends[0][0])
    assert torch.equal(ends[0][1], ends[1][1])


def backward_free_loss(net: nn.Module) -> float:
    inputs, targets = batch()
    return float(nn.functional.cross_entropy(net(inputs), targets))


def test_red_flags_name_the_figure_and_the_limit() -> None:
    net = model()
    tracker = DiagnosticTracker(net, RESEARCH)
    for parameter in net[0].parameters():
        parameter.grad = torch.zeros_like(parameter)
    for parameter in net[2].parameters():
        parameter.grad = torch.full_like(parameter, 1e4)
    tracker.on_backward()
    flags = tracker.end_epoch(1, train_loss=0.1, val_loss=0.9).red_flags
    assert (
        RedFlag("vanishing_gradient", 1.0, 0.5, "0") in flags and RedFlag("exploding_gradient", 1.0, 0.01, "2") in flags
    )
    assert [flag.id for flag in flags if flag.layer is None] == ["generalisation_gap"]
    for epoch in range(2, 5):
        last = tracker.end_epoch(epoch, val_loss=0.9)
    assert [flag.id for flag in last.red_flags] == ["plateau"]
    net[0].weight.grad = torch.full_like(net[0].weight, math.nan)
    tracker.on_backward()
    assert "non_finite_gradient" in [flag.id for flag in tracker.end_epoch(5, val_loss=math.nan).red_flags]


def test_history_is_bounded() -> None:
    tracker = DiagnosticTracker(model(), TelemetryConfig(history=2))
    for epoch in range(5):
        tracker.end_epoch(epoch)
    assert [snapshot.epoch for snapshot in tracker.history] == [3, 4]


def test_the_event_carries_the_snapshot_through_the_wire() -> None:
    snapshot = EpochSnapshot(epoch=7, val_loss=math.inf, red_flags=(RedFlag("plateau", 0.1, 0.2),))
    payload = diagnostic_payload(snapshot)
    assert payload == {
        "kind": "diagnostic_snapshot",
        "snapshot": {
            "epoch": 7,
            "val_loss": math.inf,
            "red_flags": [{"id": "plateau", "measured": 0.1, "threshold": 0.2}],
        },
    }
    event = diagnostic_event(snapshot, env_id=2)
    assert event.event_type is TelemetryEventType.ANALYTICS_SNAPSHOT and (event.epoch, event.env_id) == (7, 2)
    assert same_event(decode(encode(event)), event)
    assert json.loads(encode(event))["data"]["snapshot"]["val_loss"] == "Infinity"


def test_a_whole_research_snapshot_is_json() -> None:
    net = model()
    tracker = DiagnosticTracker(net, RESEARCH)
    backward(net)
    tracker.on_backward()
    inputs, targets = batch()
    snapshot = tracker.end_epoch(
        1, 1.0, 1.1, 50.0, predictions=net(inputs), targets=targets, loss_at=lambda: backward_free_loss(net)
    )
    content = json.loads(json.dumps(snapshot.to_dict(), allow_nan=False))
    assert set(content) == {
        "epoch",
        "train_loss",
        "val_loss",
        "val_metric",
        "gradient_norm",
        "layers",
        "activations",
        "classes",
        "confusion",
        "sharpness",
        "red_flags",
    }
