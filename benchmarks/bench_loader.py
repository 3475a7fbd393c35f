"""Images per second of the training loader, with and without each of its measures.

python -m benchmarks.bench_loader --out benchmarks/results/loader_cpu.csv

From files to batches where the model is, normalised and padded, and nothing else: no model runs. A
call is one pass over the images; workers live through all calls, but nothing is left over in their
queue from one call to the next.

Sets: ``coco``, photographs of some 640 x 480 pixels with the published training transforms;
``photos``, the same enlarged fourfold, as cameras and phones take them; ``small``, BCCD's 640 x 480
with the small recipe at 240 x 320, which includes zoom and colours.
"""

import argparse
import dataclasses
import functools
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.baselines.published_loader import (
    PublishedDataset,
    published_collate,
    published_to_device,
)
from benchmarks.harness import environment_info, measure, write_csv
from detr_fast.data import (
    Batch,
    DetectionDataset,
    DeviceDecoder,
    Prefetcher,
    Recipe,
    Record,
    collate,
    detr_train,
    open_dataset,
    small_train,
    to_device,
)
from detr_fast.data.encoded import collate_encoded
from detr_fast.data.loader import make_loader
from detr_fast.training.loader import EpochBatches, SeededDataset

FAST, PUBLISHED = "detr_fast", "published loader"
SETS = ("coco", "photos", "small")
ENLARGED = 4
BATCHES = {"coco": 5, "photos": 3, "small": 16}  # of a call


@dataclasses.dataclass(frozen=True)
class Form:
    """Which measures a variant takes."""

    scaled: bool = True  # JPEGs decoded at a fraction of their size
    uint8: bool = True  # normalised as a batch, on the device
    packed: bool = True  # targets in one piece of memory
    persistent: bool = True  # workers live on
    cache: bool = False  # decoded images in memory, from the first pass on
    pinned: bool = True  # on a GPU: page-locked memory
    stream: bool = True  # on a GPU: copied on a stream of its own
    ready: bool = True  # False: as the loader yields it, not yet on the device nor normalised
    encoded: bool = False  # on a GPU: decoded there


def forms(set_: str, workers: int, device: torch.device) -> dict[str, Form]:
    """The variants of detr_fast that differ in a set, by name."""
    result = {FAST: Form(), "without scaled decoding": Form(scaled=False)}
    if set_ != "small":  # whose colours need float32 per image
        result["without uint8 batches"] = Form(uint8=False)
    result["without packed targets"] = Form(packed=False)
    if workers:
        result["without persistent workers"] = Form(persistent=False)
    if device.type == "cuda":
        result["without page-locked memory"] = Form(pinned=False)
        result["without a stream of its own"] = Form(stream=False)
        result["decoded on the GPU"] = Form(encoded=True)
    result["with a cache"] = Form(cache=True)
    if set_ != "small":
        result["left for a GPU to normalise"] = Form(ready=False)
    return result


def recipe(set_: str, normalize: bool) -> Recipe:
    if set_ == "small":
        return small_train((240, 320), vertical=True, normalize=normalize)
    return detr_train(normalize=normalize)


def ours(
    records: list[Record],
    set_: str,
    form: Form,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Callable[[], Iterator[Batch]]:
    """A function whose result is one pass over the images."""
    transforms = recipe(set_, normalize=not form.uint8)
    labels = range(1 + max(int(record.labels.max(initial=0)) for record in records))
    data = DetectionDataset(
        records,
        [str(label) for label in labels],
        labels,
        transforms,
        cache_images=form.cache,
        scaled_decoding=form.scaled,
    )
    batches = EpochBatches(len(records), batch_size, seed=0, rank=0, world_size=1)
    loader = make_loader(
        SeededDataset(data, seed=0, encoded=form.encoded),
        workers,
        collate_fn=collate_encoded
        if form.encoded
        else functools.partial(collate, pack=form.packed),
        batch_sampler=batches,
        pin_memory=device.type == "cuda" and form.pinned and not form.encoded,
        persistent_workers=workers > 0 and form.persistent,
    )
    if not form.ready:
        return lambda: iter(loader)
    decoder = DeviceDecoder(transforms, device) if form.encoded else None
    if form.stream:
        return lambda: Prefetcher(device, decoder).batches(loader)
    return lambda: (to_device(batch, device) for batch in loader)


def published(
    records: list[Record], batch_size: int, workers: int, device: torch.device
) -> Callable[[], Iterator[tuple]]:
    loader = DataLoader(
        PublishedDataset(records),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=published_collate,
        # Workers are started anew for each epoch by the published code; epochs here are short.
        persistent_workers=workers > 0,
    )

    def batches() -> Iterator[tuple]:
        random.seed(0)
        torch.manual_seed(0)
        return (published_to_device(batch, device) for batch in loader)

    return batches


def consume(batches: Iterable[tuple], device: torch.device) -> list[tuple[int, ...]]:
    """Runs through the batches; returns the shapes of their images."""
    shapes = [tuple(batch[0].shape) for batch in batches]
    if device.type == "cuda":
        torch.cuda.synchronize()
    return shapes


def run(
    set_: str, records: list[Record], batch_size: int, workers: int, seconds: float
) -> dict[str, dict[str, object]]:
    """The figures of every variant, by name."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    passes = {
        name: ours(records, set_, form, batch_size, workers, device)
        for name, form in forms(set_, workers, device).items()
    }
    first = {}
    for name, batches in passes.items():
        batch, *_ = batches()  # a whole pass: nothing stays in the workers' queues
        first[name] = to_device(batch, device)
    for name, form in forms(set_, workers, device).items():
        # Scaled decoding, another decoder and images kept at a smaller size change pixels a little.
        if form.scaled and not form.encoded and not form.cache:
            bound, images = 0.0, first[name].images
        elif first[name].images.shape == first[FAST].images.shape:
            bound, images = 0.2, first[name].images
        else:  # a pixel more or less, from the rounded size of what is kept
            continue
        difference = (images - first[FAST].images).abs().mean()
        if difference > bound:
            raise AssertionError(f"{set_}: {name} gives other images, off by {difference:.3f}")
    if set_ != "small":
        passes[PUBLISHED] = published(records, batch_size, workers, device)
    calls = {
        name: lambda batches=batches: consume(batches(), device) for name, batches in passes.items()
    }

    pixels: dict[str, int] = {}

    def check(results: Mapping[str, list[tuple[int, ...]]]) -> None:
        for name, shapes in results.items():
            if sum(shape[0] for shape in shapes) != len(records):
                raise AssertionError(f"{set_}: {name} loads {shapes}, not {len(records)} images")
            pixels[name] = sum(shape[0] * shape[2] * shape[3] for shape in shapes)
            if name != PUBLISHED and abs(pixels[name] / pixels[FAST] - 1) > 0.01:
                raise AssertionError(f"{set_}: {name} has other sizes than {FAST}")

    never = float("inf")
    result = measure(calls, check, seconds, warm_up=0, at_least=3, slow=never, too_slow=never)
    for name, figures in result.items():
        figures["images_per_second"] = round(len(records) * 1e6 / figures["p50_us"], 1)
        # Sizes are random, and the published loader draws its own.
        figures["megapixels_per_second"] = round(pixels[name] / figures["p50_us"], 1)
    return result


def enlarge(records: list[Record], folder: Path) -> list[Record]:
    """The same pictures ``ENLARGED`` times as wide and as high, as JPEGs of quality 90."""
    result = []
    for record in records:
        path = folder / f"{record.path.stem}.jpg"
        size = (record.width * ENLARGED, record.height * ENLARGED)
        if not path.exists():
            with Image.open(record.path) as image:
                image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        boxes = record.boxes * ENLARGED
        result.append(
            dataclasses.replace(record, path=path, width=size[0], height=size[1], boxes=boxes)
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--quick", action="store_true", help="few images, to see that all runs")
    parser.add_argument("--seconds", type=float, default=10.0, help="per set and number of workers")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--workers", nargs="+", type=int, default=(0, 2))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--coco", default="coco:../shared/data/tiny_coco", help="for coco, photos")
    parser.add_argument("--voc", default="voc:../shared/data/bccd", help="for small")
    args = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for set_ in args.sets:
            source = args.voc if set_ == "small" else args.coco
            records = open_dataset(source, "train").records
            count = args.batch_size * (1 if args.quick else BATCHES[set_])
            records = [records[k % len(records)] for k in range(count)]
            if set_ == "photos":
                records = enlarge(records, Path(folder))
            for workers in args.workers:
                start = time.perf_counter()
                seconds = 0.1 if args.quick else args.seconds
                result = run(set_, records, args.batch_size, workers, seconds)
                about = environment_info(0, {"pillow": Image.__version__})
                taken = time.perf_counter() - start
                print(f"{set_}, {count} images, workers: {workers} ({taken:.1f} s)", flush=True)
                for name, figures in result.items():
                    print(
                        f"  {name:28} {figures['images_per_second']:>8} images/s "
                        f"{figures['megapixels_per_second']:>8} megapixels/s"
                    )
                    rows.append(
                        {
                            "set": set_,
                            "images": count,
                            "batch_size": args.batch_size,
                            "workers": workers,
                            "variant": name,
                            **figures,
                            **about,
                        }
                    )
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
