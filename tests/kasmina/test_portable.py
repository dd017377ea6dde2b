"""What exported models run on."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from esper.kasmina.portable import Grown, blank, fill, graft, read_tensors
from esper.kasmina.replay import same


def test_weights_are_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
    kinds.append(torch.complex64)
    saved: dict[str, Tensor] = {str(kind): (torch.randn(3, 5) * 3).to(kind) for kind in kinds}
    saved |= {"empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}
    save_file(saved, tmp_path / "x.safetensors", metadata={"made": "here"})
    assert same(dict(sorted(read_tensors(tmp_path / "x.safetensors").items())), dict(sorted(saved.items())))


class Talkative(nn.Module):
    """Takes keywords, gives a tuple, has attributes that its parent reads."""

    width = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> tuple[int, Tensor]:
        return 7, self.linear(x) * scale


def test_arguments_keywords_and_attributes_go_through() -> None:
    torch.manual_seed(0)
    module, seed, x = Talkative(), nn.Linear(4, 4), torch.randn(3, 4)
    grown = Grown(module, seed, alpha=0.25, position=(1,))
    count, out = grown(x, scale=2.0)
    h = module(x, scale=2.0)[1]
    # another order of the same products: a rounding of numbers near 1
    assert count == 7 and torch.allclose(out, 0.75 * h + 0.25 * seed(h), atol=1e-6)
    assert grown.width == 4 and grown.linear is module.linear
    assert not hasattr(grown, "height")


def test_a_shared_module_is_replaced_wherever_it_is_and_nested_paths_both_grow() -> None:
    inner = nn.Sequential(nn.Linear(2, 2))
    host = nn.ModuleDict({"a": inner, "b": nn.Sequential(inner)})
    seeds = {path: lambda module: Grown(module, nn.Identity()) for path in ("a", "a.0")}
    graft(host, seeds)
    assert isinstance(host["a"], Grown) and host["b"][0] is host["a"]
    assert isinstance(host["a"].module[0], Grown)


def test_buffers_that_are_not_saved_by_torch_are_filled_too() -> None:
    kinds = {"kept": ((2,), torch.float32, True), "left": ((2,), torch.float32, False), "none": None}
    module = blank(nn.Module, {"note": 3}, {"child": None}, {"weight": ((2,), torch.float32), "bias": None}, kinds)
    tensors = {name: torch.full((2,), value) for name, value in (("kept", 1.0), ("left", 2.0))}
    fill(module, tensors, {"weight": "left"})
    assert module.note == 3 and not module.training and module.bias is None and module.none is None
    assert module.weight.tolist() == [2.0, 2.0] and module.left.tolist() == [2.0, 2.0]
