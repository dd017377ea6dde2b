"""The filter language of every face: ``env=3 stage=blending severity>=warning text``.

Terms are joined by "and". A term is

    field=value   field!=value   field>value   field>=value   field<value   field<=value
    field=a,b     any of the values
    word          a word that occurs in the text; "two words" together in quotes
    -term         not this term

Case does not matter. What is not known of a subject matches nothing but a negated term.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from esper.karn.schema import EnvironmentRow, FeedItem
from esper.leyline import SEVERITIES, UsageError, unknown
from esper.leyline.decoding import told

LONGEST: Final = 4096
"""Characters of a filter."""
GrowthTask = Mapping[str, Any]
"""Field -> value, or a set of values of which any may match. A missing key is not known."""

_NUMBERS: Final = frozenset({"env", "episode", "epoch", "score", "metric", "loss", "parameters", "time", "duration"})
_ORDERS: Final[dict[str, tuple[str, ...]]] = {
    "severity": SEVERITIES,
    "level": ("ok", "watch", "bad", "critical"),
}
_WORDS: Final = frozenset(
    {
        *("type", "slot", "seed", "stage", "blueprint", "gate", "arm", "policy", "device", "status", "factor"),
        *("run", "task", "kind", "state", "name", "tag", "archived"),
    }
)
FIELDS: Final = tuple(sorted(_NUMBERS | set(_ORDERS) | _WORDS))

_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_TERM = re.compile(r"""(?P<not>-?)(?:(?P<field>[A-Za-z_]+)\s*(?P<op>!=|>=|<=|=|>|<)\s*)?(?P<value>"[^"]*"?|[^\s"]*)""")


@dataclass(frozen=True, slots=True)
class Term:
    """One condition; ``field`` is ``None`` for a word of the text."""

    negated: bool
    field: str | None
    op: str
    values: tuple[Any, ...]

    def matches(self, subject: GrowthTask) -> bool:
        """Whether ``subject`` meets the condition."""
        return self._holds(subject) is not self.negated

    def _holds(self, subject: GrowthTask) -> bool:
        if self.field is None:
            return str(self.values[0]) in str(subject.get("text", "")).casefold()
        given = subject.get(self.field)
        if given is None:
            return False
        compare = _COMPARE[self.op]
        candidates = given if isinstance(given, set | frozenset) else (given,)
        ranked = [_rank(self.field, candidate) for candidate in candidates]
        # "is none of them" must hold for all, everything else for any
        fold = all if self.op == "!=" else any
        return fold(fold(_compared(compare, one, value) for value in self.values) for one in ranked)


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed filter; an empty one matches everything."""

    text: str
    terms: tuple[Term, ...]

    def matches(self, subject: GrowthTask) -> bool:
        """Whether ``subject`` meets every term."""
        return all(term.matches(subject) for term in self.terms)

    def item(self, item: FeedItem) -> bool:
        """Whether a feed item matches."""
        return not self.terms or self.matches(item_subject(item))

    def row(self, row: EnvironmentRow) -> bool:
        """Whether an environment of the board matches."""
        return not self.terms or self.matches(row_subject(row))


def parse(text: str, also: Collection[str] = ()) -> Filter:
    """Parse a filter. Raises ``UsageError`` with the position of what is wrong.

    ``also`` are names of settings, which are fields of runs: their values compare as numbers where both are.
    """
    if len(text) > LONGEST:
        raise UsageError(f"a filter of {len(text)} characters; at most {LONGEST} are read")
    terms: list[Term] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        match = _TERM.match(text, at)
        if match is None or match.end() == at:
            raise _error(text, at, f"cannot read {text[at]!r}")
        terms.append(_term(text, match, also))
        at = match.end()
    return Filter(text, tuple(terms))


def item_subject(item: FeedItem) -> GrowthTask:
    """Fields of a feed item."""
    names = ("type", "severity", "episode", "epoch", "env", "slot", "seed", "stage", "blueprint", "gate", "time")
    known = {name: value for name in names if (value := getattr(item, name)) is not None}
    words = [str(known[name]) for name in ("type", "slot", "seed", "blueprint", "stage") if name in known]
    return known | {"text": " ".join([item.text, *words])}


def row_subject(row: EnvironmentRow) -> GrowthTask:
    """Fields of an environment; slots, stages, blueprints and factors match if any of them does."""
    names = ("env", "episode", "epoch", "arm", "policy", "device", "status", "level", "score")
    subject: dict[str, Any] = {name: value for name in names if (value := getattr(row, name)) is not None}
    for name in ("metric", "loss", "parameters"):
        figure = getattr(row, name)
        if figure is not None:
            subject[name] = float(figure.value)
    chips = list(row.slots.values())
    subject["slot"] = {chip.slot for chip in chips}
    for name in ("stage", "blueprint", "seed", "gate"):
        subject[name] = {value for chip in chips if (value := getattr(chip, name)) is not None}
    subject["factor"] = {factor.name for factor in row.factors}
    subject["text"] = " ".join(
        [*(factor.text for factor in row.factors), str(subject.get("arm", "")), *subject["slot"], *subject["blueprint"]]
    )
    return subject


def _term(text: str, match: re.Match[str], also: Collection[str]) -> Term:
    field, op, raw = match["field"], match["op"], match["value"]
    place = match.start("value")
    if raw.startswith('"'):
        if len(raw) < 2 or not raw.endswith('"'):
            raise _error(text, place, "the quotation is not closed")
        raw = raw[1:-1]
        values = (raw,)
    else:
        values = tuple(raw.split(",")) if field is not None else (raw,)
    if not all(values) or not raw:
        what = f"a value after {field}{op}" if field is not None else "a word"
        raise _error(text, place, f"{what} is missing")
    negated = bool(match["not"])
    if field is None:
        return Term(negated, None, "", (raw.casefold(),))
    name = field.casefold()
    if name not in FIELDS and name not in also:
        raise _error(text, match.start("field"), str(unknown("field", field, (*FIELDS, *also))))
    if name in _WORDS and op not in ("=", "!="):
        raise _error(text, match.start("op"), f"{name} has no order, so {op} makes no sense; use = or !=")
    try:
        return Term(negated, name, op, tuple(_rank(name, value) for value in values))
    except ValueError as problem:
        raise _error(text, place, str(problem)) from None


def _compared(compare: Callable[[Any, Any], bool], one: Any, other: Any) -> bool:
    """Of a setting one value may be a number and another a word: those are unlike, and in no order."""
    alike = isinstance(one, str) is isinstance(other, str)
    return compare(one, other) if alike else compare is operator.ne


def _rank(field: str, value: Any) -> Any:
    """A value in a form that compares: a number, a place in an order, or a folded word."""
    if field in _NUMBERS:
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{field} is a number, not {value!r}") from None
    if field in _ORDERS:
        order = _ORDERS[field]
        if str(value).casefold() not in order:
            raise ValueError(f"{field} is one of {', '.join(order)}, not {value!r}")
        return order.index(str(value).casefold())
    if field not in _WORDS:
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    return str(value).casefold()


def _error(text: str, at: int, problem: str) -> UsageError:
    return UsageError(f"filter {told(repr(text))}, position {at + 1}: {told(problem)}")
