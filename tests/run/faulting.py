"""Run as a program, with ``faults.c`` loaded before it: lets each call of a run that touches its files fail.

``faulting.py KIND FOLDER`` goes on with the count of that kind. A run in which a call failed must have said so in one
line and with a status that is not 0, or be equal to the run in which none did; gone on with, it must be equal, too.
What it says until it failed is what the whole run says; then each episode may end, with the best network so far.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histories import assert_same, history
from killing import CLOCK, NOTHING, OVER, committed, ended, segments, small_segments, told, without_figures

from counting import Count
from forking import fork

CODES = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT)
ERROR, SHORT, VANISH = range(3)
KEYS = ("calls", "told", "absorbed", "not reached", "gone on with", "nothing to go on with", "silent")
TINY = "--task tiny:tiny --checkpoint-every 2 --quiet"
KINDS = {
    "heuristic": f"train heuristic {TINY} --episodes 2 --max-epochs 5 --compare random",
    "ppo": f"train ppo {TINY} --rounds 2 --envs 2 --episode-length 4",
    "report": "report",
}
OF_AN_END = frozenset({"SEED_STAGE_CHANGED", "SEED_PRUNED", "COMPUTE_SPENT", "MODEL_EXPORTED"})
"""What is told besides, where an episode ends with an earlier network."""
PATIENCE = 600.0


@dataclass(frozen=True)
class Fault:
    """The ``nth`` call fails with ``code``, or writes half of it, or the directory has gone; the later ones, too."""

    nth: int
    code: int = 0
    once: bool = True
    how: int = ERROR

    @classmethod
    def drawn(cls, case: int, calls: int) -> Fault:
        """Each call comes twice: alone, and as the first of all that fail from then on."""
        draw = random.Random(case)
        how = draw.choices((ERROR, SHORT, VANISH), (16, 2, 2))[0]
        return cls(case // 2 * 7919 % calls + 1, draw.choice(CODES), bool(case % 2) or how == VANISH, how)

    def __str__(self) -> str:
        what = (errno.errorcode.get(self.code), "a short write", "the directory has gone")[self.how]
        return f"call {self.nth} {'alone' if self.once else 'and all behind it'}: {what}"


def start(arguments: Sequence[str], log: Path, run: Path, fault: Fault) -> int:
    """``esper ARGUMENTS`` in a forked child in which that call on files of ``run`` fails."""
    child = fork()
    if child:
        return child
    status = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        struck = os.open(log.with_suffix(".struck"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        if arguments[0] != "report":
            without_figures()
        small_segments()
        from esper.scripts.main import main

        shim = ctypes.CDLL(None)
        away = str(run.with_suffix(".away")).encode()
        shim.fault_arm(str(run).encode(), away, ctypes.c_long(fault.nth), fault.code, fault.once, fault.how, struck)
        status = main(list(arguments))
        shim.fault_arm(b"", b"", ctypes.c_long(0), 0, 0, 0, -1) if fault.nth else None
        if not fault.nth:
            os.write(struck, b"%d" % shim.fault_calls())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Faults:
    """Cases of one kind of run beside the one in which no call fails."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.command, self.folder = kind, KINDS[kind].split(), folder
        self.whole, self.run, self.log = folder / "w-run", folder / "f-run", folder / "log"
        made = self.command if kind != "report" else KINDS["heuristic"].split()
        child = start([*made, "--run-dir", str(self.whole)], self.log, self.whole, Fault(0))
        assert ended(child, PATIENCE) == 0, self.log.read_text()
        if kind == "report":
            self.fresh()
            assert ended(start(self.arguments(), self.log, self.run, Fault(0)), PATIENCE) == 0, self.log.read_text()
            shutil.rmtree(self.whole / "report")
            shutil.copytree(self.run / "report", self.whole / "report")
        self.calls = int(self.log.with_suffix(".struck").read_text())
        events = [event for path in segments(self.whole) for event in committed(path)[0]]
        self.events = {event["seq"]: told(event) for event in events if event["producer"] == "train"}
        self.validated = {
            _episode(event, event["epoch"]): _scores(event)
            for event in events
            if event["event_type"] == "EPOCH_COMPLETED"
        }

    def arguments(self) -> list[str]:
        """Of the run whose calls fail."""
        return ["report", str(self.run)] if self.kind == "report" else [*self.command, "--run-dir", str(self.run)]

    def fresh(self) -> None:
        """Nothing of the case before is left."""
        for path in (self.run, self.run.with_suffix(".away")):
            shutil.rmtree(path, ignore_errors=True)
        if self.kind == "report":
            shutil.copytree(self.whole, self.run, ignore=shutil.ignore_patterns("report"))

    def case(self, fault: Fault) -> dict[str, int]:
        """What was counted. Raises ``AssertionError`` with what is wrong."""
        self.fresh()
        found = dict.fromkeys(KEYS, 0) | {"calls": 1}
        status = ended(start(self.arguments(), self.log, self.run, fault), PATIENCE)
        said, struck = self.log.read_text(), self.log.with_suffix(".struck").read_text()
        if (away := self.run.with_suffix(".away")).is_dir():
            shutil.rmtree(self.run, ignore_errors=True)
            away.rename(self.run)
        assert "Traceback" not in said and status in (0, 1, 2), f"status {status}, {struck[:300]}: {said[-3000:]}"
        if status == 0:
            self._equal(self.run)
            found["absorbed" if struck else "not reached"] = 1
            return found
        told_in = [line for line in said.splitlines() if line.startswith("esper: ")]
        assert len(told_in) == 1, f"{struck[:300]}: {said}"
        assert struck, f"no call failed, and yet: {said}"
        found["told"] = 1
        if self.kind == "report":
            return found
        self._invented()
        found[self._gone_on_with()] = 1
        return found

    def _equal(self, run: Path) -> None:
        if self.kind != "report":
            assert_same(run, self.whole)
        for path in (self.whole / "report").rglob("*"):
            mine = run / path.relative_to(self.whole)
            assert mine.exists(), f"silently not there: {path.name}"
            if self.kind == "report" and path.is_file():
                assert mine.read_bytes() == path.read_bytes(), f"different: {path.name}"

    def _invented(self) -> None:
        own = CLOCK | {"TRAINING_ENDED"}
        for path in segments(self.run):
            over, ends = False, []
            for event in committed(path)[0]:
                # a policy is saved however a run ends
                if event["producer"] != "train" or event["event_type"] in own or _of_policy(event):
                    continue
                over = over or told(event) != self.events.get(event["seq"])
                assert not over or self._ends(event), f"invented: {event}"
                if event["event_type"] == "EPISODE_ENDED":
                    ends.append(_episode(event))
            assert len(ends) == len(set(ends)), f"an episode ended twice: {ends}"

    def _ends(self, event: dict[str, Any]) -> bool:
        """Whether it is of the end of an episode that was broken off, and says what was validated before."""
        data = event["data"]
        if event["event_type"] == "EPISODE_ENDED":
            best = self.validated.get(_episode(event, data.get("delivered_epoch")))
            return data["status"] == "failed" and "test_metric" not in data and _scores(event) == best
        return event["event_type"] in OF_AN_END

    def _gone_on_with(self) -> str:
        log = self.folder / "resume"
        arguments = [*self.command[:4], "--resume", str(self.run), "--quiet"]
        status = ended(start(arguments, log, self.run, Fault(0)), PATIENCE)
        said = log.read_text()
        assert "Traceback" not in said, said[-3000:]
        if status == 0:
            assert_same(self.run, self.whole)
            return "gone on with"
        last = said.strip().rpartition("\n")[2]
        if OVER in last:
            assert history(self.run) == history(self.whole)
            return "gone on with"
        assert any(nothing in last for nothing in NOTHING), f"status {status}: {said}"
        assert not list(self.run.glob("checkpoints/ckpt-*")), f"a checkpoint is there: {last}"
        return "nothing to go on with"


def _episode(event: dict[str, Any], *epoch: int) -> tuple[Any, ...]:
    return event["data"]["arm"], event["env_id"], event["episode"], *epoch


def _scores(event: dict[str, Any]) -> tuple[float, float]:
    return event["data"]["validation_metric"], event["data"]["validation_loss"]


def _of_policy(event: dict[str, Any]) -> bool:
    return bool(event["data"].get("reason") == "policy")


def main(kind: str, folder: Path) -> int:
    """Count; 1 where something was found, 3 where the sitting was too short."""
    import torch._dynamo

    import esper.karn.report
    import esper.scripts.heuristic
    import esper.scripts.ppo
    import esper.scripts.report
    import esper.scripts.summary  # noqa: F401

    if kind == "report":
        import matplotlib.pyplot  # noqa: F401
    torch.set_num_threads(1)
    faults = Faults(kind, folder)
    counted = Count(f"failing calls of {kind}", 2 * faults.calls, KEYS)
    print(f"{kind}: {faults.calls} calls", flush=True)
    bad = 0
    for case in counted.left():
        fault, began = Fault.drawn(case, faults.calls), time.monotonic()
        try:
            found = faults.case(fault)
        except (AssertionError, ValueError, KeyError) as error:
            bad += 1
            found = dict.fromkeys(KEYS, 0) | {"calls": 1, "silent": 1}
            struck = faults.log.with_suffix(".struck").read_text()[:200]
            print(f"case {case}, {fault} [{struck.strip()}]: {str(error)[:1500]}", flush=True)
            if bad >= 20:
                break
        counted.add(time.monotonic() - began, **found)
    print(counted.told(), flush=True)
    return 1 if counted.total("silent") else 3 if counted.total("calls") < counted.wanted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
