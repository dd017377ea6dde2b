"""``grow`` and ``Grower`` on a model that was not written for them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from keeping_hosts import GPT, CausalConvolutions, Masked, tokens
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassF1Score

import esper
from esper.leyline import (
    Blend,
    DataError,
    Decision,
    EnvSpec,
    EnvView,
    FactoredAction,
    GateThresholds,
    Metric,
    Op,
    SeedStage,
    UsageError,
)
from esper.library import Budget, Grower, GrowResult, OwnChoices, Scored, grow
from esper.nissa.reader import read_journal
from esper.tolaria.legality import legal_blueprints

EPOCHS = 9


class KeepOne:
    """Grows one seed as soon as may be and brings it through."""

    name = "keep-one"

    def reset(self, specs: list[EnvSpec]) -> None:
        pass

    def decide(self, views: list[EnvView]) -> list[Decision]:
        (view,) = views
        slot = view.slots[0]
        actions = {
            SeedStage.DORMANT: FactoredAction(Op.GERMINATE, slot.slot_id, "mlp", Blend.LINEAR, 1.0, 1),
            SeedStage.TRAINING: FactoredAction(Op.ADVANCE, slot.slot_id),
            SeedStage.HOLDING: FactoredAction(Op.FOSSILIZE, slot.slot_id),
        }
        return [Decision(actions.get(slot.stage, FactoredAction()), "the next step")]


def products(n: int, seed: int) -> TensorDataset:
    """Which of two products is positive: four classes that a linear model cannot tell apart."""
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] * x[:, 3] > 0).long())


def loader(n: int, seed: int, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(products(n, seed), 64, shuffle=shuffle, generator=torch.Generator().manual_seed(1))


def narrow() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=5e-3)


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
    inputs, targets = products(256, 2).tensors
    with torch.no_grad():
        accuracy = 100 * float((result.model(inputs).argmax(1) == targets).float().mean())
    assert accuracy == pytest.approx(arm.test.mean)


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
            for inputs, targets in batches:
                optimizer.zero_grad()
                torch.autograd.backward(grower.loss(inputs, targets))
                grower.after_backward()
                optimizer.step()
            report = grower.after_epoch()
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
        for epoch in range(EPOCHS):
            for inputs, targets in batches:
                optimizer.zero_grad()
                torch.autograd.backward(grower.loss(inputs, targets))
                grower.after_backward()
                optimizer.step()
            if epoch == 2:
                host, seed = optimizer.param_groups
                assert seed["lr"] / seed["initial_lr"] == pytest.approx(host["lr"] / host["initial_lr"])
            grower.after_epoch()
            if epoch < EPOCHS - 1:
                grower.step_scheduler(scheduler)


def test_a_trained_optimizer_keeps_its_state(tmp_path: Path) -> None:
    model = narrow()
    optimizer = adam(model)
    inputs, targets = products(64, 0).tensors
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


@pytest.mark.parametrize("policy", ["heuristic", "esper-v1"])
def test_the_unit_of_the_metric_decides_nothing(policy: str, tmp_path: Path) -> None:
    units: dict[str, str | Scored] = {
        "percent": "accuracy",
        "fraction": Scored(Metric("accuracy", "", low=0.0, high=1.0), lambda out, y: (out.argmax(1) == y).float()),
        "error": Scored(
            Metric("error", "", higher_is_better=False, low=0.0, high=1.0), lambda out, y: (out.argmax(1) != y).float()
        ),
    }
    decided = {}
    for name, metric in units.items():
        result = grow(
            narrow(),
            train=loader(640, 0, shuffle=True),
            val=loader(256, 1),
            loss=nn.CrossEntropyLoss(),
            metric=metric,
            at=["1"],
            policy=policy,
            budget=Budget(epochs=EPOCHS, lr=5e-3, parameters=5000, gates=GateThresholds(min_training_epochs=1)),
            run_dir=tmp_path / name,
        )
        events = list(read_journal(result.run_dir))
        told = [e for e in events if e.event_type.name.startswith("SEED_") or "op" in e.data]
        decided[name] = [(e.epoch, e.event_type.name, e.data.get("op"), e.data.get("passed")) for e in told]
        (announced,) = [e.data["metric"] for e in events if e.event_type.name == "TRAINING_STARTED"]
        shown = announced["chance"] / (100.0 if name == "percent" else 1.0)
        assert shown == pytest.approx(77 / 256 if name != "error" else 179 / 256)
    assert any(event[1] == "SEED_FOSSILIZED" for event in decided["percent"])
    assert decided["percent"] == decided["fraction"] == decided["error"]


def test_an_object_of_torchmetrics_judges_seeds(tmp_path: Path) -> None:
    f1 = MulticlassF1Score(4, average="macro", validate_args=False)
    result = grow(
        narrow(),
        train=loader(640, 0, shuffle=True),
        val=loader(256, 1),
        loss=nn.CrossEntropyLoss(),
        metric=f1,
        at=["1"],
        policy=KeepOne(),
        budget=Budget(epochs=EPOCHS, lr=5e-3, parameters=5000, gates=GateThresholds(min_training_epochs=1)),
        run_dir=tmp_path / "run",
    )
    inputs, targets = products(256, 1).tensors
    with torch.no_grad():
        assert told(result)[0] == pytest.approx(float(f1(result.model(inputs), targets)), abs=1e-6)
    kept = [e.data for e in read_journal(result.run_dir) if e.event_type.name == "SEED_FOSSILIZED"]
    assert len(kept) == 1 and kept[0]["removal_cost"] > 1.645 * kept[0]["removal_cost_se"] > 0.0
    verdicts = [e.data for e in read_journal(result.run_dir) if e.event_type.name == "SEED_GATE_EVALUATED"]
    least = {c["threshold"] for v in verdicts for c in v.get("checks", ()) if c["id"] == "removal_cost"}
    assert least == {0.005}


@pytest.mark.parametrize("batches", [1, 3, 20])
def test_a_loss_of_whole_batches_gives_gates_their_evidence(batches: int, tmp_path: Path) -> None:
    inputs, targets = products(240, 0).tensors
    size = 240 // batches
    val = [(inputs[i : i + size], targets[i : i + size]) for i in range(0, 240, size)]
    result = grow(
        small(6),
        train=val,
        val=val,
        loss=contrastive,
        metric="loss",
        at=["1"],
        policy=KeepOne(),
        budget=Budget(epochs=6, lr=1e-2, parameters=5000, gates=GateThresholds(min_training_epochs=1)),
        run_dir=tmp_path / "run",
    )
    verdicts = [e.data for e in read_journal(result.run_dir) if e.event_type.name == "SEED_GATE_EVALUATED"]
    bounds = [c["measured"] for v in verdicts for c in v.get("checks", ()) if c["id"] == "probe_gain_loss_lower"]
    assert bounds and all(math.isfinite(bound) for bound in bounds)


def test_what_gates_ask_can_be_set(tmp_path: Path) -> None:
    gates = GateThresholds(min_training_epochs=1, min_removal_cost=1.0)
    grow(
        narrow(),
        train=loader(640, 0, shuffle=True),
        val=loader(256, 1),
        loss=nn.CrossEntropyLoss(),
        at=["1"],
        policy=KeepOne(),
        budget=Budget(epochs=EPOCHS, lr=5e-3, parameters=5000, gates=gates),
        run_dir=tmp_path / "run",
    )
    verdicts = [e.data for e in read_journal(tmp_path / "run") if e.event_type.name == "SEED_GATE_EVALUATED"]
    (blending,) = [each for each in verdicts if each["gate"] == "G2" and each["passed"]]
    (asked,) = {
        (each["threshold"], each["unit"])
        for verdict in verdicts
        if verdict["gate"] == "G5"
        for each in verdict["checks"]
        if each["id"] == "removal_cost"
    }
    assert asked == (100.0, "%") and blending["checks_passed"]
    assert not any(verdict["passed"] for verdict in verdicts if verdict["gate"] == "G5")


class Tokens(nn.Module):
    """Scores of the next of ten tokens, the classes last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Linear(16, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self.embed(tokens)))
        return scores


class TwoHeads(nn.Module):
    """A tuple of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 1)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.body(x)
        return tuple(head(h)[:, 0] for head in self.heads)


class Named(TwoHeads):
    """A mapping of outputs."""

    def forward(self, x: Tensor) -> Any:
        one, other = super().forward(x)
        return {"one": one, "other": other}


def contrastive(output: Tensor, targets: Tensor) -> Tensor:
    one, other = (nn.functional.normalize(half, dim=1) for half in output.chunk(2, 1))
    return nn.functional.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))


def flat(output: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.reshape(-1, 10), targets.reshape(-1))


def told(result: GrowResult) -> tuple[float, float]:
    """Metric and loss of the last epoch."""
    last = [e.data for e in read_journal(result.run_dir) if e.event_type.name == "EPOCH_COMPLETED"][-1]
    return last["validation_metric"], last["validation_loss"]


FEATURES = torch.randn(140, 6, generator=torch.Generator().manual_seed(0))
WORDS = torch.randint(10, (140, 10), generator=torch.Generator().manual_seed(0))
PADDED = ((WORDS + 1) % 10).masked_fill(torch.arange(10) > torch.arange(140)[:, None] % 7, -100)
CE, BCE = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()
WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 10.0]))
KL = nn.KLDivLoss(reduction="batchmean")
RARE = (FEATURES[:, 0] > 1.2).long()
SHARES = FEATURES[:, :3].softmax(1)


def small(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, width))


def batched(loss: Any) -> Any:
    """In a user's own evaluation: batches of 50, 50 and 40, by their examples."""

    def whole(output: Any, targets: Tensor) -> Tensor:
        cuts = [slice(0, 50), slice(50, 100), slice(100, 140)]
        return sum(loss(output[cut], targets[cut]) * len(targets[cut]) for cut in cuts) / 140  # type: ignore[return-value]

    return whole


@pytest.mark.parametrize(
    ("model", "inputs", "targets", "loss", "metric", "own"),
    [
        (Tokens, WORDS, PADDED, flat, "accuracy", lambda o, y: (o.argmax(2) == y)[y != -100]),
        (lambda: Turned(Tokens()), WORDS, PADDED, CE, "accuracy", lambda o, y: (o.argmax(1) == y)[y != -100]),
        (Tokens, WORDS, (WORDS + 1) % 10, flat, "accuracy", lambda o, y: o.argmax(2) == y),
        (lambda: small(2), FEATURES, RARE, WEIGHTED, "accuracy", lambda o, y: o.argmax(1) == y),
        (lambda: small(1), FEATURES, RARE[:, None].float(), BCE, "accuracy", lambda o, y: (o > 0) == (y > 0)),
        (lambda: small(3), FEATURES, (FEATURES[:, :3] > 0).float(), BCE, "accuracy", lambda o, y: (o > 0) == (y > 0)),
        (lambda: small(3).append(nn.LogSoftmax(1)), FEATURES, SHARES, KL, "loss", None),
        (lambda: small(6), FEATURES, RARE, contrastive, "loss", None),
        (TwoHeads, FEATURES, FEATURES[:, :2], lambda o, y: (torch.stack(o, 1) - y).abs().mean(), "loss", None),
        (Named, FEATURES, FEATURES[:, 0], lambda o, y: (o["one"] - y).abs().mean() + o["other"].mean(), "loss", None),
    ],
)
def test_figures_are_those_of_a_loop_of_ones_own(
    model: Any, inputs: Tensor, targets: Tensor, loss: Any, metric: str, own: Any, tmp_path: Path
) -> None:
    data = [(inputs[a:b], targets[a:b]) for a, b in ((0, 50), (50, 100), (100, 140))]
    torch.manual_seed(0)
    result = grow(
        model(),
        train=data,
        val=data,
        loss=loss,
        metric=metric,
        policy="static",
        budget=Budget(epochs=1, lr=1e-2),
        run_dir=tmp_path / "run",
    )
    with torch.no_grad():
        output = result.model(inputs)
        # by what the loss counts it is the loss of the split at once; a contrastive one, and one that a function
        # reduces, are what they are of each batch
        of_batches = loss in (contrastive, flat)
        expected = float(batched(loss)(output, targets) if of_batches else loss(output, targets))
        shown = 100.0 * float(own(output, targets).double().mean()) if own is not None else expected
    assert told(result) == pytest.approx((shown, expected), rel=1e-4)


class Turned(nn.Module):
    """Classes in front of positions, as torch has them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.inner(tokens)
        return scores.mT


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


@pytest.mark.parametrize("precision", [None, "16-mixed"])
def test_a_frozen_model_is_grown(precision: str | None, tmp_path: Path) -> None:
    model = narrow().requires_grad_(False).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = grow(
        model,
        train=loader(640, 0, shuffle=True),
        val=loader(256, 1),
        loss=nn.CrossEntropyLoss(),
        at=["1"],
        policy=KeepOne(),
        budget=Budget(epochs=EPOCHS, lr=2e-2, parameters=5000),
        run_dir=tmp_path / "run",
        precision=precision,
    )
    (arm,) = result.report.table.arms
    assert arm.seeds_kept == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
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


class MostMixing:
    """Grows a seed in every slot, the legal one that mixes most."""

    name = "most-mixing"
    order = ("attention_full", "conv7", "squeeze_excite", "attention", "depthwise5", "norm", "pointwise")

    def reset(self, specs: list[EnvSpec]) -> None:
        pass

    def decide(self, views: list[EnvView]) -> list[Decision]:
        (view,) = views
        for slot in view.slots:
            legal = legal_blueprints(view, slot.slot_id)
            for blueprint in self.order if legal else ():
                if blueprint in legal:
                    action = FactoredAction(Op.GERMINATE, slot.slot_id, blueprint, Blend.LINEAR, 1.0, 1)
                    return [Decision(action, "because it may")]
        return [Decision(FactoredAction(), "all is grown")]


@pytest.mark.parametrize(
    ("build", "sequence", "expected"),
    [
        (CausalConvolutions, True, "pointwise"),
        (lambda: nn.Sequential(GPT(), _Transposed()), True, "attention"),
        (Masked, False, "norm"),
    ],
    ids=["causal convolutions", "GPT", "masked encoder"],
)
def test_what_grows_in_a_users_model_mixes_no_more_than_it_does(
    build: type[nn.Module], sequence: bool, expected: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = tokens(48, seed=1)
    data = DataLoader(TensorDataset(x, tokens(48, seed=2) if sequence else x[:, 0] % 5), 16)
    result = grow(
        build(),
        train=data,
        val=data,
        loss=nn.CrossEntropyLoss(),
        policy=MostMixing(),
        budget=Budget(epochs=2, max_seeds=9, parameters=10**6),
        run_dir=tmp_path / "run",
    )
    grown = [e.data["blueprint"] for e in read_journal(result.run_dir) if e.event_type.name == "SEED_GERMINATED"]
    assert grown and set(grown) == {expected}


class _Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def test_where_nothing_may_grow_the_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    data = DataLoader(TensorDataset(tokens(8), tokens(8, seed=2)), 8)
    with pytest.raises(UsageError, match="no output of the host depends on later positions"):
        grow(
            CausalConvolutions(),
            train=data,
            val=data,
            loss=nn.CrossEntropyLoss(),
            budget=Budget(epochs=2, blueprints=("conv5",)),
            run_dir=tmp_path / "run",
        )
