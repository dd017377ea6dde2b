"""A learned policy's file, and how it plays."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save_file

from env_views import env_views, live_slot, row_view
from esper.leyline import WAIT, DataError, EnvSpec, EnvView, Op, Promise, SeedStage, SlotView, UsageError
from esper.tamiyo.batch import action_space, observe
from esper.tamiyo.features import LAYOUT
from esper.tamiyo.network import GrowthNetwork, GrowthNetworkConfig
from esper.tamiyo.policies import make_policy
from esper.tamiyo.policies.learned import (
    FORMAT,
    PACKAGED,
    READER,
    SHIPPED,
    SHIPPED_FILE,
    LearnedPolicy,
    load_policy,
    save_policy,
    training_macs,
)
from esper.tamiyo.recurrent import acting_macs
from esper.tolaria.checkpoint import decode, encode
from esper.tolaria.legality import why_illegal

SPECS = [EnvSpec(i, 0, 100 + i, 30) for i in range(3)]


def network(cells: int = 8) -> GrowthNetwork:
    torch.manual_seed(0)
    made = GrowthNetwork(GrowthNetworkConfig.for_layout(LAYOUT, ("small", "large"), cells=cells))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)
    return made


def test_a_saved_policy_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "policy.safetensors"
    written = save_policy(path, network(), {"task": "digits", "score": 0.5})
    assert written.bytes == path.stat().st_size < 1_000_000
    saved = load_policy(path)
    assert saved.card == {"task": "digits", "score": 0.5} and saved.network.config == network().config
    for name, tensor in network().state_dict().items():
        assert torch.equal(tensor, saved.network.state_dict()[name])
    assert not saved.nurture and saved.player().nurture is None
    save_policy(path, network(), {}, nurture=True)
    played, drawing = make_policy(str(path)), make_policy(str(path), greedy=False)
    assert isinstance(played, LearnedPolicy) and played.greedy and played.nurture is not None, "as it is scored"
    assert isinstance(drawing, LearnedPolicy) and not drawing.greedy
    assert not played.nurture.auditions
    save_policy(path, network(), {}, nurture=True, auditions=True)
    hearing = load_policy(path).player()
    hearing.reset(SPECS[:1])
    assert [name for name, _ in hearing.decide([row_view(epoch=0)])[0].audition] == ["slot0", "slot1", "slot2"]
    with pytest.raises(UsageError, match="no rules that audition"):
        save_policy(path, network(), {}, auditions=True)


def test_the_shipped_policy_is_small_says_where_it_comes_from_and_does_the_same_every_time() -> None:
    card = load_policy(SHIPPED_FILE).card
    assert SHIPPED_FILE.stat().st_size < 1_000_000 and training_macs(SHIPPED) > card["table_macs"]
    assert any("in these worlds it is a constant" in remark for remark in card["remarks"])
    assert {"trained_on", "worlds", "hosts", "seed", "steps", "policy_macs", "table_macs"} <= card.keys()
    view = row_view(epoch=0)
    first, second = make_policy(SHIPPED), make_policy(SHIPPED)
    for policy, seed in ((first, 0), (second, 1)):
        policy.reset([EnvSpec(0, 0, seed, 30)])
    assert first.name == SHIPPED and first.decide([view]) == second.decide([view])


def test_the_packaged_reader_goes_where_most_is_promised_and_its_card_says_what_is_not_shown() -> None:
    saved = load_policy(PACKAGED[READER])
    assert PACKAGED[READER].stat().st_size < 1_000_000 and training_macs(READER) > saved.card["table_macs"] > 0
    assert saved.nurture and saved.auditions and saved.card["ahead"]["best blind choice"][0] > 0
    remarks = " ".join(saved.card["remarks"])
    assert "reads what places promise" in remarks and "branches-narrow alone" in remarks and "real run" in remarks
    grown = []
    for most in ("slot0", "slot1", "slot2"):
        policy = make_policy(READER)
        policy.reset(SPECS[:1])
        asked = policy.decide([row_view(epoch=0)])[0]
        assert policy.name == READER and [name for name, _ in asked.audition] == ["slot0", "slot1", "slot2"]
        slots = [
            SlotView(name, promise={"large": Promise(0.5 if name == most else 0.05, 10, 1000, 0)})
            for name in ("slot0", "slot1", "slot2")
        ]
        grown.append(policy.decide([row_view(*slots, epoch=1, max_epochs=10, max_seeds=1)])[0].action.slot)
    assert grown == ["slot0", "slot1", "slot2"], "a constant would go to one place"


def test_files_that_are_no_policies_are_named(tmp_path: Path) -> None:
    whole = tmp_path / "policy.safetensors"
    save_policy(whole, network(), {})
    content = whole.read_bytes()
    for name, damaged in {"torn": content[:-10], "empty": b"", "junk": b"x" * 100}.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=name):
            load_policy(path)
    tensors = {name: part.contiguous() for name, part in network().state_dict().items()}
    for header in ({}, {"network": network().config.to_dict()}, {"network": {}, "card": {}}):
        about = json.dumps({"format": FORMAT, **header})
        save_file(tensors, tmp_path / "header.safetensors", metadata={"esper": about})
        with pytest.raises(DataError, match="missing required field"):
            load_policy(tmp_path / "header.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="format"):
        load_policy(tmp_path / "other.safetensors")
    broken = network()
    torch.nn.init.constant_(broken.op_out.bias, float("nan"))
    save_policy(tmp_path / "nan.safetensors", broken, {})
    with pytest.raises(DataError, match="not finite"):
        load_policy(tmp_path / "nan.safetensors")


@pytest.mark.parametrize("more", [{"host_width": 1}, {"host_width": -1}, {"slot_width": 1}])
def test_a_file_of_another_layout_is_refused(more: dict[str, int], tmp_path: Path) -> None:
    config = network().config
    sizes = {name: getattr(config, name) + n for name, n in more.items()}
    save_policy(tmp_path / "p.safetensors", GrowthNetwork(dataclasses.replace(config, **sizes)), {})
    here = f"this Esper has {config.host_width} and {config.slot_width}"
    with pytest.raises(UsageError, match=f"p.safetensors: made for observations of .* entries of the host.*; {here}$"):
        load_policy(tmp_path / "p.safetensors")


@settings(max_examples=20)
@given(env_views())
def test_it_never_acts_illegally(view: EnvView) -> None:
    policy = LearnedPolicy(network())
    policy.reset(SPECS[:1])
    for _ in range(4):
        (decision,) = policy.decide([view])
        assert why_illegal(view, decision.action) is None


@pytest.mark.parametrize("cells", [0, 8])
@pytest.mark.parametrize("greedy", [False, True])
def test_a_row_decides_the_same_whoever_plays_beside_it(cells: int, greedy: bool) -> None:
    rest = (SlotView("slot1"), SlotView("slot2"))
    views = [row_view(), row_view(live_slot("slot0", SeedStage.HOLDING, alpha=1.0), *rest), row_view(epoch=9)]
    together, alone = LearnedPolicy(network(cells), greedy=greedy), LearnedPolicy(network(cells), greedy=greedy)
    together.reset(SPECS)
    rounds = [together.decide(views) for _ in range(5)]
    for i, view in enumerate(views):
        alone.reset([SPECS[i]])
        assert [alone.decide([view])[0] for _ in range(5)] == [decisions[i] for decisions in rounds]


def test_many_rows_take_several_batches() -> None:
    policy = LearnedPolicy(network())
    specs = [EnvSpec(i, 0, i, 30) for i in range(11)]
    policy.reset(specs)
    decisions = policy.decide([row_view()] * 11)
    assert len(decisions) == 11
    one = observe([row_view()], action_space(row_view()), policy.network.config)
    assert {decision.macs for decision in decisions} == {acting_macs(policy.network, one)} and decisions[0].macs > 0


def test_after_the_last_epoch_it_waits() -> None:
    policy = LearnedPolicy(network())
    policy.reset(SPECS[:1])
    (decision,) = policy.decide([row_view(live_slot("slot0", SeedStage.HOLDING, alpha=1.0), epoch=30)])
    assert decision.action == WAIT and decision.action.op is Op.WAIT


def test_it_must_be_reset_for_its_rows() -> None:
    policy = LearnedPolicy(network())
    policy.reset(SPECS[:1])
    with pytest.raises(UsageError, match="reset"):
        policy.decide([row_view()] * 2)


@pytest.mark.parametrize("cells", [0, 8])
def test_it_goes_on_from_its_state_bit_for_bit_and_with_its_own_weights_only(cells: int) -> None:
    weights = network(cells)
    policy, again = LearnedPolicy(weights), LearnedPolicy(weights)
    policy.reset(SPECS)
    views = [row_view()] * len(SPECS)
    policy.decide(views)
    again.load(decode(json.loads(json.dumps(encode(policy.state())))))
    for _ in range(3):
        assert policy.decide(views) == again.decide(views)
    other = LearnedPolicy(network(cells))
    torch.nn.init.ones_(other.network.op_out.bias)
    with pytest.raises(DataError, match="weights"):
        other.load(policy.state())
