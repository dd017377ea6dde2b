"""What growing costs in memory: the peak of a user's own loop with Esper over that of the same loop without.

    uv run python benchmarks/memory.py [--large] [--into docs/memory.md]

Each figure is the highest resident set of a process of its own while it trains and validates, less what was resident
when model, data and modules were there. That is read from ``/proc``, so it takes Linux. The loop is the same in all:
AdamW, an epoch of training, a validation of loss and accuracy in the loader's batches. With Esper it has two seeds, and
the stage that the row names is reached in it; the first evaluation and all of the set-up are in it too.

With ``--large`` it is a host of 100 million parameters, phase by phase, and figures are of all that the process has: a
checkpoint is written, the run goes back to its last good state (of which the time is told, in copies of that state).
The best network lies in a file, of which pages count as resident where they were read: how much of files is resident at
the end of a phase stands beside, and that the system takes back where it needs room.

Large blocks are taken from the system one by one and given back (``MALLOC_MMAP_THRESHOLD_``). With glibc's own moving
threshold the same loop differs by a third from run to run, by where small blocks happen to lie.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.bench.report import into_page
from esper.leyline import Blend, Decision, EnvSpec, EnvView, FactoredAction, GateThresholds, Op, SeedStage
from esper.library import Budget, Grower, OwnChoices
from esper.tolaria import checkpoint
from esper.tolaria.spill import spill

Batches = list[tuple[Tensor, Tensor]]
EPOCHS: Final = {"no seed": 2, "two behind the host": 3, "two blended in": 5}
"""Of a row; it takes as many until both seeds are where the row says."""
STATES: Final = tuple(EPOCHS)


class Block(nn.Module):
    """Causal attention and a feed-forward net, with norms in front (Radford et al., 2019)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.attend, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.attend(self.norm(x)).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, width))
        return x + self.feed(x)


class GPT(nn.Module):
    """Logits ``[batch, vocabulary, time]`` over ``tokens`` words."""

    def __init__(self, tokens: int, width: int, heads: int, depth: int, time: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(tokens, width), nn.Parameter(torch.randn(1, time, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x) + self.place))).transpose(1, 2)


class Pictures(nn.Module):
    """A small residual network over ``[N, 3, 32, 32]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(self.block(width) for _ in range(4)))
        self.head = nn.Linear(width, 10)

    @staticmethod
    def block(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@dataclass(frozen=True)
class Case:
    """A model, its data, and where two seeds sit."""

    name: str
    build: Callable[[], nn.Module]
    batches: Callable[[int], Batches]
    """``(how many)``"""
    validation: int
    """Batches of it."""
    sites: tuple[str, str]
    blueprint: str


def words(tokens: int, n: int, time: int) -> Callable[[int], Batches]:
    return lambda count: [(torch.randint(tokens, (n, time)), torch.randint(tokens, (n, time))) for _ in range(count)]


def pictures(count: int) -> Batches:
    return [(torch.randn(32, 3, 32, 32), torch.randint(10, (32,))) for _ in range(count)]


CASES: Final = (
    Case(
        "GPT, 4,096 words, validation 512 x 64, batches of 16",
        lambda: GPT(4096, 32, 2, 2, 64),
        words(4096, 16, 64),
        32,
        ("blocks.0", "blocks.1"),
        "mlp",
    ),
    Case(
        "residual network, validation 512 pictures, batches of 32",
        lambda: Pictures(32),
        pictures,
        16,
        ("blocks.1", "blocks.2"),
        "conv3",
    ),
)


class Sowing:
    """A seed in every slot, one an epoch; they stay behind the host, or are blended in as soon as they may be."""

    name = "sowing"

    def __init__(self, blueprint: str, blend: bool) -> None:
        self.blueprint, self.blend = blueprint, blend

    def reset(self, specs: list[EnvSpec]) -> None:
        """Nothing is remembered."""

    def decide(self, views: list[EnvView]) -> list[Decision]:
        return [Decision(self.action(view), "as the benchmark has it") for view in views]

    def action(self, view: EnvView) -> FactoredAction:
        for slot in view.slots:
            if slot.stage is SeedStage.DORMANT:
                return FactoredAction(Op.GERMINATE, slot.slot_id, self.blueprint, Blend.LINEAR, 1.0, 1)
            if self.blend and slot.stage is SeedStage.TRAINING:
                return FactoredAction(Op.ADVANCE, slot.slot_id)
        return FactoredAction()


def resident(what: str) -> int:
    """``VmRSS``, ``VmHWM`` or ``RssFile`` of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{what} is not told here; this benchmark takes Linux")


def bare(model: nn.Module, optimizer: torch.optim.Optimizer, train: Batches, val: Batches) -> None:
    loss = nn.CrossEntropyLoss()
    for _ in range(2):
        for inputs, targets in train:
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
        with torch.no_grad():
            for inputs, targets in val:
                output = model(inputs)
                loss(output, targets)
                output.argmax(1)


def grown_epoch(grower: Grower, optimizer: torch.optim.Optimizer, train: Batches) -> None:
    for inputs, targets in train:
        optimizer.zero_grad()
        grower.loss(inputs, targets).backward()
        grower.after_backward()
        optimizer.step()
    grower.after_epoch()


def grown(
    case: Case, model: nn.Module, optimizer: torch.optim.Optimizer, train: Batches, val: Batches, state: str
) -> None:
    open_gates = GateThresholds(
        min_training_epochs=1, min_gradient_ratio=0.0, min_gradient_health=0.0, ask_for_gain=False
    )
    budget = Budget(epochs=20, parameters=10**9, gates=open_gates)
    choices = OwnChoices(nn.CrossEntropyLoss(), at=case.sites, budget=budget, device="cpu")
    policy: Any = "static" if state == STATES[0] else Sowing(case.blueprint, blend=state == STATES[2])
    with tempfile.TemporaryDirectory() as folder:
        with Grower(model, optimizer, val=val, choices=choices, policy=policy, run_dir=f"{folder}/run") as grower:
            for _ in range(EPOCHS[state]):
                grown_epoch(grower, optimizer, train)
            check(grower.view, state)


def check(view: EnvView, state: str) -> None:
    """The seeds are where the row says that they are."""
    behind = sum(slot.stage is SeedStage.TRAINING for slot in view.slots)
    felt = sum(slot.alpha > 0.0 for slot in view.slots)
    if (behind, felt) != {STATES[0]: (0, 0), STATES[1]: (2, 0), STATES[2]: (0, 2)}[state]:
        raise RuntimeError(f"{behind} seeds are behind the host and {felt} blended in, where it should be {state}")


def measure(number: int, state: str | None, answer: Any) -> None:
    """Peak over what is resident beforehand, in bytes; in a process of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = CASES[number]
    model, train, val = case.build(), case.batches(2), case.batches(case.validation)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    # what torch loads on first use is resident in every row
    nn.CrossEntropyLoss()(model(train[0][0][:1]), train[0][1][:1]).backward()
    optimizer.zero_grad()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    if state is None:
        bare(model, optimizer, train, val)
    else:
        grown(case, model, optimizer, train, val, state)
    answer.put(resident("VmHWM") - before)


def peaks() -> Iterator[tuple[str, str, float, float]]:
    context = multiprocessing.get_context("spawn")
    for number, case in enumerate(CASES):
        found = []
        for state in (None, *STATES):
            answer = context.Queue()
            process = context.Process(target=measure, args=(number, state, answer))
            process.start()
            found.append(answer.get() / 2**20)
            process.join()
        for state, peak in zip(STATES, found[1:], strict=True):
            yield case.name, state, found[0], peak


LARGE: Final = Case(
    "GPT of 100 M parameters, batches of 1 x 8",
    lambda: GPT(4096, 768, 12, 13, 8),
    words(4096, 1, 8),
    2,
    ("blocks.0", "blocks.1"),
    "bottleneck",
)


def large(grow: bool, answer: Any) -> None:
    """``{phase: (peak, pages of files at its end)}``, in bytes, of all that the process has but its imports; and how
    many times as long as a copy in memory a rollback took, and to put the best network into a file."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before, files = resident("VmRSS"), resident("RssFile")
    model = LARGE.build()
    train, val = LARGE.batches(2), LARGE.batches(LARGE.validation)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    size = sum(parameter.numel() for parameter in model.parameters())
    peaks, copies = {}, (0.0, 0.0)

    def over(phase: str) -> None:
        peaks[phase] = resident("VmHWM") - before, resident("RssFile") - files
        Path("/proc/self/clear_refs").write_text("5")

    over("made")
    if not grow:
        bare(model, optimizer, train, val)
        over("trained")
    else:
        with tempfile.TemporaryDirectory() as folder:
            copies = largely_grown(model, optimizer, train, val, Path(folder), over)
    answer.put((size, peaks, copies))


def largely_grown(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Batches,
    val: Batches,
    folder: Path,
    over: Callable[[str], None],
) -> tuple[float, float]:
    """``Grower``'s loop: wrapped, three epochs, a checkpoint, a rollback, and what is delivered."""
    choices = OwnChoices(nn.CrossEntropyLoss(), at=LARGE.sites, budget=Budget(epochs=20), device="cpu")
    with Grower(model, optimizer, val=val, choices=choices, policy="static", run_dir=folder / "run") as grower:
        over("wrapped")
        for _ in range(3):
            grown_epoch(grower, optimizer, train)
        over("trained")
        state = grower._loop.state()
        checkpoint.save(folder / "checkpoints", 3, state["tensors"], state["plain"])
        del state
        over("checkpoint written")
        mine = grower.state_dict()
        del mine
        over("state_dict() taken")
        trainer = grower._engine.trainer(0)
        good = trainer.state()
        rollback = in_copies(good["tensors"], partial(trainer.rewind, good))
        del good
        over("rolled back")
        network = trainer.network()["tensors"]
        filed = in_copies(network, spilled=folder / "run")
        del network
        over("timed")
    over("delivered")
    return rollback, filed


def in_copies(tensors: dict[str, Tensor], do: Callable[[], None] | None = None, spilled: Path | None = None) -> float:
    """How many times as long as a copy of ``tensors`` it takes to do something, or to put it into a file below
    ``spilled``: the median of five."""
    ratios = []
    for _ in range(5):
        began = time.perf_counter()
        again = [tensor.clone() for tensor in tensors.values()]
        copied = time.perf_counter() - began
        if do is not None:
            again.clear()
        began = time.perf_counter()
        if spilled is not None:
            spill(again, spilled)
        if do is not None:
            do()
        ratios.append((time.perf_counter() - began) / copied)
        again.clear()
    return sorted(ratios)[2]


def large_table() -> str:
    """Of both loops, phase by phase."""
    context = multiprocessing.get_context("spawn")
    found = []
    for grow in (False, True):
        answer = context.Queue()
        process = context.Process(target=large, args=(grow, answer))
        process.start()
        found.append(answer.get())
        process.join()
    (size, bare_peaks, _), (_, peaks, copies) = found
    base, _ = bare_peaks["trained"]
    lines = [
        f"| {size / 1e6:.0f} M parameters | peak, GB | bytes a parameter | pages of files | over the bare loop |",
        "|---|--:|--:|--:|--:|",
    ]
    told = {phase: found for phase, found in peaks.items() if phase not in ("made", "timed")}
    rows = {"bare loop": bare_peaks["trained"]} | {f"with Esper: {phase}": found for phase, found in told.items()}
    lines += [
        f"| {name} | {peak / 1e9:.2f} | {peak / size:.1f} | {pages / size:.1f} | {peak / base:.2f} |"
        for name, (peak, pages) in rows.items()
    ]
    said = [
        f"A rollback took {copies[0]:.2f} times as long as a copy of its state,",
        f"to put the best network into a file {copies[1]:.2f} times as long as a copy of it.",
    ]
    return "\n".join([*lines, "", *said])


def table(rows: list[tuple[str, str, float, float]]) -> str:
    lines = ["| host and validation | seeds | bare loop, MiB | with Esper, MiB | ratio |", "|---|---|--:|--:|--:|"]
    lines += [f"| {name} | {state} | {a:,.0f} | {b:,.0f} | {b / a:.2f} |" for name, state, a, b in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, metavar="PAGE", help="write the table between the marks of PAGE, too")
    parser.add_argument("--large", action="store_true", help="a host of 100 million parameters")
    given = parser.parse_args()
    into = given.into
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    if given.large:
        print(told := large_table())
        if into is not None:
            into_page(into, "large", told)
        return
    rows = []
    for row in peaks():
        print(*row[:2], f"{row[2]:.0f} MiB bare, {row[3]:.0f} MiB with Esper: {row[3] / row[2]:.2f}", flush=True)
        rows.append(row)
    if into is not None:
        into_page(into, "memory", table(rows))


if __name__ == "__main__":
    main()
