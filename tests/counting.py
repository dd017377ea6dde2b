"""Counts that take hours: what was counted stays in ``build/counts``, so that another sitting goes on from there.

``tools/slow.py`` makes a table of them. A count is one of a state of ``src``; another state begins it anew.
``ESPER_COUNT_SECONDS`` limits a sitting; a count that is not complete then is skipped, with what it has found so far.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COUNTS = ROOT / "build" / "counts"


def source_digest() -> str:
    """Of every file of ``src``."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "src").rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


class Count:
    """A count of ``wanted`` things by ``name``. Each case adds what it counted; the first of ``keys`` makes it full."""

    def __init__(self, name: str, wanted: int, keys: tuple[str, ...]) -> None:
        self.name, self.wanted, self.keys = name, wanted, keys
        self.remark = ""
        """What the table says behind the counts."""
        self._path = COUNTS / f"{name.replace(' ', '-')}-{source_digest()}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self.cases = [json.loads(line) for line in lines if line.endswith("}")]
        self._deadline = time.monotonic() + float(os.environ.get("ESPER_COUNT_SECONDS", "inf"))

    def total(self, key: str) -> int:
        """Over all cases."""
        return sum((Counter(case["found"]) for case in self.cases), Counter[str]())[key]

    def left(self) -> Iterator[int]:
        """Numbers of cases to do, until the count is full or the sitting is over."""
        while self.total(self.keys[0]) < self.wanted and time.monotonic() < self._deadline:
            yield len(self.cases)

    def add(self, took: float, /, **found: int) -> None:
        """A case is done."""
        case = {"found": found, "seconds": round(took, 2)}
        self.cases.append(case)
        with self._path.open("a") as file:
            file.write(json.dumps(case) + "\n")
        self._summarise()

    def finish(self) -> None:
        """Skip what is not complete."""
        done = self.total(self.keys[0])
        if done < self.wanted:
            pytest.skip(f"{done} of {self.wanted} {self.keys[0]} so far: {self.told()}")

    def told(self) -> str:
        """What was counted, in words."""
        return ", ".join(f"{self.total(key):,} {key}" for key in self.keys)

    def _summarise(self) -> None:
        summary = {
            "name": self.name,
            "found": ", ".join(part for part in (self.told(), self.remark) if part),
            "wanted": f"{self.wanted:,} {self.keys[0]}",
            "seconds": round(sum(case["seconds"] for case in self.cases)),
            "on": str(datetime.datetime.now(datetime.UTC).date()),
        }
        (COUNTS / f"{self.name.replace(' ', '-')}.json").write_text(json.dumps(summary))
