"""One policy for any number of slots and any set of blueprints."""

from __future__ import annotations

import json

import pytest
import torch

from esper.leyline import Feature as F
from esper.leyline import ObservationLayout, Op, UsageError
from esper.tamiyo.network import GrowthNetwork, GrowthNetworkConfig

CONFIG = GrowthNetworkConfig(host_width=4, slot_width=3, blueprints=("conv3", "lora", "norm"))


def _observation(rows: int, slots: int, names: tuple[str, ...], seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "host": torch.randn(rows, 4, generator=draw),
        "slots": torch.randn(rows, slots, 3, generator=draw),
        "present": torch.ones(rows, slots, dtype=torch.bool),
        "held": torch.randint(len(names) + 1, (rows, slots), generator=draw),
        "blueprints": CONFIG.vocabulary(names).expand(rows, -1),
        "costs": torch.rand(rows, slots, len(names), 1, generator=draw),
    }


def _network() -> GrowthNetwork:
    torch.manual_seed(0)
    return GrowthNetwork(CONFIG)


def _step(
    network: GrowthNetwork, observation: dict[str, torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    rows = len(observation["host"])
    output, _ = network.step(observation, network.initial_state(rows), torch.ones(rows, dtype=torch.bool))
    return output.logits, output.value


@pytest.mark.parametrize(
    ("slots", "names"), [(1, ("norm",)), (3, ("conv3", "lora", "norm")), (9, ("x", "y", "z", "w"))]
)
def test_shapes_follow_the_run(slots: int, names: tuple[str, ...]) -> None:
    logits, value = _step(_network(), _observation(2, slots, names))
    n = len(Op)
    assert [tuple(table.shape) for table in logits] == [
        (2, n),
        (2, n, slots),
        (2, 1, slots, len(names)),
        (2, n, slots, 3),
        (2, n, slots, 3),
        (2, n, slots, 4),
    ]
    assert value.shape == (2,)


def test_absent_slots_change_nothing() -> None:
    network, observation = _network(), _observation(2, 3, CONFIG.blueprints)
    padded = dict(observation)
    padded["slots"] = torch.cat([observation["slots"], torch.full((2, 2, 3), 1e3)], dim=1)
    padded["present"] = torch.cat([observation["present"], torch.zeros(2, 2, dtype=torch.bool)], dim=1)
    padded["held"] = torch.cat([observation["held"], torch.ones(2, 2, dtype=torch.long)], dim=1)
    padded["costs"] = torch.cat([observation["costs"], torch.ones(2, 2, 3, 1)], dim=1)
    (op, slot, *_), value = _step(network, observation)
    (padded_op, padded_slot, *_), padded_value = _step(network, padded)
    torch.testing.assert_close(op, padded_op)
    torch.testing.assert_close(value, padded_value)
    torch.testing.assert_close(slot, padded_slot[..., :3])


def test_blueprints_are_known_by_name_not_by_place() -> None:
    network = _network()
    names = CONFIG.blueprints
    observation = _observation(2, 3, names)
    turned = dict(observation)
    turned["blueprints"] = CONFIG.vocabulary(names[::-1]).expand(2, -1)
    turned["costs"] = observation["costs"].flip(2)
    turned["held"] = torch.where(observation["held"] > 0, len(names) + 1 - observation["held"], 0)
    (op, _, blueprint, *_), value = _step(network, observation)
    (turned_op, _, turned_blueprint, *_), turned_value = _step(network, turned)
    torch.testing.assert_close(blueprint, turned_blueprint.flip(-1))
    torch.testing.assert_close(op, turned_op)
    torch.testing.assert_close(value, turned_value)


def test_what_a_slot_holds_matters() -> None:
    network, observation = _network(), _observation(2, 3, CONFIG.blueprints)
    other = observation | {"held": (observation["held"] + 1) % 4}
    assert not torch.equal(_step(network, observation)[1], _step(network, other)[1])


def test_every_parameter_learns() -> None:
    network, observation = _network(), _observation(8, 3, CONFIG.blueprints)
    logits, value = _step(network, observation)
    (sum((table.softmax(-1)[..., 0]).square().sum() for table in logits) + value.square().sum()).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # memories start from zeros, so that recurrent weights see nothing in the first step
    assert still == ["memory.lstm.weight_hh_l0", "value_memory.lstm.weight_hh_l0"]


def test_statistics_ignore_padding_and_invalid_steps() -> None:
    network = _network()
    observation = {name: part[None] for name, part in _observation(2, 2, CONFIG.blueprints).items()}
    observation["slots"] = torch.tensor([[[[1.0] * 3, [999.0] * 3], [[999.0] * 3, [999.0] * 3]]])
    observation["present"] = torch.tensor([[[True, False], [True, True]]])
    network.observe(observation, torch.tensor([[True, False]]))
    assert network.normalisers["slots"].mean.tolist() == [1.0, 1.0, 1.0]
    assert network.normalisers["host"].count == 1


def test_configuration_survives_json() -> None:
    assert GrowthNetworkConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    with pytest.raises(UsageError, match="unknown sizes: depth"):
        GrowthNetworkConfig.from_dict(CONFIG.to_dict() | {"depth": 3})


def test_sizes_come_from_the_layout() -> None:
    layout = ObservationLayout((F("loss", 0, 1, "nats", optional=True),), (F("alpha", 0, 1, ""),))
    config = GrowthNetworkConfig.for_layout(layout, ["norm"], cells=8)
    assert (config.host_width, config.slot_width, config.cells) == (2, 1, 8)
    assert config.vocabulary(["norm", "nowhere"]).tolist() == [2, 0]


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="token of the policy network is 0"):
        GrowthNetworkConfig(4, 3, (), token=0)
    with pytest.raises(UsageError, match="repeat a name"):
        GrowthNetworkConfig(4, 3, ("a", "a"))


def test_the_policy_is_small() -> None:
    assert sum(parameter.numel() for parameter in _network().parameters()) < 100_000
