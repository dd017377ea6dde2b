"""Layouts know their axes."""

from __future__ import annotations

import pytest

from esper.kasmina.layout import Layout


@pytest.mark.parametrize(
    ("layout", "rank", "axis", "shape"),
    [
        (Layout.NC, 2, 1, (4, 3)),
        (Layout.NCL, 3, 1, (4, 3, 8)),
        (Layout.NCHW, 4, 1, (4, 3, 8, 8)),
        (Layout.NTC, 3, 2, (4, 8, 3)),
    ],
)
def test_axes(layout: Layout, rank: int, axis: int, shape: tuple[int, ...]) -> None:
    assert (layout.rank, layout.channel_axis, layout.shape(3)) == (rank, axis, shape)
