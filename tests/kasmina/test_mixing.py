"""What hosts keep apart, and that no seed that passes G0 mixes it: by brute force, on fresh batches, end to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keeping_hosts as hosts
import pytest
import torch
from small_hosts import Pointwise, ResidualNet, encoder
from torch import Tensor, nn

from esper.kasmina.blueprints import Blueprint, against, names
from esper.kasmina.growing import GrowingModel
from esper.kasmina.layout import Layout
from esper.kasmina.slot import SeedSlot
from esper.kasmina.trial import ForwardCall
from esper.leyline import Positions, SeedStage, SiteMixing, TelemetryEvent

P = Positions


def wrapped(host: nn.Module, site: str, sample: Any) -> tuple[GrowingModel, SeedSlot]:
    model = GrowingModel.wrap(host, {"a": site}, sample)
    return model, model.slots["a"]


def may_mix(build: Callable[[], nn.Module], site: str, sample: Any) -> SiteMixing:
    torch.manual_seed(0)
    found = wrapped(build(), site, sample)[1].may_mix
    assert found is not None
    return found


def masked(pooled: bool) -> Callable[[], nn.Module]:
    return lambda: hosts.Masked(pooled)


WITH_MASK = {"x": hosts.tokens(), "attention_mask": torch.ones(2, hosts.TIME, dtype=torch.long)}
CAUSAL_MASK = torch.ones(7, 7, dtype=torch.bool).triu(1)
KEY_PADDING = torch.zeros(3, 7, dtype=torch.bool)


class OnlyLoss(nn.Module):
    """Says nothing but one number."""

    def __init__(self) -> None:
        super().__init__()
        self.net = hosts.GPT()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.net(x)[:, :-1].transpose(1, 2), x[:, 1:])


PACKED = torch.stack([hosts.tokens(), torch.ones(2, hosts.TIME, dtype=torch.long)], 1)


def unpacked(host: nn.Module, batch: Tensor) -> Any:
    return host(batch[:, 0], attention_mask=batch[:, 1])


def its_own_loss(host: nn.Module, batch: Tensor) -> Any:
    return host(input_ids=batch, labels=batch).loss


class ReadsFirst(nn.Module):
    """An encoder whose head reads what stands at the first position, as that of a vision transformer does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = encoder()
        self.head = nn.Linear(8, 3)

    def forward(self, src: Tensor) -> Tensor:
        return self.head(self.net(src)[:, 0])


CASES: dict[str, tuple[Callable[[], nn.Module], str, Any, SiteMixing]] = {
    "causal convolutions": (hosts.CausalConvolutions, "blocks.0", hosts.tokens(), SiteMixing(P.CAUSAL)),
    "a lone example": (hosts.CausalConvolutions, "blocks.0", hosts.tokens(1), SiteMixing(P.CAUSAL)),
    "a GPT": (hosts.GPT, "blocks.0", hosts.tokens(), SiteMixing(P.CAUSAL)),
    "behind its last block": (hosts.GPT, "blocks.1", hosts.tokens(), SiteMixing(P.CAUSAL)),
    "flat logits": (lambda: hosts.GPT(flat=True), "blocks.0", hosts.tokens(), SiteMixing(P.CAUSAL)),
    "the last token's logits": (lambda: hosts.GPT(last=True), "blocks.0", hosts.tokens(), SiteMixing(P.ANY)),
    "a padded encoder": (masked(True), "blocks.0", WITH_MASK, SiteMixing(P.NONE, padding=False)),
    "its last block": (masked(False), "blocks.1", WITH_MASK, SiteMixing(P.NONE, padding=False)),
    "padding by token": (masked(True), "blocks.0", hosts.tokens(), SiteMixing(P.NONE, padding=False)),
    "a mask that the user unpacks": (
        masked(True),
        "blocks.0",
        ForwardCall(PACKED, unpacked),
        SiteMixing(P.NONE, padding=False),
    ),
    "a mask that the user makes": (
        masked(True),
        "blocks.0",
        ForwardCall(hosts.tokens(), lambda host, x: host(x, x != 0)),
        SiteMixing(P.NONE, padding=False),
    ),
    "a loss that the host computes": (
        hosts.llama,
        "model.layers.0",
        ForwardCall(hosts.tokens(), its_own_loss),
        SiteMixing(P.NONE, cached=True),
    ),
    "a loss alone": (lambda: OnlyLoss(), "net.blocks.0", hosts.tokens(), SiteMixing(P.NONE)),
    "an encoder": (encoder, "layers.0", torch.randn(3, 7, 8), SiteMixing(P.ANY)),
    "the first position, read behind another block": (
        ReadsFirst,
        "net.layers.0",
        torch.randn(3, 7, 8),
        SiteMixing(P.ANY),
    ),
    "the first position, read at once": (
        ReadsFirst,
        "net.layers.2",
        torch.randn(3, 7, 8),
        SiteMixing(P.ANY, first_alone=True),
    ),
    "time first": (lambda: encoder(batch_first=False), "layers.0", torch.randn(7, 3, 8), SiteMixing(P.ANY)),
    "an encoder told to be causal": (
        encoder,
        "layers.1",
        {"src": torch.randn(3, 7, 8), "mask": CAUSAL_MASK},
        SiteMixing(P.CAUSAL),
    ),
    "an encoder with a key padding mask": (
        encoder,
        "layers.1",
        {"src": torch.randn(3, 7, 8), "src_key_padding_mask": KEY_PADDING},
        SiteMixing(P.NONE, padding=False),
    ),
    "a map of pixels": (hosts.Pixels, "blocks.0", torch.randn(2, 1, 8, 8), SiteMixing(P.NONE)),
    "a map of neighbourhoods": (lambda: hosts.Pixels(3), "blocks.0", torch.randn(2, 1, 8, 8), SiteMixing(P.ANY)),
    "pooled pixels": (lambda: hosts.Pixels(pooled=True), "blocks.0", torch.randn(2, 1, 8, 8), SiteMixing(P.ANY)),
    "a residual network": (ResidualNet, "blocks.1", torch.randn(2, 1, 8, 8), SiteMixing(P.ANY)),
    "features in order": (hosts.Autoregressive, "act", torch.randn(3, 6), SiteMixing(None, channels=False)),
    "a state": (hosts.Recurrent, "middle", hosts.tokens(), SiteMixing(P.NONE, cached=True)),
    "a cache": (hosts.llama, "model.layers.0", {"input_ids": hosts.tokens()}, SiteMixing(P.NONE, cached=True)),
    "a cache that is off": (
        lambda: hosts.llama(False),
        "model.layers.0",
        {"input_ids": hosts.tokens()},
        SiteMixing(P.NONE, cached=True),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_site_may_mix(case: str) -> None:
    build, site, sample, expected = CASES[case]
    assert may_mix(build, site, sample) == expected


@pytest.mark.parametrize("seed", range(8))
def test_a_maximum_that_stays_one_is_not_taken_for_a_wall(seed: int) -> None:
    torch.manual_seed(seed)
    host = Pointwise()  # pools to one pixel by maxima: half of a picture often moves nothing in some example
    for slot in GrowingModel.wrap(host, ["blocks.0", "blocks.1"], torch.randn(2, 1, 8, 8)).slots.values():
        assert slot.may_mix == SiteMixing(P.ANY)


def test_measuring_leaves_no_trace_and_draws_no_random_number() -> None:
    host = ResidualNet()
    before, state = {name: t.clone() for name, t in host.state_dict().items()}, torch.get_rng_state()
    model = GrowingModel.wrap(host, ["blocks.0"], torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.state_dict().items())
    assert model.training and not any(module._forward_pre_hooks for module in host.modules())


# The leak test. Each kind of host has a leak of its own: how far something moves that it keeps apart.


def moved(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


def future(model: nn.Module) -> float:
    x = hosts.tokens(3, seed=5)
    changed = torch.cat([x[:, :-1], x[:, -1:] % (hosts.TOKENS - 1) + 1], 1)
    one, other = (out if out.shape[1] == x.shape[1] else out.transpose(1, 2) for out in (model(x), model(changed)))
    return moved(one[:, :-1], other[:, :-1])


def padding(model: nn.Module) -> float:
    x, leaks = hosts.tokens(3, seed=5), []
    for pads in (slice(0, 3), slice(9, None)):
        mask = torch.ones_like(x)
        mask[:, pads] = 0
        changed = x.clone()
        changed[:, pads] = x[:, pads] % (hosts.TOKENS - 1) + 1
        leaks.append(moved(model(x, mask), model(changed, mask)))
    return max(leaks)


def cache(model: nn.Module) -> float:
    """Logits of the last token with the others in the cache, against those of the whole sequence."""
    x = hosts.tokens(3, seed=5)
    past = model(input_ids=x[:, :-1], use_cache=True).past_key_values
    cached = model(input_ids=x[:, -1:], past_key_values=past, use_cache=True).logits[:, -1]
    return moved(model(input_ids=x, use_cache=False).logits[:, -1], cached)


def examples(shape: tuple[int, ...]) -> Callable[[nn.Module], float]:
    def leak(model: nn.Module) -> float:
        x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(5))
        changed = torch.cat([x[:1] + 1.0, x[1:]])
        return moved(model(x)[1:], model(changed)[1:])

    return leak


Checkpointer = tuple[Callable[[], nn.Module], str, Any, Callable[[nn.Module], float]]
KEEPERS: dict[str, Checkpointer] = {
    "causal NCL": (hosts.CausalConvolutions, "blocks.0", hosts.tokens(), future),
    "causal NTC": (hosts.GPT, "blocks.0", hosts.tokens(), future),
    "masked NTC": (masked(True), "blocks.0", WITH_MASK, padding),
    "cached NTC": (hosts.llama, "model.layers.0", {"input_ids": hosts.tokens()}, cache),
    "batch NC": (lambda: nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 3)), "0", torch.randn(2, 6), examples((6,))),
    "batch NCL": (
        lambda: nn.Sequential(nn.Conv1d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)),
        "0",
        torch.randn(2, 1, 8),
        examples((1, 8)),
    ),
    "batch NCHW": (lambda: hosts.Pixels(pooled=True), "blocks.0", torch.randn(2, 1, 8, 8), examples((1, 8, 8))),
    "batch NTC": (encoder, "layers.0", torch.randn(2, 7, 8), examples((7, 8))),
}
HARMLESS = 1e-4
"""Relative change that is rounding: cached logits are computed in other shapes than full ones."""


def leak_of(model: GrowingModel, slot: SeedSlot, keeper: str) -> float:
    """With the seed in full, and weights that are nowhere zero."""
    assert slot.state is not None
    slot.state.stage, slot.state.alpha = SeedStage.HOLDING, 1.0
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    with torch.no_grad():
        return KEEPERS[keeper][3](model.eval())


@pytest.mark.parametrize("keeper", KEEPERS)
def test_no_blueprint_that_passes_g0_leaks_and_every_one_that_fails_would(keeper: str) -> None:
    build, site, sample, _ = KEEPERS[keeper]
    layout = Layout(keeper.split()[1])
    passed = []
    for blueprint in names(layout):
        torch.manual_seed(0)
        model, slot = wrapped(build(), site, sample)
        assert slot.config.layout is layout
        offered = against(blueprint, layout, slot.may_mix) is None
        result = slot.germinate(blueprint)
        assert result.passed == offered, (blueprint, result.message)
        if result.passed:
            passed.append(blueprint)
        else:  # a mutant: nothing is known of the site
            slot.may_mix = None
            assert slot.germinate(blueprint).passed
        leak = leak_of(model, slot, keeper)
        assert leak <= HARMLESS if offered else leak > 10 * HARMLESS, (blueprint, leak)
    assert passed
    if keeper.startswith("batch"):
        assert passed == list(names(layout))


class Shifted(nn.Module):
    """Takes over its neighbour's value along one axis."""

    def __init__(self, axis: int, by: int) -> None:
        super().__init__()
        self.axis, self.by = axis, by
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.weight * h.roll(self.by, self.axis)


def mutant(layout: Layout, axis: int, by: int, mixes: Positions | None = None) -> Blueprint:
    return Blueprint("mutant", frozenset({layout}), lambda c: 1, lambda c, _: Shifted(axis, by), mixes)


BATCH = {layout: mutant(layout, 0, 1) for layout in Layout}
AHEAD = {Layout.NTC: mutant(Layout.NTC, 1, -1), Layout.NCL: mutant(Layout.NCL, 2, -1)}
LIAR = mutant(Layout.NTC, 1, -1, mixes=P.CAUSAL)
BATCH_NC, BATCH_NCL, BATCH_NCHW, BATCH_NTC = (BATCH[layout] for layout in Layout)
AHEAD_NTC, AHEAD_NCL = AHEAD[Layout.NTC], AHEAD[Layout.NCL]


@pytest.mark.parametrize("keeper", KEEPERS)
@pytest.mark.parametrize("kind", ["BATCH", "AHEAD", "LIAR"])
def test_a_mutant_that_mixes_fails_g0_with_what_it_mixes(keeper: str, kind: str) -> None:
    """Undeclared, a blueprint is offered and tried; a false declaration does not help."""
    build, site, sample, _ = KEEPERS[keeper]
    layout = Layout(keeper.split()[1])
    name = f"{__name__}:{kind}" if kind == "LIAR" else f"{__name__}:{kind}_{layout}"
    if kind != "BATCH" and (keeper.startswith("batch") or (kind == "LIAR" and layout is not Layout.NTC)):
        pytest.skip("the host keeps no positions apart, or the mutant does not fit")
    torch.manual_seed(0)
    model, slot = wrapped(build(), site, sample)
    events: list[TelemetryEvent] = []
    slot.on_telemetry = events.append
    result = slot.germinate(name)
    id = "mixes_examples" if kind == "BATCH" else "mixes_later"
    (check,) = [each for each in result.checks if each.id == id]
    assert not result.passed and not check.passed and isinstance(check.measured, float) and check.measured > 0.1
    (said,) = [each for each in events[0].data["checks"] if each["id"] == id]
    assert said["measured"] == check.measured and slot.seed is None


def test_a_host_that_mixes_examples_lets_seeds_do_so() -> None:
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), hosts.Centred(), nn.Linear(8, 3))
    _, slot = wrapped(host, "0", torch.randn(4, 6))
    assert slot.may_mix == SiteMixing(None, examples=True)
    assert slot.germinate(f"{__name__}:BATCH_NC").passed


def test_a_grown_llama_gives_with_its_cache_what_it_gives_without() -> None:
    torch.manual_seed(0)
    model, slot = wrapped(hosts.llama(), "model.layers.0", {"input_ids": hosts.tokens()})
    assert slot.germinate("mlp").passed and leak_of(model, slot, "cached NTC") <= HARMLESS
    torch.manual_seed(0)
    model, slot = wrapped(hosts.llama(), "model.layers.0", {"input_ids": hosts.tokens()})
    assert not slot.germinate("depthwise5").passed
    assert "caches" in (against("depthwise5", Layout.NTC, slot.may_mix) or "")


def test_a_policy_is_told() -> None:
    _, slot = wrapped(hosts.GPT(), "blocks.0", hosts.tokens())
    assert slot.view().may_mix == SiteMixing(P.CAUSAL)
    assert slot.germinate("mlp").passed and slot.view().may_mix == SiteMixing(P.CAUSAL)
    assert SeedSlot("a", 4).view().may_mix is None


def test_a_seed_that_looks_back_is_refused_where_the_first_position_alone_is_read() -> None:
    reads_first = SiteMixing(P.ANY, first_alone=True)
    for name in ("depthwise3", "depthwise5", "attention"):
        assert "first position alone" in (against(name, Layout.NTC, reads_first) or "")
        assert against(name, Layout.NTC, SiteMixing(P.ANY)) is None
    assert against("attention_full", Layout.NTC, reads_first) is None
    assert against("mlp", Layout.NTC, reads_first) is None
