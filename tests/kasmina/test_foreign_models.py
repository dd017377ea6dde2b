"""Models that were not written for Esper: wrapped as they are, grown for two epochs, exported, run without Esper."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import evaluated
from safetensors.torch import save_file
from small_hosts import BLUEPRINT
from torch import Tensor, nn

from esper.kasmina.export import export, save_export
from esper.kasmina.growing import GrowingModel
from esper.kasmina.incubation import probe_backward
from esper.kasmina.replay import same
from esper.kasmina.structure import tensors
from esper.kasmina.trial import arguments
from esper.leyline import SeedStage

QUICK = {
    "mlp": """
from torch import nn
host = lambda: nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
sample = torch.rand(6, 64)
""",
    "transformer_encoder": """
from torch import nn
host = lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 3)
sample = torch.randn(4, 6, 16)
""",
    "cnn_1d": """
from torch import nn
block = lambda i, o: nn.Sequential(nn.Conv1d(i, o, 5, padding=2), nn.BatchNorm1d(o), nn.ReLU(), nn.MaxPool1d(2))
host = lambda: nn.Sequential(block(1, 8), block(8, 8), block(8, 8), nn.Flatten(), nn.Linear(40, 10))
sample = torch.randn(6, 1, 40)
""",
}

SLOW = {
    "lstm_classifier": """
from torch import nn
class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.lstm = nn.LSTM(16, 16, num_layers=2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(16, 5)
    def forward(self, tokens):
        return self.head(self.lstm(self.embed(tokens))[0][:, -1])
host = Classifier
sample = torch.randint(0, 30, (4, 9))
sites = ["embed", "lstm"]
""",
    "time_first_transformer": """
from torch import nn
host = lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32), 3, enable_nested_tensor=False)
sample = torch.randn(6, 4, 16)
""",
    "torchvision_resnet18": """
import torchvision
host = lambda: torchvision.models.resnet18(num_classes=4)
sample = torch.randn(3, 3, 32, 32)
""",
    "torchvision_mobilenet": """
import torchvision
host = lambda: torchvision.models.mobilenet_v3_small(num_classes=4)
sample = torch.randn(3, 3, 32, 32)
""",
    "torchvision_vit": """
import torchvision
host = lambda: torchvision.models.VisionTransformer(32, 8, 3, 4, 32, 64, num_classes=4)
sample = torch.randn(3, 3, 32, 32)
""",
    "timm_resnet": """
import timm
host = lambda: timm.create_model("resnet10t", num_classes=4)
sample = torch.randn(3, 3, 32, 32)
""",
    "timm_vit": """
import timm
host = lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=4, num_classes=4)
sample = torch.randn(3, 3, 32, 32)
""",
    "timm_convnext": """
import timm
host = lambda: timm.create_model("convnext_atto", num_classes=4)
sample = torch.randn(3, 3, 64, 64)
""",
    "timm_swin": """
import timm
small = dict(img_size=56, embed_dim=24, depths=(1, 1, 2, 1), num_heads=(2, 2, 2, 2), num_classes=4)
host = lambda: timm.create_model("swin_tiny_patch4_window7_224", **small)
sample = torch.randn(3, 3, 56, 56)
""",
    "transformers_bert": """
from transformers import BertConfig, BertModel
config = BertConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, vocab_size=50)
host = lambda: BertModel(config)
mask = torch.tensor([[1] * 7, [1] * 7, [1] * 5 + [0] * 2])
sample = {"input_ids": torch.randint(0, 50, (3, 7)), "attention_mask": mask}
""",
    "transformers_gpt2": """
from transformers import GPT2Config, GPT2LMHeadModel
config = GPT2Config(n_embd=32, n_layer=4, n_head=2, vocab_size=50, bos_token_id=1, eos_token_id=2)
host = lambda: GPT2LMHeadModel(config)
sample = {"input_ids": torch.randint(0, 50, (3, 7))}
""",
}

ALONE = """
import importlib.util, json, sys
import torch
sys.modules["esper"] = None
worst = {}
for name, (code, folder, needs_host) in json.load(sys.stdin).items():
    torch.manual_seed(0)
    space = {"torch": torch}
    exec(code, space)
    spec = importlib.util.spec_from_file_location(name, folder + "/model.py")
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    network = model.load(space["host"]) if needs_host else model.load()
    expected = model.read_tensors(folder + "/expected.safetensors")
    sample = space["sample"]
    with torch.no_grad():
        output = network(**sample) if isinstance(sample, dict) else network(sample)
    if not isinstance(output, torch.Tensor):
        output = output[0]
    worst[name] = float((output - expected["output"]).abs().max())
print(json.dumps(worst))
"""


def first(output: Any) -> Tensor:
    return next(tensor for _, tensor in tensors(output))


def loss_of(output: Any) -> Tensor:
    return (first(output) - 1.0).square().mean()


def made(code: str) -> dict[str, Any]:
    """What the code of a model defines, the host built."""
    torch.manual_seed(0)
    space: dict[str, Any] = {"torch": torch}
    exec(code, space)
    torch.manual_seed(1)
    return space | {"built": space["host"]()}


def grown(code: str) -> tuple[GrowingModel, Any]:
    """The model, wrapped, its logits compared, and grown for two epochs of a plain loop."""
    space = made(code)
    host, sample = space["built"].eval(), space["sample"]
    args, kwargs = arguments(sample)
    with torch.no_grad():
        bare = host(*args, **kwargs)
        model = GrowingModel.wrap(host, space.get("sites", "auto"), sample)
        assert same(model(*args, **kwargs), bare)
    slots = list(model.slots)
    assert len(slots) >= 2
    for slot in model.slots.values():
        assert slot.germinate(BLUEPRINT[slot.config.layout]).passed
        assert slot.state is not None
        slot.state.stage = SeedStage.TRAINING
    seeds = [parameter for slot_id in slots for parameter in model.seed_parameters(slot_id)]
    optimizer = torch.optim.SGD([{"params": model.host_parameters()}, {"params": seeds, "lr": 1e-2}], lr=1e-3)

    def epoch(probing: Iterable[str]) -> None:
        model.train()
        for _ in range(2):
            optimizer.zero_grad()
            with model.record(list(probing)) as tape:
                loss_of(model(*args, **kwargs)).backward()
            for slot_id in probing:
                probe_backward(model, tape, loss_of, slot_id)
            optimizer.step()
        model.eval()

    epoch(slots)
    with torch.no_grad(), model.alphas(dict.fromkeys(slots, 0.0)):
        without = model(*args, **kwargs)
    assert same(evaluated(model, sample, [{}]).outputs[0], without)
    for slot in model.slots.values():
        assert slot.state is not None
        slot.state.stage, slot.state.alpha = SeedStage.HOLDING, 1.0
    epoch([])
    return model, sample


def check_without_esper(models: dict[str, str], folder: Path) -> None:
    jobs = {}
    for name, code in models.items():
        model, sample = grown(code)
        configs = [{}, *({slot_id: 0.0} for slot_id in model.slots)]
        with torch.no_grad():
            args, kwargs = arguments(sample)
            for config, output in zip(configs, evaluated(model, sample, configs).outputs, strict=True):
                with model.alphas(config):
                    assert same(first(model(*args, **kwargs)), first(output)), (name, config)
            output = first(model(*args, **kwargs))
            # folded layers round otherwise, in single precision, layer after layer
            assert torch.allclose(first(export(model)(*args, **kwargs)), output, atol=1e-5)
        files = save_export(model, folder / name, sample)
        save_file({"output": output.clone()}, folder / name / "expected.safetensors")
        jobs[name] = (code, str(folder / name), files.needs_host)
    done = subprocess.run(
        [sys.executable, "-c", ALONE], input=json.dumps(jobs), capture_output=True, text=True, timeout=300, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    worst = json.loads(done.stdout.splitlines()[-1])
    assert worst.keys() == models.keys()
    assert all(difference <= 1e-5 for difference in worst.values()), worst


def test_three_models_of_plain_torch(tmp_path: Path) -> None:
    check_without_esper(QUICK, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SLOW)
def test_models_from_other_packages(name: str, tmp_path: Path) -> None:
    check_without_esper({name: SLOW[name]}, tmp_path)


def test_the_quick_models_are_hosts_as_they_come() -> None:
    for code in QUICK.values():
        assert type(made(code)["built"]) in (nn.Sequential, nn.TransformerEncoder)
