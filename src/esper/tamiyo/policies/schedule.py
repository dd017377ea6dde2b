"""A fixed schedule of growth: the baseline that a policy which decides must beat. Searching for the best one is
another's work (``esper bench``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from esper.leyline import WAIT, Blend, Decision, EnvSpec, EnvView, FactoredAction, Op, UsageError, unknown
from esper.tamiyo.policies.base import EnvPolicy
from esper.tamiyo.policies.evidence import bring_through, just_failed
from esper.tolaria.legality import why_illegal


@dataclass(frozen=True, slots=True)
class Entry:
    """Do ``action`` after ``epoch`` epochs, or as soon after that as it is legal."""

    epoch: int
    action: FactoredAction

    def to_dict(self) -> dict[str, Any]:
        """``{"epoch": ..., "op": ..., "slot": ...}``, JSON-able, without the heads that the op does not consume."""
        heads = {head: value for head, value in asdict(self.action).items() if value is not None}
        return {"epoch": self.epoch, **heads, "op": self.action.op.name}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Entry:
        """Undo of :meth:`to_dict`. ``op`` is GERMINATE where it is missing, and a germination's blend is linear, its
        tempo 1 and its alpha target 1 where they are. Raises ``UsageError`` for anything else that is not right.
        """
        legal = ("epoch", *(field.name for field in fields(FactoredAction)))
        for key in plain:
            if key not in legal:
                raise unknown("key of a schedule entry", key, legal)
        epoch = plain.get("epoch")
        if not isinstance(epoch, int) or epoch < 0:
            raise UsageError(f"schedule entry {dict(plain)}: epoch is {epoch!r}; a whole number from 0 is needed")
        heads = {key: value for key, value in plain.items() if key not in ("epoch", "op")}
        op = plain.get("op", Op.GERMINATE.name)
        if op not in Op.__members__:
            raise unknown("op of a schedule entry", str(op), Op.__members__)
        if Op[op] is Op.GERMINATE:
            heads = {"blend": Blend.LINEAR, "tempo": 1, "alpha_target": 1.0, **heads}
        if "blend" in heads:
            if heads["blend"] not in tuple(Blend):
                raise unknown("blend of a schedule entry", str(heads["blend"]), map(str, Blend))
            heads["blend"] = Blend(heads["blend"])
        return cls(epoch, FactoredAction(Op[op], **heads))


class SchedulePolicy(EnvPolicy):
    """Follows ``entries`` in their order, and brings what it grew through its gates: it asks for each gate as soon as
    the evidence would pass. A due entry goes before that; one that is not legal yet waits for the next epoch.
    """

    name = "schedule"

    def __init__(self, entries: Sequence[Mapping[str, Any] | Entry] = ()) -> None:
        self.entries = tuple(entry if isinstance(entry, Entry) else Entry.from_dict(entry) for entry in entries)
        self._open: list[list[int]] = []
        """Per env, the entries that have not succeeded yet."""
        self._asked: list[int | None] = []
        """Per env, the entry that was asked for last epoch."""

    def reset(self, specs: Sequence[EnvSpec]) -> None:
        """Begin every env's schedule anew."""
        self._open = [list(range(len(self.entries))) for _ in specs]
        self._asked = [None for _ in specs]

    def decide_env(self, env: int, view: EnvView) -> Decision:
        """The first due entry that is legal, else the next gate of a seed that would pass it, else WAIT."""
        asked, self._asked[env] = self._asked[env], None
        if asked is not None and not just_failed(view, self.entries[asked].action):
            self._open[env].remove(asked)
        waiting: str | None = None
        for i in self._open[env]:
            entry = self.entries[i]
            if entry.epoch > view.epoch:
                continue
            _check_names(view, entry.action)
            why = why_illegal(view, entry.action) or _why_refused(view, entry.action)
            if why is None:
                self._asked[env] = i
                return Decision(entry.action, f"schedule: due after epoch {entry.epoch}", (("epoch", view.epoch),))
            waiting = waiting or f"schedule: the entry due after epoch {entry.epoch} waits, since {why}"
        for slot in view.slots:
            decision = bring_through(view, slot)
            if decision is not None and not just_failed(view, decision.action):
                return decision
        return Decision(WAIT, waiting or "schedule: nothing is due, and no seed is ready for its gate")

    def state(self) -> dict[str, Any]:
        """Entries that are open, and the one that was asked for, per env."""
        return {"open": [list(entries) for entries in self._open], "asked": list(self._asked)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`."""
        self._open, self._asked = [list(entries) for entries in state["open"]], list(state["asked"])


def _why_refused(view: EnvView, action: FactoredAction) -> str | None:
    """What stood against ``action`` last epoch; it is asked for every other epoch, so that seeds get their turn."""
    if not just_failed(view, action) or view.last_outcome is None:
        return None
    return view.last_outcome.why_not or "it failed"


def _check_names(view: EnvView, action: FactoredAction) -> None:
    """Raises ``UsageError`` for a slot or a blueprint that the env will never have."""
    slots = [slot.slot_id for slot in view.slots]
    if action.slot is not None and action.slot not in slots:
        raise unknown("slot of a schedule entry", action.slot, slots)
    if action.blueprint is not None and action.blueprint not in view.blueprints:
        raise unknown("blueprint of a schedule entry", action.blueprint, view.blueprints)
