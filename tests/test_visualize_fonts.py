"""The font of a text is one that has its letters."""

import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from detr_fast.visualize import draw_detections, fonts
from detr_fast.visualize.figures import new_figure, to_image

OURS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
ARC = "\u2312"  # which DejaVu Sans Mono has, but not DejaVu Sans
NOWHERE = "\u1abf"  # which neither has


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Let two fonts be installed: a damaged one, and DejaVu Sans Mono."""
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    files = [str(damaged), str(tmp_path / "gone.ttf"), str(OURS / "DejaVuSansMono.ttf")]
    monkeypatch.setattr(fonts, "_installed", lambda: files)
    monkeypatch.setattr(fonts, "_warned", [])
    fonts._best_font.cache_clear()
    yield
    fonts._best_font.cache_clear()


def test_letters_decide(installed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Path(fonts.font_file("кот, γάτα, cat\n 0.87")).name == "DejaVuSans.ttf"
        assert Path(fonts.font_file(f"{ARC} 0.87")).name == "DejaVuSansMono.ttf"


def test_letters_of_no_font_are_named_once(installed):
    with pytest.warns(UserWarning, match=f"no installed font has the letters {NOWHERE}, "):
        assert Path(fonts.font_file(NOWHERE)).name == "DejaVuSans.ttf"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fonts.font_file(f"another {NOWHERE}")


def test_captions_show_different_letters_differently(installed):
    image = Image.new("RGB", (120, 60), "white")
    drawn = [
        np.array(draw_detections(image, [[10, 30, 110, 55]], [0], [name]))
        for name in (ARC, "\u2313", ARC)
    ]
    assert not np.array_equal(drawn[0], drawn[1])  # two empty boxes would be alike
    assert np.array_equal(drawn[0], drawn[2])


def test_figures_fall_back_letter_by_letter(installed):
    figure = new_figure(3, 2)
    axes = figure.subplots()
    axes.set_title(f"arc {ARC}")
    axes.set_xlabel(f"none {NOWHERE}")
    with pytest.warns(UserWarning) as said:
        to_image(figure)
    assert len(said) == 1 and NOWHERE in str(said[0].message)  # and not also by matplotlib
    families = {text.get_text(): text.get_fontfamily() for text in figure.findobj(Text)}
    assert families[f"arc {ARC}"][-1] == "DejaVu Sans Mono"


def test_fonts_of_this_machine_are_found_without_the_one_of_boxes():
    names = [Path(file).name for file in fonts._installed()]
    assert "DejaVuSerif.ttf" in names
    assert not any("LastResort" in name for name in names)
