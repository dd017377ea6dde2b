"""A slot that opens again when its seed was kept: several seeds at one site, exact like one."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from configs import evaluated
from small_hosts import CASES, put_seed
from test_beside import CASES as BESIDE
from test_beside import put
from torch import Tensor, nn

import esper
from esper.kasmina.export import compare, export, save_export
from esper.kasmina.growing import GrowingModel
from esper.kasmina.incubation import probe_backward
from esper.kasmina.layer import Beside
from esper.kasmina.leaving import leave
from esper.kasmina.macs import counted
from esper.kasmina.portable import Grown
from esper.kasmina.slot import SeedSlot, SlotConfig
from esper.kasmina.state import Incubation
from esper.kasmina.structure import same
from esper.leyline import SeedStage, TelemetryEvent, UsageError
from esper.leyline import TelemetryEventType as T

KINDS = ["residual", "text"]
"""A host with sites behind modules, and one with sites beside them."""


def wrapped(name: str, **options: object) -> tuple[GrowingModel, Tensor]:
    torch.manual_seed(0)
    case = CASES[name] if name in CASES else BESIDE[name]
    config = SlotConfig(generations=3, **options)  # type: ignore[arg-type]
    sample = case.sample()
    return GrowingModel.wrap(case.build(), case.sites, sample, config=config), sample


def fill(model: GrowingModel, stage: SeedStage, alpha: float, blueprint: str = "lora2") -> None:
    """A seed with weights that matter in every slot, put there without asking gates."""
    if isinstance(next(iter(model.slots.values())).config.layout, Beside):
        put(model, stage, alpha, blueprint)
    else:
        for slot_id in model.slots:
            put_seed(model, slot_id, stage, alpha)


def keep(model: GrowingModel, alpha: float = 1.0, blueprint: str = "lora2") -> None:
    """One more generation in every slot."""
    fill(model, SeedStage.FOSSILIZED, alpha, blueprint)
    for slot in model.slots.values():
        slot.tick()


def look(model: nn.Module, sample: Tensor) -> Tensor:
    with torch.no_grad():
        return model(sample)


@pytest.mark.parametrize("name", KINDS)
def test_opening_again_changes_no_bit_and_nothing_switches_the_kept_off(name: str) -> None:
    model, sample = wrapped(name)
    model.eval()
    bare = look(model, sample)
    fill(model, SeedStage.FOSSILIZED, 0.8)
    kept = look(model, sample)
    mine = {slot_id: list(model.seed_parameters(slot_id)) for slot_id in model.slots}
    for slot in model.slots.values():
        slot.tick()
        assert (slot.stage, slot.live, slot.alpha, slot.view().generation) == (SeedStage.DORMANT, False, 0.0, 1)
    assert torch.equal(look(model, sample), kept) and not torch.equal(kept, bare)
    with model.alphas(dict.fromkeys(model.slots, 0.0)):
        assert torch.equal(look(model, sample), kept), "all off is the network without its newest seeds"
    fill(model, SeedStage.TRAINING, 0.0)
    assert torch.equal(look(model, sample), kept), "the next learns behind it"
    with model.alphas(dict.fromkeys(model.slots, 1.0)):
        assert not torch.equal(look(model, sample), kept)
    for slot_id, slot in model.slots.items():
        assert all(one is other for one, other in zip(slot.kept[0].parameters(), mine[slot_id], strict=True))
        assert slot.prune("for the test").passed and slot.kept
    assert torch.equal(look(model, sample), kept)


def test_a_slot_opens_until_it_has_kept_as_many_as_it_may() -> None:
    events: list[TelemetryEvent] = []
    slot = SeedSlot("a", 4, on_telemetry=events.append, config=SlotConfig(generations=2))
    stages = []
    for number in (1, 2):
        assert slot.germinate("conv3").passed and slot.state is not None
        slot.state.stage, slot.state.alpha = SeedStage.FOSSILIZED, 1.0
        assert not slot.germinate("conv3").passed, "not in the same epoch"
        slot.tick()
        stages.append(slot.stage)
        assert (len(slot.kept), len(slot.parts())) == (1, number)
    assert stages == [SeedStage.DORMANT, SeedStage.FOSSILIZED]
    for _ in range(3):
        slot.tick()
    assert slot.stage is SeedStage.FOSSILIZED and not slot.germinate("conv3").passed
    told = [event for event in events if event.event_type is T.SLOT_REOPENED]
    assert [(event.seed_id, event.data["generation"], event.data["generations"]) for event in told] == [("a-1", 1, 2)]
    born = [event.data["generation"] for event in events if event.event_type is T.SEED_GERMINATED]
    assert born == [0, 1]
    view = slot.view()
    assert (view.generation, view.seed_id, [seed.seed_id for seed in view.kept]) == (1, "a-2", ["a-1"])
    with pytest.raises(UsageError, match="keeps 0 seeds; legal: from 1"):
        SlotConfig(generations=0)


@pytest.mark.parametrize("name", KINDS)
def test_counterfactuals_equal_whole_passes_and_a_second_model_takes_the_state(name: str) -> None:
    model, sample = wrapped(name)
    for _ in range(2):
        keep(model, 0.7)
    fill(model, SeedStage.HOLDING, 0.6)
    first, *others = list(model.slots)
    model.slots[first].prune("for the test")
    model.eval()
    configs = [{}, *({slot_id: alpha} for slot_id in others for alpha in (0.0, 1.0)), dict.fromkeys(model.slots, 0.0)]
    run = evaluated(model, sample, configs)
    for config, output in zip(configs, run.outputs, strict=True):
        with model.alphas(config):
            assert same(output, look(model, sample))
    assert run.cost.passes > 1.0
    torch.manual_seed(5)
    other, _ = wrapped(name)
    topology, tensors = model.topology(), model.state_dict()
    other.load(topology, tensors)
    other.eval()
    assert other.topology() == topology and torch.equal(look(other, sample), look(model, sample))
    assert [list(slot.view().kept) for slot in other.slots.values()] == [
        list(slot.view().kept) for slot in model.slots.values()
    ]


@pytest.mark.parametrize("name", KINDS)
def test_passes_count_the_work_of_what_was_kept(name: str) -> None:
    model, sample = wrapped(name)
    keep(model)
    fill(model, SeedStage.HOLDING, 1.0)
    model.eval()
    last = next(slot_id for slot_id in reversed(list(model.slots)) if model.sharing[slot_id])
    whole = counted(lambda: look(model, sample))
    with model.alphas({last: 0.0}):
        without = counted(lambda: look(model, sample))
    passes = evaluated(model, sample, [{}, {last: 0.0}]).cost.passes
    with model.record([last]) as tape:
        look(model, sample)
    behind = counted(lambda: tape.replay(last, {last: 0.0}))
    assert without < whole and passes == pytest.approx(1.0 + behind / whole)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("incubation", [Incubation.PROBE, Incubation.STRAIGHT_THROUGH])
def test_a_second_generation_behind_it_leaves_host_and_first_bit_equal(name: str, incubation: Incubation) -> None:
    def trained(second: bool) -> list[Tensor]:
        model, sample = wrapped(name, incubation=incubation)
        keep(model)
        model.train()
        older = [*model.host.parameters(), *(p for slot in model.slots.values() for p in slot.kept.parameters())]
        optimizer = torch.optim.AdamW(older, lr=1e-2)
        newest: list[nn.Parameter] = []
        if second:
            torch.manual_seed(7)
            fill(model, SeedStage.TRAINING, 0.0)
            newest = [p for slot_id in model.slots for p in model.seed_parameters(slot_id)]
            optimizer.add_param_group({"params": newest})
        before = [p.detach().clone() for p in newest]
        for step in range(3):
            torch.manual_seed(step)  # the host has dropout
            optimizer.zero_grad()
            probing = list(model.slots) if second and incubation is Incubation.PROBE else []
            with model.record(probing) as tape:
                loss = model(sample).square().mean()
            loss.backward()
            for slot_id in probing:
                probe_backward(model, tape, lambda output: output.square().mean(), slot_id)
            optimizer.step()
        assert all(not torch.equal(p, was) for p, was in zip(newest, before, strict=True))
        assert all(slot.monitor.counts[1] == 0 for slot in model.slots.values())
        return [p.detach() for p in older]

    assert all(map(torch.equal, trained(True), trained(False)))


def test_the_probe_s_gradient_is_that_of_the_whole_pass_with_what_was_kept() -> None:
    model, sample = wrapped("residual")
    keep(model, 0.6)
    fill(model, SeedStage.TRAINING, 0.0)
    slot_id = next(iter(model.slots))
    model.eval()  # dropout in front of the slot is not drawn again
    with model.record([slot_id]) as tape:
        model(sample)
    probe_backward(model, tape, lambda output: output.square().mean(), slot_id)
    probed = [p.grad for p in model.seed_parameters(slot_id)]
    with model.alphas({slot_id: 1.0}):
        loss = model(sample).square().mean()
    expected = torch.autograd.grad(loss, list(model.seed_parameters(slot_id)))
    assert all(
        p is not None and torch.allclose(p, q, rtol=1e-5, atol=1e-7) for p, q in zip(probed, expected, strict=True)
    )
    assert all(p.grad is None for slot in model.slots.values() for p in slot.kept.parameters())


def test_lora2_and_lora4_fold_into_one_weight_as_peft_adds_them_up(tmp_path: Path) -> None:
    model, sample = wrapped("text")
    keep(model, 1.0, "lora2")
    keep(model, 0.5, "lora4")
    fill(model, SeedStage.HOLDING, 0.9, "lora8")
    model.eval()
    slot = model.slots["attention_0_query"]
    weight = model.host.attention[0].query.weight.detach()
    expected = weight.clone()
    for seed, alpha, rank in zip((*(k.seed for k in slot.kept), slot.seed), (1.0, 0.5, 0.9), (2, 4, 8), strict=True):
        down, up = seed.down.weight, seed.up.weight
        assert tuple(down.shape) == (rank, 8)
        expected += alpha * seed.scale * (up @ down).detach()
    plain = export(model, sample=sample)
    query = plain.attention[0].query
    assert type(query) is nn.Linear and torch.allclose(query.weight, expected, atol=1e-6)
    assert compare(model, plain, sample).same
    files = save_export(model, tmp_path, sample)
    assert set(files.unfolded) == {"mlp-1", "mlp-2", "mlp-3"} and len(files.shape.folded) == 3 * (len(model.slots) - 1)
    apart = sum(p.numel() for part in model.slots["mlp"].parts() for p in part.seed.parameters())
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in model.host.parameters()) + apart


def test_what_rounding_would_swallow_beside_a_large_one_stays_a_module() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (4, 6))
    host = BESIDE["text"].build().bfloat16().eval()
    model = GrowingModel.wrap(host, ["+query"], tokens, config=SlotConfig(generations=2))
    keep(model)
    fill(model, SeedStage.HOLDING, 1.0)
    assert type(export(model).attention[0].query) is nn.Linear
    slot = model.slots["attention_0_query"]
    with torch.no_grad():
        for parameter in slot.kept[0].parameters():
            parameter.mul_(30.0)  # the weight is then rounded more coarsely than what the newest adds
    plain = export(model)
    assert isinstance(plain.attention[0].query, Grown) and type(plain.attention[1].query) is nn.Linear
    assert not isinstance(plain.attention[0].query.module, Grown), "the large one is in the weight"


@pytest.mark.parametrize("name", [*KINDS, "images"])
@pytest.mark.parametrize("mixed", [False, True])
def test_files_copies_and_what_stays_in_place_compute_the_same(name: str, mixed: bool, tmp_path: Path) -> None:
    model, sample = wrapped(name)
    keep(model, 0.7)
    keep(model, 1.0, "adapter16" if mixed and name == "images" else "lora2")
    fill(model, SeedStage.BLENDING, 0.3, "adapter16" if mixed and name == "images" else "lora2")
    expected = look(model.eval(), sample)
    plain = export(model, sample=sample)
    assert compare(model, plain, sample).same
    save_export(model, tmp_path / "model", sample)
    torch.manual_seed(9)
    case = CASES[name] if name in CASES else BESIDE[name]
    fresh = esper.apply(case.build(), tmp_path)
    assert list(fresh.state_dict()) == list(plain.state_dict())
    assert torch.equal(look(fresh, sample), look(plain, sample))

    broken = case.build()
    (first, parameter), *_ = broken.named_parameters()
    owner, _, leaf = first.rpartition(".")
    setattr(broken.get_submodule(owner), leaf, nn.Parameter(parameter.detach().new_zeros(3)))
    classes = [type(module) for module in broken.modules()]
    with pytest.raises(UsageError, match="tensors differ"):
        esper.apply(broken, tmp_path)
    assert [type(module) for module in broken.modules()] == classes, "all that was put around modules is gone again"

    file = io.BytesIO()
    torch.save(model.host, file)
    file.seek(0)
    for twin in (copy.deepcopy(model.host), torch.load(file, weights_only=False)):
        assert torch.equal(look(twin, sample), expected)
    leave(model.host)
    assert torch.equal(look(model.host, sample), expected)
    assert not any(isinstance(module, SeedSlot) for module in model.host.modules())


def test_an_average_follows_a_slot_that_opens_again() -> None:
    model, sample = wrapped("residual")
    fill(model, SeedStage.FOSSILIZED, 1.0)
    model.eval()
    with model.exposed():
        average = torch.optim.swa_utils.AveragedModel(model.host)
        average.update_parameters(model.host)
        for slot in model.slots.values():
            slot.tick()
        fill(model, SeedStage.HOLDING, 0.5)
        average.update_parameters(model.host)
        own, averaged = list(model.host.parameters()), list(average.module.parameters())
        assert [p.shape for p in own] == [p.shape for p in averaged]
        assert torch.allclose(look(average.module.eval(), sample), look(model, sample), atol=1e-5)


def test_parameters_of_all_generations_are_among_the_host_s_while_it_is_exposed() -> None:
    model, _ = wrapped("residual")
    keep(model)
    fill(model, SeedStage.HOLDING, 1.0)
    all_of_them = {id(p) for slot in model.slots.values() for part in slot.parts() for p in part.seed.parameters()}
    with model.exposed():
        named = dict(model.host.named_parameters())
        assert all_of_them < {id(p) for p in named.values()}
    plain = dict(export(model).named_parameters())
    grown = {name for name, p in named.items() if id(p) in all_of_them}
    assert grown < set(plain), "seeds are named as in an export"
    assert all(torch.equal(plain[name], named[name]) for name in grown)


def test_seeds_that_are_sown_for_a_while_leave_what_was_kept_alone() -> None:
    model, sample = wrapped("text")
    keep(model)
    model.eval()
    before, kept = look(model, sample), [p for slot in model.slots.values() for p in slot.kept.parameters()]
    with model.sown(dict.fromkeys(model.slots, "lora4")):
        assert all(len(slot.parts()) == 2 for slot in model.slots.values())
    assert torch.equal(look(model, sample), before)
    after = [p for slot in model.slots.values() for p in slot.kept.parameters()]
    assert all(one is other for one, other in zip(kept, after, strict=True))
