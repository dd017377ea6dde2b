"""What a run was started with: every setting and where it came from, and the machine and versions it ran on."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from esper._version import __version__
from esper.leyline import SCHEMA_VERSION, DataError, UsageError, as_type, decode_json, unknown
from esper.leyline.telemetry import Seconds
from esper.nissa.wire import plain, revive_any

Source = Literal["default", "preset", "file", "flag"]
SOURCES: Final[tuple[Source, ...]] = ("default", "preset", "file", "flag")
"""Each beats the ones before it."""

DIFF_BYTES: Final = 64 * 1024
"""Most of a difference to the revision that a manifest keeps."""

_SECRET: Final = re.compile(r"(https?://)(?:[^\s/@]*@)?([^\s/?#]*)(?:[/?#]\S*)?", re.IGNORECASE)

PACKAGES: Final = ("torch", "numpy", "msgspec", "safetensors", "rich", "scikit-learn", "gymnasium")


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One resolved setting. ``value`` is missing in the file where it is ``None``."""

    source: Source
    value: Any = None


class Git(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The revision of the working directory. ``dirty``: tracked files differ from it, by ``diff``."""

    revision: str
    dirty: bool | None = None
    diff: str = ""
    """Its first :data:`DIFF_BYTES`."""
    diff_bytes: int = 0
    """How long it is as a whole."""


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The machine. ``digest`` tells machines apart without naming them."""

    digest: str
    system: str
    machine: str
    cpus: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """``run.json``."""

    schema: int
    run_id: str
    created: Seconds
    """Since 1970."""
    config: dict[str, Setting]
    seeds: dict[str, int]
    details: dict[str, Any]
    """What else the run wanted to say about itself."""
    python: str
    packages: dict[str, str]
    host: Host
    git: Git | None = None
    command: list[str] = []
    """The command line of the process, program first; addresses in it without user, path and query: secrets are there.
    """

    def values(self) -> dict[str, Any]:
        """name -> resolved value of every setting."""
        return {name: setting.value for name, setting in self.config.items()}


def resolve(
    default: Mapping[str, Any],
    *,
    preset: Mapping[str, Any] | None = None,
    file: Mapping[str, Any] | None = None,
    flag: Mapping[str, Any] | None = None,
) -> dict[str, Setting]:
    """Every setting of ``default`` with the value of the strongest source that has it: flag, file, preset, default.

    Raises ``UsageError`` for a name that ``default`` does not have.
    """
    layers = dict(zip(SOURCES, (default, preset or {}, file or {}, flag or {}), strict=True))
    settings: dict[str, Setting] = {}
    for source, layer in layers.items():
        for name, value in layer.items():
            if name not in default:
                raise unknown(f"setting in the {source}", name, default)
            settings[name] = Setting(source, value)
    return settings


def describe(run_id: str, created: float, given: Mapping[str, Any]) -> Manifest:
    """The manifest of a new run. Of ``given``, ``config`` and ``seeds`` have their places; the rest are ``details``."""
    return Manifest(
        schema=SCHEMA_VERSION,
        run_id=run_id,
        created=created,
        config=_settings(given.get("config", {})),
        seeds=dict(given.get("seeds", {})),
        details={key: value for key, value in given.items() if key not in ("config", "seeds")},
        python=platform.python_version(),
        packages=_versions(),
        host=_host(),
        git=_git(Path.cwd()),
        command=[_SECRET.sub(r"\1\2/…", word) for word in sys.argv],
    )


def encode_manifest(manifest: Manifest) -> bytes:
    """Indented JSON; non-finite floats as on the wire."""
    return msgspec.json.format(msgspec.json.encode(plain(msgspec.to_builtins(manifest))), indent=2) + b"\n"


def decode_manifest(data: bytes, path: Path) -> Manifest:
    """Raises ``DataError`` for anything but a manifest of a schema that this version reads."""
    where = f"{path}: damaged manifest"
    loose = decode_json(data, where)
    schema = loose.get("schema") if isinstance(loose, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise DataError(f"{path}: newer schema {schema}; this version reads up to {SCHEMA_VERSION}; upgrade Esper")
    return as_type(revive_any(loose), where, Manifest)


def _settings(config: Mapping[str, Any]) -> dict[str, Setting]:
    for name, setting in config.items():
        if not isinstance(setting, Setting):
            raise UsageError(f"setting {name!r} has no source; give Setting(source, value), not {setting!r}")
    return dict(config)


def _versions() -> dict[str, str]:
    found = {"esper": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def host_digest() -> str:
    """See :class:`Host`."""
    told = (platform.node(), platform.system(), platform.release(), platform.machine(), _processor(), os.cpu_count())
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _host() -> Host:
    return Host(host_digest(), platform.system(), platform.machine(), os.cpu_count() or 1)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _git(directory: Path) -> Git | None:
    revision = _run_git(directory, "rev-parse", "HEAD")
    if not revision:
        return None
    status = _run_git(directory, "status", "--porcelain", "--untracked-files=no")
    if not status:
        return Git(revision, None if status is None else False)
    diff = (_run_git(directory, "diff", "--no-color", "--no-ext-diff", "HEAD") or "").encode(errors="replace")
    return Git(revision, True, diff[:DIFF_BYTES].decode(errors="ignore"), len(diff))


def _run_git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=5, check=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
