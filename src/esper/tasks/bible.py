"""The King James Bible, as Debian packs it: found, checked and read."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from shutil import which
from types import MappingProxyType
from typing import Final

from esper.leyline import DataError
from esper.tasks.pretrained.weights import check_sha256

SOURCE: Final = "the King James Bible of Debian's bible-kjv-text"
FOLDER: Final = "/usr/lib"
"""Where Debian's package ``bible-kjv-text`` puts the text."""
HOW: Final = "on Debian and Ubuntu: apt-get install bible-kjv"
FILES: Final = MappingProxyType(
    {
        "bible.data": "6c746c2acc8a34bfded980883ff1701a5d68934a1c853ebf88a07b978fe0ae0e",
        "bible.data.conc": "56349cd5a86be64d91eee62ac050114b89485f13b439ad4f34da99dde3b4dff3",
    }
)
"""Name -> sha256 of the text as Debian packs it, and of its concordance, without which the program does not start."""
PROGRAM: Final = "bible"
"""Of the package ``bible-kjv``; it reads the files."""
SECONDS: Final = 60
"""Most that it may take; it takes a tenth of one."""
TEXT_SHA256: Final = "cd45f0c9cedab8e4439bd6486c8952c77cc8b0ecc5d1f6ae3513f2039f47229d"
"""Of what the program prints: 31,102 lines such as ``Ge1:1 In the beginning God created the heaven and the earth.``"""


def read_text(folder: Path, task: str) -> str:
    """One line a verse, in the order of the books, for the task of that name.

    Raises ``DataError`` without the files or the program.
    """
    for name, sha256 in FILES.items():
        file = folder / name
        if not file.is_file():
            raise DataError(f"task {task}: {file} is missing; {HOW}, or name another folder by the option data_dir")
        check_sha256(file, sha256)
    program = which(PROGRAM)
    if program is None:
        raise DataError(f"task {task}: the program {PROGRAM!r}, which reads the text in {folder}, is missing; {HOW}")
    command = [program, "-p", ".", "-f", "gen1:1-rev22:21"]
    try:
        # its folders are separated by spaces, so that a name with one can only be given as the present one
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DataError(f"task {task}: {program} cannot read the text in {folder}: {error}") from error
    given = hashlib.sha256(done.stdout).hexdigest()
    if given != TEXT_SHA256:
        raise DataError(
            f"task {task}: {program} prints a text with sha256 {given[:16]}…, not {TEXT_SHA256[:16]}…; {HOW}"
        )
    return done.stdout.decode("ascii")
