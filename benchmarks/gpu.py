"""What is built for a GPU, checked on one: no wait in a training step, memory, exact resumes and rollbacks, bf16.

    uv run python benchmarks/gpu.py [--device cuda:0] [--into PAGE]

Takes some minutes. ``--device cpu`` makes the same runs where there is no GPU, without the checks that need one. A
table is printed, with a row for each check; the exit status is 1 where one failed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from memory import GPT, Batches, Sowing
from torch import nn

from esper.bench.report import into_page
from esper.leyline import GateThresholds
from esper.library import Budget, Grower, OwnChoices

EPOCHS: Final = 6
STEPS: Final = (12, 3)
"""Of an epoch, on a GPU and on the CPU."""
OPEN: Final = GateThresholds(
    min_training_epochs=1, min_gradient_ratio=0.0, min_gradient_health=0.0, confidence_z=0.0, ask_for_gain=False
)
Row = tuple[str, str, bool]
"""What was checked, what was found, whether it is as it should be."""


def model_on(device: str) -> nn.Module:
    torch.manual_seed(0)
    width, heads, blocks = (64, 2, 3) if device == "cpu" else (256, 4, 4)
    return GPT(1024, width, heads, blocks, 64).to(device)


def batches_on(device: str, count: int, seed: int) -> Batches:
    chance = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(1024, (16, 65), generator=chance).to(device) for _ in range(count)]
    return [(x[:, :-1].contiguous(), x[:, 1:].contiguous()) for x in drawn]


def ready(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def peak(device: str) -> int:
    return 0 if device == "cpu" else torch.cuda.max_memory_allocated(device)


@contextmanager
def no_wait(device: str) -> Iterator[None]:
    """Within, CUDA raises where the host waits for it."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Loop:
    """A loop of one's own, with seeds behind the host that are blended in."""

    def __init__(self, device: str, where: Path, precision: torch.dtype | None = None) -> None:
        self.device, self.where, self.precision = device, where, precision
        self.model = model_on(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3)
        budget = Budget(epochs=EPOCHS, parameters=10**7, gates=OPEN)
        choices = OwnChoices(nn.CrossEntropyLoss(), at=["blocks.1", "blocks.2"], budget=budget, device=device)
        self.grower = Grower(
            self.model, self.optimizer, val=batches_on(device, 4, 99), choices=choices,
            policy=Sowing("mlp", blend=True), run_dir=where,
        )  # fmt: skip
        self.train = batches_on(device, STEPS[device == "cpu"], 7)
        self.losses: list[float] = []
        self.step_seconds: list[float] = []

    def epochs(self, count: int, guarded: bool = False) -> None:
        for _ in range(count):
            self.grower.begin_epoch()
            for number, batch in enumerate(self.train):
                ready(self.device)
                began = time.perf_counter()
                if guarded and number:  # gradients are measured in the first
                    with no_wait(self.device):
                        self.step(*batch)
                else:
                    self.step(*batch)
                ready(self.device)
                self.step_seconds.append(time.perf_counter() - began)
            self.losses.append(float(self.grower.after_epoch().train.loss))

    def step(self, x: Any, y: Any) -> None:
        self.optimizer.zero_grad()
        kind = self.device.partition(":")[0]
        with torch.autocast(kind, self.precision or torch.bfloat16, enabled=self.precision is not None):
            loss = self.grower.loss(x, y)
        torch.autograd.backward(loss)
        self.grower.after_backward()
        self.optimizer.step()


def weights(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def steps(device: str, folder: Path) -> Iterator[Row]:
    """A whole run with the guard on, twice."""
    first = Loop(device, folder / "a")
    with first.grower:
        first.epochs(EPOCHS, guarded=True)
        state = first.grower.state_dict()["tensors"]
    if device != "cpu":  # where one is made, CUDA has raised
        yield "no wait in a step with seeds behind the host and blended in", "none", True
    away = [name for name, tensor in state.items() if tensor.device.type != "cpu"]
    good = [tensor for name, tensor in state.items() if "/governor/" in name and "/model/" in name]
    pinned = sum(tensor.is_pinned() for tensor in good)
    if device != "cpu":
        told = f"{pinned} of {len(good)} tensors pinned, {len(away)} elsewhere"
        yield "the last good state is on the host, pinned", told, not away and pinned == len(good)
    again = Loop(device, folder / "b")
    with again.grower:
        again.epochs(EPOCHS)
    yield "two runs of one seed are the same", str(again.losses == first.losses), again.losses == first.losses


def resumed(device: str, folder: Path) -> Iterator[Row]:
    whole, begun = Loop(device, folder / "c"), Loop(device, folder / "d")
    with whole.grower:
        whole.epochs(EPOCHS)
    with begun.grower:
        begun.epochs(3)
        saved = begun.grower.state_dict()
        torch.save(saved, folder / "growth.pt")
        trainer = begun.grower._engine.trainer(0)
        good, before = trainer.state(), weights(begun.model)
        for batch in begun.train:
            begun.step(*batch)
        moved = not alike(before, weights(begun.model))
        trainer.rewind(good)
        back = alike(before, weights(begun.model))
    yield "a rollback gives the weights back bit for bit", f"moved {moved}, back {back}", moved and back
    on = Loop(device, folder / "d")
    on.grower.load_state_dict(torch.load(folder / "growth.pt", weights_only=True))
    with on.grower:
        on.epochs(EPOCHS - 3)
    same = on.losses == whole.losses[3:] and alike(weights(on.model), weights(whole.model))
    yield "what goes on from a state is the uninterrupted run", f"losses {on.losses == whole.losses[3:]}", same


def bare(device: str) -> tuple[float, int]:
    """Median seconds of a step without Esper, and the peak of memory in bytes."""
    model, train = model_on(device), batches_on(device, STEPS[device == "cpu"], 7)
    optimizer, loss_of, took = torch.optim.AdamW(model.parameters(), 1e-3), nn.CrossEntropyLoss(), []
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):
        for x, y in train:
            ready(device)
            began = time.perf_counter()
            optimizer.zero_grad()
            torch.autograd.backward(loss_of(model(x), y))
            optimizer.step()
            ready(device)
            took.append(time.perf_counter() - began)
    return statistics.median(took), peak(device)


def costs(device: str, folder: Path) -> Iterator[Row]:
    seconds, memory = bare(device)
    loop = Loop(device, folder / "e")
    with loop.grower:
        loop.epochs(1)
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats(device)
        loop.step_seconds.clear()
        loop.epochs(EPOCHS - 1)
        taken = peak(device)
    ratio = statistics.median(loop.step_seconds) / seconds
    yield "a step with two seeds, over a bare one", f"{ratio:.2f} x", True
    if memory:
        yield "device memory with two seeds, over the bare loop's", f"{taken / memory:.2f} x", taken <= 1.15 * memory


def precise(device: str, folder: Path) -> Iterator[Row]:
    loop = Loop(device, folder / "f", torch.bfloat16)
    with loop.grower:
        loop.epochs(EPOCHS, guarded=True)
    finite = all(map(torch.isfinite, torch.tensor(loop.losses)))
    yield "bf16 under autocast", f"training loss {loop.losses[0]:.3f} to {loop.losses[-1]:.3f}", bool(finite)


CHECKS: Final[tuple[Callable[[str, Path], Iterator[Row]], ...]] = (steps, resumed, costs, precise)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="write the table between the marks of PAGE, too")
    given = parser.parse_args()
    if given.device != "cpu" and not torch.cuda.is_available():
        sys.exit("there is no GPU here, so that nothing was checked; --device cpu makes the runs without its checks")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for check in CHECKS:
            for row in check(given.device, Path(folder)):
                rows.append(row)
                print(*row[:2], "ok" if row[2] else "FAILED", sep=": ", flush=True)
    where = "the CPU" if given.device == "cpu" else torch.cuda.get_device_name(given.device)
    lines = [f"On {where}, torch {torch.__version__}.", "", "| checked | found | |", "|---|---|---|"]
    lines += [f"| {what} | {found} | {'ok' if good else 'FAILED'} |" for what, found, good in rows]
    if given.into is not None:
        into_page(given.into, "gpu", "\n".join(lines))
    sys.exit(0 if all(good for _, _, good in rows) else 1)


if __name__ == "__main__":
    main()
