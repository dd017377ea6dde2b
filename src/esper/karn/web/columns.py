"""The flight board as columns of numbers, for a canvas: small on the wire and cheap to draw.

Beside every float32 column a uint8 one says what kind of value it is (:class:`Kind`), since a float alone
cannot tell absent from NaN, nor fresh from stale.
"""

from __future__ import annotations

import math
from array import array
from enum import IntEnum
from typing import Final

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


class Gate(IntEnum):
    """Verdict of the last gate evaluated in a slot."""

    NONE = 0
    PASSED = 1
    FAILED = 2


_ABSENT, _VALUE, _STALE = int(Kind.ABSENT), int(Kind.VALUE), int(Kind.STALE)
_NONE, _PASSED, _FAILED = int(Gate.NONE), int(Gate.PASSED), int(Gate.FAILED)
# plain numbers: an enum's members are slow to look up, and these are for every slot of every view


class Columns:
    """Keeps the board's arrays and rewrites the rows of environments that changed."""

    def __init__(self) -> None:
        self._shape = (0, 0)
        self._ids: list[int] = []
        self._slots: list[str] = []
        self._versions: list[tuple[int, int | None, float]] = []
        self._env = np.zeros((0, len(ENV_COLUMNS)), np.float32)
        self._env_kind = np.zeros((0, len(ENV_COLUMNS)), np.uint8)
        self._cell = np.zeros((0, 0, len(CELL_COLUMNS)), np.float32)
        self._cell_kind = np.zeros((0, 0, len(CELL_COLUMNS)), np.uint8)
        self._stage = np.zeros((0, 0), np.uint8)
        self._gate = np.zeros((0, 0), np.uint8)

    def pack(self, state: RunState, now: float) -> tuple[int, int, bytes]:
        """``(environments, slots, bytes)``: int32 ids[E], float32 env[C,E], float32 cell[D,E,S], then as uint8
        env kinds[C,E], cell kinds[D,E,S], stage[E,S], gate[E,S]. Environments are in order of their ids."""
        ranks, slots = ranks_of(state, now), state.run.slots
        ids = list(ranks)
        if ids != self._ids or slots != self._slots:
            self._resize(ids, list(slots))
        changed = []
        for line, (env_id, rank) in enumerate(ranks.items()):
            fold = state.environments[env_id]
            version = (fold.version, fold.episode, rank)
            if self._versions[line] != version:
                self._versions[line] = version
                changed.append(line)
        if changed:
            self._write(changed, state, ranks)
        columns = (
            np.array(ids, np.int32),
            self._env.T,
            np.moveaxis(self._cell, 2, 0),
            self._env_kind.T,
            np.moveaxis(self._cell_kind, 2, 0),
            self._stage,
            self._gate,
        )
        return len(ids), len(slots), b"".join(np.ascontiguousarray(column).tobytes() for column in columns)

    def _resize(self, ids: list[int], slots: list[str]) -> None:
        self._ids, self._slots = ids, slots
        rows, cells = len(ids), len(slots)
        self._versions = [(-1, None, 0.0)] * rows
        self._env, self._env_kind = _pair(rows, len(ENV_COLUMNS))
        self._cell = np.zeros((rows, cells, len(CELL_COLUMNS)), np.float32)
        self._cell_kind = np.zeros((rows, cells, len(CELL_COLUMNS)), np.uint8)
        self._stage = np.full((rows, cells), NO_STAGE, np.uint8)
        self._gate = np.zeros((rows, cells), np.uint8)

    def _write(self, lines: list[int], state: RunState, ranks: dict[int, float]) -> None:
        """All rows at once: going through numpy for each costs more than all the rest."""
        start = state.first_time or 0.0
        env, env_kind, cell, cell_kind = array("f"), bytearray(), array("f"), bytearray()
        stage, gate = bytearray(), bytearray()
        for line in lines:
            env_id = self._ids[line]
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
        for rows, written in (
            (self._env, env),
            (self._env_kind, env_kind),
            (self._cell, cell),
            (self._cell_kind, cell_kind),
            (self._stage, stage),
            (self._gate, gate),
        ):
            rows[lines] = np.frombuffer(written, rows.dtype).reshape(len(lines), *rows.shape[1:])


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


def _pair(rows: int, columns: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    return np.zeros((rows, columns), np.float32), np.zeros((rows, columns), np.uint8)
