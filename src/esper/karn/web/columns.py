"""The flight board as columns of numbers, for a canvas: small on the wire and cheap to draw.

Beside every float32 column a uint8 one says what kind of value it is (:class:`Kind`), since a float alone
cannot tell absent from NaN, nor fresh from stale.
"""

from __future__ import annotations

import math
from array import array
from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from esper.karn.snapshot import STALE_EPOCHS, ranks_of
from esper.karn.state import Facts, Measured, RunState, SlotFold
from esper.leyline import SeedStage

ENV_COLUMNS: Final = ("rank", "metric", "loss", "epoch", "max_epochs", "parameters", "train_ms", "last_time")
"""``last_time`` is in seconds since the run's first event: float32 could not hold a wall clock."""

CELL_COLUMNS: Final = ("alpha", "removal_cost")

NO_STAGE: Final = 255
"""Stage code of a slot of which nothing is known; other codes are :class:`~esper.leyline.SeedStage` values."""


_STAGES: Final = {stage.name: int(stage) for stage in SeedStage}


class Kind(IntEnum):
    """What a float32 in a column means."""

    ABSENT = 0
    VALUE = 1
    STALE = 2
    NAN = 3
    POSITIVE_INFINITY = 4
    NEGATIVE_INFINITY = 5


class GateVerdict(IntEnum):
    """Verdict of the last gate evaluated in a slot."""

    NONE = 0
    PASSED = 1
    FAILED = 2


_ABSENT, _VALUE, _STALE = int(Kind.ABSENT), int(Kind.VALUE), int(Kind.STALE)
_NONE, _PASSED, _FAILED = int(GateVerdict.NONE), int(GateVerdict.PASSED), int(GateVerdict.FAILED)
# plain numbers: an enum's members are slow to look up, and these are for every slot of every view


Column = npt.NDArray[Any]


class BoardColumns(NamedTuple):
    """The columns of one view, a row for each environment in order of their ids."""

    ids: Column
    """int32 [E]"""
    env: Column
    """float32 [E, ``ENV_COLUMNS``]"""
    cell: Column
    """float32 [E, S, ``CELL_COLUMNS``]"""
    env_kind: Column
    """uint8, as ``env``"""
    cell_kind: Column
    stage: Column
    """uint8 [E, S]"""
    gate: Column

    def changed(self, before: BoardColumns) -> npt.NDArray[np.intp] | None:
        """Rows that are not as they were; ``None`` where environments or slots are others."""
        if self.stage.shape != before.stage.shape or not np.array_equal(self.ids, before.ids):
            return None
        return np.flatnonzero(np.logical_or.reduce([_differs(*pair) for pair in zip(self, before, strict=True)]))

    def rows(self, which: npt.NDArray[np.intp]) -> BoardColumns:
        """Some of the rows, as a copy."""
        return BoardColumns(*(column[which] for column in self))

    def pack(self) -> bytes:
        """int32 ids[E], float32 env[C,E], float32 cell[D,E,S], then as uint8 env kinds[C,E], cell kinds[D,E,S],
        stage[E,S], gate[E,S]."""
        env, cell = self.env.T, np.moveaxis(self.cell, 2, 0)
        kinds = self.env_kind.T, np.moveaxis(self.cell_kind, 2, 0)
        return b"".join(column.tobytes() for column in (self.ids, env, cell, *kinds, self.stage, self.gate))


def _differs(new: Column, old: Column) -> npt.NDArray[np.bool_]:
    bits = f"u{new.itemsize}"
    rows = (len(new), math.prod(new.shape[1:]))
    found: npt.NDArray[np.bool_] = (new.view(bits).reshape(rows) != old.view(bits).reshape(rows)).any(axis=1)
    return found


def unpack(data: bytes, environments: int, slots: int) -> BoardColumns:
    """Undo of :meth:`BoardColumns.pack`. Raises ``ValueError`` for another length."""
    at, found = 0, []
    for dtype, shape in (
        (np.int32, (environments,)),
        (np.float32, (len(ENV_COLUMNS), environments)),
        (np.float32, (len(CELL_COLUMNS), environments, slots)),
        (np.uint8, (len(ENV_COLUMNS), environments)),
        (np.uint8, (len(CELL_COLUMNS), environments, slots)),
        (np.uint8, (environments, slots)),
        (np.uint8, (environments, slots)),
    ):
        column: Column = np.frombuffer(data, dtype, math.prod(shape), at).reshape(shape)
        at += column.nbytes
        found.append(column)
    if at != len(data):
        raise ValueError(f"not a board of {environments} environments of {slots} slots: {len(data)} bytes, not {at}")
    ids, env, cell, env_kind, cell_kind, stage, gate = found
    cells = (np.ascontiguousarray(np.moveaxis(column, 0, 2)) for column in (cell, cell_kind))
    envs = (np.ascontiguousarray(column.T) for column in (env, env_kind))
    return BoardColumns(ids, next(envs), next(cells), next(envs), next(cells), stage, gate)


class Columns:
    """Keeps the board's arrays and rewrites the rows of environments that changed."""

    def __init__(self) -> None:
        self._slots: list[str] = []
        self._versions: list[tuple[int, int | None, float]] = []
        self._board = _blank([], 0)

    def board(self, state: RunState, now: float) -> BoardColumns:
        """The board at ``now``."""
        ranks, slots = ranks_of(state, now), state.run.slots
        ids = list(ranks)
        if ids != self._board.ids.tolist() or slots != self._slots:
            self._slots, self._versions = list(slots), [(-1, None, 0.0)] * len(ids)
            self._board = _blank(ids, len(slots))
        changed = []
        for line, (env_id, rank) in enumerate(ranks.items()):
            fold = state.environments[env_id]
            version = (fold.version, fold.episode, rank)
            if self._versions[line] != version:
                self._versions[line] = version
                changed.append(line)
        if changed:
            self._write(changed, state, ranks)
        return BoardColumns(*(column.copy() for column in self._board))

    def _write(self, lines: list[int], state: RunState, ranks: dict[int, float]) -> None:
        """All rows at once: going through numpy for each costs more than all the rest."""
        board, start = self._board, state.first_time or 0.0
        env, env_kind, cell, cell_kind = array("f"), bytearray(), array("f"), bytearray()
        stage, gate = bytearray(), bytearray()
        for line in lines:
            env_id = int(board.ids[line])
            fold = state.environments[env_id]
            epoch, facts = fold.epoch, fold.facts
            _put(env, env_kind, ranks[env_id])
            _put_fact(env, env_kind, facts.get("validation_metric"), epoch)
            _put_fact(env, env_kind, facts.get("validation_loss"), epoch)
            _put(env, env_kind, epoch)
            _put(env, env_kind, fold.max_epochs)
            _put_fact(env, env_kind, facts.get("parameters"), epoch)
            _put_fact(env, env_kind, facts.get("train_ms"), epoch)
            _put(env, env_kind, None if fold.last_time is None else fold.last_time - start)
            for name in self._slots:
                slot = fold.slots.get(name)
                stage.append(_STAGES.get((slot and slot.stage) or "", NO_STAGE))
                gate.append(_gate(slot))
                told: Facts = {} if slot is None or slot.seed is None else slot.seed.facts
                for column in CELL_COLUMNS:
                    _put_fact(cell, cell_kind, told.get(column), epoch)
        written: tuple[array[float] | bytearray, ...] = (env, cell, env_kind, cell_kind, stage, gate)
        for rows, values in zip(board[1:], written, strict=True):
            rows[lines] = np.frombuffer(values, rows.dtype).reshape(len(lines), *rows.shape[1:])


def _blank(ids: list[int], slots: int) -> BoardColumns:
    rows, env, cell = len(ids), (len(ids), len(ENV_COLUMNS)), (len(ids), slots, len(CELL_COLUMNS))
    return BoardColumns(
        ids=np.array(ids, np.int32),
        env=np.zeros(env, np.float32),
        cell=np.zeros(cell, np.float32),
        env_kind=np.zeros(env, np.uint8),
        cell_kind=np.zeros(cell, np.uint8),
        stage=np.full((rows, slots), NO_STAGE, np.uint8),
        gate=np.zeros((rows, slots), np.uint8),
    )


def _gate(slot: SlotFold | None) -> int:
    if slot is None or slot.gate is None:
        return _NONE
    return _PASSED if slot.gate.passed else _FAILED


def _put_fact(values: array[float], kinds: bytearray, measured: Measured | None, epoch: int | None) -> None:
    if measured is None:
        values.append(0.0)
        kinds.append(_ABSENT)
        return
    value, since = float(measured.value), measured.epoch
    if not math.isfinite(value):
        values.append(0.0)
        kinds.append(_odd(value))
        return
    values.append(value)
    kinds.append(_STALE if since is None or (epoch is not None and epoch - since > STALE_EPOCHS) else _VALUE)


def _put(values: array[float], kinds: bytearray, value: float | None) -> None:
    values.append(0.0 if value is None else value)
    kinds.append(_ABSENT if value is None else _VALUE)


def _odd(value: float) -> Kind:
    if math.isnan(value):
        return Kind.NAN
    return Kind.POSITIVE_INFINITY if value > 0 else Kind.NEGATIVE_INFINITY
