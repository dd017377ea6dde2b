"""What a previous run has grown, tried first on new data: held as it is, and on unless evidence speaks against it.

Each seed of the previous run is judged by itself on the new validation split, before anything is trained: by the loss
of whole batches with and without it, paired. One that the network would certainly be better without is off in the new
run; it stays in the network, so that what the previous run delivered can be had again (:func:`as_before`). These
``1 + seeds`` passes over validation are the first entry of the new run's ledger, as counterfactuals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from esper.kasmina.portable import Grown
from esper.kasmina.reuse import take_over
from esper.kasmina.trial import device_of, mode, random_kept
from esper.leyline import UsageError
from esper.run.own import Budget, OwnModel
from esper.tolaria.ledger import count
from esper.tolaria.ranks import present
from esper.tolaria.setup import PRECISIONS


@contextmanager
def given_back(previous: Previous | None) -> Iterator[None]:
    """Within, an error before the first epoch is done makes the model what it was before it was taken over."""
    try:
        yield
    except BaseException:
        for undo in () if previous is None else previous.undo:
            undo()
        raise


def require_none(budget: Budget) -> None:
    """Raise ``UsageError`` where a loop of the user's own is to go on from a previous run: it has its optimizer."""
    if budget.previous is not None:
        raise UsageError(
            "Budget.previous is for grow(); in a loop of your own take esper.apply(model, run) and freeze it"
        )


@dataclass(frozen=True, slots=True)
class Judged:
    """What a seed of the previous run is worth on the new data."""

    cost: float
    """Loss added without it, mean over the batches of validation; positive when it helps."""
    se: float | None
    """Standard error of that; ``None`` where there was one batch."""

    def refuted(self, z: float) -> bool:
        """Whether the network is certainly better without it, by ``z`` standard errors."""
        return self.se is not None and self.cost + z * self.se < 0.0


@dataclass(frozen=True, slots=True)
class Previous:
    """A model that was made what ``run`` delivered."""

    run: Path
    seeds: Mapping[str, Grown]
    """By the name of the module around it."""
    undo: list[Callable[[], None]]
    """Makes the model what it was, while no epoch is done."""
    judges: bool = True
    """Whether the model can say what a seed is worth: not before a fresh part of it has learned."""

    @classmethod
    def of(cls, model: nn.Module, budget: Budget, optimizer: Optimizer | None = None) -> Previous | None:
        """Take over what the run ``budget.previous`` delivered, in place and frozen; ``None`` where none is named.

        Raises ``UsageError`` where it has grown nothing, an optimizer is there, whose parameters would be held, or
        several ranks are; the model is then as it was.
        """
        run = budget.previous
        if run is None:
            return None
        if optimizer is not None:
            raise UsageError("with Budget.previous new seeds alone learn: legal is Budget(lr=...), no optimizer")
        if present().count > 1:
            raise UsageError("Budget.previous is for one process: ranks would judge seeds on different examples")
        seeds, undo = take_over(model, run, budget.fresh)
        if not seeds:
            undo()
            raise UsageError(
                f"Budget.previous: {run} delivered no seed, so nothing can be tried on the new data; linear seeds stay"
                " apart from the weights beside which they grew by Budget(fold=False)"
            )
        return cls(Path(run), seeds, [undo], judges=not budget.fresh)

    def stays(self, *_: Any) -> None:
        """The model is no more what it was, whatever comes."""
        self.undo.clear()

    def try_on(self, own: OwnModel) -> tuple[OwnModel, dict[str, Any]]:
        """Judge every seed on the new validation split, and switch those off that are refuted.

        Returns the model with what that took in its set-up, and what a resume must find again, JSON-able.
        """
        found, macs = self._judged(own) if self.judges else ({}, 0)
        z = own.choices.budget.gates.confidence_z
        off = sorted(name for name, each in found.items() if each.refuted(z))
        for name in off:
            self.seeds[name].alpha = 0.0
        own = replace(own, setup=replace(own.setup, spent={"counterfactual": macs}))
        return own, {"previous": {"run": self.run.name, "kept": sorted(set(self.seeds) - set(off)), "off": off}}

    def _judged(self, own: OwnModel) -> tuple[dict[str, Judged], int]:
        """Paired losses, from ``1 + seeds`` passes over validation, in evaluation mode; and the MACs of those."""
        setup = own.setup
        host, device = setup.host, device_of(setup.host)
        precision = own.choices.precision
        cast = nullcontext() if precision is None else torch.autocast(device.type, PRECISIONS[precision])
        costs: dict[str, list[float]] = {name: [] for name in self.seeds}

        def loss(inputs: Any, targets: Any) -> float:
            with random_kept(device):
                return float(setup.criterion(setup.forward(host, inputs), targets))

        with mode(host, False), torch.no_grad(), cast, setup.splits["validation"].reading(None) as batches:
            for inputs, targets, _ in batches:
                whole = loss(inputs, targets)
                for name, grown in self.seeds.items():
                    alpha, grown.alpha = grown.alpha, 0.0
                    try:
                        costs[name].append(loss(inputs, targets) - whole)
                    finally:
                        grown.alpha = alpha
            macs = count(
                lambda: setup.forward(host, setup.sample),
                setup.sample_examples,
                {name: grown.seed for name, grown in self.seeds.items()},
                model=host,
            )
        judged = {
            name: Judged(fmean(each), stdev(each) / math.sqrt(len(each)) if len(each) > 1 else None)
            for name, each in costs.items()
        }
        each_example = (1 + len(self.seeds)) * macs.forward - sum(macs.inside.values())
        return judged, len(setup.splits["validation"]) * each_example
