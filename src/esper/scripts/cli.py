"""What the subcommands' parsers share."""

from __future__ import annotations

import argparse
from typing import NoReturn

from esper.leyline import UsageError


class Parser(argparse.ArgumentParser):
    """Mistakes become ``UsageError``, so that every command fails alike: one line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help lists what there is)")
