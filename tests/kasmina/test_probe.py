"""What a survey finds out, and that it leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_hosts import CASES, ResidualNet, encoder
from torch import Tensor, nn

from esper.kasmina.layout import Layout
from esper.kasmina.probe import Place, Site, survey
from esper.kasmina.replay import same
from esper.kasmina.trace import observed
from esper.kasmina.trial import buffers_kept, livened, mode, random_kept, trial
from esper.leyline import UsageError


def place_of(host: nn.Module, path: str, sample: Any, **site: Any) -> Place:
    place = survey(host, [Site(path, **site)], sample).places[path]
    assert isinstance(place, Place), place
    return place


class Taking(nn.Module):
    """Runs two modules on an input whose axes are turned between them."""

    def __init__(self, first: nn.Module, axes: tuple[int, ...], second: nn.Module) -> None:
        super().__init__()
        self.first, self.axes, self.second = first, axes, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).permute(self.axes))


@pytest.mark.parametrize(
    ("host", "sample", "layout", "channels", "axes"),
    [
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU()), torch.randn(3, 4), Layout.NC, 5, None),
        (nn.Sequential(nn.Conv1d(4, 7, 1), nn.ReLU()), torch.randn(3, 4, 7), Layout.NCL, 7, None),
        (nn.Sequential(nn.Linear(4, 7), nn.ReLU()), torch.randn(3, 7, 4), Layout.NTC, 7, None),
        (nn.Sequential(nn.Identity(), nn.Conv1d(7, 2, 1)), torch.randn(3, 7, 7), Layout.NCL, 7, None),
        (nn.Sequential(nn.Identity(), nn.Linear(7, 2)), torch.randn(3, 7, 7), Layout.NTC, 7, None),
        (nn.Sequential(nn.Identity(), nn.Linear(5, 2)), torch.randn(3, 5, 5, 5), Layout.NCHW, 5, (0, 3, 1, 2)),
        (nn.Sequential(nn.Conv2d(2, 5, 1), nn.ReLU()), torch.randn(3, 2, 5, 5), Layout.NCHW, 5, None),
        (nn.Sequential(nn.ReLU(), nn.ReLU()), torch.randn(3, 5, 6, 7), Layout.NCHW, 5, None),
        (nn.Sequential(nn.ReLU(), nn.ReLU()), torch.randn(3, 5, 6), Layout.NTC, 6, None),
        (nn.Sequential(nn.BatchNorm1d(6), nn.ReLU()), torch.randn(3, 6, 9), Layout.NCL, 6, None),
    ],
)
def test_layouts(host: nn.Module, sample: Tensor, layout: Layout, channels: int, axes: Any) -> None:
    place = place_of(host, "0", sample)
    assert (place.layout, place.channels, place.axes) == (layout, channels, axes)


def test_one_example_is_enough() -> None:
    assert place_of(nn.Sequential(nn.Linear(4, 5), nn.ReLU()), "0", torch.randn(1, 4)).channels == 5
    place = place_of(encoder(batch_first=False), "layers.0", torch.randn(6, 1, 8))
    assert place.axes == (1, 0, 2)


def test_windows_of_an_example_are_examples() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 6)
            self.attend = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            h = self.mix(x.reshape(-1, 3, 4))
            h = self.attend(h, h, h, need_weights=False)[0]
            return h.reshape(len(x), -1)

    sample = torch.randn(4, 6, 4)
    assert place_of(Windows(), "mix", sample).shape == (8, 3, 6)
    assert place_of(Windows(), "attend", sample).position == (0,)


def test_a_host_of_a_fixed_batch_needs_to_be_told() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.reshape(3, 2, 2))

    with pytest.raises(UsageError, match=r"Site\(path, batch_axis=...\)"):
        raise survey(Fixed(), [Site("linear")], torch.randn(3, 4)).places["linear"]  # type: ignore[misc]
    assert place_of(Fixed(), "linear", torch.randn(3, 4), batch_axis=0).channels == 5


def test_what_is_said_of_a_site_wins() -> None:
    place = place_of(nn.Sequential(nn.Linear(4, 5), nn.ReLU()), "0", torch.randn(3, 6, 4), layout=Layout.NCL)
    assert (place.layout, place.channels) == (Layout.NCL, 6)


@given(shape=st.permutations(range(4)), ndim=st.integers(2, 4))
def test_giving_back_what_was_taken_changes_nothing(shape: list[int], ndim: int) -> None:
    axes = tuple(axis for axis in shape if axis < ndim)
    output = (3, torch.randn([axis + 2 for axis in range(ndim)]))
    place = Place("x", (1,), axes, Layout.NCHW, 1, (), torch.device("cpu"), torch.float32)
    taken = place.take(output)
    assert taken.shape == tuple(axis + 2 for axis in axes)
    assert same(place.give(output, taken), output)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [False, True])
def test_a_survey_leaves_no_trace(name: str, training: bool) -> None:
    torch.manual_seed(0)
    host, sample = CASES[name].build().train(training), CASES[name].sample()
    next(host.children()).eval()
    state = {key: tensor.clone() for key, tensor in host.state_dict().items()}
    modes = [module.training for module in host.modules()]
    random = torch.get_rng_state()
    survey(host, [Site(path) for path in CASES[name].sites], sample)
    assert same(dict(host.state_dict()), state)
    assert [module.training for module in host.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in host.modules())


def test_contexts_undo_themselves_when_the_body_raises() -> None:
    host = ResidualNet()
    nn.init.zeros_(host.head.weight)
    host.blocks[0].eval()
    before = {key: tensor.clone() for key, tensor in host.state_dict().items()}
    tensors = {key: id(tensor) for key, tensor in (*host.named_parameters(), *host.named_buffers())}
    modes = [module.training for module in host.modules()]
    random = torch.get_rng_state()
    device = torch.device("cpu")
    with (
        pytest.raises(ArithmeticError),
        mode(host, True),
        random_kept(device),
        buffers_kept(host.modules()),
        livened(host),
    ):
        assert host.head.weight.any()
        host(torch.randn(3, 1, 8, 8))
        raise ArithmeticError
    assert same(dict(host.state_dict()), before)
    assert {key: id(tensor) for key, tensor in (*host.named_parameters(), *host.named_buffers())} == tensors
    assert [module.training for module in host.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


def test_maximal_modules_that_have_returned() -> None:
    host = ResidualNet()
    block = host.blocks[1]
    with trial(host), observed(host, [block.conv2]) as trace:
        host(torch.randn(2, 1, 8, 8))
    found = trace.completed_before(block.conv2)
    expected = [host.stem, host.relu, host.blocks[0], block.conv1, block.bn1, block.relu1, block.conv2]
    assert found == tuple((module, 1) for module in expected)
    (given,) = trace.given[block.conv2]
    assert given.takers == [block.bn2]
    assert not given.written()


def test_calls_that_raised_do_not_confuse_the_trace() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError

    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fails, self.linear = Fails(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            try:
                x = self.fails(x)
            except ArithmeticError:
                pass
            return self.linear(x)

    host = Tries()
    with trial(host), observed(host, [host.linear]) as trace:
        host(torch.randn(2, 4))
    assert trace.count(host.fails) == 0 and trace.completed_before(host.linear) == ((host.linear, 1),)
