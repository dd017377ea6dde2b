"""A model with PEFT's adapters grows like any other, and is saved with its seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapters import Adapted, adapted, tokens
from kit import check_checkpoint, check_gradients, check_resume

import esper

pytestmark = [
    pytest.mark.usefixtures("without_figures", "fresh_state"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),  # transformers' old name, in PEFT
    pytest.mark.filterwarnings("ignore:save_pretrained.. of a Peft"),  # which is asked for below
]


@pytest.mark.slow
@pytest.mark.parametrize("check", [check_gradients, check_checkpoint, check_resume])
def test_adapters_under_the_trainer(check: object, tmp_path: Path) -> None:
    assert callable(check)
    check(Adapted(), tmp_path)


def test_what_save_pretrained_would_lose_is_told_and_kept(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"save_pretrained\(\) of a PeftModel writes adapters alone"):
        _, trainer, growth = Adapted().trained(tmp_path)
    row = tokens()[:2]
    loaded, grown = esper.apply(adapted(), growth.result.run_dir), growth.result.model
    trainer.model.eval()
    with torch.no_grad():
        told = [model(input_ids=row).logits for model in (loaded, grown, trainer.model)]
    assert torch.equal(told[0], told[1]) and torch.equal(told[1], told[2])
    assert any("seed" in name for name in loaded.state_dict())
