"""How training would scale from 8 to 512 GPUs: a model on paper, not a measurement.

python -m benchmarks.scaling_model --write benchmarks/SCALING.md

All that it assumes is in ``ASSUMED`` and in SCALING.md. It counts what keeps N GPUs from being N
times as fast, gradients still being reduced when the backward pass ends and waiting for the process
that drew the largest images, and says what a loader must give for it to keep up.
"""

import argparse
import csv
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.checkout import ROOT
from benchmarks.tables import publish, table_head, table_line
from detr_fast.data.augment import ResizeShortSide
from detr_fast.models import detr_resnet50

COCO_IMAGES = 118_287
GPUS = (8, 16, 32, 64, 128, 256, 512)
SIZES = ((480, 640), (640, 480), (427, 640), (640, 427))  # most of COCO's
MEASURED = ("coco", "left for a GPU to normalise")  # set and variant of bench_loader


@dataclass(frozen=True)
class Assumed:
    """What the model stands on. Bandwidths are in bytes per second and direction."""

    gpus_per_machine: int = 8
    inside: float = 200e9  # of a ring of GPUs within a machine (NVLink), per GPU
    between: float = 20e9  # network, per GPU: a port of 200 Gbit/s each, at four fifths
    hop_inside: float = 5e-6  # seconds that a message takes beside its bytes
    hop_between: float = 15e-6
    bucket: int = 25 * 2**20  # bytes; the last one can only be reduced after the backward pass
    backward: float = 0.6  # share of the step during which gradients are reduced
    batch_size: int = 8  # per GPU
    image_bytes: float = 0.16e6  # of a JPEG of COCO
    pixel_bytes: int = 3  # uint8, as the loader hands it over


ASSUMED = Assumed()
ETHERNET = Assumed(between=1.25e9)  # a port of 100 Gbit/s for the eight GPUs of a machine


def gradient_bytes() -> int:
    """Bytes of float32 gradients of DETR-R50 with the published frozen layers."""
    model = detr_resnet50(num_classes=91)
    return 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def all_reduce_seconds(size: float, gpus: int, on: Assumed) -> float:
    """Rings within machines, then between them, each GPU reducing its share, as NCCL does.

    A ring of n moves 2 (n - 1) / n of the bytes over each link, in 2 (n - 1) messages; between
    machines a tree is counted, of 2 log2 messages, since NCCL takes one where rings get long.
    """
    inside = min(gpus, on.gpus_per_machine)
    machines = math.ceil(gpus / on.gpus_per_machine)
    seconds = 2 * (inside - 1) / inside * size / on.inside + 2 * (inside - 1) * on.hop_inside
    if machines > 1:
        seconds += 2 * (machines - 1) / machines * (size / inside) / on.between
        seconds += 2 * math.log2(machines) * on.hop_between
    return seconds


@functools.cache
def pixels_of_batches(batch_size: int, batches: int, seed: int = 0) -> torch.Tensor:  # [batches]
    """Padded pixels of batches of the published training sizes."""
    generator = torch.Generator().manual_seed(seed)
    resize = ResizeShortSide(range(480, 801, 32), longest=1333)
    shape = (batches, batch_size)
    originals = torch.tensor(SIZES)[torch.randint(len(SIZES), shape, generator=generator)]
    shorts = torch.tensor(resize.sizes)[
        torch.randint(len(resize.sizes), shape, generator=generator)
    ]
    sizes = torch.tensor(
        [
            [resize.new_size(*size, short) for size, short in zip(images, sides, strict=True)]
            for images, sides in zip(originals.tolist(), shorts.tolist(), strict=True)
        ]
    )
    return sizes.amax(1).prod(1).double() * batch_size


def slowest(gpus: int, batch_size: int) -> float:
    """The largest batch of a step beside the mean one: the others wait for it."""
    pixels = pixels_of_batches(batch_size, 100 * max(GPUS)).view(-1, gpus)
    return float(pixels.amax(1).mean() / pixels.mean())


def step_seconds(gpus: int, images_per_second: float, size: int, on: Assumed) -> float:
    """One step of all GPUs, each of which alone trains ``images_per_second``."""
    compute = on.batch_size / images_per_second * slowest(gpus, on.batch_size)
    reduce = all_reduce_seconds(size, gpus, on)
    last = all_reduce_seconds(min(on.bucket, size), gpus, on)
    return compute + max(last, reduce - on.backward * compute)


def rate_per_core(results: Path) -> float:
    """Images per second and core that the loader was measured to prepare."""
    with (results / "loader_cpu.csv").open(newline="") as file:
        (row,) = (
            row
            for row in csv.DictReader(file)
            if (row["set"], row["variant"]) == MEASURED and row["workers"] == "2"
        )
    return float(row["images_per_second"]) / int(row["workers"])


def scaling_table(size: int, rates: tuple[float, ...]) -> str:
    head = ["GPUs", "all-reduce, ms", "over Ethernet, ms", "slowest batch"]
    for rate in rates:
        head += [f"{rate:g} images/s: efficiency", "over Ethernet", "COCO epoch, minutes"]
    lines = table_head(*head)
    for gpus in GPUS:
        line = [str(gpus)]
        line += [f"{1e3 * all_reduce_seconds(size, gpus, on):.1f}" for on in (ASSUMED, ETHERNET)]
        line.append(f"{slowest(gpus, ASSUMED.batch_size):.2f}")
        for rate in rates:
            batch = ASSUMED.batch_size
            steps = [step_seconds(gpus, rate, size, on) for on in (ASSUMED, ETHERNET)]
            line += [f"{100 * batch / rate / step:.0f} %" for step in steps]
            line.append(f"{COCO_IMAGES / (batch * gpus) * steps[0] / 60:.2g}")
        lines.append(table_line(*line))
    return "\n".join(lines)


def loader_table(rates: tuple[float, ...], per_core: float) -> str:
    """What one machine's loader must give, whatever the number of machines."""
    head = ["a GPU trains", "a machine needs", "cores for it", "read", "copied to the GPUs"]
    lines = table_head(*head)
    mean = float(pixels_of_batches(ASSUMED.batch_size, 100 * max(GPUS)).mean()) / ASSUMED.batch_size
    for rate in rates:
        needed = rate * ASSUMED.gpus_per_machine
        lines.append(
            table_line(
                f"{rate:g} images/s",
                f"{needed:.0f} images/s",
                f"{math.ceil(needed / per_core)}",
                f"{needed * ASSUMED.image_bytes / 1e6:.0f} MB/s",
                f"{needed * mean * ASSUMED.pixel_bytes / 1e9:.1f} GB/s",
            )
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="Markdown file to put the tables in")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=(34.0, 150.0), help="images/s of one GPU alone"
    )
    args = parser.parse_args()
    size, rates = gradient_bytes(), tuple(args.rates)
    tables = {
        "gradients": f"{size / 1e6:.0f} MB of gradients per step.",
        "scaling": scaling_table(size, rates),
        "loader": loader_table(rates, rate_per_core(args.results)),
    }
    publish(tables, args.write)


if __name__ == "__main__":
    main()
