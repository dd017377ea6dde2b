from __future__ import annotations

import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import visible
from esper.leyline.text import ascii_json, visible_json

TEXT = st.text(st.characters(codec="utf-8") | st.sampled_from("\x1b\x9b\r\b\f\u202e\ufeff\U000e0041\\u"), max_size=12)


@given(TEXT)
def test_nothing_that_is_hidden_is_left(text: str) -> None:
    shown = visible(text)
    assert not any(unicodedata.category(each) in ("Cc", "Zl", "Zp") or each in "\u202e\ufeff" for each in shown)
    if text.isprintable():
        assert shown == text


def test_each_is_spelled_as_python_does() -> None:
    assert visible("a\x1b[31m\n\x9b\u202e\U000e0041é\ud800") == r"a\x1b[31m\x0a\x9b\u202e\U000e0041é\ud800"


@given(st.dictionaries(TEXT, TEXT | st.floats(allow_nan=False, allow_infinity=False), max_size=3))
def test_json_stays_json(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False).encode()
    assert json.loads(ascii_json(text)) == value, "escaped, it says the same"
    assert b"\x1b" not in ascii_json(text) and "\u202e" not in ascii_json(text).decode()
    told = json.dumps(json.loads(visible_json(text)), ensure_ascii=False)
    assert not any(each in told for each in ("\u202e", "\ufeff", "\\u001b", "\x9b"))


def test_strings_in_json_are_spelled_as_elsewhere() -> None:
    value = {"k\x1b": 'a\x9b\u202e\\u001b\n\t\r\b\f\x7f\ufeff"/é'}
    spelled = {r"k\x1b": 'a\\x9b\\u202e\\u001b\n\t\\x0d\\x08\\x0c\\x7f\\ufeff"/é'}
    assert json.loads(visible_json(json.dumps(value, ensure_ascii=False).encode())) == spelled
