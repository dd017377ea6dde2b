"""What a policy does and is paid, as events: the last action of each environment as it happens, the rest per round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor

from esper.leyline import HEADS, FactoredAction, TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.simic.detectors import RoundFigures
from esper.simic.growth import Choices, Played
from esper.simic.mdp import StepOutcome
from esper.tolaria.nested import State


class Hub(Protocol):
    """Takes events."""

    def emit(self, event: TelemetryEvent) -> None:
        """Send an event to every sink."""


def last_action(action: FactoredAction, choices: Choices, row: int, outcome: StepOutcome) -> dict[str, Any]:
    """Payload of kind ``last_action``."""
    heads = {head: getattr(action, head) for head in HEADS[1:]}
    consumed = choices.consumed[row].tolist()
    restricted = choices.restricted[row].tolist()
    said = outcome.outcome
    return {
        "kind": "last_action",
        "op": action.op.name,
        **{head: str(value) if head == "blend" else value for head, value in heads.items() if value is not None},
        "masked": {head: restricted[k] for k, head in enumerate(HEADS) if consumed[k]},
        "success": said.success,
        "illegal": said.illegal,
        "reward": outcome.paid.total,
        "objective": outcome.paid.objective,
        **({} if said.why_not is None else {"why_not": said.why_not}),
    }


def mask_hit_rates(consumed: Tensor, restricted: Tensor, forced: Tensor, round_number: int) -> dict[str, Any]:
    """Payload of kind ``mask_hit_rates`` from ``[steps, heads]`` tables."""
    counts = consumed.sum(0).tolist()
    used = {head: k for k, head in enumerate(HEADS) if counts[k]}
    return {
        "kind": "mask_hit_rates",
        "round": round_number,
        "steps": len(consumed),
        "consumed": {head: counts[k] for head, k in used.items()},
        "restricted": {head: float(restricted[:, k].sum()) / counts[k] for head, k in used.items()},
        "forced": {head: float(forced[:, k].sum()) / counts[k] for head, k in used.items()},
    }


def reward_summary(outcome: StepOutcome, round_number: int) -> dict[str, Any]:
    """Payload of kind ``reward_summary`` of a finished episode."""
    tracker = outcome.tracker
    return {
        "kind": "reward_summary",
        "mode": str(tracker.config.mode),
        "round": round_number,
        "steps": tracker.steps,
        "episode_return": tracker.paid,
        "objective_gain": tracker.gain,
        "unit": tracker.metric.unit,
        "components": dict(tracker.components),
    }


@dataclass(slots=True)
class _Times:
    steps: int = 0
    milliseconds: float = 0.0
    input_wait: float = 0.0


@dataclass(slots=True)
class RolloutEventWriter:
    """Writes down one round after the other; see :class:`~esper.simic.growth.Watcher`."""

    hub: Hub
    round: int = 1
    ops: Counter[str] = field(default_factory=Counter)
    succeeded: Counter[str] = field(default_factory=Counter)
    tables: list[Choices] = field(default_factory=list)
    times: dict[int, _Times] = field(default_factory=dict)
    finished: list[StepOutcome] = field(default_factory=list)

    def step(self, played: Played) -> None:
        """Take in a step of all envs."""
        self.tables.append(played.choices)
        for row, (action, outcome) in enumerate(zip(played.actions, played.outcomes, strict=True)):
            self.ops[action.op.name] += 1
            self.succeeded[action.op.name] += outcome.outcome.success
            self._say(T.ANALYTICS_SNAPSHOT, last_action(action, played.choices, row, outcome), outcome)
            paid, mode = outcome.paid, str(outcome.tracker.config.mode)
            reward = {"mode": mode, "total": paid.total, "objective": paid.objective, "components": paid.components}
            self._say(T.REWARD_COMPUTED, {**reward, "rolled_back": outcome.report.rolled_back}, outcome)
            self._time(outcome)
            if outcome.ended:
                self.finished.append(outcome)

    def end_round(self) -> RoundFigures:
        """Say what the round was like; begin the next."""
        rates = [torch.cat([getattr(table, name) for table in self.tables]) for name in ("consumed", "restricted")]
        forced = torch.cat([table.forced for table in self.tables])
        distribution = {
            "kind": "action_distribution",
            "round": self.round,
            "steps": sum(self.ops.values()),
            "ops": dict(self.ops),
            "succeeded": dict(self.succeeded),
        }
        self._say(T.ANALYTICS_SNAPSHOT, distribution)
        self._say(T.ANALYTICS_SNAPSHOT, mask_hit_rates(rates[0], rates[1], forced, self.round))
        for outcome in self.finished:
            self._say(T.ANALYTICS_SNAPSHOT, reward_summary(outcome, self.round), outcome)
        trackers = [outcome.tracker for outcome in self.finished]
        means = [times.milliseconds / times.steps for times in self.times.values()]
        figures = RoundFigures(
            # the control variate is no pay: it is the same whatever the policy does
            paid=tuple(tracker.paid - tracker.components.get("control", 0.0) for tracker in trackers),
            gains=tuple(tracker.gain for tracker in trackers),
            step_ms=fmean(means) if means else None,
        )
        self.round += 1
        for part in (self.ops, self.succeeded, self.tables, self.finished):
            part.clear()
        return figures

    def step_times(self) -> dict[int, tuple[float, float]]:
        """Environment -> its own mean milliseconds per step and waiting for input, of the round so far; forgets them.

        An environment whose time was not measured is missing.
        """
        means = {
            row: (times.milliseconds / times.steps, times.input_wait / times.steps) for row, times in self.times.items()
        }
        self.times.clear()
        return means

    def state(self) -> State:
        """What the round has so far, while its episodes are under way or before they begin."""
        if self.finished:
            raise RuntimeError("episodes that are over belong to a round that can no longer be saved")
        plain = {
            "round": self.round,
            "ops": dict(self.ops),
            "succeeded": dict(self.succeeded),
            "of": [list(table.of) for table in self.tables],
            "times": [[row, each.steps, each.milliseconds, each.input_wait] for row, each in self.times.items()],
        }
        tensors: dict[str, Tensor] = {}
        for t, table in enumerate(self.tables):
            tensors |= {f"consumed.{t}": table.consumed, f"legal.{t}": table.legal}
        return {"tensors": tensors, "plain": plain}

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`."""
        tensors, plain = state["tensors"], state["plain"]
        self.round, self.ops, self.succeeded = plain["round"], Counter(plain["ops"]), Counter(plain["succeeded"])
        self.tables = [
            Choices(tensors[f"consumed.{t}"], tensors[f"legal.{t}"], tuple(of)) for t, of in enumerate(plain["of"])
        ]
        self.times = {row: _Times(steps, took, waited) for row, steps, took, waited in plain["times"]}
        self.finished.clear()

    def _time(self, outcome: StepOutcome) -> None:
        trained = outcome.report.train
        if trained.seconds is None:
            return
        times = self.times.setdefault(outcome.view.env_id, _Times())
        times.steps += 1
        times.milliseconds += 1000.0 * (trained.seconds + outcome.report.validate_seconds)
        times.input_wait += 1000.0 * (trained.input_wait_seconds or 0.0)

    def _say(self, event: T, data: dict[str, Any], about: StepOutcome | None = None) -> None:
        view = None if about is None else about.view
        self.hub.emit(
            TelemetryEvent(
                event_type=event,
                env_id=None if view is None else view.env_id,
                episode=None if view is None else view.episode,
                epoch=None if view is None else view.epoch,
                data=data,
            )
        )
