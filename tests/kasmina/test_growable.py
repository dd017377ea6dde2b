"""What may grow in a slot: copies of the host's blocks, right or refused in a sentence, beside blueprints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from repeating_hosts import Caching, Reader, Remembering, Turning, Two, chain, padded
from small_hosts import ResidualNet, encoder
from test_export import loaded
from torch import Tensor, nn

from esper.kasmina import growable
from esper.kasmina.applied import apply
from esper.kasmina.clone import Clone
from esper.kasmina.export import compare, export, save_export
from esper.kasmina.growing import GrowingModel
from esper.kasmina.incubation import probe_gradients
from esper.kasmina.slot_config import SlotConfig
from esper.kasmina.state import GrowthPlan, Incubation
from esper.leyline import SeedStage, UsageError
from esper.tasks.hosts import CharTransformer


def wrapped(host: nn.Module, sites: list[str], sample: Any) -> GrowingModel:
    return GrowingModel.wrap(host, sites, sample, config=SlotConfig(copies=True))


def stacked(model: GrowingModel, slot_id: str, name: str = "clone", alpha: float = 1.0) -> Clone:
    slot = model.slots[slot_id]
    result = slot.germinate(name)
    assert result.passed, result.message
    assert slot.state is not None and isinstance(slot.seed, Clone)
    slot.state.stage, slot.state.alpha = SeedStage.HOLDING, alpha
    return slot.seed


def test_a_copy_sees_the_mask_and_all_else_that_its_block_is_handed() -> None:
    torch.manual_seed(0)
    host, (x, pad) = Reader(), padded()
    model = wrapped(host, ["layers.1"], (x, pad)).eval()
    stacked(model, "layers_1")
    h = host.embed(x)
    for layer in (0, 1, 1, 2):
        h = host.layers[layer].forward(h, pad, scale=0.5)[0]
    assert torch.equal(model(x, pad), host.head(h))
    other = x.clone()
    other[1, 4:] += 5.0
    kept = ~pad
    assert torch.equal(model(other, pad)[kept], model(x, pad)[kept]), "padding reaches nothing"
    assert not torch.equal(model(x, ~pad)[kept], model(x, pad)[kept]), "it is the mask that keeps it out"


@pytest.mark.parametrize(
    ("build", "sample", "sites"),
    [
        (lambda: encoder(batch_first=False), torch.randn(5, 7, 8), ["layers.1"]),
        (ResidualNet, torch.randn(5, 1, 8, 8), ["blocks.0", "blocks.2"]),
        (lambda: Remembering(), torch.randn(2, 6), ["blocks.1"]),
        (lambda: CharTransformer(9, 7, 8), torch.randint(9, (2, 7)), ["blocks.0", "blocks.1"]),
    ],
)
def test_a_stacked_copy_is_its_block_twice(build: Callable[[], nn.Module], sample: Tensor, sites: list[str]) -> None:
    torch.manual_seed(0)
    model = wrapped(build(), sites, sample).eval()
    for slot_id in model.slots:
        stacked(model, slot_id)
    torch.manual_seed(0)
    by_hand = build().eval()
    for site, slot in zip(sites, model.slots.values(), strict=True):
        assert not isinstance(slot.block, str)
        called_twice(by_hand.get_submodule(site), slot.block.entry[1])
    with torch.no_grad():
        due = by_hand(sample)
        assert (model(sample) - due).abs().max() <= 1e-5
        assert (export(model)(sample) - due).abs().max() <= 1e-5
        with model.alphas(dict.fromkeys(model.slots, 0.0)):
            assert not torch.equal(model(sample), due)


def called_twice(block: nn.Module, stream: int) -> None:
    """Let it do its work twice; ``stream`` is the number of the argument that is handed on."""
    once = block.forward

    def twice(*args: Any, **kwargs: Any) -> Any:
        again = list(args)
        again[stream] = once(*args, **kwargs)
        return once(*again, **kwargs)

    block.forward = twice


def test_one_with_its_last_layers_zero_is_the_identity_and_learns() -> None:
    torch.manual_seed(0)
    model = wrapped(host := Reader(), ["layers.1"], padded()).eval()
    before = model(*padded())
    copy = stacked(model, "layers_1", "clone_zero")
    zero = {name for name, parameter in copy.named_parameters() if not parameter.any()}
    last = {"mlp.3.weight", "mlp.3.bias", "attention.out_proj.weight", "attention.out_proj.bias"}
    assert {f"block.{name}" for name in last} <= zero and "block.mlp.1.weight" not in zero
    assert torch.equal(model(*padded()), before)
    model(*padded()).square().sum().backward()
    assert all(parameter.grad is not None for name, parameter in copy.named_parameters() if name in zero)
    assert host.layers[1].mlp[3].weight.any(), "the block's own weights are as they were"


def test_noise_and_frozen_blocks() -> None:
    torch.manual_seed(0)
    model = wrapped(Reader().requires_grad_(False), ["layers.1"], padded())
    copy = stacked(model, "layers_1", "clone_noise")
    block = model.host.get_submodule("layers.1")
    assert all(parameter.requires_grad for parameter in copy.parameters())
    assert not any(origin.requires_grad for origin in block.parameters())
    for parameter, origin in zip(copy.parameters(), block.parameters(), strict=True):
        parameter, origin = parameter.detach(), origin.detach()
        strength = float(origin.square().mean().sqrt())
        assert float((parameter - origin).square().mean().sqrt()) == pytest.approx(0.02 * strength, rel=0.6, abs=1e-9)
    assert not block._forward_pre_hooks and len(block._forward_hooks) == 1 and not copy.block._forward_hooks


def test_what_a_copy_goes_on_with() -> None:
    model = wrapped(Reader(), ["layers.1"], padded())
    slot = model.slots["layers_1"]
    every = len(list(model.host.get_submodule("layers.1").parameters()))
    for name, count in (("clone", every), ("clone_noise", every), ("clone_fresh", 0), ("clone_zero", every - 4)):
        copy = stacked(model, "layers_1", name)
        pairs = growable.origins(slot)
        assert len(pairs) == count, name
        assert {id(p) for p, _ in pairs} <= {id(p) for p in copy.parameters()}
        slot.clear()


def test_an_isolated_copy_sends_nothing_back_through_what_the_block_is_handed() -> None:
    """Its block is handed a memory that the host computes."""
    torch.manual_seed(0)
    model = wrapped(Remembering(), ["blocks.1"], torch.randn(4, 6)).train()
    slot = model.slots["blocks_1"]
    assert slot.germinate("clone", plan=GrowthPlan(incubation=Incubation.GRAFT)).passed
    assert slot.advance_stage(SeedStage.TRAINING).passed and slot.isolated
    x = torch.randn(4, 6)
    model(x).sum().backward()
    found = model.host.embed.weight.grad.clone()
    model.zero_grad()
    slot.seed.requires_grad_(False)  # the same with a copy that is a constant
    model(x).sum().backward()
    assert torch.equal(model.host.embed.weight.grad, found)
    state = slot.state
    state.detach_epochs = 0
    assert not slot.isolated
    model.zero_grad()
    model(x).sum().backward()
    assert not torch.equal(model.host.embed.weight.grad, found), "else there was nothing to send back"


def test_a_copy_learns_behind_the_host() -> None:
    torch.manual_seed(0)
    model, sample = wrapped(Reader(), ["layers.0", "layers.2"], padded()), padded()
    copies = [stacked(model, slot_id, alpha=0.0) for slot_id in model.slots]
    model.eval()
    with model.record(["layers_0", "layers_2"]) as tape:
        model(*sample)
    assert all(model.sharing.values())
    for slot_id, copy in zip(model.slots, copies, strict=True):
        loss, gradients = probe_gradients(model, tape, lambda output: output.square().sum(), slot_id)
        with model.alphas({slot_id: 1.0}):
            whole = model(*sample).square().sum()
        due = torch.autograd.grad(whole, list(copy.parameters()))
        assert float(loss.detach()) == pytest.approx(float(whole.detach()), rel=1e-6)
        assert all(torch.allclose(found, each, atol=1e-5) for (_, found), each in zip(gradients, due, strict=True))


class Cache:
    """Of keys and values."""


def hooked() -> nn.Module:
    host = chain(Turning(), Turning())
    host[1].register_forward_pre_hook(lambda module, args: None)
    return host


class Handing(nn.Module):
    """Hands its blocks ``what``."""

    def __init__(self, what: Any, block: type[nn.Module] = Caching) -> None:
        super().__init__()
        self.embed, self.blocks, self.what = nn.Linear(6, 8), nn.ModuleList(block() for _ in range(3)), what

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h, self.what)
            h = h[0] if isinstance(h, tuple) else h
        return h


class Object:
    pass


X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("host", "sites", "reason"),
    [
        (chain(Turning(), nn.Tanh()), ["1"], "'1' (Turning) does not repeat: the host holds no other block of its"),
        (
            Handing(Cache()),
            ["blocks.1"],
            "has no place of its own in 'past', a cache of earlier positions; legal: use_",
        ),
        (Handing(Object()), ["blocks.1"], "has no place of its own in 'past'"),
        (Handing(Object(), Two), ["blocks.1"], "is handed"),
        (Handing(None, Two), ["blocks.1"], "gives 2 tensors, and a copy could hand on one; legal: one that gives one"),
        (Remembering(nn.Tanh()), ["blocks.1"], "which is the stream, none tells"),
        (Remembering(), ["blocks.1", "blocks.1.linear"], "'blocks.1.linear' inside the block 'blocks.1' is a site of"),
        (chain(Turning(), Turning()), ["1"], "mixes what the host keeps apart"),
        (hooked(), ["1"], "has hooks, which a copy would call too"),
    ],
)
def test_what_cannot_be_copied_rightly_is_refused(host: nn.Module, sites: list[str], reason: str) -> None:
    model = wrapped(host, sites, X)
    slot = model.slots[sites[0].replace(".", "_")]
    said = growable.against(slot, "clone")
    assert said is not None and reason in said and "\n" not in said
    if isinstance(slot.block, str):
        with pytest.raises(UsageError, match="no copy can grow in slot"):
            slot.germinate("clone")


def test_a_block_whose_parameters_cannot_learn_is_not_copied_and_all_else_grows() -> None:
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randint(-5, 6, (8, 8), dtype=torch.int8), requires_grad=False)

        def forward(self, h: Tensor) -> Tensor:
            return h + h @ self.weight.to(h.dtype) / 8

    slot = wrapped(chain(Quantised(), Quantised()), ["1"], X).slots["1"]
    said = growable.against(slot, "clone")
    assert said == "the block '1' (Quantised) has parameters of torch.int8, which cannot learn, and all of a copy does"
    assert growable.against(slot, "mlp") is None and slot.germinate("mlp").passed


@pytest.mark.parametrize("name", ["clone", "clone_zero"])
def test_a_copy_keeps_the_formats_of_its_block(name: str, tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8, dtype=torch.bfloat16)

        def forward(self, h: Tensor) -> Tensor:
            return h + self.linear(self.norm(h.float()).to(h.dtype))

    def build() -> nn.Module:
        host = chain(Mixed(), Mixed())
        host[0].bfloat16(), host[-1].bfloat16()
        return host

    torch.manual_seed(0)
    host, x = build(), X.bfloat16()
    model = wrapped(host, ["1"], x).eval()
    copy = stacked(model, "1", name)
    assert {path: each.dtype for path, each in copy.block.named_parameters()} == {
        path: each.dtype for path, each in host[1].named_parameters()
    }
    h = host[1].forward(host[0](x))
    due = host[3].forward(host[2].forward(host[1].forward(h) if name == "clone" else h))
    assert torch.equal(model(x), due)
    before = model.slots["1"].lifecycle()
    model.slots["1"].load_lifecycle(before)
    assert model.slots["1"].seed.block.norm.weight.dtype is torch.float32
    model.slots["1"].seed.load_state_dict(copy.state_dict())
    save_export(model, tmp_path, x)
    applied = apply(build(), tmp_path)
    assert {each.dtype for each in applied.parameters()} == {torch.float32, torch.bfloat16}
    assert torch.equal(applied(x), due)


def test_a_block_behind_a_norm_of_the_sum_has_no_identity() -> None:
    model = wrapped(encoder(), ["layers.1"], torch.randn(5, 7, 8))  # post-norm
    said = growable.against(model.slots["layers_1"], "clone_zero")
    assert said is not None and "is not the identity with all its weights zero" in said
    assert said.endswith("legal: clone, clone_fresh, clone_noise")
    assert growable.against(model.slots["layers_1"], "clone") is None


def test_copies_are_looked_for_where_they_are_asked_for() -> None:
    model = GrowingModel.wrap(Reader(), ["layers.1"], padded())
    assert growable.against(model.slots["layers_1"], "clone") == "no copies were asked for when the host was wrapped"
    assert growable.against(model.slots["layers_1"], "mlp") is None


def test_a_copy_is_not_run_with_a_cache() -> None:
    model = wrapped(Handing(None), ["blocks.1"], X)
    stacked(model, "blocks_1")
    plain = export(model)
    plain(X)
    for network in (model, plain):
        network.eval()
        (network.host if network is model else network).what = (torch.zeros(1), torch.zeros(1))
        with pytest.raises(TypeError, match="a copied Caching has no place of its own in 'past'"):
            network(X)


@pytest.mark.parametrize(
    ("build", "sample", "sites", "needs_host"),
    [
        (Reader, padded(), ["layers.0", "layers.1"], True),
        (lambda: CharTransformer(9, 7, 8), torch.randint(9, (2, 7)), ["blocks.1"], False),
    ],
)
def test_files_of_a_host_with_copies(
    build: Callable[[], nn.Module], sample: Any, sites: list[str], needs_host: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = wrapped(build(), sites, sample).eval()
    for slot_id in model.slots:
        copy = stacked(model, slot_id, "clone_noise", 0.7)
        for parameter in copy.parameters():
            parameter.data.add_(0.1)
    exported = save_export(model, tmp_path, sample)
    written = loaded(exported.code)
    plain = written.load(build()) if exported.needs_host else written.load()
    assert compare(model, plain, sample).largest <= 1e-5
    assert exported.needs_host <= needs_host
    applied = apply(build(), tmp_path)
    assert compare(model, applied, sample).largest == 0.0
    assert "import esper" not in exported.code.read_text() and "from esper" not in exported.code.read_text()
