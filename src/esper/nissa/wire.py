"""One event as one line of JSON, and back.

Three things that JSON (and msgspec) would blur stay apart: what was not measured has no key, ``NaN`` and the infinities
travel as the strings ``"NaN"``, ``"Infinity"``, ``"-Infinity"``, and everything else is a value.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum, StrEnum
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import Any, Final, get_args, get_type_hints

import msgspec
from msgspec import inspect

from esper.leyline import REGISTRY, SCHEMA_VERSION, DataError, TelemetryEvent, TelemetryEventType
from esper.leyline.decoding import fault, told

NON_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

_EXACT: Final = frozenset({str, int, bool})
_encode = msgspec.json.Encoder().encode
_envelope = msgspec.json.Decoder(TelemetryEvent)


class WireError(DataError):
    """A line that is not an event of this schema. ``file`` and ``offset`` (in bytes) say where it stands."""

    def __init__(self, reason: str, file: str | Path | None = None, offset: int | None = None) -> None:
        where = "" if file is None else f"{file}: "
        at = "" if offset is None else f"byte {offset}: "
        super().__init__(f"{where}{at}{reason}")
        self.reason = reason
        self.file = file
        self.offset = offset


class NewerSchemaError(WireError):
    """The line was written by a newer version of Esper than this one."""


def encode(event: TelemetryEvent) -> bytes:
    """The event as one line of JSON, newline included. ``event`` is left as it is.

    ``None`` values of the payload are dropped; a string enum travels as its string, every other enum by name.
    Raises ``TypeError`` for a payload value that has no JSON form.
    """
    data = event.data
    if not _ready(data.values()):
        event = msgspec.structs.replace(event, data=plain(data))
    try:
        return _encode(event) + b"\n"
    except UnicodeEncodeError:
        return _encode(_printable(event)) + b"\n"


def decode(
    line: bytes, *, file: str | Path | None = None, offset: int | None = None, validate: bool = True
) -> TelemetryEvent:
    """The event in ``line``, its payload of the contract's types; with ``validate`` it has no key besides, either.

    Raises :class:`WireError`, or :class:`NewerSchemaError` for what only a newer schema knows; both name the place.
    """
    if beyond := fault(line):
        raise WireError(beyond, file, offset)
    try:
        event = _envelope.decode(line)
        if event.schema > SCHEMA_VERSION:
            raise NewerSchemaError(_newer(f"schema {event.schema}"), file, offset)
        if validate:
            event.data = msgspec.convert(
                _reviver(event.event_type, True)(event.data), _payload_type(event.event_type, event.data)
            )
        else:
            if non_finite_lines(line):
                revive(event)
            check(event)
    except _UnknownKey as error:
        raise WireError(told(error), file, offset) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _typed(error, line, file, offset) from None
    return event


def non_finite_lines(body: bytes) -> set[int]:
    """Which lines of ``body``, counted from 0, may hold a non-finite float."""
    lines, number, last = set[int](), 0, 0
    for place in sorted(place for word in _WORDS for place in _places(word, body)):
        number += body.count(b"\n", last, place)
        lines.add(number)
        last = place
    return lines


_WORDS: Final = (b'"NaN"', b'Infinity"')


def _places(word: bytes, body: bytes) -> Iterator[int]:
    place = body.find(word)
    while place >= 0:
        yield place
        place = body.find(word, place + len(word))


def revive(event: TelemetryEvent) -> None:
    """Turn the non-finite strings of a payload decoded without validation back into floats, in place."""
    event.data = _reviver(event.event_type, False)(event.data)


def check(event: TelemetryEvent) -> None:
    """Raises ``msgspec.ValidationError`` where a payload lacks what the contract has, or has it of another type."""
    payload = _payloads.get(event.event_type)
    if payload is None:
        payload = _payload_type(event.event_type, event.data)
    msgspec.convert(event.data, payload)


def check_all(events: Iterable[TelemetryEvent]) -> None:
    """:func:`check` of many in half the time: payloads of one type are looked at together."""
    together: dict[TelemetryEventType, list[dict[str, Any]]] = {}
    for event in events:
        try:
            together[event.event_type].append(event.data)
        except KeyError:
            together[event.event_type] = [event.data]
    for kind, payloads in together.items():
        lists = _lists.get(kind)
        if lists is not None:
            msgspec.convert(payloads, lists)
        else:
            for data in payloads:
                msgspec.convert(data, _payload_type(kind, data))


def json_schema() -> dict[str, Any]:
    """JSON Schema of the envelope and of every payload: ``{"schema_version", "envelope", "events", "$defs"}``.

    ``events`` maps each event type to its payload. A float is a number or one of the three non-finite strings.
    """
    members = {spec.event_type: spec.members for spec in REGISTRY.values()}
    types = [TelemetryEvent, *(member for group in members.values() for member in group)]
    references, definitions = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    following = iter(references)
    envelope = next(following)
    events: dict[str, Any] = {}
    for event_type, group in members.items():
        refs = [next(following) for _ in group]
        events[event_type.name] = refs[0] if len(refs) == 1 else {"anyOf": refs}
    definitions = {name: _schema_of_floats(definition) for name, definition in definitions.items()}
    definitions["Float"] = {"anyOf": [{"type": "number"}, {"enum": list(NON_FINITE)}]}
    return {"schema_version": SCHEMA_VERSION, "envelope": envelope, "events": events, "$defs": definitions}


def _schema_of_floats(node: Any) -> Any:
    if isinstance(node, list):
        return [_schema_of_floats(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "number":
        return {"$ref": "#/$defs/Float"} | {key: value for key, value in node.items() if key != "type"}
    return {key: _schema_of_floats(value) for key, value in node.items()}


def _ready(values: Iterable[Any]) -> bool:
    """Whether msgspec writes these just as the wire has them: no ``None``, no non-finite float, nothing unusual."""
    for value in values:
        kind = type(value)
        if kind is float:
            if value - value:  # NaN for NaN and the infinities, 0.0 for every other float
                return False
        elif kind in _EXACT:
            continue
        elif kind is dict:
            if not _ready(value.values()):
                return False
        elif kind is not list or not _ready(value):
            return False
    return True


def plain(value: Any) -> Any:
    """``value`` as on the wire: JSON types, non-finite floats as strings, no ``None`` among the values of a mapping."""
    kind = type(value)
    if kind in _EXACT or value is None:
        return value
    if kind is float:
        if value != value:
            return "NaN"
        return value if -math.inf < value < math.inf else ("Infinity" if value > 0 else "-Infinity")
    if kind is dict:
        return {_key(key): plain(item) for key, item in value.items() if item is not None}
    if kind is list or kind is tuple:
        return [plain(item) for item in value]
    return _unusual(value)


def _key(key: Any) -> str:
    return key if type(key) is str else str(plain(key))


def _unusual(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return plain(dict(value))
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return plain(value.item())
    for base in (str, int, float):
        if isinstance(value, base):
            return plain(base(value))
    raise TypeError(f"a payload cannot hold {type(value).__module__}.{type(value).__qualname__}: {value!r:.80}")


def _printable(event: TelemetryEvent) -> TelemetryEvent:
    """``event`` with lone surrogates (from undecodable file names) as escapes, since UTF-8 has no form for them."""
    fields = {name: _scrub(getattr(event, name)) for name in ("message", "producer", "slot_id", "seed_id", "data")}
    return msgspec.structs.replace(event, **fields)


def _scrub(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_scrub(key): _scrub(item) for key, item in value.items()}
    return [_scrub(item) for item in value] if isinstance(value, list) else value


class _UnknownKey(msgspec.ValidationError):
    pass


_payloads: Final = {kind: spec.payload for kind, spec in REGISTRY.items() if not get_args(spec.payload)}
"""Of the event types that have one; the others' depends on ``kind``."""
_lists: Final = {kind: GenericAlias(list, (payload,)) for kind, payload in _payloads.items()}


_Revive = Callable[[Any], Any]


@cache
def _members(event_type: TelemetryEventType) -> dict[str, Any]:
    """``kind`` -> TypedDict where the payload is a union of several; ``{"": TypedDict}`` where it is one."""
    payload = REGISTRY[event_type].payload
    union = get_args(payload)
    if not union:
        return {"": payload}
    return {kind: member for member in union for kind in get_args(get_type_hints(member)["kind"])}


def _payload_type(event_type: TelemetryEventType, data: dict[str, Any]) -> Any:
    members = _members(event_type)
    if "" in members:
        return members[""]
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in members:
        raise _UnknownKey(f"{event_type.name}: unknown kind {kind!r}; legal: {', '.join(sorted(members))}")
    return members[kind]


@cache
def _reviver(event_type: TelemetryEventType, strict: bool) -> _Revive:
    compiled = {
        kind: _compile(inspect.type_info(member), strict, event_type.name)
        for kind, member in _members(event_type).items()
    }
    if "" in compiled:
        return compiled[""] or _same

    def by_kind(data: Any) -> Any:
        kind = data.get("kind")
        chosen = compiled.get(kind) if isinstance(kind, str) else None
        return chosen(data) if chosen else data

    return by_kind


def _compile(node: inspect.Type, strict: bool, path: str) -> _Revive | None:
    """What turns a decoded value of this type into the emitted one; ``None`` where they are always the same."""
    match node:
        case inspect.FloatType():
            return _revive_float
        case inspect.AnyType():
            return revive_any
        case inspect.UnionType(types=types):
            choices = [choice for member in types if (choice := _compile(member, strict, path))]
            return _revive_float if _revive_float in choices else next(iter(choices), None)
        case inspect.ListType(item_type=item_type):
            item = _compile(item_type, strict, f"{path}[]")
            return None if item is None else _each_item(item)
        case inspect.DictType(value_type=value_type):
            item = _compile(value_type, strict, f"{path}{{}}")
            return None if item is None else _each_value(item)
        case inspect.TypedDictType(fields=fields):
            return _compile_fields(fields, strict, path)
    return None


_MAY_CHANGE: Final = frozenset({str, dict, list})


def _each_item(change: _Revive) -> _Revive:
    return lambda value: [change(item) for item in value] if type(value) is list else value


def _each_value(change: _Revive) -> _Revive:
    return lambda value: {key: change(item) for key, item in value.items()} if type(value) is dict else value


def _compile_fields(fields: tuple[inspect.Field, ...], strict: bool, path: str) -> _Revive:
    names = frozenset(field.encode_name for field in fields)
    changing = {
        field.encode_name: fn
        for field in fields
        if (fn := _compile(field.type, strict, f"{path}.{field.encode_name}")) is not None
    }

    def typed_dict(value: Any) -> Any:
        if type(value) is not dict:
            return value
        if strict and not names.issuperset(value):
            strange = ", ".join(sorted(set(value) - names))
            raise _UnknownKey(f"{path}: unknown key {strange}; schema {SCHEMA_VERSION} does not have it")
        for name, item in value.items():
            if type(item) in _MAY_CHANGE and (change := changing.get(name)) is not None:
                value[name] = change(item)
        return value

    return typed_dict


def _same(value: Any) -> Any:
    return value


def _revive_float(value: Any) -> Any:
    return NON_FINITE.get(value, value) if type(value) is str else value


def revive_any(value: Any) -> Any:
    """``value`` with every non-finite string in it turned back into its float, for values of no known type."""
    if type(value) is dict:
        return {key: revive_any(item) for key, item in value.items()}
    if type(value) is list:
        return [revive_any(item) for item in value]
    return _revive_float(value)


def _newer(what: str) -> str:
    return f"newer schema: {what} is unknown to this version (schema {SCHEMA_VERSION}); upgrade Esper to read it"


def _typed(error: Exception, line: bytes, file: str | Path | None, offset: int | None) -> WireError:
    try:
        loose = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return WireError(f"not JSON: {told(error)}", file, offset)
    if isinstance(loose, dict):
        schema = loose.get("schema")
        if isinstance(schema, int) and schema > SCHEMA_VERSION:
            return NewerSchemaError(_newer(f"schema {schema}"), file, offset)
        name = loose.get("event_type")
        if isinstance(name, str) and name not in TelemetryEventType.__members__:
            return NewerSchemaError(_newer(f"event type {told(repr(name))}"), file, offset)
    return WireError(told(error), file, offset)
