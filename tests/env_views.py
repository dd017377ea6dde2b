"""Views for tests: a plain one to start from, and random ones that can hold any state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from esper.leyline import (
    ALPHA_TARGETS,
    BLENDS,
    LIVE,
    RELEVANT_HEADS,
    TEMPOS,
    ActionSpace,
    EnvView,
    Fact,
    FactoredAction,
    GateThresholds,
    Metric,
    Op,
    Paired,
    Promise,
    SeedStage,
    SlotView,
)

BLUEPRINTS = ("small", "middle", "large")
PARAMETERS = {"small": 16, "middle": 80, "large": 600}


def row_view(*slots: SlotView, **fields: Any) -> EnvView:
    """A young row with ``slots`` (three dormant ones when none are given) and nothing measured."""
    slots = slots or tuple(SlotView(f"slot{i}") for i in range(3))
    higher = fields.get("higher_is_better", True)
    defaults: dict[str, Any] = {
        "env_id": 0,
        "episode": 0,
        "epoch": 3,
        "max_epochs": 30,
        "blueprints": BLUEPRINTS,
        "blueprint_parameters": {slot.slot_id: dict(PARAMETERS) for slot in slots},
        "host_parameters": 250,
        "gates": GateThresholds(metric=Metric("accuracy", "%", higher, low=0.0, high=100.0)),
    }
    return EnvView(slots=slots, **{**defaults, **fields})


def live_slot(slot_id: str, stage: SeedStage, blueprint: str = "large", **fields: Any) -> SlotView:
    """A slot that holds a seed of ``blueprint``."""
    defaults: dict[str, Any] = {"parameters": PARAMETERS[blueprint], "epochs_in_stage": 2, "age_epochs": 4}
    if stage in (SeedStage.TRAINING, SeedStage.HOLDING):
        defaults["stage_epoch"] = 3 - fields.get("epochs_in_stage", 2)
    return SlotView(slot_id, stage, seed_id=f"{slot_id}.1", blueprint=blueprint, **{**defaults, **fields})


def measured(value: float, se: float = 0.0, epoch: int | None = 3, n: int = 300) -> Fact[Paired]:
    """A paired fact."""
    return Fact(Paired(value, se, n), epoch)


def factored_actions(slots: tuple[str, ...], blueprints: tuple[str, ...]) -> Iterator[FactoredAction]:
    """Every action of the factored space."""
    space = ActionSpace(slots, blueprints)
    for op in Op:
        heads = ("slot", "blueprint", "blend", "alpha_target", "tempo")
        choices: tuple[tuple[Any, ...], ...] = (
            space.slots,
            space.blueprints,
            space.blends,
            space.alpha_targets,
            space.tempos,
        )
        used = [c if head in RELEVANT_HEADS[op] else (None,) for head, c in zip(heads, choices, strict=True)]
        for combination in itertools.product(*used):
            yield FactoredAction(op, *combination)


_numbers = st.floats(-200, 200) | st.sampled_from([math.nan, math.inf, -math.inf])
_epochs = st.none() | st.integers(0, 30)
_facts = st.none() | st.builds(Fact, _numbers, _epochs)
_paired = st.none() | st.builds(
    Fact, st.builds(Paired, _numbers, st.floats(0, 50) | st.just(math.nan), st.integers(1, 5000)), _epochs
)
_promises = st.builds(Promise, _numbers, st.integers(1, 40), st.integers(0, 10**9), _epochs)


@st.composite
def slot_views(draw: st.DrawFn, slot_id: str) -> SlotView:
    """A slot in any stage, each fact known, unknown or non-finite."""
    stage = draw(st.sampled_from(SeedStage))
    slot = SlotView(slot_id, stage, promise=draw(st.dictionaries(st.sampled_from(BLUEPRINTS), _promises, max_size=2)))
    if stage not in LIVE:
        return replace(slot, epochs_in_stage=draw(st.integers(0, 40)))
    blueprint = draw(st.sampled_from(BLUEPRINTS))
    return live_slot(
        slot_id,
        stage,
        blueprint,
        alpha=draw(st.sampled_from((0.0, 0.35, *ALPHA_TARGETS))),
        alpha_target=draw(st.none() | st.sampled_from(ALPHA_TARGETS)),
        epochs_in_stage=draw(st.integers(0, 40)),
        age_epochs=draw(st.integers(0, 40)),
        metric_at_germination=draw(st.none() | _numbers),
        gradient_ratio=draw(_facts),
        gradient_health=draw(_facts),
        removal_cost=draw(_paired),
        removal_cost_loss=draw(_paired),
        probe_gain=draw(_paired),
        probe_gain_loss=draw(_paired),
        isolation_violations=draw(st.none() | st.integers(0, 20)),
        blocked_by=draw(st.sampled_from(((), ("probe_gain_loss_not_measured",)))),
    )


@st.composite
def env_views(draw: st.DrawFn) -> EnvView:
    """A row of one to four slots in any combination of states, budgets and vetoes."""
    names = tuple(f"slot{i}" for i in range(draw(st.integers(1, 4))))
    buildable = st.dictionaries(st.sampled_from(BLUEPRINTS), st.sampled_from(tuple(PARAMETERS.values())))
    history = st.lists(_numbers, max_size=12).map(tuple)
    return row_view(
        *(draw(slot_views(name)) for name in names),
        epoch=draw(st.integers(0, 30)),
        blueprint_parameters={name: draw(buildable) for name in names},
        metric=draw(st.none() | _numbers),
        loss=draw(st.none() | _numbers),
        train_loss=draw(st.none() | _numbers),
        metric_history=draw(history),
        loss_history=draw(history),
        higher_is_better=draw(st.booleans()),
        parameter_budget=draw(st.none() | st.integers(0, 2000)),
        max_seeds=draw(st.none() | st.integers(1, 4)),
        vetoed=draw(st.frozensets(st.sampled_from(names))),
        pruned=draw(st.dictionaries(st.sampled_from(BLUEPRINTS), st.integers(0, 5))),
        fossilized=draw(st.dictionaries(st.sampled_from(BLUEPRINTS), st.integers(0, 5))),
    )


GERMINATE = FactoredAction(Op.GERMINATE, "slot0", "small", BLENDS[0], 1.0, TEMPOS[0])
