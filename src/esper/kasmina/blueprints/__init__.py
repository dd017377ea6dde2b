"""Blueprints: the kinds of seed that can be grown, by name and layout."""

from esper.kasmina.blueprints import beside as _beside  # registers its family
from esper.kasmina.blueprints import convolution as _convolution
from esper.kasmina.blueprints import features as _features
from esper.kasmina.blueprints.registry import (
    ENTRY_POINTS,
    Blueprint,
    add,
    against,
    build,
    everything,
    find,
    get,
    names,
    register,
)

__all__ = ["ENTRY_POINTS", "Blueprint", "add", "against", "build", "everything", "find", "get", "names", "register"]

del _beside, _convolution, _features
