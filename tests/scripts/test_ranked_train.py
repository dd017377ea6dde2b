"""``esper train heuristic`` in several processes is the run of one process."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from esper.leyline import TelemetryEvent, UsageError
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal
from esper.scripts.train import main
from esper.tolaria.missing import RankLost
from forking import fork
from ranks import on_ranks

BATCH = 33
"""Of 282 examples: the ranks have 17 and 16 of a batch, and 9 each of the last."""
TOLERANCE = 2e-4
"""Relative, of figures; sums are in another order."""
CLOCKS = ("ms", "seconds", "time")


def command(run: Path, epochs: int, *more: str) -> list[str]:
    settings = f"--task diabetes --policy random --compare static --episodes 1 --batch-size {BATCH} --quiet".split()
    return ["heuristic", *settings, "--max-epochs", str(epochs), "--run-dir", str(run), *more]


def told(run: Path) -> list[TelemetryEvent]:
    """What training says."""
    return [event for event in read_journal(run) if event.producer == "train"]


def require_alike(one: Any, other: Any, where: str) -> None:
    """Equal, numbers that were computed but for rounding."""
    if isinstance(one, float) or isinstance(other, float):
        assert one == pytest.approx(other, rel=TOLERANCE, abs=1e-6), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            if not name.endswith(CLOCKS) and name not in ("run_id", "path", "message"):
                require_alike(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list) and not where.endswith(("checks_passed", "checks_failed")):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            require_alike(*pair, f"{where}[{number}]")
    elif not where.endswith(("checks_passed", "checks_failed")):
        assert one == other, where


def require_same_run(one: Path, other: Path) -> list[TelemetryEvent]:
    """Decisions, gates and stages exactly, figures to tolerance; gives what ``one`` says."""
    mine, theirs = told(one), told(other)
    assert [(e.event_type, e.epoch, e.slot_id) for e in mine] == [(e.event_type, e.epoch, e.slot_id) for e in theirs]
    for a, b in zip(mine, theirs, strict=True):
        require_alike(a.data, b.data, f"{a.event_type} of epoch {a.epoch}")
    return mine


def plain(run: Path, epochs: int) -> None:
    """The run of one process."""
    if (child := fork()) == 0:
        os._exit(main(command(run, epochs)))
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.slow
def test_two_ranks_are_one_run(tmp_path: Path) -> None:
    plain(tmp_path / "plain", 14)
    found = on_ranks(2, tmp_path / "ranks", lambda rank: main(command(tmp_path / "ranked", 14)), joined=False)
    assert found == [0, 0]
    events = require_same_run(tmp_path / "ranked", tmp_path / "plain")
    kinds = {event.event_type for event in events}
    assert {T.SEED_GERMINATED, T.SEED_GATE_EVALUATED, T.SEED_STAGE_CHANGED, T.MODEL_EXPORTED} <= kinds
    assert (tmp_path / "ranked" / "report" / "report.md").is_file()


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_and_another_number_of_ranks_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "ranked"

    def killed(rank: int) -> Any:
        from esper.run import resume

        boundary = resume.Checkpointer.boundary

        def dies(self: Any, step: int) -> None:
            boundary(self, step)
            if rank == 1 and step == 5:
                os.kill(os.getpid(), signal.SIGKILL)

        resume.Checkpointer.boundary = dies  # type: ignore[method-assign]
        return main(command(run, 8, "--checkpoint-every", "2"))

    found = on_ranks(2, tmp_path / "killed", killed, joined=False)
    assert found[0] == RankLost.exit_code and found[1] is None
    assert told(run)[-1].data["status"] == "failed"
    resumed = on_ranks(3, tmp_path / "resumed", lambda rank: main(["heuristic", "--resume", str(run)]), joined=False)
    assert resumed == [0, 0, 0]
    plain(tmp_path / "plain", 8)
    on, plainly = told(run), told(tmp_path / "plain")
    kept = [e for e in on if e.event_type in (T.EPOCH_COMPLETED, T.COMMAND_EXECUTED)]
    wanted = [e for e in plainly if e.event_type in (T.EPOCH_COMPLETED, T.COMMAND_EXECUTED)]
    assert len(kept) == len(wanted)
    for a, b in zip(kept, wanted, strict=True):
        require_alike(a.data, b.data, f"{a.event_type} of epoch {a.epoch}")


@pytest.mark.slow
def test_what_several_ranks_cannot_do_is_refused_on_each(tmp_path: Path) -> None:
    def refused(rank: int) -> list[str]:
        found = []
        for more in (["--stack"], ["--batch-size", "281"], ["--seed", str(rank)]):
            with pytest.raises(UsageError) as error:
                main(command(tmp_path / f"refused{more[0]}", 2, *more))
            found.append(str(error.value))
        with pytest.raises(UsageError) as error:
            main(["ppo", "--run-dir", str(tmp_path / "ppo")])
        return [*found, str(error.value)]

    for stack, batch, seed, ppo in on_ranks(2, tmp_path / "ranks", refused, joined=False):
        assert stack == "--stack trains hosts as one in one process; here are 2 that train together"
        assert batch.startswith("a batch of 1 has no example for some of 2 ranks; legal: a batch size by which")
        assert seed.startswith("--seed: rank 0 has 0, rank 1 1; every rank is given the same")
        assert ppo.startswith("esper train ppo runs in 2 processes that train together")
    assert not list(tmp_path.glob("refused*")) and not (tmp_path / "ppo").exists()
