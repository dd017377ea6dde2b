"""What data parallel costs over bare ``DistributedDataParallel``, on one machine over gloo.

    OMP_NUM_THREADS=1 uv run torchrun --standalone --nproc-per-node 2 benchmarks/ranks.py

A small GPT on random tokens; steps alternate between the two in blocks, in the same processes. Figures are medians of
the blocks' ratios of CPU seconds of all ranks, with the middle half of them, and bytes of gradients that a rank sends.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from esper.leyline import WAIT, Blend, Decision, EnvView, FactoredAction, GateThresholds, Op
from esper.library import Budget, Grower, OwnChoices
from esper.tamiyo.policies.base import EnvPolicy

BLOCKS, STEPS = 15, 6
TOKENS, LENGTH, WIDTH, BATCH = 256, 64, 128, 8
ANY = GateThresholds(
    min_training_epochs=1, min_gradient_ratio=0.0, min_gradient_health=0.0, confidence_z=0.0, ask_for_gain=False
)


class GPT(nn.Module):
    """Decoder of five blocks, about a million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(5)
        )
        self.head = nn.Linear(WIDTH, TOKENS)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place.weight
        for block in self.blocks:
            h = block(h, src_mask=self.mask)
        out: Tensor = self.head(h).mT
        return out


class Blending(EnvPolicy):
    """A seed that is blended in over a thousand epochs; or nothing."""

    name = "blending"

    def __init__(self, grow: bool) -> None:
        self.grow = grow

    def decide_env(self, env: int, view: EnvView) -> Decision:
        slot = view.slots[0]
        if not self.grow or view.epoch > 3:
            return Decision(WAIT, "")
        if view.epoch == 0:
            action = FactoredAction(Op.GERMINATE, slot.slot_id, "mlp", Blend.LINEAR, alpha_target=1.0, tempo=9)
            return Decision(action, "")
        return Decision(FactoredAction(Op.ADVANCE, slot.slot_id) if view.epoch == 2 else WAIT, "")


def batches(number: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    chance = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(TOKENS, (BATCH, LENGTH + 1), generator=chance) for _ in range(number)]
    return [(x[:, :-1], x[:, 1:]) for x in drawn]


def fresh() -> tuple[GPT, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = GPT()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def timed(block: Callable[[], None]) -> float:
    """CPU seconds of all ranks, those of threads that exchange gradients too."""
    dist.barrier()
    began = time.process_time()
    block()
    dist.barrier()
    took = torch.tensor(time.process_time() - began)
    dist.all_reduce(took)
    return float(took)


def compared(grow: bool, data: list[tuple[Tensor, Tensor]]) -> tuple[list[float], list[str], int]:
    """Ratios of the blocks' CPU seconds; the seed's stage in each; bytes of gradients a step."""
    loss_of = nn.CrossEntropyLoss()
    bare, bare_optimizer = fresh()
    wrapped = DistributedDataParallel(bare)
    model, optimizer = fresh()
    choices = OwnChoices(
        loss_of, metric="loss", at=["blocks.2"], device="cpu", budget=Budget(epochs=BLOCKS + 5, gates=ANY)
    )
    ratios, stages = [], []
    with tempfile.TemporaryDirectory() as folder:
        run = dist.get_rank() == 0 and str(Path(folder) / "run")
        told: list[Any] = [run]
        dist.broadcast_object_list(told, 0)
        grower = Grower(
            model, optimizer, val=batches(2, 99), choices=choices, policy=Blending(grow), run_dir=told[0]
        )  # fmt: skip
        with grower:

            def theirs() -> None:
                for x, y in data:
                    bare_optimizer.zero_grad()
                    torch.autograd.backward(loss_of(wrapped(x), y))
                    bare_optimizer.step()

            def ours() -> None:
                for x, y in data:
                    optimizer.zero_grad()
                    torch.autograd.backward(grower.loss(x, y))
                    grower.after_backward()
                    optimizer.step()

            for number in range(BLOCKS + 4):
                grower.begin_epoch()
                stage = grower.view.slots[0].stage.name
                sides = [theirs, ours] if number % 2 else [ours, theirs]
                took = {side.__name__: timed(side) for side in sides}
                if number >= 4:
                    ratios.append(took["ours"] / took["theirs"])
                    stages.append(stage)
                grower.after_epoch()
        size = sum(p.numel() * p.element_size() for group in optimizer.param_groups for p in group["params"])
        dist.barrier()
    return ratios, stages, size


def main() -> None:
    """Print the table on rank 0."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    data = batches(STEPS, dist.get_rank())
    for name, grow in (("without a seed", False), ("with one blending", True)):
        ratios, stages, size = compared(grow, data)
        if dist.get_rank() == 0:
            low, middle, high = statistics.quantiles(ratios, n=4)
            told = f"{middle:.3f} x bare DDP ({low:.3f} to {high:.3f}), {len(ratios)} blocks of {STEPS} steps"
            print(f"{name}: {told}; {', '.join(sorted(set(stages)))}; parameters {size / 1e6:.2f} MB", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
