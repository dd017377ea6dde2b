"""The picture of a grown network as an SVG: for reports and notebooks."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import Final

from esper.karn.picture import Block, Box, Dot, Label, Network, Wire

GAP: Final = 28.0
MARGIN: Final = 16.0
TALL: Final = 760.0
"""A picture higher than that goes on in another column, of which there are up to :data:`COLUMNS`."""
COLUMNS: Final = 3
TITLE: Final = "The grown network"

_TEXT: Final = "system-ui,'Segoe UI','Helvetica Neue','DejaVu Sans',sans-serif"
_NAMED: Final = "font-size:12.5px;font-weight:600"
_RULES: Final = {
    "": f"font:11px {_TEXT};font-variant-numeric:tabular-nums;--ground:#fff;--raise:#f3f2ee;--line:#d5d3ca;"
    "--strong:#a9a79c;--ink:#1a2224;--soft:#46545a;--faint:#5f6c71;--GERMINATED:#5d6f0f;--TRAINING:#1d62a8;"
    "--BLENDING:#6544b8;--HOLDING:#8a6200;--FOSSILIZED:#17704d;--OUT:#6b777b",
    " .ground": "fill:var(--ground)",
    " .module": "fill:var(--raise);stroke:var(--strong)",
    " .run": "fill:var(--raise);stroke:var(--strong)",
    " .quiet": "fill:var(--ground);stroke:var(--line)",
    " .group": "fill:none;stroke:var(--line);stroke-dasharray:2 3",
    " .empty": "fill:var(--ground);stroke:var(--strong);stroke-dasharray:3 3",
    " .seed": "fill:var(--ground);stroke:var(--c);stroke-width:1.5",
    " .tint": "fill:var(--c);fill-opacity:.14;pointer-events:none",
    " .out": "fill:var(--ground);stroke:var(--c);stroke-dasharray:3 3",
    " .bar": "fill:var(--c)",
    " path": "fill:none;stroke-width:2;stroke-linejoin:round",
    " .trunk": "stroke:var(--strong)",
    " .branch": "stroke:var(--c)",
    " .open": "stroke:var(--c);stroke-width:1.5;stroke-dasharray:2 4",
    " circle": "fill:var(--ground);stroke:var(--c);stroke-width:2",
    " .share": "fill:var(--c);stroke:none",
    " text": "fill:var(--soft)",
    " .name": f"fill:var(--ink);{_NAMED}",
    " .head": f"fill:var(--ink);{_NAMED};paint-order:stroke;stroke:var(--ground);stroke-width:5px",
    " .stage": f"fill:var(--c);{_NAMED}",
    " .fate": "fill:var(--c)",
    " .note": "fill:var(--faint)",
    " .title": "fill:var(--ink);font-size:14px;font-weight:600",
}
STYLE: Final = "".join(f".esper-network{what}{{{rule}}}" for what, rule in _RULES.items())
"""Colours are those of the page's light ground."""
_COLOURED: Final = frozenset({"GERMINATED", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED", "OUT"})


def paint(network: Network) -> str:
    """The picture as one SVG. Every text is escaped, and told whole in a title where it was cut."""
    height = sum(block.height for block in network.blocks)
    wanted = max(1, min(COLUMNS, math.ceil(height / TALL)))
    lanes = _lanes(network.blocks, wanted)
    width = 2 * MARGIN + len(lanes) * network.width + (len(lanes) - 1) * GAP
    notes = [line for note in network.notes for line in _wrapped(note, width - 2 * MARGIN)]
    about = _wrapped(network.title, width - 2 * MARGIN)
    top = 39 + 15 * len(about) + network.head.height + 10
    tall = top + max((sum(block.height for block in lane) for lane in lanes), default=0)
    whole = tall + 14 + 16 * len(notes) + MARGIN
    spoken = " ".join(
        [f"{TITLE}: {network.title}.", f"{network.head.spoken}.", *(f"{b.spoken}." for b in network.blocks)]
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="esper-network" role="img"'
        f' viewBox="0 0 {_n(width)} {_n(whole)}" width="{_n(width)}" height="{_n(whole)}">',
        f"<title>{_text(TITLE)}</title><desc>{_text(spoken)}</desc>",
        f'<style>{STYLE}</style><rect class="ground" width="{_n(width)}" height="{_n(whole)}"/>',
        f'<text class="title" x="{_n(MARGIN)}" y="26">{_text(TITLE)}</text>',
        *(
            f'<text class="note" x="{_n(MARGIN)}" y="{_n(43 + 15 * number)}">{_text(line)}</text>'
            for number, line in enumerate(about)
        ),
        *_block(network.head, MARGIN, top - network.head.height - 10),
    ]
    for number, lane in enumerate(lanes):
        y = top
        for block in lane:
            parts += _block(block, MARGIN + number * (network.width + GAP), y)
            y += block.height
    parts += [
        f'<text class="note" x="{_n(MARGIN)}" y="{_n(tall + 16 * (line + 1))}">{_text(text)}</text>'
        for line, text in enumerate(notes)
    ]
    return "".join([*parts, "</svg>\n"])


def _lanes(blocks: Sequence[Block], most: int) -> list[list[Block]]:
    """The blocks in columns of about the same height."""
    each = sum(block.height for block in blocks) / most
    lanes: list[list[Block]] = [[]]
    used = 0.0
    for block in blocks:
        if lanes[-1] and len(lanes) < most and used + block.height / 2 > each * len(lanes):
            lanes.append([])
        lanes[-1].append(block)
        used += block.height
    return lanes


def _wrapped(text: str, width: float) -> list[str]:
    room = max(20, int(width / 6.3))
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > room:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
        while len(line) > room:
            lines.append(line[:room])
            line = line[room:]
    return [*lines, line] if line else lines


def _block(block: Block, x: float, y: float) -> Iterator[str]:
    yield f'<g transform="translate({_n(x)} {_n(y)})">'
    yield from (_box(box) for box in block.boxes if box.kind == "group")
    yield from map(_wire, block.wires)
    yield from (_box(box) for box in block.boxes if box.kind != "group")
    yield from map(_dot, block.dots)
    yield from map(_label, block.labels)
    yield "</g>"


def _box(box: Box) -> str:
    title = f"<title>{_text(box.whole)}</title>" if box.whole else ""
    round_ = ' rx="2"' if box.kind == "bar" else ' rx="6"'
    place = f'x="{_n(box.x)}" y="{_n(box.y)}" width="{_n(box.width)}" height="{_n(box.height)}"{round_}'
    tint = f'<rect class="tint" {place}/>' if box.kind == "seed" else ""
    return f'<g{_colour(box.stage)}><rect class="{box.kind}" {place}>{title}</rect>{tint}</g>'


def _wire(wire: Wire) -> str:
    pairs = zip(wire.points[::2], wire.points[1::2], strict=True)
    return f'<path class="{wire.kind}"{_colour(wire.stage)} d="M{"L".join(f"{_n(x)} {_n(y)}" for x, y in pairs)}"/>'


def _dot(dot: Dot) -> str:
    circle = f'<circle cx="{_n(dot.x)}" cy="{_n(dot.y)}" r="5"/>'
    share = max(0.0, min(1.0, dot.share or 0.0))
    inner = f'<circle class="share" cx="{_n(dot.x)}" cy="{_n(dot.y)}" r="{_n(5 * math.sqrt(share))}"/>' if share else ""
    return f"<g{_colour(dot.stage)}>{circle}{inner}</g>"


def _label(label: Label) -> str:
    end = ' text-anchor="end"' if label.end else ""
    place = f'x="{_n(label.x)}" y="{_n(label.y)}"'
    return f'<text class="{label.kind}"{_colour(label.stage)} {place}{end}>{_text(label.text)}</text>'


def _colour(stage: str | None) -> str:
    name = stage if stage in _COLOURED else None
    return f' style="--c:var(--{name or "strong"})"'


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
