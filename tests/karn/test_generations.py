"""Slots that opened again, in the fold and on every face: what was kept stays, and nothing is mixed up."""

from __future__ import annotations

from esper.karn import words
from esper.karn.aggregator import fold
from esper.karn.detail import build_detail
from esper.karn.drawer import drawer_text
from esper.karn.evidence import gather
from esper.karn.network import grown
from esper.karn.plain import chip_words
from esper.karn.schema import Slot
from esper.karn.snapshot import environment_row
from esper.leyline import SeedStage as S
from esper.leyline import TelemetryEventType as T
from karn.streams import Recorder, begin, begin_episode, gate, move

SLOT = "stem"


def born(rec: Recorder, epoch: int, seed: str, blueprint: str, generation: int) -> None:
    at = {"env_id": 0, "episode": 0, "epoch": epoch, "slot_id": SLOT, "seed_id": seed}
    move(rec, 0, epoch, SLOT, seed, S.DORMANT, S.GERMINATED)
    ramp = {"blend": "linear", "incubation": "probe", "tempo": 1, "alpha_target": 1.0, "generation": generation}
    rec.say(T.SEED_GERMINATED, **at, **ramp, blueprint=blueprint, parameters=10)
    move(rec, 0, epoch, SLOT, seed, S.GERMINATED, S.TRAINING)


def kept(rec: Recorder, epoch: int, seed: str, generation: int) -> None:
    at = {"env_id": 0, "episode": 0, "slot_id": SLOT, "seed_id": seed}
    gate(rec, 0, epoch, SLOT, seed, S.FOSSILIZED, True)
    move(rec, 0, epoch, SLOT, seed, S.HOLDING, S.FOSSILIZED)
    rec.say(T.SEED_FOSSILIZED, **at, epoch=epoch, age_epochs=2, removal_cost=1.5, removal_cost_epoch=epoch)
    rec.say(T.SLOT_REOPENED, **at, epoch=epoch, generation=generation, generations=3)


def epoch_done(rec: Recorder, epoch: int, stage: S) -> None:
    rec.say(
        T.EPOCH_COMPLETED,
        **{"env_id": 0, "episode": 0, "epoch": epoch},
        **{"validation_metric": 50.0, "parameters": 6438, "live_seeds": 2, "alphas": {}, "stages": {SLOT: stage.name}},
    )


def story() -> Recorder:
    """Two are kept, the third learns."""
    rec = Recorder()
    begin(rec, envs=1)
    begin_episode(rec, 0)
    for number, (seed, blueprint) in enumerate((("s1", "lora2"), ("s2", "lora4"))):
        born(rec, 3 * number + 1, seed, blueprint, number)
        epoch_done(rec, 3 * number + 1, S.TRAINING)
        kept(rec, 3 * number + 2, seed, number + 1)
        epoch_done(rec, 3 * number + 2, S.DORMANT)
    born(rec, 7, "s3", "lora8", 2)
    epoch_done(rec, 7, S.TRAINING)
    for event in rec.events:
        if "blueprint" in event.data and event.seed_id is not None:
            event.data["blueprint"] = {"s1": "lora2", "s2": "lora4", "s3": "lora8"}[event.seed_id]
    return rec


def slot_of(rec: Recorder) -> Slot:
    return build_detail(fold(rec.events), env_id=0, now=0.0).slots[SLOT]


def test_two_kept_third_learning_on_every_face() -> None:
    rec = story()
    slot = slot_of(rec)
    assert [(seed.seed, seed.blueprint, seed.stage) for seed in slot.kept] == [
        ("s1", "lora2", "FOSSILIZED"),
        ("s2", "lora4", "FOSSILIZED"),
    ]
    assert slot.seed is not None and slot.seed.seed == "s3" and not slot.past and slot.seeds_seen == 3
    assert slot.generations == "2 kept, third learning" and "kept for good" in (slot.kept[0].ended or "")
    assert [span.stage for span in slot.swimlane if span.stage != "GERMINATED"] == [
        *("TRAINING", "FOSSILIZED", "DORMANT") * 2,
        "TRAINING",
    ]
    state = fold(rec.events)
    row = environment_row(state.environments[0], None, state.run.slots)
    assert "2 kept, third learning" in chip_words(row.slots[SLOT])
    text = drawer_text(build_detail(state, env_id=0, now=0.0))
    assert "2 kept, third learning" in text and text.index("beneath: lora4") < text.index("beneath: lora2")
    (place,) = [place for place in grown(state, state.environments[0]).places if place.slot == SLOT]
    assert place.sprout is not None and place.sprout.blueprint == "lora8"
    assert place.past == ["lora2 kept beneath it", "lora4 kept beneath it"] and place.pruned == 0
    found = gather(rec.events)
    assert [(life.seed_id, life.outcome) for life in found.seeds] == [
        ("s1", "kept"),
        ("s2", "kept"),
        ("s3", "undecided"),
    ]


def test_a_rollback_takes_out_what_was_kept_after_the_good_state() -> None:
    rec = story()
    at = {"env_id": 0, "episode": 0, "epoch": 8}
    rec.say(T.GOVERNOR_ROLLBACK, **at, to_epoch=4, lost_epochs=4, cause="external", reason="loss", rollbacks=0)
    epoch_done(rec, 8, S.HOLDING)
    slot = slot_of(rec)
    assert [seed.seed for seed in slot.kept] == ["s1"] and slot.generations == "1 kept, second holding"
    assert slot.seed is not None and (slot.seed.seed, slot.seed.stage, slot.seed.ended) == ("s2", "HOLDING", None)
    kept(rec, 9, "s2", 2)
    epoch_done(rec, 9, S.DORMANT)
    slot = slot_of(rec)
    assert [seed.seed for seed in slot.kept] == ["s1", "s2"] and slot.generations == "2 kept, open for a third"


def test_a_rollback_to_a_later_epoch_takes_nothing_out() -> None:
    rec = story()
    at = {"env_id": 0, "episode": 0, "epoch": 8}
    rec.say(T.GOVERNOR_ROLLBACK, **at, to_epoch=5, lost_epochs=3, cause="external", reason="loss", rollbacks=0)
    epoch_done(rec, 8, S.DORMANT)
    assert [seed.seed for seed in slot_of(rec).kept] == ["s1", "s2"]


def test_the_words() -> None:
    assert words.generations(0, "TRAINING") is None
    assert words.generations(2, "FOSSILIZED") == "3 kept"
    assert words.generations(1, "EMBARGOED") == "1 kept, second pruned"
    assert words.generations(12, "BLENDING") == "12 kept, 13th blending in"
