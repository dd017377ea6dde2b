"""``grow`` and ``Grower`` on a model that was not written for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.leyline import (
    DataError,
    GateThresholds,
    Metric,
    Policy,
    UsageError,
)
from esper.library import Budget, Grower, OwnChoices, Scored, grow
from esper.nissa.reader import read_journal
from four_classes import EPOCHS, KeepOne, adam, loader
from own_loop import epoch, narrow, products, steps


def test_a_model_comes_back_plain_and_grown(tmp_path: Path) -> None:
    result = grow(
        narrow(),
        train=loader(640, 0, shuffle=True),
        val=loader(256, 1),
        test=loader(256, 2),
        loss=nn.CrossEntropyLoss(),
        at=["1"],
        policy=KeepOne(),
        budget=Budget(epochs=EPOCHS, lr=5e-3, parameters=5000),
        run_dir=tmp_path / "run",
    )
    assert not any(type(module).__module__.startswith("esper.kasmina.slot") for module in result.model.modules())
    page = str(result)
    assert "## Result" in page and "| keep-one | 0 | 1 | mlp |" in page and " kept " in page
    (arm,) = result.report.table.arms
    assert arm.seeds_kept == 1 and arm.test is not None and arm.test.mean > 45
    assert (result.run_dir / "model" / "model.py").is_file() and (result.run_dir / "report" / "report.md").is_file()
    inputs, targets = products(256, 2)
    with torch.no_grad():
        accuracy = 100 * float((result.model(inputs).argmax(1) == targets).float().mean())
    assert accuracy == pytest.approx(arm.test.mean)
    shown = result._repr_html_()
    assert "<svg" in shown and "<table" in shown and result.report.network is not None
    assert repr(result).startswith("GrowResult(model=Sequential(...), epoch=") and "\n" not in repr(result)
    events = list(read_journal(result.run_dir))
    host_macs = next(event.data["host"]["macs"] for event in events if "host" in event.data)
    told = [event.data for event in events if "inference_macs" in event.data and "stages" in event.data]
    assert len(told) == EPOCHS and any(data["seed_macs"] for data in told if "seed_macs" in data)
    assert all(data["inference_macs"] == host_macs + sum(data.get("seed_macs", {}).values()) for data in told)
    drawn = result.report.network.head.spoken
    grown = sum(parameter.numel() for parameter in result.model.parameters())
    host = sum(parameter.numel() for parameter in narrow().parameters())
    assert drawn.startswith(f"parameters: {host:,} before, {grown:,} after; MACs of one example: ")
    assert len(esper.report(result).seeds) == len(result.report.seeds)
    assert (result.run_dir / "report" / "figures" / "network.svg").is_file()


def test_unless_told_otherwise_the_shipped_policy_decides_and_leaves_gates_to_evidence(tmp_path: Path) -> None:
    result = grow(
        narrow(),
        train=loader(640, 0, shuffle=True),
        val=loader(256, 1),
        loss=nn.CrossEntropyLoss(),
        at=["1"],
        budget=Budget(epochs=EPOCHS, lr=5e-3, parameters=5000),
        run_dir=tmp_path / "run",
    )
    told = {
        e.data["op"]: e.data["reason"] for e in read_journal(result.run_dir) if "reason" in e.data and "op" in e.data
    }
    assert told["GERMINATE"] == "the learned policy's likeliest choice"
    assert "behind the host: blend it in" in told["ADVANCE"]
    (arm,) = result.report.table.arms
    assert arm.arm == "esper-v1"


def test_the_own_loop_does_what_grow_does(tmp_path: Path) -> None:
    budget = Budget(epochs=EPOCHS, parameters=5000)
    model = narrow()
    result = grow(
        model,
        train=loader(640, 0, shuffle=True),
        val=loader(256, 1),
        loss=nn.CrossEntropyLoss(),
        at=["1"],
        optimizer=adam(model),
        policy=KeepOne(),
        budget=budget,
        run_dir=tmp_path / "grow",
    )
    model = narrow()
    optimizer = adam(model)
    batches = loader(640, 0, shuffle=True)
    choices = OwnChoices(nn.CrossEntropyLoss(), at=["1"], budget=budget)
    with Grower(
        model, optimizer, val=loader(256, 1), choices=choices, policy=KeepOne(), run_dir=tmp_path / "loop"
    ) as grower:
        for _ in range(EPOCHS):
            report = epoch(grower, optimizer, batches)
    assert report.view.epoch == EPOCHS
    ours, theirs = grower.result.model.state_dict(), result.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_scheduler_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    model = narrow()
    optimizer = adam(model)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=EPOCHS)
    batches = loader(64, 0)
    choices = OwnChoices(nn.CrossEntropyLoss(), at=["1"], budget=Budget(epochs=EPOCHS, parameters=10_000))
    with Grower(
        model, optimizer, val=loader(64, 1), choices=choices, policy=KeepOne(), run_dir=tmp_path / "run"
    ) as grower:
        for at in range(EPOCHS):
            steps(grower, optimizer, batches)
            if at == 2:
                host, seed = optimizer.param_groups
                assert seed["lr"] / seed["initial_lr"] == pytest.approx(host["lr"] / host["initial_lr"])
            grower.after_epoch()
            if at < EPOCHS - 1:
                grower.step_scheduler(scheduler)


def test_a_trained_optimizer_keeps_its_state(tmp_path: Path) -> None:
    model = narrow()
    optimizer = adam(model)
    inputs, targets = products(64, 0)
    torch.autograd.backward(nn.functional.cross_entropy(model(inputs), targets))
    optimizer.step()
    grow(
        model,
        train=loader(64, 0),
        val=loader(64, 1),
        loss=nn.functional.cross_entropy,
        optimizer=optimizer,
        policy="static",
        budget=Budget(epochs=1),
        run_dir=tmp_path / "run",
    )
    assert all(float(state["step"]) == 2 for state in optimizer.state.values())


def test_a_metric_and_a_call_of_ones_own(tmp_path: Path) -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))

        def forward(self, *, features: Tensor) -> dict[str, Tensor]:
            return {"answer": self.body(features)}

    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    data = [(x[:64], x[:64, 0]), (x[64:], x[64:, 0])]
    worst = Scored(Metric("squared error", "m²", higher_is_better=False), lambda out, y: (out.squeeze(1) - y) ** 2)
    result = grow(
        Keyword(),
        train=data,
        val=data,
        loss=lambda out, y: ((out.squeeze(1) - y) ** 2).mean(),
        metric=worst,
        forward=lambda model, inputs: model(features=inputs)["answer"],
        at=["body.1"],
        policy="static",
        budget=Budget(epochs=3, lr=1e-2),
        run_dir=tmp_path / "run",
    )
    events = list(read_journal(result.run_dir))
    losses = [e.data["validation_loss"] for e in events if e.event_type.name == "EPOCH_COMPLETED"]
    metrics = [e.data["validation_metric"] for e in events if e.event_type.name == "EPOCH_COMPLETED"]
    # the same squares, meaned in single precision by the loss and in double by the metric
    assert losses == pytest.approx(metrics, rel=1e-5) and losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"metric": lambda out, y: 0.5}, UsageError, "one number per example"),
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, UsageError, "one number for the batch"),
        ({"val": [(torch.randn(4, 6), torch.randn(4, 4))], "loss": nn.MSELoss()}, UsageError, "metric='mae'"),
        ({"val": [(torch.randn(4, 9), torch.zeros(4).long())]}, DataError, "does not take the first validation batch"),
        ({"metric": "acuracy"}, UsageError, "did you mean 'accuracy'"),
        ({"at": ["layer9"]}, UsageError, "layer9"),
        ({"device": "cuda:9"}, UsageError, "cuda:9"),
        ({"policy": "heuristc"}, UsageError, "did you mean 'heuristic'"),
        ({"train": iter([])}, UsageError, "read only once"),
        ({"val": []}, DataError, "no batch"),
        ({"val": [(torch.full((4, 6), torch.nan), torch.zeros(4).long())]}, DataError, "NaN"),
        ({"budget": Budget(blueprints=("conv99",))}, UsageError, "conv99"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], error: type[Exception], message: str, tmp_path: Path) -> None:
    right = {"train": loader(64, 0), "val": loader(64, 1), "loss": nn.CrossEntropyLoss(), "run_dir": tmp_path / "run"}
    with pytest.raises(error, match=message):
        grow(narrow(), **{**right, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "precision"), [(KeepOne(), None), (KeepOne(), "16-mixed"), ("heuristic", None), ("esper-v1", None)]
)
def test_a_frozen_model_is_grown(policy: str | Policy, precision: str | None, tmp_path: Path) -> None:
    model = narrow().requires_grad_(False).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = grow(
        model,
        train=loader(640, 0, shuffle=True),
        val=loader(256, 1),
        loss=nn.CrossEntropyLoss(),
        at=["1"],
        policy=policy,
        budget=Budget(epochs=EPOCHS, lr=2e-2, parameters=5000, gates=GateThresholds(blending_z=0.0)),
        run_dir=tmp_path / "run",
        precision=precision,
    )
    (arm,) = result.report.table.arms
    assert arm.seeds_kept >= 1
    after = {name.replace("1.module.", "1."): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(module.training for module in model.modules())


def test_grow_inside_autocast_gives_its_model(tmp_path: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        result = grow(
            narrow(),
            train=loader(640, 0, shuffle=True),
            val=loader(256, 1),
            loss=nn.CrossEntropyLoss(),
            at=["1"],
            policy=KeepOne(),
            budget=Budget(epochs=EPOCHS, lr=5e-3, parameters=5000),
            run_dir=tmp_path / "run",
        )
    (arm,) = result.report.table.arms
    assert arm.seeds_kept == 1
    assert {parameter.dtype for parameter in result.model.parameters()} == {torch.float32}


def test_a_scale_micro_batches_and_clipping_change_nothing_but_rounding(tmp_path: Path) -> None:
    """The scaler's own numbers are powers of two and the norm is never reached, so the grown models must be equal."""
    grown = []
    for tricks in (False, True):
        model = narrow()
        optimizer = adam(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=tricks)
        choices = OwnChoices(nn.CrossEntropyLoss(), at=["1"], budget=Budget(epochs=EPOCHS, parameters=5000))
        batches = loader(640, 0, shuffle=True)
        with Grower(
            model, optimizer, val=loader(256, 1), choices=choices, policy=KeepOne(), run_dir=tmp_path / str(tricks)
        ) as grower:
            for _ in range(EPOCHS):
                for inputs, targets in batches:
                    model.zero_grad()
                    parts = 2 if tricks else 1
                    for x, y in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
                        torch.autograd.backward(scaler.scale(grower.loss(x, y) / parts))
                        grower.after_backward()
                    scaler.unscale_(optimizer)
                    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e3)
                    everything = [p.grad for group in optimizer.param_groups for p in group["params"]]
                    own = torch.stack([grad.norm() for grad in everything if grad is not None]).norm()
                    assert float(norm) == pytest.approx(float(own), rel=1e-4), "seeds are clipped with their host"
                    scaler.step(optimizer)
                    scaler.update()
                grower.after_epoch()
        assert "named_parameters" not in model.__dict__
        grown.append(grower.result)
    ours, theirs = (result.model.state_dict() for result in grown)
    assert [result.report.table.arms[0].seeds_kept for result in grown] == [1, 1]
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def test_grow_is_found_where_it_is_announced() -> None:
    assert esper.grow is grow
