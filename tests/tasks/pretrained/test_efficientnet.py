"""The pretrained picture classifier."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from esper.tasks.colour import photographs
from esper.tasks.pretrained.efficientnet import WEIGHTS, EfficientNetLite0, frozen_efficientnet, sites_of_efficientnet
from esper.tasks.pretrained.weights import load_into
from tasks.conformance import check_source_stands_alone

EXTRA = "fashion-colour"
PALACE, DAISY = 698, 985
"""Classes of ImageNet."""


def test_with_its_own_head_it_names_what_is_on_two_photographs() -> None:
    net = EfficientNetLite0(1000, size=224).eval()
    load_into(net, replace(WEIGHTS(extra=EXTRA), unused=()))
    square = torch.from_numpy(photographs("a test", EXTRA)).permute(0, 3, 1, 2)[:, :, :, 106:533]
    with torch.no_grad():
        assert net(square).argmax(dim=1).tolist() == [PALACE, DAISY]


def test_its_source_stands_alone() -> None:
    pictures = torch.randint(256, (2, 3, 33, 33), dtype=torch.uint8)
    check_source_stands_alone(partial(EfficientNetLite0, classes=3, size=40), pictures)


def test_it_is_held_with_its_running_statistics_and_the_head_learns() -> None:
    host = frozen_efficientnet(10, EXTRA).train()
    assert {name for name, each in host.named_parameters() if each.requires_grad} == {"_fc.weight", "_fc.bias"}
    before = {name: value.clone() for name, value in host.named_buffers()}
    host(torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8))
    assert all(torch.equal(value, before[name]) for name, value in host.named_buffers())
    assert host.training


def test_there_is_a_site_beside_every_pointwise_convolution() -> None:
    net = EfficientNetLite0(10)
    pointwise = {f"+{name}" for name, each in net.named_modules() if type(each) is nn.Conv2d}
    assert set(sites_of_efficientnet().values()) == pointwise
