from __future__ import annotations

from esper.karn.aggregator import fold
from esper.karn.detail import build_detail
from esper.karn.drawer import drawer_text
from esper.leyline import TelemetryEventType as T
from karn.streams import Recorder, story


def test_an_action_shows_every_head_it_used() -> None:
    text = drawer_text(build_detail(fold(story()), 0, 0.0))
    assert "epoch 2: GERMINATE blocks_1 conv3 cosine alpha 0.7 tempo 5 executed (plateau of 3 epochs)" in text


def test_a_head_that_was_not_told_is_left_out() -> None:
    rec = Recorder()
    rec.say(T.COMMAND_FAILED, env_id=0, epoch=4, op="SET_ALPHA", slot="stem", alpha_target=0.5, why_not="not HOLDING")
    (action,) = build_detail(fold(rec.events), 0, 0.0).actions
    assert (action.alpha_target, action.tempo, action.blend) == (0.5, None, None)
    assert action.unused == ["blueprint"]
    text = drawer_text(build_detail(fold(rec.events), 0, 0.0))
    assert "epoch 4: SET_ALPHA stem alpha 0.5 failed (not HOLDING)" in text
