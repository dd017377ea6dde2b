"""The command line as a person meets it: in a process of its own for signals, in this one for mistakes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from cutting import in_child

from esper.leyline import TelemetryEventType
from esper.nissa import journal
from esper.nissa.reader import read_journal
from esper.scripts.main import COMMANDS, main
from esper.scripts.streams import settle

TINY = ["train", "heuristic", "--task", "toy:toy_task", "--episodes", "1", "--max-epochs", "4", "--quiet"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "heuristc"], "heuristc"),
        (["train", "heuristic", "--episodse", "3"], "--episodse"),
        (["train", "heuristic", "--episodes", "0"], "episodes is 0; it must be 1 or more"),
        (["train", "heuristic", "--max-seeds", "-2"], "max_seeds is -2"),
        (["train", "heuristic", "--lr", "nan"], "lr is nan"),
        (["train", "heuristic", "--task", "digist"], "did you mean 'digits'"),
        (["train", "heuristic", "--policy", "heuristik"], "did you mean 'heuristic'"),
        (["train", "heuristic", "--slots", "block9"], "did you mean 'block"),
        (["train", "heuristic", "--blueprints", "conv9"], "did you mean 'conv"),
        (["train", "heuristic", "--device", "cuda:77"], "cuda:77"),
        (["train", "heuristic", "--config", "nothing.toml"], "nothing.toml"),
        (["report", "no-such-run"], "no-such-run"),
        (["runs", "no-such-folder"], "no-such-folder"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (1, 2)
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and "Traceback" not in out + err
    assert not (tmp_path / "runs").exists(), "a mistake leaves no run behind"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.toml", "episods = 3\n", "did you mean 'episodes'"),
        ("c.toml", 'episodes = "three"\n', "episodes is 'three': Expected `int`"),
        ("c.toml", "episodes = [", "c.toml"),
        ("c.json", "[1]", "a table of keys"),
        ("c.yaml", "a: 1", ".toml or .json"),
    ],
)
def test_a_wrong_configuration_file_is_named(
    name: str, text: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    assert main(["train", "heuristic", "--config", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err


ASK_FOR_HELP = """
import contextlib, io, sys
from esper.scripts.streams import settle
from esper.scripts.main import COMMANDS, main

asked = [[], ["--help"], ["--version"], ["train", "heuristic", "--help"], ["train", "ppo", "--help"]]
for arguments in [*asked, *([name, "--help"] for name in COMMANDS)]:
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        main(arguments)
    print(arguments, len(shown.getvalue()), "torch" in sys.modules)
"""


def test_no_help_and_no_version_needs_torch() -> None:
    done = subprocess.run([sys.executable, "-c", ASK_FOR_HELP], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 5 + len(COMMANDS)
    assert [line for line in lines if line.endswith("True") or " 0 " in line] == []


def test_a_run_leaves_journal_report_and_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main([*TINY, "--run-dir", str(run)]) == 0
    table = capsys.readouterr().out
    assert "heuristic" in table and "static" in table and "random" in table and str(run) in table
    assert {path.name for path in run.iterdir()} >= {"run.json", "report", "model", "events-00001.jsonl"}
    kinds = [event.event_type.name for event in read_journal(run)]
    assert kinds[1] == "TRAINING_STARTED" and kinds[-1] == "TRAINING_ENDED" and kinds.count("EPISODE_ENDED") == 3
    assert main([*TINY, "--run-dir", str(run)]) == 2
    assert "in use already" in capsys.readouterr().err
    assert main(["report", str(run)]) == 0 and "static" in capsys.readouterr().out
    assert main(["runs", str(tmp_path)]) == 0 and "completed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [TINY[:-1], "train ppo --task tiny:tiny --rounds 1 --envs 2 --episode-length 3".split()]
)
def test_a_run_goes_on_without_a_reader_of_what_it_prints(command: list[str], tmp_path: Path) -> None:
    def work() -> int:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        settle()
        return main([*command, "--run-dir", str(tmp_path / "run")])

    ended = in_child(work, tmp_path / "log")
    assert ended.status == 0 and "Traceback" not in ended.said, ended.said
    (last,) = [
        event for event in read_journal(tmp_path / "run") if event.event_type is TelemetryEventType.TRAINING_ENDED
    ]
    assert last.data["status"] == "completed"


def test_a_failure_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full; what the journal misses from then on is that failure once more."""

    def fill(descriptor: int, data: bytes) -> None:
        if b"EPOCH_COMPLETED" in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(descriptor, data)

    write_all = journal.write_all
    monkeypatch.setattr(journal, "write_all", fill)
    assert main([*TINY, "--max-epochs", "40", "--run-dir", str(tmp_path / "run")]) == 1
    said = capsys.readouterr()
    (line,) = [*said.out.splitlines(), *said.err.splitlines()]
    assert line.startswith("esper: ") and "the journal cannot be written: No space left" in line


@pytest.mark.signals
@pytest.mark.parametrize(
    ("number", "status", "told"),
    [(signal.SIGINT, 130, "interrupted"), pytest.param(signal.SIGTERM, 143, "preempted", marks=pytest.mark.slow)],
)
def test_a_signal_ends_a_run_readably(number: int, status: int, told: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = signalled(run, [number], 0.0, status, told)
    assert said.splitlines()[-1].startswith("esper: stopped by") and str(run) in said.splitlines()[-1]


@pytest.mark.signals
@pytest.mark.parametrize(
    "seconds", [pytest.param(0.002, marks=pytest.mark.slow), 0.01, pytest.param(0.3, marks=pytest.mark.slow)]
)
def test_an_impatient_person_ends_it_as_readably(seconds: float, tmp_path: Path) -> None:
    said = signalled(tmp_path / "run", [signal.SIGINT] * 4, seconds, 130, "interrupted")
    assert "sink" not in said and said.splitlines()[-1].startswith("esper: stopped by Ctrl-C")


def signalled(run: Path, numbers: Sequence[int], seconds: float, status: int, told: str) -> str:
    """What a run says on standard error that gets signals, so many seconds apart, when it has done an epoch."""
    command = [sys.executable, "-m", "esper.scripts.main", *TINY, "--max-epochs", "4000", "--run-dir", str(run)]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            # a busy machine may take minutes to import torch
            deadline = time.monotonic() + 300
            while "EPOCH_COMPLETED" not in "".join(path.read_text() for path in run.glob("events-*.jsonl")):
                assert process.poll() is None and time.monotonic() < deadline, "the run never began"
                time.sleep(0.05)
            for number in numbers:
                process.send_signal(number)
                time.sleep(seconds)
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == status and "Traceback" not in said, said
    last = list(read_journal(run))[-1]
    assert (last.event_type.name, last.data["status"]) == ("TRAINING_ENDED", told)
    return said
