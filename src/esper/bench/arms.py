"""The arms: what grows, for how long, and what is tuned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from esper.bench.settings import Family
from esper.bench.topologies import SEARCHES, Searching
from esper.leyline import UsageError, unknown
from esper.tamiyo.policies.registry import policy_names


@dataclass(frozen=True, slots=True)
class Arm:
    """One competitor."""

    name: str
    what: str
    """For people."""
    family: Family
    topology: Literal["host", "full", "middle", "grown", "searched"] | None = None
    """What is there from the start, for arms that do not grow."""
    equal: bool = False
    """Whether it trains for as many multiply-accumulates as the grown run of the same seed."""
    policy: str = "static"
    """Who decides, for arms that grow."""

    @property
    def dependent(self) -> bool:
        """Whether it cannot be run before the grown run of the same seed."""
        return self.equal or self.topology == "grown"

    @property
    def grows(self) -> bool:
        """Whether its network changes while it trains."""
        return self.topology is None


@dataclass(frozen=True, slots=True)
class Rival:
    """How a host is adapted."""

    kind: Literal["lora", "dora", "adalora", "full"]
    rank: int = 0
    attention: bool = False
    """Whether only the maps to queries and values are; else every module beside which the task has a site."""


RIVALS: Final[Mapping[str, Rival]] = {
    **{f"lora{rank}-qv": Rival("lora", rank, attention=True) for rank in (4, 8, 16)},
    **{f"lora{rank}": Rival("lora", rank) for rank in (4, 8, 16)},
    "dora": Rival("dora", 8),
    "adalora": Rival("adalora", 8),
    "full": Rival("full"),
}
"""Arm -> what it is."""


HALVED: Final = "auto-half"
"""The arm that grows within half of what LoRA takes."""
SEARCHED: Final = "searched"
"""The topology of an arm that looks for one."""
_GROWRA = "rank added beside every linear layer in four steps, from none, where it would lower the loss most"
_BIRTHS: Final[Mapping[str, str]] = {
    "copied": "frugal, a seed born with the weights of the oldest of its kind",
    "one-step": "frugal's first seeds in all slots at once after an epoch, and no more",
    "promised": "in all slots the kind of the largest gradient at birth, before the first epoch, and no more",
}
"""Arm -> how its seeds come into being; what becomes of them frugal's rules decide."""
_GRADMAX = "in every slot the seed and the draw with the largest gradient norm at birth, at a fixed time"


def _told(rival: Rival) -> str:
    if rival.kind == "full":
        return "all weights of the host, fine-tuned"
    title = {"lora": "LoRA", "dora": "DoRA", "adalora": "AdaLoRA"}[rival.kind]
    where = "the maps to queries and values" if rival.attention else "every module beside which there is a site"
    return f"{title} of rank {rival.rank} in {where}, by PEFT"


def _sought(how: Searching) -> str:
    return f"topologies by {'TPE and Hyperband' if how.tpe else 'random search'}, as many MACs, discarded ones included"


def _family(rival: Rival) -> Family:
    return Family.FULL if rival.kind == "full" else Family.ADAPTER


ARMS: Final[Mapping[str, Arm]] = {
    arm.name: arm
    for arm in (
        Arm("small", "the host alone", Family.HOST, "host"),
        Arm("small-equal", "the host alone, as many MACs as the grown run", Family.HOST, "host", equal=True),
        Arm("large", "every slot filled with the largest seed, from scratch", Family.SCRATCH, "full"),
        Arm("large-equal", "the same, as many MACs as the grown run", Family.SCRATCH, "full", equal=True),
        Arm("all-sites", "a seed of the middle size in every slot, from the start", Family.SCRATCH, "middle"),
        Arm("retrained", "the end topology of the grown run, from scratch", Family.SCRATCH, "grown"),
        Arm("retrained-equal", "the same, as many MACs as the grown run", Family.SCRATCH, "grown", equal=True),
        Arm("random", "random growth, kept on evidence", Family.POLICY, policy="nurtured"),
        Arm("schedule", "the best fixed schedule, found on other seeds", Family.POLICY, policy="schedule"),
        Arm("heuristic", "growth by rules on counterfactual evidence", Family.POLICY, policy="heuristic"),
        Arm(
            "frugal",
            "the heuristic with seeds of a third of the largest one's size first",
            Family.POLICY,
            policy="frugal",
        ),
        Arm("grafted", "the same, with seeds that are grafted", Family.POLICY, policy="grafted"),
        *(Arm(name, what, Family.POLICY, policy=name) for name, what in _BIRTHS.items()),
        Arm("joint", "seeds of a third in all slots at once, pruned in the end", Family.INSERTION, policy="joint"),
        Arm("blind", "the heuristic without counterfactuals: whatever grew is kept", Family.POLICY, policy="blind"),
        Arm("net2net", "largest seeds as identities, all at a fixed time", Family.INSERTION, policy="net2net"),
        Arm("gradmax", _GRADMAX, Family.INSERTION, policy="gradmax"),
        Arm("stacked", "copies of all blocks behind them, all at a fixed time", Family.STACKING, policy="stacked"),
        Arm("growra", _GROWRA, Family.PLACED, policy="growra"),
        Arm("policy", "a saved policy", Family.POLICY, policy="policy"),
        Arm("auto", "growth where it promises most", Family.PLACED, policy="auto"),
        Arm(HALVED, "the same, of at most half of lora8's parameters", Family.PLACED, policy="auto"),
        *(Arm(name, _sought(how), Family.SEARCH, SEARCHED, equal=True) for name, how in SEARCHES.items()),
        *(Arm(name, _told(rival), _family(rival), "host") for name, rival in RIVALS.items()),
    )
}

_ASKED_FOR: Final = (
    "small-equal",
    "all-sites",
    "grafted",
    *_BIRTHS,
    "joint",
    "stacked",
    "growra",
    "policy",
    "auto",
    HALVED,
    *SEARCHES,
)
FULL: Final = tuple(name for name in ARMS if name not in (*_ASKED_FOR, *RIVALS))
QUICK: Final = ("small", "large-equal", "retrained-equal", "frugal")
_NOT_GROWING: Final = ("static",)
LARGE_EQUAL: Final = "large-equal"
RETRAINED_EQUAL: Final = "retrained-equal"


def chosen(names: Iterable[str], grown: str) -> tuple[Arm, ...]:
    """The arms of these names in the order of :data:`ARMS`, and ``grown`` among them; then policies by their names.

    Raises ``UsageError`` for an unknown name, or where ``grown`` does not grow.
    """
    wanted = {*names, grown}
    policies = {
        name: Arm(name, f"growth by the policy {name}", Family.POLICY, policy=name)
        for name in policy_names()
        if name not in (*ARMS, *_NOT_GROWING)
    }
    known = {**ARMS, **policies}
    for name in sorted(wanted):
        if name not in known:
            raise unknown("arm", name, known)
    if not known[grown].grows:
        legal = ", ".join(arm.name for arm in known.values() if arm.grows)
        raise UsageError(f"arm {grown!r} does not grow, nothing can be held to its compute; legal: {legal}")
    return tuple(arm for name, arm in known.items() if name in wanted)
