"""Growing the rank of what is added beside linear layers, from rank 0: in every layer at once the directions that
would lower the loss most, with the amplitude that lowers it most.

    grow_rank(trainer, seed=7)

Verbockhaven et al., "Growing tiny networks: spotting expressivity bottlenecks and fixing them optimally" (2024), whose
optimal new neurons GroMo's GrowRA takes for adapters of a layer that is held. With ``x`` the inputs of the layer and
``g`` the gradients at its output, the wanted addition is the matrix of low rank nearest to ``-g`` on ``x``: with
``S = x'x = LL'`` and ``N = g'x`` the leading singular vectors of ``-N inv(L')``, times ``inv(L)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from esper.bench.plant import Planted, one_batch, plant
from esper.kasmina.blueprints.low_rank import LowRank
from esper.kasmina.promise import Candidates
from esper.kasmina.sites import site_of
from esper.kasmina.trial import mode
from esper.leyline import UsageError
from esper.tasks.base import TaskSpec
from esper.tolaria import ledger
from esper.tolaria.rng import derive, seeded
from esper.tolaria.trainer import Trainer

RANKING: Final = "growra"
"""The policy that adds rank at fixed times, for good."""
RANK: Final = 2
"""What is added at a time."""
BLUEPRINT: Final = f"lora{RANK}"
MOMENTS: Final = (0.1, 0.3, 0.5, 0.7)
"""When rank is added, as shares of the epochs."""
AMPLITUDES: Final = (0.0, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""What is tried, as multiples of the addition that undoes the gradients of the sum of the examples' losses. At 0 the
directions are there, and learn as an adapter does that is zero at birth."""
DAMPING: Final = 0.01
"""Added to the diagonal of ``S``, relative to its mean: there are fewer inputs in a batch than a wide layer has
channels."""


@dataclass(slots=True)
class _Seen:
    """What one pass shows of a place."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def check(task: TaskSpec) -> None:
    """Raises ``UsageError`` where a site of the task is not beside a linear layer that takes the rank."""
    host = task.host()
    for slot_id, written in task.sites.items():
        place = site_of(written)
        layer = host.get_submodule(place.path) if place.beside else None
        if not isinstance(layer, nn.Linear) or min(layer.weight.shape) < RANK:
            raise UsageError(
                f"arm {RANKING!r} grows beside linear layers alone, of {RANK} channels or more; of task {task.name!r} "
                f"{slot_id!r} is not"
            )


def grow_rank(trainer: Trainer, seed: int) -> float:
    """Add :data:`RANK` to what is beside each layer; returns the amplitude that was best on one batch of the training
    split. The work is booked as a probe's, of what is solved and decomposed the leading terms."""
    slots = [slot_id for slot_id, slot in trainer.model.slots.items() if slot.state is None]
    inputs, targets = one_batch(trainer)
    model, setup = trainer.model, trainer.setup
    with seeded(derive(seed, RANKING, trainer.completed)):
        candidates = Candidates(model, dict.fromkeys(slots, BLUEPRINT))
    seeds = {slot_id: _low_rank(candidates.seeds[slot_id]) for slot_id in slots}
    # a mean over some elements becomes the sum over examples, so that amplitudes mean the same whatever the batch
    scale = float(len(targets)) if isinstance(targets, Tensor) else 1.0

    def loss() -> Tensor:
        return setup.criterion(setup.forward(model, inputs), targets) * scale

    with mode(model, False):
        with candidates.standing():
            work = ledger.count(lambda: setup.forward(model, inputs), 1, model=model).forward
        macs = work + ledger.backward(work)
        with _watching(seeds) as seen:
            _differentiate(candidates, loss, seen)
        ups: dict[str, Tensor] = {}
        for slot_id, each in seeds.items():
            x, g = _flat(seen[slot_id].inputs), _flat(seen[slot_id].outputs)
            down, ups[slot_id] = directions(x, g, RANK)
            macs += _work(len(x), x.shape[1], g.shape[1])
            _set(each.down, down)
        losses = {}
        for amplitude in AMPLITUDES:
            _scaled(seeds, ups, amplitude)
            with torch.no_grad(), candidates.standing():
                losses[amplitude] = float(loss())
            macs += work
    best = min(AMPLITUDES, key=lambda amplitude: losses[amplitude] if math.isfinite(losses[amplitude]) else math.inf)
    _scaled(seeds, ups, best)
    trainer.ledger.charge("probe", macs)
    for slot_id, each in seeds.items():
        plant(trainer, [Planted(slot_id, BLUEPRINT, derive(seed, "planted", slot_id))])
        planted = model.slots[slot_id].seed
        assert planted is not None
        planted.load_state_dict(each.state_dict())
    return best


def directions(x: Tensor, g: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``down`` ``[rank, inputs]`` and ``up`` ``[outputs, rank]`` such that ``up @ down @ x`` is, among maps of that
    rank, nearest to ``-g`` for inputs ``x`` ``[n, inputs]`` and gradients ``g`` ``[n, outputs]``.

    Rows of ``down`` are as long as those of a layer that torch has drawn are on average, ``sqrt(1/3)``.
    """
    x, g = x.double(), g.double()
    gram = x.T @ x
    gram.diagonal().add_(DAMPING * gram.diagonal().mean() + torch.finfo(torch.float32).tiny)
    root = torch.linalg.cholesky(gram)
    wanted = torch.linalg.solve_triangular(root, -(x.T @ g), upper=False).T
    left, sizes, right = torch.linalg.svd(wanted, full_matrices=False)
    down = torch.linalg.solve_triangular(root.T, right[:rank].T, upper=True).T
    length = math.sqrt(3.0) * torch.linalg.vector_norm(down, dim=1)
    return down / length[:, None], left[:, :rank] * sizes[:rank] * length


def _work(n: int, inputs: int, outputs: int) -> int:
    """Leading terms of the MACs of :func:`directions`: the products, the root, what is solved, the decomposition
    (Golub and Van Loan, "Matrix computations", sections 4.2 and 8.6)."""
    products, root, solved = n * inputs * (inputs + outputs), inputs**3 // 6, inputs**2 * outputs // 2
    least = min(inputs, outputs)
    return products + root + solved + 7 * inputs * outputs * least + 5 * least**3


def _low_rank(seed: nn.Module) -> LowRank:
    assert isinstance(seed, LowRank)
    return seed


@contextmanager
def _watching(seeds: Mapping[str, LowRank]) -> Iterator[dict[str, _Seen]]:
    """Within, what each seed takes and gives is noted."""
    seen = {slot_id: _Seen() for slot_id in seeds}
    with ExitStack() as stack:
        for slot_id, seed in seeds.items():
            note = seen[slot_id]

            def noted(_: nn.Module, taken: Any, given: Tensor, note: _Seen = note) -> None:
                note.inputs.append(taken[0].detach())
                note.outputs.append(given)

            stack.callback(seed.register_forward_hook(noted).remove)
        yield seen


def _differentiate(candidates: Candidates, loss: Callable[[], Tensor], seen: Mapping[str, _Seen]) -> None:
    """One pass; what each seed gave is replaced by the gradient of the loss there."""
    with torch.enable_grad(), candidates.standing():
        outputs = loss(), [each for noted in seen.values() for each in noted.outputs]
    taken = iter(torch.autograd.grad(*outputs, allow_unused=True))
    for noted in seen.values():
        noted.outputs = [torch.zeros_like(given) if (g := next(taken)) is None else g for given in noted.outputs]


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([each.flatten(0, -2) for each in tensors])


def _scaled(seeds: Mapping[str, LowRank], ups: Mapping[str, Tensor], amplitude: float) -> None:
    for slot_id, seed in seeds.items():
        _set(seed.up, ups[slot_id] * (amplitude / seed.scale))


def _set(layer: nn.Module, weight: Tensor) -> None:
    (parameter,) = layer.parameters()
    assert parameter.shape == weight.shape
    with torch.no_grad():
        parameter.copy_(weight)
