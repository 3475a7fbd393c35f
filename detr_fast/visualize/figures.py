"""What all figures here share: a canvas that needs no window system, colours and elements."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from detr_fast.visualize.fonts import use_fonts_with_letters
from detr_fast.visualize.pictures import scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
LONGEST = 480  # pixels of a picture's longer side in a figure

# Tableau's ten colours, in an order that keeps neighbours apart; dark enough for white text.
PALETTE = (
    *("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#e3730a"),
    *("#0e9aa7", "#c2389a", "#8c564b", "#6b6b6b", "#93931a"),
)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` x ``height`` inches, whatever the user's backend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_image(figure: Figure) -> Image.Image:
    """Return the figure as an RGB picture, to save, show in a notebook or put into a page."""
    use_fonts_with_letters(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # ours was given already
        figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def lay_out(figure: Figure) -> None:
    """Fix where everything is in the picture, for what has to be placed by its size there."""
    use_fonts_with_letters(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def layer_name(layer: int, count: int) -> str:
    """Return the name of a layer, as the options number it: "layer 5 of 0..5" for 5 or -1."""
    return f"layer {layer % count} of 0..{count - 1}"


def plain(text: str, most: int = 40) -> str:
    """Return a name, such as a class's, cut to ``most`` letters, which matplotlib shows literally.

    It would take text between two dollars for a formula, and hide a label that begins with "_".
    """
    text = text if len(text) <= most else text[: most - 1] + "…"
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def open_axes(axes: Axes) -> None:
    """Draw a light grid, and no frame at the top and right."""
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def fit(picture: Image.Image) -> Image.Image:
    """Return the picture as shown in a figure: RGB, the longer side scaled to ``LONGEST``."""
    return scaled(picture.convert("RGB"), LONGEST)[0]


def show_picture(axes: Axes, picture: Image.Image | np.ndarray, title: str = "") -> None:
    """Show a picture such that (0, 0) is its upper left corner, not the first pixel's centre.

    Boxes in pixels are then drawn at the right place.
    """
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="bilinear")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if title:
        axes.set_title(title, fontsize=9)


def draw_box(axes: Axes, box: Any, colour: str, halo: bool = True, **options: Any) -> None:
    """Draw a box xyxy in pixels; a white halo around it makes it visible on any background."""
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = (float(v) for v in box)
    style = {"linewidth": 1.6, **options}
    wide = {"edgecolor": "white", "linewidth": style["linewidth"] + 1.2, "alpha": 0.8}
    for look in ([wide] if halo else []) + [{"edgecolor": colour, **style}]:
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **look))
