"""Auditions: what empty places promise, measured while the host trains.

A candidate in every place learns for some steps, all of them together, on the batches that the host trains on, in
passes of their own behind it. What a place promises is the loss that its candidate took off: ``-g * step`` summed over
its parameters and steps, ``g`` being the gradient of the loss with all candidates in place. To first order these sum to
what all of them took off together, so that places which would learn the same share it, and no pass is made for one
place alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain, islice
from typing import Any, Final

import torch
from torch import Tensor

from esper.kasmina.growing import GrowingModel
from esper.kasmina.macs import counting
from esper.kasmina.promise import Candidates
from esper.kasmina.trial import mode
from esper.leyline import Promise
from esper.tolaria import ledger
from esper.tolaria.nested import State
from esper.tolaria.ranks import LONE, Ranks
from esper.tolaria.work import summed

STEPS: Final = 40
"""Most steps that candidates learn."""


class Audition:
    """Candidates that learn in one epoch. ``rate`` is the learning rate of their Adam."""

    def __init__(self, model: GrowingModel, chosen: Mapping[str, str], rate: float, ranks: Ranks = LONE) -> None:
        """Weights come from torch's global random stream. Raises what :class:`Candidates` raises."""
        self.candidates = Candidates(model, chosen)
        self.rate = rate
        self.steps = self.examples = 0
        self.taken: dict[str, float] = dict.fromkeys(chosen, 0.0)
        """By slot the loss that its candidate took off so far."""
        self._wanted = [each for slot_id in chosen for each in self.candidates.parameters(slot_id)]
        ranks.spread(self._wanted)
        self._optimizer = torch.optim.Adam(self._wanted, lr=rate)

    @property
    def due(self) -> bool:
        """Whether they learn from the next batch too."""
        return self.steps < STEPS

    def step(self, loss: Callable[[], Tensor], examples: int, scale: float = 1.0, ranks: Ranks = LONE) -> None:
        """One step of all candidates: ``loss()`` makes the pass anew. A gradient that is not finite makes none.

        Gradients are the mean over ``ranks``.
        """
        found = self.candidates.gradients(loss, scale)
        self.examples += examples
        for parameter, gradient in zip(self._wanted, chain.from_iterable(found.values()), strict=True):
            parameter.grad = gradient
        ranks.average(self._wanted)
        gradients = [parameter.grad for parameter in self._wanted]
        if not all(bool(torch.isfinite(each).all()) for each in gradients if each is not None):
            self._optimizer.zero_grad(set_to_none=True)
            return
        self.steps += 1
        before = [parameter.detach().clone() for parameter in self._wanted]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        moved = zip(gradients, before, self._wanted, strict=True)
        for slot_id, each in found.items():
            for gradient, old, new in islice(moved, len(each)):
                if gradient is not None:
                    self.taken[slot_id] -= float((gradient * (new.detach() - old)).sum())

    def macs(self, run: Callable[[], Any], examples: int) -> int:
        """MACs of one step for one example; ``run()`` is a pass of the model over ``examples`` examples."""
        with mode(self.candidates.model, False), counting() as counter:
            self.candidates.gradients(lambda: summed(run()))
        return ledger.share(counter.total, examples)

    def promises(self, macs: int) -> dict[str, tuple[str, Promise]]:
        """By slot, with the blueprint; ``macs`` is what the whole audition took. None where no step was made."""
        if not self.steps:
            return {}
        each = macs // len(self.taken)
        chosen = self.candidates.chosen
        return {slot_id: (chosen[slot_id], Promise(taken, self.steps, each)) for slot_id, taken in self.taken.items()}

    def state(self) -> State:
        """All it takes to go on in the midst of the epoch."""
        tensors: dict[str, Tensor] = {}
        for slot_id, seed in self.candidates.seeds.items():
            tensors |= {f"seed/{slot_id}/{name}": tensor.clone() for name, tensor in seed.state_dict().items()}
        for number, parameter in enumerate(self._wanted):
            for name, tensor in self._optimizer.state.get(parameter, {}).items():
                tensors[f"moment/{number}/{name}"] = tensor.clone()
        plain = {"chosen": self.candidates.chosen, "rate": self.rate, "steps": self.steps, "examples": self.examples}
        return {"tensors": tensors, "plain": plain | {"taken": dict(self.taken)}}

    @classmethod
    def load(cls, state: Mapping[str, Any], model: GrowingModel) -> Audition:
        """Undo of :meth:`state`."""
        plain, tensors = state["plain"], state["tensors"]
        with torch.random.fork_rng(devices=[]):
            audition = cls(model, plain["chosen"], plain["rate"])
        audition.steps, audition.examples = plain["steps"], plain["examples"]
        audition.taken = dict(plain["taken"])
        for slot_id, seed in audition.candidates.seeds.items():
            seed.load_state_dict({name: tensors[f"seed/{slot_id}/{name}"] for name in seed.state_dict()})
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "moment":
                number, _, moment = rest.partition("/")
                parameter = audition._wanted[int(number)]
                where = parameter.device if moment != "step" else tensor.device
                audition._optimizer.state[parameter][moment] = tensor.to(where).clone()
        return audition
