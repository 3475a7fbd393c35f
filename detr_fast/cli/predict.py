"""``detr-fast predict``: detections in any images, as pictures and as JSON."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from detr_fast.cli.arguments import add_amp, add_device, score
from detr_fast.cli.checkpoints import HELP, load_best_checkpoint
from detr_fast.cli.folders import new_folder
from detr_fast.data import DataError, read_image
from detr_fast.detector import Detector
from detr_fast.faults import PredictionError
from detr_fast.training import distributed
from detr_fast.training.memory import is_out_of_memory
from detr_fast.visualize import draw_detections, scaled

JPEG_SUFFIXES = {".jpg", ".jpeg", ".jfif"}  # drawn as JPEG: a large photograph as PNG takes seconds
IMAGE_SUFFIXES = {
    *JPEG_SUFFIXES,
    *(".png", ".bmp", ".webp", ".avif", ".gif", ".tif", ".tiff", ".jp2"),
}

MANY_CELLS = 20_000  # of a feature map: attention takes seconds on a CPU
SMALLEST_PICTURE = 320  # pixels on the longer side


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command's options."""
    parser = subparsers.add_parser(
        "predict",
        help="detect objects in images",
        description="Detect objects: writes an annotated picture per image, and detections.json: "
        "per image its file, picture, height, width and detections, each with category, "
        "category_id, score and bbox, [x, y, width, height] in pixels.",
    )
    parser.add_argument("checkpoint", type=Path, help=HELP)
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        help="files, or folders of images (without their subfolders)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="a new or empty folder; default: predictions, numbered if it exists",
    )
    parser.add_argument(
        "--threshold", type=score, default=0.5, help="lowest score shown; default: %(default)s"
    )
    parser.add_argument(
        "--no-pictures",
        dest="pictures",
        action="store_false",
        help="write detections.json alone",
    )
    add_amp(parser)
    add_device(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Detect objects in each image; report one that cannot be read or is too large, and go on."""
    device = distributed.start(args.device)
    checkpoint = load_best_checkpoint(args.checkpoint)
    files = find_images(args.images)
    detector = Detector(checkpoint, device, args.amp)
    out = _results_folder(args.out)
    results, written, failed = [], set(), 0
    try:
        for file in tqdm(files, unit="image", disable=None):
            try:
                pixels = read_image(file)
                size = tuple(pixels.shape[1:])
                with _naming(file, device):
                    inputs = detector.prepare(pixels)
                    cells = inputs[0, 0].numel() // detector.model.backbone[0].stride ** 2
                    if cells > MANY_CELLS:
                        tqdm.write(
                            f"note   {file} is large for this model: attention compares each of "
                            f"{cells:,} cells with each; smaller copies take far less time"
                        )
                    found = detector.detect(inputs, size, args.threshold)
            except DataError as error:
                tqdm.write(f"detr-fast: error: {error}", file=sys.stderr)
                failed += 1
                continue
            result = {"file": str(file)}
            if args.pictures:
                picture = _new_name(out, file, written)
                drawn = _draw(pixels, found, detector.class_names)
                drawn.save(picture, quality=90, subsampling=0)  # sharp lines, as JPEG, too
                result["picture"] = picture.name
            result |= {"height": size[0], "width": size[1]}
            results.append(result | {"detections": _detections(found, detector)})
    finally:  # after an error or Ctrl-C, too: what is done is done
        (out / "detections.json").write_text(json.dumps(results, indent=1) + "\n")
    count = sum(len(result["detections"]) for result in results)
    wrote = f"{out}/detections.json" + (" and pictures" if written else "")
    unread = f", failed: {failed}" if failed else ""
    print(f"objects: {count}, images: {len(results)}{unread}; wrote {wrote}")
    return 2 if failed else 0


@contextlib.contextmanager
def _naming(file: Path, device: torch.device) -> Iterator[None]:
    """Turn predictions that are not finite, and too little memory, into errors of this image."""
    try:
        yield
    except PredictionError as error:
        raise DataError(f"{file}: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DataError(f"{file}: too large for the memory of {device}") from error


def _draw(
    pixels: torch.Tensor, detections: dict[str, torch.Tensor], names: list[str]
) -> Image.Image:
    """Return the picture of an image's detections; a small image is enlarged for it."""
    shown, factor = F.to_pil_image(pixels), 1.0
    if max(shown.size) < SMALLEST_PICTURE:  # captions would cover it
        shown, factor = scaled(shown, SMALLEST_PICTURE)
    return draw_detections(
        shown, detections["boxes"] * factor, detections["labels"], names, detections["scores"]
    )


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the files named, and the images in the folders named that are not hidden.

    Raises:
        DataError: a path that does not exist, or a folder without an image.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                p
                for p in path.iterdir()
                if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file() and p.name[0] != "."
            )
            if not inside:
                raise DataError(f"{path}: no image in this folder (subfolders are not searched)")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    return files


def _detections(found: dict[str, torch.Tensor], detector: Detector) -> list[dict[str, Any]]:
    """Return detections with COCO's [x, y, width, height] boxes in pixels, surest first."""
    return [
        {
            "category": detector.class_names[label],
            "category_id": detector.category_ids[label],
            "score": round(sure, 6),
            "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
        }
        for sure, label, (x1, y1, x2, y2) in zip(
            *(found[name].tolist() for name in ("scores", "labels", "boxes")), strict=True
        )
    ]


def _results_folder(wanted: Path | None) -> Path:
    """Make the folder for results; nothing that exists is ever overwritten."""
    if wanted is None:
        return new_folder(Path("predictions"))
    if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
        raise ValueError(f"--out {wanted} exists and is not an empty folder: choose another one")
    wanted.mkdir(parents=True, exist_ok=True)
    return wanted


def _new_name(folder: Path, image: Path, written: set[str]) -> Path:
    """Return a picture's path that no other image of this call has: JPEG for JPEG, else PNG."""
    suffix = ".jpg" if image.suffix.lower() in JPEG_SUFFIXES else ".png"
    name, number = f"{image.stem}{suffix}", 2
    while name in written:
        name, number = f"{image.stem}-{number}{suffix}", number + 1
    written.add(name)
    return folder / name
