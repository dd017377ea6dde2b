"""The host's part of an optimizer as if nothing grew, for checkpoints that know nothing of seeds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

from esper.leyline import UsageError
from esper.tolaria.surgery import SEED, host_groups, seed_groups

StateDict = dict[str, Any]


@contextmanager
def host_alone(optimizer: Optimizer) -> Iterator[None]:
    """Within, ``optimizer.state_dict()`` is the host's, and ``load_state_dict`` leaves what is known of seeds as it is.

    Loading raises ``UsageError`` where the groups are not as many as the host's.
    """
    whole = False

    def taken(optimizer: Optimizer, state: StateDict) -> StateDict | None:
        return None if whole else _picked(state, [group for group in state["param_groups"] if SEED not in group])

    def put_back(optimizer: Optimizer, state: StateDict) -> StateDict | None:
        nonlocal whole
        given, own = state["param_groups"], host_groups(optimizer)
        if not seed_groups(optimizer):
            return None
        if len(given) != len(own):
            raise UsageError(
                f"the optimizer's state has {len(given)} parameter groups, and the model {len(own)} without its seeds;"
                " grower.load_state_dict(), before the with block, puts back the optimizer with its seeds"
            )
        whole = True
        try:
            here = optimizer.state_dict()
        finally:
            whole = False
        return _with_seeds(state, here)

    handles = [optimizer.register_state_dict_post_hook(taken), optimizer.register_load_state_dict_pre_hook(put_back)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _picked(state: StateDict, groups: list[StateDict]) -> StateDict:
    """A state dict of some of its groups, with parameters counted anew."""
    picked: StateDict = {**state, "state": {}, "param_groups": []}
    _add(picked, state["state"], groups)
    return picked


def _with_seeds(given: StateDict, here: StateDict) -> StateDict:
    """The state dict ``given`` of the host, and of seeds what there is ``here``, in the order of the groups here."""
    hosts = iter(given["param_groups"])
    whole: StateDict = {**given, "state": {}, "param_groups": []}
    for group in here["param_groups"]:
        if SEED in group:
            _add(whole, here["state"], [group])
        else:
            _add(whole, given["state"], [next(hosts)])
    return whole


def _add(to: StateDict, state: StateDict, groups: list[StateDict]) -> None:
    for group in groups:
        first = sum(len(each["params"]) for each in to["param_groups"])
        for place, number in enumerate(group["params"], first):
            if number in state:
                to["state"][place] = state[number]
        to["param_groups"].append({**group, "params": list(range(first, first + len(group["params"])))})
