"""The picture of a grown network: all that is there is in it, everything has room, and it is escaped."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.karn.aggregator import fold
from esper.karn.detail import build_detail
from esper.karn.evidence import gather
from esper.karn.letters import NAME, amount, fit, fit_path, width_of
from esper.karn.picture import Network
from esper.karn.snapshot import build, encode
from esper.karn.svg import paint
from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T
from karn.networks import Grows, grown_run, host, part, transformer
from karn.streams import START, story

BLOCKS = host(
    [part("stem", 16, 512), part("pool", 0, 0, calls=2), part("body", 72, 1024), part("head")], ["stem", "body"]
)


def drawn(events: Sequence[TelemetryEvent]) -> Network:
    network = build(fold(events), START).network
    assert network is not None
    return network


def texts(network: Network) -> list[str]:
    return [label.text for block in (network.head, *network.blocks) for label in block.labels]


def spoken(network: Network) -> str:
    return "\n".join(block.spoken for block in (network.head, *network.blocks))


def test_what_grew_stands_at_its_place_with_its_figures_and_their_epoch() -> None:
    seeds = [
        Grows("stem", "conv3", "FOSSILIZED", 1.0, 4.21, 148, 9000),
        Grows("body", "norm", "BLENDING", 0.4, None, 16, 0),
    ]
    network = drawn(grown_run(BLOCKS, seeds))
    assert spoken(network).split("\n") == [
        "parameters: 98 before, 262 after; MACs of one example: 1,556 before, 10,556 after; 2 seeds in 2 places",
        "input",
        "stem, 16 parameters, 512 MACs. behind it conv3, kept, 148 parameters, 9,000 MACs, "
        "removal cost 4.21 (epoch 9), alpha 1",
        "pool ×2, 0 parameters, 0 MACs",
        "body, 72 parameters, 1,024 MACs. behind it norm, blending, 16 parameters, 0 MACs, "
        "removal cost not measured, alpha 0.4",
        "head, 10 parameters, 20 MACs",
        "output",
    ]
    assert {"● conv3", "kept", "+148 · 9,000 MACs", "removal cost 4.21 (epoch 9)", "α 0.4"} <= set(texts(network))
    (pool,) = network.blocks[2].boxes
    assert pool.whole is not None and pool.whole.endswith("pool (Linear): 0 parameters, 0 MACs, called 2 times")
    (dot,) = (dot for dot in network.blocks[3].dots)
    assert dot.share == 0.4 and dot.stage == "BLENDING"


def test_bars_add_up_to_the_whole_network() -> None:
    network = drawn(grown_run(BLOCKS, [Grows("stem", "conv3", "FOSSILIZED", parameters=98, macs=1556)]))
    for y in {box.y for box in network.head.boxes}:
        bars = [box for box in network.head.boxes if box.y == y]
        assert [bar.width for bar in bars] == pytest.approx([network.width / 2, network.width / 2])


def test_a_pruned_seed_is_told_and_is_not_in_the_network() -> None:
    network = drawn(grown_run(BLOCKS, [Grows("stem", "conv3", "PRUNED"), Grows("stem", "norm", "PRUNED")]))
    assert "empty; 2 were pruned" in texts(network)
    assert "it; before: conv3 pruned in epoch 12: no worth; norm pruned in epoch 12: no worth" in spoken(network)
    assert not [box for block in network.blocks for box in block.boxes if box.kind == "seed"]


def test_what_is_alike_and_empty_is_one_box_that_says_how_many() -> None:
    seeds = [
        Grows("layer_0_attention_query", "lora4", "FOSSILIZED"),
        Grows("layer_7_attention_value", "lora4", "PRUNED"),
    ]
    network = drawn(grown_run(transformer(), seeds))
    runs = [label.text for block in network.blocks for label in block.labels if "alike" in label.text]
    assert [run.split(" · ")[0] for run in runs] == ["6 alike, 12 empty places", "4 alike, 8 empty places"]
    framed = [label.text for block in network.blocks for label in block.labels if label.kind == "head"]
    assert framed == ["layer.0", "layer.7"]
    (seed,) = (box for block in network.blocks for box in block.boxes if box.kind == "seed")
    assert seed.whole is not None and seed.whole.startswith("layer_0_attention_query, e0-r0-s1: beside it lora4, kept")


def test_layers_that_differ_are_not_put_together() -> None:
    record = transformer(4)
    record["parts"][6]["parameters"] += 1  # in layer 1
    texts_ = texts(drawn(grown_run(record, [])))
    assert [text for text in texts_ if text.startswith("layer.")] == ["layer.0", "layer.1", "layer.2 … layer.3"]


@st.composite
def runs(draw: st.DrawFn) -> tuple[dict, list[Grows]]:  # type: ignore[type-arg]
    names = ("a", "b", "layer.0.x", "layer.0.y", "layer.1.x", "layer.1.y", "e.3.f.g", "0", "long" * 30, "日本語" * 20)
    paths = draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
    sites = draw(st.lists(st.sampled_from(paths), unique=True, min_size=1))
    beside = [f"+{path}" if draw(st.booleans()) else path for path in sites]
    sizes = st.sampled_from([0, 1, 10, 123_456, 10**9, 10**15])
    parts = [part(path, draw(sizes), draw(sizes), calls=draw(st.integers(0, 2))) for path in sorted(paths)]
    record = host(parts, beside)
    slots = [site["slot"] for site in record["sites"]]
    stages = st.sampled_from(["GERMINATED", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED", "PRUNED"])
    chosen = draw(st.lists(st.sampled_from(slots), unique=True))
    blueprints = st.sampled_from(["norm", "<b>&\"'", "x" * 200, "\u202eevil\x1b[31m", "日本語"])
    alpha, cost = st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([None, -1.5, 0.0, 4.21])
    return record, [Grows(slot, draw(blueprints), draw(stages), draw(alpha), draw(cost), 5, 7) for slot in chosen]


@settings(max_examples=60, deadline=None)
@given(runs())
def test_nothing_is_left_out_and_everything_has_room(run: tuple[dict, list[Grows]]) -> None:  # type: ignore[type-arg]
    record, seeds = run
    events = grown_run(record, seeds)
    network, whole = drawn(events), spoken(drawn(events))
    for block in (network.head, *network.blocks):
        for box in block.boxes:
            assert -0.01 <= box.x and box.x + box.width <= network.width + 0.01 and box.y + box.height <= block.height
        for label in block.labels:
            size = NAME if label.kind in ("name", "head", "stage") else 11.0
            left = label.x - width_of(label.text, size) if label.end else label.x
            assert left >= -1 and left + width_of(label.text, size) <= network.width + 1, label
    shown = sum(box.kind == "seed" for block in network.blocks for box in block.boxes)
    assert shown == sum(seed.stage != "PRUNED" for seed in seeds)
    empty = len(record["sites"]) - shown
    drawn_empty = sum(box.kind == "empty" for block in network.blocks for box in block.boxes)
    told_empty = sum(int(count) for count in re.findall(r"(\d+) empty place", whole))
    assert drawn_empty + told_empty == empty
    idle = [one for one in record["parts"] if not one["calls"]]
    assert bool(idle) == any("never called" in note for note in network.notes)
    picture = ET.fromstring(paint(network))
    assert not picture.findall(".//{http://www.w3.org/2000/svg}b")
    assert "\u202e" not in paint(network) and "\x1b" not in paint(network)
    assert build_detail(fold(events), 0, START).network == network, "one picture for every face"


def test_a_journal_that_does_not_say_what_the_host_is_made_of_has_its_places_drawn() -> None:
    network = drawn(grown_run(None, [Grows("b", "norm", "TRAINING", 0.0)], slots=["a", "b"]))
    assert "does not say of which modules" in network.notes[0]
    assert [text for text in texts(network) if text in "ab"] == ["a", "b"]
    assert "◔ norm" in texts(network) and "MACs of one example" not in texts(network)


def test_places_whose_modules_are_not_known_have_no_figures() -> None:
    network = drawn(grown_run(None, [], slots=["a", "b", "c"]))
    assert "3 alike, 3 empty places" in texts(network)
    boxes = "\n".join([block.spoken for block in network.blocks] + [t for t in texts(network) if "alike" in t])
    assert "MACs" not in boxes and "parameters" not in boxes


def test_a_place_around_modules_that_are_drawn_stands_below_them() -> None:
    record = host([part("layer.0.x"), part("layer.0.y"), part("head")], ["layer.0.x", "layer.0"])
    words = spoken(drawn(grown_run(record, [Grows("layer_0", "norm", "FOSSILIZED")])))
    assert words.index("layer.0, behind all of it") > words.index("y, 10 parameters")
    assert words.index("head") > words.index("behind it norm")


ENDED = {
    "seed": 1,
    "policy": "heuristic",
    "arm": "grown",
    "epochs": 15,
    "host_parameters": 98,
    "status": "completed",
    "total_parameters": 198,
    "inference_macs": 2556,
    "seconds": 1.0,
}
"""Of an episode."""
OVER = {"env_id": 0, "episode": 0, "epoch": 15}
"""Where it ended."""


def then(events: Sequence[TelemetryEvent], kind: T, data: dict[str, Any], **where: int) -> TelemetryEvent:
    """What a run says next."""
    seq = (events[-1].seq or 0) + 1
    return TelemetryEvent(event_type=kind, timestamp=START + seq, producer="train", seq=seq, data=data, **where)  # type: ignore[arg-type]


def test_a_seed_that_is_not_delivered_is_grey_and_said_to_be_left_out() -> None:
    events = grown_run(BLOCKS, [Grows("stem", "conv3", "FOSSILIZED"), Grows("body", "norm", "FOSSILIZED")])
    record = {"slot_id": "stem", "seed_id": "e0-r0-s1", "blueprint": "conv3", "stage": "HOLDING", "parameters": 100}
    seeds = [{**record, "epoch_germinated": 1, "reason": "not proven then"}]
    end = then(events, T.EPISODE_ENDED, {**ENDED, "delivered": "best", "delivered_epoch": 10, "seeds": seeds}, **OVER)
    network = drawn([*events, end])
    assert "as it was after epoch 10, which is delivered" in network.title
    kinds = [box.kind for block in network.blocks for box in block.boxes if box.kind in ("seed", "out")]
    assert kinds == ["seed", "out"]
    assert "conv3, not proven" in spoken(network)
    assert "norm (left out: kept only after epoch 10, whose network is delivered)" in "".join(network.notes)
    assert network.head.spoken.startswith("parameters: 98 before, 198 after")
    assert gather([*events, end]).network == network, "the report has the page's picture"


def test_what_was_folded_on_export_is_said_in_report_and_page_alike() -> None:
    events = grown_run(BLOCKS, [Grows("stem", "lora4", "FOSSILIZED")])
    events.append(then(events, T.EPISODE_ENDED, {**ENDED, "seeds": []}, **OVER))
    written = {"path": "model", "parameters": 98, "max_abs_difference": 0.0, "formats": ["model.py"]}
    events.append(then(events, T.MODEL_EXPORTED, written))
    network = drawn(events)
    assert any(note.startswith("Written with 98 parameters") for note in network.notes)
    assert gather(events).network == network
    assert not any("Written" in note for note in drawn(events[:-1]).notes)


def test_live_is_replay() -> None:
    events = grown_run(transformer(2), [Grows("layer_0_attention_query", "lora4", "HOLDING", cost=1.0)])
    state = fold(events[:4])
    build(state, START)
    assert build(fold(events[4:], state), START).network == build(fold(events), START).network


def test_a_run_of_the_past_is_drawn() -> None:
    assert drawn(story()).blocks


def test_amounts_and_cuts() -> None:
    assert [amount(n) for n in (0, 999, 9_999, 10_000, 55_312, 999_999, 2_360_000, 10**12, None)] == [
        "0", "999", "9,999", "10k", "55.3k", "1M", "2.36M", "1T", "–",
    ]  # fmt: skip
    assert fit("short", NAME, 100) == "short"
    cut = fit("a much longer text than there is room", NAME, 100)
    assert cut.endswith("…") and width_of(cut, NAME) <= 100
    assert fit_path("attention.self.query", 110) == "…self.query"
    assert width_of(fit_path("x" * 100, 90), NAME) <= 90


def test_lengths_are_floats_on_the_wire() -> None:
    network = drawn(grown_run(transformer(), [Grows("layer_0_attention_query", "lora4", "FOSSILIZED")]))
    assert encode(msgspec.json.decode(encode(network), type=Network)) == encode(network)
