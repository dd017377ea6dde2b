"""Tasks by name: built in, from entry points of other packages (group ``esper.tasks``), or as ``module:attribute``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from numbers import Integral, Real
from os import PathLike
from types import MappingProxyType
from typing import Any, Final

from esper.leyline import UsageError, load_attribute, plugins_in, unknown
from esper.tasks.base import TaskSpec, check_task

GROUP: Final = "esper.tasks"

BUILT_IN: Final = MappingProxyType(
    {
        "digits": "esper.tasks.digits:digits",
        "digits-colour": "esper.tasks.colour:digits_colour",
        "mnist1d": "esper.tasks.mnist1d:mnist1d",
        "text": "esper.tasks.text:text",
        "cifar10": "esper.tasks.cifar10:cifar10",
        "diabetes": "esper.tasks.examples:diabetes",
        "book": "esper.tasks.book:book",
        "letters": "esper.tasks.letters:letters",
        "fashion": "esper.tasks.fashion:fashion",
        "emoji": "esper.tasks.pretrained.emoji:emoji",
        "verses": "esper.tasks.pretrained.verses:verses",
        "fashion-colour": "esper.tasks.pretrained.fashion:fashion_colour",
        "mnist-m": "esper.tasks.pretrained.fashion:mnist_m",
    }
)
"""Name -> ``module:attribute`` of a function that returns a ``TaskSpec``."""

_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "int": (Integral,),
    "float": (Real,),
    "str": (str, PathLike),
    "str | None": (str, PathLike, type(None)),
}
"""Annotation of an option -> what may be given; of other annotations anything."""


def task_names() -> tuple[str, ...]:
    """Every name that :func:`get_task` knows: the built-in ones first, then those of other packages."""
    return (*BUILT_IN, *plugins_in(GROUP, BUILT_IN))


def get_task(name: str, **options: Any) -> TaskSpec:
    """Load a task and its data.

    ``name`` is one of :func:`task_names` or ``module:attribute``, where the attribute is a ``TaskSpec`` or a function
    that takes ``options`` and returns one. Raises ``UsageError`` for an unknown name or option, ``MissingExtraError``
    when a task's data need an extra, ``DataError`` when its data are missing or damaged.
    """
    if name in BUILT_IN:
        return _made(name, load_attribute("task", BUILT_IN[name]), options)
    if ":" in name:
        return check_task(_made(name, load_attribute("task", name), options))
    others = plugins_in(GROUP)
    if name in others:
        return check_task(_made(name, load_attribute("task", others[name].value), options))
    raise unknown("task", name, task_names())


def _made(name: str, made_by: TaskSpec | Callable[..., TaskSpec], options: dict[str, Any]) -> TaskSpec:
    if callable(made_by):
        legal = inspect.signature(made_by).parameters
        for option, value in options.items():
            if option not in legal:
                raise unknown(f"option of task {name!r}", option, legal)
            expected = inspect.formatannotation(legal[option].annotation).strip("'")
            if expected in _TYPES and (isinstance(value, bool) or not isinstance(value, _TYPES[expected])):
                raise UsageError(f"option {option} of task {name!r} is {value!r}; a value of type {expected} is needed")
        made_by = made_by(**options)
    elif options:
        raise UsageError(f"task {name!r} is a ready-made TaskSpec and takes no options; given: {', '.join(options)}")
    if not isinstance(made_by, TaskSpec):
        raise UsageError(f"task {name!r} gives a {type(made_by).__name__}; an esper.tasks.TaskSpec is needed")
    return replace(made_by, options=dict(options))
