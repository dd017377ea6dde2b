"""The run directory, the one durable artefact of a run."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from esper.leyline import DataError, UsageError
from esper.leyline.files import MANIFEST_BYTES, Folder, read_regular, write_atomically
from esper.nissa.manifest import Manifest, decode_manifest, describe, encode_manifest

MANIFEST: Final = "run.json"
_last_id = [0]
_id_lock = threading.Lock()


def new_run_id() -> str:
    """A name that sorts by time of creation (UTC, to the microsecond) and ends in 32 random bits."""
    with _id_lock:
        now = _last_id[0] = max(time.time_ns() // 1000, _last_id[0] + 1)
    seconds, micros = divmod(now, 1_000_000)
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(seconds))}-{micros:06d}-{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """``run.json``, the journal's segments, ``checkpoints/``, ``report/`` and ``model/`` of one run."""

    path: Path
    manifest: Manifest

    @classmethod
    def create(
        cls, base: str | Path = "runs", run_id: str | None = None, manifest: Mapping[str, Any] | None = None
    ) -> RunDirectory:
        """Make ``base/run_id`` (a new id where none is given) and write its manifest.

        ``manifest`` holds ``config`` (name -> :class:`~esper.nissa.manifest.Setting`), ``seeds`` and whatever else
        is to be kept. Raises ``UsageError`` when the directory is in use already or cannot be written.
        """
        name = run_id or new_run_id()
        if name != Path(name).name or name in (".", ".."):
            raise UsageError(f"run id {name!r} is not a plain folder name")
        path = Path(base) / name
        described = describe(name, time.time(), manifest or {})
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UsageError(f"{path}: this run directory is in use already; resume it or choose another run id")
            write_atomically(path / MANIFEST, encode_manifest(described))
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None
        return cls(path, described)

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """The run in ``path``. Raises ``DataError`` when there is none or its manifest is damaged."""
        directory = Path(path)
        try:
            data = read_regular(directory / MANIFEST, MANIFEST_BYTES)
        except FileNotFoundError:
            raise DataError(f"{directory}: not a run directory (no {MANIFEST})") from None
        except OSError as error:
            raise DataError(f"{directory / MANIFEST}: cannot be read: {error.strerror or error}") from None
        return cls(directory, decode_manifest(data, directory / MANIFEST))

    def note_resume(self, after_seq: int, overrides: Sequence[str]) -> None:
        """Write into the manifest who goes on with the run, from where, and with which settings changed."""
        resume = {"time": time.time(), "pid": os.getpid(), "after_seq": after_seq, "overrides": list(overrides)}
        before = self.manifest.details
        details = {**before, "pid": os.getpid(), "resumes": [*before.get("resumes", []), resume]}
        write_atomically(self.path / MANIFEST, encode_manifest(msgspec.structs.replace(self.manifest, details=details)))

    def discard(self) -> None:
        """Remove a directory that was made for a run that never was. Files that somebody else has put there stay."""
        with suppress(OSError):
            for path in (self.path / MANIFEST, *self.path.glob("events-*.jsonl")):
                path.unlink()
            self.path.rmdir()

    def sweep(self) -> None:
        """Remove what writes that were killed have left, as far as that can be. For who holds the journal's lock."""
        for path in (self.path, self.report, self.model):
            with suppress(OSError, DataError), Folder.open(path, follow=path == self.path) as folder:
                folder.sweep()

    @property
    def run_id(self) -> str:
        """The run's id; the folder may have been renamed since."""
        return self.manifest.run_id

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go. Made by whoever writes the first."""
        return self.path / "checkpoints"

    @property
    def report(self) -> Path:
        """Where the report goes. Made by whoever writes it."""
        return self.path / "report"

    @property
    def model(self) -> Path:
        """Where the exported model goes. Made by whoever writes it."""
        return self.path / "model"


def list_runs(base: str | Path = "runs") -> list[Path]:
    """The run directories in ``base``, oldest first; none without ``base``. Hidden ones are being deleted."""
    try:
        with os.scandir(base) as entries:
            shown = [entry.path for entry in entries if not entry.name.startswith(".")]
            return sorted(Path(path) for path in shown if os.path.isfile(os.path.join(path, MANIFEST)))
    except FileNotFoundError:
        return []
