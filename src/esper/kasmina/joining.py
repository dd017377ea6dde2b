"""Several small batches in one pass of evaluation, where that gives their bits: a pass of a small host takes about as
long for thirty examples as for a hundred.

Nothing is taken on trust. For each number and size of batches, and for each kind of seed in each slot, the first ones
are run one by one as well and compared, and so are the second, fourth, eighth and so on: weights that were zero at
first hide what is behind them. Where a bit differs, since a product rounds otherwise in a larger batch, they are run
one by one from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from esper.kasmina.precision import Autocast
from esper.kasmina.replay import ConfigCost, evaluate_configs
from esper.kasmina.structure import same_bits
from esper.kasmina.trial import ForwardCall, device_of
from esper.leyline import AlphaConfig

if TYPE_CHECKING:
    from esper.kasmina.growing import GrowingModel

TakeOf = Callable[[int, int, Any], None]
"""``(number of the batch, number of the configuration, output)``"""


def evaluate_batches(
    model: GrowingModel, calls: Sequence[ForwardCall], n: int, configs: Sequence[AlphaConfig], take: TakeOf
) -> list[ConfigCost]:
    """As :func:`evaluate_configs` for each of several batches of ``n`` examples, on which the model is run in one way;
    what each took. A configuration's outputs come in the order of the batches.
    """
    if len(calls) == 1:
        return _apart(model, calls, configs, take)
    parts = {(part, n, len(calls), Autocast.now(device_of(model))) for part in _in_play(model, configs)}
    before = {part: model.alike.get(part, 0) for part in parts}
    if min(before.values()) < 0:
        return _apart(model, calls, configs, take)
    model.alike |= {part: times + 1 for part, times in before.items()}
    doubted = [part for part, times in before.items() if not times & (times + 1)]  # next comes a power of two
    if not doubted:
        return _joined(model, calls, n, configs, take)
    apart: dict[tuple[int, int], Any] = {}

    def kept(batch: int, i: int, output: Any) -> None:
        apart[batch, i] = output
        take(batch, i, output)

    costs = _apart(model, calls, configs, kept)
    if not _gives(model, calls, n, configs, apart):
        model.alike |= dict.fromkeys(doubted, -1)
    return costs


def _in_play(model: GrowingModel, configs: Sequence[AlphaConfig]) -> Iterator[tuple[str, str] | None]:
    """What has products of its own in one of the passes: slot and kind of a seed; the host is ``None``."""
    yield None
    for slot_id, slot in model.slots.items():
        for part in slot.parts():
            own = [config.get(slot_id) for config in configs] if part.seed is slot.seed else [None]
            if any((part.alpha if alpha is None else alpha) != 0.0 for alpha in own):
                yield slot_id, part.state.blueprint_id


def _apart(
    model: GrowingModel, calls: Sequence[ForwardCall], configs: Sequence[AlphaConfig], take: TakeOf
) -> list[ConfigCost]:
    return [
        evaluate_configs(model, call, configs, lambda i, output, batch=batch: take(batch, i, output))  # type: ignore[misc]
        for batch, call in enumerate(calls)
    ]


def _joined(
    model: GrowingModel, calls: Sequence[ForwardCall], n: int, configs: Sequence[AlphaConfig], take: TakeOf
) -> list[ConfigCost]:
    def divided(i: int, output: Any) -> None:
        for batch, part in enumerate(torch.split(output, n)):
            take(batch, i, part)

    whole = ForwardCall(torch.cat([call.inputs for call in calls]), calls[0].forward)
    return [evaluate_configs(model, whole, configs, divided)] * len(calls)


def _gives(
    model: GrowingModel,
    calls: Sequence[ForwardCall],
    n: int,
    configs: Sequence[AlphaConfig],
    apart: dict[tuple[int, int], Any],
) -> bool:
    """Whether joined batches give the bits that they gave ``apart``, by batch and configuration."""
    if not all(isinstance(output, Tensor) and output.ndim and len(output) == n for output in apart.values()):
        return False
    joined: dict[tuple[int, int], Tensor] = {}
    try:
        _joined(model, calls, n, configs, lambda batch, i, output: joined.__setitem__((batch, i), output))
    except Exception:  # a host that takes no larger batch may raise anything
        return False
    return joined.keys() == apart.keys() and all(same_bits(joined[each], apart[each]) for each in apart)
