"""An hour of runs, stops, kills and resumes in one process: neither memory nor descriptors nor threads grow."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import pytest
from cutting import in_child
from histories import assert_same
from killing import Kind, start, without_figures

import esper.scripts.heuristic
import esper.scripts.ppo
import esper.scripts.summary
from counting import Count
from esper.scripts.main import main

KINDS = [
    "train heuristic --task tiny:tiny --episodes 2 --max-epochs 7 --compare random --checkpoint-every 2 --quiet",
    "train ppo --task tiny:tiny --rounds 2 --envs 2 --episode-length 5 --checkpoint-every 2 --quiet",
]
KEYS = ("seconds", "runs", "stopped", "killed", "resumes")
SECONDS = 3600


@dataclass
class Sample:
    """What the process holds after a round, and what it has done in it."""

    seconds: int
    rss: int
    descriptors: int
    threads: int
    runs: int = 0
    stopped: int = 0
    killed: int = 0
    resumes: int = 0


class Soak:
    """Rounds of a whole run, one that is stopped and one that is killed, each gone on with to its end."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.folder, self.draw = folder, draw

    def round(self, command: Sequence[str]) -> Sample:
        """One of each; whatever is done here is done again in the next."""
        began = time.monotonic()
        for path in self.folder.iterdir():
            shutil.rmtree(path)
        whole, stopped, killed = (self.folder / name for name in ("whole", "ended", "slain"))
        assert main([*command, "--run-dir", str(whole)]) == 0
        took, sample = time.monotonic() - began, Sample(0, 0, 0, 0, runs=1)
        sample.stopped = self._stopped(command, stopped, took)
        sample.killed = self._killed(command, killed, took)
        for path in (stopped, killed):
            if list((path / "checkpoints").glob("ckpt-*")):
                assert main([*command[:4], "--resume", str(path), "--quiet"]) in (0, 2)
                sample.resumes += 1
                assert_same(path, whole)
        gc.collect()
        sample.seconds, sample.rss = round(time.monotonic() - began), resident()
        sample.descriptors, sample.threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        return sample

    def _stopped(self, command: Sequence[str], path: Path, took: float) -> int:
        timer = threading.Timer(self.draw.uniform(0, took), os.kill, (os.getpid(), signal.SIGINT))
        status = 130
        try:
            timer.start()
            status = main([*command, "--run-dir", str(path)])
            timer.cancel()
        except KeyboardInterrupt:  # it came when the run was over
            pass
        timer.join()
        return int(status == 130)

    def _killed(self, command: Sequence[str], path: Path, took: float) -> int:
        child = start([*command, "--run-dir", str(path)], self.folder.with_suffix(".log"), Kind(command))
        time.sleep(self.draw.uniform(0, took))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return 1


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.signals
def test_soak(tmp_path: Path) -> None:
    import torch._dynamo  # noqa: F401

    assert esper.scripts.heuristic and esper.scripts.ppo and esper.scripts.summary
    counted = Count("soak", SECONDS, KEYS)
    samples, folder = tmp_path / "samples", tmp_path / "runs"
    folder.mkdir()

    def work() -> int:
        without_figures()
        soak = Soak(folder, random.Random(len(counted.cases)))
        with samples.open("w") as file:
            for number in counted.left():
                sample = soak.round(KINDS[number % 2].split())
                found = {key: value for key, value in asdict(sample).items() if key in KEYS}
                counted.remark = f"{sample.rss >> 20} MiB, {sample.descriptors} descriptors, {sample.threads} threads"
                counted.add(sample.seconds, **found)
                print(json.dumps(asdict(sample)), file=file, flush=True)
        return 0

    ended = in_child(work, tmp_path / "log")
    assert ended.status == 0, ended.said[-3000:]
    told = [Sample(**json.loads(line)) for line in samples.read_text().splitlines()]
    if len(told) >= 16:
        early, late = told[len(told) // 4 : len(told) // 2], told[-len(told) // 4 :]
        assert max(each.descriptors for each in late) <= max(each.descriptors for each in early)
        assert max(each.threads for each in late) <= max(each.threads for each in early)
        assert median(each.rss for each in late) <= 1.05 * median(each.rss for each in early)
    Count("soak", SECONDS, KEYS).finish()
