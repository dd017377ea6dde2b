"""A site that is called several times in one pass: one seed, at every call, as the host's own weights."""

from __future__ import annotations

import copy

import pytest
import torch
from configs import evaluated
from small_hosts import put_seed
from torch import Tensor, nn

from esper.kasmina.auto import auto_sites
from esper.kasmina.export import export
from esper.kasmina.growing import GrowingModel
from esper.kasmina.incubation import probe_backward
from esper.kasmina.structure import same
from esper.leyline import Positions, SeedStage


class Twins(nn.Module):
    """Two views through one encoder, with a layer before and one behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(16, 3)
        self.encoder = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.compared = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        views = [self.encoder(self.stem(view)) for view in x.unbind(1)]
        return self.head(self.compared(torch.cat(views, 1)))


class Steps(nn.Module):
    """A cell for each step; each output depends on the steps up to it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state, said = x.new_zeros(len(x), 8), []
        for step in x.unbind(1):
            state = self.cell(step, state)
            said.append(self.head(state))
        return torch.stack(said, 1)


SAMPLE = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(0))
SITES = ["stem", "encoder", "compared"]


def loss_of(output: Tensor) -> Tensor:
    return (output - 1.0).square().mean()


def twins(seeds: SeedStage | None = None, alpha: float = 0.0) -> GrowingModel:
    torch.manual_seed(0)
    model = GrowingModel.wrap(Twins(), SITES, SAMPLE)
    for slot_id in SITES if seeds is not None else ():
        put_seed(model, slot_id, seeds, alpha)
    return model


def by_hand(model: GrowingModel, alphas: dict[str, float]) -> nn.Module:
    """A copy of the host with the seeds written into it."""

    class Grown(nn.Module):
        def __init__(self, part: nn.Module, seed: nn.Module, alpha: float) -> None:
            super().__init__()
            self.part, self.seed, self.alpha = part, seed, alpha

        def forward(self, x: Tensor) -> Tensor:
            h = self.part(x)
            return torch.lerp(h, self.seed(h), self.alpha)

    host = Twins()
    host.load_state_dict(model.host.state_dict())
    for path, alpha in alphas.items():
        setattr(host, path, Grown(getattr(host, path), copy.deepcopy(model.slots[path].seed), alpha))
    return host


def test_every_call_passes_through_the_seed() -> None:
    model = twins(SeedStage.HOLDING, 0.6)
    reference = by_hand(model, dict.fromkeys(SITES, 0.6))
    assert torch.allclose(model(SAMPLE), reference(SAMPLE), atol=1e-6)
    assert torch.allclose(export(model)(SAMPLE), reference(SAMPLE), atol=1e-6)
    loss_of(model(SAMPLE)).backward()
    loss_of(reference(SAMPLE)).backward()
    for path in SITES:
        grown = getattr(reference, path).seed
        for own, other in zip(model.seed_parameters(path), grown.parameters(), strict=True):
            assert torch.allclose(own.grad, other.grad, atol=1e-6)


def test_the_second_pass_teaches_by_all_calls() -> None:
    for path in SITES:
        model = twins(SeedStage.TRAINING)
        with model.record([path]) as tape:
            loss_of(model(SAMPLE)).backward()
        probe_backward(model, tape, loss_of, path)
        reference = by_hand(model, {path: 1.0})
        loss_of(reference(SAMPLE)).backward()
        learners = list(getattr(reference, path).seed.parameters())
        for own, other in zip(model.seed_parameters(path), learners, strict=True):
            assert torch.allclose(own.grad, other.grad, atol=1e-6)


def test_counterfactuals_are_whole_passes_where_one_cannot_begin_in_the_middle() -> None:
    model = twins(SeedStage.HOLDING, 0.6)
    # before `stem` has been called again, one can begin neither behind it nor behind what comes after it
    assert model.sharing == {"stem": False, "encoder": False, "compared": False}
    assert [model.places[path].calls for path in SITES] == [2, 2, 1]
    configs = [{}, {"stem": 0.0}, {"encoder": 0.0}, {"compared": 0.0}]
    found = evaluated(model, SAMPLE, configs).outputs
    for config, output in zip(configs, found, strict=True):
        with torch.no_grad(), model.alphas(config):
            assert same(model(SAMPLE), output)


def test_a_cell_is_found_and_what_it_keeps_apart_is_kept() -> None:
    sample = torch.randn(3, 7, 4)
    assert auto_sites(Steps(), sample) == ["cell"]
    model = GrowingModel.wrap(Steps(), ["cell"], sample)
    may_mix = model.slots["cell"].may_mix
    assert may_mix is not None and may_mix.channels and not may_mix.examples
    assert model.places["cell"].calls == 7


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(6, 8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.rnn(x)[1]
        return self.head((state if isinstance(state, Tensor) else state[0])[-1])


@pytest.mark.parametrize(("kind", "position"), [(nn.GRU, (1,)), (nn.LSTM, (1, 0))])
def test_of_several_outputs_the_one_that_is_felt_carries_the_slot(
    kind: type[nn.RNNBase], position: tuple[int, ...]
) -> None:
    host = Recurrent(kind)
    assert auto_sites(host, SAMPLE) == ["rnn"]
    model = GrowingModel.wrap(host, ["rnn"], SAMPLE)
    place = model.places["rnn"]
    assert (place.position, place.layout, place.channels) == (position, "NTC", 8)
    before = model(SAMPLE)
    put_seed(model, "rnn", SeedStage.HOLDING, 1.0)
    assert not torch.equal(model(SAMPLE), before)
    assert Positions(model.slots["rnn"].may_mix.positions)


class Idle(nn.Module):
    """Its second block says something that nobody hears."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        self.blocks[1](x)
        return self.blocks[2](self.blocks[0](x))


def test_auto_passes_over_what_no_output_depends_on() -> None:
    assert auto_sites(Idle(), torch.randn(4, 6)) == ["blocks.0", "blocks.2"]


class Neighbours(nn.Module):
    """Averages over the nodes of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        h = h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])
        return self.head(h)


def test_the_nodes_of_a_graph_are_rows() -> None:
    graph = torch.randn(9, 6), torch.randint(0, 9, (2, 20))
    model = GrowingModel.wrap(Neighbours(), "auto", graph)
    put_seed(model, "first", SeedStage.HOLDING, 1.0)
    larger = torch.randn(12, 6), torch.randint(0, 12, (2, 30))
    assert model(*larger).shape == (12, 3)
