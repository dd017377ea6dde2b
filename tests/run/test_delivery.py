"""No run that delivers a model delivers one that is worse on validation than the best it has validated."""

from __future__ import annotations

import pytest
from tiny import tiny

from esper.leyline import WAIT, Decision, EnvSpec, TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.run.assembly import build_executor, workload
from esper.run.config import RunConfig
from esper.run.play import Episode, EpisodePlan, run_episodes
from esper.tamiyo.policies import make_seeded

EPOCHS = 10
ARMS = ("heuristic", "random", "static")


def shortfalls(deliver: str) -> list[float]:
    """By how much each episode's delivered metric is below the best of its epochs."""
    events: list[TelemetryEvent] = []
    config = RunConfig(task="digits", max_epochs=EPOCHS, device="cpu")
    executor = build_executor(workload(tiny(EPOCHS), config), config, events.append, deliver=deliver)  # type: ignore[arg-type]
    arms = {name: make_seeded(name, 0) for name in ARMS}
    for _ in run_episodes(executor, arms, EpisodePlan(3, EPOCHS)):
        pass
    best: dict[tuple[int | None, int | None], float] = {}
    found = []
    for event in events:
        key = event.env_id, event.episode
        if event.event_type is T.EPOCH_COMPLETED:
            best[key] = max(best.get(key, 0.0), event.data["validation_metric"])
        if event.event_type is T.EPISODE_ENDED:
            found.append(best[key] - event.data["validation_metric"])
            assert ("delivered" in event.data) is (deliver == "best")
    return found


def test_what_is_delivered_is_never_worse_than_the_best_that_was_seen() -> None:
    found = shortfalls("best")
    assert len(found) == 9 and max(found) == pytest.approx(0.0, abs=1e-9)


def test_the_last_state_is_and_the_measure_tells() -> None:
    assert max(shortfalls("last")) > 0.5


def test_the_best_network_is_held_once_where_it_is_the_last_good_state() -> None:
    config = RunConfig(task="digits", max_epochs=EPOCHS, device="cpu")
    executor = build_executor(workload(tiny(EPOCHS), config), config, lambda event: None, deliver="best")
    episode = Episode.begin(executor, [EnvSpec(0, 0, 0, EPOCHS)])
    episode.step([Decision(WAIT, "")])
    (env,) = executor._envs
    assert env.best is not None and env.governor._good is not None
    kept = env.governor._good[1]["tensors"]
    for name, tensor in env.best.network["tensors"].items():
        assert tensor.data_ptr() == kept[f"model/{name}"].data_ptr()
        live = executor.engine.trainer(0).model.state_dict()[name]  # type: ignore[attr-defined]
        assert tensor.data_ptr() != live.data_ptr()
