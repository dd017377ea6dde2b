"""Learning rates as pure functions of time.

Time is counted in epochs since the run began, fractions included; ``total`` is the length of the run. Each function
gives a *factor* of the base learning rate. The host follows one cosine; each seed follows its own from its birth to
the end of the run. In pilots a newcomer's own rate and a restarted cosine were worth 3 to 6 points of accuracy, more
than anything else tried. Cosine annealing with restarts: Loshchilov and Hutter, SGDR, ICLR 2017, equation 5.

``wsd`` is warm-up, stable, decay (Hu et al., MiniCPM, 2024, section 4.2): one constant rate while the network grows and
one decay, which begins after the last growth, for the host and all seeds alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from esper.leyline import UsageError


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """How learning rates move. Lengths are in epochs, factors are shares of a base rate."""

    shape: Literal["cosine", "constant", "wsd", "external"] = "cosine"
    """``external``: somebody else moves the host's rates, and a seed's is ``seed_multiplier`` times its neighbours'."""
    granularity: Literal["batch", "epoch"] = "batch"
    warmup: float = 0.0
    """Linear warm-up of the host."""
    seed_warmup: float = 0.0
    """Linear warm-up of each seed, from its birth."""
    warmup_start: float = 0.1
    """Factor that a warm-up starts from; above 0, since a step at rate 0 is wasted."""
    floor: float = 0.0
    """Factor at the end of the run."""
    seed_multiplier: float = 2.0
    """Base rate of a seed as a multiple of the host's."""
    host_restart: bool = False
    """Whether the host's cosine starts again from its peak whenever a seed is born."""
    decay: float = 0.2
    """Share of the run, at its end, in which a ``wsd`` rate falls; the rest of the run where a seed is born in it."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("warmup", 0.0, math.inf),
            ("seed_warmup", 0.0, math.inf),
            ("warmup_start", 0.0, 1.0),
            ("floor", 0.0, 1.0),
            ("seed_multiplier", 0.0, math.inf),
            ("decay", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} of a learning-rate schedule is {value}; legal: {low:g} to {high:g}")
        shapes = ("cosine", "constant", "wsd", "external")
        for name, legal in (("shape", shapes), ("granularity", ("batch", "epoch"))):
            if getattr(self, name) not in legal:
                raise UsageError(f"{name} of a learning-rate schedule is {getattr(self, name)!r}; legal: {legal}")


def moment(config: ScheduleConfig, epoch: int, batch: int, batches: int) -> float:
    """Time of a step, in epochs: ``epoch`` counts the completed ones and ``batch`` those of this epoch's ``batches``.

    At epoch granularity all steps of an epoch share the time of its first.
    """
    return epoch + batch / batches if config.granularity == "batch" else float(epoch)


def factor(config: ScheduleConfig, time: float, total: float, *, start: float = 0.0, warmup: float = 0.0) -> float:
    """Warm-up from ``start``, then the shape of the schedule down to ``floor`` at ``total``.

    >>> factor(ScheduleConfig(), time=5, total=10)
    0.5
    """
    age = time - start
    if age < warmup:
        return config.warmup_start + (1.0 - config.warmup_start) * age / warmup
    if config.shape in ("constant", "wsd"):
        return 1.0
    length = total - start - warmup
    progress = min(1.0, (age - warmup) / length) if length > 0 else 1.0
    return config.floor + (1.0 - config.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def decayed(config: ScheduleConfig, time: float, total: float, births: Iterable[float]) -> float:
    """Factor of a ``wsd`` schedule after warm-up: 1, then straight down to ``floor`` at ``total``.

    It begins to fall when the last ``decay`` of the run does, but not before the latest of ``births`` so far and the
    warm-up after it.
    """
    past = [birth + config.seed_warmup for birth in births if 0.0 < birth <= time]
    begin = min(total, max([total * (1.0 - config.decay), *past]))
    if time <= begin:
        return 1.0
    return (
        config.floor + (1.0 - config.floor) * max(0.0, total - time) / (total - begin)
        if begin < total
        else config.floor
    )


def host_factor(config: ScheduleConfig, time: float, total: float, births: Iterable[float] = ()) -> float:
    """Factor of the host. With ``host_restart`` its cosine begins anew at the latest of ``births`` so far."""
    if config.shape == "wsd":
        return factor(config, time, total, warmup=config.warmup) * decayed(config, time, total, births)
    past = [birth for birth in births if 0.0 < birth <= time] if config.host_restart else []
    if past:
        return factor(config, time, total, start=max(past))
    return factor(config, time, total, warmup=config.warmup)


def seed_factor(config: ScheduleConfig, time: float, total: float, birth: float) -> float:
    """Factor of a seed born at ``birth``, relative to the seed's own base rate."""
    return factor(config, time, total, start=birth, warmup=config.seed_warmup)


def learning_rates(
    config: ScheduleConfig, time: float, total: float, births: Mapping[str, float], gone: Iterable[float] = ()
) -> tuple[float, dict[str, float]]:
    """Factors for :func:`esper.tolaria.surgery.set_rates`: the host's, and those of seeds.

    ``births`` are those of the live seeds, by seed id; ``gone`` those of pruned seeds, which restarted the host too.
    """
    every = (*births.values(), *gone)
    fall = decayed(config, time, total, every) if config.shape == "wsd" else 1.0
    seeds = {seed: seed_factor(config, time, total, birth) * fall for seed, birth in births.items()}
    return host_factor(config, time, total, every), seeds
