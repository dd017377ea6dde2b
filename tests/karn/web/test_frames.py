from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings

from esper.karn.aggregator import fold
from esper.karn.diff import apply
from esper.karn.snapshot import build
from esper.karn.web.columns import CELL_COLUMNS, ENV_COLUMNS, NO_STAGE, Columns, GateVerdict, Kind, unpack
from esper.karn.web.frames import Mode, Sight, View, decode_frame, encode_frame
from esper.leyline import SeedStage, TelemetryEvent
from karn.streams import START, Recorder, begin, begin_episode, epoch_done, runs, story


@given(runs())
@settings(max_examples=8)
def test_a_patch_frame_gives_what_a_whole_one_gives(events: list[TelemetryEvent]) -> None:
    cut, columns = len(events) // 2, Columns()
    state = fold(events[:cut])
    before = Sight(View(build(state, START), Mode("live")), columns.board(state, START))
    fold(events[cut:], state)
    after = Sight(View(build(state, START + 1), Mode("replay", True, 4.0)), columns.board(state, START + 1))
    whole = decode_frame(encode_frame(1, 0, None, before))
    patch = decode_frame(encode_frame(2, 3, before, after), whole.board)
    assert (whole.whole, patch.whole, patch.missed) == (True, False, 3)
    wanted = msgspec.json.decode(msgspec.json.encode(after.view))
    assert apply(whole.content, patch.content) == wanted
    assert (b"" if patch.board is None else patch.board.pack()) == after.board.pack()


def test_only_environments_that_changed_are_told_anew() -> None:
    rec, columns = Recorder(), Columns()
    begin(rec)
    for env in range(3):
        begin_episode(rec, env)
    state = fold(rec.events)

    def look() -> Sight:
        return Sight(View(build(state, START), Mode("live")), columns.board(state, START))

    first, again = look(), look()
    assert decode_frame(encode_frame(1, 0, None, first)).rows == 3
    quiet = encode_frame(2, 0, first, again)
    assert decode_frame(quiet).rows == 0
    rec.events.clear()
    epoch_done(rec, 1, 1, 60.0)
    fold(rec.events, state)
    told = encode_frame(3, 0, again, look())
    assert decode_frame(told, again.board).rows == 1
    rec.events.clear()
    begin_episode(rec, 7)
    fold(rec.events, state)
    assert decode_frame(encode_frame(4, 0, again, look())).rows == 4, "another set of environments is told whole"


def test_not_a_frame() -> None:
    with pytest.raises(ValueError, match="not a frame"):
        decode_frame(b"x" * 64)


def test_packing_can_be_undone() -> None:
    board = Columns().board(fold(story()), START)
    again = unpack(board.pack(), *board.stage.shape)
    assert all(np.array_equal(one, other) for one, other in zip(board, again, strict=True))
    with pytest.raises(ValueError, match="not a board"):
        unpack(board.pack() + b"x", *board.stage.shape)


def test_columns_of_the_story() -> None:
    state = fold(story())
    found = Columns().board(state, START)
    assert found.ids.tolist() == [0, 1]
    slot = state.run.slots.index("blocks_1")
    assert found.stage[0, slot] == SeedStage.FOSSILIZED and found.stage[1, slot] == NO_STAGE
    assert found.gate[0, slot] == GateVerdict.PASSED
    assert found.cell[0, slot, CELL_COLUMNS.index("alpha")] == 1.0
    assert found.cell_kind[0, :, CELL_COLUMNS.index("removal_cost")].tolist() == [
        Kind.VALUE if name == "blocks_1" else Kind.ABSENT for name in state.run.slots
    ]


def test_kinds_of_values() -> None:
    rec = Recorder()
    begin(rec)
    losses = [{}, *({"validation_loss": v} for v in (0.0, float("nan"), float("inf"), float("-inf")))]
    for env, loss in enumerate(losses):
        begin_episode(rec, env)
        epoch_done(rec, env, 1, None, **loss)
    epoch_done(rec, 1, 9, None)
    found = Columns().board(fold(rec.events), START)
    kinds = [Kind(kind) for kind in found.env_kind[:, ENV_COLUMNS.index("loss")]]
    assert kinds == [Kind.ABSENT, Kind.STALE, Kind.NAN, Kind.POSITIVE_INFINITY, Kind.NEGATIVE_INFINITY]


@given(runs())
@settings(max_examples=8)
def test_rewriting_what_changed_equals_packing_anew(events: list[TelemetryEvent]) -> None:
    kept, state = Columns(), fold([])
    for at in range(0, len(events), 11):
        fold(events[at : at + 11], state)
        assert kept.board(state, START + at).pack() == Columns().board(state, START + at).pack()
