"""Random events for every type in the registry, and equality that tells NaN, -0.0, 0 and 0.0 apart."""

from __future__ import annotations

import math
from typing import Any, get_args

from hypothesis import strategies as st
from msgspec import inspect

from esper.leyline import REGISTRY, SEVERITIES, TelemetryEvent, TelemetryEventType
from esper.nissa.wire import NON_FINITE

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda text: text not in NON_FINITE)
NAMES = st.none() | TEXT
COUNTS = st.none() | st.integers(0, 2**31 - 1)
WHOLE = st.integers(1 - 10**38, 10**38 - 1)
JSON = st.recursive(
    st.booleans() | WHOLE | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def of_type(node: inspect.Type) -> st.SearchStrategy[Any]:
    """Values of a payload's type; keys that may be missing sometimes are."""
    match node:
        case inspect.FloatType():
            return st.floats()
        case inspect.IntType():
            return WHOLE
        case inspect.BoolType():
            return st.booleans()
        case inspect.StrType():
            return TEXT
        case inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case inspect.AnyType():
            return JSON
        case inspect.UnionType(types=types):
            return st.one_of(*map(of_type, types))
        case inspect.ListType(item_type=item):
            return st.lists(of_type(item), max_size=3)
        case inspect.DictType(value_type=value):
            return st.dictionaries(TEXT, of_type(value), max_size=3)
        case inspect.TypedDictType(fields=fields):
            required = {field.encode_name: of_type(field.type) for field in fields if field.required}
            optional = {field.encode_name: of_type(field.type) for field in fields if not field.required}
            return st.fixed_dictionaries(required, optional=optional)
    raise AssertionError(f"no strategy for {node}")


PAYLOADS = {
    kind: st.one_of(*(of_type(inspect.type_info(member)) for member in get_args(spec.payload) or (spec.payload,)))
    for kind, spec in REGISTRY.items()
}


@st.composite
def events(draw: st.DrawFn, kind: TelemetryEventType | None = None) -> TelemetryEvent:
    """An event that the hub has not stamped yet."""
    chosen = kind or draw(st.sampled_from(list(TelemetryEventType)))
    return TelemetryEvent(
        event_type=chosen,
        episode=draw(COUNTS),
        epoch=draw(COUNTS),
        env_id=draw(COUNTS),
        slot_id=draw(NAMES),
        seed_id=draw(NAMES),
        severity=draw(st.sampled_from(SEVERITIES)),
        message=draw(TEXT),
        data=draw(PAYLOADS[chosen]),
    )


def same(a: Any, b: Any) -> bool:
    """Equality in which NaN equals itself and -0.0, 0.0, 0 and False are four things."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def same_event(a: TelemetryEvent, b: TelemetryEvent) -> bool:
    """Whether every field of two events is the same."""
    return all(same(getattr(a, name), getattr(b, name)) for name in TelemetryEvent.__struct_fields__)


def note(reason: str = "x", **envelope: Any) -> TelemetryEvent:
    """A small must-keep event."""
    kind = TelemetryEventType.COUNTERFACTUAL_UNAVAILABLE
    return TelemetryEvent(event_type=kind, data={"reason": reason}, **envelope)
