from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlplatform.errors import UsageError
from dlplatform.memorybox.segment import FLOATS_PER_PAGE, Segment, split

BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For machines with more to do."""


@BUSY
@given(
    length=st.integers(1, 10**9),
    weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=9).filter(lambda w: sum(w) > 0),
)
def test_pieces_cover_the_buffer_and_end_on_page_borders(length: int, weights: list[float]) -> None:
    pieces = split(length, weights)
    assert len(pieces) == len(weights)
    reached = 0
    for offset, count in pieces:
        assert offset == reached
        assert count >= 0
        reached += count
        assert reached % FLOATS_PER_PAGE == 0 or reached == length
    assert reached == length


@BUSY
@given(boxes=st.integers(1, 20), pages=st.integers(1, 1000))
def test_equal_shares_by_default_weights(boxes: int, pages: int) -> None:
    counts = [count for _, count in split(boxes * pages * FLOATS_PER_PAGE, [1.0] * boxes)]
    assert max(counts) - min(counts) <= FLOATS_PER_PAGE


def test_shares_follow_weights() -> None:
    page = FLOATS_PER_PAGE
    assert split(100 * page, [1, 3, 0, 1]) == [
        (0, 20 * page), (20 * page, 60 * page), (80 * page, 0), (80 * page, 20 * page)
    ]  # fmt: skip


def test_a_tiny_buffer_leaves_boxes_empty() -> None:
    assert [count for _, count in split(5, [1.0] * 3)] == [0, 0, 5]


@pytest.mark.parametrize(
    ("length", "weights"), [(0, [1.0]), (-5, [1.0]), (5, []), (5, [0.0]), (5, [2.0, -1.0])]
)
def test_impossible_cuts_are_refused_with_their_values(length: int, weights: list[float]) -> None:
    with pytest.raises(UsageError, match=rf"{length} elements .* - allowed: .* - do: "):
        split(length, weights)


def test_a_segment_is_a_value() -> None:
    assert Segment(0, "k", 0, 5) == Segment(0, "k", 0, 5)
    with pytest.raises(AttributeError):
        Segment(0, "k", 0, 5).length = 6  # type: ignore[misc]
