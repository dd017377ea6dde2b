"""Next-character prediction."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from esper.kasmina.blueprints import build
from esper.kasmina.layout import Layout
from esper.tasks import TaskSpec, get_task
from esper.tasks.text import ALPHABET, CHARACTERS, LENGTH, corpus, sequence_accuracy, sequence_loss, sequences
from tasks.conformance import check_conformance, score_after


@pytest.fixture(scope="module")
def task() -> TaskSpec:
    return get_task("text")


def test_it_is_a_sound_task(task: TaskSpec) -> None:
    check_conformance(task, classes=CHARACTERS)
    assert task.data.train.inputs.shape[1:] == (LENGTH,)
    assert task.metric.chance == pytest.approx(100 * (task.data.validation.targets == 1).double().mean())


def test_targets_are_the_next_characters() -> None:
    written = "ab\ncd" * 40 + "é"
    split = sequences(written)
    assert len(split) == 3
    text = "".join(ALPHABET[number] for number in split.inputs.flatten().tolist())
    assert text == written[: 3 * LENGTH]
    assert torch.equal(split.targets.flatten()[:-1], split.inputs.flatten()[1:])
    assert sequences("é" * 65).inputs.unique().tolist() == [CHARACTERS - 1]


def test_no_paragraph_comes_twice() -> None:
    paragraphs = [" ".join(paragraph.split()) for paragraph in corpus().split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs))


def test_loss_and_score_are_means_over_the_sequence() -> None:
    logits, targets = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    for i in range(3):
        # single precision by two kernels, each some roundings of 6e-8 off
        expected = pytest.approx(float(F.cross_entropy(logits[i], targets[i])), rel=1e-5)
        assert sequence_loss(logits, targets)[i] == expected
        right = (logits[i].argmax(dim=1) == targets[i]).float().mean()
        assert sequence_accuracy(logits, targets)[i] == pytest.approx(100 * float(right), rel=1e-5)


def reads_ahead(task: TaskSpec, blueprint: str | None) -> bool:
    """Whether changing later characters changes earlier predictions, with a random seed of that blueprint."""
    host = task.host().eval()
    if blueprint is not None:
        seed = build(blueprint, 32, Layout.NTC)
        for parameter in seed.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        host.get_submodule("blocks.0").register_forward_hook(lambda _module, _inputs, output: seed(output))
    before = task.data.train.inputs[:2].clone()
    after = before.clone()
    after[:, 40:] = 5
    with torch.no_grad():
        return not torch.allclose(host(before)[:, :40], host(after)[:, :40], atol=1e-5)


def test_neither_host_nor_any_blueprint_reads_ahead(task: TaskSpec) -> None:
    for blueprint in (None, *task.blueprints):
        assert not reads_ahead(task, blueprint), blueprint
    # the mutant: attention over the whole sequence does
    assert reads_ahead(task, "attention_full")


@pytest.mark.slow
def test_the_host_learns_and_leaves_room(task: TaskSpec) -> None:
    score = score_after(task, 2)
    assert task.metric.chance is not None
    assert task.metric.chance + 5 < score < 60
