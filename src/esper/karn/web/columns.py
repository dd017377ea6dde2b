"""The flight board as columns of numbers, for a canvas: small on the wire and cheap to draw.

Beside every float32 column a uint8 one says what kind of value it is (:class:`Kind`), since a float alone
cannot tell absent from NaN, nor fresh from stale.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from esper.karn.snapshot import STALE_EPOCHS, stale_factor
from esper.karn.state import EnvironmentFold, Facts, Measured, RunState, SlotFold
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
        ids, slots = sorted(state.environments), state.run.slots
        if ids != self._ids or slots != self._slots:
            self._resize(ids, list(slots))
        start = state.first_time or 0.0
        for line, env_id in enumerate(ids):
            fold = state.environments[env_id]
            stale = stale_factor(state, fold, now)
            rank = fold.anomaly.rank + (0.0 if stale is None else stale.weight * stale.level)
            version = (fold.version, fold.episode, rank)
            if self._versions[line] != version:
                self._versions[line] = version
                self._write(line, fold, rank, start)
        arrays = (
            np.array(ids, np.int32),
            self._env.T,
            np.moveaxis(self._cell, 2, 0),
            self._env_kind.T,
            np.moveaxis(self._cell_kind, 2, 0),
            self._stage,
            self._gate,
        )
        return len(ids), len(slots), b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)

    def _resize(self, ids: list[int], slots: list[str]) -> None:
        self._ids, self._slots = ids, slots
        rows, cells = len(ids), len(slots)
        self._versions = [(-1, None, 0.0)] * rows
        self._env, self._env_kind = _pair(rows, len(ENV_COLUMNS))
        self._cell = np.zeros((rows, cells, len(CELL_COLUMNS)), np.float32)
        self._cell_kind = np.zeros((rows, cells, len(CELL_COLUMNS)), np.uint8)
        self._stage = np.full((rows, cells), NO_STAGE, np.uint8)
        self._gate = np.zeros((rows, cells), np.uint8)

    def _write(self, line: int, fold: EnvironmentFold, rank: float, start: float) -> None:
        epoch, facts = fold.epoch, fold.facts
        seen = None if fold.last_time is None else fold.last_time - start
        values = (
            (rank, Kind.VALUE),
            _fact(facts, "validation_metric", epoch),
            _fact(facts, "validation_loss", epoch),
            _plain(epoch),
            _plain(fold.max_epochs),
            _fact(facts, "parameters", epoch),
            _fact(facts, "train_ms", epoch),
            _plain(seen),
        )
        self._env[line], self._env_kind[line] = zip(*values, strict=True)
        # one assignment a row: writing number by number costs more than all the rest
        slots = [fold.slots.get(name) for name in self._slots]
        if not slots:
            return
        self._stage[line] = [_STAGES.get((slot and slot.stage) or "", NO_STAGE) for slot in slots]
        self._gate[line] = [_gate(slot) for slot in slots]
        cells = [_cell(slot, epoch) for slot in slots]
        self._cell[line] = [[value for value, _ in cell] for cell in cells]
        self._cell_kind[line] = [[kind for _, kind in cell] for cell in cells]


def _gate(slot: SlotFold | None) -> Gate:
    if slot is None or slot.gate is None:
        return Gate.NONE
    return Gate.PASSED if slot.gate.passed else Gate.FAILED


def _cell(slot: SlotFold | None, epoch: int | None) -> list[tuple[float, Kind]]:
    facts: Facts = {} if slot is None or slot.seed is None else slot.seed.facts
    return [_fact(facts, name, epoch) for name in CELL_COLUMNS]


def _pair(rows: int, columns: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    return np.zeros((rows, columns), np.float32), np.zeros((rows, columns), np.uint8)


def _fact(facts: Facts, name: str, epoch: int | None) -> tuple[float, Kind]:
    measured = facts.get(name)
    return (0.0, Kind.ABSENT) if measured is None else _kind(measured, epoch)


def _kind(measured: Measured, epoch: int | None) -> tuple[float, Kind]:
    value = float(measured.value)
    if math.isnan(value):
        return 0.0, Kind.NAN
    if math.isinf(value):
        return 0.0, Kind.POSITIVE_INFINITY if value > 0 else Kind.NEGATIVE_INFINITY
    stale = measured.epoch is None or (epoch is not None and epoch - measured.epoch > STALE_EPOCHS)
    return value, Kind.STALE if stale else Kind.VALUE


def _plain(value: float | None) -> tuple[float, Kind]:
    return (0.0, Kind.ABSENT) if value is None else (value, Kind.VALUE)
