"""One page per run: a self-contained HTML file with its figures inside, which loads nothing."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from detr_fast.data import DetectionDataset
from detr_fast.ops import box_iou, linear_sum_assignment
from detr_fast.visualize.detections import PALETTE, draw_detections, enlarge, image_grid
from detr_fast.visualize.figures import new_figure, open_axes, plain, to_image

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
       max-width: 1200px; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ddd; }
p { margin: .4rem 0; }
.wide { overflow-x: auto; margin: .6rem 0; }
.wide img { display: block; width: 100%; height: auto; }
.figure img { min-width: 680px; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid #eee;
         overflow-wrap: break-word; }
td.number, th.number { text-align: right; }
.tables { display: flex; flex-wrap: wrap; gap: 1rem 3rem; align-items: flex-start; }
.tables > .wide { min-width: 0; max-width: 100%; }
.figures { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin: .8rem 0; }
.figures div { min-width: 6rem; }
.figures b { display: block; font-size: 1.5rem; }
nav a { margin-right: .9rem; white-space: nowrap; }
"""


@dataclass
class Page:
    """A page that is built section by section."""

    title: str
    _sections: list[tuple[str, list[str]]] = field(default_factory=list)

    def section(self, title: str) -> None:
        """Begin a section."""
        self._sections.append((title, []))

    def text(self, text: str) -> None:
        self._add(f"<p>{html.escape(text)}</p>")

    def numbers(self, numbers: Mapping[str, str]) -> None:
        """Add a few important numbers, in large type."""
        parts = (f"<div><b>{html.escape(v)}</b>{html.escape(k)}</div>" for k, v in numbers.items())
        self._add(f'<div class="figures">{"".join(parts)}</div>')

    def tables(self, *tables: tuple[Sequence[str], Sequence[Sequence[str]]]) -> None:
        """Add tables (head, rows), side by side where there is room; numbers are right-aligned."""
        parts = []
        for head, rows in tables:
            right = [
                bool(rows) and all(_is_number(row[column]) for row in rows)
                for column in range(len(head))
            ]
            lines = [_row("th", head, right), *(_row("td", row, right) for row in rows)]
            parts.append(f'<div class="wide"><table>{"".join(lines)}</table></div>')
        self._add(f'<div class="tables">{"".join(parts)}</div>')

    def picture(self, picture: Image.Image, text: str, photograph: bool = False) -> None:
        """Add a picture, inside the page. ``text`` describes it to those who cannot see it.

        Args:
            photograph: store it as JPEG, a quarter of the size, and let it shrink on a small
                screen; a figure, with small print, is scrolled instead.
        """
        buffer = io.BytesIO()
        kind = "jpeg" if photograph else "png"
        # Without subsampling: thin lines would lose their colour.
        options = {"quality": 88, "subsampling": 0} if photograph else {}
        picture.convert("RGB").save(buffer, kind.upper(), **options)
        data = base64.b64encode(buffer.getvalue()).decode()
        shape = f'width="{picture.width}" height="{picture.height}"'
        style = f' style="max-width:{picture.width}px"'
        self._add(
            f'<div class="wide{"" if photograph else " figure"}"><img alt="{html.escape(text)}" '
            f'{shape}{style} src="data:image/{kind};base64,{data}"></div>'
        )

    def html(self) -> str:
        """Return the whole page."""
        links = " ".join(
            f'<a href="#s{i}">{html.escape(name)}</a>' for i, (name, _) in enumerate(self._sections)
        )
        body = "".join(
            f'<section id="s{i}"><h2>{html.escape(name)}</h2>{"".join(parts)}</section>\n'
            for i, (name, parts) in enumerate(self._sections)
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head>\n"
            f"<body><h1>{html.escape(self.title)}</h1><nav>{links}</nav>\n{body}</body></html>\n"
        )

    def _add(self, part: str) -> None:
        if not self._sections:
            raise ValueError("a page needs a section before its first part")
        self._sections[-1][1].append(part)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return text in ("", "-")
    return True


def _row(tag: str, cells: Sequence[str], right: Sequence[bool]) -> str:
    parts = (
        f"<{tag}{' class=number' if number else ''}>{html.escape(cell)}</{tag}>"
        for cell, number in zip(cells, right, strict=True)
    )
    return f"<tr>{''.join(parts)}</tr>"


def image_quality(
    found: Mapping[str, Tensor],  # scores [n], labels [n], boxes [n, 4] xyxy in pixels
    labels: Tensor,  # [M]
    boxes: Tensor,  # [M, 4] xyxy in the same pixels
    score: float = 0.5,
) -> float:
    """Rate one image's detections, 0..1, to sort images by.

    Detections of ``score`` or more are paired one to one with targets of the same class, for the
    greatest sum of IoU. It is divided by the number of detections or of targets, whichever is
    larger, so that misses and false alarms count alike. 1 with neither targets nor detections.
    """
    keep = found["scores"] >= score
    most = max(int(keep.sum()), len(labels))
    if most == 0:
        return 1.0
    if not keep.any() or not len(labels):
        return 0.0
    iou = box_iou(found["boxes"][keep].float(), boxes.float())
    iou = iou * (found["labels"][keep][:, None] == labels)
    rows, columns = linear_sum_assignment(iou.numpy(), maximize=True)
    return float(iou[rows, columns].sum()) / most


def truth_and_detections(
    picture: Image.Image,
    labels: Tensor,  # [M]
    boxes: Tensor,  # [M, 4] cxcywh in 0..1
    found: Mapping[str, Tensor],  # with boxes xyxy in 0..1
    class_names: Sequence[str],
    score: float = 0.5,
    side: int = 300,
) -> Image.Image:
    """Draw targets on the left, detections of ``score`` or more on the right."""
    shown, _ = enlarge(picture, side)
    scale = torch.tensor([shown.width, shown.height] * 2)
    keep = found["scores"] >= score
    truth = draw_detections(
        shown, box_convert(boxes, "cxcywh", "xyxy") * scale, labels, class_names
    )
    detections = draw_detections(
        shown,
        found["boxes"][keep] * scale,
        found["labels"][keep],
        class_names,
        found["scores"][keep],
    )
    return image_grid([truth, detections], 2, gap=4)


def plot_dataset(datasets: Mapping[str, DetectionDataset]) -> Image.Image:
    """Plot objects per class, objects per image and box sizes, of each split."""
    figure = new_figure(12, 3.6)
    classes, counts, sizes = figure.subplots(1, 3)
    for axes in (classes, counts, sizes):
        open_axes(axes)
    first = next(iter(datasets.values()))
    names = list(first.class_names)
    shown = np.argsort(-first.objects_per_class, kind="stable")[:15]
    width = 0.8 / len(datasets)
    for index, (split, dataset) in enumerate(datasets.items()):
        colour = PALETTE[index]
        per_class = dataset.objects_per_class
        share = per_class[shown] / max(1, per_class.sum())
        at = np.arange(len(shown)) + (index - (len(datasets) - 1) / 2) * width
        classes.barh(at, share, width, color=colour, label=f"{split}, {per_class.sum():,} boxes")
        per_image = dataset.objects_per_image
        bins = np.arange(-0.5, max(d.objects_per_image.max() for d in datasets.values()) + 1.5)
        weights = np.full(len(per_image), 1 / max(1, len(per_image)))
        options = {"histtype": "step", "color": colour, "linewidth": 1.6}
        counts.hist(per_image, bins, weights=weights, **options)
        sides = _relative_sides(dataset)
        if len(sides):
            weights = np.full(len(sides), 1 / len(sides))
            sizes.hist(sides, np.linspace(0, 1, 41), weights=weights, **options)
    classes.set_yticks(range(len(shown)), [plain(names[k]) for k in shown], fontsize=8)
    classes.invert_yaxis()
    classes.set_title(
        "share of the boxes by class" + (", top 15" if len(names) > 15 else ""), fontsize=10
    )
    handles, labels = classes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    counts.set_title("objects per image", fontsize=10)
    counts.set_ylabel("share of the images")
    counts.xaxis.get_major_locator().set_params(integer=True)
    sizes.set_title("box size: root of its share of the image", fontsize=10)
    sizes.set_ylabel("share of the boxes")
    return to_image(figure)


def _relative_sides(dataset: DetectionDataset) -> np.ndarray:
    parts = []
    for index in range(len(dataset)):
        record = dataset.record(index)
        x1, y1, x2, y2 = record.boxes.T
        parts.append(np.sqrt((x2 - x1) * (y2 - y1) / (record.width * record.height)))
    return np.concatenate(parts) if parts else np.zeros(0)
