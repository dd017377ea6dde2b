"""Small steps that the folds share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from esper.karn.state import EnvironmentFold, Facts, Measured, RunState, SeedFold, SlotFold
from esper.leyline import TelemetryEvent

X = TypeVar("X")


def trim(items: list[X], keep: int) -> None:
    """Forget the oldest once there are twice as many as wanted, so that the cost per event stays constant."""
    if len(items) >= 2 * keep:
        del items[:-keep]


def smoothed(average: float | None, value: float) -> float:
    """The moving average with one more value, which weighs a fifth."""
    return value if average is None else 0.8 * average + 0.2 * value


def slot_of(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> SlotFold | None:
    """The slot the event is about; an event that names none is counted, and ``None`` is returned."""
    name = event.slot_id
    if environment is None or name is None:
        state.unplaced += 1
        return None
    return environment.slots.get(name) or slot_in(state, environment, name)


def slot_in(state: RunState, environment: EnvironmentFold, name: str) -> SlotFold:
    """Slot ``name`` of ``environment``, made on first sight; its name joins the run's slot set."""
    slot = environment.slots.get(name)
    if slot is None:
        slot = environment.slots[name] = SlotFold(name)
        if name not in state.run.slots:
            state.run.slots.append(name)
    return slot


def seed_of(slot: SlotFold, event: TelemetryEvent) -> SeedFold | None:
    """The seed in the slot that the event is about; another seed id starts another seed."""
    seed_id = event.seed_id
    if seed_id is None:
        return slot.seed
    if (seed := known_seed(slot, seed_id)) is not None:
        return seed
    retire(slot)
    slot.seed = SeedFold(seed=seed_id, slot=slot.slot)
    slot.seeds_seen += 1
    return slot.seed


def known_seed(slot: SlotFold, seed_id: str) -> SeedFold | None:
    """The seed of that id that is in the slot, or was in it not long ago."""
    seed = slot.seed
    if seed is not None and seed.seed == seed_id:
        return seed
    return next((old for old in (*slot.kept, *slot.past) if old.seed == seed_id), None)


def retire(slot: SlotFold, keep: int = 8) -> None:
    """Move the slot's seed among the past ones."""
    if slot.seed is not None:
        slot.past.append(slot.seed)
        slot.seed = None
        trim(slot.past, keep)


def measure(facts: Facts, data: Mapping[str, Any], names: Iterable[str], event: TelemetryEvent) -> None:
    """Take the named fields that the event measured itself, with the event's own epoch and time."""
    epoch, time = event.epoch, event.timestamp
    for name in names:
        value = data.get(name)
        if value is not None:
            facts[name] = Measured(value, epoch, time)


def measure_aged(facts: Facts, data: Mapping[str, Any], names: Iterable[str], event: TelemetryEvent) -> None:
    """Take fields that may be older than the event: the age is the companion ``<name>_epoch``, else unknown."""
    for name in names:
        value = data.get(name)
        if value is None:
            continue
        epoch = data.get(f"{name}_epoch")
        known = facts.get(name)
        if known is not None and known.epoch is not None and (epoch is None or epoch <= known.epoch):
            if known.value == value or epoch is not None and epoch < known.epoch:
                continue
        facts[name] = Measured(value, epoch, event.timestamp if epoch is not None and epoch == event.epoch else None)


def tally(state: RunState, name: str, yes: bool, event: TelemetryEvent) -> None:
    """Count towards a share of the policy pulse."""
    hits, tries = state.tallies.get(name, (0, 0))
    hits, tries = hits + yes, tries + 1
    state.tallies[name] = (hits, tries)
    state.pulse[name] = Measured(hits / tries, event.epoch, event.timestamp)
