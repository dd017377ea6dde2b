"""A run of several ranks: what all are given alike, and whose policy decides."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from esper.kasmina.sharded import is_shard
from esper.leyline import Decision, EnvSpec, EnvView, Policy, UsageError
from esper.nissa.rundir import RunDirectory
from esper.run.play import Saveable
from esper.run.resume import CheckpointInfo
from esper.tasks.base import SplitSource
from esper.tolaria.missing import RankLost
from esper.tolaria.ranks import Ranks, checksums, digest, require_same

ON_OTHERS: Final = "on as many ranks or others"
"""A run goes on."""
NOTHING_LOST: Final = "nothing that was written is lost"
"""Where there is something to go on from."""
UNSEEN: Final = "no checkpoint is seen from here"
"""Where there is none on this machine's disks; rank 0, which writes them, may be on another."""


class Led:
    """The policy of rank 0, for all ranks: it decides there alone, and they are told."""

    def __init__(self, policy: Policy, ranks: Ranks) -> None:
        self.name = policy.name
        self._policy, self._ranks = policy, ranks

    def reset(self, specs: Sequence[EnvSpec]) -> None:
        """See :class:`esper.leyline.Policy`."""
        if self._ranks.rank == 0:
            self._policy.reset(specs)

    def decide(self, views: Sequence[EnvView]) -> list[Decision]:
        """See :class:`esper.leyline.Policy`."""
        return self._ranks.first(lambda: list(self._policy.decide(views)), "decision")


class SaveableLed(Led):
    """One that can be saved."""

    def state(self) -> dict[str, Any]:
        """See :class:`esper.run.play.Saveable`."""
        assert isinstance(self._policy, Saveable)
        return self._policy.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """See :class:`esper.run.play.Saveable`."""
        assert isinstance(self._policy, Saveable)
        self._policy.load(state)


def led(policy: Policy, ranks: Ranks) -> Policy:
    """The policy, as all ranks follow it."""
    if ranks.count == 1:
        return policy
    return SaveableLed(policy, ranks) if isinstance(policy, Saveable) else Led(policy, ranks)


def start_alike(ranks: Ranks, model: nn.Module, optimizer: Optimizer | None, splits: Mapping[str, SplitSource]) -> None:
    """Give all ranks the weights and buffers of rank 0.

    Raises ``UsageError`` where their models are not of one shape, their optimizers not alike, or their splits are not
    the same data: these are shared out here.
    """
    if ranks.count == 1:
        return
    told = {"the model": f"one of shape {digest_of(model)}"}
    for name, split in splits.items():
        with split.reading(None) as batches:
            told[f"the {name} data"] = "data " + _short(
                [(digest((inputs, targets)), n) for inputs, targets, n in batches]
            )
    if optimizer is not None:
        groups = [{key: value for key, value in each.items() if key != "params"} for each in optimizer.param_groups]
        told["the optimizer"] = f"a {type(optimizer).__name__} of {_short(groups)}"
    require_same(ranks, told)
    ranks.spread([each.detach() for each in (*model.parameters(), *model.buffers())])
    if optimizer is not None:
        held = [p for group in optimizer.param_groups for p in group["params"]]
        found = [sorted(checksums(_tensors(optimizer.state.get(each, {}))).items()) for each in held]
        require_same(ranks, {"the optimizer's state": _short(found)})


def digest_of(model: nn.Module) -> str:
    """Short digest of names, shapes and types of all parameters and buffers, and of what learns."""
    named = (*model.named_parameters(), *model.named_buffers())
    return _short([(name, tuple(each.shape), str(each.dtype), each.requires_grad) for name, each in named])


def _tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in state.items() if hasattr(value, "element_size") and not is_shard(value)}


def _short(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]


def check_shared_out(ranks: Ranks, loader: Any) -> None:
    """Raise ``UsageError`` for a ``DataLoader`` that gives every rank all examples."""
    if ranks.count == 1 or not isinstance(loader, DataLoader):
        return
    plain = type(loader.sampler) in (RandomSampler, SequentialSampler) and type(loader.batch_sampler) is BatchSampler
    if plain:
        raise UsageError(
            f"the training DataLoader gives each of {ranks.count} ranks all examples; legal: one that shares them out, "
            "DataLoader(dataset, batch_size=..., sampler=DistributedSampler(dataset))"
        )


def tell(lost: RankLost, how: str) -> None:
    """Say what to do about it, at once: a launcher that has noticed ends the other processes, too."""
    lost.args = (f"{lost}; {how}",)
    with suppress(OSError):
        os.write(2, f"\nesper: {lost}\n".encode())
        lost.told = True


def how_to_go_on(about: CheckpointInfo | None, run: RunDirectory) -> str:
    """What to do where a rank was lost; ``about`` is what checkpoints say of the run, if it writes any."""
    if about is None:
        return f"{NOTHING_LOST}: load the last grower.state_dict() that you saved, {ON_OTHERS}"
    if not any(run.checkpoints.glob("ckpt-*")):
        return f"{UNSEEN}, in {run.checkpoints} (Budget.checkpoint_every); without one it begins anew"
    return f"{NOTHING_LOST}: {about.to_go_on(run.path)} from its last checkpoint, {ON_OTHERS}"
