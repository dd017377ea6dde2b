"""A small language model with LoRA adapters of PEFT, grown under the Trainer. Its text is this file."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from kit import EPOCHS, Script, Told, budget, choices, plain
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers_runs import HuggingFace, InOrder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from esper.stacks.transformers import GROWTH, GrowCallback

SITE = "base_model.model.model.layers.0"


@cache
def tokens() -> Tensor:
    """Rows of nine characters ``[48, 9]``."""
    read = torch.tensor(list(Path(__file__).read_bytes()))
    return (read[: 48 * 9] % 32).reshape(48, 9)


def batches(rows: Tensor) -> list[dict[str, Tensor]]:
    """By four."""
    return [{"input_ids": part, "labels": part} for part in rows.split(4)]


class Rows(Dataset[dict[str, Tensor]]):
    """A split, row by row."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[number], "labels": self.rows[number]}


def base() -> nn.Module:
    """A Llama of two layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def adapted() -> nn.Module:
    """Frozen, with adapters that learn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names in transformers that PEFT still uses
        model: nn.Module = get_peft_model(base(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    return model


def sgd(model: nn.Module) -> SGD:
    return SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.8)


@dataclass(frozen=True)
class Adapted(HuggingFace):
    """Under the Trainer."""

    near = {"rtol": 1e-3, "atol": 1e-6}
    """A sum over tokens that is divided, and their mean, round otherwise."""

    def plain(self, where: Path) -> Told:
        own = replace(choices("1", loss=None), at={"site": SITE})
        rows = tokens()
        return plain(
            where, self.way, adapted(), batches=batches(rows[:16]), loss=lambda grower, batch: grower.loss(batch),
            optimizer=sgd, choices=own, val=batches(rows[16:]),
        )  # fmt: skip

    def trained(
        self, where: Path, callbacks: Sequence[TrainerCallback] = (), checkpoint: Path | None = None
    ) -> tuple[Told, Trainer, GrowCallback]:
        model, told = adapted(), Told()
        optimizer = sgd(model)
        told.watch(optimizer)
        arguments = TrainingArguments(
            output_dir=str(where / "trainer"), num_train_epochs=EPOCHS, per_device_train_batch_size=4,
            per_device_eval_batch_size=4, max_grad_norm=0.0, use_cpu=True, report_to=[], disable_tqdm=True,
            logging_strategy="no", save_strategy="epoch",
        )  # fmt: skip
        trainer = InOrder(
            model,
            arguments,
            train_dataset=Rows(tokens()[:16]),
            eval_dataset=Rows(tokens()[16:]),
            optimizers=(optimizer, LambdaLR(optimizer, lambda step: 1.0)),
            callbacks=list(callbacks),
        )
        growth = GrowCallback(trainer, {"site": SITE}, budget(), policy=Script(), run_dir=where / "growth")
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return told, trainer, growth

    def read(self, checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any], bool]:
        saved = load_file(checkpoint / "adapter_model.safetensors")
        adapters = {name.replace(".weight", ".default.weight"): tensor for name, tensor in saved.items()}
        optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        return adapted().state_dict() | adapters, optimizer, (checkpoint / GROWTH).exists()

    def fresh(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = adapted()
        return model, sgd(model)
