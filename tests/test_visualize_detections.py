"""Pictures of detections: what is drawn where."""

import numpy as np
import pytest
from PIL import Image

from detr_fast.visualize import PALETTE, draw_detections, enlarge, image_grid


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_boxes_are_where_they_are_said_to_be():
    image = Image.new("RGB", (200, 100), "white")
    drawn = draw_detections(image, [[20, 40, 80, 90], [120, 50, 180, 95]], [0, 1], ["cat", "dog"])
    for label, (x1, y1, x2, y2) in enumerate([(20, 40, 80, 90), (120, 50, 180, 95)]):
        for point in ((x1, (y1 + y2) // 2), (x2, (y1 + y2) // 2), ((x1 + x2) // 2, y2)):
            assert drawn.getpixel(point) == rgb(PALETTE[label])
        assert drawn.getpixel(((x1 + x2) // 2, (y1 + y2) // 2)) == (255, 255, 255)
    assert not np.array(image).min() < 255  # the original is untouched


def test_lines_of_small_pictures_are_two_pixels_wide():
    image = Image.new("RGB", (60, 60), "white")
    drawn = draw_detections(image, [[20, 30, 50, 50]], [1], ["cat", "dog"])
    row = [drawn.getpixel((x, 45)) == rgb(PALETTE[1]) for x in range(60)]
    assert [x for x, coloured in enumerate(row) if coloured] == [20, 21, 49, 50]


def test_captions_stay_inside_the_picture_and_do_not_cover_each_other():
    image = Image.new("RGB", (120, 60), "white")
    names = ["a long class name"]
    boxes = [[100, 0, 119, 30], [100, 1, 119, 31]]
    both = np.array(draw_detections(image, boxes, [0, 0], names, [0.9, 0.8]))
    one = np.array(draw_detections(image, boxes[:1], [0], names, [0.9]))
    rows, columns = np.nonzero((one != 255).any(-1))
    assert columns.min() < 60  # the caption was moved to the left to fit
    caption = np.s_[0 : rows.max() // 3, 0:90]
    assert np.array_equal(both[caption], one[caption])  # the second caption is left out


def test_captions_know_more_than_ascii():
    def caption(name: str) -> np.ndarray:
        image = Image.new("RGB", (200, 60), "white")
        return np.array(draw_detections(image, [[10, 30, 60, 50]], [0], [name]))

    # A font without these letters draws the same empty box for each of them.
    assert not np.array_equal(caption("\u0436\u0436"), caption("\u0434\u0434"))
    assert not np.array_equal(caption("\u00e9\u00e9"), caption("\u00ef\u00ef"))


def test_a_box_outside_the_picture_or_turned_over_is_no_error():
    image = Image.new("RGB", (50, 50))
    draw_detections(image, [[-20, -20, 10, 10], [60, 60, 90, 90], [30, 30, 20, 20]], [0] * 3, ["a"])


def test_grid():
    images = [Image.new("RGB", size, "black") for size in ((10, 20), (30, 10), (5, 5))]
    grid = image_grid(images, columns=2, gap=4)
    assert grid.size == (2 * 34 + 4, 2 * 24 + 4)
    assert grid.getpixel((4 + 15, 4 + 10)) == (0, 0, 0)  # each centred in its cell
    assert grid.getpixel((1, 1)) == grid.getpixel((60, 40)) == (255, 255, 255)
    with pytest.raises(ValueError, match="at least one"):
        image_grid([], 2)
    enlarged, factor = enlarge(images[0], 60)
    assert enlarged.size == (30, 60) and factor == 3
