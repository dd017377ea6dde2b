"""What a worker of Ray Train is given: data, one of which ends the worker that reads it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from torch.utils.data import TensorDataset

from own_loop import narrow, products

make_model = narrow


class Deadly(TensorDataset):
    """Kills the second rank in the midst of its fifth epoch, once."""

    def __init__(self, killed: Path | None) -> None:
        super().__init__(*products(64, 0))
        self.killed, self.read = killed, 0

    def __getitem__(self, number: Any) -> Any:
        import ray.train

        self.read += 1
        fatal = self.read == 32 * 4 + 20 and ray.train.get_context().get_world_rank() == 1
        if fatal and self.killed is not None and not self.killed.exists():
            self.killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(number)


VALIDATION = TensorDataset(*products(135, 1))
