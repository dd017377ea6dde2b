from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
from event_strategies import note, same_event
from hypothesis import given
from hypothesis import strategies as st
from journal_kit import committed_lines, write

from esper.leyline import SCHEMA_VERSION
from esper.nissa import segments
from esper.nissa.segments import (
    FORMAT_VERSION,
    Batch,
    Header,
    JournalDamaged,
    Position,
    SegmentScan,
    commit_line,
    encode_header,
    list_segments,
    read_header,
    segment_path,
)
from esper.nissa.wire import NewerSchemaError, WireError, encode


def start_of(path: Path) -> Position:
    found = read_header(path)
    assert found is not None
    return found[1]


def test_the_scan_agrees_with_the_slow_reader_for_any_read_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [1, 5, 0, 2, 40])
    path = segment_path(tmp_path, 1)
    for chunk in (1, 7, 64, 1000, 1 << 20):
        monkeypatch.setattr(segments, "_CHUNK", chunk)
        scan = SegmentScan(path, start_of(path))
        batches = list(scan)
        assert b"".join(batch.body for batch in batches).splitlines(keepends=True) == committed_lines(path)
        assert [batch.count for batch in batches] == [2, 5, 2, 40, 0]
        assert scan.closes == "journal" and scan.tail == b"" and scan.position.offset == path.stat().st_size


def test_a_scan_can_start_at_the_border_of_any_batch(tmp_path: Path) -> None:
    write(tmp_path, [1, 2, 3])
    path = segment_path(tmp_path, 1)
    batches = list(SegmentScan(path, start_of(path)))
    for index, batch in enumerate(batches):
        assert list(SegmentScan(path, batch.start)) == batches[index:]
        assert batch.end == (batches[index + 1].start if index + 1 < len(batches) else batch.end)


def test_bytes_behind_the_last_commit_are_a_tail_not_events(tmp_path: Path) -> None:
    write(tmp_path, [1, 2], close=False)
    path = segment_path(tmp_path, 1)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(encode(note("uncommitted")) + b'{"event_type":"SE')
    scan = SegmentScan(path, start_of(path))
    assert sum(batch.count for batch in scan) == 4
    assert not scan.closes and scan.position.offset == size and scan.tail.startswith(b'{"event_type"')


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"x5"', b'"y5"', "checksum"),
        (b'"count":2', b'"count":3', "checksum"),
        (b'"last_seq":6', b'"last_seq":7', "checksum"),
        (b'{"commit":{"count":2,', b'{"commit":{"count":02,', "malformed"),
        (b"", b'{"commit":{}}\n', "behind the commit that closed"),
        (b"", b"more", "behind the commit that closed"),
    ],
)
def test_damage_names_the_file_and_where_the_batch_begins(tmp_path: Path, old: bytes, new: bytes, reason: str) -> None:
    write(tmp_path, [3, 2, 4])
    path = segment_path(tmp_path, 1)
    batches = list(SegmentScan(path, start_of(path)))
    before = path.read_bytes()
    after = before.replace(old, new) if old else before + new
    assert after != before
    path.write_bytes(after)
    with pytest.raises(JournalDamaged, match=reason) as caught:
        list(SegmentScan(path, start_of(path)))
    assert caught.value.file == path
    assert caught.value.offset == (batches[1].start.offset if old else len(before))


def test_the_crc_is_no_check_if_it_is_recomputed(tmp_path: Path) -> None:
    """The mutant beside the checks above: with a fitting commit line the same change passes."""
    path = segment_path(tmp_path, 1)
    line, start = encode_header(
        Header(journal=FORMAT_VERSION, schema=SCHEMA_VERSION, run_id="r", segment=1, created=0.0)
    )
    body = encode(note("y3"))
    commit, crc = commit_line(body, start.crc32, 1, 3)
    path.write_bytes(line + body + commit)
    (batch,) = SegmentScan(path, start)
    assert (batch.count, batch.last_seq, batch.end.crc32) == (1, 3, crc)


def test_a_tail_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [1], close=False)
    monkeypatch.setattr(segments, "MAX_BATCH_BYTES", 1 << 20)
    path = segment_path(tmp_path, 1)
    with path.open("ab") as file:
        file.write(b"x" * (3 << 20))
    with pytest.raises(JournalDamaged, match="no commit line within 1 MiB"):
        list(SegmentScan(path, start_of(path)))


def test_a_header_that_is_being_written_is_none_and_a_wrong_one_is_damage(tmp_path: Path) -> None:
    path = segment_path(tmp_path, 1)
    path.write_bytes(b"")
    assert read_header(path) is None
    path.write_bytes(b'{"journal":1')
    assert read_header(path) is None
    for wrong in (b"[]\n", b"{}\n", b"\xff\n", b'{"journal":1}\n', b"x" * (1 << 17)):
        path.write_bytes(wrong)
        with pytest.raises(JournalDamaged, match="no header"):
            read_header(path)
    for newer in (b'{"journal":99}\n', b'{"journal":1,"schema":99}\n'):
        path.write_bytes(newer)
        with pytest.raises(NewerSchemaError, match="newer schema"):
            read_header(path)


def test_only_segments_are_listed_in_order_of_number(tmp_path: Path) -> None:
    for name in ("events-00002.jsonl", "events-100000.jsonl", "events-00001.jsonl", "events-1.jsonl", "run.json"):
        (tmp_path / name).write_bytes(b"")
    assert list(list_segments(tmp_path)) == [1, 2, 100000]


@given(reasons=st.lists(st.sampled_from(["x", "NaN", "Infinity", "\n", "é"]), max_size=6), kept=st.integers(0, 6))
@pytest.mark.parametrize("piece", [1, 200, 1 << 15])
def test_events_of_a_batch_at_once_in_pieces_and_validated(piece: int, reasons: list[str], kept: int) -> None:
    emitted = [note(reason, seq=i + 1) for i, reason in enumerate(reasons)]
    body = b"".join(map(encode, emitted))
    place = Position(1, 0, 0)
    kept = min(kept, len(emitted))
    batch = Batch(Path("f"), place, place, body, len(emitted), kept, None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "_PIECE", piece)
        pieces = list(batch.pieces())
    assert all(map(same_event, chain(*pieces), emitted[:kept])) and sum(map(len, pieces)) == kept
    for validate in (False, True):
        assert all(map(same_event, batch.events(validate=validate), emitted[:kept]))
        assert len(batch.events(validate=validate)) == kept
        assert all(map(same_event, batch.events(superseded=True, validate=validate), emitted[kept:]))


@pytest.mark.parametrize("piece", [1, 1 << 15])
@pytest.mark.parametrize("kept", [1, 3])
@pytest.mark.parametrize("strange", [b'{"event_type":"SEED_SPORED","data":{}}\n', b"\n"])
def test_a_committed_line_that_is_no_event_is_named_by_its_own_offset(
    strange: bytes, kept: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_PIECE", piece)
    first = encode(note("x"))
    body = first + strange + encode(note("NaN"))
    batch = Batch(Path("f"), Position(1, 100, 0), Position(1, 0, 0), body, 3, kept, None, None)
    standing = [note("x")][:kept]
    readers = [lambda: batch.events(superseded=kept == 1), lambda: list(batch.pieces())]
    for read in readers if kept == 3 else readers[:1]:
        with pytest.raises(WireError) as caught:
            read()
        assert caught.value.offset == 100 + len(first)
    if kept == 1:
        assert all(map(same_event, chain(*batch.pieces()), standing))
