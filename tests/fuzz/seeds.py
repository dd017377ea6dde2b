"""Inputs to start from: what is legal at each border, and what has gone wrong at one."""

from __future__ import annotations

import json
from collections.abc import Iterator

from fuzz import targets as at
from fuzz.targets import Target

TOKENS = (
    *(
        b"null",
        b"1e999",
        b"-1",
        b"99999999999999999999999",
        b"NaN",
        b'"NaN"',
        b"[]",
        b"{}",
        b'""',
        b"true",
        b"1.5",
        b"0",
    ),
    *(
        b'"\\ud800"',
        b"[" * 500,
        b'{"a":' * 800,
        b"9" * 5000,
        b"1e308",
        b'"../../etc/passwd"',
        b"\x00",
        b"\xff",
        b"-0.0",
    ),
    *(b"2147483648", b'"x"', b"9007199254740993", b"1e-320", b'"\\u001b[31m"', b'"\xe2\x80\xae"', b"[1]" * 40),
)
"""What stands in the place of a value."""


def configs() -> Iterator[bytes]:
    """Both formats."""
    whole = {
        "task": "digits",
        "episodes": 2,
        "lr": 0.1,
        "compare": ["random"],
        "slots": ["block0"],
        "optimizer": {"eps": 1},
    }
    yield b"j" + json.dumps(whole).encode()
    yield b'ttask="digits"\nepisodes=2\nlr=0.1\ncompare=["random"]\n[optimizer]\nbetas=[0.9,0.99]\nwhen=2020-01-01\n'
    yield b"j" + b"[" * 3000
    yield b"ta=" + b"[" * 3000
    yield b"t" + b".".join([b"a"] * 1000) + b"=1"


def manifests() -> Iterator[bytes]:
    """As it was written, and deep."""
    yield b"j" + (at._story() / "run.json").read_bytes()
    yield b"j" + (at.OLD / "heuristic" / "run.json").read_bytes()
    yield b"j" + b"[" * 3000
    yield b'p{"verdict":{"headline":"x","level":"ok","findings":[{"about":"state","text":"y"}]}}'
    yield b"p\xff"


def events() -> Iterator[bytes]:
    """Some events of every kind that the story has."""
    from esper.nissa.wire import encode
    from karn.streams import story

    told: dict[str, list[bytes]] = {}
    for number, event in enumerate(story(), 1):
        event.producer, event.seq = "train", number
        told.setdefault(event.event_type.name, []).append(encode(event))
    for lines in told.values():
        yield b"".join(lines[:2])
    yield b"".join(lines[0] for lines in told.values())


def journals() -> Iterator[bytes]:
    """Under a checksum and without."""
    for each in events():
        yield b"c" + each
        yield b"r" + each + b'{"commit":{"count":1,"last_seq":7,"crc32":3735928559}}\n'
    yield b'c{"event_type":"TRAINING_STARTED","data":{"a":' + b"[" * 800 + b"]" * 800 + b"}}"


def checkpoints() -> Iterator[bytes]:
    """Each part by itself."""
    _, _, files, body = at._cut()
    yield b"s" + files["state.json"][:4000]
    yield b's{"run":{"$":"dict","v":[[1,{"$":"tuple","v":[{"$":"int","v":"0x10"}]}]]},"chance":{"$":"float","v":"nan"}}'
    yield b's{"$":"bytes","v":"AAAA"}'
    yield b"s" + b"[" * 300 + b"]" * 300
    yield b"t" + files["tensors.safetensors"][:1500]
    yield b"x" + json.dumps(body["extra"]).encode()
    yield b"m" + json.dumps({**body, "files": {}}).encode()
    yield b"r" + json.dumps(body).encode()


def policies() -> Iterator[bytes]:
    """The header of a small one, and its bytes."""
    content = at._policy()
    length = int.from_bytes(content[:8], "little")
    yield b"h" + json.loads(content[8 : 8 + length])["__metadata__"]["esper"].encode()
    yield b"r" + content[: 8 + length + 300]


def tables() -> Iterator[bytes]:
    """The header of a small one, and some of its bytes."""
    content = at._table()
    length = int.from_bytes(content[:8], "little")
    yield b"h" + json.loads(content[8 : 8 + length])["__metadata__"]["esper"].encode()
    yield b"a" + content[: 8 + length + 300]
    yield b"r\xfd7zXZ\x00\x00\x04"


def messages() -> Iterator[bytes]:
    """What the page sends."""
    for each in ('{"seek":5}', '{"focus":0}', '{"envs":[0,1]}', '{"time":1795928680.5}', '{"play":2}', '{"step":-1}'):
        yield each.encode()
    yield b'{"live":true}\n{"pause":true}\n{"focus":-1}'
    yield b'{"x":' * 5000


def requests() -> Iterator[bytes]:
    """What the page asks."""
    tail = b" HTTP/1.1\r\nAuthorization: Bearer TOKEN\r\n\r\n"
    for path in (
        "runs",
        "snapshot",
        "snapshot?events=9",
        "environment/0",
        "timeline",
        "events?filter=env%3D1",
        "schema",
    ):
        yield b"GET /api/" + path.encode() + tail
    yield b"GET /api/environment/" + b"9" * 5000 + tail
    yield b"GET /metrics" + tail
    yield b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    yield b"GET /api/compare?runs=a,b" + tail + b"GET /api/runs" + tail


def filters() -> Iterator[bytes]:
    """Every form of term."""
    yield b'env=3 stage=blending severity>=warning text "two words" -type=x,y'
    yield b"score>1e999 metric!=nan level<bad time=1 device=cpu"
    yield b"-" * 5000


def questions() -> Iterator[bytes]:
    """Views, types, what is refused, and nothing."""
    from esper.karn.store import VIEWS

    for view in VIEWS:
        yield f"select * from {view} limit 3".encode()
    yield b"select nan::double n, 'inf'::double i, null z, [1,nan::double] l, {'a':1} s, date '2020-01-01' d"
    yield b"select interval 1 day v, 1.5::decimal(5,2) c, '\\xAA'::blob b, uuid() u, map{'a':1} m, 1 a, 2 a"
    yield b"select * from read_csv('x'); copy events to 'x'; attach 'x'; install httpfs; set lock_configuration=false"
    yield b"select timestamp '290000-01-01' t, 10::hugeint ** 30"
    yield b""
    yield b";"
    yield b"--"


TARGETS = {
    "config": Target(at.config, configs, 425_000),
    "manifest": Target(at.manifest, manifests, 25_000),
    "journal": Target(at.journal, journals, 40_000),
    "report": Target(at.report, events, 15_000),
    "checkpoint": Target(at.checkpoint, checkpoints, 10_000),
    "policy": Target(at.policy, policies, 6_000),
    "table": Target(at.table, tables, 10_000),
    "websocket": Target(at.websocket, messages, 20_000),
    "http": Target(at.http, requests, 12_000),
    "filter": Target(at.filtering, filters, 425_000),
    "sql": Target(at.sql, questions, 12_000),
}
