"""``module:ATTRIBUTE`` is loaded, or refused with what is wrong with it."""

from __future__ import annotations

import json

import pytest

from esper.leyline import UsageError, load_attribute


def test_an_attribute_may_be_of_an_attribute() -> None:
    assert load_attribute("thing", "json:dumps") is json.dumps
    assert load_attribute("thing", "json:JSONDecoder.decode") is json.JSONDecoder.decode


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("no_such_module:x", "thing 'no_such_module:x': cannot import 'no_such_module': .*on PYTHONPATH"),
        ("json:absent", "thing 'json:absent': module 'json' has no attribute 'absent'"),
        ("json:", "module:ATTRIBUTE is needed"),
        (":dumps", "module:ATTRIBUTE is needed"),
    ],
)
def test_what_cannot_be_loaded_is_named(reference: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_attribute("thing", reference)
