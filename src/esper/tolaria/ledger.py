"""What a run costs: multiply-accumulates (MACs), exactly, and by purpose.

A MAC is one multiplication with its addition. Counted are matrix products, convolutions, recurrent layers and
attention; elementwise work, normalisation and pooling are not (the field's convention), nor are custom kernels. Causal
attention counts in full.

What a training step of a host takes is counted too, backward passes as well (:mod:`esper.tolaria.work`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Final

import torch
from torch import nn

from esper.kasmina.checkpointing import reentrant_ones_replaced
from esper.kasmina.macs import MacCounter, counting
from esper.leyline import DataError, UsageError


@dataclass(frozen=True, slots=True)
class Macs:
    """MACs of one example's forward pass: of everything, and ``inside`` each seed, by seed id."""

    forward: int
    inside: Mapping[str, int] = field(default_factory=dict)


def backward(forward: int) -> int:
    """MACs of the backward pass of a part in which all weights learn: their gradients, and those of its inputs."""
    return 2 * forward


def count(
    call: Callable[[], Any], examples: int, seeds: Mapping[str, nn.Module] | None = None, *, model: nn.Module
) -> Macs:
    """MACs per example of ``call()``, a forward pass of ``model`` over ``examples`` examples.

    ``seeds`` (seed id -> module) are counted on their own too, all calls together. The model runs in eval mode without
    gradients, and it and the random generators are left as they were. A share that does not divide (work that does not
    grow with the batch) is rounded up.
    """
    if examples < 1:
        raise UsageError(f"MACs are counted over at least 1 example, not {examples}")
    calls: dict[str, list[tuple[int, int]]] = {seed_id: [] for seed_id in seeds or {}}
    with ExitStack() as stack:
        stack.enter_context(_undisturbed(model))
        counter = stack.enter_context(counting())
        for seed_id, seed in (seeds or {}).items():
            _watch(stack, seed, counter, calls[seed_id])
        call()
    inside = {
        seed_id: share(sum(left - entered for entered, left in noted), examples)
        for seed_id, noted in calls.items()
        if noted
    }
    return Macs(share(counter.total, examples), inside)


@dataclass
class Ledger:
    """MACs since the episode began, by purpose, as integers. Work that was rolled back was still done and stays.

    ``of_seed`` is what each seed that is still in play cost so far, as a part of the other entries;
    ``discarded_seed_macs`` is that part of those that were pruned.
    """

    train_forward_macs: int = 0
    train_backward_macs: int = 0
    probe_macs: int = 0
    validation_macs: int = 0
    counterfactual_macs: int = 0
    discarded_seed_macs: int = 0
    test_macs: int = 0
    policy_macs: int = 0
    of_seed: dict[str, int] = field(default_factory=dict)

    @classmethod
    def begun(cls, spent: Mapping[str, int]) -> Ledger:
        """One in which that much is spent already, by purpose."""
        ledger = cls()
        for purpose, macs in spent.items():
            ledger.charge(purpose, macs)
        return ledger

    def charge(self, purpose: str, macs: int, seeds: Mapping[str, int] | None = None) -> None:
        """Add ``macs`` to ``purpose`` (``"train_forward"``, ``"probe"``, ...); ``seeds`` says how much of them each
        seed (by seed id) took."""
        name = f"{purpose}_macs"
        if name not in _PURPOSES:
            raise UsageError(f"unknown purpose {purpose!r}; legal: {', '.join(p[:-5] for p in _PURPOSES)}")
        taken = dict(seeds or {})
        if type(macs) is not int or macs < 0 or any(type(part) is not int or part < 0 for part in taken.values()):
            raise UsageError(f"MACs are non-negative integers, not {macs!r} and {taken!r}")
        if sum(taken.values()) > macs:
            raise UsageError(f"the seeds' {sum(taken.values())} MACs exceed the {macs} they are a part of")
        # a seed's part is noted now, though it counts as discarded only if the seed is pruned: nobody knows yet
        setattr(self, name, getattr(self, name) + macs)
        for seed_id, part in taken.items():
            self.of_seed[seed_id] = self.of_seed.get(seed_id, 0) + part

    def discard(self, seed_id: str) -> None:
        """The seed was pruned: what it cost was spent in vain."""
        self.discarded_seed_macs += self.of_seed.pop(seed_id, 0)

    @property
    def total_macs(self) -> int:
        """All purposes together; discarded seeds are a part of them and are not added again."""
        return sum(getattr(self, name) for name in _PURPOSES)

    def spent(self) -> dict[str, int]:
        """The keys of the ``COMPUTE_SPENT`` payload that end in ``_macs``."""
        entries = {name: getattr(self, name) for name in (*_PURPOSES, "discarded_seed_macs")}
        return {**entries, "total_macs": self.total_macs}

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)} | {"of_seed": dict(self.of_seed)}

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Ledger:
        """Undo of :meth:`state`. Raises :class:`DataError` when the entries differ."""
        expected = {entry.name for entry in fields(cls)}
        if set(state) != expected:
            raise DataError(f"a saved ledger differs in {', '.join(sorted(set(state) ^ expected))}")
        return cls(**{**state, "of_seed": dict(state["of_seed"])})


_PURPOSES: Final = tuple(
    entry.name for entry in fields(Ledger) if entry.name.endswith("_macs") and entry.name != "discarded_seed_macs"
)


def share(macs: int, examples: int) -> int:
    """MACs of one example of a batch."""
    # up, so that no work is free because its share of one example is small
    return -(-macs // examples)


def _watch(stack: ExitStack, seed: nn.Module, counter: MacCounter, calls: list[tuple[int, int]]) -> None:
    """Note the counter's reading whenever ``seed`` begins and ends."""
    begun: list[int] = []

    def begins(module: nn.Module, args: Any) -> None:
        begun.append(counter.total)

    def ends(module: nn.Module, args: Any, output: Any) -> None:
        calls.append((begun.pop(), counter.total))

    for handle in (seed.register_forward_pre_hook(begins), seed.register_forward_hook(ends)):
        stack.callback(handle.remove)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, forked RNG."""
    training = [module for module in model.modules() if module.training]
    with torch.no_grad(), torch.random.fork_rng(), reentrant_ones_replaced():
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True
