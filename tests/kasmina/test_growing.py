"""Wrapping: outputs stay the same, what cannot carry a slot is refused by path, state moves to a second model."""

from __future__ import annotations

import copy

import pytest
import torch
from small_hosts import BLUEPRINT, CASES, Odd, ResidualNet, encoder, grow, mlp, put_seed, wrapped
from torch import Tensor, nn

from esper.kasmina.growing import GrowingModel
from esper.kasmina.layout import Layout
from esper.kasmina.probe import Site
from esper.kasmina.replay import same
from esper.leyline import DataError, SeedStage, UsageError


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [False, True])
def test_wrapping_changes_no_bit_and_leaves_no_trace(name: str, training: bool) -> None:
    torch.manual_seed(3)
    host, sample = CASES[name].build().train(training), CASES[name].sample()
    before, random = state_of(host), torch.get_rng_state()
    with torch.no_grad():
        bare = host(sample)
    host.load_state_dict(before)
    torch.set_rng_state(random)

    model = GrowingModel.wrap(host, CASES[name].sites, sample)

    assert torch.equal(torch.get_rng_state(), random)
    assert same(state_of(host), before)
    assert host.training is training and model.training is training
    with torch.no_grad():
        assert same(model(sample), bare)
    assert list(model.state_dict()) == [f"host.{key}" for key in before]


@pytest.mark.parametrize("name", CASES)
def test_seeds_sit_on_the_right_tensor(name: str) -> None:
    model, sample = wrapped(name)
    model.eval()
    with torch.no_grad():
        bare = model(sample)
        grow(model, SeedStage.TRAINING, alpha=0.0)
        assert same(model(sample), bare)
        for slot in model.slots.values():
            slot.state.stage, slot.state.alpha = SeedStage.HOLDING, 0.5
        changed = model(sample)
        assert not same(changed, bare)
        with model.alphas(dict.fromkeys(model.slots, 0.0)):
            assert same(model(sample), bare)
        assert same(model(sample), changed)


def test_order_layout_and_width_are_found() -> None:
    torch.manual_seed(0)
    sites = {"late": "blocks.2", "early": "blocks.0", "mid": "blocks.1"}
    model = GrowingModel.wrap(ResidualNet(), sites, torch.randn(2, 1, 6, 6))
    assert list(model.slots) == ["early", "mid", "late"]
    assert {slot.config.layout for slot in model.slots.values()} == {Layout.NCHW}
    assert {slot.channels for slot in model.slots.values()} == {4}


def test_time_first_features_are_turned_to_batch_first() -> None:
    torch.manual_seed(0)
    host = encoder(batch_first=False).eval()
    sample = torch.randn(7, 5, 8)
    model = GrowingModel.wrap(host, ["layers.1"], sample)
    place = model.places["layers_1"]
    assert place.layout is Layout.NTC and place.axes == (1, 0, 2) and place.shape == (5, 7, 8)
    seen = []
    put_seed(model, "layers_1", SeedStage.HOLDING, 1.0)
    model.slots["layers_1"].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    assert model(sample).shape == sample.shape
    assert seen == [(5, 7, 8)]


def test_channels_last_maps_are_turned_to_channels_first() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(3, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(x)).mean((1, 2))

    model = GrowingModel.wrap(Last(), ["mix"], torch.randn(4, 5, 5, 3))
    place = model.places["mix"]
    assert (place.layout, place.channels, place.axes) == (Layout.NCHW, 6, (0, 3, 1, 2))
    output = torch.randn(4, 5, 5, 6)
    assert torch.equal(place.give(output, place.take(output)), output)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("never", "never called"),
        ("written", "written in place"),
        ("idle", "does not reach"),
        ("sum", "1 axes"),
        ("size", "no floating-point tensor"),
        ("table", "no batch axis"),
        ("mixer", "mixes examples"),
        ("widths", "8 channels, then 4"),
        ("writen", "did you mean 'written'"),
        ("", "unknown submodule"),
    ],
)
def test_unfit_sites_are_refused_by_path(path: str, why: str) -> None:
    host = Odd()
    with pytest.raises(UsageError, match=why) as refused:
        GrowingModel.wrap(host, [Site(path)] if path else {"slot": ""}, torch.randn(4, 6))
    assert repr(path) in str(refused.value)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in host.modules())


def test_a_host_without_a_number_in_evaluation_is_told_so_and_not_that_a_site_is_idle() -> None:
    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1.0 if self.training else float("nan"))

    with pytest.raises(UsageError, match=r"no finite number in eval\(\)"):
        GrowingModel.wrap(nn.Sequential(nn.Linear(6, 8), Broken(8, 3)), ["0"], torch.randn(4, 6))


def test_dropout_in_place_behind_a_site_is_refused_though_it_writes_in_training_only() -> None:
    host = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5, inplace=True), nn.Linear(8, 3)).eval()
    with pytest.raises(UsageError, match="'0' is written in place"):
        GrowingModel.wrap(host, ["0"], torch.randn(4, 6))


@pytest.mark.slow  # torch imports its compiler for nested tensors
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_padding_that_makes_nested_tensors_is_refused() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    host = nn.TransformerEncoder(layer, 2).eval()
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with pytest.raises(UsageError, match="'layers.0' gives a nested"):
        GrowingModel.wrap(host, ["layers.0"], {"src": torch.randn(2, 5, 8), "src_key_padding_mask": mask})


def test_a_site_inside_a_fused_layer_is_refused_the_layer_is_not() -> None:
    torch.manual_seed(0)
    host, sample = encoder().eval(), torch.randn(3, 4, 8)
    with torch.no_grad():
        fused = host(sample)
    with pytest.raises(UsageError, match="does not reach"):
        GrowingModel.wrap(host, ["layers.1.linear1"], sample)
    model = GrowingModel.wrap(host, ["layers.1"], sample)
    with torch.no_grad():
        assert torch.equal(model(sample), fused)
        put_seed(model, "layers_1", SeedStage.HOLDING, 1.0)
        assert not torch.equal(model(sample), fused)


def test_a_site_whose_noise_is_lost_on_the_few_examples_is_no_idle_one() -> None:
    host = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        host[2].weight.mul_(0.1)
        host[2].bias.fill_(-0.5)  # no unit answers, also not with a tenth more
    x = torch.randn(2, 6)
    assert torch.equal(host(x), host(2 * x))
    model = GrowingModel.wrap(host, ["1"], x)
    assert model.sharing == {"1": True}


def test_a_zero_initialised_head_hides_nothing() -> None:
    host = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.zeros_(host[2].weight)
    nn.init.zeros_(host[2].bias)
    model = GrowingModel.wrap(host, ["1"], torch.randn(4, 6))
    assert model.sharing["1"]
    assert not host[2].weight.any() and host[2].weight.requires_grad


@pytest.mark.slow
def test_compiled_after_wrapping_it_grows() -> None:
    model, sample = wrapped("mlp")
    compiled = torch.compile(model.eval(), backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(sample), model(sample))
        put_seed(model, "1", SeedStage.HOLDING, 0.7)
        assert torch.equal(compiled(sample), model(sample))


@pytest.mark.parametrize(
    ("sites", "sample", "error"),
    [
        ([], torch.randn(2, 6), "no sites given"),
        ("1", torch.randn(2, 6), "not '1'"),
        (["1", "1"], torch.randn(2, 6), "named twice"),
        ({"a": "1", "b": "1"}, torch.randn(2, 6), "two slots on one submodule"),
        ({"keys": "1"}, torch.randn(2, 6), "slot name 'keys'"),
        (["1"], 3, "not int"),
        (["1"], (3,), "holds no tensor"),
        ([Site("1", Layout.NCHW)], torch.randn(2, 6), "layout NCHW has 4"),
        ([Site("1", batch_axis=2)], torch.randn(2, 6), "legal for .* 0 to 1"),
    ],
)
def test_bad_arguments_are_named(sites, sample, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        GrowingModel.wrap(mlp(), sites, sample)


def test_a_sample_that_is_not_finite_is_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        GrowingModel.wrap(mlp(), ["1"], torch.full((2, 6), float("nan")))


def test_a_sample_that_the_host_does_not_take_is_refused() -> None:
    with pytest.raises(DataError, match="does not take the sample .*4x8 and 6x8"):
        GrowingModel.wrap(mlp(), ["1"], torch.randn(4, 8))


def test_state_goes_into_a_second_model_by_factory_and_load() -> None:
    one, sample = wrapped("pointwise")
    put_seed(one, "blocks_0", SeedStage.FOSSILIZED, 1.0)
    put_seed(one, "blocks_2", SeedStage.BLENDING, 0.25)
    other, _ = wrapped("pointwise", seed=7)
    put_seed(other, "blocks_1", SeedStage.HOLDING, 1.0)
    random = torch.get_rng_state()

    other.load(one.topology(), one.state_dict())

    assert torch.equal(torch.get_rng_state(), random)
    assert other.topology() == one.topology()
    assert other.slots["blocks_1"].seed is None
    assert torch.equal(other.eval()(sample), one.eval()(sample))
    with pytest.raises(UsageError, match="cannot be restored"):
        other.restore_topology({})


def test_alphas_are_restored_when_the_pass_raises() -> None:
    model, sample = wrapped("mlp")
    grow(model)
    with pytest.raises(RuntimeError), model.alphas({"1": 0.0}):
        model(torch.randn(2, 99))
    assert all(tap.alpha is None for tap in model.taps.values())
    with pytest.raises(UsageError, match="unknown slot '9'"), model.alphas({"9": 0.0}):
        pass


def test_parameters_by_owner() -> None:
    model, _ = wrapped("mlp")
    put_seed(model, "1", SeedStage.TRAINING)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(names[id(p)].startswith("host.") for p in model.host_parameters())
    assert {names[id(p)].rpartition(".seed.")[0] for p in model.seed_parameters("1")} == {"slots.1"}
    assert list(model.seed_parameters("3")) == []


def test_a_deep_copy_stands_on_its_own() -> None:
    for name in ("mlp", "encoder"):
        model, sample = wrapped(name)
        grow(model)
        model.eval()
        twin = copy.deepcopy(model)
        with torch.no_grad():
            before = model(sample)
            for parameter in twin.parameters():
                parameter.zero_()
            assert torch.equal(model(sample), before)
            assert not torch.equal(twin(sample), before)


def test_blueprints_exist_for_every_layout() -> None:
    assert set(BLUEPRINT) == set(Layout)


@pytest.mark.parametrize("name", CASES)
def test_sown_seeds_are_there_for_a_while_and_leave_no_trace(name: str) -> None:
    model, sample = wrapped(name)
    before, topology, told = state_of(model), model.topology(), []
    for slot in model.slots.values():
        slot.on_telemetry = told.append
    with model.sown({slot_id: BLUEPRINT[slot.config.layout] for slot_id, slot in model.slots.items()}):
        assert all(slot.live and slot.alpha == 1.0 for slot in model.slots.values())
        with torch.no_grad():
            model(sample)
    assert model.topology() == topology and not told
    assert state_of(model).keys() == before.keys()
    grow(model, SeedStage.TRAINING, alpha=0.0)
    occupied = next(iter(model.slots))
    with (
        pytest.raises(UsageError, match="TRAINING; seeds are sown in empty slots"),
        model.sown({occupied: BLUEPRINT[model.slots[occupied].config.layout]}),
    ):
        pass
