from __future__ import annotations

import json
import subprocess
import sys

from esper.karn.web.types import encoded, page_schema


def test_every_reference_is_defined() -> None:
    schema = page_schema()
    text = json.dumps(schema)
    references = {part.split('"')[0] for part in text.split("#/$defs/")[1:]}
    assert references <= set(schema["$defs"]) and {"View", "Request", "Snapshot"} <= set(schema["$defs"])
    assert schema["x-esper"]["stages"]["FOSSILIZED"] == 5


def test_the_command_prints_the_same_bytes() -> None:
    printed = subprocess.run([sys.executable, "-m", "esper.karn.web.types"], capture_output=True, check=True).stdout
    assert printed == encoded()
