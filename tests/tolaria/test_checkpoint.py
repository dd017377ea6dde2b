"""Checkpoints: what is saved comes back bit for bit; what is torn, tampered with or foreign is named and never used."""

from __future__ import annotations

import enum
import errno
import json
import math
import os
import random
import shutil
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from esper.leyline import REGISTRY, DataError, TelemetryEventType, UsageError
from esper.tolaria import checkpoint
from esper.tolaria.checkpoint import MANIFEST, PLAIN, TENSORS, decode, encode, load, load_newest, save
from forking import fork

TREE = {"epoch": 3, "loss": math.nan, "big": 2**200, "nothing": None, "shape": (1, 2), "by_step": {0: "a", 1: "b"}}


def tensors(step: int = 0) -> dict[str, Tensor]:
    shared = torch.arange(6.0)
    return {
        "weights": torch.full((2, 3), float(step)),
        "bits": torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45]),
        "half": torch.randn(4, dtype=torch.bfloat16),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "rng": torch.get_rng_state(),
        "mask": torch.tensor([True, False]),
        "count": torch.tensor(2**62),
        "empty": torch.zeros(0, 3),
        "transposed": torch.randn(3, 4).t(),
        "tied": shared,
        "also tied": shared[1:],
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }


def same_bits(left: Any, right: Any) -> bool:
    """Equality that tells types, NaNs and signs of zero apart."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same_bits, left, right))
    if isinstance(left, dict):
        return same_bits(list(left), list(right)) and same_bits(list(left.values()), list(right.values()))
    return bool(left == right)


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    given = tensors()
    saved = save(tmp_path / "new" / "folder", 340, given, TREE, {"after_seq": 17})
    loaded = load_newest(tmp_path / "new" / "folder")
    assert (loaded.path, loaded.step, loaded.extra) == (saved.path, 340, {"after_seq": 17})
    assert loaded.differences == loaded.passed_over == []
    assert same_bits(loaded.plain, TREE)
    assert set(loaded.tensors) == set(given)
    for name, tensor in given.items():
        back = loaded.tensors[name]
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert (
            back.contiguous().view(-1).view(torch.uint8).equal(tensor.detach().contiguous().view(-1).view(torch.uint8))
        )
    assert saved.bytes == sum(file.stat().st_size for file in saved.path.iterdir())
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == [saved.path.name]


keys = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), st.text()))
trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats().map(lambda x: math.nan if math.isnan(x) else x)  # text has one NaN, without a sign
    | st.text()
    | st.binary()
    | st.sampled_from([2**53, 2**53 + 1]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(st.sampled_from(["$", "v", "a"]), inner, max_size=3)
    ),
    max_leaves=20,
)


@given(trees)
def test_any_plain_value_survives_json(tree: Any) -> None:
    wire = json.dumps(encode(tree), allow_nan=False)
    assert same_bits(decode(json.loads(wire)), tree)


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {2, 3}]}, r"plain\['a'\]\[1\] is a builtins.set"),
        ({"stage": Colour.RED}, r"plain\['stage'\] is a .*Colour"),
        (np.float64(1.0), "plain is a numpy.float64"),
        ({frozenset(): 1}, "a key of plain is a builtins.frozenset"),
    ],
)
def test_values_that_would_come_back_as_others_are_refused(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode(value)


def test_tensors_and_extra_that_cannot_be_saved_are_named(tmp_path: Path) -> None:
    for bad, message in (
        ({"w": [1.0]}, r"tensors\['w'\] is a list"),
        ({"w": torch.empty(2, device="meta")}, "'w' cannot be saved"),
        ({"w": torch.zeros(2, dtype=torch.complex128)}, "complex128"),
    ):
        with pytest.raises(DataError, match=message):
            save(tmp_path, 1, bad, None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="not JSON"):
        save(tmp_path, 1, {}, None, {"loss": math.nan})
    with pytest.raises(UsageError, match="keeps at least 1"):
        save(tmp_path, 1, {}, None, keep=0)
    assert os.listdir(tmp_path) == []


def test_the_newest_is_the_last_saved_whatever_its_step(tmp_path: Path) -> None:
    for step in (10, 20, 15, 15):
        save(tmp_path, step, {"w": torch.tensor(step)}, {"step": step})
    assert sorted(os.listdir(tmp_path), reverse=True) == [
        "ckpt-000004-step-00000015",
        "ckpt-000003-step-00000015",
        "ckpt-000002-step-00000020",
        "ckpt-000001-step-00000010",
    ]
    assert load_newest(tmp_path).path.name == "ckpt-000004-step-00000015"


def test_keeping_the_last_n_deletes_only_its_own(tmp_path: Path) -> None:
    for step in range(3):
        save(tmp_path, step, {}, step)
    (tmp_path / "ckpt-000001-step-00000000" / "notes.txt").write_text("mine")
    (tmp_path / "ckpt-best").mkdir()
    (tmp_path / ".ckpt-000099-step-00000000.saving").mkdir()
    (tmp_path / ".ckpt-000099-step-00000000.saving" / TENSORS).write_text("half")
    (tmp_path / ".ckpt-000098-step-00000000.saving").mkdir()
    (tmp_path / ".ckpt-000098-step-00000000.saving" / "notes.txt").write_text("mine")
    save(tmp_path, 3, {}, 3, keep=2)
    assert sorted(os.listdir(tmp_path)) == [
        ".ckpt-000098-step-00000000.saving",
        "ckpt-000001-step-00000000",
        "ckpt-000003-step-00000002",
        "ckpt-000004-step-00000003",
        "ckpt-best",
    ]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(**changes: Any) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    (TENSORS, truncate, "bytes, the manifest says"),
    (TENSORS, flip, "sha256 differs"),
    (TENSORS, Path.unlink, "No such file"),
    (PLAIN, truncate, "bytes, the manifest says"),
    (PLAIN, flip, "sha256 differs"),
    (PLAIN, Path.unlink, "No such file"),
    (MANIFEST, truncate, "not JSON"),
    (MANIFEST, lambda path: path.write_bytes(b""), "not JSON"),  # type: ignore[arg-type,return-value]
    (MANIFEST, lambda path: path.write_text("[" * 100_000), "nested deeper than 64 levels"),  # type: ignore[arg-type,return-value]
    (MANIFEST, lambda path: path.write_text("[]"), "not the manifest"),  # type: ignore[arg-type,return-value]
    (MANIFEST, edit(version=1), "format version 1; this Esper reads version 2"),
    (MANIFEST, edit(step=99), "its own sha256 differs"),
    (MANIFEST, edit(files={"../../etc/passwd": {}}), "its own sha256 differs"),
    (MANIFEST, Path.unlink, "No such file"),
]


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGE, ids=range(len(DAMAGE)))
def test_damage_is_named_and_an_older_one_takes_over(
    tmp_path: Path, file: str, damage: Callable[[Path], None], message: str
) -> None:
    save(tmp_path, 1, tensors(), {"step": 1})
    bad = save(tmp_path, 2, tensors(), {"step": 2}).path
    damage(bad / file)
    with pytest.raises(DataError, match=message) as caught:
        load(bad)
    assert str(bad / file) in str(caught.value)
    loaded = load_newest(tmp_path)
    assert (loaded.step, loaded.plain, loaded.passed_over) == (1, {"step": 1}, [str(caught.value)])

    shutil.rmtree(loaded.path)
    with pytest.raises(DataError, match=f"no checkpoint that can be used.*{message}"):
        load_newest(tmp_path)


def test_a_resealed_forgery_still_ends_in_a_typed_error(tmp_path: Path) -> None:
    path = save(tmp_path, 1, {}, None).path

    def reseal(plain: bytes, tensors: bytes | None = None, **changes: Any) -> None:
        files = {TENSORS: tensors or (path / TENSORS).read_bytes(), PLAIN: plain}
        for name, content in files.items():
            (path / name).write_bytes(content)
        written = {name: (len(content), checkpoint._digest(content)) for name, content in files.items()}
        body = json.loads(checkpoint._manifest(1, 1, written, {}, ())) | changes
        body.pop("sha256")
        body = {key: value for key, value in body.items() if value is not None}
        (path / MANIFEST).write_text(json.dumps({**body, "sha256": checkpoint._digest(checkpoint._to_json(body))}))

    for plain, message in (
        (b'{"$":"pickle","v":"x"}', "unknown kind 'pickle'"),
        (b'{"$":"int","v":[1]}', "malformed"),
        (b'{"$":"int"}', "malformed"),
        (b'{"$":"dict","v":[[[1],2]]}', "malformed"),
        (b"[" * 100_000, "nested deeper than 64 levels"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64 levels"),
        (b"\xff", "not JSON"),
    ):
        reseal(plain)
        with pytest.raises(DataError, match=message):
            load(path)
    reseal(b"null", tensors=b"\xff" * 64)
    with pytest.raises(DataError, match=TENSORS):
        load(path)
    for changes in ({"files": {"../../etc/passwd": {}}}, {"environment": None}):
        reseal(b"null", **changes)
        with pytest.raises(DataError, match="not what a manifest"):
            load(path)


def test_nothing_to_load_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checkpoint that can be used"):
        load_newest(tmp_path)
    with pytest.raises(DataError, match="No such file"):
        load_newest(tmp_path / "missing")


def test_payloads_match_their_contract(tmp_path: Path) -> None:
    saved = save(tmp_path, 4, {"w": torch.zeros(3)}, None).to_payload("epoch", after_seq=9)
    assert saved["step"] == 4 and saved["after_seq"] == 9 and saved["reason"] == "epoch"
    msgspec.convert(saved, REGISTRY[TelemetryEventType.CHECKPOINT_SAVED].payload)
    loaded = load_newest(tmp_path).to_payload()
    assert loaded == {"path": saved["path"], "step": 4, "exact": True}


class Faults:
    """Fails, or kills the process, at the ``at``-th call of an os function that a save rests on."""

    FUNCTIONS = ("mkdir", "open", "write", "fsync", "rename", "close")

    def __init__(self, at: int, fail: Callable[[str], None]) -> None:
        self.at, self.fail, self.calls = at, fail, 0
        self.log: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in self.FUNCTIONS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            self.log.append(f"{name} {args[0]}" if name in ("mkdir", "open", "rename") else name)
            if self.calls == self.at:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                self.fail(name)
            return real(*args, **kwargs)

        return call


def calls_of_a_save(tmp_path: Path) -> Faults:
    faults = Faults(0, lambda name: None)
    with pytest.MonkeyPatch.context() as patch:
        faults.install(patch)
        save(tmp_path / "dry", 2, tensors(2), {"step": 2})
    return faults


def test_every_file_is_flushed_before_the_rename_and_the_folder_after(tmp_path: Path) -> None:
    log = calls_of_a_save(tmp_path).log
    rename = next(i for i, call in enumerate(log) if call.startswith("rename"))
    opened = [Path(call.split(" ", 1)[1]).name for call in log[:rename] if call.startswith("open")]
    assert opened[1].endswith(".saving") and opened[2:] == [TENSORS, PLAIN, MANIFEST]
    assert log[:rename].count("fsync") == 4
    assert log[rename + 1] == "fsync"


def test_an_error_at_any_call_leaves_the_newest_valid_one(tmp_path: Path) -> None:
    def no_space(name: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    calls = calls_of_a_save(tmp_path).calls
    assert calls > 15
    raised = 0
    for at in range(1, calls + 1):
        folder = tmp_path / str(at)
        save(folder, 1, tensors(1), {"step": 1})
        with pytest.MonkeyPatch.context() as patch:
            Faults(at, no_space).install(patch)
            try:
                saved = save(folder, 2, tensors(2), {"step": 2}).step
            except DataError as error:
                assert "cannot save a checkpoint of step 2" in str(error) and "No space left" in str(error)
                saved = None
        loaded = load_newest(folder)
        assert loaded.step == saved or (saved is None and loaded.step in (1, 2))
        raised += saved is None
        assert loaded.plain == {"step": loaded.step}
        assert loaded.tensors["weights"][0, 0] == loaded.step
        assert loaded.passed_over == [], "a failed save leaves nothing that looks like a checkpoint"
        save(folder, 3, {}, {"step": 3})
        assert load_newest(folder).step == 3
        assert not [name for name in os.listdir(folder) if name.startswith(".")]
    assert raised >= calls - 1, "only making a folder that is there already may fail unnoticed"


def in_a_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process and return its wait status."""
    child = fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def die(name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_kill_at_any_call_leaves_the_newest_valid_one(tmp_path: Path) -> None:
    calls = calls_of_a_save(tmp_path).calls
    for at in range(1, calls + 1):
        folder = tmp_path / str(at)
        save(folder, 1, tensors(1), {"step": 1})

        def work(folder: Path = folder, at: int = at) -> None:
            Faults(at, die).install(pytest.MonkeyPatch())
            save(folder, 2, tensors(2), {"step": 2})

        assert os.WTERMSIG(in_a_child(work)) == signal.SIGKILL
        loaded = load_newest(folder)
        assert loaded.plain == {"step": loaded.step} and loaded.passed_over == []
        save(folder, 3, {}, {"step": 3})
        assert not [name for name in os.listdir(folder) if name.startswith(".")]


def kill_at_random(folder: Path, times: int) -> None:
    """Kill a process that saves without pause, at a random moment after its first save."""
    chance = random.Random(1)
    pause = save(folder, 0, {"weights": torch.zeros(200, 200)}, {"step": 0}).seconds
    for _ in range(times):
        start = load_newest(folder).step
        listen, tell = os.pipe()
        child = fork()
        if child == 0:
            step = start
            while True:
                step += 1
                save(folder, step, {"weights": torch.full((200, 200), float(step))}, {"step": step}, keep=3)
                os.write(tell, b".")
        os.read(listen, 1)
        time.sleep(chance.uniform(0.0, 3 * pause))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(listen), os.close(tell)
        loaded = load_newest(folder)
        assert loaded.passed_over == [] and loaded.step > start
        assert loaded.plain == {"step": loaded.step} and float(loaded.tensors["weights"][0, 0]) == loaded.step


def test_kill_at_random_times(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 8)


@pytest.mark.slow
def test_kill_at_500_random_times(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 500)


def mutated(content: bytes, chance: random.Random) -> bytes:
    result = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        where = chance.randrange(len(result))
        match chance.randrange(3):
            case 0:
                result[where] ^= 1 << chance.randrange(8)
            case 1:
                del result[where : where + chance.randint(1, 9)]
            case _:
                result[where:where] = chance.randbytes(chance.randint(1, 9))
        if not result:
            break
    return bytes(result)


def fuzz(tmp_path: Path, rounds: int) -> None:
    path = save(tmp_path, 1, tensors(), TREE).path
    originals = {name: (path / name).read_bytes() for name in (TENSORS, PLAIN, MANIFEST)}
    chance = random.Random(2)
    for _ in range(rounds):
        name = chance.choice(list(originals))
        changed = mutated(originals[name], chance)
        if changed == originals[name]:
            continue
        (path / name).write_bytes(changed)
        try:
            loaded = load(path)
        except DataError as error:
            assert str(path) in str(error)
        else:
            # white space between the manifest's tokens is all that may differ
            assert name == MANIFEST and json.loads(changed) == json.loads(originals[name]) and loaded.step == 1
        (path / name).write_bytes(originals[name])


def test_mutations_end_in_typed_errors(tmp_path: Path) -> None:
    fuzz(tmp_path, 300)


@pytest.mark.slow
def test_many_mutations_end_in_typed_errors(tmp_path: Path) -> None:
    fuzz(tmp_path, 50_000)


def test_nothing_is_saved_read_or_deleted_through_a_link(tmp_path: Path) -> None:
    outside, where = tmp_path / "outside", tmp_path / "checkpoints"
    for step in range(3):
        save(outside, step, {}, step)
    where.symlink_to(outside)
    before = sorted(os.listdir(outside))
    for refused in (lambda: save(where, 9, {}, 9, keep=1), lambda: load_newest(where), lambda: load(where)):
        with pytest.raises(DataError, match="checkpoints: a link"):
            refused()
    where.unlink()
    where.mkdir()
    (where / "ckpt-000001-step-00000000").symlink_to(outside / before[0])
    save(where, 1, {}, "own", keep=1)
    assert load_newest(where).plain == "own" and (where / "ckpt-000001-step-00000000").is_symlink()
    assert sorted(os.listdir(outside)) == before


def test_what_could_not_be_read_again_is_not_saved(tmp_path: Path) -> None:
    value: Any = 1
    for _ in range(100):
        value = (value,)
    with pytest.raises(DataError, match="nested too deep to be read again"):
        save(tmp_path, 1, {}, value)
    assert not os.listdir(tmp_path)
