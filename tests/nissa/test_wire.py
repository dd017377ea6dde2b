from __future__ import annotations

import dataclasses
import json
import math

import msgspec
import numpy as np
import pytest
from event_strategies import events, note, same, same_event
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.leyline import (
    REGISTRY,
    SCHEMA_VERSION,
    Blend,
    GateCheck,
    SeedStage,
    TelemetryEvent,
    TelemetryEventType,
)
from esper.nissa.wire import NewerSchemaError, WireError, decode, encode, json_schema, non_finite_lines, plain

T = TelemetryEventType


@pytest.mark.parametrize("kind", T)
@settings(max_examples=settings.default.max_examples // 5)
@given(data=st.data())
def test_every_event_comes_back_as_it_was(kind: T, data: st.DataObject) -> None:
    event = data.draw(events(kind))
    line = encode(event)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert same_event(decode(line, validate=False), event)
    # the strict reader turns an int into a float where the contract says float, and nothing else
    assert encode(decode(line)) == line
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@given(st.lists(st.lists(st.sampled_from(['"NaN"', '"-Infinity"', '"Infinity"', "NaN", '"', "x", "é"]), max_size=4)))
def test_lines_with_non_finite_floats_are_those_that_hold_their_words(lines: list[list[str]]) -> None:
    body = b"".join(" ".join(words).encode() + b"\n" for words in lines)
    slow = {at for at, line in enumerate(body.split(b"\n")) if b'"NaN"' in line or b'Infinity"' in line}
    assert non_finite_lines(body) == slow


def test_non_finite_and_absent_are_three_things_on_the_wire() -> None:
    event = TelemetryEvent(
        event_type=T.EPOCH_COMPLETED,
        data={
            "train_loss": math.nan,
            "validation_loss": -math.inf,
            "validation_metric": None,
            "alphas": {"a": math.inf},
            "stages": {},
            "parameters": 1,
            "live_seeds": 0,
        },
    )
    data = json.loads(encode(event))["data"]
    assert (
        data["train_loss"] == "NaN" and data["validation_loss"] == "-Infinity" and data["alphas"] == {"a": "Infinity"}
    )
    assert "validation_metric" not in data
    assert event.data["validation_metric"] is None, "the emitted event stays as it was"
    back = decode(encode(event)).data
    assert math.isnan(back["train_loss"]) and back["alphas"]["a"] == math.inf


def test_a_text_that_says_nan_stays_text_where_no_float_may_stand() -> None:
    event = note("NaN", message="Infinity")
    assert same_event(decode(encode(event)), event)
    assert same_event(decode(encode(event), validate=False), event)


def test_enums_dataclasses_and_array_scalars_are_made_plain() -> None:
    check = GateCheck("ratio", None, ">=", 0.05, False)
    value = {
        "stage": SeedStage.TRAINING,
        "blend": Blend.COSINE,
        "f": np.float32(math.nan),
        "i": np.int64(3),
        "pair": (1, SeedStage.DORMANT),
        "set": {"b", "a"},
        "check": check,
        "by": {SeedStage.HOLDING: np.bool_(True)},
    }
    assert plain(value) == {
        "stage": "TRAINING",
        "blend": "cosine",
        "f": "NaN",
        "i": 3,
        "pair": [1, "DORMANT"],
        "set": ["a", "b"],
        "check": {k: v for k, v in dataclasses.asdict(check).items() if v is not None},
        "by": {"HOLDING": True},
    }
    event = TelemetryEvent(event_type=T.COUNTERFACTUAL_UNAVAILABLE, data={"reason": SeedStage.TRAINING})
    assert decode(encode(event)).data == {"reason": "TRAINING"}


def test_a_value_without_json_form_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="payload cannot hold .*object"):
        encode(note(reason=object()))  # type: ignore[arg-type]


def test_an_undecodable_file_name_is_escaped_not_lost() -> None:
    event = note("a\udcffb", message="\ud800")
    assert decode(encode(event)).data["reason"] == "a\\udcffb"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "not JSON"),
        (b'{"event_type":"SEED_PRUNED"', "not JSON"),
        (b'{"event_type":"SEED_PRUNED","data":{"a":"\xff"}}', "not JSON"),
        (b"[" * 100_000, "nested deeper than 64 levels"),
        (b"[]", "Expected `object`"),
        (b'{"seq":1}', "event_type"),
        (b'{"event_type":"SEED_PRUNED","seq":"1","data":{}}', "seq"),
        (b'{"event_type":"COUNTERFACTUAL_UNAVAILABLE","data":{"reason":null}}', "reason"),
        (b'{"event_type":"COUNTERFACTUAL_UNAVAILABLE","data":{"reason":true}}', "reason"),
        (b'{"event_type":"COUNTERFACTUAL_UNAVAILABLE","data":{}}', "reason"),
        (b'{"event_type":"COUNTERFACTUAL_UNAVAILABLE","data":{"reason":"x","why":1}}', "unknown key why"),
        (b'{"event_type":"COUNTERFACTUAL_UNAVAILABLE","data":{"reason":"x"},"colour":1}', "colour"),
        (b'{"event_type":"GOVERNOR_SNAPSHOT","data":{"of_epoch":1,"bytes":1,"loss":1e999}}', "not JSON"),
        (b'{"event_type":"GOVERNOR_SNAPSHOT","data":{"of_epoch":1,"bytes":"NaN"}}', "bytes"),
        (b'{"event_type":"GOVERNOR_SNAPSHOT","data":{"of_epoch":1,"bytes":1,"loss":"nan"}}', "loss"),
    ],
)
def test_what_is_no_event_is_refused_with_file_and_offset(line: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason) as caught:
        decode(line, file="events-00001.jsonl", offset=42)
    assert str(caught.value).startswith("events-00001.jsonl: byte 42: ")
    assert (caught.value.file, caught.value.offset) == ("events-00001.jsonl", 42)
    assert not isinstance(caught.value, NewerSchemaError)


def test_nested_unknown_keys_are_refused() -> None:
    check = {"id": "a", "comparison": ">", "threshold": 1.0, "passed": True, "colour": "red"}
    data = {"gate": "G2", "passed": True, "target_stage": "BLENDING", "message": ""}
    event = TelemetryEvent(
        event_type=T.SEED_GATE_EVALUATED, data=data | {"checks_passed": [], "checks_failed": [], "checks": [check]}
    )
    with pytest.raises(WireError, match=r"SEED_GATE_EVALUATED.checks\[\]: unknown key colour"):
        decode(encode(event))
    assert decode(encode(event), validate=False).data["checks"] == [check]


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize(
    "line", [b'{"event_type":"SEED_SPORED","data":{}}', b'{"event_type":"SEED_PRUNED","schema":99}']
)
def test_what_only_a_newer_version_knows_is_called_so(line: bytes, validate: bool) -> None:
    with pytest.raises(NewerSchemaError, match="newer schema: .*upgrade"):
        decode(line, validate=validate)


@given(line=st.binary(max_size=60), at=st.integers(0, 400), event=events())
def test_damaged_lines_raise_typed_errors_only(line: bytes, at: int, event: TelemetryEvent) -> None:
    whole = encode(event)
    for damaged in (line, whole[:at] + line + whole[at + len(line) :]):
        try:
            decode(damaged)
        except WireError:
            pass


def test_the_schema_covers_every_event_and_says_what_a_float_is() -> None:
    schema = json_schema()
    assert set(schema["events"]) == set(T.__members__) == {kind.name for kind in REGISTRY}
    assert schema["schema_version"] == SCHEMA_VERSION
    references = set()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            assert node.get("type") != "number" or node == {"type": "number"}
            if "$ref" in node:
                references.add(node["$ref"].removeprefix("#/$defs/"))
            for item in node.values():
                walk(item)
        elif isinstance(node, list):
            for item in node:
                walk(item)

    walk(schema)
    assert references <= set(schema["$defs"])
    assert schema["$defs"]["EpochCompleted"]["properties"]["train_loss"] == {"$ref": "#/$defs/Float"}
    assert "NaN" in schema["$defs"]["Float"]["anyOf"][1]["enum"]
    msgspec.json.encode(schema)


def test_equality_of_these_tests_tells_the_hard_cases_apart() -> None:
    cases = [math.nan, math.inf, -math.inf, 0.0, -0.0, 0, False, None, "NaN", 10**30, [], {}]
    for i, a in enumerate(cases):
        for j, b in enumerate(cases):
            assert same(a, b) is (i == j), (a, b)
