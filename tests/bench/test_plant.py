"""Seeds that are there at once: from the start, and at a fixed time."""

import copy

import bench_toys
import pytest
import torch
from repeating_hosts import Layer
from torch import nn

from esper.bench.plant import Planted, by_gradient, initialise, largest, plant, teach, third
from esper.bench.settings import Initial
from esper.kasmina import blueprints
from esper.kasmina.clone import copied
from esper.kasmina.layout import Layout
from esper.leyline import EnvSpec, EsperError, SeedStage, UsageError
from esper.tolaria import surgery
from esper.tolaria.setup import TrainerConfig, from_task
from esper.tolaria.trainer import Trainer

SEED = Planted("block0", "conv3", 7)


@pytest.fixture
def trainer():
    task, config = bench_toys.tiny(), TrainerConfig(batch_size=30)
    return Trainer(EnvSpec(0, 0, 1, 2), task, from_task(task, config), config, lambda event: None)


def outputs(trainer):
    return trainer.outputs("validation")[0]


def test_an_identity_leaves_the_function_as_it_is_and_a_default_start_does_not(trainer):
    before = outputs(trainer)
    plant(trainer, [SEED])
    assert torch.equal(outputs(trainer), before)
    plant(trainer, [Planted("block1", "conv3", 7)], Initial.DEFAULT)
    assert not torch.allclose(outputs(trainer), before)


def test_a_planted_seed_takes_part_for_good_and_learns_with_the_host(trainer):
    cost = trainer.macs.forward
    plant(trainer, [SEED])
    slot = trainer.model.slots["block0"]
    assert (slot.stage, slot.alpha, slot.isolated) == (SeedStage.FOSSILIZED, 1.0, False)
    assert trainer.macs.forward > cost
    assert set(surgery.seed_groups(trainer.optimizer)) == {slot.state.seed_id}
    weights = [p.detach().clone() for p in slot.seed_parameters()]
    trainer.train_epoch()
    assert trainer.ledger.probe_macs == 0
    moved = [not torch.equal(a, b) for a, b in zip(weights, slot.seed_parameters(), strict=True)]
    assert all(moved)


def test_the_same_seed_gives_the_same_weights(trainer):
    plant(trainer, [SEED, Planted("block1", "conv3", 7), Planted("block2", "conv3", 8)])
    first, same, other = ([*trainer.model.slots[f"block{i}"].seed_parameters()] for i in range(3))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_taken_slot_is_refused(trainer):
    plant(trainer, [SEED])
    with pytest.raises(EsperError, match="block0"):
        plant(trainer, [SEED])


def test_what_is_planted_in_holding_is_there_until_it_is_judged(trainer):
    plant(trainer, [SEED], stage=SeedStage.HOLDING)
    slot = trainer.model.slots["block0"]
    assert (slot.stage, slot.alpha) == (SeedStage.HOLDING, 1.0)


def test_a_third_is_the_largest_that_is_no_larger():
    assert third({"a": {"s": 10, "m": 33, "l": 100}, "b": {"x": 34, "y": 99}, "c": {}}) == {"a": "m", "b": "x"}


def test_a_newborn_seed_is_taught_by_the_oldest_of_its_kind_that_has_learned(trainer):
    slots = trainer.model.slots
    plant(trainer, [SEED, Planted("block1", "conv3", 8), Planted("block2", "conv3", 9)])
    before = {name: value.clone() for name, value in slots["block2"].seed.state_dict().items()}
    assert not teach(slots, "block2"), "none has learned yet"
    slots["block0"].state.age_epochs, slots["block1"].state.age_epochs = 1, 3
    assert all(torch.equal(value, before[name]) for name, value in slots["block2"].seed.state_dict().items())
    assert teach(slots, "block2")
    oldest = slots["block1"].seed.state_dict()
    assert all(torch.equal(value, oldest[name]) for name, value in slots["block2"].seed.state_dict().items())
    slots["block1"].state.blueprint_id = "another"
    assert teach(slots, "block2")
    assert not all(torch.equal(value, oldest[name]) for name, value in slots["block2"].seed.state_dict().items())


@pytest.mark.parametrize("name", blueprints.names(Layout.NCHW))
def test_a_default_start_leaves_no_layer_at_zero_and_the_others_alone(name):
    seed = blueprints.build(name, 8, Layout.NCHW)
    before = copy.deepcopy(seed)
    initialise(seed)
    for (path, new), old in zip(seed.named_parameters(), before.parameters(), strict=True):
        if old.any():
            assert torch.equal(new, old), path
    assert any(p.any() and not q.any() for p, q in zip(seed.parameters(), before.parameters(), strict=True))


class Scaled(nn.Module):
    """A layer with a parameter of its own, which nothing draws."""

    def __init__(self):
        super().__init__()
        self.linear, self.scale = nn.Linear(8, 8), nn.Parameter(torch.ones(8))


def test_of_a_copy_every_parameter_is_drawn_anew_or_it_is_refused():
    """``Layer`` has attention, whose packed weight no public method draws."""
    block = Layer()
    copy_of = copied(block, (0, 0), ())
    initialise(copy_of)
    drawn = dict(copy_of.block.named_parameters())
    for path, parameter in block.named_parameters():
        due = nn.init.constant_(torch.empty_like(parameter), 0.0 if path.endswith("bias") else 1.0)
        constant = (
            "norm" in path
            or path in ("mlp.0.weight", "mlp.0.bias")
            or path.startswith("attention.")
            and (path.endswith("bias"))
        )
        assert torch.equal(drawn[path], due) if constant else not torch.equal(drawn[path], parameter), path
    with pytest.raises(UsageError, match="'block.scale' of a copy cannot be drawn anew"):
        initialise(copied(Scaled(), (0, 0), ()))


def test_largest_is_by_parameters_within_each_slot():
    assert largest({"a": {"x": 1, "y": 3}, "b": {"x": 2}, "c": {}}) == {"a": "y", "b": "x"}


def sizes(trainer):
    return {slot: {"norm": 16, "conv3": 600} for slot in trainer.model.slots}


def test_gradmax_chooses_what_a_plain_search_chooses(trainer):
    """The reference plants each candidate in a fresh trainer and reads the gradients of an ordinary backward pass."""
    found = by_gradient(trainer, sizes(trainer), seed=5)
    best = {}
    for slot, fitting in sizes(trainer).items():
        for blueprint in fitting:
            for draw in range(2):
                from esper.tolaria.rng import derive

                each = Planted(slot, blueprint, derive(5, "gradmax", slot, blueprint, draw))
                task, config = bench_toys.tiny(), TrainerConfig(batch_size=30)
                fresh = Trainer(EnvSpec(0, 0, 1, 2), task, from_task(task, config), config, lambda event: None)
                plant(fresh, [each])
                split = task.data.train
                loss = task.loss(fresh.model(split.inputs[:30]), split.targets[:30]).mean()
                loss.backward()
                gradients = [p.grad for p in fresh.model.slots[slot].seed_parameters()]
                norm = sum(float((g**2).sum()) for g in gradients if g is not None) ** 0.5
                best[slot] = max(best.get(slot, (0.0, each)), (norm, each), key=lambda pair: pair[0])
    assert set(found) == {each for _, each in best.values()}


def test_gradmax_leaves_no_trace_but_what_it_cost(trainer):
    before = trainer.state()
    by_gradient(trainer, sizes(trainer), seed=5)
    after = trainer.state()
    assert trainer.ledger.probe_macs > 0
    after["plain"]["ledger"]["probe_macs"] = 0
    assert after["plain"] == before["plain"]
    assert after["tensors"].keys() == before["tensors"].keys()
    assert all(torch.equal(after["tensors"][name], tensor) for name, tensor in before["tensors"].items())
