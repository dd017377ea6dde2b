"""Seeds beside a module: they see its input and add to its output, and everything else is as for seeds behind one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from configs import evaluated
from torch import Tensor, nn
from torch.nn import functional as F

from esper.kasmina.blueprints import Blueprint, names
from esper.kasmina.export import compare, export
from esper.kasmina.growing import GrowingModel
from esper.kasmina.incubation import probe_backward
from esper.kasmina.layer import Beside, Layer
from esper.kasmina.leaving import leave
from esper.kasmina.portable import Grown
from esper.kasmina.probe import Site
from esper.kasmina.sites import site_of
from esper.kasmina.slot import SlotConfig
from esper.kasmina.state import Incubation
from esper.kasmina.structure import same
from esper.leyline import SeedStage, UsageError


class Attention(nn.Module):
    """Projections by name, as in Hugging Face models; the input comes as a keyword."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, *, hidden: Tensor) -> tuple[Tensor]:
        q, k, v = self.query(hidden), self.key(hidden), self.value(hidden)
        return (hidden + F.scaled_dot_product_attention(q, k, v),)


class Text(nn.Module):
    """Two attentions, an MLP between them, and a mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=0)
        self.attention = nn.ModuleList(Attention() for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        (x,) = self.attention[0](hidden=x)
        x = x + self.mlp(x)
        (x,) = self.attention[1](hidden=x)
        return self.head(x.mean(1))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ReLU()),
        nn.Conv2d(4, 6, 3, padding="same", dilation=2, padding_mode="reflect"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def volumes() -> nn.Module:
    head = (nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(nn.Conv3d(2, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), *head)


def sounds() -> nn.Module:
    head = (nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(nn.Conv1d(2, 4, 5, padding=2), nn.ReLU(), *head)


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    sample: Callable[[], Tensor]
    sites: tuple[str, ...]
    fits: tuple[tuple[Layer, int, int], ...]
    """In network order."""


CASES = {
    "text": Case(
        Text,
        lambda: torch.randint(0, 11, (4, 6)),
        ("+query", "+mlp", "+embed"),
        (
            (Layer.EMBEDDING, 11, 8),
            (Layer.LINEAR, 8, 8),
            (Layer.LINEAR, 8, 8),
            (Layer.LINEAR, 8, 8),
        ),
    ),
    "images": Case(
        images,
        lambda: torch.randn(4, 2, 9, 9),
        ("+0", "+3", "+4", "+7"),
        ((Layer.CONV, 2, 4), (Layer.CONV, 4, 4), (Layer.CONV, 4, 6), (Layer.LINEAR, 6, 3)),
    ),
    "volumes": Case(volumes, lambda: torch.randn(3, 2, 4, 5, 6), ("+0",), ((Layer.CONV, 2, 4),)),
    "sounds": Case(sounds, lambda: torch.randn(3, 2, 8), ("+0",), ((Layer.CONV, 2, 4),)),
}


def wrapped(name: str, **options: Any) -> tuple[GrowingModel, Tensor]:
    torch.manual_seed(0)
    host, sample = CASES[name].build(), CASES[name].sample()
    return GrowingModel.wrap(host, CASES[name].sites, sample, **options), sample


def put(model: GrowingModel, stage: SeedStage, alpha: float, blueprint: str = "lora2", filled: bool = True) -> None:
    """A seed in every slot, at ``stage`` without asking gates; ``filled``: with weights that matter."""
    for slot in model.slots.values():
        assert slot.germinate(blueprint).passed
        assert slot.state is not None
        slot.state.stage, slot.state.alpha = stage, alpha
        for parameter in slot.seed_parameters() if filled else ():
            with torch.no_grad():
                parameter.add_(0.2 * torch.randn_like(parameter))


@pytest.mark.parametrize("name", CASES)
def test_the_host_is_as_it_was_until_a_seed_takes_part(name: str) -> None:
    torch.manual_seed(0)
    bare_host, sample = CASES[name].build().eval(), CASES[name].sample()
    with torch.no_grad():
        bare = bare_host(sample)
        model, sample = wrapped(name)
        model.eval()
        assert same(model(sample), bare)
        fits = [slot.config.layout for slot in model.slots.values()]
        assert [(fit.layer, fit.inputs, fit.outputs) for fit in fits] == list(CASES[name].fits)
        put(model, SeedStage.HOLDING, 1.0, filled=False)
        assert torch.equal(model(sample), bare), "a newborn seed adds zeros"
        for slot in model.slots.values():
            for parameter in slot.seed_parameters():
                parameter.fill_(float("nan"))
        with model.alphas(dict.fromkeys(model.slots, 0.0)):
            assert same(model(sample), bare)


@pytest.mark.parametrize("name", CASES)
def test_counterfactuals_equal_whole_passes_and_a_second_model_takes_the_state(name: str) -> None:
    model, sample = wrapped(name)
    put(model, SeedStage.HOLDING, 0.7)
    model.eval()
    configs = [{}, *({slot_id: alpha} for slot_id in model.slots for alpha in (0.0, 0.3, 1.0))]
    outputs = evaluated(model, sample, configs).outputs
    with torch.no_grad():
        for config, output in zip(configs, outputs, strict=True):
            with model.alphas(config):
                assert same(model(sample), output)
        assert not any(same(outputs[0], other) for other in outputs[1:])
        again, _ = wrapped(name)
        again.load(model.topology(), model.state_dict())
        assert same(again.eval()(sample), outputs[0])


class Lora(nn.Module):
    """Hu et al. (2022), by hand, with the scale of Kalajdzievski (2023)."""

    def __init__(self, layer: nn.Linear, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.layer, self.down, self.up = layer, down, up

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T * (8 / self.down.shape[0] ** 0.5)


def test_what_a_seed_adds_is_lora_and_its_gradient_that_of_lora() -> None:
    """The second pass gives ``up`` and ``down`` the gradients of ``W x + 8 / sqrt(r) * B A x``; the host none."""
    model, sample = wrapped("text")
    slot_id = "attention_1_query"
    model.slots[slot_id].germinate("lora4")
    slot = model.slots[slot_id]
    assert slot.state is not None and slot.seed is not None
    slot.state.stage = SeedStage.TRAINING
    for filled in (False, True):
        down, up = (weight.detach().clone().requires_grad_() for weight in slot.seed_parameters())
        query = model.host.attention[1].query
        torch.manual_seed(1)
        host = Text()
        host.load_state_dict(model.host.state_dict())
        host.attention[1].query = Lora(query, down, up)
        expected = torch.autograd.grad(host(sample).square().sum(), (down, up))
        model.zero_grad()
        with model.record([slot_id]) as tape:
            model(sample)
        probe_backward(model, tape, lambda output: output.square().sum(), slot_id)
        assert all(
            torch.allclose(parameter.grad, gradient, rtol=1e-5, atol=1e-7)
            for parameter, gradient in zip(slot.seed_parameters(), expected, strict=True)
        )
        assert bool(expected[0].any()) is filled and expected[1].any(), "at birth only B learns"
        assert all(parameter.grad is None for parameter in model.host_parameters())
        slot.record_gradients([p.grad for p in slot.seed_parameters()], 1.0, 100)
        assert slot.state.telemetry.gradient_health == (1.0 if filled else 0.75)
        assert slot.state.telemetry.gradient_health >= slot.gates.min_gradient_health
        with torch.no_grad():
            for parameter in slot.seed_parameters():
                parameter.add_(0.1)


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_beside_a_learning_host_leave_it_bit_equal(name: str) -> None:
    def trained(grown: bool) -> tuple[dict[str, Tensor], list[float]]:
        model, sample = wrapped(name)
        if grown:
            put(model, SeedStage.TRAINING, 0.0, filled=False)
        slots = list(model.slots) if grown else []
        seeds = [parameter for slot in slots for parameter in model.seed_parameters(slot)]
        optimizer = torch.optim.AdamW([{"params": model.host_parameters()}, {"params": seeds}], lr=1e-2)
        losses = []
        model.train()
        torch.manual_seed(5)
        for _ in range(20):
            optimizer.zero_grad()
            with model.record(slots) as tape:
                F.cross_entropy(model(sample), torch.arange(len(sample)) % 3).backward()
            for slot in slots:
                losses.append(
                    probe_backward(model, tape, lambda out: F.cross_entropy(out, torch.arange(len(out)) % 3), slot)
                )
            optimizer.step()
        return dict(model.host.state_dict()), losses

    (alone, _), (accompanied, losses) = trained(False), trained(True)
    assert all(torch.equal(tensor, accompanied[key]) for key, tensor in alone.items())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("incubation", [Incubation.GRAFT, Incubation.STRAIGHT_THROUGH])
def test_in_isolation_nothing_of_the_seed_reaches_the_host(incubation: Incubation) -> None:
    def gradients(grown: bool) -> list[Tensor]:
        model, sample = wrapped("images", config=SlotConfig(incubation=incubation))
        if grown:
            put(model, SeedStage.TRAINING, 1.0 if incubation is Incubation.GRAFT else 0.0, filled=False)
        model.train()
        model(sample).square().sum().backward()
        if grown:
            slots = list(model.slots.values())
            assert all(slot.isolated and slot.monitor.drain()[:2] == (1, 0) for slot in slots)
            assert all(any(p.grad is not None and p.grad.any() for p in slot.seed_parameters()) for slot in slots)
        return [parameter.grad for parameter in model.host_parameters() if parameter.grad is not None]

    assert all(torch.equal(a, b) for a, b in zip(gradients(False), gradients(True), strict=True))


def test_a_whole_path_is_one_module_and_the_end_of_one_is_all_that_end_so() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (4, 6))
    assert list(GrowingModel.wrap(Text(), ["+query", "mlp"], tokens).slots) == [
        "attention_0_query",
        "mlp",
        "attention_1_query",
    ]
    assert list(GrowingModel.wrap(Text(), {"q": "+attention.0.query"}, tokens).slots) == ["q"]
    assert list(GrowingModel.wrap(Text(), [Site("attention.0.query", beside=True)], tokens).slots) == [
        "attention_0_query"
    ]
    with pytest.raises(UsageError, match=r"'\+query' of slot 'q' names 2 modules \(attention.0.query"):
        GrowingModel.wrap(Text(), {"q": "+query"}, tokens)
    with pytest.raises(UsageError, match=r"unknown submodule 'qurey'.*attention.0.query"):
        GrowingModel.wrap(Text(), ["+qurey"], tokens)
    with pytest.raises(UsageError, match=r"two slots on one submodule"):
        GrowingModel.wrap(Text(), {"one": "+embed", "two": "embed"}, tokens)


class Odd(nn.Module):
    """Modules beside which no seed fits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.grouped = nn.Conv2d(4, 4, 3, stride=2, groups=2)
        self.inplace = nn.ReLU(inplace=True)
        self.seen = nn.Flatten()
        self.wide = nn.Linear(4, 3)
        self.masked = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.pool(self.first(x)))
        x = self.inplace(x * 1.0)
        return self.wide(self.seen(x.mean((2, 3))))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (
            "pool",
            r"no seed fits beside site 'pool', which takes \[3, 4, 8, 8\] and gives \[3, 4, 4, 4\]; legal: L",
        ),
        ("grouped", r"no seed fits beside site 'grouped', which takes"),
        ("inplace", r"site 'inplace' writes its input in place"),
        ("masked", r"site 'masked' is never called"),
    ],
)
def test_where_no_seed_fits_is_said_with_what_is_legal(path: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        GrowingModel.wrap(Odd(), [f"+{path}"], torch.randn(3, 2, 8, 8))


def test_a_fast_path_that_goes_past_the_module_is_no_site() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    with pytest.raises(UsageError, match="layers.0.linear1.*does not reach .*set_fastpath_enabled"):
        GrowingModel.wrap(encoder, ["+layers.0.linear1"], torch.randn(3, 5, 8))
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model = GrowingModel.wrap(encoder, ["+layers.0.linear1"], torch.randn(3, 5, 8))
        assert model.folds == {"layers_0_linear1": False}
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


class Mean(nn.Module):
    """The mutant: a seed that lets positions see each other."""

    def __init__(self, outputs: int, fit: Beside) -> None:
        super().__init__()
        self.map = fit.map(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x - x.mean(1, keepdim=True))


class Short(Mean):
    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)[..., :1]


mean = Blueprint("mean", frozenset({Layer.LINEAR}), lambda fit: fit.inputs * fit.outputs, Mean)
short = Blueprint("short", frozenset({Layer.LINEAR}), lambda fit: fit.inputs * fit.outputs, Short)


def test_g0_refuses_what_mixes_more_than_the_module_and_what_has_another_shape() -> None:
    model, _ = wrapped("text")
    slot = model.slots["attention_0_query"]
    mixes, wrong = slot.germinate(f"{__name__}:mean"), slot.germinate(f"{__name__}:short")
    assert [each.split("=")[0] for each in mixes.checks_failed] == ["mixes_beyond_module"]
    assert "shape=(4, 8, 1)" in wrong.checks_failed
    assert slot.germinate("lora2").passed


class Masked(nn.Module):
    """Each of the 4 outputs sees the inputs before it alone, by a mask on a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mask", torch.ones(4, 4).tril())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_where_channels_are_kept_apart_nothing_grows_beside() -> None:
    torch.manual_seed(0)
    host = Masked()
    with torch.no_grad():
        host.layer.weight.mul_(host.mask)
    model = GrowingModel.wrap(host, ["+layer"], torch.randn(8, 4))
    slot = model.slots["layer"]
    assert slot.may_mix is not None and not slot.may_mix.channels
    assert [each.split("=")[0] for each in slot.germinate("lora2").checks_failed] == ["mixes_channels"]


def test_blueprints_are_offered_by_what_they_fit() -> None:
    assert set(names(Layer.EMBEDDING)) == {"lora2", "lora4", "lora8", "lora16", "lora32"}
    assert {"adapter16", "adapter64"} <= set(names(Layer.LINEAR)) & set(names(Layer.CONV))
    model, _ = wrapped("text")
    with pytest.raises(UsageError, match="blueprint for a site beside a layer of kind linear 'mlp'"):
        model.slots["attention_0_query"].germinate("mlp")


def test_autocast_and_narrow_formats_are_respected() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (4, 6))
    model = GrowingModel.wrap(Text().bfloat16(), ["+query", "+embed"], tokens)
    put(model, SeedStage.HOLDING, 0.5)
    assert {p.dtype for slot in model.slots for p in model.seed_parameters(slot)} == {torch.bfloat16}
    assert model(tokens).dtype is torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        mixed = GrowingModel.wrap(Text(), ["+query"], tokens)
        put(mixed, SeedStage.HOLDING, 0.5)
        mixed(tokens).square().sum().backward()
    assert {p.dtype for slot in mixed.slots for p in mixed.seed_parameters(slot)} == {torch.float32}


def test_copies_compute_the_same_and_so_does_what_is_left_in_place() -> None:
    model, sample = wrapped("images")
    put(model, SeedStage.HOLDING, 0.7)
    model.eval()
    with torch.no_grad():
        grown = model(sample)
        assert torch.equal(copy.deepcopy(model.host)(sample), grown)
        assert torch.equal(pickle.loads(pickle.dumps(model.host))(sample), grown)  # noqa: S301
        leave(model.host)
        assert torch.equal(model.host(sample), grown)
    assert [type(each).__name__ for each in model.host if isinstance(each, Grown)] == ["GrownBeside"] * 4
    assert not any(each._forward_hooks or each._forward_hooks_with_kwargs for each in model.host.modules())


class Twice(nn.Module):
    """One layer for two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(torch.cat([self.layer(x), self.layer(x.flip(1))], 1)))


def test_one_seed_serves_all_calls_of_a_module() -> None:
    torch.manual_seed(0)
    sample = torch.randn(5, 6)
    model = GrowingModel.wrap(Twice().eval(), ["+layer"], sample)
    put(model, SeedStage.HOLDING, 0.7)
    assert model.places["layer"].calls == 2 and model.folds == {"layer": False}
    plain = export(model, sample=sample)
    assert type(plain.layer) is nn.Linear and compare(model, plain, sample).same


def test_a_site_is_written_as_it_is_read() -> None:
    assert [str(site_of(written)) for written in ("a.b", "+a.b")] == ["a.b", "+a.b"]
