"""What an action is to Gymnasium: one choice per head, or one number for a whole action.

Both read an action that a client gives, or say in one sentence what is wrong with it, and both say what is legal as one
flat array. Masks per head are marginal: they cannot exclude an illegal pair of op and slot. Masks of whole actions can.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from esper.leyline import HEADS, ActionSpace, FactoredAction, MissingExtraError, Op, UsageError
from esper.tamiyo.masks import RELEVANCE, Availability, BoolArray, to_action, to_indices

try:
    from gymnasium import spaces
except ImportError as error:
    raise MissingExtraError("the Gymnasium environment", "rl") from error

KINDS: Final = ("heads", "joint")
"""``MultiDiscrete`` over the heads, or ``Discrete`` over all that can be said."""


class MaskedHeads(spaces.MultiDiscrete):
    """``MultiDiscrete`` whose ``sample`` also takes a flat mask, all heads one after the other."""

    def sample(self, mask: Any = None, probability: Any = None) -> npt.NDArray[Any]:
        """As ``MultiDiscrete.sample``."""
        cuts = np.cumsum(self.nvec)[:-1]
        apart = tuple(np.split(mask, cuts)) if isinstance(mask, np.ndarray) else mask
        return super().sample(apart, probability)


class Actions(Protocol):
    """How actions are said."""

    space: spaces.Space[Any]

    def read(self, action: Any) -> FactoredAction:
        """The action that a client means. Raises ``UsageError`` for what is none."""

    def say(self, action: FactoredAction) -> Any:
        """Undo of :meth:`read`."""

    def mask(self, legal: Availability, held: Iterable[FactoredAction] | None) -> BoolArray:
        """Flat. ``held`` are the legal actions where they are known one by one, and say more than ``legal``."""


class HeadActions:
    """One choice per head, in the order of ``HEADS``."""

    def __init__(self, space: ActionSpace) -> None:
        self._space = space
        self.space: spaces.Space[Any] = MaskedHeads(list(space.sizes))

    def read(self, action: Any) -> FactoredAction:
        """Choices of heads that the op does not consume mean nothing, but must be there and in range."""
        given = _integers(action, (len(HEADS),), f"one choice for each of {', '.join(HEADS)}")
        for head, choice, size in zip(HEADS, given.tolist(), self._space.sizes, strict=True):
            if not 0 <= choice < size:
                raise UsageError(f"step: the action {given.tolist()} has {head} {choice}; legal: 0 to {size - 1}")
        return to_action(self._space, given.tolist())

    def say(self, action: FactoredAction) -> npt.NDArray[np.int64]:
        """Heads that the op does not consume are 0."""
        return np.array(to_indices(self._space, action))

    def mask(self, legal: Availability, held: Iterable[FactoredAction] | None) -> BoolArray:
        """Marginal masks of all heads, one after the other."""
        marginals = legal.marginals()
        return np.concatenate([marginals[head] for head in HEADS])


class JointActions:
    """One number for a whole action: WAIT, then op by op over slots and all heads that the op consumes."""

    def __init__(self, space: ActionSpace, sayable: frozenset[FactoredAction] | None = None) -> None:
        """``sayable``: all that can ever be legal; ``None`` is whatever the space can say."""
        choices = (space.slots, space.blueprints, space.blends, space.alpha_targets, space.tempos)
        every = (
            FactoredAction(op, **dict[str, Any](zip(heads, said, strict=True)))
            for op in Op
            for heads in [[head for head, used in zip(HEADS[1:], RELEVANCE[op, 1:], strict=True) if used]]
            for said in itertools.product(*(choices[HEADS.index(head) - 1] for head in heads))
        )
        self.actions = tuple(action for action in every if sayable is None or action in sayable)
        """By number."""
        self._numbers = {action: number for number, action in enumerate(self.actions)}
        self.space: spaces.Space[Any] = spaces.Discrete(len(self.actions))

    def read(self, action: Any) -> FactoredAction:
        """The action of this number."""
        number = int(_integers(action, (), "one number"))
        if not 0 <= number < len(self.actions):
            raise UsageError(f"step: the action is {number}; legal: 0 to {len(self.actions) - 1}")
        return self.actions[number]

    def say(self, action: FactoredAction) -> int:
        """Its number."""
        return self._numbers[action]

    def mask(self, legal: Availability, held: Iterable[FactoredAction] | None) -> BoolArray:
        """Exactly what is legal."""
        if held is None:
            return np.concatenate([self._of(op, legal).ravel() for op in Op])
        mask = np.zeros(len(self.actions), dtype=bool)
        mask[[self._numbers[action] for action in held]] = True
        return mask

    @staticmethod
    def _of(op: Op, legal: Availability) -> BoolArray:
        """``[slot, blueprint, blend, alpha_target, tempo]`` without the heads that the op does not consume."""
        if op is Op.WAIT:
            return np.array([legal.op[op]])
        slot: BoolArray = legal.slot[op]
        if op not in (Op.GERMINATE, Op.SET_ALPHA):
            return slot
        shape = (slot[:, None] & legal.alpha_target)[:, None, :, None]
        shaped: BoolArray = legal.blend[:, None, None] & shape & legal.tempo
        if op is Op.SET_ALPHA:
            return shaped
        with_blueprint: BoolArray = legal.blueprint[:, :, None, None, None] & shaped[:, None]
        return with_blueprint


def actions_of(kind: str, space: ActionSpace, sayable: frozenset[FactoredAction] | None = None) -> Actions:
    """Of :data:`KINDS`; ``sayable`` as :class:`JointActions` takes it."""
    if kind not in KINDS:
        raise UsageError(f"actions={kind!r}; legal: {', '.join(KINDS)}")
    return HeadActions(space) if kind == "heads" else JointActions(space, sayable)


def _integers(action: Any, shape: tuple[int, ...], words: str) -> npt.NDArray[np.int64]:
    """Raises ``UsageError`` for what is not ``shape`` integers."""
    given = np.asarray(action)
    if given.shape != shape or given.dtype.kind not in "iu":
        raise UsageError(f"step: the action is {given.dtype} of shape {given.shape}; legal: integers {shape}, {words}")
    return given.astype(np.int64)
