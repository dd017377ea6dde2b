"""The grown network as shapes with their places: laid out once (:mod:`esper.karn.layout`), painted by report, notebook
and page alike. Lengths are CSS pixels; ``kind`` and ``stage`` choose the colour."""

from __future__ import annotations

from esper.karn.parts import Part


class Box(Part, kw_only=True, frozen=True):
    """A rectangle. ``whole`` is all that is known of what it stands for, to be read at the pointer."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    """``module``, ``quiet`` (no place to grow), ``seed``, ``out`` (a seed that is not in the network), ``empty``,
    ``group``, ``run`` (several alike) or ``bar``."""
    stage: str | None = None
    whole: str | None = None


class Wire(Part, kw_only=True, frozen=True):
    """A line through ``points``: x and y in turn."""

    points: list[float]
    kind: str
    """``trunk``, ``branch`` or ``open`` (nothing flows there yet)."""
    stage: str | None = None


class Dot(Part, kw_only=True, frozen=True):
    """Where a seed's output joins the network's, filled by its ``share`` (alpha) in [0, 1]; empty without one."""

    x: float
    y: float
    share: float | None = None
    stage: str | None = None


class Label(Part, kw_only=True, frozen=True):
    """A line of text, its baseline at ``y``; ``x`` is its left end, with ``end`` its right one."""

    x: float
    y: float
    text: str
    kind: str
    """``name``, ``fact``, ``note`` or ``stage``."""
    stage: str | None = None
    end: bool = False


class Block(Part, kw_only=True, frozen=True):
    """A piece of the picture as wide as all of it: blocks stand one below the other, or in columns."""

    height: float
    spoken: str
    """What it shows, in words."""
    boxes: list[Box] = []
    wires: list[Wire] = []
    dots: list[Dot] = []
    labels: list[Label] = []


class Network(Part, kw_only=True, frozen=True):
    """The network of one episode, from its input to its output."""

    title: str
    width: float
    head: Block
    """Parameters and MACs before and after."""
    blocks: list[Block]
    notes: list[str] = []
    """What the picture cannot show."""
    env: int | None = None

    def _repr_svg_(self) -> str:
        from esper.karn.svg import paint

        return paint(self)
