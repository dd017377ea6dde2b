"""Write the versions of ``uv.lock`` into ``pyproject.toml`` as constraints.

The lock itself is not committed, since it names registries. To move to newer versions: empty the list, ``uv lock
--upgrade``, run this, run the tests.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = r"python_full_version [<>=]+ '[^']+'"


def constraints() -> list[str]:
    """``name==version``; where the lock forks by Python version, each with the Pythons it is for."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    versions: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for package in lock["package"]:
        if "registry" in package["source"]:
            versions[package["name"]].append((package["version"], package.get("resolution-markers", [])))
    lines = []
    for name, found in sorted(versions.items()):
        for version, markers in found:
            pythons = sorted({clause for marker in markers for clause in re.findall(PYTHON, marker)})
            lines.append(f"{name}=={version}" + (f" ; {' or '.join(pythons)}" if len(found) > 1 else ""))
    return lines


def main() -> None:
    """Replace the list in ``pyproject.toml``."""
    path = ROOT / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    block = "constraint-dependencies = [\n" + "".join(f'    "{line}",\n' for line in constraints()) + "]"
    changed, count = re.subn(r"constraint-dependencies = \[\n.*?\]", lambda _: block, text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit("pyproject.toml: there must be one list constraint-dependencies in [tool.uv]")
    path.write_text(changed, encoding="utf-8")
    print(f"{len(block.splitlines()) - 2} versions pinned")


if __name__ == "__main__":
    main()
