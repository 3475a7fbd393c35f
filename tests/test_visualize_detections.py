"""Pictures of detections: what is drawn where."""

import numpy as np
import pytest
from PIL import Image

from detr_fast.visualize import PALETTE, draw_detections, image_grid, scaled
from detr_fast.visualize.detections import MOST_COVERED


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


def test_a_box_of_nan_is_named():
    boxes = [[20, 30, 50, 50], [20, float("nan"), 50, 50]]
    with pytest.raises(ValueError, match=r"boxes\[1\] is \[20.0, nan, 50.0, 50.0\], which cannot"):
        draw_detections(Image.new("RGB", (60, 60)), boxes, [0, 0], ["cat"], [0.5, float("nan")])


def coloured(drawn: Image.Image, label: int) -> np.ndarray:  # [H, W] bool
    return (np.array(drawn) == rgb(PALETTE[label])).all(-1)


def test_captions_stay_inside_the_picture():
    image = Image.new("RGB", (120, 60), "white")
    drawn = draw_detections(image, [[100, 30, 119, 50]], [0], ["a long class name"], [0.9])
    rows, columns = np.nonzero(coloured(drawn, 0))
    assert columns.min() < 60 and rows.min() > 10  # moved to the left to fit, above the box


def test_captions_of_the_same_place_are_all_there():
    image = Image.new("RGB", (200, 100), "white")
    box = [60, 40, 140, 80]
    drawn = draw_detections(image, [box] * 3, [0, 1, 2], ["cat", "dog", "cow"], [0.7, 0.9, 0.8])
    first, above, inside = (coloured(drawn, label) for label in (1, 2, 0))
    assert first[:38].sum() > 100  # the highest score has the usual place
    # Of the other boxes, which the first one's lines hide, the captions are seen.
    assert above.sum() > 100 and inside.sum() > 100
    both = draw_detections(image, [box] * 3, [0, 1, 2], ["cat", "dog", "cow"], [0.7, 0.9, 0.8])
    assert np.array_equal(both, drawn)


def test_a_caption_without_a_free_place_is_left_out():
    image = Image.new("RGB", (60, 40), "white")
    boxes = [[0, 0, 60, 40]] * 9
    scores = [0.9 - 0.01 * i for i in range(9)]
    drawn = draw_detections(image, boxes, list(range(9)), ["a name"] * 9, scores)
    shown = [bool(coloured(drawn, label)[4:-4, 4:-4].any()) for label in range(9)]
    assert shown[0] and not shown[-1]
    assert shown == sorted(shown, reverse=True)  # those of the highest scores are there


def test_captions_leave_most_of_the_picture_free():
    boxes = [[x, y, x + 20, y + 15] for y in range(20, 240, 25) for x in range(0, 320, 60)]
    picture = Image.new("RGB", (320, 240))
    drawn = draw_detections(picture, boxes, [0] * len(boxes), ["a name"], [0.9] * len(boxes))
    alone = draw_detections(picture, boxes, [0] * len(boxes), [""])
    covered = coloured(drawn, 0) & ~coloured(alone, 0)
    assert 0.05 < covered.mean() < MOST_COVERED


@pytest.mark.parametrize("size", [(30, 20), (12, 12), (3, 40)])
def test_a_single_caption_never_vanishes(size):
    width, height = size
    image = Image.new("RGB", size, "white")
    box = [[width // 3, height // 3, width // 2, height // 2]]
    drawn = coloured(draw_detections(image, box, [2], ["cat"] * 3, [0.5]), 2)
    assert drawn.mean() > 0.2


def test_text_of_a_panorama_is_bounded_by_its_height():
    image = Image.new("RGB", (4000, 300), "white")
    drawn = coloured(draw_detections(image, [[900, 100, 1000, 200]], [0], ["cat"], [0.9]), 0)
    assert 60 < np.nonzero(drawn)[0].min() < 90  # a caption above the box, of about 20 pixels
    assert not drawn[104:197, 904:997].any()
    # Nothing changes for common shapes.
    image = Image.new("RGB", (1600, 900), "white")
    drawn = coloured(draw_detections(image, [[900, 300, 1000, 400]], [0], ["cat"], [0.9]), 0)
    assert drawn[350, 890:910].sum() == 5


def test_captions_know_more_than_ascii():
    def caption(name: str) -> np.ndarray:
        image = Image.new("RGB", (200, 60), "white")
        return np.array(draw_detections(image, [[10, 30, 60, 50]], [0], [name]))

    # A font without these letters draws the same empty box for each of them.
    assert not np.array_equal(caption("\u0436\u0436"), caption("\u0434\u0434"))
    assert not np.array_equal(caption("\u00e9\u00e9"), caption("\u00ef\u00ef"))


def test_a_box_outside_the_picture_or_turned_over_is_no_error():
    image = Image.new("RGB", (50, 50))
    drawn = draw_detections(image, [[-20, -20, 10, 10], [60, 60, 90, 90]], [0, 1], ["a"] * 2)
    assert drawn.size == (50, 50) and coloured(drawn, 0)[:9, 10].all()
    assert coloured(draw_detections(image, [[40, 40, 30, 30]], [0], ["a"]), 0)[40, 40]


def test_grid():
    images = [Image.new("RGB", size, "black") for size in ((10, 20), (30, 10), (5, 5))]
    grid = image_grid(images, columns=2, gap=4)
    assert grid.size == (2 * 34 + 4, 2 * 24 + 4)
    assert grid.getpixel((4 + 15, 4 + 10)) == (0, 0, 0)  # each centred in its cell
    assert grid.getpixel((1, 1)) == grid.getpixel((60, 40)) == (255, 255, 255)
    with pytest.raises(ValueError, match="at least one"):
        image_grid([], 2)


@pytest.mark.parametrize(("longest", "size"), [(60, (30, 60)), (10, (5, 10)), (1, (1, 1))])
def test_scaled(longest, size):
    image, factor = scaled(Image.new("RGB", (10, 20)), longest)
    assert image.size == size and factor == longest / 20
