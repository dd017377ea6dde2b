"""Where everything of the picture of a grown network stands: a pure function of :class:`~esper.karn.network.Grown`.

The network runs from top to bottom along a trunk. A seed behind a module takes from the trunk below it, a seed beside
one above it; both give back where the dot is. Modules in a container with a number (``layer.3``) stand in one frame.
What is alike and empty, one after the other, is one box that says how many it stands for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final

import msgspec

from esper.karn.letters import FACT, NAME, amount, fit, fit_path, width_of
from esper.karn.network import Grown, Place, Sprout
from esper.karn.picture import Block, Box, Dot, Label, Network, Wire
from esper.karn.words import GLYPHS, count
from esper.leyline import visible

WIDTH: Final = 356.0
"""Fits a telephone."""
LEFT: Final = 6.0
MODULE: Final = 132.0
TRUNK: Final = LEFT + MODULE / 2
SEED: Final = 156.0
SEED_WIDTH: Final = WIDTH - LEFT - SEED
BOX, SEED_BOX = 38.0, 54.0


class Row(msgspec.Struct):
    """One or several modules that follow each other, and the place behind or beside the last one of them."""

    parts: list[dict[str, Any]]
    place: Place | None = None
    around: bool = False
    """Whether the place is about a container, whose modules stand above."""

    @property
    def busy(self) -> bool:
        """Whether something grew here."""
        return self.place is not None and (self.place.sprout is not None or self.place.pruned > 0)


def lay_out(grown: Grown) -> Network:
    """The picture."""
    called = [part for part in grown.parts if part.get("calls", 1)]
    rows = _rows(called, grown.places)
    blocks = list(_blocks(rows))
    if blocks:
        blocks = [_end("input", first=True), *blocks, _end("output", first=False)]
    return Network(
        title=grown.title,
        width=WIDTH,
        head=_head(grown),
        blocks=blocks,
        notes=list(_notes(grown)),
        env=grown.env,
    )


def _rows(parts: Sequence[dict[str, Any]], places: Sequence[Place]) -> list[Row]:
    """The modules in order, each with its place; of places whose modules are not known, rows of their own."""
    own = {part["path"]: at for at, part in enumerate(parts) if not part.get("around")}
    ends: dict[int, list[Place]] = {}
    lost: list[Place] = []
    at_part: dict[int, Place] = {}
    for place in places:
        if place.path in own:
            at_part[own[place.path]] = place
            continue
        inside = [at for at, part in enumerate(parts) if place.path and part["path"].startswith(f"{place.path}.")]
        if inside:
            ends.setdefault(inside[-1], []).append(place)
        else:
            lost.append(place)
    rows: list[Row] = []
    for at, part in enumerate(parts):
        rows.append(Row([part], at_part.get(at)))
        # inner containers end first
        rows += [
            Row([], place, around=True) for place in sorted(ends.get(at, ()), key=lambda one: -len(one.path or ""))
        ]
    return [*rows, *(Row([], place) for place in lost)]


def _frame(row: Row) -> str:
    """The container with a number that the row stands in, if there is one."""
    path = row.parts[0]["path"] if row.parts else (row.place.path if row.place else None) or ""
    names = path.split(".")
    last = len(names) if row.around or (row.parts and row.parts[0].get("around")) else len(names) - 1
    numbered = [at for at in range(last) if names[at][-1:].isdigit()]
    return ".".join(names[: numbered[-1] + 1]) if numbered else ""


def _blocks(rows: Sequence[Row]) -> Iterator[Block]:
    units = [(frame, list(found)) for frame, found in groupby(rows, key=_frame)]
    single = [(frame, part) for frame, found in units for part in ([found] if frame else _singles(found))]
    at = 0
    while at < len(single):
        frame, found = single[at]
        alike = 1
        if not any(row.busy for row in found):
            shape = _shape(frame, found)
            while at + alike < len(single) and _shape(*single[at + alike]) == shape and shape is not None:
                alike += 1
        here = single[at : at + alike]
        if (frame and not any(row.busy for row in found)) or alike > 2:
            yield _run(here)
        elif frame:
            yield _framed(frame, found)
        else:
            for _, group in here:
                yield _single(group)
        at += alike


def _singles(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows outside of frames: one by one, those without a place together."""
    for bare, found in groupby(rows, key=lambda row: row.place is None):
        if bare:
            yield list(found)
        else:
            yield from ([row] for row in found)


def _shape(frame: str, rows: Sequence[Row]) -> Any:
    """What is the same of units that are alike; ``None`` for one in which something grew."""
    if any(row.busy for row in rows):
        return None

    def inner(path: str) -> str:
        return path[len(frame) :] if frame else ""

    return (
        bool(frame),
        tuple(
            (
                tuple((inner(p["path"]), p["kind"], p["parameters"], p["macs"]) for p in row.parts),
                None if row.place is None else row.place.beside,
            )
            for row in rows
        ),
    )


def _run(units: Sequence[tuple[str, Sequence[Row]]]) -> Block:
    """One or several units in which nothing grew, as one box."""
    rows = [row for _, found in units for row in found]
    parts = [part for row in rows for part in row.parts]
    first, last = (_name(*units[at]) for at in (0, -1))
    many, places = len(units), sum(row.place is not None for row in rows)
    name = first if many == 1 else f"{first} … {last}"
    modules = f"{many} alike" if many > 1 else count(len(parts), "module")
    empty = f", {count(places, 'empty place')}" if places else ""
    # places whose modules the journal does not tell have no numbers
    line = f"{modules}{empty}" + (f" · {_numbers(parts)}" if parts else "")
    spoken = f"{name}: {modules}{empty}" + (f", {_told(parts)}" if parts else "")
    wide = WIDTH - 2 * LEFT
    boxes = [Box(x=LEFT, y=9.0, width=wide, height=BOX, kind="run", whole=_whole(spoken, parts))]
    if many > 1:
        boxes = [Box(x=LEFT + 3, y=12.0, width=wide - 3, height=BOX, kind="run"), *boxes]
    return Block(
        height=59.0 if many > 1 else 56.0,
        spoken=spoken,
        boxes=boxes,
        wires=[_trunk(59.0 if many > 1 else 56.0)],
        labels=[
            Label(x=LEFT + 9, y=25.0, text=fit(name, NAME, wide - 18), kind="name"),
            Label(x=LEFT + 9, y=40.0, text=fit(line, FACT, wide - 18), kind="fact"),
        ],
    )


def _name(frame: str, rows: Sequence[Row]) -> str:
    if frame:
        return visible(frame)
    first = rows[0]
    return visible(first.parts[0]["path"] if first.parts else first.place.slot if first.place else "")


def _single(rows: Sequence[Row]) -> Block:
    canvas = _Canvas()
    if len(rows) == 1:
        canvas.row(rows[0], "")
    else:
        canvas.row(Row([part for row in rows for part in row.parts]), "")
    return canvas.block()


def _framed(frame: str, rows: Sequence[Row]) -> Block:
    canvas = _Canvas(top=30.0)
    parts = [part for row in rows for part in row.parts]
    for bare, found in groupby(rows, key=lambda row: row.place is None):
        group = list(found)
        if bare:
            canvas.row(Row([part for row in group for part in row.parts]), frame)
        else:
            for row in group:
                canvas.row(row, frame)
    canvas.spoken.insert(0, f"{visible(frame)}, {_told(parts)}")
    numbers = _numbers(parts)
    height = canvas.y + 4
    canvas.boxes.insert(
        0, Box(x=0.0, y=4.0, width=WIDTH, height=height - 4, kind="group", whole=_whole(visible(frame), parts))
    )
    room = WIDTH - 36 - width_of(numbers, FACT)
    canvas.labels += [
        Label(x=LEFT + 4, y=21.0, text=fit_path(visible(frame), room), kind="head"),
        Label(x=WIDTH - LEFT - 4, y=21.0, text=numbers, kind="fact", end=True),
    ]
    canvas.y = height + 4
    return canvas.block()


class _Canvas:
    """A block under work: rows go below each other."""

    def __init__(self, top: float = 0.0) -> None:
        self.y = top
        self.boxes: list[Box] = []
        self.wires: list[Wire] = []
        self.dots: list[Dot] = []
        self.labels: list[Label] = []
        self.spoken: list[str] = []

    def block(self) -> Block:
        """What was drawn, with the trunk behind it."""
        return Block(
            height=self.y,
            spoken=". ".join(self.spoken),
            boxes=self.boxes,
            wires=[_trunk(self.y), *self.wires],
            dots=self.dots,
            labels=self.labels,
        )

    def row(self, row: Row, frame: str) -> None:
        """A row, and all that belongs to it."""
        place, top = row.place, self.y
        height = BOX
        if row.parts:
            self._module(row, frame, top + 10)
        elif place is not None:
            self._unknown(row, top + 10)
        if place is None:
            self.y = top + 10 + height + 10
        elif place.sprout is not None:
            self._seed(place, place.sprout, top)
        else:
            self._empty(place, top)

    def _module(self, row: Row, frame: str, y: float) -> None:
        parts, site = row.parts, row.place is not None
        name = visible(_relative(parts[0]["path"], frame))
        if len(parts) > 1:
            name = f"{name} … {visible(_relative(parts[-1]['path'], frame))}"
            fact = f"{len(parts)} modules · {_numbers(parts)}"
            width = WIDTH - 2 * LEFT if not site else MODULE
        else:
            if parts[0].get("around"):
                name = f"{name} itself"
            if parts[0].get("calls", 1) > 1:
                name = f"{name} ×{parts[0]['calls']}"
            fact, width = _numbers(parts), MODULE
        said = f"{name}, {_told(parts)}"
        self.spoken.append(said)
        kind = "module" if site else "quiet"
        self.boxes.append(Box(x=LEFT, y=y, width=width, height=BOX, kind=kind, whole=_whole(said, parts)))
        self.labels += [
            Label(x=LEFT + 9, y=y + 16, text=fit_path(name, width - 18), kind="name"),
            Label(x=LEFT + 9, y=y + 31, text=fit(fact, FACT, width - 10), kind="fact"),
        ]
        room = width - 30 - width_of(name, NAME)
        made = visible(parts[0]["kind"])
        if len(parts) == 1 and width_of(made, FACT) <= room:
            self.labels.append(Label(x=LEFT + width - 9, y=y + 16, text=made, kind="note", end=True))

    def _unknown(self, row: Row, y: float) -> None:
        """A place whose module the journal does not tell, or around modules above."""
        place = row.place
        assert place is not None
        name = visible(place.path or place.slot)
        fact = f"{'beside' if place.beside else 'behind'} all of it" if row.around else "a place to grow"
        self.spoken.append(f"{name}, {fact}")
        self.boxes.append(Box(x=LEFT, y=y, width=MODULE, height=BOX, kind="quiet", whole=name))
        self.labels += [
            Label(x=LEFT + 9, y=y + 16, text=fit_path(name, MODULE - 18), kind="name"),
            Label(x=LEFT + 9, y=y + 31, text=fit(fact, FACT, MODULE - 18), kind="fact"),
        ]

    def _seed(self, place: Place, seed: Sprout, top: float) -> None:
        y, stage = top + 10, seed.stage if seed.inside else "OUT"
        end = y + SEED_BOX + 10
        into, kind = SEED + 22, "branch" if seed.inside and seed.alpha != 0 else "open"
        if place.beside:
            way = [TRUNK, top + 3, into, top + 3, into, y]
        else:
            way = [TRUNK, y + BOX + 7, SEED, y + BOX + 7]
        self.wires.append(Wire(points=way, kind=kind, stage=stage))
        if seed.inside:
            self.wires.append(Wire(points=[into, y + SEED_BOX, into, end, TRUNK, end], kind=kind, stage=stage))
            self.dots.append(Dot(x=TRUNK, y=end, share=seed.alpha, stage=stage))
        said = f"{'beside' if place.beside else 'behind'} it {seed.blueprint}, {seed.fate}{seed.why}, "
        said += f"{_spelled(seed.parameters)} parameters, {_spelled(seed.macs)} MACs, {_worth(seed)}"
        said += f", alpha {seed.alpha:.3g}" if seed.alpha is not None else ""
        said += _history(place)
        self.spoken.append(said)
        kind = "seed" if seed.inside else "out"
        whole = visible(f"{place.slot}, {seed.seed}: {said}")
        self.boxes.append(Box(x=SEED, y=y, width=SEED_WIDTH, height=SEED_BOX, kind=kind, stage=stage, whole=whole))
        self.labels += _seed_labels(seed, stage, y)
        self.y = end + 8

    def _empty(self, place: Place, top: float) -> None:
        y = top + 10
        stem = top + 3 if place.beside else y + BOX + 7
        box = y + 6 if place.beside else y + BOX - 5
        text = "empty" if not place.pruned else f"empty; {place.pruned} were pruned"
        if place.pruned == 1 and place.last is not None:
            text = f"empty; {place.last} was pruned"
        said = f"nothing {'beside' if place.beside else 'behind'} it{_history(place)}"
        self.spoken.append(said)
        into = SEED + 22
        way = [TRUNK, stem, into, stem, into, box] if place.beside else [TRUNK, stem, SEED, stem]
        self.wires.append(Wire(points=way, kind="open"))
        whole = visible(f"{place.slot}: {said}")
        self.boxes.append(Box(x=SEED, y=box, width=SEED_WIDTH, height=24.0, kind="empty", whole=whole))
        self.labels.append(Label(x=SEED + 9, y=box + 16, text=fit(text, FACT, SEED_WIDTH - 18), kind="note"))
        self.y = max(y + BOX + 10, box + 24 + 8)


def _worth(seed: Sprout) -> str:
    if seed.cost is None:
        return "removal cost not measured" + (" by then" if seed.cost_later else "")
    return f"removal cost {seed.cost:.3g}" + ("" if seed.cost_epoch is None else f" (epoch {seed.cost_epoch})")


def _seed_labels(seed: Sprout, stage: str, y: float) -> Iterator[Label]:
    """Three lines: what it is and what became of it; what it takes; what it is worth."""
    left, right, room = SEED + 9, SEED + SEED_WIDTH - 9, SEED_WIDTH - 24
    name = fit(f"{GLYPHS.get(seed.stage, '?')} {seed.blueprint}", NAME, room - width_of(seed.fate, FACT))
    alpha = "" if seed.alpha is None else f"α {seed.alpha:.2g}"
    numbers = fit(f"+{amount(seed.parameters)} · {amount(seed.macs)} MACs", FACT, room - width_of(alpha, FACT))
    yield Label(x=left, y=y + 16, text=name, kind="stage", stage=stage)
    yield Label(x=right, y=y + 16, text=seed.fate, kind="fate", stage=stage, end=True)
    yield Label(x=left, y=y + 31, text=numbers, kind="fact")
    if alpha:
        yield Label(x=right, y=y + 31, text=alpha, kind="fact", end=True)
    yield Label(x=left, y=y + 46, text=fit(_worth(seed), FACT, room + 6), kind="fact")


def _trunk(height: float) -> Wire:
    return Wire(points=[TRUNK, 0.0, TRUNK, height], kind="trunk")


def _end(name: str, first: bool) -> Block:
    wire = Wire(points=[TRUNK, 12.0, TRUNK, 22.0] if first else [TRUNK, 0.0, TRUNK, 10.0], kind="trunk")
    dot = Dot(x=TRUNK, y=8.0 if first else 14.0)
    return Block(
        height=22.0,
        spoken=name,
        wires=[wire],
        dots=[dot],
        labels=[Label(x=TRUNK + 12, y=12.0 if first else 18.0, text=name, kind="note")],
    )


def _head(grown: Grown) -> Block:
    """A bar each for parameters and MACs: the host's share, then each seed's."""
    inside = [place.sprout for place in grown.places if place.sprout is not None and place.sprout.inside]
    boxes: list[Box] = []
    labels: list[Label] = []
    spoken: list[str] = []
    y = 0.0
    for name, (before, after), sizes in (
        ("parameters", grown.parameters, [seed.parameters for seed in inside]),
        ("MACs of one example", grown.macs, [seed.macs for seed in inside]),
    ):
        if before is None:
            continue
        text = amount(before, 4)
        if after is not None and after != before:
            grew = 100 * (after - before) / before if before else 0.0
            share = f" ({grew:+,.0f} %)" if abs(grew) >= 100 else f" ({grew:+.2g} %)" if grew else ""
            text = f"{text} → {amount(after, 4)}{share}"
        labels += [
            Label(x=0.0, y=y + 12, text=name, kind="fact"),
            Label(x=WIDTH, y=y + 12, text=text, kind="name", end=True),
        ]
        spoken.append(f"{name}: {_spelled(before)} before, {_spelled(after)} after")
        boxes += _bar(y + 18, before, after, list(zip(inside, sizes, strict=True)))
        y += 36
    kept = f"{count(len(inside), 'seed')} in {count(len(grown.places), 'place')}"
    labels.append(Label(x=0.0, y=y + 10, text=f"{kept} · in each box: parameters · MACs", kind="note"))
    return Block(height=y + 18, spoken="; ".join([*spoken, kept]), boxes=boxes, labels=labels)


def _bar(y: float, before: int, after: int | None, seeds: Sequence[tuple[Sprout, int | None]]) -> Iterator[Box]:
    whole = max(before, after or 0, 1)
    x = WIDTH * before / whole
    yield Box(x=0.0, y=y, width=x, height=8.0, kind="bar", whole=f"the host: {before:,}")
    for seed, size in seeds:
        if not size or after is None:
            continue
        width = min(WIDTH * size / whole, WIDTH - x)
        if width > 0:
            told = f"{seed.blueprint}: {size:,}"
            yield Box(x=x, y=y, width=width, height=8.0, kind="bar", stage=seed.stage, whole=told)
        x += width


def _notes(grown: Grown) -> Iterator[str]:
    if not grown.parts:
        yield "The journal does not say of which modules the host is made; drawn are its places to grow."
    idle = [part for part in grown.parts if not part.get("calls", 1)]
    if idle:
        named = ", ".join(visible(part["path"]) for part in idle[:3])
        more = f" and {len(idle) - 3} more" if len(idle) > 3 else ""
        total = sum(part["parameters"] for part in idle)
        yield f"Not in it, since never called as modules: {named}{more} ({total:,} parameters)."
    out = [place.sprout for place in grown.places if place.sprout is not None and not place.sprout.inside]
    if out:
        yield f"Grey, and not in the network: {', '.join(f'{seed.blueprint} ({seed.fate}{seed.why})' for seed in out)}."
    after = grown.parameters[1]
    if grown.exported is not None and after is not None and grown.exported < after:
        yield f"Written with {grown.exported:,} parameters: what is linear beside a weight was folded into it."
    if any(place.sprout is not None and place.sprout.cost is not None for place in grown.places):
        unit = f", in {visible(grown.unit)}" if grown.unit else ""
        yield f"Removal cost: what the metric loses without the seed{unit}, with the epoch of its measurement."


def _relative(path: str, frame: str) -> str:
    if frame and path.startswith(f"{frame}."):
        inner = path[len(frame) + 1 :]
        return f"{frame.rpartition('.')[2]}.{inner}" if inner.isdigit() else inner
    return path or "the model"


def _numbers(parts: Iterable[dict[str, Any]]) -> str:
    found = list(parts)
    parameters, macs = (sum(part[name] for part in found) for name in ("parameters", "macs"))
    return f"{amount(parameters)} · {amount(macs)} MACs"


def _told(parts: Iterable[dict[str, Any]]) -> str:
    found = list(parts)
    parameters, macs = (sum(part[name] for part in found) for name in ("parameters", "macs"))
    return f"{parameters:,} parameters, {macs:,} MACs"


def _whole(said: str, parts: Sequence[dict[str, Any]]) -> str:
    """All that stands behind a box, by line; of very many modules how many more there are."""
    lines = [
        f"{visible(part['path'] or 'the model')} ({visible(part['kind'])}): {_told([part])}"
        + (f", called {part['calls']} times" if part.get("calls", 1) > 1 else "")
        for part in parts[:24]
    ]
    more = [f"and {len(parts) - 24} more"] if len(parts) > 24 else []
    return "\n".join([said, *lines, *more])


def _history(place: Place) -> str:
    if not place.past and not place.pruned:
        return ""
    more = max(0, place.pruned - len(place.past))
    return f"; before: {'; '.join([*([f'{more} that were pruned'] if more else []), *place.past])}"


def _spelled(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
