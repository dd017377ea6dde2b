"""What the picture of a grown network is made from: the host's modules, and what sits at each place, off the fold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from esper.karn.fold_seed import EMPTY
from esper.karn.results import STATIC, left_out
from esper.karn.state import EnvironmentFold, Measured, RunState, SeedFold, SlotFold
from esper.leyline import visible


class Sprout(msgspec.Struct):
    """A seed at its place."""

    seed: str
    blueprint: str
    stage: str
    fate: str
    """``kept``, ``not proven`` (and in the network that is delivered), ``left out``, or the stage that it is in."""
    why: str
    """Why it is left out, behind a colon; else empty."""
    inside: bool
    """Whether it is in the network that is drawn."""
    parameters: int | None
    macs: int | None
    alpha: float | None
    cost: float | None
    cost_epoch: int | None
    cost_later: bool = False
    """It was measured, but not before the epoch of the network that is drawn."""


class Place(msgspec.Struct):
    """A place where the host can grow."""

    slot: str
    path: str | None
    beside: bool
    sprout: Sprout | None
    past: list[str]
    """What was here besides, the newest last, in words."""
    pruned: int
    """How many seeds were pruned here, with those that the fold has forgotten."""
    last: str | None
    """Blueprint of the newest of them."""


class Grown(msgspec.Struct):
    """A host and what has grown in it."""

    title: str
    parts: list[dict[str, Any]]
    """As the journal has them; empty where it does not say."""
    places: list[Place]
    """In network order."""
    unit: str
    parameters: tuple[int | None, int | None]
    """Before and after."""
    macs: tuple[int | None, int | None]
    env: int | None
    exported: int | None = None
    """Parameters of the model that was written."""


def judged_environment(state: RunState) -> EnvironmentFold | None:
    """The environment that a run is shown by, of those that play the first arm that grows: the one whose episode ended
    last and is still there, which the verdict calls the newest; else the first."""
    folds = [state.environments[env] for env in sorted(state.environments)]
    growing = [fold for fold in folds if fold.arm != STATIC and fold.epoch is not None]
    if not growing:
        return None
    own = [fold for fold in growing if fold.arm == growing[0].arm]
    ended = [fold for fold in own if fold.result is not None]
    newest = (fold for result in reversed(state.results) for fold in ended if fold.result == result)
    return next(newest, own[0]) if ended else own[0]


def grown(state: RunState, fold: EnvironmentFold) -> Grown:
    """What has grown in an environment, as it is now; in the end, in the network that it delivers."""
    host: Mapping[str, Any] = state.run.host or {}
    sites = {site["slot"]: site for site in host.get("sites", ())}
    names = [name for name in (*sites, *state.run.slots, *fold.slots) if name in fold.slots or name in state.run.slots]
    places = [_place(name, sites.get(name), fold) for name in dict.fromkeys(names)]
    result, facts = fold.result, fold.facts
    after = _whole(facts.get("parameters")) if result is None else result.total_parameters
    total = _whole(facts.get("inference_macs")) if result is None else result.inference_macs
    before = fold.host_parameters if fold.host_parameters is not None else state.run.host_parameters
    where = [f"environment {fold.env}"]
    where += [] if fold.episode is None else [f"episode {fold.episode + 1}"]
    where += [] if fold.arm is None else [f"arm {visible(fold.arm)}"]
    if result is not None and result.delivered == "best":
        where.append(f"as it was after epoch {result.delivered_epoch}, which is delivered")
    elif fold.epoch is not None:
        where.append(f"after epoch {fold.epoch}" if result is None else f"as it is after {fold.epoch} epochs")
    return Grown(
        title=", ".join(where),
        parts=list(host.get("parts", ())),
        places=places,
        unit="points" if state.run.unit == "%" else state.run.unit,
        parameters=(before, after),
        macs=(host.get("macs"), total),
        env=fold.env,
        exported=state.run.exported_parameters if state.run.episodes == 1 and result is not None else None,
    )


def _place(name: str, site: Mapping[str, Any] | None, fold: EnvironmentFold) -> Place:
    slot = fold.slots.get(name) or SlotFold(slot=name)
    shown = _shown(slot, fold)
    known = [*slot.past, *slot.kept, *([] if slot.seed is None else [slot.seed])]
    past = [seed for seed in known if seed is not shown]
    beneath = [seed for seed in slot.kept if seed is not shown and left_out(fold.result, seed.seed) is None]
    forgotten = max(0, slot.seeds_seen - len(known))
    pruned = [seed for seed in past if seed.stage == "PRUNED"]
    return Place(
        slot=name,
        path=None if site is None else site["path"],
        beside=bool(site and site["beside"]),
        sprout=None if shown is None else _sprout(shown, slot, fold),
        past=[_gone(seed, beneath=seed in beneath) for seed in past],
        pruned=len(pruned) + forgotten,
        last=visible(pruned[-1].blueprint or "a seed") if pruned else None,
    )


def _shown(slot: SlotFold, fold: EnvironmentFold) -> SeedFold | None:
    """The newest seed that is in the network, or the one that lives in the slot."""
    result = fold.result
    if result is not None:
        delivered = {seed.seed_id for seed in result.seeds}
        known = [*([] if slot.seed is None else [slot.seed]), *reversed(slot.kept), *reversed(slot.past)]
        inside = next((seed for seed in known if seed.seed in delivered), None)
        if inside is not None:
            return inside
    seed = slot.seed
    if seed is None or seed.stage == "PRUNED" or slot.stage in EMPTY or slot.stage == "PRUNED":
        return slot.kept[-1] if slot.kept else None
    return seed


def _sprout(seed: SeedFold, slot: SlotFold, fold: EnvironmentFold) -> Sprout:
    result, facts = fold.result, seed.facts
    record = None if result is None else next((one for one in result.seeds if one.seed_id == seed.seed), None)
    stage = (record.stage if record is not None else None) or seed.stage or slot.stage or "UNKNOWN"
    why = left_out(result, seed.seed) if seed.stage == "FOSSILIZED" else None
    if why is not None:
        fate = "left out"
    elif record is not None and record.reason:
        fate = "not proven"
    else:
        fate = "kept" if stage == "FOSSILIZED" else stage.lower()
    now = facts.get("alpha")
    alpha = None if now is None else float(now.value)
    if record is not None and result is not None and result.delivered == "best":
        # what it is now may not be what it was in the network that is delivered
        then = (bucket.last for bucket in seed.alpha.buckets if bucket.last_at == result.delivered_epoch)
        alpha = next(then, None)
    newest = facts.get("removal_cost", seed.end_cost)
    of = result.delivered_epoch if result is not None and result.delivered == "best" else None
    cost = newest if of is None else _cost_by(seed, of)
    return Sprout(
        seed=seed.seed,
        blueprint=visible(seed.blueprint or "a seed"),
        stage=stage,
        fate=fate,
        why="" if why is None else f": {why}",
        inside=why is None,
        parameters=seed.parameters,
        macs=_whole(facts.get("macs")),
        alpha=alpha,
        cost=None if cost is None else float(cost.value),
        cost_epoch=None if cost is None else cost.epoch,
        cost_later=cost is None and newest is not None,
    )


def _cost_by(seed: SeedFold, epoch: int) -> Measured | None:
    """The newest removal cost that was measured up to ``epoch``, and is still known."""
    known = [Measured(one.last, one.last_at) for one in seed.costs.buckets]
    known += [] if seed.end_cost is None else [seed.end_cost]
    until = [one for one in known if one.epoch is not None and one.epoch <= epoch]
    return max(until, key=lambda one: one.epoch or 0, default=None)


def _gone(seed: SeedFold, *, beneath: bool) -> str:
    if beneath:
        return f"{visible(seed.blueprint or 'a seed')} kept beneath it"
    when = "" if seed.end_epoch is None else f" in epoch {seed.end_epoch}"
    why = f": {visible(seed.end_reason)}" if seed.end_reason else ""
    fate = {"PRUNED": "pruned", "FOSSILIZED": "kept, and left out,"}.get(seed.stage or "", "gone")
    return f"{visible(seed.blueprint or 'a seed')} {fate}{when}{why}"


def _whole(measured: Measured | None) -> int | None:
    return None if measured is None else int(measured.value)
