"""What is no action, no episode or no mode of rendering is told in one sentence; what ``info`` holds; pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny import tiny

from esper.leyline import HEADS, UsageError
from esper.simic.env import GrowEnv

WAITING = [0] * len(HEADS)


def make(**options: Any) -> GrowEnv:
    return GrowEnv(**{"task": tiny(2), **options})


BAD = [
    ("heads", [0, -1, 0, 0, 0, 0], r"the action \[0, -1, 0, 0, 0, 0\] has slot -1; legal: 0 to 1"),
    ("heads", [9, 0, 0, 0, 0, 0], r"the action \[9, 0, 0, 0, 0, 0\] has op 9; legal: 0 to 5"),
    ("heads", [0, 0, 0, 0, 3, 0], "has alpha_target 3; legal: 0 to 2"),
    ("heads", [0] * 5, r"int64 of shape \(5,\); legal: integers \(6,\), one choice for each of op, slot"),
    ("heads", 0, r"int64 of shape \(\); legal: integers \(6,\)"),
    ("heads", [0.0] * 6, r"float64 of shape \(6,\); legal: integers"),
    ("heads", None, "object of shape"),
    ("joint", -1, "the action is -1; legal: 0 to "),
    ("joint", 10**6, "the action is 1000000; legal: 0 to "),
    ("joint", [0], r"int64 of shape \(1,\); legal: integers \(\), one number"),
]


@pytest.mark.parametrize(("actions", "action", "said"), BAD)
def test_what_is_no_action_is_refused_and_changes_nothing(actions: str, action: Any, said: str) -> None:
    env = make(actions=actions)
    env.reset(seed=0)
    with pytest.raises(UsageError, match=f"^step: .*{said}") as caught:
        env.step(action)
    assert "\n" not in str(caught.value)
    _, _, ended, _, info = env.step(WAITING if actions == "heads" else 0)
    assert info["epoch"] == 1 and not ended and env.illegal_actions == 0


@pytest.mark.parametrize("place", ["step", "action_masks", "render"])
def test_before_the_first_episode_nothing_can_be_asked(place: str) -> None:
    env = make(render_mode="ansi")
    call: Callable[[], Any] = {
        "step": lambda: env.step(WAITING),
        "action_masks": env.action_masks,
        "render": env.render,
    }[place]
    with pytest.raises(UsageError, match=f"^{place}: no episode has begun; reset\\(\\) begins one$"):
        call()


def test_after_the_end_there_is_no_step_until_the_next_reset() -> None:
    env = make()
    env.reset(seed=0)
    for _ in range(2):
        *_, info = env.step(WAITING)
    with pytest.raises(UsageError, match=r"^step: the episode is over; reset\(\) begins another$"):
        env.step(WAITING)
    assert env.action_masks().tolist() == info["action_mask"].astype(bool).tolist()
    env.reset()
    env.step(WAITING)


def test_info_holds_numbers_and_arrays_alone() -> None:
    env = make(reward="shaped")
    _, begun = env.reset(seed=0)
    *_, stepped = env.step(WAITING)
    for info in (begun, stepped):
        assert all(isinstance(value, (np.number, np.bool_, np.ndarray)) for value in info.values())
        assert info["action_mask"].dtype == np.int8 and info["action_mask"].shape == (sum(env.space.sizes),)
    assert np.isnan(begun["metric"]) and stepped["metric"] == env.mdp.views[0].metric
    total = sum(value for name, value in stepped.items() if name.startswith("reward_"))
    assert total == pytest.approx(env.mdp.trackers[0].paid)


def test_text_and_picture_show_what_is_seen() -> None:
    text, picture = make(render_mode="ansi"), make(render_mode="rgb_array")
    before = []
    for env in (text, picture):
        env.reset(seed=0)
        before.append(env.render())
        env.step([1, 1, 2, 0, 2, 0])
    said, drawn = text.render(), picture.render()
    assert before[0].splitlines()[0] == "epoch 0 of 2, not measured yet, 0 parameters of seeds"
    assert said.startswith("epoch 1 of 2, metric ") and "second: TRAINING mlp, alpha 0.00, age 1" in said
    assert drawn.dtype == np.uint8 and drawn.shape == before[1].shape and drawn.shape[2] == 3
    lanes = drawn.shape[0] - 28
    assert (drawn[:lanes] != before[1][:lanes]).any(), "the metric's curve"
    assert np.array_equal(drawn[lanes : lanes + 14], before[1][lanes : lanes + 14]), "the empty slot"
    assert (drawn[lanes + 14 :] != before[1][lanes + 14 :]).any(), "the slot with a seed"


def test_modes_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UsageError, match="render_mode='human'; legal: ansi, rgb_array"):
        make(render_mode="human")
    with pytest.raises(UsageError, match="actions='all'; legal: heads, joint"):
        make(actions="all")
    with pytest.raises(UsageError, match="unknown keyword of the environment 'epochs'"):
        make(epochs=3)
    env = make()
    env.reset(seed=0)
    assert env.render() is None, "as of Gymnasium's own; clients call it unasked"
