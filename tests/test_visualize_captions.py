"""Captions lie at their boxes, inside the picture, and none over another."""

import itertools

import numpy as np
import pytest

from detr_fast.visualize.captions import place_captions

PICTURE = (200, 100)
SIZE = (30, 10)
BOX = (80, 40, 120, 70)


def apart(a, b) -> bool:
    return any(a[i] >= b[i] + SIZE[i] or b[i] >= a[i] + SIZE[i] for i in (0, 1))


def test_places_in_turn():
    """Above, inside at the top, below, inside at the bottom; left, then right."""
    places = place_captions([BOX] * 9, [(20, 10)] * 9, PICTURE)
    assert places == [*((x, y) for y in (30, 40, 70, 60) for x in (80, 100)), None]
    # One that is larger than the box lies in it only if nothing else is left.
    places = place_captions([BOX] * 5, [(50, 14)] * 5, PICTURE)
    assert places == [(80, 26), (80, 70), (80, 40), (80, 56), None]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (BOX, (80, 30)),
        ((80, 5, 120, 70), (80, 5)),  # no room above it
        ((80, 5, 100, 12), (80, 12)),  # nor in it
        ((190, 40, 199, 60), (170, 30)),  # moved to the left
        ((-20, -20, 250, 140), (0, 0)),  # larger than the picture
        ((300, 300, 310, 310), (170, 90)),  # beyond it
        ((60, 50, 40, 20), (40, 10)),  # turned over
    ],
)
def test_a_single_caption_is_in_the_picture(box, expected):
    assert place_captions([box], [SIZE], PICTURE) == [expected]


@pytest.mark.parametrize("picture", [(20, 5), (29, 12), (1, 1)])
def test_a_single_caption_larger_than_the_picture(picture):
    (place,) = place_captions([(0, 0, *picture)], [SIZE], picture)
    assert place[0] == 0 and 0 <= place[1] <= picture[1]


def test_none_covers_another():
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 1, (60, 2, 2)) * PICTURE
    boxes = np.concatenate([corners.min(1), corners.max(1)], -1)
    for anywhere in (False, True):
        places = place_captions(boxes, [SIZE] * 60, PICTURE, anywhere)
        assert places == place_captions(boxes, [SIZE] * 60, PICTURE, anywhere)
        found = [place for place in places if place]
        assert all(apart(a, b) for a, b in itertools.combinations(found, 2))
        assert all(0 <= x <= 170 and 0 <= y <= 90 for x, y in found)
        assert places[0] is not None and None in places


def test_anywhere():
    """Where its own box has no place, a caption goes to the nearest one that is free."""
    boxes = [(90, 45, 110, 55)] * 14
    at_home = place_captions(boxes, [SIZE] * 14, PICTURE)
    assert None in at_home
    places = place_captions(boxes, [SIZE] * 14, PICTURE, anywhere=True)
    assert None not in places
    known = sum(place is not None for place in at_home)
    assert places[:known] == at_home[:known]
    distances = [np.hypot(x + 15 - 90, y + 5 - 45) for x, y in places]
    assert max(distances) < 75
