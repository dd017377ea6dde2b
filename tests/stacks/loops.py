"""Loops without a framework, in the form that others gave them: a scaler, timm's, torchvision's, LoRA adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kit import EPOCHS, TRAIN, VALIDATION, Script, Told, Way, choices, optimizer_of, plain, warm_up
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from esper.library import Grower
from own_loop import LOSS, narrow

SMOOTHED = nn.CrossEntropyLoss(label_smoothing=0.1)


@cache
def mixed() -> list[Any]:
    """The training batches as timm's ``Mixup`` gives them."""
    from timm.data import Mixup

    mixup, state = Mixup(0.8, num_classes=4), np.random.get_state()
    np.random.seed(0)
    batches = [mixup(x.clone(), y) for x, y in TRAIN]
    np.random.set_state(state)
    return batches


@dataclass(frozen=True)
class Tools:
    """What a project brings to its loop beside torch."""

    batches: Callable[[], list[Any]] = lambda: TRAIN
    criterion: Callable[[Any, Tensor], Tensor] = LOSS
    clip: Callable[[Any, float], Any] = nn.utils.clip_grad_norm_
    average: Callable[[nn.Module], Any] = lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average_by: str = "update_parameters"


def timm_tools() -> Tools:
    """As timm's ``train.py``: mixed examples, soft targets, its clipping, its average."""
    from timm.loss import SoftTargetCrossEntropy
    from timm.utils import ModelEmaV3, dispatch_clip_grad

    return Tools(
        mixed, SoftTargetCrossEntropy(), dispatch_clip_grad,
        lambda model: ModelEmaV3(model, decay=0.9, exclude_buffers=True), "update",
    )  # fmt: skip


def torchvision_tools() -> Tools:
    """As torchvision's classification reference: smoothed labels, an average with buffers."""
    average = get_ema_multi_avg_fn(0.9)
    return Tools(criterion=SMOOTHED, average=lambda model: AveragedModel(model, multi_avg_fn=average, use_buffers=True))


class Loop:
    """A loop with ``torch.amp.GradScaler``, an average of the weights and a schedule."""

    def __init__(self, where: Path, way: Way, scaled: bool, tools: Tools) -> None:
        self.way, self.tools, self.told = way, tools, Told()
        self.model = narrow()
        self.optimizer = optimizer_of(self.model)
        self.told.watch(self.optimizer)
        self.schedule = warm_up(self.optimizer) if way.scheduled else None
        # a power of two: what it multiplies and divides is the same to the last bit
        self.scaler = torch.amp.GradScaler("cpu", 2.0**10, enabled=scaled)
        self.grower = Grower(
            self.model, self.optimizer, val=VALIDATION, choices=choices("1"), policy=Script(), run_dir=where / "loop"
        )

    def epoch(self) -> None:
        """One pass over the batches."""
        self.model.train()
        for number, (x, y) in enumerate(self.tools.batches(), start=1):
            loss = self.grower.loss(x, y, self.tools.criterion) / self.way.micro
            torch.autograd.backward(self.scaler.scale(loss))
            self.grower.after_backward()
            if number % self.way.micro:
                continue
            self.scaler.unscale_(self.optimizer)
            if self.way.clip is not None:
                self.tools.clip(self.model.parameters(), self.way.clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            getattr(self.average, self.tools.average_by)(self.model)
            if self.schedule is not None:
                self.schedule.step()
        self.grower.after_epoch()

    def train(self, until: int) -> None:
        """Within the grower's block."""
        self.average = self.tools.average(self.model)
        for _ in range(self.grower.view.epoch, until):
            self.epoch()

    def state(self) -> dict[str, Any]:
        """A checkpoint of the user's own."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "growth": self.grower.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Before the block."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.grower.load_state_dict(state["growth"])


@dataclass(frozen=True)
class Own:
    """A loop of one's own, with or without a scaler."""

    way: Way = Way()
    scaled: bool = True
    tools: Callable[[], Tools] = Tools

    def plain(self, where: Path) -> Told:
        tools = self.tools()
        return plain(
            where, self.way, batches=tools.batches(), loss=lambda grower, batch: grower.loss(*batch, tools.criterion)
        )

    def whole(self, where: Path) -> Told:
        loop = Loop(where, self.way, self.scaled, self.tools())
        with loop.grower:
            loop.train(EPOCHS)
        return loop.told

    def cut(self, where: Path) -> tuple[Path, int]:
        """Train until killed; the newest checkpoint, and the steps that it has seen."""
        loop, path = Loop(where, self.way, self.scaled, self.tools()), where / "checkpoint.pt"
        try:
            with loop.grower:
                loop.train(2)
                torch.save(loop.state(), path)
                loop.epoch()
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            return path, 2 * len(TRAIN) // self.way.micro

    def resumed(self, where: Path, checkpoint: Path) -> Told:
        loop = Loop(where, self.way, self.scaled, self.tools())
        loop.load(torch.load(checkpoint, weights_only=True))
        with loop.grower:
            loop.train(EPOCHS)
        return loop.told

    def read(self, checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any], bool]:
        """Weights and optimizer as the checkpoint has them, and whether seeds are in it."""
        saved = torch.load(checkpoint, weights_only=True)
        return saved["model"], saved["optimizer"], bool(saved["growth"])

    def fresh(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = narrow()
        return model, optimizer_of(model)
