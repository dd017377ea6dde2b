"""The ``esper`` command: hands each subcommand its arguments, and turns an error into one line and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

from esper._version import __version__
from esper.leyline import EsperError, unknown, visible
from esper.run.stopping import Stopped, as_program
from esper.scripts.streams import settle

COMMANDS = {
    "train": "train a host that grows: heuristic, ppo",
    "eval": "play a saved policy on held-out seeds beside its controls",
    "bench": "does growing pay? arms on paired seeds at equal compute",
    "sweep": "search settings with Optuna, every trial on the same seeds",
    "growtable": "tabular worlds with a known oracle: build, check, admit, train, tune, score, ship",
    "report": "rewrite a run's report and figures from its journal",
    "overwatch": "watch a run, live or in replay, in the browser or the terminal",
    "query": "questions in SQL over what a run has committed",
    "runs": "list runs with their state",
    "mirror": "a run's curves in TensorBoard, Weights & Biases or MLflow",
    "doctor": "say what is installed and which devices and extras work",
}


def usage() -> str:
    """The top-level help text."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [f"esper {__version__}: grow neural networks while they train", "", "usage: esper COMMAND ...", "", *lines, ""]
        + ["esper COMMAND --help says more."]
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 1 failed, 2 usage, 130 interrupted)."""
    arguments = sys.argv[1:] if argv is None else argv
    if argv is None:
        settle()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return 0

    def run() -> int:
        return guarded(lambda: dispatch(arguments[0], arguments[1:]))

    return as_program(run) if argv is None else run()


def dispatch(command: str, arguments: list[str]) -> int:
    """Import and run one subcommand's module."""
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    return int(import_module(f"esper.scripts.{command}").main(arguments))


def guarded(run: Callable[[], int]) -> int:
    """Run ``run``; a person's mistake becomes one line on standard error."""
    try:
        return run()
    except (EsperError, Stopped) as error:
        print(f"esper: {visible(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("esper: interrupted; what was committed so far stays readable", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"esper: {visible(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
