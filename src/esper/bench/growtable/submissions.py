"""Submissions: what a policy did on a table's held-out worlds, as a file that anybody can check without the policy.

A submission names the sequence that the policy ended with on every host. All figures follow from these and the table,
and are computed anew before they stand on a leaderboard; what the reading test found cannot be, and is the submitter's
word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec

from esper.bench.growtable import report
from esper.bench.growtable.host import TableHost
from esper.bench.growtable.reading import Reading
from esper.bench.growtable.score import HostKey, HostResults, Tally, ahead, host_key, outcome_of, over_hosts
from esper.bench.growtable.sequences import Choices, choices_of, name_of
from esper.bench.growtable.table import Table, TableIdentity
from esper.karn.stats import Interval
from esper.leyline import DataError, as_type, decode_json
from esper.leyline.decoding import told
from esper.leyline.files import read_regular, write_atomically

FORMAT: Final = "esper-growtable-submission-2"
SUBMISSION_BYTES: Final = 1 << 20
TOLERANCE: Final = 1e-6
"""Points by which a stated figure may differ from the one that is computed anew."""

Bounds = tuple[float, float, float]
"""Mean, and both ends of its 95 % interval."""
_Count = Annotated[int, msgspec.Meta(ge=0)]
# Z, since $ lets a newline stand at the end; no control, no mark that cannot be seen or turns the line round
_UNSEEN: Final = r"\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=80, pattern=rf"^[^{_UNSEEN}]+\Z")]
_Checksum = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One policy on one table."""

    format: str
    name: _Name
    policy: str
    """What was scored: a name, a file, or ``module:Callable``."""
    policy_sha256: _Checksum | None
    """Of the policy's file; ``None`` where it is code."""
    table: TableIdentity
    command: str
    """That gave these figures."""
    played: dict[str, dict[str, str]]
    """World -> number of the host -> the sequence that the policy ended with."""
    objective: Bounds
    ahead: dict[str, Bounds]
    """Rival -> points that the policy is ahead of it, paired over hosts."""
    lost: Bounds
    """Points lost where all that is seen of a host is another host's."""
    changed: _Count
    """Episodes of that in which it did anything else..."""
    episodes: _Count
    """...of so many."""
    asked: _Count
    """Actions that it asked for..."""
    refused: _Count
    """...of which so many were illegal."""


@dataclass(frozen=True, slots=True)
class Field:
    """What submissions are judged by: a table and what every rival achieves on it."""

    table: Table
    identity: TableIdentity
    rivals: Mapping[str, HostResults]

    @property
    def hosts(self) -> dict[HostKey, TableHost]:
        """Those of the table."""
        return {host_key(host): host for name in self.table.worlds for host in self.table.of(name)}


def submission(
    field: Field,
    named: tuple[str, str, str | None],
    command: str,
    led: Mapping[HostKey, Choices],
    reading: Reading,
    tally: Tally,
) -> Submission:
    """What a policy did; ``named``: its name, what was scored and the checksum of its file; ``led``: host -> the
    sequence that it ended with.
    """
    played: dict[str, dict[str, str]] = {}
    for key, choices in led.items():
        played.setdefault(key.world, {})[str(key.number)] = name_of(choices)
    objective, ahead = _figures(field, led)
    name, policy, checksum = named
    return Submission(
        format=FORMAT,
        name=name,
        policy=policy,
        policy_sha256=checksum,
        table=field.identity,
        command=command,
        played=played,
        objective=objective,
        ahead=ahead,
        lost=_bounds(reading.lost),
        changed=reading.changed,
        episodes=reading.episodes,
        asked=tally.asked,
        refused=tally.refused,
    )


class _Named(msgspec.Struct):
    """As much of a submission as says whose it is."""

    name: str


def places(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """The file in ``folder`` of each name's submission. Raises ``DataError`` for what cannot be a name, and where the
    file is that of another name.
    """
    found: dict[Path, str] = {}
    for name in names:
        as_type(name, f"submission of {told(repr(name))}", _Name)
        path = folder / f"{re.sub('[^A-Za-z0-9._-]+', '-', name)}.json"
        other = found.get(path, name)
        if path.is_file():
            other = decode_json(read_regular(path, SUBMISSION_BYTES, follow=True), f"submission {path}", _Named).name
        if other != name or path in found:
            raise DataError(f"submission of {told(repr(name))}: {path} is the file of {told(repr(other))}")
        found[path] = name
    return {name: path for path, name in found.items()}


def write(folder: Path, given: Submission) -> Path:
    """Write it into ``folder`` under its name, instead of an older one of that name; raises as :func:`places` does."""
    path = places(folder, [given.name])[given.name]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(msgspec.to_builtins(given), indent=1, allow_nan=False) + "\n").encode())
    return path


def load(path: Path, field: Field) -> Submission:
    """A submission whose figures add up. Raises ``DataError`` for one that is damaged, of another table, or not true to
    the sequences that it names.
    """
    where = f"submission {path}"
    try:
        given = decode_json(read_regular(path, SUBMISSION_BYTES, follow=True), where, Submission)
    except OSError as error:
        raise DataError(f"{where}: {error.strerror or error}") from error
    if given.format != FORMAT:
        raise DataError(f"{where}: the format is {told(repr(given.format))}; {FORMAT!r} is needed")
    if given.table != field.identity:
        raise DataError(f"{where}: scored on {_shown(given.table)}; the leaderboard's is {_shown(field.identity)}")
    led = _led(given, field, where)
    objective, ahead = _figures(field, led)
    _same(where, "objective", given.objective, objective)
    if given.ahead.keys() != ahead.keys():
        raise DataError(f"{where}: it is compared with {told(', '.join(given.ahead))}; needed: {', '.join(ahead)}")
    for rival, bounds in ahead.items():
        _same(where, f"ahead of {rival}", given.ahead[rival], bounds)
    mean, low, high = given.lost
    if not low <= mean <= high or given.changed > given.episodes or given.refused > given.asked:
        raise DataError(f"{where}: its figures of the reading test or of illegal actions contradict each other")
    if given.changed == 0 and given.lost != (0.0, 0.0, 0.0):
        raise DataError(f"{where}: it lost points in the reading test, and did nothing else in any episode")
    return given


def leaderboard(found: Sequence[Submission]) -> str:
    """One row a submission, the best mean objective first."""
    if not found:
        return ""
    rivals = list(found[0].ahead)
    ahead = " | ".join(f"minus {rival}" for rival in rivals)
    rows = [
        f"{_shown(found[0].table).capitalize()}, {sum(map(len, found[0].played.values()))} hosts of "
        f"{', '.join(f'`{world}`' for world in found[0].played)}.",
        "",
        f"| policy | objective | {ahead} | loses, shown another host's | illegal | SHA-256 of its file |",
        f"|---|---:|{'---:|' * len(rivals)}---:|---:|---|",
    ]
    for each in sorted(found, key=lambda one: one.objective[0], reverse=True):
        over = " | ".join(_words(each.ahead[rival]) for rival in rivals)
        checksum = "code" if each.policy_sha256 is None else each.policy_sha256[:16]
        rows.append(
            f"| `{each.name.replace('`', '').replace('|', '/')}` | {_words(each.objective)} | {over} | "
            f"{_words(each.lost)}, {each.changed} of {each.episodes} | {each.refused} of {each.asked} | {checksum} |"
        )
    return "\n".join(rows)


def _led(given: Submission, field: Field, where: str) -> dict[HostKey, Choices]:
    needed = {key for found in field.rivals.values() for key in found}
    named = {(world, number): name for world, hosts in given.played.items() for number, name in hosts.items()}
    if named.keys() != {(key.world, str(key.number)) for key in needed}:
        raise DataError(f"{where}: it played {len(named)} hosts; needed are the table's {len(needed)} held-out ones")
    try:
        led = {key: choices_of(named[key.world, str(key.number)]) for key in needed}
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    hosts = field.hosts
    for key, choices in led.items():
        if choices not in hosts[key].records:
            raise DataError(f"{where}: host {key.number} of {key.world} holds no {name_of(choices)}")
    return led


def _figures(field: Field, led: Mapping[HostKey, Choices]) -> tuple[Bounds, dict[str, Bounds]]:
    hosts = field.hosts
    # one order, so that sums round alike
    keys = sorted(led, key=lambda key: (key.world, key.number))
    mine: HostResults = {key: outcome_of(hosts[key], [hosts[key].records[led[key]]]) for key in keys}
    beside = {rival: _bounds(ahead(mine, theirs)) for rival, theirs in field.rivals.items()}
    return _bounds(over_hosts({key: found.objective for key, found in mine.items()})), beside


def _bounds(found: Interval) -> Bounds:
    if found.low is None or found.high is None:
        raise DataError("a submission needs two hosts or more of every held-out world")
    return found.mean, found.low, found.high


def _same(where: str, figure: str, stated: Bounds, due: Bounds) -> None:
    if any(abs(mine - theirs) > TOLERANCE for mine, theirs in zip(stated, due, strict=True)):
        raise DataError(f"{where}: {figure} is {_words(stated)} there; the sequences that it names give {_words(due)}")


def _words(bounds: Bounds) -> str:
    return report.between(*bounds)


def _shown(table: TableIdentity) -> str:
    return f"table {told(table.sha256[:16])} of version {table.version}"
