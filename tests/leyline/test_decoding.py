from __future__ import annotations

import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import DataError, as_type, decode_json
from esper.leyline.decoding import MAX_DEPTH, MAX_DIGITS, fault, fault_in_lines, value_too_deep

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    return (opening * depth + "1" + closing * depth).encode()


@given(VALUES)
def test_what_is_within_the_limits_comes_back(value: object) -> None:
    assert decode_json(json.dumps(value), "here") == value


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('["]]]]",', "]"), ('[["\\"[["],', "]")])
def test_depth_is_counted_outside_of_strings(opening: str, closing: str) -> None:
    assert decode_json(nested(MAX_DEPTH - 1, opening, closing), "here") is not None
    with pytest.raises(DataError, match=f"here: nested deeper than {MAX_DEPTH} levels"):
        decode_json(nested(MAX_DEPTH + 1, opening, closing), "here")
    assert not value_too_deep(json.loads(nested(MAX_DEPTH, opening, closing)[:0] or nested(MAX_DEPTH)))
    assert value_too_deep(json.loads(nested(MAX_DEPTH + 1)))


def test_brackets_and_digits_in_strings_are_neither_deep_nor_long() -> None:
    text = json.dumps({"a": "[{" * 500, "b": "9" * 500, "c": '\\"[' * 100})
    assert decode_json(text, "here") == json.loads(text)


def test_whole_numbers_have_a_length() -> None:
    assert decode_json("9" * MAX_DIGITS, "here") == 10**MAX_DIGITS - 1
    for number in ("9" * (MAX_DIGITS + 1), "-" + "1" * 5000):
        with pytest.raises(DataError, match="here: a number of more than 38 digits"):
            decode_json(f'{{"a":{number}}}', "here")


@pytest.mark.parametrize("text", [b"", b"{", b"NaN", b"1e999", b"\xff", b'"\xff"', b'"\\ud800"', "\ud800", b"[1,]"])
def test_what_is_no_json_is_one_line(text: bytes | str) -> None:
    with pytest.raises(DataError, match="^here: ") as caught:
        decode_json(text, "here")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_types_are_told_shortly() -> None:
    class Named(msgspec.Struct, forbid_unknown_fields=True):
        name: str

    assert decode_json(b'{"name":"x"}', "here", Named) == as_type({"name": "x"}, "here", Named) == Named("x")
    with pytest.raises(DataError, match="here: Expected `str`, got `int`"):
        decode_json(b'{"name":1}', "here", Named)
    with pytest.raises(DataError, match="here: .*…$"):
        as_type({"n" * 9000: 1}, "here", Named)


@given(st.lists(VALUES.map(json.dumps).map(str.encode), min_size=1, max_size=5), st.integers(0, 4), st.integers(-1, 9))
def test_lines_are_judged_as_each_of_them_is(lines: list[bytes], at: int, before: int) -> None:
    assert fault_in_lines(b"\n".join(lines)) == ""
    # wherever the shortest number that is too long begins
    wrong = nested(MAX_DEPTH + 1) if before < 0 else b" " * before + b"9" * (MAX_DIGITS + 1)
    lines.insert(min(at, len(lines)), wrong)
    assert fault_in_lines(b"\n".join(lines)) == next(filter(None, map(fault, lines))) != ""


def deepest(text: bytes) -> int:
    """Mark by mark."""
    depth = most = 0
    for mark in re.findall(rb"[\[{}\]]", re.sub(rb'"(?:[^"\\]|\\.)*"?', b"", text, flags=re.DOTALL)):
        depth += 1 if mark in b"[{" else -1
        most = max(most, depth)
    return most


@given(
    VALUES.map(json.dumps).map(str.encode), st.integers(0, 40), st.sampled_from(["[]", "{}", "[{", "{["]), st.booleans()
)
def test_the_depth_is_what_counting_mark_by_mark_gives(value: bytes, depth: int, around: str, cut: bool) -> None:
    opening = (around if around in ("[{", "{[") else around[0] * 2).encode() * depth
    closing = opening[::-1].translate(bytes.maketrans(b"[{", b"]}"))
    text = b"[" + b"[],{}," * 30 + opening + value + closing + b"]"
    text = text[: len(text) // 2] if cut else text
    assert bool(fault(text)) == (deepest(text) > MAX_DEPTH)
