"""Every sequence of letters up to a length, once: by the states that they lead to, so that equal ones are one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

S = TypeVar("S")


def every_sequence(
    begin: S,
    letters: Mapping[str, Callable[[S], S | None]],
    depth: int,
    key: Callable[[S], str],
) -> tuple[int, int]:
    """Number of sequences of ``letters`` up to ``depth``, and of states met on the way.

    A letter maps a state to the next, which must depend on ``key`` of the state alone, and leaves the state that it was
    given as it was; ``None`` ends the sequence. It raises for what must not be, with the sequence as a note.
    """
    front: dict[str, tuple[S, int, str]] = {key(begin): (begin, 1, "")}
    sequences = states = 0
    for _ in range(depth):
        reached: dict[str, tuple[S, int, str]] = {}
        for state, many, way in front.values():
            for name, act in letters.items():
                sequences += many
                try:
                    after = act(state)
                except BaseException as error:
                    error.add_note(f"after{way} {name}")
                    raise
                if after is not None:
                    found = key(after)
                    _, before, first = reached.get(found, (after, 0, f"{way} {name}"))
                    reached[found] = (after, before + many, first)
        states += len(reached)
        front = reached
    return sequences, states
