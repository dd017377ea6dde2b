"""What the subcommands' parsers share."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any, NoReturn

from esper.leyline import UsageError


class Parser(argparse.ArgumentParser):
    """Mistakes become ``UsageError``, so that every command fails alike: one line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help lists what there is)")


def option_value(flag: str, text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` that was given to ``flag``; the value is JSON, or else text. Raises ``UsageError``."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"{flag} {text!r}; NAME=VALUE is needed")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def alive(pid: int | None) -> bool:
    """Whether the process exists."""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
