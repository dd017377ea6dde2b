"""Rows as tensors: what the tables allow is what is legal, and padding of costs is never chosen."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings

from env_views import BLUEPRINTS, env_views, factored_actions, row_view
from esper.leyline import HEADS, RELEVANT_HEADS, EnvView
from esper.tamiyo.batch import action_space, mask_tables, observe
from esper.tamiyo.features import LAYOUT, encode
from esper.tamiyo.heads import growth_heads
from esper.tamiyo.masks import to_indices
from esper.tamiyo.network import GrowthNetworkConfig
from esper.tolaria.legality import why_illegal

CONFIG = GrowthNetworkConfig.for_layout(LAYOUT, ("small", "unheard-of"))


@settings(max_examples=15)
@given(env_views())
def test_tables_allow_what_is_legal_and_nothing_else(view: EnvView) -> None:
    space = action_space(view)
    tables = mask_tables([view], space)
    growth_heads(space).check_masks(tables)
    for action in factored_actions(space.slots, space.blueprints):
        indices = to_indices(space, action)
        allowed = True
        for k, head in enumerate(HEADS):
            if head in RELEVANT_HEADS[action.op]:
                table = tables[k][0]
                context = [i if n > 1 else 0 for i, n in zip(indices, table.shape[:-1], strict=False)]
                allowed &= bool(table[(*context, indices[k])])
        assert allowed == (why_illegal(view, action) is None), action


@settings(max_examples=15)
@given(env_views())
def test_an_observation_is_the_features_cut_into_host_and_slots(view: EnvView) -> None:
    space = action_space(view)
    seen = observe([view, view], space, CONFIG)
    whole = torch.cat([seen["host"], seen["slots"].flatten(1)], dim=1)
    assert torch.equal(whole[1], torch.from_numpy(encode(view).vector))
    assert seen["held"].shape == seen["present"].shape == (2, len(space.slots))
    assert all(bool(part.isfinite().all()) for part in seen.values() if part.is_floating_point())


def test_blueprints_are_told_apart_by_name_and_cost() -> None:
    view = row_view(blueprint_parameters={f"slot{i}": {"small": 250} for i in range(3)})
    seen = observe([view], action_space(view), CONFIG)
    assert seen["blueprints"].tolist() == [[2, 0, 0]] and len(BLUEPRINTS) == 3
    assert seen["costs"].shape == (1, 3, 3, 1)
    torch.testing.assert_close(seen["costs"][0, 0, :, 0], torch.tensor([math.log(2.0) / 5.0, 0.0, 0.0]))
