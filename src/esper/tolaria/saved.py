"""Envs of an episode as they were between two epochs, apart from the executor that they were saved from.

The layout of what :meth:`~esper.tolaria.executor.Executor.state` returns is known here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from esper.leyline import ActionOutcome, Blend, EnvSpec, FactoredAction, Op
from esper.tolaria.nested import State, join, plain_state, split
from esper.tolaria.surgery import SEED


@dataclass(frozen=True, slots=True)
class SavedEnvs:
    """One state per env, all of the same epoch. ``take`` and ``join`` copy nothing."""

    epoch: int
    specs: tuple[EnvSpec, ...]
    envs: tuple[State, ...]

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> SavedEnvs:
        """Undo of :meth:`state`. Raises ``DataError`` or ``KeyError`` for a state of another kind."""
        parts = split(state)
        clock = parts["clock"]["plain"]
        specs = tuple(EnvSpec(**spec) for spec in clock["rows"])
        return cls(clock["epoch"], specs, tuple(parts[f"row{i}"] for i in range(len(specs))))

    def state(self) -> State:
        """As it is stored."""
        clock = plain_state({"epoch": self.epoch, "rows": [asdict(spec) for spec in self.specs]})
        return join({"clock": clock, **{f"row{i}": env for i, env in enumerate(self.envs)}})

    def take(self, envs: Iterable[int]) -> SavedEnvs:
        """These envs alone, in this order, counted from 0."""
        wanted = list(envs)
        return SavedEnvs(self.epoch, tuple(self.specs[i] for i in wanted), tuple(self.envs[i] for i in wanted))

    @classmethod
    def join(cls, parts: Sequence[SavedEnvs], specs: Sequence[EnvSpec] | None = None) -> SavedEnvs:
        """The envs of all parts, in their order; ``specs`` is who they are from now on (default: who they were).

        Raises ``ValueError`` where there are no parts, their epochs differ, or there are not as many specs as envs.
        """
        epochs = {part.epoch for part in parts}
        if len(epochs) != 1:
            raise ValueError(f"rows of the epochs {sorted(epochs)} cannot be joined; one epoch is needed")
        envs = tuple(env for part in parts for env in part.envs)
        named = tuple(spec for part in parts for spec in part.specs) if specs is None else tuple(specs)
        if len(named) != len(envs):
            raise ValueError(f"{len(named)} specs for {len(envs)} rows")
        return cls(epochs.pop(), named, envs)


def plain_outcome(outcome: ActionOutcome) -> dict[str, Any]:
    """What became of an action, JSON-able."""
    action = asdict(outcome.action)
    blend = None if outcome.action.blend is None else outcome.action.blend.value
    return {**asdict(outcome), "action": {**action, "op": outcome.action.op.name, "blend": blend}}


def read_outcome(plain: Mapping[str, Any]) -> ActionOutcome:
    """Undo of :func:`plain_outcome`."""
    action = plain["action"]
    blend = None if action["blend"] is None else Blend(action["blend"])
    return ActionOutcome(**{**plain, "action": FactoredAction(**{**action, "op": Op[action["op"]], "blend": blend})})


def by_seed_id(plain: dict[str, Any]) -> dict[str, Any]:
    """What a saved trainer knows of seeds, by their ids: 0.1.0 wrote it by slot, of which each had one."""
    states = {slot: saved["state"] for slot, saved in plain["topology"].items()}
    ids = {slot: state["seed_id"] for slot, state in states.items() if state is not None}
    births = {ids.get(name, name): born for name, born in plain["births"].items()}
    groups = [
        {**group, "options": {SEED: ids[slot], **options}}
        if (slot := (options := dict(group["options"])).pop("slot_id", None)) is not None
        else group
        for group in plain["optimizer"]["groups"]
    ]
    return {**plain, "births": births, "optimizer": {**plain["optimizer"], "groups": groups}}
