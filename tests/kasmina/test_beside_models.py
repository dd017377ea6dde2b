"""LoRA inside models of transformers and timm is PEFT's: outputs, gradients, and the weights of what is exported."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import evaluated
from torch import Tensor, nn

from esper.kasmina.export import compare, export, save_export
from esper.kasmina.growing import GrowingModel
from esper.kasmina.incubation import probe_backward
from esper.kasmina.layer import Layer
from esper.kasmina.macs import counted
from esper.kasmina.structure import same, tensors
from esper.kasmina.trial import invoke
from esper.leyline import SeedStage

TOKENS = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(0))
PADDED = {"input_ids": TOKENS, "attention_mask": torch.tensor([[1] * 7, [1] * 7, [1] * 5 + [0] * 2])}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    # as BERT is drawn, its attention is so even that queries change nothing beyond rounding, and are not folded
    config = BertConfig(vocab_size=50, num_labels=3, initializer_range=0.2, **sizes)
    model: nn.Module = BertForSequenceClassification(config)
    return model


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    ends = {"bos_token_id": 1, "eos_token_id": 2}
    model: nn.Module = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, **ends))
    return model


def timm(name: str, **options: Any) -> nn.Module:
    import timm as package

    model: nn.Module = package.create_model(name, num_classes=4, **options)
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], Any, list[str]]] = {
    "bert, attention": (bert, PADDED, ["query", "value"]),
    "bert, table": (bert, PADDED, ["word_embeddings"]),
    "gpt2, weights turned": (gpt2, {"input_ids": TOKENS}, ["c_attn", "c_proj"]),
    "vit": (lambda: timm("vit_tiny_patch16_224", img_size=32, depth=2), IMAGES, ["qkv", "fc1"]),
    "resnet": (lambda: timm("resnet10t", zero_init_last=False), IMAGES, ["layer2.0.conv1", "layer3.0.conv2"]),
}


def first(output: Any) -> Tensor:
    return next(tensor for _, tensor in tensors(output))


def loss_of(output: Any) -> Tensor:
    return first(output).square().mean()


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def as_peft(peft: Any, model: GrowingModel, host: nn.Module, targets: list[str]) -> tuple[Any, dict[str, Any]]:
    """PEFT's own model on ``host`` with the weights of the seeds, and its layers by path."""
    config = peft.LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=targets, lora_dropout=0.0)
    wrapped = peft.get_peft_model(host, config).eval()
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in wrapped.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }
    assert set(layers) == {place.path for place in model.places.values()}
    with torch.no_grad():
        for slot_id, place in model.places.items():
            for (_, weight), (given, turned) in zip(
                model.slots[slot_id].named_parameters(), pair(layers[place.path], place.layout.layer), strict=True
            ):
                given.copy_(weight.T if turned else weight)
    return wrapped, layers


def pair(layer: Any, kind: Layer) -> list[tuple[Tensor, bool]]:
    """A and B as PEFT keeps them, and whether turned."""
    if kind is Layer.EMBEDDING:
        return [(layer.lora_embedding_A["default"], True), (layer.lora_embedding_B["default"], False)]
    return [(layer.lora_A["default"].weight, False), (layer.lora_B["default"].weight, False)]


@pytest.mark.slow  # imports transformers, timm and peft
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_seeds_are_pefts_lora(case: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    make, sample, targets = CASES[case]
    torch.manual_seed(0)
    host = make().eval()
    other = copy.deepcopy(host)
    macs = counted(lambda: invoke(other, sample))
    classes = [type(module) for module in other.modules()]
    model = GrowingModel.wrap(host, [f"+{target}" for target in targets], sample)
    with torch.no_grad():
        bare = invoke(model.host, sample)
        assert same(bare, invoke(other, sample))
    for slot in model.slots.values():
        assert slot.germinate("lora4").passed and slot.state is not None
        slot.state.stage, slot.state.alpha = SeedStage.HOLDING, 1.0
    with torch.no_grad():
        assert same(invoke(model.host, sample), bare)
    for parameter in (p for slot_id in model.slots for p in model.seed_parameters(slot_id)):
        nn.init.normal_(parameter, std=0.05)
    lora, layers = as_peft(peft, model, other, targets)

    for wrapped in (model.host, lora):
        loss_of(invoke(wrapped, sample)).backward()
    assert close(first(invoke(model.host, sample)), first(invoke(lora, sample)))
    for slot_id, place in model.places.items():
        for parameter, (given, turned) in zip(
            model.seed_parameters(slot_id), pair(layers[place.path], place.layout.layer), strict=True
        ):
            assert parameter.grad is not None and given.grad is not None and given.grad.any()
            assert close(parameter.grad, given.grad.T if turned else given.grad)

    last = list(model.slots)[-1]
    seed = list(model.seed_parameters(last))
    expected = [parameter.grad for parameter in seed]
    model.zero_grad()
    with model.record([last]) as tape:
        model.run(sample)
    probe_backward(model, tape, loss_of, last)
    assert all(close(p.grad, gradient) for p, gradient in zip(seed, expected, strict=True) if p.grad is not None)
    assert all(p.grad is not None for p in seed)

    configs = [{}, {last: 0.0}, dict.fromkeys(model.slots, 0.0)]
    outputs = evaluated(model, sample, configs).outputs
    assert same(outputs[2], bare) and not same(outputs[0], outputs[1])

    plain, merged = export(model, sample=sample), lora.merge_and_unload()
    assert [type(module) for module in plain.modules()] == classes
    assert counted(lambda: invoke(plain, sample)) == macs
    assert compare(model, plain, sample).same
    theirs = dict(merged.named_parameters())
    assert all(close(parameter, theirs[name]) for name, parameter in plain.named_parameters())
    assert not save_export(model, tmp_path, sample).unfolded
