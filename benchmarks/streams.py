"""Tasks in a row on one host that is held: reuse what was grown, grow what is missing, forget nothing?

    uv run python benchmarks/streams.py --stream pictures --run streams.jsonl --into docs/benchmarks.md     # resumable

Every task has a head of its own, and which task an example is from is known when it is read (task-incremental). A
task's training examples are there while that task is learned and not later, but for those that replay keeps.

    grown      the runs so far, and the bare host, are tried under a fresh head (Budget(previous=RUN, fresh=HEAD),
               policy static); the one best on validation is gone on from, and what is missing is grown there within a
               budget of parameters. After each task the answers to all tasks so far are asserted equal, bit for bit,
               to those given when they were learned: with later seeds off, and in what the runs left
    lora       LoRA of rank 8 beside every linear layer, one for each task
    shared     one such LoRA, trained on
    finetuned  all weights, trained on
    replay     the same, with half of the earlier tasks' training examples mixed in and all heads learning; its
               validation is that of all tasks so far

Seeds are paired: the same examples in the same order, and the same heads at the start, but that `grown` begins every
task after the first with the head that its trial trained. Each arm may choose one of three rates, by validation of the
first two tasks on three seeds of their own. MACs are all that runs spend, what is tried included; reading the test
splits is in no arm's. CPU time is without the host's own training and the asserting. Parameters added or changed are
those of the networks that stay: seeds that `auto` trained and left out in the end, and heads of trials, are in MACs
alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from faults import Book, shown
from stream_tasks import BODY, HEAD, SITES, STREAMS, Headed, OfTask, Pairs, Stream, Task, first
from torch import Tensor, nn
from torch.utils.data import DataLoader

import esper
from esper import delivery
from esper.bench import rivals
from esper.bench.analysis import macs
from esper.bench.report import into_page
from esper.karn.stats import interval
from esper.kasmina.reuse import grown_in
from esper.leyline import EsperError, GateThresholds
from esper.library import Budget, GrowResult, grow
from esper.tolaria.rng import derive, seeded

RATES: Mapping[str, tuple[float, ...]] = {
    "grown": (2e-3, 4e-3, 8e-3),
    "lora": (2e-3, 4e-3, 8e-3),
    "shared": (2e-3, 4e-3, 8e-3),
    "finetuned": (1e-4, 3e-4, 1e-3),
    "replay": (1e-4, 3e-4, 1e-3),
}
"""Arm -> rates of AdamW that it may choose from."""
WHAT: Mapping[str, str] = {
    "grown": "reuse or grow",
    "lora": "one LoRA a task",
    "shared": "one shared LoRA",
    "finetuned": "sequential fine-tuning",
    "replay": "the same with replay",
}
RANK = 8
SHARE = 0.6
"""Most parameters of what is grown for a task, as a share of LoRA's, heads counted on both sides."""
KEPT = 0.5
"""Share of each task's training examples that replay keeps."""
BATCH = 32
PLACES = [site.removeprefix("+") for site in SITES.values()]
SPARE = "blocks.3"
"""A place in which nothing grows, for runs that only train."""
TASKS = 5
TUNING = range(1000, 1003)
"""Seeds of the trials that choose a rate."""
QUICK = GateThresholds(min_training_epochs=1, min_holding_epochs=1)


# --- learning one task ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One arm on all tasks of a stream, or its first ones."""

    stream: Stream
    arm: str
    seed: int
    rate: float
    epochs: int
    train: int
    tasks: int

    def named(self) -> list[Any]:
        """What its outcome depends on, by name."""
        return [self.stream.name, self.arm, self.seed, self.rate, self.epochs, self.train, self.tasks]


@dataclass
class Learner:
    """Learns tasks one after the other and keeps account."""

    trial: Trial
    tasks: Sequence[Task]
    split: str
    """What is read out after each task."""
    folder: Path
    spent: int = 0
    """MACs of everything but the reading out."""
    added: list[int] = field(default_factory=list)
    """Parameters that were added or changed for each task, once each, head included, in what stays of it."""
    begun: list[str] = field(default_factory=list)
    """What each task was begun from."""

    def run(self, model: nn.Module, data: Mapping[str, Pairs], number: int, run: Path, **given: Any) -> GrowResult:
        """One run of :func:`esper.grow`; its work is booked."""
        trial = self.trial
        order = torch.Generator().manual_seed(derive(trial.seed, "order", number))
        budget = {
            "epochs": trial.epochs,
            "lr": trial.rate,
            "seed_lr_multiplier": 1.0,
            "schedule": "cosine",
            "gates": QUICK,
            "checkpoint_every": 0,
            **given.pop("budget", {}),
        }
        result = grow(
            model,
            train=DataLoader(data["train"], BATCH, shuffle=True, generator=order),
            val=DataLoader(data["validation"], 125),
            loss=nn.CrossEntropyLoss(),
            forward=_forward,
            budget=Budget(**budget),
            seed=derive(trial.seed, "task", number),
            device="cpu",
            run_dir=run,
            **{"policy": "static", "at": [SPARE], **given},
        )
        macs_spent = result.report.episodes[0].total_macs
        assert macs_spent is not None
        self.spent += macs_spent
        return result

    def assert_kept(self, said: Sequence[Tensor]) -> None:
        """After each task, of an arm that is to forget nothing: that it has not. No part of learning."""

    def logits(self, model: nn.Module, task: Task) -> Tensor:
        """What a network says of the split that is read out."""
        model.eval()
        with torch.no_grad():
            return torch.cat([model(part) for part in getattr(task, self.split).inputs.split(125)])


def _forward(model: nn.Module, inputs: Any) -> Tensor:
    answer: Tensor = model(*inputs) if isinstance(inputs, list | tuple) else model(inputs)
    return answer


def one(task: Task) -> dict[str, Pairs]:
    """The data of one task."""
    return {"train": Pairs([task.train]), "validation": Pairs([task.validation])}


def learning(model: nn.Module) -> int:
    """Parameters that learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def adapted(host: nn.Module, seed: int) -> nn.Module:
    """PEFT's adapters in the host; they and the head learn."""
    from peft import LoraConfig

    with seeded(derive(seed, "lora")):
        rivals.adapted(host, LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=PLACES))
    host.get_submodule(HEAD).requires_grad_(True)
    return host


def unfrozen(host: nn.Module) -> nn.Module:
    """The host, of which fine-tuning trains all that it may."""
    for path in BODY:
        host.get_submodule(path).requires_grad_(True)
    return host


# --- the arms ---------------------------------------------------------------------------------------------------------


class Grown(Learner):
    """Reuse or grow. A network is the host with what a chain of runs grew, each on what the one before it left."""

    def learn(self) -> Iterator[list[Tensor]]:
        """After each task, what is said of all so far."""
        stream, seed = self.trial.stream, self.trial.seed
        bare = stream.fresh(seed, 0)
        head = learning(bare)
        most = round(SHARE * learning(adapted(bare, seed))) - head
        self.chains: list[list[Path]] = []
        """Of each task, the runs that its network is made of."""
        self.useful: list[list[Path]] = []
        """Of each task, those of them that may be gone on from: that have seeds."""
        sizes: dict[tuple[Path, ...], int] = {(): 0}
        """Parameters of the seeds of a chain."""
        said: list[Tensor] = []
        for number, task in enumerate(self.tasks):
            base, head_then = self._best(number)
            run = self.folder / f"task{number}"
            given = {"parameters": most, "fold": False, **self._previous(base)}
            model = self._begun(base, number)
            if head_then is not None:
                setattr(model, HEAD, head_then)
            seeds = {"policy": "auto", "at": dict(SITES)}
            result = self.run(model, one(task), number, run, budget=given, **seeds)
            grown = list(grown_in(result.model).values())
            size = sum(p.numel() for each in grown for p in each.seed.parameters())
            before = sizes[tuple(base)]
            sizes[(*base, run)] = size
            self.added.append(size - before + head)
            assert head <= self.added[-1] <= most + head
            self.begun.append("bare" if not base else self.tasks[int(base[-1].name[-1])].name)
            self.chains.append([*base, run])
            self.useful.append([*base, run] if size > before else base)
            said.append(self.logits(result.model, task))
            self.newest = result.model, base
            yield said

    def _previous(self, base: Sequence[Path]) -> dict[str, Any]:
        return {"previous": base[-1], "fresh": (HEAD,)} if base else {}

    def _begun(self, base: Sequence[Path], number: int) -> nn.Module:
        """The host that a run takes which goes on from ``base``, with the head of a task."""
        stream, seed = self.trial.stream, self.trial.seed
        model = stream.fresh(seed, number)
        for run in base[:-1]:
            esper.apply(model, run)
        setattr(model, HEAD, stream.head(seed, number))
        return model

    def _best(self, number: int) -> tuple[list[Path], nn.Module | None]:
        """The chain whose network is worth most under a head of its own, by validation, with that head; none is the
        bare host."""
        known = [[], *(chain for chain in self.useful if chain)]
        tried: dict[tuple[Path, ...], tuple[float, nn.Module]] = {}
        for base in known if number else ():
            if tuple(base) not in tried:
                with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                    data, given = one(self.tasks[number]), self._previous(base)
                    result = self.run(self._begun(base, number), data, number, Path(folder, "run"), budget=given)
                worth = result.report.episodes[0].validation_metric
                assert worth is not None
                tried[tuple(base)] = worth, result.model.get_submodule(HEAD)
        if not tried:
            return [], None
        best = max(tried, key=lambda base: tried[base][0])
        return list(best), tried[best][1]

    def assert_kept(self, said: Sequence[Tensor]) -> None:
        """Every task so far is answered as when it was learned, bit for bit: in the newest network, those that it went
        on from; in one that is put together from the runs, all."""
        stream, head = self.trial.stream, (HEAD,)
        model, base = self.newest
        for chain, task, before in zip(self.chains, self.tasks, said, strict=False):
            if chain[-1] in base:
                with esper.as_before(model, chain[-1], fresh=head):
                    assert torch.equal(self.logits(model, task), before), f"{task.name} is forgotten"
            again = stream.fresh(self.trial.seed, 0)
            for run in chain:
                esper.apply(again, run)
            assert torch.equal(self.logits(again, task), before), f"{task.name} is not what was delivered"


class Trained(Learner):
    """One LoRA a task; or one network that is trained on, with a head for each task: its LoRA, or all of its part."""

    def learn(self) -> Iterator[list[Tensor]]:
        """After each task, what is said of all so far."""
        stream, seed, alone = self.trial.stream, self.trial.seed, self.trial.arm == "lora"
        models, heads = list[nn.Module](), list[nn.Module]()
        for number, task in enumerate(self.tasks):
            if alone or not models:
                model = self.opened(stream.fresh(seed, number))
                self.added.append(learning(model))
            else:
                model = models[-1]
                setattr(model, HEAD, stream.head(seed, number))
                self.added.append(learning(model.get_submodule(HEAD)))
                assert learning(model) == self.added[0]
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                models.append(self.run(model, one(task), number, Path(folder, "run")).model)
            heads.append(models[-1].get_submodule(HEAD))
            said = []
            for own, head, known in zip(models if alone else models[-1:] * len(heads), heads, self.tasks, strict=False):
                setattr(own, HEAD, head)
                said.append(self.logits(own, known))
            yield said

    def opened(self, host: nn.Module) -> nn.Module:
        """The host with what the arm trains."""
        return unfrozen(host) if self.trial.arm == "finetuned" else adapted(host, self.trial.seed)


class Replay(Learner):
    """Fine-tuning of the part with all heads, on the new task's examples and those that were kept of the others."""

    def learn(self) -> Iterator[list[Tensor]]:
        """After each task, what is said of all so far."""
        stream, seed = self.trial.stream, self.trial.seed
        host = unfrozen(stream.fresh(seed, 0))
        heads = [stream.head(seed, number) for number in range(len(self.tasks))]
        setattr(host, HEAD, nn.Identity())
        model: nn.Module = Headed(host, heads)
        for number in range(len(self.tasks)):
            for known, head in enumerate(model.get_submodule("heads").children()):
                head.requires_grad_(known <= number)  # weight decay would change those of tasks to come
            self.added.append(learning(model if not number else model.get_submodule(f"heads.{number}")))
            kept = [first(task.train, KEPT) for task in self.tasks[:number]]
            now = self.tasks[: number + 1]
            data = {
                "train": Pairs([*kept, self.tasks[number].train], numbered=True),
                "validation": Pairs([task.validation for task in now], numbered=True),
            }
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                at = [f"body.{SPARE}"]
                model = self.run(model, data, number, Path(folder, "run"), at=at).model
            yield [self.logits(OfTask(model, known), task) for known, task in enumerate(now)]


ARMS: Mapping[str, type[Learner]] = {
    "grown": Grown, "lora": Trained, "shared": Trained, "finetuned": Trained, "replay": Replay,
}  # fmt: skip


# --- trials and tables ------------------------------------------------------------------------------------------------


def played(trial: Trial, split: str) -> dict[str, Any]:
    """One trial, from the first task to the last."""
    tasks = trial.stream.tasks(trial.seed, trial.train)[: trial.tasks]
    trial.stream.fresh(trial.seed, 0)  # trains the host, once a process: work of no arm
    accuracy, asserting, began = [], 0.0, time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        learner = ARMS[trial.arm](trial, tasks, split, Path(folder))
        for said in learner.learn():
            learned = time.process_time()
            learner.assert_kept(said)
            asserting += time.process_time() - learned
            right = [
                (each.argmax(1) == getattr(task, split).targets).double().mean()
                for each, task in zip(said, tasks, strict=False)
            ]
            accuracy.append([100.0 * float(each) for each in right])
    return {
        "accuracy": accuracy,
        "added": learner.added,
        "begun": learner.begun,
        "macs": learner.spent,
        "cpu": time.process_time() - began - asserting,
    }


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    stream: Stream
    seeds: range
    epochs: int
    train: int
    book: Book

    def trial(self, arm: str, seed: int, rate: float, tasks: int, split: str) -> Mapping[str, Any]:
        """A finished trial, played when it is not there."""
        trial = Trial(self.stream, arm, seed, rate, self.epochs, self.train, tasks)
        found = self.book.get(json.dumps([split, *trial.named()]), partial(played, trial, split))
        print(f"{self.stream.name} {split} {arm} {seed} {rate:g}: {shown_row(found['accuracy'][-1])}", flush=True)
        return found

    def tuned(self, arm: str) -> tuple[float, int]:
        """The rate that is best on validation of the first two tasks, and the MACs of finding it."""
        tried = {rate: [self.trial(arm, seed, rate, 2, "validation") for seed in TUNING] for rate in RATES[arm]}
        worth = {rate: fmean(fmean(each["accuracy"][-1]) for each in trials) for rate, trials in tried.items()}
        return max(worth, key=worth.__getitem__), sum(each["macs"] for trials in tried.values() for each in trials)

    def finals(self, arm: str, rate: float) -> list[Mapping[str, Any]]:
        """The trials on all seeds."""
        return [self.trial(arm, seed, rate, TASKS, "test") for seed in self.seeds]


def shown_row(values: Sequence[float]) -> str:
    """``71.2 64.0``."""
    return " ".join(f"{value:.1f}" for value in values)


def forgotten(accuracy: Sequence[Sequence[float]]) -> float:
    """Points lost since a task was learned, mean over all but the last task."""
    return fmean(accuracy[number][number] - accuracy[-1][number] for number in range(len(accuracy) - 1))


def table(plan: Plan) -> Iterator[str]:
    """Two tables of a stream; plays what is missing, seed by seed."""
    rates = {arm: plan.tuned(arm) for arm in ARMS}
    for seed in plan.seeds:
        for arm, (rate, _) in rates.items():
            plan.trial(arm, seed, rate, TASKS, "test")
    ends = {arm: plan.finals(arm, rate) for arm, (rate, _) in rates.items()}
    after = " | ".join(f"{number + 1}" for number in range(TASKS))
    yield (
        f"| arm, mean accuracy of all so far after task | {after} | points forgotten | "
        "parameters added or changed, all tasks | MACs | CPU s | rate | MACs to tune |"
    )
    yield "|---|" + "---:|" * (TASKS + 6)
    for arm, trials in ends.items():
        course = [fmean(fmean(each["accuracy"][number]) for each in trials) for number in range(TASKS)]
        lost = interval([forgotten(each["accuracy"]) for each in trials])
        rate, tuning = rates[arm]
        added = fmean(sum(each["added"]) for each in trials)
        yield (
            f"| {WHAT[arm]} | {' | '.join(f'{value:.1f}' for value in course)} | {shown(lost)} | {added:,.0f} | "
            f"{macs(fmean(each['macs'] for each in trials))} | {fmean(each['cpu'] for each in trials):.0f} | "
            f"{rate:g} | {macs(tuning)} |"
        )
    yield ""
    yield "| reuse or grow minus | points after the last task, paired, 95 % | ratio of such parameters | of MACs |"
    yield "|---|---|---:|---:|"
    for arm, trials in ends.items():
        if arm != "grown":
            pairs = list(zip(ends["grown"], trials, strict=True))
            points = [fmean(mine["accuracy"][-1]) - fmean(other["accuracy"][-1]) for mine, other in pairs]
            added = fmean(sum(mine["added"]) / sum(other["added"]) for mine, other in pairs)
            work = fmean(mine["macs"] / other["macs"] for mine, other in pairs)
            yield f"| {WHAT[arm]} | {shown(interval(points))} | {added:.2f} | {work:.2f} |"
    yield ""
    begun = ["; ".join(each["begun"][1:]) for each in ends["grown"]]
    yield f"Tasks after the first were begun from, seed by seed: {' / '.join(begun)}."


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", choices=STREAMS, default="pictures")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=3, help="0 to 2 were seen while the rule was made")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train", type=int, help="training examples of a task")
    parser.add_argument("--run", type=Path, help="file of finished trials; begun or gone on with")
    parser.add_argument("--into", type=Path, help="write the tables between the marks of this page, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="the block was left")
    # figures of hundreds of runs are looked at by nobody
    delivery.write_report = partial(delivery.write_report, figures=False)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    train = STREAMS[arguments.stream].train if arguments.train is None else arguments.train
    plan = Plan(STREAMS[arguments.stream], seeds, arguments.epochs, train, Book(arguments.run))
    try:
        text = "\n".join(table(plan))
    except EsperError as error:
        raise SystemExit(str(error)) from error
    print(text)
    if arguments.into is not None:
        into_page(arguments.into, f"streams-{arguments.stream}", text)


if __name__ == "__main__":
    main()
