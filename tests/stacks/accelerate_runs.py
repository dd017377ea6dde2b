"""A loop as Accelerate's documentation has it, with ``Grower`` in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from kit import EPOCHS, TRAIN, VALIDATION, Script, Told, Way, choices, optimizer_of, plain, warm_up
from safetensors.torch import load_file
from torch import Tensor, nn

from esper.library import Grower
from own_loop import narrow


def forget() -> None:
    """Accelerate keeps its state in the process, and knows one precision at a time."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


class Loop:
    """The user's loop."""

    def __init__(self, where: Path, way: Way) -> None:
        forget()
        self.way, self.told = way, Told()
        self.accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=way.micro, mixed_precision="bf16" if way.bf16 else "no"
        )
        model = narrow()
        optimizer = optimizer_of(model)
        self.told.watch(optimizer)
        self.scheduler = self.accelerator.prepare(warm_up(optimizer)) if way.scheduled else None
        self.model, self.optimizer, self.batches = self.accelerator.prepare(model, optimizer, TRAIN)
        self.grower = Grower(
            self.model,
            self.optimizer,
            val=VALIDATION,
            choices=replace(choices("1"), precision="bf16-mixed" if way.bf16 else None),
            policy=Script(),
            run_dir=where / "accelerate",
        )
        self.accelerator.register_for_checkpointing(self.grower)

    def epoch(self) -> None:
        """One pass over the batches."""
        accelerator = self.accelerator
        self.model.train()
        for x, y in self.batches:
            with accelerator.accumulate(self.model):
                accelerator.backward(self.grower.loss(x, y))
                self.grower.after_backward()
                if accelerator.sync_gradients and self.way.clip is not None:
                    accelerator.clip_grad_norm_(self.model.parameters(), self.way.clip)
                self.optimizer.step()
                if self.scheduler is not None:
                    self.scheduler.step()
                self.optimizer.zero_grad()
        self.grower.after_epoch()


@dataclass(frozen=True)
class Accelerated:
    """One way to train under Accelerate."""

    way: Way = Way()

    def plain(self, where: Path) -> Told:
        return plain(where, self.way)

    def whole(self, where: Path) -> Told:
        return self._trained(Loop(where, self.way))

    def _trained(self, loop: Loop) -> Told:
        with loop.grower:
            for _ in range(loop.grower.view.epoch, EPOCHS):
                loop.epoch()
        return loop.told

    def cut(self, where: Path) -> tuple[Path, int]:
        """Train until killed; the newest checkpoint, and the steps that it has seen."""
        loop = Loop(where, self.way)
        try:
            with loop.grower:
                loop.epoch()
                loop.epoch()
                loop.accelerator.save_state(where / "state")
                loop.epoch()
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            return where / "state", 2 * len(TRAIN) // self.way.micro

    def resumed(self, where: Path, checkpoint: Path) -> Told:
        loop = Loop(where, self.way)
        loop.accelerator.load_state(checkpoint)
        return self._trained(loop)

    def read(self, checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any], bool]:
        """Weights and optimizer as the checkpoint has them, and whether seeds are in it."""
        optimizer = torch.load(checkpoint / "optimizer.bin", weights_only=True)
        return (
            load_file(checkpoint / "model.safetensors"),
            optimizer,
            (checkpoint / "custom_checkpoint_0.pkl").stat().st_size > 1000,
        )

    def fresh(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = narrow()
        return model, optimizer_of(model)
