"""The pages of ``docs/recipes``: their code is taken from them and run on small models that stand for the reader's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import Way, as_launched
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from own_loop import narrow, products
from ranks import on_ranks

ROOT = Path(__file__).parent.parent.parent
PAGES = ROOT / "docs" / "recipes"

pytestmark = [
    pytest.mark.usefixtures("without_figures", "fresh_state"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),  # Lightning's use of torch's trees
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),  # as it does when a fit goes on
    pytest.mark.filterwarnings("ignore:The number of training batches"),  # of its progress bar
    pytest.mark.filterwarnings("ignore:'pin_memory' argument"),  # Trainer's default, on a machine without accelerator
]


def code(name: str) -> str:
    """What a page has its reader write."""
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 40, f"{name}: a recipe is a page"
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE))


def images(n: int, seed: int) -> DataLoader[Any]:
    x = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size=8)


def vit() -> Any:
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=2)


def timm_vit() -> Any:
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=2
    )


def of_images(model: Callable[[], Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "model": model(), "train_loader": images(32, 0), "val_loader": images(64, 1), "epochs": 8, "classes": 2,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("page", "model"), [("torchvision", vit), ("timm", timm_vit)], ids=["torchvision", "timm"])
def test_loops_over_images(
    page: str, model: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = of_images(model)
    exec(code(page), names)
    result = names["grower"].result
    assert result.epoch >= 1 and result.model(next(iter(names["val_loader"]))[0]).shape == (8, 2)


def require_equal(found: list[Any]) -> None:
    """What the ranks give, trees of tensors, is the same bit for bit."""
    assert not isinstance(found[0], Exception | str) and found[0] is not None, found[0]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0.0, atol=0.0)


def vectors(n: int, seed: int) -> DataLoader[Any]:
    x, y = products(n, seed)
    return DataLoader(TensorDataset(x, y), batch_size=16)


@pytest.mark.slow
def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_runs import Module

    monkeypatch.chdir(tmp_path)
    names = {"module": Module(Way()), "fresh_module": Module(Way()), "epochs": 8}
    names |= {"train_loader": vectors(64, 0), "val_loader": vectors(128, 1)}
    exec(code("lightning"), names)
    assert names["growth"].result.epoch >= 1 and names["plain"](products(3, 2)[0]).shape == (3, 4)


def test_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers_runs import Examples, Model

    monkeypatch.chdir(tmp_path)
    names = {"model": Model(), "fresh_model": Model(), "epochs": 8}
    names |= {"train_set": Examples([products(64, 0)]), "val_set": Examples([products(128, 1)])}
    exec(code("transformers"), names)
    assert names["growth"].result.epoch >= 1 and names["grown"](products(3, 2)[0])["logits"].shape == (3, 4)


def test_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"model": narrow(), "epochs": 8, "train_loader": vectors(64, 0), "val_loader": vectors(128, 1)}
    exec(code("accelerate"), names)
    assert names["plain"](products(3, 2)[0]).shape == (3, 4)


@pytest.mark.slow
def test_transformers_in_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers_runs import Examples, Model

    monkeypatch.chdir(tmp_path)

    def follow(rank: int) -> Any:
        as_launched(2)
        names = {"model": Model(), "fresh_model": Model(), "epochs": 8}
        names |= {"train_set": Examples([products(64, 0)]), "val_set": Examples([products(135, 1)])}
        exec(code("transformers"), names)
        assert names["args"].world_size == 2
        return dict(names["grown"].state_dict())

    require_equal(on_ranks(2, tmp_path / "ranks", follow, joined=False))


@pytest.mark.slow
def test_accelerate_in_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def follow(rank: int) -> Any:
        as_launched(2)
        names = {"model": narrow(), "epochs": 8, "train_loader": vectors(64, 0), "val_loader": vectors(128, 1)}
        exec(code("accelerate"), names)
        assert names["accelerator"].num_processes == 2 and type(names["model"]) is DistributedDataParallel
        return dict(names["plain"].state_dict()), dict(names["model"].module.state_dict())

    require_equal(on_ranks(2, tmp_path / "ranks", follow, joined=False))


@pytest.mark.filterwarnings("ignore:save_pretrained.. of a Peft")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # transformers' old name, in PEFT
@pytest.mark.slow
def test_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapters import Rows, base, tokens

    monkeypatch.chdir(tmp_path)
    names = {
        "make_base": base,
        "epochs": 8,
        "train_set": Rows(tokens()[:16]),
        "val_set": Rows(tokens()[16:].repeat(3, 1)),
    }
    exec(code("peft"), names)
    row = tokens()[:2]
    with torch.no_grad():
        assert torch.equal(names["loaded"](input_ids=row).logits, names["grown"](input_ids=row).logits)
