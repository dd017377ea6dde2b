"""What a person says of a run: name, tags, notes, whether it is put away. It stands in ``notes.json`` beside the
journal, never in it, and is written whole or not at all.

One edit at a time in a folder of runs, whoever makes it: editors and deletion hold the folder's lock. A run that is
being written is edited as well as any other, and never deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from esper.karn.runs import describe_run, is_run
from esper.leyline import DataError, UsageError, decode_json
from esper.leyline.files import Folder
from esper.leyline.text import ascii_json

NOTES: Final = "notes.json"
LONGEST_NAME: Final = 200
"""Characters."""
LONGEST_TAG: Final = 64
MOST_TAGS: Final = 32
LONGEST_NOTES: Final = 256 * 1024
MOST_BYTES: Final = 4 << 20
"""Of the file."""
PATIENCE: Final = 10.0
"""Seconds that an edit waits for another one in the same folder."""


class Notes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """``notes.json``."""

    name: str = ""
    tags: list[str] = []
    notes: str = ""
    archived: bool = False

    @property
    def digest(self) -> str:
        """Tells whether someone else has changed it meanwhile."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]


class Edit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be changed; the rest stays as it is."""

    name: str | None = None
    tags: list[str] | None = None
    tag: list[str] = []
    """To be added."""
    untag: list[str] = []
    notes: str | None = None
    archived: bool | None = None
    before: str | None = None
    """Digest of what the editor saw; the edit is refused where it is not so any more."""

    def applied(self, notes: Notes) -> Notes:
        """``notes`` as they are to be. Raises ``UsageError`` for what is too long."""
        kept = [tag for tag in (notes.tags if self.tags is None else self.tags) if tag.strip() not in self.untag]
        tags = sorted(dict.fromkeys(tag.strip() for tag in (*kept, *self.tag) if tag.strip()))
        name = notes.name if self.name is None else " ".join(self.name.split())
        text = notes.notes if self.notes is None else self.notes.replace("\r\n", "\n")
        for what, size, most in (
            ("a name", len(name), LONGEST_NAME),
            ("a tag", max(map(len, tags), default=0), LONGEST_TAG),
            ("notes", len(text), LONGEST_NOTES),
        ):
            if size > most:
                raise UsageError(f"{what} of {size:,} characters; at most {most:,} are kept")
        if len(tags) > MOST_TAGS:
            raise UsageError(f"{len(tags)} tags; at most {MOST_TAGS} are kept")
        if any("," in tag for tag in tags):
            raise UsageError("a tag with a comma in it: commas stand between tags")
        archived = notes.archived if self.archived is None else self.archived
        return Notes(name=name, tags=tags, notes=text, archived=archived)


def read_notes(directory: Path) -> Notes:
    """What stands there; nothing where there is no such file. Raises ``DataError`` for one that cannot be read."""
    try:
        with Folder.open(directory) as folder:
            return _read(folder)
    except OSError as problem:
        raise DataError(f"{directory / NOTES}: cannot be read: {problem.strerror or problem}") from None


def edit(directory: Path, change: Edit) -> Notes:
    """Change what is said of the run in ``directory``.

    Raises ``UsageError`` for what is too long, or was changed by someone else since ``change.before``, and
    ``DataError`` where the run is not there any more or cannot be written to.
    """
    try:
        with _alone(directory), Folder.open(directory) as folder:
            if not is_run(directory):
                raise DataError(f"{directory}: not a run directory")
            found = _read(folder)
            if change.before is not None and change.before != found.digest:
                raise UsageError(f"{directory.name} was edited by someone else meanwhile; look at it again")
            made = change.applied(found)
            folder.write(NOTES, ascii_json(msgspec.json.format(msgspec.json.encode(made), indent=2)) + b"\n")
            return made
    except FileNotFoundError:
        raise DataError(f"{directory}: there is no such run: it was moved or deleted") from None
    except OSError as problem:
        raise DataError(f"{directory / NOTES}: cannot be written: {problem.strerror or problem}") from None


def delete(directory: Path) -> None:
    """Remove the run in ``directory`` with all that is in it: out of sight at once, then from the disk.

    Raises ``UsageError`` for a run that is being written and ``DataError`` for what is no run.
    """
    hidden = f".deleted-{directory.name[:100]}-{secrets.token_hex(4)}"
    try:
        with _alone(directory), Folder.open(directory.parent) as parent:
            with parent.folder(directory.name) as folder:
                if not is_run(directory):
                    raise DataError(f"{directory}: not a run directory; only runs are deleted here")
                _refuse_live(directory, folder)
                parent.rename(directory.name, hidden)
                parent.sync()
            parent.remove(hidden)
    except FileNotFoundError:
        raise DataError(f"{directory}: there is no such run: it was moved or deleted") from None
    except OSError as problem:
        left = directory.parent / hidden
        where = f"; what is left of it is in {left}" if left.exists() else ""
        raise DataError(f"{directory}: cannot be deleted: {problem.strerror or problem}{where}") from None


def _refuse_live(directory: Path, folder: Folder) -> None:
    """By the lock that a journal's writer holds, and by the process where there are no locks."""
    live = UsageError(f"{directory}: the run is being written; stop it before it is deleted")
    try:
        folder.lock()
    except BlockingIOError:
        raise live from None
    if (found := describe_run(directory)).goes_on and found.end_status is None:
        raise live


def _read(folder: Folder) -> Notes:
    try:
        data = folder.read(NOTES, MOST_BYTES)
    except FileNotFoundError:
        return Notes()
    return decode_json(data, f"{folder.path / NOTES}: damaged notes", Notes)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Nobody else edits in the same folder of runs meanwhile."""
    descriptor = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise UsageError(f"{directory.parent}: someone else edits there; try again") from None
                time.sleep(0.01)
            except OSError:
                break  # some network file systems have no locks; the file is still written whole
        yield
    finally:
        os.close(descriptor)


def told(edits: Sequence[str]) -> list[str]:
    """Tags as they are typed, with commas between them."""
    return [tag for words in edits for tag in words.split(",")]


def facts(notes: Notes, shown: int = 200) -> dict[str, Any]:
    """Fields of a row in the table of runs: of long notes their beginning."""
    found: dict[str, Any] = {"title": notes.name, "tags": notes.tags, "archived": notes.archived}
    found |= {"notes": notes.notes[:shown], "notes_length": len(notes.notes)}
    return {name: value for name, value in found.items() if value}
