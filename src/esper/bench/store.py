"""What a bench has finished: one line a trial, so that it can be interrupted at any time and gone on with.

<run>/run.json        settings, versions, data digest
<run>/trials.jsonl    {"key": ..., "trial": {...}, "outcome": {...}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from esper.bench.settings import BenchConfig
from esper.bench.trial import Trial, TrialOutcome, Work, task_of
from esper.leyline import DataError, UsageError
from esper.leyline.files import TENSOR_BYTES, read_regular, write_all, write_atomically
from esper.nissa.manifest import Setting as Chosen
from esper.nissa.rundir import MANIFEST, RunDirectory

TRIALS: Final = "trials.jsonl"
FREE: Final = ("arms", "grown", "seeds", "workers")
"""Settings that may differ when a bench is gone on with: trials name all that their outcomes depend on."""


class Store:
    """The finished trials in a run directory."""

    def __init__(self, path: Path, run_id: str) -> None:
        self.path, self.run_id = path, run_id
        self._known: dict[str, Any] = {}
        self.torn = 0
        """Lines that an interruption left incomplete; their trials are run again."""
        self._read()

    @classmethod
    def open(cls, path: str | Path | None, config: BenchConfig, work: Work) -> Store:
        """Begin a bench in ``path`` (a fresh directory below ``runs/`` without one), or go on with the one there.

        Raises ``UsageError`` when that one had other settings.
        """
        settings = _plain(config, work)
        if path is None or not (Path(path) / MANIFEST).exists():
            where = None if path is None else Path(path).absolute()
            directory = RunDirectory.create(
                "runs" if where is None else where.parent, None if where is None else where.name, _manifest(settings)
            )
        else:
            directory = RunDirectory.open(path)
            _check_same(directory, settings)
        return cls(directory.path, directory.run_id)

    def _read(self) -> None:
        file = self.path / TRIALS
        if not file.exists():
            return
        whole = read_regular(file, TENSOR_BYTES)
        *lines, torn = whole.split(b"\n")
        if torn:
            self.torn = 1
            # what follows must begin on a line of its own
            write_atomically(file, whole[: len(whole) - len(torn)])
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["outcome"]
            except (ValueError, KeyError, TypeError) as error:
                where = f"{file}: line {number} is damaged"
                raise DataError(f"{where} ({error}); remove that line to run its trial again") from error

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __len__(self) -> int:
        return len(self._known)

    def outcome(self, trial: Trial) -> TrialOutcome:
        """Of a finished trial."""
        return TrialOutcome.of(self._known[trial.key()])

    def plain(self, key: str) -> Any:
        """What was put under ``key``."""
        return self._known[key]

    def put(self, key: str, what: Mapping[str, Any], outcome: Mapping[str, Any]) -> None:
        """Append one line and make it last."""
        self._known[key] = outcome
        line = json.dumps({"key": key, "trial": what, "outcome": outcome}, separators=(",", ":")).encode() + b"\n"
        descriptor = os.open(self.path / TRIALS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        try:
            if os.fstat(descriptor).st_nlink != 1:
                raise DataError(f"{self.path / TRIALS}: a file of several names; put a copy of it in its place")
            write_all(descriptor, line)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)


def _plain(config: BenchConfig, work: Work) -> dict[str, Any]:
    settings = {**asdict(config), "epochs": work.epochs, "arms": list(config.arms), "options": dict(config.options)}
    return {**settings, "torch": str(torch.__version__), "data": task_of(work).data.digest}


def _manifest(settings: Mapping[str, Any]) -> dict[str, Any]:
    config = {name: Chosen("flag", value) for name, value in settings.items()}
    return {"kind": "bench", "pid": os.getpid(), "config": config, "seeds": {"run": settings["seed"]}}


def _check_same(directory: RunDirectory, settings: Mapping[str, Any]) -> None:
    kind = directory.manifest.details.get("kind")
    if kind != "bench":
        raise UsageError(f"{directory.path}: holds a run of kind {kind!r}, not a bench; choose another --run-dir")
    before = {name: setting.value for name, setting in directory.manifest.config.items()}
    differing = [
        f"{name} was {before.get(name)!r} and is {value!r}"
        for name, value in settings.items()
        if name not in FREE and before.get(name) != value
    ]
    if differing:
        raise UsageError(
            f"{directory.path}: this bench was begun with other settings ({'; '.join(differing)}); "
            "give the same ones, or another --run-dir"
        )
