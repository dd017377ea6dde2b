"""Policy pulse: which figures there are, and from where on they are a worry."""

from __future__ import annotations

from typing import Final

import msgspec

from esper.karn.parts import Level


class PulseRule(msgspec.Struct, frozen=True):
    """``threshold``, to be watched from there, and ``bad`` bound the figure, from below when ``low_is_bad``.

    ``None`` bounds nothing.
    """

    unit: str
    text: str
    threshold: float | None = None
    bad: float | None = None
    low_is_bad: bool = False

    def level(self, value: float) -> Level:
        """Verdict on a value; NaN is as bad as it gets."""
        if value != value:
            return "critical"
        for level, bound in (("bad", self.bad), ("watch", self.threshold)):
            if bound is not None and (value < bound if self.low_is_bad else value > bound):
                return level  # type: ignore[return-value]
        return "ok"


PULSE: Final = {
    "command_success": PulseRule("share", "commands that succeeded", 0.7, 0.4, low_is_bad=True),
    "gate_pass": PulseRule("share", "gate evaluations that passed", 0.2, 0.05, low_is_bad=True),
    "seeds_kept": PulseRule("share", "settled seeds that were kept", 0.2, 0.05, low_is_bad=True),
    "kl": PulseRule("nats", "KL of the last update", 0.05, 0.2),
    "clip_fraction": PulseRule("share", "ratios outside the clip range", 0.3, 0.5),
    "explained_variance": PulseRule("share", "variance of returns that V explains", 0.3, 0.0, low_is_bad=True),
    "grad_norm": PulseRule("", "gradient norm before clipping", 5.0, 10.0),
    "least_entropy": PulseRule("share", "the most decided head, of its greatest entropy", 0.1, 0.02, low_is_bad=True),
    "wait_share": PulseRule("share", "steps of the last round that waited", 0.95, 0.99),
    "entropy": PulseRule("nats", "entropy of the last update"),
    "mean_episode_return": PulseRule("", "mean return of the round's episodes"),
    "mean_objective_gain": PulseRule("", "mean gain of the objective over the round's episodes"),
    "lr": PulseRule("", "learning rate of the policy"),
    "update_time_ms": PulseRule("ms", "time that the last update took"),
}
"""Key of ``RunState.pulse`` -> rule. The first three are shares over the run so far, the rest of the last round."""
