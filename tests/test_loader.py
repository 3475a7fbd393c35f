"""From files to batches on a device: scaled decoding, image cache, uint8 batches, prefetching."""

import gc
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Client
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from devices import NoWait, needs_cuda
from PIL import Image
from shared_data import BCCD, TINY_COCO, needs_bccd, needs_tiny_coco
from torchvision.tv_tensors import BoundingBoxes

from detr_fast.cli import main
from detr_fast.data import (
    CocoDetection,
    DataError,
    DetectionDataset,
    DeviceDecoder,
    Prefetcher,
    Record,
    Shapes,
    VocDetection,
    collate,
    detr_eval,
    detr_train,
    fixed_eval,
    is_worker_lost,
    small_train,
    to_device,
)
from detr_fast.data.cache import ImageCache
from detr_fast.data.errors import LostWorker
from detr_fast.data.images import ImageFile, read_image, read_scaled
from detr_fast.data.loader import make_eval_loader, make_loader
from detr_fast.matching import PackedTargets
from detr_fast.training import TrainConfig, Trainer
from detr_fast.training.datasets import open_data
from detr_fast.training.loader import TrainLoader

CPU = torch.device("cpu")
PLAIN = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}  # colours as they are


def photo(path, height=400, width=640, **options):
    """A smooth picture: its halves and quarters are what any good method makes of it."""
    y, x = np.mgrid[:height, :width] / 100
    waves = [np.sin(y + 2 * x), np.cos(2 * y - x), np.sin(y * x / 3)]
    pixels = (127 + 100 * np.stack(waves, -1)).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=95, **options)
    return path


def coco(transforms, **options):
    file = TINY_COCO / "annotations" / "instances_train2017.json"
    return CocoDetection(TINY_COCO / "train2017", file, transforms, **options)


def assert_same(batch, other):
    assert torch.equal(batch.images, other.images)
    assert (batch.mask is None) == (other.mask is None)
    assert batch.mask is None or torch.equal(batch.mask, other.mask)
    for target, theirs in zip(batch.targets.unpack(), other.targets.unpack(), strict=True):
        assert torch.equal(target["labels"], theirs["labels"])
        assert torch.equal(target["boxes"], theirs["boxes"])


class TestScaledDecoding:
    @pytest.mark.parametrize(
        ("at_least", "divisor"),
        [
            ((400, 640), 1),
            ((201, 320), 1),
            ((200, 320), 2),
            ((101, 20), 2),
            ((100, 160), 4),
            ((50, 80), 8),
            ((1, 1), 8),
            ((600, 10), 1),
        ],
    )
    def test_the_smallest_scale_that_suffices(self, tmp_path, at_least, divisor):
        path = photo(tmp_path / "photo.jpg")
        pixels, found = read_scaled(path, (400, 640), at_least)
        assert found == divisor
        assert pixels.shape == (3, 400 // divisor, 640 // divisor)
        blocks = read_image(path).float().unflatten(1, (-1, divisor)).unflatten(3, (-1, divisor))
        assert (pixels - blocks.mean((2, 4))).abs().max() <= 4

    def test_sizes_that_do_not_divide_and_other_formats(self, tmp_path):
        path = photo(tmp_path / "odd.jpg", 401, 643)
        pixels, divisor = read_scaled(path, (401, 643), (100, 160))
        assert divisor == 4 and pixels.shape == (3, 101, 161)
        whole = photo(tmp_path / "photo.png")
        assert read_scaled(whole, (400, 640), (10, 10))[1] == 1

    @pytest.mark.parametrize("orientation", [1, 3, 6])
    def test_turned_pictures(self, tmp_path, orientation):
        """Only by divisors of both sides: a remainder would come to lie in front."""
        exif = Image.Exif()
        exif[0x0112] = orientation
        for height, width, divisor in ((400, 640, 4), (402, 642, 2), (401, 642, 1)):
            path = photo(tmp_path / f"{height}.jpg", height, width, exif=exif)
            size, at_least = ((height, width), (100, 160))
            if orientation == 6:
                size, at_least = size[::-1], at_least[::-1]
            pixels, found = read_scaled(path, size, at_least)
            if orientation > 1:
                assert found == divisor
                blocks = read_image(path).float().unflatten(1, (-1, found))
                blocks = blocks.unflatten(3, (-1, found)).mean((2, 4))
                assert (pixels - blocks).abs().max() <= 4
            else:
                assert found == 4

    def test_errors_name_the_file(self, tmp_path):
        path = photo(tmp_path / "photo.jpg")
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(DataError, match=r"photo\.jpg: cannot read the image"):
            read_scaled(path, (400, 640), (50, 50))
        with pytest.raises(DataError, match=r"photo\.jpg: .* annotations were made for 3 x 4"):
            ImageFile(path, (4, 3)).read_jpeg()
        with pytest.raises(DataError, match=r"none\.jpg: no such image file"):
            ImageFile(tmp_path / "none.jpg", (4, 3)).read_jpeg()

    @needs_bccd
    @pytest.mark.parametrize(
        "recipe",
        [fixed_eval((150, 200)), small_train((150, 200), **PLAIN), detr_eval(200)],
    )
    def test_nearly_the_picture_and_the_boxes_of_the_whole(self, recipe):
        samples = []
        for scaled in (False, True):
            data = VocDetection(BCCD, "test", recipe, scaled_decoding=scaled)
            torch.manual_seed(3)
            samples.append([data[index] for index in range(8)])
        differences = []
        for (image, target), (scaled_image, scaled_target) in zip(*samples, strict=True):
            differences.append((image - scaled_image).abs().mean())
            assert torch.equal(target["labels"], scaled_target["labels"])
            torch.testing.assert_close(target["boxes"], scaled_target["boxes"], atol=0.005, rtol=0)
        # In units of a standard deviation of natural pixels; one pixel's shift gives 0.1.
        assert 0 < max(differences) < 0.04


class TestUint8:
    @needs_tiny_coco
    @pytest.mark.parametrize("recipe", [detr_train, lambda **o: fixed_eval((70, 90), **o)])
    def test_normalised_on_the_device_to_the_last_digit(self, recipe):
        batches = []
        for normalize in (True, False):
            data = coco(recipe(normalize=normalize))
            torch.manual_seed(1)
            batches.append(collate([data[index] for index in range(3)], pack=True))
        assert batches[0].images.dtype == torch.float32
        assert batches[1].images.dtype == torch.uint8
        assert batches[1].images.is_contiguous(memory_format=torch.channels_last)
        assert_same(to_device(batches[0], CPU), to_device(batches[1], CPU))

    def test_a_batch_on_its_device_stays_as_it_is(self):
        data = Shapes(2, image_size=48, transforms=fixed_eval(None, normalize=False))
        batch = to_device(collate([data[0], data[1]], pack=True), CPU)
        again = to_device(batch, CPU)
        assert again.images is batch.images and again.targets is batch.targets


class TestTrainLoader:
    def batches(self, data, epochs=(0, 1), **options):
        loader = TrainLoader(data, 4, seed=1, **{"workers": 0} | options)
        return [batch for epoch in epochs for batch in loader.epoch(epoch)]

    @needs_tiny_coco
    def test_workers_that_live_on_give_what_this_process_gives(self):
        data = coco(detr_train(normalize=False), scaled_decoding=True)
        here, there = self.batches(data), self.batches(data, workers=2)
        assert len(here) == len(there) == 6
        for batch, other in zip(here, there, strict=True):
            assert isinstance(other.targets, PackedTargets)
            assert_same(batch, other)

    def test_workers_live_on(self):
        class WhoLoads(Shapes):
            def __getitem__(self, index):
                image, target = super().__getitem__(index)
                worker = torch.utils.data.get_worker_info()
                return image + worker.dataset.dataset.calls, target

            calls = 0

            def set_epoch(self, epoch):
                type(self).calls += 1  # of this process

        data = WhoLoads(8, image_size=48, transforms=fixed_eval(None))
        loader = TrainLoader(data, 8, seed=1, workers=1)
        first, second = (next(iter(loader.epoch(0))).images for _ in range(2))
        torch.testing.assert_close(second - first, torch.full_like(first, 8))

    def test_sizes_are_rounded_up(self):
        data = Shapes(8, image_size=50, transforms=fixed_eval(None))
        batch = self.batches(data, pad_to_multiple=32)[0]
        assert batch.images.shape == (4, 3, 64, 64)
        assert not batch.mask[:, :50, :50].any() and batch.mask[:, 50:].all()
        assert (batch.images[:, :, 50:] == 0).all()

    def test_leaves_the_random_numbers_of_the_gpu_alone(self, monkeypatch):
        seeded = []
        monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
        torch.manual_seed(1)
        assert seeded == [1]  # this is how it would be seen
        self.batches(Shapes(4, image_size=48, transforms=small_train(None)))
        assert seeded == [1]


class TestCache:
    def test_keeps_what_fits(self):
        cache = ImageCache([(2, 3), (4, 5), (1, 1)], limit=3 * (6 + 20) + 2)
        assert cache.room == 2 and cache.bytes == 78 and cache.wanted == 81
        assert [cache.has_room(index) for index in range(3)] == [True, True, False]
        assert cache.get(2) is None
        assert "3 images in 0.0 MB do not fit: 2 are kept" in cache.describe()

    def test_images_beyond_the_limit_are_read_each_time(self, tmp_path):
        path = photo(tmp_path / "a.jpg")
        records = [Record(k, path, 640, 400) for k in range(2)]
        data = DetectionDataset(
            records, [], [], fixed_eval((100, 160)), cache_images=True, cache_limit=3 * 100 * 160
        )
        kept, _ = data[0]
        data[1]
        path.unlink()
        assert torch.equal(data[0][0], kept)
        with pytest.raises(DataError, match="no such image file"):
            data[1]

    @needs_bccd
    def test_a_fixed_size_is_kept_exactly_and_a_random_one_nearly(self):
        for recipe, bound in ((fixed_eval((120, 160)), 0.0), (small_train((120, 160)), 0.05)):
            samples = []
            for cached in (False, True):
                data = VocDetection(BCCD, "test", recipe, cache_images=cached)
                data[0]
                torch.manual_seed(2)
                samples.append(data[0])
            assert data.cache.bytes < 72 * 3 * 480 * 640 / 4
            (image, target), (other, theirs) = samples
            assert (image - other).abs().mean() <= bound
            torch.testing.assert_close(target["boxes"], theirs["boxes"], atol=0.005, rtol=0)


class TestPrefetcher:
    def test_waiting_is_counted_and_working_is_not(self):
        data = Shapes(4, image_size=48, transforms=fixed_eval(None))
        batch = collate([data[0]], pack=True)

        def slow():
            for _ in range(3):
                time.sleep(0.05)
                yield batch

        prefetcher = Prefetcher(CPU)
        count = 0
        for _ in prefetcher.batches(slow()):
            time.sleep(0.1)
            count += 1
        assert count == 3
        assert 0.15 <= prefetcher.data_seconds < 0.3

    @needs_cuda
    def test_batches_of_a_gpu_without_a_wait(self):
        data = Shapes(32, image_size=64, transforms=fixed_eval(None, normalize=False))
        device = torch.device("cuda")
        here = list(TrainLoader(data, 4, seed=1, workers=0).epoch(0))
        loader = TrainLoader(data, 4, seed=1, workers=0, pin_memory=True).epoch(0)
        batches = list(loader)
        with NoWait():
            found = list(Prefetcher(device).batches(batches))
        for batch, other in zip(here, found, strict=True):
            torch.testing.assert_close(to_device(batch, CPU).images, other.images.cpu())
            assert torch.equal(batch.targets.buffer, other.targets.buffer.cpu())


class TestDeviceDecoder:
    """The path of GPU decoding, which runs on the CPU too."""

    def files(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        paths = [
            photo(tmp_path / "plain.jpg"),
            photo(tmp_path / "turned.jpg", 640, 400, exif=exif),
            photo(tmp_path / "b.png"),
        ]
        Image.open(paths[0]).convert("L").save(tmp_path / "grey.jpg", quality=95)
        Image.open(paths[0]).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
        paths += [tmp_path / "grey.jpg", tmp_path / "cmyk.jpg"]
        boxes = np.array([[30.0, 40.0, 300.0, 200.0]])
        return [Record(k, p, 640, 400, boxes, np.array([0])) for k, p in enumerate(paths)]

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
    @pytest.mark.parametrize("cached", [False, True])
    def test_gives_what_the_loader_gives(self, tmp_path, device, cached):
        for recipe in (small_train((200, 320)), detr_train(normalize=False)):
            data = DetectionDataset(self.files(tmp_path), ["x"], [1], recipe, cache_images=cached)
            plain = TrainLoader(data, 5, seed=1, workers=0, pad_to_multiple=16)
            encoded = TrainLoader(data, 5, seed=1, workers=0, encoded=True)
            decoder = DeviceDecoder(recipe, torch.device(device), pad_to_multiple=16)
            prefetcher = Prefetcher(torch.device(device), decoder)
            (expected,) = Prefetcher(CPU).batches(plain.epoch(3))
            before = torch.get_rng_state()
            (found,) = prefetcher.batches(encoded.epoch(3))
            assert torch.equal(before, torch.get_rng_state())
            assert found.images.device.type == device and found.targets.device.type == device
            assert found.images.shape == expected.images.shape
            # Decoders may round differently; 0.05 are 3 of 255 levels.
            assert (found.images.cpu() - expected.images).abs().mean() < 0.05
            assert torch.equal(found.targets.buffer.cpu(), expected.targets.buffer)

    def test_a_broken_file_is_named(self, tmp_path):
        records = self.files(tmp_path)
        path = records[0].path
        path.write_bytes(path.read_bytes()[:1000])
        data = DetectionDataset(records, ["x"], [1], detr_train())
        loader = TrainLoader(data, 5, seed=1, workers=0, encoded=True)
        with pytest.raises(DataError, match=r"plain\.jpg: cannot read the image"):
            list(Prefetcher(CPU, DeviceDecoder(data.transforms, CPU)).batches(loader.epoch(0)))

    @pytest.mark.parametrize("fault", ["absent", "too old", "broken", "not for the device"])
    def test_without_torchcodec_torchvision_decodes(self, monkeypatch, fault):
        if fault == "broken":  # as with another torch than the one it is for
            finder = type("Finder", (), {"find_spec": staticmethod(self.broken)})
            monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
            for name in [name for name in sys.modules if name.split(".")[0] == "torchcodec"]:
                monkeypatch.delitem(sys.modules, name)
        else:
            codec = None if fault == "absent" else ModuleType("torchcodec.decoders")
            if fault == "not for the device":
                codec.decode_jpeg = self.unsupported
            monkeypatch.setitem(sys.modules, "torchcodec", codec and ModuleType("torchcodec"))
            monkeypatch.setitem(sys.modules, "torchcodec.decoders", codec)
        assert DeviceDecoder(small_train((64, 64)), CPU).library == "torchvision"
        monkeypatch.setitem(sys.modules, "torchvision.io", ModuleType("torchvision.io"))
        with pytest.raises(ValueError, match=r"on cpu \(torchcodec: .+; torchvision: .+\)"):
            DeviceDecoder(small_train((64, 64)), CPU)

    @staticmethod
    def broken(name, *_):
        if name == "torchcodec":
            raise RuntimeError("Could not load libtorchcodec.")

    @staticmethod
    def unsupported(images, mode, device):
        raise ValueError(f"Unsupported device: {device}")

    def test_torchcodec_decodes_where_it_is_installed(self, monkeypatch):
        codec = ModuleType("torchcodec.decoders")
        codec.decode_jpeg = lambda images, mode, device: [mode for _ in images]
        monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", codec)
        decoder = DeviceDecoder(small_train((64, 64)), CPU)
        assert decoder.library == "torchcodec" and decoder._decode_jpeg([0], device=CPU) == ["RGB"]

    def test_from_workers(self, tmp_path):
        data = DetectionDataset(self.files(tmp_path), ["x"], [1], small_train((200, 320)))
        decoder = DeviceDecoder(data.transforms, CPU)
        batches = [
            next(Prefetcher(CPU, decoder).batches(loader.epoch(0)))
            for loader in (
                TrainLoader(data, 5, seed=1, workers=workers, encoded=True) for workers in (0, 1)
            )
        ]
        assert_same(*batches)


class TestOptions:
    def test_the_memory_of_a_machine_is_shared(self, voc_folder, monkeypatch):
        """12 images of 64 x 64 for training, 6 for validation: each process has room for 14."""
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        size = 3 * 64 * 64
        config = TrainConfig.create(
            data=f"voc:{voc_folder}", cache=True, cache_gb=(2 * 14 * size + 2) / 1e9
        )
        train_set, val_set = open_data(config)
        assert (train_set.cache.room, val_set.cache.room) == (12, 2)
        assert open_data(replace(config, cache=False))[0].cache is None

    def test_half_of_the_free_memory_by_default(self, voc_folder, monkeypatch):
        free = 2 * 15 * 3 * 64 * 64 + 2  # twice what 15 of the 18 images need
        monkeypatch.setattr("detr_fast.training.datasets.available_memory", lambda: free)
        train_set, val_set = open_data(TrainConfig.create(data=f"voc:{voc_folder}", cache=True))
        assert (train_set.cache.room, val_set.cache.room) == (12, 3)

    def test_a_gpu_decodes_only_where_there_is_one(self, tmp_path):
        data = Shapes(8, image_size=48, transforms=fixed_eval(None))
        config = TrainConfig.create(decode="cuda", num_queries=6)
        with pytest.raises(ValueError, match="decode is cuda, which needs a GPU to train on"):
            Trainer(config, data, data, tmp_path, CPU, quiet=True)

    def test_continue_needs_a_name(self, tmp_path, capsys):
        assert main(["train", "--continue", "--runs", str(tmp_path)]) == 2
        assert "--continue needs --name, and excludes --resume" in capsys.readouterr().err


STUCK = """
import ctypes, sys, time
from torch.utils.data import Dataset
from detr_fast.data.loader import make_loader

class Stuck(Dataset):
    def __len__(self): return 4
    def __getitem__(self, index):
        if index == 3:
            lock, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
            for _ in range(2): libc.pthread_mutex_lock(lock)  # no signal handler of Python's runs
        return index

for item in make_loader(Stuck(), 1, collate_fn=lambda batch: batch[0]):
    if item == 2: break
print("main process ends", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's mutexes")
def test_a_worker_that_is_stuck_ends_with_the_main_process(tmp_path):
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", STUCK], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout == "main process ends\n", done.stderr
    assert time.monotonic() - begin < 50  # torch gives it 5 s


class Shared:
    """What is fetched over a connection, at a place where nobody answers, or hangs up at once."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Client, (self.place, None, b"key")  # as torch opens one for each shared tensor


@pytest.fixture(params=["nobody", "hangs up"])
def place(request, tmp_path):
    """The place of a worker that is killed, before its death is known."""
    place = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        if request.param == "nobody":
            yield place
            return
        server.listen()
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()
        yield place
        thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="the test's sockets are Linux's")
def test_a_worker_that_is_gone_before_its_death_is_known(place):
    loader = make_loader([Shared(place)], 1, collate_fn=lambda batch: batch[0])
    with pytest.raises(LostWorker, match="closed its connection") as raised:
        next(Prefetcher(CPU).batches(loader))
    assert is_worker_lost(raised.value)
    assert isinstance(raised.value.__cause__, (EOFError, ConnectionRefusedError))


class Unreadable:
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error("of the data set")


class Server(ConnectionError):
    def __str__(self):
        return f"server: {super().__str__()}"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [EOFError, ConnectionResetError, Server])
def test_a_data_sets_own_error_is_not_a_lost_worker(workers, kind):
    with pytest.raises(kind, match="of the data set") as raised:
        next(Prefetcher(CPU).batches(make_loader(Unreadable(kind), workers)))
    assert not is_worker_lost(raised.value)


def test_a_samplers_own_error_is_not_a_lost_worker():
    class Sampler:
        def __iter__(self):
            yield from ([0], [0])  # requested as the loader starts
            raise ConnectionResetError("of the sampler")

    loader = make_loader([0], 1, list, batch_sampler=Sampler())
    with pytest.raises(ConnectionResetError, match="of the sampler"):
        next(Prefetcher(CPU).batches(loader))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loop_may_go_on_after_an_error(tmp_path, workers):
    paths = [photo(tmp_path / f"{k}.png", 30, 40) for k in range(4)]
    paths[1].write_bytes(b"no image")
    records = [Record(k, path, 40, 30) for k, path in enumerate(paths)]
    data = DetectionDataset(records, ["x"], [1], small_train(None))
    batches, seen, bad = iter(TrainLoader(data, 1, seed=0, workers=workers).epoch(0)), 0, 0
    while True:
        try:
            next(batches)
            seen += 1
        except DataError:
            bad += 1
        except StopIteration:
            break
    assert (seen, bad) == (3, 1)


def pairs(rows):
    """An image and its target per row of ``rows``, of several kinds of tensors."""
    for row in rows:
        boxes = BoundingBoxes(row[None, :4], format="XYXY", canvas_size=(9, 9))
        whole = torch.arange(8).float()
        target = {
            "boxes": boxes,
            "no boxes": boxes[:0],
            "part": whole[2:4],
            "rest": whole.view(2, 4).T,
        }
        yield row, target | {"id": torch.tensor(int(row[0])), "bf16": row[:3].bfloat16()}


def test_small_tensors_come_by_value_and_large_ones_shared():
    """A worker's tensors equal this process's; few of them need an open file of their own."""
    data = list(pairs(torch.rand(64, 5)))
    data[-1][1]["large"] = torch.rand(64 * 1024)
    loaders = [make_loader(data, workers, list, batch_size=8) for workers in (0, 1)]
    expected, found = (list(loader) for loader in loaders)
    for batch, batch_found in zip(expected, found, strict=True):
        for (image, target), (image_found, target_found) in zip(batch, batch_found, strict=True):
            assert torch.equal(image, image_found) and target.keys() == target_found.keys()
            for name, value in target.items():
                assert type(value) is type(target_found[name]), name
                assert value.dtype == target_found[name].dtype, name
                assert torch.equal(value, target_found[name]), name
            image_found += 1  # writable
    shared = [t.is_shared() for _, target in found[-1] for t in target.values()]
    assert sum(shared) == 1 and found[-1][-1][1]["large"].is_shared()


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files with Linux's /proc")
def test_batches_from_workers_keep_few_files_open(tmp_path):
    """torch keeps one open for each shared tensor; 1024 are what a process may open, mostly."""
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    record = Record(0, tmp_path / "a.png", 300, 200, np.ones((1, 4)), np.array([0]))
    data = DetectionDataset([replace(record, image_id=k) for k in range(64)], ["x"], [1])
    evaluated = DetectionDataset(data.records, ["x"], [1], fixed_eval((64, 64)))
    loaders = {
        4: make_eval_loader(evaluated, 16, workers=1),  # the images of each batch
        2: TrainLoader(data, 32, seed=1, workers=1, encoded=True).epoch(0),
    }
    for batches, loader in loaders.items():
        gc.collect()  # what earlier tests left
        before, held = opened(), list(loader)
        assert len(held) == len(opened() - before) == batches


def opened():
    """The memory that this process shares with workers."""
    links = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    return {link for link in links if "torch_" in link}
