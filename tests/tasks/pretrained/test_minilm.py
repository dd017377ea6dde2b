"""The pretrained text encoder."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from esper.tasks.pretrained.minilm import MiniLM, encoded, frozen_minilm, sites_of_minilm
from tasks.conformance import check_source_stands_alone

EXTRA = "emoji"
TEXTS = ["The cat sits on the mat.", "A cat is sitting on a rug.", "Stock markets fell sharply today."]


@pytest.fixture(scope="module")
def host() -> MiniLM:
    torch.manual_seed(0)
    return frozen_minilm(9, EXTRA).eval()


def test_its_source_stands_alone() -> None:
    small = partial(MiniLM, classes=3, tokens=20, positions=8, layers=2, channels=12, heads=3)
    check_source_stands_alone(small, torch.tensor([[3, 4, 5, 0], [6, 0, 0, 0], [7, 8, 9, 10]]))


def test_texts_that_mean_the_same_are_near_each_other(host: MiniLM) -> None:
    inputs = encoded(TEXTS, 32, EXTRA)
    with torch.no_grad():
        stream, seen = host.bert(inputs), (inputs != 0).unsqueeze(-1)
        means = F.normalize((stream * seen).sum(dim=1), dim=1)
    near = means @ means.T
    assert near[0, 1] > 0.7
    assert near[0, 2] < 0.1
    assert near[1, 2] < 0.1


def test_padding_changes_nothing(host: MiniLM) -> None:
    inputs = encoded(TEXTS[:2], 32, EXTRA)
    with torch.no_grad():
        torch.testing.assert_close(host(F.pad(inputs, (0, 7))), host(inputs), atol=1e-5, rtol=1e-5)


def test_the_encoder_is_held_and_the_head_is_drawn_anew(host: MiniLM) -> None:
    assert {name for name, each in host.named_parameters() if each.requires_grad} == {"head.weight", "head.bias"}
    torch.manual_seed(1)
    other = frozen_minilm(9, EXTRA)
    assert not torch.equal(other.head.weight, host.head.weight)
    assert all(torch.equal(a, b) for a, b in zip(other.bert.parameters(), host.bert.parameters(), strict=True))


def test_there_is_a_site_beside_every_linear_layer(host: MiniLM) -> None:
    linear = {f"+bert.{name}" for name, each in host.bert.named_modules() if isinstance(each, torch.nn.Linear)}
    assert set(sites_of_minilm().values()) == linear
    assert sites_of_minilm()["layer5_attention_output"] == "+bert.encoder.layer.5.attention.output.dense"


def test_a_long_text_keeps_its_beginning_and_its_end_mark() -> None:
    short, long = encoded(["flag"], 12, EXTRA), encoded(["flag " * 50], 12, EXTRA)
    assert long.shape == (1, 12)
    assert long[0, 0] == short[0, 0]
    assert long[0, -1] == short[0, -1]


@pytest.mark.slow
def test_it_computes_what_transformers_computes(host: MiniLM) -> None:
    from transformers import AutoModel

    from esper.tasks.pretrained.minilm import PACKAGE
    from esper.tasks.sources import package_file

    folder = package_file(PACKAGE, "model/config.json").parent
    theirs, inputs = AutoModel.from_pretrained(folder).eval(), encoded(TEXTS, 32, EXTRA)
    seen = inputs != 0
    with torch.no_grad():
        expected = theirs(input_ids=inputs, attention_mask=seen.long()).last_hidden_state
        torch.testing.assert_close(host.bert(inputs)[seen], expected[seen], atol=1e-4, rtol=1e-4)
