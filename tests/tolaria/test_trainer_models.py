"""Models of Hugging Face as they are: their outputs are objects, and only ``forward`` knows how to call them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from users import close, gradients, plant, trainer_of

from esper.kasmina.export import compare, export, save_export
from esper.leyline import SeedStage

VOCABULARY = 24


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=16,
        )
    )


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
    )


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=8,
            patch_size=4,
            num_channels=1,
            num_labels=4,
        )
    )


def tokens() -> tuple[Tensor, Tensor]:
    x = torch.randint(1, VOCABULARY, (8, 7), generator=torch.Generator().manual_seed(0))
    return x, x.roll(-1, 1)


def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 1, 8, 8, generator=generator), torch.randint(0, 4, (8,), generator=generator)


def criterion(output: Any, targets: Tensor) -> Tensor:
    logits = output.logits
    return nn.functional.cross_entropy(logits if logits.ndim == 2 else logits.transpose(1, 2), targets)


Case = tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]], Callable[[Any, Tensor], Any], str]
CASES: dict[str, Case] = {
    "Llama": (llama, tokens, lambda model, x: model(input_ids=x), "model.layers.0"),
    "T5": (t5, tokens, lambda model, x: model(input_ids=x, labels=x), "decoder.block.0.layer.0"),
    "ViT": (vit, pictures, lambda model, x: model(pixel_values=x), "vit.layers.0"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_seed_learns_is_judged_and_is_exported_in(name: str, tmp_path: Path) -> None:
    make, data, forward, site = CASES[name]
    torch.manual_seed(0)
    host, (x, y) = make(), data()
    seen: list[type] = []

    def watched(output: Any, targets: Tensor) -> Tensor:
        if len(targets) == len(x):
            seen.append(type(output))
        return criterion(output, targets)

    trainer = trainer_of(host, (x, y), criterion=watched, forward=forward, site=site)
    plant(trainer)
    torch.autograd.backward(trainer.loss(x, y))
    trainer.after_backward()
    assert len(seen) == 2 and len(set(seen)) == 1 and seen[0].__name__.endswith("Output") or "With" in seen[0].__name__
    _, found = gradients(trainer)
    with trainer.model.alphas({"slot": 1.0}):
        loss = criterion(forward(host, x), y)
    expected = torch.autograd.grad(loss, list(trainer.model.seed_parameters("slot")))
    assert close(found, [each.double() for each in expected])

    state = trainer.model.slots["slot"].state
    assert state is not None
    state.stage, state.alpha = SeedStage.HOLDING, 1.0
    with_seed, without = trainer.evaluate([{}, {"slot": 0.0}], "validation").loss
    assert with_seed != without
    save_export(trainer.model, tmp_path, trainer.sample)
    host.eval()
    compared = compare(host, export(trainer.model), trainer.sample)
    assert compared.same and compared.tolerance == 1e-5
