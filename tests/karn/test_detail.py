from __future__ import annotations

import math
import re

from hypothesis import given, settings

from esper.karn.aggregator import fold
from esper.karn.detail import build_detail
from esper.karn.schema import Seed
from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T
from karn.streams import START, Recorder, begin, begin_episode, runs

TOLD = ("removal_cost", "removal_cost_se", "probe_gain", "seed_gradient_norm_ratio", "gradient_health")


def kept_and_measured_again() -> list[TelemetryEvent]:
    """A seed is kept in epoch 6 for what it was worth then, and measured again in epoch 14."""
    rec = Recorder()
    begin(rec, envs=1)
    begin_episode(rec, 0)
    where = {"env_id": 0, "episode": 0, "slot_id": "stem", "seed_id": "s1"}
    rec.say(T.SEED_GERMINATED, **where, epoch=1, blueprint="conv3", parameters=2400)
    rec.say(T.COUNTERFACTUAL_COMPUTED, **where, epoch=6, removal_cost=58.44, unit="points", examples=300)
    facts = {"blueprint": "conv3", "parameters": 2400, "removal_cost": 58.44, "removal_cost_epoch": 6}
    rec.say(T.SEED_FOSSILIZED, **where, epoch=6, **facts, age_epochs=5, unit="points")
    rec.say(T.COUNTERFACTUAL_COMPUTED, **where, epoch=14, removal_cost=67.25, unit="points", examples=300)
    return rec.events


def test_what_a_seed_was_worth_when_it_was_kept_and_what_it_is_worth_now() -> None:
    seed = build_detail(fold(kept_and_measured_again()), 0, START + 60).slots["stem"].seed
    assert seed is not None and seed.ended == "kept for good (epoch 6), worth 58.44 (epoch 6)"
    newest = seed.facts["removal_cost"]
    assert (newest.value, newest.epoch) == (67.25, 14)


@given(runs())
@settings(max_examples=40, deadline=None)
def test_every_figure_of_a_seed_is_the_journal_s_of_that_epoch(events: list[TelemetryEvent]) -> None:
    state = fold(events)
    measured: dict[tuple[int | None, int | None, str | None, str, int | None], set[float]] = {}
    for event in events:
        for name in TOLD:
            if (value := event.data.get(name)) is not None:
                epoch = event.data.get(f"{name}_epoch", event.epoch)
                for episode in (event.episode, None):  # which one it is is not known where its start was lost
                    measured.setdefault((event.env_id, episode, event.seed_id, name, epoch), set()).add(value)
    for env, environment in state.environments.items():
        for slot in build_detail(state, env, START).slots.values():
            for seed in [*([slot.seed] if slot.seed else []), *slot.past]:
                _compare(seed, env, environment.episode, measured)


def _compare(seed: Seed, env: int, episode: int | None, measured: dict) -> None:  # type: ignore[type-arg]
    for name in TOLD:
        figure = seed.facts.get(name)
        if figure is not None and figure.epoch is not None and isinstance(figure.value, float):
            assert figure.value in measured[env, episode, seed.seed, name, figure.epoch], (seed.seed, name, figure)
    told = re.search(r"worth (\S+) \(epoch (\d+)\)", seed.ended or "")
    if told is not None:
        journal = measured[env, episode, seed.seed, "removal_cost", int(told[2])]
        assert any(math.isclose(float(told[1]), value, rel_tol=1e-3, abs_tol=1e-6) for value in journal)
