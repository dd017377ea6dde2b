"""Figures of a split are those of the user's own loop over the same loader, whatever a batch looks like."""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BatchEncoding

from esper.kasmina.growing import GrowingModel
from esper.leyline import Metric, Paired
from esper.tasks.base import CountedBatch, Split
from esper.tasks.loader import LoadedSplit, Unpacking
from esper.tasks.losses import own_loss
from esper.tasks.output_loss import own_output_loss
from esper.tasks.reduction import BatchLoss, MeanOf, by_batch
from esper.tolaria.evaluation import Evaluation, Reading, evaluate
from esper.tolaria.ranks import LONE, Ranks
from esper.tolaria.setup import Forward, call

CONFIGS = [{}, {"one": 0.0}, {"one": 0.0, "two": 0.0}, {"two": 1.0}]
LOSS = nn.CrossEntropyLoss()
Batches = list[tuple[Any, Any]]


class Reader(nn.Module):
    """Logits ``[N, 3]`` of sequences of any length; a loss, too, where there are labels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        h = self.body(self.embed(ids))
        keep = torch.ones_like(ids) if mask is None else mask
        logits = self.head((h * keep[..., None]).sum(1) / keep.sum(1, keepdim=True))
        return logits if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


@cache
def grown() -> GrowingModel:
    """With two seeds that matter, the second of them behind the host."""
    torch.manual_seed(0)
    model = GrowingModel.wrap(Reader(), {"one": "body.1", "two": "body.3"}, torch.zeros(2, 3, dtype=torch.int64))
    for slot, alpha in zip(model.slots.values(), (0.6, 0.0), strict=True):
        assert slot.germinate("mlp").passed and slot.state is not None
        slot.state.alpha = alpha
        with torch.no_grad():
            for parameter in slot.seed_parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model.eval()


KINDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda ids, mask: ids,
    "tuple": lambda ids, mask: (ids, mask),
    "list": lambda ids, mask: [ids, mask],
    "dict": lambda ids, mask: {"mask": mask, "ids": ids},
    "UserDict": lambda ids, mask: UserDict(ids=ids, mask=mask),
    "BatchEncoding": lambda ids, mask: BatchEncoding({"ids": ids, "mask": mask}),
}


def run(model: nn.Module, inputs: Any) -> Any:
    """As a user of this model would."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(**inputs)


@st.composite
def loaders(draw: st.DrawFn, *, length: int | None = None) -> Batches:
    """Batches of unequal size, of one example too, and of unequal length; every container."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    kind = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    found = []
    for n in draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)):
        long = draw(st.integers(2, 5)) if length is None else length
        ids = torch.randint(7, (n, long), generator=generator)
        mask = (torch.rand(n, long, generator=generator) < 0.7).long()
        mask[:, 0] = 1
        found.append((kind(ids, mask), torch.randint(3, (n,), generator=generator)))
    return found


def accuracy(output: Any, targets: Tensor) -> Tensor:
    logits = output if isinstance(output, Tensor) else output["logits"]
    return 100.0 * (logits.argmax(1) == targets).double()


def evaluated(
    split: Any, loss: Any, metric: Any, reading: Reading | None = None, forward: Forward | None = None
) -> Evaluation:
    task: Any = SimpleNamespace(metric=Metric("m", ""), loss_figure=loss, metric_figure=metric)
    with torch.no_grad():
        return evaluate(grown(), task, split, CONFIGS, reading or Reading(), forward or run)


def loaded(batches: Any, unpacking: Unpacking | None = None) -> LoadedSplit:
    return LoadedSplit("validation", batches, unpacking or Unpacking(), "cpu")


def by_hand(batches: Batches, figure: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """``[configs, examples]``"""
    rows = []
    with torch.no_grad():
        for config in CONFIGS:
            with grown().alphas(config):
                rows.append(torch.cat([figure(run(grown(), inputs), targets).double() for inputs, targets in batches]))
    return torch.stack(rows)


def unreduced(output: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(output if isinstance(output, Tensor) else output["logits"], targets, reduction="none")


def paired(values: Tensor) -> list[float]:
    errors = (values - values[0]).std(dim=1) / math.sqrt(values.shape[1])
    return [0.0, *errors[1:].tolist()]


def figure_of(batches: Batches) -> BatchLoss:
    with torch.no_grad():
        inputs, targets = batches[0]
        return own_loss(LOSS, run(grown(), inputs), targets, len(batches), len(targets))


@given(loaders())
@settings(max_examples=25, deadline=None)
def test_figures_over_trees_are_those_of_the_users_own_loop(batches: Batches) -> None:
    found = evaluated(loaded(batches), figure_of(batches), MeanOf(accuracy))
    losses, right = by_hand(batches, unreduced), by_hand(batches, accuracy)
    assert found.loss.tolist() == pytest.approx(losses.mean(dim=1).tolist(), rel=1e-5)
    assert found.metric.tolist() == pytest.approx(right.mean(dim=1).tolist(), rel=1e-9)
    assert found.loss_se.tolist() == pytest.approx(paired(losses), rel=1e-3, abs=1e-7)
    assert found.metric_se.tolist() == pytest.approx(paired(right), rel=1e-9)
    assert found.examples == losses.shape[1] and set(found.paired) == {losses.shape[1]}


@given(loaders(length=3), st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_streamed_is_gathered(batches: Batches, most: int) -> None:
    pairs = [(named(item)["ids"], targets) for item, targets in batches]
    ids, answers = (torch.cat(part) for part in zip(*pairs, strict=True))
    whole = Split(ids, answers)
    loss, metric = figure_of(pairs), MeanOf(accuracy)
    together = evaluated(whole, loss, metric)
    for one in (evaluated(loaded(pairs), loss, metric), evaluated(loaded(pairs), loss, metric, Reading(most))):
        assert one.examples == together.examples == len(ids)
        for name in ("loss", "metric", "loss_se", "metric_se"):
            assert getattr(one, name).tolist() == pytest.approx(getattr(together, name).tolist(), rel=1e-4, abs=1e-6)


def named(item: Any) -> dict[str, Tensor]:
    """The same inputs by keyword."""
    if isinstance(item, Tensor):
        return {"ids": item}
    return dict(zip(("ids", "mask"), item, strict=True)) if isinstance(item, tuple | list) else dict(item)


class Careless(LoadedSplit):
    """A mutant: its batches all count as one."""

    @contextmanager
    def reading(self, most: int | None) -> Iterator[Iterator[CountedBatch]]:
        with super().reading(most) as batches:
            yield ((inputs, targets, 1) for inputs, targets, _ in batches)


def test_batches_that_do_not_count_their_examples_are_found_out() -> None:
    generator = torch.Generator().manual_seed(1)
    batches: Batches = [
        (torch.randint(7, (n, 3), generator=generator), torch.randint(3, (n,), generator=generator)) for n in (1, 5, 2)
    ]
    plain = BatchLoss(LOSS, lambda targets, n: torch.tensor(float(n)))
    right = float(by_hand(batches, unreduced)[0].mean())
    assert evaluated(loaded(batches), plain, MeanOf(accuracy)).loss[0] == pytest.approx(right, rel=1e-5)
    careless = evaluated(Careless("validation", batches, Unpacking(), "cpu"), plain, MeanOf(accuracy))
    assert careless.loss[0] != pytest.approx(right, rel=1e-3)


@given(loaders())
@settings(max_examples=15, deadline=None)
def test_a_loss_that_the_model_computes_is_the_mean_over_examples_of_its_batches(batches: Batches) -> None:
    whole = [{**named(item), "labels": targets} for item, targets in batches]
    split = loaded(whole, Unpacking(own_loss=True))
    with torch.no_grad():
        figure, known = own_output_loss(grown()(**whole[0]), whole[0]["labels"], len(whole), split.sizes[0])
    assert known is not None and isinstance(known.loss, nn.CrossEntropyLoss)
    found = evaluated(split, figure, MeanOf(accuracy))
    pairs = [(each, each["labels"]) for each in whole]
    losses = by_hand(pairs, lambda output, y: output["loss"].expand(len(y)))
    assert found.loss.tolist() == pytest.approx(losses.mean(dim=1).tolist(), rel=1e-5)
    assert found.loss_se.tolist() == pytest.approx(paired(by_hand(pairs, unreduced)), rel=1e-3, abs=1e-7)


def test_counterfactuals_of_a_share_are_paired_on_the_same_batches_and_the_metric_is_of_all() -> None:
    generator = torch.Generator().manual_seed(2)
    batches: Batches = [
        (torch.randint(7, (4, 3), generator=generator), torch.randint(3, (4,), generator=generator)) for _ in range(8)
    ]
    figure, read = figure_of(batches), Reading(share=0.25)
    found = evaluated(loaded(batches), figure, MeanOf(accuracy), read)
    whole = evaluated(loaded(batches), figure, MeanOf(accuracy))
    chosen = [i for i in range(8) if read.chosen(i)]
    assert chosen == [0, 4] and read.paired(8) == 2
    assert found.loss[0] == whole.loss[0] and found.metric[0] == whole.metric[0]
    assert found.examples == 32 and found.paired.tolist() == [32, 8, 8, 8]
    few = by_hand([batches[i] for i in chosen], unreduced)
    differences = (few.mean(dim=1) - few[0].mean()).tolist()
    assert (found.loss - found.loss[0]).tolist() == pytest.approx(differences, abs=1e-6)
    assert found.loss_se.tolist() == pytest.approx(paired(few), rel=1e-3)
    assert found.passes < whole.passes
    assert [Reading(share=share).paired(10) for share in (1e-3, 0.1, 0.5, 0.99, 1.0)] == [1, 1, 5, 9, 10]


def test_where_examples_cannot_be_counted_figures_are_by_batch() -> None:
    """Rows of one graph are no independent examples."""
    generator = torch.Generator().manual_seed(3)
    sizes = [int(n) for n in torch.randint(2, 9, (12,), generator=generator)]
    batches: Batches = [
        ((torch.randint(7, (n, 3), generator=generator), torch.ones(n, 3)), torch.randint(3, (n,), generator=generator))
        for n in sizes
    ]
    graphs: Batches = [({"ids": inputs[0], "edges": torch.zeros(2, 30)}, targets) for inputs, targets in batches]
    split = loaded(graphs)
    assert not split.counted and len(split) == len(sizes)
    with torch.no_grad():
        figure = own_loss(LOSS, run(grown(), batches[0][0]), batches[0][1], len(sizes), None)
    found = evaluated(split, figure, by_batch(MeanOf(accuracy)), forward=lambda model, graph: model(graph["ids"]))
    each = by_hand(batches, unreduced)
    assert found.loss.tolist() == pytest.approx(each.mean(dim=1).tolist(), rel=1e-5)
    assert found.metric.tolist() == pytest.approx(by_hand(batches, accuracy).mean(dim=1).tolist())
    assert found.examples == len(sizes)
    sums = torch.stack([torch.stack([part.sum() for part in row.split(sizes)]) for row in each])
    without = (sums.sum(dim=1, keepdim=True) - sums) / (sum(sizes) - torch.tensor(sizes))
    spread = (without - without[0]) - (without - without[0]).mean(dim=1, keepdim=True)
    errors = ((len(sizes) - 1) / len(sizes) * spread.square().sum(dim=1)).sqrt()
    assert found.loss_se.tolist() == pytest.approx(errors.tolist(), rel=1e-3, abs=1e-7)
    as_examples = evaluated(loaded(batches), figure_of(batches), MeanOf(accuracy))
    assert found.loss_se[1] != pytest.approx(as_examples.loss_se[1], rel=1e-2), "the mutant takes rows for examples"


def test_no_output_is_kept() -> None:
    """Each is gone before the next is made."""
    alive: list[int] = []
    made: list[Any] = []

    class Watching(Reader):
        def forward(self, ids: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
            alive.append(sum(each() is not None for each in made))
            output = super().forward(ids)
            made.append(ref(output))
            return output

    torch.manual_seed(0)
    ids = torch.randint(7, (4, 3))
    model = GrowingModel.wrap(Watching(), {"one": "body.1", "two": "body.3"}, ids)
    for slot in model.slots.values():
        assert slot.germinate("mlp").passed and slot.state is not None
        slot.state.alpha = 0.5
    alive.clear(), made.clear()
    task: Any = SimpleNamespace(loss_figure=MeanOf(unreduced), metric_figure=MeanOf(accuracy))
    batches = loaded([(ids, torch.randint(3, (4,))) for _ in range(3)])
    with torch.no_grad():
        evaluate(model.eval(), task, batches, CONFIGS, Reading(), call)
    assert len(alive) >= 9 and max(alive) == 0


def by_look(settled_after: dict[int, int], batches: Batches) -> tuple[Evaluation, list[tuple[int, int]]]:
    """Read until each configuration has been looked at so many times; what was asked, as ``(configuration, n)``."""
    asked: list[tuple[int, int]] = []

    def settled(number: int, metric: Paired, loss: Paired) -> bool:
        asked.append((number, loss.n))
        return sum(number == each for each, _ in asked) >= settled_after.get(number, 99)

    task: Any = SimpleNamespace(loss_figure=figure_of(batches), metric_figure=MeanOf(accuracy))
    with torch.no_grad():
        return evaluate(grown(), task, loaded(batches), CONFIGS, Reading(), run, settled=settled), asked


def sequences(batches: int, seed: int = 4) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(7, (2, 3), generator=generator), torch.randint(3, (2,), generator=generator))
        for _ in range(batches)
    ]


def test_each_configuration_is_read_until_it_is_settled_on_batches_that_are_spread_over_the_split() -> None:
    batches = sequences(16)
    found, asked = by_look({1: 1, 2: 3}, batches)
    whole = evaluated(loaded(batches), figure_of(batches), MeanOf(accuracy))
    assert found.examples == 32 and found.paired.tolist() == [32, 2, 8, 32]
    assert found.read.tolist()[1:] == [1 / 16, 1 / 4, 1.0] and math.isnan(found.read[0])
    assert [n for number, n in asked if number == 3] == [2, 4, 8, 16, 32]
    for i, chosen in ((1, [0]), (2, [0, 4, 8, 12]), (3, list(range(16)))):
        losses = by_hand([batches[b] for b in chosen], unreduced)
        assert found.loss[i] - found.loss[0] == pytest.approx(float((losses[i] - losses[0]).mean()), abs=1e-6)
    assert found.loss[0] == whole.loss[0] and found.loss[3] == pytest.approx(whole.loss[3], abs=1e-9)
    assert found.loss_se[3] == pytest.approx(whole.loss_se[3], rel=1e-6)
    assert found.metric_se[3] == pytest.approx(whole.metric_se[3], rel=1e-6)
    assert found.passes > whole.passes, "the first configuration is run again wherever another is read on"
    few, _ = by_look({1: 1, 2: 1, 3: 1}, batches)
    assert few.passes <= 1 + 3 / 16


@given(st.integers(1, 70), st.sampled_from([1.0, 0.5, 0.1]))
def test_what_is_read_doubles_and_is_spread(batches: int, share: float) -> None:
    reading = Reading(share=share)
    sets = reading.sets(batches, stops=True)
    assert set().union(*sets) == {b for b in range(batches) if reading.chosen(b)}
    assert sum(map(len, sets)) == reading.paired(batches) and all(sets) and len(sets) <= 5
    assert reading.sets(batches, stops=False) == [set().union(*sets)]
    for n in range(len(sets)):
        read = sorted(set().union(*sets[: n + 1]))
        chosen = sorted(set().union(*sets))
        places = [chosen.index(batch) for batch in read]
        assert {b - a for a, b in zip(places, places[1:], strict=False)} in (
            set(),
            {places[1] if len(places) > 1 else 0},
        )


def test_a_split_that_is_sorted_is_not_judged_by_its_beginning() -> None:
    """The mutant reads the first batches: all of one class, in which a seed may do no harm at all."""
    batches = sorted(sequences(16, seed=6), key=lambda pair: int(pair[1][0]))
    labels = [int(batch[1][0]) for batch in batches]
    first, *_ = Reading().sets(16, stops=True)
    quarter = set().union(*Reading().sets(16, stops=True)[:3])
    assert (
        len({labels[b] for b in quarter}) == 3 and len({labels[b] for b in range(len(quarter))}) == 1 and first == {0}
    )


class Leaning(Reader):
    """Its answer to an example depends on the others of its batch."""

    def forward(self, ids: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        logits = super().forward(ids)
        return logits - logits.mean(0)


@pytest.mark.parametrize("host", [Reader, Leaning])
def test_batches_of_a_split_in_memory_that_are_joined_change_no_bit(host: type[Reader]) -> None:
    torch.manual_seed(0)
    ids = torch.randint(7, (70, 3))
    model = GrowingModel.wrap(host(), {"one": "body.1", "two": "body.3"}, ids[:2])
    assert model.slots["one"].germinate("mlp").passed and model.slots["one"].state is not None
    model.slots["one"].state.alpha = 0.6
    task: Any = SimpleNamespace(loss_figure=MeanOf(unreduced), metric_figure=MeanOf(accuracy))
    split, sizes = Split(ids, torch.randint(3, (70,))), list[int]()

    def forward(host: nn.Module, inputs: Tensor) -> Any:
        sizes.append(len(inputs))
        return call(host, inputs)

    def found(macs: int | None, ranks: Ranks = LONE) -> list[Any]:
        sizes.clear()
        asked: list[Any] = []

        def settled(number: int, metric: Paired, loss: Paired) -> bool:
            asked.append((number, metric, loss))
            return number == 2

        with torch.no_grad():
            read = Reading(4, macs=macs)
            result = evaluate(model.eval(), task, split, CONFIGS[:3], read, forward, ranks, settled=settled)
        arrays = (result.metric, result.loss, result.metric_se, result.loss_se, result.read, result.paired)
        return [*(array.tobytes() for array in arrays), result.passes, result.shared, asked]

    apart = found(None)
    assert set(sizes) == {4, 2}
    assert found(100) == apart and max(sizes) == 60, "batches 1 to 15 lie between two that are read of all"
    assert found(100) == apart and (max(sizes) == 4 or host is Reader)
    assert found(1 << 40) == apart and max(sizes) == 4, "a pass that takes long by its examples is not made longer"
    two: Any = SimpleNamespace(rank=0, count=2, first=LONE.first, mine=lambda turn: True, all=lambda value: [value])
    found(100, two)
    assert max(sizes) == 4, "ranks share batches out"


def test_what_was_not_compared_would_be_wrong() -> None:
    """A mutant that takes it on trust."""
    model, ids = GrowingModel.wrap(Leaning(), {"one": "body.1"}, torch.randint(7, (2, 3))), torch.randint(7, (40, 3))
    task: Any = SimpleNamespace(loss_figure=MeanOf(unreduced), metric_figure=MeanOf(accuracy))
    split = Split(ids, torch.randint(3, (40,)))
    with torch.no_grad():
        right, _ = (evaluate(model.eval(), task, split, [{}], Reading(4, macs=macs), call) for macs in (None, 1))
        model.alike = dict.fromkeys(model.alike, 2)
        assert model.alike and evaluate(model, task, split, [{}], Reading(4, macs=1), call).loss[0] != right.loss[0]
