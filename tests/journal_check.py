"""Reads the journals that tests made, as nobody else does: key by key against the contract."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from esper.nissa.segments import JournalDamaged, SegmentScan, read_header
from esper.nissa.wire import NewerSchemaError, WireError, decode


def undeclared(directory: Path, apart_from: Collection[Path] = ()) -> list[str]:
    """What the committed events below ``directory`` hold that the contract does not have, each with its place.

    Left out are bytes that a test damaged or that a newer version would have written: no contract covers them.
    """
    paths = sorted(directory.rglob("events-*.jsonl"))
    return [fault for path in paths if not set(apart_from).intersection(path.parents) for fault in _of_segment(path)]


def _of_segment(path: Path) -> Iterator[str]:
    try:
        found = read_header(path)
        batches = [] if found is None else list(SegmentScan(path, found[1], salvage=True))
    except (JournalDamaged, NewerSchemaError, OSError):
        return
    for batch in batches:
        offset = batch.start.offset
        for line in batch.body.splitlines(keepends=True):
            try:
                decode(line, file=path, offset=offset)
            except NewerSchemaError:
                pass
            except WireError as error:
                yield str(error)
            offset += len(line)
