"""Batches for training: the same ones whatever loads them."""

import torch

from detr_fast.data import Shapes, small_train
from detr_fast.training.loader import TrainLoader


def batches(workers: int = 0, first: int = 0, rank: int = 0, world: int = 1) -> list:
    data = Shapes(24, image_size=48, seed=0, transforms=small_train(None), fresh=True)
    loader = TrainLoader(data, 4, seed=1, workers=workers, rank=rank, world_size=world)
    return [images for images, _, _ in loader.epoch(2, first_batch=first)]


def test_the_same_whatever_the_workers_and_wherever_it_starts():
    expected = batches()
    assert len(expected) == 6
    for found in (batches(workers=2), batches(workers=1)):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    later = batches(first=4)
    assert all(torch.equal(a, b) for a, b in zip(expected[4:], later, strict=True))


def test_transforms_differ_from_epoch_to_epoch():
    data = Shapes(8, image_size=48, seed=0, transforms=small_train(None))
    loader = TrainLoader(data, 8, seed=1, workers=0)
    first, second = (next(iter(loader.epoch(epoch)))[0].sum((1, 2, 3)) for epoch in (0, 1))
    assert not torch.allclose(first.sort().values, second.sort().values)


def test_does_not_touch_the_random_state_of_training():
    before = torch.get_rng_state()
    batches()
    assert torch.equal(before, torch.get_rng_state())


def test_processes_share_the_images():
    data = Shapes(24, image_size=48)
    seen = []
    for rank in range(3):
        loader = TrainLoader(data, 4, seed=1, workers=0, rank=rank, world_size=3)
        loader.batches.epoch = 5
        seen += [index for batch in loader.batches for _, index in batch]
    assert sorted(seen) == list(range(24))


def test_fewer_images_than_a_batch():
    loader = TrainLoader(Shapes(3, image_size=48), 8, seed=1, workers=0)
    assert [len(batch) for batch in loader.batches] == [3]
