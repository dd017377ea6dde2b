"""Hold the tree to its size limits: lines of a file and of a function, parameters, and branches.

Complexity is ruff's C901; this checks what ruff does not. Exceptions stand in ``tools/ratchet.toml`` with a reason and
the size they may have, so that they can only shrink: one that is no longer needed, or larger than need be, fails too.
Generated files have no limit.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

LIMITS = {"file_lines": 500, "function_lines": 80, "parameters": 8}
ROOT = Path(__file__).resolve().parent.parent
GENERATED = {ROOT / "web" / "src" / "lib" / "schema.ts"}


def measure(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield ``(limit, place, size)`` for a file and each of its functions."""
    source = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix()
    yield "file_lines", name, len(source.splitlines())
    if path.suffix != ".py":
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            place = f"{name}:{node.name}"
            yield "function_lines", place, (node.end_lineno or node.lineno) - node.lineno + 1
            arguments = node.args
            named = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            yield "parameters", place, len([a for a in named if a not in ("self", "cls")])


def main() -> int:
    """Print every breach; 1 when there is one."""
    exceptions = tomllib.loads((ROOT / "tools" / "ratchet.toml").read_text(encoding="utf-8")).get("exception", [])
    allowed = {(e["limit"], e["place"]): e for e in exceptions}
    files = [p for top in ("src", "tests", "tools", "benchmarks") for p in sorted((ROOT / top).rglob("*.py"))]
    files += [p for pattern in ("*.ts", "*.svelte") for p in sorted((ROOT / "web").glob(f"src/**/{pattern}"))]
    files = [path for path in files if path not in GENERATED]
    breaches, used = [], set()
    for path in files:
        for limit, place, size in measure(path):
            exception = allowed.get((limit, place))
            if exception is not None:
                used.add((limit, place))
                if size != exception["size"]:
                    breaches.append(f"{place}: {limit} is {size}; its exception says {exception['size']}")
                elif size <= LIMITS[limit]:
                    breaches.append(f"{place}: {limit} is {size} and needs no exception any more")
            elif size > LIMITS[limit]:
                breaches.append(f"{place}: {limit} is {size}, the limit is {LIMITS[limit]}")
    breaches += [f"{place}: its exception for {limit} fits nothing" for limit, place in sorted(set(allowed) - used)]
    print("\n".join(breaches) or f"ratchet: {len(files)} files within {LIMITS}, {len(allowed)} exceptions")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
