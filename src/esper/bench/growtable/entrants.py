"""What ``esper growtable score --policy`` names: a policy by name, its file, one of stable-baselines3 (``.zip``), or a
callable of anybody's as ``module:Callable``.

A callable without arguments makes a policy (:class:`esper.EnvPolicy`). One of two arguments, observation and mask of
``esper/GrowTableFlat-v0``, gives an action of it: a number where the mask is true.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from esper.bench.growtable.host import SPACE, Node, TableHost
from esper.bench.growtable.learn import network_player
from esper.bench.growtable.score import Player, by_views
from esper.bench.growtable.zips import loaded
from esper.leyline import (
    DataError,
    Decision,
    EnvSpec,
    EnvView,
    EsperError,
    FactoredAction,
    MissingExtraError,
    Policy,
    UsageError,
    load_attribute,
)
from esper.leyline.decoding import told
from esper.tamiyo.features import LAYOUT
from esper.tamiyo.policies import make_policy, policy_names
from esper.tamiyo.policies.learned import PACKAGED, file_of, load_policy

LEGAL: Final = (
    "legal: a callable without arguments that makes a policy with name, reset(specs), decide(views), or one of two, "
    "observation and mask of esper/GrowTableFlat-v0, that gives an action"
)


@dataclass(frozen=True, slots=True)
class Entrant:
    """A policy that is to be scored."""

    name: str
    player: Player
    """As it plays in the table."""
    policy: Policy | None
    """As it plays for real; ``None`` where its actions are the table's alone."""
    training_macs: int = 0
    """0 where nobody said what it took."""
    auditions: bool = False
    """Whether rules have it measured what places promise, in real runs; in the table, where the world holds that."""


def entrant(name: str, reference: str) -> Entrant:
    """The policy that ``reference`` names, to be shown as ``name``. Raises ``UsageError`` for what is none or was made
    for another layout, ``DataError`` for a file that holds none.
    """
    if ":" in reference and not Path(reference).exists():
        return _called(name, reference)
    if reference in policy_names() and reference not in PACKAGED:
        return _with_views(name, f"policy {reference!r}", make_policy(reference))
    if reference.endswith(".zip"):
        return Entrant(name, _of_zip(f"policy {reference!r}", Path(reference)), None)
    # by name and by path the same file plays in the same way
    saved = load_policy(file_of(reference))
    player = network_player(saved.network)
    return Entrant(name, player, saved.player(greedy=True), saved.training_macs, saved.auditions)


def _called(name: str, reference: str) -> Entrant:
    what = f"policy {reference!r}"
    with _blamed(what):
        found = load_attribute("policy", reference)
    if isinstance(found, Policy) and not isinstance(found, type):
        return _with_views(name, what, found)
    needed = _needed(what, found)
    if needed == 0:
        with _blamed(what):
            made = found()
        if not isinstance(made, Policy):
            raise UsageError(f"{what} made a {type(made).__name__}; {LEGAL}")
        return _with_views(name, what, made)
    if needed == 2:
        return Entrant(name, _of_observations(what, lambda: found), None)
    raise UsageError(f"{what} takes {needed} arguments; {LEGAL}")


def _needed(what: str, found: Any) -> int:
    """How many arguments it cannot be called without."""
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} is a {type(found).__name__} and cannot be called; {LEGAL}") from error
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return sum(each.default is each.empty and each.kind not in optional for each in parameters)


def _with_views(name: str, what: str, policy: Policy) -> Entrant:
    checked = CheckedPolicy(what, policy)
    return Entrant(name, by_views(checked), checked)


class CheckedPolicy:
    """Somebody's policy, whose mistakes are one sentence. Implements :class:`esper.leyline.Policy`."""

    def __init__(self, what: str, policy: Policy) -> None:
        self.name = policy.name
        self._what, self._policy = what, policy

    def reset(self, specs: Sequence[EnvSpec]) -> None:
        """An episode begins."""
        with _blamed(self._what):
            self._policy.reset(specs)

    def decide(self, views: Sequence[EnvView]) -> list[Decision]:
        """Its decisions, if they are some. Raises ``UsageError``."""
        with _blamed(self._what):
            given: Any = self._policy.decide(views)
        fits = isinstance(given, list | tuple) and len(given) == len(views)
        if not fits or not all(isinstance(one, Decision) and isinstance(one.action, FactoredAction) for one in given):
            raise UsageError(f"{self._what} decided {_short(given)}; legal: a list of one Decision a view")
        return list(given)


def _of_zip(what: str, path: Path) -> Player:
    if not path.is_file():
        raise DataError(f"{what}: no such file")
    try:
        from esper.bench.growtable.env import GrowTableEnv
        from esper.simic.gym_actions import JointActions
    except MissingExtraError as error:
        raise MissingExtraError(f"{what}, of stable-baselines3,", "sb3") from error
    actions = len(JointActions(SPACE, GrowTableEnv.sayable).actions)
    slots, width = len(SPACE.slots), 1 + len(SPACE.blueprints)
    return _of_observations(what, loaded(path, LAYOUT.width(slots) + slots * width, actions))


def _of_observations(what: str, start: Callable[[], Callable[[Any, Any], Any]]) -> Player:
    """``start()`` begins an episode: a function of observation and mask."""
    try:
        from esper.bench.growtable.env import GrowTableEnv
        from esper.simic.gym_actions import JointActions
        from esper.simic.gym_host import flat_observation
    except MissingExtraError as error:
        raise MissingExtraError(f"{what}, which takes observations,", "rl") from error
    actions = JointActions(SPACE, GrowTableEnv.sayable)

    def begin(host: TableHost, draw: int) -> Callable[[Node], FactoredAction]:
        function = start()

        def choose(node: Node) -> FactoredAction:
            observation = flat_observation(node.view, SPACE)
            mask = actions.mask(node.availability, tuple(node.held))
            with _blamed(what):
                given = function(observation, mask)
            try:
                return actions.read(given)
            except (UsageError, ValueError, TypeError) as error:
                last = len(actions.actions) - 1
                raise UsageError(f"{what} gave {_short(given)}; legal: one integer from 0 to {last}") from error

        return choose

    return begin


@contextmanager
def _blamed(what: str) -> Iterator[None]:
    """Whatever is raised within was raised by somebody's code: one sentence, with the place."""
    try:
        yield
    except EsperError:
        raise
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = "" if trace is None else f", in {trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"
        raise UsageError(f"{what} raised {type(error).__name__}: {told(error)}{place}") from error


def _short(given: Any) -> str:
    try:
        words = told(repr(given))
    except Exception:
        words = "what cannot be shown"
    return f"a {type(given).__name__}, {words}"
