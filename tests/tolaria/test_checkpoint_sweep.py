"""What interrupted saves and deletions leave is removed, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from esper.tolaria import checkpoint
from esper.tolaria.checkpoint import save


def test_what_was_left_in_between_is_swept(tmp_path: Path) -> None:
    saved = save(tmp_path, 1, {"w": torch.ones(2)}, {}).path
    for name in (".ckpt-000009-step-00000018.saving", ".ckpt-000008-step-00000016.deleting"):
        shutil.copytree(saved, tmp_path / name)
    (tmp_path / ".mine").mkdir()
    checkpoint.sweep(tmp_path)
    checkpoint.sweep(tmp_path / "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", saved.name]
