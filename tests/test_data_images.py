"""Decoding all kinds of image files, the error a worker hands over, and the image cache."""

import gc
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from shared_data import BCCD, needs_bccd
from torch.utils.data import DataLoader

from detr_fast.data import (
    DataError,
    DetectionDataset,
    Record,
    VocDetection,
    clean_message,
    collate,
    fixed_eval,
    read_image,
)
from detr_fast.data.cache import ImageCache
from detr_fast.data.images import image_size

RED, GREEN = (250, 10, 20), (20, 240, 10)


def left_red_right_green(width=20, height=10):
    image = Image.new("RGB", (width, height), GREEN)
    image.paste(RED, (0, 0, width // 2, height))
    return image


def assert_colour(pixels, colour, tolerance=0):
    assert np.abs(pixels.numpy().astype(int) - np.array(colour)).max() <= tolerance


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("suffix", ["png", "tiff", "jpg"])
def test_colour_modes_become_rgb(tmp_path, mode, suffix):
    if (suffix, mode) in {("png", "CMYK"), ("jpg", "RGBA"), ("jpg", "P")}:
        mode = "RGB"  # no such files exist
    image = left_red_right_green()
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    path = tmp_path / f"image.{suffix}"
    image.save(path, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {}))
    pixels = read_image(path)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 10, 20)
    assert pixels.permute(1, 2, 0).is_contiguous()
    assert_colour(pixels[:, 5, 3], RED, tolerance=6)
    assert_colour(pixels[:, 5, 17], GREEN, tolerance=6)


def test_grey_16_bit_and_transparency(tmp_path):
    Image.new("L", (4, 3), 77).save(tmp_path / "grey.png")
    assert_colour(read_image(tmp_path / "grey.png")[:, 1, 1], (77, 77, 77))
    deep = Image.fromarray(np.full((3, 4), 200 * 256 + 31, dtype=np.uint16))
    deep.save(tmp_path / "deep.png")
    assert_colour(read_image(tmp_path / "deep.png")[:, 1, 1], (200, 200, 200))
    Image.new("RGBA", (4, 3), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert_colour(read_image(tmp_path / "clear.png")[:, 1, 1], (10, 20, 30))
    Image.new("P", (4, 3)).save(tmp_path / "palette.png", transparency=b"\x00")
    assert read_image(tmp_path / "palette.png").shape == (3, 3, 4)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_12_bits_in_a_16_bit_file_are_not_blackened_without_a_word(tmp_path, suffix):
    file = tmp_path / f"camera.{suffix}"
    Image.fromarray(np.full((3, 4), 0xFFF, dtype=np.uint16)).save(file)
    with pytest.warns(UserWarning, match="16-bit picture uses less than a sixteenth"):
        assert (read_image(file) == 15).all()
    Image.fromarray(np.full((3, 4), 0x1000, dtype=np.uint16)).save(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (read_image(file) == 16).all()


def test_pixels_without_a_scale_are_refused_not_blackened(tmp_path):
    small = Image.fromarray(np.full((3, 4), 200, dtype=np.int32))
    small.save(tmp_path / "small.tif")
    assert (read_image(tmp_path / "small.tif") == 200).all()
    Image.fromarray(np.full((3, 4), 0.5, dtype=np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((3, 4), 2**20, dtype=np.int32)).save(tmp_path / "large.tif")
    for name in ("float.tif", "large.tif"):
        with pytest.raises(DataError, match=rf"{name}: .*no defined white level"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_unless_the_stated_size_says_otherwise(tmp_path, orientation):
    image = left_red_right_green()
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    image.save(path, exif=exif, quality=100, subsampling=0)
    # Where the file's left half is seen: (row, column) of a pixel inside, of 10 rows, 20 columns.
    seen = {1: (5, 3), 2: (5, 17), 3: (5, 17), 4: (5, 3)}  # sides kept
    seen |= {5: (3, 5), 6: (3, 5), 7: (17, 5), 8: (17, 5)}  # sides exchanged
    row, column = seen[orientation]
    size = (10, 20) if orientation < 5 else (20, 10)
    for stated in (None, size):
        pixels = read_image(path, size=stated)
        assert pixels.shape[1:] == size == image_size(path, stated=stated)
        assert_colour(pixels[:, row, column], RED, tolerance=6)
    if orientation >= 5:  # annotations that were made for the picture as stored
        assert image_size(path, stated=(10, 20)) == (10, 20)
        assert_colour(read_image(path, size=(10, 20))[:, 5, 3], RED, tolerance=6)
    with pytest.raises(DataError, match="annotations were made for 7 x 9"):
        read_image(path, size=(9, 7))


def broken_jpg(path):
    left_red_right_green(200, 100).save(path)
    path.write_bytes(path.read_bytes()[:700])
    return path


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg: no such image file"):
        read_image(tmp_path / "gone.jpg")
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    cut = broken_jpg(tmp_path / "cut.jpg")
    empty = tmp_path / "empty.jpg"
    empty.write_bytes(b"")
    for path in (text, cut, empty, tmp_path):
        with pytest.raises(DataError) as caught:
            read_image(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: cannot read the image (") and "\n" not in message
        assert message.count(str(path)) == 1
    with pytest.raises(DataError, match=r"text\.jpg: cannot read the image \(not in a format"):
        image_size(text)
    with pytest.raises(DataError, match=r"empty\.jpg: cannot read the image \(the file is empty"):
        image_size(empty)


class Fails(torch.utils.data.Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


def from_worker(dataset, kind=DataError):
    with pytest.raises(kind) as caught:
        list(DataLoader(dataset, num_workers=2, collate_fn=collate))
    error = caught.value.with_traceback(None)
    # The traceback held the loader's iterator. It must go before the next fork: torch's clean-up
    # in a child that inherits it closes what is not its own.
    del caught
    gc.collect()
    return error


def test_corrupt_image_in_a_worker_is_one_line(tmp_path):
    good = tmp_path / "good.jpg"
    left_red_right_green(200, 100).save(good)
    bad = broken_jpg(tmp_path / "bad.jpg")
    records = [Record(k, path, 200, 100) for k, path in enumerate([good, bad, good, good])]
    dataset = DetectionDataset(records, ["x"], [1], fixed_eval(32))
    with pytest.raises(DataError) as here:
        dataset[1]
    error = from_worker(dataset)
    assert type(error) is DataError
    assert str(error) == str(here.value) == clean_message(error)
    assert str(bad) in str(error) and "\n" not in str(error)
    assert "in DataLoader worker" in error.worker_traceback
    assert "images.py" in error.worker_traceback
    assert here.value.worker_traceback is None


@pytest.mark.parametrize(
    "message",
    ["plain", "Caught DataError: not from a worker", "a: detr_fast.data.errors.DataError: b", ""],
)
def test_data_error_keeps_any_message_through_a_worker(message):
    assert str(DataError(message)) == message
    assert str(from_worker(Fails(DataError(message)))) == message


def test_data_error_is_always_one_line_and_survives_pickling():
    error = DataError("first\nsecond")
    assert str(error) == "first second"
    assert str(pickle.loads(pickle.dumps(error))) == "first second"
    assert isinstance(error, ValueError)


def test_clean_message_of_other_exceptions():
    assert clean_message(RuntimeError("out of\nmemory")) == "RuntimeError: out of memory"
    assert clean_message(KeyboardInterrupt()) == "KeyboardInterrupt"
    error = from_worker(Fails(ZeroDivisionError("division by zero")), ZeroDivisionError)
    assert "\n" in str(error)
    assert clean_message(error) == "ZeroDivisionError: division by zero"


def test_cache_is_filled_by_forked_workers_and_not_pickled():
    cache = ImageCache([(2, 3), (4, 5)])
    image = torch.arange(60, dtype=torch.uint8).view(3, 4, 5)
    context = torch.multiprocessing.get_context("fork")
    worker = context.Process(target=cache.put, args=(1, image))
    worker.start()
    worker.join()
    assert cache.get(0) is None
    assert torch.equal(cache.get(1), image)
    cache.get(1).zero_()  # a copy: the kept one stays
    assert torch.equal(cache.get(1), image)
    assert pickle.loads(pickle.dumps(cache)).get(1) is None


def png_dataset(tmp_path, **options):
    path = tmp_path / "image.png"
    left_red_right_green(40, 20).save(path)
    boxes = np.array([[0.0, 0.0, 20.0, 20.0]])
    record = Record(3, path, 40, 20, boxes, np.array([0]))
    return path, DetectionDataset([record], ["red"], [1], **options)


def test_cached_images_are_decoded_once(tmp_path):
    path, dataset = png_dataset(tmp_path, cache_images=True)
    first = dataset[0]
    path.unlink()
    again = dataset[0]
    assert torch.equal(first[0], again[0]) and torch.equal(first[1]["boxes"], again[1]["boxes"])


def test_cache_size_shrinks_image_and_boxes_together(tmp_path):
    _, dataset = png_dataset(tmp_path, cache_images=True, transforms=fixed_eval((5, 20)))
    for _ in range(2):  # as it is kept, and as it comes back
        image, target = dataset.read(0)
        assert image.shape == (3, 5, 20)
        assert target["boxes"].tolist() == [[0, 0, 10, 5]]
        assert target["boxes"].canvas_size == (5, 20)
        assert target["orig_size"].tolist() == [20, 40]
        assert_colour(image[:, 2, 8], RED, tolerance=2)
        assert_colour(image[:, 2, 11], GREEN, tolerance=2)
        assert torch.equal(dataset[0][1]["boxes"], torch.tensor([[0.25, 0.5, 0.5, 1.0]]))


@needs_bccd
def test_workers_give_what_the_main_process_gives():
    dataset = VocDetection(BCCD, "test", fixed_eval((120, 160)), cache_images=True)
    dataset = torch.utils.data.Subset(dataset, range(8))
    plain = list(DataLoader(dataset, batch_size=4, collate_fn=collate))
    worked = list(DataLoader(dataset, batch_size=4, collate_fn=collate, num_workers=2))
    for (images, mask, targets), (images_w, mask_w, targets_w) in zip(plain, worked, strict=True):
        assert torch.equal(images, images_w) and mask is None and mask_w is None
        for target, target_w in zip(targets, targets_w, strict=True):
            assert target.keys() == target_w.keys()
            assert all(torch.equal(target[key], target_w[key]) for key in target)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_pillow_turns(tmp_path, orientation):
    exif, path = Image.Exif(), tmp_path / "photo.png"
    exif[0x0112] = orientation
    Image.effect_noise((5, 3), 99).convert("RGB").save(path, exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(path)))
    assert read_image(path).permute(1, 2, 0).tolist() == expected.tolist()
