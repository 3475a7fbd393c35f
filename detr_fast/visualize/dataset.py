"""What a data set's splits contain: classes, counts and sizes."""

from collections.abc import Mapping

import numpy as np
from PIL import Image

from detr_fast.data import DetectionDataset
from detr_fast.data.records import box_areas
from detr_fast.visualize.figures import PALETTE, new_figure, open_axes, plain, to_image


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
        parts.append(np.sqrt(box_areas(record.boxes) / (record.width * record.height)))
    return np.concatenate(parts) if parts else np.zeros(0)
