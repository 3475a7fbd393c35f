"""What all figures here share: a canvas that needs no window system, and its elements."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from detr_fast.visualize.fonts import use_fonts_with_letters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """Return an empty figure of ``width`` x ``height`` inches, whatever the user's backend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", **options)
    FigureCanvasAgg(figure)
    return figure


def to_image(figure: Figure) -> Image.Image:
    """Return the figure as an RGB picture, to save, show in a notebook or put into a page."""
    use_fonts_with_letters(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # said above, in a line
        figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


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
