"""How many standard errors a difference must lie beyond 0 to be certain, however often one has looked at it.

A gate looks after every epoch, and within an epoch while validation is read. A bound that holds for one look does not
hold for the luckiest of many (Armitage, McPherson and Rowe 1969). What is here holds for all looks together: the chance
that any of them calls a gain certain which is not there is at most the error rate.

*Within one reading* of a share ``t`` of what there is, a sum of paired differences in standard errors of the whole is
a Brownian motion at time ``t`` to first order (the invariance principle behind asymptotic confidence sequences:
Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Ann. Statist. 52, 2024, definition 2.1 and theorem 2.2). That it ever
reaches ``c`` up to time 1 has the probability ``2 (1 - Phi(c))`` (reflection principle), so that a mean is certain at
any moment of stopping where it is ``c / sqrt(t)`` of its own standard errors above 0, with ``c`` the quantile of
``1 - a / 2``. That is the spending function ``a1*(t) = 2 - 2 Phi(z / sqrt(t))`` of Lan and DeMets (Biometrika 70,
1983), the one like O'Brien and Fleming's. It asks for much early and for little more than one look would in the end.

*Over epochs* the same examples are read of a model that has moved, and whatever the dependence of these looks a union
bound holds: each look spends a share of the error rate, and the shares sum to 1. The first looks, as many as a seed is
given while it may still be learning, have equal shares; later ones have less and less, without an end.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

_NORMAL: Final = NormalDist()


def error_rate(z: float) -> float:
    """Chance that a standard normal lies above ``z``."""
    return 1.0 - _NORMAL.cdf(z)


def spent(look: int, equal: int = 1) -> float:
    """Share of the error rate that look ``look`` (1, 2, ...) spends, where the first ``equal`` ones spend as much."""
    if look <= equal:
        return 1.0 / (equal + 1)
    later = look - equal
    return 1.0 / ((equal + 1) * later * (later + 1))


def standard_errors(z: float, share: float, read: float | None = None) -> float:
    """What a difference must be above 0, in its own standard errors, at a look that spends ``share``.

    ``z`` is what would be asked of the only look, and says the error rate of all of them; 0 asks for nothing but the
    sign. ``read`` is the share of what there was to read, where one looked while reading it; ``None`` is a reading that
    was looked at once, when it was over.
    """
    if z == 0.0:
        return 0.0
    rate = error_rate(z) * share
    if read is None:
        return _quantile(rate)
    return _quantile(rate / 2.0) / math.sqrt(read)


def _quantile(tail: float) -> float:
    return -_NORMAL.inv_cdf(tail) if tail > 0.0 else math.inf
