"""Checkpoints that are whole or not there, and are verified before use.

    ckpt-000012-step-00000340/
        tensors.safetensors     every tensor, by name
        state.json              everything else, see :func:`encode`
        manifest.json           sha256 and size of the two, step, what the bits depend on, its own sha256

A checkpoint is written into a temporary directory, flushed to the disk file by file, and renamed into place; a crash
leaves either the whole of it or none. The first number counts saves in the directory: the newest is the last one
saved, whatever its step. Nothing is ever unpickled. One process at a time may save into a directory.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import safetensors
import torch
from torch import Tensor

from esper.leyline import DataError, UsageError, as_type, decode_json
from esper.leyline.decoding import MAX_DEPTH, told
from esper.leyline.files import MANIFEST_BYTES, TENSOR_BYTES, Folder
from esper.leyline.telemetry import Seq
from esper.tolaria import tensor_file

FORMAT: Final = "esper-checkpoint"
VERSION: Final = 2
TENSORS: Final = "tensors.safetensors"
PLAIN: Final = "state.json"
MANIFEST: Final = "manifest.json"

GPU: Final = "gpu"
"""Of what a run depends on: the kind of GPU that it computes on, by rank where they differ; absent where on none."""

_BY_CHANCE: Final = (
    ("deterministic_algorithms", True, "with which a GPU may give other bits each time"),
    ("cudnn_benchmark", False, "with which cuDNN chooses by the clock how it computes"),
)
"""Of what a run on a GPU depends on: what it takes to give the same bits twice, and why."""
_NAME: Final = re.compile(r"ckpt-(\d{6,12})-step-(\d{8,16})")
_UNFINISHED: Final = re.compile(r"\.ckpt-\d{6,12}-step-\d{8,16}\.(?:saving|deleting)")
_TAG: Final = "$"
Pieces = Iterable[bytes | memoryview]
"""Of a file."""
Written = tuple[int, str]
"""Bytes of a file, and their sha256."""
_EXACT_INTEGERS: Final = 2**53
"""Beyond this, readers of JSON in other languages round integers."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that is on the disk."""

    path: Path
    step: int
    bytes: int
    seconds: float

    def to_payload(self, reason: str, after_seq: int | None = None) -> dict[str, Any]:
        """Payload of ``CHECKPOINT_SAVED``."""
        payload = {"path": str(self.path), "step": self.step, "bytes": self.bytes, "seconds": self.seconds}
        return {**payload, "reason": reason, **({} if after_seq is None else {"after_seq": after_seq})}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint that was read and found whole. ``passed_over`` names newer ones that were not, and why."""

    path: Path
    step: int
    tensors: dict[str, Tensor]
    plain: Any
    extra: dict[str, Any]
    environment: dict[str, Any]
    """See :func:`environment`; as it was at the save."""
    passed_over: list[str]
    gpus: Sequence[str] = ()
    """Names of those that go on with it, by rank."""

    @property
    def differences(self) -> list[str]:
        """What keeps a resume from being exact, see :func:`exactness`; empty when nothing does."""
        return exactness({"environment": self.environment}, self.gpus)

    def to_payload(self, after_seq: int | None = None) -> dict[str, Any]:
        """Payload of ``CHECKPOINT_LOADED``."""
        payload: dict[str, Any] = {"path": str(self.path), "step": self.step, "exact": not self.differences}
        if after_seq is not None:
            payload["after_seq"] = after_seq
        return {**payload, "differences": self.differences} if self.differences else payload


def save(
    directory: str | os.PathLike[str],
    step: int,
    tensors: Mapping[str, Tensor],
    plain: Any,
    extra: Mapping[str, Any] | None = None,
    *,
    keep: int | None = None,
    gpus: Sequence[str] = (),
) -> Saved:
    """Write a checkpoint of ``step`` under ``directory`` (made if missing); then delete all but the newest ``keep``.

    ``plain`` is anything :func:`encode` takes; ``extra`` is JSON for the manifest, such as the journal position;
    ``gpus`` see :func:`environment`.
    Raises :class:`DataError` when something cannot be saved. Then there is no new checkpoint, unless what failed came
    after the rename (the last flush, a deletion): then there is, and it is whole.
    """
    if step < 0 or (keep is not None and keep < 1):
        raise UsageError(f"a checkpoint needs a step of at least 0 and keeps at least 1; given {step} and {keep}")
    began = time.perf_counter()
    where = Path(directory)
    contents = {TENSORS: tensor_file.pieces(tensors), PLAIN: iter([_to_json(encode(plain))])}
    try:
        where.mkdir(parents=True, exist_ok=True)
        with Folder.open(where, follow=False) as folder:
            _clear_unfinished(folder)
            ordinal = 1 + max((int(match[1]) for match in map(_NAME.fullmatch, folder.names()) if match), default=0)
            name = f"ckpt-{ordinal:06d}-step-{step:08d}"
            seal = functools.partial(_manifest, step, ordinal, extra=dict(extra or {}), gpus=gpus)
            size = _write_whole(folder, name, contents, seal)
            if keep is not None:
                _delete_old(folder, keep)
    except OSError as error:
        raise DataError(f"cannot save a checkpoint of step {step} in {where}: {error}") from error
    return Saved(where / name, step, size, time.perf_counter() - began)


def load(path: str | os.PathLike[str]) -> Loaded:
    """Read and verify the checkpoint at ``path``. Raises :class:`DataError` naming the file and what is wrong."""
    try:
        with Folder.open(Path(path), follow=False) as folder:
            return _load(folder)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def _load(folder: Folder) -> Loaded:
    manifest = _read_manifest(folder)
    contents = {}
    for file, expected in manifest.files.items():
        contents[file] = _read(folder, file, expected.bytes)
        if len(contents[file]) != expected.bytes:
            raise DataError(f"{folder.path / file}: {len(contents[file])} bytes, the manifest says {expected.bytes}")
        if _digest(contents[file]) != expected.sha256:
            raise DataError(f"{folder.path / file}: sha256 differs from the manifest's; the file was altered")
    where = folder.path / TENSORS
    try:
        tensors = tensor_file.read(contents[TENSORS])
    except (safetensors.SafetensorError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: {told(error)}") from error
    where = folder.path / PLAIN
    try:
        plain = decode(decode_json(contents[PLAIN], where))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{where}: a saved value is malformed: {told(error)}") from error
    return Loaded(
        path=folder.path,
        step=manifest.step,
        tensors=tensors,
        plain=plain,
        extra=manifest.extra,
        environment=manifest.environment,
        passed_over=[],
    )


def load_newest(directory: str | os.PathLike[str]) -> Loaded:
    """Read the newest checkpoint in ``directory`` that is whole; newer ones that are not are named, never used.

    Raises :class:`DataError` when there is none.
    """
    passed_over: list[str] = []
    try:
        folder = Folder.open(Path(directory), follow=False)
    except OSError as error:
        raise DataError(f"{directory}: {error.strerror or error}") from error
    with folder:
        for name in _checkpoints(folder):
            try:
                with folder.folder(name) as found:
                    loaded = _load(found)
            except OSError as error:
                passed_over.append(f"{folder.path / name}: {error.strerror or error}")
            except DataError as error:
                passed_over.append(str(error))
            else:
                loaded.passed_over.extend(passed_over)
                return loaded
    why = f": {'; '.join(passed_over)}" if passed_over else ""
    raise DataError(f"no checkpoint that can be used in {directory}{why}")


def environment(gpus: Sequence[str] = ()) -> dict[str, Any]:
    """What the bits of a run depend on besides its own state. ``gpus``: names of those that it computes on, by rank."""
    return {
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "torch_build": torch.version.git_version or "unknown",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "deterministic_algorithms": _deterministic(),
        "matmul_precision": _matmul_precision(),
        **(_gpu(gpus) if gpus else {}),
    }


def gpus_of(device: str) -> list[str]:
    """Name of the GPU that a device of torch's is, if it is one."""
    return [torch.cuda.get_device_name(torch.device(device))] if device.startswith("cuda") else []


def _deterministic() -> bool | str:
    enabled = torch.are_deterministic_algorithms_enabled()
    return "warn only" if enabled and torch.is_deterministic_algorithms_warn_only_enabled() else enabled


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set for each backend by itself
        return ", ".join(f"{name} {getattr(torch.backends, name).matmul.fp32_precision}" for name in ("cuda", "mkldnn"))


def _gpu(names: Sequence[str]) -> dict[str, Any]:
    cudnn = torch.backends.cudnn
    return {
        GPU: ", ".join(names if len(set(names)) > 1 else names[:1]),
        "cuda": torch.version.cuda or torch.version.hip or "unknown",
        "cudnn": cudnn.version() or "none",  # type: ignore[no-untyped-call]
        "cudnn_deterministic": cudnn.deterministic,
        "cudnn_benchmark": cudnn.benchmark,
        # allow_tf32 is an error where the two differ
        "cudnn_tf32": " ".join(op for op in ("conv", "rnn") if getattr(cudnn, op).fp32_precision == "tf32") or "none",
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", "unset"),
    }


def exactness(manifest: Mapping[str, Any], gpus: Sequence[str] = ()) -> list[str]:
    """What keeps a resume here, on ``gpus``, from equalling the uninterrupted run bit for bit, one line each: what is
    not here what it was there, and what gives other bits each time; empty when nothing does."""
    there = manifest["environment"]
    here = environment(gpus)
    lines = [
        f"{name}: saved with {there.get(name, '(not recorded)')}, here {here.get(name, '(not recorded)')}"
        for name in sorted(set(here) | set(there))
        if name not in here or name not in there or here[name] != there[name]
    ]
    unsure = [] if not gpus else [each for each in _BY_CHANCE if here[each[0]] != each[1]]
    return lines + [
        f"{name}: {here[name]}, {why}; exact with {sure}" for name, sure, why in unsure if there.get(name) == here[name]
    ]


def encode(value: Any, where: str = "plain", room: int = MAX_DEPTH - 8) -> Any:
    """``value`` as JSON that :func:`decode` turns back into the very same value.

    Legal are ``None``, bool, int and float of any value, str, bytes, lists, tuples and dicts with keys of these, of
    exactly these types and ``room`` deep: a subclass (an enum, a numpy scalar) would come back as something else and is
    refused with a :class:`DataError` that says where. What JSON cannot say is written as ``{"$": kind, "v": ...}``:
    floats that are not finite, integers beyond 2**53, bytes, tuples, and dicts with other keys than strings or with a
    key ``"$"``.
    """
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if abs(value) <= _EXACT_INTEGERS else {_TAG: "int", "v": hex(value)}
    if kind is float:
        return value if value - value == 0.0 else {_TAG: "float", "v": repr(value)}
    if kind is bytes:
        return {_TAG: "bytes", "v": base64.b64encode(value).decode()}
    if kind in (list, tuple, dict) and room <= 0:
        raise DataError(f"{told(where)} cannot be saved: nested too deep to be read again")
    if kind is list:
        return [encode(item, f"{where}[{i}]", room - 1) for i, item in enumerate(value)]
    if kind is tuple:
        return {_TAG: "tuple", "v": [encode(item, f"{where}[{i}]", room - 2) for i, item in enumerate(value)]}
    if kind is dict:
        if all(type(key) is str for key in value) and _TAG not in value:
            return {key: encode(item, f"{where}[{key!r}]", room - 1) for key, item in value.items()}
        pairs = [
            [encode(key, f"a key of {where}", room - 3), encode(item, f"{where}[{key!r}]", room - 3)]
            for key, item in value.items()
        ]
        return {_TAG: "dict", "v": pairs}
    raise DataError(
        f"{where} is a {kind.__module__}.{kind.__qualname__} and cannot be saved; "
        "legal: None, bool, int, float, str, bytes, list, tuple, dict"
    )


def decode(value: Any) -> Any:
    """Undo of :func:`encode`. Raises :class:`DataError` for an unknown kind."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: decode(item) for key, item in value.items()}
    kind: Any = value[_TAG]
    content: Any = value.get("v")
    if kind == "int":
        return int(content, 16)
    if kind == "float":
        return float(content)
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "tuple":
        return tuple(decode(item) for item in content)
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    raise DataError(f"saved value of unknown kind {told(repr(kind))}")


def _to_json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _manifest(
    step: int, ordinal: int, files: Mapping[str, Written], extra: dict[str, Any], gpus: Sequence[str]
) -> bytes:
    body = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "ordinal": ordinal,
        "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()},
        "environment": environment(gpus),
        "extra": extra,
    }
    try:
        sealed = {**body, "sha256": _digest(_to_json(body))}
        return json.dumps(sealed, allow_nan=False, indent=2).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"extra of a checkpoint's manifest is not JSON: {error}") from error


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bytes: Annotated[int, msgspec.Meta(ge=0, le=TENSOR_BYTES)]
    sha256: str


class _Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a checkpoint's manifest holds besides its seal."""

    format: str
    version: int
    step: Seq
    ordinal: Seq
    files: dict[Literal["tensors.safetensors", "state.json"], _File]
    environment: dict[str, str | int | bool]
    extra: dict[str, Any]


def _read_manifest(folder: Folder) -> _Manifest:
    path = folder.path / MANIFEST
    manifest = decode_json(_read(folder, MANIFEST, MANIFEST_BYTES), path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path}: not the manifest of an Esper checkpoint")
    if manifest.get("version") != VERSION:
        version = told(manifest.get("version"))
        raise DataError(f"{path}: format version {version}; this Esper reads version {VERSION}")
    seal = manifest.pop("sha256", None)
    if seal != _digest(_to_json(manifest)):
        raise DataError(f"{path}: its own sha256 differs; the file was altered")
    typed = as_type(manifest, f"{path}: not what a manifest of version {VERSION} holds", _Manifest)
    if set(typed.files) != {TENSORS, PLAIN}:
        raise DataError(f"{path}: not what a manifest of version {VERSION} holds: it names other files")
    return typed


def _read(folder: Folder, name: str, most: int) -> bytes:
    try:
        return folder.read(name, most)
    except OSError as error:
        raise DataError(f"{folder.path / name}: {error.strerror or error}") from error


def _write_whole(
    folder: Folder, name: str, contents: Mapping[str, Pieces], seal: Callable[[Mapping[str, Written]], bytes]
) -> int:
    """Make the directory ``name`` with what the files hold and their manifest, all at once; how many bytes."""
    unfinished = f".{name}.saving"
    folder.make(unfinished)
    try:
        with folder.folder(unfinished) as inside:
            written = {file: _write(inside, file, content) for file, content in contents.items()}
            written[MANIFEST] = _write(inside, MANIFEST, [seal(written)])
            inside.sync()
        folder.rename(unfinished, name)
    except (OSError, DataError):
        # a full disk gets its space back; what cannot be removed now is removed by the next save
        folder.remove(unfinished, ignore_errors=True)
        raise
    folder.sync()
    return sum(size for size, _ in written.values())


def _write(folder: Folder, name: str, content: Pieces) -> Written:
    size, digest = 0, hashlib.sha256()

    def seen() -> Iterator[bytes | memoryview]:
        nonlocal size
        for piece in content:
            size += len(piece)
            digest.update(piece)
            yield piece

    folder.create(name, seen())
    return size, digest.hexdigest()


def _checkpoints(folder: Folder) -> list[str]:
    """Names like a checkpoint's, newest first."""
    found = [(int(match[1]), match[0]) for match in map(_NAME.fullmatch, folder.names()) if match]
    return [name for _, name in sorted(found, reverse=True)]


def _ours(folder: Folder, name: str) -> bool:
    """Whether ``name`` is a folder that holds nothing but what :func:`save` writes."""
    if not folder.is_folder(name):
        return False
    with folder.folder(name) as inside:
        return set(inside.names()) <= {TENSORS, PLAIN, MANIFEST}


def sweep(directory: str | os.PathLike[str]) -> None:
    """Remove what interrupted saves and deletions have left in ``directory``, as far as that can be. For who alone
    saves in it."""
    with suppress(OSError, DataError), Folder.open(Path(directory), follow=False) as folder:
        _clear_unfinished(folder)


def _clear_unfinished(folder: Folder) -> None:
    """Remove what an interrupted save or deletion left behind."""
    for name in folder.names():
        if _UNFINISHED.fullmatch(name) and _ours(folder, name):
            folder.remove(name)


def _delete_old(folder: Folder, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints; directories that hold anything else are left alone."""
    for name in _checkpoints(folder)[keep:]:
        if _ours(folder, name):
            doomed = f".{name}.deleting"
            folder.rename(name, doomed)
            folder.remove(doomed)
