"""Reads the journals that tests made, as nobody else does: key by key against the contract, and for what was delivered
against the best that was seen."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T
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
    seen = BestSeen()
    for batch in batches:
        offset = batch.start.offset
        for line in batch.body.splitlines(keepends=True):
            try:
                worse = seen.worse(decode(line, file=path, offset=offset))
                if worse is not None:
                    yield f"{path}: byte {offset}: {worse}"
            except NewerSchemaError:
                pass
            except WireError as error:
                yield str(error)
            offset += len(line)


class BestSeen:
    """The best validated metric of each episode, to hold against that of the network which it delivers."""

    def __init__(self) -> None:
        self._sign = 1.0
        self._best: dict[tuple[int | None, int | None], float] = {}
        self._lost: set[tuple[int | None, int | None, int | None]] = set()
        """Epochs that were rolled back: their networks are gone."""

    def worse(self, event: TelemetryEvent) -> str | None:
        """What is wrong with an episode that ended with less than it had."""
        data, key = event.data, (event.env_id, event.episode)
        if event.event_type is T.TRAINING_STARTED:
            self._sign = 1.0 if data["metric"]["higher_is_better"] else -1.0
        elif event.event_type is T.EPISODE_STARTED:
            self._best.pop(key, None)
        elif event.event_type is T.GOVERNOR_ROLLBACK:
            self._lost.add((*key, event.epoch))
        elif event.event_type is T.EPOCH_COMPLETED and (*key, event.epoch) not in self._lost:
            metric = data.get("validation_metric")
            if metric is not None and metric == metric:
                self._best[key] = max(self._best.get(key, self._sign * metric), self._sign * metric)
        elif event.event_type is T.EPISODE_ENDED and "delivered" in data and key in self._best:
            delivered, best = self._sign * data["validation_metric"], self._best[key]
            if not delivered >= best - 1e-9 * abs(best):
                return f"delivered at {data['validation_metric']}, where {self._sign * best} had been validated"
        return None
