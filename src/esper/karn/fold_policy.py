"""Folds of a policy that acts and learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from esper.karn.fold_common import measure, smoothed
from esper.karn.pulse import PULSE
from esper.karn.schema import HostVitals
from esper.karn.state import EnvironmentFold, Measured, RunState
from esper.leyline import TelemetryEvent


def update_completed(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """The pulse of the learner."""
    measure(state.pulse, event.data, ("round", *PULSE), event)
    open_ = [head["entropy"] / head["most"] for head in event.data.get("heads", {}).values() if head.get("most")]
    if open_:
        measure(state.pulse, {"least_entropy": min(open_)}, ("least_entropy",), event)


def reward_computed(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """What the last step's reward is made of."""
    if environment is None:
        state.unplaced += 1
        return
    parts = {f"reward.{name}": value for name, value in event.data.get("components", {}).items()}
    measure(environment.loose_facts, parts, parts, event)


def _objective(environment: EnvironmentFold, objective: float, before: Measured | None) -> None:
    """How far the objective came. It is higher the better, whatever the metric's direction."""
    if not math.isfinite(objective):
        return
    best = environment.best_objective
    if best is None:
        environment.first_objective = objective
    if best is None or objective > best:
        environment.best_objective = objective
    if before is not None and math.isfinite(float(before.value)):
        change = abs(objective - float(before.value))
        environment.objective_wobble = smoothed(environment.objective_wobble, change)


def _chosen(state: RunState, event: TelemetryEvent) -> None:
    """Ops of a round as shares of its steps."""
    steps, ops = event.data.get("steps"), event.data.get("ops", {})
    if not steps:
        return
    _forget(state, "chose.")
    shares = {f"chose.{op}": count / steps for op, count in ops.items()}
    measure(state.learner, shares, shares, event)
    measure(state.pulse, {"wait_share": ops.get("WAIT", 0) / steps}, ("wait_share",), event)


def _masks(state: RunState, event: TelemetryEvent) -> None:
    """Heads with some choices forbidden, and with only one left: shares of the steps that consumed them."""
    for kind in ("restricted", "forced"):
        _forget(state, f"{kind}.")
        shares = {f"{kind}.{head}": share for head, share in event.data.get(kind, {}).items()}
        measure(state.learner, shares, shares, event)


def _forget(state: RunState, prefix: str) -> None:
    for name in [name for name in state.learner if name.startswith(prefix)]:
        del state.learner[name]


def _throughput(environment: EnvironmentFold, event: TelemetryEvent) -> None:
    measure(environment.loose_facts, event.data, ("step_time_ms", "dataloader_wait_ms", "fps"), event)


def _summary(environment: EnvironmentFold, event: TelemetryEvent) -> None:
    measure(environment.loose_facts, event.data, ("episode_return", "objective_gain"), event)


def _last_action(environment: EnvironmentFold, event: TelemetryEvent) -> None:
    """What it paid, and which heads masks had narrowed if it is the newest command; waiting is none."""
    data, before = event.data, environment.loose_facts.get("objective")
    measure(environment.loose_facts, data, ("reward", "objective"), event)
    if "objective" in data:
        _objective(environment, float(data["objective"]), before)
    actions = environment.actions
    for place in range(len(actions) - 1, max(-1, len(actions) - 5), -1):
        action = actions[place]
        if (action.op, action.slot, action.epoch) == (data.get("op"), data.get("slot"), event.epoch):
            masked = [head for head, narrowed in data.get("masked", {}).items() if narrowed]
            actions[place] = replace(action, masked=masked)
            return


def _diagnostics(environment: EnvironmentFold, event: TelemetryEvent) -> None:
    environment.diagnostics = event.data.get("snapshot", {})
    environment.diagnostics_epoch = event.epoch


def _vitals(state: RunState, event: TelemetryEvent) -> None:
    """Newest sample of the machine."""
    if event.timestamp is not None:
        state.host = host = host_vitals(event.timestamp, event.data)
        if host.disk_free is not None:
            state.disk = [one for one in state.disk[-DISK:] if one[0] < host.time]
            state.disk.append((host.time, host.disk_free))


def host_vitals(time: float, data: Mapping[str, Any]) -> HostVitals:
    """A sample's payload, taken at ``time``."""
    return HostVitals(time=time, **{name: value for name, value in data.items() if name in _VITALS})


DISK: Final = 60
"""Samples over which it is looked how fast the disk fills: ten minutes' worth."""
_VITALS: Final = frozenset(HostVitals.__struct_fields__) - {"time"}
_OF_RUN: Final[dict[Any, Callable[[RunState, TelemetryEvent], None]]] = {
    "action_distribution": _chosen,
    "mask_hit_rates": _masks,
    "host_vitals": _vitals,
}
_OF_ENVIRONMENT: Final[dict[Any, Callable[[EnvironmentFold, TelemetryEvent], None]]] = {
    "throughput": _throughput,
    "reward_summary": _summary,
    "last_action": _last_action,
    "diagnostic_snapshot": _diagnostics,
}


def analytics(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """Figures beside the story, told apart by ``kind``; a round's and the machine's are about no environment."""
    kind = event.data.get("kind")
    if kind in _OF_RUN:
        _OF_RUN[kind](state, event)
    elif environment is None:
        state.unplaced += 1
    elif kind in _OF_ENVIRONMENT:
        _OF_ENVIRONMENT[kind](environment, event)


def detected(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """A detector spoke: it stands in the feed, which every event of its kind enters."""
