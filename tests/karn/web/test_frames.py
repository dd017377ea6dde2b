from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings

from esper.karn.aggregator import fold
from esper.karn.diff import apply
from esper.karn.snapshot import build
from esper.karn.web.columns import CELL_COLUMNS, ENV_COLUMNS, NO_STAGE, Columns, Gate, Kind
from esper.karn.web.frames import Board, Mode, View, decode_frame, encode_frame
from esper.leyline import SeedStage, TelemetryEvent
from karn.streams import START, Recorder, begin, begin_episode, epoch_done, runs, story


@given(runs())
@settings(max_examples=8)
def test_a_patch_frame_gives_what_a_whole_one_gives(events: list[TelemetryEvent]) -> None:
    cut = len(events) // 2
    before = View(build(fold(events[:cut]), START), Mode("live"))
    after = View(build(fold(events), START + 1), Mode("replay", True, 4.0))
    whole = decode_frame(encode_frame(1, 0, None, before))
    patch = decode_frame(encode_frame(2, 3, before, after))
    assert (whole.whole, patch.whole, patch.missed) == (True, False, 3)
    wanted = msgspec.json.decode(msgspec.json.encode(after))
    assert apply(whole.content, patch.content) == wanted


def test_not_a_frame() -> None:
    with pytest.raises(ValueError, match="not a frame"):
        decode_frame(b"x" * 64)


def _columns(board: Board) -> dict[str, np.ndarray]:
    rows, slots, at, found = board.environments, board.slots, 0, {}
    for name, dtype, shape in (
        ("ids", np.int32, (rows,)),
        ("env", np.float32, (len(ENV_COLUMNS), rows)),
        ("cell", np.float32, (len(CELL_COLUMNS), rows, slots)),
        ("env_kind", np.uint8, (len(ENV_COLUMNS), rows)),
        ("cell_kind", np.uint8, (len(CELL_COLUMNS), rows, slots)),
        ("stage", np.uint8, (rows, slots)),
        ("gate", np.uint8, (rows, slots)),
    ):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        found[name] = np.frombuffer(board.data[at : at + size], dtype).reshape(shape)
        at += size
    assert at == len(board.data)
    return found


def test_columns_of_the_story() -> None:
    state = fold(story())
    found = _columns(Board(*Columns().pack(state, START)))
    assert found["ids"].tolist() == [0, 1]
    slot = state.run.slots.index("blocks_1")
    assert found["stage"][0, slot] == SeedStage.FOSSILIZED and found["stage"][1, slot] == NO_STAGE
    assert found["gate"][0, slot] == Gate.PASSED
    assert found["cell"][CELL_COLUMNS.index("alpha"), 0, slot] == 1.0
    assert found["cell_kind"][CELL_COLUMNS.index("removal_cost"), 0].tolist() == [
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
    found = _columns(Board(*Columns().pack(fold(rec.events), START)))
    kinds = [Kind(kind) for kind in found["env_kind"][ENV_COLUMNS.index("loss")]]
    assert kinds == [Kind.ABSENT, Kind.STALE, Kind.NAN, Kind.POSITIVE_INFINITY, Kind.NEGATIVE_INFINITY]


@given(runs())
@settings(max_examples=8)
def test_rewriting_what_changed_equals_packing_anew(events: list[TelemetryEvent]) -> None:
    kept, state = Columns(), fold([])
    for at in range(0, len(events), 11):
        fold(events[at : at + 11], state)
        assert kept.pack(state, START + at) == Columns().pack(state, START + at)
