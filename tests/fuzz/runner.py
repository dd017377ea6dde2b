"""Fuzzes one target, guided by coverage, until it has had its share; what was done is kept and gone on with.

    python tests/fuzz/runner.py TARGET FOLDER [RUNS]
    python tests/fuzz/runner.py --replay

``FOLDER`` holds the corpus as it grows and how many inputs were run on these sources: on others the count begins anew.
An input that ends in anything but a result or an ``EsperError``, takes 10 s or 1 GiB, ends it, and lies in ``FOLDER``;
once mended it goes to ``regressions/TARGET``. A replay runs what is to start from, the small corpus and those.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "bench")]
CORPUS = HERE / "corpus"
CHUNK = 10_000
"""Inputs of one process: libFuzzer keeps what it has found out only as long as it runs."""
VALUE = re.compile(rb':\s*("[^"]*"|-?[\d.e+-]+|null|true|false|\[|\{)')


def sources() -> str:
    """Digest of what is fuzzed."""
    digest = hashlib.sha256()
    for path in sorted((HERE.parent.parent / "src").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def done(folder: Path) -> int:
    """How many inputs were run on these sources."""
    count = folder / "count.json"
    told = json.loads(count.read_text()) if count.exists() else {}
    return int(told.get("runs", 0)) if told.get("sources") == sources() else 0


def fuzz(target: str, folder: Path, runs: int) -> int:
    """Go on until ``runs`` inputs were run. The status of the process that ended badly, or 0."""
    for corpus in (folder / "corpus", CORPUS / target):
        corpus.mkdir(parents=True, exist_ok=True)
    while (so_far := done(folder)) < runs:
        chunk = min(CHUNK, runs - so_far)
        options = [f"-runs={chunk}", "-timeout=10", "-rss_limit_mb=1024", "-max_len=4096", "-print_final_stats=0"]
        options += [f"-artifact_prefix={folder}/", f"-seed={so_far + 1}", "-verbosity=0", "-reload=0"]
        command = [sys.executable, str(HERE / "runner.py"), "--child", target, *options, str(folder / "corpus")]
        ended = subprocess.run([*command, str(CORPUS / target)], check=False)
        if ended.returncode:
            return ended.returncode
        (folder / "count.json").write_text(json.dumps({"sources": sources(), "runs": so_far + chunk}))
    return 0


def child(target: str, options: list[str]) -> None:
    """The process that fuzzes."""
    import atheris

    with atheris.instrument_imports(include=["esper"], enable_loader_override=False):
        from fuzz.seeds import TARGETS, TOKENS

        chosen = TARGETS[target]
        seeds = [seed for seed in chosen.seeds() if len(seed) <= 6000]
        for seed in seeds:
            chosen.run(seed)
            (Path(options[-2]) / hashlib.sha1(seed).hexdigest()).write_bytes(seed)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if not data or chance.random() < 0.02:
            return chance.choice(seeds)[:most]
        places = list(VALUE.finditer(data)) if chance.random() < 0.5 else []
        if places:
            place = chance.choice(places)
            token = chance.choice(TOKENS)
            return (data[: place.start(1)] + token + data[place.end(1) :])[:most]
        changed: bytes = atheris.Mutate(data, len(data) if len(data) >= most else most)
        return changed

    atheris.Setup(["fuzz", *options], chosen.run, custom_mutator=mutate)
    atheris.Fuzz()


def replay() -> None:
    """Every input that is known, once."""
    from fuzz.seeds import TARGETS

    for name, target in TARGETS.items():
        kept = [path.read_bytes() for path in sorted(HERE.glob(f"*/{name}/*"))]
        for number, data in enumerate([*target.seeds(), *kept]):
            try:
                target.run(data)
            except BaseException:
                print(f"{name}, input {number}: {data[:300]!r}", flush=True)
                raise
        print(f"{name}: {len(kept)} kept inputs")


if __name__ == "__main__":
    if sys.argv[1] == "--replay":
        replay()
    elif sys.argv[1] == "--child":
        child(sys.argv[2], sys.argv[3:])
    else:
        from fuzz.seeds import TARGETS as ALL

        wanted = int(sys.argv[3]) if len(sys.argv) > 3 else ALL[sys.argv[1]].share
        sys.exit(fuzz(sys.argv[1], Path(sys.argv[2]).resolve(), wanted))
